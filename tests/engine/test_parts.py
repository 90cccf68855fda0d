"""The parts of the engine one by one: durations, clock, EMA, meter, precision, checkpoints, signals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from medtrain.engine.cadence import Cadence, Duration, parse_duration, parse_time
from medtrain.engine.checkpoint import CheckpointFolder, read_checkpoint
from medtrain.engine.clock import Limit, RunClock
from medtrain.engine.distributed import Dist
from medtrain.engine.ema import EMA
from medtrain.engine.meter import Meter, Speed
from medtrain.engine.precision import Precision, choose_precision, cpu_has_bf16
from medtrain.engine.sanity import warn_of_ties
from medtrain.errors import MedtrainError, UsageError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("500step", Duration(500, "step")),
        ("1steps", Duration(1, "step")),
        ("10ep", Duration(10, "epoch")),
        ("20min", Duration(1200, "second")),
        ("1.5h", Duration(5400, "second")),
        ("90s", Duration(90, "second")),
        ("5%", Duration(5, "percent")),
    ],
)
def test_parses_durations(text: str, expected: Duration) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["10", "ten steps", "-5step", "0ep", "5 parsecs", ""])
def test_refuses_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="positive number with a unit"):
        parse_duration(text)


def test_a_time_needs_a_unit_of_time() -> None:
    assert parse_time("20min") == 1200
    with pytest.raises(ValueError, match="unit of time"):
        parse_time("20step")


def _due_steps(text: str, total: int, steps_per_epoch: int = 10) -> list[int]:
    cadence = Cadence(parse_duration(text), steps_per_epoch=steps_per_epoch)
    return [s for s in range(1, total + 1) if cadence.due(step=s, total_steps=total, progress=s / total, elapsed=0)]


def test_cadence_in_steps_epochs_and_percent() -> None:
    assert _due_steps("4step", 13) == [4, 8, 12]
    assert _due_steps("2ep", 50) == [20, 40]
    assert _due_steps("20%", 100) == [20, 40, 60, 80, 100]
    # 001-T3: 5 of 7 steps without a float modulo; the last step is always one
    assert _due_steps("33.3333333%", 7) == [3, 5, 7]
    assert _due_steps("1%", 5) == [1, 2, 3, 4, 5]


def test_cadence_in_time_counts_from_when_it_was_last_due() -> None:
    cadence = Cadence(parse_duration("60s"), steps_per_epoch=10)

    def due(elapsed: float) -> bool:
        return cadence.due(step=1, total_steps=None, progress=0.0, elapsed=elapsed)

    assert [due(t) for t in (10, 59, 61, 100, 120, 122, 300, 310)] == [
        False, False, True, False, False, True, True, False,
    ]  # fmt: skip


def test_percent_of_a_time_bounded_run_follows_the_progress_and_survives_a_resume() -> None:
    cadence = Cadence(parse_duration("25%"), steps_per_epoch=10)
    asked = [cadence.due(step=9, total_steps=None, progress=p, elapsed=0) for p in (0.1, 0.26, 0.3, 0.49, 0.51)]
    assert asked == [False, True, False, False, True]
    again = Cadence(parse_duration("25%"), steps_per_epoch=10)
    again.load_state_dict(cadence.state_dict())
    assert not again.due(step=9, total_steps=None, progress=0.6, elapsed=0)
    assert again.due(step=9, total_steps=None, progress=0.76, elapsed=0)


def test_clock_fits_the_steps_to_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("medtrain.engine.clock.time.monotonic", lambda: now[0])
    clock = RunClock(Limit(None, 100.0), final_evaluation_cost=2.0)
    clock.now = 10.0
    for _ in range(10):
        clock.add_step(1.0)
    assert clock.total_steps(10) == 10 + 90
    clock.add_evaluation(5.0)
    now[0] = clock.now = 15.0
    # 15 s are kept for the evaluation of the last step and the final one; a step costs 1 s and 0.5 s of evaluation
    assert clock.remaining() == 70.0
    assert clock.total_steps(10) == 10 + round(70 / 1.5)
    assert clock.progress(10) == pytest.approx(15 / 85)
    clock.now = 85.0
    assert clock.finished(50)
    assert clock.progress(50) == 1.0
    clock.add_evaluation(500.0)
    clock.now = 74.0
    assert clock.remaining() == 1.0  # evaluations never take more than a quarter of the limit from the training


def test_clock_counts_earlier_sessions_but_not_the_time_between(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("medtrain.engine.clock.time.monotonic", lambda: now[0])
    first = RunClock(Limit(100, 60.0))
    now[0] = 40.0
    state = first.state_dict()
    now[0] = 1000.0
    second = RunClock(Limit(100, 60.0))
    second.load_state_dict(state)
    now[0] = 1005.0
    second.now = second.measured()
    assert second.elapsed() == 45.0
    assert not second.finished(10)
    assert second.finished(100)


def test_ema_is_a_true_average_with_warm_up() -> None:
    """001-T1: torch's AveragedModel would give 5.5, the plain mean, for 1..10."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    ema = EMA(model, decay=0.5, warmup=False)
    expected = 0.0
    for value in range(1, 11):
        nn.init.constant_(model.weight, float(value))
        ema.update()
        expected = 0.5 * expected + 0.5 * value
    assert float(ema.shadow["weight"]) == pytest.approx(expected)

    warm = EMA(model, decay=0.999)
    decays = {}
    for n in range(1001):
        warm.updates = n
        decays[n] = warm.decay_now()
    assert [round(decays[n], 4) for n in (0, 1, 10, 100, 1000)] == [0.1, 0.1818, 0.55, 0.9182, 0.9911]


def test_ema_copies_buffers_and_restores_after_an_error() -> None:
    model = nn.BatchNorm1d(2)
    ema = EMA(model, decay=0.9)
    model(torch.randn(8, 2))
    ema.update()
    assert torch.equal(ema.shadow["running_mean"], model.running_mean)
    assert int(ema.shadow["num_batches_tracked"]) == 1
    weight = model.weight.data
    with ema.applied():
        assert model.weight.data_ptr() == ema.shadow["weight"].data_ptr()
    with pytest.raises(ZeroDivisionError), ema.applied():
        1 / 0  # noqa: B018
    assert model.weight.data.data_ptr() == weight.data_ptr()


def test_speed_is_that_of_the_steps_since_the_last_log() -> None:
    speed = Speed()
    speed.add_step(4, 1.5, 0.5)
    speed.add_step(2, 0.5, 0.0)
    speed.add_wait(1.0)
    # 6 samples in 3 s, of which half a second was spent waiting for batches
    assert speed.read() == pytest.approx({"perf/samples_per_s": 2.0, "perf/step_s": 1.5, "perf/data_wait": 1 / 6})
    assert speed.read() == {"perf/samples_per_s": 0.0, "perf/step_s": 0.0, "perf/data_wait": 0.0}


def test_meter_weighs_and_forgets() -> None:
    meter = Meter(CPU)
    meter.add({"loss": torch.tensor(1.0)}, 3)
    meter.add({"loss": torch.tensor(5.0)}, 1)
    restored = Meter(CPU)
    restored.load_state_dict(meter.state_dict())
    assert restored.read(Dist()) == {"loss": 2.0}
    assert restored.read(Dist()) == {}


def test_precision_is_chosen_by_the_device_and_refused_where_it_is_absent() -> None:
    name, reason = choose_precision("auto", CPU)
    assert name == ("bf16" if cpu_has_bf16() else "fp32")
    assert "CPU" in reason or "cpu" in reason
    assert choose_precision("fp32", CPU) == ("fp32", "requested")
    with pytest.raises(UsageError, match="fp16 needs CUDA"):
        choose_precision("fp16", CPU)
    with pytest.raises(UsageError, match="tf32 needs CUDA"):
        choose_precision("tf32", CPU)


def test_bf16_autocast_reaches_the_layers_and_gradients_stay_float32() -> None:
    precision = Precision("bf16", CPU)
    layer = nn.Linear(4, 4)
    with precision.autocast():
        out = layer(torch.randn(2, 4))
    assert out.dtype == torch.bfloat16
    precision.backward(out.float().sum())
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


def _save(folder: CheckpointFolder, step: int, *, best: bool = False, keep: bool = False) -> Path:
    model = {"w": torch.full((2, 3), float(step)).t()}  # not contiguous, as channels-last weights are
    return folder.save(
        step, model=model, ema=None, state={"x": torch.tensor(step)}, meta={"monitor": "m"}, best=best, keep=keep
    )


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    _save(folder, 5)
    found = folder.last()
    assert found is not None
    assert found.step == 5
    assert torch.equal(found.weights(ema=False)["w"], torch.full((3, 2), 5.0))
    assert int(found.state()["x"]) == 5
    assert not found.has_ema
    assert json.loads((folder.path / "last.json").read_text())["checkpoint"] == "step_00000005"


def test_a_full_disk_is_said_and_the_checkpoint_of_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    folder = CheckpointFolder(tmp_path)
    _save(folder, 5)

    def refuse(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("medtrain.engine.checkpoint.save_file", refuse)
    with pytest.raises(MedtrainError, match="the disk is full: cannot write"):
        _save(folder, 9)
    assert [c.step for c in folder.list()] == [5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.json", "step_00000005"]


@pytest.mark.parametrize("damage", ["no meta", "truncated weights", "missing state", "garbage meta"])
def test_an_incomplete_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    folder = CheckpointFolder(tmp_path)
    _save(folder, 5)
    newest = _save(folder, 9)
    if damage == "no meta":
        (newest / "meta.json").unlink()
    elif damage == "truncated weights":
        data = (newest / "model.safetensors").read_bytes()
        (newest / "model.safetensors").write_bytes(data[:-1])
    elif damage == "missing state":
        (newest / "state.pt").unlink()
    else:
        (newest / "meta.json").write_text("{")
    assert read_checkpoint(newest) is None
    found = folder.last()
    assert found is not None
    assert found.step == 5


def test_keeps_the_newest_the_best_and_the_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=2)
    for step in range(1, 9):
        _save(folder, step, best=step == 3, keep=step == 2)
    assert [c.step for c in folder.list()] == [2, 3, 7, 8]
    best = folder.best()
    assert best is not None
    assert best.step == 3


def test_a_failed_save_leaves_the_old_ones_and_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(tmp_path)
    _save(folder, 1)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medtrain.engine.checkpoint.torch.save", full)
    with pytest.raises(Exception, match="disk is full"):
        _save(folder, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.json", "step_00000001"]


def test_a_malicious_pickle_is_not_run(tmp_path: Path) -> None:
    """state.pt is opened with weights_only: a pickle that calls something is refused."""
    import pickle

    folder = CheckpointFolder(tmp_path)
    path = _save(folder, 1)

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (shutil.rmtree, (str(tmp_path),))

    torch.save(Evil(), path / "state.pt")
    meta = json.loads((path / "meta.json").read_text())
    meta["files"]["state.pt"] = (path / "state.pt").stat().st_size
    (path / "meta.json").write_text(json.dumps(meta))
    found = folder.last()
    assert found is not None
    with pytest.raises(pickle.UnpicklingError):
        found.state()
    assert tmp_path.exists()


def test_the_best_checkpoint_is_what_the_folders_say(tmp_path: Path) -> None:
    """A kill between writing the folder and its pointer: the new best is found all the same."""
    folder = CheckpointFolder(tmp_path, keep_last=1)
    _save(folder, 1, best=True)
    pointer = (tmp_path / "best.json").read_bytes()
    _save(folder, 2, best=True)
    (tmp_path / "best.json").write_bytes(pointer)
    best = folder.best()
    assert best is not None
    assert best.step == 2


def test_counts_skipped_steps_between_two_looks() -> None:
    precision = Precision("fp32", CPU)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    for norm in (1.0, float("nan"), float("inf"), 1.0, float("nan")):
        precision.step(optimizer, torch.tensor(norm))
    assert precision.read_skipped() == (3, 2)
    precision.step(optimizer, torch.tensor(float("nan")))
    assert precision.read_skipped() == (1, 2)  # the row went on across the look


def test_an_evaluation_does_not_make_the_next_one_due_at_once() -> None:
    cadence = Cadence(parse_duration("60s"), steps_per_epoch=10)
    assert cadence.due(step=1, total_steps=None, progress=0.1, elapsed=61)
    cadence.restart(progress=0.2, elapsed=200)  # the evaluation took 139 s
    assert not cadence.due(step=2, total_steps=None, progress=0.2, elapsed=201)
    assert cadence.due(step=3, total_steps=None, progress=0.2, elapsed=261)


def test_evaluations_keep_within_a_fifth_of_a_bounded_time() -> None:
    clock = RunClock(Limit(None, 1000.0))
    assert clock.affords_evaluation()  # nobody knows what it takes
    clock.add_evaluation(10.0)
    for _ in range(79):
        clock.add_step(1.0)
    assert not clock.affords_evaluation()  # 20 of 99 s
    clock.add_step(1.0)
    assert clock.affords_evaluation()  # 20 of 100 s
    endless = RunClock(Limit(100, None))
    endless.add_evaluation(10.0)
    assert endless.affords_evaluation()


def test_the_first_evaluation_waits_until_it_is_worth_its_time() -> None:
    clock = RunClock(Limit(None, 60.0), final_evaluation_cost=2.0, evaluation_steps=2.5)
    clock.now = 20.0  # the data were prepared
    clock.begin(0)
    for _ in range(9):
        clock.add_step(1.0)
        clock.now += 1.0
    assert not clock.affords_evaluation()  # 2.5 of 11.5 s
    # of the 40 s after start-up 2.5 * (1 + 2) are kept for the end
    assert clock.remaining() == 60 - 7.5 - 29
    clock.add_step(1.0)
    assert clock.affords_evaluation()  # 2.5 of 12.5 s
    clock.add_evaluation(100.0)
    clock.now += 1.0
    assert clock.remaining() == 60 - 0.25 * 40 - 30  # at most a quarter
    resumed = RunClock(Limit(None, 60.0))
    resumed.load_state_dict({**clock.state_dict(), "elapsed": 30.0})
    assert resumed.remaining() == clock.remaining()


@pytest.mark.parametrize(
    ("text", "step", "expected"),
    [
        ("10%", 0, 10), ("10%", 99, 10), ("10%", 100, 9), ("10%", 999, 1), ("10%", 1000, 0),
        ("300step", 0, 4), ("300step", 300, 3), ("300step", 901, 1), ("2ep", 0, 50), ("60s", 0, 9), (None, 5, 1),
        ("33.3333%", 0, 3), ("33.3333%", 334, 2), ("33.3%", 0, 4), ("0.01%", 990, 10),
    ],
)  # fmt: skip
def test_how_often_something_is_still_due(text: str | None, step: int, expected: int) -> None:
    cadence = Cadence(parse_duration(text) if text else None, steps_per_epoch=10)
    assert cadence.count_left(step=step, total_steps=1000, seconds=500.0) == expected


def test_the_time_left_counts_evaluations_from_the_first_step_on() -> None:
    every = Cadence(parse_duration("10%"), steps_per_epoch=10)
    clock = RunClock(Limit(100, None), final_evaluation_cost=3.0, evaluation_steps=4.0)
    clock.now = 30.0
    assert clock.seconds_left(0, every) is None
    clock.add_step(2.0)
    assert clock.seconds_left(1, every) == 99 * 2 + (10 + 3) * 8
    clock.add_evaluation(5.0)
    assert clock.seconds_left(10, every) == 90 * 2 + (9 + 3) * 5
    state = clock.state_dict()
    resumed = RunClock(Limit(100, None), final_evaluation_cost=3.0)
    resumed.load_state_dict(state)
    resumed.add_step(1.0)  # another machine: this session's speed counts
    assert resumed.seconds_left(11, every) == 89 * 1 + (9 + 3) * 5
    timed = RunClock(Limit(None, 60.0))
    timed.now = 25.0
    assert timed.seconds_left(0, every) == 35.0  # what start-up took is gone


def test_a_time_limit_that_went_elsewhere_is_told_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = RunClock(Limit(None, 60.0))
    monkeypatch.setattr("time.monotonic", lambda: clock._started + 60.0)
    clock.now = 40.0  # before the final evaluation
    clock.add_evaluation(20.0)
    clock.add_step(19.0)
    clock.warn_of_use(1)
    assert "of 60 s only 19 s went into training: 20 s into evaluations, 21 s into reading" in caplog.text
    assert "trainer.max_time" in caplog.text
    caplog.clear()
    clock.add_step(1.0)
    clock.warn_of_use(2)
    RunClock(Limit(10, None)).warn_of_use(1)
    ended_by_steps = RunClock(Limit(2, 60.0))
    monkeypatch.setattr("time.monotonic", lambda: ended_by_steps._started + 60.0)
    ended_by_steps.warn_of_use(2)
    assert not caplog.text


def test_a_limit_that_is_used_up_at_the_start_names_the_settings() -> None:
    clock = RunClock(Limit(None, 20.0))
    clock.now = 24.0
    clock.begin(5)
    with pytest.raises(MedtrainError, match="starting, took 24 s") as caught:
        clock.begin(0)
    assert "trainer.max_time" in str(caught.value.hint)
    assert "trainer.sanity_check=false" in str(caught.value.hint)


def test_equal_evaluations_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    def warned(*values: float) -> bool:
        caplog.clear()
        history = [{"step": step, "val/f1": value} for step, value in enumerate(values)]
        warn_of_ties(SimpleNamespace(monitor=SimpleNamespace(name="val/f1"), history=history))  # type: ignore[arg-type]
        return "val/f1 was 0.5000 in all 3 evaluations" in caplog.text

    assert warned(0.5, 0.5, 0.5)
    assert not warned(0.5, 0.5, 0.6)
    assert not warned(0.5)
