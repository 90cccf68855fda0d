"""Fusions: their formulas, and what holds for all of them when modalities are missing."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medtrain.errors import UsageError
from medtrain.models.fusion import FUSIONS, Fusion, Tokens, build_fusion, drop_modalities
from medtrain.models.fusion.attentive import CrossAttentionFusion
from medtrain.models.fusion.pointwise import ConcatFusion, GatedFusion, SumFusion
from medtrain.models.fusion.products import BilinearFusion, CompactKroneckerFusion, KroneckerFusion

DIMS = (5, 3, 4)
TOKENS = [Tokens(6, 7), Tokens(4, 2), Tokens(3, 5)]
NAMES = tuple(FUSIONS)
ALL = torch.ones(2, 2, dtype=torch.bool)


def make(name: str, modalities: int = 2, drop: float = 0.0) -> Fusion:
    torch.manual_seed(1)
    return build_fusion(name, in_dims=DIMS[:modalities], dim=8, drop=drop, token_dims=TOKENS[:modalities])


def inputs(modalities: int = 2, batch: int = 4) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    features = [torch.randn(batch, size, generator=generator) for size in DIMS[:modalities]]
    tokens = [torch.randn(batch, t.length, t.dim, generator=generator) for t in TOKENS[:modalities]]
    return features, tokens


# --------------------------------------------------------------------------------------------------- every fusion


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_absent_has_no_influence(name: str, modalities: int) -> None:
    fusion = make(name, modalities)
    features, tokens = inputs(modalities, 2**modalities)
    present = torch.tensor([[bool(row >> m & 1) for m in range(modalities)] for row in range(2**modalities)])
    first = fusion(features, present, tokens)
    broken = [value.masked_fill(~present[:, m, None], math.nan) for m, value in enumerate(features)]
    parts = [value.masked_fill(~present[:, m, None, None], math.inf) for m, value in enumerate(tokens)]
    second = fusion(broken, present, parts)
    assert first.features.shape == (2**modalities, 8)
    assert torch.equal(first.features, second.features)
    assert second.features.isfinite().all()
    second.features.square().sum().backward()
    for key, parameter in fusion.named_parameters():
        assert parameter.grad is not None, key  # all ranks reduce the same gradients
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", NAMES)
def test_each_present_modality_counts(name: str) -> None:
    fusion = make(name, 3).eval()
    features, tokens = inputs(3)
    present = torch.ones(4, 3, dtype=torch.bool)
    full = fusion(features, present, tokens).features
    for m in range(3):
        other = [value + (1.0 if i == m else 0.0) for i, value in enumerate(features)]
        parts = [value + (torch.randn_like(value) if i == m else 0.0) for i, value in enumerate(tokens)]
        assert not torch.allclose(fusion(other, present, parts).features, full), m
        without = present.clone()
        without[:, m] = False
        assert not torch.allclose(fusion(features, without, tokens).features, full), m


@pytest.mark.parametrize("name", NAMES)
def test_dropout_acts_in_training_only(name: str) -> None:
    fusion = make(name, drop=0.5)
    features, tokens = inputs()
    present = torch.ones(4, 2, dtype=torch.bool)
    assert not torch.equal(fusion(features, present, tokens).features, fusion(features, present, tokens).features)
    fusion.eval()
    assert torch.equal(fusion(features, present, tokens).features, fusion(features, present, tokens).features)


@pytest.mark.parametrize("name", ["gated", "attention"])
def test_weights_are_shares_of_the_present(name: str) -> None:
    features, tokens = inputs(3)
    present = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]]).bool()
    weights = make(name, 3)(features, present, tokens).weights
    assert weights is not None
    torch.testing.assert_close(weights.sum(1), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert torch.equal(weights[~present], torch.zeros(6))


@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name: str) -> None:
    features, tokens = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = make(name)(features, torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0]]).bool(), tokens).features
    assert fused.float().isfinite().all()


# ------------------------------------------------------------------------------------------------------- formulas


def test_gated_is_the_formula_of_two_modalities() -> None:
    fusion = GatedFusion(in_dims=(1, 1), dim=1, drop=0.0, weights=(0.3, 0.7))
    with torch.no_grad():
        for layer, weight in zip(fusion.project, (2.0, -1.0)):
            layer.weight.fill_(weight)
            layer.bias.zero_()
        fusion.gate.weight.copy_(torch.tensor([[1.0, -2.0]]))
        fusion.gate.bias.fill_(0.5)
    fused = fusion([torch.tensor([[0.5]]), torch.tensor([[0.25]])], torch.tensor([[True, True]]))
    # z = sigmoid(1 * 0.5 - 2 * 0.25 + 0.5) = sigmoid(0.5) = 0.622459
    # 0.3 * z * tanh(1) + 0.7 * (1 - z) * tanh(-0.25) = 0.3 * 0.622459 * 0.761594 - 0.7 * 0.377541 * 0.244919
    assert fused.features.item() == pytest.approx(0.077491, abs=2e-6)
    assert fused.weights is not None
    torch.testing.assert_close(fused.weights, torch.tensor([[0.622459, 0.377541]]))


def test_gated_gives_the_share_of_an_absent_modality_to_the_other() -> None:
    fusion = GatedFusion(in_dims=(1, 1), dim=1, drop=0.0)
    with torch.no_grad():
        fusion.project[1].weight.fill_(1.0)
        fusion.project[1].bias.zero_()
    fused = fusion([torch.tensor([[9.0]]), torch.tensor([[0.5]])], torch.tensor([[False, True]]))
    assert fused.features.item() == pytest.approx(0.5 * math.tanh(0.5))  # sigmoid(0) of the scale, all of the share


def test_concat_is_the_plain_composition() -> None:
    fusion = ConcatFusion(in_dims=(5, 3), dim=8, drop=0.0)
    features, _ = inputs(batch=2)
    expected = F.layer_norm(F.relu(fusion.project(torch.cat(features, 1))), (8,))
    torch.testing.assert_close(fusion(features, ALL).features, expected)


def test_sum_leaves_the_absent_out() -> None:
    fusion = SumFusion(in_dims=(5, 3), dim=8, drop=0.0)
    features, _ = inputs(batch=2)
    both = F.layer_norm(F.relu(fusion.project[0](features[0]) + fusion.project[1](features[1])), (8,))
    torch.testing.assert_close(fusion(features, ALL).features, both)
    first = F.layer_norm(F.relu(fusion.project[0](features[0])), (8,))
    torch.testing.assert_close(fusion(features, torch.tensor([[True, False]] * 2)).features, first)


def test_bilinear_by_hand() -> None:
    fusion = BilinearFusion(in_dims=(1, 1), dim=2, drop=0.0, rank=1)
    with torch.no_grad():
        for layer in (*fusion.factors, *fusion.skips):
            layer.weight.zero_()
            layer.bias.zero_()
        fusion.factors[0].weight.fill_(2.0)
        fusion.factors[1].weight.fill_(3.0)
        fusion.product.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        fusion.skips[0].weight.copy_(torch.tensor([[1.0], [0.0]]))
        fusion.finish[0] = torch.nn.Identity()
    v, t = torch.tensor([[0.5]]), torch.tensor([[-1.0]])
    # product 2 * 0.5 * 3 * -1 = -3; P: (-3, 3); skip: (0.5, 0)
    torch.testing.assert_close(fusion([v, t], torch.tensor([[True, True]])).features, torch.tensor([[-2.5, 3.0]]))
    # without the table the product is that of the image alone: 1
    torch.testing.assert_close(fusion([v, t], torch.tensor([[True, False]])).features, torch.tensor([[1.5, -1.0]]))
    torch.testing.assert_close(fusion([v, t], torch.tensor([[False, False]])).features, torch.zeros(1, 2))


def test_bilinear_is_a_bilinear_form_of_its_rank() -> None:
    fusion = BilinearFusion(in_dims=(5, 3), dim=8, drop=0.0, rank=4)
    features, _ = inputs(batch=2)
    with torch.no_grad():
        for layer in (*fusion.factors, *fusion.skips):
            layer.bias.zero_()
        for skip in fusion.skips:
            skip.weight.zero_()
    form = torch.einsum("or,ri,rj->oij", fusion.product.weight, fusion.factors[0].weight, fusion.factors[1].weight)
    expected = F.layer_norm(torch.einsum("oij,bi,bj->bo", form, *features), (8,))
    torch.testing.assert_close(fusion(features, ALL).features, expected)


def test_kronecker_by_hand() -> None:
    fusion = KroneckerFusion(in_dims=(2, 1), dim=1, drop=0.0)
    with torch.no_grad():
        fusion.project.weight.copy_(torch.tensor([[1.0, 10.0, 100.0, 1000.0, 1e4, 1e5]]))
        fusion.project.bias.zero_()
        fusion.finish = torch.nn.Identity()  # type: ignore[assignment]
    # [2, 3, 1] x [5, 1] = [10, 2, 15, 3, 5, 1]
    expected = 10 + 20 + 1500 + 3000 + 5e4 + 1e5
    result = fusion([torch.tensor([[2.0, 3.0]]), torch.tensor([[5.0]])], torch.tensor([[True, True]]))
    assert result.features.item() == expected


def test_kronecker_of_three_is_einsum() -> None:
    fusion = make("kronecker", 3)
    assert isinstance(fusion, KroneckerFusion)
    features, _ = inputs(3)
    ones = [F.pad(value, (0, 1), value=1.0) for value in features]
    products = torch.einsum("bi,bj,bk->bijk", *ones).flatten(1)
    expected = F.layer_norm(F.relu(fusion.project(products)), (8,))
    torch.testing.assert_close(fusion(features, torch.ones(4, 3, dtype=torch.bool)).features, expected)


def test_kronecker_refuses_what_the_sketch_is_for() -> None:
    with pytest.raises(UsageError, match="2049 x 65 x 96 = 12,785,760 weights") as caught:
        build_fusion("kronecker", in_dims=(2048, 64), dim=96, drop=0.0)
    assert "compact_kronecker" in str(caught.value.hint)


def test_the_sketch_is_that_of_the_products() -> None:
    fusion = CompactKroneckerFusion(in_dims=(5, 3), dim=8, drop=0.0, sketch=16)
    features, _ = inputs(batch=2)
    v, t = (F.pad(value, (0, 1), value=1.0) for value in features)
    first, second = fusion.sketches
    expected = torch.zeros(2, 16)
    for i in range(6):
        for j in range(4):
            place = (int(first.places[i]) + int(second.places[j])) % 16
            expected[:, place] += first.signs[i] * second.signs[j] * v[:, i] * t[:, j]
    torch.testing.assert_close(fusion.sketch(features), expected)


def test_inner_products_of_sketches_are_those_of_the_products_in_expectation() -> None:
    x, y = torch.randn(1, 5), torch.randn(1, 5)
    v, w = torch.randn(1, 3), torch.randn(1, 3)
    exact = ((x @ y.T + 1) * (v @ w.T + 1)).item()  # <[x;1] x [v;1], [y;1] x [w;1]>
    found = []
    for _ in range(1500):
        fusion = CompactKroneckerFusion(in_dims=(5, 3), dim=1, drop=0.0, sketch=32)
        found.append((fusion.sketch([x, v]) * fusion.sketch([y, w])).sum().item())
    values = torch.tensor(found)
    assert abs(values.mean().item() - exact) < 4 * values.std().item() / math.sqrt(len(found))
    assert values.std().item() > 0.1  # a sketch it is, not the products themselves


def test_a_longer_sketch_is_nearer() -> None:
    torch.manual_seed(3)
    x, v = torch.randn(1, 5), torch.randn(1, 3)
    exact = ((x @ x.T + 1) * (v @ v.T + 1)).item()
    errors = []
    for length in (16, 1024):
        fusions = [CompactKroneckerFusion(in_dims=(5, 3), dim=1, drop=0.0, sketch=length) for _ in range(200)]
        errors.append(sum((fusion.sketch([x, v]).square().sum().item() - exact) ** 2 for fusion in fusions))
    assert errors[1] < errors[0] / 10


def test_the_places_of_a_sketch_are_kept_with_the_weights() -> None:
    first, second = make("compact_kronecker"), build_fusion("compact_kronecker", in_dims=DIMS[:2], dim=8, drop=0.0)
    features, _ = inputs()
    present = torch.ones(4, 2, dtype=torch.bool)
    assert not torch.allclose(first(features, present).features, second(features, present).features)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(features, present).features, second(features, present).features)


# ---------------------------------------------------------------------------------------------- attention to tokens


def test_cross_attention_looks_at_one_of_many_tokens() -> None:
    fusion = make("cross_attention").eval()
    features, tokens = inputs()
    present = torch.ones(4, 2, dtype=torch.bool)
    before = fusion(features, present, tokens).features
    moved = [tokens[0].clone(), tokens[1]]
    moved[0][:, 3] += 5.0  # one cell of the map; the vectors are as before
    assert not torch.allclose(fusion(features, present, moved).features, before)
    swapped = [tokens[0][:, [1, 0, 2, 3, 4, 5]], tokens[1]]
    assert not torch.allclose(fusion(features, present, swapped).features, before)  # positions count


def test_attention_to_a_single_token_would_be_none() -> None:
    with pytest.raises(UsageError, match="attention to a single one is no choice; the modalities have 1, 4"):
        CrossAttentionFusion(in_dims=(5, 3), token_dims=[Tokens(1, 7), Tokens(4, 2)], dim=8, drop=0.0)


def test_options_change_what_they_name() -> None:
    def count(name: str, **options: int) -> int:
        fusion = build_fusion(
            name, in_dims=DIMS[:2], dim=8, drop=0.0, token_dims=TOKENS[:2], options={**options, "none": None}
        )
        return sum(parameter.numel() for parameter in fusion.parameters())

    # bilinear: 16 * (5 + 1 + 3 + 1 + 8) without skips and norm; each rank costs 18
    assert count("bilinear", rank=17) - count("bilinear") == 18
    assert count("compact_kronecker", sketch=2049) - count("compact_kronecker") == 8
    assert count("attention", layers=2) > count("attention")
    for name in ("attention", "cross_attention"):
        features, tokens = inputs()
        present = torch.ones(4, 2, dtype=torch.bool)
        results = []
        for heads in (1, 8):
            torch.manual_seed(0)
            fusion = build_fusion(
                name, in_dims=DIMS[:2], dim=8, drop=0.0, token_dims=TOKENS[:2], options={"heads": heads}
            )
            results.append(fusion(features, present, tokens).features)
        assert not torch.allclose(*results)


def test_an_option_without_effect_is_refused() -> None:
    with pytest.raises(UsageError, match=r"model\.fusion_rank has no effect with model\.fusion=gated") as caught:
        build_fusion("gated", in_dims=DIMS[:2], dim=8, drop=0.0, options={"rank": 4})
    assert caught.value.hint == "leave it out, or choose model.fusion among bilinear"
    with pytest.raises(UsageError, match=r"unknown model\.fusion `gatet`") as caught:
        build_fusion("gatet", in_dims=DIMS[:2], dim=8, drop=0.0)
    assert caught.value.hint == "did you mean `model.fusion=gated`?"


@pytest.mark.parametrize("weights", [(0.5,), (0.5, 1.0), (0.0, 0.5)])
def test_gated_weights_must_fit(weights: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="one number between 0 and 1 for each of the 2 modalities"):
        build_fusion("gated", in_dims=DIMS[:2], dim=8, drop=0.0, options={"weights": weights})


# --------------------------------------------------------------------------------------------------- dropping them


def test_dropping_modalities_leaves_one_and_invents_none() -> None:
    present = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]]).bool().repeat(500, 1)
    kept = drop_modalities(present, 0.6)
    assert not (kept & ~present).any()
    assert torch.equal(kept.any(1), present.any(1))
    full = kept[0::4]
    # kept with probability 0.4, or as the last one: P(none of three) = 0.216, then one in three
    expected = 0.4 + 0.216 / 3
    assert full.float().mean(0).tolist() == pytest.approx([expected] * 3, abs=0.08)
    assert torch.equal(kept[2::4], present[2::4])


def test_dropping_follows_torchs_generator() -> None:
    present = torch.ones(50, 3, dtype=torch.bool)
    torch.manual_seed(5)
    first = drop_modalities(present, 0.5)
    second = drop_modalities(present, 0.5)
    torch.manual_seed(5)
    assert torch.equal(first, drop_modalities(present, 0.5))
    assert not torch.equal(first, second)
    assert torch.equal(drop_modalities(present, 0.0), present)
