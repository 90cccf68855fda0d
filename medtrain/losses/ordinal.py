"""Losses of grades: classes that have an order, so that a far miss is worse than a near one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from medtrain.losses.class_weights import ClassWeighting, WeightTable, weights_of_classes
from medtrain.losses.classes import SoftmaxLoss
from medtrain.losses.units import ImageLoss, TargetInfo, class_names
from medtrain.registry import Range, register

OrdinalForm = Literal["cumulative", "ordered", "conditional"]


@register("loss", "ordinal", runtime=("targets",), tags=("images",))
class OrdinalLoss(ImageLoss):
    """Sum over the K - 1 thresholds of the sigmoid cross-entropy of `the grade is above threshold k`.

    `cumulative` trains every threshold on every sample: logit k is that of P(y > k). With `model.head=ordinal` the
    logits fall from threshold to threshold (W. Cao et al., Rank consistent ordinal regression, CORAL, 2020); with a
    linear layer they may cross, and the probability of a grade between crossed ones is 0.
    `ordered` is the same for a linear layer, but without crossing: output 0 is the logit of P(y > 0), and each further
    one says how much lower the next logit is, through a softplus.
    `conditional` trains threshold k on the samples that are above k - 1: logit k is that of P(y > k | y > k - 1), and
    the products of these cannot cross (X. Shi et al., CORN, 2023).

    Args:
        targets: One or more targets with K ordered classes each.
        form: What an output stands for.
        class_weights: Weight per grade, lowest first; `balanced` = n / (K n_k) and `effective_num` follow the counts
            of the training part; none or null = all equal.
        beta: Of `effective_num`; null = 0.999.

    Raises:
        UsageError: Targets that are not classes, or weights that do not match them.
    """

    always_for = "a higher grade"  # its evidence is the sum of the logits of all thresholds

    def __init__(
        self,
        *,
        targets: Sequence[TargetInfo],
        form: OrdinalForm = "cumulative",
        class_weights: ClassWeighting = None,
        beta: Annotated[float, Range(gt=0, lt=1)] | None = None,
    ) -> None:
        num_classes = len(class_names(targets, "ordinal"))
        super().__init__(targets, num_outputs=len(targets) * (num_classes - 1))
        self.num_classes = num_classes
        self.form = form
        self.weights = WeightTable(weights_of_classes(class_weights, targets, num_classes=num_classes, beta=beta))
        self.reweighs = "class_weights" if self.weights.table is not None else ""

    @property
    def cumulative_targets(self) -> int:
        """All of them, where an output is the logit of a threshold."""
        return len(self.targets) if self.form == "cumulative" else 0

    def units(self, target: Tensor) -> Tensor:
        """Weight of every entry's grade [B, T]; 0 where unlabelled."""
        return self.weights(target)

    def each(self, logits: Tensor, target: Tensor) -> Tensor:
        """See the base class."""
        thresholds = torch.arange(self.num_classes - 1, device=logits.device, dtype=target.dtype)
        grade = target.unsqueeze(-1)
        losses = F.binary_cross_entropy_with_logits(logits, (grade > thresholds).to(logits.dtype), reduction="none")
        if self.form == "conditional":
            losses = losses * (grade >= thresholds)
        return losses.sum(-1)

    def by_target(self, logits: Tensor) -> Tensor:
        """The logits [B, T, K - 1] of the thresholds."""
        found = super().by_target(logits)
        if self.form != "ordered":
            return found
        # running sums as a product, because CUDA has no deterministic cumsum
        steps = self.num_classes - 2
        sums = torch.ones(steps, steps, device=found.device, dtype=found.dtype).triu()
        first, gaps = found[..., :1], F.softplus(found[..., 1:])
        return torch.cat([first, first - gaps @ sums], -1)

    def predict(self, logits: Tensor) -> Tensor:
        """Probabilities [B, T, K] of the grades."""
        above = self.by_target(logits).sigmoid()
        above = above.cumprod(-1) if self.form == "conditional" else above.cummin(-1).values
        ends = torch.ones_like(above[..., :1])
        return torch.cat([ends, above], -1) - torch.cat([above, torch.zeros_like(ends)], -1)


@register("loss", "emd", runtime=("targets",), tags=("images",))
class SquaredEMDLoss(SoftmaxLoss):
    """Squared difference of the cumulative softmax probabilities and those of the true grade, summed over grades.

    The squared earth mover's distance: probability counts the more, the farther from the true grade it lies. L. Hou et
    al., Squared Earth Mover's Distance-based Loss for Training Deep Neural Networks, 2016, eq. 3.

    Args:
        targets: One or more targets with K ordered classes each.
        class_weights: As in `ordinal`.
        beta: As in `ordinal`.

    Raises:
        UsageError: Targets that are not classes, or weights that do not match them.
    """

    def __init__(
        self,
        *,
        targets: Sequence[TargetInfo],
        class_weights: ClassWeighting = None,
        beta: Annotated[float, Range(gt=0, lt=1)] | None = None,
    ) -> None:
        super().__init__(targets, "emd", class_weights, beta)

    def each_class(self, logits: Tensor, label: Tensor) -> Tensor:
        """See the base class."""
        reached = torch.arange(self.num_classes, device=label.device) >= label.unsqueeze(-1)
        # running sums as a product, because CUDA has no deterministic cumsum
        sums = torch.ones(self.num_classes, self.num_classes, device=logits.device, dtype=logits.dtype).triu()
        return (logits.softmax(-1) @ sums - reached.to(logits.dtype)).square().sum(-1)


@register("loss", "qwk", runtime=("targets",), tags=("images",))
class QuadraticKappaLoss(SoftmaxLoss):
    """1 minus the quadratic weighted kappa of the batch, with softmax probabilities in place of counts.

    sum(w O) / sum(w E) with w = (i - j)^2, O the soft confusion matrix and E the one of chance. It is the share of a
    whole batch: accumulation and several processes are refused. J. de la Torre et al., Weighted kappa loss function
    for multi-class classification of ordinal data, 2018, eq. 5, without the logarithm.

    Args:
        targets: One or more targets with K ordered classes each; their losses are averaged.

    Raises:
        UsageError: Targets that are not classes.
    """

    decomposable = False

    def __init__(self, *, targets: Sequence[TargetInfo]) -> None:
        super().__init__(targets, "qwk", None, None)

    def compute(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class; each target's loss counts with its labelled samples."""
        units = self.units(target)
        probs = self.by_target(logits).softmax(-1) * units.unsqueeze(-1)
        grades = torch.arange(self.num_classes, device=logits.device, dtype=logits.dtype)
        true = (target.unsqueeze(-1) == grades).to(logits.dtype)
        distance = (grades[:, None] - grades).square()
        observed = torch.einsum("bti,ij,btj->t", true, distance, probs)
        count = units.sum(0)
        chance = torch.einsum("ti,ij,tj->t", true.sum(0), distance, probs.sum(0)) / count.clamp_min(1)
        # by chance nothing is missed where all is one grade and all is predicted so
        losses = observed / chance.clamp_min(torch.finfo(logits.dtype).eps)
        return (losses * count).sum(), count.sum()
