"""Reading ahead in processes that may die at any moment. Stand-ins for patches: a key is what is read."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from medtrain.data import loader
from medtrain.data.loader import pin_tensors, read_ahead
from medtrain.data.patches import collate
from medtrain.errors import DataError, MedtrainError, Problem


class Numbers:
    """Sample k holds k; some keys do something else."""

    def __init__(self, **events: Callable[[], Any]) -> None:
        self.events = {int(name[1:]): event for name, event in events.items()}

    def __getitem__(self, key: int) -> dict[str, Any]:
        if key in self.events:
            self.events[key]()
        return {"image": torch.full((2, 3), key), "label": torch.tensor(key), "key": key, "note": np.float32(key)}

    def collate(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return collate(samples)


def die(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


def die_by_bus_error() -> None:
    die(signal.SIGBUS)


def die_in_the_middle_of_a_message() -> None:
    def write_half(self: Any, data: Any, write: Any = os.write) -> None:
        half = len(data) // 2 if len(data) > 300 else len(data)  # the others hand over tensors
        write(self._handle, bytes(data)[:half])
        if half < len(data):
            die()

    multiprocessing.connection.Connection._send = write_half  # type: ignore[method-assign, assignment]


def wait_for_good() -> None:
    signal.pause()


def fail_for_the_user() -> None:
    raise MedtrainError("case 7 is damaged", hint="prepare it anew")


def fail_with_several_problems() -> None:
    raise DataError([Problem("a", "broken"), Problem("b", "gone", hint="find it")], heading="two files:")


def fail_on_the_disk() -> None:
    raise OSError(errno.EIO, "Input/output error", "/store/case_7")


def fail_with_what_cannot_be_sent() -> None:
    raise type("LocalError", (Exception,), {})("only known there")


def read(events: Numbers, keys: Sequence[Sequence[int]], workers: int = 2, **options: Any) -> Iterator[dict[str, Any]]:
    return read_ahead(events, keys, workers=workers, **options)  # type: ignore[arg-type]


def pairs(count: int) -> list[list[int]]:
    return [[2 * i, 2 * i + 1] for i in range(count)]


def tag(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "thread": threading.current_thread().name}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("finish", [None, tag])
def test_batches_come_in_order_and_end(workers: int, finish: Any) -> None:
    batches = list(read(Numbers(), pairs(8), workers, finish=finish))
    assert [batch["key"] for batch in batches] == pairs(8)
    assert [batch.get("thread", "batches") for batch in batches] == ["batches"] * 8
    for batch in batches:
        assert [image.tolist() for image in batch["image"]] == [[[key] * 3] * 2 for key in batch["key"]]
        assert [label.item() for label in batch["label"]] == batch["note"] == batch["key"]
        assert batch["weight"] == 2
    assert multiprocessing.active_children() == []
    assert list(read(Numbers(), [], workers)) == []


class Tagged(Numbers):
    """Tells which process read."""

    def __getitem__(self, key: int) -> dict[str, Any]:
        return {**super().__getitem__(key), "process": os.getpid()}


@pytest.mark.parametrize("finish", [None, tag])
def test_this_process_reads_until_the_workers_have_started(finish: Any) -> None:
    batches = read(Tagged(), ([number] for number in itertools.count()), finish=finish, here=True)  # type: ignore[arg-type]
    readers: list[int] = []
    while len(readers) < 4 or readers[-4:].count(os.getpid()):
        batch = next(batches)
        assert batch["key"] == [len(readers)]  # none is lost or read twice where the workers take over
        readers.extend(batch["process"])
    assert readers[0] == os.getpid()
    first = next(place for place, reader in enumerate(readers) if reader != os.getpid())
    assert os.getpid() not in readers[first:]
    assert len(set(readers[first:])) == 2
    batches.close()  # type: ignore[attr-defined]
    assert [batch["key"] for batch in read(Numbers(), pairs(3), here=True)] == pairs(3)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(("finish", "ahead"), [(None, 4), (tag, 6)])  # one is ready and one finished with a thread
def test_no_more_is_read_than_two_batches_per_worker_ahead(finish: Any, ahead: int) -> None:
    asked: list[int] = []

    def keys() -> Iterator[list[int]]:
        for number in itertools.count():
            asked.append(number)
            yield [number]

    batches = read(Numbers(), keys(), finish=finish)  # type: ignore[arg-type]
    for taken in range(1, 6):
        next(batches)
        assert taken <= len(asked) <= taken + ahead
    batches.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("finish", [None, tag])
def test_a_worker_killed_in_the_middle_of_a_message_blocks_nobody(finish: Any) -> None:
    batches = read(Numbers(_6=die_in_the_middle_of_a_message), pairs(50), finish=finish)
    with pytest.raises(MedtrainError) as error:
        list(batches)  # batches that it read before are lost with it: their tensors are handed over on demand
    assert str(error.value) == "a process that reads training data was killed by signal 9 (Killed)"
    assert "out of memory: choose a smaller data.num_workers" in str(error.value.hint)
    assert multiprocessing.active_children() == []


def test_a_bus_error_points_to_the_shared_memory() -> None:
    with pytest.raises(MedtrainError, match=r"killed by signal 7 \(Bus error\)") as error:
        list(read(Numbers(_6=die_by_bus_error), pairs(50)))
    assert "/dev/shm is probably full" in str(error.value.hint)


@pytest.mark.parametrize("finish", [None, tag])
def test_errors_arrive_as_they_were_raised(finish: Any) -> None:
    with pytest.raises(MedtrainError) as said:
        list(read(Numbers(_7=fail_for_the_user), pairs(9), finish=finish))
    assert (said.value.message, said.value.hint) == ("case 7 is damaged", "prepare it anew")
    assert not hasattr(said.value, "__notes__")  # no traceback where a sentence says it
    with pytest.raises(DataError) as several:
        list(read(Numbers(_7=fail_with_several_problems), pairs(9), finish=finish))
    assert (several.value.heading, several.value.problems[1].hint) == ("two files:", "find it")
    with pytest.raises(OSError, match="Input/output error") as disk:
        list(read(Numbers(_7=fail_on_the_disk), pairs(9), finish=finish))
    assert (disk.value.errno, disk.value.filename) == (errno.EIO, "/store/case_7")
    assert "in fail_on_the_disk" in disk.value.__notes__[0]
    with pytest.raises(RuntimeError, match="LocalError: only known there"):
        list(read(Numbers(_7=fail_with_what_cannot_be_sent), pairs(9), finish=finish))
    assert multiprocessing.active_children() == []


def test_an_error_in_finishing_a_batch_is_raised() -> None:
    def refuse(batch: dict[str, Any]) -> dict[str, Any]:
        raise KeyError(batch["key"][0])

    with pytest.raises(KeyError, match="0"):
        list(read(Numbers(), pairs(9), finish=refuse))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("finish", [None, tag])
def test_closing_does_not_wait_for_a_worker_that_hangs(finish: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_GRACE_S", 0.0)
    batches = read(Numbers(_6=wait_for_good), pairs(50), finish=finish)
    assert [next(batches)["key"] for _ in range(3)] == pairs(3)
    batches.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == []
    assert "batches" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(
    ("end", "finish"), [("os.kill(os.getpid(), signal.SIGKILL)", "None"), ("sys.exit()", "dict")], ids=["kill", "exit"]
)
def test_workers_end_with_the_training_process(end: str, finish: str) -> None:
    code = f"""
import os, signal, sys
from medtrain.data.loader import read_ahead
from tests.data.test_loader import Numbers, pairs
batches = read_ahead(Numbers(), pairs(99), workers=2, finish={finish})
next(batches)
{end}
"""
    # the output ends when every process that could write to it has
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == (-signal.SIGKILL if "SIGKILL" in end else 0)
    assert done.stderr == ""


def test_what_samples_need_is_imported_once_for_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    preloaded: list[list[str]] = []
    monkeypatch.setattr(
        multiprocessing.context.ForkServerContext, "set_forkserver_preload", lambda _, n: preloaded.append(n)
    )
    monkeypatch.setitem(sys.modules, "albumentations", sys)
    reader = Numbers()
    reader.part = loader._Worker(None, None)  # type: ignore[attr-defined,arg-type]
    loader._make_context(reader)
    assert preloaded == [["medtrain.data.loader", "medtrain.data.loader", "albumentations"]]
    monkeypatch.delitem(sys.modules, "albumentations")
    loader._make_context(Numbers())
    assert preloaded[1] == ["medtrain.data.loader"]


@pytest.mark.cuda
def test_pinned_batches() -> None:
    batches = list(read(Numbers(), pairs(4), finish=lambda batch: pin_tensors(batch, 0)))
    assert [batch["key"] for batch in batches] == pairs(4)
    assert all(tensor.is_pinned() for batch in batches for tensor in (*batch["image"], *batch["label"]))
