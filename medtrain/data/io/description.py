"""The `dataset.json` of the Medical Segmentation Decathlon and of nnU-Net: read, checked, and put into one form."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtrain.data.case import Case
from medtrain.data.io.region_labels import IGNORE, has_regions, read_regions, region_labels
from medtrain.errors import DataError, Problem, UsageError


@dataclass(frozen=True)
class Description:
    """What a `dataset.json` says.

    Args:
        path: The file.
        title: The data set's name.
        channel_names: In channel order.
        labels: Name -> value in the files, ascending, so background first; without the ignore label.
        ignore_value: Value of the ignore label, or None.
        regions: Name -> values of the regions in the order of painting, the value that one is painted with first; None
            where labels are single values.
        content: The whole file.
    """

    path: Path
    title: str
    channel_names: tuple[str, ...]
    labels: dict[str, int]
    ignore_value: int | None
    regions: dict[str, tuple[int, ...]] | None
    content: dict[str, Any]


def parse_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: Missing, not text, or not JSON; says in which line and column.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError([Problem(where=str(path), message="no such file")]) from None
    except UnicodeDecodeError:
        raise DataError([Problem(where=str(path), message="not a text file")]) from None
    except json.JSONDecodeError as error:
        message = f"not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        raise DataError([Problem(where=str(path), message=message)]) from None


def read_description(path: Path) -> Description:
    """Read a `dataset.json` of either layout.

    Channels are `modality` or `channel_names` ({"0": "CT"}); labels are {"0": "background"} or {"background": 0}, or
    nnU-Net's regions, {"background": 0, "whole": [1, 2], "core": [2]} with `regions_class_order` [1, 2]: the value
    that each region is painted with.

    Raises:
        DataError: Not JSON, or entries are missing or wrong; all of it at once.
    """
    content = parse_json(path)
    if not isinstance(content, dict):
        raise DataError([Problem(where=str(path), message="expected an object with `labels` and `channel_names`")])
    problems: list[Problem] = []
    channels = _channels(path, content, problems)
    regions = read_regions(path, content, problems) if has_regions(content) else None
    labels = _labels(path, content, problems) if regions is None else region_labels(content["labels"], regions)
    if problems:
        raise DataError(problems, heading=f"{path} is wrong:")
    ignore = labels.pop(IGNORE, None)
    return Description(
        path=path,
        title=str(content.get("name") or path.parent.name),
        channel_names=channels,
        labels=labels,
        ignore_value=ignore,
        regions=regions,
        content=content,
    )


def parse_group_pattern(text: str) -> re.Pattern[str]:
    """Compile a pattern whose first group is the patient.

    Raises:
        ValueError: Not a regular expression, or it has no group.
    """
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    if pattern.groups < 1:
        raise ValueError("needs a group in parentheses that holds the patient")
    return pattern


def patient_of(case_ids: Sequence[str], pattern: str | None) -> dict[str, str]:
    """The patient of each case: the case itself, or what the pattern's first group finds in the id.

    Raises:
        UsageError: The pattern does not fit some ids.
    """
    if pattern is None:
        return {case_id: case_id for case_id in case_ids}
    compiled = parse_group_pattern(pattern)
    found = {case_id: compiled.search(case_id) for case_id in case_ids}
    missed = [case_id for case_id, match in found.items() if match is None or match[1] is None]
    if missed:
        raise UsageError(
            f"data.group_pattern {pattern!r} finds no patient in {len(missed)} of {len(found)} case ids, "
            f"such as {missed[0]!r}",
            hint=r"e.g. data.group_pattern='^(\w+?)_'",
        )
    return {case_id: match[1] for case_id, match in found.items() if match is not None}


def sorted_cases(cases: Sequence[Case]) -> tuple[Case, ...]:
    """Cases by id, the order of every list and split."""
    return tuple(sorted(cases, key=lambda case: case.case_id))


def _channels(path: Path, content: dict[str, Any], problems: list[Problem]) -> tuple[str, ...]:
    key = "channel_names" if "channel_names" in content else "modality"
    entries = content.get(key)
    if not isinstance(entries, dict) or not entries:
        message = 'needs `channel_names` (or `modality`) such as {"0": "CT"}'
        problems.append(Problem(where=str(path), message=message))
        return ()
    if sorted(entries) != sorted(str(index) for index in range(len(entries))):
        message = f"`{key}` must be numbered from 0 without gaps, got {', '.join(map(str, entries))}"
        problems.append(Problem(where=str(path), message=message))
        return ()
    return tuple(str(entries[str(index)]).strip() for index in range(len(entries)))


def _labels(path: Path, content: dict[str, Any], problems: list[Problem]) -> dict[str, int]:
    def wrong(message: str, hint: str | None = None) -> dict[str, int]:
        problems.append(Problem(where=str(path), message=message, hint=hint))
        return {}

    entries = content.get("labels")
    if not isinstance(entries, dict) or not entries:
        return wrong('needs `labels` such as {"background": 0, "liver": 1}')
    by_value = all(re.fullmatch(r"-?\d+", str(key)) for key in entries)
    pairs = [(text, key) for key, text in entries.items()] if by_value else list(entries.items())
    labels: dict[str, int] = {}
    for name, value in pairs:
        text = str(name).strip()
        if isinstance(value, bool) or not re.fullmatch(r"-?\d+", str(value)):
            return wrong(f"label {text!r} must be a whole number, got {value!r}")
        if text in labels or int(value) in labels.values():
            return wrong(f"`labels` holds {text!r} or the value {value} twice")
        labels[text] = int(value)
    if 0 not in labels.values():
        return wrong("`labels` must name the value 0, the background")
    if labels.get(IGNORE) == 0 or min(labels.values()) < 0:
        return wrong("label values must be 0 (background) or positive")
    if len(set(labels) - {IGNORE}) < 2:
        return wrong("`labels` must name at least one structure beside the background")
    return dict(sorted(labels.items(), key=lambda item: item[1]))
