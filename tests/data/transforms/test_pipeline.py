"""The registered augmentations: what they draw, what they promise about batches, their settings."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from medtrain.data.transforms import base, intensity, spatial
from medtrain.data.transforms.light import LightAugmentation
from medtrain.data.transforms.nnunet import NnunetAugmentation
from medtrain.data.transforms.none import NoAugmentation
from medtrain.data.transforms.pipeline import RandomPipeline
from medtrain.data.transforms.spatial import rotation_matrix
from medtrain.errors import UsageError
from medtrain.registry import build, get, names

PROBABILITIES = {  # nnU-Net's
    "noise": 0.1,
    "blur": 0.2,
    "brightness": 0.15,
    "contrast": 0.15,
    "low_resolution": 0.25,
    "gamma_inverted": 0.1,
    "gamma": 0.3,
}
SPATIAL = ("rotation", "scaling", "mirror")
ALWAYS = {f"{key}_p": 1.0 for key in (*PROBABILITIES, *SPATIAL, "blur_channel", "low_resolution_channel")}
STILL = {**ALWAYS, "rotation_p": 0.0, "scaling_p": 0.0}
NEVER = dict.fromkeys(ALWAYS, 0.0)


def _rng(*seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))


def _draws(augmentation: RandomPipeline, count: int, patch_size: tuple[int, ...] = (8, 10, 12)) -> list[dict[str, Any]]:
    return [augmentation.draw(_rng(1, i), patch_size=patch_size) for i in range(count)]


def _batch(params: list[dict[str, Any]], channels: int = 2, seed: int = 0) -> dict[str, Any]:
    rng = _rng(seed)
    images, labels = [], []
    for sample in params:
        size = sample["read_size"]
        images.append(torch.from_numpy(rng.standard_normal((channels, *size)).astype(np.float32)))
        labels.append(torch.from_numpy(rng.integers(0, 3, size).astype(np.uint8)))
    return {"image": images, "label": labels, "params": params, "case_id": [str(i) for i in range(len(params))]}


def _select(batch: dict[str, Any], order: list[int]) -> dict[str, Any]:
    return {key: [values[i] for i in order] for key, values in batch.items()}


@pytest.mark.parametrize("patch_size", [(9, 11, 10), (4, 16, 18), (17, 21)])
def test_a_sample_does_not_depend_on_its_batch(patch_size: tuple[int, ...]) -> None:
    augmentation = NnunetAugmentation(
        in_channels=2, rotation_p=0.5, scaling_p=0.5, noise_p=0.5, blur_p=0.5, contrast_p=0.5, low_resolution_p=0.5
    )
    batch = _batch(_draws(augmentation, 12, patch_size))
    whole = augmentation.apply(batch, patch_size=patch_size, label_pad=0)
    order = _rng(3).permutation(12).tolist()
    shuffled = augmentation.apply(_select(batch, order), patch_size=patch_size, label_pad=0)
    assert torch.equal(shuffled["image"], whole["image"][order])
    assert torch.equal(shuffled["label"], whole["label"][order])
    for i in range(12):
        alone = augmentation.apply(_select(batch, [i]), patch_size=patch_size, label_pad=0)
        assert torch.equal(alone["image"][0], whole["image"][i])
        assert torch.equal(alone["label"][0], whole["label"][i])


@pytest.mark.parametrize("patch_size", [(9, 11, 10), (4, 16, 18), (17, 21)])
def test_the_code_for_accelerators_agrees(patch_size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    augmentation = NnunetAugmentation(
        in_channels=2, masked_channels=(1,), rotation_p=0.5, noise_p=0.5, blur_p=0.5, contrast_p=0.5, gamma_p=0.5
    )
    batch = _batch(_draws(augmentation, 12, patch_size))
    alone = augmentation.apply(batch, patch_size=patch_size, label_pad=0)
    monkeypatch.setattr(base, "one_by_one", lambda device: False)
    monkeypatch.setattr(spatial, "_GROUP_VOXELS", 7000)  # groups of three and more, the last one smaller
    together = augmentation.apply(batch, patch_size=patch_size, label_pad=0)
    torch.testing.assert_close(together["image"], alone["image"], atol=2e-5, rtol=1e-5)
    assert (together["label"] != alone["label"]).float().mean() < 1e-3


def test_apply_gives_contiguous_float32_and_passes_other_keys_on() -> None:
    augmentation = NnunetAugmentation(in_channels=2)
    batch = _batch(_draws(augmentation, 5))
    result = augmentation.apply(batch, patch_size=(8, 10, 12), label_pad=0)
    assert result["image"].shape == (5, 2, 8, 10, 12)
    assert result["label"].shape == (5, 8, 10, 12)
    assert result["image"].dtype == torch.float32
    assert result["label"].dtype == torch.uint8
    assert result["image"].is_contiguous()
    assert result["label"].is_contiguous()
    assert result["case_id"] == batch["case_id"]
    assert torch.isfinite(result["image"]).all()


def test_apply_leaves_the_reads_and_global_random_state_alone() -> None:
    augmentation = NnunetAugmentation(in_channels=2, **ALWAYS)
    batch = _batch(_draws(augmentation, 2))
    before = [image.clone() for image in batch["image"]]
    torch.manual_seed(0)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    first = augmentation.apply(batch, patch_size=(8, 10, 12), label_pad=0)
    second = augmentation.apply(batch, patch_size=(8, 10, 12), label_pad=0)
    assert torch.equal(first["image"], second["image"])
    assert all(torch.equal(a, b) for a, b in zip(before, batch["image"]))
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # type: ignore[arg-type]


def test_frequencies_are_the_probabilities() -> None:
    draws = _draws(NnunetAugmentation(in_channels=2), 2000)
    for key, probability in PROBABILITIES.items():
        tolerance = 3.5 * (probability * (1 - probability) / 2000) ** 0.5
        assert np.mean([key in params for params in draws]) == pytest.approx(probability, abs=tolerance), key
    assert np.mean(["matrix" in params for params in draws]) == pytest.approx(1 - 0.8 * 0.8, abs=0.04)
    turned = [params["matrix"] for params in draws if "matrix" in params and np.count_nonzero(params["matrix"]) > 3]
    assert len(turned) / 2000 == pytest.approx(0.2, abs=0.032)
    for axis in range(3):
        assert np.mean([axis in params.get("mirror", ()) for params in draws]) == pytest.approx(0.5, abs=0.04)
    for key in ("blur", "low_resolution"):
        chosen = [value is not None for params in draws for value in params.get(key, ())]
        assert np.mean(chosen) == pytest.approx(0.5, abs=0.07), key
    independent = np.mean(["gamma" in params and "low_resolution" in params for params in draws])
    assert independent == pytest.approx(0.3 * 0.25, abs=0.021)


def test_parameters_fill_their_ranges() -> None:
    draws = _draws(NnunetAugmentation(in_channels=2, **ALWAYS), 1500)
    ranges = {"brightness": (0.75, 1.25), "contrast": (0.75, 1.25), "gamma": (0.7, 1.5), "gamma_inverted": (0.7, 1.5)}
    for key, (low, high) in ranges.items():
        values = np.array([params[key] for params in draws])  # [1500, 2]
        assert low <= values.min() < low + 0.01
        assert high - 0.01 < values.max() <= high
        assert np.mean(values < 1) == pytest.approx(0.5, abs=0.035)
        assert abs(np.corrcoef(values.T)[0, 1]) < 0.1  # channels are independent
    scales = np.array([np.linalg.det(params["matrix"]) ** (1 / 3) for params in draws])
    assert 0.7 <= scales.min() < 0.71
    assert 1.39 < scales.max() <= 1.4
    stds = np.array([params["noise"]["std"] for params in draws])
    assert stds.mean() == pytest.approx(0.05, abs=0.004)
    assert stds.max() < 0.1
    sigmas = np.array([params["blur"] for params in draws])  # [1500, 2, 3]
    assert 0.5 <= sigmas.min() < 0.51
    assert 0.99 < sigmas.max() <= 1.0
    assert np.unique(sigmas[0]).size == 6  # per channel and axis
    coarse = np.array([params["low_resolution"] for params in draws])
    assert np.ptp(coarse, axis=2).max() == 0  # one factor for all axes
    assert coarse.mean() == pytest.approx(0.75, abs=0.015)
    assert len({params["noise"]["seed"] for params in draws}) == 1500


def test_rotation_limits_follow_nnunet() -> None:
    def largest_angle(patch_size: tuple[int, ...], **settings: Any) -> float:
        augmentation = NnunetAugmentation(in_channels=1, **{**NEVER, "rotation_p": 1.0}, **settings)
        matrices = [params["matrix"] for params in _draws(augmentation, 400, patch_size)]
        if len(patch_size) == 2 or augmentation._flat_axis(patch_size) is not None:
            cosines = [(np.trace(m) - len(patch_size) + 2) / 2 for m in matrices]
            return float(np.degrees(np.arccos(np.clip(cosines, -1, 1)).max()))
        return float(np.degrees(np.arctan2([m[2, 1] for m in matrices], [m[2, 2] for m in matrices]).max()))

    assert largest_angle((40, 56, 40)) == pytest.approx(30, abs=0.5)
    assert largest_angle((16, 64, 60)) == pytest.approx(180, abs=2)
    assert largest_angle((64, 60)) == pytest.approx(180, abs=2)
    assert largest_angle((64, 40)) == pytest.approx(15, abs=0.3)
    assert largest_angle((40, 56, 40), rotation_degrees=5.0) == pytest.approx(5, abs=0.1)


def test_rotation_angles_compose_about_all_axes() -> None:
    augmentation = NnunetAugmentation(in_channels=1, **{**NEVER, "rotation_p": 1.0})
    u = _rng(4).random((10, 6))[0]  # the first row of the table holds the rotation
    matrix = augmentation.draw(_rng(4), patch_size=(8, 8, 8))["matrix"]
    np.testing.assert_allclose(matrix, rotation_matrix(np.radians(30 * (2 * u[1:4] - 1)).tolist()))


@pytest.mark.parametrize(("patch_size", "axis"), [((5, 20, 24), 0), ((24, 20, 5), 2)])
def test_anisotropic_patches_are_turned_across_their_short_axis(patch_size: tuple[int, ...], axis: int) -> None:
    for params in _draws(NnunetAugmentation(in_channels=1, **ALWAYS), 30, patch_size):
        assert np.array_equal(params["matrix"][axis], np.eye(3)[axis])
        assert np.array_equal(params["matrix"][:, axis], np.eye(3)[axis])
        assert params["read_size"][axis] == 5
        assert params["low_resolution"][0][axis] == 1.0
        assert params["blur"][0][axis] >= 0.5
    whole = NnunetAugmentation(in_channels=1, dummy_2d=False, **ALWAYS).draw(_rng(0), patch_size=patch_size)
    assert np.count_nonzero(whole["matrix"]) == 9
    asked = NnunetAugmentation(in_channels=1, dummy_2d=True, **ALWAYS).draw(_rng(0), patch_size=(20, 20, 20))
    assert np.array_equal(asked["matrix"][0], [1, 0, 0])


def test_only_samples_with_rotation_or_scaling_read_more_than_the_patch() -> None:
    for params in _draws(NnunetAugmentation(in_channels=1), 200, (40, 56, 40)):
        assert ("matrix" in params) or params["read_size"] == (40, 56, 40)
        assert all(read >= patch for read, patch in zip(params["read_size"], (40, 56, 40)))


def test_one_setting_does_not_change_the_draws_of_others() -> None:
    plain = _draws(NnunetAugmentation(in_channels=2), 40)
    changed = _draws(NnunetAugmentation(in_channels=2, noise_p=0.0, gamma_range=(0.9, 1.1), rotation_p=0.0), 40)
    for before, after in zip(plain, changed):
        for key in ("mirror", "blur", "brightness", "contrast", "low_resolution"):
            assert before.get(key) == after.get(key)
        assert "noise" not in after


def test_draws_are_reproducible_and_can_be_pickled() -> None:
    augmentation = NnunetAugmentation(in_channels=3, **ALWAYS)
    first, again = (augmentation.draw(_rng(9), patch_size=(8, 8, 8)) for _ in range(2))
    restored = pickle.loads(pickle.dumps(first))
    for other in (again, restored):
        assert np.array_equal(first["matrix"], other["matrix"])
        assert {**first, "matrix": None} == {**other, "matrix": None}


def test_identity_parameters_are_the_centre_crop() -> None:
    augmentation = NnunetAugmentation(in_channels=2, **NEVER)
    assert _draws(augmentation, 3) == [{"read_size": (8, 10, 12)}] * 3
    batch = _batch([{"read_size": (10, 12, 14)}])
    result = augmentation.apply(batch, patch_size=(8, 10, 12), label_pad=0)
    assert torch.equal(result["image"][0], batch["image"][0][:, 1:-1, 1:-1, 1:-1])
    assert torch.equal(result["label"][0], batch["label"][0][1:-1, 1:-1, 1:-1])


def test_transforms_run_in_the_order_of_nnunet() -> None:
    augmentation = NnunetAugmentation(in_channels=1, low_resolution_scale=(0.5, 0.6), **{**STILL, "mirror_p": 0.0})
    (params,) = _draws(augmentation, 1)
    batch = _batch([params], channels=1)
    result = augmentation.apply(batch, patch_size=(8, 10, 12), label_pad=0)["image"]
    expected = batch["image"][0][None].clone()  # [1, 1, D, H, W]
    intensity.add_noise(expected, [params])
    steps = (
        ("blur", intensity.blur),
        ("brightness", intensity.brightness),
        ("contrast", intensity.contrast),
        ("low_resolution", intensity.low_resolution),
        ("gamma_inverted", intensity.gamma_inverted),
        ("gamma", intensity.gamma),
    )
    for key, transform in steps:
        before = expected.clone()
        transform(expected[0], np.array(params[key]))
        assert not torch.allclose(before, expected, atol=1e-3), key
    assert torch.equal(result, expected)


def test_masked_channels_stay_zero_where_they_were() -> None:
    augmentation = NnunetAugmentation(
        in_channels=2, masked_channels=(1,), **{**ALWAYS, "rotation_p": 0.0, "scaling_p": 0.0}
    )
    batch = _batch(_draws(augmentation, 2))
    for image in batch["image"]:
        image[:, :3] = 0.0
    after = augmentation.apply(batch, patch_size=(8, 10, 12), label_pad=0)["image"].flip(2, 3, 4)  # undo the mirroring
    assert (after[:, 1, :3] == 0).all()
    assert (after[:, 1, 3:] != 0).all()
    assert (after[:, 0, :3] != 0).all()


def test_label_padding_is_used_outside_the_read() -> None:
    for augmentation in (NoAugmentation(), NnunetAugmentation(in_channels=1, **NEVER)):
        batch = {"image": [torch.ones(1, 2, 2)], "label": [torch.ones(2, 2, dtype=torch.int16)], "params": [{}]}
        result = augmentation.apply(batch, patch_size=(4, 2), label_pad=7)
        assert result["label"][0].tolist() == [[7, 7], [1, 1], [1, 1], [7, 7]]
        assert result["image"][0, 0].tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]
        assert result["label"].dtype == torch.int16


def test_none_stacks_the_reads() -> None:
    augmentation = NoAugmentation()
    params = [augmentation.draw(_rng(i), patch_size=(4, 5, 6)) for i in range(3)]
    assert params == [{"read_size": (4, 5, 6)}] * 3
    batch = _batch(params)
    result = augmentation.apply(batch, patch_size=(4, 5, 6), label_pad=0)
    assert torch.equal(result["image"], torch.stack(batch["image"]))
    assert torch.equal(result["label"], torch.stack(batch["label"]))


def test_light_is_milder_than_nnunet() -> None:
    light, nnunet = LightAugmentation(in_channels=1), NnunetAugmentation(in_channels=1)
    for field in dataclasses.fields(RandomPipeline):
        mild, full = getattr(light, field.name), getattr(nnunet, field.name)
        if field.name.endswith("_p"):
            assert mild <= full
        elif isinstance(mild, tuple) and len(mild) == 2:
            assert full[0] <= mild[0] <= mild[1] <= full[1]
    assert light.rotation_degrees == 15.0
    mild = {"read_size", "matrix", "mirror", "noise", "brightness", "contrast", "gamma"}
    assert set().union(*_draws(light, 300)) == mild


def test_registered_with_documented_parameters() -> None:
    assert {"nnunet", "light", "none"} <= set(names("augment"))
    for name in ("nnunet", "light"):
        component = get("augment", name)
        assert "in_channels" not in component.params
        assert all(param.doc for param in component.params.values())
    built = build("augment", {"name": "nnunet", "noise_p": 0.5}, in_channels=3, masked_channels=(0,), spacing=None)
    assert built == NnunetAugmentation(in_channels=3, masked_channels=(0,), noise_p=0.5)
    assert isinstance(build("augment", {"name": "none"}, in_channels=3), NoAugmentation)


def test_impossible_settings_are_errors() -> None:
    with pytest.raises(UsageError, match=r"augment\.gamma_range is empty: 1\.5 is larger than 0\.7") as caught:
        NnunetAugmentation(in_channels=1, gamma_range=(1.5, 0.7))
    assert caught.value.hint == "type the smaller value first: augment.gamma_range=[0.7,1.5]"
    planar = NnunetAugmentation(in_channels=1, mirror_axes=(0, 2))
    with pytest.raises(UsageError, match="names an axis that a 2-D patch does not have"):
        planar.draw(_rng(0), patch_size=(8, 8))
    assert planar.draw(_rng(0), patch_size=(8, 8, 8)).get("mirror", (0,)) in ((0,), (2,), (0, 2))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("patch_size", [(9, 11, 10), (4, 16, 18), (17, 21)])
def test_cuda_agrees_with_the_cpu_and_never_waits(patch_size: tuple[int, ...]) -> None:
    augmentation = NnunetAugmentation(
        in_channels=2,
        masked_channels=(1,),
        rotation_p=0.5,
        scaling_p=0.5,
        noise_p=0.5,
        blur_p=0.5,
        low_resolution_p=0.5,
    )
    batch = _batch(_draws(augmentation, 12, patch_size))
    on_cpu = augmentation.apply(batch, patch_size=patch_size, label_pad=0)
    moved = {**batch, "image": [t.cuda() for t in batch["image"]], "label": [t.cuda() for t in batch["label"]]}
    augmentation.apply(moved, patch_size=patch_size, label_pad=0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_cuda = augmentation.apply(moved, patch_size=patch_size, label_pad=0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(on_cuda["image"].cpu(), on_cpu["image"], atol=1e-4, rtol=1e-4)
    assert (on_cuda["label"].cpu() != on_cpu["label"]).float().mean() < 1e-3
