"""Low-rank adapters in a frozen transformer, through PEFT: put in, saved, loaded and merged.

E. Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022: W' = W + (alpha / r) B A.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from medtrain.errors import MedtrainError, MissingExtraError, UsageError
from medtrain.models.classifier import ImageClassifier
from medtrain.models.encoders import Encoder

ADAPTER_FILE = "adapter_model.safetensors"
"""The adapters, under the names that PEFT gives them; `adapter_config.json` beside it is PEFT's too."""

HEAD_FILE = "head.safetensors"
"""The head that was trained with them."""

_PEFT_PREFIX = "base_model.model."


def add_adapters(encoder: Encoder, *, targets: tuple[str, ...], r: int, alpha: float, dropout: float) -> None:
    """Freeze an encoder and put low-rank adapters beside linear layers of its attention.

    A is drawn uniformly after Kaiming, B is 0: before the first step the encoder computes what it did.

    Args:
        encoder: Changed in place.
        targets: Of each attention: `qkv`, `proj`.
        r: Rank of the adapters.
        alpha: Their outputs are scaled by alpha / r.
        dropout: Probability of dropping an input of an adapter.

    Raises:
        MissingExtraError: PEFT is not installed.
        UsageError: The architecture has no such layers, or computes without calling them.
    """
    peft = _import_peft()
    # `proj` alone would also name the patch embedding
    suffixes = [f"attn.{target}" for target in targets]
    for suffix in suffixes:
        if not any(name.endswith(suffix) and isinstance(m, nn.Linear) for name, m in encoder.network.named_modules()):
            raise UsageError(
                f"{encoder.arch} has no linear layers named {suffix}: no adapters can be put there",
                hint="choose a vision transformer, e.g. model.arch=vit_small_patch16_224",
            )
    config = peft.LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=suffixes, bias="none", init_lora_weights=True
    )
    peft.inject_adapter_in_model(config, encoder.network)
    for parameter_name, parameter in encoder.named_parameters():
        parameter.requires_grad_(is_adapter(parameter_name))
    _check_called(encoder)


def is_adapter(name: str) -> bool:
    """Whether a parameter belongs to an adapter, by its name."""
    return ".lora_" in name


def _check_called(encoder: Encoder) -> None:
    """Refuse architectures that read the weights of a layer instead of calling it: adapters would be without effect."""
    idle = {name for name, module in encoder.named_modules() if _is_lora_layer(module)}

    def note(name: str) -> Any:
        return lambda module, inputs, output: idle.discard(name)

    handles = [module.register_forward_hook(note(name)) for name, module in encoder.named_modules() if name in idle]
    tensors = {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}
    image = torch.zeros(1, encoder.in_channels, *encoder.image_size, device="meta")
    try:
        with torch.no_grad():
            functional_call(encoder, {name: tensor.to("meta") for name, tensor in tensors.items()}, (image,))
    finally:
        for handle in handles:
            handle.remove()
    if idle:
        raise UsageError(
            f"{encoder.arch} does not call {min(idle)}: adapters there would be without effect",
            hint="choose a plain vision transformer, e.g. model.arch=vit_small_patch16_224",
        )


def save_adapter(model: ImageClassifier, folder: Path) -> None:
    """Write the adapters in PEFT's format, and the head beside them.

    `peft.PeftModel.from_pretrained(network, folder)` reads them for the same network of timm with the same weights.
    A run is resumed from its checkpoints, which hold the optimizer's state too.

    Args:
        model: Has adapters.
        folder: Made when absent: `adapter_config.json`, `adapter_model.safetensors`, `head.safetensors`.

    Raises:
        UsageError: The model has no adapters.
    """
    peft = _import_peft()
    network = model.encoder.network
    config = copy.copy(adapter_config(model))
    config.inference_mode = True
    config.base_model_name_or_path = model.encoder.arch
    folder.mkdir(parents=True, exist_ok=True)
    adapters = _adapters(peft, network)
    save_file(_portable({f"{_PEFT_PREFIX}{name}": tensor for name, tensor in adapters.items()}), folder / ADAPTER_FILE)
    save_file(_portable(model.head.state_dict()), folder / HEAD_FILE)
    config.save_pretrained(str(folder))


def load_adapter(model: ImageClassifier, folder: Path) -> None:
    """Read adapters and head that `save_adapter` wrote; adapters that PEFT wrote are read too, without a head.

    Args:
        model: Has adapters of the same rank, scale and targets.
        folder: With `adapter_config.json` and `adapter_model.safetensors`.

    Raises:
        UsageError: The adapters are of another kind; says which settings to change.
        MedtrainError: The files do not fit the model.
    """
    peft = _import_peft()
    if not (folder / ADAPTER_FILE).exists():
        raise UsageError(f"{folder} holds no {ADAPTER_FILE}", hint="give the folder that PEFT or medtrain saved")
    ours, theirs = adapter_config(model), peft.LoraConfig.from_pretrained(str(folder))
    pairs = {
        "r": (theirs.r, ours.r),
        "alpha": (theirs.lora_alpha, ours.lora_alpha),
        "targets": (sorted(theirs.target_modules), sorted(ours.target_modules)),
    }
    differing = [f"model.{key} is {mine}, in the file {other}" for key, (other, mine) in pairs.items() if other != mine]
    if differing:
        raise UsageError(f"the adapters of {folder} do not fit: " + "; ".join(differing))
    tensors = load_file(folder / ADAPTER_FILE)
    adapters = {name.removeprefix(_PEFT_PREFIX): tensor for name, tensor in tensors.items()}
    expected = _adapters(peft, model.encoder.network)
    _check_names(expected, adapters, folder / ADAPTER_FILE)
    peft.set_peft_model_state_dict(model.encoder.network, adapters)
    if (folder / HEAD_FILE).exists():
        head = load_file(folder / HEAD_FILE)
        _check_names(model.head.state_dict(), head, folder / HEAD_FILE)
        model.head.load_state_dict(head)


def merge_adapters(model: ImageClassifier) -> ImageClassifier:
    """A copy without adapters that computes the same: their product is added to the weights.

    Args:
        model: Has adapters; left as it is.

    Returns:
        Has the names of a model that never had adapters.
    """
    merged = ImageClassifier(copy.deepcopy(model.encoder), copy.deepcopy(model.head))
    for name, module in list(merged.encoder.named_modules()):
        if _is_lora_layer(module):
            layer: Any = module
            layer.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(merged.encoder.get_submodule(parent), child, layer.get_base_layer())
    network: Any = merged.encoder.network
    if hasattr(network, "peft_config"):
        del network.peft_config
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    return merged.train(model.training)  # type: ignore[return-value]


def adapter_config(model: ImageClassifier) -> Any:
    """PEFT's `LoraConfig` of the adapters in a model.

    Raises:
        UsageError: The model has none.
    """
    config = getattr(model.encoder.network, "peft_config", None)
    if config is None:
        raise UsageError("this model has no adapters", hint="train one with model=vit_lora or model=retfound_lora")
    return config["default"]


def _adapters(peft: Any, network: nn.Module) -> dict[str, Tensor]:
    # told that there are no embeddings of words, PEFT does not ask the network about the base model
    adapters: dict[str, Tensor] = peft.get_peft_model_state_dict(network, save_embedding_layers=False)
    return adapters


def _check_names(expected: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
    wrong = [
        f"{name} {list(found[name].shape) if name in found else 'is absent'}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name not in found or found[name].shape != tensor.shape
    ]
    wrong += [f"{name} is not in the model" for name in found if name not in expected]
    if wrong:
        raise MedtrainError(
            f"{path} does not fit this model: {wrong[0]}" + (f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""),
            hint="build the model with the arch and the classes it was trained with",
        )


def _portable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _is_lora_layer(module: nn.Module) -> bool:
    from peft.tuners.lora import LoraLayer  # present wherever a model has adapters

    return isinstance(module, LoraLayer)


def _import_peft() -> Any:
    try:
        import peft  # takes seconds: it imports transformers
    except ImportError as error:
        raise MissingExtraError("peft", extra="lora", purpose="low-rank adaptation (LoRA)") from error
    return peft
