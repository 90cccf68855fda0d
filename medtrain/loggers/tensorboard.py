"""TensorBoard event files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medtrain.loggers.base import Logger
from medtrain.registry import register

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@register("logger", "tensorboard", runtime=("run_dir",))
class TensorBoardLogger(Logger):
    """Write event files to tensorboard/: `tensorboard --logdir outputs`.

    Event files cannot be shortened; a resumed run marks where it continues and TensorBoard ignores what came after.

    Args:
        run_dir: The run folder.
        flush_every_s: Longest time that numbers wait in memory, in seconds.
    """

    def __init__(self, *, run_dir: Path, flush_every_s: int = 30) -> None:
        self._folder = run_dir / "tensorboard"
        self._folder.mkdir(exist_ok=True)
        self._flush_every_s = flush_every_s
        self._purge_step: int | None = None
        self._opened: SummaryWriter | None = None

    @property
    def _writer(self) -> SummaryWriter:
        if self._opened is None:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            self._opened = SummaryWriter(str(self._folder), purge_step=self._purge_step, flush_secs=self._flush_every_s)
        return self._opened

    def log_scalars(self, step: int, epoch: int, scalars: Mapping[str, float]) -> None:
        """Write one point per number."""
        for key, value in scalars.items():
            self._writer.add_scalar(key, float(value), step)

    def log_image(self, step: int, tag: str, image: np.ndarray) -> None:
        """Write a picture."""
        self._writer.add_image(tag, image, step, dataformats="HWC")

    def log_text(self, step: int, tag: str, text: str) -> None:
        """Write text."""
        self._writer.add_text(tag, text, step)

    def resume(self, step: int) -> None:
        """Mark that what earlier files hold after `step` does not count."""
        assert self._opened is None, "resume comes before anything is logged"
        if any(self._folder.iterdir()):
            self._purge_step = step + 1

    def flush(self) -> None:
        """Bring the events to the disk."""
        if self._opened is not None:
            self._opened.flush()

    def close(self) -> None:
        """Write what is left and close the file."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None
