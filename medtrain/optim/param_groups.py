"""Parameter groups: no weight decay on norms and biases, and ordered rules for differential learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from medtrain.errors import ConfigError, Problem, UsageError
from medtrain.registry import Range, closest

NORM_TYPES: tuple[type[nn.Module], ...] = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
"""Normalisation modules, whose parameters are never decayed whatever their shape."""


@dataclass(frozen=True, kw_only=True)
class ParamRule:
    """Learning rate and weight decay of the parameters whose name matches a pattern.

    Args:
        pattern: Shell pattern on parameter names; `encoder` and `encoder.*` both mean all below `encoder`.
        lr_mult: Factor of the optimizer's learning rate; 0 keeps the parameters as they are.
        wd_mult: Factor of the optimizer's weight decay.
    """

    pattern: str
    lr_mult: Annotated[float, Range(ge=0)] = 1.0
    wd_mult: Annotated[float, Range(ge=0)] = 1.0

    def matches(self, parameter_name: str) -> bool:
        """Whether the rule speaks of this parameter."""
        return name_matches(self.pattern, parameter_name)


def name_matches(pattern: str, parameter_name: str) -> bool:
    """Whether a shell pattern names a parameter or something above it.

    Args:
        pattern: `encoder` and `encoder.*` both mean all below `encoder`.
        parameter_name: Dotted name of a parameter.
    """
    return fnmatchcase(parameter_name, pattern) or fnmatchcase(parameter_name, f"{pattern}.*")


def make_param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    rules: Sequence[ParamRule] = (),
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Sort every parameter of a model into optimizer groups, frozen parameters included.

    Parameters of normalisation modules and those with at most one axis (biases, scales) are not decayed. The first
    rule that matches a parameter decides its multipliers. A parameter that is frozen now belongs to a group all the
    same, so that it trains as soon as it is unfrozen.

    Args:
        model: The network.
        lr: Base learning rate.
        weight_decay: Weight decay of the parameters that have one.
        rules: First match wins.
        layer_decay: Factor of the learning rate from each layer of an encoder to the one below it: d^(L + 1 - l) for
            layer l of 0 to L, and 1 for what is above (H. Bao et al., BEiT, 2022). It multiplies that of the rules.
            None is the same rate for all.

    Returns:
        Groups with the keys `params`, `lr`, `weight_decay`, and for the engine and its reports `lr_mult`,
        `base_lr` (lr x lr_mult, what a schedule multiplies) and `label`.

    Raises:
        ConfigError: A rule matches no parameter, or only such as earlier rules have taken.
        UsageError: There are no layers whose depth is known.
    """
    from_top = {} if layer_decay is None else _layers_from_top(model)
    undecayed = _parameters_of_norms(model)
    groups: dict[tuple[int, int, bool], dict[str, Any]] = {}
    used: set[int] = set()
    for parameter_name, parameter in model.named_parameters():
        index = next((i for i, rule in enumerate(rules) if rule.matches(parameter_name)), -1)
        used.add(index)
        decayed = parameter.ndim > 1 and id(parameter) not in undecayed
        below = from_top.get(id(parameter), 0)
        key = (index, below, decayed)
        if key not in groups:
            rule = rules[index] if index >= 0 else ParamRule(pattern="*")
            label = rule.pattern if index >= 0 else "others" if rules else "all"
            label += f", layer {below} from the top" if below else ""
            lr_mult = rule.lr_mult * (1.0 if layer_decay is None else layer_decay**below)
            groups[key] = {
                "params": [],
                "lr": lr * lr_mult,
                "base_lr": lr * lr_mult,
                "lr_mult": lr_mult,
                "weight_decay": weight_decay * rule.wd_mult if decayed else 0.0,
                "label": label if decayed else f"{label} (norms and biases)",
            }
        groups[key]["params"].append(parameter)
    problems = [_unmatched(model, rules, i) for i in range(len(rules)) if i not in used]
    if problems:
        raise ConfigError(problems)
    # in the order of the rules, the others last: the same for every model of one architecture
    return [groups[key] for key in sorted(groups, key=lambda key: (key[0] < 0, key[0], key[1], not key[2]))]


def _layers_from_top(model: nn.Module) -> dict[int, int]:
    """How many layers lie above each parameter of an encoder, what follows it counted as one, by the parameter's id."""
    found: dict[int, int] = {}
    for module in model.modules():
        if callable(tell := getattr(module, "parameter_depths", None)):
            depths: dict[str, int] = tell()
            top = 1 + max(depths.values())
            found |= {id(module.get_parameter(name)): top - depth for name, depth in depths.items()}
    if not found:
        raise UsageError(
            f"optimizer.layer_decay is for encoders whose layers are known, and {type(model).__name__} has none",
            hint="choose a network of timm, such as model=vit, or set optimizer.layer_decay=null and name parts in "
            "optimizer.rules",
        )
    return found


def _parameters_of_norms(model: nn.Module) -> set[int]:
    norms = (module for module in model.modules() if isinstance(module, NORM_TYPES))
    return {id(parameter) for norm in norms for parameter in norm.parameters(recurse=False)}


def _unmatched(model: nn.Module, rules: Sequence[ParamRule], index: int) -> Problem:
    pattern = rules[index].pattern
    where = f"optimizer.rules[{index}].pattern"
    names = [parameter_name for parameter_name, _ in model.named_parameters()]
    taken = next((name for name in names if rules[index].matches(name)), None)
    if taken is not None:
        first = next(rule for rule in rules if rule.matches(taken))
        return Problem(
            where,
            f"`{pattern}` has no effect: earlier rules such as `{first.pattern}` match all of its parameters",
            hint="the first match wins: put the narrower pattern first",
        )
    tops = sorted({name.split(".", 1)[0] for name in names})
    modules = [name for name, _ in model.named_modules() if name]
    near = closest(pattern.rstrip("*."), [*modules, *names])
    return Problem(
        where,
        f"`{pattern}` matches no parameter; top-level names: {', '.join(tops)}",
        hint=f"did you mean `{near}`?" if near else None,
    )
