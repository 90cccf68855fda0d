"""Encoders of every family: one layout of maps and vectors, any channels and sizes, refusals that help."""

from __future__ import annotations

import copy
import functools
import itertools
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from medtrain.errors import MedtrainError, UsageError
from medtrain.models.encoders import Encoder, build_encoder, parse_arch

# name, image size, options, (vector, map channels, map size)
FAMILIES: list[tuple[str, tuple[int, ...], dict[str, Any], tuple[int, int, tuple[int, ...]]]] = [
    ("resnet10t", (64, 96), {}, (512, 512, (2, 3))),
    ("test_efficientnet", (64, 64), {}, (256, 256, (2, 2))),
    ("test_convnext", (64, 64), {}, (64, 64, (2, 2))),
    ("mobilenetv3_small_050", (64, 64), {}, (1024, 288, (2, 2))),  # widens after pooling
    ("test_vit", (64, 96), {}, (64, 64, (4, 6))),
    ("test_vit", (64, 96), {"pooling": "avg"}, (64, 64, (4, 6))),
    ("vit_tiny_patch16_224", (48, 48), {}, (192, 192, (3, 3))),
    ("deit_tiny_distilled_patch16_224", (32, 32), {}, (192, 192, (2, 2))),  # two tokens before the grid
    ("swin_tiny_patch4_window7_224", (64, 96), {}, (768, 768, (2, 3))),  # channels last
    ("cnn", (40, 28), {}, (1024, 1024, (2, 1))),
    ("cnn", (5, 28, 28), {}, (1024, 1024, (1, 1, 1))),
]
IDS = [f"{arch}-{'-'.join(map(str, size))}{'-avg' if options else ''}" for arch, size, options, _ in FAMILIES]


@functools.cache  # building takes longer than computing
def encoder(arch: str, size: tuple[int, ...], channels: int = 2, **options: Any) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(arch, in_channels=channels, image_size=size, **options).eval()


def images(size: tuple[int, ...], channels: int = 2, count: int = 2) -> Tensor:
    return torch.randn(count, channels, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("arch", "size", "options", "expected"), FAMILIES, ids=IDS)
def test_every_family_gives_maps_and_vectors(
    arch: str, size: tuple[int, ...], options: dict[str, Any], expected: tuple[int, int, tuple[int, ...]]
) -> None:
    model = encoder(arch, size, **options)
    assert (model.num_features, model.map_features, model.map_size) == expected
    feature_map, vector = model.features_and_vector(images(size))
    assert feature_map.shape == (2, expected[1], *expected[2])
    assert vector.shape == (2, expected[0])
    assert torch.equal(model(images(size)), vector)
    assert torch.equal(model.features(images(size)), feature_map)
    pooled = model.pool(feature_map)
    assert pooled.shape == vector.shape
    has_class_token = ("vit" in arch or "deit" in arch) and not options
    assert torch.allclose(pooled, vector, atol=1e-5) is not has_class_token


@pytest.mark.parametrize(("arch", "size", "options", "expected"), FAMILIES, ids=IDS)
def test_the_feature_layer_is_a_map_that_the_vector_depends_on(
    arch: str, size: tuple[int, ...], options: dict[str, Any], expected: tuple[int, int, tuple[int, ...]]
) -> None:
    # the copy is what an average of the weights is computed with: its hooks must be its own
    for model in (first := encoder(arch, size, **options), copy.deepcopy(first)):
        seen: list[Tensor] = []
        layer = model.feature_layer()
        hook = layer.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
        vector = model(images(size))
        hook.remove()
        assert len(seen) == 1
        assert seen[0].shape == (2, expected[1], *expected[2])
        (gradient,) = torch.autograd.grad(vector.square().sum(), seen[0])
        assert gradient.abs().flatten(2).sum(dim=1).gt(0).all()  # every place, not one that the vector cannot see


@pytest.mark.parametrize("arch", ["test_vit", "test_convnext"])
def test_encoders_compute_what_timm_computes(arch: str) -> None:
    model = encoder(arch, (64, 64), channels=3)
    sized = {} if arch == "test_convnext" else {"img_size": (64, 64)}
    twin: Any = timm.create_model(arch, num_classes=0, **sized).eval()
    twin.load_state_dict(model.network.state_dict())
    assert torch.allclose(model(images((64, 64), 3)), twin(images((64, 64), 3)), atol=1e-5)


def test_a_map_of_tokens_keeps_its_places() -> None:
    model = encoder("test_vit", (32, 48))
    tokens = model.network.forward_features(images((32, 48)))  # [2, 1 + 2 * 3, 64]
    feature_map = model.features(images((32, 48)))
    assert torch.equal(feature_map[:, :, 1, 2], tokens[:, 1 + 1 * 3 + 2])


def test_small_images_get_the_stem_of_medmnist() -> None:
    model = encoder("resnet18", (28, 28), channels=3)
    # K. He et al.'s ResNet-18 for CIFAR with a head of ten classes has 11 173 962 parameters
    assert sum(p.numel() for p in model.parameters()) + 512 * 10 + 10 == 11_173_962
    assert model.map_size == (4, 4)  # 28, 14, 7, 4: no stride in the stem
    assert encoder("resnet18", (64, 64)).map_size == (2, 2)
    assert encoder("resnet18", (64, 64), small_input=True).map_size == (8, 8)
    assert encoder("resnet18", (56, 56), small_input=False).map_size == (2, 2)


def test_the_cnn_pools_no_axis_away() -> None:
    assert encoder("cnn", (64, 64)).map_size == (4, 4)
    assert encoder("cnn", (3, 64, 17)).map_size == (1, 4, 1)
    # five 3x3 convolutions with bias, each with batch norm: 9 * i * o + 3 * o
    widths = (1, 64, 128, 256, 512, 1024)
    count = sum(9 * i * o + 3 * o for i, o in itertools.pairwise(widths))
    assert sum(p.numel() for p in encoder("cnn", (64, 64), channels=1).parameters()) == count


def test_the_same_seed_gives_the_same_weights() -> None:
    one, two = (encoder.__wrapped__("test_vit", (32, 32)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))


@pytest.mark.parametrize(
    ("arch", "size", "options", "message"),
    [
        ("restnet50", (64, 64), {}, "no architecture 'restnet50'"),
        ("hf-hub:timm/resnet18", (64, 64), {}, "no architecture"),  # would download
        ("resnet18.a1", (64, 64), {}, "no weights 'a1' of resnet18"),
        ("test_vit", (60, 64), {}, "patches have 16 x 16 pixels, the nearest size is 64 x 64"),
        ("resnet18", (8, 64, 64), {}, "takes 2-D images"),
        ("resnet18", (64, 64), {"pooling": "token"}, "does not take pooling=token"),
        ("densenet121", (64, 64), {"drop_path_rate": 0.1}, "does not take drop_path_rate=0.1"),
        ("densenet121", (28, 28), {}, "cannot take images of 28 x 28"),
        ("densenet121", (28, 28), {"small_input": True}, "small_input=true replaces"),
        ("cnn", (28, 28), {"pooling": "avg"}, "arch=cnn has no pooling"),
    ],
)
def test_what_cannot_be_built_is_refused(
    arch: str, size: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        encoder(arch, size, **options)


def test_the_nearest_names_are_suggested() -> None:
    with pytest.raises(ValueError, match="the nearest are: resnet50"):
        parse_arch("restnet50")
    with pytest.raises(ValueError, match=r"there are: .*a1_in1k"):
        parse_arch("resnet18.nothing")
    assert parse_arch("resnet18.a1_in1k") == "resnet18.a1_in1k"


def test_a_class_token_that_reads_the_blocks_output_has_no_layer_to_watch() -> None:
    with pytest.raises(UsageError, match="no feature map that its class token attends to"):
        encoder("xcit_nano_12_p16_224", (32, 32)).feature_layer()


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (2, 2, 64, 32), (2, 4, 2, 64, 64)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MedtrainError, match=r"expects images \[B, 2, 64, 64\]"):
        encoder("resnet10t", (64, 64))(torch.zeros(shape))


def test_dropout_and_stochastic_depth_reach_the_network() -> None:
    model = encoder("test_vit", (32, 32), drop_rate=0.5, drop_path_rate=0.3)
    network: Any = model.network
    assert network.blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)
    vector = model.train()(images((32, 32)))
    assert (vector == 0).float().mean() == pytest.approx(0.5, abs=0.2)
    dropped = encoder("cnn", (16, 16), drop_rate=0.5).train()(images((16, 16)))
    assert (dropped == 0).float().mean() == pytest.approx(0.5, abs=0.05)
