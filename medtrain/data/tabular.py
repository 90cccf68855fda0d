"""Tabular values as numbers a network takes: fitted on the training part, kept as JSON, applied to every part."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from medtrain.data.sample import Sample
from medtrain.errors import DataError, Problem

MISSING_CODE = 0
"""Code of a category that is missing."""

UNSEEN_CODE = 1
"""Code of a category that the training part does not have."""

_FIRST_CODE = 2


@dataclass(frozen=True)
class NumericState:
    """What was learnt of one numeric column.

    Args:
        column: Its name.
        fill: What stands for a missing value: the training part's median.
        mean: Subtracted.
        scale: Divided by; 1 where all values are the same.
    """

    column: str
    fill: float
    mean: float
    scale: float


@dataclass(frozen=True)
class CategoryState:
    """What was learnt of one categorical column.

    Args:
        column: Its name.
        categories: Those of the training part, sorted; the first has the code 2, since 0 is missing and 1 unseen.
    """

    column: str
    categories: tuple[str, ...]

    @property
    def num_codes(self) -> int:
        """Rows that an embedding of the column needs."""
        return _FIRST_CODE + len(self.categories)


@dataclass(frozen=True)
class TabularArrays:
    """Encoded values of N samples.

    Args:
        numeric: [N, Fn] float32, without NaN; with indicators [N, 2 Fn], the second half 1 where a value was missing.
        categorical: [N, Fc] int64 codes.
        observed: [N, Fn + Fc] bool: whether the value was there (an unseen category was).
    """

    numeric: np.ndarray
    categorical: np.ndarray
    observed: np.ndarray


@dataclass(frozen=True)
class TabularEncoder:
    """Fitted encoding of tabular values. Made by `fit_tabular`, or `from_json` of what a checkpoint keeps.

    Args:
        numeric: One state per numeric column.
        categorical: One state per categorical column.
        indicators: Whether missing numbers are told in columns of their own.
    """

    numeric: tuple[NumericState, ...]
    categorical: tuple[CategoryState, ...]
    indicators: bool

    @property
    def num_numeric(self) -> int:
        """Columns of `TabularArrays.numeric`."""
        return len(self.numeric) * (2 if self.indicators else 1)

    @property
    def numeric_names(self) -> tuple[str, ...]:
        """Names of those columns."""
        names = tuple(state.column for state in self.numeric)
        return (*names, *(f"{name}_missing" for name in names)) if self.indicators else names

    def transform(self, samples: Sequence[Sample]) -> TabularArrays:
        """Encode samples of any part.

        Args:
            samples: With as many values as the columns fitted on.
        """
        numeric = np.zeros((len(samples), len(self.numeric)), dtype=np.float64)
        missing = np.zeros(numeric.shape, dtype=bool)
        categorical = np.zeros((len(samples), len(self.categorical)), dtype=np.int64)
        codes = [{name: _FIRST_CODE + i for i, name in enumerate(state.categories)} for state in self.categorical]
        for row, sample in enumerate(samples):
            assert len(sample.numeric) == len(self.numeric), sample.sample_id
            assert len(sample.categorical) == len(self.categorical), sample.sample_id
            for column, value in enumerate(sample.numeric):
                missing[row, column] = value is None
                numeric[row, column] = self.numeric[column].fill if value is None else value
            for column, text in enumerate(sample.categorical):
                categorical[row, column] = MISSING_CODE if text is None else codes[column].get(text, UNSEEN_CODE)
        numeric -= [state.mean for state in self.numeric]
        numeric /= [state.scale for state in self.numeric]
        columns = [numeric, missing] if self.indicators else [numeric]
        return TabularArrays(
            numeric=np.concatenate(columns, axis=1).astype(np.float32),
            categorical=categorical,
            observed=np.concatenate([~missing, categorical != MISSING_CODE], axis=1),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data for the checkpoint; `from_json` restores the encoder exactly."""
        return {
            "indicators": self.indicators,
            "numeric": [
                {"column": state.column, "fill": state.fill, "mean": state.mean, "scale": state.scale}
                for state in self.numeric
            ],
            "categorical": [
                {"column": state.column, "categories": list(state.categories)} for state in self.categorical
            ],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TabularEncoder:
        """Restore an encoder from `to_json`."""
        return cls(
            numeric=tuple(
                NumericState(str(item["column"]), float(item["fill"]), float(item["mean"]), float(item["scale"]))
                for item in data["numeric"]
            ),
            categorical=tuple(
                CategoryState(str(item["column"]), tuple(str(name) for name in item["categories"]))
                for item in data["categorical"]
            ),
            indicators=bool(data["indicators"]),
        )


def fit_tabular(
    train: Sequence[Sample],
    *,
    numeric: Sequence[str],
    categorical: Sequence[str],
    missing: Literal["indicator", "median"] = "indicator",
    standardize: bool = True,
) -> TabularEncoder:
    """Learn the encoding from the training part; nothing else is to be given here.

    Args:
        train: Samples of the training part.
        numeric: Names of the numeric columns, in the order of `Sample.numeric`.
        categorical: Names of the categorical columns, in the order of `Sample.categorical`.
        missing: A missing number becomes the median; `indicator` adds a column per numeric column that tells so.
        standardize: Whether numbers are brought to mean 0 and standard deviation 1, over the values that are there.

    Raises:
        DataError: Columns without any value in the training part, all of them.
    """
    problems: list[Problem] = []
    numbers: list[NumericState] = []
    for index, name in enumerate(numeric):
        values = [value for sample in train if (value := sample.numeric[index]) is not None]
        if values:
            numbers.append(_fit_numeric(name, values, standardize))
        else:
            problems.append(_without_values(name))
    states: list[CategoryState] = []
    for index, name in enumerate(categorical):
        names = sorted({text for sample in train if (text := sample.categorical[index]) is not None})
        if names:
            states.append(CategoryState(name, tuple(names)))
        else:
            problems.append(_without_values(name))
    if problems:
        raise DataError(problems)
    return TabularEncoder(tuple(numbers), tuple(states), indicators=missing == "indicator")


def _fit_numeric(name: str, values: Sequence[float], standardize: bool) -> NumericState:
    fill = float(statistics.median(values))
    if not standardize:
        return NumericState(name, fill, mean=0.0, scale=1.0)
    array = np.array(values, dtype=np.float64)
    mean, scale = float(array.mean()), float(array.std())
    # rounding makes the deviation of equal values tiny instead of zero
    constant = scale <= 1e-12 * max(1.0, abs(mean))
    return NumericState(name, fill, mean=mean, scale=1.0 if constant else scale)


def _without_values(name: str) -> Problem:
    return Problem(where=name, message="the column has no value in the training part", hint="leave this column out")
