"""A frozen vision transformer that learns through low-rank adapters and a head."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from torch import nn

from medtrain.models.classifier import ImageClassifier
from medtrain.models.encoders import Arch, Pooling, build_encoder, finish
from medtrain.models.lora import add_adapters, is_adapter, load_adapter, merge_adapters, save_adapter
from medtrain.models.ordinal_head import HeadName, build_head
from medtrain.registry import Range, register

_TARGETS = {"qkv": ("qkv",), "qkv+proj": ("qkv", "proj")}
_HEAD_STD = 0.02


@register(
    "model",
    "vit_lora",
    runtime=("in_channels", "image_size", "num_outputs", "cumulative_targets"),
    tags=("2d", "images"),
)
class VitLora(ImageClassifier):
    """A frozen vision transformer of timm with low-rank adapters (LoRA), and a head of norm, dropout and linear layer.

    With `model=retfound_lora` it is RETFound's ViT-L/16 (Y. Zhou et al., Nature 2023), whose weights are released under
    a licence of their own and are asked for at https://github.com/rmaphoh/RETFound: medtrain does not fetch them.
    Adapters are those of E. Hu et al., LoRA, ICLR 2022, computed by PEFT. Nothing unfreezes the transformer, neither do
    the stages of a training.

    Args:
        in_channels: Image channels C.
        image_size: (H, W); position embeddings are interpolated to it.
        num_outputs: Logits K.
        cumulative_targets: Targets that take cumulative logits.
        arch: A vision transformer in timm.
        weights: Of the transformer: a file (RETFound's .pth as it is; safetensors), a folder in the style of
            HuggingFace, `timm` = what timm's local cache has. Null = random, which is of use for trials only.
        min_matched: Share of the transformer's tensors that the weights must give.
        targets: Where in each attention: the joint projection of query, key and value, or the output's too.
        r: Rank of the adapters.
        alpha: The adapters' outputs are scaled by alpha / r.
        dropout: Probability of dropping an input of an adapter.
        head_dropout: Probability of dropping a feature before the head's linear layer.
        head: The last layer: `linear`, or `ordinal`, one score against thresholds that rise, for loss=ordinal with
            loss.form=cumulative.
        pooling: How tokens become a vector: the class token or the mean; null = the architecture's own.
        checkpoint_layers: Parts that save memory by computing their activations twice, e.g. [encoder.model.blocks.*].

    Raises:
        UsageError: The architecture is unknown, or has no place for adapters.
        MissingExtraError: PEFT is not installed.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: tuple[int, ...],
        num_outputs: int,
        cumulative_targets: int = 0,
        weights: str | None,
        arch: Arch = "vit_small_patch16_224",
        min_matched: Annotated[float, Range(ge=0, le=1)] = 0.9,
        targets: Literal["qkv", "qkv+proj"] = "qkv",
        r: Annotated[int, Range(ge=1)] = 8,
        alpha: Annotated[float, Range(gt=0)] = 32.0,
        dropout: Annotated[float, Range(ge=0, lt=1)] = 0.1,
        head_dropout: Annotated[float, Range(ge=0, lt=1)] = 0.3,
        head: HeadName = "linear",
        pooling: Pooling | None = None,
        checkpoint_layers: tuple[str, ...] = (),
    ) -> None:
        encoder = build_encoder(
            arch,
            in_channels=in_channels,
            image_size=image_size,
            weights=weights,
            min_matched=min_matched,
            pooling=pooling,
        )
        add_adapters(encoder, targets=_TARGETS[targets], r=r, alpha=alpha, dropout=dropout)
        layer = build_head(head, encoder.num_features, num_outputs, cumulative_targets=cumulative_targets)
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=_HEAD_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        super().__init__(encoder, nn.Sequential(nn.LayerNorm(encoder.num_features), nn.Dropout(head_dropout), layer))
        self.locked = tuple(
            name for name, _ in self.named_parameters() if name.startswith("encoder.") and not is_adapter(name)
        )
        finish(self, [encoder], freeze="none", checkpoint_layers=checkpoint_layers)

    def save_adapter(self, folder: Path) -> None:
        """Write adapters and head (see `medtrain.models.lora.save_adapter`)."""
        save_adapter(self, folder)

    def load_adapter(self, folder: Path) -> None:
        """Read adapters and head (see `medtrain.models.lora.load_adapter`)."""
        load_adapter(self, folder)

    def merged(self) -> ImageClassifier:
        """A copy without adapters that computes the same, for export."""
        return merge_adapters(self)
