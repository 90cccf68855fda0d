"""What the names of lung zones in a frontal radiograph say about their places."""

from __future__ import annotations

import re
from collections.abc import Sequence

_LEVELS = {
    "sup": 0,
    "superior": 0,
    "upper": 0,
    "top": 0,
    "mid": 1,
    "middle": 1,
    "inf": 2,
    "inferior": 2,
    "lower": 2,
    "basal": 2,
}
_SIDES = {"right": 0, "r": 0, "left": 1, "l": 1}
_LETTERS = "abcdef"


def lung_zone(name: str) -> tuple[int, int] | None:
    """Row and column of a lung zone in a frontal radiograph: the patient's right is at the left of the image.

    Args:
        name: A letter of the Brixia score (`A`, `zone_a`), or side and level (`right_sup`, `left lower zone`).
    """
    words = _words(name)
    if _is_letter(words):
        index = _LETTERS.index(words[0])
        return index % 3, index // 3
    sides = [_SIDES[word] for word in words if word in _SIDES]
    levels = [_LEVELS[word] for word in words if word in _LEVELS]
    return (levels[0], sides[0]) if len(words) == 2 and len(sides) == 1 and len(levels) == 1 else None


def opposite_zones(names: Sequence[str]) -> list[tuple[str, str]]:
    """The zones that change places when left and right do, by their names.

    Letters mean zones only where all six are there and each once: anything may be called A and D.

    Args:
        names: Of zones, and maybe of something else.
    """
    lettered = [name for name in names if _is_letter(_words(name))]
    six = len(lettered) == len(_LETTERS) == len({lung_zone(name) for name in lettered})
    places: dict[tuple[int, int], list[str]] = {}
    for name in names:
        place = lung_zone(name)
        if place is not None and (six or name not in lettered):
            places.setdefault(place, []).append(name)
    pairs = [(places.get((row, 0), []), places.get((row, 1), [])) for row in range(3)]
    return [(right[0], left[0]) for right, left in pairs if len(right) == len(left) == 1]


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z]+", name.lower()) if word and word not in ("zone", "lung")]


def _is_letter(words: Sequence[str]) -> bool:
    return len(words) == 1 and len(words[0]) == 1 and words[0] in _LETTERS
