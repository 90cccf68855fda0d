"""Aggregators: formulas, and what holds for all of them: padding, order, empty bags."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from medtrain.errors import UsageError
from medtrain.models.aggregators import (
    AGGREGATORS,
    Aggregator,
    AttentionAggregator,
    CrossViewAttentionAggregator,
    DeepSetsAggregator,
    GatedAttentionAggregator,
    LearnedWeightAggregator,
    MaxAggregator,
    MeanAggregator,
    build_aggregator,
)

NAMES = tuple(AGGREGATORS)
UNORDERED = tuple(name for name, part in AGGREGATORS.items() if not part.knows_views)
WEIGHTED = ("attention", "gated_attention", "transformer", "learned_weight", "cross_view_attention")
VIEWS = 5


def make(name: str) -> Aggregator:
    torch.manual_seed(1)
    return build_aggregator(name, in_dim=6, num_views=VIEWS if AGGREGATORS[name].knows_views else 0).eval()


def bags(count: int = VIEWS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(4, count, 6, generator=generator)
    present = torch.rand(4, count, generator=generator) < 0.6
    present[0], present[1] = True, False
    present[2], present[3, 0] = torch.arange(count) == 1, True
    return features, present


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("garbage", [0.0, 1e30, math.nan, math.inf])
def test_padding_has_no_influence(name: str, garbage: float) -> None:
    aggregator = make(name)
    features, present = bags()
    expected, _ = aggregator(features, present)
    found, _ = aggregator(features.masked_fill(~present.unsqueeze(-1), garbage), present)
    assert torch.equal(found, expected)
    if name in UNORDERED:  # neither does its length
        longer = torch.cat([features, torch.full((4, 7, 6), garbage)], 1)
        found, _ = aggregator(longer, torch.cat([present, torch.zeros(4, 7, dtype=torch.bool)], 1))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", UNORDERED)
def test_order_has_no_influence(name: str) -> None:
    aggregator = make(name)
    features, present = bags(9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    expected, weights = aggregator(features, present)
    found, shuffled = aggregator(features[:, order], present[:, order])
    torch.testing.assert_close(found, expected)
    if weights is not None:
        torch.testing.assert_close(shuffled, weights[:, order])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in UNORDERED])
def test_named_views_are_told_apart(name: str) -> None:
    aggregator = make(name)
    if isinstance(aggregator, LearnedWeightAggregator):
        torch.nn.init.normal_(aggregator.scores)
    features, present = bags()
    assert not torch.allclose(
        aggregator(features[:1, [1, 0, 2, 3, 4]], present[:1])[0], aggregator(features[:1], present[:1])[0]
    )


@pytest.mark.parametrize("name", NAMES)
def test_empty_bags_are_finite_with_finite_gradients(name: str) -> None:
    aggregator = make(name)
    features, _ = bags()
    features.requires_grad_()
    result, weights = aggregator(features, torch.zeros(4, VIEWS, dtype=torch.bool))
    assert result.isfinite().all()
    assert weights is None or torch.equal(weights, torch.zeros(4, VIEWS))
    result.square().sum().backward()
    for key, parameter in aggregator.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    assert features.grad is None or torch.equal(features.grad, torch.zeros_like(features))


@pytest.mark.parametrize("name", NAMES)
def test_attention_is_shares_of_the_present_or_not_there(name: str) -> None:
    features, present = bags()
    _, weights = make(name)(features, present)
    assert (weights is not None) == (name in WEIGHTED)
    if weights is not None:
        torch.testing.assert_close(weights.sum(1), torch.tensor([1.0, 0.0, 1.0, 1.0]))
        assert torch.equal(weights[~present], torch.zeros(int((~present).sum())))


@pytest.mark.parametrize("name", NAMES)
def test_result_has_the_size_it_says_and_every_instance_counts(name: str) -> None:
    aggregator = make(name)
    features, present = bags()
    expected, _ = aggregator(features, present)
    assert expected.shape == (4, aggregator.out_dim)
    for index in range(VIEWS):
        moved = features.clone()
        moved[0, index] += 10.0
        assert not torch.allclose(aggregator(moved, present)[0][0], expected[0])


@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name: str) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result, weights = make(name)(*bags())
    assert result.float().isfinite().all()
    if weights is not None:
        torch.testing.assert_close(weights.float().sum(1), torch.tensor([1.0, 0.0, 1.0, 1.0]), rtol=0, atol=1e-2)


def test_mean_and_max_by_hand() -> None:
    features = torch.tensor([[[1.0, -5.0], [3.0, -7.0], [100.0, 100.0]]])
    present = torch.tensor([[True, True, False]])
    assert MeanAggregator(in_dim=2)(features, present).features.tolist() == [[2.0, -6.0]]
    # zeros in the place of padding would win against -5
    assert MaxAggregator(in_dim=2)(features, present).features.tolist() == [[3.0, -5.0]]
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    assert MaxAggregator(in_dim=2)(features, nothing).features.tolist() == [[0.0, 0.0]]  # not -inf


def test_attention_by_hand() -> None:
    aggregator = AttentionAggregator(in_dim=1, dim=1, drop=0.0)
    with torch.no_grad():
        aggregator.hidden.weight.fill_(1.0)
        aggregator.hidden.bias.zero_()
        aggregator.score.weight.fill_(2.0)
        aggregator.score.bias.fill_(7.0)  # the same for all: no influence
    result = aggregator(torch.tensor([[[0.0], [1.0], [9.0]]]), torch.tensor([[True, True, False]]))
    # scores 0 and 2 tanh(1) = 1.523188: shares 0.178999 and 0.821001
    assert result.attention is not None
    torch.testing.assert_close(result.attention, torch.tensor([[0.178999, 0.821001, 0.0]]), rtol=0, atol=1e-5)
    assert result.features.item() == pytest.approx(0.821001, abs=1e-5)


def test_gated_attention_by_hand() -> None:
    aggregator = GatedAttentionAggregator(in_dim=1, dim=1, drop=0.0)
    with torch.no_grad():
        aggregator.hidden.weight.fill_(1.0)
        aggregator.hidden.bias.zero_()
        aggregator.gate.weight.fill_(-1.0)
        aggregator.gate.bias.zero_()
        aggregator.score.weight.fill_(2.0)
        aggregator.score.bias.zero_()
    result = aggregator(torch.tensor([[[0.0], [1.0]]]), torch.tensor([[True, True]]))
    # scores 0 and 2 tanh(1) sigmoid(-1) = 2 * 0.761594 * 0.268941 = 0.409648: shares 0.398997 and 0.601003
    assert result.features.item() == pytest.approx(0.601003, abs=1e-5)


def test_deep_sets_is_the_sum_of_phi() -> None:
    aggregator = DeepSetsAggregator(in_dim=6, dim=4, drop=0.0)
    features, present = bags()
    expected = torch.stack([aggregator.rho(aggregator.phi(bag[there]).sum(0)) for bag, there in zip(features, present)])
    torch.testing.assert_close(aggregator(features, present).features, expected)


def test_learned_weights_begin_equal_and_are_a_softmax() -> None:
    aggregator = LearnedWeightAggregator(in_dim=6, num_views=VIEWS)
    features, present = bags()
    torch.testing.assert_close(
        aggregator(features, present).features, MeanAggregator(in_dim=6)(features, present).features
    )
    with torch.no_grad():
        aggregator.scores.copy_(torch.log(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])))
    weights = aggregator(features, torch.tensor([[1, 0, 1, 0, 1]] * 4).bool()).attention
    assert weights is not None
    torch.testing.assert_close(weights[0], torch.tensor([1.0, 0.0, 3.0, 0.0, 5.0]) / 9)


def test_a_view_sees_the_others() -> None:
    aggregator = make("cross_view_attention")
    assert isinstance(aggregator, CrossViewAttentionAggregator)
    features, present = bags()
    # an additive model of the views would give the same difference whatever the other view is
    moved = [features[:1].clone() for _ in range(4)]
    for index, (first, second) in enumerate(((0, 0), (2, 0), (0, 2), (2, 2))):
        moved[index][0, 0] += first
        moved[index][0, 1] += second
    none, a, b, both = (aggregator(bag, present[:1]).features for bag in moved)
    assert not torch.allclose(both - b, a - none, atol=1e-4)


def test_options_change_what_they_name() -> None:
    def count(name: str, **options: int) -> int:
        built = build_aggregator(name, in_dim=6, num_views=VIEWS, options={**options, "drop": None})
        return sum(parameter.numel() for parameter in built.parameters())

    assert count("attention") == 6 * 128 + 128 + 128 + 1
    assert count("attention", dim=3) == 6 * 3 + 3 + 3 + 1
    assert count("deepsets") == 6 * 256 + 256 + 256 * 256 + 256
    assert count("transformer", layers=1) < count("transformer")
    assert count("cross_view_attention", dim=16) < count("cross_view_attention")
    for name in ("transformer", "cross_view_attention"):
        results = []
        for heads in (1, 8):
            torch.manual_seed(0)
            results.append(
                build_aggregator(name, in_dim=6, num_views=VIEWS, options={"heads": heads}).eval()(*bags())[0]
            )
        assert not torch.allclose(*results)
    for name in NAMES:
        if name in ("mean", "max", "learned_weight"):
            continue
        built = build_aggregator(name, in_dim=6, num_views=VIEWS, options={"drop": 0.5})
        assert not torch.equal(built(*bags())[0], built(*bags())[0])
        still = build_aggregator(name, in_dim=6, num_views=VIEWS, options={"drop": 0.0})
        assert torch.equal(still(*bags())[0], still(*bags())[0])


def test_options_without_effect_are_refused() -> None:
    with pytest.raises(UsageError, match=r"model\.aggregator_dim has no effect with model\.aggregator=mean") as caught:
        build_aggregator("mean", in_dim=6, options={"dim": 4})
    assert caught.value.hint is not None
    assert "attention, gated_attention, deepsets, transformer, cross_view_attention" in caught.value.hint
    with pytest.raises(UsageError, match="heads=5 does not divide the 256 features"):
        build_aggregator("transformer", in_dim=6, options={"heads": 5})


@pytest.mark.parametrize("name", ["learned_weight", "cross_view_attention"])
def test_instances_without_names_cannot_be_told_apart(name: str) -> None:
    with pytest.raises(UsageError, match="the instances of a bag have none"):
        build_aggregator(name, in_dim=6)


def test_there_is_one_name_for_each() -> None:
    with pytest.raises(UsageError) as caught:
        build_aggregator("cross_attention", in_dim=6, num_views=VIEWS)
    assert caught.value.hint == "did you mean `model.aggregator=cross_view_attention`?"
