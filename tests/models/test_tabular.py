"""The network for tables: missing values, unseen categories, and the model of the table alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medtrain import registry
from medtrain.errors import UsageError
from medtrain.models.tabular import CategoryEmbedding, MissingValues, TableEncoder, TableTokens, observed_columns


def make(**settings: Any) -> TableEncoder:
    torch.manual_seed(1)
    return TableEncoder(**{"num_numeric": 2, "category_sizes": (5, 4), **settings}).eval()


def table(rows: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    numeric = torch.randn(rows, 2, generator=generator)
    categorical = torch.randint(2, 4, (rows, 2), generator=generator)
    return numeric, categorical, torch.ones(rows, 4, dtype=torch.bool)


def test_missing_numbers_are_learned() -> None:
    layer = MissingValues(2)
    with torch.no_grad():
        layer.values.copy_(torch.tensor([7.0, -1.0]))
    result = layer(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[True, False], [False, True]]))
    assert result.tolist() == [[1.0, -1.0], [7.0, 4.0]]
    result.sum().backward()
    assert layer.values.grad is not None
    assert layer.values.grad.tolist() == [1.0, 1.0]


def test_an_unseen_category_is_the_mean_of_the_known() -> None:
    layer = CategoryEmbedding(5, 2)
    with torch.no_grad():
        layer.known.copy_(torch.tensor([[1.0, 0.0], [2.0, 3.0], [6.0, 0.0]]))
        layer.missing.copy_(torch.tensor([0.5, 0.25]))
    # codes: missing, unseen, the three known
    result = layer(torch.arange(5))
    assert result.tolist() == [[3.5, 1.25], [3.0, 1.0], [1.0, 0.0], [2.0, 3.0], [6.0, 0.0]]
    hidden = layer(torch.tensor([3, 3]), torch.tensor([True, False]))
    assert hidden.tolist() == [[2.0, 3.0], [3.5, 1.25]]


def test_training_moves_the_vector_of_the_unseen() -> None:
    # it would stay at its random start if it had a vector of its own: the training part has no unseen category
    layer = CategoryEmbedding(4, 2)
    before = layer(torch.tensor([1])).detach().clone()
    layer(torch.tensor([2, 3])).sum().backward()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter -= 0.1 * (0.0 if parameter.grad is None else parameter.grad)
    torch.testing.assert_close(layer(torch.tensor([1])), before - 0.1)


def test_what_is_not_observed_has_no_influence() -> None:
    encoder = make()
    numeric, categorical, observed = table()
    observed[0, 0] = observed[1, 2] = False
    expected = encoder(numeric, categorical, observed)
    numeric[0, 0], categorical[1, 0] = float("nan"), 0
    assert torch.equal(encoder(numeric, categorical, observed), expected)
    observed[0, 0] = observed[1, 2] = True
    numeric[0, 0], categorical[1, 0] = 3.0, 4
    assert not torch.allclose(encoder(numeric, categorical, observed)[0], expected[0])
    assert not torch.allclose(encoder(numeric, categorical, observed)[1], expected[1])


def test_everything_is_observed_without_the_mask() -> None:
    encoder = make()
    numeric, categorical, observed = table()
    assert torch.equal(encoder(numeric, categorical), encoder(numeric, categorical, observed))


def test_columns_that_tell_of_missing_values_are_always_there() -> None:
    observed = torch.tensor([[True, False, True], [False, False, True]])
    # two numbers and their two indicators, one category
    assert observed_columns(observed, 4, 1) is not None
    expected = [[True, False, True, True, True], [False, False, True, True, True]]
    assert observed_columns(observed, 4, 1).tolist() == expected  # type: ignore[union-attr]
    assert observed_columns(observed, 2, 1) is observed
    assert observed_columns(None, 2, 1) is None
    with pytest.raises(AssertionError, match=r"3 observed of 3 \+ 1 columns"):
        observed_columns(observed, 3, 1)


def test_the_encoder_of_medtrains_data_fits() -> None:
    from medtrain.data.sample import Sample
    from medtrain.data.tabular import fit_tabular

    rows = ((1.0, "a"), (None, "b"), (3.0, None))
    samples = [
        Sample(str(index), images=(), targets=(0,), group="p", numeric=(value, 1.0), categorical=(text,))
        for index, (value, text) in enumerate(rows)
    ]
    fitted = fit_tabular(samples, numeric=["x", "y"], categorical=["c"])
    arrays = fitted.transform(samples)
    encoder = TableEncoder(
        num_numeric=fitted.num_numeric, category_sizes=[state.num_codes for state in fitted.categorical]
    )
    result = encoder(*(torch.from_numpy(part) for part in (arrays.numeric, arrays.categorical, arrays.observed)))
    assert result.shape == (3, 32)
    assert result.isfinite().all()


@pytest.mark.parametrize(("num_numeric", "sizes"), [(2, ()), (0, (5, 4))])
def test_one_kind_of_column_is_enough(num_numeric: int, sizes: tuple[int, ...]) -> None:
    encoder = make(num_numeric=num_numeric, category_sizes=sizes)
    tokens = TableTokens(num_numeric=num_numeric, category_sizes=sizes, dim=8)
    numeric, categorical, _ = table()
    observed = torch.ones(6, num_numeric + len(sizes), dtype=torch.bool)
    for module in (encoder, tokens):
        module(numeric, categorical, observed).sum().backward()
        assert all(parameter.grad is not None for parameter in module.parameters())
    assert tokens(numeric, categorical, observed).shape == (6, 2, 8)


def test_tokens_are_one_for_each_column() -> None:
    tokens = TableTokens(num_numeric=2, category_sizes=(5, 4), dim=8)
    numeric, categorical, observed = table()
    expected = tokens(numeric, categorical, observed)
    assert expected.shape == (6, tokens.count, 8) == (6, 4, 8)
    numeric[:, 1] += 1.0
    changed = (tokens(numeric, categorical, observed) != expected).any(2).any(0)
    assert changed.tolist() == [False, True, False, False]
    categorical[:, 0] = 4
    observed[:, 3] = False
    changed = (tokens(numeric, categorical, observed) != expected).any(2).any(0)
    assert changed.tolist() == [False, True, True, True]


def test_layers_have_the_sizes_asked_for() -> None:
    encoder = make(dims=(10, 7), drop=0.3)
    # embeddings of 1.6 * 5^0.56 = 3.9 and 1.6 * 4^0.56 = 3.5 numbers
    linear = [layer for layer in encoder.modules() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(2 + 4 + 3, 10), (10, 7)]
    assert [layer.p for layer in encoder.modules() if isinstance(layer, nn.Dropout)] == [0.3, 0.3]
    assert encoder.num_features == 7
    residual = make(arch="resnet", dims=(10,))
    assert sum(isinstance(layer, nn.Linear) for layer in residual.modules()) == 1 + 3 * 2
    assert residual(*table()).shape == (6, 10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_numeric": 0, "category_sizes": ()}, "the data have no tabular columns"),
        ({"dims": ()}, r"model\.table_dims must be positive sizes, got \[\]"),
        ({"arch": "resnet", "dims": (8, 4)}, r"table_arch=resnet has one size for all of its layers"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(**settings)


def test_the_model_of_the_table_alone() -> None:
    model = registry.build(
        "model", {"name": "tabular", "table_dims": [16]}, num_numeric=2, category_sizes=(5, 4), num_outputs=3
    )
    numeric, categorical, observed = table()
    batch = {"numeric": numeric, "categorical": categorical, "observed": observed}
    assert model(**{name: batch[name] for name in model.inputs}).shape == (6, 3)
    with pytest.raises(UsageError, match="no tabular columns"):
        registry.build("model", {"name": "tabular"}, num_numeric=0, category_sizes=(), num_outputs=3)
