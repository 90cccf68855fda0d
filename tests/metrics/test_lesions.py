"""Lesions by hand, LUNA16's FROC by hand and against MONAI's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medtrain.metrics.lesions import (
    FROC_RATES,
    Candidate,
    LesionMatch,
    ScoredCase,
    froc_curve,
    froc_scores,
    lesion_row,
    lesion_scores,
    match_lesions,
    read_candidates,
    scored_cases,
    write_candidates,
)


def _line(*places: int) -> np.ndarray:
    mask = np.zeros((1, 12), dtype=bool)  # [1, 12]
    mask[0, list(places)] = True
    return mask


def test_any_overlap() -> None:
    """Lesions at 0-2, 5 and 9-10; the prediction touches the first twice, misses the second, covers the third."""
    match = match_lesions(_line(0, 2, 7, 9, 10, 11), _line(0, 1, 2, 5, 9, 10))
    assert match.num_lesions == 3
    assert [item.hits for item in match.candidates] == [(1,), (1,), (), (3,)]
    assert (match.found, match.false) == (2, 1)


def test_iou() -> None:
    """IoU of the components: 1/3, 1/3, -, 2/3."""
    masks = _line(0, 2, 7, 9, 10, 11), _line(0, 1, 2, 5, 9, 10)
    assert match_lesions(*masks, iou=0.3).found == 2
    strict = match_lesions(*masks, iou=0.5)
    assert [item.hits for item in strict.candidates] == [(), (), (), (3,)]
    assert (strict.found, strict.false) == (1, 3)
    assert match_lesions(*masks, iou=0.7).found == 0


def test_one_component_over_two_lesions_finds_both() -> None:
    match = match_lesions(_line(0, 1, 2, 3), _line(0, 3))
    assert match.candidates == (Candidate(pytest.approx(math.nan, nan_ok=True), (1, 2)),)
    assert (match.found, match.false) == (2, 0)


def test_corners_connect() -> None:
    mask = np.zeros((3, 3, 3), dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[2, 2, 2] = True
    assert match_lesions(mask, mask).num_lesions == 1


def test_swapping_the_maps_swaps_what_is_missed_and_false_for_single_hits() -> None:
    rng = np.random.default_rng(0)
    for share in (0.02, 0.05):
        a, b = rng.random((12, 12, 12)) < share, rng.random((12, 12, 12)) < share
        one, two = match_lesions(a, b, iou=0.6), match_lesions(b, a, iou=0.6)  # above one half a hit is unique
        assert one.found == two.found
        assert one.false == two.num_lesions - two.found


def test_empty_maps() -> None:
    empty, some = _line(), _line(3)
    assert match_lesions(empty, empty) == match_lesions(empty, empty, probability=np.zeros((1, 12)))
    assert match_lesions(empty, some).num_lesions - match_lesions(empty, some).found == 1
    assert match_lesions(some, empty).false == 1
    assert all(math.isnan(lesion_scores(0, 0, 0, 3)[key]) for key in ("lesion_sensitivity", "lesion_precision"))
    assert lesion_scores(0, 0, 6, 3) | {"lesion_sensitivity": 0.0} == {
        "lesion_sensitivity": 0.0,
        "lesion_precision": 0.0,
        "lesion_f1": 0.0,
        "lesion_fp": 2.0,
    }


def test_scores_are_mean_probabilities() -> None:
    probability = np.zeros((1, 12))
    probability[0, [0, 1, 7]] = 0.5, 1.0, 0.25
    match = match_lesions(_line(0, 1, 7), _line(1), probability=probability)
    assert match.candidates == (Candidate(0.75, (1,)), Candidate(0.25, ()))
    row = lesion_row("tumour", match)
    assert row == {
        "lesions_found/tumour": 1.0,
        "lesions_missed/tumour": 0.0,
        "lesions_false/tumour": 1.0,
        "lesion_candidates/tumour": "0.75:1 0.25:",
    }
    assert read_candidates(row["lesion_candidates/tumour"]) == match.candidates
    assert "lesion_candidates/tumour" not in lesion_row("tumour", match_lesions(_line(0), _line(1)))


def test_candidates_as_text() -> None:
    items = (Candidate(0.93, (1,)), Candidate(0.64, (2, 3)), Candidate(0.5, ()))
    assert write_candidates(items) == "0.93:1 0.64:2+3 0.5:"
    assert read_candidates(write_candidates(items)) == items
    assert read_candidates("") == ()


def test_froc_by_hand() -> None:
    """2 scans, 4 lesions. By falling score: hit .9, false .8, hit .7, false .6 twice, second hit of a lesion .5."""
    cases = [
        ScoredCase.of(3, (Candidate(0.9, (1,)), Candidate(0.8, ()), Candidate(0.5, (1,)), Candidate(0.6, ()))),
        ScoredCase.of(1, (Candidate(0.7, (1,)), Candidate(0.6, ()))),
    ]
    rates, sensitivity = froc_curve(cases)
    np.testing.assert_allclose(rates, [0, 0, 0.5, 0.5, 1.5])
    np.testing.assert_allclose(sensitivity, [0, 0.25, 0.25, 0.5, 0.5])
    scores = froc_scores(cases)
    assert list(scores) == list(FROC_RATES)
    # flat from 0 to 0.5 false positives, where it steps to one half and stays
    assert list(scores.values()) == [0.25, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5]


def test_perfect_and_hopeless_froc() -> None:
    assert set(froc_scores([ScoredCase.of(1, (Candidate(0.5, (1,)),))]).values()) == {1.0}
    assert set(froc_scores([ScoredCase.of(1, (Candidate(0.5, ()),))]).values()) == {0.0}
    assert all(math.isnan(value) for value in froc_scores([ScoredCase.of(0, (Candidate(0.5, ()),))]).values())
    assert all(math.isnan(value) for value in froc_scores([]).values())


def test_what_lies_beyond_makes_no_difference() -> None:
    """Many false positives, some of equal score, of which most are beyond 8 per scan."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        cases = [ScoredCase(rng.random(4).round(2), rng.random(40).round(2) ** 2) for _ in range(3)]
        rates, sensitivity = froc_curve(cases)
        assert rates[-1] == 40
        expected = [np.interp(rate, rates, sensitivity) for rate in FROC_RATES]
        np.testing.assert_allclose(list(froc_scores(cases).values()), expected, rtol=0, atol=1e-12)


def test_froc_equals_monai() -> None:
    froc = pytest.importorskip("monai.metrics.froc", reason="MONAI is not installed")
    rng = np.random.default_rng(3)
    hits, false = rng.random(30), rng.random(60)
    low = min(hits.min(), false.min()) / 2  # MONAI leaves out the lowest score
    cases = [
        ScoredCase(np.append(hits[part::5], [-np.inf] * 2), np.append(false[part::5], [low] * (part == 0)))
        for part in range(5)
    ]
    rates, sensitivity = froc.compute_froc_curve_data(np.append(false, low), hits, num_targets=40, num_images=5)
    ours = froc_curve(cases)
    np.testing.assert_allclose(ours[0][:-1], rates[::-1])
    np.testing.assert_allclose(ours[1][:-1], sensitivity[::-1])
    expected = froc.compute_froc_score(rates, sensitivity, eval_thresholds=FROC_RATES)
    assert np.mean(list(froc_scores(cases).values())) == pytest.approx(expected, abs=0.01)


def test_scored_cases_of_records() -> None:
    records = [
        {"lesions_found/t": 1.0, "lesions_missed/t": 1.0, "lesion_candidates/t": "0.9:2"},
        {"lesions_found/t": math.nan, "lesions_missed/t": math.nan},  # not annotated
    ]
    (case,) = scored_cases(records, "t") or ()
    assert sorted(case.lesion_scores) == [-np.inf, 0.9]
    assert scored_cases([{"lesions_found/t": 1.0, "lesions_missed/t": 0.0}], "t") is None


def test_the_highest_false_positives_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medtrain.metrics.lesions._MOST_FALSE", 2)
    false = tuple(Candidate(score, ()) for score in (0.1, 0.4, 0.3, 0.2))
    row = lesion_row("t", LesionMatch(1, (Candidate(0.05, (1,)), *false)))
    assert row["lesions_false/t"] == 4.0
    assert row["lesion_candidates/t"] == "0.05:1 0.4: 0.3:"
