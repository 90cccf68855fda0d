from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import StandardScaler

from medtrain.data.sample import Sample
from medtrain.data.tabular import MISSING_CODE, UNSEEN_CODE, TabularEncoder, fit_tabular
from medtrain.errors import DataError


def sample(*numeric: float | None, cat: tuple[str | None, ...] = ()) -> Sample:
    return Sample("s", (), (), "p", tuple(numeric), cat)


def test_numbers_by_hand() -> None:
    train = [sample(1.0), sample(3.0), sample(None), sample(8.0)]
    encoder = fit_tabular(train, numeric=["age"], categorical=[])
    # of 1, 3, 8: median 3, mean 4, population variance (9 + 1 + 16) / 3
    scale = (26 / 3) ** 0.5
    arrays = encoder.transform([sample(None), sample(8.0)])
    np.testing.assert_allclose(arrays.numeric, [[-1 / scale, 1], [4 / scale, 0]], rtol=1e-6)
    assert arrays.numeric.dtype == np.float32
    assert arrays.observed.tolist() == [[False], [True]]
    assert encoder.numeric_names == ("age", "age_missing")
    assert encoder.num_numeric == 2


def test_numbers_without_indicator_and_scaling() -> None:
    train = [sample(1.0, 7.0), sample(3.0, 7.0), sample(8.0, None)]
    encoder = fit_tabular(train, numeric=["a", "b"], categorical=[], missing="median", standardize=False)
    assert encoder.transform([sample(None, 5.0)]).numeric.tolist() == [[3.0, 5.0]]
    assert encoder.numeric_names == ("a", "b")


def test_a_constant_column_becomes_zero() -> None:
    encoder = fit_tabular([sample(0.1)] * 7, numeric=["a"], categorical=[], missing="median")
    np.testing.assert_allclose(encoder.transform([sample(0.1), sample(1.1)]).numeric, [[0], [1]], atol=1e-12)


def test_categories_by_hand() -> None:
    train = [sample(cat=("m", "left")), sample(cat=("f", None)), sample(cat=(None, "right"))]
    encoder = fit_tabular(train, numeric=[], categorical=["sex", "side"])
    later = [sample(cat=("f", "right")), sample(cat=("x", None)), sample(cat=(None, "both"))]
    arrays = encoder.transform(later)
    assert (MISSING_CODE, UNSEEN_CODE) == (0, 1)
    assert arrays.categorical.tolist() == [[2, 3], [1, 0], [0, 1]]
    assert arrays.categorical.dtype == np.int64
    assert arrays.observed.tolist() == [[True, True], [True, False], [False, True]]
    assert arrays.numeric.shape == (3, 0)
    assert [state.num_codes for state in encoder.categorical] == [4, 4]


def test_the_same_as_scikit_learn(rng: np.random.Generator) -> None:
    values = rng.normal(50, 20, (200, 3))
    values[rng.random(values.shape) < 0.2] = np.nan
    rows = [sample(*(None if np.isnan(v) else float(v) for v in row)) for row in values]
    encoder = fit_tabular(rows[:150], numeric=["a", "b", "c"], categorical=[])
    imputer = SimpleImputer(strategy="median", add_indicator=True).fit(values[:150])
    scaler = StandardScaler().fit(values[:150])  # ignores NaN, as we do
    expected = imputer.transform(values)
    expected[:, :3] = scaler.transform(expected[:, :3])
    np.testing.assert_allclose(encoder.transform(rows).numeric, expected, atol=1e-5)


def test_other_parts_change_nothing_and_the_state_is_plain(rng: np.random.Generator) -> None:
    train = [sample(float(v), cat=("ab"[i % 2],)) for i, v in enumerate(rng.normal(size=20))]
    encoder = fit_tabular(train, numeric=["v"], categorical=["c"])
    before = encoder.transform(train)
    encoder.transform([sample(1e9, cat=("new",))])
    restored = TabularEncoder.from_json(json.loads(json.dumps(encoder.to_json())))
    assert restored == encoder
    after = restored.transform(train)
    for name in ("numeric", "categorical", "observed"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))


def test_columns_without_values_are_listed_at_once() -> None:
    train = [sample(None, 1.0, cat=(None,))]
    with pytest.raises(DataError) as error:
        fit_tabular(train, numeric=["age", "bmi"], categorical=["site"])
    assert [str(problem) for problem in error.value.problems] == [
        "age: the column has no value in the training part",
        "site: the column has no value in the training part",
    ]
