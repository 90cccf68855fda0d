"""Enhanced DICOM objects (CT, MR): a file whose frames are slices, each with its own place and scale.

What a file of one slice says of itself stands there in functional groups, of each frame or shared by all (DICOM PS3.3,
C.7.6.16).
"""

from __future__ import annotations

from typing import Any

FRAMES, SHARED = "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"
_OF_FILE = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation")
_MACROS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
}
"""Functional groups, and what they hold that the header of a file of one slice would."""


def is_enhanced(header: Any) -> bool:
    """Whether a file's header describes its frames one by one."""
    return bool(header.get(FRAMES))


def frame_headers(header: Any) -> list[Any]:
    """A header for every frame of an enhanced object, as a file of this slice alone would have it.

    Args:
        header: Of the file, with its functional groups.
    """
    import pydicom

    shared = list(header.get(SHARED) or ())
    found = []
    for frame in header[FRAMES].value:
        flat = pydicom.Dataset()
        for name in _OF_FILE:
            if name in header:
                flat[name] = header[name]
        for macro, names in _MACROS.items():
            items = next((groups[macro].value for groups in (frame, *shared) if groups.get(macro)), ())
            for name in names:
                if items and name in items[0]:
                    flat[name] = items[0][name]
        found.append(flat)
    return found
