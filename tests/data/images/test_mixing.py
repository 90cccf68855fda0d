"""MixUp and CutMix: how a batch is mixed, as a function of what it was drawn by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medtrain.data.images.mixing import Mix, draw_mix
from medtrain.data.transforms.images.none import NoImageAugmentation
from tests.data.images.small_sets import open_module, small_set
from tests.data.images.test_module import given, take


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def test_blended_images_by_hand() -> None:
    image = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 2, 4, 4)
    mixed = Mix(0.75).images(image)
    assert mixed[:, 0, 0, 0].tolist() == [0.5, 1.0, 1.5]  # 0.75 * 0 + 0.25 * 2, itself, 0.75 * 2


def test_a_box_comes_from_the_other_image() -> None:
    image = torch.arange(2.0).reshape(2, 1, 1, 1).expand(2, 3, 4, 5)
    mixed = Mix(0.7, ((1, 3), (0, 3))).images(image)
    assert mixed[0, 1].sum() == 6
    assert (mixed[0, :, 1:3, :3] == 1).all()
    assert torch.equal(mixed[1], 1 - mixed[0])
    assert image.sum() == 60  # as it was


@pytest.mark.parametrize("size", [(32, 48), (8, 16, 16)])
def test_the_share_of_a_cut_is_what_is_left_of_the_own_image(size: tuple[int, ...]) -> None:
    shares = []
    for seed in range(200):
        mix = draw_mix(rng(seed), size, mixup=0.0, cutmix=1.0)
        assert mix.box is not None
        image = torch.zeros(2, 1, *size)
        image[1] = 1
        assert float(mix.images(image)[0].mean()) == pytest.approx(1 - mix.share, abs=1e-6)
        shares.append(mix.share)
    assert 0 <= min(shares) < 0.3
    assert 0.8 < max(shares) <= 1


def test_shares_have_the_moments_of_the_beta_distribution() -> None:
    shares = [draw_mix(rng(seed), (8, 8), mixup=0.2, cutmix=0.0).share for seed in range(2000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * 0.2 + 1)), abs=0.01)  # of Beta(a, a)
    boxes = [draw_mix(rng(seed), (8, 8), mixup=0.2, cutmix=1.0).box for seed in range(400)]
    assert 150 < sum(box is None for box in boxes) < 250


def test_batches_are_mixed_alike_from_any_position_and_by_any_worker(tmp_path: Path) -> None:
    settings = given(tmp_path, small_set(tmp_path, 12), shares=(1, 0, 0), batch_size=4)
    plan = open_module(settings)[1]
    augment = NoImageAugmentation(
        image_size=plan.image_size, spatial_dims=2, in_channels=plan.in_channels, mixup=0.4, cutmix=1.0
    )
    data, _, _ = open_module(settings, augment=augment)
    mixes = [batch["mix"] for batch in take(data, 7)]
    assert len(set(mixes)) == 7
    batches = data.train_batches(5)
    assert next(batches)["mix"] == mixes[5]
    data.close()
    assert "mix" not in next(iter(data.judged_items(data.evaluation_cases("train"))))
    plain, _, _ = open_module(settings)
    assert "mix" not in take(plain, 1)[0]
