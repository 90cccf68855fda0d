from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medtrain.data.images.events import find_event_times
from medtrain.data.sample import Sample, Target
from medtrain.losses.survival import quantile_cuts

TIME, EVENT, AGE = Target("time", None), Target("event", ("0", "1")), Target("age", None)
GRADE = Target("grade", ("low", "middle", "high"))


def samples(*rows: tuple[float | None, ...]) -> list[Sample]:
    return [Sample(str(i), (Path(f"{i}.png"),), row, str(i)) for i, row in enumerate(rows)]


def test_times_of_events_alone_count() -> None:
    rows = samples((5.0, 1), (9.0, 0), (2.0, 1), (None, 1), (1.0, None))
    assert find_event_times([TIME, EVENT], rows) == (2.0, 5.0)
    assert find_event_times([TIME, Target("event", None)], rows) == (2.0, 5.0)


@pytest.mark.parametrize("targets", [[TIME, AGE], [TIME, GRADE], [EVENT, TIME], [TIME], []])
def test_other_targets_have_no_events(targets: list[Target]) -> None:
    assert find_event_times(targets, samples(*[(3.0, 2.0)[: len(targets)] for _ in range(3)])) == ()


def test_the_pair_may_come_later() -> None:
    rows = samples((50.5, 2, 7.0, 1), (60.5, 1, 8.0, 0))
    assert find_event_times([AGE, GRADE, TIME, EVENT], rows) == (7.0,)


def test_many_become_percentiles_that_divide_time_alike() -> None:
    times = np.random.default_rng(0).exponential(10, 1001)
    found = find_event_times([TIME, EVENT], samples(*[(float(time), 1) for time in times]))
    assert len(found) == 101
    assert (found[0], found[-1]) == (times.min(), times.max())
    for intervals in (2, 4, 5, 10, 20):
        assert quantile_cuts(found, intervals) == pytest.approx(quantile_cuts(list(times), intervals), rel=1e-9)
