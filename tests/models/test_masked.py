"""Attention over sets with absent members."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medtrain.errors import UsageError
from medtrain.models.masked import Attention, Transformer, masked_softmax


def test_softmax_over_the_present() -> None:
    scores = torch.tensor([[0.0, 100.0, 1.0], [3.0, 4.0, 5.0]])
    present = torch.tensor([[True, False, True], [False, False, False]])
    weights = masked_softmax(scores, present)
    # e^0 / (e^0 + e^1) = 0.268941
    torch.testing.assert_close(weights, torch.tensor([[0.268941, 0.0, 0.731059], [0.0, 0.0, 0.0]]))


def test_softmax_of_nothing_has_a_finite_gradient() -> None:
    scores = torch.randn(2, 3, requires_grad=True)
    masked_softmax(scores, torch.zeros(2, 3, dtype=torch.bool)).sum().backward()
    assert scores.grad is not None
    assert torch.equal(scores.grad, torch.zeros(2, 3))


def test_attention_is_that_of_torch() -> None:
    ours = Attention(8, 2, 0.0, key="model.heads").eval()
    theirs = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    queries, keys = torch.randn(3, 4, 8), torch.randn(3, 5, 8)
    present = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 1]]).bool()
    expected, weights = theirs(queries, keys, keys, key_padding_mask=~present)
    torch.testing.assert_close(ours(queries, keys, present), expected)
    torch.testing.assert_close(ours.weights(queries, keys, present), weights)


def test_attention_to_nothing_is_zero_with_a_finite_gradient() -> None:
    attention = Attention(8, 2, 0.0, key="model.heads")
    queries = torch.randn(2, 1, 8, requires_grad=True)
    present = torch.tensor([[False, False], [True, False]])
    result = attention(queries, torch.randn(2, 2, 8), present)
    assert torch.equal(result[0], torch.zeros(1, 8))
    result.sum().backward()
    assert queries.grad is not None
    assert queries.grad.isfinite().all()


def test_heads_must_divide_the_features() -> None:
    with pytest.raises(UsageError, match=r"model\.fusion_heads=3 does not divide the 8 features") as caught:
        Attention(8, 3, 0.0, key="model.fusion_heads")
    assert caught.value.hint == "choose a divisor of 8: 1, 2, 4, 8"


def test_a_transformer_looks_at_the_present_only() -> None:
    transformer = Transformer(8, 2, 2, 0.0, key="model.heads").eval()
    tokens = torch.randn(2, 3, 8)
    present = torch.tensor([[True, True, False], [False, False, False]])
    gathered, weights = transformer(tokens, present)
    torch.testing.assert_close(weights.sum(1), torch.tensor([1.0, 0.0]))
    assert torch.equal(weights[~present], torch.zeros(4))
    shorter, _ = transformer(tokens[:1, :2], present[:1, :2])
    torch.testing.assert_close(gathered[:1], shorter)


def test_dropout_of_a_transformer_acts_in_training_only() -> None:
    transformer = Transformer(8, 2, 1, 0.5, key="model.heads")
    tokens, present = torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)
    assert not torch.equal(transformer(tokens, present)[0], transformer(tokens, present)[0])
    transformer.eval()
    assert torch.equal(transformer(tokens, present)[0], transformer(tokens, present)[0])
