"""What models of images take and return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medtrain.data.images.plan import ImagePlan
from medtrain.tasks.watching import Outputs


def example_batch(plan: ImagePlan) -> dict[str, Tensor]:
    """One sample with every input that the data give: zeros, all of them there.

    Args:
        plan: Of the data.
    """
    batch: dict[str, Tensor] = {}
    if plan.has_images:
        several = (len(plan.view_names) or 2,) if plan.several_images else ()
        batch["image"] = torch.zeros(1, *several, plan.in_channels, *plan.image_size)
        if several or plan.optional_image:
            batch["present"] = torch.ones(1, *(several or (1,)), dtype=torch.bool)
    if plan.tabular is not None:
        categorical = len(plan.tabular.categorical)
        batch["numeric"] = torch.zeros(1, plan.tabular.num_numeric)
        batch["categorical"] = torch.zeros(1, categorical, dtype=torch.int64)
        batch["observed"] = torch.ones(1, len(plan.tabular.numeric) + categorical, dtype=torch.bool)
    return batch


def model_inputs(model: nn.Module) -> tuple[str, ...]:
    """The batch entries that a model takes; one that does not say takes the image."""
    return tuple(getattr(unwrapped(model), "inputs", ("image",)))


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, should it be wrapped for several processes."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def as_outputs(found: Any) -> Outputs:
    """What a model returned as a dict of tensors with `logits`."""
    if isinstance(found, Tensor):
        return {"logits": found}
    assert isinstance(found, Mapping), f"a model returns logits or a dict, not {type(found).__name__}"
    assert "logits" in found, f"a model's dict holds `logits`; found {', '.join(found)}"
    return {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
