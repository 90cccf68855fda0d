"""Short texts for keys and values, where there is little room: a live table, the axes of a picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_LEAST = 2  # characters; `p` alone says nothing


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The shortest end of each dotted key that no other key shares: `optimizer.lr` becomes `lr`.

    Args:
        keys: Dotted keys, all different.
    """
    parts = {key: key.split(".") for key in keys}
    short = {}
    for key, words in parts.items():
        for count in range(1, len(words) + 1):
            end = words[-count:]
            name = ".".join(end)
            others = (other for other in parts.values() if other is not words)
            if len(name) >= _LEAST and not any(other[-count:] == end for other in others):
                break
        short[key] = name
    return short


def format_number(value: float, digits: int = 4) -> str:
    """A number in few characters: `0.00032`, `3.2e-5`, `12000`, `-` for none.

    Args:
        value: NaN is none.
        digits: Significant digits.
    """
    if isinstance(value, float) and math.isnan(value):
        return "-"
    if isinstance(value, int) and abs(value) < 10**6:
        return str(value)
    text = f"{value:.{digits}g}"
    mantissa, sign, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if sign else text


def format_score(value: float) -> str:
    """A value of an objective, with decimals that stand below each other: `0.9350`, `25.66`, `4.1e6`."""
    if math.isnan(value):
        return "-"
    size = abs(value)
    if size == 0 or 0.01 <= size < 10:
        return f"{value:.4f}"
    return f"{value:.2f}" if 10 <= size < 10000 else format_number(float(value))


def format_spread(value: float) -> str:
    """A spread or a difference of scores, with as many decimals as they have: `0.0069`."""
    return f"{value:.4f}" if 5e-5 <= abs(value) < 10 else format_number(float(value), 2)


def format_value(value: Any, digits: int = 4) -> str:
    """A value of a parameter: numbers in few digits, texts as they are, on one line."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return format_number(value, digits)
    return " ".join(str(value).split())


def format_params(params: Mapping[str, Any], short: Mapping[str, str]) -> str:
    """A point of the space on one line: `lr 3.2e-4, loss focal`.

    Args:
        params: The point.
        short: Names of the keys, from `short_names`.
    """
    return ", ".join(f"{short.get(key, key)} {format_value(value, 3)}" for key, value in params.items())


def format_duration(seconds: float) -> str:
    """A time in the two units that matter: `2 d 3 h`, `1 h 05 min`, `3 min 20 s`, `48 s`, `0.4 s`."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours == 0:
        return f"{minutes} min {rest:02} s"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes:02} min"


def count_of(count: int, thing: str, things: str = "") -> str:
    """A number with what it counts: `1 trial`, `2 trials`.

    Args:
        count: How many.
        thing: One of them.
        things: Several of them, where that is more than an added s.
    """
    return f"{count} {thing if count == 1 else things or f'{thing}s'}"


def elide(text: str, width: int) -> str:
    """Cut the middle out of a text that is too long.

    Args:
        text: Made to fit on one line.
        width: Most characters, at least 5.
    """
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    tail = (width - 2) // 2
    return f"{text[: width - 2 - tail]}..{text[len(text) - tail :]}"


def elide_all(texts: Sequence[str], width: int) -> list[str]:
    """Cut texts that are too long, and number those that look the same afterwards.

    Args:
        texts: All different.
        width: Most characters, at least 8.
    """
    cut = [elide(text, width) for text in texts]
    seen: dict[str, int] = {}
    unique = []
    for text in cut:
        seen[text] = seen.get(text, 0) + 1
        mark = f" #{seen[text]}"
        unique.append(f"{elide(text, width - len(mark))}{mark}" if cut.count(text) > 1 else text)
    return unique
