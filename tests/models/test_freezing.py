"""What is frozen does not learn, does not drift, and is counted; recomputed activations change nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medtrain.errors import UsageError
from medtrain.models.freezing import FreezableModel, parameter_summary, select_modules, select_parameters
from medtrain.models.recompute import recompute


class Small(FreezableModel):
    """Two blocks of convolution, batch norm and dropout, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(self.block(3, 4), self.block(4, 5))
        self.head = nn.Linear(5, 2)

    @staticmethod
    def block(before: int, after: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(before, after, 3), nn.BatchNorm2d(after), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(image).mean((2, 3)))
        return logits


def image() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_frozen_parts_keep_weights_and_statistics() -> None:
    model = Small()
    model.lock(["encoder.0"])
    before = state(model)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1)
    model(image()).square().sum().backward()
    optimizer.step()
    changed = {name.rpartition(".")[0] for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    assert changed == {"encoder.1.0", "encoder.1.1", "head"}


def test_frozen_parts_stay_in_evaluation_mode_and_drop_nothing() -> None:
    model = Small()
    model.lock(["encoder"])
    model.train()
    assert model.training
    assert model.head.training
    assert not any(module.training for module in model.encoder.modules())
    assert torch.equal(model(image()), model(image()))  # the dropout of a frozen encoder is off
    model.eval()
    assert not model.head.training


def test_parts_that_are_frozen_later_and_set_free_again_follow() -> None:
    model = Small()
    for parameter in model.encoder[0].parameters():
        parameter.requires_grad_(False)  # as a stage of a training does
    model.train()
    norms: Any = [model.encoder[0][1], model.encoder[1][1]]  # type: ignore[index]
    assert [norm.training for norm in norms] == [False, True]
    for parameter in model.encoder[0].parameters():
        parameter.requires_grad_(True)
    model.train()
    assert [norm.training for norm in norms] == [True, True]


def test_locked_names_are_those_of_the_parameters() -> None:
    model = Small()
    model.lock(["head.bias"])
    model.lock(["encoder.*.0"])
    expected = ("encoder.0.0.weight", "encoder.0.0.bias", "encoder.1.0.weight", "encoder.1.0.bias", "head.bias")
    assert model.locked == expected
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == list(expected)


def test_a_copy_is_locked_too() -> None:
    model = Small()
    model.lock(["encoder"])
    twin = copy.deepcopy(model).train()
    assert twin.locked == model.locked
    assert not twin.encoder.training


def test_patterns_name_modules_and_parameters() -> None:
    model = Small()
    choose = {"encoder": 8, "encoder.[1]": 4, "*.bias": 5, "head": 2, "encoder.0.1.weight": 1, "*": 10}
    for pattern, count in choose.items():
        assert len(select_parameters(model, [pattern], setting="x")) == count, pattern
    # a name is not a beginning of a name: `head` is not `header`
    with pytest.raises(UsageError, match="no part of the model fits 'enc'"):
        select_parameters(model, ["enc"], setting="x")
    assert list(select_modules(model, ["encoder.0*", "encoder.1.2"], setting="x")) == ["encoder.0", "encoder.1.2"]


def test_a_pattern_that_fits_nothing_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(
        UsageError, match=r"model\.freeze: no part of the model fits 'encodr\.0'.*parts are: "
    ) as caught:
        Small().lock(["encodr.0"])
    assert caught.value.hint == "did you mean encoder.0?"
    with pytest.raises(UsageError, match=r"model\.checkpoint_layers: no part"):
        recompute(Small(), ["block"])


def test_parameters_are_counted_by_part_and_shared_ones_once() -> None:
    model = Small()
    model.lock(["encoder.0"])
    # 3 * 4 * 9 + 4 + 8 = 120; 4 * 5 * 9 + 5 + 10 = 195; 5 * 2 + 2 = 12
    summary = parameter_summary(model)
    assert (summary.total, summary.trainable, summary.frozen) == (327, 207, 120)
    assert summary.parts == {"encoder": (195, 120), "head": (12, 0)}
    assert str(summary).splitlines()[0] == "327 parameters, 207 trainable (63.30%), 120 frozen"
    model.again = model.head  # type: ignore[assignment]
    assert parameter_summary(model).total == 327


def gradients(model: nn.Module, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)  # of the dropouts
    loss = model(image()).square().sum()
    return [loss, *torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])]


def test_recomputed_activations_give_the_same_gradients_and_statistics() -> None:
    plain, thrifty = Small().train(), Small().train()
    recompute(thrifty, ["encoder.*"])
    for _ in range(2):
        for one, two in zip(gradients(plain), gradients(thrifty), strict=True):
            assert torch.equal(one, two)
    # batch norms see a batch twice and must count it once
    ours, theirs = state(thrifty), state(plain)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert theirs["encoder.0.1.num_batches_tracked"] == 2


def test_recomputing_keeps_fewer_activations() -> None:
    def kept(model: nn.Module) -> int:
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(image())
        return sum(sizes)

    plain, thrifty = Small().train(), Small().train()
    recompute(thrifty, ["encoder.*"])
    assert kept(thrifty) < kept(plain) / 2


def test_a_copy_recomputes_with_its_own_weights() -> None:
    model = Small().eval()
    recompute(model, ["encoder.0"])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2)
    fresh = Small().eval()
    fresh.load_state_dict(twin.state_dict())
    assert torch.equal(twin(image()), fresh(image()))
    assert not torch.equal(twin(image()), model(image()))
    with torch.no_grad():
        assert torch.equal(twin(image()), fresh(image()))
