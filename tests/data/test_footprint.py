from typing import Any

import pytest

from medtrain.data.footprint import PLAIN_UNET, Footprint, footprint_of
from medtrain.data.network import ALMOST, machine_budget
from medtrain.data.plan import Plan
from medtrain.data.topology import Topology, residual_feature_map_elements
from medtrain.data.volume_data import VolumeData
from medtrain.registry import get
from tests.data.test_plan import HIPPOCAMPUS, LIVER, NNUNET, dataset, plan_of

ALL, FLAT = (2, 2, 2), (1, 2, 2)


def settings_of(name: str, **changed: Any) -> dict[str, Any]:
    return {"name": name, **get("model", name).defaults(), **changed}


def planned(name: str, print_: Any = LIVER, *, changed: Any = None, **machine: Any) -> Plan:
    model = settings_of(name, **(changed or {}))
    fixed = get("model", name).target.fixed_strides(model)  # type: ignore[attr-defined]
    if fixed is not None:
        machine["strides"] = fixed
    return plan_of(print_, footprint=footprint_of(model), **machine)


def test_the_residual_encoder_is_counted_as_in_nnunet() -> None:
    # dynamic-network-architectures 0.4.4: compute_conv_feature_map_size of ResidualEncoderUNet
    count = residual_feature_map_elements
    strides = ((1, 1, 1), *[ALL] * 5)
    wide = (32, 64, 128, 256, 320, 320)
    assert count((128,) * 3, strides, wide, 3, blocks=(1, 3, 4, 6, 6, 6), decoder_convs=1) == 558_319_104 - OF_HEADS
    # by hand: stem 8, block 2 x 8 | blocks (2 + 1) x 4 and 2 x 4 on a quarter | two decoder convolutions 2 x 8 | logits
    assert count((4, 4), ((1, 1), (2, 2)), (2, 4), 3, blocks=(1, 2), decoder_convs=1) == 16 * (2 + 4) + 4 * 20 + 16 * 7


OF_HEADS = 3 * sum(64**3 // 8**level for level in range(4))
"""Logits of the coarser resolutions, which planning leaves out and the figure above counts."""


# made by the planners ResEncM, L and XL of nnU-Net 2.8.1 for the same fingerprints
RESENC = [
    ("m", "hippocampus", (40, 56, 40), 58, [ALL] * 3),
    ("m", "liver", (128, 128, 128), 2, [ALL] * 5),
    ("m", "prostate", (20, 256, 256), 2, [FLAT, FLAT, ALL, ALL, FLAT, FLAT]),
    ("l", "spleen", (80, 256, 256), 2, [FLAT, ALL, ALL, ALL, ALL, FLAT]),
    ("l", "liver", (160, 224, 192), 2, [ALL] * 5),
    ("xl", "spleen", (112, 320, 256), 2, [FLAT, ALL, ALL, ALL, ALL, FLAT]),
    ("xl", "liver", (192, 256, 256), 2, [ALL] * 5 + [FLAT]),
]


@pytest.mark.parametrize(("preset", "name", "patch", "batch", "strides"), RESENC)
def test_presets_of_the_residual_encoder_plan_as_nnunet_does(
    preset: str, name: str, patch: tuple[int, ...], batch: int, strides: list[tuple[int, ...]]
) -> None:
    print_, classes, *_ = NNUNET[name]
    changed = {"preset": preset}
    plan = planned("resenc_unet", print_, changed=changed, data=dataset(labels=classes), memory_gib=80)
    assert (plan.patch_size, plan.batch_size) == (patch, batch)
    assert plan.strides == ((1, 1, 1), *strides)
    assert plan.channels == (32, 64, 128, 256, 320, 320, 320)[: len(plan.strides)]


@pytest.mark.parametrize(("preset", "batch"), [("m", 12), ("l", 35), ("xl", 52)])
def test_slices_of_the_presets_are_nnunets(preset: str, batch: int) -> None:
    settings = VolumeData(spatial_dims=2)
    plan = planned("resenc_unet", changed={"preset": preset}, settings=settings, memory_gib=80)
    assert (plan.patch_size, plan.batch_size) == ((512, 512), batch)
    small = planned("resenc_unet", HIPPOCAMPUS, changed={"preset": "m"}, settings=settings)
    assert (small.patch_size, small.batch_size) == ((56, 40), 1618)


def test_a_preset_takes_a_smaller_gpu_as_it_is() -> None:
    large = planned("resenc_unet", changed={"preset": "l"}, memory_gib=24 * ALMOST)
    assert large.patch_size == (160, 224, 192)
    assert "24 GiB or more" in large.reasons["data.patch_size"]
    small = planned("resenc_unet", changed={"preset": "l"}, memory_gib=8)
    assert small.patch_size == (128, 160, 128)  # 2100 M elements x 8 / 24 = 700 M, where preset M has 680 M
    assert "a GPU with 8 GiB" in small.reasons["data.patch_size"]


def test_the_memory_that_is_planned_for_can_be_given() -> None:
    usual = plan_of(LIVER, memory_gib=80)
    larger = plan_of(LIVER, memory_gib=80, settings=VolumeData(memory_gib=24))
    assert usual.patch_size == (128, 128, 128)
    assert PLAIN_UNET.fitting(3, 24) == 3 * 560e6
    assert larger.patch_size == (160, 224, 192)
    assert plan_of(LIVER, memory_gib=8, settings=VolumeData(memory_gib=24)).patch_size == usual.patch_size
    # between two presets nnU-Net scales the figure of the larger one
    assert footprint_of(settings_of("resenc_unet")).fitting(3, 16) == 2100e6 * 16 / 24


def test_other_networks_have_the_plain_unets_patch_where_it_fits() -> None:
    plain = plan_of(LIVER, memory_gib=80, strides=(1, 2, 2, 2, 2))
    assert planned("mednext", memory_gib=80).patch_size == plain.patch_size
    smaller = planned("mednext", memory_gib=12)
    assert max(smaller.patch_size) < 128
    assert "memory" in smaller.reasons["data.patch_size"]
    larger_network = planned("mednext", changed={"variant": "l"}, memory_gib=12)
    assert larger_network.patch_size < smaller.patch_size
    assert (smaller.batch_size, larger_network.batch_size) == (2, 2)
    in_full = planned("mednext", memory_gib=24, half=False)  # float32 takes twice as much
    assert in_full.patch_size == smaller.patch_size
    assert "a GPU with 24 GiB)" in in_full.reasons["data.patch_size"]


def test_a_network_with_more_features_gets_a_smaller_batch() -> None:
    batches = [planned("mednext", HIPPOCAMPUS, changed={"width": width}, memory_gib=4).batch_size for width in (8, 64)]
    assert batches[0] > batches[1] >= 2


def kept(name: str, **changed: Any) -> float:
    shape = Topology((32, 32), ((1, 1), (2, 2)), ((3, 3), (3, 3)))
    footprint: Footprint = footprint_of(settings_of(name, **changed))
    assert footprint.kept is not None
    return footprint.kept(shape, (4, 8), 1, 2)


def test_what_a_network_keeps_is_counted_for_the_stages_that_are_planned() -> None:
    assert 0 < kept("unetpp") < kept("unetpp", channels=[8, 16])
    assert kept("cmunext", variant="l") > kept("cmunext", variant="s")
    assert kept("mednext", checkpoint_layers=["encoder.*", "decoder.*"]) < kept("mednext") / 2


def test_a_network_that_cannot_be_counted_is_planned_as_the_plain_unet() -> None:
    assert kept("mednext", blocks=[1, 2]) == 0  # refused when it is built, where the mistake is told
    machine = machine_budget("cuda", 8, 8, 3)
    assert machine.elements == 560e6
