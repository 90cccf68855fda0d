"""Decisions belong to weights and settings, and one does not replace another."""

from __future__ import annotations

from pathlib import Path

from medtrain.engine.decisions import FILE_NAME, read_decision, save_decision


def test_each_weights_and_settings_have_their_own(tmp_path: Path) -> None:
    youden = {"threshold": "youden", "mirror_axes": (1,)}
    assert read_decision(tmp_path, 5, youden) == {}
    save_decision(tmp_path, 5, youden, {"threshold/b": 0.25})
    save_decision(tmp_path, 9, youden, {"threshold/b": 0.5})
    save_decision(tmp_path, 5, {**youden, "calibrate": True}, {"temperature": 1.5})
    assert read_decision(tmp_path, 5, youden) == {"threshold/b": 0.25}
    assert read_decision(tmp_path, 9, {"mirror_axes": [1], "threshold": "youden"}) == {"threshold/b": 0.5}
    assert read_decision(tmp_path, 5, {"threshold": 0.5}) == {}


def test_nothing_to_keep_leaves_no_file(tmp_path: Path) -> None:
    save_decision(tmp_path, 5, {}, {})
    assert not (tmp_path / FILE_NAME).exists()
