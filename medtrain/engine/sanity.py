"""The check before the first step: one training and one evaluation batch through the real path; and one at the end."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from medtrain.errors import MedtrainError, UsageError

if TYPE_CHECKING:
    from medtrain.engine.loop import Engine

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SanityReport:
    """What the check found.

    Args:
        parameters: Trainable parameters.
        macs: Multiply-accumulate operations of the forward pass of one micro-batch.
        activation_gib: Memory of what autograd keeps between forward and backward, in GiB.
        peak_gib: Measured peak on CUDA; elsewhere activations, weights, gradients and optimizer state added up.
        loss: Loss of the untrained model.
    """

    parameters: int
    macs: int
    activation_gib: float
    peak_gib: float
    loss: float

    def __str__(self) -> str:
        return (
            f"{self.parameters / 1e6:.2f} M trainable parameters, "
            f"{self.macs / 1e9:.2f} G multiply-adds per training batch, "
            f"about {self.peak_gib:.2f} GiB for training ({self.activation_gib:.2f} GiB of activations), "
            f"loss of the untrained model {self.loss:.4f}"
        )


def sanity_check(engine: Engine) -> SanityReport:
    """Run one training batch forward and backward and judge one case, leaving weights, buffers and gradients alone.

    Raises:
        MedtrainError: The loss is not finite or a parameter gets no gradient.
        UsageError: The monitor does not exist.
    """
    buffers = {name: buffer.clone() for name, buffer in engine.model.named_buffers()}
    batch = engine.data.to_device(next(engine.batches_from_here()), engine.device, engine.memory_format)
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    if engine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(engine.device)
    engine.stages.train_mode()
    counting = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
    with FlopCounterMode(display=False) as flops, counting, engine.precision.autocast():
        output = engine.task.training_step(engine.forward_model, batch)
    output.loss.backward()
    loss = float(output.loss.detach())
    without = [n for n, p in engine.model.named_parameters() if p.requires_grad and p.grad is None]
    engine.optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in engine.model.named_buffers():
            buffer.copy_(buffers[name])
    if not torch.isfinite(torch.tensor(loss)):
        raise MedtrainError(
            f"the loss of the untrained model is {loss} on cases {', '.join(map(str, batch.get('case_id', [])))}",
            hint="look at these cases with `medtrain data check`, or try trainer.precision=fp32",
        )
    if without:
        log.warning("no gradient reaches %d parameter(s), e.g. %s: they will not train", len(without), without[0])
    _check_evaluation(engine)
    return _report(engine, macs=int(flops.get_total_flops()) // 2, activations=sum(kept.values()), loss=loss)


def warn_of_ties(engine: Engine) -> None:
    """Say that the first of many equal evaluations was kept as the best: nothing was learned that the monitor sees."""
    values = {entry.get(engine.monitor.name) for entry in engine.history}
    if len(engine.history) > 1 and len(values) == 1 and values != {None}:
        log.warning(
            "%s was %.4f in all %d evaluations: the first weights are kept as the best, and may predict the same of "
            "every case",
            engine.monitor.name,
            *values,
            len(engine.history),
        )


def _check_evaluation(engine: Engine) -> None:
    """Judge something small by the real path: a whole scan may take minutes."""
    cases = engine.data.evaluation_cases("val", limit=engine.dist.world_size)
    if not cases:
        return
    engine.task.begin_evaluation()
    item = engine.data.trial_item(cases[engine.dist.rank % len(cases)])
    with engine.evaluation_weights(), torch.inference_mode(), engine.precision.autocast():
        records = engine.task.evaluation_step(engine.model, item, final=False)
    if records:
        names = [f"val/{key}" for key in engine.task.summarize(records)]
        if engine.monitor.name not in names:
            raise UsageError(
                f"the monitor {engine.monitor.name} is not a metric of this task; available: {', '.join(names)}"
            )


def _report(engine: Engine, *, macs: int, activations: int, loss: float) -> SanityReport:
    trainable = [p for p in engine.model.parameters() if p.requires_grad]
    if engine.device.type == "cuda":
        peak = float(torch.cuda.max_memory_allocated(engine.device))
    else:
        weights = sum(p.numel() * p.element_size() for p in engine.model.parameters())
        learning = sum(p.numel() * p.element_size() for p in trainable)
        peak = float(activations + weights + 3 * learning)  # with gradients and up to two moments
    return SanityReport(
        parameters=sum(p.numel() for p in trainable),
        macs=macs,
        activation_gib=activations / 2**30,
        peak_gib=peak / 2**30,
        loss=loss,
    )
