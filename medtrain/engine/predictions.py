"""The label maps of a final evaluation, kept beside its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medtrain.data.io.nifti import write_label
from medtrain.tasks.base import Batch

FOLDER = "predictions"
"""Below the folder of an evaluation."""


class PredictionWriter:
    """Writes each predicted case as `<case id>.nii.gz`, on its scan's own grid and with the label values of the data.

    Args:
        folder: Where to write; made with the first case.
        data: Of a segmentation run: its store knows the files of every case.
        label_values: Value in the label files of each class index.
    """

    def __init__(self, folder: Path, data: Any, label_values: tuple[int, ...]) -> None:
        self._folder, self._data = folder, data
        self._values = np.array(label_values)

    def __call__(self, item: Batch, label: np.ndarray) -> None:
        """Write one case.

        Args:
            item: The evaluation item of the case.
            label: Class indices [D, H, W] on the scan's whole grid.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        like = self._data.store.case(item["case_id"]).case.images[0]
        path = prediction_file(self._folder, item["case_id"])
        write_label(path, self._values[label], item["geometry"].grid, like=like)


def prediction_file(folder: Path, case_id: str) -> Path:
    """The file of a case."""
    return folder / f"{case_id}.nii.gz"
