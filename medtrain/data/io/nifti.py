"""NIfTI files: read into one canonical frame, write a label back beside its source.

The canonical frame is (D, H, W) = (inferior->superior, posterior->anterior, left->right), that is nibabel's closest
canonical orientation (RAS+) with its axes reversed. Reorienting permutes and flips axes and never resamples, so it is
undone exactly.
"""

from __future__ import annotations

import functools
import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation

from medtrain.errors import DataError, Problem
from medtrain.run.atomic import atomic_write

SUFFIXES = (".nii.gz", ".nii")
"""File endings read here."""

_GEOMETRY_TOLERANCE = 0.05
_GZIP_MAGIC = b"\x1f\x8b"
_LABEL_GZIP_LEVEL = 3
Affine = tuple[tuple[float, ...], ...]


@functools.lru_cache(maxsize=1024)
def _orientation(affine: Affine) -> tuple[tuple[float, ...], ...]:
    """What `SourceGrid.orientation` says; asked for many times of every file, and slow to compute."""
    return tuple(tuple(row) for row in io_orientation(np.array(affine, dtype=np.float64)).tolist())


@dataclass(frozen=True)
class SourceGrid:
    """The voxel grid of a file: enough to put a label back beside the scan it belongs to.

    Args:
        affine: 4 x 4 matrix from voxel indices (file order) to RAS world coordinates in mm.
        shape: Voxels along the file's three axes (x, y, z as stored).
    """

    affine: Affine
    shape: tuple[int, int, int]

    @property
    def matrix(self) -> np.ndarray:
        """The affine as a float64 array [4, 4]."""
        return np.array(self.affine, dtype=np.float64)

    @property
    def orientation(self) -> np.ndarray:
        """Nibabel's orientation array [3, 2]: the RAS axis that each file axis is closest to, and its sign."""
        return np.array(_orientation(self.affine))

    @property
    def axis_codes(self) -> str:
        """Where the file axes point to, such as "RAS" or "LPI"."""
        return "".join(str(code) for code in nib.orientations.ornt2axcodes(self.orientation))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm in the canonical frame (D, H, W)."""
        sizes = np.sqrt((self.matrix[:3, :3] ** 2).sum(axis=0))
        x, y, z = (float(sizes[axis]) for axis in self._file_axes())
        return (z, y, x)

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """Voxels in the canonical frame (D, H, W)."""
        x, y, z = (self.shape[axis] for axis in self._file_axes())
        return (z, y, x)

    def to_canonical(self, array: np.ndarray) -> np.ndarray:
        """Turn an array in file order [x, y, z] into the canonical frame [D, H, W]; a view where possible."""
        return np.asarray(apply_orientation(array, self.orientation)).transpose(2, 1, 0)

    def from_canonical(self, array: np.ndarray) -> np.ndarray:
        """Turn a canonical array [D, H, W] into file order [x, y, z]; the exact inverse of `to_canonical`."""
        inverse = np.empty((3, 2))
        for file_axis, (ras_axis, sign) in enumerate(self.orientation):
            inverse[int(ras_axis)] = (file_axis, sign)
        return np.asarray(apply_orientation(array.transpose(2, 1, 0), inverse))

    def matches(self, other: SourceGrid) -> str | None:
        """Say how two grids differ, or None when their corners lie within 5 % of a voxel (rounding of headers)."""
        if self.shape != other.shape:
            return f"shape {_by(self.shape)} differs from {_by(other.shape)}"
        corners = np.array([[i, j, k, 1.0] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
        corners[:, :3] *= np.array(self.shape) - 1
        shift = float(np.abs(corners @ (self.matrix - other.matrix).T).max())
        if shift <= _GEOMETRY_TOLERANCE * min(self.spacing):
            return None
        if not np.allclose(self.spacing, other.spacing, rtol=1e-3):
            return f"spacing {_by(self.spacing)} mm differs from {_by(other.spacing)} mm"
        if self.axis_codes != other.axis_codes:
            return f"orientation {self.axis_codes} differs from {other.axis_codes}"
        return f"position (affine) differs by up to {shift:.3g} mm from that"

    def to_json(self) -> dict[str, Any]:
        """Plain data from which `from_json` restores the grid exactly."""
        return {"affine": [list(row) for row in self.affine], "shape": list(self.shape)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SourceGrid:
        """Restore a grid from `to_json`."""
        x, y, z = (int(n) for n in data["shape"])
        return cls(affine=tuple(tuple(float(v) for v in row) for row in data["affine"]), shape=(x, y, z))

    def _file_axes(self) -> tuple[int, int, int]:
        """The file axis that holds R, A and S."""
        order = [int(axis) for axis in self.orientation[:, 0]]
        return (order.index(0), order.index(1), order.index(2))


@dataclass
class Volume:
    """Voxels in the canonical frame.

    Args:
        array: Image [C, D, H, W] or label [D, H, W].
        spacing: Voxel size (D, H, W) in mm.
        grid: The grid of the file it came from.
    """

    array: np.ndarray
    spacing: tuple[float, float, float]
    grid: SourceGrid


@dataclass(frozen=True)
class Header:
    """What a file says about itself without its voxels.

    Args:
        grid: Its voxel grid.
        channels: Length of the last axis of a 4-D file, 1 otherwise.
        dtype: Type of the stored voxels.
    """

    grid: SourceGrid
    channels: int
    dtype: np.dtype


def file_stem(path: Path) -> str:
    """The file's name without `.nii` or `.nii.gz`."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def is_nifti(path: Path) -> bool:
    """Whether the name is a NIfTI file's and not a hidden one (`._case.nii.gz` of macOS, temporary files)."""
    return not path.name.startswith(".") and path.name.lower().endswith(SUFFIXES)


def read_header(path: Path) -> Header:
    """Read the geometry of a NIfTI file.

    Raises:
        DataError: The file is missing, no NIfTI, or its geometry is unusable.
    """
    return _header(path, _load(path))


def read_image(paths: Sequence[Path]) -> Volume:
    """Read an image, one file per channel or one 4-D file with the channel axis last.

    The header's slope and intercept are applied. Whole numbers that fit stay uint8 or int16, everything else becomes
    float32.

    Args:
        paths: Files in channel order.

    Returns:
        Volume whose array is [C, D, H, W], writable and contiguous.

    Raises:
        DataError: A file is unreadable, or channels differ in shape or position.
    """
    assert paths
    first: SourceGrid | None = None
    channels: list[np.ndarray] = []
    for path in paths:
        header, voxels = _read(path)
        if first is None:
            first = header.grid
        else:
            difference = header.grid.matches(first)
            if difference:
                raise _error(path, f"{difference} of the first channel {paths[0].name}")
        for channel in range(header.channels):
            channels.append(header.grid.to_canonical(voxels[..., channel]))
    assert first is not None
    array = np.stack(channels) if len(channels) > 1 else np.ascontiguousarray(channels[0])[None]
    return Volume(array=array, spacing=first.spacing, grid=first)


def read_label(path: Path) -> Volume:
    """Read a label file; values must be whole numbers.

    Returns:
        Volume whose array is [D, H, W] of the smallest of uint8, int16, int32 that holds the values.

    Raises:
        DataError: The file is unreadable, has several channels or holds values that are not whole numbers.
    """
    header, voxels = _read(path)
    if header.channels != 1:
        raise _error(path, f"a label must be 3-D, this file holds {header.channels} volumes")
    label = voxels[..., 0]
    if label.dtype.kind == "f":
        wrong = ~np.isfinite(label)
        if wrong.any():
            raise _error(path, f"{_voxels(wrong)} NaN or infinite in a label")
        wrong = label != np.rint(label)
        if wrong.any():
            raise _error(path, f"{_voxels(wrong)} not a whole number, such as {label[wrong][0]:g}")
    low, high = (int(label.min()), int(label.max())) if label.size else (0, 0)
    array = np.ascontiguousarray(header.grid.to_canonical(label.astype(label_dtype(low, high), copy=False)))
    return Volume(array=array, spacing=header.grid.spacing, grid=header.grid)


def write_label(path: Path, label: np.ndarray, grid: SourceGrid, *, like: Path) -> None:
    """Write a label beside its source: same orientation, affine, sform, qform and units; never half a file.

    Args:
        path: Target, ending in `.nii.gz` or `.nii`; replaced atomically.
        label: Label values [D, H, W] in the canonical frame, on the full source grid.
        grid: The source's grid.
        like: The source scan, whose header geometry is copied.

    Raises:
        DataError: `like` cannot be read or is no longer the file that `grid` describes.
    """
    source = _load(like)
    difference = _header(like, source).grid.matches(grid)
    if difference:
        raise _error(like, f"changed since it was read: {difference}")
    assert label.shape == grid.canonical_shape, f"label {label.shape}, grid {grid.canonical_shape}"
    low, high = (int(label.min()), int(label.max())) if label.size else (0, 0)
    dtype = label_dtype(low, high)
    header = source.header.copy()
    header.extensions.clear()
    header["descrip"] = b""
    header["aux_file"] = b""
    header["cal_min"] = header["cal_max"] = 0
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    voxels = grid.from_canonical(label).astype(dtype, copy=False)
    if len(source.shape) == 2:
        voxels = voxels[..., 0]
    # the affine equals the header's best one, so nibabel leaves sform, qform and their codes as they were
    data = type(source)(voxels, source.affine, header).to_bytes()
    if path.name.lower().endswith(".gz"):
        data = gzip.compress(data, compresslevel=_LABEL_GZIP_LEVEL, mtime=0)
    atomic_write(path, data)


def write_image(path: Path, image: np.ndarray, grid: SourceGrid, *, sync: bool = True) -> None:
    """Write an image as NIfTI, atomically; several channels become the last axis of a 4-D file.

    Args:
        path: Target, ending in `.nii.gz` or `.nii`.
        image: [C, D, H, W] in the canonical frame.
        grid: The grid of the file to write; its orientation may be any.
        sync: Wait until the file is on the disk; hundreds of small ones take half a minute.
    """
    voxels = np.stack([grid.from_canonical(channel) for channel in image], axis=-1)
    file = nib.Nifti1Image(voxels[..., 0] if len(image) == 1 else voxels, grid.matrix)
    file.header.set_xyzt_units("mm")
    data = file.to_bytes()
    packed = gzip.compress(data, 1, mtime=0) if path.name.lower().endswith(".gz") else data
    atomic_write(path, packed, sync=sync)


def _load(path: Path) -> Any:
    """Open a NIfTI file lazily: header read, voxels not."""
    if not path.is_file():
        raise _error(path, "no such file")
    if path.stat().st_size == 0:
        raise _error(path, "the file is empty")
    try:
        image = nib.load(path)
    except (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, nib.wrapstruct.WrapStructError):
        raise _error(path, _why_not_nifti(path)) from None
    except (EOFError, OSError, zlib.error) as error:
        raise _error(path, _unreadable(error)) from None
    if not isinstance(image, nib.Nifti1Image | nib.Nifti2Image):
        raise _error(path, f"a {type(image).__name__}, not a NIfTI file")
    return image


def _header(path: Path, image: Any) -> Header:
    shape = tuple(int(n) for n in image.shape)
    if len(shape) == 5 and shape[3] == 1:
        shape = (*shape[:3], shape[4])  # vector images keep an empty time axis before the channels
    if not 2 <= len(shape) <= 4 or 0 in shape:
        raise _error(path, f"shape {_by(image.shape)}: expected 2 or 3 axes, or 4 with the channels last")
    if image.get_data_dtype().kind not in "iuf":
        raise _error(path, f"voxel type {image.get_data_dtype()} is not a plain number")
    matrix = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:3, :3])) < 1e-12:
        raise _error(path, "its affine is not usable: spacing or orientation is zero or not finite")
    x, y, z = (*shape[:3], 1)[:3]
    affine = tuple(tuple(float(v) for v in row) for row in matrix)
    channels = shape[3] if len(shape) == 4 else 1
    return Header(grid=SourceGrid(affine=affine, shape=(x, y, z)), channels=channels, dtype=image.get_data_dtype())


def _read(path: Path) -> tuple[Header, np.ndarray]:
    """Header and scaled voxels [x, y, z, C] in file order."""
    image = _load(path)
    header = _header(path, image)
    raw = _read_voxels(path, offset=int(image.dataobj.offset), dtype=image.dataobj.dtype, shape=image.shape)
    voxels = raw.reshape((*header.grid.shape, header.channels), order="F")
    if not raw.dtype.isnative:
        voxels = voxels.astype(raw.dtype.newbyteorder("="))
    return header, _scale(voxels, float(image.dataobj.slope), float(image.dataobj.inter))


def _read_voxels(path: Path, *, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Read the stored numbers into one writable array, to the end of the file so that gzip's checksum is tested."""
    raw = np.empty(int(np.prod(shape, dtype=np.int64)), dtype=dtype)
    target = raw.view(np.uint8).data
    try:
        with _open(path) as file:
            file.seek(offset)
            done = 0
            while done < len(target):
                count = file.readinto(target[done:])  # type: ignore[attr-defined]
                if not count:
                    raise EOFError
                done += count
            file.read(1)
    except (EOFError, OSError, zlib.error) as error:
        raise _error(path, _unreadable(error)) from None
    return raw


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        magic = file.read(2)
    return gzip.open(path, "rb") if magic == _GZIP_MAGIC else path.open("rb")  # type: ignore[return-value]


def _scale(voxels: np.ndarray, slope: float, inter: float) -> np.ndarray:
    """Apply slope and intercept; whole numbers stay integers where uint8 or int16 holds them."""
    plain = slope == 1 and inter == 0
    if plain and voxels.dtype in (np.uint8, np.int16):
        return voxels
    if voxels.dtype.kind in "iu" and slope.is_integer() and inter.is_integer() and voxels.size:
        ends = [int(voxels.min()) * int(slope) + int(inter), int(voxels.max()) * int(slope) + int(inter)]
        if min(ends) >= -32768 and max(ends) <= 32767:
            if plain:
                return voxels.astype(np.int16)
            return (voxels.astype(np.int32) * np.int32(slope) + np.int32(inter)).astype(np.int16)
    if plain:
        return voxels.astype(np.float32, copy=False)
    return (voxels.astype(np.float64) * slope + inter).astype(np.float32)


def label_dtype(low: int, high: int) -> np.dtype:
    """The smallest of uint8, int16 and int32 that holds label values from `low` to `high`."""
    if low >= 0 and high <= 255:
        return np.dtype(np.uint8)
    return np.dtype(np.int16 if low >= -32768 and high <= 32767 else np.int32)


def _error(path: Path, message: str) -> DataError:
    return DataError([Problem(where=str(path), message=message)])


def _why_not_nifti(path: Path) -> str:
    """Tell a file that is cut off or damaged within its first bytes from one of another kind."""
    try:
        with _open(path) as file:
            file.read(1 << 16)
    except (EOFError, OSError, zlib.error) as error:
        return _unreadable(error)
    return "not a NIfTI file, or its header is damaged"


def _unreadable(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "truncated: the file ends before its voxels do; copy or download it again"
    if isinstance(error, zlib.error | gzip.BadGzipFile):
        return "damaged: the compressed data fail their checksum; copy or download it again"
    return f"cannot be read: {error}"


def _voxels(mask: np.ndarray) -> str:
    count = int(mask.sum())
    return "1 voxel is" if count == 1 else f"{count} voxels are"


def _by(numbers: Sequence[float]) -> str:
    return " x ".join(f"{n:g}" for n in numbers)
