"""How a cross-validation is told in one line."""

from __future__ import annotations

import dataclasses

from medtrain.crossval.folder import CrossvalRecord
from medtrain.crossval.launch import outcome


def test_a_metric_that_is_undefined_in_every_fold_ends_nothing() -> None:
    undefined = {"mean": None, "std": None, "values": [None, None]}
    record = CrossvalRecord(num_folds=2, split_hashes=("a", "b"), members=("fold_0", "fold_1"))
    assert outcome(record, "done") == "2 of 2 folds"
    told = outcome(dataclasses.replace(record, metrics={"folds": {"hd95_mm": undefined}}), "done")
    assert told == "2 of 2 folds: hd95_mm -"
    defined = {"hd95_mm": {"mean": 2.5, "std": 0.5, "values": [2.0, 3.0]}}
    assert outcome(dataclasses.replace(record, metrics={"folds": defined}), "done").endswith("hd95_mm 2.5000 +- 0.5000")
    assert outcome(record, "SIGTERM") == "2 of 2 folds, SIGTERM"
