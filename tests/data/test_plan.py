import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from medtrain.data.case import Dataset
from medtrain.data.fingerprint import ChannelIntensities, Fingerprint
from medtrain.data.network import CPU_MANY_CORES, CPU_MAX_BATCH, CPU_MAX_PATCH_VOXELS, padding_advice
from medtrain.data.plan import Plan, channel_scheme, make_plan
from medtrain.data.volume_data import VolumeData
from medtrain.errors import ConfigError

SEEN = ChannelIntensities(99.4, 39.4, 101.0, -983.0, 5420.0, -15.0, 197.0)


def fingerprint(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], cases: int, *, channels: int = 1
) -> Fingerprint:
    return Fingerprint((shape,) * cases, (spacing,) * cases, 1.0, (SEEN,) * channels, (1000, 10, 10))


def dataset(*channel_names: str, labels: int = 3, ignore_value: int | None = None) -> Dataset:
    names = {"background": 0} | {f"class_{i}": i for i in range(1, labels)}
    return Dataset("Data", Path("."), channel_names or ("CT",), names, ignore_value, (), ())


def plan_of(
    print_: Fingerprint,
    data: Dataset | None = None,
    *,
    device: str = "cuda",
    memory_gib: float = 24.0,
    cores: int = 8,
    settings: VolumeData | None = None,
    **network: object,
) -> Plan:
    return make_plan(
        print_,
        data or dataset(),
        settings or VolumeData(),
        device=device,  # type: ignore[arg-type]
        memory_gib=memory_gib,
        cores=cores,
        **network,  # type: ignore[arg-type]
    )


HIPPOCAMPUS = fingerprint((36, 50, 35), (1.0, 1.0, 1.0), 260)
LIVER = fingerprint((432, 512, 512), (1.0, 0.767578125, 0.767578125), 131)
ALL = (2, 2, 2)
FLAT = (1, 2, 2)

# made by the planner of nnU-Net 2.8.1 for the same fingerprints
NNUNET = {
    "hippocampus": (HIPPOCAMPUS, 3, (40, 56, 40), (ALL,) * 3, 0, 9),
    "liver": (LIVER, 3, (128, 128, 128), (ALL,) * 5, 0, 2),
    "brain": (fingerprint((138, 170, 138), (1, 1, 1), 484), 4, (128, 128, 128), (ALL,) * 5, 0, 2),
    "prostate": (
        fingerprint((20, 320, 319), (3.6, 0.625, 0.625), 32),
        3,
        (20, 320, 256),
        (FLAT, FLAT, ALL, ALL, FLAT, FLAT),
        2,
        2,
    ),
    "heart": (fingerprint((115, 320, 232), (1.37, 1.25, 1.25), 20), 2, (80, 192, 160), (ALL,) * 4 + (FLAT,), 0, 2),
    "pancreas": (
        fingerprint((96, 512, 512), (2.5, 0.8027, 0.8027), 281),
        3,
        (40, 224, 224),
        (FLAT, ALL, ALL, ALL, FLAT),
        1,
        2,
    ),
    "spleen": (
        fingerprint((187, 512, 512), (1.6, 0.793, 0.793), 41),
        2,
        (64, 192, 160),
        (FLAT, ALL, ALL, ALL, ALL),
        1,
        2,
    ),
}


@pytest.mark.parametrize("name", NNUNET)
def test_on_a_gpu_the_plan_is_nnunets(name: str) -> None:
    print_, classes, patch, strides, flat_kernels, batch = NNUNET[name]
    plan = plan_of(print_, dataset(labels=classes))
    assert plan.patch_size == patch
    assert plan.strides == ((1, 1, 1), *strides)
    assert plan.kernel_sizes == ((1, 3, 3),) * flat_kernels + ((3, 3, 3),) * (len(strides) + 1 - flat_kernels)
    assert plan.channels == (32, 64, 128, 256, 320, 320, 320)[: len(plan.strides)]
    assert plan.batch_size == batch
    assert plan_of(print_, dataset(labels=classes), memory_gib=140).patch_size == patch


def test_less_memory_gives_a_smaller_patch_as_in_nnunet() -> None:
    small = plan_of(LIVER, memory_gib=4)
    assert (small.patch_size, small.batch_size, len(small.strides)) == ((96, 112, 112), 2, 5)
    assert plan_of(LIVER, memory_gib=6).patch_size == (112, 128, 128)
    assert "memory" in small.reasons["data.patch_size"]


def test_two_dimensional_plans_are_nnunets() -> None:
    plan = plan_of(LIVER, settings=VolumeData(spatial_dims=2))
    assert (plan.patch_size, plan.batch_size, plan.strides) == ((512, 512), 12, ((1, 1), *[(2, 2)] * 7))
    assert plan.channels == (32, 64, 128, 256, 512, 512, 512, 512)
    assert plan.spacing == (0.767578125, 0.767578125)
    assert plan.median_shape == (432, 512, 512)
    assert plan_of(HIPPOCAMPUS, settings=VolumeData(spatial_dims=2)).batch_size == 366


def test_single_slices_are_two_dimensional(caplog: pytest.LogCaptureFixture) -> None:
    plan = plan_of(fingerprint((1, 256, 256), (1, 0.5, 0.5), 50))
    assert (plan.spatial_dims, len(plan.patch_size)) == (2, 2)
    assert plan.reasons["data.spatial_dims"] == "cases are single slices"
    with caplog.at_level("WARNING", "medtrain"):
        by_patch = plan_of(HIPPOCAMPUS, settings=VolumeData(patch_size=(48, 32)))
    assert "data.patch_size has 2 values, so slices are trained; give 3 to train on volumes" in caplog.text
    assert by_patch.spatial_dims == 2
    assert by_patch.reasons["data.spatial_dims"] == "data.patch_size has 2 values"


@pytest.mark.parametrize("print_", [HIPPOCAMPUS, LIVER, NNUNET["prostate"][0]])
def test_a_cpu_gets_a_smaller_network_and_says_so(print_: Fingerprint) -> None:
    full = VolumeData(resolution="full")
    gpu, cpu = plan_of(print_), plan_of(print_, device="cpu", cores=2, settings=full)
    assert cpu.channels[0] < gpu.channels[0]
    assert 2 <= cpu.batch_size <= CPU_MAX_BATCH[3]
    voxels = cpu.patch_size[0] * cpu.patch_size[1] * cpu.patch_size[2]
    assert voxels <= CPU_MAX_PATCH_VOXELS[3]
    assert "instead of nnU-Net's 32" in cpu.reasons["model.channels"]
    assert "a CPU with 2 cores" in cpu.reasons["model.channels"]
    assert cpu.spacing == gpu.spacing


def test_the_hippocampus_on_two_cores() -> None:
    plan = plan_of(HIPPOCAMPUS, device="cpu", cores=2)
    assert (plan.patch_size, plan.batch_size, len(plan.strides)) == ((40, 56, 40), 2, 4)
    assert plan.reasons["data.patch_size"] == "the median case (36 x 50 x 35) made divisible by 8 x 8 x 8"
    assert plan_of(HIPPOCAMPUS, device="cpu", cores=CPU_MANY_CORES).channels[0] == 32


def test_target_spacing_of_anisotropic_data_is_the_tenth_percentile() -> None:
    spacings = tuple((float(mm), 1.5, 1.5) for mm in (5, 6, 8, 10, 10, 10, 10, 10, 10, 10, 10))
    print_ = Fingerprint(((10, 200, 200),) * 11, spacings, 1.0, (SEEN,), (1, 1, 1))
    plan = plan_of(print_)
    assert plan.spacing == (6.0, 1.5, 1.5)  # second of eleven
    assert plan.source_spacing == ((5.0, 1.5, 1.5), (10.0, 1.5, 1.5))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert "10th percentile along D" in plan.reasons["data.spacing"]
    long = Fingerprint(((100, 200, 200),) * 11, spacings, 1.0, (SEEN,), (1, 1, 1))
    assert plan_of(long).spacing == (10.0, 1.5, 1.5)  # coarse but not short


def test_normalization_by_channel_name() -> None:
    print_ = fingerprint((64, 64, 64), (1, 1, 1), 10, channels=3)
    ct, mr, raw = plan_of(print_, dataset("CT", "T1", "noNorm")).normalization
    assert (ct.scheme, ct.lower, ct.upper, ct.mean, ct.std) == ("ct", -15.0, 197.0, 99.4, 39.4)
    assert (mr.scheme, mr.nonzero, raw.scheme) == ("zscore", False, "none")
    chosen = plan_of(print_, dataset("CT", "T1", "T2"), settings=VolumeData(normalization="zscore")).normalization
    assert {entry.scheme for entry in chosen} == {"zscore"}
    assert [channel_scheme(name) for name in ("ct", "Ct", "CT scan", "MRI")] == ["ct", "ct", "zscore", "zscore"]


def test_zscore_leaves_out_the_air_where_cropping_removes_much() -> None:
    cropped = Fingerprint(((64, 64, 64),) * 4, ((1.0, 1.0, 1.0),) * 4, 0.74, (SEEN,) * 2, (1, 1, 1))
    plan = plan_of(cropped, dataset("T1", "CT"))
    assert [entry.nonzero for entry in plan.normalization] == [True, False]
    assert plan.reasons["data.zscore_nonzero"].endswith("removes 26% of the median scan, more than a quarter")
    assert plan.zscore_nonzero
    kept = plan_of(cropped, dataset("T1", "CT"), settings=VolumeData(zscore_nonzero=False))
    assert not kept.zscore_nonzero
    assert "data.zscore_nonzero" not in kept.reasons
    with pytest.raises(ConfigError, match="no channel is normalised by zscore, but by ct"):
        plan_of(cropped, dataset("CT", "CT"), settings=VolumeData(zscore_nonzero=True))


def test_the_users_values_win_and_the_rest_fits() -> None:
    settings = VolumeData(patch_size=(32, 48, 32), spacing=(2.0, 2.0, 2.0), batch_size=7)
    plan = plan_of(LIVER, settings=settings, channels=(8, 16, 24))
    assert (plan.patch_size, plan.spacing, plan.batch_size) == ((32, 48, 32), (2.0, 2.0, 2.0), 7)
    assert plan.channels == (8, 16, 24)
    assert plan.strides == ((1, 1, 1), ALL, ALL)
    assert plan.median_shape == (216, 196, 196)
    assert not {"data.patch_size", "data.spacing", "data.batch_size", "model.channels"} & set(plan.reasons)
    assert {"model.strides", "model.kernel_sizes"} <= set(plan.reasons)


def test_given_strides_and_kernels() -> None:
    plan = plan_of(HIPPOCAMPUS, strides=(1, 4, (1, 2, 2)), kernel_sizes=(3, (1, 3, 3), 5), channels=(8, 16, 32))
    assert plan.strides == ((1, 1, 1), (4, 4, 4), (1, 2, 2))
    assert plan.kernel_sizes == ((3, 3, 3), (1, 3, 3), (5, 5, 5))
    assert plan.patch_size == (36, 56, 40)  # the median case made divisible by 4, 8, 8
    small = plan_of(LIVER, device="cpu", strides=(1, 4), channels=(8, 16))
    assert all(n % 4 == 0 for n in small.patch_size)
    assert small.patch_size[0] * small.patch_size[1] * small.patch_size[2] <= CPU_MAX_PATCH_VOXELS[3]


def test_a_patch_with_an_odd_half_loses_one_halving_at_most() -> None:
    assert plan_of(HIPPOCAMPUS, settings=VolumeData(patch_size=(44, 56, 40))).strides[-1] == (1, 2, 2)
    plan = plan_of(HIPPOCAMPUS, settings=VolumeData(patch_size=(50, 56, 41)))
    assert plan.patch_size == (50, 56, 41)
    assert padding_advice(plan.patch_size, plan.strides) == (
        "patches of 50 x 56 x 41 are padded to 56 x 56 x 48 inside the network, whose strides divide by 8 x 8 x 8; "
        "data.patch_size=[48,56,40] or data.patch_size=[56,56,48] would waste nothing"
    )
    assert padding_advice((48, 56, 40), plan.strides) is None


def test_a_patch_that_the_strides_do_not_divide_is_padded() -> None:
    strides = (1, (4, 4, 2), 4)
    plan = plan_of(HIPPOCAMPUS, settings=VolumeData(patch_size=(20, 20, 20)), strides=strides, channels=(8, 8, 8))
    assert plan.patch_size == (20, 20, 20)
    advice = padding_advice(plan.patch_size, plan.strides)
    assert advice is not None
    assert "padded to 32 x 32 x 24" in advice
    assert "data.patch_size=[16,16,16] or data.patch_size=[32,32,24]" in advice


def test_too_many_stages_for_the_patch() -> None:
    with pytest.raises(ConfigError) as error:
        plan_of(HIPPOCAMPUS, channels=(8,) * 7)
    problem = error.value.problems[0]
    assert problem.where == "model.channels"
    assert problem.message == "7 stages, but a patch of 40 x 56 x 40 can only be halved into 4"
    assert problem.hint == "give 4 values, a larger data.patch_size, or model.strides as well"


def test_lengths_that_contradict_each_other_are_all_named() -> None:
    settings = VolumeData(spatial_dims=2, patch_size=(32, 32, 32), spacing=(1.0,))
    with pytest.raises(ConfigError) as error:
        plan_of(HIPPOCAMPUS, settings=settings, channels=(8, 16), strides=(1, (2, 2, 2), 2))
    assert [str(problem) for problem in error.value.problems] == [
        "data.patch_size: 3 values where 2 are needed (H, W)",
        "data.spacing: 1 values where 2 are needed (H, W)",
        "model.channels: one value per stage is needed: model.channels has 2, model.strides has 3",
        "model.strides: [2, 2, 2]: 2 values (H, W) or one number are needed per stage",
    ]


def test_plans_survive_json() -> None:
    data = dataset("CT", "T1", ignore_value=255)
    plan = plan_of(fingerprint((36, 50, 35), (1.0, 1.1, 0.9), 30, channels=2), data)
    assert plan.ignore_index == 3
    text = json.dumps(plan.to_json())
    assert Plan.from_json(json.loads(text)) == plan
    assert isinstance(Plan.from_json(json.loads(text)).strides[0], tuple)


def test_merged_labels_change_the_classes() -> None:
    plan = plan_of(LIVER, settings=VolumeData(merge_labels={"class_1": ["class_1", "class_2"]}))
    assert (plan.num_classes, plan.class_names, plan.label_values) == (2, ("background", "class_1"), (0, 1))


def test_outputs_are_classes_or_regions() -> None:
    plan = plan_of(HIPPOCAMPUS)
    assert (plan.num_outputs, plan.judged_names) == (3, ("class_1", "class_2"))

    split = replace(plan, regions=((1, 2), (2,)), region_names=("all", "class_2"))
    assert (split.num_outputs, split.judged_names) == (2, ("all", "class_2"))
    assert Plan.from_json(json.loads(json.dumps(split.to_json()))) == split


def test_plans_of_runs_before_there_were_regions_can_be_read() -> None:
    plan = plan_of(HIPPOCAMPUS)
    old = {key: value for key, value in plan.to_json().items() if not key.startswith("region")}

    assert Plan.from_json(old) == plan


# made with the topology of nnU-Net 2.8.1 and its loop over voxel sizes for the same fingerprints
NNUNET_LOW = {
    "liver": (2.4272624711896627, 1.863113576518627, 1.863113576518627),
    "pancreas": (2.6522500000000004, 1.3267407944245355, 1.3267407944245355),
    "spleen": (2.7238928979838475, 1.3905303000901421, 1.3905303000901421),
}
NNUNET_LOW_PATCH = {"liver": (128, 128, 128), "pancreas": (64, 192, 192), "spleen": (64, 192, 192)}


@pytest.mark.parametrize("name", NNUNET_LOW)
def test_the_low_resolution_is_nnunets(name: str) -> None:
    print_, classes, *_ = NNUNET[name]
    plan = plan_of(print_, dataset(labels=classes), settings=VolumeData(resolution="low"))
    assert plan.spacing == pytest.approx(NNUNET_LOW[name], rel=1e-12)
    assert plan.patch_size == NNUNET_LOW_PATCH[name]
    assert math.prod(plan.patch_size) >= 0.25 * math.prod(plan.median_shape)
    assert "a patch covers 25% of the median case" in plan.reasons["data.spacing"]


def test_a_low_resolution_without_use_is_refused() -> None:
    with pytest.raises(ConfigError, match="low has no use here: at full resolution a patch of 40 x 56"):
        plan_of(HIPPOCAMPUS, settings=VolumeData(resolution="low"))
    # twice the voxels of the patch and a quarter of them more: a little coarser is enough
    close = fingerprint((176, 208, 256), (1.0, 1.0, 1.0), 20)
    with pytest.raises(ConfigError, match="more than half of the voxels"):
        plan_of(close, settings=VolumeData(resolution="low"))
    with pytest.raises(ConfigError, match="for volumes, not for slices"):
        plan_of(LIVER, settings=VolumeData(resolution="low", spatial_dims=2))


def test_a_low_resolution_may_be_given() -> None:
    plan = plan_of(LIVER, settings=VolumeData(resolution="low", spacing=(3.0, 2.0, 2.0)))
    assert plan.spacing == (3.0, 2.0, 2.0)
    with pytest.raises(ConfigError, match="is no low resolution"):
        plan_of(LIVER, settings=VolumeData(resolution="low", spacing=(1.0, 0.8, 0.8)))


def test_a_cpu_takes_the_low_resolution_of_cases_of_which_a_patch_shows_next_to_nothing() -> None:
    chosen = plan_of(LIVER, device="cpu", memory_gib=24, cores=2)
    asked = plan_of(LIVER, device="cpu", memory_gib=24, cores=2, settings=VolumeData(resolution="low"))
    assert (chosen.resolution, chosen.spacing, chosen.patch_size) == ("low", asked.spacing, asked.patch_size)
    assert "of the median case, too little for a CPU" in chosen.reasons["data.resolution"]
    assert chosen.case_cost({"overlap": 0.5}) < 20

    assert plan_of(LIVER).resolution == "full"  # a GPU
    assert plan_of(HIPPOCAMPUS, device="cpu").resolution == "full"  # a patch shows enough
    for given in (
        VolumeData(resolution="full"),
        VolumeData(spacing=(1.0, 0.8, 0.8)),
        VolumeData(patch_size=(64, 64, 64)),
        VolumeData(spatial_dims=2),
        VolumeData(cascade_from="first_stage"),
    ):
        plan = plan_of(LIVER, device="cpu", settings=given)
        assert (plan.resolution, "data.resolution" in plan.reasons) == ("full", False)
