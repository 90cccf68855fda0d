"""A toy task and data set for engine tests: regression by a small network, exact and instant."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medtrain.engine.cadence import Cadence, Cadences, parse_duration
from medtrain.engine.checkpoint import CheckpointFolder
from medtrain.engine.clock import Limit, RunClock
from medtrain.engine.distributed import Dist
from medtrain.engine.ema import EMA
from medtrain.engine.loop import Engine
from medtrain.engine.precision import Precision
from medtrain.engine.stages import Stage, Stages
from medtrain.loggers.base import Logger, LoggerSet
from medtrain.metrics.spec import MetricSpec
from medtrain.tasks.base import StepOutput

CPU = torch.device("cpu")


class ToyData:
    """`samples` random pairs, batches in a fixed order per epoch, the last one short."""

    def __init__(self, samples: int = 20, batch_size: int = 3, features: int = 5) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(samples, features, generator=generator)
        self.y = torch.randn(samples, 1, generator=generator)
        self.batch_size = batch_size
        self.batches_per_epoch = -(-samples // batch_size)
        self.cases_per_item = 1

    def batch(self, index: int) -> dict[str, Any]:
        epoch, position = divmod(index, self.batches_per_epoch)
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(epoch))
        chosen = order[position * self.batch_size : (position + 1) * self.batch_size]
        return {"x": self.x[chosen], "y": self.y[chosen], "weight": len(chosen), "case_id": chosen.tolist()}

    def train_batches(self, start_batch: int, *, rank: int, world_size: int) -> Iterator[dict[str, Any]]:
        for index in itertools.count(start_batch):
            batch = self.batch(index)
            if world_size > 1:
                parts = {k: v[rank::world_size] for k, v in batch.items() if k != "weight"}
                batch = {**parts, "weight": len(parts["x"])}
            yield batch

    def to_device(self, batch: dict[str, Any], device: torch.device, memory_format: Any) -> dict[str, Any]:
        return batch

    def evaluation_cases(self, part: str, *, limit: int | None) -> list[str]:
        return [f"{index:03d}" for index in range(len(self.x))][: limit or None]

    def evaluation_items(self, *, rank: int, world_size: int, limit: int | None) -> Iterator[dict[str, Any]]:
        for index in list(range(len(self.x)))[: limit or None][rank::world_size]:
            yield self.trial_item(f"{index:03d}")

    def trial_item(self, case_id: str) -> dict[str, Any]:
        index = int(case_id)
        return {"case_id": case_id, "x": self.x[index][None], "y": self.y[index][None]}


class ToyTask:
    class_names: Sequence[str] = ()

    def batch_weight(self, batch: dict[str, Any]) -> float:
        return float(batch["weight"])

    def training_step(self, model: nn.Module, batch: dict[str, Any]) -> StepOutput:
        error = (model(batch["x"]) - batch["y"]).square().mean()
        return StepOutput(error, {"train/error": error.detach()})

    def evaluation_step(self, model: nn.Module, item: dict[str, Any], *, final: bool) -> list[dict[str, Any]]:
        return [{"case_id": item["case_id"], "error": float((model(item["x"]) - item["y"]).square())}]

    def begin_evaluation(self) -> None:
        pass

    def summarize(self, records: Sequence[dict[str, Any]]) -> dict[str, float]:
        return {"error": sum(r["error"] for r in records) / len(records)}

    def metrics(self) -> dict[str, MetricSpec]:
        return {"error": MetricSpec("val/error", "min")}

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        output: Tensor = model(batch["x"])
        return output

    def example_batch(self) -> dict[str, Tensor]:
        return {"x": torch.zeros(1, 5)}


class Constant:
    """The schedule of a constant learning rate that counts what it was asked."""

    interval = "step"

    def factor(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        return 1.0 - 0.5 * step / total_steps

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Recorder(Logger):
    """Keeps rows in memory."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_scalars(self, step: int, epoch: int, scalars: Any) -> None:
        self.rows.append((step, {k: v for k, v in scalars.items() if not k.startswith("perf/")}))

    def resume(self, step: int) -> None:
        self.rows = [row for row in self.rows if row[0] <= step]


def network(dropout: float = 0.2) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 1))


def make_engine(
    folder: Path,
    *,
    steps: int = 12,
    accumulate: int = 1,
    data: ToyData | None = None,
    model: nn.Module | None = None,
    logger: Logger | None = None,
    ema_decay: float | None = 0.9,
    evaluate: str = "4step",
    checkpoint: str = "3step",
    keep: str | None = None,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    nonfinite: Any = "skip",
    callbacks: dict[str, Any] | None = None,
    dist: Dist | None = None,
    max_nonfinite: int = 25,
    stages: Sequence[Stage] = (),
) -> Engine:
    data = data or ToyData()
    model = network() if model is None else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    per_epoch = -(-data.batches_per_epoch // accumulate)

    def cadence(text: str | None) -> Cadence:
        return Cadence(parse_duration(text) if text else None, steps_per_epoch=per_epoch)

    return Engine(
        task=ToyTask(),
        data=data,
        model=model,
        optimizer=optimizer,
        schedule=Constant(),  # type: ignore[arg-type]
        precision=Precision("fp32", CPU, nonfinite=nonfinite),
        clock=RunClock(Limit(steps, None)),
        cadences=Cadences(cadence("2step"), cadence(evaluate), cadence(checkpoint), cadence(keep)),
        checkpoints=CheckpointFolder(folder / "checkpoints", keep_last=2),
        loggers=LoggerSet({"recorder": logger or Recorder()}),
        callbacks=callbacks or {},
        monitor=MetricSpec("val/error", "min"),
        dist=dist or Dist(),
        device=CPU,
        run_dir=folder,
        seed=7,
        stages=Stages(stages, model, steps_per_epoch=per_epoch),
        ema=EMA(model, decay=ema_decay) if ema_decay is not None else None,
        accumulate=accumulate,
        clip_norm=clip_norm,
        clip_value=clip_value,
        max_nonfinite=max_nonfinite,
    )


def weights(engine: Engine) -> dict[str, Tensor]:
    """Model, averaged weights and optimizer moments, by name."""
    found = {f"model.{k}": v.clone() for k, v in engine.model.state_dict().items()}
    if engine.ema is not None:
        found |= {f"ema.{k}": v.clone() for k, v in engine.ema.state_dict().items()}
    for index, state in engine.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{index}.{k}": torch.as_tensor(v).clone() for k, v in state.items()}
    return found
