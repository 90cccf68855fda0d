"""What is predicted: how outputs of a model become predictions, rows of a table and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import entr, expit
from torch import Tensor

from medtrain.errors import UsageError
from medtrain.inference.images import ImageInference
from medtrain.metrics.spec import MetricSpec
from medtrain.tasks.base import Record
from medtrain.tasks.gallery import Caption

Decision = Mapping[str, float]
"""What was chosen on the validation part, by key: `temperature`, `threshold/<class>`."""

NO_DECISION: Decision = {}

Rows = list[dict[str, Any]]


FOR_THE_PREDICTION, FOR_THE_TRUTH = "for the prediction", "for the truth"
"""What the evidence of a class can be asked for."""


class Outcome:
    """What the samples are judged on: a class, several labels, a grade, graded zones, numbers, a time to an event.

    Predictions are numbers [N, P] that may be averaged, such as probabilities; they come from what the loss says that
    the model's outputs mean.
    """

    num_predictions: int
    """P, how many numbers are predicted of a sample."""

    class_names: tuple[str, ...] = ()
    """Names of the classes by index; empty for numbers."""

    takes_threshold: bool = False
    """Whether a least probability of being positive means something here."""

    takes_temperature: bool = False
    """Whether the predictions are probabilities that can be calibrated."""

    judged_by: str = "quality"
    """What `scores` are, in words; where these begin with `error`, scores are negative errors."""

    scores_stand_alone: bool = True
    """Whether the score of a sample does not depend on the other samples."""

    def runtime(self) -> dict[str, Any]:
        """What models may ask for besides the size of the output."""
        return {}

    def flatten(self, predicted: Tensor) -> Tensor:
        """Predictions [B, P].

        Args:
            predicted: What `loss.predict` gives: probabilities [B, T, K], or numbers [B, T].
        """
        return predicted.flatten(1)

    def rows(self, predictions: np.ndarray, target: np.ndarray | None, decision: Decision) -> Rows:
        """One row of plain values per sample.

        Args:
            predictions: [N, P], not calibrated.
            target: [N, T], NaN where unlabelled; None where there is none.
            decision: What was chosen on the validation part.
        """
        raise NotImplementedError

    def read(self, records: Sequence[Record]) -> np.ndarray:
        """The predictions [N, P] in records."""
        raise NotImplementedError

    def specs(self) -> dict[str, MetricSpec]:
        """The metrics of `summarize`, the default monitor first."""
        raise NotImplementedError

    def summarize(self, records: Sequence[Record], decision: Decision) -> dict[str, float]:
        """The metrics of a whole split.

        Args:
            records: Rows of every sample.
            decision: What was chosen on the validation part.
        """
        raise NotImplementedError

    def goodness(self, metrics: Mapping[str, float]) -> float:
        """The default monitor without a unit, at most 1, so that it can be averaged with that of other outcomes.

        Args:
            metrics: Of `summarize`.
        """
        return metrics[next(iter(self.specs()))]

    def scores(self, records: Sequence[Record]) -> np.ndarray:
        """How well each sample was predicted [N], lower is worse; NaN where unlabelled."""
        raise NotImplementedError

    def fit(self, records: Sequence[Record], inference: ImageInference) -> dict[str, float]:
        """Choose temperature and thresholds on validation records, as far as asked for."""
        return {}

    def tables(self, records: Sequence[Record]) -> dict[str, Rows]:
        """Further tables of a final evaluation by name."""
        return {}

    def doubts(self, records: Sequence[Record], decision: Decision) -> np.ndarray:
        """How unsure the model is of each sample [N], higher is less sure; NaN where that is not known."""
        return np.full(len(records), np.nan)

    def printed(self, names: Iterable[str]) -> list[str]:
        """The metrics that are worth printing: those that say the same as another one are left to `summary.json`."""
        return list(names)

    def constant(self, records: Sequence[Record]) -> str:
        """What is predicted of every sample alike, though their labels differ, in words; empty as a rule."""
        return ""

    def questions(self, records: Sequence[Record]) -> dict[str, np.ndarray]:
        """What can be asked of a picture of the evidence, by name: for which targets [N, T] does it speak?

        NaN leaves a target out. Targets that are numbers are asked for with any number: more of it is meant.
        """
        raise NotImplementedError

    def caption(self, record: Record) -> Caption:
        """What is written below the picture of a sample."""
        named = {**record, **self.readable(record)}
        said = ", ".join(_short(named[key]) for key in named if key.split("/")[0] == "predicted")
        true = ", ".join(_short(named[key]) for key in named if key.split("/")[0] == "label")
        return Caption(truth=true, predicted=said)

    def charts(self, records: Sequence[Record], decision: Decision) -> dict[str, np.ndarray]:
        """Pictures of all records by name, uint8 [H, W, 3]."""
        return {}

    def readable(self, record: Record) -> dict[str, Any]:
        """Names for class indices of a record: `predicted`, `label`."""
        return {}

    def decide(self, records: Sequence[Record], decision: Decision) -> list[Record]:
        """Records under a decision, made of records that were made without any."""
        rows = self.rows(self.read(records), None, decision) if records else []
        return [{**record, **row} for record, row in zip(records, rows, strict=True)]


class Table(Sequence[Record]):
    """Records whose columns are looked up once, however often rows are drawn from them.

    Args:
        records: All of them, in order.
        chosen: Indices of the rows that this table has; None for all.
        prefix: Of the columns that this table has; it is left out of their names.
    """

    def __init__(self, records: Sequence[Record], *, chosen: np.ndarray | None = None, prefix: str = "") -> None:
        self.records = records
        self.chosen = chosen
        self.prefix = prefix
        self._columns: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.records) if self.chosen is None else len(self.chosen)

    def __getitem__(self, index: Any) -> Any:
        record = self.records[index if self.chosen is None else int(self.chosen[index])]
        start = len(self.prefix)
        return {key[start:]: value for key, value in record.items() if key.startswith(self.prefix)}

    def take(self, chosen: np.ndarray) -> Table:
        """Some of the rows of a table of all, in any order, maybe several times."""
        assert self.chosen is None, "rows are drawn from all"
        return self._view(chosen, self.prefix)

    def part(self, name: str) -> Table:
        """The columns that begin with a name and a slash, without these."""
        return self._view(self.chosen, f"{self.prefix}{name}/")

    def column(self, key: str) -> np.ndarray:
        """A column as float64 [N]; NaN where a record lacks it."""
        name = self.prefix + key
        if name not in self._columns:
            self._columns[name] = np.array([record.get(name, np.nan) for record in self.records], dtype=np.float64)
        return self._columns[name] if self.chosen is None else self._columns[name][self.chosen]

    def _view(self, chosen: np.ndarray | None, prefix: str) -> Table:
        view = Table(self.records, chosen=chosen, prefix=prefix)
        view._columns = self._columns
        return view


def column(records: Sequence[Record], key: str) -> np.ndarray:
    """A column of records as float64 [N]; NaN where a record lacks it."""
    return (records if isinstance(records, Table) else Table(records)).column(key)


def columns(records: Sequence[Record], keys: Iterable[str]) -> np.ndarray:
    """Columns of records as float64 [N, K]."""
    return np.stack([column(records, key) for key in keys], axis=1)


def one_by_one(names: Sequence[str], values: np.ndarray) -> dict[str, np.ndarray]:
    """Questions about one target after the other.

    Args:
        names: Of T targets.
        values: What is asked of each [N, T].
    """
    alone = np.eye(len(names), dtype=bool)
    return {name: np.where(alone[index], values, np.nan) for index, name in enumerate(names)}


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def only_value(predicted: np.ndarray, labels: np.ndarray) -> float | None:
    """The one value that is predicted throughout; None if there are several, or no two labels differ.

    Args:
        predicted: [N].
        labels: [N], NaN where unlabelled.
    """
    known = ~np.isnan(labels)
    if len(np.unique(labels[known])) < 2 or len(np.unique(predicted[known])) != 1:
        return None
    return float(predicted[known][0])


def doubt_at(probs: np.ndarray, threshold: float | np.ndarray) -> np.ndarray:
    """How near probabilities are to the threshold above which they are called positive, highest there.

    The logit is shifted by that of the threshold; the entropy of what it then stands for is the binary entropy of the
    probability where the threshold is 0.5.

    Args:
        probs: Any shape.
        threshold: One, or several that broadcast.
    """
    shifted = expit(logit(probs) - logit(np.asarray(threshold, dtype=np.float64)))
    return np.asarray(entr(shifted) + entr(1 - shifted))


def label_or_nan(value: float) -> int | float:
    """A class index as an int, NaN where unlabelled."""
    return float("nan") if np.isnan(value) else int(value)


def logit(probs: np.ndarray) -> np.ndarray:
    """The inverse of the sigmoid; probabilities of 0 and 1 count as the nearest numbers within."""
    inside = np.clip(probs, np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg)
    return np.log(inside) - np.log1p(-inside)


def log_probs(probs: np.ndarray) -> np.ndarray:
    """Logarithms, which are logits of the softmax; a probability of 0 counts as the smallest number."""
    return np.log(np.maximum(probs, np.finfo(np.float64).tiny))


_TASK_OF = {
    "classes": "choose task=classification, multilabel, ordinal or zones for this loss",
    "numbers": "choose task=regression for this loss",
    "survival": "choose task=survival for this loss",
    "mixed": "choose task=multitask for this loss",
    "model": "choose task=generic for this loss",
}
_LOSS_OF = {
    "classes": "loss=ce, bce, focal or ordinal",
    "numbers": "loss=huber, mse or mae",
    "survival": "loss=cox or discrete_survival",
    "mixed": "loss=multitask",
}


def require_kind(kind: str, judged: Sequence[str]) -> None:
    """See that a task can judge what a loss learns.

    Args:
        kind: Of the loss.
        judged: The kinds that the task can judge.

    Raises:
        UsageError: It cannot; names the task that can, and losses for this one.
    """
    if kind not in judged:
        raise UsageError(
            f"this task judges {' or '.join(judged)}, but the loss is one of {kind}",
            hint=f"{_TASK_OF[kind]}, or for this task {_LOSS_OF[judged[0]]}",
        )


def one_target(targets: Sequence[Any], task: str) -> Any:
    """The only target.

    Raises:
        UsageError: There are several.
    """
    if len(targets) != 1:
        names = ", ".join(target.target_name for target in targets) or "none"
        raise UsageError(
            f"task={task} predicts one target; the data have {len(targets)}: {names}",
            hint="name one target in data, or choose task=multitask",
        )
    return targets[0]


def classes_of(target: Any, task: str) -> tuple[str, ...]:
    """The class names of a target.

    Raises:
        UsageError: It is a number, or has too few classes.
    """
    if target.classes is None:
        raise UsageError(
            f"task={task} needs classes, but {target.target_name} is a number",
            hint="choose task=regression, or name its classes in data",
        )
    if len(target.classes) < 2:
        raise UsageError(f"{target.target_name} has {len(target.classes)} class(es); task={task} needs 2")
    return tuple(target.classes)
