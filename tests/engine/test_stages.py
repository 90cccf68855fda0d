"""Progressive training: what is frozen does not move, what is unfrozen does, and a resume knows where it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from medtrain.engine.distributed import Dist
from medtrain.engine.loop import Engine
from medtrain.engine.stages import Stage, Stages, frozen_norms
from medtrain.errors import ConfigError
from tests.engine.toy import Recorder, ToyData, make_engine, network, weights

TWO = (Stage(duration="4step", freeze=("0", "1")), Stage(lr_scale=0.1))


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if name.startswith("model.") and not torch.equal(before[name], after[name])}


def test_what_is_frozen_stays_and_then_trains(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, steps=8, stages=TWO)
    start = weights(engine)
    batches = engine.batches_from_here()
    for _ in range(4):
        engine._enter_stage()
        engine.train_step(batches)
    # no weight decay, no running statistics: frozen means untouched
    assert moved(start, weights(engine)) == {"model.4.weight", "model.4.bias"}
    middle = weights(engine)
    engine._enter_stage()
    engine.train_step(batches)
    assert moved(middle, weights(engine)) == {
        "model.0.weight", "model.0.bias", "model.1.weight", "model.1.bias", "model.1.running_mean",
        "model.1.running_var", "model.1.num_batches_tracked", "model.4.weight", "model.4.bias",
    }  # fmt: skip


def test_the_learning_rate_is_scaled(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, steps=8, stages=TWO)
    batches = engine.batches_from_here()
    rates = []
    for _ in range(6):
        engine._enter_stage()
        engine.train_step(batches)
        rates.append(engine.optimizer.param_groups[0]["lr"])
    # the toy schedule: 0.01 * (1 - 0.5 * step / 8), a tenth of it from step 4 on
    assert rates == pytest.approx([0.01, 0.009375, 0.00875, 0.008125, 0.00075, 0.0006875])


@pytest.mark.parametrize("stop", [2, 4, 6])
def test_a_resume_before_at_and_after_the_change_is_bit_identical(tmp_path: Path, stop: int) -> None:
    straight_log, log = Recorder(), Recorder()
    straight = make_engine(tmp_path / "a", steps=9, stages=TWO, logger=straight_log)
    straight.fit()
    first = make_engine(tmp_path / "b", steps=9, stages=TWO, logger=log, checkpoint="1step", keep="1step")
    first.fit()
    folder = next(c for c in first.checkpoints.list() if c.step == stop)
    again = make_engine(tmp_path / "c", steps=9, stages=TWO, logger=log, model=network())
    again.load(folder)
    assert again.stages.index == (0 if stop <= 4 else 1)
    again.fit()
    expected, found = weights(straight), weights(again)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert straight_log.rows == log.rows


def test_time_and_shares_count_from_the_start_of_the_stage() -> None:
    stages = Stages((Stage(duration="10s"), Stage(duration="50%"), Stage()), network(), steps_per_epoch=5)
    assert not stages.advance(step=1, progress=0.1, elapsed=9.9)
    assert stages.advance(step=2, progress=0.2, elapsed=10.0)
    assert not stages.advance(step=3, progress=0.69, elapsed=30.0)
    assert stages.advance(step=4, progress=0.7, elapsed=31.0)
    assert not stages.advance(step=5, progress=1.0, elapsed=1e9)
    epochs = Stages((Stage(duration="2ep"), Stage()), network(), steps_per_epoch=5)
    assert [epochs.advance(step=step, progress=0, elapsed=0) for step in (9, 10, 11)] == [False, True, False]


def test_each_stage_starts_from_the_model_as_it_was_built() -> None:
    model = network()
    model[0].requires_grad_(False)
    stages = Stages((Stage(duration="1step", freeze=("4",)), Stage(unfreeze=("0",))), model, steps_per_epoch=1)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["1.weight", "1.bias"]
    stages.advance(step=1, progress=0, elapsed=0)
    assert all(p.requires_grad for p in model.parameters())


def test_what_is_locked_never_trains() -> None:
    model = network()
    model[0].requires_grad_(False)
    model.locked = ("0",)
    Stages((Stage(unfreeze=("*",)),), model, steps_per_epoch=1)
    assert not model[0].weight.requires_grad
    assert model[4].weight.requires_grad
    with pytest.raises(ConfigError, match="`0` is locked by the model and never trains"):
        Stages((Stage(unfreeze=("0",)),), model, steps_per_epoch=1)


def test_everything_that_is_wrong_is_said_at_once() -> None:
    model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    stages = (Stage(freeze=("encodr",)), Stage(duration="1ep", freeze=("*",)))
    with pytest.raises(ConfigError) as caught:
        Stages(stages, model, steps_per_epoch=1)
    assert [(problem.where, problem.hint) for problem in caught.value.problems] == [
        ("trainer.stages[0].duration", None),
        ("trainer.stages[0].freeze", "did you mean `encoder`?"),
        ("trainer.stages[1]", None),
    ]


def test_norms_without_parameters_follow_what_is_around_them() -> None:
    model = nn.ModuleDict(
        {
            "a": nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, affine=False)),
            "b": nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, affine=False), nn.BatchNorm2d(1)),
        }
    )
    model["a"].requires_grad_(False)
    assert frozen_norms(model) == [model["a"][1]]
    model["b"][2].requires_grad_(False)
    assert frozen_norms(model) == [model["a"][1], model["b"][2]]


def _staged(folder: Path, dist: Dist) -> Engine:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))  # nothing draws, and no statistics per rank
    stages = (Stage(duration="4step", freeze=("0",)), Stage(duration="3step", freeze=("2",)), Stage(lr_scale=0.5))
    return make_engine(
        folder, steps=10, accumulate=2, model=model, dist=dist, data=ToyData(batch_size=4), stages=stages
    )


def _train_rank(rank: int, folder: str, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist = Dist(rank, rank, 2)
    dist.start(torch.device("cpu"))
    engine = _staged(Path(folder), dist)
    engine.fit()
    torch.save({"weights": weights(engine), "stage": engine.stages.index}, Path(folder) / f"rank{rank}.pt")
    dist.close()


def test_two_ranks_change_stages_like_one(tmp_path: Path, free_port: int) -> None:
    """DDP averages the gradients of what trained when it was made: each stage needs one of its own."""
    import torch.multiprocessing as mp

    (tmp_path / "two").mkdir()
    mp.spawn(_train_rank, args=(str(tmp_path / "two"), free_port), nprocs=2)
    first, second = (torch.load(tmp_path / "two" / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    one = _staged(tmp_path / "one", Dist())
    one.fit()
    assert first["stage"] == second["stage"] == one.stages.index == 2
    expected = weights(one)
    assert expected.keys() == first["weights"].keys()
    for name, value in expected.items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-5, atol=1e-6, msg=name)
