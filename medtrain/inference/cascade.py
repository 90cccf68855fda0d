"""The first stage of a cascade at work: its label maps of the cases in a store, and of new scans."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from torch import Tensor

from medtrain.data.cascade import PreviousStage, who_predicts
from medtrain.data.preprocess import prepare_image
from medtrain.data.source import Progress
from medtrain.data.store import case_folder, hints_intact, write_hints
from medtrain.errors import MedtrainError
from medtrain.inference.scans import read_scan
from medtrain.tasks.segmentation import Segmentation

if TYPE_CHECKING:
    from medtrain.data.geometry import CaseGeometry
    from medtrain.data.plan import Plan
    from medtrain.data.store import Store
    from medtrain.engine.restore import LoadedRun

log = logging.getLogger(__name__)

_BOUNDS = ("max_memory", "window_batch")
"""Settings of inference that change no result; `medtrain predict` is given them for both stages."""


class FirstStage:
    """The networks behind which another one was, or will be, trained. Opened when they are needed.

    Args:
        root: Their run or cross-validation, `data.cascade_from`.
        stage: What is known of them.
        device: auto, cpu, cuda or mps.
        inference: Settings of the network behind; its bounds on time and memory, where it has some, hold for these too.

    Raises:
        MedtrainError: They are missing, or others than those that are known.
    """

    def __init__(
        self, root: Path, stage: PreviousStage, *, device: str = "auto", inference: Mapping[str, Any] | None = None
    ) -> None:
        stage.check(root)
        self._root = root
        self._stage = stage
        self._device = device
        given = inference or {}
        self._bounds = {key: given[key] for key in _BOUNDS if given.get(key) is not None}
        self._members: tuple[int, ...] = ()
        self._runs: list[LoadedRun] = []
        self._last: tuple[Any, np.ndarray] | None = None

    @classmethod
    def behind(cls, run: LoadedRun) -> FirstStage | None:
        """The first stage of an opened run, or None where the run is no cascade."""
        if run.plan.cascade is None:
            return None
        root = Path(run.config["data"]["cascade_from"])
        return cls(root, run.plan.cascade, device=run.device.type, inference=run.config["inference"])

    def add_channels(self, image: Tensor, files: Sequence[Path], geometry: CaseGeometry) -> Tensor:
        """Put what all of them together find in a scan behind the channels of its image [C, D, H, W].

        Args:
            image: On the grid of the second network.
            files: Of the scan.
            geometry: How it came to that grid.
        """
        hints = torch.from_numpy(self.predict(files, geometry))
        return torch.cat([image, self._stage.channels(hints[None])[0]])

    def predict(
        self, files: Sequence[Path], geometry: CaseGeometry, members: Sequence[int] | None = None
    ) -> np.ndarray:
        """What they find in a scan.

        Args:
            files: Of the scan.
            geometry: How it comes to the grid of the second network.
            members: Which of them; None lets all decide together.

        Returns:
            Class indices [D, H, W] of the first stage on the grid of the second network.
        """
        chosen = tuple(range(len(self._stage.members))) if members is None else tuple(members)
        asked = (tuple(files), geometry, chosen)
        if self._last is None or self._last[0] != asked:  # the members of an ensemble ask one after the other
            self._last = asked, self._predict(files, geometry, chosen)
        return self._last[1]

    def _predict(self, files: Sequence[Path], geometry: CaseGeometry, members: tuple[int, ...]) -> np.ndarray:
        self._open(members)
        first = self._runs[0]
        nonzero = any(channel.nonzero for run in self._runs for channel in run.plan.normalization)
        prepared = prepare_image(read_scan(files), first.plan.spacing, nonzero=nonzero)
        images = [torch.from_numpy(prepared.normalized(run.plan.normalization)) for run in self._runs]
        assert isinstance(first.task, Segmentation), first.task
        with torch.inference_mode(), first.precision.autocast():
            label = first.task.predict_label([run.model for run in self._runs], images, prepared.geometry, final=True)
        return geometry.apply_label(label)

    def _open(self, members: tuple[int, ...]) -> None:
        from medtrain.engine.restore import load_run  # it opens data, which may be that of a cascade

        if members != self._members:
            self._runs = []  # one set of networks at a time
            folders = [self._root / self._stage.members[index] for index in members]
            self._runs = [load_run(folder, self._config(folder), device=self._device) for folder in folders]
            self._members = members

    def _config(self, folder: Path) -> dict[str, Any]:
        config = _read_config(folder)
        return {**config, "inference": {**config["inference"], **self._bounds}}


def open_first_stage(config: Mapping[str, Any], stage: PreviousStage, *, device: str) -> list[LoadedRun]:
    """Open all networks of the first stage, in float32.

    Args:
        config: The completed configuration of the second stage.
        stage: What is known of them.
        device: auto, cpu, cuda or mps.

    Raises:
        MedtrainError: They are missing, or others than those that are known.
    """
    from medtrain.engine.restore import load_run  # it opens data, which may be that of a cascade

    root = Path(config["data"]["cascade_from"])
    stage.check(root)
    folders = [root / member for member in stage.members]
    return [load_run(folder, _read_config(folder), device=device, precision="fp32") for folder in folders]


def make_hints(
    config: Mapping[str, Any],
    plan: Plan,
    store: Store,
    case_ids: Sequence[str],
    *,
    progress: Progress | None = None,
) -> int:
    """Let the first stage of a cascade segment the cases of a store of which its label map is missing or damaged.

    Args:
        config: The completed configuration of the second stage.
        plan: Of the second stage.
        store: Its prepared cases.
        case_ids: Cases that are used.
        progress: Told how far it is.

    Returns:
        How many cases were segmented now.

    Raises:
        MedtrainError: The first stage is missing, or another one than this network was trained behind; or the store may
            only be read.
    """
    assert plan.cascade is not None
    stage, root = plan.cascade, Path(config["data"]["cascade_from"])
    first = FirstStage(root, stage, device=config["trainer"]["device"], inference=config["inference"])
    members = who_predicts(stage, root, case_ids)
    todo = []
    for case_id, chosen in members.items():
        folder = case_folder(store.root, store.keys[case_id])
        if not hints_intact(folder, stage.hint_name(chosen)):
            todo.append((chosen, case_id, folder))
    if not todo:
        return 0
    closed = [folder for _, _, folder in todo if not os.access(folder, os.W_OK)]
    if closed:
        raise MedtrainError(
            f"what the first stage finds is kept beside the prepared cases, and {len(closed)} of them belong to "
            f"another user, such as {closed[0]}",
            hint="set data.store to a folder of your own",
        )
    log.info("the first stage segments %d of %d cases", len(todo), len(case_ids))
    threads = torch.get_num_threads()
    with torch.random.fork_rng():  # whether hints were there already must not change what follows
        for number, (chosen, case_id, folder) in enumerate(sorted(todo), start=1):
            case = store.case(case_id)
            hints = first.predict(case.case.images, case.geometry, chosen)
            write_hints(folder, stage.hint_name(chosen), hints, plan.patch_size)
            if progress is not None:
                progress(number, len(todo), case_id)
    torch.set_num_threads(threads)
    return len(todo)


def _read_config(folder: Path) -> dict[str, Any]:
    """The completed configuration of a run."""
    try:
        config: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise MedtrainError(f"the configuration of {folder} cannot be read: {error}") from error
    return config
