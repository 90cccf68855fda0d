"""Writing a config so that it reads back."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from medtrain.config.compose import load_config
from medtrain.config.render import difference, to_flat, to_json, to_yaml, write_override
from medtrain.registry import plain

TREE = {
    "seed": 0,
    "model": {"name": "unet", "channels": (8, 16), "rules": [{"pattern": "enc*", "lr": 1e-05}], "empty": {}},
    "none": None,
    "note": "a: b # c",
    "text": "yes",
    "reference": "${seed}",
    "number": "1e3",
    "empty": "",
    "lines": "one\ntwo",
}  # fmt: skip


def test_yaml_reads_back_with_comments() -> None:
    text = to_yaml(TREE, {"model.channels": "why", "seed": "typed"}.get)
    assert yaml.safe_load(text) == plain(TREE)
    assert "  channels: [8, 16]  # why\n" in text
    assert text.startswith("seed: 0  # typed\nmodel:\n  name: unet\n")


def test_json_reads_back() -> None:
    assert json.loads(to_json(TREE)) == plain(TREE)
    flat = json.loads(to_json({"a": {"b": [1]}}, {"a.b": "typed"}))
    assert flat == {"a.b": {"value": [1], "origin": "typed"}}


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -3, 1e-05, 0.1, 1e300, "unet", "20min", "10%", "a b", "it's", 'say "x"', "back\\slash",
        "null", "true", "1.5", "1e3", "1_000", "nan", "-inf", "", "/data/x-y.z", "~/x", "a,b", "[1]", "{a:1}", "k=v",
        "\u00e9t\u00e9", "${seed}", "007", "trailing\\", "'", [1, [2, "x y"]], [], {}, {"a": [1], "b c": None},
    ],
)  # fmt: skip
def test_an_override_reads_back_as_the_value(value: Any) -> None:
    text = write_override(value)
    parsed = OverridesParser.create().parse_override(f"key={text}").value()
    assert parsed == value
    assert type(parsed) is type(value)


def test_the_flat_form_gives_the_same_config_again(conf: Any) -> None:
    conf.write("experiment/big.yaml", "# @package _global_\ndefaults:\n  - override /optimizer: sgd\nseed: 5\n")
    composed = load_config(["experiment=big", "callbacks=[]", "data.root='a b'", "data.merge={liver:[liver,'x y']}"])
    again = load_config(to_flat(composed.tree).splitlines())
    assert again.tree == composed.tree
    assert not any(isinstance(v, float) and math.isnan(v) for v in again.tree["optimizer"].values())


def test_the_flat_form_has_comments() -> None:
    assert to_flat({"seed": 1, "logger": {}}, {"seed": "typed"}.get) == "logger=[]\nseed=1  # typed\n"


@pytest.mark.usefixtures("conf")
def test_difference() -> None:
    assert difference(load_config()) == {}
    changed = load_config(["optimizer=sgd", "optimizer.momentum=0.5", "model.dropout=0.1", "seed=0", "logger=[csv]"])
    assert difference(changed) == {
        "optimizer": {"name": "sgd", "momentum": 0.5},
        "logger": {"csv": {"name": "csv"}},
    }
    assert difference(load_config(["callbacks=[]"])) == {"callbacks": {}}
    assert difference(load_config(["model.channels=[8,16]", "model.dropout=0.2"])) == {"model": {"dropout": 0.2}}
    added = difference(load_config(["callbacks=[curves,early_stopping]"]))
    assert added == {
        "callbacks": {"early_stopping": {"name": "early_stopping", "patience": 10}, "curves": {"name": "curves"}}
    }
