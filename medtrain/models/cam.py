"""Where in an image a network sees a class: class activation maps and Grad-CAM.

Every map is computed from the output of the module that `model.feature_layer()` names: a map [B, F, h, w] or
[B, F, d, h, w], also with the channels last, or the tokens of a transformer [B, N, F], which are laid back on their
grid; class and register tokens stand before those of the image. A transformer whose classifier reads the class token
alone must name a layer before its last attention: behind it the image's tokens have no gradient.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from medtrain.errors import UsageError

Method = Literal["cam", "gradcam", "gradcam++"]
ClassIndex = int | tuple[int, ...] | Tensor
Evidence = Callable[[Tensor], Tensor]
"""What is explained: one number per sample [B], of the logits."""

_MOST_PREFIX_TOKENS = 16


class FeatureRecord:
    """The outputs of a feature layer during one forward pass, one per call of the layer."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []

    def maps(self, image_size: tuple[int, ...]) -> Tensor:
        """The feature maps [P, F, *s], transformers' tokens on their grid.

        Args:
            image_size: Rows and columns (or depth, rows, columns) of the image; its aspect is that of the grid.
        """
        return torch.cat([_on_grid(output, image_size) for output in self.outputs])

    def image_size(self, inputs: Mapping[str, Tensor]) -> tuple[int, ...]:
        """Rows and columns, or depth, rows and columns, of the image that the features are of.

        Args:
            inputs: Arguments of the model.
        """
        image, present, axes = inputs["image"], inputs.get("present"), self.outputs[0].ndim - 2
        if axes < 2:  # tokens do not tell; an axis of views is as long as `present`
            views = present is not None and image.ndim > 4 and image.shape[1] == present.shape[1]
            axes = image.ndim - (3 if views else 2)
        return tuple(image.shape[-axes:])


@contextlib.contextmanager
def record_features(model: nn.Module, *, cut: bool = False) -> Iterator[FeatureRecord]:
    """Record what the feature layer gives in forward passes inside the block; the hook is gone after it.

    The pass that is recorded can be the training step's own: no second one is needed for a supervised map. Attention
    is then computed without fused kernels, which cannot be differentiated twice, and a compiled model runs as it was
    written: what was compiled before knows nothing of the hook, and has no gradients of its inside.

    Args:
        model: Has `feature_layer()`.
        cut: Cut the graph in front of the features: the layers below get no gradient.

    Raises:
        UsageError: The model names no feature layer.
    """
    layer = getattr(model, "feature_layer", None)
    if layer is None:
        raise UsageError(
            f"{type(model).__name__} has no feature map: there is nothing to draw a class activation on",
            hint="choose a model with an image encoder, e.g. model=timm",
        )
    record = FeatureRecord()

    def keep(module: nn.Module, args: Any, output: Any) -> Tensor:
        assert isinstance(output, Tensor), f"feature_layer() gives {type(output).__name__}, expected a tensor"
        # a frozen encoder gives features without a graph: they become its start
        features = output.detach().requires_grad_() if cut or not output.requires_grad else output
        record.outputs.append(features)
        return features.clone()  # what follows may work in place

    handle = layer().register_forward_hook(keep)
    try:
        with (
            torch.compiler.set_stance("force_eager"),
            contextlib.nullcontext() if cut else sdpa_kernel(SDPBackend.MATH),
        ):
            yield record
    finally:
        handle.remove()


def maps_from_features(
    record: FeatureRecord,
    inputs: Mapping[str, Tensor],
    logits: Tensor,
    class_index: ClassIndex,
    *,
    create_graph: bool,
    method: Literal["gradcam", "gradcam++"] = "gradcam",
) -> Tensor:
    """Grad-CAM from a forward pass that `record_features` has watched.

    Grad-CAM weighs channels by the mean gradient of the logit (Selvaraju et al., ICCV 2017), Grad-CAM++ by its positive
    part, weighted by the share of each place (Chattopadhay et al., WACV 2018, eq. 19). Negative evidence is cut off
    and each map divided by its maximum; a map without positive evidence is 0. No `.grad` of a parameter is touched.

    Args:
        record: Of the pass.
        inputs: Of the pass.
        logits: Of the pass [B, K] or [B, Z, K].
        class_index: The logit to explain: one for all samples (a tuple for logits [B, Z, K]), or int64 [B] or [B, 2].
        create_graph: Keep the maps differentiable.
        method: Grad-CAM or Grad-CAM++.

    Raises:
        UsageError: The feature layer was not used.
    """
    if not record.outputs:
        raise UsageError("the model did not use its feature layer: no class activation can be drawn")
    with torch.enable_grad():
        score = _chosen(logits, class_index).sum()
    slopes = torch.autograd.grad(score, record.outputs, create_graph=create_graph, retain_graph=True, allow_unused=True)
    size = record.image_size(inputs)
    steep = FeatureRecord()
    steep.outputs = [
        torch.zeros_like(f) if slope is None else slope for f, slope in zip(record.outputs, slopes, strict=True)
    ]
    features, gradient = record.maps(size).float(), steep.maps(size).float()
    if not create_graph:
        features = features.detach()
    places = tuple(range(2, features.ndim))
    if method == "gradcam":
        weights = gradient.mean(places, keepdim=True)
    else:
        square = gradient.square()
        below = 2 * square + features.sum(places, keepdim=True) * square * gradient
        share = square / torch.where(below == 0, torch.ones_like(below), below)
        weights = (share * gradient.relu()).sum(places, keepdim=True)
    return _per_sample(normalized((weights * features).sum(1)), inputs, len(size))


def class_activation_maps(
    record: FeatureRecord, inputs: Mapping[str, Tensor], logits: Tensor, score: Tensor, head: nn.Linear
) -> Tensor:
    """Class activation maps from a forward pass that `record_features` has watched (Zhou et al., CVPR 2016).

    The map of class k is the sum over channels of weight[k, f] * features[f]; that of a score of several logits is the
    sum of theirs, each times the slope of the score along it. Differentiable like any other output.

    Args:
        record: Of the pass.
        inputs: Of the pass.
        logits: Of the pass [B, K].
        score: What is explained [B], of the logits.
        head: The last layer of the model; see `find_linear_head`.

    Returns:
        [B, *s] in [0, 1].
    """
    (slopes,) = torch.autograd.grad(score.sum(), logits, retain_graph=True)
    features = record.maps(record.image_size(inputs)).float()
    weights = slopes.detach().float().flatten(1) @ head.weight.float()
    return normalized(torch.einsum("bf,bf...->b...", weights, features))


def find_linear_head(model: nn.Module, inputs: Mapping[str, Tensor]) -> nn.Linear:
    """Find the linear layer that makes the logits from the averaged feature map, by watching one forward pass.

    Args:
        model: Run in evaluation mode; its mode is put back.
        inputs: Arguments of the model by name.

    Raises:
        UsageError: The logits come about in another way: the model has no class activation maps.
    """
    calls: list[tuple[nn.Linear, Tensor, Tensor]] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        calls.append((module, args[0], output))

    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_hook(note) for module in linear]
    try:
        with evaluation_mode(model), torch.no_grad(), record_features(model) as record:
            logits = _logits(model(**inputs))
    finally:
        for handle in handles:
            handle.remove()
    if record.outputs and calls:
        head, seen, output = calls[-1]
        pooled = record.maps(record.image_size(inputs)).flatten(2).mean(2)
        same = output.shape == logits.shape and seen.shape == pooled.shape and torch.equal(output, logits)
        if same and torch.allclose(seen.float(), pooled.float(), rtol=1e-2, atol=1e-4):
            return head
    raise UsageError(
        f"{type(model).__name__} does not end in one linear layer on the averaged feature map: it has no class "
        "activation maps (CAM)",
        hint="use Grad-CAM, which every model with a feature map has",
    )


def explain(
    model: nn.Module, inputs: Mapping[str, Tensor], class_index: ClassIndex, *, method: Method = "gradcam"
) -> Tensor:
    """Maps of what speaks for a class, at the size of the image; in evaluation mode, also under `inference_mode`.

    The model is left as it was: its mode, its hooks and the gradients of its parameters.

    Args:
        model: Has `feature_layer()`.
        inputs: Arguments of the model by name, `image` among them.
        class_index: As for `maps_from_features`.
        method: CAM, Grad-CAM or Grad-CAM++.

    Returns:
        float32 [B, *S] ([B, V, *S] with views) in [0, 1], without a graph.

    Raises:
        UsageError: The model has no such maps.
    """
    return explain_each(model, inputs, [lambda logits: _chosen(logits, class_index)], method=method)[0]


def explain_each(
    model: nn.Module, inputs: Mapping[str, Tensor], evidences: Sequence[Evidence], *, method: Method = "gradcam"
) -> list[Tensor]:
    """Maps of several things at once, for one forward pass; see `explain`.

    Args:
        model: Has `feature_layer()`.
        inputs: Arguments of the model by name, `image` among them.
        evidences: Of the logits, what speaks for each thing.
        method: CAM, Grad-CAM or Grad-CAM++.

    Raises:
        UsageError: The model has no such maps.
    """
    device = inputs["image"].device.type
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
        # tensors made under inference_mode cannot be part of a graph
        taken = {name: value.detach().clone() for name, value in inputs.items()}
        head = find_linear_head(model, taken) if method == "cam" else None
        with evaluation_mode(model), record_features(model, cut=True) as record:
            logits = _logits(model(**taken))
        found = []
        for evidence in evidences:
            score = evidence(logits)
            if method == "cam":
                assert head is not None
                maps = class_activation_maps(record, taken, logits, score, head)
            else:
                maps = maps_from_features(record, taken, score[:, None], 0, create_graph=False, method=method)
            found.append(resize_maps(maps.detach(), record.image_size(taken)))
        return found


def resize_maps(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Enlarge maps linearly, pixel areas kept in place.

    Args:
        maps: [*B, *s].
        size: *S, as many axes as s.

    Returns:
        [*B, *S] in the range of the maps.
    """
    lead, mode = maps.shape[: -len(size)], "bilinear" if len(size) == 2 else "trilinear"
    flat = maps.reshape(-1, 1, *maps.shape[-len(size) :])
    return F.interpolate(flat, size=size, mode=mode, align_corners=False).reshape(*lead, *size)


def normalized(maps: Tensor) -> Tensor:
    """Cut off what is negative and divide every map by its maximum; without positive values a map is 0.

    Args:
        maps: [B, *s].
    """
    positive = maps.relu()
    peak = positive.flatten(1).amax(1).reshape(-1, *[1] * (maps.ndim - 1))
    return positive / torch.where(peak > 0, peak, torch.ones_like(peak))


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode; afterwards every module is back in the mode it had.

    Args:
        model: Some of its modules may be in another mode than the others, as frozen norms are.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _logits(output: Any) -> Tensor:
    logits = output["logits"] if isinstance(output, Mapping) else output
    assert isinstance(logits, Tensor)
    return logits


def _chosen(logits: Tensor, class_index: ClassIndex) -> Tensor:
    """The chosen logit of every sample [B]."""
    index = torch.as_tensor(class_index, device=logits.device)
    if not isinstance(class_index, Tensor):
        index = index.expand(logits.shape[0], *index.shape)
    index = index.reshape(logits.shape[0], -1)
    assert index.shape[1] == logits.ndim - 1, f"{index.shape[1]} indices for logits {tuple(logits.shape)}"
    return logits[(torch.arange(logits.shape[0], device=logits.device), *index.unbind(1))]


def _on_grid(output: Tensor, image_size: tuple[int, ...]) -> Tensor:
    """Features with the channels second; tokens [B, N, F] back on the grid of the image, without those in front."""
    if output.ndim > 3:
        channels_last = _distortion(output.shape[1:-1], image_size) < _distortion(output.shape[2:], image_size)
        return output.movedim(-1, 1) if channels_last else output
    tokens = output.shape[1]
    for prefix in range(min(_MOST_PREFIX_TOKENS, tokens)):
        grid = _grid(tokens - prefix, image_size)
        if grid is not None:
            return output[:, prefix:].transpose(1, 2).reshape(output.shape[0], output.shape[2], *grid)
    raise UsageError(f"{tokens} tokens do not form a grid over an image of {'x'.join(map(str, image_size))}")


def _grid(tokens: int, image_size: tuple[int, ...]) -> tuple[int, ...] | None:
    """The grid with the aspect of the image that has this many cells, if there is one."""
    patch = (math.prod(image_size) / tokens) ** (1 / len(image_size))
    grid = tuple(max(1, round(size / patch)) for size in image_size)
    return grid if math.prod(grid) == tokens else None


def _distortion(grid: tuple[int, ...], image_size: tuple[int, ...]) -> float:
    """How much the patches of a grid differ from squares: the ratio of the longest side to the shortest."""
    sides = [size / cells for size, cells in zip(image_size, grid, strict=True)]
    return max(sides) / min(sides)


def _per_sample(maps: Tensor, inputs: Mapping[str, Tensor], spatial_dims: int) -> Tensor:
    """Maps [P, *s] of the images that were encoded, as [B, *s], or [B, V, *s] with views; absent ones are 0."""
    lead = inputs["image"].shape[: inputs["image"].ndim - spatial_dims - 1]
    present = inputs.get("present")
    exists = torch.ones(lead, dtype=torch.bool) if present is None else present.reshape(lead)
    exists = exists.to(maps.device)
    if maps.shape[0] != exists.numel():
        assert maps.shape[0] == int(exists.sum()), f"{maps.shape[0]} feature maps for {int(exists.sum())} images"
        return maps.new_zeros(*lead, *maps.shape[1:]).index_put((exists,), maps)
    return maps.reshape(*lead, *maps.shape[1:]) * exists.reshape(*lead, *[1] * spatial_dims)
