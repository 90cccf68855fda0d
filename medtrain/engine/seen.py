"""Fine-tuning on the same data: which cases the weights that a run begins with were trained on."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from medtrain.engine.initial import REPORT
from medtrain.engine.protocol import TrainData
from medtrain.run.atomic import atomic_write_json

log = logging.getLogger(__name__)

_DEPTH = 4  # a file of weights lies this far below its run: RUN/checkpoints/STEP/FILE


def seen_cases(config: Mapping[str, Any], described: Mapping[str, Any]) -> dict[str, Path]:
    """Cases on which the weights that a run begins with were trained, by a run or by those that this one began with.

    Args:
        config: The run's configuration.
        described: What identifies its data, as `data.json` has it.

    Returns:
        Case id, as this run calls it -> the run that trained on it; empty for weights that no run has written.
    """
    seen: dict[str, Path] = {}
    for run, earlier in _ancestors(config):
        theirs = _read(run / "data.json")
        trained = _training_part(run, earlier, theirs.get("cases", {}))
        seen |= dict.fromkeys(set(_same_scans(trained, theirs, described)) - seen.keys(), run)
    return seen


def _same_scans(trained: Iterable[str], theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> Iterator[str]:
    """The cases of mine that are among some of theirs: those of the same content, whatever they are called.

    And those of the same id, if the data sets have the same name or folder: files that were saved again have another
    content. Not if the other set has the content of either: then it is known who that is. Where the content of either
    is not known, those of the same id that were prepared to the same thing, too.
    """
    contents, known = mine.get("contents", {}), theirs.get("contents", {})
    called = defaultdict(list)
    for case_id, content in contents.items():
        called[content].append(case_id)
    elsewhere = set(known.values())
    same_set = any(theirs.get(key) == mine.get(key) for key in ("dataset", "root"))
    for case_id in trained:
        alike = called.get(known.get(case_id), [])
        yield from alike
        if case_id not in mine["cases"] or alike or contents.get(case_id) in elsewhere:
            continue
        unknown = case_id not in known or case_id not in contents
        if same_set or (unknown and theirs.get("cases", {}).get(case_id) == mine["cases"][case_id]):
            yield case_id


def warn_of_seen(run_dir: Path, config: Mapping[str, Any], data: TrainData) -> None:
    """Say, and keep with the initial weights, how many validation cases these were trained on.

    Args:
        run_dir: The run's folder, with `initial_weights.json` if it began with any.
        config: Its configuration.
        data: Its data.
    """
    if _run_of(config) is None:
        return
    seen = seen_cases(config, data.describe())
    held_out = data.evaluation_cases("val", limit=None)
    known = [case_id for case_id in held_out if case_id in seen]
    if not known:
        return
    log.warning("%s", describe_seen(known, len(held_out), seen))
    if (run_dir / REPORT).is_file():
        facts = {"validation cases it was trained on": f"{len(known)} of {len(held_out)}", "seen": known}
        atomic_write_json(run_dir / REPORT, {**_read(run_dir / REPORT), **facts})


def describe_seen(known: Iterable[str], total: int, seen: Mapping[str, Path]) -> str:
    """Say that validation cases were trained on.

    Args:
        known: These cases.
        total: How many validation cases there are.
        seen: The run that trained on each.
    """
    cases = list(known)
    runs = ", ".join(dict.fromkeys(str(seen[case_id]) for case_id in cases))
    some = ", ".join(cases[:3]) + (", ..." if len(cases) > 3 else "")
    return (
        f"{len(cases)} of {total} validation cases ({some}) were trained on by {runs}, whose weights this begins with: "
        "what is measured on them is too good, and says nothing of new cases"
    )


def _ancestors(config: Mapping[str, Any]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The run whose weights are begun with, the one that this one began with, and so on, with their settings."""
    met: set[Path] = set()
    while (run := _run_of(config)) is not None and run not in met:
        met.add(run)
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        yield run, config


def _run_of(config: Mapping[str, Any]) -> Path | None:
    given = config["trainer"].get("init_from") or config["model"].get("weights")
    if not isinstance(given, str):
        return None
    path = Path(given).expanduser().resolve()
    near = [path, *path.parents][:_DEPTH] if path.exists() else []
    return next(
        (place for place in near if (place / "config.yaml").is_file() and (place / "data.json").is_file()), None
    )


def _training_part(run: Path, config: Mapping[str, Any], cases: Mapping[str, Any]) -> Iterable[str]:
    """Cases that a run trained on; without a division these are all that it used."""
    fold = config["data"].get("fold")
    try:
        content = json.loads((run / "splits.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return cases
    if isinstance(content, dict):  # of images: the parts themselves
        return content.get("train", ())
    return cases if fold is None else content[fold]["train"]


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
