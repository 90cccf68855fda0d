"""Pretrained weights: every layout is read, adapted and reported, and nothing is downloaded or run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medtrain.errors import MedtrainError, UsageError
from medtrain.models.encoders import Encoder, build_encoder
from medtrain.models.weight_names import to_network_names
from medtrain.models.weights import LoadReport, adapt_channels


def build(arch: str = "resnet10t", channels: int = 3, size: int = 64, **options: Any) -> Encoder:
    return build_encoder(arch, in_channels=channels, image_size=(size, size), **options).eval()


def report_of(encoder: Encoder) -> LoadReport:
    assert encoder.weights_report is not None
    return encoder.weights_report


def timm_model(arch: str = "resnet10t", **options: Any) -> Any:
    torch.manual_seed(3)
    model: Any = timm.create_model(arch, **{"num_classes": 7, **options}).eval()
    for buffer in model.buffers():
        if buffer.dtype.is_floating_point:
            buffer.uniform_(0.5, 1.5)  # running statistics that are not those of a new model
    return model


def vector(model: Any, image: Tensor) -> Tensor:
    features: Tensor = model.forward_head(model.forward_features(image), pre_logits=True)
    return features


def images(channels: int = 3, size: int = 64) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "encoder.", "module.encoder_q.backbone."])
@pytest.mark.parametrize("key", ["", "state_dict", "model"])
def test_names_behind_any_prefix_and_key_are_found(prefix: str, key: str, tmp_path: Path) -> None:
    source = timm_model()
    state = {f"{prefix}{name}": tensor for name, tensor in source.state_dict().items()}
    torch.save({key: state, "epoch": 3, "args": argparse.Namespace(lr=0.1)} if key else state, tmp_path / "w.pth")
    encoder = build(weights=str(tmp_path / "w.pth"))
    report = report_of(encoder)
    assert report.matched == 1
    assert report.part == key
    assert [name.removeprefix(prefix) for name in report.unexpected] == ["fc.weight", "fc.bias"]
    assert torch.equal(encoder(images()), vector(source, images()))


def test_a_prefix_is_removed_at_the_start_only(tmp_path: Path) -> None:
    # `replace("model.", "")` anywhere would turn the second name into the first
    tensors = {"model.a.weight": torch.zeros(1), "model.model.a.weight": torch.ones(1), "model.b.weight": torch.ones(2)}
    renamed = to_network_names(tensors, ["a.weight", "b.weight", "model.a.weight"])
    assert {name: tensor.shape[0] for name, tensor in renamed.items()} == {
        "a.weight": 1,
        "model.a.weight": 1,
        "b.weight": 2,
    }
    assert renamed["a.weight"].item() == 0


def test_the_set_that_fits_is_taken_and_the_teacher_where_two_fit(tmp_path: Path) -> None:
    source = timm_model()
    student = {f"backbone.{name}": tensor + 1 for name, tensor in source.state_dict().items()}
    teacher = {f"backbone.{name}": tensor for name, tensor in source.state_dict().items()}
    optimizer = {"state": {"conv1.weight": torch.zeros(1)}}
    torch.save({"student": student, "optimizer": optimizer, "teacher": teacher}, tmp_path / "dino.pth")
    encoder = build(weights=str(tmp_path / "dino.pth"))
    assert report_of(encoder).part == "teacher"
    assert torch.equal(encoder(images()), vector(source, images()))


def test_a_grey_image_gives_what_its_copies_in_red_green_and_blue_give(tmp_path: Path) -> None:
    source = timm_model()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    encoder = build(channels=1, weights=str(tmp_path / "w.safetensors"))
    expected = vector(source, images(1).expand(-1, 3, -1, -1))
    torch.testing.assert_close(encoder(images(1)), expected, rtol=1e-4, atol=1e-5)
    assert list(report_of(encoder).adapted.values()) == ["3 input channels became 1"]


@pytest.mark.parametrize("channels", [2, 4, 6, 7])
def test_equal_channels_give_the_response_they_gave(channels: int) -> None:
    weight = torch.randn(5, 3, 2, 2)
    adapted = adapt_channels(weight, channels)
    assert adapted.shape == (5, channels, 2, 2)
    torch.testing.assert_close(adapted.sum(dim=1), weight.sum(dim=1))
    # two of three: [r, g] * 3 / 2, and what the sum lacks on both
    if channels == 6:
        torch.testing.assert_close(adapted, torch.cat((weight, weight), dim=1) / 2)


def test_position_embeddings_are_interpolated(tmp_path: Path) -> None:
    source = timm_model("test_vit", img_size=64)
    plane = torch.linspace(0, 1, 4)[:, None].expand(4, 4)  # rises from the first row of the grid to the last
    with torch.no_grad():
        source.pos_embed[:, 1:] = plane.reshape(1, 16, 1)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    encoder = build("test_vit", size=128, weights=str(tmp_path / "w.safetensors"))
    network: Any = encoder.network
    grid = network.pos_embed[0, 1:, 0].reshape(8, 8)
    assert torch.equal(network.pos_embed[:, :1], source.pos_embed[:, :1])
    assert (grid.diff(dim=0) > 0).all()
    torch.testing.assert_close(grid.diff(dim=1), torch.zeros(8, 7), atol=1e-5, rtol=0)
    assert report_of(encoder).adapted == {"pos_embed": "1 x 17 x 64 became 1 x 65 x 64"}
    assert "pos_embed" not in report_of(encoder).exact


def mae_checkpoint(path: Path) -> Any:
    """RETFound's layout: masked pretraining with a decoder, no classifier, the command line beside the weights."""
    source = timm_model("test_vit", img_size=64, num_classes=0)
    state = {**source.state_dict(), "mask_token": torch.zeros(1, 1, 8)}
    state |= {"decoder_embed.weight": torch.zeros(8, 64), "decoder_blocks.0.norm1.weight": torch.zeros(8)}
    state |= {"decoder_norm.weight": torch.zeros(8), "decoder_pos_embed": torch.zeros(1, 17, 8)}
    args = argparse.Namespace(model="mae_vit_large_patch16", lr=1e-3)
    torch.save({"model": state, "optimizer": {"state": {}}, "epoch": 799, "scaler": {}, "args": args}, path)
    return source


def test_the_layout_of_retfound(tmp_path: Path) -> None:
    source = mae_checkpoint(tmp_path / "RETFound_cfp_weights.pth")
    encoder = build("test_vit", weights=str(tmp_path / "RETFound_cfp_weights.pth"))
    report = report_of(encoder)
    assert (report.matched, report.part, report.unexpected, report.missing) == (1, "model", (), ())
    assert torch.equal(encoder(images()), vector(source, images()))


def test_the_layout_of_chexnet(tmp_path: Path) -> None:
    source = timm_model("densenet121")
    # torchvision of 2017 wrote norm.1 for norm1, and CheXNet's authors wrapped the network twice
    state = {}
    for name, tensor in source.state_dict().items():
        for word in ("norm", "conv"):
            if "denselayer" in name:
                name = name.replace(f".{word}1.", f".{word}.1.").replace(f".{word}2.", f".{word}.2.")
        state[f"module.densenet121.{name}".replace("classifier.", "classifier.0.")] = tensor
    torch.save({"epoch": 1, "state_dict": state, "best_loss": 0.1}, tmp_path / "chexnet.pth.tar")
    encoder = build("densenet121", weights=str(tmp_path / "chexnet.pth.tar"))
    assert report_of(encoder).matched == 1
    assert torch.equal(encoder(images()), vector(source, images()))


def rad_dino_folder(folder: Path, source: Any) -> None:
    """What HuggingFace has for DINOv2: other names, and query, key and value apart."""
    folder.mkdir()
    state = {"embeddings.mask_token": torch.zeros(1, 64)}
    direct = {"cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings"}
    parts = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "attn.proj": "attention.output.dense",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
    }
    for name, tensor in source.state_dict().items():
        if name in direct:
            state[direct[name]] = tensor
            continue
        name = name.replace("blocks.", "encoder.layer.")
        name = f"layernorm.{name[5:]}" if name.startswith("norm.") else name
        for ours, theirs in parts.items():
            name = name.replace(ours, theirs)
        if ".attn.qkv." in name:
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3)):
                state[name.replace("attn.qkv", f"attention.attention.{part}")] = piece.clone()
        elif not name.startswith("head."):
            state[name] = tensor
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "dinov2", "image_size": 56}))


def small_dinov2(**options: Any) -> Any:
    shape = {"embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 0}
    source = timm_model("vit_base_patch14_dinov2", img_size=56, **shape, **options)
    for name, parameter in source.named_parameters():
        if name.endswith("gamma"):
            nn.init.uniform_(parameter, 0.5, 1)  # layer scales of 1e-5 would hide the blocks
    return source


def dinov2_encoder(monkeypatch: pytest.MonkeyPatch, weights: Path, size: int = 56) -> Encoder:
    """RAD-DINO's architecture with two narrow blocks."""
    whole = timm.create_model

    def narrow(arch: str, **options: Any) -> Any:
        return whole(arch, **options, embed_dim=64, depth=2, num_heads=2)

    monkeypatch.setattr(timm, "create_model", narrow)
    encoder = build("vit_base_patch14_dinov2", size=size, weights=str(weights))
    monkeypatch.undo()
    return encoder


def test_a_folder_in_the_style_of_huggingface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = small_dinov2()
    rad_dino_folder(tmp_path / "rad-dino", source)
    encoder = dinov2_encoder(monkeypatch, tmp_path / "rad-dino")
    report = report_of(encoder)
    assert (report.matched, report.unexpected, report.missing, dict(report.adapted)) == (1, (), (), {})
    assert torch.equal(encoder(images(size=56)), vector(source, images(size=56)))
    larger = dinov2_encoder(monkeypatch, tmp_path / "rad-dino", size=84)
    assert report_of(larger).adapted == {"pos_embed": "1 x 17 x 64 became 1 x 37 x 64"}


@pytest.mark.filterwarnings("ignore")  # of transformers
def test_transformers_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    dinov2 = pytest.importorskip("transformers.models.dinov2.modeling_dinov2")
    config: Any = dinov2.Dinov2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    reference: Any = dinov2.Dinov2Model(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    expected = reference(images(size=56)).pooler_output
    reference.save_pretrained(tmp_path / "folder")
    torch.save(reference.state_dict(), tmp_path / "state.pt")  # under the names in memory, which differ
    for path in (tmp_path / "folder", tmp_path / "state.pt"):
        encoder = dinov2_encoder(monkeypatch, path)
        assert report_of(encoder).matched == 1
        torch.testing.assert_close(encoder(images(size=56)), expected, rtol=1e-4, atol=1e-4)


def test_shards_with_an_index(tmp_path: Path) -> None:
    source = timm_model()
    halves: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for index, (name, tensor) in enumerate(source.state_dict().items()):
        halves[index % 2][name] = tensor
    for number, half in enumerate(halves):
        save_file(half, tmp_path / f"shard{number}.safetensors")
    places = {name: f"shard{number}.safetensors" for number, half in enumerate(halves) for name in half}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert torch.equal(build(weights=str(tmp_path))(images()), vector(source, images()))


def test_too_few_matches_are_an_error_with_the_names(tmp_path: Path) -> None:
    save_file(timm_model().state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(MedtrainError, match=r"gives 0\.0% of the weights of test_vit(.|\n)*not in the file: cls_token"):
        build("test_vit", weights=str(tmp_path / "w.safetensors"))
    # half of the tensors: an error, and none when that is allowed
    half = dict(list(timm_model().state_dict().items())[:40])
    save_file(half, tmp_path / "half.safetensors")
    with pytest.raises(MedtrainError, match=r"model\.min_matched is 90%"):
        build(weights=str(tmp_path / "half.safetensors"))
    report = report_of(build(weights=str(tmp_path / "half.safetensors"), min_matched=0.2))
    assert 0.2 < report.matched < 0.9
    assert report.missing


def test_shapes_that_differ_are_reported_and_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_file(timm_model("resnet18").state_dict(), tmp_path / "w.safetensors")
    with caplog.at_level("INFO"):
        encoder = build("resnet18", size=28, weights=str(tmp_path / "w.safetensors"))
    assert dict(report_of(encoder).mismatched) == {"conv1.weight": ((64, 3, 7, 7), (64, 3, 3, 3))}
    assert "not loaded conv1.weight: [64, 3, 7, 7] in the file, [64, 3, 3, 3] here" in caplog.text
    assert "99.0% of the encoder's tensors" in caplog.text  # 99 of 100


class _Danger:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/tmp/never"),))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": _Danger()}, "it is no file of weights, or holds more than tensors"),
        ({"epoch": 3}, "holds no named tensors"),
        (b"no archive", "cannot be opened as weights"),
        (b"", "cannot be opened as weights: it ends too early"),
    ],
)
def test_files_that_are_no_weights_or_run_code_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(MedtrainError, match=message):
        build(weights=str(path))


def test_missing_files_and_folders_without_weights(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are no weights at"):
        build(weights=str(tmp_path / "absent.pth"))
    with pytest.raises(UsageError, match="holds 0 files of weights"):
        build(weights=str(tmp_path))


class _Hub:
    """A cache of HuggingFace with one file."""

    def __init__(self, files: Mapping[tuple[str, str], Path]) -> None:
        self.files = files

    def __call__(self, repository: str, name: str) -> str | None:
        path = self.files.get((repository, name))
        return None if path is None else str(path)


def test_timm_means_its_cache_and_never_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", _Hub({}))
    with pytest.raises(UsageError, match="not in timm's cache") as caught:
        build("resnet10t.c3_in1k", weights="timm")
    assert caught.value.hint is not None
    assert "timm.create_model('resnet10t.c3_in1k', pretrained=True)" in caught.value.hint
    source = timm_model()
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    cache = _Hub({("timm/resnet10t.c3_in1k", "model.safetensors"): tmp_path / "model.safetensors"})
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cache)
    encoder = build("resnet10t.c3_in1k", weights="timm")
    assert torch.equal(encoder(images()), vector(source, images()))
    with pytest.raises(UsageError, match="timm has no weights for this encoder"):
        build("cnn", weights="timm")
