"""Progressive training: stages that freeze and unfreeze parts of a model, one after the other.

Every stage starts from the model as it was built: what the model itself froze stays frozen unless the stage unfreezes
it, and what it locked (a pretrained base under LoRA) is never unfrozen. The optimizer holds every parameter from the
start, so what a later stage unfreezes really trains; a frozen parameter has no gradient and is left alone, weight decay
included. Normalisation layers whose parameters are frozen stay in evaluation mode, running statistics included.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from torch import nn

from medtrain.engine.cadence import Duration, parse_duration
from medtrain.errors import ConfigError, Problem
from medtrain.optim.param_groups import NORM_TYPES, name_matches
from medtrain.registry import Format, Range, closest

log = logging.getLogger(__name__)

StageText = Annotated[str, Format(parse_duration, '"500step", "10ep", "20min" or "30%"')]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the training in which some of the model is frozen.

    Args:
        duration: How long; only the last stage may leave it out, and lasts to the end.
        freeze: Shell patterns on names of parameters; `encoder` means all below `encoder`.
        unfreeze: Patterns of what trains although the model, or `freeze`, froze it.
        lr_scale: Factor of every learning rate.
    """

    duration: StageText | None = None
    freeze: tuple[str, ...] = ()
    unfreeze: tuple[str, ...] = ()
    lr_scale: Annotated[float, Range(gt=0)] = 1.0


class Stages:
    """Puts the model into the state of each stage when its time comes.

    Args:
        stages: In order; none leaves the model as it was built.
        model: The bare model; its attribute `locked`, if it has one, holds patterns of what never trains.
        steps_per_epoch: Optimizer steps of an epoch.

    Raises:
        ConfigError: A pattern matches nothing or what is locked, a stage would train nothing, or only the last one may
            be without a duration and another is.
    """

    def __init__(self, stages: Sequence[Stage], model: nn.Module, *, steps_per_epoch: int) -> None:
        self.stages = tuple(stages)
        self.index = 0
        self._model = model
        self._steps_per_epoch = steps_per_epoch
        self._began = {"step": 0.0, "progress": 0.0, "elapsed": 0.0}
        self._built_frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        self._locked = locked_parameters(model)
        problems = list(self._problems())
        if problems:
            raise ConfigError(problems)
        self._norms: list[nn.Module] = []
        self._apply()

    @property
    def lr_scale(self) -> float:
        """Factor of every learning rate now."""
        return self.stages[self.index].lr_scale if self.stages else 1.0

    def train_mode(self) -> None:
        """Put the model in training mode, but for normalisation layers that are frozen."""
        self._model.train()
        for norm in self._norms:
            norm.eval()

    def advance(self, *, step: int, progress: float, elapsed: float) -> bool:
        """Enter the next stage when this one is over; whether one was entered.

        Args:
            step: Completed optimizer steps.
            progress: Share of the run that is done, in [0, 1].
            elapsed: Seconds of training so far.
        """
        if self.index + 1 >= len(self.stages):
            return False
        text = self.stages[self.index].duration
        assert text is not None
        if not self._is_over(parse_duration(text), step, progress, elapsed):
            return False
        self.index += 1
        self._began = {"step": float(step), "progress": progress, "elapsed": elapsed}
        self._apply()
        log.info("%s", self.describe())
        return True

    def describe(self) -> str:
        """The stage that it is and what trains in it, in a line; empty without stages."""
        if not self.stages:
            return ""
        stage = self.stages[self.index]
        parameters = list(self._model.parameters())
        trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        line = f"stage {self.index + 1} of {len(self.stages)}"
        line += f" ({stage.duration})" if stage.duration is not None else ""
        line += f": {trainable:,} of {sum(parameter.numel() for parameter in parameters):,} parameters train"
        return line + (f", learning rates times {stage.lr_scale:g}" if stage.lr_scale != 1 else "")

    def state_dict(self) -> dict[str, Any]:
        """Which stage it is and where it began."""
        return {"index": self.index, "began": dict(self._began)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.index = state["index"]
        self._began = dict(state["began"])
        self._apply()

    def _is_over(self, duration: Duration, step: int, progress: float, elapsed: float) -> bool:
        if duration.unit == "second":
            return elapsed - self._began["elapsed"] >= duration.value
        if duration.unit == "percent":
            return 100 * (progress - self._began["progress"]) >= duration.value - 1e-6
        steps = duration.in_steps(steps_per_epoch=self._steps_per_epoch, total_steps=0)
        return step - self._began["step"] >= steps

    def _apply(self) -> None:
        if self.stages:
            frozen = self._frozen(self.stages[self.index])
            for name, parameter in self._model.named_parameters():
                parameter.requires_grad_(name not in frozen)
                if name in frozen:
                    parameter.grad = None
        self._norms = frozen_norms(self._model)

    def _frozen(self, stage: Stage) -> set[str]:
        names = [name for name, _ in self._model.named_parameters()]
        frozen = self._built_frozen | {n for n in names if any(name_matches(pattern, n) for pattern in stage.freeze)}
        frozen -= {n for n in names if any(name_matches(pattern, n) for pattern in stage.unfreeze)}
        return frozen | self._locked

    def _problems(self) -> list[Problem]:
        problems: list[Problem] = []
        names = [name for name, _ in self._model.named_parameters()]
        for number, stage in enumerate(self.stages):
            where = f"trainer.stages[{number}]"
            if stage.duration is None and number + 1 < len(self.stages):
                problems.append(Problem(f"{where}.duration", "required: only the last stage lasts to the end"))
            for key in ("freeze", "unfreeze"):
                for pattern in getattr(stage, key):
                    matched = {name for name in names if name_matches(pattern, name)}
                    if not matched:
                        problems.append(self._unmatched(f"{where}.{key}", pattern))
                    elif key == "unfreeze" and matched <= self._locked:
                        message = f"`{pattern}` is locked by the model and never trains"
                        hint = "leave it out; what a later stage trains is frozen by a stage, not by model.freeze"
                        problems.append(Problem(f"{where}.{key}", message, hint=hint))
            if self._frozen(stage) >= set(names):
                problems.append(Problem(where, "everything is frozen: there is nothing to train"))
        return problems

    def _unmatched(self, where: str, pattern: str) -> Problem:
        modules = [name for name, _ in self._model.named_modules() if name]
        near = closest(pattern.rstrip("*."), modules)
        tops = ", ".join(sorted({name.split(".", 1)[0] for name, _ in self._model.named_parameters()}))
        hint = f"did you mean `{near}`?" if near else None
        return Problem(where, f"`{pattern}` matches no parameter; top-level names: {tops}", hint=hint)


def locked_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters that never train.

    Args:
        model: As built; its attribute `locked`, if it has one, holds names or patterns, of which those count that it
            froze.
    """
    patterns = tuple(getattr(model, "locked", ()))
    exact = set(patterns)
    return {
        name
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and (name in exact or any(name_matches(pattern, name) for pattern in patterns))
    }


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """Normalisation layers with parameters of which none trains, and those without any below a wholly frozen module."""
    norms: list[nn.Module] = []

    def visit(module: nn.Module, inside_frozen: bool) -> None:
        own = list(module.parameters())
        frozen = inside_frozen if not own else all(not parameter.requires_grad for parameter in own)
        if frozen and isinstance(module, NORM_TYPES):
            norms.append(module)
        for child in module.children():
            visit(child, frozen)

    visit(model, False)
    return norms
