"""New samples without labels, as a user has them: an image, a folder, a table, an array file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np

from medtrain.data.arrays import array_header
from medtrain.data.cells import Cells, read_cells
from medtrain.data.columns import FIELD, TableColumns
from medtrain.data.images.plan import ImagePlan
from medtrain.data.io.dicom import is_dicom
from medtrain.data.io.dicom_series import is_dicom_file
from medtrain.data.io.image_series import state_of
from medtrain.data.io.images import KINDS, image_error, image_stem, is_image
from medtrain.data.sample import ArrayItem, ImageRef, Sample, SampleSet
from medtrain.data.splits import some
from medtrain.data.table import read_table
from medtrain.data.tabular import TabularEncoder
from medtrain.errors import UsageError

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".pq")
"""Endings of files that are read as tables."""

_TRIED = 20
_HEAD_BYTES = 132


def read_new(
    path: Path,
    plan: ImagePlan,
    *,
    columns: TableColumns | None,
    root: Path | None = None,
    separator: str | None = None,
    encoding: str = "utf-8-sig",
) -> SampleSet:
    """Find the samples that a model is to be applied to; what is wrong with their images is found when they are read.

    Args:
        path: One image; a folder of images, searched with the folders below it (of bags: a folder per bag, or one bag;
            of volumes: folders of DICOM slices are one each); a table; or an `.npz` file with images as MedMNIST has
            them.
        plan: What the model takes.
        columns: Columns of the table that the model was trained on; None where that was no table: then a new one needs
            a column `image`.
        root: Folder that the images of the training table are below; the new table's own is tried first.
        separator: Of a table.
        encoding: Of a table.

    Raises:
        UsageError: There is nothing, or it is not enough for the model.
        DataError: Everything that is wrong with a table.
    """
    if not path.exists():
        raise UsageError(f"no such file or folder: {path}")
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        return _from_table(path, plan, columns, root, separator, encoding)
    _require_only_images(path, plan, columns)
    if path.is_dir():
        bags = plan.max_instances is not None
        series = _series_of_folder(path) if plan.spatial_dims == 3 and not bags else []
        found = series or (_bags_of_folder(path) if bags else _images_of_folder(path))
        return SampleSet(path.name, path, tuple(found), (), bags=bags)
    if path.suffix.lower() == ".npz":
        return SampleSet(path.stem, path.parent, tuple(_images_of_arrays(path)), ())
    sample = Sample(image_stem(path.name), (path,), (), group=path.name)
    return SampleSet(path.stem, path.parent, (sample,), (), bags=plan.max_instances is not None)


def _require_only_images(path: Path, plan: ImagePlan, columns: TableColumns | None) -> None:
    """Refuse what names no values to models that take some."""
    if plan.tabular is None and not plan.view_names and plan.has_images:
        return
    takes = []
    if plan.tabular is not None:
        names = _columns_of(plan.tabular)
        takes.append(f"values of a table ({some(names)})")
    if plan.view_names:
        takes.append(f"views ({', '.join(plan.view_names)})")
    wanted = _without_labels(columns, plan).names() if columns is not None else []
    raise UsageError(
        f"the model takes {' and '.join(takes)}, which {path} does not tell",
        hint=f"give a table (.csv, .tsv or .parquet) with the columns {', '.join(wanted)}",
    )


def _columns_of(tabular: TabularEncoder) -> list[str]:
    return [*(state.column for state in tabular.numeric), *(state.column for state in tabular.categorical)]


def _from_table(
    path: Path,
    plan: ImagePlan,
    columns: TableColumns | None,
    root: Path | None,
    separator: str | None,
    encoding: str,
) -> SampleSet:
    columns = _without_labels(columns or TableColumns(images=("image",)), plan)
    cells = read_cells(path, separator=separator, encoding=encoding)
    if not (columns.view or columns.bag) and columns.sample_id not in cells.header:
        columns = dataclasses.replace(columns, sample_id=None)
    folder, below = _place_of_images(cells, columns, path.parent, root)
    return read_table(
        path,
        dataclasses.replace(columns, image_folder=below),
        root=folder,
        separator=separator,
        encoding=encoding,
        require_files=False,
    )


def _without_labels(columns: TableColumns, plan: ImagePlan) -> TableColumns:
    """The columns that a model looks at; a sample without an image is a matter of that sample."""
    return dataclasses.replace(
        columns,
        targets=(),
        group=None,
        group_pattern=None,
        part=None,
        annotation=None,
        annotation_box=None,
        annotation_point=None,
        metadata=(),
        missing_images=True,
        views=plan.view_names if columns.view else None,
    )


def _place_of_images(cells: Cells, columns: TableColumns, own: Path, root: Path | None) -> tuple[Path, str]:
    """Folder and subfolder of the images: those of the new table, unless only the old ones have any of its images."""
    places = [(own, columns.image_folder), (own, "")]
    if root is not None:
        places += [(root, columns.image_folder), (root, "")]
    if columns.image_pattern is not None and set(FIELD.findall(columns.image_pattern)) <= set(cells.header):
        rows = [dict(zip(cells.header, row)) for row in cells.rows[:_TRIED]]
        texts = [FIELD.sub(lambda match, row=row: row[match[1]], columns.image_pattern) for row in rows]  # type: ignore[misc]
    else:
        names = [name for name in columns.images if name in cells.header]
        texts = [text for name in names for text in cells.column(name)[:_TRIED] if text]
    suffix = columns.image_suffix
    texts = [text if text.lower().endswith(suffix.lower()) else text + suffix for text in texts]
    for folder, below in places:
        if any((folder / below / text).exists() for text in texts):
            return folder, below
    return places[0]


def _series_of_folder(folder: Path) -> list[Sample]:
    """One sample per folder of DICOM slices, if there are any: a model of volumes looks at no single slice."""
    names = [path.parent for path in _image_files(folder) if is_dicom_file(path)]
    found = [parent for parent, count in sorted(Counter(names).items()) if count > 1]
    ids = {path: path.relative_to(folder).as_posix() if path != folder else folder.name for path in found}
    return [Sample(ids[path], (path,), (), group=ids[path]) for path in found]


def _images_of_folder(folder: Path) -> list[Sample]:
    files = _image_files(folder)
    if not files:
        raise _nothing_in(folder)
    names = {path: path.relative_to(folder).as_posix() for path in files}
    stems = {path: image_stem(name) for path, name in names.items()}
    times = Counter(stems.values())
    ids = {path: names[path] if times[stem] > 1 else stem for path, stem in stems.items()}
    samples = [Sample(ids[path], (path,), (), group=ids[path]) for path in files]
    return sorted(samples, key=lambda sample: sample.sample_id)


def _bags_of_folder(folder: Path) -> list[Sample]:
    """One bag per folder below, of all images in it; or the folder's own images as one bag."""
    direct = [path for path in _children(folder) if path.is_file() and _looks_like_image(path)]
    bags = {child: _image_files(child) for child in _children(folder) if child.is_dir()}
    bags = {child: files for child, files in bags.items() if files}
    if direct and bags:
        raise UsageError(
            f"{folder} holds images and folders of images: it is unclear what the bags are",
            hint="put each bag's images into a folder of its own, or give a table",
        )
    if not direct and not bags:
        raise _nothing_in(folder)
    bags = bags or {folder: direct}
    return [Sample(child.name, tuple(files), (), group=child.name) for child, files in sorted(bags.items())]


def _nothing_in(folder: Path) -> UsageError:
    tables = [path for path in _children(folder) if path.suffix.lower() in TABLE_SUFFIXES]
    return UsageError(f"{folder} holds no images ({KINDS})", hint=f"to read a table: {tables[0]}" if tables else None)


def _image_files(folder: Path) -> list[Path]:
    """The images below a folder by name; hidden files and folders are passed over."""
    found: list[Path] = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [path for name in files if _looks_like_image(path := Path(place) / name)]
    return sorted(found)


def _children(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if not child.name.startswith("."))


def _looks_like_image(path: Path) -> bool:
    """By its name, or the mark of DICOM files, which often have no suffix."""
    if is_image(path):
        return True
    if path.name.startswith(".") or (path.suffix and not path.suffix[1:].isdigit()):
        return False
    try:
        with path.open("rb") as stream:
            return is_dicom(stream.read(_HEAD_BYTES), path)
    except OSError:
        return False


def _images_of_arrays(path: Path) -> list[Sample]:
    """One sample per image of every array `<part>_images`, or of the only array."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            named = [key for key in file.files if key == "images" or key.endswith("_images")]
            keys = named or (list(file.files) if len(file.files) == 1 else [])
            counts = {key: array_header(path, key)[0][0] for key in keys}
    except (OSError, ValueError, EOFError, TypeError) as error:
        message = f"not an .npz file, or damaged: {' '.join(str(error).split())}"
        raise image_error(path, message) from None
    if not counts:
        raise image_error(path, "holds no array whose name ends in `images`")
    samples = []
    for key, count in sorted(counts.items()):
        start = key.removesuffix("images")
        ids = [f"{start}{row:06d}" for row in range(count)]
        samples += [Sample(name, (ArrayItem(path, key, row),), (), group=name) for row, name in enumerate(ids)]
    return samples


def told_files(sample: Sample, root: Path) -> str:
    """The files of a sample as a person would name them, `;` between several; empty where there is none.

    Args:
        sample: Its images may be missing.
        root: Of the set; paths below it are told from there.
    """
    return ";".join("" if ref is None else told_file(ref, root) for ref in sample.images)


def told_file(ref: ImageRef, root: Path) -> str:
    """One file as a person would name it."""
    return str(ref).removeprefix(f"{root}{os.sep}")


def input_digest(sample: Sample) -> str:
    """What tells whether a sample is the one of before: its files, by place, size and time, and its values.

    Args:
        sample: Its images may be missing.
    """
    files = [None if ref is None else [os.path.abspath(str(ref)), *_state_of(ref)] for ref in sample.images]
    told = json.dumps([files, sample.numeric, sample.categorical])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _state_of(ref: ImageRef) -> list[int]:
    """Size and time of a file; nothing where it is not there."""
    try:
        return list(state_of(ref if isinstance(ref, Path) else ref.path))
    except OSError:
        return []
