"""A network for tables: numeric and categorical columns of which a sample may lack some, or all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medtrain.errors import UsageError
from medtrain.models.ordinal_head import HeadName, build_head
from medtrain.registry import Range, register

TableArch = Literal["mlp", "resnet"]

_RESIDUAL_BLOCKS = 3
_RESERVED_CODES = 2


class TableEncoder(nn.Module):
    """Turns the columns of a table into features.

    A missing number is a learned value of its column (the mean before training), a category a learned vector. The
    training part has no unseen category, so no vector of its own could be trained: it is the mean of the known
    ones. A missing category is that mean plus a learned difference.

    Args:
        num_numeric: Numeric columns N, those that tell missing values included.
        category_sizes: Codes of each categorical column, 0 for missing and 1 for unseen included.
        arch: `mlp` (Linear, LayerNorm, ReLU, dropout for each size) or `resnet` (a Linear to the last size, then 3
            residual blocks; Y. Gorishniy et al., 2021).
        dims: Sizes of the layers; the last is the number of features.
        drop: Dropout after each layer.

    Raises:
        UsageError: There are no columns, or no sizes.
    """

    def __init__(
        self,
        *,
        num_numeric: int,
        category_sizes: Sequence[int],
        arch: TableArch = "mlp",
        dims: Sequence[int] = (64, 64, 32),
        drop: float = 0.2,
    ) -> None:
        super().__init__()
        if not num_numeric and not category_sizes:
            raise UsageError(
                "the data have no tabular columns",
                hint="name them: `data.numeric=[age]` or `data.categorical=[sex]`, or use a model of images alone",
            )
        if not dims or any(size < 1 for size in dims):
            raise UsageError(f"model.table_dims must be positive sizes, got {list(dims)}", hint="e.g. [64, 64, 32]")
        if arch == "resnet" and len(dims) > 1:
            raise UsageError(
                f"model.table_arch=resnet has one size for all of its layers, got model.table_dims={list(dims)}",
                hint=f"set `model.table_dims=[{dims[-1]}]`",
            )
        self.num_numeric = num_numeric
        self.num_features = dims[-1]
        self.numeric = MissingValues(num_numeric) if num_numeric else None
        self.categories = nn.ModuleList(CategoryEmbedding(size, _embedding_dim(size)) for size in category_sizes)
        width = num_numeric + sum(embedding.dim for embedding in self.categories)  # type: ignore[misc]
        layers = _mlp(width, dims, drop) if arch == "mlp" else _resnet(width, dims[0], drop)
        self.layers = nn.Sequential(*layers)

    def forward(
        self, numeric: Tensor | None = None, categorical: Tensor | None = None, observed: Tensor | None = None
    ) -> Tensor:
        """Features [B, F].

        Args:
            numeric: [B, N] standardised numbers.
            categorical: [B, M] codes.
            observed: [B, N + M] or, where the second half of the numbers tells which are missing, [B, N / 2 + M]:
                whether each value is there; None if all are.
        """
        there = observed_columns(observed, self.num_numeric, len(self.categories))
        parts = []
        if self.numeric is not None:
            assert numeric is not None
            parts.append(self.numeric(numeric, None if there is None else there[:, : self.num_numeric]))
        for index, embedding in enumerate(self.categories):
            assert categorical is not None
            shown = None if there is None else there[:, self.num_numeric + index]
            parts.append(embedding(categorical[:, index], shown))
        return self.layers(torch.cat(parts, 1))


class TableTokens(nn.Module):
    """Turns each column of a table into a token (the feature tokenizer of Y. Gorishniy et al., 2021).

    Args:
        num_numeric: Numeric columns N, those that tell missing values included.
        category_sizes: Codes of each categorical column, 0 for missing and 1 for unseen included.
        dim: Features of a token.
    """

    def __init__(self, *, num_numeric: int, category_sizes: Sequence[int], dim: int) -> None:
        super().__init__()
        self.num_numeric = num_numeric
        self.count = num_numeric + len(category_sizes)
        self.numeric = TokenizedNumbers(num_numeric, dim) if num_numeric else None
        self.categories = nn.ModuleList(CategoryEmbedding(size, dim) for size in category_sizes)

    def forward(
        self, numeric: Tensor | None = None, categorical: Tensor | None = None, observed: Tensor | None = None
    ) -> Tensor:
        """Tokens [B, N + M, dim]; the arguments are those of `TableEncoder.forward`."""
        there = observed_columns(observed, self.num_numeric, len(self.categories))
        parts = []
        if self.numeric is not None:
            assert numeric is not None
            parts.append(self.numeric(numeric, None if there is None else there[:, : self.num_numeric]))
        for index, embedding in enumerate(self.categories):
            assert categorical is not None
            shown = None if there is None else there[:, self.num_numeric + index]
            parts.append(embedding(categorical[:, index], shown).unsqueeze(1))
        return torch.cat(parts, 1)


class MissingValues(nn.Module):
    """Puts a learned value of its column in place of each missing number.

    Args:
        count: Columns.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(count))

    def forward(self, numeric: Tensor, observed: Tensor | None) -> Tensor:
        """Numbers [B, N], with learned ones where `observed` [B, N] is False."""
        if observed is None:
            return numeric
        return torch.where(observed, numeric, self.values.to(numeric.dtype))


class TokenizedNumbers(nn.Module):
    """A learned vector for each column, times the column's number.

    Args:
        count: Columns.
        dim: Features of a vector.
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.missing = MissingValues(count)
        self.weight = nn.Parameter(torch.randn(count, dim) / math.sqrt(dim))

    def forward(self, numeric: Tensor, observed: Tensor | None) -> Tensor:
        """Tokens [B, N, dim] of numbers [B, N]."""
        return self.missing(numeric, observed).unsqueeze(2) * self.weight


class CategoryEmbedding(nn.Module):
    """Vectors of the categories of a column; that of an unseen one is the mean of the known.

    Args:
        num_codes: Known categories and two: code 0 is missing, 1 is unseen.
        dim: Features of a vector.
    """

    def __init__(self, num_codes: int, dim: int) -> None:
        super().__init__()
        assert num_codes > _RESERVED_CODES, "a column without any category cannot be fitted"
        self.dim = dim
        self.known = nn.Parameter(torch.randn(num_codes - _RESERVED_CODES, dim) / math.sqrt(dim))
        self.missing = nn.Parameter(torch.zeros(dim))

    def forward(self, codes: Tensor, observed: Tensor | None = None) -> Tensor:
        """Vectors [B, dim] of codes [B]; those with `observed` [B] False are missing."""
        unseen = self.known.mean(0, keepdim=True)
        table = torch.cat([unseen + self.missing, unseen, self.known])
        if observed is not None:
            codes = codes.masked_fill(~observed, 0)
        return F.embedding(codes, table)


@register(
    "model",
    "tabular",
    runtime=("num_numeric", "category_sizes", "num_outputs", "cumulative_targets"),
    tags=("images", "2d", "3d", "table"),
)
class TabularModel(nn.Module):
    """A network of the table alone: what the image has to add to is measured with it.

    Args:
        num_numeric: Numeric columns.
        category_sizes: Codes of each categorical column.
        num_outputs: Logits.
        cumulative_targets: Targets that take cumulative logits.
        table_arch: `mlp` (a layer for each of the sizes) or `resnet` (3 residual blocks of the one size).
        table_dims: Sizes of the layers.
        table_drop: Dropout after each layer.
        head: The last layer: `linear`, or `ordinal`, one score against thresholds that rise, for loss=ordinal with
            loss.form=cumulative.

    Raises:
        UsageError: The data have no tabular columns.
    """

    inputs: tuple[str, ...] = ("numeric", "categorical", "observed")

    def __init__(
        self,
        *,
        num_numeric: int,
        category_sizes: Sequence[int],
        num_outputs: int,
        cumulative_targets: int = 0,
        table_arch: TableArch = "mlp",
        table_dims: tuple[Annotated[int, Range(ge=1)], ...] = (64, 64, 32),
        table_drop: Annotated[float, Range(ge=0, lt=1)] = 0.2,
        head: HeadName = "linear",
    ) -> None:
        super().__init__()
        self.table = TableEncoder(
            num_numeric=num_numeric,
            category_sizes=category_sizes,
            arch=table_arch,
            dims=table_dims,
            drop=table_drop,
        )
        self.head = build_head(head, self.table.num_features, num_outputs, cumulative_targets=cumulative_targets)

    def forward(
        self, numeric: Tensor | None = None, categorical: Tensor | None = None, observed: Tensor | None = None
    ) -> Tensor:
        """Logits [B, num_outputs]; the arguments are those of `TableEncoder.forward`."""
        return self.head(self.table(numeric, categorical, observed))


def observed_columns(observed: Tensor | None, num_numeric: int, num_categorical: int) -> Tensor | None:
    """Which of the N + M columns are there, [B, N + M]; columns that tell of missing values always are.

    Args:
        observed: [B, N + M], or [B, N / 2 + M] where half of the numeric columns tell of missing values.
        num_numeric: N.
        num_categorical: M.
    """
    if observed is None:
        return None
    numbers = observed.shape[1] - num_categorical
    if numbers == num_numeric:
        return observed
    assert 2 * numbers == num_numeric, f"{observed.shape[1]} observed of {num_numeric} + {num_categorical} columns"
    first, last = observed[:, :numbers], observed[:, numbers:]
    return torch.cat([first, torch.ones_like(first), last], 1)


def _embedding_dim(num_codes: int) -> int:
    """The rule of fast.ai for the size of an embedding."""
    return min(50, round(1.6 * num_codes**0.56))


def _mlp(width: int, dims: Sequence[int], drop: float) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in zip((width, *dims), dims):
        layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU(), nn.Dropout(drop)]
    return layers


def _resnet(width: int, dim: int, drop: float) -> list[nn.Module]:
    blocks = [_ResidualBlock(dim, drop) for _ in range(_RESIDUAL_BLOCKS)]
    return [nn.Linear(width, dim), *blocks, nn.LayerNorm(dim), nn.ReLU()]


class _ResidualBlock(nn.Module):
    """x + dropout(Linear(dropout(ReLU(Linear(LayerNorm(x))))))."""

    def __init__(self, dim: int, drop: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, 2 * dim),
            nn.ReLU(),
            nn.Dropout(drop),
            nn.Linear(2 * dim, dim),
            nn.Dropout(drop),
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.layers(features)
