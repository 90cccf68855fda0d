"""Synthetic DICOM series for tests; needs pydicom."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_series(
    folder: Path,
    voxels: np.ndarray,
    *,
    spacing: Sequence[float] = (2.5, 0.8, 0.7),
    origin: Sequence[float] = (-10.0, -20.0, 30.0),
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    slope: float | Sequence[float] = 1,
    intercept: float = 0,
    uid: str = "1.2.826.0.1.3680043.8.498.1",
    number: int = 3,
    shear: float = 0.0,
    names: Sequence[str] | None = None,
    **changes: Any,
) -> list[Path]:
    """Write slices [k, row, column] of whole numbers, in reverse order of their names.

    Args:
        folder: Made if it is not there.
        voxels: Stored numbers, int16 or uint16.
        spacing: Of slices, rows and columns in mm.
        origin: Of the first slice, LPS mm.
        orientation: Directions along a row and along a column.
        slope: RescaleSlope, of all slices or of each.
        intercept: RescaleIntercept.
        uid: Of the series.
        number: Of the series.
        shear: Shift of each slice along its columns in mm, as by a tilted gantry.
        names: File names.
        changes: Further attributes.
    """
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset

    folder.mkdir(parents=True, exist_ok=True)
    along = np.cross(orientation[:3], orientation[3:])
    slopes = [slope] * len(voxels) if isinstance(slope, int | float) else slope
    paths = []
    for k, plane in enumerate(voxels):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        meta.MediaStorageSOPInstanceUID = f"{uid}.{k + 1}"
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        path = folder / (names[k] if names else f"IM{len(voxels) - k:04d}")
        file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        file.PatientID, file.PatientName, file.PatientBirthDate, file.PatientSex = "p1", "A^B", "", ""
        file.StudyInstanceUID, file.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.9", uid
        file.FrameOfReferenceUID, file.PositionReferenceIndicator = "1.2.826.0.1.3680043.8.498.8", ""
        file.StudyDate, file.StudyTime, file.AccessionNumber, file.StudyID = "20260101", "120000", "", "1"
        file.ReferringPhysicianName, file.Modality, file.SeriesNumber, file.InstanceNumber = "", "CT", number, k + 1
        file.Rows, file.Columns = plane.shape
        file.ImageOrientationPatient = list(orientation)
        shifted = np.add(origin, along * spacing[0] * k + np.multiply(orientation[3:], shear * k))
        file.ImagePositionPatient = [f"{value:.6g}" for value in shifted]
        file.PixelSpacing, file.SliceThickness = [spacing[1], spacing[2]], spacing[0]
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
        file.PixelRepresentation = int(voxels.dtype == np.int16)
        file.RescaleSlope, file.RescaleIntercept = slopes[k], intercept
        file.PixelData = plane.tobytes()
        for key, value in changes.items():
            setattr(file, key, value)
        file.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def write_enhanced(
    path: Path,
    voxels: np.ndarray,
    *,
    order: Sequence[int] | None = None,
    spacing: Sequence[float] = (2.5, 0.8, 0.7),
    origin: Sequence[float] = (-10.0, -20.0, 30.0),
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    slope: float | Sequence[float] = 1,
    intercept: float = 0,
    shared: bool = True,
    modality: str = "CT",
    uid: str = "1.2.826.0.1.3680043.8.498.2",
    **changes: Any,
) -> Path:
    """Write slices [k, row, column] as the frames of one enhanced object.

    Args:
        path: The file; its folder is made if it is not there.
        voxels: Stored numbers, int16 or uint16, from the first position on.
        order: Slice of every frame; as they are if not given.
        spacing: Of slices, rows and columns in mm.
        origin: Of the first slice, LPS mm.
        orientation: Directions along a row and along a column.
        slope: RescaleSlope, of all slices or of each.
        intercept: RescaleIntercept.
        shared: Whether orientation and voxel size are said once, or for every frame.
        modality: CT or MR.
        uid: Of the series.
        changes: Further attributes.
    """
    import pydicom
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = f"1.2.840.10008.5.1.4.1.1.{'2.1' if modality == 'CT' else '4.1'}"
    meta.MediaStorageSOPInstanceUID = f"{uid}.1"
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.PatientID, file.PatientName, file.PatientBirthDate, file.PatientSex = "p1", "A^B", "", ""
    file.StudyInstanceUID, file.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.9", uid
    file.FrameOfReferenceUID, file.PositionReferenceIndicator = "1.2.826.0.1.3680043.8.498.8", ""
    file.StudyDate, file.StudyTime, file.AccessionNumber, file.StudyID = "20260101", "120000", "", "1"
    file.ReferringPhysicianName, file.Modality, file.SeriesNumber, file.InstanceNumber = "", modality, 4, 1
    file.Rows, file.Columns = voxels.shape[1:]
    file.NumberOfFrames = len(voxels)
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
    file.PixelRepresentation = int(voxels.dtype == np.int16)

    def item(**values: Any) -> list[Dataset]:
        made = Dataset()
        for key, value in values.items():
            setattr(made, key, value)
        return [made]

    def tell_shared(groups: Dataset) -> None:
        groups.PlaneOrientationSequence = item(ImageOrientationPatient=list(orientation))
        groups.PixelMeasuresSequence = item(PixelSpacing=[spacing[1], spacing[2]], SliceThickness=spacing[0])

    along = np.cross(orientation[:3], orientation[3:])
    slopes = [slope] * len(voxels) if isinstance(slope, int | float) else slope
    order = range(len(voxels)) if order is None else order
    frames, common = [], Dataset()
    if shared:
        tell_shared(common)
    for k in order:
        groups = Dataset()
        place = [f"{value:.8g}" for value in np.add(origin, along * spacing[0] * k)]
        groups.PlanePositionSequence = item(ImagePositionPatient=place)
        scale = item(RescaleSlope=slopes[k], RescaleIntercept=intercept, RescaleType="HU")
        groups.PixelValueTransformationSequence = scale
        if not shared:
            tell_shared(groups)
        frames.append(groups)
    file.SharedFunctionalGroupsSequence, file.PerFrameFunctionalGroupsSequence = [common], frames
    file.PixelData = np.ascontiguousarray(voxels[list(order)]).tobytes()
    for key, value in changes.items():
        setattr(file, key, value)
    file.save_as(path, enforce_file_format=True)
    return path
