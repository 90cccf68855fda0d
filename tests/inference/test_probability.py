"""How sure models are, kept on the scan's own grid, against the same made at once from all logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from medtrain.data.geometry import CaseGeometry
from medtrain.data.io.nifti import SourceGrid
from medtrain.inference.postprocess import decide
from medtrain.inference.probability import ProbabilityMaps
from medtrain.inference.whole_case import predict_label
from medtrain.metrics.certainty import PROBABILITIES, encode


def test_a_byte_of_a_probability() -> None:
    logits = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0)) * 3
    crop = (slice(1, 5), slice(0, 5), slice(2, 8))
    for regions in (False, True):
        expected = logits.sigmoid() if regions else logits.softmax(0)
        maps = ProbabilityMaps({"b": 1, "c": 2}, regions=regions)
        maps.begin((6, 5, 8), averaged=False)
        maps.enter(logits[:, :2], crop, (slice(0, 2), slice(None), slice(None)))
        maps.enter(logits[:, 2:], crop, (slice(2, 4), slice(None), slice(None)))
        for name, index in (("b", 1), ("c", 2)):
            found = maps.maps[name]
            assert found.dtype == np.uint8
            difference = found[crop].astype(int) - encode(expected[index]).numpy()
            assert abs(difference).max() <= 1  # the last bit of a float
            assert found[0].max() == found[:, :, :2].max() == 0


@pytest.mark.parametrize("regions", [None, ((1, 2), (2,))])
def test_maps_of_a_whole_case(regions: Sequence[Sequence[int]] | None) -> None:
    """A scan of more than one window, cropped and resampled: a voxel is predicted where its probability says so."""
    grid = SourceGrid(tuple(map(tuple, np.diag([1.0, 1.0, 2.0, 1.0]).tolist())), (18, 20, 14))
    geometry = CaseGeometry.between(grid, ((1, 13), (2, 20), (0, 16)), (1.2, 1.0, 1.3))
    outputs = 3 if regions is None else 2
    kernel = torch.randn(outputs, 1, 3, 3, 3, generator=torch.Generator().manual_seed(1))

    def model(windows: Tensor) -> Tensor:
        return torch.nn.functional.conv3d(windows, kernel, padding=1)

    image = torch.randn(1, *geometry.resampled_shape, generator=torch.Generator().manual_seed(2))
    maps = ProbabilityMaps({str(index): index for index in range(outputs)}, regions=regions is not None)
    settings = {"patch_size": (12, 12, 12), "regions": regions}
    label = predict_label([model], [image], geometry, maps=maps, **settings)  # type: ignore[arg-type]
    np.testing.assert_array_equal(label, predict_label([model], [image], geometry, **settings))  # type: ignore[arg-type]
    inside = tuple(slice(*side) for side in geometry.crop)
    stacked = np.stack([PROBABILITIES[maps.maps[str(index)][inside]] for index in range(outputs)])
    if regions is None:
        np.testing.assert_allclose(stacked.sum(0), 1, atol=0.16)  # two below 1/16 at most, and the bytes
        clear = np.sort(stacked, axis=0)[-1] - np.sort(stacked, axis=0)[-2] > 0.05
        np.testing.assert_array_equal(label[inside][clear], stacked.argmax(0)[clear])
    else:
        clear = (np.abs(stacked - 0.5) > 0.05).all(0)
        painted = decide(torch.from_numpy(stacked - 0.5), regions).numpy()
        np.testing.assert_array_equal(label[inside][clear], painted[clear])


@pytest.mark.parametrize("regions", [None, ((1, 2), (2,))])
def test_maps_of_several_models(regions: Sequence[Sequence[int]] | None) -> None:
    """The mean of their probabilities, as it decides."""
    grid = SourceGrid(tuple(map(tuple, np.eye(4).tolist())), (10, 9, 8))
    geometry = CaseGeometry.between(grid, ((0, 8), (0, 9), (0, 10)), (1.0, 1.0, 1.0))
    outputs = 3 if regions is None else 2
    image = torch.randn(1, 8, 9, 10, generator=torch.Generator().manual_seed(2))
    kernels = [torch.randn(outputs, 1, 1, 1, 1, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    models = [lambda windows, kernel=kernel: torch.nn.functional.conv3d(windows, kernel) for kernel in kernels]
    maps = ProbabilityMaps({"b": 1}, regions=regions is not None)
    predict_label(models, [image], geometry, patch_size=(12, 12, 12), regions=regions, maps=maps)
    logits = [model(image[None])[0] for model in models]
    each = [one.softmax(0) if regions is None else one.sigmoid() for one in logits]
    difference = maps.maps["b"].astype(int) - encode(torch.stack(each).mean(0)[1]).numpy()
    assert abs(difference).max() <= 1
