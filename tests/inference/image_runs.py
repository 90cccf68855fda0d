"""A stand-in for a trained run on images: a plan by hand and a linear network, so that nothing has to be trained."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from medtrain import registry
from medtrain.data.images.plan import ImagePlan, TargetPlan
from medtrain.data.tabular import CategoryState, NumericState, TabularEncoder
from medtrain.engine.precision import Precision

CPU = torch.device("cpu")
SIZE = (8, 8)
FINDING = TargetPlan("finding", ("healthy", "nodule", "effusion"), (4, 4, 4))
TABLE = TabularEncoder(
    (NumericState("age", fill=50.0, mean=40.0, scale=10.0),), (CategoryState("sex", ("f", "m")),), indicators=True
)


class Linear(nn.Module):
    """Logits that are linear in everything it takes; bags are averaged with attention by brightness."""

    def __init__(self, plan: ImagePlan, num_outputs: int) -> None:
        super().__init__()
        names = ["image"] if plan.has_images else []
        self.several = plan.several_images
        if self.several or plan.optional_image:
            names.append("present")
        if plan.tabular is not None:
            names += ["numeric", "categorical", "observed"]
        self.inputs = tuple(names)
        generator = torch.Generator().manual_seed(1)
        pixels = plan.in_channels * int(np.prod(plan.image_size)) if plan.has_images else 0
        width = pixels + len(plan.numeric_names) + len(plan.category_sizes)
        self.weight = nn.Parameter(torch.randn(width, num_outputs, generator=generator) * 0.2)

    def forward(
        self,
        image: Tensor | None = None,
        present: Tensor | None = None,
        numeric: Tensor | None = None,
        categorical: Tensor | None = None,
        observed: Tensor | None = None,
    ) -> Tensor | dict[str, Tensor]:
        parts, attention = [], None
        if image is not None:
            pixels = image.flatten(2 if self.several else 1)
            if self.several:
                assert present is not None
                attention = pixels.mean(2).masked_fill(~present, -1e9).softmax(1)
                pixels = (pixels * attention.unsqueeze(2)).sum(1)
            elif present is not None:
                pixels = pixels * present
            parts.append(pixels)
        if numeric is not None and categorical is not None and observed is not None:
            parts += [numeric, categorical * observed[:, -categorical.shape[1] :]]
        logits = torch.cat(parts, 1) @ self.weight
        return logits if attention is None else {"logits": logits, "attention": attention}


def plan(*targets: TargetPlan, **changes: Any) -> ImagePlan:
    """Grey pictures of 8 x 8 pixels in batches of 3."""
    values: dict[str, Any] = {
        "spatial_dims": 2,
        "image_size": SIZE,
        "in_channels": 1,
        "batch_size": 3,
        "mean": (0.4,),
        "std": (0.2,),
        "targets": targets or (FINDING,),
        "reasons": {"data.channels": "the images are grey"},
    }
    if changes.get("tabular") is not None:
        values |= {"numeric_names": TABLE.numeric_names, "category_sizes": (4,)}
    return ImagePlan(**{**values, **changes})


def run(
    its_plan: ImagePlan,
    folder: Path,
    *,
    task: str = "classification",
    loss: str = "ce",
    data: dict[str, Any] | None = None,
    inference: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    decision: dict[str, float] | None = None,
    precision: str = "fp32",
) -> Any:
    """What `load_run` gives."""
    name = (data or {}).get("name", "image_folder")
    config = {
        "seed": 0,
        "trainer": {"precision": precision},
        "task": {"name": task, **registry.get("task", task).defaults(), **(settings or {})},
        "loss": {"name": loss, **registry.get("loss", loss).defaults()},
        "model": {"name": "linear"},
        "data": {"name": name, **registry.get("data", name).defaults(), **(data or {})},
        "augment": {"name": "images_none", **registry.get("augment", "images_none").defaults()},
        "inference": {"name": "images", **registry.get("inference", "images").defaults(), **(inference or {})},
    }
    known = its_plan.runtime()
    made = registry.build(
        "task",
        config["task"],
        loss=registry.build("loss", config["loss"], **known),
        inference=registry.build("inference", config["inference"]),
        plan=its_plan,
        device=CPU,
        memory_format=None,
    )
    made.use_decision(decision or {})
    run_dir = folder / "outputs" / "chest" / "20261120-11-abcd"
    run_dir.mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(
        model=Linear(its_plan, made.runtime()["num_outputs"]).eval(),
        task=made,
        plan=its_plan,
        config=config,
        run_dir=run_dir,
        step=7,
        weights="raw",
        metrics={},
        device=CPU,
        precision=Precision("fp32", CPU),
    )


def picture(path: Path, seed: int, shape: tuple[int, ...] = SIZE, *, dtype: Any = np.uint8) -> Path:
    """Smooth noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).random((4, 4, *shape[2:]))
    smooth = cv2.resize(coarse, shape[1::-1], interpolation=cv2.INTER_LINEAR)
    assert cv2.imwrite(str(path), (smooth * np.iinfo(dtype).max).astype(dtype))
    return path


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A CSV file."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_table(path: Path) -> dict[str, dict[str, str]]:
    """The rows of a CSV file by case."""
    with path.open(encoding="utf-8", newline="") as stream:
        return {row["case_id"]: row for row in csv.DictReader(stream)}
