"""Zones that change places with left and right, by their names."""

from __future__ import annotations

import pytest

from medtrain.models.lung_zones import opposite_zones


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        ([f"zone_{letter}" for letter in "abcdef"], [("zone_a", "zone_d"), ("zone_b", "zone_e"), ("zone_c", "zone_f")]),
        ([*"FEDCBA", "age"], [("A", "D"), ("B", "E"), ("C", "F")]),
        (["l_sup", "r_sup", "r_inf", "l_inf"], [("r_sup", "l_sup"), ("r_inf", "l_inf")]),
        (["r_sup", "l_inf"], []),
        (["A", "D"], []),  # findings may be called so
        (["A", "B", "C", "D", "E", "F", "zone_a"], []),
        (["r_sup", "right_sup", "l_sup"], []),
        (["nodule"], []),
    ],
)
def test_zones_of_the_same_level_are_pairs(names: list[str], pairs: list[tuple[str, str]]) -> None:
    assert opposite_zones(names) == pairs
