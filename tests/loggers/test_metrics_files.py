"""The CSV and the JSON lines file: exact numbers, one row per step, bit-identical after a resume."""

from __future__ import annotations

import csv
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medtrain.loggers.base import Logger
from medtrain.loggers.csv import CsvLogger
from medtrain.loggers.jsonl import JsonlLogger
from medtrain.loggers.rows import RowFile

_KINDS = [(CsvLogger, "metrics.csv"), (JsonlLogger, "metrics.jsonl")]
Make = Callable[..., Logger]


def _run(logger: Logger, first: int, last: int) -> None:
    """What an engine logs: training numbers each 10 steps, an evaluation each 30, from step 60 one more metric."""
    for step in range(first, last + 1, 10):
        rng = np.random.default_rng(step)
        logger.log_scalars(step, step // 50, {"train/loss": rng.random(), "perf/step_s": rng.random()})
        if step % 30 == 0:
            logger.log_scalars(step, step // 50, {"val/dice": rng.random(), "val/hd95_mm": math.nan})
        if step >= 60:
            logger.log_scalars(step, step // 50, {"train/aux": rng.random()})


def _bits(value: float) -> bytes:
    return struct.pack("<d", value)


def test_csv_is_a_table_with_the_union_of_the_columns(tmp_path: Path) -> None:
    logger = CsvLogger(run_dir=tmp_path)
    logger.log_scalars(10, 0, {"train/loss": 0.5, "perf/step_s": 1.0})
    logger.log_scalars(20, 0, {"train/loss": 0.25})
    logger.log_scalars(20, 0, {"val/dice": 0.75, "a,b": math.inf})
    logger.log_scalars(30, 1, {"train/loss": math.nan})
    logger.log_scalars(40, 1, {"perf/step_s": 1.0})
    logger.close()
    assert (tmp_path / "metrics.csv").read_text() == (
        'step,epoch,"a,b",train/loss,val/dice\n10,0,,0.5,\n20,0,inf,0.25,0.75\n30,1,,nan,\n'
    )


def test_jsonl_has_one_valid_object_per_step(tmp_path: Path) -> None:
    logger = JsonlLogger(run_dir=tmp_path)
    logger.log_scalars(10, 0, {"train/loss": 0.5, "perf/step_s": 1.0})
    logger.log_scalars(20, 0, {"val/dice": math.nan, "train/loss": 0.25, "x": -math.inf})
    logger.log_scalars(20, 0, {"a": 1})
    logger.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == (
        '{"step": 10, "epoch": 0, "train/loss": 0.5}\n'
        '{"step": 20, "epoch": 0, "a": 1.0, "train/loss": 0.25, "val/dice": null, "x": -1e999}\n'
    )
    assert json.loads(text.splitlines()[1])["x"] == -math.inf
    perf = [json.loads(line) for line in (tmp_path / "perf.jsonl").read_text().splitlines()]
    assert [list(row) for row in perf] == [["step", "epoch", "time", "perf/step_s"]]


def test_numbers_read_back_to_the_same_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = [*rng.standard_normal(50), 5e-324, 1e308, -0.0, 0.1 + 0.2, float(np.float32(0.1))]
    for kind, _ in _KINDS:
        logger = kind(run_dir=tmp_path)
        for step, value in enumerate(values):
            logger.log_scalars(step, 0, {"x": value})
        logger.close()
    with (tmp_path / "metrics.csv").open() as file:
        from_csv = [float(row["x"]) for row in csv.DictReader(file)]
    from_json = [json.loads(line)["x"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert list(map(_bits, from_csv)) == list(map(_bits, values))
    assert list(map(_bits, from_json)) == list(map(_bits, values))


@pytest.mark.parametrize(("kind", "name"), _KINDS)
@pytest.mark.parametrize("killed_at", [20, 30, 50, 60, 90])
@pytest.mark.parametrize("checkpoint", [0, 10, 20, 30, 50, 60])
def test_resumed_file_is_bit_identical(tmp_path: Path, kind: Make, name: str, killed_at: int, checkpoint: int) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "resumed").mkdir()
    whole = kind(run_dir=tmp_path / "whole")
    _run(whole, 10, 120)
    whole.close()

    first = kind(run_dir=tmp_path / "resumed")
    _run(first, 10, killed_at)  # killed: neither flushed nor closed
    second = kind(run_dir=tmp_path / "resumed")
    resumed_from = min(checkpoint, killed_at)
    second.resume(resumed_from)
    _run(second, resumed_from + 10, 120)
    second.close()
    first.close()
    assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(("kind", "name"), _KINDS)
def test_an_evaluation_repeated_at_the_checkpoint_changes_nothing(tmp_path: Path, kind: Make, name: str) -> None:
    logger = kind(run_dir=tmp_path)
    _run(logger, 10, 60)
    logger.close()
    before = (tmp_path / name).read_bytes()
    again = kind(run_dir=tmp_path)
    again.resume(60)
    _run(again, 60, 60)
    again.close()
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize(("kind", "name"), _KINDS)
def test_resume_at_the_start_leaves_no_file(tmp_path: Path, kind: Make, name: str) -> None:
    logger = kind(run_dir=tmp_path)
    _run(logger, 10, 60)
    logger.close()
    again = kind(run_dir=tmp_path)
    again.resume(0)
    assert not (tmp_path / name).exists()
    _run(again, 10, 20)
    again.close()
    assert (tmp_path / name).exists()


@pytest.mark.parametrize(("kind", "name"), _KINDS)
@pytest.mark.parametrize("garbage", [b"70,1,0.1", b'{"step": 70, "tr', b"\0\0\0\0\n", b"\xff\xfe\n", b"\n"])
def test_what_a_power_cut_leaves_is_dropped(tmp_path: Path, kind: Make, name: str, garbage: bytes) -> None:
    logger = kind(run_dir=tmp_path)
    _run(logger, 10, 60)
    logger.close()
    before = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(before + garbage)
    again = kind(run_dir=tmp_path)
    again.resume(60)
    again.close()
    assert (tmp_path / name).read_bytes() == before


def test_rows_reach_the_system_at_once(tmp_path: Path) -> None:
    logger = CsvLogger(run_dir=tmp_path)
    logger.log_scalars(1, 0, {"x": 1.0})
    assert (tmp_path / "metrics.csv").read_text() == "step,epoch,x\n1,0,1.0\n"
    logger.flush()
    logger.close()


def test_a_replaced_row_may_be_shorter(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows")
    file.put("first")
    file.put("a long second")
    file.put("short", replace_last=True)
    file.put("third")
    file.close()
    assert (tmp_path / "rows").read_text() == "first\nshort\nthird\n"
