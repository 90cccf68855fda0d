"""An image encoder with a head: the plain classifier that the image models are."""

from __future__ import annotations

from torch import Tensor, nn

from medtrain.models.encoders import Encoder
from medtrain.models.freezing import FreezableModel


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
