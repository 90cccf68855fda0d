"""Class activation maps against values computed by hand, and what they must leave behind: nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medtrain.errors import UsageError
from medtrain.models.cam import (
    evaluation_mode,
    explain,
    explain_each,
    find_linear_head,
    maps_from_features,
    record_features,
    resize_maps,
)
from medtrain.models.instances import EncoderSettings
from medtrain.models.multiview import MultipleInstance, MultiView
from medtrain.models.timm_model import TimmModel, TimmSettings


def cam_maps(model: nn.Module, inputs: dict[str, Tensor], class_index: Any, *, create_graph: bool) -> Tensor:
    """Grad-CAM with a forward pass of its own."""
    with torch.enable_grad(), record_features(model, cut=not create_graph) as record:
        found = model(**inputs)
    logits = found if isinstance(found, Tensor) else found["logits"]
    return maps_from_features(record, inputs, logits, class_index, create_graph=create_graph)


class Tiny(nn.Module):
    """Two channels passed through, averaged, and a linear head: its CAM is the weighted sum of the channels."""

    inputs = ("image",)

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1, bias=False)
        self.act = nn.ReLU(inplace=inplace)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(2).reshape(2, 2, 1, 1))
            self.head[1].weight.copy_(torch.tensor([[1.0, -1.0], [-2.0, 3.0]]))
            self.head[1].bias.zero_()

    def feature_layer(self) -> nn.Module:
        return self.conv

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.act(self.conv(image)).mean((2, 3)))


# [B = 1, C = 2, 2, 2]
_IMAGE = torch.tensor([[[[4.0, 1.0], [0.0, 2.0]], [[1.0, 1.0], [3.0, 0.0]]]])
# class 0: channel 0 minus channel 1 = [[3, 0], [-3, 2]], cut off and divided by 3
_CLASS_0 = torch.tensor([[[1.0, 0.0], [0.0, 2 / 3]]])
# class 1: -2, 3 times the channels = [[-5, 1], [9, -4]]
_CLASS_1 = torch.tensor([[[0.0, 1 / 9], [1.0, 0.0]]])


def _close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["cam", "gradcam"])
def test_maps_of_a_linear_network_are_the_weighted_channels(method: Any) -> None:
    model = Tiny().train()
    _close(explain(model, {"image": _IMAGE}, 0, method=method), _CLASS_0)
    _close(explain(model, {"image": _IMAGE}, torch.tensor([1]), method=method), _CLASS_1)


def test_each_sample_has_its_own_class_and_its_own_maximum() -> None:
    image = torch.cat([_IMAGE, 7 * _IMAGE])
    _close(
        cam_maps(Tiny().eval(), {"image": image}, torch.tensor([0, 1]), create_graph=False),
        torch.cat([_CLASS_0, _CLASS_1]),
    )


def test_gradcam_plus_plus_by_hand() -> None:
    # gradients of class 1 at each place: -2/4 and 3/4; channel 0 has no positive gradient and weight 0. Channel 1:
    # share = g^2 / (2 g^2 + 5 g^3) = 1 / (2 + 5 * 0.75) at each of the four places, so the map is channel 1 / 3
    _close(explain(Tiny(), {"image": _IMAGE}, 1, method="gradcam++"), torch.tensor([[[1 / 3, 1 / 3], [1.0, 0.0]]]))
    # Two positive channels tell the weights apart: class with weights 4 and 8, gradients 1 and 2, sums 7 and 5:
    # w0 = 4 * 1 * 1 / (2 + 7 * 1) = 4 / 9, w1 = 4 * 2 * 1 / (2 + 5 * 2) = 2 / 3
    model = Tiny()
    with torch.no_grad():
        model.head[1].weight[0] = torch.tensor([4.0, 8.0])
    raw = 4 / 9 * _IMAGE[:, 0] + 2 / 3 * _IMAGE[:, 1]
    _close(explain(model, {"image": _IMAGE}, 0, method="gradcam++"), raw / raw.max())


def test_no_positive_evidence_gives_a_map_of_zeros_with_finite_slopes() -> None:
    model = Tiny().eval()
    image = torch.tensor([[0.0, 1.0]]).reshape(1, 2, 1, 1).expand(1, 2, 2, 2)  # class 0 is -1 everywhere
    assert explain(model, {"image": image}, 0).eq(0).all()
    cam_maps(model, {"image": image}, 0, create_graph=True).sum().backward()
    assert model.conv.weight.grad is not None
    assert model.conv.weight.grad.eq(0).all()


def test_the_model_is_left_as_it_was() -> None:
    model = Tiny().train()
    model.act.eval()  # a frozen part
    before = [module.training for module in model.modules()]
    model.head[1].weight.grad = torch.full((2, 2), 5.0)
    explain(model, {"image": _IMAGE}, 0)
    assert [module.training for module in model.modules()] == before
    assert model.conv.weight.grad is None
    assert model.head[1].weight.grad.eq(5).all()
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_and_mode_are_put_back_after_an_error() -> None:
    class Broken(Tiny):
        def forward(self, image: Tensor) -> Tensor:
            super().forward(image)
            raise RuntimeError("out of memory")

    model = Broken().train()
    for function in (lambda: explain(model, {"image": _IMAGE}, 0), lambda: find_linear_head(model, {"image": _IMAGE})):
        with pytest.raises(RuntimeError, match="out of memory"):
            function()
        assert all(module.training for module in model.modules())
        assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("method", ["cam", "gradcam", "gradcam++"])
def test_works_for_callers_in_inference_mode(method: Any) -> None:
    model = Tiny()
    expected = explain(model, {"image": _IMAGE}, 1, method=method)
    with torch.inference_mode():
        image = _IMAGE + 0.0
        assert image.is_inference()
        torch.testing.assert_close(explain(model, {"image": image}, 1, method=method), expected, rtol=0, atol=0)
        assert torch.is_inference_mode_enabled()
    with torch.no_grad():
        assert cam_maps(model.eval(), {"image": _IMAGE}, 0, create_graph=False).max() == 1


def test_layers_that_work_in_place_behind_the_features_do_not_change_them() -> None:
    image = _IMAGE - 1.5
    _close(explain(Tiny(inplace=True), {"image": image}, 1), explain(Tiny(), {"image": image}, 1))
    cam_maps(Tiny(inplace=True), {"image": image}, 1, create_graph=True).sum().backward()


def test_a_frozen_encoder_has_maps_too() -> None:
    model = Tiny()
    model.conv.requires_grad_(False)
    _close(explain(model, {"image": _IMAGE}, 0), _CLASS_0)
    maps = cam_maps(model.eval(), {"image": _IMAGE}, 0, create_graph=True)
    _close(maps, _CLASS_0)
    maps.sum().backward()
    assert model.head[1].weight.grad is not None
    assert model.head[1].weight.grad.abs().sum() > 0


def test_maps_can_be_trained_on() -> None:
    """The slope of a differentiable map is that of finite differences, and descent moves the map to its target."""
    model = Tiny().double().eval()
    image, target = _IMAGE.double(), torch.tensor([[[0.0, 0.0], [0.0, 1.0]]]).double()

    def loss() -> Tensor:
        return (cam_maps(model, {"image": image}, 0, create_graph=True) - target.float()).square().sum()

    loss().backward()
    for weight in (model.conv.weight, model.head[1].weight):
        assert weight.grad is not None
        flat, slope = weight.data.view(-1), weight.grad.flatten()[0]
        start = float(flat[0])
        with torch.no_grad():
            flat[0] = start + 1e-2
            above = float(loss())
            flat[0] = start - 1e-2
            below = float(loss())
            flat[0] = start
        assert float(slope) == pytest.approx((above - below) / 2e-2, rel=1e-2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    first = float(loss().detach())
    for _ in range(50):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert float(loss().detach()) < 0.5 * first


def test_the_training_pass_itself_can_be_watched() -> None:
    model = Tiny().eval()
    with record_features(model) as record:
        logits = model(image=_IMAGE)
    maps = maps_from_features(record, {"image": _IMAGE}, logits, 0, create_graph=True)
    _close(maps, _CLASS_0)
    (maps.sum() + logits.sum()).backward()
    assert model.conv.weight.grad is not None


def test_a_compiled_model_is_watched_as_it_was_written() -> None:
    model = Tiny().eval()
    model.compile(backend="eager")
    model(_IMAGE)  # compiled without a hook
    _close(cam_maps(model, {"image": _IMAGE}, 0, create_graph=False), _CLASS_0)
    torch._dynamo.reset()


def test_zones_choose_a_zone_and_a_class() -> None:
    class Zones(Tiny):
        def forward(self, image: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            logits = super().forward(image)
            return {"logits": torch.stack([logits, -logits], dim=1)}  # [B, Z = 2, K = 2]

    model = Zones()
    _close(explain(model, {"image": _IMAGE}, (0, 1)), _CLASS_1)
    image = torch.cat([_IMAGE, _IMAGE])
    maps = explain(model, {"image": image}, torch.tensor([[0, 0], [1, 1]]))
    _close(maps[:1], _CLASS_0)
    # the second zone's class 1 is minus the first's: [[5, -1], [-9, 4]]
    _close(maps[1], torch.tensor([[1.0, 0.0], [0.0, 0.8]]))


class Tokens(nn.Module):
    """Patches of 2 x 2 as tokens behind a class token and registers; the mean of the patches is classified."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix, self.norm = prefix, nn.Identity()

    def feature_layer(self) -> nn.Module:
        return self.norm

    def forward(self, image: Tensor) -> Tensor:
        tokens = nn.functional.avg_pool2d(image, 2).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.new_full((len(tokens), self.prefix, tokens.shape[2]), 50.0), tokens], dim=1)
        pooled = self.norm(tokens)[:, self.prefix :].mean(1)
        return torch.stack([pooled.sum(1), -pooled.sum(1)], dim=1)


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("size", [(12, 12), (8, 16), (16, 8)])
def test_tokens_are_laid_back_on_their_grid(prefix: int, size: tuple[int, int]) -> None:
    image = torch.zeros(1, 3, *size)
    image[..., 2:4, 6:8] = 1.0  # the token of row 1, column 3
    maps = cam_maps(Tokens(prefix), {"image": image}, 0, create_graph=False)
    assert maps.shape == (1, size[0] // 2, size[1] // 2)
    assert maps.nonzero().tolist() == [[0, 1, 3]]
    assert explain(Tokens(prefix), {"image": image}, 0).shape == (1, *size)


def test_tokens_that_form_no_grid_are_an_error() -> None:
    class Odd(Tokens):
        def forward(self, image: Tensor) -> Tensor:
            return self.norm(image.flatten(2).transpose(1, 2)[:, :3]).sum((1, 2))[:, None]

    with pytest.raises(UsageError, match="3 tokens do not form a grid over an image of 64x8"):
        cam_maps(Odd(0), {"image": torch.zeros(1, 3, 64, 8)}, 0, create_graph=False)


def test_maps_with_the_channels_last_are_told_apart() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage = nn.Identity()

        def feature_layer(self) -> nn.Module:
            return self.stage

        def forward(self, image: Tensor) -> Tensor:
            features = self.stage(image.movedim(1, -1).repeat(1, 1, 1, 4))  # [B, 4, 6, 12]
            return features.mean((1, 2))[..., :2]

    image = torch.rand(1, 3, 4, 6)
    _close(cam_maps(Last(), {"image": image}, 1, create_graph=False), image[:, 1] / image[:, 1].max())


def test_volumes() -> None:
    class Volume(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(1, 2, 1)

        def forward(self, image: Tensor) -> Tensor:
            return self.head(self.conv(image).mean((2, 3, 4)))

    image = torch.rand(2, 1, 4, 6, 8)
    assert cam_maps(Volume().eval(), {"image": image}, 0, create_graph=False).shape == (2, 4, 6, 8)
    assert explain(Volume(), {"image": image}, 0).shape == (2, 4, 6, 8)


class Bag(Tiny):
    """The mean of the instances; encodes all, the present ones, or one at a time."""

    inputs = ("image", "present")

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, image: Tensor, present: Tensor) -> Tensor:  # type: ignore[override]
        if self.way == "all":
            features = self.conv(image.flatten(0, 1)).mean((2, 3)).unflatten(0, present.shape)
        else:
            found = image[present]
            parts = [self.conv(part).mean((2, 3)) for part in (found.split(1) if self.way == "chunks" else [found])]
            features = image.new_zeros(*present.shape, 2).index_put((present,), torch.cat(parts))
        return self.head((features * present[..., None]).sum(1) / present.sum(1, keepdim=True))


@pytest.mark.parametrize("way", ["all", "present", "chunks"])
def test_views_have_a_map_each_and_absent_ones_none(way: str) -> None:
    image = torch.zeros(2, 3, 2, 2, 2)
    image[0, 2], image[1, 0], image[1, 1] = _IMAGE[0], _IMAGE[0], 2 * _IMAGE[0]
    image[0, 0] = 9.0  # padding must not show, whatever it holds
    present = torch.tensor([[False, False, True], [True, True, False]])
    maps = explain(Bag(way), {"image": image, "present": present}, 0)
    assert maps.shape == (2, 3, 2, 2)
    for place in ((0, 2), (1, 0), (1, 1)):
        _close(maps[place][None], _CLASS_0)
    assert maps[~present].eq(0).all()


def test_an_optional_image_is_no_axis_of_views() -> None:
    class Optional(Tiny):
        def forward(self, image: Tensor, present: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(image)

    inputs = {"image": torch.cat([_IMAGE, _IMAGE]), "present": torch.tensor([[True], [False]])}
    maps = explain(Optional(), inputs, 0)
    _close(maps[:1], _CLASS_0)
    assert maps[1].eq(0).all()


def test_cam_of_a_model_without_a_linear_head_is_an_error() -> None:
    class Deep(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))

    class Scaled(Tiny):
        def forward(self, image: Tensor) -> Tensor:
            return 2 * super().forward(image)

    assert find_linear_head(model := Tiny().train(), {"image": _IMAGE}) is model.head[1]
    for wrong in (Deep(), Scaled()):
        with pytest.raises(UsageError, match="does not end in one linear layer"):
            explain(wrong, {"image": _IMAGE}, 0, method="cam")


def test_models_without_features_are_an_error() -> None:
    class Unused(Tiny):
        def feature_layer(self) -> nn.Module:
            return nn.Identity()

    with pytest.raises(UsageError, match="Linear has no feature map"):
        explain(nn.Linear(2, 2), {"image": _IMAGE}, 0)
    with pytest.raises(UsageError, match="did not use its feature layer"):
        explain(Unused(), {"image": _IMAGE}, 0)


@pytest.mark.parametrize("method", ["cam", "gradcam"])
def test_several_things_are_explained_by_one_pass(method: Any) -> None:
    model = Tiny()
    calls: list[int] = []
    model.conv.register_forward_hook(lambda *_: calls.append(1))
    found = explain_each(
        model,
        {"image": _IMAGE},
        [lambda logits: logits[:, 0], lambda logits: logits[:, 1], lambda logits: logits[:, 1] - 2 * logits[:, 0]],
        method=method,
    )
    _close(found[0], _CLASS_0)
    _close(found[1], _CLASS_1)
    # weights -2 - 2, 3 + 2 of the channels: [[-11, 1], [15, -8]]
    _close(found[2], torch.tensor([[[0.0, 1 / 15], [1.0, 0.0]]]))
    assert len(calls) == (2 if method == "cam" else 1)  # finding the linear head is a pass of its own


def test_resizing_keeps_pixel_areas_in_place() -> None:
    # 1-D along the columns, 2 -> 4: centres at 0.25, 0.75 of the old pixels
    maps = torch.tensor([[[0.0, 1.0]]])
    _close(resize_maps(maps, (1, 4)), torch.tensor([[[0.0, 0.25, 0.75, 1.0]]]))


def test_evaluation_mode_comes_back_from_mixed_modes() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    model[1].eval()
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False]


def test_maps_of_a_class_token_can_be_trained_on() -> None:
    """Fused attention has no second derivative; the class token makes the map depend on attention."""
    model = TimmModel(
        in_channels=1, image_size=(32, 48), num_outputs=2, encoder=TimmSettings(arch="vit_tiny_patch16_224")
    ).train()
    image = torch.randn(2, 1, 32, 48)
    maps = cam_maps(model, {"image": image}, torch.tensor([0, 1]), create_graph=True)
    assert maps.shape == (2, 2, 3)
    maps.square().sum().backward()
    first = next(model.encoder.parameters())
    assert first.grad is not None
    assert first.grad.abs().sum() > 0
    assert explain(model, {"image": image}, 0).shape == (2, 32, 48)


@pytest.mark.parametrize("shared", [True, False])
def test_views_of_a_real_model_have_maps_of_their_own(shared: bool) -> None:
    model = MultiView(
        in_channels=1,
        image_size=(32, 32),
        view_names=("a", "b"),
        num_outputs=2,
        image_encoder=EncoderSettings(arch="cnn"),
        shared=shared,
    ).train()
    image = torch.rand(3, 2, 1, 32, 32)
    present = torch.tensor([[True, True], [False, True], [True, False]])
    maps = explain(model, {"image": image, "present": present}, 1, method="gradcam++")
    assert maps.shape == (3, 2, 32, 32)
    assert maps[~present].eq(0).all()
    assert maps[present].flatten(1).amax(1).gt(0.5).all()
    # what one sample's map shows does not depend on the others
    alone = explain(model, {"image": image[1:2], "present": present[1:2]}, 1, method="gradcam++")
    _close(alone[0], maps[1])


def test_chunks_of_a_real_bag_are_put_together() -> None:
    model = MultipleInstance(
        in_channels=1,
        image_size=(32, 32),
        view_names=(),
        max_instances=5,
        num_outputs=2,
        image_encoder=EncoderSettings(arch="cnn"),
        chunk_size=2,
    )
    inputs = {
        "image": torch.rand(2, 5, 1, 32, 32),
        "present": torch.tensor([[True] * 5, [True, True, False] + [False] * 2]),
    }
    maps = explain(model, inputs, 0, method="gradcam++")
    model.encoder.chunk_size = None
    _close(maps, explain(model, inputs, 0, method="gradcam++"))
    assert maps.shape == (2, 5, 32, 32)
    assert maps[1, 2:].eq(0).all()
