"""What of the data and the augmentation contradicts a task on labelled images, said before a run is made."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medtrain.errors import UsageError

if TYPE_CHECKING:
    from medtrain.data.transforms.images.base import ImageAugmentation
    from medtrain.tasks.images import ImageTask

log = logging.getLogger(__name__)


def check_mixing(task: ImageTask, augment: ImageAugmentation) -> None:
    """See that images and targets can be mixed, where MixUp or CutMix is asked for.

    Raises:
        UsageError: They cannot.
    """
    if not (augment.mixup or augment.cutmix):
        return
    plan, loss, why = task.plan, task.loss, None
    if not plan.has_images or plan.several_images or plan.optional_image:
        why = "mixes single images, and these data have bags, views, or samples without an image"
    elif plan.tabular is not None:
        why = "mixes images, and not the columns of a table beside them"
    elif not loss.decomposable or loss.kind in ("survival", "mixed"):
        why = f"needs a loss of single samples, of classes or numbers, and loss={type(loss).__name__} is none"
    elif task.attention is not None:
        why = "leaves no single place to look at, and task.attention asks for one"
    elif augment.cutmix and task.has_places:
        why = "exchanges places in the images, and these targets belong to places"
    if why is not None:
        name = "augment.cutmix" if augment.cutmix else "augment.mixup"
        raise UsageError(f"{name} {why}", hint="set augment.mixup=0 and augment.cutmix=0")


def check_sides(task: ImageTask, data: Mapping[str, Any], augment: ImageAugmentation) -> None:
    """See that training does not mirror images whose targets would have to change places with left and right.

    Raises:
        UsageError: It would, and `data.paired_targets=[]` does not say that they stay where they are.
    """
    if task.lacks_pairs and data.get("paired_targets") != [] and augment.mirrors:
        raise UsageError(
            "the augmentation swaps left and right, but the data do not say which zones form pairs",
            hint="name the pairs in data.paired_targets, say that there are none with data.paired_targets=[], or "
            "choose an augmentation without mirroring, such as augment.mirror_p=0 or augment=chest_xray",
        )


def warn_of_two_corrections(task: ImageTask, data: Mapping[str, Any]) -> None:
    """Class weights are made for classes as often as they are, and not as they come when draws are balanced."""
    balance, key = data.get("balance", "none"), task.loss.reweighs
    if balance != "none" and key:
        log.warning(
            "data.balance=%s and loss.%s both make up for rare classes, which are now corrected for twice; "
            "one of them is usually meant: data.balance=none or loss.%s=none",
            balance,
            key,
            key,
        )
