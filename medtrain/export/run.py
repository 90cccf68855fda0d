"""Export a run's folder: open it, find a scan to compare on, write the files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medtrain.engine.restore import load_run
from medtrain.errors import MedtrainError
from medtrain.export.exporter import DEFAULT_TOLERANCE, check_request, export_model
from medtrain.export.images import real_sample
from medtrain.export.manifest import describe_precision
from medtrain.export.samples import scan_patch
from medtrain.export.types import ExportedFile, TrainedRun
from medtrain.inference.cascade import open_first_stage
from medtrain.run.log import setup_logging

log = logging.getLogger(__name__)


def export_run(
    run_dir: Path,
    config: Mapping[str, Any],
    formats: Sequence[str],
    out_dir: Path | None = None,
    *,
    checkpoint: str = "best",
    device: str = "cpu",
    tolerance: float = DEFAULT_TOLERANCE,
    overwrite: bool = False,
) -> list[ExportedFile]:
    """Export the weights of a run.

    Args:
        run_dir: The run's folder.
        config: The run's configuration.
        formats: torchscript, onnx, torch_export.
        out_dir: The folder to make; None is `export` in the run's folder.
        checkpoint: `best`, `last` or a checkpoint's name.
        device: Where the network is traced and compared; TorchScript and torch.export files remember it.
        tolerance: Allowed difference relative to the largest logit, > 0.
        overwrite: Replace an earlier export.

    Returns:
        The files with their verdicts.

    Raises:
        MedtrainError: See `export_model`.
    """
    setup_logging()
    out = run_dir / "export" if out_dir is None else out_dir
    check_request(formats, out, overwrite=overwrite)
    loaded = load_run(run_dir, config, checkpoint=checkpoint, device=device, precision="fp32")
    log.info("exporting %s", summarize(loaded))
    precision = describe_precision(config)
    if precision["run"] != precision["files"]:
        log.info("%s", precision["is"])
    samples: list[tuple[str, Any]] = []
    find = scan_patch if loaded.plan.family == "segmentation" else real_sample
    try:
        samples.append(find(config, loaded.plan))
    except MedtrainError as error:
        log.warning("the files are compared on random input only, no case could be read: %s", error.message)
    stages = []
    if loaded.plan.family == "segmentation" and loaded.plan.cascade is not None:
        stages = open_first_stage(config, loaded.plan.cascade, device=device)
        log.info("with it goes the first stage: %s", "; ".join(map(summarize, stages)))
    return export_model(
        loaded, formats, out, tolerance=tolerance, samples=samples, first_stage=stages, overwrite=overwrite
    )


def summarize(loaded: TrainedRun) -> str:
    """Which weights these are: the checkpoint's step, its metric where known, and whether they are averaged."""
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in loaded.metrics.items()) or "not evaluated"
    weights = "averaged weights (ema)" if loaded.weights == "ema" else "weights as trained, not averaged"
    return f"{loaded.run_dir.name} at step {loaded.step}: {metrics}, {weights}"
