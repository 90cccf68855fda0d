"""Names of weights: from those of a file to those of a network."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

_PATCHES = "embeddings.patch_embeddings.projection.weight"
# transformers' ViT and DINOv2, on disk and (since its version 5) in memory -> timm; the first pattern that matches wins
_TRANSFORMERS = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^encoder\.layer\.(\d+)\.(?:layernorm_before|norm1)\.", r"blocks.\1.norm1."),
        (r"^encoder\.layer\.(\d+)\.(?:layernorm_after|norm2)\.", r"blocks.\1.norm2."),
        (r"^encoder\.layer\.(\d+)\.attention\.(?:attention\.|)(q|k|v)(?:uery|ey|alue|_proj)\.", r"blocks.\1.attn.\2."),
        (r"^encoder\.layer\.(\d+)\.attention\.(?:output\.dense|o_proj)\.", r"blocks.\1.attn.proj."),
        (r"^encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1$", r"blocks.\1.ls\2.gamma"),
        (r"^encoder\.layer\.(\d+)\.(?:intermediate\.dense|mlp\.fc1)\.", r"blocks.\1.mlp.fc1."),
        (r"^encoder\.layer\.(\d+)\.(?:output\.dense|mlp\.fc2)\.", r"blocks.\1.mlp.fc2."),
        (r"^encoder\.layer\.(\d+)\.mlp\.weights_in\.", r"blocks.\1.mlp.w12."),
        (r"^encoder\.layer\.(\d+)\.mlp\.weights_out\.", r"blocks.\1.mlp.w3."),
        (r"^layernorm\.", "norm."),
    )
)
_QUERY = re.compile(r"^(blocks\.\d+\.attn)\.q\.(weight|bias)$")
_OLD_DENSENET = re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)")
_IN_DECODER = re.compile(r"^decoder(_|\.)")


def to_network_names(tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Rename the tensors of a file to a network's names as far as they can be recognised.

    A leading part that most names share (`module.`, `model.`, `encoder.model.`) is removed, at the start of a name
    only. The names of transformers' ViT and DINOv2 become timm's, its query, key and value one matrix; a decoder of
    masked pretraining is left out.

    Args:
        tensors: As in the file.
        names: Of the network.
    """
    patches = next((name for name in tensors if name.endswith(_PATCHES)), None)
    if patches is not None:
        return _from_transformers(_without_prefix(tensors, patches.removesuffix(_PATCHES)))
    renamed = {_OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in tensors.items()}
    prefix = common_prefix(renamed, names)
    if prefix is None:  # names of another layout, which timm translates: only a wrapper around all can be removed
        first = {name.partition(".")[0] for name in renamed}
        prefix = f"{first.pop()}." if len(first) == 1 else ""
    bare = _without_prefix(renamed, prefix)
    return {name: tensor for name, tensor in bare.items() if not _IN_DECODER.match(name)}


def count_known(tensors: Mapping[str, Tensor], names: Collection[str]) -> int:
    """How many of a network's names a set of tensors has, behind a common leading part."""
    return len(to_network_names(tensors, names).keys() & set(names))


def common_prefix(tensors: Iterable[str], names: Collection[str]) -> str | None:
    """The leading part (`module.`, `model.`) behind which most of a network's names are found; None where none is.

    Args:
        tensors: Names as in the file. The shortest part is taken where several are equal.
        names: Of the network.
    """
    known = set(names)
    votes: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in known:
                votes["".join(f"{part}." for part in parts[:start])] += 1
    return max(votes, key=lambda prefix: (votes[prefix], -len(prefix))) if votes else None


def _without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _from_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _TRANSFORMERS:
            if pattern.match(name):
                renamed[pattern.sub(replacement, name)] = tensor
                break
        else:
            renamed[name] = tensor
    for name in list(renamed):
        if query := _QUERY.match(name):
            block, kind = query.groups()
            parts = [renamed.pop(f"{block}.{part}.{kind}") for part in "qkv"]
            renamed[f"{block}.qkv.{kind}"] = torch.cat(parts)
    return renamed
