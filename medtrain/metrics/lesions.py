"""Lesions, one by one: which were found, what was found in their place, and the FROC curve of a whole part.

A lesion is a connected component of its class: voxels that touch by a face, an edge or a corner belong together
(26 neighbours in 3-D, 8 in 2-D). A predicted component *hits* a lesion when the two overlap by the rule: in at least
one voxel, or with an IoU of at least `iou`. Then

- a lesion that some component hits is a true positive, any other a false negative;
- a component that hits no lesion is a false positive;
- two components that hit the same lesion count once, as one true positive and no false positive (LUNA16's rule), and
  a component that hits two lesions finds both.

Over the cases of a part the counts are added: `lesion_sensitivity` = TP / (TP + FN), `lesion_precision` =
TP / (TP + FP), `lesion_f1` = 2 TP / (2 TP + FP + FN), `lesion_fp` = FP per case. A ratio of 0 / 0 is NaN.

`froc` is LUNA16's score (A. Setio et al., Medical Image Analysis 42, 2017): the mean sensitivity at 1/8, 1/4, 1/2, 1,
2, 4 and 8 false positives per scan. Its candidates are the predicted components, and below the threshold at which they
were decided those that only a lower one shows: thresholds of 1/4, 1/8 and 1/16 are taken one after the other, and a
component that touches nothing of those before is a candidate of its own, with the extent that it has there. A
candidate's score is the highest probability within it. So candidates neither grow nor merge as the threshold falls, and
the curve goes on below the prediction. A threshold that more than a million further voxels of a scan exceed (a
network that has hardly been trained) is left out, and so are those below it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from medtrain.metrics.certainty import PROBABILITIES
from medtrain.metrics.islands import find_islands
from medtrain.metrics.spec import MetricSpec
from medtrain.metrics.surface import bounding_box
from medtrain.registry import Range

FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per scan at which the sensitivity is read (LUNA16)."""

LESION_METRICS = (
    MetricSpec("lesion_sensitivity", "max"),
    MetricSpec("lesion_precision", "max"),
    MetricSpec("lesion_f1", "max"),
    MetricSpec("lesion_fp", "min", "per case"),
    MetricSpec("froc", "max"),
)

COUNTS = ("lesions_found", "lesions_missed", "lesions_false")
"""Columns of a case: true positives, false negatives, false positives."""

_MOST_FALSE = 2000
"""False positives of a case whose scores are kept, the highest: an untrained network finds specks by the thousand."""

CANDIDATES = "lesion_peaks"
"""Column of a case: `score:lesions` of every candidate, e.g. `0.93:1 0.71: 0.64:2+3`; by highest probability."""


@dataclass(frozen=True)
class LesionRule:
    """Which structures are made of lesions, and when one counts as found.

    Args:
        lesions: Names of classes or regions.
        iou: Least IoU of a predicted component with a lesion; 0 takes any overlap.
    """

    lesions: tuple[str, ...] = ()
    iou: Annotated[float, Range(ge=0, lt=1)] = 0.0


@dataclass(frozen=True)
class Candidate:
    """A component that is predicted, or would be at a lower threshold.

    Args:
        score: How sure the model is: the highest probability within it.
        hits: Numbers of the lesions that it hits, from 1; empty for a false positive.
    """

    score: float
    hits: tuple[int, ...]


@dataclass(frozen=True)
class LesionMatch:
    """The lesions of one case.

    Args:
        num_lesions: In the label.
        candidates: The predicted components, in array order of their first voxel.
        lower: Those that only lower thresholds show.
    """

    num_lesions: int
    candidates: tuple[Candidate, ...]
    lower: tuple[Candidate, ...] = ()

    @property
    def found(self) -> int:
        """True positives."""
        return len({lesion for candidate in self.candidates for lesion in candidate.hits})

    @property
    def false(self) -> int:
        """False positives."""
        return sum(not candidate.hits for candidate in self.candidates)


def match_lesions(
    prediction: np.ndarray, label: np.ndarray, *, iou: float = 0.0, certainty: np.ndarray | None = None
) -> LesionMatch:
    """Match predicted components with lesions.

    Args:
        prediction: Mask [*S], bool.
        label: Mask [*S], bool.
        iou: Least IoU of a hit, in [0, 1); 0 takes any overlap.
        certainty: Bytes [*S] of the lesion's probability, see `medtrain.metrics.certainty`: they score the candidates
            and show those of lower thresholds. Scores are NaN without them.
    """
    from scipy import ndimage  # here, because SciPy takes most of a second to import

    assert prediction.shape == label.shape, f"prediction {prediction.shape}, label {label.shape}"
    box = bounding_box(prediction | label) or (slice(0, 0),) * label.ndim
    structure = np.ones((3,) * label.ndim, dtype=bool)
    predicted, num_predicted = ndimage.label(prediction[box], structure=structure)
    true, num_true = ndimage.label(label[box], structure=structure)
    inside = predicted > 0
    hits = _hits(predicted[inside], true[inside], np.bincount(true.ravel(), minlength=num_true + 1), iou)
    scores = np.full(num_predicted, math.nan)
    if certainty is not None and num_predicted:
        scores = _highest(certainty[box], predicted, num_predicted)
    candidates = tuple(Candidate(float(score), hits.get(i, ())) for i, score in enumerate(scores, start=1))
    if certainty is None:
        return LesionMatch(num_true, candidates)
    lower: list[Candidate] = []
    for islands in find_islands(prediction, certainty):
        of_lesion = np.zeros(len(islands.number), dtype=true.dtype)
        within = np.all([(c >= s.start) & (c < s.stop) for c, s in zip(islands.voxels, box)], axis=0)
        of_lesion[within] = true[tuple(c[within] - s.start for c, s in zip(islands.voxels, box))]
        found = _hits(islands.number, of_lesion, np.bincount(true.ravel(), minlength=num_true + 1), iou)
        highest = PROBABILITIES[islands.highest]
        lower += [Candidate(float(score), found.get(i, ())) for i, score in enumerate(highest, start=1)]
    return LesionMatch(num_true, candidates, tuple(lower))


def component_scores(prediction: np.ndarray, certainty: np.ndarray) -> list[float]:
    """The score of every predicted component, the highest first; of a scan without a label.

    Args:
        prediction: Mask [*S], bool.
        certainty: Bytes [*S] of the lesion's probability.
    """
    from scipy import ndimage  # here, because SciPy takes most of a second to import

    box = bounding_box(prediction)
    if box is None:
        return []
    predicted, count = ndimage.label(prediction[box], structure=np.ones((3,) * prediction.ndim, dtype=bool))
    return sorted(_highest(certainty[box], predicted, count).tolist(), reverse=True)


def _highest(certainty: np.ndarray, components: np.ndarray, count: int) -> np.ndarray:
    """The highest probability within components 1 to `count`."""
    from scipy import ndimage

    return PROBABILITIES[ndimage.maximum(certainty, components, np.arange(1, count + 1))]


def _hits(candidate: np.ndarray, lesion: np.ndarray, sizes: np.ndarray, iou: float) -> dict[int, tuple[int, ...]]:
    """The lesions that each candidate hits.

    Args:
        candidate: Number of the candidate of each of its voxels [N], from 1.
        lesion: Number of the lesion there [N]; 0 for none.
        sizes: Voxels of every lesion by number.
        iou: Least IoU.
    """
    own = np.bincount(candidate)
    on = lesion > 0
    codes, overlap = np.unique(candidate[on].astype(np.int64) * len(sizes) + lesion[on], return_counts=True)
    found: dict[int, tuple[int, ...]] = {}
    for number, hit, shared in zip(codes // len(sizes), codes % len(sizes), overlap):
        if shared >= iou * (own[number] + sizes[hit] - shared):
            found[int(number)] = (*found.get(int(number), ()), int(hit))
    return found


def lesion_row(name: str, match: LesionMatch, *, scored: bool = True) -> dict[str, Any]:
    """The columns of a case: counts of what is predicted, and all candidates with their scores where they have one.

    Of false positives the 2000 with the highest scores are kept, which is more than 8 per scan of a part of 250 scans.

    Args:
        name: Of the structure.
        match: Of `match_lesions`.
        scored: Whether its candidates have scores.
    """
    counts = (match.found, match.num_lesions - match.found, match.false)
    row: dict[str, Any] = {f"{key}/{name}": float(count) for key, count in zip(COUNTS, counts, strict=True)}
    if scored:
        candidates = (*match.candidates, *match.lower)
        false = [place for place, item in enumerate(candidates) if not item.hits]
        # scores are bytes, so many are equal: the first of these stay
        beyond = set(sorted(false, key=lambda place: -candidates[place].score)[_MOST_FALSE:])
        kept = [item for place, item in enumerate(candidates) if place not in beyond]
        row[f"{CANDIDATES}/{name}"] = write_candidates(kept)
    return row


def write_candidates(candidates: Sequence[Candidate]) -> str:
    """Candidates as the text of a cell."""
    return " ".join(f"{item.score:.6g}:{'+'.join(map(str, item.hits))}" for item in candidates)


def read_candidates(text: str) -> tuple[Candidate, ...]:
    """Candidates from the text of a cell."""
    found = []
    for item in text.split():
        score, _, hits = item.partition(":")
        found.append(Candidate(float(score), tuple(int(lesion) for lesion in hits.split("+") if lesion)))
    return tuple(found)


def lesion_scores(found: float, missed: float, false: float, cases: int) -> dict[str, float]:
    """Sensitivity, precision, F1 and false positives per case of added counts; NaN for 0 / 0."""

    def ratio(numerator: float, denominator: float) -> float:
        return numerator / denominator if denominator else math.nan

    return {
        "lesion_sensitivity": ratio(found, found + missed),
        "lesion_precision": ratio(found, found + false),
        "lesion_f1": ratio(2 * found, 2 * found + false + missed),
        "lesion_fp": ratio(false, cases),
    }


@dataclass(frozen=True)
class ScoredCase:
    """What the FROC curve takes of a case.

    Args:
        lesion_scores: Of every lesion the highest score of what hits it; -inf where nothing does [N].
        false_scores: Of every false positive [M].
    """

    lesion_scores: np.ndarray
    false_scores: np.ndarray

    @classmethod
    def of(cls, num_lesions: int, candidates: Sequence[Candidate]) -> ScoredCase:
        """Sort the candidates of a case."""
        best = np.full(num_lesions, -np.inf)
        missed = iter(sorted({lesion for candidate in candidates for lesion in candidate.hits}))
        place = {lesion: index for index, lesion in enumerate(missed)}
        for candidate in candidates:
            for lesion in candidate.hits:
                best[place[lesion]] = max(best[place[lesion]], candidate.score)
        return cls(best, np.array([item.score for item in candidates if not item.hits], dtype=np.float64))


def froc_curve(cases: Sequence[ScoredCase], *, most: float = math.inf) -> tuple[np.ndarray, np.ndarray]:
    """False positives per scan [T] and sensitivity [T] at every score, from the strictest on; both ascend.

    Args:
        cases: All scans of a part.
        most: The curve is right up to the first point beyond so many false positives per scan.
    """
    lesions = np.concatenate([case.lesion_scores for case in cases]) if cases else np.zeros(0)
    false = np.concatenate([case.false_scores for case in cases]) if cases else np.zeros(0)
    if false.size > most * len(cases) + 1:  # the rest is beyond, and most of all where a network finds specks
        last = int(most * len(cases)) + 1
        false = false[false >= np.partition(false, false.size - last)[false.size - last]]
    thresholds = np.unique(np.concatenate([lesions[np.isfinite(lesions)], false]))[::-1]
    # How many scores are at least a threshold, from the sorted scores.
    found = lesions.size - np.searchsorted(np.sort(lesions), thresholds, side="left")
    wrong = false.size - np.searchsorted(np.sort(false), thresholds, side="left")
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = np.concatenate([[0], wrong]) / float(len(cases))
        sensitivity = np.concatenate([[0], found]) / float(lesions.size)
    return rates, sensitivity


def froc_scores(cases: Sequence[ScoredCase]) -> dict[float, float]:
    """Sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per scan; the mean of the seven is LUNA16's score.

    Between two points of the curve it is interpolated linearly, beyond the last it stays (LUNA16, MONAI). NaN without
    lesions.

    Args:
        cases: All scans of a part.
    """
    rates, sensitivity = froc_curve(cases, most=FROC_RATES[-1])
    if np.isnan(sensitivity).any() or not cases:
        return dict.fromkeys(FROC_RATES, math.nan)
    return {rate: float(np.interp(rate, rates, sensitivity)) for rate in FROC_RATES}


def scored_cases(records: Sequence[Mapping[str, Any]], name: str) -> list[ScoredCase] | None:
    """The scored lesions of records; None where a case has no scores.

    Args:
        records: With the columns of `lesion_row`; cases in which the structure was not annotated are passed over.
        name: Of the structure.
    """
    found = []
    for record in records:
        counts = [float(record.get(f"{key}/{name}", math.nan)) for key in COUNTS[:2]]
        if any(math.isnan(count) for count in counts):
            continue
        text = record.get(f"{CANDIDATES}/{name}")
        if not isinstance(text, str):
            return None
        found.append(ScoredCase.of(int(sum(counts)), read_candidates(text)))
    return found
