"""Gradient checkpointing: parts whose activations are computed again in the backward pass instead of being kept.

T. Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from medtrain.models.freezing import select_modules


def recompute(model: nn.Module, patterns: Iterable[str], *, setting: str = "model.checkpoint_layers") -> None:
    """Let the modules that patterns name forget their activations and compute them again where gradients need them.

    Results are those without it, running statistics of batch norms included. Names and state stay as they are.

    Args:
        model: Changed in place.
        patterns: Names of modules, `*` for any text: `encoder.model.blocks.*`. Modules inside of a chosen one are
            part of it.
        setting: Named in messages.

    Raises:
        UsageError: A pattern fits no module.
    """
    for module in select_modules(model, patterns, setting=setting).values():
        # a partial of the module itself, not a closure: a copy of the model then computes with the copy's weights
        module.forward = functools.partial(_forward, module)


def _forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return recomputed(module, functools.partial(type(module).forward, module), *args, **kwargs)


def recomputed(module: nn.Module, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a function returns, its activations forgotten and computed again where gradients need them.

    Args:
        module: Whose batch norms the function uses: they count a batch once.
        function: Called with the other arguments.
    """
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)
    if not any(isinstance(part, _BatchNorm) and part.training for part in module.modules()):
        return checkpoint(function, *args, use_reentrant=False, **kwargs)
    contexts = functools.partial(_contexts, module)
    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _untracked(module)


@contextmanager
def _untracked(module: nn.Module) -> Iterator[None]:
    """Batch norms count a batch once, though they see it twice.

    They stay as they are otherwise: without running statistics they would save fewer tensors than the first time.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
            norm.num_batches_tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before):
            norm.momentum = momentum
            norm.num_batches_tracked = count
