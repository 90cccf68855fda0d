"""Checkpoints that are complete or absent, safe to open, and found again after any crash.

A checkpoint is a folder `checkpoints/step_00001200/`:

- `model.safetensors`, and `ema.safetensors` when an average is kept; without what is locked and stands in the file of
  pretrained weights as it is, of which `meta.json` has the names and a digest (`medtrain.models.constant`),
- `state.pt`: optimizer, schedule, scaler, counters, callbacks, random generators; tensors and primitives only, read
  with `weights_only=True`,
- `meta.json`: written last, with the size of every file; a folder without a valid one is not a checkpoint.

It is written under a temporary name, synced and renamed. `last.json` and `best.json` tell people and scripts which
folders to take; what counts here is what the folders say of themselves.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medtrain.errors import MedtrainError
from medtrain.models.constant import ConstantTensors
from medtrain.run.atomic import atomic_dir, atomic_write_json, remove_leftovers

FORMAT_VERSION = 1
_LEAST_FREE = 2**20
_NAME = re.compile(r"^step_(\d{8,})$")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk.

    Args:
        path: Its folder.
        step: Completed optimizer steps.
        meta: The content of `meta.json`.
    """

    path: Path
    step: int
    meta: dict[str, Any]

    def weights(self, *, ema: bool) -> dict[str, Tensor]:
        """The averaged or the raw weights as they were saved, on the CPU: without `constant`."""
        return load_file(self.path / ("ema.safetensors" if ema else "model.safetensors"))

    def load_into(self, model: nn.Module, *, ema: bool) -> None:
        """Give a model the averaged or the raw weights.

        Args:
            model: Built from the configuration of the run, with the pretrained weights where `constant` needs them.
            ema: Which.

        Raises:
            MedtrainError: The pretrained weights are others than those of the run.
        """
        weights = self.weights(ema=ema)
        model.load_state_dict(weights if self.constant is None else self.constant.fill(weights, model))

    @property
    def constant(self) -> ConstantTensors | None:
        """What was left out, because the file of pretrained weights has it."""
        left_out = self.meta.get("constant")
        return None if left_out is None else ConstantTensors.from_json(left_out)

    @property
    def has_ema(self) -> bool:
        """Whether averaged weights were saved."""
        return (self.path / "ema.safetensors").exists()

    def state(self) -> dict[str, Any]:
        """Load everything else: tensors and primitives."""
        state: dict[str, Any] = torch.load(self.path / "state.pt", map_location="cpu", weights_only=True)
        return state


class CheckpointFolder:
    """The checkpoints of a run.

    Args:
        path: The `checkpoints` folder; made when the first checkpoint is saved.
        keep_last: How many of the newest to keep; the best one and kept ones stay besides.
        constant: What of the model is not saved, because it never changes and is in a file already.
    """

    def __init__(self, path: Path, *, keep_last: int = 2, constant: ConstantTensors | None = None) -> None:
        self.path = path
        self.keep_last = keep_last
        self.constant = constant

    def save(
        self,
        step: int,
        *,
        model: dict[str, Tensor],
        ema: dict[str, Tensor] | None,
        state: dict[str, Any],
        meta: dict[str, Any],
        best: bool,
        keep: bool = False,
    ) -> Path:
        """Write a checkpoint, point `last` (and `best`) at it and remove superseded ones.

        Args:
            step: Completed optimizer steps.
            model: Weights by name.
            ema: Averaged weights by name.
            state: Tensors and primitives.
            meta: JSON-able facts about the checkpoint.
            best: Whether this is the best one so far.
            keep: Whether never to remove it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        final = self.path / f"step_{step:08d}"
        facts = {**meta, "step": step, "keep": keep, "best": best}
        if self.constant is not None:
            facts["constant"] = self.constant.to_json()
            model = self.constant.drop(model)
            ema = None if ema is None else self.constant.drop(ema)
        with atomic_dir(final, existing="replace") as folder:
            self._write(folder, model=model, ema=ema, state=state, meta=facts)
        atomic_write_json(self.path / "last.json", {"checkpoint": final.name, "step": step})
        if best:
            atomic_write_json(self.path / "best.json", {"checkpoint": final.name, "step": step, **meta})
        self._remove_superseded()
        return final

    @staticmethod
    def _write(
        folder: Path,
        *,
        model: dict[str, Tensor],
        ema: dict[str, Tensor] | None,
        state: dict[str, Any],
        meta: dict[str, Any],
    ) -> None:
        try:
            save_file(_dense(model), folder / "model.safetensors")
            if ema is not None:
                save_file(_dense(ema), folder / "ema.safetensors")
            torch.save(state, folder / "state.pt")
        except (SafetensorError, RuntimeError) as error:  # both libraries hide the disk's own error
            if shutil.disk_usage(folder).free >= _LEAST_FREE and "os error 28" not in str(error):
                raise
            raise MedtrainError(
                f"the disk is full: cannot write {folder}",
                hint="free some space, then continue with `medtrain resume`; the checkpoints of before are complete",
            ) from error
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        atomic_write_json(folder / "meta.json", {"format": FORMAT_VERSION, **meta, "files": files})

    def list(self) -> list[Checkpoint]:
        """Every complete checkpoint, oldest first."""
        if not self.path.is_dir():
            return []
        found = [read_checkpoint(path) for path in self.path.iterdir() if _NAME.match(path.name)]
        return sorted((c for c in found if c is not None), key=lambda c: c.step)

    def last(self) -> Checkpoint | None:
        """The newest complete checkpoint, whatever the pointer says."""
        found = self.list()
        return found[-1] if found else None

    def best(self) -> Checkpoint | None:
        """The best checkpoint: the newest that was the best when it was saved, if it is complete."""
        marked = [checkpoint for checkpoint in self.list() if checkpoint.meta.get("best")]
        return marked[-1] if marked else None

    def _remove_superseded(self) -> None:
        best = self.best()
        checkpoints = self.list()
        for checkpoint in checkpoints[: -self.keep_last]:
            if not checkpoint.meta.get("keep") and (best is None or checkpoint.step != best.step):
                shutil.rmtree(checkpoint.path, ignore_errors=True)
        remove_leftovers(self.path)


def read_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint in a folder, or None when it is absent or incomplete."""
    match = _NAME.match(path.name)
    try:
        meta = json.loads((path / "meta.json").read_text())
        complete = all((path / name).stat().st_size == size for name, size in meta["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return Checkpoint(path, int(match[1]), meta) if match and complete else None


def check_format(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint of a newer format.

    Raises:
        MedtrainError: The format is not this version's.
    """
    if checkpoint.meta["format"] != FORMAT_VERSION:
        raise MedtrainError(
            f"{checkpoint.path} has format {checkpoint.meta['format']}, this medtrain reads format {FORMAT_VERSION}",
            hint="install the version of medtrain named in the run's env.json",
        )


def _dense(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies: safetensors refuses shared or channels-last storage."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
