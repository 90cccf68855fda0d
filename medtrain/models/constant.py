"""Tensors that a checkpoint need not hold: frozen for good, and in the file of pretrained weights as they are.

The transformer below a set of adapters has 1.2 GB, what is learned 3 MB. A checkpoint keeps the names and a digest
of the former; whoever loads it builds the model from its config, which reads the file of weights again, and is told
when that is no longer the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medtrain.errors import MedtrainError
from medtrain.models.encoders import Encoder


@dataclass(frozen=True)
class ConstantTensors:
    """What a checkpoint says of the tensors that it leaves out.

    Args:
        names: In the model's state, in its order.
        digest: SHA-256 of names, types, shapes and values.
        source: The file or folder that they came from.
    """

    names: tuple[str, ...]
    digest: str
    source: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "names": list(self.names)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ConstantTensors:
        """Read what `to_json` gave."""
        return cls(names=tuple(data["names"]), digest=data["digest"], source=data["source"])

    def drop(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state without these tensors, to be saved.

        Args:
            state: Of the model, or of its average.
        """
        left_out = set(self.names)
        return {name: tensor for name, tensor in state.items() if name not in left_out}

    def fill(self, state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """A state with these tensors, to be loaded.

        Args:
            state: As it was saved.
            model: Built from the same config; gives the tensors.

        Raises:
            MedtrainError: They are not those that the state was trained with.
        """
        own = model.state_dict()
        absent = [name for name in self.names if name not in own]
        if absent or digest_tensors({name: own[name] for name in self.names}) != self.digest:
            raise MedtrainError(
                f"the pretrained weights are not those that the run was trained with: {self.source} has changed",
                hint="put the file back that it was then, or set model.weights to a copy of it",
            )
        kept = {name: own[name] for name in self.names}
        return {name: kept[name] if name in kept else state[name] for name in own if name in kept or name in state} | {
            name: tensor for name, tensor in state.items() if name not in own
        }


def find_constant(model: nn.Module) -> ConstantTensors | None:
    """The tensors of a model that training never changes and that its file of weights holds, or None.

    Args:
        model: As built; `locked` names the parameters that are frozen for good.
    """
    locked = set(getattr(model, "locked", ()))
    loaded: set[str] = set()
    sources: list[str] = []
    modules = {id(module): name for name, module in model.named_modules()}
    for module in model.modules():
        if isinstance(module, Encoder) and module.weights_report is not None:
            prefix = modules[id(module.network)]
            loaded |= {f"{prefix}.{name}" if prefix else name for name in module.weights_report.exact}
            sources.append(str(module.weights_report.source))
    state = model.state_dict()
    # adapters stand between a layer and the name it had when it was loaded
    names = tuple(name for name in state if name in locked and name.replace(".base_layer.", ".") in loaded)
    if not names:
        return None
    return ConstantTensors(names, digest_tensors({name: state[name] for name in names}), ", ".join(sources))


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values; the same on every device."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
