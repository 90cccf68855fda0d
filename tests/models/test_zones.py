"""Zones: where each head looks, and how the regions are told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from medtrain import registry
from medtrain.errors import UsageError
from medtrain.models.cam import explain
from medtrain.models.lung_zones import lung_zone
from medtrain.models.zones import box_shares, zone_regions

BRIXIA = ("zone_a", "zone_b", "zone_c", "zone_d", "zone_e", "zone_f")
CSI = ("right_sup", "left_sup", "right_mid", "left_mid", "right_inf", "left_inf")
RUNTIME: dict[str, Any] = {
    "in_channels": 1,
    "image_size": (48, 32),
    "view_names": (),
    "max_instances": None,
    "num_outputs": 30,
    "zone_names": BRIXIA,
}


def make(**settings: Any) -> Any:
    torch.manual_seed(1)
    runtime = {key: settings.pop(key, value) for key, value in RUNTIME.items()}
    return registry.build("model", {"name": "zones", "arch": "cnn", **settings}, **runtime)


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 1, 48, 32, generator=torch.Generator().manual_seed(2))


def test_shares_of_cells_by_hand() -> None:
    # a map of 2 x 4 cells; rows 0.25 to 1 are half of the first row and all of the second
    shares = box_shares([(0.25, 0.125, 1.0, 0.5)], (2, 4)).reshape(2, 4)
    assert shares.tolist() == [[0.25, 0.5, 0.0, 0.0], [0.5, 1.0, 0.0, 0.0]]


def test_thirds_of_a_map_of_seven_rows() -> None:
    shares = box_shares(zone_regions(BRIXIA), (7, 7)).reshape(6, 7, 7)
    torch.testing.assert_close(shares.sum(0), torch.ones(7, 7))  # every cell belongs somewhere, and once
    torch.testing.assert_close(shares.sum((1, 2)), torch.full((6,), 49 / 6))
    torch.testing.assert_close(shares[0, :, 0], torch.tensor([1.0, 1.0, 1 / 3, 0.0, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(shares[0, 0], torch.tensor([1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0]))


def test_six_lung_zones_by_name() -> None:
    # the patient's right is at the left of the image: A, B, C are the right lung from the top
    assert [lung_zone(name) for name in BRIXIA] == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    assert [lung_zone(name) for name in "ABCDEF"] == [lung_zone(name) for name in BRIXIA]
    assert [lung_zone(name) for name in CSI] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert lung_zone("Left lower lung zone") == (2, 1)
    assert [lung_zone(name) for name in ("left", "g", "heart", "right left", "zone_1", "")] == [None] * 6
    assert zone_regions(CSI)[1] == zone_regions(BRIXIA)[3] == (0.0, 0.5, 1 / 3, 1.0)


def test_regions_from_a_grid_or_from_boxes() -> None:
    assert zone_regions(("x", "y"), zone_grid=(1, 2)) == [(0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)]
    boxes = {"y": (0.0, 0.0, 0.5, 1.0), "x": (0.1, 0.2, 0.3, 0.4)}
    assert zone_regions(("x", "y"), zone_boxes=boxes) == [(0.1, 0.2, 0.3, 0.4), (0.0, 0.0, 0.5, 1.0)]


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (("x", "y"), {}, "there are no regions for zones with these names: x, y"),
        (("A", "right_sup"), {}, "there are no regions"),  # the same place twice
        (("x", "y"), {"zone_grid": (2, 2)}, r"zone_grid=\[2, 2\] has 4 regions, and the data have 2 zones: x, y"),
        (("x",), {"zone_grid": (1, 1), "zone_boxes": {"x": (0, 0, 1, 1)}}, "both say where the zones are"),
        (("x", "y"), {"zone_boxes": {"x": (0, 0, 1, 1)}}, "missing: y"),
        (("x",), {"zone_boxes": {"x": (0, 0, 1, 1), "z": (0, 0, 1, 1)}}, "unknown: z"),
        (("x",), {"zone_boxes": {"x": (0.5, 0, 0.5, 1)}}, r"zone_boxes\.x=\[0\.5, 0, 0\.5, 1\] is no region"),
        (("x",), {"zone_boxes": {"x": (0, 0, 1, 1.5)}}, "is no region"),
    ],
)
def test_regions_that_cannot_be_are_refused(names: tuple[str, ...], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        zone_regions(names, **settings)
    assert caught.value.hint or "missing" in message or "unknown" in message


@pytest.mark.parametrize("pooling", ["box", "attention"])
def test_logits_of_every_zone(tiny: Any, pooling: str) -> None:
    model = make(zone_pooling=pooling)
    logits = model(**{name: images() for name in model.inputs})
    assert logits.shape == (2, 6, 5)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_mean_over_a_region_is_that_of_its_cells(tiny: Any) -> None:
    model = make().eval()
    feature_map = model.encoder.features(images())  # 12 x 8 cells: a zone is 4 x 4 of them
    regions = model.pool(feature_map)
    torch.testing.assert_close(regions[:, 1], feature_map[:, :, 4:8, :4].mean((2, 3)))  # B, right middle
    torch.testing.assert_close(regions[:, 5], feature_map[:, :, 8:, 4:].mean((2, 3)))  # F, left lower
    expected = regions[:, 5] @ model.head.weight[5] + model.head.bias[5]
    torch.testing.assert_close(model(images())[:, 5], expected)


def test_a_zone_sees_its_own_region_only(tiny: Any) -> None:
    model = make().eval()
    before = model(images())
    changed = images()
    changed[:, :, 36:, 20:] += 3.0  # inside of F, further from its border than the network looks
    moved = (model(changed) - before).abs().amax((0, 2)) > 1e-5
    assert moved.tolist() == [False, False, False, False, False, True]
    everywhere = make(context=True).eval()
    moved = (everywhere(changed) - everywhere(images())).abs().amax((0, 2)) > 1e-5
    assert moved.all()


def test_mirroring_an_image_is_exchanging_the_lungs(tiny: Any) -> None:
    model = make(shared_head=True).eval()
    for layer in model.encoder.layers:  # a network that does not tell left from right
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight.data = (layer.weight.data + layer.weight.data.flip(3)) / 2
            layer.stride, layer.padding = (2, 2), (1, 1)
    mirrored = model.pool(model.encoder.features(images()).flip(3))
    torch.testing.assert_close(mirrored, model.pool(model.encoder.features(images()))[:, [3, 4, 5, 0, 1, 2]])


def test_attention_begins_near_the_mean_and_may_look_elsewhere(tiny: Any) -> None:
    model = make(zone_pooling="attention").eval()
    cells = model.encoder.features(images()).flatten(2).transpose(1, 2)
    weights = model.pool.weights(cells)
    torch.testing.assert_close(weights.sum(2), torch.ones(2, 6))
    inside = box_shares(zone_regions(BRIXIA), (12, 8))
    # 16 cells of share 1.01 inside and 80 of 0.01 outside
    torch.testing.assert_close((weights * inside).sum(2), torch.full((2, 6), 16.16 / 16.96))
    with torch.no_grad():
        model.pool.score.weight.normal_(std=30.0)
    assert ((model.pool.weights(cells) * inside).sum(2) < 0.5).any()


def test_learned_attention_finds_the_place(tiny: Any) -> None:
    model = make(zone_pooling="attention", zone_names=("all",), zone_grid=(1, 1), num_outputs=2)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        image = torch.randn(16, 1, 48, 32, generator=generator)
        label = torch.arange(16) % 2
        image[:, :, 20:28, 12:20] += 2.0 * label[:, None, None, None]
        loss = torch.nn.functional.cross_entropy(model(image)[:, 0], label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    weights = model.pool.weights(model.encoder.features(image[label == 1]).flatten(2).transpose(1, 2))
    share = weights.reshape(-1, 12, 8)[:, 5:7, 3:5].sum((1, 2)).mean()
    assert share > 3 * 4 / 96  # three times that of the mean over the image


def test_settings_change_what_they_name(tiny: Any) -> None:
    def size(**settings: Any) -> int:
        return sum(parameter.numel() for parameter in make(**settings).head.parameters())

    assert size() == 6 * (12 * 5 + 5)
    assert size(shared_head=True) == 12 * 5 + 5
    assert size(context=True) == 6 * (24 * 5 + 5)
    dropping = make(drop_rate=0.5)
    assert not torch.equal(dropping(images()), dropping(images()))
    assert make(freeze="backbone").locked[0].startswith("encoder.")
    other = make(zone_boxes={name: [0.2, 0.1, 0.6, 0.7] for name in BRIXIA}).eval()
    assert not torch.allclose(other(images()), make().eval()(images()))
    layers = make(checkpoint_layers=["encoder.layers.*"])
    torch.testing.assert_close(layers(images()), make()(images()))
    assert make(weights="w.pt", pooling="avg").encoder.settings["pooling"] == "avg"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": (8, 48, 32)}, "model=zones takes 2-D images"),
        ({"view_names": ("a", "b")}, "takes one image for each sample"),
        ({"max_instances": 3}, "takes one image for each sample"),
        ({"zone_names": tuple("uvwxyz")}, "there are no regions"),
    ],
)
def test_what_cannot_be_is_refused(tiny: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(**settings)


def test_a_logit_depends_on_the_cells_of_its_zone(tiny: Any) -> None:
    model = make().eval()
    assert explain(model, {"image": images()}, (5, 2)).shape == (2, 48, 32)
    outputs: list[Tensor] = []
    model.feature_layer().register_forward_hook(lambda _, __, output: outputs.append(output))
    slopes = torch.autograd.grad(model(images())[:, 5, 2].sum(), outputs[0])[0]
    inside = slopes.abs().sum((0, 1)) > 0
    assert inside[8:, 4:].all()
    assert inside.sum() == 16


@pytest.mark.parametrize(
    "arch",
    [
        "resnet18",
        "convnext_atto",
        "vit_tiny_patch16_224",
        pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow),
    ],
)
def test_real_architectures(arch: str) -> None:
    model = make(arch=arch, in_channels=3, image_size=(224, 224), context=True).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 6, 5)
