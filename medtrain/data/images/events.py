"""When events came in the training part: what times are divided into intervals by."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from medtrain.data.sample import Sample, Target

MOST_TIMES = 101
"""More event times than this are kept as percentiles, the earliest and the latest among them."""


def find_event_times(targets: Sequence[Target], train: Sequence[Sample]) -> tuple[float, ...]:
    """Times of the events, rising; empty without a time that is followed by its event.

    Args:
        targets: The first number whose next target is 0 or 1 is the time, and that one says whether the event was seen.
        train: Samples of the training part; those that lack either do not count.
    """
    for index, (time, event) in enumerate(pairwise(targets)):
        pairs = [
            (found, seen)
            for sample in train
            if (found := sample.targets[index]) is not None and (seen := sample.targets[index + 1]) is not None
        ]
        if time.classes is None and _is_event(event, [seen for _, seen in pairs]):
            times = np.sort(np.array([found for found, seen in pairs if seen == 1], dtype=np.float64))
            if len(times) > MOST_TIMES:
                times = np.quantile(times, np.linspace(0, 1, MOST_TIMES))
            return tuple(float(found) for found in times)
    return ()


def _is_event(target: Target, values: Sequence[float]) -> bool:
    if target.classes is not None:
        return len(target.classes) == 2
    return bool(values) and set(values) <= {0, 1}
