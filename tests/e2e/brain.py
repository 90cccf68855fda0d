"""A generated data set of four channels with structures that lie within each other, as brain tumours do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medtrain.data.io.nifti import write_image
from tests.data.small_data import grid_of

CHANNELS = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "CT"}
LABELS = {"0": "background", "1": "edema", "2": "core", "3": "enhancing"}
REGIONS = "data.regions={whole: [edema, core, enhancing], tumour_core: [core, enhancing], active: [enhancing]}"
TINY = [
    "data.patch_size=[16,16,16]",
    "data.batch_size=2",
    "data.num_folds=3",
    "model.channels=[4,8]",
    "trainer.precision=fp32",
    "trainer.num_threads=1",
    "trainer.max_steps=3",
    "trainer.eval_every=3step",
    "trainer.log_every=1step",
    "logger=[csv,jsonl]",
    "callbacks=[metrics_table]",
    "inference.mirror=false",
]


def make_brains(root: Path, *, cases: int = 6, ignore: bool = False, **description: Any) -> Path:
    """Write scans in the Decathlon's layout, one 4-D file each; channel c is 10^c times as bright as the first.

    Args:
        root: Where to write.
        cases: How many.
        ignore: Voxels of one half have the value 4, which is the ignore label.
        description: Further entries of `dataset.json`.
    """
    shape, rng = (18, 20, 22), np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir(parents=True)
    axes = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    training = []
    for index in range(cases):
        centre = [n / 2 + rng.uniform(-2, 2) for n in shape]
        distance = np.sqrt(sum((axis - at) ** 2 for axis, at in zip(axes, centre)))
        label = np.digitize(-distance, [-7.0, -5.0, -3.0]).astype(np.uint8)
        image = 100 + 40 * label + rng.normal(0, 5, (4, *shape))
        image *= np.array([1, 10, 100, 1])[:, None, None, None]
        if ignore:
            label[: shape[0] // 2] = 4
        name, grid = f"brain_{index}.nii.gz", grid_of(shape, (1.0, 1.0, 1.0))
        write_image(root / "imagesTr" / name, image.astype(np.float32), grid)
        write_image(root / "labelsTr" / name, label[None], grid)
        training.append({"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"})
    labels: Mapping[str, str] = {**LABELS, "4": "ignore"} if ignore else LABELS
    content = {"name": "Brains", "modality": CHANNELS, "labels": labels, "training": training, **description}
    (root / "dataset.json").write_text(json.dumps(content))
    return root
