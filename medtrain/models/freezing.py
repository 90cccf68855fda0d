"""Parts of a network that do not learn, and how many parameters it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from medtrain.errors import UsageError
from medtrain.registry import closest

Freeze = Literal["none", "backbone"] | tuple[str, ...]


class FreezableModel(nn.Module):
    """A network of which parts can be frozen for good. Its frozen parts stay in evaluation mode while it trains.

    Attributes:
        locked: Names of the parameters that never learn. What freezes and unfreezes parts for a while, such as the
            stages of a training, leaves them alone.
    """

    locked: tuple[str, ...] = ()

    def lock(self, patterns: Iterable[str], *, setting: str = "model.freeze") -> None:
        """Freeze parameters for good.

        Args:
            patterns: See `select_parameters`.
            setting: Named in messages.

        Raises:
            UsageError: A pattern fits nothing.
        """
        chosen = set(select_parameters(self, patterns, setting=setting))
        for name, parameter in self.named_parameters():
            if name in chosen:
                parameter.requires_grad_(False)
        self.locked = tuple(name for name, _ in self.named_parameters() if name in chosen or name in self.locked)

    def train(self, mode: bool = True) -> FreezableModel:
        """Switch to training; the norms and dropouts of frozen parts stay in evaluation mode."""
        super().train(mode)
        eval_frozen_parts(self)
        return self


def select_parameters(model: nn.Module, patterns: Iterable[str], *, setting: str) -> list[str]:
    """The parameters below the modules that patterns name, in the order of the model.

    Args:
        model: Its own names are meant, as in `ParameterSummary`.
        patterns: Names of modules or parameters, `*` for any text: `encoder`, `encoder.model.layer[12]`, `*.norm*`.
        setting: Named in messages.

    Raises:
        UsageError: A pattern fits nothing; the nearest name is suggested.
    """
    names = [name for name, _ in model.named_parameters()]
    chosen: set[str] = set()
    for pattern in patterns:
        fitting = {name for name in names if _is_below(name, pattern)}
        if not fitting:
            raise _nothing_fits(setting, pattern, {part for name in names for part in _ancestors(name)})
        chosen |= fitting
    return [name for name in names if name in chosen]


def select_modules(model: nn.Module, patterns: Iterable[str], *, setting: str) -> dict[str, nn.Module]:
    """The outermost modules that patterns name.

    Args:
        model: Its own names are meant.
        patterns: Names of modules, `*` for any text.
        setting: Named in messages.

    Raises:
        UsageError: A pattern fits nothing; the nearest name is suggested.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    chosen: dict[str, nn.Module] = {}
    for pattern in patterns:
        fitting = {name: module for name, module in modules.items() if fnmatchcase(name, pattern)}
        if not fitting:
            raise _nothing_fits(setting, pattern, modules)
        chosen |= fitting
    return {name: module for name, module in chosen.items() if not any(p in chosen for p in _ancestors(name)[:-1])}


def eval_frozen_parts(model: nn.Module) -> None:
    """Put the modules whose parameters are all frozen in evaluation mode: statistics stand still, nothing drops out."""
    for module in model.modules():
        parameters = list(module.parameters())
        # assigned, not called: a frozen part may refuse to be put in another mode
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            for part in module.modules():
                part.training = False


@dataclass(frozen=True)
class ParameterSummary:
    """How many parameters a network has, of which kind and where.

    Args:
        trainable: Parameters that learn.
        frozen: Parameters that do not.
        parts: (trainable, frozen) of each part of the network.
    """

    trainable: int
    frozen: int
    parts: Mapping[str, tuple[int, int]]

    @property
    def total(self) -> int:
        """All parameters."""
        return self.trainable + self.frozen

    def __str__(self) -> str:
        share = f" ({self.trainable / self.total:.2%})" if self.frozen else ""
        lines = [f"{self.total:,} parameters, {self.trainable:,} trainable{share}, {self.frozen:,} frozen"]
        width = max((len(name) for name in self.parts), default=0)
        lines += [
            f"  {name:<{width}}  {trainable:>13,} trainable {frozen:>13,} frozen"
            for name, (trainable, frozen) in self.parts.items()
        ]
        return "\n".join(lines)


def parameter_summary(model: nn.Module) -> ParameterSummary:
    """Count the parameters of a network and of its parts; a shared one counts once."""
    parts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        part = parts.setdefault(name.partition(".")[0], [0, 0])
        part[0 if parameter.requires_grad else 1] += parameter.numel()
    return ParameterSummary(
        trainable=sum(trainable for trainable, _ in parts.values()),
        frozen=sum(frozen for _, frozen in parts.values()),
        parts={name: (trainable, frozen) for name, (trainable, frozen) in parts.items()},
    )


def _ancestors(name: str) -> list[str]:
    """`a`, `a.b` and `a.b.c` of `a.b.c`."""
    parts = name.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _is_below(name: str, pattern: str) -> bool:
    return any(fnmatchcase(ancestor, pattern) for ancestor in _ancestors(name))


def _nothing_fits(setting: str, pattern: str, known: Iterable[str]) -> UsageError:
    names = list(known)
    near = closest(pattern, names)
    tops = sorted({name for name in names if name.count(".") <= 1})
    return UsageError(
        f"{setting}: no part of the model fits {pattern!r}; parts are: {', '.join(tops[:20])}",
        hint=f"did you mean {near}?" if near else "`*` stands for any text: encoder.model.blocks.*",
    )
