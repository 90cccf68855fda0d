"""Copies of images as they are read: large or slow files are decoded once, whatever run reads them next.

    <store>/images/<key>/set.json            what the copies are of
    <store>/images/<key>/pixels.json         path -> size, time, digest of the pixels
    <store>/images/<key>/annotations.json    annotation and image -> sizes, times, digest of the mask
    <store>/images/<key>/<2 digits>/<digest> one copy, compressed without loss

The key names the root of the data set and how its files are read. The folder's modification time is when it was last
used; see `medtrain.data.clean`. A copy holds exactly what reading the file gives, so one that is missing or damaged
is no error: the file is read, and the copy written again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from medtrain.data.arrays import load_array
from medtrain.data.digests import digest_of
from medtrain.data.images.annotations import AnnotationChecks, Pair
from medtrain.data.images.plan import ImageFormat
from medtrain.data.images.reading import read_for
from medtrain.data.io.image_series import state_of
from medtrain.data.sample import ArrayItem, ImageRef
from medtrain.data.store import mark_used
from medtrain.data.workers import Progress, usable_cores
from medtrain.errors import DataError, Problem
from medtrain.run.atomic import atomic_write, disk_errors

FORMAT = 2  # 1 held frames of DICOM files in their order, not as the volume that they form
"""Part of every key: raise it when what is read from a file changes."""

CONSTANT = "constant"
"""In place of a digest: images of one value are equal without being copies of each other."""

_HEAD = struct.Struct("<4sBB4II")  # magic, type, axes, shape, checksum of what follows
_MAGIC = b"mtI1"
_TYPES = (np.dtype(np.uint8), np.dtype(np.float16))
_MARK_EVERY_S = 3600.0
_SAVE_EVERY_S = 30.0

Found = tuple[int, int, str]
"""Size, modification time, digest of the pixels."""

Known = dict[str, Found]
"""What was found, by path."""


class ImageCopies:
    """Reads images, from their copies where there are some. Cheap to pickle; safe to share between threads.

    Args:
        folder: Where the copies of this set are.
        image_format: What images become.
        copied: Digest by path of those that have a copy.
        digests: Digest of the pixels by image, of those that were looked at.
        drawn: Digest of the mask by annotation and image.
        case_ids: Names of the images that have been looked at.
        mapped: Folders of unpacked arrays that are in use, too.
    """

    def __init__(
        self,
        folder: Path,
        image_format: ImageFormat,
        *,
        copied: dict[str, str],
        digests: dict[ImageRef, str],
        drawn: dict[Pair, str] | None = None,
        case_ids: Sequence[str] = (),
        mapped: Sequence[Path] = (),
    ) -> None:
        self.folder = folder
        self.mapped = tuple(mapped)
        self.image_format = image_format
        self.copied = copied
        self.digests = digests
        self.drawn = drawn or {}
        self.case_ids = tuple(case_ids)
        self._marked = 0.0

    def read(self, ref: ImageRef) -> np.ndarray:
        """An image as `read_for` gives it.

        Raises:
            DataError: The file cannot be read.
        """
        digest = self.copied.get(str(ref))
        if digest is None:
            return read_for(self.image_format, ref)
        array = load_copy(copy_path(self.folder, digest))
        if array is None:
            array = read_for(self.image_format, ref)
            save_copy(copy_path(self.folder, digest), array)
        return array

    def mark_used(self) -> None:
        """Note, once an hour however often this is called, that the copies are in use and not to be removed."""
        now = time.time()  # the clock of the files
        if (self.copied or self.mapped) and abs(now - self._marked) >= _MARK_EVERY_S:
            self._marked = now
            for folder in (self.folder, *self.mapped):
                mark_used(folder)

    def __getstate__(self) -> dict[str, Any]:
        # the processes that read need no digests
        return {**self.__dict__, "digests": {}, "drawn": {}, "case_ids": ()}


def copies_folder(store: Path, root: Path, image_format: ImageFormat) -> Path:
    """Where the copies of a data set lie.

    Args:
        store: Folder that runs share.
        root: Of the data set.
        image_format: How its files are read.
    """
    key = digest_of({"format": FORMAT, "root": str(root.absolute()), **asdict(image_format)})
    return store / "images" / key


def prepare_images(
    refs: Sequence[ImageRef],
    image_format: ImageFormat,
    *,
    store: Path,
    root: Path,
    copy: bool,
    annotations: Sequence[Pair] = (),
    workers: int | None = None,
    progress: Progress | None = None,
) -> ImageCopies:
    """Decode every image that was not decoded before, in threads, and copy it where copies are wanted.

    Two processes that prepare the same set take turns; the second finds the work of the first.

    Args:
        refs: The images, each once.
        image_format: What they become.
        store: Folder that runs share.
        root: Folder of the data set.
        copy: Whether to write copies.
        annotations: Masks, boxes or points, each with the image it is of.
        workers: Threads; as many as there are processors, at most 8, if None.
        progress: Called for each image that was not known, with images done, images in all and its name.

    Raises:
        DataError: Every image that is missing, damaged or of another kind than the set.
    """
    folder = copies_folder(store, root, image_format)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    mark_used(folder)
    with _taking_turns(folder):
        if not (folder / "set.json").exists():
            atomic_write(folder / "set.json", json.dumps({"source": str(root), **asdict(image_format)}), sync=False)
        known = _load_known(folder)
        work = _Preparation(folder, image_format, known, copy=copy)
        problems = work.run(refs, workers or usable_cores(), progress, f"{root}{os.sep}")
        checks = AnnotationChecks(folder / "annotations.json", size_of=work.size_of, digest_of_mask=content_digest)
        problems += checks.run([pair for pair in annotations if pair[1] in work.digests], workers or usable_cores())
    if problems:
        raise DataError(problems, heading=f"{len(problems)} images cannot be used:")
    paths = [str(ref) for ref in refs if isinstance(ref, Path)]
    copied = {path: known[path][2] for path in paths} if copy else {}
    names = [path.removeprefix(f"{root}{os.sep}") for path in map(str, refs)]
    unpacked = {ref.unpacked.parent for ref in refs if isinstance(ref, ArrayItem) and ref.unpacked is not None}
    return ImageCopies(
        folder,
        image_format,
        copied=copied,
        digests=work.digests,
        drawn=checks.digests,
        case_ids=names,
        mapped=sorted(unpacked),
    )


class _Preparation:
    """One pass over all images."""

    def __init__(self, folder: Path, image_format: ImageFormat, known: Known, *, copy: bool) -> None:
        self.folder, self.image_format, self.known, self.copy = folder, image_format, known, copy
        self.digests: dict[ImageRef, str] = {}

    def run(self, refs: Sequence[ImageRef], workers: int, progress: Progress | None, prefix: str) -> list[Problem]:
        problems: list[Problem] = []
        changed, saved = False, time.monotonic()
        with ThreadPoolExecutor(workers, thread_name_prefix="images") as pool:
            try:
                for done, (ref, result) in enumerate(zip(refs, pool.map(self._look, refs)), start=1):
                    if isinstance(result, Problem):
                        problems.append(Problem(result.where.removeprefix(prefix), result.message, result.hint))
                        continue
                    self.digests[ref] = result[2]
                    if not isinstance(ref, Path) or self.known.get(str(ref)) == result:
                        continue
                    self.known[str(ref)] = result
                    changed = True
                    if progress is not None:
                        progress(done, len(refs), str(ref).removeprefix(prefix))
                    if changed and time.monotonic() - saved > _SAVE_EVERY_S:
                        _save_known(self.folder, self.known)
                        changed, saved = False, time.monotonic()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            finally:
                if changed:
                    _save_known(self.folder, self.known)
        return problems

    def size_of(self, ref: ImageRef) -> tuple[int, int]:
        """The first two sides of an image as it is read, from its copy where there is one."""
        known = self.known.get(str(ref)) if self.copy else None
        shape = None if known is None else copied_shape(copy_path(self.folder, known[2]))
        shape = shape or read_for(self.image_format, ref).shape
        return shape[0], shape[1]

    def _look(self, ref: ImageRef) -> Found | Problem:
        try:
            return self._look_at_file(ref) if isinstance(ref, Path) else (0, 0, self._digest_of_item(ref))
        except DataError as error:
            return error.problems[0]

    def _digest_of_item(self, ref: ImageRef) -> str:
        assert not isinstance(ref, Path)
        array = load_array(ref.path, ref.key, ref.unpacked)[ref.index]
        if array.dtype != np.uint8:
            array = read_for(self.image_format, ref)  # NaN, and what cannot be scaled
        return pixel_digest(array)

    def _look_at_file(self, path: Path) -> Found:
        known = self.known.get(str(path))
        try:
            state = state_of(path)
        except OSError as error:
            message = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
            raise DataError([Problem(where=str(path), message=message)]) from None
        unchanged = known is not None and known[:2] == state
        if known is not None and unchanged and (not self.copy or copy_path(self.folder, known[2]).exists()):
            return known
        array = read_for(self.image_format, path)
        digest = pixel_digest(array)
        name = digest if digest != CONSTANT else f"{CONSTANT}-{'x'.join(map(str, array.shape))}-{array.flat[0]:g}"
        if self.copy:
            save_copy(copy_path(self.folder, name), array)
        return *state, name


def pixel_digest(array: np.ndarray) -> str:
    """Thirty-two hexadecimal digits that name the content of an image, or `CONSTANT`."""
    return CONSTANT if array.size and array.min() == array.max() else content_digest(array)


def content_digest(array: np.ndarray) -> str:
    """Thirty-two hexadecimal digits that name the content of an array."""
    state = hashlib.blake2b(f"{array.shape} {array.dtype}".encode(), digest_size=16)
    state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def copy_path(folder: Path, digest: str) -> Path:
    """Where the copy with this digest lies."""
    return folder / digest[:2] / digest


def save_copy(path: Path, array: np.ndarray) -> None:
    """Write a copy, atomically.

    Args:
        path: See `copy_path`.
        array: uint8, or float32 that float16 holds exactly.
    """
    if array.dtype != np.uint8:
        array = array.astype(np.float16)
    array = np.ascontiguousarray(array)
    packed = blosc2.compress2(
        array,
        typesize=array.shape[-1] * array.itemsize,
        codec=blosc2.Codec.LZ4,
        clevel=5,
        filters=[blosc2.Filter.BITSHUFFLE],
        nthreads=1,
    )
    shape = (*array.shape, *(0,) * (4 - array.ndim))
    head = _HEAD.pack(_MAGIC, _TYPES.index(array.dtype), array.ndim, *shape, zlib.crc32(packed))
    with disk_errors(path):
        path.parent.mkdir(exist_ok=True)
    atomic_write(path, head + packed, sync=False)


def load_copy(path: Path) -> np.ndarray | None:
    """A copy, uint8 or float32; None where it is missing or damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(data) < _HEAD.size:
        return None
    magic, kind, ndim, *shape, checksum = _HEAD.unpack_from(data)
    packed = memoryview(data)[_HEAD.size :]
    if magic != _MAGIC or zlib.crc32(packed) != checksum:
        return None
    array = np.empty(shape[:ndim], dtype=_TYPES[kind])
    blosc2.decompress2(packed, dst=array, nthreads=1)
    return array if kind == 0 else array.astype(np.float32)


def copied_shape(path: Path) -> tuple[int, ...] | None:
    """The shape of a copy, from its first bytes; None where it is missing or no copy."""
    try:
        with path.open("rb") as file:
            data = file.read(_HEAD.size)
    except FileNotFoundError:
        return None
    if len(data) < _HEAD.size:
        return None
    magic, _, ndim, *shape, _ = _HEAD.unpack(data)
    return tuple(shape[:ndim]) if magic == _MAGIC else None


def _load_known(folder: Path) -> Known:
    try:
        data = json.loads((folder / "pixels.json").read_bytes())
    except (FileNotFoundError, ValueError):  # a cache: damaged means empty
        return {}
    return {str(path): (int(entry[0]), int(entry[1]), str(entry[2])) for path, entry in data.items()}


def _save_known(folder: Path, known: Known) -> None:
    atomic_write(folder / "pixels.json", json.dumps(known), sync=False)


@contextlib.contextmanager
def _taking_turns(folder: Path) -> Iterator[None]:
    """Wait until no other process of this machine prepares the same set."""
    try:
        import fcntl
    except ImportError:  # Windows: both do the same work, to the same end
        yield
        return
    with (folder / ".lock").open("w") as lock:
        with contextlib.suppress(OSError):  # a file system without locks: as above
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
