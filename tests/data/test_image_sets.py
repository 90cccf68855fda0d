from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from medtrain.data.image_sets import read_image_folder, read_medmnist, read_sample_image
from medtrain.data.sample import ArrayItem, Target
from medtrain.errors import DataError, UsageError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def messages(error: pytest.ExceptionInfo[DataError]) -> list[str]:
    return [problem.message for problem in error.value.problems]


def test_a_folder_per_class(tmp_path: Path) -> None:
    touch(
        tmp_path, "dog/b.png", "dog/sub/a.JPG", "cat/b.png", "cat/._b.png", "cat/Thumbs.db", ".git/x.png", "notes.txt"
    )
    found = read_image_folder(tmp_path)
    assert found.targets == (Target("class", ("cat", "dog")),)
    assert [(s.sample_id, s.targets, s.group, s.part) for s in found.samples] == [
        ("cat/b", (0,), "cat/b", None),
        ("dog/b", (1,), "dog/b", None),
        ("dog/sub/a", (1,), "dog/sub/a", None),
    ]
    assert found.samples[2].images == (tmp_path / "dog/sub/a.JPG",)


def test_folders_of_parts_and_patients(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/p1_0.png", "train/b/p2_0.png", "valid/a/p1_1.png", "test/b/p3_0.png")
    found = read_image_folder(tmp_path, group_pattern=r"^(p\d+)_")
    assert [(s.sample_id, s.targets, s.group, s.part) for s in found.samples] == [
        ("test/b/p3_0", (1,), "p3", "test"),
        ("train/a/p1_0", (0,), "p1", "train"),
        ("train/b/p2_0", (1,), "p2", "train"),
        ("val/a/p1_1", (0,), "p1", "val"),
    ]


def test_folders_that_are_wrong(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.png", "train/a/1.jpg", "val/c/1.png")
    (tmp_path / "train" / "b").mkdir()
    with pytest.raises(DataError) as error:
        read_image_folder(tmp_path)
    assert messages(error) == [
        "the folder of this class holds no image",
        "train lacks classes that other parts have: c",
        "two files have the name train/a/1 but for their suffix",
    ]
    with pytest.raises(DataError, match="holds 0 class folders"):
        read_image_folder(tmp_path / "train" / "b")
    with pytest.raises(UsageError, match="no such folder"):
        read_image_folder(tmp_path / "nowhere")


def medmnist(path: Path, images: np.ndarray, labels: np.ndarray, **others: np.ndarray) -> Path:
    arrays = {
        f"{part}_{kind}": a for part in ("train", "val", "test") for kind, a in (("images", images), ("labels", labels))
    }
    np.savez_compressed(path, **{**arrays, **others})
    return path


@pytest.mark.parametrize(
    ("shape", "one"), [((4, 5, 6), (1, 5, 6)), ((4, 5, 6, 3), (3, 5, 6)), ((4, 5, 6, 7), (1, 5, 6, 7))]
)
def test_medmnist(tmp_path: Path, rng: np.random.Generator, shape: tuple[int, ...], one: tuple[int, ...]) -> None:
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    path = medmnist(tmp_path / "m.npz", images, np.array([[0], [2], [1], [0]], np.uint8))
    found = read_medmnist(path)
    assert found.targets == (Target("class", ("0", "1", "2")),)
    assert [s.sample_id for s in found.samples if s.part == "val"] == [f"val_00000{i}" for i in range(4)]
    sample = next(s for s in found.samples if s.sample_id == "val_000001")
    assert sample.targets == (2,)
    assert sample.images == (ArrayItem(path, "val_images", 1),)
    image = read_sample_image(sample.images[0])  # type: ignore[arg-type]
    expected = images[1].transpose(2, 0, 1) if shape[-1] == 3 else images[1][None]
    np.testing.assert_array_equal(image.array, expected)
    assert image.array.shape == one
    assert image.max_value == 255
    assert read_sample_image(sample.images[0], channels=3).array.shape == (3, *one[1:])  # type: ignore[arg-type]


def test_medmnist_with_several_labels(tmp_path: Path) -> None:
    labels = np.array([[0, 1], [1, 1]], np.uint8)
    found = read_medmnist(medmnist(tmp_path / "m.npz", np.zeros((2, 4, 4), np.uint8), labels))
    assert [target.target_name for target in found.targets] == ["label_0", "label_1"]
    assert found.samples[0].targets == (0, 1)
    with pytest.raises(DataError, match="has 2 label columns with values up to 2"):
        read_medmnist(medmnist(tmp_path / "n.npz", np.zeros((2, 4, 4), np.uint8), labels * np.uint8(2)))


def test_files_that_are_no_medmnist(tmp_path: Path) -> None:
    images, labels = np.zeros((3, 4, 4), np.uint8), np.zeros((3, 1), np.uint8)
    wrong = {"train_labels": labels[:2], "val_images": images[0], "test_labels": labels.astype(float)}
    with pytest.raises(DataError) as error:
        read_medmnist(medmnist(tmp_path / "a.npz", images, labels, **wrong))
    assert messages(error) == [
        "train has 3 images and 2 labels",
        "val_images is uint8 (4, 4); expected [N, H, W], [N, H, W, 3] or [N, D, H, W]",
        "test_labels is float64 (3, 1); expected whole numbers from 0, [N] or [N, T]",
    ]
    np.savez(tmp_path / "b.npz", x=images)
    with pytest.raises(DataError, match="no train_images and train_labels"):
        read_medmnist(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", train_images=images)
    with pytest.raises(DataError, match="has no array train_labels"):
        read_medmnist(tmp_path / "c.npz")
    whole = (tmp_path / "a.npz").read_bytes()
    for name, data in (("text.npz", b"no zip"), ("cut.npz", whole[: len(whole) // 2]), ("empty.npz", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=r"not an \.npz file, or damaged") as error:
            read_medmnist(tmp_path / name)
        assert len(error.value.problems) == 1
    np.save(tmp_path / "lone.npy", images)
    with pytest.raises(DataError, match=r"not an \.npz file"):
        read_medmnist(tmp_path / "lone.npy")
    with pytest.raises(UsageError, match="no such file"):
        read_medmnist(tmp_path / "d.npz")
    path = medmnist(tmp_path / "e.npz", images, np.array([[0], [1], [2]], np.uint8))
    with pytest.raises(UsageError, match="has 3 classes, but 2 names"):
        read_medmnist(path, class_names=("a", "b"))


def test_a_file_is_read_as_a_sample(tmp_path: Path) -> None:
    Pillow.fromarray(np.full((2, 3), 9, np.uint8)).save(tmp_path / "a.png")
    assert read_sample_image(tmp_path / "a.png", channels=3).array.tolist() == [[[9] * 3] * 2] * 3
