"""Models of bags and of views."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from medtrain import registry
from medtrain.errors import UsageError
from medtrain.models.aggregators import AGGREGATORS
from medtrain.models.cam import explain

RUNTIME: dict[str, Any] = {
    "in_channels": 1,
    "image_size": (12, 8),
    "view_names": (),
    "max_instances": 6,
    "num_outputs": 3,
}
VIEWS = ("lateral", "frontal", "oblique")


def make(name: str, **settings: Any) -> Any:
    torch.manual_seed(1)
    runtime = {key: settings.pop(key, value) for key, value in RUNTIME.items()}
    if name == "multiview":
        runtime |= {"view_names": VIEWS, "max_instances": None}
    return registry.build("model", {"name": name, "arch": "cnn", **settings}, **runtime)


def batch(count: int, *, size: tuple[int, ...] = (12, 8)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    present = torch.rand(4, count, generator=generator) < 0.6
    present[0], present[1] = True, False
    return torch.randn(4, count, 1, *size, generator=generator), present


@pytest.mark.parametrize("aggregator", list(AGGREGATORS))
@pytest.mark.parametrize("name", ["mil", "multiview"])
def test_any_aggregator(tiny: Any, name: str, aggregator: str) -> None:
    if name == "mil" and AGGREGATORS[aggregator].knows_views:
        with pytest.raises(UsageError, match="the instances of a bag have none"):
            make(name, aggregator=aggregator)
        return
    model = make(name, aggregator=aggregator)
    assert isinstance(model.aggregator, AGGREGATORS[aggregator])
    image, present = batch(3)
    output = model(**{key: {"image": image, "present": present}[key] for key in model.inputs})
    logits = output["logits"] if isinstance(output, dict) else output
    assert logits.shape == (4, 3)
    assert logits.isfinite().all()
    if isinstance(output, dict):
        torch.testing.assert_close(output["attention"].sum(1), present.any(1).float())
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_bag_is_the_same_in_any_order_and_with_any_padding(tiny: Any) -> None:
    model = make("mil", chunk_size=2).eval()
    image, present = batch(5)
    expected = model(image, present)
    order = torch.tensor([3, 1, 4, 0, 2])
    found = model(image[:, order], present[:, order])
    torch.testing.assert_close(found["logits"], expected["logits"])
    torch.testing.assert_close(found["attention"], expected["attention"][:, order])
    padded = torch.cat([image, torch.full_like(image[:, :3], float("nan"))], 1)
    found = model(padded, torch.cat([present, torch.zeros(4, 3, dtype=torch.bool)], 1))
    torch.testing.assert_close(found["logits"], expected["logits"])


def test_a_bag_does_not_depend_on_those_beside_it(tiny: Any) -> None:
    model = make("mil").eval()
    image, present = batch(5)
    alone = model(image[:1, :5], present[:1])
    torch.testing.assert_close(model(image, present)["logits"][:1], alone["logits"])


def test_instances_are_encoded_a_chunk_at_a_time(tiny: Any) -> None:
    model = make("mil", chunk_size=3).eval()
    model(*batch(6))
    assert max(model.encoder.shared.seen) == 3


def test_a_missing_view_is_not_one_of_zeros(tiny: Any) -> None:
    model = make("multiview", aggregator="mean").eval()
    image, _ = batch(3)
    image[:, 2] = 0.0
    with_zeros = model(image)
    without = model(image, torch.tensor([[True, True, False]] * 4))
    two = model.head(model.encoder(image[:, :2], None)[0].vectors.mean(1))
    assert not torch.allclose(with_zeros, without)
    torch.testing.assert_close(without, two)


def test_views_share_an_encoder_or_have_their_own(tiny: Any) -> None:
    def count(shared: bool) -> int:
        return sum(parameter.numel() for parameter in make("multiview", shared=shared).encoder.parameters())

    assert count(shared=False) == 3 * count(shared=True)


@pytest.mark.parametrize("shared", [True, False])
def test_grad_cam_of_every_view(tiny: Any, shared: bool) -> None:
    model = make("multiview", shared=shared)
    image, present = batch(3)
    maps = explain(model, {"image": image, "present": present}, 1)
    assert maps.shape == (4, 3, 12, 8)
    assert torch.equal(maps[~present], torch.zeros(int((~present).sum()), 12, 8))
    for row, column in present.nonzero().tolist():  # a missing view must not shift the maps of the others
        only = torch.zeros_like(present)
        only[row] = present[row]
        again = explain(model, {"image": image, "present": only}, 1)
        torch.testing.assert_close(again[row, column], maps[row, column], rtol=1e-4, atol=1e-5)


def test_three_phases_of_ct(tiny: Any) -> None:
    model = registry.build(
        "model",
        {"name": "multiview", "arch": "cnn", "shared": False, "aggregator": "attention"},
        **RUNTIME | {"image_size": (8, 16, 12), "view_names": ("arterial", "portal", "plain"), "max_instances": None},
    )
    image, present = batch(3, size=(8, 16, 12))
    output = model(image, present)
    assert output["logits"].shape == (4, 3)
    output["logits"].sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    assert explain(model.eval(), {"image": image, "present": present}, 0).shape == (4, 3, 8, 16, 12)


def test_volumes_with_the_real_encoder() -> None:
    model = registry.build(
        "model",
        {"name": "multiview", "arch": "cnn"},
        **RUNTIME | {"image_size": (2, 8, 8), "view_names": ("arterial", "portal"), "max_instances": None},
    )
    image, present = batch(2, size=(2, 8, 8))
    assert model.eval()(image, present)["logits"].shape == (4, 3)


def test_a_frozen_encoder_leaves_aggregator_and_head_to_learn(tiny: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = make("mil", freeze="backbone").train()
    assert "the image encoder stays random" in caplog.text
    learning = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == {"aggregator", "head"}
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    model(*batch(4))["logits"].sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.state_dict().items())
    part = make("multiview", shared=False, freeze=("encoder.view_lateral.layers.0",))
    assert part.locked == ("encoder.view_lateral.layers.0.weight", "encoder.view_lateral.layers.0.bias")


def test_layers_can_compute_their_activations_twice(tiny: Any) -> None:
    image, present = batch(4)
    gradients = []
    for layers in ((), ("encoder.*.layers.*",)):
        model = make("mil", checkpoint_layers=layers, aggregator="mean")
        model(image, present).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for first, second in zip(*gradients):
        torch.testing.assert_close(first, second)
    with pytest.raises(UsageError, match=r"model\.checkpoint_layers: no part of the model fits"):
        make("mil", checkpoint_layers=("nothing",))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mil", {"max_instances": None}, "model=mil takes bags, and the data have one image for each sample"),
        ("mil", {"in_channels": 0}, "the data have no images"),
        ("mil", {"aggregator": "mean", "aggregator_heads": 2}, r"model\.aggregator_heads has no effect"),
    ],
)
def test_what_cannot_be_is_refused(tiny: Any, name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(name, **settings)


def test_multiview_needs_views(tiny: Any) -> None:
    with pytest.raises(UsageError, match="takes named views, and the data have none"):
        registry.build("model", {"name": "multiview", "arch": "cnn"}, **RUNTIME)


def test_gated_attention_finds_the_planted_instance(tiny: Any) -> None:
    generator = torch.Generator().manual_seed(0)

    def bags(samples: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noise; in every second bag one instance has a bright square in the middle."""
        image = torch.randn(samples, 12, 1, 8, 8, generator=generator)
        sizes = torch.randint(5, 13, (samples,), generator=generator)
        present = torch.arange(12) < sizes[:, None]
        label = torch.arange(samples) % 2
        place = (torch.rand(samples, generator=generator) * sizes).long()
        image[torch.arange(samples), place, :, 2:6, 2:6] += 2.0 * label[:, None, None, None]
        return image * present[..., None, None, None], present, label, place

    model = make("mil", image_size=(8, 8), max_instances=12, num_outputs=2, aggregator="gated_attention")
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        image, present, label, _ = bags(16)
        loss = torch.nn.functional.cross_entropy(model(image, present)["logits"], label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    image, present, label, place = bags(100)
    output = model(image, present)
    assert (output["logits"].argmax(1) == label).float().mean() > 0.9
    positive = label == 1
    attention = output["attention"][positive]
    planted = attention.gather(1, place[positive, None])
    others = present[positive].scatter(1, place[positive, None], value=False)
    # AUROC of instances within positive bags: how often the planted one has more than another
    wins = ((planted > attention) & others).sum() / others.sum()
    assert wins > 0.95
