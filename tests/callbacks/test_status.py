from __future__ import annotations

from pathlib import Path
from typing import Any

from medtrain.callbacks.status import StatusHeartbeat
from medtrain.run.folder import RunFolder


def test_the_status_file_follows_the_run(view: Any, tmp_path: Path) -> None:
    folder = RunFolder.create(experiment="liver", root=tmp_path)
    folder.start()
    callback = StatusHeartbeat(folder)
    view.log(callback, 5, {"train/loss": 1.0})
    assert folder.read_status().step == 5
    view.log(callback, 6, {"train/loss": 1.0})  # too soon to be worth a write
    view.evaluate(callback, 7, improved=True, val_dice=0.5)  # news
    view.evaluate(callback, 8, improved=False, val_dice=0.4)
    status = folder.read_status()
    assert (status.state, status.step) == ("running", 7)
    assert status.best == {"metric": "val/dice", "value": 0.5, "step": 7}
