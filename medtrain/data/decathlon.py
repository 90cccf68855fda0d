"""The ten tasks of the Medical Segmentation Decathlon (Antonelli et al. 2022): what and where they are."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from medtrain.errors import UsageError
from medtrain.registry import closest

SOURCE = "https://msd-for-monai.s3-us-west-2.amazonaws.com"
"""The Decathlon in the registry of open data at AWS (CC-BY-SA 4.0)."""


@dataclass(frozen=True)
class Task:
    """A task of the Decathlon.

    Args:
        preset: Its data preset.
        folder: Its folder, and the stem of its archive.
        about: What is segmented in what.
        size: Bytes of the archive, about.
        md5: Checksum of the archive, as MONAI's DecathlonDataset (Apache-2.0) has it.
    """

    preset: str
    folder: str
    about: str
    size: float
    md5: str

    @property
    def url(self) -> str:
        """Where the archive is."""
        return f"{SOURCE}/{self.folder}.tar"


TASKS = (
    Task("msd_brain_tumour", "Task01_BrainTumour", "brain tumours, MR", 7.6e9, "240a19d752f0d9e9101544901065d872"),
    Task("msd_heart", "Task02_Heart", "left atrium, MR", 0.46e9, "06ee59366e1e5124267b774dbd654057"),
    Task("msd_liver", "Task03_Liver", "liver and tumour, CT", 28.9e9, "a90ec6c4aa7f6a3d087205e23d4e6397"),
    Task("msd_hippocampus", "Task04_Hippocampus", "hippocampus, MR", 0.028e9, "9d24dba78a72977dbd1d2e110310f31b"),
    Task("msd_prostate", "Task05_Prostate", "prostate zones, MR", 0.24e9, "35138f08b1efaef89d7424d2bcc928db"),
    Task("msd_lung", "Task06_Lung", "lung tumours, CT", 9.2e9, "8afd997733c7fc0432f71255ba4e52dc"),
    Task("msd_pancreas", "Task07_Pancreas", "pancreas and tumour, CT", 12.3e9, "4f7080cfca169fa8066d17ce6eb061e4"),
    Task("msd_hepatic_vessel", "Task08_HepaticVessel", "liver vessels, CT", 9.3e9, "641d79e80ec66453921d997fbf12a29c"),
    Task("msd_spleen", "Task09_Spleen", "spleen, CT", 1.6e9, "410d4a301da4e5b2f6f86ec3ddba524e"),
    Task("msd_colon", "Task10_Colon", "colon cancer, CT", 6.2e9, "bad7a188931dc2f6acf72b08eb6202d0"),
)


def find_task(wanted: str) -> Task:
    """The task with this preset or folder.

    Raises:
        UsageError: There is none; names the closest.
    """
    names = {name: task for task in TASKS for name in (task.preset, task.folder)}
    if wanted in names:
        return names[wanted]
    near = closest(wanted, names)
    hint = f"did you mean {near}?" if near else f"there are {', '.join(task.preset for task in TASKS)}"
    raise UsageError(f"{wanted} is no task of the Decathlon", hint=hint)


def default_folder() -> Path:
    """Where the presets `msd_*` look for the tasks."""
    return Path(os.environ.get("MEDTRAIN_DATA", "data"))


def how_to_get(folder: str, to: Path) -> str:
    """What to type to get the task that has this folder name, or any.

    Args:
        folder: Name of a task's folder, or anything else.
        to: The folder it shall lie in.
    """
    task = next((task for task in TASKS if task.folder == folder), None)
    if task is None:
        return "or get a task of the Decathlon: `medtrain data download NAME`; about it: medicaldecathlon.com"
    where = (
        ""
        if to.expanduser().absolute() == default_folder().expanduser().absolute()
        else f" --to {shlex.quote(str(to))}"
    )
    return f"or get it: `medtrain data download {task.preset}{where}`; about it: medicaldecathlon.com"
