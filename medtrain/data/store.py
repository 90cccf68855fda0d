"""Prepared cases on disk: chunked arrays of which only the blocks that a patch touches are read.

A case is a folder named by the digest of its files and of the settings that shaped it, written beside its place and
renamed into it. `case.json` records every file's size, time and checksum, so that damage is found before training.
The modification time of a case's folder and of a scan is when it was last used; see `medtrain.data.clean`.

    <store>/digests.json            content digests by path, size and time
    <store>/scans/<key>.json        what planning needs of a case
    <store>/cases/<key>/case.json image.b2nd label.b2nd [body.b2nd] [source_label.b2nd] foreground.npy
                        [hints_*.b2nd hints_*.json]     of the first stage of a cascade, and their sizes and checksums
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from medtrain.data.case import Case
from medtrain.data.geometry import CaseGeometry
from medtrain.data.preprocess import ChannelStats
from medtrain.errors import MedtrainError
from medtrain.run.atomic import atomic_write, atomic_write_json

FORMAT = 2
"""Part of every key: raise it when the files' content or meaning changes."""

Region = tuple[slice, ...]

_MAX_BLOCK_BYTES = 32 * 1024
_WHOLE_BYTES = 512 * 1024
_MAX_CHUNK_BYTES = 6 * 2**20
_MAX_CHUNK_TO_PATCH = 1.5
_OPEN_CASES = 256
_DESCRIPTION = "case.json"
_MARK_EVERY_S = 3600.0
_log = logging.getLogger(__name__)


class PreparedCase:
    """One case of a store, opened for reading. Safe to share between threads.

    Args:
        folder: The case's folder in the store.
        case: The case it was made from.

    Attributes:
        case_id: Its id in the data set.
        case: Its files.
        shape: Voxels (D, H, W) on the network's grid.
        num_channels: Image channels.
        geometry: The way back to the scan's grid.
        stats: Per channel, for zscore.
    """

    def __init__(self, folder: Path, case: Case) -> None:
        self.folder = folder
        self.case = case
        self.case_id = case.case_id
        description = read_description(folder)
        if description is None or not files_intact(folder, description):
            raise MedtrainError(
                f"the prepared case {case.case_id} in {folder} is missing or damaged",
                hint="start the command again; damaged cases are prepared anew",
            )
        self.geometry = CaseGeometry.from_json(description["geometry"])
        self.shape: tuple[int, int, int] = self.geometry.resampled_shape
        self.stats = tuple(ChannelStats(**entry) for entry in description["stats"])
        self.num_channels = len(self.stats)
        self.class_ids: tuple[int, ...] = tuple(description["foreground"]["class_ids"])
        counts = description["foreground"]["counts"]
        self._starts = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        self._names = frozenset(description["files"])
        self._arrays: dict[str, Any] = {}
        self._lock = threading.Lock()

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size (D, H, W) in mm on the network's grid."""
        return self.geometry.spacing

    def read_image(self, region: Region | None = None) -> np.ndarray:
        """Intensities [C, ...] as stored (int16, uint8 or float32) of a region (slices of D, H, W), or all."""
        return self._read("image.b2nd", (slice(None), *(region or (slice(None),) * 3)))

    def read_label(self, region: Region | None = None) -> np.ndarray:
        """Class indices of a region, or all; ignore is num_classes."""
        return self._read("label.b2nd", region or (slice(None),) * 3)

    def read_body(self, region: Region | None = None) -> np.ndarray | None:
        """Which voxels of a region are inside the body (bool), or None where all are."""
        if "body.b2nd" not in self._names:
            return None
        return self._read("body.b2nd", region or (slice(None),) * 3).astype(bool)

    def read_hints(self, name: str, region: Region | None = None) -> np.ndarray:
        """Class indices that the previous stage of a cascade found in a region, or all; see `write_hints`."""
        return self._read(hints_file(name), region or (slice(None),) * 3)

    def foreground(self, class_index: int) -> np.ndarray:
        """Voxels (D, H, W) of a class, int32 [N, 3]; at most 10000 spread evenly over it, none if it is absent.

        With an ignore label the index of the background holds annotated voxels of any class.
        """
        if class_index not in self.class_ids:
            return np.empty((0, 3), dtype=np.int32)
        position = self.class_ids.index(class_index)
        with self._lock:
            if "foreground.npy" not in self._arrays:
                self._arrays["foreground.npy"] = np.load(self.folder / "foreground.npy", mmap_mode="r")
            table = self._arrays["foreground.npy"]
        return table[self._starts[position] : self._starts[position + 1]]

    def source_label(self) -> np.ndarray:
        """Class indices [D, H, W] on the scan's own whole grid, never resampled."""
        if "source_label.b2nd" not in self._names:
            return self.read_label()
        return self._read("source_label.b2nd", (slice(None),) * 3)

    def _read(self, name: str, region: Region) -> np.ndarray:
        with self._lock:  # a blosc2 array has one decompression context
            if name not in self._arrays:
                # plain reads, not a memory map: a failing disk raises an error instead of killing the process
                path = str(self.folder / name)
                self._arrays[name] = blosc2.open(path, mode="r", dparams={"nthreads": 1})
            array = self._arrays[name]
            if array.blocks[-3:] == array.shape[-3:]:  # small: reading all of it takes less time than asking for a part
                return _read_whole(array)[region]
            return array[region]


def _read_whole(array: Any) -> np.ndarray:
    """All of an array with one block per channel, several times faster than blosc2's own way."""
    values = np.empty(array.shape, dtype=array.dtype)
    for index, channel in enumerate(values.reshape(-1, *array.shape[-3:])):
        array.schunk.decompress_chunk(index, channel)
    return values


class Store:
    """The prepared cases of one data set with one plan: a view into the folder that all share.

    Cheap to pickle; worker processes open cases themselves. At most 256 cases are kept open.

    Args:
        root: The store's folder.
        keys: Folder name below `cases` by case id.
        cases: The data set's cases by id.
        contents: Digests of the scans' files, without their labels, by case id; not known in worker processes.
    """

    def __init__(
        self,
        root: Path,
        keys: Mapping[str, str],
        cases: Mapping[str, Case],
        contents: Mapping[str, str] | None = None,
    ) -> None:
        self.root = root
        self.contents = dict(contents or {})
        self.keys = dict(keys)
        self.cases = {case_id: cases[case_id] for case_id in self.keys}
        self._open: OrderedDict[str, PreparedCase] = OrderedDict()
        self._lock = threading.Lock()
        self._marked = 0.0

    @property
    def case_ids(self) -> tuple[str, ...]:
        """Sorted ids."""
        return tuple(sorted(self.keys))

    @property
    def data_hash(self) -> str:
        """Identifies ids, file contents and preparation of all cases."""
        text = json.dumps(sorted(self.keys.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def case(self, case_id: str) -> PreparedCase:
        """Open a case.

        Raises:
            MedtrainError: Its files are missing or damaged.
        """
        with self._lock:
            found = self._open.get(case_id)
            if found is None:
                found = PreparedCase(case_folder(self.root, self.keys[case_id]), self.cases[case_id])
                self._open[case_id] = found
                if len(self._open) > _OPEN_CASES:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(case_id)
            return found

    def mark_used(self) -> None:
        """Note, once an hour however often this is called, that the cases are in use and not to be removed."""
        now = time.time()  # the clock of the files
        if abs(now - self._marked) < _MARK_EVERY_S:
            return
        self._marked = now
        for key in self.keys.values():
            mark_used(case_folder(self.root, key))

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "keys": self.keys, "cases": self.cases}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def mark_used(path: Path) -> bool:
    """Note that an entry of a store is used now; return whether it is there.

    Nothing can be noted in a store that may only be read, or in entries that belong to another user.
    """
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        _log.debug("the use of %s cannot be noted: %s", path, error.strerror)
        return path.exists()
    return True


def format_size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def case_folder(root: Path, key: str) -> Path:
    """Where the case with this key lies."""
    return root / "cases" / key


def write_case(
    folder: Path,
    *,
    source: Path,
    image: np.ndarray,
    label: np.ndarray,
    body: np.ndarray | None,
    source_label: np.ndarray,
    geometry: CaseGeometry,
    stats: Sequence[ChannelStats],
    foreground: Mapping[int, np.ndarray],
    patch_size: Sequence[int],
) -> None:
    """Write the files of a case into an existing, private folder.

    Args:
        folder: Renamed into the store by the caller.
        source: Folder of the data set, for people who look at the store.
        image: [C, D, H, W].
        label: Class indices [D, H, W].
        body: bool [D, H, W], or None where everything is inside.
        source_label: Class indices on the scan's whole grid.
        geometry: How the case got here.
        stats: Per channel.
        foreground: int32 [N, 3] by class index.
        patch_size: What will be read at a time; shapes the chunks.
    """
    arrays = {"image.b2nd": image, "label.b2nd": label}
    if body is not None:
        arrays["body.b2nd"] = body.astype(np.uint8)
    same_grid = geometry.canonical_shape == geometry.cropped_shape == geometry.resampled_shape
    if not same_grid:
        arrays["source_label.b2nd"] = source_label
    files = {name: _write(folder / name, compress(array, patch_size)) for name, array in arrays.items()}
    table = np.concatenate([np.empty((0, 3), np.int32), *foreground.values()])
    np.save(folder / "foreground.npy", table)
    files["foreground.npy"] = _entry(folder / "foreground.npy", (folder / "foreground.npy").read_bytes())
    description = {
        "format": FORMAT,
        "source": str(source),
        "geometry": geometry.to_json(),
        "stats": [{"mean": stat.mean, "std": stat.std} for stat in stats],
        "foreground": {"class_ids": list(foreground), "counts": [len(rows) for rows in foreground.values()]},
        "files": files,
    }
    (folder / _DESCRIPTION).write_text(json.dumps(description), encoding="utf-8")


def hints_file(name: str) -> str:
    """File of a label map of the previous stage of a cascade."""
    return f"hints_{name}.b2nd"


def write_hints(folder: Path, name: str, hints: np.ndarray, patch_size: Sequence[int]) -> None:
    """Put a label map of the previous stage of a cascade beside a prepared case, on the same grid, and its checksum.

    Args:
        folder: The case's.
        name: Of the networks that made it.
        hints: Class indices [D, H, W].
        patch_size: What will be read at a time; shapes the chunks.
    """
    path, data = folder / hints_file(name), compress(hints, patch_size)
    atomic_write(path, data, sync=False)
    atomic_write_json(path.with_suffix(".json"), _entry(path, data), sync=False)


def hints_intact(folder: Path, name: str) -> bool:
    """Whether a label map of the previous stage of a cascade is beside a prepared case as it was written.

    Args:
        folder: The case's.
        name: Of the networks that made it.
    """
    path = folder / hints_file(name)
    try:
        entry = json.loads(path.with_suffix(".json").read_bytes())
        return _file_intact(path, entry)
    except (FileNotFoundError, ValueError, TypeError, KeyError):  # a record that was cut, or none
        return False


def read_description(folder: Path) -> dict[str, Any] | None:
    """A case's `case.json`, or None when it is missing, cut off or of another format."""
    try:
        description = json.loads((folder / _DESCRIPTION).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    known = isinstance(description, dict) and description.get("format") == FORMAT
    return description if known else None


def files_intact(folder: Path, description: Mapping[str, Any]) -> bool:
    """Whether every file has its recorded size, and its checksum too where its time is not the recorded one."""
    return all(_file_intact(folder / name, entry) for name, entry in description["files"].items())


def compress(array: np.ndarray, patch_size: Sequence[int]) -> bytes:
    """An array as a blosc2 frame, chunked for reading patches."""
    blocks, chunks = chunk_shapes(array.shape[-3:], patch_size, array.itemsize)
    lead = (1,) * (array.ndim - 3)
    # labels are runs of equal bytes as they are; numbers of several bytes compress better byte by byte
    shuffle = blosc2.Filter.SHUFFLE if array.itemsize > 1 else blosc2.Filter.NOFILTER
    parameters = {"codec": blosc2.Codec.LZ4, "clevel": 5, "nthreads": 1, "filters": [shuffle]}
    frame = blosc2.asarray(
        np.ascontiguousarray(array), chunks=(*lead, *chunks), blocks=(*lead, *blocks), cparams=parameters
    )
    return bytes(frame.to_cframe())


def chunk_shapes(
    shape: Sequence[int], patch_size: Sequence[int], itemsize: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Block and chunk of an array: a block fits the first-level cache, a chunk covers at most 1.5 patches.

    An array of at most 512 KiB is a single block. Else the block starts at the patch, rounded up to powers of two, and
    is halved along the axis that covers most of its chunk until it has 32 KiB: smaller blocks mean fewer voxels that
    are decompressed beside a patch, and pay until their number costs more than they save. The chunk
    grows block by block along its least covered axis (the longest of equal ones) up to 6 MiB.

    Args:
        shape: Voxels (D, H, W).
        patch_size: Voxels read at a time: D, H, W, or H, W for single slices.
        itemsize: Bytes per voxel.
    """
    if len(patch_size) == 3 and math.prod(shape) * itemsize <= _WHOLE_BYTES:
        return tuple(shape), tuple(shape)
    patch = (1,) * (3 - len(patch_size)) + tuple(patch_size)
    target = [min(n, max(1, int(_MAX_CHUNK_TO_PATCH * p))) for n, p in zip(shape, patch, strict=True)]
    block = [min(1 << (p - 1).bit_length(), n) for n, p in zip(shape, patch, strict=True)]
    while math.prod(block) * itemsize > _MAX_BLOCK_BYTES:
        axis = max((axis for axis in range(3) if block[axis] > 1), key=lambda i: (block[i] / target[i], i))
        block[axis] = 1 << ((block[axis] - 1).bit_length() - 1)
    chunk = list(block)
    while True:
        grown = []
        for axis in range(3):
            longer = min(chunk[axis] + block[axis], target[axis])
            size = math.prod(chunk) // chunk[axis] * longer * itemsize
            if longer > chunk[axis] and size <= _MAX_CHUNK_BYTES:
                grown.append((chunk[axis] / target[axis], -shape[axis], axis, longer))
        if not grown:
            return tuple(block), tuple(chunk)
        _, _, axis, longer = min(grown)
        chunk[axis] = longer


def _write(path: Path, data: bytes) -> dict[str, int]:
    path.write_bytes(data)
    return _entry(path, data)


def _file_intact(path: Path, entry: Mapping[str, int]) -> bool:
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    if status.st_size != entry["size"]:
        return False
    return status.st_mtime_ns == entry["mtime_ns"] or zlib.crc32(path.read_bytes()) == entry["crc32"]


def _entry(path: Path, data: bytes) -> dict[str, int]:
    return {"size": len(data), "mtime_ns": path.stat().st_mtime_ns, "crc32": zlib.crc32(data)}
