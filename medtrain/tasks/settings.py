"""The settings that all tasks on labelled images share."""

from __future__ import annotations

from dataclasses import dataclass, field

from medtrain.losses.supervision import AuxWeights, InstanceEntropy, MapSupervision
from medtrain.tasks.report import Report


@dataclass(frozen=True, kw_only=True)
class ImageTaskSettings:
    """How a task on labelled images is supervised and judged.

    Args:
        monitor: The metric that decides which weights are best; null takes the task's own. `loss` and every metric of
            the task can be named, also those of one class.
        aux_weights: Weight of the loss of the auxiliary heads (of one modality or view): one number for all, or
            `{name: weight}`; null is 0.3 where a model has such heads.
        attention: What is asked of the map of places that the model looks at; null asks for nothing.
        instance_entropy: What is asked of the attention over views or instances; null asks for nothing.
        report: Confidence intervals and subgroups of the final evaluation.
    """

    monitor: str | None = None
    aux_weights: AuxWeights = None
    attention: MapSupervision | None = None
    instance_entropy: InstanceEntropy | None = None
    report: Report = field(default_factory=Report)
