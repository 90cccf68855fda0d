"""Arrays of `.npz` files: small ones are held in memory, large ones unpacked once and mapped.

    <store>/arrays/<key>/array.npy   the array as it was, uncompressed
    <store>/arrays/<key>/set.json    of which file

The key names the file, its size and time, and the array. Every process that reads maps the same pages: none holds a
copy of its own, and what does not fit the memory is read again. See `medtrain.data.clean`.
"""

from __future__ import annotations

import json
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np

from medtrain.data.digests import digest_of
from medtrain.data.io.images import image_error
from medtrain.data.store import mark_used
from medtrain.run.atomic import atomic_dir, disk_errors

LARGE_BYTES = 256 * 2**20
"""Arrays above this are unpacked."""

_DAMAGE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


def load_array(path: Path, key: str, unpacked: Path | None = None) -> np.ndarray:
    """An array of an `.npz` file, kept as long as the file does not change.

    Args:
        path: The file.
        key: Name of the array in it.
        unpacked: Of `unpack_large`; None reads it into memory.

    Raises:
        DataError: The file is missing, damaged, or has no such array.
    """
    if unpacked is not None:
        return _map_array(str(unpacked))
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        raise image_error(path, "no such file") from None
    return _load_array(str(path), key, changed)


def unpack_large(path: Path, key: str, store: Path) -> Path | None:
    """Where an array of more than `LARGE_BYTES` lies unpacked, which is done now if it was not before.

    The memory that this takes does not grow with the array.

    Args:
        path: The `.npz` file.
        key: Name of the array in it.
        store: Folder that runs share.

    Returns:
        The `.npy` file; None for a smaller array, or one that cannot be mapped.

    Raises:
        DataError: The file is missing, damaged, or has no such array.
    """
    with _open_member(path, key) as (file, member):
        if member.file_size <= LARGE_BYTES or _header(file, member)[1].hasobject:
            return None
        status = path.stat()
        facts = {"path": str(path.absolute()), "size": status.st_size, "time": status.st_mtime_ns, "array": key}
        folder = store / "arrays" / digest_of(facts)
        if not mark_used(folder):
            with disk_errors(folder):
                folder.parent.mkdir(parents=True, exist_ok=True)
            with atomic_dir(folder, existing="keep") as partial:
                with file.open(member) as packed, (partial / "array.npy").open("wb") as plain:
                    shutil.copyfileobj(packed, plain, 1 << 20)
                (partial / "set.json").write_text(json.dumps({"source": str(path)}), encoding="utf-8")
    return folder / "array.npy"


def array_header(path: Path, key: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array of an `.npz` file, without reading it.

    Raises:
        DataError: The file is missing, damaged, or has no such array.
    """
    with _open_member(path, key) as (file, member):
        return _header(file, member)


@contextmanager
def _open_member(path: Path, key: str) -> Iterator[tuple[zipfile.ZipFile, zipfile.ZipInfo]]:
    try:
        with zipfile.ZipFile(path) as file:
            yield file, file.getinfo(f"{key}.npy")
    except FileNotFoundError:
        raise image_error(path, "no such file") from None
    except KeyError:
        raise image_error(path, f"has no array {key}") from None
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError) as error:
        raise _damaged(path, error) from None


def _header(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[tuple[int, ...], np.dtype]:
    with file.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    return tuple(shape), dtype


@lru_cache(maxsize=8)
def _map_array(path: str) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except _DAMAGE as error:
        raise _damaged(Path(path), error) from None


@lru_cache(maxsize=8)
def _load_array(path: str, key: str, changed: int) -> np.ndarray:
    try:
        # numpy leaves a file open that it opened itself and cannot read
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            array = file[key]
    except KeyError:
        raise image_error(Path(path), f"has no array {key}") from None
    except _DAMAGE as error:
        raise _damaged(Path(path), error) from None
    array.flags.writeable = False
    return array


def _damaged(path: Path, error: BaseException) -> Exception:
    return image_error(path, f"not an .npz file, or damaged: {' '.join(str(error).split())}")
