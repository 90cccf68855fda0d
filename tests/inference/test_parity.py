"""Prediction and evaluation are one path: the same network input and the same segmentation, bit for bit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from medtrain.data.module import SegmentationData
from medtrain.data.plan import ChannelNormalization, Plan
from medtrain.data.prepare import prepare
from medtrain.data.volume_data import VolumeData
from medtrain.engine.precision import Precision
from medtrain.inference.predictor import Predictor
from medtrain.inference.sliding_window import SlidingWindow
from medtrain.losses.dice import DiceCELoss
from medtrain.metrics.cases import evaluate_case
from medtrain.registry import build
from medtrain.tasks.segmentation import Segmentation
from tests.data.small_data import small_dataset, small_plan

CPU = torch.device("cpu")
SCHEMES = {
    "zscore": ChannelNormalization("zscore"),
    "zscore of the body": ChannelNormalization("zscore", nonzero=True),
    "ct": ChannelNormalization("ct", lower=80.0, upper=320.0, mean=150.0, std=60.0),
}


def _run(plan: Plan) -> SimpleNamespace:
    task = Segmentation(
        loss=DiceCELoss(num_classes=3), inference=SlidingWindow(keep_largest=("organ",)), plan=plan, device=CPU
    )
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 3, 3, padding=1)).eval()
    return SimpleNamespace(
        model=model,
        task=task,
        plan=plan,
        run_dir=Path("run"),
        step=1,
        weights="raw",
        device=CPU,
        precision=Precision("fp32", CPU),
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.3, 0.8, 1.1)])
def test_evaluation_and_prediction_agree(scheme: str, spacing: tuple[float, float, float], tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path / "raw", cases=2)
    plan = small_plan(spacing=spacing, normalization=SCHEMES[scheme])
    settings = VolumeData(store=str(tmp_path / "store"))
    store = prepare(dataset, settings, plan, workers=1)
    data = SegmentationData(
        settings=settings,
        dataset=dataset,
        store=store,
        split={"train": ["case_0"], "val": ["case_1"]},
        plan=plan,
        augment=build("augment", {"name": "none"}),
        seed=0,
    )
    item = data.evaluation_item("case_1")
    run = _run(plan)
    predictor = Predictor(run)  # type: ignore[arg-type]
    images = dataset.cases[1].images
    assert torch.equal(predictor._prepare(images).images[0], item["image"])
    prediction = predictor.predict_case(images)
    assert np.unique(prediction).size > 1
    (record,) = run.task.evaluation_step(run.model, item, final=True)
    row = evaluate_case(prediction, item["source_label"], item["geometry"].canonical_spacing, plan.class_names)
    np.testing.assert_equal({key: record[key] for key in row}, row)
    data.close()
