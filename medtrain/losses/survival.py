"""Losses of the time to an event that not everybody lived to see (right-censored)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medtrain.errors import UsageError
from medtrain.losses.units import ImageLoss, LossKind, TargetInfo
from medtrain.registry import Range, register

log = logging.getLogger(__name__)

DEFAULT_INTERVALS = 10


class SurvivalLoss(ImageLoss):
    """Base of the losses on two target columns: the time, and whether the event was seen then (1) or not (0).

    A sample without either is unlabelled.
    """

    kind: ClassVar[LossKind] = "survival"
    always_for = "a higher risk"

    def __init__(self, targets: Sequence[TargetInfo], loss_name: str, *, num_outputs: int) -> None:
        check_survival(targets, loss_name)
        super().__init__(targets, num_outputs=num_outputs)

    def by_target(self, logits: Tensor) -> Tensor:
        """Logits [B, O] of logits [B, O] or [B, 1, O]; there is one prediction for both columns."""
        found = logits.numel() // max(1, logits.shape[0])
        assert found == self.num_outputs, f"{found} logits per sample, expected {self.num_outputs}"
        return logits.reshape(logits.shape[0], self.num_outputs)

    @property
    def units_per_sample(self) -> int:
        """One for both columns."""
        return 1

    def risk(self, logits: Tensor) -> Tensor:
        """A number per sample [B]; higher means an earlier event."""
        raise NotImplementedError

    def evidence(self, logits: Tensor, target: Tensor) -> Tensor:
        """The risk [B]."""
        return self.risk(logits)


def check_survival(targets: Sequence[TargetInfo], loss_name: str) -> None:
    """Refuse targets that are not a time and an event.

    Raises:
        UsageError: There are not two targets, the first is of classes, or the second has more than two.
    """
    names = [target.target_name for target in targets]
    if len(targets) != 2:
        raise UsageError(
            f"loss={loss_name} needs two targets, the time and whether the event was seen, got {names}",
            hint="name both, the time first, e.g. data.targets=[time,event]",
        )
    if targets[0].classes is not None or (targets[1].classes is not None and len(targets[1].classes) != 2):
        raise UsageError(
            f"loss={loss_name} needs a number (the time) and then 0 or 1 (the event), got {names[0]} of "
            f"{_kind(targets[0])} and {names[1]} of {_kind(targets[1])}",
            hint="write the time first",
        )


def _kind(target: TargetInfo) -> str:
    return "numbers" if target.classes is None else f"{len(target.classes)} classes"


@register("loss", "cox", runtime=("targets",), tags=("images",))
class CoxLoss(SurvivalLoss):
    """Negative log partial likelihood of Cox's proportional hazards, averaged over the events of the batch.

    The one logit is the logarithm of the relative hazard. The risk sets are those of the batch, so it is a loss of
    whole batches: accumulation and several processes are refused, and larger batches are better. D. Cox, Regression
    models and life-tables, 1972; B. Efron, The efficiency of Cox's likelihood function for censored data, 1977, eq. 4;
    N. Breslow, Covariance analysis of censored survival data, 1974.

    Args:
        targets: The time, and whether the event was seen then.
        ties: How events at the same time are treated: as if each came before a share of the others (`efron`), or as if
            all were at risk in each (`breslow`).

    Raises:
        UsageError: The targets are not a time and an event.
    """

    decomposable = False

    def __init__(self, *, targets: Sequence[TargetInfo], ties: Literal["efron", "breslow"] = "efron") -> None:
        super().__init__(targets, "cox", num_outputs=1)
        self.ties = ties

    def units(self, target: Tensor) -> Tensor:
        """1 for every sample with an event [B]."""
        time, event = target.unbind(1)
        return ((event == 1) & ~time.isnan()).to(target.dtype)

    def compute(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class; sums over [B, B] tables, without a copy from the device."""
        score = self.by_target(logits).squeeze(1)
        time, units = target[:, 0], self.units(target)
        known = ~target.isnan().any(1)
        event = units.bool()
        # a row that does not count keeps itself at risk, because the logarithm of an empty sum has no gradient
        itself = torch.eye(len(score), dtype=torch.bool, device=score.device)
        at_risk = ((time >= time.unsqueeze(1)) & known) | itself
        log_risk = _masked_logsumexp(score, at_risk)
        if self.ties == "efron":
            tied = ((time == time.unsqueeze(1)) & event) | itself
            before = torch.tril(tied, -1).sum(1).to(score.dtype) / tied.sum(1)
            share = before * (_masked_logsumexp(score, tied) - log_risk).exp()
            # only events have a share to leave out; it is below 1 for them
            log_risk = log_risk + torch.log1p(-torch.where(event, share, torch.zeros_like(share)))
        losses = torch.where(event, log_risk - score, torch.zeros_like(score))
        return losses.sum(), units.sum()

    def risk(self, logits: Tensor) -> Tensor:
        """The logarithm of the relative hazard [B]."""
        return self.by_target(logits).squeeze(1)

    def predict(self, logits: Tensor) -> Tensor:
        """The logarithm of the relative hazard [B, 1]."""
        return self.by_target(logits)


def _masked_logsumexp(score: Tensor, mask: Tensor) -> Tensor:
    """Logarithm of the sum of exp(score [B]) over the columns of every row of a mask [B, B]."""
    return score.expand(len(score), -1).masked_fill(~mask, -torch.inf).logsumexp(1)


@register("loss", "discrete_survival", runtime=("targets", "event_times"), tags=("images",))
class DiscreteSurvivalLoss(SurvivalLoss):
    """Negative log likelihood of the interval in which the event fell, or of those that were outlived.

    Logit k is that of the hazard: the probability of the event in interval k for those who reach it. An event in
    interval k costs -log h_k - sum_{j<k} log(1 - h_j); who was censored outlived the intervals that had ended by then.
    M. Gensheimer & B. Narasimhan, A scalable discrete-time survival model for neural networks, 2019, eq. 3.

    Args:
        targets: The time, and whether the event was seen then.
        event_times: Times (or quantiles of the times) of the events in the training part.
        num_intervals: Intervals (0, c_1], (c_1, c_2], ..., the last without an end; each is to hold the same number of
            training events, and there are fewer where events share their times. null = 10.
        cuts: The ends c_1 < c_2 < ... themselves, instead of quantiles.

    Raises:
        UsageError: The targets are not a time and an event, the cuts do not rise, both cuts and their number are
            given, or there are no events to take quantiles of.
    """

    def __init__(
        self,
        *,
        targets: Sequence[TargetInfo],
        event_times: Sequence[float] | None = None,
        num_intervals: Annotated[int, Range(ge=2)] | None = None,
        cuts: tuple[float, ...] | None = None,
    ) -> None:
        if cuts is not None and num_intervals is not None:
            raise UsageError("loss.num_intervals has no effect beside loss.cuts", hint="leave one of them null")
        wanted = DEFAULT_INTERVALS if num_intervals is None else num_intervals
        found = quantile_cuts(() if event_times is None else event_times, wanted) if cuts is None else _checked(cuts)
        super().__init__(targets, "discrete_survival", num_outputs=len(found) + 1)
        self.times = found
        """The ends of all intervals but the last."""
        self.cuts: Tensor
        self.register_buffer("cuts", torch.tensor(found, dtype=torch.float32), persistent=False)

    def units(self, target: Tensor) -> Tensor:
        """1 for every sample with a time and an event or its absence [B]."""
        return (~target.isnan().any(1)).to(target.dtype)

    def compute(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class."""
        hazards, units = self.by_target(logits), self.units(target)
        time, event = target.nan_to_num(0).unsqueeze(-1).unbind(1)
        cuts = self.cuts.to(time.dtype)
        outlived = torch.where(event == 1, time > cuts, time >= cuts).to(hazards.dtype)
        ends = torch.ones_like(outlived[:, :1])
        # the interval of the event is the first that was not outlived
        hit = event * (torch.cat([ends, outlived], 1) - torch.cat([outlived, 1 - ends], 1))
        outlived = torch.cat([outlived, 1 - ends], 1)
        losses = -(hit * F.logsigmoid(hazards) + outlived * F.logsigmoid(-hazards)).sum(1)
        return (losses * units).sum(), units.sum()

    def survival(self, logits: Tensor) -> Tensor:
        """Probability [B, M] of outliving each of `times`."""
        return F.logsigmoid(-self.by_target(logits).float())[:, :-1].cumsum(1).exp()

    def risk(self, logits: Tensor) -> Tensor:
        """Sum over the cuts of the probability that the event comes before [B]."""
        return (1 - self.survival(logits)).sum(1)

    def predict(self, logits: Tensor) -> Tensor:
        """Probability [B, M] of outliving each of `times`."""
        return self.survival(logits)


def quantile_cuts(event_times: Sequence[float], num_intervals: int) -> tuple[float, ...]:
    """Rising ends of intervals that hold the same number of events each, the last having none.

    Raises:
        UsageError: All events have the same time, or there are none.
    """
    times = np.asarray(event_times, dtype=np.float64)
    shares = np.arange(1, num_intervals) / num_intervals
    # a cut at the last event would leave an interval without any
    cuts = tuple(float(cut) for cut in np.unique(np.quantile(times, shares)) if cut < times.max()) if times.size else ()
    if not cuts:
        raise UsageError(
            "loss=discrete_survival needs events at several times in the training part to divide time by",
            hint="give the ends of the intervals, e.g. loss.cuts=[12,24,36]",
        )
    if len(cuts) + 1 < num_intervals:
        log.info("events share their times: %d intervals instead of %d", len(cuts) + 1, num_intervals)
    return cuts


def _checked(cuts: tuple[float, ...]) -> tuple[float, ...]:
    if not cuts or cuts[0] <= 0 or any(later <= earlier for earlier, later in pairwise(cuts)):
        raise UsageError(f"loss.cuts must be positive and rise, got {list(cuts)}", hint="e.g. loss.cuts=[12,24,36]")
    return cuts
