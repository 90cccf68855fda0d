import errno
import os
import pickle
import threading
from pathlib import Path

import blosc2
import numpy as np
import pytest

from medtrain.data.case import Case
from medtrain.data.geometry import CaseGeometry
from medtrain.data.preprocess import ChannelStats
from medtrain.data.store import (
    PreparedCase,
    Store,
    _read_whole,
    chunk_shapes,
    compress,
    hints_intact,
    write_case,
    write_hints,
)
from medtrain.errors import MedtrainError
from tests.data.small_data import grid_of

SHAPE = (20, 24, 22)


def write(
    folder: Path,
    rng: np.random.Generator,
    *,
    dtype: type = np.int16,
    body: bool = False,
    foreground: dict[int, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True)
    image = (rng.normal(size=(2, *SHAPE)) * 100).astype(dtype)
    label = rng.integers(0, 3, SHAPE, dtype=np.uint8)
    geometry = CaseGeometry.between(grid_of(SHAPE, (1, 1, 1)), ((0, 20), (0, 24), (0, 22)), (1, 1, 1))
    write_case(
        folder,
        source=Path("/scans"),
        image=image,
        label=label,
        body=label > 0 if body else None,
        source_label=label,
        geometry=geometry,
        stats=(ChannelStats(1.5, 2.5), ChannelStats(-1.0, 3.0)),
        foreground=foreground or {},
        patch_size=(8, 8, 8),
    )
    return image, label


CASE = Case("a", (), None, "a")


def test_what_is_written_is_read(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = {1: np.array([[1, 2, 3], [4, 5, 6]], dtype=np.int32), 2: np.array([[7, 8, 9]], dtype=np.int32)}
    image, label = write(tmp_path / "a", rng, foreground=rows)
    case = PreparedCase(tmp_path / "a", CASE)
    assert (case.case_id, case.shape, case.num_channels, case.spacing) == ("a", SHAPE, 2, (1.0, 1.0, 1.0))
    assert case.stats == (ChannelStats(1.5, 2.5), ChannelStats(-1.0, 3.0))
    np.testing.assert_array_equal(case.read_image(), image)
    assert case.read_image().dtype == np.int16
    region = (slice(3, 20), slice(0, 9), slice(21, 22))
    np.testing.assert_array_equal(case.read_image(region), image[(slice(None), *region)])
    np.testing.assert_array_equal(case.read_label(region), label[region])
    np.testing.assert_array_equal(case.source_label(), label)
    assert case.read_body() is None
    assert case.class_ids == (1, 2)
    np.testing.assert_array_equal(case.foreground(1), rows[1])
    np.testing.assert_array_equal(case.foreground(2), rows[2])
    assert case.foreground(3).shape == (0, 3)
    assert case.foreground(1).dtype == np.int32
    assert not (tmp_path / "a" / "source_label.b2nd").exists()  # the label itself serves


def test_body_and_floats(tmp_path: Path, rng: np.random.Generator) -> None:
    image, label = write(tmp_path / "a", rng, dtype=np.float32, body=True)
    case = PreparedCase(tmp_path / "a", CASE)
    np.testing.assert_array_equal(case.read_image(), image)
    body = case.read_body((slice(0, 5), slice(0, 5), slice(0, 5)))
    assert body is not None
    np.testing.assert_array_equal(body, label[:5, :5, :5] > 0)
    assert body.dtype == bool


@pytest.mark.parametrize("name", ["image.b2nd", "label.b2nd", "foreground.npy", "case.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "changed"])
def test_damage_is_found_on_opening(tmp_path: Path, rng: np.random.Generator, name: str, damage: str) -> None:
    rows = {1: np.array([[1, 2, 3]], dtype=np.int32)}
    write(tmp_path / "a", rng, foreground=rows)
    path = tmp_path / "a" / name
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(path, ns=(0, 12345))
    with pytest.raises(MedtrainError, match=r"the prepared case a in .* is missing or damaged") as error:
        PreparedCase(tmp_path / "a", CASE)
    assert error.value.hint == "start the command again; damaged cases are prepared anew"


@pytest.mark.parametrize("damage", ["cut", "gone", "changed", "record cut", "record gone"])
def test_damaged_hints_are_found(tmp_path: Path, rng: np.random.Generator, damage: str) -> None:
    write(tmp_path / "a", rng)
    hints = rng.integers(0, 3, (6, 7, 8)).astype(np.uint8)
    assert not hints_intact(tmp_path / "a", "x")
    write_hints(tmp_path / "a", "x", hints, (4, 4, 4))
    assert hints_intact(tmp_path / "a", "x")
    assert not hints_intact(tmp_path / "a", "y")
    path = tmp_path / "a" / ("hints_x.json" if damage.startswith("record") else "hints_x.b2nd")
    content = path.read_bytes()
    os.utime(path, ns=(0, 12345))
    assert hints_intact(tmp_path / "a", "x")  # a copy of the store
    if damage.endswith("cut"):
        path.write_bytes(content[: len(content) // 2])
    elif damage.endswith("gone"):
        path.unlink()
    else:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(path, ns=(0, 12345))
    assert not hints_intact(tmp_path / "a", "x")
    write_hints(tmp_path / "a", "x", hints, (4, 4, 4))
    assert hints_intact(tmp_path / "a", "x")
    np.testing.assert_array_equal(PreparedCase(tmp_path / "a", CASE).read_hints("x"), hints)


def test_a_copied_store_is_accepted(tmp_path: Path, rng: np.random.Generator) -> None:
    image, _ = write(tmp_path / "a", rng)
    for path in (tmp_path / "a").iterdir():
        os.utime(path, ns=(0, 12345))  # other times, same content
    np.testing.assert_array_equal(PreparedCase(tmp_path / "a", CASE).read_image(), image)


def test_a_view_opens_lazily_and_travels_without_its_files(tmp_path: Path, rng: np.random.Generator) -> None:
    image, _ = write(tmp_path / "cases" / "k1", rng)
    store = Store(tmp_path, {"a": "k1", "b": "k2"}, {"a": CASE, "b": Case("b", (), None, "b")})
    assert store.case_ids == ("a", "b")
    assert store.case("a") is store.case("a")
    with pytest.raises(MedtrainError, match="the prepared case b"):
        store.case("b")
    sent = pickle.dumps(store)
    assert len(sent) < 1000
    copy = pickle.loads(sent)
    np.testing.assert_array_equal(copy.case("a").read_image(), image)
    assert copy.data_hash == store.data_hash
    assert Store(tmp_path, {"a": "k3", "b": "k2"}, store.cases).data_hash != store.data_hash


def test_few_cases_are_kept_open(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medtrain.data.store._OPEN_CASES", 2)
    for name in "abc":
        write(tmp_path / "cases" / name, rng)
    store = Store(tmp_path, {n: n for n in "abc"}, {n: Case(n, (), None, n) for n in "abc"})
    first = store.case("a")
    store.case("b")
    assert store.case("a") is first
    store.case("c")
    assert store.case("a") is first  # b was used longest ago
    assert len(store._open) == 2


def test_threads_may_share_a_case(tmp_path: Path, rng: np.random.Generator) -> None:
    image, label = write(tmp_path / "a", rng)
    case = PreparedCase(tmp_path / "a", CASE)
    wrong: list[int] = []

    def read(seed: int) -> None:
        own = np.random.default_rng(seed)
        for _ in range(40):
            region = tuple(slice(int(a), int(a) + 9) for a in own.integers(0, 10, 3))
            if not np.array_equal(case.read_image(region), image[(slice(None), *region)]):
                wrong.append(seed)
            if not np.array_equal(case.read_label(region), label[region]):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_chunks_of_a_large_case() -> None:
    # nnU-Net 2.8.1, comp_blosc2_params((1, 300, 400, 400), (128, 128, 128), 4), has blocks of 32^3 voxels
    assert chunk_shapes((300, 400, 400), (128, 128, 128), 4) == ((32, 16, 16), (96, 128, 128))
    assert chunk_shapes((150, 320, 320), (64, 128, 128), 2) == ((16, 32, 32), (80, 192, 192))


def test_a_small_case_is_one_block_and_read_as_one(tmp_path: Path, rng: np.random.Generator) -> None:
    assert chunk_shapes((36, 50, 35), (40, 56, 40), 4) == ((36, 50, 35), (36, 50, 35))
    array = rng.normal(size=(3, 7, 6, 5)).astype(np.float32)
    (tmp_path / "image.b2nd").write_bytes(compress(array, (4, 4, 4)))
    opened = blosc2.open(str(tmp_path / "image.b2nd"), mode="r")
    assert opened.schunk.nchunks == 3
    np.testing.assert_array_equal(_read_whole(opened), array)
    np.testing.assert_array_equal(opened[:], array)


@pytest.mark.parametrize(
    ("shape", "patch", "itemsize"),
    [
        ((36, 50, 35), (40, 56, 40), 2),
        ((1, 512, 512), (256, 256), 2),
        ((300, 512, 512), (512, 512), 2),
        ((900, 512, 512), (64, 192, 160), 4),
        ((5, 3, 2), (128, 128, 128), 1),
    ],
)
def test_chunks_stay_within_bounds(shape: tuple[int, ...], patch: tuple[int, ...], itemsize: int) -> None:
    block, chunk = chunk_shapes(shape, patch, itemsize)
    assert np.prod(block) * itemsize <= 32 * 1024 or (block == shape and np.prod(shape) * itemsize <= 512 * 1024)
    assert np.prod(chunk) * itemsize <= 6 * 2**20
    assert all(1 <= b <= c <= n for b, c, n in zip(block, chunk, shape))
    if len(patch) == 2:
        assert chunk[0] == 1  # a slice is read without its neighbours


def test_a_patch_touches_only_its_own_chunks(tmp_path: Path, rng: np.random.Generator) -> None:
    array = rng.integers(-1000, 1000, (1, 96, 96, 96), dtype=np.int16)
    frame = bytearray(compress(array, (16, 16, 16)))
    frame[len(frame) // 2 : len(frame) * 3 // 4] = bytes(len(frame) * 3 // 4 - len(frame) // 2)
    path = tmp_path / "image.b2nd"
    path.write_bytes(frame)
    opened = blosc2.open(str(path), mode="r")
    np.testing.assert_array_equal(opened[:, 2:18, 2:18, 2:18], array[:, 2:18, 2:18, 2:18])
    with pytest.raises((RuntimeError, AssertionError)):  # what lies further on is spoilt
        np.testing.assert_array_equal(opened[:], array)


def test_a_full_disk_is_an_os_error(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "a", rng)
