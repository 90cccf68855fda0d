"""Classify, grade or measure images with an exported network: python predict.py IN OUT.csv.

Reads manifest.json and the ONNX file beside it. Needs Python 3.9 or later and
    pip install numpy opencv-python-headless onnxruntime        (and nibabel for NIfTI files)

IN is one image (PNG, JPEG, NIfTI), a folder of images (for a network of bags: of one folder per bag), or a table (.csv)
with the columns of values that the network takes and `image` (paths below the table's folder; instead one column per
view, named as in the manifest; beside it `bag` for bags; `id` if you like). OUT gets one row per sample.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

HERE = Path(__file__).resolve().parent
SUFFIXES = (".png", ".jpg", ".jpeg", ".nii", ".nii.gz")
MISSING = ("", "na", "n/a", "#n/a", "<na>", "nan", "null")
JPEG_REDUCED = {8: cv2.IMREAD_REDUCED_GRAYSCALE_8, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2}
Runner = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


class UnusableError(Exception):
    """Why a sample cannot be predicted."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=f"Predict {', '.join(t['name'] for t in manifest['targets'])}.")
    parser.add_argument("source", metavar="IN", type=Path, help="an image, a folder, or a table (.csv)")
    parser.add_argument("out", metavar="OUT", type=Path, help="the table to write, .csv")
    given = parser.parse_args(arguments)
    if given.out.suffix.lower() != ".csv" or given.out.is_dir() or given.out.resolve() == given.source.resolve():
        sys.exit(f"error: {given.out}: the table to write must end in .csv, and be neither IN nor a folder")
    samples, run = find_samples(given.source, manifest), load_network(manifest)
    partial = given.out.with_name(f".{given.out.name}.partial")  # OUT appears complete or not at all
    with partial.open("w", encoding="utf-8", newline="") as stream:  # now: what cannot be written is told at once
        rows: list[dict[str, Any]] = []
        for sample in samples:
            rows.append({"case_id": sample["id"], "status": "done", "message": ""})
            try:
                rows[-1].update(predict(sample, manifest, run))
            except Exception as error:  # whatever it is, of onnxruntime for instance, the other samples go on
                message = " ".join(f"{type(error).__name__}: {error}".split()).removeprefix("UnusableError: ")
                rows[-1].update(status="failed", message=message)
                print(f"error: {sample['id']}: {message}", file=sys.stderr)
        header = list(dict.fromkeys(key for row in rows for key in row))
        csv.writer(stream, lineterminator="\n").writerows([header, *([row.get(key) for key in header] for row in rows)])
    os.replace(partial, given.out)
    sys.exit(1 if any(row["status"] == "failed" for row in rows) else 0)


def load_network(manifest: dict[str, Any]) -> Runner:
    """The ONNX file as a function from named inputs to its outputs."""
    import onnxruntime

    (entry,) = (file for file in manifest["files"] if file["format"] == "onnx")
    content = (HERE / entry["file"]).read_bytes()
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        sys.exit(f"error: {HERE / entry['file']} is damaged or of another export: manifest.json has another checksum")
    providers = [name for name in onnxruntime.get_available_providers() if name.startswith(("CUDA", "CPU"))]
    session = onnxruntime.InferenceSession(content, providers=providers)
    taken = {entry.name for entry in session.get_inputs()}
    outputs = [entry["name"] for entry in manifest["outputs"]]
    return lambda inputs: session.run(outputs, {name: value for name, value in inputs.items() if name in taken})


def find_samples(source: Path, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Samples by id: paths of their images (None where a view is missing) and values of the table."""
    if source.suffix.lower() == ".csv":
        return samples_of_table(source, manifest)
    if manifest["tabular"] or manifest["views"]:
        sys.exit("error: the network takes views or values of a table: IN must be a table (.csv)")
    if source.is_file():
        return [{"id": stem(source.name), "images": [source], "values": {}}]
    if manifest["bags"]:
        bags = {folder.name: images_below(folder) for folder in sorted(source.iterdir()) if folder.is_dir()}
        bags = {name: files for name, files in bags.items() if files} or {source.name: images_below(source)}
        return [{"id": name, "images": files, "values": {}} for name, files in bags.items()]
    if not (files := images_below(source)):
        sys.exit(f"error: {source} is neither an image nor a folder of images ({', '.join(SUFFIXES)})")
    return [{"id": stem(file.relative_to(source).as_posix()), "images": [file], "values": {}} for file in files]


def images_below(folder: Path) -> list[Path]:
    """The images of a folder and those below it by name."""
    return sorted(p for p in folder.rglob("*") if p.name.lower().endswith(SUFFIXES) and p.name[0] != ".")


def stem(name: str) -> str:
    """A name without its image suffix."""
    return next((name[: -len(suffix)] for suffix in SUFFIXES if name.lower().endswith(suffix)), name)


def samples_of_table(path: Path, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """One sample per row, or per bag."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = [{key: (row[key] or "").strip() for key in row if key} for row in csv.DictReader(stream)]
    except (UnicodeDecodeError, csv.Error) as error:
        sys.exit(f"error: {path} is no readable table of UTF-8 text with commas: {error}")
    images = (manifest["views"] or ["image"]) if manifest["preprocessing"] else []
    tabular = manifest["tabular"] or {"numeric": [], "categorical": []}
    values = [entry["column"] for entry in (*tabular["numeric"], *tabular["categorical"])]
    wanted = [*images, *values, *(["bag"] if manifest["bags"] else [])]
    lacking = [name for name in wanted if rows and name not in rows[0]]
    if lacking or not rows:
        why = f"lacks the columns {', '.join(lacking)}; it has {', '.join(rows[0])}" if rows else "has no rows"
        sys.exit(f"error: {path} {why}")
    samples: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows, start=2):
        cells = {name: "" if text.lower() in MISSING else text for name, text in row.items()}
        files = [path.parent / cells[name] if cells[name] else None for name in images]
        first = next((cells[name] for name in images if cells[name]), "")
        key = cells["bag"] if manifest["bags"] else cells.get("id") or stem(first) or f"line_{number}"
        if key in samples and not manifest["bags"]:
            sys.exit(f"error: {path}: lines {samples[key]['line']} and {number} have the same id, {key}")
        given = {name: cells[name] for name in values}
        samples.setdefault(key, {"id": key, "line": number, "images": [], "values": given})["images"] += files
    return list(samples.values())


def read_image(path: Path, rules: dict[str, Any]) -> np.ndarray:
    """One image as the network takes it: [C, *image_size] float32, normalised."""
    size = tuple(rules["image_size"])
    array, largest = decode(path, rules)
    if array.ndim - 1 != rules["spatial_dims"] or len(array) != rules["channels"]:
        raise UnusableError(f"{path.name} has the shape {array.shape}, not {rules['channels']} channels of {size}")
    array = np.ascontiguousarray(np.moveaxis(scale(array, largest, rules), 0, -1))
    limit, kept = rules["reduced_above"], rules["reduced_to"]
    plane = height, width = array.shape[-3:-1]
    ratio = min(height / size[-2], width / size[-1])
    if ratio > limit:
        plane = (max(1, round(height * kept / ratio)), max(1, round(width * kept / ratio)))
    depth = tuple(min(have, want) for have, want in zip(array.shape[:-3], size[:-2]))
    array = stretch(array, (*depth, *plane))
    if array.dtype != np.uint8:
        array = array.astype(np.float16).astype(np.float32)
    array = fit(array, size, rules["resize"])
    values = array.astype(np.float64) / (255 if array.dtype == np.uint8 else 1)
    normalised = (values - rules["mean"]) / rules["std"]
    return np.moveaxis(normalised, -1, 0).astype(np.float32)


def decode(path: Path, rules: dict[str, Any]) -> tuple[np.ndarray, float | None]:
    """[C, *S] in the file's own type, and the largest value of its kind; None where values mean something."""
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return decode_nifti(path, rules["channels"])
    data = path.read_bytes()
    jpeg = data.startswith(b"\xff\xd8\xff")
    end = b"\xff\xd9" if jpeg else b"IEND\xaeB`\x82"
    if not jpeg and not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise UnusableError(f"{path.name} is no PNG, JPEG or NIfTI file")
    if data.rfind(end) < 0:
        raise UnusableError(f"{path.name} is truncated")
    flags = cv2.IMREAD_GRAYSCALE if rules["channels"] == 1 else cv2.IMREAD_COLOR_RGB
    flags |= reduced_flag(data, rules) if jpeg else cv2.IMREAD_ANYDEPTH
    image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    if image is None:
        raise UnusableError(f"{path.name} is damaged")
    return (image[None] if image.ndim == 2 else np.moveaxis(image, -1, 0)), 256.0**image.itemsize - 1


def reduced_flag(data: bytes, rules: dict[str, Any]) -> int:
    """Large JPEG files are decoded at a fraction of their size."""
    sides, at = None, 2
    while at + 9 < len(data) and data[at] == 0xFF and sides is None:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            sides = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    least = rules["reduced_to"] * max(rules["image_size"])
    return next((flag for factor, flag in JPEG_REDUCED.items() if sides and min(sides) >= factor * least), 0)


def decode_nifti(path: Path, channels: int) -> tuple[np.ndarray, float | None]:
    """A volume in the canonical frame [C, D, H, W], or a flat one as it is stored [C, H, W]; grey or RGB."""
    import nibabel as nib

    try:
        file: Any = nib.load(path)
        flat = (*file.shape, 1)[2] == 1
        array = np.asarray((file if flat else nib.as_closest_canonical(file)).dataobj)
        if path.name.lower().endswith(".gz"):
            with gzip.open(path) as stream:
                sum(1 for _ in stream)  # to the end, where the checksum is: nibabel stops before it
    except Exception:  # what a damaged file raises has no common base
        raise UnusableError(f"{path.name} is no NIfTI file, or is truncated or damaged") from None
    if array.dtype.kind not in "iuf":
        raise UnusableError(f"{path.name} holds voxels of type {array.dtype}, not plain numbers")
    array = array.reshape(*array.shape[: 2 if flat else 3], -1).T  # [C, (D,) H, W]
    largest = 255.0 if array.dtype == np.uint8 else None
    if len(array) == 1 and channels == 3:
        array = np.broadcast_to(array, (3, *array.shape[1:]))
    if len(array) == 3 and channels == 1:
        grey = np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), array.astype(np.float32), axes=1)[None]
        array = (np.rint(grey) if array.dtype.kind in "iu" else grey).astype(array.dtype)
    return array, largest


def scale(array: np.ndarray, largest: float | None, rules: dict[str, Any]) -> np.ndarray:
    """uint8 as it is, or float32 from 0 to 1."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UnusableError("holds NaN or infinite values")
    window, scheme = rules["window"], rules["scaling"]
    if window is not None:
        if largest is not None:
            raise UnusableError("holds no Hounsfield units, which the network's window is for")
        start = np.float32(window["centre"] - window["width"] / 2)
        return np.clip((array.astype(np.float32) - start) / np.float32(window["width"]), 0, 1)
    if array.dtype == np.uint8 and largest == 255 and scheme in ("auto", "full_range"):
        return array
    if scheme == "full_range":
        if largest is None:
            raise UnusableError("its values have no largest one to be divided by")
        return np.divide(array, np.float32(largest), dtype=np.float32)
    ends = (array.min(), array.max()) if scheme == "min_max" else np.percentile(array, (0.5, 99.5))
    low, high = float(ends[0]), float(ends[1])
    if high <= low:
        return np.zeros(array.shape, dtype=np.float32)
    return np.clip((array - np.float64(low)) / (high - low), 0, 1).astype(np.float32)


def fit(array: np.ndarray, size: Sequence[int], mode: str) -> np.ndarray:
    """Bring [*S, C] to a size: letterbox, stretch or crop."""
    height, width = array.shape[-3:-1]
    inner = tuple(size[-2:])
    if mode != "stretch":
        pick = min if mode == "letterbox" else max
        factor = pick(size[-2] / height, size[-1] / width)
        inner = tuple(pick(whole, max(1, round(side * factor))) for side, whole in zip((height, width), size[-2:]))
    array = stretch(array, (*size[:-2], *inner))
    for axis, want in enumerate(size):
        have, pad = array.shape[axis], [(0, 0)] * array.ndim
        room = abs(have - want) // 2
        pad[axis] = (room, max(0, want - have) - room) if have < want else (0, 0)
        array = np.pad(array, pad) if have < want else array.take(range(room, room + want), axis)
    return array


def stretch(array: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resample [*S, C] linearly with antialiasing: the last axis first, then rows, then depth."""
    for axis in reversed(range(len(size))):
        if array.shape[axis] != size[axis]:
            array = resample(array, axis, size[axis])
    return array


def resample(array: np.ndarray, axis: int, count: int) -> np.ndarray:
    """One axis of an array; 8-bit values with the whole-number weights of Pillow and torch, rounded."""
    weights = triangle_weights(array.shape[axis], count)
    moved = np.moveaxis(array, axis, -1)
    if array.dtype != np.uint8:
        return np.moveaxis((moved @ weights.T.astype(np.float32)).astype(np.float32), -1, axis)
    bits = 0
    while bits < 22 and int(0.5 + weights.max() * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    whole = np.floor(weights * (1 << bits) + 0.5)
    summed = moved.astype(np.float64) @ whole.T + (1 << (bits - 1))
    return np.moveaxis(np.clip(np.floor(summed / (1 << bits)), 0, 255).astype(np.uint8), -1, axis)


def triangle_weights(have: int, want: int) -> np.ndarray:
    """Weights [want, have]: a triangle as wide as an output pixel, at least as two input pixels."""
    ratio = have / want
    support = max(ratio, 1.0)
    weights = np.zeros((want, have))
    for place in range(want):
        centre = ratio * (place + 0.5)
        first, last = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), have)
        row = np.maximum(0.0, 1.0 - np.abs((np.arange(first, last) - centre + 0.5) / support))
        weights[place, first:last] = row / row.sum()
    return weights


def predict(sample: dict[str, Any], manifest: dict[str, Any], run: Runner) -> dict[str, Any]:
    """The columns of a sample's row."""
    inputs: dict[str, np.ndarray] = {}
    rules = manifest["preprocessing"]
    if rules:
        there = [path is not None for path in sample["images"]]
        if not any(there) and not manifest["image_is_optional"]:
            raise UnusableError("has no image")
        blank = np.zeros((rules["channels"], *rules["image_size"]), dtype=np.float32)
        images = [blank if path is None else read_image(path, rules) for path in sample["images"]]
        inputs["image"] = (np.stack(images) if manifest["views"] or manifest["bags"] else images[0])[None]
        inputs["present"] = np.array([there])
    if manifest["tabular"]:
        inputs.update(encode(sample["values"], manifest["tabular"]))
    axes = [axis - (rules["spatial_dims"] if rules else 0) for axis in manifest["mirroring"]["axes"]]
    flips = [chosen for n in range(len(axes) + 1) for chosen in itertools.combinations(axes, n)]
    sums: list[Any] = [0.0] * len(manifest["prediction"])
    attention = None
    for chosen in flips:
        flipped = {**inputs, "image": np.ascontiguousarray(np.flip(inputs["image"], chosen))} if chosen else inputs
        found = run(flipped)
        attention = found[1][0] if len(found) > 1 and not chosen else attention
        logits = np.asarray(found[0], dtype=np.float64).reshape(-1)
        said = [activate(logits, part) for part in manifest["prediction"]]
        if -1 in chosen:  # left and right are swapped back
            order = [part["when_mirrored"] for part in manifest["prediction"]]
            said = [np.stack([said[i][row] for i, row in its]) if its else own for own, its in zip(said, order)]
        sums = [total + each for total, each in zip(sums, said)]
    row: dict[str, Any] = {}
    for part, total in zip(manifest["prediction"], sums):
        row.update({part["prefix"] + key: value for key, value in decide(total / len(flips), part).items()})
    if attention is not None:
        row["attention"] = " ".join(f"{weight:.6g}" for weight in attention)
    return row


def encode(values: dict[str, str], rules: dict[str, Any]) -> dict[str, np.ndarray]:
    """The values of a table as numeric, categorical and observed."""
    numbers, missing, codes = [], [], []
    for entry in rules["numeric"]:
        text = values[entry["column"]]
        try:
            number = float(text) if text else None
        except ValueError:
            raise UnusableError(f"{entry['column']}: {text!r} is not a number") from None
        missing.append(number is None)
        numbers.append(((entry["fill"] if number is None else number) - entry["mean"]) / entry["scale"])
    for entry in rules["categorical"]:
        text, known, unseen = values[entry["column"]], entry["categories"], rules["unseen_code"]
        codes.append(rules["missing_code"] if not text else known.index(text) + unseen + 1 if text in known else unseen)
    told = missing if rules["indicators"] else []
    observed = [not value for value in missing] + [code != rules["missing_code"] for code in codes]
    arrays = {"numeric": np.array([numbers + told], dtype=np.float32), "observed": np.array([observed])}
    return {**arrays, "categorical": np.array([codes], dtype=np.int64).reshape(1, len(codes))}


def sigmoid(values: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return np.exp(-np.logaddexp(0.0, -values))


def softmax(values: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    return np.exp(values - np.logaddexp.reduce(values, axis=-1, keepdims=True))


def activate(logits: np.ndarray, part: dict[str, Any]) -> np.ndarray:
    """Predictions that may be averaged: [targets, classes], or one number per target or time."""
    rule, names = part["activation"], part["targets"]
    logits = logits[part["logits"][0] : part["logits"][1]]
    kind = rule["kind"]
    if kind == "hazards":
        return np.exp(np.cumsum(-np.logaddexp(0.0, logits))[:-1])
    if kind == "identity":
        return logits
    if kind == "standardised":
        numbers = logits * [entry["std"] for entry in rule["targets"]] + [entry["mean"] for entry in rule["targets"]]
        return numbers.astype(np.float32).astype(np.float64)
    logits = logits.reshape(len(names), -1)
    if kind == "softmax":
        probs = softmax(logits)
    elif kind == "sigmoid":
        probs = np.concatenate([sigmoid(-logits), sigmoid(logits)], axis=1)
    else:
        if rule["form"] == "ordered":
            falls = np.cumsum(np.logaddexp(0.0, logits[:, 1:]), axis=1)
            logits = np.concatenate([logits[:, :1], logits[:, :1] - falls], axis=1)
        above = sigmoid(logits)
        above = np.cumprod(above, axis=1) if rule["form"] == "conditional" else np.minimum.accumulate(above, axis=1)
        probs = -np.diff(np.pad(above, ((0, 0), (1, 1)), constant_values=((0, 0), (1, 0))), axis=1)
    return np.asarray(probs)


def calibrate(probs: np.ndarray, temperature: float | None, *, exclusive: bool) -> np.ndarray:
    """Probabilities at a temperature."""
    if temperature is None:
        return probs
    if exclusive:
        return softmax(np.log(np.maximum(probs, np.finfo(np.float64).tiny)) / temperature)
    inside = np.clip(probs, np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg)
    return sigmoid((np.log(inside) - np.log1p(-inside)) / temperature)


def decide(said: np.ndarray, part: dict[str, Any]) -> dict[str, Any]:
    """The columns of one part: what is chosen, and the numbers behind it."""
    kind = part["kind"]
    if kind == "class":
        probs = calibrate(said[0], part["temperature"], exclusive=True)
        chosen = int(probs.argmax() if part["threshold"] is None else probs[1] >= part["threshold"])
        return {"predicted": part["classes"][chosen], **named("prob", part["classes"], probs)}
    if kind == "grade":
        above = np.cumsum(said[0][::-1])[::-1][1:]
        if part["temperature"] is not None:
            above = calibrate(above, part["temperature"], exclusive=False)
            said = -np.diff(np.concatenate([[1.0], above, [0.0]]))[None]
        grade = {"median": int((above > 0.5).sum()), "mode": int(said[0].argmax())}
        grade["expected"] = math.floor(float(said[0] @ np.arange(said.shape[1])) + 0.5)
        return {"predicted": part["classes"][grade[part["rule"]]], **named("prob", part["classes"], said[0])}
    if kind == "labels":
        probs = calibrate(said[:, 1], part["temperature"], exclusive=False)
        found = [name for name, prob, least in zip(part["labels"], probs, part["thresholds"]) if prob >= least]
        flags = {f"predicted/{name}": int(name in found) for name in part["labels"]}
        return {"predicted": ", ".join(found), **flags, **named("prob", part["labels"], probs)}
    if kind == "zones":
        return decide_zones(calibrate(said, part["temperature"], exclusive=True), part)
    if kind == "numbers":
        return named("predicted", part["names"], said) if part["names"] else {"predicted": float(said[0])}
    risk = float((1 - said).sum()) if part["times"] else float(said[0])
    return {"risk": risk, **named("survival", part["time_names"], said)}


def decide_zones(probs: np.ndarray, part: dict[str, Any]) -> dict[str, Any]:
    """Class and expected grade of every zone, score and risk of the image."""
    grades = len(part["classes"]) - (part["unknown_class"] is not None)
    known = probs[:, :grades]
    expected = (known / np.maximum(known.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)) @ np.arange(grades)
    chosen = probs.argmax(axis=1)
    values = (chosen.astype(float) if part["score"] == "classes" else expected)[chosen < grades]
    score = float(values.mean()) if len(values) else math.nan
    risk = part["risk_names"][int(np.searchsorted(part["cuts"], score, side="left"))] if len(values) else ""
    row: dict[str, Any] = {"score": score, "risk": risk}
    row.update({f"predicted/{zone}": part["classes"][index] for zone, index in zip(part["zones"], chosen)})
    row.update(named("grade", part["zones"], expected))
    for zone, each in zip(part["zones"], probs):
        row.update(named(f"prob/{zone}", part["classes"], each))
    return row


def named(kind: str, names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    """Columns of numbers."""
    return {f"{kind}/{name}": float(value) for name, value in zip(names, values)}


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"error: {error}")
