"""What holds for every loss of whole images."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from medtrain import registry
from medtrain.losses.multitask import LossPart
from medtrain.losses.units import ImageLoss
from tests.losses.targets import NAN, Target, classes, labels, scores, survival, times

ONE = [classes(4, counts=(50, 30, 15, 5))]
ZONES = [classes(4, name=f"zone{index}", counts=(50 + index, 30, 15, 5)) for index in range(3)]
YES_NO = [classes(2, name=f"finding{index}", counts=(90 - index, 10)) for index in range(3)]
NUMBERS = [Target("age", None, mean=50.0, std=20.0), Target("volume", None, mean=0.2, std=0.1)]
MIXED = [classes(3, name="stage"), classes(2, name="oedema"), Target("age", None, mean=50.0, std=20.0)]
EVENTS = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def numbers(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    found = torch.tensor([50.0, 0.2]) + torch.randn(size, 2, generator=generator) * torch.tensor([20.0, 0.1])
    return found.masked_fill(torch.rand(size, 2, generator=generator) < 0.3, NAN)


def mixed(size: int) -> Tensor:
    return torch.cat([labels(3, size), labels(2, size, seed=1), numbers(size)[:, :1]], 1)


def make(name: str, targets: list[Target], **settings: object) -> ImageLoss:
    loss: ImageLoss = registry.build(
        "loss", {"name": name, **settings}, targets=targets, num_classes=4, event_times=EVENTS
    )
    return loss


PARTS = [
    LossPart(targets=("stage",), loss="ordinal", weight=2.0, class_weights="balanced"),
    LossPart(targets=("oedema",), loss="bce", pos_weight=3.0),
    LossPart(targets=("age",), loss="mae", weight=0.5),
]

CASES: dict[str, tuple[Callable[[], ImageLoss], Callable[[int], Tensor]]] = {
    "ce": (lambda: make("ce", ONE), lambda size: labels(4, size)),
    "ce_smooth": (
        lambda: make("ce", ONE, class_weights="balanced", label_smoothing=0.1),
        lambda size: labels(4, size),
    ),
    "ce_zones": (
        lambda: make("ce", ZONES, class_weights=(1.0, 2.0, 3.0, 0.0)),
        lambda size: labels(4, size, targets=3),
    ),
    "bce": (lambda: make("bce", YES_NO, pos_weight="balanced"), lambda size: labels(2, size, targets=3)),
    "focal": (lambda: make("focal", ONE, class_weights="effective_num", beta=0.99), lambda size: labels(4, size)),
    "focal_labels": (
        lambda: make("focal", YES_NO, gamma=1.5, class_weights=(1.0, 4.0)),
        lambda size: labels(2, size, targets=3),
    ),
    "zone_weights": (
        lambda: make("weighted_zone_ce", ZONES, unknown_class="c3"),
        lambda size: labels(4, size, targets=3),
    ),
    "zone_entries": (
        lambda: make("weighted_zone_ce", ZONES, unknown_class="c3", normalize="entries", label_smoothing=0.1),
        lambda size: labels(4, size, targets=3),
    ),
    "ordinal": (lambda: make("ordinal", ONE, class_weights="balanced"), lambda size: labels(4, size)),
    "ordinal_conditional": (
        lambda: make("ordinal", ZONES, form="conditional"),
        lambda size: labels(4, size, targets=3),
    ),
    "ordinal_ordered": (
        lambda: make("ordinal", ZONES, form="ordered", class_weights="balanced"),
        lambda size: labels(4, size, targets=3),
    ),
    "emd": (lambda: make("emd", ONE), lambda size: labels(4, size)),
    "qwk": (lambda: make("qwk", ZONES), lambda size: labels(4, size, targets=3)),
    "mse": (lambda: make("mse", NUMBERS), numbers),
    "mae": (lambda: make("mae", NUMBERS), numbers),
    "huber": (lambda: make("huber", NUMBERS, delta=0.5), numbers),
    "cox_efron": (lambda: make("cox", list(survival())), times),
    "cox_breslow": (lambda: make("cox", list(survival()), ties="breslow"), times),
    "discrete_survival": (lambda: make("discrete_survival", list(survival()), num_intervals=4), times),
    "multitask": (lambda: make("multitask", MIXED, parts=PARTS), mixed),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[ImageLoss, Callable[[int], Tensor]]:
    build, draw = CASES[request.param]
    return build(), draw


def value_and_gradient(loss: ImageLoss, logits: Tensor, target: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, target) * share
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def test_micro_batches_weighted_by_their_units_are_the_whole_batch(
    case: tuple[ImageLoss, Callable[[int], Tensor]],
) -> None:
    loss, draw = case
    if not loss.decomposable:
        pytest.skip("a loss of whole batches")
    target, logits = draw(13), scores(13, loss.num_outputs)
    target[4:6] = NAN  # a micro-batch without any label
    whole = value_and_gradient(loss, logits, target)
    total = loss.weight(target)
    parts = [slice(0, 4), slice(4, 6), slice(6, 7), slice(7, 13)]
    found = [value_and_gradient(loss, logits[part], target[part], loss.weight(target[part]) / total) for part in parts]
    torch.testing.assert_close(torch.stack([value for value, _ in found]).sum(), whole[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat([gradient for _, gradient in found]), whole[1], rtol=1e-12, atol=1e-12)


def test_only_losses_of_whole_batches_are_not_the_mean_of_parts() -> None:
    whole_batch = {name for name, (build, _) in CASES.items() if not build().decomposable}
    assert whole_batch == {"qwk", "cox_efron", "cox_breslow"}


def test_gradient(case: tuple[ImageLoss, Callable[[int], Tensor]]) -> None:
    loss, draw = case
    target = draw(5)
    target[target.isnan().all(1)] = draw(5)[~draw(5).isnan().any(1)][0]
    logits = scores(5, loss.num_outputs).requires_grad_()
    assert torch.autograd.gradcheck(lambda said: loss(said, target), (logits,))


def test_nothing_labelled_is_zero_with_a_graph(case: tuple[ImageLoss, Callable[[int], Tensor]]) -> None:
    loss, draw = case
    target = torch.full_like(draw(4), NAN)
    value, gradient = value_and_gradient(loss, scores(4, loss.num_outputs).float(), target)
    assert value.item() == 0
    assert not gradient.any()
    assert loss.weight(target) == 0


def test_what_is_unlabelled_gets_no_gradient(case: tuple[ImageLoss, Callable[[int], Tensor]]) -> None:
    loss, draw = case
    target = draw(8)
    target[3] = NAN
    _, gradient = value_and_gradient(loss, scores(8, loss.num_outputs), target)
    assert not gradient[3].any()
    assert gradient.any()


def test_half_precision_under_autocast_is_computed_in_float32(
    case: tuple[ImageLoss, Callable[[int], Tensor]],
) -> None:
    loss, draw = case
    target, logits = draw(6), scores(6, loss.num_outputs).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(logits, target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(logits.float(), target), rtol=0, atol=0)


def test_logits_may_have_an_axis_of_targets(case: tuple[ImageLoss, Callable[[int], Tensor]]) -> None:
    loss, draw = case
    if loss.kind in ("survival", "mixed"):
        pytest.skip("one row of logits for all targets")
    target, logits = draw(6), scores(6, loss.num_outputs)
    shaped = logits.unflatten(1, (len(loss.targets), -1))
    torch.testing.assert_close(loss(shaped, target), loss(logits, target), rtol=0, atol=0)


def test_nothing_is_saved_with_the_model(case: tuple[ImageLoss, Callable[[int], Tensor]]) -> None:
    assert not case[0].state_dict()


@pytest.mark.cuda
def test_on_a_gpu_nobody_waits_and_the_result_is_the_same(case: tuple[ImageLoss, Callable[[int], Tensor]]) -> None:
    loss, draw = case
    target, logits = draw(6), scores(6, loss.num_outputs).float()
    expected = value_and_gradient(loss, logits, target)
    loss, far_logits, far_target = loss.cuda(), logits.cuda().requires_grad_(), target.cuda()
    loss(far_logits, far_target).backward()
    far_logits.grad = None
    torch.cuda.set_sync_debug_mode("error")
    torch.use_deterministic_algorithms(True)
    try:
        value = loss(far_logits, far_target)
        value.backward()
        weight = loss.weight(target)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.cuda.set_sync_debug_mode("default")
    assert far_logits.grad is not None
    torch.testing.assert_close(value.cpu(), expected[0])
    torch.testing.assert_close(far_logits.grad.cpu(), expected[1])
    assert weight == pytest.approx(float(loss.sums(far_logits, far_target)[1]))


def test_an_output_layer_of_the_wrong_size_is_noticed() -> None:
    with pytest.raises(AssertionError, match="5 logits per sample, expected 4"):
        make("ce", ONE)(scores(2, 5), labels(4, 2))
