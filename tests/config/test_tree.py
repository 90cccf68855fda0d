"""Merging with a record of where every value came from."""

from __future__ import annotations

import pytest

from medtrain.config.tree import OriginTree, leaves, lookup, origin_of


@pytest.fixture
def tree() -> OriginTree:
    tree = OriginTree()
    tree.merge({"a": {"x": 1, "y": [1, 2]}, "b": 2}, "first")
    tree.merge({"x": 3, "z": {}}, "second", package="a")
    return tree


def test_later_layers_win_key_by_key(tree: OriginTree) -> None:
    assert tree.values == {"a": {"x": 3, "y": [1, 2], "z": {}}, "b": 2}
    assert tree.origins == {"a.x": "second", "a.y": "first", "a.z": "second", "b": "first"}


def test_a_scalar_replaces_a_mapping_and_its_origins(tree: OriginTree) -> None:
    tree.merge({"a": None}, "third")
    assert tree.values == {"a": None, "b": 2}
    assert tree.origins == {"a": "third", "b": "first"}
    tree.merge({"a": {"k": 1}}, "fourth")
    assert tree.origins == {"a.k": "fourth", "b": "first"}


def test_an_empty_mapping_changes_nothing(tree: OriginTree) -> None:
    tree.merge({"a": {}}, "third")
    assert tree.values["a"]["x"] == 3
    assert tree.origins["a.x"] == "second"


def test_a_layer_is_copied(tree: OriginTree) -> None:
    content = {"c": [1]}
    tree.merge(content, "third")
    assert tree.set("c.0", 9, "typed") is None
    assert content == {"c": [1]}


def test_set(tree: OriginTree) -> None:
    assert tree.set("a.y.1", 5, "typed") is None
    assert tree.set("b", None, "typed") is None
    assert tree.set("b.deep", 1, "typed") is None  # a null becomes a mapping: an optional group of values is given
    assert tree.values == {"a": {"x": 3, "y": [1, 5], "z": {}}, "b": {"deep": 1}}
    assert tree.origins["a.y"] == "typed"
    assert tree.origins["b.deep"] == "typed"
    assert "b" not in tree.origins


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("a.x.k", "`a.x` is a single value and has no keys"),
        ("a.y.2", "the list has 2 items"),
        ("a.y.first", "the list has 2 items"),
        ("a.y.7.k", "the list has 2 items"),
    ],
)
def test_what_cannot_be_set(tree: OriginTree, key: str, reason: str) -> None:
    assert tree.set(key, 1, "typed") == reason


def test_origin_of_an_item_is_that_of_its_list() -> None:
    origins = {"optimizer.rules": "file", "seed": "typed"}
    assert origin_of(origins, "optimizer.rules[0].lr_mult") == "file"
    assert origin_of(origins, "optimizer.lr") is None


def test_leaves_and_lookup(tree: OriginTree) -> None:
    assert dict(leaves(tree.values)) == {"a.x": 3, "a.y": [1, 2], "a.z": {}, "b": 2}
    assert lookup(tree.values, "a.y.1") == 2
    with pytest.raises(KeyError):
        lookup(tree.values, "a.q")
