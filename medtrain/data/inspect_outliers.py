"""Find the cases that are unlike the others of their data set, and say in what.

Numbers are compared by robust z-scores, (x - median) / scale; the scale is the larger of 1.4826 times the median
absolute deviation and the interquartile range over 1.349, and not below a floor that keeps small differences of nearly
equal cases small. Labels that lie as others do once an axis is mirrored or two classes are exchanged are named as such.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from medtrain.data.inspect_measure import FACES, CaseMeasure, ClassMeasure

THRESHOLD = 4.5
"""Robust z-score from which a number is an outlier."""

LEAST_CASES = 5
"""Fewer cases are not compared with each other."""

_SURE, _LIKELY = 60.0, 40.0
_MOST = 30.0  # how much a single number may say
_MOST_INTENSITY = 4.6
_MOST_TOGETHER = 6.0
_TOGETHER = 3.5
_CHAIN = 0.15  # weight of further findings, which often have the same cause
_USUAL = 0.9
_RARE = 0.1
_IDENTITY = (0.2, 0.03, 0.03, 0.03, 0.04, 0.03)
"""Least scales of what tells classes apart: logarithm of the volume, place, level and contrast."""
_AXES = ("D (inferior-superior)", "H (posterior-anterior)", "W (left-right)")


@dataclass(frozen=True)
class Flag:
    """One thing in which a case is unlike the others.

    Args:
        kind: A word for tables, such as "volume".
        message: In words.
        severity: How unlikely it is; robust z-scores, or more where there is no doubt.
        value: The number, NaN where there is none.
        typical: The median of all cases, NaN where there is none.
    """

    kind: str
    message: str
    severity: float
    value: float = math.nan
    typical: float = math.nan


@dataclass(frozen=True)
class Numbers:
    """Quantities of every case that are told together.

    Args:
        kind: See `Flag`.
        text: In words, with a place for the numbers; or one text per number, of which that of the worst is said.
        values: [N, M].
        floor: The least scale.
        logarithmic: Whether ratios are compared, not differences.
        most: The largest severity.
        between: Between the numbers.
    """

    kind: str
    text: str | tuple[str, ...]
    values: np.ndarray
    floor: float
    logarithmic: bool = False
    most: float = _MOST
    between: str = " x "


@dataclass(frozen=True)
class Findings:
    """What is suspicious about a case.

    Args:
        flags: The worst first.
        unusual: How unlike the others its labels are when everything about a class is taken together; about a standard
            normal number where they are not.
    """

    flags: tuple[Flag, ...] = ()
    unusual: float = 0.0

    @property
    def suspicion(self) -> float:
        """One number to sort cases by: the worst finding and a little of each further one."""
        if not self.flags:
            return max(self.unusual, 0.0)
        first, *others = (flag.severity for flag in self.flags)
        return first + _CHAIN * sum(others)


@dataclass(frozen=True)
class Suspect:
    """A case among the others of its data set.

    Args:
        case_id: The case.
        findings: What is suspicious.
    """

    case_id: str
    findings: Findings

    @property
    def flags(self) -> tuple[Flag, ...]:
        """The worst first."""
        return self.findings.flags

    @property
    def suspicion(self) -> float:
        """See `Findings`."""
        return self.findings.suspicion


def find_outliers(
    cases: Sequence[CaseMeasure],
    class_names: Sequence[str],
    *,
    complete: bool = True,
    calibrated: Sequence[bool] = (),
) -> dict[str, Findings]:
    """What is suspicious in each case.

    Args:
        cases: All cases of the data set.
        class_names: By index, background first.
        complete: Whether every class was annotated in every case; else a class that is missing says nothing.
        calibrated: Of each channel, whether its intensities mean the same in every case, as in CT; else not.

    Returns:
        Findings by case id.
    """
    flags: dict[str, list[Flag]] = {case.case_id: [] for case in cases}
    unusual = dict.fromkeys(flags, 0.0)
    found = [*_same_images(cases), *_without_label(cases, class_names, complete)]
    if len(cases) >= LEAST_CASES:
        for numbers in _scan_numbers(cases, calibrated):
            found += [(cases[index], flag) for index, flag in compare(numbers)]
        for index in range(1, len(class_names)):
            measures = [case.classes.get(index) for case in cases]
            if sum(measure is not None for measure in measures) >= LEAST_CASES:
                alone, together = _compare_class(class_names[index], measures)
                found += [(cases[row], flag) for row, flag in alone]
                for case, score in zip(cases, together.tolist()):
                    unusual[case.case_id] = max(unusual[case.case_id], score)
        found += [*_borders(cases, class_names), *_exchanged(cases, class_names)]
        found += [*_turned(cases, label=True), *_turned(cases, label=False)]
    for case, flag in found:
        flags[case.case_id].append(flag)
    return {
        case_id: Findings(tuple(sorted(part, key=lambda flag: -flag.severity)), unusual[case_id])
        for case_id, part in flags.items()
    }


def typical(values: np.ndarray, floor: float) -> tuple[float, float]:
    """The median and the robust scale of some values; NaN is left out, and both are NaN where nothing else is.

    Args:
        values: [N].
        floor: Least scale.
    """
    known = values[np.isfinite(values)]
    if len(known) == 0:
        return math.nan, math.nan
    middle = float(np.median(known))
    deviation = 1.4826 * float(np.median(np.abs(known - middle)))
    low, high = np.percentile(known, (25, 75))
    return middle, max(deviation, float(high - low) / 1.349, floor)


def robust(values: np.ndarray, floor: float) -> tuple[float, np.ndarray]:
    """The median and the z-scores of some values; see `typical`."""
    middle, scale = typical(values, floor)
    return middle, (values - middle) / scale


def _scan_numbers(cases: Sequence[CaseMeasure], calibrated: Sequence[bool]) -> Iterator[Numbers]:
    spacing = np.array([case.spacing for case in cases])
    yield Numbers("spacing", "spacing {} mm (D H W)", spacing, 0.1, logarithmic=True)
    extent = np.array([case.extent for case in cases])
    yield Numbers("size", "the scan is {} mm large (D H W)", extent, 0.15, logarithmic=True)
    channels = min(len(case.percentiles) for case in cases)
    for channel in range(channels):
        of = f" of channel {channel}" if channels > 1 else ""
        # not the median: it tells how much air was scanned
        values = np.array([case.percentiles[channel] for case in cases])[:, ::2]
        floor = 0.1 * float(np.median(values[:, 1] - values[:, 0]))
        text = f"intensities{of} {{}} (1st to 99th percentile)"
        # whole series of scanners differ in this, and normalisation takes care of it: no label is wrong for that
        most = _MOST if channel < len(calibrated) and calibrated[channel] else _MOST_INTENSITY
        yield Numbers("intensity", text, values, max(floor, 1e-12), most=most, between=" to ")


def _class_numbers(name: str, found: Sequence[ClassMeasure | None]) -> Iterator[Numbers]:
    def column(read: Callable[[ClassMeasure], Sequence[float]], width: int = 1) -> np.ndarray:
        return np.array([[math.nan] * width if m is None else read(m) for m in found], np.float64)

    volume = column(lambda m: (m.volume_ml,))
    yield Numbers("volume", f"volume of {name} {{}} mL", volume, 0.2, logarithmic=True)
    place = tuple(f"{name} lies {{}} % from {low} to {high}" for low, high in FACES)
    yield Numbers("place", place, 100 * column(lambda m: m.centre, 3), 3.0)
    yield Numbers("parts", f"parts of {name}: {{}}", column(lambda m: (m.components,)), 0.35, logarithmic=True)
    reach = column(lambda m: m.reach, 3)
    spread = tuple(f"{name} spreads {{}} mm from {low} to {high} (deviation)" for low, high in FACES)
    yield Numbers("shape", spread, reach, 0.15, logarithmic=True)
    parts = [m.components for m in found if m is not None]
    if sum(count > 1 for count in parts) <= _RARE * len(parts):  # lesions come in any number of parts
        largest = column(lambda m: (m.largest,))
        yield Numbers("parts", f"share of {name} in its largest part {{}} %", 100 * largest, 5.0)
    yield Numbers("level", f"relative intensity of {name} {{}} %", 100 * column(lambda m: (m.level,)), 4.0)
    variation = 100 * column(lambda m: (m.variation,))
    yield Numbers("texture", f"intensities of {name} vary by {{}} %", variation, 0.2, logarithmic=True)
    contrast = 100 * column(lambda m: (m.contrast,))
    floor = max(0.15 * float(np.nanmedian(np.abs(contrast))) if np.isfinite(contrast).any() else 0.0, 0.2)
    yield Numbers("edge", f"contrast of {name} to what is around it {{}} %", contrast, floor)


def _compare_class(name: str, found: Sequence[ClassMeasure | None]) -> tuple[list[tuple[int, Flag]], np.ndarray]:
    """What is unusual of a class, one by one and taken together."""
    everything = list(_class_numbers(name, found))
    flags = [flag for numbers in everything for flag in compare(numbers)]
    kinds = [numbers.kind for numbers in everything if numbers.kind != "parts" for _ in numbers.values.T]
    scores = np.concatenate([_scores(numbers)[0] for numbers in everything if numbers.kind != "parts"], axis=1)
    squares = np.square(np.minimum(scores, _MOST_TOGETHER))
    # the cube root of a mean of m squares is nearly normal (Wilson and Hilferty, 1931)
    variance = 2 / (9 * squares.shape[1])
    together = (np.cbrt(squares.mean(axis=1)) - (1 - variance)) / math.sqrt(variance)
    alone = {row for row, _ in flags}
    for row in np.flatnonzero(together > _TOGETHER).tolist():
        if row not in alone:
            order = np.argsort(-squares[row])
            words = list(dict.fromkeys(kinds[column] for column in order if squares[row, column] > 4))
            said = (
                f"{', '.join(words)} are unusual together"
                if len(words) > 1
                else f"{words[0]} is unusual in several ways"
            )
            message = f"{name}: {said}"
            flags.append((row, Flag("together", message, THRESHOLD * float(together[row]) / _TOGETHER)))
    return flags, together


def _scores(numbers: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of the z-scores [N, M], 0 where a value is missing, and the medians [M]."""
    # an exact 0, of a class without any variation, is far from all others, not infinitely far
    columns = np.log(np.maximum(numbers.values, 1e-6)) if numbers.logarithmic else numbers.values
    compared = [robust(column, numbers.floor) for column in columns.T]
    middles = np.array([math.exp(middle) if numbers.logarithmic else middle for middle, _ in compared])
    return np.nan_to_num(np.abs(np.stack([scores for _, scores in compared], axis=1))), middles


def compare(numbers: Numbers) -> Iterator[tuple[int, Flag]]:
    """Flags of the cases, by position, whose numbers are outliers."""
    scores, middles = _scores(numbers)
    for index in np.flatnonzero(scores.max(axis=1) > THRESHOLD).tolist():
        worst = int(scores[index].argmax())
        value = numbers.values[index]
        if isinstance(numbers.text, str):
            told, usual = (numbers.between.join(f"{n:.3g}" for n in row) for row in (value, middles))
            message = f"{numbers.text.format(told)}, usually {usual}"
        else:
            message = f"{numbers.text[worst].format(f'{value[worst]:.3g}')}, usually {middles[worst]:.3g}"
        severity = min(float(scores[index, worst]), numbers.most)
        yield index, Flag(numbers.kind, message, severity, float(value[worst]), float(middles[worst]))


def _same_images(cases: Sequence[CaseMeasure]) -> Iterator[tuple[CaseMeasure, Flag]]:
    owners: dict[str, list[CaseMeasure]] = defaultdict(list)
    for case in cases:
        owners[case.digest].append(case)
    for same in owners.values():
        for case in same if len(same) > 1 else ():
            others = ", ".join(other.case_id for other in same if other is not case)
            yield case, Flag("duplicate", f"the same image as {others}", _LIKELY)


def _without_label(
    cases: Sequence[CaseMeasure], class_names: Sequence[str], complete: bool
) -> Iterator[tuple[CaseMeasure, Flag]]:
    held = Counter(index for case in cases for index in case.classes)
    usual = [index for index in held if held[index] >= _USUAL * len(cases)]
    for case in cases:
        if not case.classes:
            yield case, Flag("empty", "nothing is labelled", _SURE)
        elif complete and len(cases) >= LEAST_CASES:
            for index in usual:
                if index not in case.classes:
                    message = f"no {class_names[index]}, which {held[index]} of {len(cases)} cases have"
                    yield case, Flag("missing", message, 2 * THRESHOLD)


def _borders(cases: Sequence[CaseMeasure], class_names: Sequence[str]) -> Iterator[tuple[CaseMeasure, Flag]]:
    """Classes at a face of the scan where few cases have theirs."""
    for index in range(1, len(class_names)):
        holders = [case for case in cases if index in case.classes]
        counts = Counter(face for case in holders for face in case.classes[index].borders)
        rare = {face for face, count in counts.items() if count <= _RARE * len(holders)}
        for case in holders:
            faces = [face for face in case.classes[index].borders if face in rare]
            if faces:
                message = f"{class_names[index]} touches the {' and '.join(faces)} end of the scan"
                yield case, Flag("border", message, THRESHOLD)


def _exchanged(cases: Sequence[CaseMeasure], class_names: Sequence[str]) -> Iterator[tuple[CaseMeasure, Flag]]:
    """Pairs of classes each of which is much more like the other one elsewhere than like itself."""
    values = np.full((len(cases), len(class_names), len(_IDENTITY)), np.nan)
    for row, case in enumerate(cases):
        for index, measure in case.classes.items():
            contrast = measure.contrast if math.isfinite(measure.contrast) else 0.0
            values[row, index] = (math.log(measure.volume_ml), *measure.centre, measure.level, contrast)
    held = np.isfinite(values[..., 0])
    usual = np.array(
        [[typical(values[:, c, f], _IDENTITY[f]) for f in range(len(_IDENTITY))] for c in range(held.shape[1])]
    )
    for a, b in itertools.combinations(range(1, len(class_names)), 2):
        both = held[:, a] & held[:, b]
        if both.sum() < LEAST_CASES:
            continue
        own = _unlike(values[both][:, [a, b]], usual[[a, b]])
        other = _unlike(values[both][:, [b, a]], usual[[a, b]])
        for position in np.flatnonzero((own > 3) & (other < own / 2)).tolist():
            message = f"{class_names[a]} and {class_names[b]} look exchanged: each is where and like the other usually"
            severity = _LIKELY + min(float(own[position]), 10.0)
            yield cases[int(np.flatnonzero(both)[position])], Flag("exchanged", message, severity)


def _unlike(values: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """Root mean square z-score [N] of values [N, 2, F]: about 1 where a case is like the others."""
    scores = (values - usual[..., 0]) / usual[..., 1]
    return np.asarray(np.sqrt(np.minimum(np.square(scores), _MOST**2).mean(axis=(1, 2))))


def _turned(cases: Sequence[CaseMeasure], *, label: bool) -> Iterator[tuple[CaseMeasure, Flag]]:
    """Scans or labels that lie on those of the other cases only once axes are mirrored or exchanged."""
    maps = np.stack([(case.occupancy if label else case.thumbnail[None]) for case in cases]).astype(np.float32)
    total = maps.sum(axis=0)
    turns = [
        (order, flips)
        for order in itertools.permutations(range(3))
        for flips in itertools.product((False, True), repeat=3)
        if order == (0, 1, 2) or not any(flips)
    ]
    likeness = np.zeros((len(cases), len(turns)))
    for row in range(len(cases)):
        typical = total - maps[row]  # of the others
        for column, turn in enumerate(turns):
            likeness[row, column] = _cosine(_turn(maps[row], *turn), typical)
    as_is = likeness[:, 0]
    middle, scores = robust(as_is, 0.03)
    for row in np.flatnonzero(np.isfinite(as_is) & (maps.reshape(len(cases), -1) != 0).any(axis=1)).tolist():
        best = int(likeness[row].argmax())
        gain = likeness[row, best] - as_is[row]
        # as it is it must be unlike the others, turned it must be about as like them as they are
        if best and scores[row] < -THRESHOLD and gain > 0.1 and likeness[row, best] > (as_is[row] + 2 * middle) / 3:
            what = "the label" if label else "the scan"
            message = f"{what} looks {_describe_turn(*turns[best])} against the other cases"
            kind = "label turned" if label else "scan turned"
            yield cases[row], Flag(kind, message, _LIKELY + 10 * float(gain), float(as_is[row]), middle)


def _turn(cells: np.ndarray, order: tuple[int, ...], flips: tuple[bool, ...]) -> np.ndarray:
    turned = cells.transpose(0, *(axis + 1 for axis in order))
    return turned[:, :: -1 if flips[0] else 1, :: -1 if flips[1] else 1, :: -1 if flips[2] else 1]


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = float(np.sqrt(np.square(a).sum() * np.square(b).sum()))
    return float((a * b).sum()) / lengths if lengths > 0 else 0.0


def _describe_turn(order: tuple[int, ...], flips: tuple[bool, ...]) -> str:
    if order != (0, 1, 2):
        return f"turned (its axes {', '.join('DHW'[axis] for axis in order)} are where D, H, W should be)"
    return f"mirrored along {' and '.join(_AXES[axis] for axis in range(3) if flips[axis])}"
