"""The training loop. It takes ready objects and knows no configuration.

Read `fit` first: fetch, `train_step`, log, evaluate, checkpoint, stop checks. `step` counts completed optimizer steps.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from medtrain.callbacks.base import Callback, CallbackSet
from medtrain.engine.cadence import Cadence, Cadences
from medtrain.engine.checkpoint import Checkpoint, CheckpointFolder
from medtrain.engine.clock import RunClock
from medtrain.engine.distributed import Dist
from medtrain.engine.ema import EMA
from medtrain.engine.meter import Meter, Speed
from medtrain.engine.precision import Precision
from medtrain.engine.protocol import TrainData
from medtrain.engine.signals import StopSignals
from medtrain.engine.stages import Stages
from medtrain.engine.state import load_state, state_dict
from medtrain.engine.view import EngineView
from medtrain.errors import NonFiniteError
from medtrain.run.atomic import atomic_write_json
from medtrain.tasks.base import Batch, Record, Task

if TYPE_CHECKING:
    from medtrain.loggers.base import LoggerSet
    from medtrain.metrics.spec import MetricSpec
    from medtrain.optim.schedulers import Schedule

log = logging.getLogger(__name__)


class EvaluationInterruptedError(Exception):
    """A stop signal came while cases were being judged."""


@dataclass(frozen=True)
class FitResult:
    """How a fit ended: `done` or `stopped`, why, and the best value of the monitor."""

    status: str
    reason: str
    step: int
    best: float | None


class Engine:
    """Trains a model on a task: one explicit loop for every kind of model, task and device.

    Args:
        task: What a batch means.
        data: Where batches come from.
        model: The bare model, on the device.
        optimizer: Its groups carry `base_lr`.
        schedule: Learning-rate factor as a function of the step.
        precision: Autocast, scaling, clipping and the non-finite policy.
        clock: The limit and the time used.
        cadences: When things are due.
        checkpoints: Where checkpoints go.
        loggers: Sinks of scalars and pictures.
        callbacks: Side effects, by configured name.
        monitor: The metric that decides what is best.
        dist: This process among the others.
        device: Device of the model.
        run_dir: The run's folder.
        seed: Seed of the random streams.
        ema: Average of the weights, used for evaluation.
        stages: What is frozen when; None leaves the model as it was built.
        accumulate: Micro-batches per step.
        clip_norm: Largest gradient norm.
        clip_value: Largest gradient element.
        eval_cases: Most cases of an evaluation during training.
        max_nonfinite: Skipped steps in a row before giving up.
        memory_format: Memory format of images.
        learned: The part of the configuration that a continuation must not change; stored with every checkpoint.
    """

    def __init__(
        self,
        *,
        task: Task,
        data: TrainData,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule,
        precision: Precision,
        clock: RunClock,
        cadences: Cadences,
        checkpoints: CheckpointFolder,
        loggers: LoggerSet,
        callbacks: Mapping[str, Callback],
        monitor: MetricSpec,
        dist: Dist,
        device: torch.device,
        run_dir: Path,
        seed: int,
        ema: EMA | None = None,
        stages: Stages | None = None,
        accumulate: int = 1,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        eval_cases: int | None = None,
        max_nonfinite: int = 25,
        memory_format: torch.memory_format | None = None,
        learned: Mapping[str, Any] | None = None,
    ) -> None:
        self.task, self.data, self.model, self.optimizer, self.schedule = task, data, model, optimizer, schedule
        self.precision, self.clock, self.cadences, self.checkpoints = precision, clock, cadences, checkpoints
        self.loggers, self.callbacks, self.monitor, self.dist = loggers, CallbackSet(callbacks), monitor, dist
        self.device, self.run_dir, self.seed, self.ema = device, run_dir, seed, ema
        self.accumulate, self.clip_norm, self.clip_value = accumulate, clip_norm, clip_value
        self.eval_cases, self.max_nonfinite, self.memory_format = eval_cases, max_nonfinite, memory_format
        self.learned = dict(learned or {})

        self.stages = stages or Stages((), model, steps_per_epoch=1)
        self.forward_model = dist.wrap(model)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.meter, self.speed = Meter(device), Speed()
        self.step = 0
        self.best: float | None = None
        self.history: list[dict[str, float]] = []
        self.metrics: dict[str, float] = {}
        self.records: list[Record] = []
        self.signals = StopSignals()
        self.stop_reason: str | None = None
        self.pending_evaluation = False
        self._wish: str | None = None
        self._signalled = False
        self._saved_at = -1
        self.view = EngineView(self)
        self._last_ids: list[str] = []

    # ------------------------------------------------------------------------------------------------ the loop

    def fit(self) -> FitResult:
        """Train to the limit, or until a signal or a callback asks to stop; always leaves a checkpoint."""
        status = "failed"
        with self.signals:
            try:
                self.callbacks.tell("on_fit_start", self.view)
                self._train()
                status = "stopped" if self._signalled else "done"
            except BaseException as error:
                self.callbacks.tell("on_exception", self.view, error)
                raise
            finally:
                self.loggers.flush()
                self.callbacks.tell("on_fit_end", self.view, status)
        return FitResult(status, self.stop_reason or "reached the limit", self.step, self.best)

    def _train(self) -> None:
        self._agree_on_time(0.0)
        self.clock.begin(self.step)
        if self.pending_evaluation:  # the run was stopped within an evaluation: the place it continues from
            self.save(best=self.evaluate_and_record())
        self._restart_cadences()  # the time until now went into preparing the data
        batches = self.batches_from_here()
        finished = self._agree_on_stop() or self.clock.finished(self.step)
        while not finished:
            self._enter_stage()
            self.train_step(batches)
            finished = self.clock.finished(self.step)  # asked once per step: time goes on between two questions
            if self._due(self.cadences.log) or finished:
                self._log()
            improved = False
            if (self._due(self.cadences.evaluate) and self.clock.affords_evaluation()) or finished:
                improved = self.evaluate_and_record()
            finished = self._agree_on_stop() or finished
            keep = self._due(self.cadences.keep)
            if self._due(self.cadences.checkpoint) or improved or keep or finished:
                self.save(best=improved, keep=keep)
        if self._saved_at != self.step:
            self.save(best=False)

    def _enter_stage(self) -> None:
        progress, elapsed = self.clock.progress(self.step), self.clock.elapsed()
        if self.stages.advance(step=self.step, progress=progress, elapsed=elapsed):
            self.forward_model = self.dist.wrap(self.model)  # DDP knows what trains when it is made

    def batches_from_here(self) -> Iterator[Batch]:
        """The micro-batches that follow the current step."""
        start = self.batches_seen(self.step)
        return self.data.train_batches(start, rank=self.dist.rank, world_size=self.dist.world_size)

    def train_step(self, batches: Iterator[Batch]) -> None:
        """One optimizer step over a window of micro-batches, with the gradient of the whole window's mean loss."""
        started = time.perf_counter()
        window = list(itertools.islice(batches, self.window_size(self.step)))
        waited = time.perf_counter() - started
        # drawn anew for each step: dropout does not depend on how the run got here
        torch.manual_seed(hash((self.seed, self.step, self.dist.rank)) & 0x7FFFFFFFFFFFFFFF)

        self._set_lr()
        self.stages.train_mode()
        weights = [self.task.batch_weight(batch) for batch in window]
        # nothing is labelled in a window without weight: its loss, and gradient, is 0
        total = self.dist.sum(sum(weights)) or 1.0
        for index, (batch, weight) in enumerate(zip(window, weights, strict=True)):
            batch = self.data.to_device(batch, self.device, self.memory_format)
            with self.dist.sync_gradients(self.forward_model, last=index == len(window) - 1):
                with self.precision.autocast():
                    output = self.task.training_step(self.forward_model, batch)
                # DDP averages over ranks, hence world_size: the sum is the gradient of the global weighted mean
                self.precision.backward(output.loss * (weight * self.dist.world_size / total))
            self.meter.add({"train/loss": output.loss, **output.logs}, weight)
        grad_norm = self.precision.clip(self.optimizer, self.parameters, norm=self.clip_norm, value=self.clip_value)
        self.meter.add({"train/grad_norm": grad_norm}, 1.0)
        self.precision.step(self.optimizer, grad_norm)
        if self.precision.nonfinite == "raise":
            self._check_finite()  # sync: the price of stopping at once
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()
        self.step += 1
        self._last_ids = [case for batch in window for case in batch.get("case_id", [])]
        seconds = time.perf_counter() - started
        self.speed.add_step(sum(batch["weight"] for batch in window) * self.dist.world_size, seconds, waited)
        self.clock.add_step(self._agree_on_time(seconds))

    # ---------------------------------------------------------------------------------------------- evaluation

    def evaluate_and_record(self) -> bool:
        """Evaluate, log, decide whether this is the best so far, tell the callbacks."""
        if self._evaluated_here():
            return False
        started = time.perf_counter()
        self.pending_evaluation = True
        try:
            records = self.evaluate(limit=self.eval_cases, final=False)
        except EvaluationInterruptedError:
            return False  # the stop is agreed on next, and the checkpoint says that this evaluation is missing
        self.pending_evaluation = False
        if not records:
            return False  # a run on every case has nothing to judge: its last weights are its result
        self.records = records
        metrics = {f"val/{key}": value for key, value in self.task.summarize(records).items()}
        self._agree_on_time(0.0)
        self.metrics = metrics
        self.history.append({"step": self.step, "epoch": self.epoch, **metrics})
        perf = {"perf/elapsed_s": self.clock.elapsed(), "perf/evaluation_s": time.perf_counter() - started}
        self.loggers.log_scalars(self.step, self.epoch, {**metrics, **perf})
        value = metrics[self.monitor.name]
        improved = self.monitor.improves(value, self.best)
        if improved:
            self.best = value
        if self.schedule.interval == "metric":
            self.schedule.observe(value, self.monitor.mode)
        self.callbacks.tell("on_evaluation_end", self.view, metrics, improved)
        self.clock.add_evaluation(self._agree_on_time(time.perf_counter() - started))  # with what is drawn of it
        self._restart_cadences()
        return improved

    def evaluate(self, *, limit: int | None, final: bool) -> list[Record]:
        """Judge the validation part with the evaluation weights; records of every process, sorted by case id.

        Raises:
            EvaluationInterruptedError: A stop signal came on some process.
        """
        self.task.begin_evaluation()
        self.dist.sync_buffers(self.model)
        records: list[Record] = []
        cases = len(self.data.evaluation_cases("val", limit=limit))  # as many turns everywhere: all hear of a stop
        turns = math.ceil(cases / (self.dist.world_size * self.data.cases_per_item))
        items = self.data.evaluation_items(rank=self.dist.rank, world_size=self.dist.world_size, limit=limit)
        stop = self.signals.before_forward(self.model, EvaluationInterruptedError, active=self.dist.world_size == 1)
        with self.evaluation_weights(), torch.inference_mode(), self.precision.autocast(), stop:
            for item in itertools.islice(itertools.chain(items, itertools.repeat(None)), turns):
                if item is not None:
                    records += self.task.evaluation_step(self.model, item, final=final)
                if self.dist.any(self.signals.received is not None):
                    raise EvaluationInterruptedError
        return sorted(self.dist.gather(records), key=lambda record: str(record["case_id"]))

    @contextlib.contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """The model in evaluation mode with the averaged weights where there are any; both restored afterwards."""
        training = self.model.training
        self.model.eval()
        try:
            with self.ema.applied() if self.ema is not None else contextlib.nullcontext():
                yield
        finally:
            self.model.train(training)

    # ----------------------------------------------------------------------------------------- position and time

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; a short last window counts."""
        return math.ceil(self.data.batches_per_epoch / self.accumulate)

    @property
    def epoch(self) -> int:
        """Completed epochs."""
        return self.step // self.steps_per_epoch

    def batches_seen(self, step: int) -> int:
        """Micro-batches consumed by `step` completed steps."""
        epochs, rest = divmod(step, self.steps_per_epoch)
        return epochs * self.data.batches_per_epoch + min(rest * self.accumulate, self.data.batches_per_epoch)

    def window_size(self, step: int) -> int:
        """Micro-batches of the next step: windows do not cross the end of an epoch."""
        return self.batches_seen(step + 1) - self.batches_seen(step)

    def _evaluated_here(self) -> bool:
        return bool(self.history) and self.history[-1]["step"] == self.step

    def _due(self, cadence: Cadence) -> bool:
        bounded = self.clock.limit.max_seconds is None
        return cadence.due(
            step=self.step,
            total_steps=self.clock.limit.max_steps if bounded else None,
            progress=self.clock.progress(self.step),
            elapsed=self.clock.elapsed(),
        )

    def _restart_cadences(self) -> None:
        for cadence in (self.cadences.evaluate, self.cadences.checkpoint):
            cadence.restart(progress=self.clock.progress(self.step), elapsed=self.clock.elapsed())

    def _agree_on_time(self, seconds: float) -> float:
        """Set every process's clock to the main one's, so that all decide alike; return its duration of the step."""
        now, seconds = self.dist.agree([self.clock.measured(), seconds])
        self.clock.now = now
        return seconds

    def _agree_on_stop(self) -> bool:
        """Whether to stop after this step: any process received a signal, or a callback asked for it."""
        if self.dist.any(self.signals.received is not None):
            self._signalled = True
            self.stop_reason = f"received {self.signals.received or 'a stop signal on another process'}"
        else:
            self.stop_reason = self.dist.broadcast(self._wish)
        return self.stop_reason is not None

    def _set_lr(self) -> None:
        total = self.clock.total_steps(self.step)
        factor = self.schedule.factor(self.step, total, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor * self.stages.lr_scale

    # ---------------------------------------------------------------------------------------------------- logs

    def _log(self) -> None:
        started = time.perf_counter()
        scalars = self.meter.read(self.dist)  # sync: the only regular wait, for steps that a GPU has still to make
        waited = self._agree_on_time(time.perf_counter() - started)
        self.speed.add_wait(waited)
        self.clock.add_wait(waited)
        scalars["train/lr"] = max(group["lr"] for group in self.optimizer.param_groups)
        self._check_finite()
        scalars |= {**self.speed.read(), "perf/elapsed_s": self.clock.elapsed()}
        if self.device.type == "cuda":
            scalars["perf/peak_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        self.loggers.log_scalars(self.step, self.epoch, scalars)
        self.callbacks.tell("on_log", self.view, scalars)

    def _check_finite(self) -> None:
        """Report skipped steps since the last look; give up when too many came in a row."""
        skipped, longest = self.precision.read_skipped()
        if skipped:
            log.warning("the gradient was not finite: %d optimizer step(s) skipped up to step %d", skipped, self.step)
        if longest <= (0 if self.precision.nonfinite == "raise" else self.max_nonfinite):
            return
        ids = self.dist.gather(self._last_ids)
        path = self.run_dir / "nonfinite.json"
        if self.dist.is_main:
            atomic_write_json(path, {"step": self.step, "skipped_in_row": longest, "case_id": ids})
        raise NonFiniteError(
            f"the gradient was NaN or infinite in {longest} step(s) in a row up to step {self.step}; "
            f"the last cases are in {path}",
            hint="lower optimizer.lr, set trainer.clip_norm, or use trainer.precision=fp32",
        )

    def request_stop(self, reason: str) -> None:
        """Stop after the current step."""
        self._wish = self._wish or reason

    # --------------------------------------------------------------------------------------------- checkpoints

    def save(self, *, best: bool, keep: bool = False) -> None:
        """Save a checkpoint of this moment."""
        if self.dist.is_main:
            self.loggers.flush()  # a resumed run must find every row up to its checkpoint
            meta: dict[str, Any] = {
                "monitor": self.monitor.name,
                "value": self.metrics.get(self.monitor.name) if self._evaluated_here() else None,
                "epoch": self.epoch,
                "learned": self.learned,
                "evaluated_with": "ema" if self.ema is not None else "raw",
            }
            path = self.checkpoints.save(
                self.step,
                model=self.model.state_dict(),
                ema=self.ema.state_dict() if self.ema is not None else None,
                state=state_dict(self),
                meta=meta,
                best=best,
                keep=keep,
            )
            self.callbacks.tell("on_checkpoint", self.view, path)
        self._saved_at = self.step
        self.dist.barrier()

    def load(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint."""
        load_state(self, checkpoint)
        self.forward_model = self.dist.wrap(self.model)
        self._saved_at = self.step
