"""Large arrays of .npz files are unpacked once and mapped."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from medtrain.data import arrays
from medtrain.data.arrays import array_header, load_array, unpack_large
from medtrain.data.clean import list_entries
from medtrain.data.image_sets import read_medmnist, read_sample_image
from medtrain.data.sample import ArrayItem
from medtrain.errors import DataError
from tests.data.sources.medmnist_files import write_medmnist


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "LARGE_BYTES", 10_000)


def test_only_large_arrays_are_unpacked(tmp_path: Path) -> None:
    path, store = write_medmnist(tmp_path / "a.npz"), tmp_path / "store"
    assert array_header(path, "train_images") == ((24, 28, 28), np.dtype(np.uint8))
    found = unpack_large(path, "train_images", store)  # 18816 bytes
    assert found is not None
    assert unpack_large(path, "val_images", store) is None  # 6272 bytes
    array = load_array(path, "train_images", found)
    assert isinstance(array, np.memmap)
    with np.load(path) as file:
        np.testing.assert_array_equal(array, file["train_images"])
    before = found.stat().st_ino
    assert unpack_large(path, "train_images", store) == found
    assert found.stat().st_ino == before  # not again
    os.utime(path, (1, 1))
    assert unpack_large(path, "train_images", store) != found  # the file may be another one


def test_a_set_reads_its_images_from_the_unpacked_array(tmp_path: Path) -> None:
    path, store = write_medmnist(tmp_path / "a.npz", colours=True), tmp_path / "store"
    plain, mapped = read_medmnist(path), read_medmnist(path, store=store)
    assert plain == mapped  # it is no other set
    ref = pickle.loads(pickle.dumps(mapped.samples[-1].images[0]))
    assert isinstance(ref, ArrayItem)
    assert ref.unpacked is not None
    np.testing.assert_array_equal(read_sample_image(ref).array, read_sample_image(plain.samples[-1].images[0]).array)  # type: ignore[arg-type]
    entries = list_entries(store)
    assert {entry.source for entry in entries} == {str(path)}
    assert all(entry.size > 10_000 for entry in entries)


def test_damage_is_told(tmp_path: Path) -> None:
    path = write_medmnist(tmp_path / "a.npz")
    with pytest.raises(DataError, match="has no array x"):
        unpack_large(path, "x", tmp_path)
    with pytest.raises(DataError, match="no such file"):
        array_header(tmp_path / "b.npz", "x")
    data = bytearray(path.read_bytes())
    at = data.index(b"train_images.npy") + 400
    data[at : at + 50] = bytes(50)
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        unpack_large(path, "train_images", tmp_path / "store")
    assert not list((tmp_path / "store" / "arrays").glob("*"))
    path.write_bytes(b"no zip")
    with pytest.raises(DataError, match="damaged"):
        array_header(path, "train_images")
