"""Lesions by hand, LUNA16's FROC by hand and against MONAI's."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from medtrain.metrics.cases import summarize
from medtrain.metrics.certainty import PROBABILITIES, at_least, encode
from medtrain.metrics.islands import find_islands
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
from medtrain.metrics.tables import cases_csv, read_cases


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
    assert match_lesions(empty, empty) == match_lesions(empty, empty, certainty=certainty())
    assert match_lesions(empty, some).num_lesions - match_lesions(empty, some).found == 1
    assert match_lesions(some, empty).false == 1
    assert all(math.isnan(lesion_scores(0, 0, 0, 3)[key]) for key in ("lesion_sensitivity", "lesion_precision"))
    assert lesion_scores(0, 0, 6, 3) | {"lesion_sensitivity": 0.0} == {
        "lesion_sensitivity": 0.0,
        "lesion_precision": 0.0,
        "lesion_f1": 0.0,
        "lesion_fp": 2.0,
    }


def certainty(**places: float) -> np.ndarray:
    """Bytes [1, 12] of probabilities by place, p0 to p11; 0 elsewhere."""
    probability = np.zeros((1, 12))
    for name, value in places.items():
        probability[0, int(name[1:])] = value
    return encode(torch.from_numpy(probability)).numpy()


def test_scores_are_the_highest_probabilities() -> None:
    match = match_lesions(_line(0, 1, 7), _line(1), certainty=certainty(p0=0.5, p1=0.97, p7=0.25))
    assert [item.hits for item in match.candidates] == [(1,), ()]
    assert [item.score for item in match.candidates] == pytest.approx([0.97, 0.25], rel=0.06)  # a byte
    assert match.lower == ()
    row = lesion_row("tumour", match)
    counts = {"lesions_found/tumour": 1.0, "lesions_missed/tumour": 0.0, "lesions_false/tumour": 1.0}
    text = row.pop("lesion_peaks/tumour")
    assert row == counts
    assert [item.hits for item in read_candidates(text)] == [(1,), ()]
    assert "lesion_peaks/tumour" not in lesion_row("tumour", match_lesions(_line(0), _line(1)), scored=False)


def test_lower_thresholds_show_further_candidates() -> None:
    """Predicted is 0; above 1/4 is its rim and 3, above 1/8 the rim of that and 6 to 7, above 1/16 8 and 11."""
    sure = certainty(p0=0.9, p1=0.3, p3=0.3, p4=0.2, p6=0.2, p7=0.14, p8=0.1, p11=0.07, p10=0.05)
    match = match_lesions(_line(0), _line(4, 7), certainty=sure)
    assert [item.hits for item in match.candidates] == [()]
    # the candidate at 3 has no part in the lesion at 4, where only a lower threshold takes it: it does not grow
    assert [item.hits for item in match.lower] == [(), (2,), ()]
    assert [item.score for item in match.lower] == pytest.approx([0.3, 0.2, 0.07], rel=0.06)
    assert (match.found, match.false) == (0, 1)  # as predicted
    row = lesion_row("t", match)
    assert (row["lesions_missed/t"], row["lesions_false/t"]) == (2.0, 1.0)
    (case,) = scored_cases([row], "t") or ()
    assert sorted(case.lesion_scores) == pytest.approx([-np.inf, 0.2], rel=0.06)
    assert len(case.false_scores) == 3


def test_lower_candidates_need_the_iou_too() -> None:
    sure = certainty(p3=0.3, p4=0.3, p5=0.3)
    for iou, hits in ((0.0, (1,)), (0.3, (1,)), (0.4, ())):  # one of three voxels
        (found,) = match_lesions(_line(), _line(4), iou=iou, certainty=sure).lower
        assert found.hits == hits


def test_islands_are_those_of_whole_label_maps() -> None:
    """Against connected components of each threshold's whole mask."""
    rng = np.random.default_rng(0)
    for shape in ((30, 20), (14, 10, 9)):
        smooth = ndimage.gaussian_filter(rng.normal(size=shape), 0.6)
        probability = torch.from_numpy(smooth).div(smooth.std()).sub(1.5).mul(2).sigmoid()
        sure, label = encode(probability).numpy(), rng.random(shape) < 0.02
        prediction = sure >= at_least(0.5)
        match = match_lesions(prediction, label, certainty=sure)
        above, expected = prediction, []
        structure = np.ones((3,) * len(shape))
        for threshold in (1 / 4, 1 / 8, 1 / 16):
            mask = above | (sure >= at_least(threshold))
            components, count = ndimage.label(mask, structure)
            for number in range(1, count + 1):
                own = components == number
                if not (own & above).any():
                    expected.append((PROBABILITIES[sure[own].max()], len(np.unique(label_of(label)[own & label]))))
            above = mask
        assert sorted((item.score, len(item.hits)) for item in match.lower) == sorted(expected)
        assert len(expected) > 2


def label_of(label: np.ndarray) -> np.ndarray:
    return ndimage.label(label, np.ones((3,) * label.ndim))[0]


def test_the_curve_goes_on_below_the_prediction() -> None:
    """Three scans with a lesion each, of which one is predicted; a lower threshold finds the second with a mistake."""
    scans = [certainty(p2=0.9), certainty(p2=0.3, p8=0.2), certainty()]
    rows = [lesion_row("t", match_lesions(sure >= at_least(0.5), _line(2), certainty=sure)) for sure in scans]
    assert sum(row["lesions_found/t"] for row in rows) == 1
    assert froc_scores(scored_cases(rows, "t") or [])[1.0] == pytest.approx(2 / 3)


def test_a_threshold_that_most_of_a_scan_exceeds_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medtrain.metrics.islands._MOST_VOXELS", 2)
    sure = certainty(p0=0.9, p2=0.3, p4=0.2, p6=0.2, p8=0.2, p10=0.1)
    match = match_lesions(_line(0), _line(), certainty=sure)
    assert [item.score for item in match.lower] == pytest.approx([0.3], rel=0.06)


def test_bytes_of_probabilities() -> None:
    exact = torch.tensor([0, 0.06, 0.0626, 0.25, 0.5, 0.9, 0.999, 0.9999, 0.99999, 1.0])
    found = PROBABILITIES[encode(exact).numpy()]
    assert found[:2].tolist() == [0, 0]
    wanted = exact[2:8].double().numpy()
    odds = np.log(found[2:8] / (1 - found[2:8]))
    np.testing.assert_allclose(odds, np.log(wanted / (1 - wanted)), atol=0.06)
    assert (np.diff(found[2:]) > 0).all()  # also very close to 1
    for probability in (1 / 16, 0.25, 0.5, 0.77):
        byte = at_least(probability)
        assert PROBABILITIES[byte - 1] < probability <= PROBABILITIES[byte] * (1 + 1e-6)
    again = encode(torch.from_numpy(PROBABILITIES)).numpy().astype(int)
    assert abs(again - np.arange(256)).max() <= 1  # the last bit of a float


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
        {"lesions_found/t": 1.0, "lesions_missed/t": 1.0, "lesion_peaks/t": "0.9:2"},
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
    assert row["lesion_peaks/t"] == "0.05:1 0.4: 0.3:"


def test_no_more_false_positives_are_kept_where_scores_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medtrain.metrics.lesions._MOST_FALSE", 3)
    items = tuple(Candidate(score, hits) for score, hits in ((0.3, ()), (0.2, (1,)), (0.3, ()), (0.4, ()), (0.3, ())))
    assert lesion_row("t", LesionMatch(1, items))["lesion_peaks/t"] == "0.3: 0.2:1 0.3: 0.4:"


def test_islands_cost_no_more_than_the_scan() -> None:
    """Many voxels at a lower threshold take no memory of their own beyond coordinates."""
    sure = np.zeros((60, 64, 64), dtype=np.uint8)
    sure[10:50, 10:50, 10:50] = at_least(0.3)
    tracemalloc.start()
    (islands,) = find_islands(np.zeros(sure.shape, dtype=bool), sure)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(islands.number), len(islands.highest)) == (40**3, 1)
    assert peak < 10 * sure.size + 80 * 40**3


def test_columns_of_earlier_versions_have_no_froc(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Their scores were mean probabilities; added to others they would give a curve of neither."""
    old = {"case_id": "a", "lesions_found/t": 1.0, "lesions_missed/t": 0.0, "lesions_false/t": 0.0}
    new = {**old, "case_id": "b", "lesion_peaks/t": "0.9:1"}
    (tmp_path / "cases.csv").write_text(cases_csv([{**old, "lesion_candidates/t": "0.7:1"}, new]))
    assert len(read_cases(tmp_path / "cases.csv")) == 2
    assert "no FROC: judge the run again with `medtrain evaluate" in caplog.text
    assert "froc" not in summarize([{**old, "lesion_candidates/t": "0.7:1"}, new], ("background", "t"))
    assert "froc" in summarize([new], ("background", "t"))
