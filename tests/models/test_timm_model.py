"""model=timm and model=cnn, built as a run builds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medtrain.errors import UsageError
from medtrain.models.freezing import parameter_summary
from medtrain.registry import build


def model(name: str = "timm", in_channels: int = 3, size: tuple[int, ...] = (64, 64), **options: Any) -> Any:
    torch.manual_seed(0)
    if name == "timm":
        options = {"arch": "resnet10t", **options}
    runtime = {"in_channels": in_channels, "image_size": size, "num_outputs": 4}
    return build("model", {"name": name, **options}, **runtime)


def images(channels: int = 3, size: tuple[int, ...] = (64, 64)) -> Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "channels", "size", "options"),
    [
        ("timm", 1, (64, 48), {}),
        ("timm", 5, (32, 32), {"arch": "test_vit", "drop_path_rate": 0.1}),
        ("timm", 3, (28, 28), {"arch": "resnet18"}),
        ("cnn", 2, (28, 30), {}),
        ("cnn", 1, (6, 20, 20), {"channels": [4, 8, 8], "norm": "group"}),
    ],
)
def test_images_become_logits_and_every_parameter_learns(
    name: str, channels: int, size: tuple[int, ...], options: dict[str, Any]
) -> None:
    network = model(name, channels, size, **options).train()
    batch = {"image": images(channels, size), "target": torch.zeros(2, 1)}
    logits = network(**{key: batch[key] for key in network.inputs})
    assert logits.shape == (2, 4)
    logits.square().sum().backward()
    still = [key for key, parameter in network.named_parameters() if parameter.grad is None]
    assert still == []


def test_exact_counts_of_the_classifiers() -> None:
    # published: 11 689 512 and 7 978 856 parameters with a head of 1000 classes on 512 and 1024 features
    assert parameter_summary(model(arch="resnet18")).total == 11_689_512 - 996 * 513
    assert parameter_summary(model(arch="densenet121")).total == 7_978_856 - 996 * 1025


def test_a_linear_probe_learns_its_head_alone(caplog: pytest.LogCaptureFixture) -> None:
    network = model(freeze="backbone").train()
    assert "the image encoder stays random" in caplog.text
    summary = parameter_summary(network)
    assert summary.trainable == 512 * 4 + 4
    assert set(network.locked) == {name for name, _ in network.named_parameters() if name.startswith("encoder.")}
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    network(images()).square().sum().backward()
    optimizer.step()
    changed = [name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == ["head.weight", "head.bias"]


def test_parts_are_frozen_by_name() -> None:
    network = model(freeze=["encoder.model.conv1", "encoder.model.layer[12]"]).train()
    assert not network.encoder.model.layer2.training
    assert network.encoder.model.layer3.training
    with pytest.raises(UsageError, match="no part of the model fits 'layer1'"):
        model(freeze=["layer1"])


def test_blocks_are_recomputed_with_the_same_result() -> None:
    plain = model(arch="test_vit", size=(32, 32)).train()
    thrifty = model(arch="test_vit", size=(32, 32), checkpoint_layers=["encoder.model.blocks.*"]).train()
    for network in (plain, thrifty):
        network(images(size=(32, 32))).square().sum().backward()
    for (name, one), (_, two) in zip(plain.named_parameters(), thrifty.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=name)


def test_weights_of_an_earlier_run_start_the_next(tmp_path: Path) -> None:
    first = model("cnn", in_channels=1)
    torch.save(first.state_dict(), tmp_path / "model.pt")  # names begin with `encoder.`
    torch.manual_seed(9)
    second = build(
        "model",
        {"name": "cnn", "weights": str(tmp_path / "model.pt"), "freeze": "backbone"},
        in_channels=1,
        image_size=(64, 64),
        num_outputs=2,
    )
    assert second.encoder.weights_report.unexpected == ()
    assert torch.equal(second.encoder.eval()(images(1)), first.encoder.eval()(images(1)))


def test_grad_cam_finds_its_layer() -> None:
    for network in (model(), model("cnn"), model(arch="test_vit", size=(64, 64))):
        seen: list[Tensor] = []
        layer: nn.Module = network.feature_layer()
        layer.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
        logits = network.eval()(images())
        (gradient,) = torch.autograd.grad(logits[:, 0].sum(), seen[0])
        assert gradient.ndim == 4
        assert gradient.abs().sum() > 0
