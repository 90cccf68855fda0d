"""A phantom with cases that are wrong on purpose: each must be found, and nothing else."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from medtrain.cli.app import app
from medtrain.data.inspect_files import INSPECTED
from medtrain.data.inspect_measure import GRID, CaseMeasure, ClassMeasure, measure_case
from medtrain.data.inspect_outliers import THRESHOLD, Findings, Flag, compare, find_outliers, robust
from medtrain.data.inspect_outliers import Numbers as OutlierNumbers
from medtrain.data.inspect_volumes import Inspection, inspect_volumes
from medtrain.data.io.nifti import SourceGrid, Volume
from medtrain.data.phantom import PhantomData
from tests.data.small_data import grid_of

Edit = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
CASES = 24


def volume(array: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Volume:
    grid: SourceGrid = grid_of(array.shape[1:], spacing)
    return Volume(array, spacing, grid)


def test_a_case_is_measured() -> None:
    image = np.zeros((1, 10, 20, 40), np.int16)
    label = np.zeros((10, 20, 40), np.uint8)
    label[0:2, 5:9, 10:14] = 1  # 2 x 4 x 4 = 32 voxels, at the inferior end
    label[5, 5, 5] = 1  # and one apart
    label[4:6, 10:20, 30:40] = 2
    label[9, 0, 0] = 3  # not a class: ignored
    image[0][label == 1] = 100
    image[0][label == 2] = np.arange(200) % 2 * 20
    case = measure_case("a", volume(image, (2.0, 1.0, 0.5)), label, 3)
    one, two = case.classes[1], case.classes[2]
    assert (one.voxels, one.components, one.borders) == (33, 2, ("inferior",))
    assert one.volume_ml == pytest.approx(33 / 1000)
    assert one.largest == pytest.approx(32 / 33)
    # D: 32 voxels at mean 1.0 and one at 5.5, of 10; H: 7.0 and 5.5, of 20; W: 12.0 and 5.5, of 40
    means = ((32 * 1.0 + 5.5) / 330, (32 * 7.0 + 5.5) / 660, (32 * 12.0 + 5.5) / 1320)
    assert one.centre == pytest.approx(means)
    assert two.borders == ("anterior", "right")
    assert two.centre == pytest.approx((0.5, 0.75, 0.875))
    # uniform over n voxels: sqrt(n^2 / 12) of them
    assert two.reach == pytest.approx((2.0 * 2 / math.sqrt(12), 10 / math.sqrt(12), 0.5 * 10 / math.sqrt(12)))
    low, _, high = case.percentiles[0]
    assert low == 0
    assert two.level == pytest.approx(10 / high)
    assert two.variation == pytest.approx(10 / high)
    assert one.contrast == pytest.approx(100 / high)  # nothing but 0 around
    assert case.ignored == 1
    assert case.extent == (20, 20, 20)
    assert case.thumbnail.shape == (GRID,) * 3
    assert case.occupancy.shape == (2, GRID, GRID, GRID)


def test_thumbnails_are_means_of_cells() -> None:
    image = np.arange(32**3, dtype=np.float32).reshape(1, 32, 32, 32)
    case = measure_case("a", volume(image), np.zeros((32, 32, 32), np.uint8), 2)
    low, _, high = case.percentiles[0]
    cells = np.clip(image[0], low, high).reshape(16, 2, 16, 2, 16, 2).mean(axis=(1, 3, 5))
    assert case.thumbnail == pytest.approx((cells - cells.mean()) / cells.std(), abs=1e-4)


def test_a_class_that_fills_the_scan_has_no_contrast() -> None:
    label = np.ones((4, 4, 4), np.uint8)
    case = measure_case("a", volume(np.ones((1, 4, 4, 4), np.int16)), label, 2)
    assert math.isnan(case.classes[1].contrast)
    assert len(case.classes[1].borders) == 6
    assert np.isfinite(case.thumbnail).all()


def test_equal_images_have_equal_digests() -> None:
    image = np.arange(27, dtype=np.int16).reshape(1, 3, 3, 3)
    label = np.zeros((3, 3, 3), np.uint8)
    first = measure_case("a", volume(image), label, 2).digest
    assert measure_case("b", volume(image.copy()), label + 1, 2).digest == first
    image[0, 0, 0, 0] = 99
    assert measure_case("a", volume(image), label, 2).digest != first


def test_robust_scores() -> None:
    # median 3, deviations 2 1 0 1 97: their median is 1
    middle, scores = robust(np.array([1.0, 2, 3, 4, 100, math.nan]), 0.1)
    assert middle == 3
    assert scores[4] == pytest.approx(97 / 1.4826)
    assert math.isnan(scores[5])
    _, scores = robust(np.array([5.0, 5, 5, 5, 6]), 0.5)
    assert scores.tolist() == [0, 0, 0, 0, 2]


def test_ratios_are_compared_by_their_logarithm() -> None:
    values = np.array([[1.0], [1.0], [1.0], [1.0], [2.0]])
    ((index, flag),) = compare(OutlierNumbers("k", "{} mm", values, 0.1, logarithmic=True))
    assert (index, flag.message) == (4, "2 mm, usually 1")
    assert flag.severity == pytest.approx(math.log(2) / 0.1)
    assert list(compare(OutlierNumbers("k", "{}", values, 0.2, logarithmic=True))) == []


def test_suspicion_is_the_worst_and_a_little_of_the_rest() -> None:
    flags = (Flag("a", "", 10.0), Flag("b", "", 6.0), Flag("c", "", 4.0))
    assert Findings(flags, unusual=3.0).suspicion == pytest.approx(10 + 0.15 * 10)
    assert Findings((), unusual=1.2).suspicion == 1.2
    assert Findings((), unusual=-1.2).suspicion == 0


def plain_case(case_id: str, **changes: object) -> CaseMeasure:
    """A case of one class in the middle; no two have the same image."""
    measure = ClassMeasure(100, 10.0, (0.5, 0.4, 0.3), (5.0, 5.0, 5.0), 1, 1.0, (), 0.5, 0.1, 0.3)
    values: dict[str, object] = {
        "shape": (32, 32, 32),
        "spacing": (1.0, 1.0, 1.0),
        "orientation": "RAS",
        "percentiles": ((0.0, 50.0, 100.0),),
        "classes": {1: measure},
        "ignored": 0,
        "digest": case_id,
        "thumbnail": np.linspace(-1, 1, GRID**3).reshape((GRID,) * 3),
        "occupancy": np.linspace(0, 1, GRID**3).reshape((1, GRID, GRID, GRID)),
    }
    return CaseMeasure(case_id=case_id, **{**values, **changes})  # type: ignore[arg-type]


def kinds(cases: list[CaseMeasure], *, complete: bool = True) -> dict[str, list[str]]:
    names = ["background", "organ"]
    found = find_outliers(cases, names, complete=complete)
    return {case_id: [flag.kind for flag in findings.flags] for case_id, findings in found.items() if findings.flags}


def many(*others: CaseMeasure) -> list[CaseMeasure]:
    return [*(plain_case(f"case_{index}") for index in range(10)), *others]


def test_equal_cases_have_no_flags() -> None:
    assert kinds(many()) == {}


def test_labels_that_are_missing() -> None:
    assert kinds(many(plain_case("odd", classes={}))) == {"odd": ["empty"]}
    assert kinds([plain_case("a"), plain_case("b", classes={})]) == {"b": ["empty"]}  # needs no others


def test_a_class_that_is_missing_counts_where_all_were_annotated() -> None:
    other = {2: plain_case("x").classes[1]}
    names = ["background", "organ", "tumour"]
    cases = many(plain_case("odd", classes=other))
    assert [flag.kind for flag in find_outliers(cases, names)["odd"].flags] == ["missing"]
    assert find_outliers(cases, names, complete=False)["odd"].flags == ()


def test_the_same_image_twice() -> None:
    assert kinds(many(plain_case("odd", digest="case_3"))) == {"case_3": ["duplicate"], "odd": ["duplicate"]}


def test_a_border_where_few_are() -> None:
    touching = {1: ClassMeasure(100, 10.0, (0.5, 0.4, 0.3), (5.0, 5.0, 5.0), 1, 1.0, ("left",), 0.5, 0.1, 0.3)}
    assert kinds(many(plain_case("odd", classes=touching))) == {"odd": ["border"]}
    usual = [plain_case(f"t{index}", classes=touching) for index in range(5)]
    assert kinds(many(*usual)) == {}


LEFT = "mirrored along W (left-right)"
UP = "mirrored along D (inferior-superior)"


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        (lambda cells: cells[..., ::-1], LEFT),
        (lambda cells: cells[..., ::-1, :, ::-1], f"{UP} and W (left-right)"),
        (lambda cells: np.swapaxes(cells, -1, -3), "turned (its axes W, H, D are where D, H, W should be)"),
    ],
)
@pytest.mark.parametrize("part", ["thumbnail", "occupancy"])
def test_a_scan_or_label_that_is_mirrored_or_turned(
    part: str, turn: Callable[[np.ndarray], np.ndarray], said: str
) -> None:
    rng = np.random.default_rng(0)
    typical = np.exp(-np.square(np.linspace(-2, 2, GRID)[:, None, None] - 1))
    typical = typical * np.linspace(0, 1, GRID)[:, None] ** 2 * np.linspace(1, 0, GRID) ** 3
    shape = (GRID,) * 3 if part == "thumbnail" else (1, GRID, GRID, GRID)
    cases = [
        plain_case(f"case_{index}", **{part: typical.reshape(shape) + rng.normal(0, 0.05, shape)}) for index in range(8)
    ]
    cases.append(plain_case("odd", **{part: turn(typical.reshape(shape)) + rng.normal(0, 0.05, shape)}))
    found = find_outliers(cases, ["background", "organ"])
    what = "scan" if part == "thumbnail" else "label"
    assert [flag.message for flag in found["odd"].flags] == [f"the {what} looks {said} against the other cases"]
    assert not any(findings.flags for case_id, findings in found.items() if case_id != "odd")


def test_few_cases_are_not_compared() -> None:
    assert kinds([plain_case("a"), plain_case("b", spacing=(9.0, 9.0, 9.0))]) == {}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clean") / "phantom"
    PhantomData(root=str(root), num_cases=CASES, num_test_cases=0).discover()
    return root


def edit(root: Path, index: int | str, change: Edit, *, image: bool = False) -> str:
    name = f"phantom_{index:03d}" if isinstance(index, int) else index
    for part in ("imagesTr", "labelsTr") if image else ("labelsTr",):
        path = root / part / f"{name}.nii.gz"
        file = nib.load(path)
        array, affine = change(np.asarray(file.dataobj).copy(), file.affine.copy())
        path.unlink()  # it is a link to the clean one
        nib.save(nib.Nifti1Image(array.astype(file.get_data_dtype()), affine), path)
    return name


def exchange(label: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.where(label == 1, 2, np.where(label == 2, 1, 0)), affine


def stretch(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    affine[:3, 2] *= 2.5
    return array, affine


@pytest.fixture(scope="module")
def spoiled(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The phantom with five cases made wrong, and what is wrong with them."""
    root = tmp_path_factory.mktemp("spoiled")
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir()
        for path in (clean / part).iterdir():
            (root / part / path.name).symlink_to(path)
    (root / "dataset.json").write_text((clean / "dataset.json").read_text())
    wrong = {
        edit(root, 3, exchange): "exchanged",
        edit(root, 7, lambda label, affine: (label[::-1], affine)): "mirrored",
        edit(root, 9, stretch, image=True): "spacing",
        edit(root, 12, lambda label, affine: (np.roll(label, 12, axis=2), affine)): "shifted up",
        edit(root, 16, lambda label, affine: (np.roll(label, 7, axis=0), affine)): "shifted sideways",
    }
    return root, wrong


def shortened(affine: np.ndarray, axis: int, factor: float) -> np.ndarray:
    affine[:3, axis] *= factor
    return affine


def inspect(root: Path, out: Path) -> Inspection:
    from medtrain.data.msd import MsdData

    settings = MsdData(root=str(root))
    return inspect_volumes(settings, settings.discover(), out)


def test_a_clean_phantom_has_hardly_any_flags(clean: Path, tmp_path: Path) -> None:
    report = inspect(clean, tmp_path)
    assert sum(bool(case.flags) for case in report.cases) <= 1
    assert max(case.suspicion for case in report.cases) < THRESHOLD + 1.5
    assert report.problems == ()
    assert report.compared


def test_what_is_wrong_comes_first(spoiled: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    root, wrong = spoiled
    report = inspect(root, tmp_path)
    first = report.cases[: len(wrong)]
    assert {case.case_id for case in first} == set(wrong)
    flagged = {wrong[case.case_id] for case in report.cases if case.flags}
    assert flagged >= {"exchanged", "mirrored", "spacing", "shifted up"}
    said = {wrong[case.case_id]: " / ".join(flag.message for flag in case.flags) for case in first}
    assert said["exchanged"].startswith("liver and cancer look exchanged")
    assert said["mirrored"].startswith("the label looks mirrored along W (left-right)")
    assert "from inferior to superior" in said["spacing"]
    assert "liver lies" in said["shifted up"]


def test_what_is_written(spoiled: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    root, wrong = spoiled
    (tmp_path / INSPECTED).write_text("{}")
    (tmp_path / "sheet_09.png").write_bytes(b"of an earlier call")
    report = inspect(root, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir() if path.name != INSPECTED)
    assert names == ["cases.csv", "fingerprint.json", "outliers.csv", "sheet_01.png", "sheet_02.png"]
    assert sorted(path.name for path in report.files) == names
    with (tmp_path / "cases.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case_id"] for row in rows] == [f"phantom_{index:03d}" for index in range(CASES)]
    label = np.asarray(nib.load(root / "labelsTr" / "phantom_000.nii.gz").dataobj)
    assert int(rows[0]["liver_voxels"]) == (label == 1).sum()
    measure = next(case.measure for case in report.cases if case.case_id == "phantom_000")
    assert measure is not None
    assert float(rows[0]["cancer_ml"]) == pytest.approx(measure.classes[2].volume_ml, rel=1e-5)
    assert rows[0]["orientation"] in ("RAS", "LPS", "LAS")
    with (tmp_path / "outliers.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert {row["case_id"] for row in found} == {case.case_id for case in report.cases if case.flags}
    assert found[0]["case_id"] in wrong
    assert float(found[0]["suspicion"]) == max(float(row["suspicion"]) for row in found)
    fingerprint = json.loads((tmp_path / "fingerprint.json").read_text())
    assert len(fingerprint["cases"]) == len(fingerprint["spacings"]) == CASES
    with Image.open(tmp_path / "sheet_01.png") as sheet:
        # 3 tiles of 4 panels of 150 pixels with gaps of 2 between, and margins of 8
        assert sheet.width == 3 * (4 * 150 + 3 * 2) + 4 * 8


def test_files_that_cannot_be_read_come_first(spoiled: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    root, _ = spoiled
    path = root / "labelsTr" / "phantom_001.nii.gz"
    target = path.resolve()
    path.unlink()
    path.write_bytes(b"no NIfTI")
    try:
        words = ["data", "inspect", "data=msd", f"data.root={root}", "--out", str(tmp_path / "out")]
        result = CliRunner().invoke(app, words)
    finally:
        path.unlink()
        path.symlink_to(target)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[2].startswith("phantom_001")
    assert "1 problem:" in result.stdout
    assert f" of {CASES} cases are unlike the others or cannot be used" in result.stdout


def test_the_command_writes_where_it_says(clean: Path, in_tmp: Path) -> None:
    result = CliRunner().invoke(app, ["data", "inspect", "data=msd", f"data.root={clean}"])
    assert result.exit_code == 0, result.stderr
    assert (in_tmp / "outputs/inspect/Phantom/sheet_01.png").is_file()
    assert "outputs/inspect/Phantom:" in result.stdout
    assert "fingerprint.json, cases.csv, outliers.csv, sheet_01.png to sheet_02.png" in result.stdout


def _small(root: Path) -> Path:
    """Five cases of a few voxels, as the Decathlon keeps them."""
    rng = np.random.default_rng(0)
    names = [f"case_{index}.nii.gz" for index in range(5)]
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
    for name in names:
        image = rng.integers(0, 200, (12, 12, 12)).astype(np.int16)
        nib.save(nib.Nifti1Image(image, np.eye(4)), root / "imagesTr" / name)
        nib.save(nib.Nifti1Image((image > 150).astype(np.uint8), np.eye(4)), root / "labelsTr" / name)
    pairs = [{"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"} for name in names]
    labels = {"0": "background", "1": "liver"}
    content = {"name": "Small", "modality": {"0": "MRI"}, "labels": labels, "training": pairs}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_every_missing_and_every_unreadable_file_is_told_and_the_others_are_drawn(tmp_path: Path) -> None:
    root = _small(tmp_path / "set")
    (root / "labelsTr" / "case_0.nii.gz").unlink()
    (root / "imagesTr" / "case_2.nii.gz").unlink()
    whole = (root / "imagesTr" / "case_3.nii.gz").read_bytes()
    (root / "imagesTr" / "case_3.nii.gz").write_bytes(whole[: len(whole) // 2])
    words = ["data", "inspect", "data=msd", f"data.root={root}", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert "3 problems:" in result.stdout
    assert "labelsTr/case_0.nii.gz: no such file" in result.stdout.replace("\n", "")
    assert "imagesTr/case_2.nii.gz: no such file" in result.stdout.replace("\n", "")
    assert "case_3.nii.gz: truncated" in result.stdout.replace("\n", "")
    with (tmp_path / "out" / "cases.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["case_id"]: row for row in csv.DictReader(file)}
    assert [case_id for case_id, row in rows.items() if row["orientation"]] == ["case_1", "case_4"]
    assert json.loads((tmp_path / "out" / "fingerprint.json").read_text())["cases"] == ["case_1", "case_4"]


def test_data_sets_of_one_name_are_never_mixed(in_tmp: Path) -> None:
    one, two = _small(in_tmp / "one"), _small(in_tmp / "two")
    (two / "labelsTr" / "case_0.nii.gz").unlink()

    def inspect(root: Path, *words: str) -> Result:
        return CliRunner().invoke(app, ["data", "inspect", "data=msd", f"data.root={root}", *words])

    assert inspect(one).exit_code == 0
    before = (in_tmp / "outputs/inspect/Small/cases.csv").read_bytes()
    for _ in range(2):  # the second call finds its own folder again
        second = inspect(two)
        assert "outputs/inspect/Small is of another data set of this name" in second.output
        assert str(one) in second.output
        folders = sorted(path.name for path in (in_tmp / "outputs/inspect").iterdir())
        assert folders[0] == "Small"
        assert len(folders) == 2
        assert f"outputs/inspect/{folders[1]}:" in second.stdout
    assert (in_tmp / "outputs/inspect/Small/cases.csv").read_bytes() == before
    assert inspect(one).exit_code == 0  # its own folder is written anew

    refused = inspect(two, "--out", "outputs/inspect/Small")
    assert refused.exit_code == 2
    assert "holds the inspection of another data set" in refused.stderr


@pytest.mark.data
def test_mistakes_in_real_data_come_first(hippocampus: Path, tmp_path: Path) -> None:
    root = tmp_path / "hippocampus"
    description = json.loads((hippocampus / "dataset.json").read_text())
    cases = sorted(path.name for path in (hippocampus / "labelsTr").glob("h*.nii.gz"))[:80]
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
        for name in cases:
            (root / part / name).symlink_to(hippocampus / part / name)
    files = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in cases]
    (root / "dataset.json").write_text(json.dumps({**description, "training": files, "test": []}))
    names = [name.removesuffix(".nii.gz") for name in cases]
    wrong = [
        edit(root, names[10], exchange),
        edit(root, names[30], lambda label, affine: (label[:, ::-1], affine)),
        edit(root, names[40], lambda array, affine: (array[:, :, ::-1], affine), image=True),
        edit(root, names[50], lambda label, affine: (np.roll(label, 6, axis=0), affine)),
        edit(root, names[60], lambda array, affine: (array, shortened(affine, 1, 1.6)), image=True),
        edit(root, names[70], lambda label, affine: (np.where(label == 2, 0, label), affine)),
    ]
    report = inspect(root, tmp_path / "out")
    assert {case.case_id for case in report.cases[: len(wrong)]} == set(wrong)
    assert all(case.flags for case in report.cases[: len(wrong)])
    said = {case.case_id: case.flags[0].message for case in report.cases if case.flags}
    assert said[wrong[0]].startswith("Anterior and Posterior look exchanged")
    assert said[wrong[1]].startswith("the label looks mirrored along H")
    assert "looks mirrored along D" in said[wrong[2]]
    assert said[wrong[5]].startswith("no Posterior")
