"""Checkpoints without the frozen transformer: small, complete again after loading, and refused over other weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from medtrain.errors import MedtrainError
from medtrain.models.constant import ConstantTensors, digest_tensors, find_constant
from medtrain.registry import build


def weights(path: Path, seed: int = 3) -> str:
    torch.manual_seed(seed)
    source: Any = timm.create_model("test_vit", num_classes=0, img_size=64)
    save_file(source.state_dict(), path)
    return str(path)


def model(name: str, path: str | None, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    config = {"name": name, "arch": "test_vit", "weights": path, **options}
    return build("model", config, in_channels=3, image_size=(32, 32), num_outputs=2).eval()


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def constant_of(network: Any) -> ConstantTensors:
    constant = find_constant(network)
    assert constant is not None
    return constant


def test_a_probe_saves_its_head_and_what_was_adapted(tmp_path: Path) -> None:
    path = weights(tmp_path / "w.safetensors")
    network = model("timm", path, freeze="backbone")
    with torch.no_grad():
        network.head.weight.add_(1)
    constant = constant_of(network)
    saved = constant.drop(network.state_dict())
    # the position embeddings were interpolated from 64 pixels to 32, which another machine may round differently
    assert set(saved) == {"encoder.model.pos_embed", "head.weight", "head.bias"}
    fresh = model("timm", path, seed=5, freeze="backbone")
    record = ConstantTensors.from_json(json.loads(json.dumps(constant.to_json())))
    assert record == constant
    filled = record.fill(saved, fresh)
    assert list(filled) == list(network.state_dict())
    fresh.load_state_dict(filled)
    assert torch.equal(fresh(images()), network(images()))


def test_adapters_and_head_are_all_that_is_saved(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs the extra lora")
    path = weights(tmp_path / "w.safetensors")
    network = model("vit_lora", path)
    saved = constant_of(network).drop(network.state_dict())
    assert {name for name in saved if ".lora_" not in name and not name.startswith("head.")} == {
        "encoder.model.pos_embed"
    }
    size = sum(tensor.numel() for tensor in saved.values())
    assert size < 0.2 * sum(tensor.numel() for tensor in network.state_dict().values())
    fresh = model("vit_lora", path, seed=7)
    fresh.load_state_dict(constant_of(network).fill(saved, fresh))
    assert torch.equal(fresh(images()), network(images()))


def test_other_weights_under_the_same_path_are_refused(tmp_path: Path) -> None:
    path = weights(tmp_path / "w.safetensors")
    network = model("timm", path, freeze="backbone")
    saved = constant_of(network).drop(network.state_dict())
    weights(tmp_path / "w.safetensors", seed=4)
    changed = model("timm", path, freeze="backbone")
    with pytest.raises(MedtrainError, match=r"w\.safetensors has changed"):
        constant_of(network).fill(saved, changed)


@pytest.mark.parametrize(("file", "freeze"), [(True, "none"), (False, "backbone")])
def test_what_learns_or_came_from_a_seed_is_saved_whole(file: bool, freeze: str, tmp_path: Path) -> None:
    path = weights(tmp_path / "w.safetensors") if file else None
    assert find_constant(model("timm", path, freeze=freeze)) is None


def test_a_digest_tells_values_names_types_and_shapes_apart() -> None:
    tensors = {"a": torch.arange(4.0), "b": torch.tensor(1.0)}
    same = digest_tensors({"b": torch.tensor(1.0), "a": torch.arange(8.0)[:4]})
    assert digest_tensors(tensors) == same
    others: list[dict[str, Tensor]] = [
        {**tensors, "a": torch.arange(4.0) + 1e-6},
        {"c": tensors["a"], "b": tensors["b"]},
        {**tensors, "a": torch.arange(4.0).reshape(2, 2)},
        {**tensors, "a": torch.arange(4.0).view(torch.int32)},
        {**tensors, "b": torch.tensor(1.0, dtype=torch.bfloat16)},
    ]
    assert len({same, *map(digest_tensors, others)}) == 6
