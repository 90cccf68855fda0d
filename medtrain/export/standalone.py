"""Segment a scan with an exported network: python predict.py SCAN.nii.gz OUT.nii.gz.

Reads manifest.json and the ONNX file beside it. Needs Python 3.9 or later and
    pip install numpy scipy nibabel onnxruntime

A network of several channels takes one file per channel, in the manifest's order, or one 4-D file with all of them:
    python predict.py CT.nii.gz PET.nii.gz OUT.nii.gz

Arrays are [C, D, H, W] with D from inferior to superior, H from posterior to anterior, W from left to right; spacings
are (D, H, W) in mm. OUT gets the label values of the training data on the scan's own grid.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import hashlib
import itertools
import json
import math
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform
from scipy import ndimage

HERE = Path(__file__).resolve().parent
SUFFIXES = (".nii", ".nii.gz")
RAS = np.array([[0, 1], [1, 1], [2, 1]])
Network = tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray]]
"""What its manifest says, and what it computes."""


class UnusableError(Exception):
    """What is wrong with a file."""


class Scan:
    """A scan in the canonical frame.

    Args:
        image: [C, D, H, W], float32.
        whole: Whether its numbers are whole ones within int16; they are rounded again after resampling.
        spacing: Voxel size (D, H, W) in mm.
        source: The first file, whose grid the segmentation gets.
    """

    def __init__(self, image: np.ndarray, whole: bool, spacing: tuple[float, ...], source: Any) -> None:
        self.image, self.whole, self.spacing, self.source = image, whole, spacing, source


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    names = [channel["name"] for channel in manifest["input"]["channels"]]
    parser = argparse.ArgumentParser(
        description=f"Segment a scan ({', '.join(names)}) into {', '.join(e['name'] for e in manifest['labels'][1:])}."
    )
    several = f"one file per channel, in this order: {', '.join(names)}; or one 4-D file with all channels"
    parser.add_argument("scans", nargs="+", metavar="SCAN", type=Path, help=several if len(names) > 1 else names[0])
    parser.add_argument("out", metavar="OUT", type=Path, help="the segmentation to write, .nii.gz or .nii")
    given = parser.parse_args(arguments)
    check_out(given.out)
    network = load_network(HERE)
    first = [load_network(HERE / folder) for folder in (manifest["first_stage"] or {"folders": []})["folders"]]
    scan = read_scan(given.scans, names)
    label = segment(scan, [network], first)
    write(given.out, label, manifest, scan)


def check_out(path: Path) -> None:
    """See that the segmentation can be written, before minutes are spent on it."""
    if not path.name.lower().endswith(SUFFIXES):
        sys.exit(f"error: {path}: the segmentation's name must end in .nii.gz or .nii")
    if path.exists():  # with OUT forgotten this would be a scan
        sys.exit(f"error: {path} exists already; the last argument is the file to write")
    if not path.parent.is_dir():
        sys.exit(f"error: {path} cannot be written: there is no folder {path.parent}")
    try:
        partial_of(path).touch()
        partial_of(path).unlink()
    except OSError as error:
        sys.exit(f"error: {path} cannot be written: {error.strerror}")


def partial_of(path: Path) -> Path:
    """The file that becomes OUT when it is complete."""
    return path.with_name(f".{path.name}.partial")


def segment(scan: Scan, networks: Sequence[Network], first: Sequence[Network] = ()) -> np.ndarray:
    """Class indices [D, H, W] of a scan, on its whole grid.

    Args:
        scan: To segment.
        networks: Decide together, in the windows and with the post-processing of the first of them.
        first: Those of the first stage of a cascade, whose label map is further channels.
    """
    manifest = networks[0][0]
    geometry = manifest["geometry"]
    target = tuple(geometry["spacing_mm"])
    target = (scan.spacing[0], *target) if len(target) == 2 else target  # a network of slices keeps the scan's own
    box = nonzero_box(scan.image)
    cropped = scan.image[(slice(None), *box)]
    shape = tuple(max(1, round(n * old / new)) for n, old, new in zip(cropped.shape[1:], scan.spacing, target))
    coarse = coarse_axis(scan.spacing, target, geometry["resampling"]["anisotropy_threshold"])
    images = []
    for each, _ in networks:
        rules = [channel["normalization"] for channel in each["input"]["channels"]]
        images.append(prepare(cropped, shape, coarse, scan.whole, rules, geometry["resampling"]["image_order"]))
    if first:
        hints = resample_label(segment(scan, first)[box], shape, coarse)
        inside = [np.isin(hints, structure["classes"]) for structure in manifest["first_stage"]["channels"]]
        images = [np.concatenate([image, np.stack(inside).astype(np.float32)]) for image in images]

    label = np.zeros(scan.image.shape[1:], dtype=np.int16)
    if geometry["spatial_dims"] == 2:
        slices = [predict_logits(networks, [image[:, z] for image in images]) for z in range(shape[0])]
        logits = np.stack(slices, axis=1)
    else:
        logits = predict_logits(networks, images)
    order = geometry["resampling"]["logits_order"]
    if manifest["regions"] is None:
        label[box] = argmax_resampled(logits, cropped.shape[1:], coarse, order)
    else:
        for region in manifest["regions"]:
            inside_box = resample(logits[region["output"]], cropped.shape[1:], coarse, order) > 0
            label[box][inside_box] = region["painted_with"]
    for structure in manifest["postprocessing"]["keep_largest_component_of"]:
        keep_largest(label, structure["classes"], structure["becomes"])
    return label


def load_network(folder: Path) -> Network:
    """A manifest, and the ONNX file beside it as a function from windows [B, C, *P] to logits [B, K, *P]."""
    import onnxruntime

    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (entry,) = (file for file in manifest["files"] if file["format"] == "onnx")
    content = (folder / entry["file"]).read_bytes()
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        sys.exit(f"error: {folder / entry['file']} is damaged or of another export: manifest.json has another checksum")
    available = onnxruntime.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
    session = onnxruntime.InferenceSession(content, providers=providers)

    def run(windows: np.ndarray) -> np.ndarray:
        (logits,) = session.run([manifest["output"]["name"]], {manifest["input"]["name"]: windows})
        return np.asarray(logits)

    return manifest, run


def read_scan(paths: Sequence[Path], names: Sequence[str]) -> Scan:
    """Read the channels of a scan: one file each, or one 4-D file with the channels last."""
    files = of_all(open_scan, paths)
    shapes = [grid_shape(file) for file in files]
    count = sum(shape[3] for shape in shapes)
    if count != len(names):
        sys.exit(f"error: {count} channel(s) given, the network needs {len(names)}: {', '.join(names)}")
    source = files[0]
    orientation = io_orientation(source.affine)
    sizes = np.sqrt((source.affine[:3, :3] ** 2).sum(axis=0))
    corners = np.array([[i, j, k, 1.0] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    corners[:, :3] *= np.array(shapes[0][:3]) - 1
    for path, file, shape in zip(paths, files, shapes):
        shift = np.abs(corners @ (file.affine - source.affine).T).max()
        if shape[:3] != shapes[0][:3] or shift > 0.05 * sizes.min():
            sys.exit(f"error: {path} is not on the voxel grid of {paths[0]}")
    channels, whole = [], True
    for (voxels, is_whole), shape in zip(of_all(read_voxels, paths), shapes):
        whole = whole and is_whole
        each = voxels.reshape(shape)
        channels += [apply_orientation(each[..., c], orientation).transpose(2, 1, 0) for c in range(shape[3])]
    order = [int(axis) for axis in orientation[:, 0]]
    spacing = tuple(float(sizes[order.index(axis)]) for axis in (2, 1, 0))
    return Scan(np.stack(channels), whole, spacing, source)


def of_all(action: Callable[[Path], Any], paths: Sequence[Path]) -> list[Any]:
    """What an action finds in every file; if one of them is unusable, say so of all that are, and stop."""
    found = []
    for path in paths:
        try:
            found.append(action(path))
        except UnusableError as error:
            print(f"error: {path}: {error}", file=sys.stderr)
    if len(found) < len(paths):
        sys.exit(1)
    return found


def open_scan(path: Path) -> Any:
    """A NIfTI file whose header is usable; its voxels are not read yet."""
    if not path.is_file():
        raise UnusableError("a folder, not a scan" if path.is_dir() else "no such file")
    try:
        file: Any = nib.load(path)
    except Exception:  # what a damaged header raises has no common base
        raise UnusableError("not a NIfTI file, or damaged; copy or export it again") from None
    if not isinstance(file, nib.Nifti1Image):
        raise UnusableError("not a NIfTI file")
    if not 2 <= len(file.shape) <= 5 or 0 in file.shape or (len(file.shape) == 5 and file.shape[3] > 1):
        shape = " x ".join(map(str, file.shape))
        raise UnusableError(f"its shape is {shape}; 2 or 3 axes are expected, or 4 with the channels last")
    if file.get_data_dtype().kind not in "iuf":
        raise UnusableError(f"its voxels are of type {file.get_data_dtype()}, not plain numbers")
    if not np.isfinite(file.affine).all() or abs(np.linalg.det(file.affine[:3, :3])) < 1e-12:
        raise UnusableError("its affine is not usable: spacing or orientation is zero or not finite")
    return file


def grid_shape(file: Any) -> tuple[int, ...]:
    """Columns, rows, slices and channels of a file."""
    x, y, z = (*file.shape, 1)[:3]
    return (x, y, z, math.prod(file.shape[3:]))


def read_voxels(path: Path) -> tuple[np.ndarray, bool]:
    """The voxels as float32, and whether they are whole numbers within int16."""
    try:
        if path.name.lower().endswith(".gz"):
            with gzip.open(path) as stream:
                while stream.read(1 << 22):  # to the end, where the checksum is: nibabel stops before it
                    pass
        values, whole = scaled(nib.load(path))
    except (OSError, EOFError, ValueError, zlib.error):
        raise UnusableError("truncated or damaged: its voxels cannot be read; copy or download it again") from None
    if not np.isfinite(values).all():
        raise UnusableError("holds NaN or infinite voxels")
    return values, whole


def scaled(file: Any) -> tuple[np.ndarray, bool]:
    """The voxels with the header's slope and intercept as float32, and whether they are whole numbers within int16."""
    raw, slope, inter = np.asarray(file.dataobj.get_unscaled()), float(file.dataobj.slope), float(file.dataobj.inter)
    values = raw if slope == 1 and inter == 0 else raw.astype(np.float64) * slope + inter
    whole = raw.dtype.kind in "iu" and slope.is_integer() and inter.is_integer()
    whole = whole and bool(values.min() >= -32768 and values.max() <= 32767)
    return values.astype(np.float32), whole


def nonzero_box(image: np.ndarray) -> tuple[slice, ...]:
    """Bounding box of the voxels that are not 0 in any channel of [C, D, H, W]; all of it where there are none."""
    found = ndimage.find_objects((image != 0).any(axis=0).astype(np.uint8))
    return tuple(found[0]) if found else tuple(slice(0, n) for n in image.shape[1:])


def coarse_axis(spacing: Sequence[float], target: Sequence[float], threshold: float) -> int | None:
    """The one axis that is so much coarser than the finest that no interpolation along it makes sense."""
    for sizes in (np.asarray(spacing), np.asarray(target)):
        if sizes.max() / sizes.min() > threshold:
            coarse = np.flatnonzero(np.isclose(sizes, sizes.max()))
            return int(coarse[0]) if len(coarse) == 1 else None
    return None


@functools.cache
def resampling_matrix(n_in: int, n_out: int, order: int) -> np.ndarray:
    """Spline interpolation along one axis as a matrix [n_out, n_in]: scipy's answer to every unit impulse."""
    centres = (np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
    if order == 0:  # half way between two samples the upper one
        return np.eye(n_in, dtype=np.float32)[np.clip(np.floor(centres + 0.5 + 1e-9).astype(int), 0, n_in - 1)]
    columns = [ndimage.map_coordinates(impulse, [centres], order=order, mode="nearest") for impulse in np.eye(n_in)]
    return np.stack(columns, axis=1).astype(np.float32)


def resample(volume: np.ndarray, shape: Sequence[int], coarse: int | None, order: int) -> np.ndarray:
    """Resample [D, H, W] float32 axis by axis: splines of `order`, the nearest sample along the coarse axis."""
    for axis, (n_in, n_out) in enumerate(zip(volume.shape, shape)):
        if n_in != n_out:
            matrix = resampling_matrix(n_in, n_out, 0 if axis == coarse else order)
            volume = np.moveaxis(np.tensordot(matrix, volume, axes=(1, axis)), 0, axis)
    return volume


def argmax_resampled(logits: np.ndarray, shape: Sequence[int], coarse: int | None, order: int) -> np.ndarray:
    """Resample logits [K, D, H, W] and take the first largest class, holding one class at a time at full size."""
    best = resample(logits[0], shape, coarse, order).copy()
    winner = np.zeros(tuple(shape), dtype=np.int16)
    for index in range(1, len(logits)):
        value = resample(logits[index], shape, coarse, order)
        winner[value > best] = index
        np.maximum(best, value, out=best)
    return winner


def resample_label(label: np.ndarray, shape: Sequence[int], coarse: int | None) -> np.ndarray:
    """Resample class indices [D, H, W]: the class whose indicator is the largest, before the background if equal."""
    best, total = np.zeros(tuple(shape), dtype=np.float32), np.zeros(tuple(shape), dtype=np.float32)
    winner = np.zeros(tuple(shape), dtype=label.dtype)
    for value in np.unique(label[label > 0]):
        part = resample((label == value).astype(np.float32), shape, coarse, 1)
        winner[part > best] = value
        np.maximum(best, part, out=best)
        total += part
    winner[1 - total > best] = 0
    return winner


def prepare(
    image: np.ndarray,
    shape: Sequence[int],
    coarse: int | None,
    whole: bool,
    rules: Sequence[dict[str, Any]],
    order: int,
) -> np.ndarray:
    """Resample and normalise a cropped scan [C, D, H, W]."""
    body = None
    if any("outside_the_body" in rule or rule.get("statistics_region") == "body" for rule in rules):
        body = body_mask(image)
    out = np.empty((len(image), *shape), dtype=np.float32)
    inside = None if body is None or body.all() else resample(body.astype(np.float32), shape, coarse, 1) >= 0.5
    for channel, target, rule in zip(image, out, rules):
        values = resample(channel, shape, coarse, order)
        target[:] = np.clip(np.rint(values), -32768, 32767) if whole else values
        if rule["scheme"] == "none":
            continue
        if rule["scheme"] == "ct":
            np.clip(target, rule["lower"], rule["upper"], out=target)
            mean, std = rule["mean"], rule["std"]
        else:
            region = channel[body] if body is not None and rule["statistics_region"] == "body" else channel
            mean = float(region.mean(dtype=np.float64)) if region.size else 0.0
            std = float(region.std(dtype=np.float64)) if region.size else 0.0
        target -= np.float32(mean)
        target *= np.float32(1 / std if std > 1e-8 * max(1.0, abs(mean)) else 0.0)  # no contrast: 0 everywhere
        if "outside_the_body" in rule and inside is not None:
            target[~inside] = rule["outside_the_body"]
    return out


def body_mask(image: np.ndarray) -> np.ndarray:
    """Voxels that are not 0 in any channel, or enclosed by such voxels; bool [D, H, W]."""
    present = (image != 0).any(axis=0)
    empty, count = ndimage.label(~present)  # as ndimage.binary_fill_holes, which takes minutes on a large scan
    outside = np.zeros(count + 1, dtype=bool)
    for axis, side in itertools.product(range(3), (0, -1)):
        outside[np.unique(empty.take(side, axis=axis))] = True
    outside[0] = False
    return np.asarray(~outside[empty])


def window_starts(size: int, patch: int, overlap: float) -> list[int]:
    """First voxels of the windows along one axis, evenly placed, the last window ending at the border."""
    if size == patch:
        return [0]
    count = math.ceil((size - patch) / max(patch * (1.0 - overlap), 1.0)) + 1
    return [round(i * (size - patch) / (count - 1)) for i in range(count)]


def window_weight(patch: Sequence[int], sigma_scale: float, floor: float) -> np.ndarray:
    """Gaussian weights [*P] of a window: the product of the axes' profiles."""
    weight = np.ones(1)
    for p in patch:
        x = np.linspace(-1.0, 1.0, p) if p > 1 else np.zeros(1)
        weight = weight[..., None] * np.maximum(np.exp(-0.5 * (x / (2.0 * sigma_scale)) ** 2), floor)
    return weight[0].astype(np.float32)


def predict_logits(networks: Sequence[Network], images: Sequence[np.ndarray]) -> np.ndarray:
    """Logits [K, *S] of normalised images [C, *S], window by window; of several networks what `mean_of` gives."""
    manifest = networks[0][0]
    window, outputs = manifest["sliding_window"], manifest["output"]["shape"][1]
    patch, size = window["patch_size"], images[0].shape[1:]
    missing = [max(p - n, 0) for p, n in zip(patch, size)]
    padded = [np.pad(image, [(0, 0), *((m // 2, m - m // 2) for m in missing)]) for image in images]
    grid = padded[0].shape[1:]
    origins = list(itertools.product(*(window_starts(n, p, window["overlap"]) for n, p in zip(grid, patch))))
    weight = window_weight(patch, window["gaussian_sigma_scale"], window["weight_floor"])
    if len(origins) == 1:
        weight = np.ones_like(weight)
    axes = [axis + 2 for axis in window["mirror_axes"]]
    flips = [chosen for n in range(len(axes) + 1) for chosen in itertools.combinations(axes, n)]
    logits, total = np.zeros((outputs, *grid), dtype=np.float32), np.zeros(grid, dtype=np.float32)
    for number, origin in enumerate(origins, start=1):
        where = tuple(slice(first, first + p) for first, p in zip(origin, patch))
        found = []
        for (_, run), image in zip(networks, padded):
            part = image[(slice(None), *where)][None]
            mirrored = [np.flip(run(np.ascontiguousarray(np.flip(part, chosen))), chosen)[0] for chosen in flips]
            found.append(np.mean(mirrored, axis=0))
        logits[(slice(None), *where)] += mean_of(found, manifest["regions"] is not None) * weight
        total[where] += weight
        if sys.stderr.isatty():
            print(f"\r{number} of {len(origins)} windows ", end="\n" if number == len(origins) else "", file=sys.stderr)
    logits /= total
    return logits[(slice(None), *(slice(m // 2, m // 2 + n) for m, n in zip(missing, size)))]


def mean_of(found: Sequence[np.ndarray], regions: bool) -> np.ndarray:
    """The logits [K, *P] of one network, or the mean probabilities of several; of regions less one half."""
    if len(found) == 1:
        return found[0]
    if regions:
        return np.asarray(np.mean([1 / (1 + np.exp(-logits)) - 0.5 for logits in found], axis=0))
    powers = [np.exp(logits - logits.max(axis=0)) for logits in found]
    return np.asarray(np.mean([power / power.sum(axis=0) for power in powers], axis=0))


def keep_largest(label: np.ndarray, classes: list[int], becomes: int) -> None:
    """Turn all but the largest component (26 neighbours, first of equals) of classes, or of all, into another one."""
    mask = np.isin(label, classes) if classes else label != 0
    components, count = ndimage.label(mask, structure=np.ones((3, 3, 3), dtype=bool))
    if count > 1:
        sizes = np.bincount(components.ravel())
        sizes[0] = 0
        label[(components > 0) & (components != sizes.argmax())] = becomes


def write(path: Path, label: np.ndarray, manifest: dict[str, Any], scan: Scan) -> None:
    """Write class indices [D, H, W] as label values with the scan's affine and header, and say how much there is."""
    values = np.array([entry["value"] for entry in manifest["labels"]])
    kind = next(t for t in (np.uint8, np.int16, np.int32) if (values.astype(t) == values).all())
    back = ornt_transform(RAS, io_orientation(scan.source.affine))
    voxels = apply_orientation(values.astype(kind)[label].transpose(2, 1, 0), back)
    header = scan.source.header.copy()
    header.extensions.clear()
    header["cal_min"] = header["cal_max"] = 0
    header.set_data_dtype(kind)
    header.set_slope_inter(1, 0)
    voxels = voxels.reshape(scan.source.shape[:3])
    data = type(scan.source)(voxels, scan.source.affine, header).to_bytes()
    packed = gzip.compress(data, 3, mtime=0) if path.name.lower().endswith(".gz") else data
    partial = partial_of(path)  # OUT appears complete or not at all
    try:
        partial.write_bytes(packed)
        os.replace(partial, path)
    except OSError as error:
        sys.exit(f"error: {path} cannot be written: {error.strerror}")
    voxel = math.prod(scan.spacing) / 1000.0
    counts = np.bincount(label.ravel(), minlength=len(values))
    entries = manifest["regions"] or [{"name": e["name"], "classes": [e["index"]]} for e in manifest["labels"][1:]]
    volumes = [f"{e['name']} {sum(counts[i] for i in e['classes']) * voxel:.2f} mL" for e in entries]
    print(f"{path}: {', '.join(volumes)}")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"error: {error}")
