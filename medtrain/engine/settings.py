"""The settings of a training run: how long, on what, in which precision, and how it is kept safe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from medtrain.engine.cadence import parse_duration, parse_time
from medtrain.engine.stages import Stage
from medtrain.registry import Format, Range, register

DurationText = Annotated[str, Format(parse_duration, '"500step", "10ep", "20min" or "5%"')]
TimeText = Annotated[str, Format(parse_time, '"90s", "20min", "2h" or "1.5d"')]


@register("trainer", "default", tags=("engine",))
@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Settings of the training engine.

    Args:
        max_steps: Stop after this many optimizer steps.
        max_epochs: Stop after this many epochs; converted to steps once.
        max_time: Stop after this much wall-clock time, preparing the data and evaluations included; the schedule is
            fitted to the measured step time so that it reaches its end at the limit. With no limit at all a default
            number of steps is derived from the device.
        device: Where to train. `auto` takes CUDA, then MPS, then the CPU; a device that is asked for and missing is
            an error.
        precision: `auto` is bf16 where the device computes it natively (CUDA >= 8.0, CPUs with AVX-512 bf16 or AMX),
            fp16 on older GPUs, else fp32. `tf32` is fp32 with TF32 matrix products on CUDA.
        accumulate: Micro-batches per optimizer step; the gradient equals that of the whole batch.
        clip_norm: Largest gradient norm; null switches clipping off (the norm is still logged).
        clip_value: Largest absolute value of a gradient element; null switches it off.
        ema_decay: Decay of the exponential moving average of the weights, used for evaluation; null switches it off.
        ema_warmup: Use min(ema_decay, (1 + n) / (10 + n)) after n updates, so that early averages forget the start.
        eval_every: How often to evaluate; null is ten times, or less often where evaluations would take more than a
            quarter of the training (a time limit keeps them within a fifth of the time by itself).
        eval_cases: Evaluate at most this many cases, evenly spread, during training; the final evaluation takes all.
        checkpoint_every: How often to save a checkpoint, besides each new best, each stop and the end.
        keep_last: How many of the newest checkpoints to keep; the best one is always kept.
        keep_every: Keep a checkpoint at each of these points for good.
        log_every: How often to log the training loss, the learning rate and the speed.
        final_evaluation: Evaluate the best weights at the end on every validation case, with test-time augmentation.
        nonfinite: What to do when the gradient is NaN or infinite: `skip` the step (at most `max_nonfinite` in a
            row), `raise` at once, or `ignore`.
        max_nonfinite: How many steps in a row may be skipped before the run stops with exit code 3.
        deterministic: Use deterministic algorithms on CUDA as well (CPU runs always are).
        channels_last: Memory format of images and weights; null chooses by device.
        compile: Compile the model with torch.compile.
        sanity_check: Run one training and one evaluation batch through the real path before the first step.
        num_threads: CPU threads of the training process; null uses the cores available, or as many as OMP_NUM_THREADS
            allows.
        save_predictions: Keep the label maps of the final evaluation in evaluation/predictions, each on its scan's own
            grid.
        init_from: Fine-tune: begin with the weights of a run (its best, averaged where it kept an average), of a
            checkpoint, or of a file, as far as names and shapes agree; a head for other classes begins anew. MedNeXt
            with larger kernels begins with the smaller ones, interpolated (UpKern).
        init_min_match: Share of the model's tensors that init_from must give.
        stages: Progressive training, e.g. [{duration: 10ep, freeze: [encoder]}, {lr_scale: 0.1}]: parts of the model
            that are frozen for a while.
    """

    max_steps: Annotated[int, Range(ge=1)] | None = None
    max_epochs: Annotated[int, Range(ge=1)] | None = None
    max_time: TimeText | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    accumulate: Annotated[int, Range(ge=1)] = 1
    clip_norm: Annotated[float, Range(gt=0)] | None = 12.0
    clip_value: Annotated[float, Range(gt=0)] | None = None
    ema_decay: Annotated[float, Range(ge=0, lt=1)] | None = 0.999
    ema_warmup: bool = True
    eval_every: DurationText | None = None
    eval_cases: Annotated[int, Range(ge=1)] | None = None
    checkpoint_every: DurationText = "5min"
    keep_last: Annotated[int, Range(ge=1)] = 2
    keep_every: DurationText | None = None
    log_every: DurationText = "10step"
    final_evaluation: bool = True
    nonfinite: Literal["skip", "raise", "ignore"] = "skip"
    max_nonfinite: Annotated[int, Range(ge=1)] = 25
    deterministic: bool = False
    channels_last: bool | None = None
    compile: bool = False
    sanity_check: bool = True
    num_threads: Annotated[int, Range(ge=1)] | None = None
    save_predictions: bool = False
    init_from: str | None = None
    init_min_match: Annotated[float, Range(ge=0, le=1)] = 0.5
    stages: list[Stage] = field(default_factory=list)
