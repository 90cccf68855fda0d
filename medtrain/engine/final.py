"""What is made of the best weights of a run that has trained: they are judged, and its adapter is written."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from medtrain.callbacks.previews import save_picture
from medtrain.engine.checkpoint import Checkpoint
from medtrain.engine.decisions import save_decision
from medtrain.engine.explaining import draw_evaluation
from medtrain.engine.loop import Engine
from medtrain.engine.predictions import FOLDER, PredictionWriter
from medtrain.run.atomic import atomic_dir
from medtrain.run.folder import RunFolder
from medtrain.tasks.base import Record

log = logging.getLogger(__name__)


def final_evaluation(
    engine: Engine, folder: RunFolder, inference: Mapping[str, Any], *, save_predictions: bool = False
) -> dict[str, float]:
    """Judge the best weights on every validation case with the full protocol, write the tables, return the metrics.

    Args:
        engine: The engine, after its fit.
        folder: The run's folder.
        inference: Settings of the inference, with which decisions are kept.
        save_predictions: Keep the label maps; the task is a segmentation.
    """
    task: Any = engine.task
    if save_predictions:
        task.on_prediction = PredictionWriter(folder.evaluation / FOLDER, engine.data, task.plan.label_values)
    with best_weights(engine) as best:
        engine.task.use_decision({})
        records = engine.evaluate(limit=None, final=True)
        decision = engine.task.fit_decision(records)
        records = engine.task.decide(records)
        summary = engine.task.summarize(records)
        if engine.dist.is_main:
            save_decision(folder.path, best.step, inference, decision)
            facts = {"checkpoint": best.path.name, "weights": "ema" if best.has_ema else "raw", "part": "val"}
            engine.task.write_evaluation(folder.evaluation, records, summary, extra=facts)
            _draw(engine, folder, records, best.step)
    if engine.dist.is_main:
        name = engine.monitor.name.removeprefix("val/")
        how = " ".join(
            ["final evaluation of step", str(best.step), f"on {len(records)} cases", engine.task.describe_final()]
        )
        log.info("%s: %s %.4f", how.strip(), name, summary[name])
        worst = engine.task.worst_cases(records)
        log.info("worst cases: %s", ", ".join(f"{case} {score:.4f}" for case, score in worst))
    torch.cuda.empty_cache()
    return {f"val/{name}": value for name, value in summary.items()}


def _draw(engine: Engine, folder: RunFolder, records: Sequence[Record], step: int) -> None:
    with engine.evaluation_weights():
        pictures = draw_evaluation(engine.task, engine.model, engine.data.judged_items, records, step=step)
    for name, pixels in pictures.items():
        save_picture(folder.evaluation / f"{name}.png", pixels)
        engine.loggers.log_image(engine.step, f"evaluation/{name}", pixels)


@contextlib.contextmanager
def best_weights(engine: Engine) -> Iterator[Checkpoint]:
    """The model with the weights of its best checkpoint; with those it was trained to afterwards."""
    best = engine.checkpoints.best() or engine.checkpoints.last()
    assert best is not None
    state = engine.model.state_dict()
    changing = state if best.constant is None else best.constant.drop(state)
    trained = {name: tensor.detach().clone() for name, tensor in changing.items()}
    ema, engine.ema = engine.ema, None
    try:
        best.load_into(engine.model, ema=best.has_ema)
        yield best
    finally:
        engine.model.load_state_dict(trained, strict=False)
        engine.ema = ema


def save_adapter(engine: Engine, folder: RunFolder) -> None:
    """Write what a frozen model was adapted with, in the format of its own library, if it is such a model.

    Args:
        engine: After its fit; a model that offers `save_adapter(folder)` is asked to.
        folder: The run's folder; the files are of its best weights.
    """
    write = getattr(engine.model, "save_adapter", None)
    if write is None:
        return
    with best_weights(engine) as best, atomic_dir(folder.adapter, existing="replace") as partial:
        write(partial)
    size = sum(path.stat().st_size for path in folder.adapter.iterdir())
    log.info("adapter of step %d (%.1f MB): %s", best.step, size / 1e6, folder.adapter)
