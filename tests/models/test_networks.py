"""Every segmentation network: shapes, parameters against the literature, gradients, deep supervision, learning."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medtrain.errors import MissingExtraError, UsageError
from medtrain.losses.deep_supervision import downsample_label
from medtrain.models.mednext import MedNeXt
from medtrain.models.padding import SegmentationNet
from medtrain.registry import build, get

needs_monai = pytest.mark.skipif(importlib.util.find_spec("monai") is None, reason="MONAI is not installed")

STAGES: dict[str, Any] = {"channels": [8, 8, 16, 16], "strides": [1, 2, 2, 2], "kernel_sizes": [3, 3, 3, 3]}
TINY: dict[str, dict[str, Any]] = {
    "unet": STAGES,
    "resenc_unet": {**STAGES, "blocks_per_stage": [1, 2]},
    "unetpp": {**STAGES, "convs_per_stage": 1},
    "cmunext": {"widths": [8, 8, 16], "blocks": [1, 2, 1], "block_kernels": [3, 5, 7]},
    "mednext": {"width": 8, "blocks": [1, 1, 2, 1, 1], "expansions": [2, 3, 2, 3, 2], "grn": True},
    "dynunet": STAGES,
    "segresnet": {"width": 8, "blocks_down": [1, 2, 1], "blocks_up": [1, 1]},
    "attention_unet": {"channels": [8, 8, 16, 16], "strides": [1, 2, 2, 2]},
    "vnet": {"dropout": 0.0},
    "swin_unetr": {"width": 12, "window_size": 3},
    "unetr": {"width": 8, "hidden_size": 24, "mlp_dim": 32, "num_heads": 3},
}
"""A few channels of each."""
DIVISOR = {"cmunext": 4, "mednext": 4, "segresnet": 4, "vnet": 16, "swin_unetr": 32}
OF_MONAI = ("dynunet", "segresnet", "attention_unet", "vnet", "swin_unetr", "unetr")


def models(names: Any = TINY, *marks: pytest.MarkDecorator) -> list[Any]:
    return [pytest.param(name, marks=[*marks, *([needs_monai] if name in OF_MONAI else [])]) for name in names]


def make(name: str, size: tuple[int, ...], *, in_channels: int = 1, num_outputs: int = 3, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = {"name": name, **TINY[name], **settings}
    runtime = {"spatial_dims": len(size), "in_channels": in_channels, "num_outputs": num_outputs, "patch_size": size}
    return build("model", config, **runtime)


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


def outputs_of(model: nn.Module, image: Tensor) -> list[Tensor]:
    found = model(image)
    return found if isinstance(found, list) else [found]


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


SHAPES = [
    # images [B, C, *S], outputs K
    ((2, 1, 32, 32), 2),  # fits nearly all of them
    ((2, 3, 37, 50), 1),  # odd, several channels, one output
    ((2, 1, 19, 70), 4),  # anisotropic
    ((1, 2, 32, 32, 32), 2),
    ((1, 1, 5, 33, 18), 3),  # odd and anisotropic
]


@pytest.mark.parametrize(("shape", "num_outputs"), SHAPES)
@pytest.mark.parametrize("name", models())
def test_logits_have_the_size_of_the_image(name: str, shape: tuple[int, ...], num_outputs: int) -> None:
    batch, channels, *size = shape
    if name == "vnet" and channels == 3:
        channels = 4
    if name == "swin_unetr":
        size[-1] = 40  # two tokens along one axis at the coarsest
    model = make(name, tuple(size), in_channels=channels, num_outputs=num_outputs).eval()
    with torch.no_grad():
        logits = model(images(batch, channels, *size))
    assert logits.shape == (batch, num_outputs, *size)
    assert isinstance(model, SegmentationNet)
    if name == "unetr":
        assert model.divisor == tuple(-(-n // 16) * 16 for n in size)
    else:
        assert model.divisor == (DIVISOR.get(name, 8),) * len(size)


@pytest.mark.parametrize("name", models(["unet", "resenc_unet", "unetpp", "dynunet", "attention_unet"]))
def test_strides_differ_by_axis(name: str) -> None:
    strides = [1, [1, 2, 2], [2, 2, 2], [1, 2, 1]]
    model = make(name, (6, 33, 18), strides=strides).eval()
    assert model.divisor == (2, 8, 4)
    with torch.no_grad():
        assert model(images(1, 1, 6, 33, 18)).shape == (1, 3, 6, 33, 18)


@pytest.mark.parametrize("name", models())
def test_fixed_strides_are_those_of_the_network(name: str) -> None:
    component = get("model", name)
    settings = {**component.defaults(), **TINY[name]}
    strides = component.target.fixed_strides(settings)  # type: ignore[attr-defined]
    assert (strides is None) == ("strides" in settings)
    if strides is not None:
        patch = 2 ** (len(strides) - 1)
        assert make(name, (patch, 2 * patch)).divisor == ((patch, 2 * patch) if name == "unetr" else (patch, patch))


DEEP = {  # sizes of the logits for an image of 33 x 20, finest first: whole voxels of the coarsest
    "unet": [(34, 20), (17, 10)],
    "resenc_unet": [(34, 20), (17, 10)],
    "dynunet": [(34, 20), (17, 10)],
    "mednext": [(34, 20), (17, 10)],
    "unetpp": [(33, 20)] * 3,
}


@pytest.mark.parametrize("name", models(DEEP))
def test_deep_supervision(name: str) -> None:
    model, image = make(name, (33, 20)), images(2, 1, 33, 20)
    found = model(image)
    assert [tuple(output.shape[2:]) for output in found] == DEEP[name]
    assert all(output.shape[:2] == (2, 3) for output in found)
    # the first is what the network predicts: nothing here differs between training and evaluation but the list
    torch.testing.assert_close(model.eval()(image), found[0][:, :, :33])
    without = make(name, (33, 20), deep_supervision=False)
    assert isinstance(without(image), Tensor)
    assert count(without) < count(model)


def test_every_column_of_unetpp_predicts_from_its_own_depth() -> None:
    model = make("unetpp", (16, 16))
    deepest, middle, shallow = model(images(1, 1, 16, 16))
    for output, depth in ((shallow, 1), (middle, 2), (deepest, 3)):
        model.zero_grad()
        output.sum().backward(retain_graph=True)
        reached = [any(p.grad is not None for p in stage.parameters()) for stage in model.encoder]
        assert reached == [stage <= depth for stage in range(4)]


@pytest.mark.parametrize("name", models())
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = make(name, (32, 64), in_channels=2)
    with torch.no_grad():  # residual blocks and response norms start as the identity, which stops some gradients
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    sum(output.square().sum() + output.sum() for output in outputs_of(model, images(2, 2, 32, 64))).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    dead = [key for key, p in model.named_parameters() if not p.grad.abs().sum() > 0]
    # a bias in front of a norm is cancelled by it, up to rounding
    assert [key for key in dead if not key.endswith("bias")] == []


@pytest.mark.parametrize("name", models())
def test_the_state_is_whole_and_stays(name: str) -> None:
    model, image = make(name, (32, 64)), images(2, 1, 32, 64)
    keys = list(model.state_dict())
    tensors = {key: value.clone() for key, value in model.named_parameters()}
    places = [value.data_ptr() for value in model.state_dict().values() if value.numel()]
    assert len(set(places)) == len(places)  # safetensors takes no tensor twice
    model(image)
    model.eval()
    with torch.no_grad():
        first, second = model(image), model(image)
    assert list(model.state_dict()) == keys
    assert torch.equal(first, second)
    assert all(torch.equal(value, tensors[key]) for key, value in model.named_parameters())
    again = make(name, (32, 64)).eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(image), first)


NORMS = {"instance": "Instance", "batch": "Batch", "group": "Group"}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "name", models([n for n in TINY if n not in ("attention_unet", "vnet", "unetr", "swin_unetr")])
)
def test_the_norm_is_honoured_everywhere(name: str, norm: str) -> None:
    model = make(name, (32, 32), norm=norm)
    found = {type(module).__name__ for module in model.modules() if "Norm" in type(module).__name__}
    found -= {"GlobalResponseNorm"}
    assert found
    assert all(NORMS[norm] in kind for kind in found), found
    for output in outputs_of(model, images(2, 1, 32, 32)):
        assert output.isfinite().all()


@needs_monai
@pytest.mark.parametrize("name", ["swin_unetr", "unetr"])
def test_the_norm_of_a_transformers_decoder(name: str) -> None:
    settings = {"width": 24} if name == "swin_unetr" else {}
    for norm, kind in NORMS.items():
        model = make(name, (32, 32), norm=norm, **settings)
        found = {type(module).__name__ for module in model.modules() if "Norm" in type(module).__name__}
        assert len(found) == 2, found  # LayerNorm of the transformer
        assert any(kind in each for each in found), found


LARGE = ("vnet", "swin_unetr")
"""They have millions of parameters at least."""


@pytest.mark.parametrize("name", [*models(n for n in TINY if n not in LARGE), *models(LARGE, pytest.mark.slow)])
def test_one_batch_is_learned(name: str) -> None:
    image = images(2, 1, 16, 16)
    label = (F.avg_pool2d(image[:, 0], 5, 1, 2) > 0).long() + (image[:, 0] > 1).long()
    wide = {"vnet": 2, "swin_unetr": 3}.get(name, 1)  # 16 x 16 would leave them a single voxel
    image, label = image.repeat(1, 1, 1, wide), label.repeat(1, 1, wide)
    model = make(name, tuple(image.shape[2:]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        terms = [
            F.cross_entropy(o, downsample_label(label, [n // part for n, part in zip(label.shape[1:], o.shape[2:])]))
            for o in outputs_of(model, image)
        ]
        optimizer.zero_grad()
        sum(terms).backward()  # type: ignore[union-attr]
        optimizer.step()
        losses.append(terms[0].item())
    assert min(losses[-3:]) < losses[0] / FACTOR, (losses[0], losses[-3:])


FACTOR = 3.0
"""By how much the loss of the finest logits falls in 30 steps."""


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*")
@pytest.mark.parametrize("name", models())
def test_a_trace_computes_the_same(name: str) -> None:
    size = (37, 50)
    model = make(name, size, in_channels=2).eval()
    with torch.no_grad(), warnings.catch_warnings():
        # as in medtrain.export.formats: torch.nn checks sizes, which do not change
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module=r"torch\.nn\.")
        traced = torch.jit.trace(model, images(2, 2, *size), check_trace=False)
        other = torch.randn(3, 2, *size)
        torch.testing.assert_close(traced(other), model(other), rtol=1e-4, atol=1e-4)


LITERATURE = [
    # F. Tang et al., CMUNeXt: three channels, one output
    ("cmunext", 2, 3, 1, {"variant": "s"}, 0.418e6),
    ("cmunext", 2, 3, 1, {"variant": "base"}, 3.15e6),
    ("cmunext", 2, 3, 1, {"variant": "l"}, 8.29e6),
    # S. Roy et al., MedNeXt, kernel 3: AMOS has 15 classes
    ("mednext", 3, 1, 15, {"variant": "s"}, 5.6e6),
    ("mednext", 3, 1, 15, {"variant": "b"}, 10.5e6),
    ("mednext", 3, 1, 15, {"variant": "m"}, 17.6e6),
    ("mednext", 3, 1, 15, {"variant": "l"}, 61.8e6),
    # A. Hatamizadeh et al., UNETR and Swin UNETR on BTCV, 14 classes, patches of 96 voxels
    ("unetr", 3, 1, 14, {}, 92.8e6),
    ("swin_unetr", 3, 1, 14, {}, 62.2e6),
]


@pytest.mark.parametrize(
    ("name", "dims", "channels", "outputs", "settings", "expected"),
    [pytest.param(*row, marks=needs_monai if row[0] in OF_MONAI else ()) for row in LITERATURE],
)
def test_parameters_are_those_of_the_paper(
    name: str, dims: int, channels: int, outputs: int, settings: dict[str, Any], expected: float
) -> None:
    runtime = {"spatial_dims": dims, "in_channels": channels, "num_outputs": outputs, "patch_size": (96,) * dims}
    with torch.device("cpu" if name == "swin_unetr" else "meta"):  # it reads numbers from tensors while it is built
        model = build("model", {"name": name, **settings}, **runtime)
    # the paper's figure has three digits (two for MedNeXt-S)
    assert count(model) == pytest.approx(expected, rel=0.01 if expected == 5.6e6 else 0.0035)


def test_parameters_of_unetpp_are_those_of_the_paper() -> None:
    # Z. Zhou et al.: 9.04 M for 32 to 512 features, two convolutions per node, no norms
    settings: dict[str, Any] = {"channels": [32, 64, 128, 256, 512], "strides": [1, 2, 2, 2, 2]}
    settings |= {"kernel_sizes": [3] * 5, "deep_supervision": False, "convs_per_stage": 2}
    with torch.device("meta"):
        model = make("unetpp", (96, 96), in_channels=3, num_outputs=1, **settings)
    norms = sum(p.numel() for key, p in model.named_parameters() if ".norm." in key)
    assert count(model) - norms == pytest.approx(9.04e6, rel=5e-4)


def test_parameters_of_the_residual_encoder_are_those_of_nnunet() -> None:
    # dynamic-network-architectures 0.4.4: ResidualEncoderUNet(1, 6, (32, ..., 320), Conv3d, 3, (1, 2, 2, 2, 2, 2),
    # (1, 3, 4, 6, 6, 6), 3, (1,) * 5, True, InstanceNorm3d, affine, deep supervision) has 102 350 575 parameters, of
    # which 963 are the head at the coarsest decoder resolution, which is left out here
    settings: dict[str, Any] = {"channels": [32, 64, 128, 256, 320, 320], "strides": [1, 2, 2, 2, 2, 2]}
    settings |= {"kernel_sizes": [3] * 6, "blocks_per_stage": [1, 3, 4, 6]}
    with torch.device("meta"):
        model = make("resenc_unet", (96, 96, 96), **settings)
    assert count(model) == 102_350_575 - 963


def test_residual_blocks_start_as_the_identity() -> None:
    model = make("resenc_unet", (16, 16))
    block = model.encoder[0][1]
    features = images(1, 8, 16, 16)
    assert torch.equal(block(features), F.leaky_relu(features, 0.01))


def test_recomputed_activations_change_nothing() -> None:
    image, results = images(2, 1, 16, 16), []
    for layers in ([], ["encoder.*", "decoder.*"]):
        model = make("mednext", (16, 16), checkpoint_layers=layers)
        sum(output.square().sum() for output in model(image)).backward()
        results.append([p.grad for p in model.parameters()])
    for one, two in zip(*results):
        torch.testing.assert_close(one, two)


@needs_monai
@pytest.mark.parametrize("dims", [2, 3])
def test_mednext_computes_what_monais_does(dims: int) -> None:
    reference = get_monai("mednext", "create_mednext")(
        "S", spatial_dims=dims, in_channels=2, out_channels=3, kernel_size=3, deep_supervision=False
    )
    model = MedNeXt(spatial_dims=dims, in_channels=2, num_outputs=3, deep_supervision=False)  # type: ignore[arg-type]
    blocks = {"conv1": "depthwise", "norm": "norm", "conv2": "expand", "conv3": "compress", "res_conv": "shortcut"}
    parts = {"enc_stages": "encoder", "down_blocks": "down", "up_blocks": "up", "dec_stages": "decoder"}
    state = {}
    for key, value in reference.state_dict().items():
        words = key.split(".")
        if words[0] == "stem":
            state[key] = value
        elif words[0] == "out_0":
            # a transposed convolution there, whose channels are in the other order
            state[f"heads.0.{words[-1]}"] = value.transpose(0, 1) if value.dim() > 1 else value
        elif words[0] == "bottleneck":
            state[".".join(["encoder.4", words[1], blocks[words[2]], words[3]])] = value
        elif words[0] in parts:
            state[".".join([parts[words[0]], *words[1:-2], blocks[words[-2]], words[-1]])] = value
    model.load_state_dict(state)
    image = images(1, 2, *(32, 16, 32)[:dims])
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(image), reference.eval()(image), rtol=1e-4, atol=1e-5)


@needs_monai
def test_dynunet_computes_what_monais_does() -> None:
    kwargs = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "kernel_size": [3] * 4, "strides": [1, 2, 2, 2]}
    kwargs |= {"upsample_kernel_size": [2] * 3, "filters": [8, 8, 16, 16], "deep_supervision": True}
    reference = get_monai("dynunet", "DynUNet")(**kwargs)
    model, image = make("dynunet", (16, 24)), images(2, 1, 16, 24)
    state = reference.state_dict()
    model.network.load_state_dict({key: value for key, value in state.items() if not key.startswith("skip_layers")})
    finest, coarse = model(image)
    stacked = reference(image)
    torch.testing.assert_close(finest, stacked[:, 0])
    torch.testing.assert_close(F.interpolate(coarse, size=(16, 24)), stacked[:, 1])


def get_monai(module: str, name: str) -> Any:
    return getattr(importlib.import_module(f"monai.networks.nets.{module}"), name)


@pytest.mark.parametrize("name", OF_MONAI)
def test_without_monai_the_extra_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(MissingExtraError, match=f"model={name} needs the package monai") as error:
        make(name, (32, 32))
    assert error.value.hint == "pip install 'medtrain[monai]'"


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("cmunext", {"blocks": [1, 1]}, "model.widths has 3, model.blocks has 2, model.block_kernels has 3"),
        ("cmunext", {"block_kernels": [3, 4, 3]}, "model.block_kernels must be odd"),
        ("mednext", {"blocks": [1, 1, 1, 1]}, "an odd number"),
        ("mednext", {"blocks": [1, 1, 1]}, "model.blocks has 3, model.expansions has 5"),
        ("unetpp", {"channels": [4, 4]}, "unetpp needs one entry per stage"),
        ("resenc_unet", {"blocks_per_stage": []}, "model.blocks_per_stage is empty"),
        ("dynunet", {"channels": [4, 4], "strides": [1, 2], "kernel_sizes": [3, 3]}, "three stages or more"),
        ("dynunet", {"channels": [8, 12, 16, 16], "norm": "group"}, "divisible by 8, got 12"),
        ("segresnet", {"blocks_up": [1]}, "one entry fewer"),
        ("swin_unetr", {"width": 20}, "multiple of 12"),
        ("swin_unetr", {"num_heads": [5, 6, 12, 24]}, "does not divide the 12 features"),
        ("unetr", {"num_heads": 5}, "not a multiple of model.num_heads=5"),
    ],
)
def test_contradictions_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(name, (32, 32), **settings)


def test_vnet_refuses_channels_that_do_not_divide_its_width() -> None:
    with pytest.raises(UsageError, match="images of 3 channels"):
        make("vnet", (32, 32), in_channels=3)


@needs_monai
def test_unetr_refuses_an_image_larger_than_its_patch() -> None:
    model = make("unetr", (32, 30))
    assert model(images(1, 1, 20, 32)).shape == (1, 3, 20, 32)
    with pytest.raises(UsageError, match="built for images of 32 x 32, got 64 x 32"):
        model(images(1, 1, 40, 32))
