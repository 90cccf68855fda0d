"""Images of any size: what is padded, what is cropped, and that nothing happens where everything fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medtrain.errors import MedtrainError, UsageError
from medtrain.losses.deep_supervision import downsample_label
from medtrain.models.padding import SegmentationNet, symmetric_pads
from medtrain.models.unet import UNet


class Coarse(SegmentationNet):
    """Logits are the image itself, and its means over 4 x 2 voxels; keeps what it was given."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(spatial_dims=2, in_channels=1, divisor=(4, 2), **settings)
        self.scale = nn.Parameter(torch.ones(()))
        self.seen: list[Tensor] = []

    def logits(self, image: Tensor) -> Tensor | list[Tensor]:
        self.seen.append(image)
        if not self.training:
            return image * self.scale
        return [image * self.scale, nn.functional.avg_pool2d(image, (4, 2))]


def test_pads_are_symmetric_and_the_odd_voxel_comes_last() -> None:
    assert symmetric_pads((5, 8, 9), (4, 4, 16)) == ((1, 2), (0, 0), (3, 4))


def test_an_image_that_fits_is_handed_through() -> None:
    model, image = Coarse(), torch.rand(2, 1, 8, 6)
    model(image)
    assert model.seen[0] is image


def test_others_are_padded_with_zeros_and_the_logits_cropped() -> None:
    model, image = Coarse().eval(), torch.rand(2, 1, 5, 7)
    assert torch.equal(model(image), image)
    padded = model.seen[0]
    assert padded.shape == (2, 1, 8, 8)
    assert torch.equal(padded[:, :, 1:6, 0:7], image)  # 1 and 2 rows, 0 and 1 columns
    assert padded.count_nonzero() == image.count_nonzero()


def test_coarse_logits_keep_the_voxels_nearest_to_the_image() -> None:
    # 9 rows are padded by 1 and 2 to 12, three coarse rows; 3 columns by 0 and 1 to 4, two coarse columns
    finest, coarse = Coarse()(torch.ones(1, 1, 9, 3))
    assert finest.shape == (1, 1, 9, 3)
    assert coarse.tolist() == [[[[0.75, 0.375], [1.0, 0.5], [0.5, 0.25]]]]
    # 13 rows are padded by 1 and 2 to 16, 17 by 1 and 2 to 20, 14 by 1 and 1, and all keep ceil(n / 4) rows
    for rows, kept in ((13, 4), (17, 5), (14, 4), (10, 3)):
        assert Coarse()(torch.rand(1, 1, rows, 2))[1].shape == (1, 1, kept, 1)


def test_labels_follow_coarse_logits_of_padded_images() -> None:
    label = torch.arange(9).view(1, 9)
    # floor(i 9 / 5)
    assert downsample_label(label, (5,)).tolist() == [[0, 1, 3, 5, 7]]
    expected = nn.functional.interpolate(label[None].float(), size=5, mode="nearest")
    assert torch.equal(expected[0].long(), downsample_label(label, (5,)))


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (1, 1, 8, 8, 8), (1, 8, 8)])
def test_an_image_of_other_channels_or_dimensions(shape: tuple[int, ...]) -> None:
    with pytest.raises(MedtrainError, match=r"expects images \[B, 1, H, W\]") as error:
        Coarse()(torch.rand(shape))
    assert error.value.hint == "it was built for 2-D images of 1 channel(s)"


@pytest.mark.parametrize(
    ("norm", "batch", "training", "refused"),
    [("instance", 2, False, True), ("batch", 1, True, True), ("batch", 2, True, False), ("batch", 1, False, False)],
)
def test_an_image_that_shrinks_to_a_single_voxel(norm: Any, batch: int, training: bool, refused: bool) -> None:
    model = Coarse(norm=norm).train(training)
    if not refused:
        model(torch.rand(batch, 1, 3, 2))
        return
    with pytest.raises(UsageError, match="shrinks to a single voxel") as error:
        model(torch.rand(batch, 1, 3, 2))
    assert "4 x 2" in str(error.value.hint)


@pytest.fixture(scope="module")
def unet() -> UNet:
    torch.manual_seed(0)
    stages: dict[str, Any] = {"channels": (4, 6, 8), "strides": (1, 2, (2, 1)), "kernel_sizes": (3, 3, 3)}
    return UNet(spatial_dims=2, in_channels=2, num_outputs=3, **stages).eval()


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*")
@pytest.mark.parametrize("size", [(13, 10), (16, 8)])
def test_a_trace_pads_like_the_network(unet: UNet, size: tuple[int, int]) -> None:
    traced = torch.jit.trace(unet, torch.rand(2, 2, *size))
    other = torch.rand(3, 2, *size)
    torch.testing.assert_close(traced(other), unet(other), rtol=1e-4, atol=1e-5)


def test_a_traced_network_without_padding_has_none(unet: UNet) -> None:
    def nodes(size: tuple[int, int]) -> str:
        return str(torch.export.export(unet, (torch.rand(2, 2, *size),), strict=False).graph)

    assert "pad.default" not in nodes((16, 8))
    assert "pad.default" in nodes((13, 10))


def test_export_with_a_free_batch(unet: UNet) -> None:
    shapes = ({0: torch.export.Dim("batch", min=1, max=8)},)
    program = torch.export.export(unet, (torch.rand(2, 2, 13, 10),), dynamic_shapes=shapes, strict=False)
    other = torch.rand(5, 2, 13, 10)
    torch.testing.assert_close(program.module()(other), unet(other), rtol=1e-4, atol=1e-5)
