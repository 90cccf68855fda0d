"""Look at every image of a sample set: is it there and whole, and does it occur twice, in two parts above all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from medtrain.data.arrays import load_array
from medtrain.data.digests import DigestCache
from medtrain.data.image_sets import read_sample_image
from medtrain.data.io.image_series import series_files
from medtrain.data.io.images import check_image_bytes, image_error
from medtrain.data.sample import ImageRef, Sample, SampleSet
from medtrain.data.stratified import check_parts
from medtrain.data.workers import Progress, usable_cores
from medtrain.errors import DataError, Problem

_HEAD_BYTES = 4096
_TAIL_BYTES = 1 << 16
_T = TypeVar("_T")


@dataclass(frozen=True)
class ImageReport:
    """What was found.

    Args:
        problems: Images that cannot be read; one each.
        digests: Content digest of each image that can.
    """

    problems: tuple[Problem, ...]
    digests: dict[ImageRef, str]


def inspect_images(
    sample_set: SampleSet,
    *,
    decode: bool = False,
    cache: DigestCache | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> ImageReport:
    """Read every image and annotation once, in threads.

    Without `decode`, files are told by their first bytes and the mark they end with, and their digests are those of
    their bytes, remembered by the cache. With it every image is decoded, which finds damage in the middle, NaN, and
    one picture in two formats; it takes as long as an epoch of reading.

    Args:
        sample_set: Whose images.
        decode: See above.
        cache: Digests known from before; new ones are added and saved.
        workers: Threads; as many as there are processors, at most 8, if None.
        progress: Called with images done, images in all and the image's name.

    Raises:
        MissingExtraError: A DICOM file is to be decoded, and pydicom is not installed.
    """
    named = (ref for sample in sample_set.samples for ref in (*sample.images, sample.annotation))
    refs = list(dict.fromkeys(ref for ref in named if isinstance(ref, ImageRef)))

    def look(ref: ImageRef) -> str | Problem:
        try:
            if decode:
                return _digest_decoded(ref)
            if isinstance(ref, Path):
                return _digest_file(ref, cache)
            return _digest(load_array(ref.path, ref.key, ref.unpacked)[ref.index])
        except DataError as error:
            return error.problems[0]

    found: dict[ImageRef, str] = {}
    problems: list[Problem] = []
    prefix = f"{sample_set.root}{os.sep}"
    for done, (ref, result) in enumerate(zip(refs, _in_threads(look, refs, workers)), start=1):
        if isinstance(result, str):
            found[ref] = result
        else:
            problems.append(Problem(result.where.removeprefix(prefix), result.message, result.hint))
        if progress is not None:
            progress(done, len(refs), str(ref).removeprefix(prefix))
    if cache is not None:
        cache.save()
    return ImageReport(tuple(problems), found)


def check_leaks(
    sample_set: SampleSet, parts: Mapping[str, Sequence[str]], digests: Mapping[ImageRef, str] | None = None
) -> list[Problem]:
    """What two parts share: samples, patients, and images of equal content.

    Args:
        sample_set: The samples.
        parts: Part name -> sample ids.
        digests: From `inspect_images`; images are not compared if None.
    """
    groups = {sample.sample_id: sample.group for sample in sample_set.samples}
    problems = check_parts(parts, groups)
    if digests is None:
        return problems
    part_of = {sample_id: name for name, ids in parts.items() for sample_id in ids}
    prefix = f"{sample_set.root}{os.sep}"
    for same in _equal_images(sample_set.samples, digests):
        placed = [(part_of[sample.sample_id], ref) for sample, ref in same if sample.sample_id in part_of]
        if len({name for name, _ in placed}) < 2:
            continue
        first, ref = placed[0]
        other, second = next((name, ref) for name, ref in placed if name != first)
        problems.append(
            Problem(
                where=str(second).removeprefix(prefix),
                message=f"in {other}, is the same image as {str(ref).removeprefix(prefix)} in {first}",
                hint="remove one, or give both the same patient",
            )
        )
    return problems


def find_duplicates(sample_set: SampleSet, digests: Mapping[ImageRef, str]) -> list[Problem]:
    """Equal images of different samples, with what it means: other patients or other targets are suspicious.

    Args:
        sample_set: The samples.
        digests: From `inspect_images`.
    """
    prefix = f"{sample_set.root}{os.sep}"
    warnings = []
    for same in _equal_images(sample_set.samples, digests):
        samples = list({sample.sample_id: sample for sample, _ in same}.values())
        if len(samples) < 2:
            continue
        others = ", ".join(str(ref).removeprefix(prefix) for _, ref in same[1:])
        remarks = [
            text
            for text, values in (
                ("of different patients", {sample.group for sample in samples}),
                ("with different targets", {sample.targets for sample in samples}),
            )
            if len(values) > 1
        ]
        message = " ".join([f"the same image as {others}", *([" and ".join(remarks)] if remarks else [])])
        warnings.append(Problem(where=str(same[0][1]).removeprefix(prefix), message=message))
    return warnings


def _equal_images(samples: Sequence[Sample], digests: Mapping[ImageRef, str]) -> list[list[tuple[Sample, ImageRef]]]:
    owners: dict[str, list[tuple[Sample, ImageRef]]] = {}
    for sample in samples:
        for ref in sample.images:
            if ref is not None and ref in digests:
                owners.setdefault(digests[ref], []).append((sample, ref))
    return [same for same in owners.values() if len(same) > 1]


def _in_threads(look: Callable[[ImageRef], _T], refs: Sequence[ImageRef], workers: int | None) -> list[_T]:
    with ThreadPoolExecutor(workers or usable_cores(), thread_name_prefix="images") as pool:
        try:
            return list(pool.map(look, refs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _digest_file(path: Path, cache: DigestCache | None) -> str:
    if path.is_dir():
        parts = [_digest_file(part, cache) for part in sorted(series_files(path))]
        return hashlib.blake2b("".join(parts).encode(), digest_size=16).hexdigest()
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            data = stream.read(_HEAD_BYTES)
            if size > _HEAD_BYTES + _TAIL_BYTES:
                stream.seek(-_TAIL_BYTES, os.SEEK_END)
            data += stream.read()
        try:
            check_image_bytes(path, data)
        except DataError:
            check_image_bytes(path, path.read_bytes())  # the mark may lie further up, before something appended
        return (
            cache.digest(path) if cache is not None else hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        )
    except FileNotFoundError:
        raise image_error(path, "no such file") from None
    except OSError as error:
        raise image_error(path, f"cannot be read: {error.strerror}") from None


def _digest_decoded(ref: ImageRef) -> str:
    array = read_sample_image(ref).array
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError([Problem(str(ref), "holds NaN or infinite values", "mend or leave out this image")])
    return _digest(array)


def _digest(array: np.ndarray) -> str:
    state = hashlib.blake2b(f"{array.shape} {array.dtype}".encode(), digest_size=16)
    state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()
