"""The manifest of a network for labelled images: how its inputs are made, and what its outputs mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from medtrain.data.images.plan import ImagePlan
from medtrain.data.images.reading import KEPT_DETAIL, REDUCED_ABOVE
from medtrain.data.tabular import MISSING_CODE, UNSEEN_CODE
from medtrain.errors import MedtrainError
from medtrain.export.formats import Signature
from medtrain.export.manifest import describe_origin, describe_precision
from medtrain.export.types import TrainedRun
from medtrain.losses.classes import SigmoidLoss, SoftmaxLoss
from medtrain.losses.multitask import MultitaskLoss
from medtrain.losses.ordinal import OrdinalLoss
from medtrain.losses.survival import DiscreteSurvivalLoss
from medtrain.losses.units import ImageLoss
from medtrain.registry import plain
from medtrain.tasks.classification import ClassOutcome
from medtrain.tasks.images import ImageTask
from medtrain.tasks.multilabel import LabelOutcome
from medtrain.tasks.multitask import Parts, within
from medtrain.tasks.ordinal import GradeOutcome
from medtrain.tasks.outcome import Decision, Outcome
from medtrain.tasks.regression import NumberOutcome
from medtrain.tasks.survival import SurvivalOutcome
from medtrain.tasks.zones import ZoneOutcome

_MEANINGS = {
    "image": "normalised images; 0 where a view or instance is missing",
    "present": "which view or instance there is; at least one per sample, unless the model takes samples without image",
    "numeric": "standardised numbers, see tabular",
    "categorical": "codes of categories, see tabular",
    "observed": "whether each numeric and then each categorical value was there",
}
_DTYPES = {"image": "float32", "numeric": "float32", "categorical": "int64"}


def describe_images(
    loaded: TrainedRun, signature: Signature, example: Mapping[str, Tensor], trailing: Sequence[int]
) -> dict[str, Any]:
    """Describe how to use a network.

    Args:
        loaded: The run the weights come from.
        signature: Names of inputs and outputs, free axes.
        example: One sample, for the shapes.
        trailing: Shape of the logits of a sample.

    Returns:
        JSON-able data; `recipe` says in words what the numbers are for.
    """
    task, plan = loaded.task, loaded.plan
    assert isinstance(task, ImageTask)
    described = {
        **describe_origin(loaded),
        "family": "images",
        "precision": describe_precision(loaded.config),
        "inputs": [_input(name, free, example) for name, free in zip(signature.inputs, signature.free, strict=True)],
        "outputs": [_output(name, plan, trailing) for name in signature.outputs],
        "preprocessing": _preprocessing(loaded.config["augment"], plan) if plan.has_images else None,
        "views": list(plan.view_names),
        "bags": plan.max_instances is not None,
        "image_is_optional": plan.optional_image,
        "tabular": _tabular(plan),
        "targets": [{"name": target.target_name, "classes": target.classes} for target in plan.targets],
        "prediction": _parts(task),
        "mirroring": {"axes": _mirrored(task), "paired_targets": [list(pair) for pair in plan.paired_targets]},
    }
    plain_data: dict[str, Any] = plain({**described, "recipe": _recipe(described)})
    return plain_data


def _input(name: str, free: Mapping[int, str], example: Mapping[str, Tensor]) -> dict[str, Any]:
    shape = [free.get(axis, int(length)) for axis, length in enumerate(example[name].shape)]
    return {"name": name, "shape": shape, "dtype": _DTYPES.get(name, "bool"), "meaning": _MEANINGS[name]}


def _output(name: str, plan: ImagePlan, trailing: Sequence[int]) -> dict[str, Any]:
    if name == "logits":
        shape: list[Any] = ["batch", *trailing]
        return {"name": name, "shape": shape, "dtype": "float32", "meaning": "see prediction"}
    width = "instances" if plan.max_instances is not None else len(plan.view_names)
    meaning = "weights over views or instances, adding up to 1 over those that are present"
    return {"name": name, "shape": ["batch", width], "dtype": "float32", "meaning": meaning}


def _preprocessing(augment: Mapping[str, Any], plan: ImagePlan) -> dict[str, Any]:
    pictures = plan.spatial_dims == 2
    return {
        "spatial_dims": plan.spatial_dims,
        "image_size": list(plan.image_size),
        "channels": plan.in_channels,
        "channels_are": "red, green, blue" if plan.in_channels == 3 else "as in the file",
        "conversion": "grey is repeated to 3 channels; colours become 0.299 R + 0.587 G + 0.114 B",
        "window": None if plan.window is None else {"centre": plan.window[0], "width": plan.window[1]},
        "scaling": plan.scaling,
        "scaling_is": "auto: 8 bits stay as they are, everything else goes from its 0.5 to its 99.5 percentile to "
        "0..1 and is clipped; full_range: divided by the largest value of the file's kind; min_max: the image's own "
        "range becomes 0..1; with a window: (x - (centre - width / 2)) / width, clipped to 0..1",
        "reduced_above": REDUCED_ABOVE if pictures else 1.0,
        "reduced_to": KEPT_DETAIL if pictures else 1,
        "reduction_is": "images with more than reduced_above times image_size along both axes are first brought to "
        "reduced_to times its size, keeping their shape; JPEG files are decoded at 1/2, 1/4 or 1/8 of their size as "
        "long as their shorter side keeps twice the longer side of image_size",
        "precision": "float16 after reduction, where values are not 8-bit",
        "resize": augment.get("resize", "letterbox"),
        "interpolation": "linear with antialiasing (triangle filter), pixel centres at half; 8-bit images are rounded "
        "after each axis, width first",
        "mean": list(plan.mean),
        "std": list(plan.std),
        "normalization": "(x - mean) / std of values from 0 to 1 (8 bits divided by 255)",
    }


def _tabular(plan: ImagePlan) -> dict[str, Any] | None:
    if plan.tabular is None:
        return None
    return {
        **plan.tabular.to_json(),
        "missing_code": MISSING_CODE,
        "unseen_code": UNSEEN_CODE,
        "numeric_is": "(value - mean) / scale, `fill` in the place of a missing value; with indicators as many columns "
        "more, 1 where a value was missing",
        "categorical_is": f"the place in `categories` plus {UNSEEN_CODE + 1}, {MISSING_CODE} for a missing value, "
        f"{UNSEEN_CODE} for a category that training did not have",
        "observed_is": "the columns in `numeric` (without those of indicators), then the categorical ones; none "
        "of them says that the table is absent",
    }


def _mirrored(task: ImageTask) -> list[int]:
    return list(task.inference.mirrored_axes(task.plan.spatial_dims)) if task.inference.mirror else []


def _parts(task: ImageTask) -> list[dict[str, Any]]:
    """What consecutive logits mean; several parts for several kinds of targets."""
    outcome, loss = task.outcome, task.cpu_loss
    if not isinstance(outcome, Parts):
        names = [target.target_name for target in task.plan.targets]
        described = _part(loss, outcome, task.decision, names)
        return _with_sides([{"prefix": "", "logits": [0, loss.num_outputs], **described}], task.plan)
    assert isinstance(loss, MultitaskLoss)
    parts, start = [], 0
    for (name, own), its in zip(outcome.outcomes.items(), loss.losses, strict=True):
        targets = [task.plan.targets[index].target_name for index in outcome.target_columns[name]]
        described = _part(its, own, within(task.decision, name), targets)
        parts.append({"prefix": f"{name}/", "logits": [start, start + its.num_outputs], **described})
        start += its.num_outputs
    return _with_sides(parts, task.plan)


def _with_sides(parts: Sequence[Mapping[str, Any]], plan: ImagePlan) -> list[dict[str, Any]]:
    """Say of every part where its predictions come from in a mirrored image: [part, place] of each target."""
    names = [target.target_name for target in plan.targets]
    places = {name: [part, row] for part, its in enumerate(parts) for row, name in enumerate(its["targets"])}
    source = {name: places[names[index]] for name, index in zip(names, plan.swapped_targets, strict=True)}
    return [
        {**part, "when_mirrored": [source[name] for name in part["targets"]] if part["kind"] != "survival" else None}
        for part in parts
    ]


def _part(loss: ImageLoss, outcome: Outcome, decision: Decision, targets: Sequence[str]) -> dict[str, Any]:
    return {"targets": list(targets), "activation": _activation(loss), **_outcome(outcome, decision)}


def _activation(loss: ImageLoss) -> dict[str, Any]:
    """How logits become predictions."""
    if isinstance(loss, SoftmaxLoss):
        return {"kind": "softmax", "over": "the classes of each target: logits are [targets, classes]"}
    if isinstance(loss, SigmoidLoss):
        return {"kind": "sigmoid", "over": "one logit per target, of its second class"}
    if isinstance(loss, OrdinalLoss):
        return {
            "kind": "ordinal",
            "form": loss.form,
            "is": "K - 1 logits per target, whose sigmoids are probabilities of a grade above 0, 1, ...; ordered: "
            "logit k is the first one minus the softplus of each following; conditional: the sigmoids are multiplied; "
            "otherwise their running minimum is taken; differences of neighbours are the grades' probabilities",
        }
    if isinstance(loss, DiscreteSurvivalLoss):
        meaning = "logits of the hazard per interval; survival is the running product of 1 - sigmoid, the last left out"
        return {"kind": "hazards", "times": list(loss.times), "is": meaning}
    if loss.kind == "survival":
        return {"kind": "identity", "is": "the logarithm of the relative hazard"}
    if loss.kind == "numbers":
        rows = [{"mean": target.mean, "std": target.std} for target in loss.targets]
        return {"kind": "standardised", "targets": rows, "is": "logit * std + mean"}
    raise MedtrainError(
        f"it is not known how {type(loss).__name__} turns logits into predictions, so that the manifest cannot tell",
        hint="derive the loss from one of medtrain's own, or export a run with another loss",
    )


def _outcome(outcome: Outcome, decision: Decision) -> dict[str, Any]:
    """What is chosen from predictions."""
    temperature = decision.get("temperature")
    if isinstance(outcome, GradeOutcome):
        return {"kind": "grade", "classes": outcome.class_names, "temperature": temperature, "rule": outcome.rule}
    if isinstance(outcome, ClassOutcome):
        threshold = outcome.threshold(decision) if len(outcome.class_names) == 2 else None
        return {
            "kind": "class",
            "classes": outcome.class_names,
            "temperature": temperature,
            "threshold": threshold,
            "rule": "of two classes the second from `threshold` on, otherwise the most probable one",
        }
    if isinstance(outcome, LabelOutcome):
        thresholds = [float(value) for value in outcome.thresholds(decision)]
        return {"kind": "labels", "labels": outcome.class_names, "temperature": temperature, "thresholds": thresholds}
    if isinstance(outcome, ZoneOutcome):
        return {
            "kind": "zones",
            "zones": outcome.zone_names,
            "classes": outcome.class_names,
            "temperature": temperature,
            "unknown_class": None if outcome.unknown_index is None else outcome.class_names[outcome.unknown_index],
            "score": outcome.score,
            "cuts": outcome.cuts,
            "risk_names": outcome.risk_names,
            "rule": "the most probable class of each zone; the score is the mean over zones that are not unknown of "
            "the chosen (classes) or expected grade; risk: the first class whose cut is not below the score",
        }
    if isinstance(outcome, NumberOutcome):
        return {"kind": "numbers", "names": outcome.names}
    assert isinstance(outcome, SurvivalOutcome), outcome
    names = {"times": outcome.times, "time_names": outcome.time_names}
    return {"kind": "survival", **names, "risk": "with times the sum of 1 - survival, else the logit"}


def _recipe(described: Mapping[str, Any]) -> list[str]:
    steps = []
    if described["preprocessing"]:
        steps += [
            "Read each image, turned as its EXIF tag says; convert its channels; scale it (preprocessing.scaling).",
            "Reduce it if it is large, then bring it to image_size by `resize`: letterbox scales rows and columns by "
            "one factor and centres the result on 0; crop likewise covers the size and cuts the middle; stretch.",
            "Normalise, put channels first; missing views and instances are 0 after normalisation.",
        ]
    if described["tabular"]:
        steps.append("Encode the values of the table by `tabular`.")
    steps.append(
        "Feed the inputs in their order. With mirroring.axes, average predictions over all mirrored copies; where the "
        "last axis was mirrored, those of paired_targets (indices of `targets`) change places first: when_mirrored has "
        "the [part, place] that each one's come from."
    )
    steps.append("Turn logits into predictions by `prediction`: activation, temperature, rule.")
    return steps
