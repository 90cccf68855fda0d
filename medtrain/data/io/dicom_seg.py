"""DICOM segmentation objects: a label map as one segment per class, beside the series that it belongs to.

Needs highdicom (extra `dicom`).
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from medtrain import __version__
from medtrain.data.io.dicom_series import ordered_slices, series_grid
from medtrain.errors import DataError, MissingExtraError, Problem
from medtrain.run.atomic import atomic_write

_CODES = "99MEDTRAIN"
"""Coding scheme of class names: 99 marks a private one."""


def require_highdicom() -> None:
    """See that DICOM segmentations can be written.

    Raises:
        MissingExtraError: highdicom is not installed.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("highdicom", extra="dicom", purpose="writing DICOM segmentations") from error


def write_dicom_seg(path: Path, label: np.ndarray, files: Sequence[Path], class_names: Sequence[str]) -> None:
    """Write a label map as a DICOM segmentation (binary), atomically.

    Segment k is class k. Patient, study and frame of reference are the series', and every frame names the slice that
    it lies on. Slices without any class are left out, as the standard allows.

    Args:
        path: Target, replaced.
        label: Class indices [D, H, W] in the canonical frame, on the series' grid.
        files: All files of the series.
        class_names: Name of every class index, background first.

    Raises:
        DataError: The series cannot be read any more, or lacks what a segmentation must say.
        MissingExtraError: highdicom is not installed.
    """
    require_highdicom()
    import highdicom
    import pydicom
    from highdicom.seg import Segmentation

    grid = series_grid(files)
    order = ordered_slices(files)
    sources = [pydicom.dcmread(file, stop_before_pixels=True) for file in dict.fromkeys(file for file, _ in order)]
    frames = grid.from_canonical(label).transpose(2, 1, 0)  # [slice, row, column]
    if len(sources) < len(order):
        if len(sources) > 1:
            message = "no DICOM segmentation can be written beside a scan in several enhanced objects"
            raise DataError([Problem(where=str(files[0].parent), message=message, hint="--format nifti writes one")])
        frames = frames[np.argsort([frame or 0 for _, frame in order])]  # as they are in the file
    frames = np.ascontiguousarray(frames)
    try:
        made = Segmentation(
            source_images=sources,
            pixel_array=frames.astype(np.uint8 if len(class_names) <= 256 else np.uint16),
            segmentation_type="BINARY",
            segment_descriptions=_segments(class_names),
            series_instance_uid=highdicom.UID(),
            series_number=900,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="medtrain",
            manufacturer_model_name="medtrain",
            software_versions=__version__,
            device_serial_number="0",
            omit_empty_frames=bool(frames.any()),
            series_description="medtrain segmentation",
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = f"no DICOM segmentation can be written beside it: {' '.join(str(error).split())}"
        hint = "--format nifti writes one without"
        raise DataError([Problem(where=str(files[0].parent), message=message, hint=hint)]) from error
    buffer = BytesIO()
    made.save_as(buffer)
    atomic_write(path, buffer.getvalue())


def _segments(class_names: Sequence[str]) -> list[Any]:
    """Segment k is class k; the codes of its name are this package's own."""
    import highdicom
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="medtrain", version=__version__, family=codes.cid7162.ArtificialIntelligence
    )
    return [
        SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=highdicom.sr.CodedConcept(
                value=str(number), scheme_designator=_CODES, meaning=name[:64]
            ),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(class_names[1:], start=1)
    ]
