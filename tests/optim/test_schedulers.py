"""Schedules: parity with PyTorch's schedulers, golden numbers, warm-up, purity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch.optim import lr_scheduler

from medtrain.errors import UsageError
from medtrain.optim.schedulers import (
    AbsoluteLinear,
    Constant,
    Cosine,
    Linear,
    MultiStep,
    OneCycle,
    Plateau,
    Poly,
    Schedule,
    Step,
)
from medtrain.registry import get, names

TOTAL, EPOCH = 60, 5


def torch_rates(
    make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], count: int, every: int = 1
) -> list[float]:
    """The learning rate of each of `count` updates under a torch scheduler stepped after every `every` updates."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = make(optimizer)
    rates = []
    for step in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % every == 0 and step + 1 < count:
            scheduler.step()
    return rates


def rates(schedule: Schedule, count: int = TOTAL) -> list[float]:
    return [0.1 * schedule.factor(step, TOTAL, EPOCH) for step in range(count)]


def every_schedule(**warmup: float) -> list[Schedule]:
    required = {"multistep": {"milestones": (2, 6)}, "absolute_linear": {"lr": 0.1}}
    return [get("scheduler", name).target(**required.get(name, {}), **warmup) for name in names("scheduler")]


def test_cosine_equals_torch() -> None:
    expected = torch_rates(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=TOTAL, eta_min=0.01), TOTAL)
    assert rates(Cosine(min_factor=0.1)) == pytest.approx(expected)


def test_poly_equals_torch() -> None:
    expected = torch_rates(lambda o: lr_scheduler.PolynomialLR(o, total_iters=TOTAL, power=0.9), TOTAL)
    assert rates(Poly(power=0.9)) == pytest.approx(expected)


def test_poly_golden_number() -> None:
    assert 0.01 * Poly(power=0.9).factor(500, 1000, 10) == pytest.approx(0.00535887, abs=1e-8)
    # 0.25 + 0.75 * 0.5 ** 2
    assert Poly(power=2.0, min_factor=0.25).factor(5, 10, 1) == pytest.approx(0.4375)


def test_linear_equals_torch() -> None:
    expected = torch_rates(lambda o: lr_scheduler.LinearLR(o, 1.0, 0.2, total_iters=TOTAL), TOTAL)
    assert rates(Linear(min_factor=0.2)) == pytest.approx(expected)


def test_step_equals_torch() -> None:
    expected = torch_rates(lambda o: lr_scheduler.StepLR(o, step_size=3, gamma=0.5), TOTAL, every=EPOCH)
    assert rates(Step(step_epochs=3, gamma=0.5)) == pytest.approx(expected)


def test_multistep_equals_torch() -> None:
    expected = torch_rates(lambda o: lr_scheduler.MultiStepLR(o, [2, 3, 8], gamma=0.3), TOTAL, every=EPOCH)
    assert rates(MultiStep(milestones=(2, 3, 8), gamma=0.3)) == pytest.approx(expected)


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize("pct_start", [0.3, 0.05, 0.77])
def test_one_cycle_equals_torch(anneal: Literal["cos", "linear"], pct_start: float) -> None:
    expected = torch_rates(
        lambda o: lr_scheduler.OneCycleLR(
            o,
            max_lr=0.1,
            total_steps=TOTAL,
            pct_start=pct_start,
            anneal_strategy=anneal,
            cycle_momentum=False,
            div_factor=20,
            final_div_factor=1e3,
        ),
        TOTAL,
    )
    schedule = OneCycle(pct_start=pct_start, anneal=anneal, div_factor=20, final_div_factor=1e3)
    assert rates(schedule) == pytest.approx(expected)


@pytest.mark.parametrize("total", [1, 2, 3])
def test_one_cycle_of_a_tiny_run(total: int) -> None:
    assert all(0 < OneCycle().factor(step, total, 1) <= 1 for step in range(total + 2))


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize("cooldown", [0, 2])
def test_plateau_equals_torch(
    mode: Literal["min", "max"], threshold_mode: Literal["rel", "abs"], cooldown: int
) -> None:
    generator = torch.Generator().manual_seed(5)
    values = (1 + torch.rand(80, generator=generator).cumsum(0) * 0.01 * (1 if mode == "max" else -1)).tolist()
    values[20:50] = [values[20]] * 30
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    twin = lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode,
        factor=0.5,
        patience=3,
        threshold=0.01,
        threshold_mode=threshold_mode,
        cooldown=cooldown,
        min_lr=0.1 / 64,
    )
    schedule = Plateau(
        gamma=0.5, patience=3, threshold=0.01, threshold_mode=threshold_mode, cooldown=cooldown, min_factor=1 / 64
    )
    seen = set()
    for value in values:
        twin.step(value)
        schedule.observe(value, mode)
        rate = 0.1 * schedule.factor(0, TOTAL, EPOCH)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])
        seen.add(rate)
    assert len(seen) > 3


def test_plateau_resumes() -> None:
    values = [1.0, 0.9, 0.95, 0.95, 0.95, 0.91, 0.92, 0.8, 0.8, 0.8, 0.8]
    straight, first, second = (Plateau(patience=1, gamma=0.5, cooldown=1) for _ in range(3))
    for value in values:
        straight.observe(value, "min")
    for value in values[:5]:
        first.observe(value, "min")
    state = first.state_dict()
    assert all(isinstance(value, float | int) for value in state.values())
    second.load_state_dict(state)
    for value in values[5:]:
        second.observe(value, "min")
    assert second.state_dict() == straight.state_dict()
    assert second.factor(0, 1, 1) == straight.factor(0, 1, 1) < 1


def test_plateau_never_takes_nan_for_an_improvement() -> None:
    schedule = Plateau(patience=1, gamma=0.5)
    for value in (math.nan, math.nan):
        schedule.observe(value, "max")
    assert schedule.factor(0, 1, 1) == 0.5


def test_two_plateaus_share_no_state() -> None:
    one, other = Plateau(patience=0, gamma=0.5), Plateau(patience=0, gamma=0.5)
    one.observe(1.0, "min")
    one.observe(1.0, "min")
    assert (one.factor(0, 1, 1), other.factor(0, 1, 1)) == (0.5, 1.0)


def test_absolute_linear_golden_numbers() -> None:
    schedule = AbsoluteLinear(lr=1e-2, slope=-8e-6, min_lr=1e-6)
    length = 37  # steps per epoch; the run's length does not matter
    assert 1e-2 * schedule.factor(50 * length, 1, length) == pytest.approx(0.0096)
    assert 1e-2 * schedule.factor(100 * length, 10**6, length) == pytest.approx(0.0092)
    assert 1e-2 * schedule.factor(1249 * length, 1, length) > 1e-6
    assert 1e-2 * schedule.factor(1250 * length, 1, length) == pytest.approx(1e-6)
    # half an epoch counts as half
    assert 1e-2 * schedule.factor(1, 1, 2) == pytest.approx(1e-2 - 4e-6)


def test_absolute_linear_restarts() -> None:
    schedule = AbsoluteLinear(lr=1.0, slope=-0.1, restart_epochs=2.5)
    factors = [schedule.factor(step, 1, 4) for step in range(25)]
    assert factors[:10] == pytest.approx([1 - 0.025 * step for step in range(10)])
    assert factors[10:20] == factors[:10]


def test_constant() -> None:
    assert rates(Constant()) == [0.1] * TOTAL


def test_warmup_and_cosine_equal_torch() -> None:
    warmup = 10

    def make(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        first = lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
        rest = lr_scheduler.CosineAnnealingLR(optimizer, T_max=TOTAL - warmup)
        return lr_scheduler.SequentialLR(optimizer, [first, rest], milestones=[warmup])

    expected = torch_rates(make, TOTAL)
    assert rates(Cosine(warmup_steps=warmup)) == pytest.approx(expected)


def test_warmup_and_linear_decay_by_hand() -> None:
    schedule = Linear(warmup_steps=3)
    factors = [schedule.factor(step, 8, 1) for step in range(9)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 0.8, 0.6, 0.4, 0.2, 0])


def test_warmup_keeps_the_count_of_epochs() -> None:
    schedule = MultiStep(milestones=(2,), gamma=0.1, warmup_steps=4)
    factors = [schedule.factor(step, 100, 5) for step in range(11)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1, 0.1])


@pytest.mark.parametrize("index", range(len(names("scheduler"))))
def test_every_schedule_warms_up(index: int) -> None:
    plain, warm = every_schedule()[index], every_schedule(warmup_steps=9)[index]
    share = every_schedule(warmup_fraction=0.15)[index]  # of 60 steps
    start = plain.factor(0, TOTAL, EPOCH)
    ramp = [warm.factor(step, TOTAL, EPOCH) for step in range(10)]
    assert ramp[:5] == pytest.approx([start * (step + 1) / 10 for step in range(5)], rel=1e-3)
    assert ramp == sorted(ramp)
    assert ramp[9] == pytest.approx(start, rel=1e-3)
    assert [share.factor(step, TOTAL, EPOCH) for step in range(TOTAL)] == [
        warm.factor(step, TOTAL, EPOCH) for step in range(TOTAL)
    ]


@pytest.mark.parametrize("index", range(len(names("scheduler"))))
def test_every_schedule_is_defined_everywhere(index: int) -> None:
    for schedule in (every_schedule()[index], every_schedule(warmup_steps=100)[index]):
        for total in (1, 2, 7):
            for step in range(12):  # past the end too: the length of a time-bounded run is an estimate
                assert 0 <= schedule.factor(step, total, 3) <= 1


def test_intervals() -> None:
    intervals = {name: get("scheduler", name).target.interval for name in names("scheduler")}
    assert {name for name, interval in intervals.items() if interval == "epoch"} == {"step", "multistep"}
    assert {name for name, interval in intervals.items() if interval == "metric"} == {"plateau"}


def test_schedules_that_count_epochs_change_between_epochs_only() -> None:
    for schedule in (Step(step_epochs=1, gamma=0.5), MultiStep(milestones=(1, 2, 3))):
        factors = [schedule.factor(step, TOTAL, EPOCH) for step in range(20)]
        changes = [step for step in range(1, 20) if factors[step] != factors[step - 1]]
        assert changes == [5, 10, 15]


def test_two_warmups_are_refused() -> None:
    with pytest.raises(UsageError, match="both set"):
        Cosine(warmup_steps=5, warmup_fraction=0.1)


@pytest.mark.parametrize("milestones", [(), (0, 3), (5, 5), (8, 3)])
def test_milestones_must_increase(milestones: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="increasing"):
        MultiStep(milestones=milestones)
