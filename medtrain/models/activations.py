"""What a network keeps for the backward pass: with tensors of the meta device it is counted without computing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def storages(tensors: Iterable[Tensor]) -> set[int]:
    """What tells the memory behind tensors from others' while they exist."""
    return {tensor.untyped_storage()._cdata for tensor in tensors}


@contextlib.contextmanager
def kept_for_backward(known: set[int]) -> Iterator[list[int]]:
    """Count what autograd keeps from the operations inside: the bytes of each tensor, once.

    Args:
        known: Of `storages`: what is not counted, such as weights. Looked at while operations run.
    """
    kept = {}
    sizes: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known and storage._cdata not in kept:
            kept[storage._cdata] = storage  # held, so that no other one gets its address
            sizes.append(storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        yield sizes
