from __future__ import annotations

import numpy as np
import pytest

from medtrain.data.images.balance import draw_samples, sample_shares
from medtrain.data.sample import Sample, Target
from medtrain.errors import ConfigError

TARGETS = (Target("y", ("a", "b", "c")),)


def samples(*values: int | None) -> list[Sample]:
    return [Sample(str(i), (), (value,), str(i)) for i, value in enumerate(values)]


def test_classes_are_drawn_equally_often() -> None:
    labels = np.array([0] * 80 + [1] * 15 + [2] * 5)
    shares = sample_shares(samples(*labels.tolist()), TARGETS, "classes")
    assert shares is not None
    for label in range(3):
        assert shares[labels == label].sum() == pytest.approx(1 / 3)
    drawn = draw_samples(shares, seed=0, epoch=0)
    assert drawn.shape == (100,)
    counts = np.bincount(labels[drawn])
    assert (np.abs(counts - 100 / 3) < 5).all()
    # 33.3 draws of 5 samples: 6.67 each
    assert set(np.bincount(drawn, minlength=100)[95:]) <= {6, 7}
    assert np.bincount(drawn, minlength=100)[:80].max() == 1


def test_the_square_root_lies_between() -> None:
    shares = sample_shares(samples(*[0] * 16, *[1] * 4), TARGETS, "sqrt")
    assert shares is not None
    assert shares[:16].sum() == pytest.approx(4 / 6)
    assert shares[16:].sum() == pytest.approx(2 / 6)


def test_draws_are_a_function_of_seed_and_epoch() -> None:
    shares = np.full(50, 0.02)
    assert sorted(draw_samples(shares, seed=3, epoch=1)) == list(range(50))
    uneven = np.arange(1, 51) / np.arange(1, 51).sum()
    first = draw_samples(uneven, seed=3, epoch=1)
    assert np.array_equal(first, draw_samples(uneven, seed=3, epoch=1))
    others = [draw_samples(uneven, seed=3, epoch=2), draw_samples(uneven, seed=4, epoch=1)]
    assert not any(np.array_equal(np.sort(first), np.sort(other)) for other in others)
    total = sum(np.bincount(draw_samples(uneven, seed=0, epoch=e), minlength=50) for e in range(400))
    np.testing.assert_allclose(total / 400 / 50, uneven, atol=0.002)


def test_several_targets_and_unlabelled_samples() -> None:
    rows = [Sample(str(i), (), values, str(i)) for i, values in enumerate([(0, 0), (0, 1), (0, None), (None, None)])]
    shares = sample_shares(rows, (Target("y", ("a", "b")), Target("z", ("a", "b"))), "classes")
    # by y: 1/3 each; by z: 1/2 each of the first two; means 5/12, 5/12, 1/3; the last has their mean
    expected = np.array([5 / 12, 5 / 12, 4 / 12, 14 / 36])
    np.testing.assert_allclose(shares, expected / expected.sum())  # type: ignore[arg-type]
    assert sample_shares(rows, TARGETS, "none") is None


def test_numbers_cannot_be_balanced() -> None:
    with pytest.raises(ConfigError, match="needs a labelled target with classes"):
        sample_shares(samples(1, 2), (Target("age", None),), "classes")
