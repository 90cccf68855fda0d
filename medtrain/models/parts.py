"""Small parts of a model, chosen by name inside the model's settings: `model=multimodal model.fusion=gated`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from medtrain.errors import UsageError
from medtrain.registry import closest

_T = TypeVar("_T")


def build_part(
    kind: str, chosen: str, known: Mapping[str, type[_T]], *, fixed: Mapping[str, Any], options: Mapping[str, Any]
) -> _T:
    """Construct a part; an option that it would ignore is an error.

    Args:
        kind: Key of the part in the model's settings, e.g. `fusion`; its options are `model.<kind>_<option>`.
        chosen: Name of the part.
        known: Every part by name.
        fixed: What the model itself supplies; a part takes those that its constructor names.
        options: What the user set, None where nothing was set and the part's own default holds.

    Raises:
        UsageError: No part has the name, or the part has no such option.
    """
    if chosen not in known:
        near = closest(chosen, known)
        hint = f"did you mean `model.{kind}={near}`?" if near else None
        raise UsageError(f"unknown model.{kind} `{chosen}`; available: {', '.join(known)}", hint=hint)
    accepted = set(inspect.signature(known[chosen]).parameters)
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if option not in accepted:
            owners = [name for name, part in known.items() if option in inspect.signature(part).parameters]
            raise UsageError(
                f"model.{kind}_{option} has no effect with model.{kind}={chosen}",
                hint=f"leave it out, or choose model.{kind} among {', '.join(owners)}",
            )
    return known[chosen](**{key: value for key, value in fixed.items() if key in accepted}, **given)
