"""Weights on disk: what is in a file or folder, and what timm has in its local cache. Nothing is ever downloaded."""

from __future__ import annotations

import argparse
import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from medtrain.errors import MedtrainError, UsageError

_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


def read_tensors(path: Path) -> dict[str, dict[str, Tensor]]:
    """Read every set of named tensors that a file or folder holds.

    Args:
        path: A safetensors file, a file of `torch.save`, or a folder in the style of HuggingFace (one file, or shards
            with an index).

    Returns:
        Each set under the key it was found at: "" for the file itself, e.g. `model` or `teacher` for nested ones.

    Raises:
        UsageError: There is no such file, or a folder without weights.
        MedtrainError: The file cannot be opened safely.
    """
    if path.is_dir():
        index = path / "model.safetensors.index.json"
        if index.exists():
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            return {"": {name: tensor for shard in shards for name, tensor in _read_file(path / shard).items()}}
        path = _file_of_folder(path)
    if not path.exists():
        raise UsageError(f"there are no weights at {path}", hint="set model.weights to a file or a folder that exists")
    found: dict[str, dict[str, Tensor]] = {}
    _collect(_read_file(path), "", found)
    if not found:
        raise MedtrainError(f"{path} holds no named tensors", hint="save the model's state_dict, best as safetensors")
    return found


def _file_of_folder(folder: Path) -> Path:
    for name in _FOLDER_FILES:
        if (folder / name).exists():
            return folder / name
    files = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES)
    if len(files) == 1:
        return files[0]
    raise UsageError(
        f"{folder} holds {len(files)} files of weights and none of the names {', '.join(_FOLDER_FILES)}",
        hint="set model.weights to the file: " + ", ".join(file.name for file in files) if files else None,
    )


def _read_file(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # MAE and its descendants keep their command line in the file: a plain holder of values
        with torch.serialization.safe_globals([argparse.Namespace]):
            # mapped: what is not used, such as the state of an optimizer, is never read
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, KeyError) as error:
        reason = (str(error).strip() or "it ends too early").splitlines()[0]
        if isinstance(error, pickle.UnpicklingError):  # torch goes on with how to open files that are not safe
            reason = "it is no file of weights, or holds more than tensors"
        raise MedtrainError(
            f"{path} cannot be opened as weights: {reason}",
            hint="files are opened without running code in them; save the tensors alone with safetensors",
        ) from error


def _collect(value: Any, key: str, found: dict[str, dict[str, Tensor]]) -> None:
    if not isinstance(value, Mapping):
        return
    tensors = {str(name): item for name, item in value.items() if isinstance(item, Tensor)}
    if tensors:
        found[key] = tensors
    for name, item in value.items():
        _collect(item, f"{key}.{name}" if key else str(name), found)


def find_cached(config: Mapping[str, Any], arch: str) -> Path:
    """The file with timm's weights of an architecture in the local caches.

    Args:
        config: timm's `pretrained_cfg` of the model.
        arch: Name in timm, with the weight tag.

    Raises:
        UsageError: The weights were not fetched yet; says how.
    """
    repository, url = config.get("hf_hub_id"), config.get("url")
    if repository:
        from huggingface_hub import try_to_load_from_cache  # timm's own cache; looks at files only

        named = config.get("hf_hub_filename")
        for name in (named,) if named else _FOLDER_FILES:
            cached = try_to_load_from_cache(repository, name)
            if isinstance(cached, str):
                return Path(cached)
    if url:
        cached_file = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
        if cached_file.exists():
            return cached_file
    if not repository and not url:
        raise UsageError(f"timm has no weights for {arch}", hint="set model.weights to a file, or to null")
    raise UsageError(
        f"the weights of {arch} are not in timm's cache, and nothing is downloaded during a run",
        hint=f"fetch them once: python -c \"import timm; timm.create_model('{arch}', pretrained=True)\"",
    )
