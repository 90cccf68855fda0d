"""Encoders from timm: any of its architectures, with any number of channels and a feature map of one layout."""

from __future__ import annotations

import difflib
import math
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import group_parameters
from timm.models.resnet import ResNet
from torch import Tensor, nn

from medtrain.errors import UsageError
from medtrain.models.encoders import Encoder, Pooling, check_image_size

SMALL_IMAGE = 64
"""Images with a shorter side than this get the small stem by default."""


class TimmEncoder(Encoder):
    """An architecture of timm without its classifier.

    Args:
        arch: Name in timm, with or without a weight tag (`resnet50`, `resnet50.a1_in1k`).
        in_channels: Image channels C.
        image_size: (H, W) of the images; transformers are built for it.
        drop_rate: Probability of dropping a pooled feature.
        drop_path_rate: Stochastic depth of the last block; null = the architecture's own.
        pooling: `token` or `avg`, for transformers; null = the architecture's own.
        small_input: See `build_encoder`.

    Raises:
        UsageError: timm has no such architecture, or it cannot be built for these images.
    """

    def __init__(
        self,
        arch: str,
        *,
        in_channels: int,
        image_size: tuple[int, ...],
        drop_rate: float = 0.0,
        drop_path_rate: float | None = None,
        pooling: Pooling | None = None,
        small_input: bool | None = None,
    ) -> None:
        super().__init__(arch, in_channels, tuple(image_size))
        check_arch(arch)
        check_image_size(self.image_size, (2,), arch)
        options: dict[str, Any] = {"in_chans": in_channels, "num_classes": 0, "drop_rate": drop_rate}
        if drop_path_rate is not None:
            options["drop_path_rate"] = drop_path_rate
        if pooling is not None:
            options |= {"global_pool": pooling, **({"fc_norm": False} if pooling == "avg" else {})}
        with torch.device("meta"):
            twin: Any = _create(arch, options, self.image_size, small_input)
        self._read_layout(twin.eval())
        self.model: Any = _create(arch, options, self.image_size, small_input)
        self.pretrained_config = config = twin.pretrained_cfg
        first = config.get("first_conv") or ()
        self.first_convolutions = tuple(f"{name}.weight" for name in ((first,) if isinstance(first, str) else first))
        self.map = FeatureMap(self._layout, self._prefix, self.map_size)
        self.attended = self._tap()

    @property
    def network(self) -> nn.Module:
        """Timm's model."""
        return self.model

    def parameter_depths(self) -> dict[str, int]:
        """The layer of every parameter by its name, 0 for those at the input, as timm divides the architecture.

        Raises:
            UsageError: timm does not know the layers of this architecture.
        """
        matcher = getattr(self.model, "group_matcher", None)
        if matcher is None:
            raise UsageError(f"optimizer.layer_decay: timm does not tell the layers of {self.arch}")
        found = group_parameters(self.model, matcher(coarse=False), reverse=True)
        return {f"model.{name}": int(depth) for name, depth in found.items()}

    def _read_layout(self, twin: Any) -> None:
        """Shapes of the feature map and the vector, from a pass without values."""
        image = torch.zeros(2, self.in_channels, *self.image_size, device="meta")
        try:
            _check_patches(twin, self.image_size)
            raw = twin.forward_features(image)
            vector = twin.forward_head(raw, pre_logits=True)
        except (AssertionError, RuntimeError, ValueError) as error:
            native = twin.pretrained_cfg["input_size"]
            height, width = self.image_size
            raise UsageError(
                f"{self.arch} cannot take images of {height} x {width}: {error}",
                hint=f"set data.image_size; its own size is {native[1]} x {native[2]}",
            ) from error
        if not isinstance(raw, Tensor) or not isinstance(vector, Tensor) or vector.ndim != 2:
            raise UsageError(
                f"{self.arch} does not give one feature map and one vector per image",
                hint="choose another arch, e.g. resnet50, convnext_tiny, vit_small_patch16_224",
            )
        self._prefix = 0
        if raw.ndim == 3:
            self._layout = "NLC"
            self._prefix = int(getattr(twin, "num_prefix_tokens", 0))
            self.map_size = _grid(twin, raw.shape[1] - self._prefix, self.image_size)
        else:
            self._layout = str(getattr(twin, "output_fmt", None) or "NCHW")
            self.map_size = tuple(raw.shape[2:] if self._layout == "NCHW" else raw.shape[1:3])
        self.map_features = raw.shape[1] if self._layout == "NCHW" else raw.shape[-1]
        self.num_features = vector.shape[1]
        # a class token, or attention over all tokens, does not come from the map
        pooled_from_map = getattr(twin, "global_pool", "avg") != "token" if self._layout == "NLC" else True
        mixes_prefix = getattr(twin, "global_pool", "avg") == "map" and self._prefix > 0
        self._vector_from_map = pooled_from_map and not mixes_prefix

    def _tap(self) -> FeatureMap | None:
        """Let the tokens that the last block attends to pass through a feature map, for Grad-CAM."""
        if self._vector_from_map:
            return None
        blocks = getattr(self.model, "blocks", None)
        norm = getattr(blocks[-1], "norm1", None) if isinstance(blocks, nn.Sequential | nn.ModuleList) else None
        # a class token that is appended after the blocks reads their output instead
        if not isinstance(norm, nn.Module) or hasattr(self.model, "cls_attn_blocks"):
            return None
        norm.register_forward_hook(self._pass_tokens)
        return FeatureMap(self._layout, self._prefix, self.map_size)

    def _pass_tokens(self, module: nn.Module, inputs: Any, tokens: Tensor) -> Tensor:
        assert self.attended is not None
        return torch.cat((tokens[:, : self._prefix], self.attended.inverse(self.attended(tokens))), dim=1)

    def features_and_vector(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Feature map and feature vector in one pass."""
        self.check_input(image)
        raw = self.model.forward_features(image)
        feature_map = self.map(raw)
        if self._vector_from_map:
            return feature_map, self.pool(feature_map)
        return feature_map, self.model.forward_head(raw, pre_logits=True)

    def pool(self, feature_map: Tensor) -> Tensor:
        """Feature vector [B, F]; for a transformer with a class token, of its other tokens."""
        raw = self.map.inverse(feature_map)
        if self._layout == "NLC" and not self._vector_from_map:
            return raw.mean(dim=1)
        if self._prefix:
            raw = F.pad(raw, (0, 0, self._prefix, 0))  # the mean leaves them out
        vector: Tensor = self.model.forward_head(raw, pre_logits=True)
        return vector

    def feature_layer(self) -> nn.Module:
        """The module whose output is the last feature map that `forward` depends on.

        Raises:
            UsageError: The vector does not depend on a map that can be watched.
        """
        if self._vector_from_map:
            return self.map
        if self.attended is None:
            raise UsageError(
                f"{self.arch} has no feature map that its class token attends to in one place",
                hint="set pooling=avg, or choose another arch",
            )
        return self.attended


class FeatureMap(nn.Module):
    """Features in the layout of an architecture as a map [B, F, h, w].

    Args:
        layout: `NCHW`, `NHWC` or `NLC` (tokens).
        prefix: Tokens before those of the grid.
        size: (h, w).
    """

    def __init__(self, layout: str, prefix: int, size: tuple[int, ...]) -> None:
        super().__init__()
        self.layout = layout
        self.prefix = prefix
        self.size = size

    def forward(self, raw: Tensor) -> Tensor:
        """Map [B, F, h, w]."""
        if self.layout == "NCHW":
            return raw
        if self.layout == "NHWC":
            return raw.permute(0, 3, 1, 2)
        return raw[:, self.prefix :].transpose(1, 2).unflatten(2, self.size)

    def inverse(self, feature_map: Tensor) -> Tensor:
        """The features in the architecture's layout, without the tokens before the grid."""
        if self.layout == "NCHW":
            return feature_map
        if self.layout == "NHWC":
            return feature_map.permute(0, 2, 3, 1)
        return feature_map.flatten(2).transpose(1, 2)

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"{self.layout}, {' x '.join(map(str, self.size))}"


def check_arch(arch: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        UsageError: Names the nearest architectures, or the weight tags that there are.
    """
    name, _, tag = arch.partition(".")
    if ":" in arch or not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.6)
        raise UsageError(
            f"timm has no architecture {arch!r}",
            hint=f"the nearest are: {', '.join(near)}"
            if near
            else "e.g. resnet18, densenet121, efficientnet_b0, convnext_tiny, vit_small_patch16_224",
        )
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*")] if tag else []
    if tag and tag not in tags:
        raise UsageError(f"timm has no weights {tag!r} of {name}", hint=f"there are: {', '.join(tags) or 'none'}")


def _create(arch: str, options: dict[str, Any], image_size: tuple[int, ...], small_input: bool | None) -> nn.Module:
    config = timm.get_pretrained_cfg(arch)
    sized = {"img_size": image_size} if config is not None and config.fixed_input_size else {}
    arguments = {**options, **sized}
    if options.get("global_pool") == "avg":
        arguments["fc_norm"] = False  # the norm of the pretraining stays where it was, before the mean
    try:
        try:
            model = timm.create_model(arch, pretrained=False, **arguments)
        except TypeError as error:
            if "'fc_norm'" not in str(error):
                raise
            del arguments["fc_norm"]
            model = timm.create_model(arch, pretrained=False, **arguments)
    except (TypeError, AssertionError, ValueError) as error:
        raise _refusal(arch, options, image_size, error) from error
    if wants_small_stem(model, image_size, small_input, arch):
        shrink_stem(model)
    return model


def _refusal(arch: str, options: dict[str, Any], image_size: tuple[int, ...], error: Exception) -> UsageError:
    """Say which setting an architecture does not take."""
    settings = {"drop_path_rate": "drop_path_rate", "global_pool": "pooling", "drop_rate": "drop_rate"}
    for option, setting in settings.items():
        named = f"'{option}'" in str(error) or (option == "global_pool" and "pool" in str(error))
        if option in options and named:
            return UsageError(f"{arch} does not take {setting}={options[option]}", hint=f"leave {setting} at null")
    size = " x ".join(str(side) for side in image_size)
    return UsageError(f"{arch} cannot be built for images of {size}: {error}")


def _grid(twin: nn.Module, tokens: int, image_size: tuple[int, ...]) -> tuple[int, int]:
    """(h, w) of the tokens: the patch embedding's, or the factors whose ratio is nearest to the image's."""
    known = getattr(getattr(twin, "patch_embed", None), "grid_size", None)
    if known is not None and math.prod(known) == tokens:
        return tuple(known)
    ratio = math.log(image_size[0] / image_size[1])
    pairs = [(h, tokens // h) for h in range(1, tokens + 1) if tokens % h == 0]
    return min(pairs, key=lambda pair: abs(math.log(pair[0] / pair[1]) - ratio))


def _check_patches(twin: nn.Module, image_size: tuple[int, ...]) -> None:
    """Refuse sizes that are no multiple of the patch: timm would leave out the border."""
    patch = getattr(getattr(twin, "patch_embed", None), "patch_size", None)
    patch = (patch, patch) if isinstance(patch, int) else patch
    if patch is not None and any(side % step for side, step in zip(image_size, patch)):
        fits = " x ".join(str(max(step, round(side / step) * step)) for side, step in zip(image_size, patch))
        raise ValueError(f"its patches have {patch[0]} x {patch[1]} pixels, the nearest size is {fits}")


def wants_small_stem(model: nn.Module, image_size: tuple[int, ...], small_input: bool | None, arch: str) -> bool:
    """Whether the stem is to be replaced.

    Raises:
        UsageError: It is asked for and the architecture has no such stem.
    """
    possible = isinstance(model, ResNet) and isinstance(model.conv1, nn.Conv2d)
    if small_input and not possible:
        raise UsageError(
            f"small_input=true replaces the one convolution of a ResNet's stem, and {arch} has none",
            hint="set small_input=null, choose a ResNet, or enlarge the images with data.image_size",
        )
    return possible and (min(image_size) < SMALL_IMAGE if small_input is None else small_input)


def shrink_stem(model: nn.Module) -> None:
    """Give a ResNet a 3x3 stem of stride 1 without max-pooling, as MedMNIST trains at 28 pixels (J. Yang et al., 2023).

    The layout is that of K. He et al., 2016, section 4.2, for CIFAR.
    """
    old = model.conv1
    assert isinstance(old, nn.Conv2d)
    stem = nn.Conv2d(old.in_channels, old.out_channels, 3, stride=1, padding=1, bias=False, device=old.weight.device)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    model.conv1 = stem
    model.maxpool = nn.Identity()
