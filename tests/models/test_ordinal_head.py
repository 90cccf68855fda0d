"""The head with thresholds in order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from medtrain.errors import UsageError
from medtrain.losses.ordinal import OrdinalForm, OrdinalLoss, SquaredEMDLoss
from medtrain.models.ordinal_head import OrdinalHead
from medtrain.optim.param_groups import make_param_groups
from medtrain.registry import build
from tests.losses.targets import classes

FORMS: tuple[OrdinalForm, ...] = ("cumulative", "ordered", "conditional")


def test_thresholds_rise_whatever_the_parameters() -> None:
    head = OrdinalHead(8, 2 * 4, num_targets=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(5 * torch.randn(parameter.shape, generator=generator))
    assert (head.thresholds().diff(dim=1) > 0).all()
    logits = head(torch.randn(20, 8, generator=generator))  # [B, T * (K - 1)]
    assert logits.shape == (20, 8)
    assert (logits.view(20, 2, 4).diff(dim=-1) < 0).all()


def test_it_begins_with_even_thresholds_around_0() -> None:
    torch.testing.assert_close(OrdinalHead(3, 4).thresholds(), torch.tensor([[-1.5, -0.5, 0.5, 1.5]]))
    torch.testing.assert_close(OrdinalHead(3, 1).thresholds(), torch.tensor([[0.0]]))


def test_logits_are_one_score_against_every_threshold() -> None:
    head, features = OrdinalHead(3, 3), torch.randn(2, 3, generator=torch.Generator().manual_seed(2))
    expected = features @ head.score.weight.t() - head.thresholds()
    torch.testing.assert_close(head(features), expected)


def test_it_fits_the_loss_and_all_parts_learn() -> None:
    loss = OrdinalLoss(targets=[classes(5)])
    head = OrdinalHead(6, loss.num_outputs)
    features = torch.randn(10, 6, generator=torch.Generator().manual_seed(3))
    logits = head(features)
    loss(logits, torch.arange(10).remainder(5).float().unsqueeze(1)).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())
    # in order, so every grade has a probability above 0
    assert (loss.predict(logits) > 0).all()


def test_outputs_that_targets_cannot_share() -> None:
    with pytest.raises(AssertionError, match="5 outputs cannot be shared by 2"):
        OrdinalHead(3, 5, num_targets=2)


def test_thresholds_are_exact_and_stay_in_order_under_autocast() -> None:
    head = OrdinalHead(3, 4)
    with torch.no_grad():
        head.gaps.fill_(-9.0)  # gaps of 0.0001, which bfloat16 loses beside 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(torch.randn(5, 3))
        torch.testing.assert_close(head.thresholds(), head.float().thresholds())
    assert logits.dtype == torch.float32
    assert (logits.diff(dim=1) < 0).all()


def test_thresholds_do_not_decay() -> None:
    groups = make_param_groups(nn.Sequential(OrdinalHead(3, 4)), lr=0.1, weight_decay=0.5)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    head = OrdinalHead(3, 4)
    assert {name for name, p in head.named_parameters() if p.ndim > 1} == {"score.weight"}
    assert len(decayed) == 1


IMAGES = {"in_channels": 3, "image_size": (16, 16)}
VIEWS = {**IMAGES, "view_names": ("a", "b")}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cnn": ({"channels": [4, 8]}, IMAGES),
    "timm": ({"arch": "test_resnet"}, IMAGES),
    "mil": ({"arch": "cnn"}, {**IMAGES, "view_names": (), "max_instances": 2}),
    "multiview": ({"arch": "cnn"}, VIEWS),
    "multimodal": (
        {"arch": "cnn", "auxiliary_heads": True},
        {**VIEWS, "max_instances": None, "num_numeric": 2, "category_sizes": ()},
    ),
    "tabular": ({}, {"num_numeric": 2, "category_sizes": ()}),
    "vit_lora": ({"arch": "test_vit", "weights": None}, IMAGES),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_with_one_target_offers_it(name: str) -> None:
    if name == "vit_lora":
        pytest.importorskip("peft", reason="needs the extra lora")
    settings, runtime = MODELS[name]
    loss = OrdinalLoss(targets=[classes(4), classes(4)])
    outputs = {"num_outputs": loss.num_outputs, "cumulative_targets": loss.cumulative_targets}
    model = build("model", {"name": name, "head": "ordinal", **settings}, **runtime, **outputs).eval()
    several = (2,) if "view_names" in runtime else ()
    batch = {"image": torch.randn(3, *several, 3, 16, 16), "numeric": torch.randn(3, 2)}
    found = model(**{key: value for key, value in batch.items() if key in model.inputs})
    every = [found] if isinstance(found, torch.Tensor) else [found[k] for k in found if k == "logits" or "aux/" in k]
    for logits in every:
        assert (loss.by_target(logits).diff(dim=-1) < 0).all()
    with pytest.raises(UsageError, match=r"model\.head=ordinal") as caught:
        build("model", {"name": name, "head": "ordinal", **settings}, **runtime, num_outputs=6, cumulative_targets=0)
    assert caught.value.hint is not None
    assert "loss.form=cumulative" in caught.value.hint


def test_losses_say_whether_their_logits_are_cumulative() -> None:
    targets = [classes(4), classes(4)]
    found = {form: OrdinalLoss(targets=targets, form=form).cumulative_targets for form in FORMS}
    assert found == {"cumulative": 2, "ordered": 0, "conditional": 0}
    assert SquaredEMDLoss(targets=targets).cumulative_targets == 0
