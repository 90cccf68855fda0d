"""Post-processing chosen by cross-validation: which structures are better with only their largest component kept.

The rule is nnU-Net's (Isensee et al., Nature Methods 18, 2021): first all foreground together, then class by class, or
region by region; each is taken where it raises the mean Dice over the cases that were held out and lowers that of none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from medtrain.inference.postprocess import FOREGROUND, Structure, find_structures, keep_largest_components
from medtrain.metrics.overlap import confusion_matrix


class HeldOut(NamedTuple):
    """A case that was held out.

    Args:
        prediction: The predicted class indices [D, H, W].
        label: The true ones.
        annotated: Whether each of what is judged was annotated; None where all were.
    """

    prediction: np.ndarray
    label: np.ndarray
    annotated: Sequence[bool] | None = None


@dataclass(frozen=True)
class Judged:
    """What is judged in a label map.

    Args:
        class_names: Name of every class index, background first.
        judged_names: Names of what is judged: the classes but the background, or regions.
        members: Class indices of each of these.
        ignore_index: Voxels with this index are left out; None is none.
    """

    class_names: Sequence[str]
    judged_names: Sequence[str]
    members: Sequence[Sequence[int]]
    ignore_index: int | None = None

    @classmethod
    def of_plan(cls, plan: Any) -> Judged:
        """What a run with this plan is judged by."""
        members = [(i,) for i in range(1, plan.num_classes)] if plan.regions is None else plan.regions
        return cls(plan.class_names, plan.judged_names, members, plan.ignore_index)

    def structures(self, names: Sequence[str]) -> list[Structure]:
        """What names of `inference.keep_largest` mean."""
        return find_structures(names, self.class_names, dict(zip(self.judged_names, self.members, strict=True)))

    def dice(self, prediction: np.ndarray, label: np.ndarray, annotated: Sequence[bool] | None = None) -> np.ndarray:
        """Dice of everything that is judged, [J]; NaN where it is in neither map, or was not annotated."""
        counts = confusion_matrix(prediction, label, len(self.class_names), ignore_index=self.ignore_index)
        true, predicted = counts.sum(axis=1), counts.sum(axis=0)
        scores = np.full(len(self.members), np.nan)
        for position, group in enumerate(self.members):
            if annotated is not None and not annotated[position]:
                continue
            chosen = list(group)
            size = true[chosen].sum() + predicted[chosen].sum()
            if size:
                scores[position] = 2 * counts[np.ix_(chosen, chosen)].sum() / size
        return scores


@dataclass(frozen=True)
class Trial:
    """One thing that was tried.

    Args:
        keep_largest: Of what only the largest component was kept.
        before: Mean Dice of everything judged without it, by name.
        after: The same with it.
        taken: Whether it is part of the choice.
    """

    keep_largest: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    taken: bool

    @property
    def verdict(self) -> str:
        """Why it was taken or not, in a few words."""
        hurt = [name for name in self.before if name != "mean" and self.after[name] < self.before[name]]
        if self.taken:
            return "taken"
        if hurt:
            return f"lowers {', '.join(hurt)}"
        return "changes nothing for the better"


@dataclass(frozen=True)
class Choice:
    """What post-processing was chosen.

    Args:
        keep_largest: As `inference.keep_largest`; empty when nothing helps.
        before: Mean Dice of everything judged without it, by name.
        after: The same with it.
        tried: What was tried, in order.
        num_cases: Cases that decided.
    """

    keep_largest: tuple[str, ...]
    before: Mapping[str, float]
    after: Mapping[str, float]
    tried: tuple[Trial, ...]
    num_cases: int

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        tried = [
            {
                "keep_largest": trial.keep_largest,
                "before": dict(trial.before),
                "after": dict(trial.after),
                "verdict": trial.verdict,
            }
            for trial in self.tried
        ]
        return {
            "num_cases": self.num_cases,
            "dice_before": dict(self.before),
            "dice_after": dict(self.after),
            "tried": tried,
        }


def choose_components(cases: Callable[[], Iterable[HeldOut]], judged: Judged) -> Choice:
    """Choose of which classes or regions only the largest component is kept.

    Args:
        cases: Gives the cases that were held out, from the first one at every call; read one at a time.
        judged: What is judged.
    """
    names = list(judged.judged_names)
    alone = len(judged.class_names) == 2  # all foreground and its only class are the same
    tables: dict[tuple[str, ...], list[np.ndarray]] = {}
    for case in cases():
        plain = judged.dice(*case)
        _add(tables, (), plain)
        start: list[tuple[tuple[str, ...], HeldOut, np.ndarray]] = [((), case, plain)]
        if not alone:
            start.append(_vary((FOREGROUND,), case, plain, judged, tables))
        for done, base, scores in start:
            for name in names:
                _vary((*done, name), base, scores, judged, tables)
    if not tables:
        return Choice((), {}, {}, (), 0)
    means = {words: _means(np.array(rows), judged) for words, rows in tables.items()}
    tried: list[Trial] = []
    base_words: tuple[str, ...] = ()
    if not alone:
        tried.append(_try(FOREGROUND, means[()], means[(FOREGROUND,)]))
        base_words = (FOREGROUND,) if tried[0].taken else ()
    tried += [_try(name, means[base_words], means[(*base_words, name)]) for name in names]
    chosen = tuple(trial.keep_largest for trial in tried if trial.taken)
    after = means[chosen] if chosen in means else _together(cases, chosen, judged)
    return Choice(chosen, means[()], after, tuple(tried), len(tables[()]))


def _vary(
    words: tuple[str, ...],
    base: HeldOut,
    scores: np.ndarray,
    judged: Judged,
    tables: dict[tuple[str, ...], list[np.ndarray]],
) -> tuple[tuple[str, ...], HeldOut, np.ndarray]:
    """Apply the last word to a predicted label map and judge it; most often nothing changes."""
    changed = _keep(base, judged.structures(words[-1:]))
    found = scores if changed.prediction is base.prediction else judged.dice(*changed)
    _add(tables, words, found)
    return words, changed, found


def _keep(case: HeldOut, structures: Sequence[Structure]) -> HeldOut:
    return case._replace(prediction=keep_largest_components(case.prediction, structures))


def _add(tables: dict[tuple[str, ...], list[np.ndarray]], words: tuple[str, ...], scores: np.ndarray) -> None:
    tables.setdefault(words, []).append(scores)


def _means(table: np.ndarray, judged: Judged) -> dict[str, float]:
    """Mean over the cases [N, J] in which each is defined, and over the names; NaN where it never is."""
    means: dict[str, float] = {}
    for name, column in zip(judged.judged_names, table.T, strict=True):
        defined = column[~np.isnan(column)]
        means[name] = float(defined.mean()) if defined.size else float("nan")
    defined_means = [value for value in means.values() if not np.isnan(value)]
    means["mean"] = float(np.mean(defined_means)) if defined_means else float("nan")
    return means


def _try(name: str, before: Mapping[str, float], after: Mapping[str, float]) -> Trial:
    better = after["mean"] > before["mean"]
    hurts = any(after[each] < before[each] for each in before)
    return Trial(name, before, after, taken=better and not hurts)


def _together(cases: Callable[[], Iterable[HeldOut]], chosen: Sequence[str], judged: Judged) -> dict[str, float]:
    structures = judged.structures(chosen)
    rows = [judged.dice(*_keep(case, structures)) for case in cases()]
    return _means(np.array(rows), judged)
