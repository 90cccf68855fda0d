"""An image encoder with a head: the plain classifier that the image models are."""

from __future__ import annotations

import logging

from torch import Tensor, nn

from medtrain.models.encoders import Encoder
from medtrain.models.freezing import FreezableModel, Freeze
from medtrain.models.recompute import recompute

log = logging.getLogger(__name__)


class ImageClassifier(FreezableModel):
    """Logits [B, K] of images [B, C, *S].

    Args:
        encoder: Of `build_encoder`.
        head: Takes feature vectors [B, F] to logits [B, K].
    """

    inputs: tuple[str, ...] = ("image",)

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, K]."""
        logits: Tensor = self.head(self.encoder(image))
        return logits

    def feature_layer(self) -> nn.Module:
        """The module whose output is the last feature map, for Grad-CAM."""
        return self.encoder.feature_layer()

    def finish(self, *, freeze: Freeze = "none", checkpoint_layers: tuple[str, ...] = ()) -> None:
        """Freeze parts for good and let others compute their activations twice.

        Args:
            freeze: `none`, `backbone` (the encoder) or patterns (see `select_parameters`).
            checkpoint_layers: See `medtrain.models.recompute.recompute`.

        Raises:
            UsageError: A pattern fits nothing.
        """
        if freeze == "backbone":
            freeze = ("encoder",)
        if freeze != "none":
            self.lock(freeze)
            if self.encoder.weights_report is None:
                log.warning("model.freeze=%s without model.weights: the frozen part stays random", freeze)
        if checkpoint_layers:
            recompute(self, checkpoint_layers)
