"""Encoding samples with several images: padding, chunks, batch statistics, encoders for each view."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medtrain.errors import MedtrainError, UsageError
from medtrain.models.instances import Encoded, EncoderSettings, ImageEncoder, as_instances, encode_images

SIZE = (12, 8)


def make(views: tuple[str, ...] = (), size: tuple[int, ...] = SIZE, **settings: Any) -> ImageEncoder:
    torch.manual_seed(1)
    return ImageEncoder(EncoderSettings(arch="cnn"), in_channels=1, image_size=size, view_names=views, **settings)


def bag(samples: int = 3, count: int = 4, size: tuple[int, ...] = SIZE) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(samples, count, 1, *size, generator=generator)
    present = torch.rand(samples, count, generator=generator) < 0.6
    present[0], present[-1] = True, False
    return images, present


def seen_by(encoder: ImageEncoder) -> list[int]:
    """Sizes of the batches that an encoder has got."""
    seen = encoder.each()[0].seen
    assert isinstance(seen, list)
    return seen


def test_padding_is_not_encoded_and_does_not_touch_statistics(tiny: Any) -> None:
    images, present = bag()
    encoder = make().train()
    alone = copy.deepcopy(encoder)
    encoded, there = encoder(images, present)
    assert seen_by(encoder) == [int(present.sum())]
    expected = alone.each()[0](images[present])
    assert torch.equal(encoded.vectors[present], expected)
    assert torch.equal(encoded.vectors[~present], torch.zeros(int((~present).sum()), 12))
    assert torch.equal(there, present)
    for (name, mine), theirs in zip(encoder.named_buffers(), alone.buffers()):
        assert torch.equal(mine, theirs), name
    broken = images.masked_fill(~present[..., None, None, None], float("nan"))
    assert torch.equal(encoder.eval()(broken, present)[0].vectors, encoder(images, present)[0].vectors)


@pytest.mark.parametrize("maps", [False, True])
def test_chunks_give_the_same_in_evaluation(tiny: Any, maps: bool) -> None:
    images, present = bag()
    encoder = make().eval()
    expected, _ = encoder(images, present, maps=maps)
    encoder.chunk_size = 2
    found, _ = encoder(images, present, maps=maps)
    torch.testing.assert_close(found.vectors, expected.vectors)
    assert (found.maps is not None) == maps
    if found.maps is not None and expected.maps is not None:
        assert found.maps.shape == (3, 4, 12, 3, 2)
        torch.testing.assert_close(found.maps, expected.maps)
    assert max(seen_by(encoder)[1:]) == 2


def test_chunks_give_the_same_gradients_in_training(tiny: Any) -> None:
    images, present = bag()
    whole, parts = make(), make(chunk_size=2)
    for encoder in (whole, parts):
        for norm in encoder.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eval()  # statistics of a chunk are those of the chunk
        encoder(images, present)[0].vectors.square().sum().backward()
    for (name, first), second in zip(whole.named_parameters(), parts.parameters()):
        assert first.grad is not None
        assert second.grad is not None
        torch.testing.assert_close(second.grad, first.grad, msg=name)


def test_repeating_a_chunk_does_not_count_its_statistics_twice(tiny: Any) -> None:
    images, _ = bag()
    present = torch.ones(images.shape[:2], dtype=torch.bool)
    parts, plain = make(chunk_size=4), make()
    parts(images, present)[0].vectors.square().sum().backward()
    assert seen_by(parts) == [4, 4, 4, 4, 4, 4]  # forward, and again in the backward pass
    for chunk in images.flatten(0, 1).split(4):
        plain.each()[0](chunk)
    for (name, mine), theirs in zip(parts.named_buffers(), plain.buffers()):
        assert torch.equal(mine, theirs), name
    assert {norm.momentum for norm in parts.modules() if isinstance(norm, nn.BatchNorm2d)} == {0.1}


def test_a_frozen_encoder_is_not_encoded_twice(tiny: Any) -> None:
    images, present = bag()
    encoder = make(chunk_size=2).requires_grad_(False)
    vectors = encoder(images, present)[0].vectors
    assert not vectors.requires_grad
    assert sum(seen_by(encoder)) == int(present.sum())


def test_evaluation_with_gradients_does_not_encode_twice(tiny: Any) -> None:
    images, present = bag()
    encoder = make(chunk_size=2).eval()
    encoder(images, present)[0].vectors.sum().backward()  # as for a class activation map
    assert sum(seen_by(encoder)) == int(present.sum())


def test_an_exported_graph_encodes_every_place(tiny: Any) -> None:
    images, present = bag()
    encoder = make(chunk_size=5).eval().requires_grad_(False)
    program = torch.export.export(encoder, (images, present))
    torch.testing.assert_close(program.module()(images, ~present)[0].vectors, encoder(images, ~present)[0].vectors)


def test_a_batch_without_any_image_keeps_every_weight_in_the_graph(tiny: Any) -> None:
    images, present = bag()
    encoder = make().train()
    before = copy.deepcopy(encoder.state_dict())
    encoded, _ = encoder(images, torch.zeros_like(present), maps=True)
    assert torch.equal(encoded.vectors, torch.zeros(3, 4, 12))
    assert encoded.maps is not None
    assert torch.equal(encoded.maps, torch.zeros(3, 4, 12, 3, 2))
    (encoded.vectors.sum() + encoded.maps.sum()).backward()
    assert all(p.grad is not None and torch.equal(p.grad, torch.zeros_like(p)) for p in encoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_a_single_image_whose_map_is_one_cell_can_be_trained_on(tiny: Any) -> None:
    encoder = make(size=(2, 2)).train()
    encoder.each()[0].map_size = (1, 1)
    present = torch.tensor([[False, True], [False, False]])
    encoded, _ = encoder(torch.randn(2, 2, 1, 2, 2), present)  # batch norm refuses a single value per channel
    assert encoded.vectors[0, 1].isfinite().all()
    assert encoded.vectors.shape == (2, 2, 12)


def test_no_chunk_is_a_remainder_of_one(tiny: Any) -> None:
    """Statistics of one value are refused, and those of few are poor."""
    images = torch.randn(1, 9, 1, 1, 1, generator=torch.Generator().manual_seed(2))
    encoder = make(size=(1, 1), chunk_size=4).train()
    encoded, _ = encoder(images, torch.ones(1, 9, dtype=torch.bool))
    assert seen_by(encoder) == [3, 3, 3]
    pairs = make(size=(1, 1), chunk_size=2).train()
    vectors = pairs(images[:, :3], torch.ones(1, 3, dtype=torch.bool))[0].vectors
    assert seen_by(pairs) == [2, 2]  # the third one twice
    assert vectors.shape == (1, 3, encoded.vectors.shape[2])
    vectors.sum().backward()


def test_the_flags_may_stay_on_the_cpu(tiny: Any) -> None:
    encoder = make().to("meta")
    images, present = bag()
    encoded, there = encoder(images.to("meta"), present)
    assert encoded.vectors.shape == (3, 4, 12)
    assert there.device.type == "meta"


def test_a_single_image_is_a_bag_of_one(tiny: Any) -> None:
    images, present = as_instances(torch.zeros(3, 1, *SIZE), None, 2)
    assert images.shape == (3, 1, 1, *SIZE)
    assert present.all()
    images, present = as_instances(torch.zeros(3, 1, 4, *SIZE), None, 3)  # a volume
    assert images.shape == (3, 1, 1, 4, *SIZE)
    assert present.shape == (3, 1)
    with pytest.raises(MedtrainError, match=r"the shape \[3, 4\], and there are 2 images"):
        as_instances(torch.zeros(3, 2, 1, *SIZE), torch.ones(3, 4, dtype=torch.bool), 2)


def test_views_with_encoders_of_their_own(tiny: Any) -> None:
    encoder = make(("arterial", "portal.late", "portal late"), shared=False).eval()
    assert [name for name, _ in encoder.named_children()] == [
        "view_arterial",
        "view_portal_late_1",
        "view_portal_late_2",
        "maps",
    ]
    images, present = bag(3, 3)
    encoded, _ = encoder(images, present, maps=True)
    for view, each in enumerate(encoder.each()):
        expected = encode_images(each, images[:, view : view + 1], present[:, view : view + 1], maps=True)
        assert isinstance(expected, Encoded)
        assert torch.equal(encoded.vectors[:, view], expected.vectors[:, 0])
        assert encoded.maps is not None
        assert expected.maps is not None
        assert torch.equal(encoded.maps[:, view], expected.maps[:, 0])
    assert not torch.allclose(*(each(images[:, 0]) for each in encoder.each()[:2]))
    with pytest.raises(MedtrainError, match="encoders for 3 views, got images of 2"):
        encoder(images[:, :2], present[:, :2])


@pytest.mark.parametrize("shared", [True, False])
def test_the_feature_layer_gives_the_maps_of_all_images_row_by_row(tiny: Any, shared: bool) -> None:
    encoder = make(("a", "b", "c", "d"), shared=shared).eval()
    images, present = bag()
    outputs: list[Tensor] = []
    handle = encoder.feature_layer().register_forward_hook(lambda _, __, output: outputs.append(output))
    encoded, _ = encoder(images, present)
    handle.remove()
    found = torch.cat(outputs)
    vectors = encoded.vectors.flatten(0, 1) if len(found) == 12 else encoded.vectors[present]
    torch.testing.assert_close(found.mean((2, 3)), vectors)
    assert len(outputs) == 1


def test_encoders_of_their_own_need_views(tiny: Any) -> None:
    with pytest.raises(UsageError, match=r"model\.shared=false gives each view an encoder of its own"):
        make(shared=False)


def test_every_setting_reaches_the_encoder(tiny: Any) -> None:
    settings = EncoderSettings(
        arch="resnet50",
        weights="somewhere.pt",
        min_matched=0.5,
        drop_rate=0.1,
        drop_path_rate=0.2,
        pooling="avg",
        small_input=True,
    )
    encoder = settings.build(3, SIZE)
    assert (encoder.arch, encoder.in_channels, encoder.image_size) == ("resnet50", 3, SIZE)
    assert encoder.settings == {
        "weights": "somewhere.pt",
        "min_matched": 0.5,
        "drop_rate": 0.1,
        "drop_path_rate": 0.2,
        "pooling": "avg",
        "small_input": True,
    }
    with pytest.raises(UsageError, match="the data have no images"):
        settings.build(0, ())
