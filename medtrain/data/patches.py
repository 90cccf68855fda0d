"""Training patches: where they lie, what is read, and how they become a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from medtrain.data.annotated import Annotated
from medtrain.data.disturb import disturb
from medtrain.data.plan import Plan
from medtrain.data.preprocess import normalize
from medtrain.data.sampler import SampleKey
from medtrain.data.store import PreparedCase, Store
from medtrain.data.transforms.base import Augmentation

Sample = dict[str, Any]
_HINTS = 1
"""Sets the random numbers of hints apart from those of the patch."""


class PatchDataset:
    """Patches of prepared cases, each a pure function of the seed and its key.

    Some patches are centred on a labelled voxel: of a class (or region) drawn among those that are present and
    annotated, then of a voxel of it, moved as little as needed to stay within the case. The others lie anywhere within
    the case, or with an ignore label around any annotated voxel. A case smaller than the patch lies in its middle.

    With a share f centred and n patches in a batch, these are the patches from slot round(n (1 - f)) on (nnU-Net).
    Where that would be none or all of a batch although f is neither 0 nor 1, as with batches of one, batches share the
    task: sample i of epoch e is centred if floor((i + e + 1) f) > floor((i + e) f), so that an epoch has the share f,
    and so has every sample over the epochs.

    Augmentation parameters are drawn before reading, and only the voxels they need are read.

    Args:
        store: Prepared cases.
        case_ids: Cases to draw from; sample `index` is of case `index % len(case_ids)`.
        plan: Patch size, normalisation, classes.
        augment: Draws parameters and what must be read for them.
        batch_size: Patches of a global batch, where it is large enough for the slot to decide.
        oversample_foreground: Share of the patches that are centred on foreground.
        seed: Of everything random.
        annotated: Outputs that were annotated, of cases where not all were.
        hints: Name of the previous stage's label map by case, in a cascade.
        disturb_hints: Put mistakes into these maps; see `medtrain.data.disturb`.
    """

    def __init__(
        self,
        *,
        store: Store,
        case_ids: Sequence[str],
        plan: Plan,
        augment: Augmentation,
        batch_size: int,
        oversample_foreground: float,
        seed: int,
        annotated: Annotated | None = None,
        hints: Mapping[str, str] | None = None,
        disturb_hints: bool = False,
    ) -> None:
        self.store = store
        self.case_ids = tuple(case_ids)
        self.plan = plan
        self.augment = augment
        self.seed = seed
        self.annotated = dict(annotated or {})
        self.hints = dict(hints or {})
        self.disturb_hints = disturb_hints
        self._structures = plan.regions or tuple((index,) for index in range(1, plan.num_classes))
        self.oversample_foreground = oversample_foreground
        self.first_foreground_slot = round(batch_size * (1 - oversample_foreground))
        self._by_slot = 0 < self.first_foreground_slot < batch_size

    def is_foreground(self, key: SampleKey) -> bool:
        """Whether a patch is centred on a labelled voxel."""
        if self._by_slot:
            return key.slot >= self.first_foreground_slot
        turn = key.index + key.epoch
        return math.floor((turn + 1) * self.oversample_foreground) > math.floor(turn * self.oversample_foreground)

    def __getitem__(self, key: SampleKey) -> Sample:
        """Draw and read a sample.

        Returns:
            image: float32 tensor [C, *R], normalised, 0 outside the case; R is params["read_size"].
            label: Class indices [*R], uint8 or int16; ignore (or background) outside the case. In a cascade it
                holds the previous stage's, too; see `pack`.
            params: What the augmentation drew.
            case_id: The case.
            key: (epoch, index).
            annotated: bool [K], the outputs that were annotated; only where some case was annotated in part.
        """
        case = self.store.case(self.case_ids[key.index % len(self.case_ids)])
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, key.epoch, key.index])))
        patch = (1,) * (3 - self.plan.spatial_dims) + self.plan.patch_size
        start = self._patch_start(case, patch, rng, foreground=self.is_foreground(key))
        params = self.augment.draw(rng, patch_size=self.plan.patch_size)
        size = (1,) * (3 - self.plan.spatial_dims) + tuple(params["read_size"])
        # the patch lies in the middle of what is read
        corner = [at - (r - p) // 2 for at, r, p in zip(start, size, patch, strict=True)]
        image, label = read_box(case, corner, size, self.plan)
        if self.hints:
            hints = self._read_hints(case, corner, size, key)
            label = pack(label, hints, self.plan)
        if self.plan.spatial_dims == 2:
            image, label = image[:, 0], label[0]
        sample = {
            "image": torch.from_numpy(image),
            "label": torch.from_numpy(label),
            "params": params,
            "case_id": case.case_id,
            "key": (key.epoch, key.index),
        }
        if self.annotated:
            everything = (True,) * self.plan.num_outputs
            sample["annotated"] = torch.tensor(self.annotated.get(case.case_id, everything))
        return sample

    def _read_hints(self, case: PreparedCase, corner: Sequence[int], size: Sequence[int], key: SampleKey) -> np.ndarray:
        inside, target = _overlap(case, corner, size)
        found = case.read_hints(self.hints[case.case_id], inside)
        hints = np.zeros(size, dtype=found.dtype)
        hints[target] = found
        if not self.disturb_hints:
            return hints
        sequence = np.random.SeedSequence([self.seed, key.epoch, key.index, _HINTS])
        return disturb(hints, np.random.Generator(np.random.Philox(sequence)))

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Put samples side by side; see `collate`."""
        return collate(samples)

    def _patch_start(
        self, case: PreparedCase, patch: Sequence[int], rng: np.random.Generator, *, foreground: bool
    ) -> list[int]:
        """First voxel (D, H, W) of the patch."""
        # always the same number of draws, so that the augmentation's stream does not depend on what follows from them
        place = rng.random(3)
        class_draw, voxel_draw = rng.random(2)
        room = [n - p for n, p in zip(case.shape, patch, strict=True)]
        start = [int(u * (r + 1)) if r > 0 else -((-r) // 2) for u, r in zip(place, room, strict=True)]
        tables = self._tables(case, class_draw, foreground=foreground)
        if not tables:
            return start
        at = int(voxel_draw * sum(len(table) for table in tables))
        for table in tables:
            if at < len(table):
                break
            at -= len(table)
        return [
            min(max(int(c) - p // 2, 0), r) if r > 0 else lowest
            for c, p, r, lowest in zip(table[at], patch, room, start, strict=True)
        ]

    def _tables(self, case: PreparedCase, class_draw: float, *, foreground: bool) -> list[np.ndarray]:
        """Voxels to choose the centre from, none for anywhere."""
        if foreground:
            # class 0 holds no foreground, and class indices beyond those of the plan are no structure
            known = self.annotated.get(case.case_id)
            outputs = None if known is None else known if self.plan.regions is not None else known[1:]
            present = [
                [index for index in members if index in case.class_ids]
                for number, members in enumerate(self._structures)
                if outputs is None or outputs[number]
            ]
            present = [members for members in present if members]
            if present:
                return [case.foreground(index) for index in present[int(class_draw * len(present))]]
        # with sparse annotation a patch without any of it teaches nothing
        return [case.foreground(0)] if 0 in case.class_ids else []


def read_box(
    case: PreparedCase, corner: Sequence[int], size: Sequence[int], plan: Plan
) -> tuple[np.ndarray, np.ndarray]:
    """Read and normalise a box that may reach beyond the case.

    Args:
        case: Where to read.
        corner: First voxel (D, H, W), may be negative.
        size: Voxels (D, H, W).
        plan: Normalisation, and what fills the label outside.

    Returns:
        Image float32 [C, *size], label [*size].
    """
    inside, target = _overlap(case, corner, size)
    image = normalize(case.read_image(inside), case.stats, plan.normalization, case.read_body(inside))
    label = case.read_label(inside)
    if label.shape == tuple(size):
        return image, label
    whole_image = np.zeros((len(image), *size), dtype=np.float32)
    whole_image[(slice(None), *target)] = image
    whole_label = np.full(size, plan.ignore_index or 0, dtype=label.dtype)
    whole_label[target] = label
    return whole_image, whole_label


def pack(label: np.ndarray, hints: np.ndarray, plan: Plan) -> np.ndarray:
    """Put two label maps into one, which augmentations move as one: label + hints x (number of classes + 1)."""
    base = plan.num_classes + 1
    largest = base * len(plan.cascade.class_names) if plan.cascade is not None else base * (int(hints.max()) + 1)
    dtype = np.dtype(np.int16 if largest <= np.iinfo(np.int16).max else np.int32)
    return label.astype(dtype) + hints.astype(dtype) * dtype.type(base)


def unpack(packed: torch.Tensor, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """Label and hints; the inverse of `pack`."""
    base = plan.num_classes + 1
    return packed % base, packed.div(base, rounding_mode="floor")


def _overlap(
    case: PreparedCase, corner: Sequence[int], size: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The part of a box that lies within a case: in the case, and in the box."""
    inside = tuple(slice(max(at, 0), min(at + n, extent)) for at, n, extent in zip(corner, size, case.shape))
    return inside, tuple(slice(part.start - at, part.stop - at) for part, at in zip(inside, corner, strict=True))


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """Put samples side by side: lists, since reads differ in size; `weight` is their number."""
    batch: dict[str, Any] = {name: [sample[name] for sample in samples] for name in samples[0]}
    return {**batch, "weight": len(samples)}
