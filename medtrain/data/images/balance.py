"""Which sample each draw of an epoch is, where rare classes are to come more often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from medtrain.data.sample import Sample, Target
from medtrain.errors import ConfigError, Problem

Balance = Literal["none", "classes", "sqrt"]

_STREAM = 1  # keeps the draws apart from the order of an epoch (0) and from the samples' own streams


def sample_shares(samples: Sequence[Sample], targets: Sequence[Target], balance: Balance) -> np.ndarray | None:
    """The share of draws of each sample [N], adding up to 1; None where each comes once.

    With one target, `classes` draws every class equally often and `sqrt` in proportion to the square root of its
    size. With several, a sample's share is the mean over those it is labelled in; one without any label has the mean
    share of the others.

    Args:
        samples: Of the training part.
        targets: What their values mean.
        balance: See above.

    Raises:
        ConfigError: There are no classes to balance.
    """
    if balance == "none":
        return None
    columns = [index for index, target in enumerate(targets) if target.classes is not None]
    weights = np.zeros((len(columns), len(samples)))
    labelled = np.zeros((len(columns), len(samples)), dtype=bool)
    for row, column in enumerate(columns):
        values = np.array([-1 if sample.targets[column] is None else sample.targets[column] for sample in samples])
        labelled[row] = values >= 0
        counts = np.bincount(values[labelled[row]].astype(np.int64))
        if labelled[row].any():
            per_sample = counts[values[labelled[row]].astype(np.int64)].astype(np.float64)
            weights[row, labelled[row]] = per_sample ** (-1.0 if balance == "classes" else -0.5)
            weights[row] /= weights[row].sum()
    number = labelled.sum(axis=0)
    if not columns or not number.any():
        message = f"{balance} needs a labelled target with classes, but the targets are numbers or unlabelled"
        raise ConfigError([Problem(where="data.balance", message=message, hint="data.balance=none")])
    shares = weights.sum(axis=0) / np.maximum(number, 1)
    shares[number == 0] = shares[number > 0].mean()
    total: np.ndarray = shares / shares.sum()
    return total


def draw_samples(shares: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """The sample behind each of N draws of an epoch [N]: a pure function of the seed and the epoch.

    Systematic resampling (Carpenter et al., 1999): a sample of share s comes floor(N s) or ceil(N s) times, so that
    the samples of a class come equally often, but for one.

    Args:
        shares: Of N samples, adding up to 1.
        seed: Of the run.
        epoch: Counted from 0.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch], spawn_key=(_STREAM,))))
    order = rng.permutation(len(shares))
    edges = np.cumsum(shares[order]) * len(shares)
    edges[-1] = len(shares)
    ends = np.floor(edges + rng.random()).astype(np.int64)
    # rounding in the sum must not let a draw be lost or won at the end
    ends = np.minimum(ends, len(shares))
    ends[-1] = len(shares)
    times = np.diff(ends, prepend=0)
    drawn: np.ndarray = np.repeat(order, times)
    return drawn
