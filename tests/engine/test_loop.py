"""The loop: exact gradients, exact resume, cadence, signals, non-finite policy."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from medtrain.callbacks.base import Callback
from medtrain.engine.distributed import Dist
from medtrain.engine.loop import Engine
from medtrain.engine.sanity import sanity_check
from medtrain.errors import MedtrainError, NonFiniteError
from medtrain.metrics.spec import MetricSpec
from tests.engine.toy import Recorder, ToyData, make_engine, network, weights


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_equals_a_plain_loop_bit_for_bit(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, steps=20, model=network(dropout=0.0), ema_decay=None)
    engine.fit()

    data, model = ToyData(), network(dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(20):
        batch = data.batch(step)
        optimizer.param_groups[0]["lr"] = 0.01 * (1.0 - 0.5 * step / 20)
        optimizer.zero_grad()
        (model(batch["x"]) - batch["y"]).square().mean().backward()
        optimizer.step()
    assert_equal(dict(engine.model.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("accumulate", [1, 2, 3, 7])
def test_accumulated_gradient_is_that_of_the_whole_window(tmp_path: Path, accumulate: int) -> None:
    """20 samples in batches of 3 end with one of 2; windows do not cross the epoch's end."""
    model = nn.Linear(5, 1)
    engine = make_engine(tmp_path, steps=9, accumulate=accumulate, model=model, ema_decay=None)
    data, reference = ToyData(), nn.Linear(5, 1)
    reference.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(reference.parameters(), lr=0.01)
    index = 0
    for step in range(9):
        end_of_epoch = (index // data.batches_per_epoch + 1) * data.batches_per_epoch
        window = [data.batch(i) for i in range(index, min(index + accumulate, end_of_epoch))]
        index += len(window)
        x, y = torch.cat([b["x"] for b in window]), torch.cat([b["y"] for b in window])
        optimizer.param_groups[0]["lr"] = 0.01 * (1.0 - 0.5 * step / 9)
        optimizer.zero_grad()
        (reference(x) - y).square().mean().backward()
        optimizer.step()
    engine.fit()
    torch.testing.assert_close(engine.model.weight, reference.weight, rtol=1e-5, atol=1e-6)
    assert engine.batches_seen(9) == index


def test_seven_batches_in_windows_of_three_are_three_steps(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, accumulate=3)  # 20 samples / 3 = 7 batches
    assert engine.steps_per_epoch == 3
    assert [engine.window_size(step) for step in range(6)] == [3, 3, 1, 3, 3, 1]


def test_what_is_drawn_of_an_evaluation_is_part_of_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("medtrain.engine.loop.time.perf_counter", lambda: now[0])

    class Draws(Callback):
        def on_evaluation_end(self, view: Any, metrics: Any, improved: bool) -> None:
            now[0] += 5.0

    engine = make_engine(tmp_path, steps=2, evaluate="1step", callbacks={"draws": Draws()})
    engine.fit()
    assert engine.clock.state_dict()["evaluation_seconds"] == 10.0
    assert engine.clock.state_dict()["last_evaluation_seconds"] == 5.0


class StopAt:
    """Sends a signal to this process when a batch is drawn: in the middle of a window."""

    def __init__(self, data: ToyData, batch: int, number: int) -> None:
        self.data, self.at, self.number = data, batch, number

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    def train_batches(self, start_batch: int, **kw: Any) -> Any:
        for index, batch in enumerate(self.data.train_batches(start_batch, **kw), start=start_batch):
            if index == self.at:
                os.kill(os.getpid(), self.number)
            yield batch


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stop_at", [4, 7, 10])
def test_resume_after_a_stop_mid_epoch_and_mid_window_is_bit_identical(
    tmp_path: Path, stop_at: int, number: int
) -> None:
    straight_log, resumed_log = Recorder(), Recorder()
    straight = make_engine(tmp_path / "a", steps=11, accumulate=3, logger=straight_log)
    assert straight.fit().status == "done"

    first = make_engine(tmp_path / "b", steps=11, accumulate=3, logger=resumed_log)
    first.data = StopAt(ToyData(), stop_at, number)
    result = first.fit()
    assert result.status == "stopped"
    assert 0 < result.step < 11
    second = make_engine(tmp_path / "b", steps=11, accumulate=3, logger=resumed_log, model=network())
    second.load(second.checkpoints.last())
    assert second.fit().status == "done"

    assert_equal(weights(straight), weights(second))
    assert straight_log.rows == resumed_log.rows
    assert straight.history == second.history
    assert straight.best == second.best


def test_resume_from_an_older_checkpoint_drops_the_rows_after_it(tmp_path: Path) -> None:
    """After kill -9 the log is ahead of the newest checkpoint."""
    straight_log, log = Recorder(), Recorder()
    straight = make_engine(tmp_path / "a", steps=12, logger=straight_log)
    straight.fit()
    killed = make_engine(tmp_path / "b", steps=12, logger=log, checkpoint="5step", evaluate="6step")
    batches = killed.batches_from_here()
    for _ in range(9):
        killed.train_step(batches)
        if killed.step % 2 == 0:
            killed._log()
        if killed.step == 4:
            killed.evaluate_and_record()
        if killed.step == 5:
            killed.save(best=False)
    again = make_engine(tmp_path / "b", steps=12, logger=log)
    again.load(again.checkpoints.last())
    assert again.step == 5
    again.fit()
    assert_equal(weights(straight), weights(again))
    assert straight_log.rows == log.rows


def test_evaluates_with_the_average_and_restores_the_weights(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, steps=5)
    engine.fit()
    raw = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    with engine.evaluation_weights():
        assert torch.equal(engine.model[0].weight, engine.ema.shadow["0.weight"])
        assert not torch.equal(engine.model[0].weight, raw["0.weight"])
        assert not engine.model.training
    assert_equal(dict(engine.model.state_dict()), raw)
    assert engine.model.training


def test_best_checkpoint_survives_and_old_ones_go(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, steps=30, evaluate="3step", checkpoint="2step", keep="10step")
    engine.fit()
    values = {int(row["step"]): row["val/error"] for row in engine.history}
    best = engine.checkpoints.best()
    assert best is not None
    assert best.step == min(values, key=values.get)
    kept = [c.step for c in engine.checkpoints.list()]
    assert set(kept) == {10, 20, 30, best.step} | set(kept[-2:])
    assert len(kept) <= 5


def test_always_evaluates_the_last_step(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, steps=10, evaluate="4step")
    engine.fit()
    assert [row["step"] for row in engine.history] == [4, 8, 10]


def test_clips_by_norm_and_by_value(tmp_path: Path) -> None:
    norms: list[float] = []
    engine = make_engine(tmp_path, clip_norm=0.01, clip_value=0.005)
    original = engine.precision.step

    def record(optimizer: Any, grad_norm: torch.Tensor) -> None:
        grads = torch.cat([p.grad.flatten() for p in engine.parameters])
        norms.append(float(grads.norm()))
        assert float(grads.abs().max()) <= 0.005
        assert float(grad_norm) > 0.01  # the norm before clipping is what is logged
        original(optimizer, grad_norm)

    engine.precision.step = record  # type: ignore[method-assign]
    engine.fit()
    assert max(norms) <= 0.0100001


class Poisoned(ToyData):
    """Some batches hold a NaN."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__()
        self.bad = bad

    def batch(self, index: int) -> dict[str, Any]:
        batch = super().batch(index)
        if index in self.bad:
            batch["x"] = batch["x"] * float("nan")
        return batch


def test_skips_a_nonfinite_step_and_goes_on(tmp_path: Path) -> None:
    model = nn.Linear(5, 1)
    engine = make_engine(tmp_path, steps=8, data=Poisoned({3}), model=model)
    engine.fit()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert engine.optimizer.state_dict()["state"][0]["step"] == 7  # eight steps, one of them skipped


def test_stops_when_too_many_steps_in_a_row_are_not_finite(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, steps=20, data=Poisoned(set(range(4, 20))), model=nn.Linear(5, 1), max_nonfinite=5)
    with pytest.raises(NonFiniteError, match=r"6 step\(s\) in a row up to step 10") as caught:
        engine.fit()
    assert caught.value.exit_code == 3
    assert '"case_id"' in (tmp_path / "nonfinite.json").read_text()


def test_raise_policy_stops_at_the_first_one(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, steps=20, data=Poisoned({5}), model=nn.Linear(5, 1), nonfinite="raise")
    with pytest.raises(NonFiniteError):
        engine.fit()
    assert engine.step == 5  # at once, although the log is due at the next step only


def test_sanity_check_changes_nothing(tmp_path: Path) -> None:
    engine, untouched = make_engine(tmp_path / "a"), make_engine(tmp_path / "b")
    report = sanity_check(engine)
    assert report.parameters == 5 * 8 + 8 + 8 + 8 + 8 + 1
    assert report.macs == 3 * (5 * 8 + 8)  # batch of 3
    assert_equal(weights(engine), weights(untouched))
    engine.fit()
    untouched.fit()
    assert_equal(weights(engine), weights(untouched))


def test_a_stop_within_an_evaluation_is_made_up_for(tmp_path: Path) -> None:
    """The signal comes while cases are judged: exit at once, evaluate first after the resume, same rows in the end."""
    straight_log, log = Recorder(), Recorder()
    straight = make_engine(tmp_path / "a", steps=10, logger=straight_log)
    straight.fit()
    first = make_engine(tmp_path / "b", steps=10, logger=log)
    judged: list[str] = []
    finished: list[str] = []
    original = first.task.evaluation_step

    def evaluation_step(model: Any, item: Any, *, final: bool) -> Any:
        judged.append(item["case_id"])
        if first.step == 8 and len(judged) == 25:
            os.kill(os.getpid(), signal.SIGTERM)
        found = original(model, item, final=final)
        finished.append(item["case_id"])
        return found

    first.task.evaluation_step = evaluation_step  # type: ignore[method-assign]
    result = first.fit()
    assert (result.status, result.step) == ("stopped", 8)
    assert len(judged) == 25  # it did not go on to judge the rest
    assert len(finished) == 24  # nor to finish this one
    again = make_engine(tmp_path / "b", steps=10, logger=log)
    again.load(again.checkpoints.last())
    again.fit()
    assert_equal(weights(straight), weights(again))
    assert straight.history == again.history
    assert straight_log.rows == log.rows
    assert straight.checkpoints.best().step == again.checkpoints.best().step


def test_a_run_that_was_to_stop_stays_stopped(tmp_path: Path) -> None:
    from medtrain.callbacks.base import Callback

    class Stop(Callback):
        def on_fit_start(self, view: Any) -> None:
            view.request_stop("patience is used up")

    engine = make_engine(tmp_path, steps=10)
    engine.fit()
    again = make_engine(tmp_path, steps=20, callbacks={"stop": Stop()})
    again.load(again.checkpoints.last())
    assert again.fit().step == 10


def test_a_failing_callback_is_switched_off_and_a_users_mistake_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from medtrain.callbacks.base import Callback

    class Fails(Callback):
        def on_evaluation_end(self, view: Any, metrics: Any, improved: bool) -> None:
            raise RuntimeError("no display")

    class Wrong(Callback):
        def on_fit_start(self, view: Any) -> None:
            raise MedtrainError("channel 3 does not exist")

    engine = make_engine(tmp_path / "a", steps=8, callbacks={"pictures": Fails()})
    assert engine.fit().status == "done"
    assert caplog.text.count("callback pictures failed and is switched off") == 1
    with pytest.raises(MedtrainError, match="channel 3"):
        make_engine(tmp_path / "b", callbacks={"pictures": Wrong()}).fit()


def test_unknown_monitor_fails_before_the_first_step(tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    engine.monitor = MetricSpec("val/dice", "max")
    with pytest.raises(MedtrainError, match=r"val/dice is not a metric of this task; available: val/error"):
        sanity_check(engine)


def test_a_callback_sees_the_order_of_events_and_can_stop(tmp_path: Path) -> None:
    from medtrain.callbacks.base import Callback

    events: list[str] = []

    class Spy(Callback):
        def on_fit_start(self, view: Any) -> None:
            events.append("start")

        def on_evaluation_end(self, view: Any, metrics: Any, improved: bool) -> None:
            events.append(f"evaluation {view.step}")
            if view.step == 8:
                view.request_stop("enough")

        def on_checkpoint(self, view: Any, path: Path) -> None:
            events.append(f"checkpoint {view.step}")

        def on_fit_end(self, view: Any, status: str) -> None:
            events.append(status)

    engine = make_engine(tmp_path, steps=100, checkpoint="1000step", callbacks={"spy": Spy()})
    result = engine.fit()
    assert result.status == "done"
    assert (result.reason, result.step) == ("enough", 8)
    assert events == ["start", "evaluation 4", "checkpoint 4", "evaluation 8", "checkpoint 8", "done"]


def _train_rank(rank: int, folder: str, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist = Dist(rank, rank, 2)
    dist.start(torch.device("cpu"))
    torch.manual_seed(3)
    engine: Engine = make_engine(
        Path(folder), steps=9, accumulate=2, model=nn.Linear(5, 1), dist=dist, data=ToyData(batch_size=4)
    )
    engine.fit()
    if rank == 0:
        torch.save({"weight": engine.model.weight, "history": engine.history}, Path(folder) / "result.pt")
    dist.close()


def test_two_ranks_train_like_one(tmp_path: Path, free_port: int) -> None:
    import torch.multiprocessing as mp

    (tmp_path / "two").mkdir()
    mp.spawn(_train_rank, args=(str(tmp_path / "two"), free_port), nprocs=2)
    two = torch.load(tmp_path / "two" / "result.pt", weights_only=True)
    torch.manual_seed(3)
    one = make_engine(tmp_path, steps=9, accumulate=2, model=nn.Linear(5, 1), data=ToyData(batch_size=4))
    one.fit()
    torch.testing.assert_close(two["weight"], one.model.weight, rtol=1e-5, atol=1e-6)
    assert [row["val/error"] for row in two["history"]] == pytest.approx([r["val/error"] for r in one.history])


def _evaluate_rank(rank: int, folder: str, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist = Dist(rank, rank, 2)
    dist.start(torch.device("cpu"))
    engine = make_engine(Path(folder), steps=4, dist=dist, data=ToyData(batch_size=4), ema_decay=None)
    engine.fit()
    records = engine.evaluate(limit=None, final=False)
    if rank == 0:
        torch.save({"model": engine.model.state_dict(), "records": records}, Path(folder) / "result.pt")
    dist.close()


def test_two_ranks_judge_with_the_same_running_statistics(tmp_path: Path, free_port: int) -> None:
    """Each rank's batch norm has seen other samples: half of the cases must not be judged by another network."""
    import torch.multiprocessing as mp

    (tmp_path / "two").mkdir()
    mp.spawn(_evaluate_rank, args=(str(tmp_path / "two"), free_port), nprocs=2)
    two = torch.load(tmp_path / "two" / "result.pt", weights_only=True)
    one = make_engine(tmp_path, data=ToyData(batch_size=4), ema_decay=None)
    one.model.load_state_dict(two["model"])
    records = one.evaluate(limit=None, final=False)
    assert [r["case_id"] for r in records] == [r["case_id"] for r in two["records"]]
    assert [r["error"] for r in two["records"]] == pytest.approx([r["error"] for r in records], rel=1e-6)
