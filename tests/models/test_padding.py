"""Images of any size: what is padded, what is cropped, and that nothing happens where everything fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medtrain.errors import MedtrainError, UsageError
from medtrain.losses.deep_supervision import DeepSupervisionLoss, supervision_weights
from medtrain.losses.dice import DiceLoss
from medtrain.models.padding import SegmentationNet, end_pads
from medtrain.models.stages import UNetSettings
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


def test_pads_fill_up_to_a_multiple() -> None:
    assert end_pads((5, 8, 9), (4, 4, 16)) == (3, 0, 7)


def test_an_image_that_fits_is_handed_through() -> None:
    model, image = Coarse(), torch.rand(2, 1, 8, 6)
    model(image)
    assert model.seen[0] is image


def test_others_are_padded_with_zeros_and_the_logits_cropped() -> None:
    model, image = Coarse().eval(), torch.rand(2, 1, 5, 7)
    assert torch.equal(model(image), image)
    padded = model.seen[0]
    assert padded.shape == (2, 1, 8, 8)
    assert torch.equal(padded[:, :, :5, :7], image)  # 3 rows and 1 column, after the image
    assert padded.count_nonzero() == image.count_nonzero()


def test_coarse_logits_keep_the_voxels_that_reach_into_the_image() -> None:
    # 9 rows are padded to 12, three coarse rows of 4, 4 and 1 voxels; 3 columns to 4, two coarse ones of 2 and 1
    finest, coarse = Coarse()(torch.ones(1, 1, 9, 3))
    assert coarse.tolist() == [[[[1.0, 0.5], [1.0, 0.5], [0.25, 0.125]]]]
    assert finest.shape == (1, 1, 12, 4)  # as far as the coarse ones
    assert (finest[:, :, :9, :3] == 1).all()
    assert finest.sum() == 27
    for rows, kept in ((13, 4), (17, 5), (14, 4), (10, 3)):  # ceil(n / 4)
        assert Coarse()(torch.rand(1, 1, rows, 2))[1].shape == (1, 1, kept, 1)


class Pyramid(SegmentationNet):
    """Logits of two classes that are 9 and -9 by the image itself, at steps that need not be those of the divisor."""

    def __init__(self, divisor: int, steps: tuple[int, ...]) -> None:
        super().__init__(spatial_dims=1, in_channels=1, divisor=(divisor,))
        self.steps = steps

    def logits(self, image: Tensor) -> Tensor | list[Tensor]:
        """Every step-th voxel."""
        signs = torch.cat((1 - 2 * image, 2 * image - 1), dim=1) * 30
        return [signs[..., ::step] for step in self.steps]


@pytest.mark.parametrize(
    ("size", "divisor", "steps"),
    [
        (96, 32, (1, 2, 4, 8)),
        (100, 32, (1, 2, 4, 8)),
        (48, 32, (1, 2, 4, 8)),
        (41, 8, (1, 2, 4)),
        (9, 16, (1, 8)),  # two coarse voxels: their size does not tell the step
        (5, 12, (1, 4)),
        (17, 9, (1, 3)),
        (33, 64, (1, 1, 1)),
    ],
)
def test_a_network_that_is_right_at_every_resolution_has_no_loss(
    size: int, divisor: int, steps: tuple[int, ...]
) -> None:
    label = torch.rand(2, size, generator=torch.Generator().manual_seed(size)).gt(0.5).long()
    outputs = Pyramid(divisor, steps)(label[:, None].float())
    assert isinstance(outputs, list)
    assert DeepSupervisionLoss(DiceLoss(num_classes=2))(outputs, label).item() == pytest.approx(0, abs=1e-5)


def test_every_voxel_of_the_image_counts_at_every_resolution_and_no_other() -> None:
    label = torch.zeros(1, 41, dtype=torch.long)
    outputs = [output.detach().requires_grad_() for output in Pyramid(16, (1, 2, 8))(label[:, None].float())]
    DeepSupervisionLoss(SumOfLogits())(outputs, label).backward()
    assert [output.shape[2] for output in outputs] == [48, 24, 6]
    for output, inside, weight in zip(outputs, (41, 21, 6), supervision_weights(3)):
        assert output.grad is not None
        expected = torch.zeros(output.shape[2])
        expected[:inside] = weight
        assert torch.equal(output.grad[0, 0], expected)


class SumOfLogits(DiceLoss):
    """In the place of a loss: the sum of the first logits, to see which count."""

    def __init__(self) -> None:
        super().__init__(num_classes=2)

    def forward(self, logits: Tensor, label: Tensor, **_: Any) -> Tensor:
        """The sum."""
        assert logits.shape[2:] == label.shape[1:]
        return logits[:, 0].sum()


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
    stages = UNetSettings(channels=(4, 6, 8), strides=(1, 2, (2, 1)), kernel_sizes=(3, 3, 3))
    return UNet(spatial_dims=2, in_channels=2, num_outputs=3, settings=stages).eval()


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
