"""The choice of an augmentation by the machine."""

from __future__ import annotations

from dataclasses import dataclass

from medtrain.registry import register


@register("augment", "auto", tags=("segmentation",))
@dataclass(frozen=True, kw_only=True)
class AutoAugmentation:
    """Chooses `nnunet` on a GPU and `light` on a CPU, whose runs see each case too few times to overfit.

    To change a setting, choose one of them: `augment=light augment.mirror_p=0`.
    """

    def choose(self, device: str) -> tuple[str, str]:
        """The name of the augmentation for a type of device (cpu, cuda, mps), and why."""
        if device == "cpu":
            return "light", "a run on a CPU sees each case too few times to overfit and learns faster on easier patches"
        return "nnunet", "a run on a GPU sees each case so often that it needs strong augmentation"
