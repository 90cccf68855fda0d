"""A network and a batch that the machine can train: the topology's rules within a budget of memory and time.

With a GPU of 8 GiB or more the numbers are nnU-Net's. On a CPU the same rules run with a smaller budget; the constants
below are the place to tune it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from medtrain.data import topology
from medtrain.data.footprint import PLAIN_UNET, Footprint
from medtrain.data.topology import Topology
from medtrain.errors import ConfigError, Problem

REFERENCE_BATCH = {3: 2, 2: 12}
"""Patches of which nnU-Net knows how many feature-map elements fit a GPU, by spatial dimensions."""
MIN_BATCH = 2
BASE_FEATURES = 32
MAX_FEATURES = {3: 320, 2: 512}
USABLE = 0.7
"""Share of the memory for what is kept for the backward pass; the rest is for gradients, weights and the optimizer."""
ALMOST = 0.95
"""A GPU that is sold with 24 GB reports somewhat less."""

# what a few CPU cores train in a sensible time: the same network, narrower, on fewer voxels per step
CPU_BASE_FEATURES = 16
CPU_MAX_FEATURES = 256
CPU_MAX_BATCH = {3: 2, 2: 12}  # many small steps learn more per minute than few large ones
CPU_MAX_PATCH_VOXELS = {3: 80**3, 2: 320**2}
CPU_MAX_BATCH_VOXELS = {3: 2 * 80**3, 2: 8 * 256**2}
CPU_MANY_CORES = 16
"""From this many cores on, a CPU trains with nnU-Net's features."""

Device = Literal["cpu", "cuda", "mps"]
Steps = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Budget:
    """How large a network and a batch the machine can take.

    Args:
        base_features: Features at full resolution.
        max_features: Most features of a stage.
        elements: Feature-map elements of REFERENCE_BATCH patches that fit the memory, as nnU-Net counts them.
        kept: Elements that a network which nnU-Net does not know may keep for the backward pass.
        max_batch: Most patches per batch.
        max_patch_voxels: Most voxels of a patch.
        max_batch_voxels: Most voxels of a batch.
        machine: For reasons, e.g. "a CPU with 2 cores".
    """

    base_features: int
    max_features: int
    elements: float
    kept: float
    max_batch: float
    max_patch_voxels: float
    max_batch_voxels: float
    machine: str


@dataclass(frozen=True)
class NetworkRequest:
    """What the network must fit, and what the user set of it.

    Args:
        spacing: Voxel size in mm per spatial dimension.
        median_shape: Voxels of the median case per spatial dimension.
        num_outputs: Channels of the logits.
        patch_size: The user's patch, or None.
        channels: The user's features per stage, or None.
        strides: The user's stride per stage and axis, or None.
        kernel_sizes: The user's kernel per stage and axis, or None.
        in_channels: Channels of the image.
        footprint: What the network takes of the memory.
    """

    spacing: tuple[float, ...]
    median_shape: tuple[float, ...]
    num_outputs: int
    patch_size: tuple[int, ...] | None = None
    channels: tuple[int, ...] | None = None
    strides: Steps | None = None
    kernel_sizes: Steps | None = None
    in_channels: int = 1
    footprint: Footprint = PLAIN_UNET

    @property
    def stages(self) -> int | None:
        """Number of stages the user asked for, or None."""
        given = self.channels or self.strides or self.kernel_sizes
        return len(given) if given else None


def machine_budget(
    device: Device,
    memory_gib: float,
    cores: int,
    dims: int,
    *,
    footprint: Footprint = PLAIN_UNET,
    planned_gib: float | None = None,
    half: bool = True,
) -> Budget:
    """The budget of a machine.

    Args:
        device: Where training runs.
        memory_gib: Memory of that device.
        cores: CPU cores available.
        dims: Spatial dimensions, 2 or 3.
        footprint: Of the network.
        planned_gib: Memory that the user plans for, if any; a device with less is taken as it is.
        half: Whether a GPU computes in a 16-bit precision.
    """
    wanted = footprint.gib if planned_gib is None else planned_gib
    large_enough = memory_gib >= ALMOST * wanted
    elements = footprint.fitting(dims, wanted) * (1.0 if large_enough else memory_gib / wanted)
    gib = memory_gib if planned_gib is None else min(memory_gib, planned_gib)
    kept = USABLE * gib * 2**30 / (2 if device == "cuda" and half else 4)  # bytes of an element
    if device != "cpu":
        all_counts = footprint.kept is not None or not large_enough  # of a counted network, all that there is
        memory = f"{gib:.3g} GiB" if all_counts else f"{wanted:g} GiB or more"
        return Budget(
            base_features=BASE_FEATURES,
            max_features=MAX_FEATURES[dims],
            elements=elements,
            kept=kept,
            max_batch=math.inf,
            max_patch_voxels=math.inf,
            max_batch_voxels=math.inf,
            machine=f"a GPU with {memory}",
        )
    many = cores >= CPU_MANY_CORES
    return Budget(
        base_features=BASE_FEATURES if many else CPU_BASE_FEATURES,
        max_features=MAX_FEATURES[dims] if many else CPU_MAX_FEATURES,
        elements=elements,
        kept=kept,
        max_batch=CPU_MAX_BATCH[dims],
        max_patch_voxels=CPU_MAX_PATCH_VOXELS[dims],
        max_batch_voxels=CPU_MAX_BATCH_VOXELS[dims],
        machine=f"a CPU with {cores} core{'s' if cores > 1 else ''}",
    )


def derive_network(request: NetworkRequest, budget: Budget, reasons: dict[str, str]) -> Topology:
    """Patch, strides and kernels; adds a reason for each that was derived.

    Raises:
        ConfigError: The user's patch, strides and stages do not fit each other.
    """
    if request.patch_size is not None:
        shape = _around_patch(request, request.patch_size)
    else:
        shape = _within_budget(request, budget, reasons)
    stages = len(shape.strides)
    if request.stages is not None and request.stages != stages:
        where = "model.channels" if request.channels else "model.kernel_sizes"
        message = f"{request.stages} stages, but a patch of {by(shape.patch_size)} can only be halved into {stages}"
        hint = f"give {stages} values, a larger data.patch_size, or model.strides as well"
        raise ConfigError([Problem(where=where, message=message, hint=hint)])
    if request.strides is None:
        halvings = [sum(stride[axis] > 1 for stride in shape.strides) for axis in range(len(request.spacing))]
        times = ", ".join(f"{axis} {count} times" for axis, count in zip("DHW"[-len(halvings) :], halvings))
        reasons["model.strides"] = (
            f"halve {times}: as long as 4 voxels remain and no axis gets twice as coarse as another"
        )
    if request.kernel_sizes is not None:
        return replace(shape, kernel_sizes=request.kernel_sizes)
    reasons["model.kernel_sizes"] = "3 along every axis, but 1 along an axis still twice as coarse as the finest"
    return shape


def derive_channels(
    request: NetworkRequest, shape: Topology, budget: Budget, reasons: dict[str, str]
) -> tuple[int, ...]:
    """Features per stage."""
    if request.channels is not None:
        return request.channels
    usual = "" if budget.base_features == BASE_FEATURES else f" instead of nnU-Net's {BASE_FEATURES}"
    reasons["model.channels"] = (
        f"{budget.base_features}{usual} features at full resolution, doubled per stage up to {budget.max_features}"
        f" ({budget.machine})"
    )
    return topology.features(len(shape.strides), base=budget.base_features, largest=budget.max_features)


def derive_batch_size(
    request: NetworkRequest,
    shape: Topology,
    channels: Sequence[int],
    budget: Budget,
    dataset_voxels: float,
    reasons: dict[str, str],
) -> int:
    """As many patches as memory, data and computing time allow, at least two.

    Args:
        request: What the network must fit.
        shape: The network's patch and strides.
        channels: Features per stage.
        budget: Of the machine.
        dataset_voxels: Voxels of all training cases together.
        reasons: Receives the reason.
    """
    dims, voxels = len(shape.patch_size), math.prod(shape.patch_size)
    network = request.footprint
    elements = network.count(shape, channels, request.in_channels, request.num_outputs)
    fits, share = "as many patches as fit the memory", network.share_of_data
    covers = f"at most {share:.0%} of the data's voxels" if share < 1 else "no more than the data's voxels"
    limits = {
        fits: round(budget.elements / elements * REFERENCE_BATCH[dims]),
        covers: round(dataset_voxels * share / voxels),
    }
    if network.kept is not None:
        kept = network.kept(shape, channels, request.in_channels, request.num_outputs)
        limits[fits] = int(min(limits[fits], budget.kept / max(kept, 1)))
    if math.isfinite(budget.max_batch):
        fitting = min(budget.max_batch, budget.max_batch_voxels / voxels)
        limits["as many patches as a step of a few seconds allows"] = int(fitting)
    reason, batch_size = min(limits.items(), key=lambda item: item[1])
    if batch_size < MIN_BATCH:
        reason, batch_size = f"the least there is; {reason} would be fewer", MIN_BATCH
    reasons["data.batch_size"] = f"{reason} ({budget.machine})"
    return batch_size


def padding_advice(patch: Sequence[int], strides: Sequence[Sequence[int]]) -> str | None:
    """What to say of a patch that the strides do not divide, so that the network pads it; None where they do.

    Args:
        patch: Voxels per axis.
        strides: Stride of each stage per axis.
    """
    multiple = topology.divisor(strides)
    above = tuple(topology.round_up(n, m) for n, m in zip(patch, multiple, strict=True))
    if above == tuple(patch):
        return None
    below = tuple(max(m, n - n % m) for n, m in zip(patch, multiple, strict=True))
    choices = " or ".join(
        f"data.patch_size=[{','.join(str(n) for n in choice)}]" for choice in dict.fromkeys((below, above))
    )
    return (
        f"patches of {by(patch)} are padded to {by(above)} inside the network, whose strides divide by {by(multiple)}; "
        f"{choices} would waste nothing"
    )


def per_axis(values: Sequence[int | Sequence[int]], dims: int) -> Steps:
    """Spell out stages given as one number for all axes."""
    return tuple((value,) * dims if isinstance(value, int) else tuple(value) for value in values)


def by(numbers: Sequence[float]) -> str:
    """Sizes as people write them: `40 x 56 x 40`."""
    return " x ".join(f"{n:g}" for n in numbers)


def _around_patch(request: NetworkRequest, patch: tuple[int, ...]) -> Topology:
    """Strides for the user's patch, and the size that the network pads it to where they do not divide it."""
    if request.strides is not None:
        return _with_strides(request, patch)
    shape = topology.derive_topology(request.spacing, patch, max_stages=request.stages, exact=True)
    usual = topology.derive_topology(request.spacing, patch, max_stages=request.stages)
    if all(4 * fitting > rule for fitting, rule in zip(shape.divisor, usual.divisor, strict=True)):
        return shape
    return usual  # an odd size would cost two halvings or more


def _within_budget(request: NetworkRequest, budget: Budget, reasons: dict[str, str]) -> Topology:
    """The largest patch of the data's proportions that fits the machine."""
    start = topology.initial_patch(request.spacing, request.median_shape)
    if request.strides is None:
        shape = topology.derive_topology(request.spacing, start, max_stages=request.stages)
    else:
        shape = _with_strides(request, start)
    limit = None
    while True:
        over_memory = _exceeds_memory(request, shape, budget)
        over_time = math.prod(shape.patch_size) > budget.max_patch_voxels
        smaller = shape
        if over_memory or over_time:
            smaller = topology.shrink(
                shape, request.spacing, request.median_shape, max_stages=request.stages, strides=request.strides
            )
        if math.prod(smaller.patch_size) >= math.prod(shape.patch_size):
            break
        shape, limit = smaller, "computing time" if over_time else "memory"
    median = by(request.median_shape)
    reasons["data.patch_size"] = (
        f"as much of the median case ({median}) as {limit} allows ({budget.machine})"
        if limit
        else f"the median case ({median}) made divisible by {by(shape.divisor)}"
    )
    return shape


def _with_strides(request: NetworkRequest, patch: Sequence[float]) -> Topology:
    assert request.strides is not None
    multiple = topology.divisor(request.strides)
    size = tuple(topology.round_up(n, m) for n, m in zip(patch, multiple, strict=True))
    return Topology(size, request.strides, topology.derive_kernel_sizes(request.spacing, request.strides))


def _exceeds_memory(request: NetworkRequest, shape: Topology, budget: Budget) -> bool:
    """Whether fewer patches fit than a batch must have at least."""
    dims, stages, network = len(request.spacing), len(shape.strides), request.footprint
    derived = topology.features(stages, base=budget.base_features, largest=budget.max_features)
    given = request.channels
    channels = derived if given is None or len(given) != stages else given
    elements = network.count(shape, channels, request.in_channels, request.num_outputs)
    if elements / REFERENCE_BATCH[dims] * network.least_batch[dims] > budget.elements:
        return True
    if network.kept is None:
        return False
    return MIN_BATCH * network.kept(shape, channels, request.in_channels, request.num_outputs) > budget.kept
