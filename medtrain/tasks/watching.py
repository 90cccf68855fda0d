"""Where a model sees the truth, found in the training pass itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from medtrain.losses.units import ImageLoss
from medtrain.models.cam import class_activation_maps, find_linear_head, maps_from_features, record_features

Outputs = dict[str, Tensor]
"""What a model returns: `logits`, and maybe `aux/<name>` and `attention`."""


class TruthMaps:
    """Makes differentiable maps of what speaks for the truth, beside the outputs of a model.

    Args:
        loss: Says what speaks for the truth.
        source: `gradcam`, or `cam` of models that end in one linear layer on the averaged feature map.
    """

    def __init__(self, loss: ImageLoss, source: Literal["gradcam", "cam"]) -> None:
        self.loss = loss
        self.source = source
        self._head: tuple[nn.Module, nn.Linear] | None = None

    def __call__(
        self, model: nn.Module, inputs: Mapping[str, Tensor], target: Tensor, forward: Callable[[], Outputs]
    ) -> tuple[Outputs, Tensor]:
        """Outputs of the forward pass, and maps [B, *s] in [0, 1].

        Args:
            model: The network inside any wrapper.
            inputs: What it is called with.
            target: [B, T].
            forward: Calls the network, or its wrapper, with the inputs.

        Raises:
            UsageError: The model has no feature map, or no such linear layer.
        """
        head = self._linear_head(model, inputs) if self.source == "cam" else None
        with record_features(model) as record:
            outputs = forward()
        evidence = self.loss.evidence(outputs["logits"], target)
        if head is not None:
            return outputs, class_activation_maps(record, inputs, outputs["logits"], evidence, head)
        return outputs, maps_from_features(record, inputs, evidence[:, None], 0, create_graph=True)

    def _linear_head(self, model: nn.Module, inputs: Mapping[str, Any]) -> nn.Linear:
        """The last layer, found by a pass of its own, once."""
        if self._head is None or self._head[0] is not model:
            self._head = (model, find_linear_head(model, inputs))
        return self._head[1]
