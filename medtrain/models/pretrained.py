"""What images pretrained weights were made with: told by the files beside them, or by timm, without building a network.

Data settings follow it where the user leaves the size of the images or their normalisation open.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtrain.errors import MedtrainError
from medtrain.models.weight_files import read_tensors

_PATCH = re.compile(r"vit.*_patch(\d+)_")
_MOST_PREFIX_TOKENS = 5  # a class token and four registers


@dataclass(frozen=True)
class PretrainedInput:
    """The images that weights expect.

    Args:
        size: (H, W), or None where nothing tells.
        size_reason: Where it is known from, in a sentence.
        mean: Of each channel, of 0 to 1; empty where nothing tells.
        std: Of each channel; empty with `mean`.
        mean_reason: Where they are known from.
    """

    size: tuple[int, int] | None = None
    size_reason: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    mean_reason: str = ""

    def normalization(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and deviation for images of some channels; None where these weights do not say any.

        Args:
            channels: Of the images; one gets the average over the weights' channels.
        """
        if len(self.mean) == channels:
            return self.mean, self.std
        if channels == 1 and self.mean:
            count = len(self.mean)
            return (round(sum(self.mean) / count, 6),), (round(sum(self.std) / count, 6),)
        return None


def pretrained_input(model: Mapping[str, Any]) -> PretrainedInput:
    """What the weights of a model's settings were made with.

    A folder in the style of HuggingFace tells it in `preprocessor_config.json` or timm's `config.json`. Of a bare file
    the position embeddings tell the size; else it is that of the architecture in timm. A bare file does not tell its
    normalisation, unless the architecture is named with a weight tag.

    Args:
        model: Settings; `arch` and `weights` are looked at.

    Raises:
        MedtrainError: A file beside the weights is damaged.
    """
    arch, weights = model.get("arch"), model.get("weights")
    if not isinstance(arch, str) or not isinstance(weights, str) or arch == "cnn":
        return PretrainedInput()
    if weights == "timm":
        return _of_arch(arch)
    path = Path(weights).expanduser()
    if path.is_dir():
        told = _of_folder(path)
        if told is not None:
            return told
    known = _of_arch(arch)
    side = _embedded_side(path, arch)
    if side is not None:
        known = PretrainedInput(
            (side, side), f"{path.name} has position embeddings for it", known.mean, known.std, known.mean_reason
        )
    if "." in arch:
        return known
    return PretrainedInput(known.size, known.size_reason)


def _of_arch(arch: str) -> PretrainedInput:
    import timm  # takes a second

    config = timm.get_pretrained_cfg(arch)
    if config is None:
        return PretrainedInput()
    name = f"{arch.partition('.')[0]}.{config.tag}" if config.tag else arch
    return PretrainedInput(
        size=(config.input_size[1], config.input_size[2]),
        size_reason=f"the weights of {name} were trained with it",
        mean=tuple(config.mean),
        std=tuple(config.std),
        mean_reason=f"those that the weights of {name} were trained with",
    )


def _of_folder(folder: Path) -> PretrainedInput | None:
    """What the files of a folder say, or None."""
    for name in ("preprocessor_config.json", "config.json"):
        path = folder / name
        if not path.exists():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            told = content.get("pretrained_cfg") if name == "config.json" else content
            if told:
                sides = _sides(told)
                mean = tuple(float(x) for x in told.get("image_mean", told.get("mean", ())))
                std = tuple(float(x) for x in told.get("image_std", told.get("std", ())))
                reason = f"{folder.name}/{name} says so"
                return PretrainedInput(sides, reason, mean, std, reason)
        except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
            raise MedtrainError(
                f"{path} does not say what images the weights are for: {error}",
                hint="put the file back as it was published, or take it away",
            ) from error
    return None


def _sides(told: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width in a description of either kind."""
    if "input_size" in told:
        return int(told["input_size"][1]), int(told["input_size"][2])
    size = told.get("crop_size") or told.get("size")
    if isinstance(size, Mapping):
        side = size.get("shortest_edge")
        return int(size.get("height", side)), int(size.get("width", side))
    return None if size is None else (int(size), int(size))


def _embedded_side(path: Path, arch: str) -> int | None:
    """Side of the square images that a file has position embeddings for; None where it has none."""
    patch = _PATCH.search(arch)
    if patch is None or not path.is_file():
        return None
    found = {name: tensor for tensors in read_tensors(path).values() for name, tensor in tensors.items()}
    for name, tensor in found.items():
        if name.endswith(("pos_embed", "position_embeddings")) and tensor.ndim == 3:
            for prefix in range(_MOST_PREFIX_TOKENS + 1):
                side = math.isqrt(max(0, tensor.shape[1] - prefix))
                if side and side**2 == tensor.shape[1] - prefix:
                    return side * int(patch[1])
    return None
