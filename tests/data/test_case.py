from pathlib import Path

from medtrain.data.case import Case, Dataset


def test_classes_are_positions_and_values_are_what_files_hold() -> None:
    dataset = Dataset(
        dataset_name="liver",
        root=Path("/scans"),
        channel_names=("CT",),
        labels={"background": 0, "liver": 3, "cancer": 7},
        ignore_value=255,
        cases=(Case("a", images=(Path("/scans/a.nii.gz"),), label=None, group="p"),),
        test_cases=(),
    )
    assert dataset.num_channels == 1
    assert dataset.num_classes == 3
    assert dataset.class_names == ("background", "liver", "cancer")
    assert dataset.label_values == (0, 3, 7)
