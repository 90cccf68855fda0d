"""What a sweep refuses without a look at its data."""

from __future__ import annotations

import pytest

from medtrain.registry import get
from medtrain.sweep.launch import _idle

DEFAULTS = get("sweep", "default").defaults()


@pytest.mark.parametrize(("key", "value"), [("rerun_seeds", 5), ("rerun_folds", [0, 1])])
def test_settings_of_reruns_without_reruns_have_no_effect_and_say_so(key: str, value: object) -> None:
    (problem,) = _idle({**DEFAULTS, key: value})
    assert problem.where == f"sweep.{key}"
    assert not _idle({**DEFAULTS, key: value, "rerun_best": 2})
    assert not _idle(DEFAULTS)
