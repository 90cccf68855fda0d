"""Adapters: exact counts, what learns and what never does, files that PEFT reads, and merging."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from medtrain.errors import MedtrainError, MissingExtraError, UsageError
from medtrain.models.freezing import parameter_summary
from medtrain.registry import build

pytest.importorskip("peft", reason="needs the extra lora")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT asks HuggingFace about base models when it is not told better."""

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)


def model(*, num_outputs: int = 5, size: int = 32, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    config = {"name": "vit_lora", "arch": "test_vit", "weights": None, **options}
    return build("model", config, in_channels=3, image_size=(size, size), num_outputs=num_outputs)


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def trained(network: Any, steps: int = 3) -> Any:
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.05, weight_decay=0.1)
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images()), torch.tensor([0, 3])).backward()
        optimizer.step()
    return network.eval()


@pytest.mark.parametrize(
    ("arch", "size", "options", "trainable", "head", "base"),
    [
        # ViT-L/16: 24 blocks, r * (1024 + 3072) each; head: 2 * 1024 + 1024 * 5 + 5
        ("vit_large_patch16_224", 224, {"r": 4}, 400_389, 7_173, 303_301_632),
        ("vit_large_patch16_224", 224, {"r": 8}, 793_605, 7_173, 303_301_632),
        ("vit_large_patch16_224", 224, {"r": 16}, 1_580_037, 7_173, 303_301_632),
        ("vit_large_patch16_224", 224, {"r": 32}, 3_152_901, 7_173, 303_301_632),
        # the projection too: 24 * 8 * (4096 + 2048), and nothing in the patch embedding's, which is a `proj` as well
        ("vit_large_patch16_224", 224, {"r": 8, "targets": "qkv+proj"}, 1_179_648 + 7_173, 7_173, 303_301_632),
        # ViT-S/14 with registers at 392 pixels: 12 blocks, 8 * (384 + 1152) each; head 2 * 384 + 384 * 5 + 5
        ("vit_small_patch14_reg4_dinov2", 392, {"r": 8}, 150_149, 2_693, 21_832_704),
    ],
)
def test_exact_counts(arch: str, size: int, options: dict[str, Any], trainable: int, head: int, base: int) -> None:
    with torch.device("meta"):
        summary = parameter_summary(model(arch=arch, size=size, **options))
    assert (summary.trainable, summary.frozen) == (trainable, base)
    assert summary.parts == {"encoder": (trainable - head, base), "head": (head, 0)}


def test_before_the_first_step_the_encoder_computes_what_it_did() -> None:
    network = model(targets="qkv+proj").eval()
    plain: Any = timm.create_model("test_vit", num_classes=0, img_size=(32, 32)).eval()
    state = network.encoder.network.state_dict()
    base = {name.replace(".base_layer.", "."): t for name, t in state.items() if ".lora_" not in name}
    plain.load_state_dict(base)
    torch.testing.assert_close(network.encoder(images()), plain(images()), atol=1e-6, rtol=1e-5)
    for name, tensor in state.items():
        if ".lora_" in name:
            assert (tensor == 0).all() == (".lora_B." in name), name


def test_only_adapters_and_head_learn() -> None:
    network = model()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    trained(network)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    learnt = {name for name in before if ".lora_" in name or name.startswith("head.")}
    assert changed == learnt
    assert set(network.locked) == {name for name, _ in network.named_parameters()} - learnt
    # in every block: a bypassed layer would leave its adapter still
    assert len([name for name in changed if name.endswith("lora_B.default.weight")]) == len(
        network.encoder.model.blocks
    )


def test_the_scale_is_alpha_over_r() -> None:
    network = model(r=2, alpha=8.0, dropout=0.0).eval()
    layer = network.encoder.model.blocks[0].attn.qkv
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(3, layer.in_features)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 8 / 2 * x @ a.t() @ b.t(), atol=1e-5, rtol=1e-5)


def test_adapters_go_round_and_are_small(tmp_path: Path) -> None:
    first = trained(model(r=4))
    first.save_adapter(tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "head.safetensors",
    }
    second = model(r=4)  # the same frozen transformer, fresh adapters and head
    assert not torch.allclose(second.eval()(images()), first(images()))
    second.load_adapter(tmp_path / "adapter")
    assert torch.equal(second(images()), first(images()))
    assert [p.requires_grad for p in second.parameters()] == [p.requires_grad for p in first.parameters()]
    stored = sum(t.numel() for t in load_file(tmp_path / "adapter" / "adapter_model.safetensors").values())
    assert stored == sum(p.numel() for name, p in first.named_parameters() if ".lora_" in name)


def test_peft_reads_the_adapters_for_the_network_of_timm(tmp_path: Path) -> None:
    import peft

    network = trained(model(r=4, targets="qkv+proj"))
    network.save_adapter(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["bias"]) == (4, 32, "none")
    assert sorted(config["target_modules"]) == ["attn.proj", "attn.qkv"]
    plain: Any = timm.create_model("test_vit", num_classes=0, img_size=(32, 32))
    state = network.encoder.network.state_dict()
    plain.load_state_dict({name.replace(".base_layer.", "."): t for name, t in state.items() if ".lora_" not in name})
    theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    assert torch.equal(theirs(images()), network.encoder(images()))


def test_adapters_of_another_kind_are_refused(tmp_path: Path) -> None:
    model(r=4).save_adapter(tmp_path)
    with pytest.raises(UsageError, match=r"model\.r is 8, in the file 4; model\.targets is \['attn\.proj'"):
        model(r=8, targets="qkv+proj").load_adapter(tmp_path)
    with pytest.raises(MedtrainError, match=r"does not fit this model: 2\.weight \[5, 64\], expected \[2"):
        model(r=4, num_outputs=2).load_adapter(tmp_path)
    with pytest.raises(UsageError, match=r"holds no adapter_model\.safetensors"):
        model().load_adapter(tmp_path / "absent")


def test_a_merged_copy_computes_the_same_and_has_plain_names() -> None:
    network = trained(model(targets="qkv+proj"))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    merged = network.merged()
    torch.testing.assert_close(merged(images()), network(images()), atol=1e-5, rtol=1e-4)
    assert not merged.training
    plain: Any = timm.create_model("test_vit", num_classes=0, img_size=(32, 32))
    assert set(merged.encoder.network.state_dict()) == set(plain.state_dict())
    assert not any("lora" in type(module).__module__ for module in merged.modules())
    # the model that is merged goes on as it was
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert merged.feature_layer() is not network.feature_layer()


def test_a_copy_has_adapters_of_its_own() -> None:
    network = model()
    twin = copy.deepcopy(network)
    trained(twin)
    assert not torch.allclose(twin(images()), network.eval()(images()))
    assert torch.equal(model().eval()(images()), network(images()))


def test_blocks_with_adapters_are_recomputed_with_the_same_gradients() -> None:
    plain = model(dropout=0.0, head_dropout=0.0).train()
    thrifty = model(dropout=0.0, head_dropout=0.0, checkpoint_layers=["encoder.model.blocks.*"]).train()
    for network in (plain, thrifty):
        network(images()).square().sum().backward()
    for (name, one), (_, two) in zip(plain.named_parameters(), thrifty.named_parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, two.grad, msg=name)
            assert one.grad is not None


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet10t", "has no linear layers named attn.qkv"),
        ("beit_base_patch16_224", "does not call .*attn.qkv: adapters there would be without effect"),
    ],
)
def test_networks_where_adapters_have_no_effect_are_refused(arch: str, message: str) -> None:
    with torch.device("meta"), pytest.raises(UsageError, match=message):
        model(arch=arch, size=224 if "224" in arch else 32)


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match="low-rank adaptation") as caught:
        model()
    assert caught.value.hint == "pip install 'medtrain[lora]'"


def test_a_model_without_adapters_saves_none(tmp_path: Path) -> None:
    from medtrain.models.lora import save_adapter

    plain = build("model", {"name": "cnn"}, in_channels=1, image_size=(16, 16), num_outputs=2)
    with pytest.raises(UsageError, match="this model has no adapters"):
        save_adapter(plain, tmp_path)
