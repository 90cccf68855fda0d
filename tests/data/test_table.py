from __future__ import annotations

import os
from pathlib import Path

import pytest

from medtrain.data.columns import TableColumns, TargetColumn
from medtrain.data.io.images import read_image_file
from medtrain.data.marks import Box, Marks, Point
from medtrain.data.sample import Sample, Target
from medtrain.data.table import derive_classes, read_table
from medtrain.errors import DataError, UsageError


def table(folder: Path, text: str, *files: str) -> Path:
    """A CSV file, and empty files beside it; names say where."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    path = folder / "t.csv"
    path.write_text(text)
    return path


def problems(path: Path, columns: TableColumns) -> list[tuple[str, str | None]]:
    with pytest.raises(DataError) as error:
        read_table(path, columns)
    return [(str(problem).replace(f"{path}: ", ""), problem.hint) for problem in error.value.problems]


def test_a_table_of_images(tmp_path: Path) -> None:
    text = "id_code,diagnosis,patient,side,age,sex\nb,2,p2,left,60.5,F\na,0,p1,right,,M\nc,,p2,left,70,\n"
    path = table(tmp_path, text, "img/a.png", "img/b.png", "img/c.png")
    found = read_table(
        path,
        TableColumns(
            images=("id_code",),
            image_folder="img",
            image_suffix=".png",
            targets=(TargetColumn(column="diagnosis"),),
            group="patient",
            numeric=("age",),
            categorical=("sex", "side"),
        ),
    )
    folder = tmp_path / "img"
    assert found.samples == (
        Sample("a", (folder / "a.png",), (0,), "p1", (None,), ("M", "right")),
        Sample("b", (folder / "b.png",), (2,), "p2", (60.5,), ("F", "left")),
        Sample("c", (folder / "c.png",), (None,), "p2", (70.0,), (None, "left")),
    )
    assert found.targets == (Target("diagnosis", ("0", "1", "2")),)
    assert (found.numeric_names, found.categorical_names, found.view_names) == (("age",), ("sex", "side"), ())
    assert found.strata() == [(0,), (2,), (None,)]
    assert found.class_counts() == [[1, 0, 1]]
    assert list(found.files()) == [folder / "a.png", folder / "b.png", folder / "c.png"]


def test_a_pattern_of_columns_and_ids_from_paths(tmp_path: Path) -> None:
    path = table(tmp_path, "patient;eye;y\n7;L;1\n7;R;0\n", "in/7/L.png", "in/7/R.png")
    columns = TableColumns(
        image_pattern="{patient}/{eye}.png", image_folder="in", targets=(TargetColumn(column="y"),), group="patient"
    )
    found = read_table(path, columns)
    assert [(s.sample_id, s.images[0], s.group) for s in found.samples] == [
        ("7/L", tmp_path / "in/7/L.png", "7"),
        ("7/R", tmp_path / "in/7/R.png", "7"),
    ]


def test_views_in_columns_may_be_missing(tmp_path: Path) -> None:
    path = table(tmp_path, "id,ap,lat,y\ns1,1a,1l,0\ns2,,2l,1\n", "1a.png", "1l.png", "2l.png")
    columns = TableColumns(
        images=("ap", "lat"), image_suffix=".png", sample_id="id", targets=(TargetColumn(column="y"),)
    )
    found = read_table(path, columns)
    assert found.view_names == ("ap", "lat")
    assert [sample.images for sample in found.samples] == [
        (tmp_path / "1a.png", tmp_path / "1l.png"),
        (None, tmp_path / "2l.png"),
    ]


def test_views_in_rows(tmp_path: Path) -> None:
    text = "study,view,file,y\ns1,lat,b.png,1\ns1,ap,a.png,\ns2,lat,c.png,0\n"
    path = table(tmp_path, text, "a.png", "b.png", "c.png")
    columns = TableColumns(images=("file",), sample_id="study", view="view", targets=(TargetColumn(column="y"),))
    found = read_table(path, columns)
    assert found.view_names == ("ap", "lat")
    assert found.samples[0].images == (tmp_path / "a.png", tmp_path / "b.png")
    assert found.samples[0].targets == (1,)  # one of the rows says it
    assert found.samples[1].images == (None, tmp_path / "c.png")


def test_bags(tmp_path: Path) -> None:
    path = table(tmp_path, "slide,tile,y\nB,3.png,1\nA,1.png,0\nB,2.png,1\n", "1.png", "2.png", "3.png")
    found = read_table(path, TableColumns(images=("tile",), bag="slide", targets=(TargetColumn(column="y"),)))
    assert [(s.sample_id, [p.name for p in s.images if isinstance(p, Path)], s.targets) for s in found.samples] == [
        ("A", ["1.png"], (0,)),
        ("B", ["3.png", "2.png"], (1,)),  # in the order of their rows
    ]


def test_rows_of_one_sample_must_agree(tmp_path: Path) -> None:
    text = "s,v,f,y,p,age\n1,ap,a.png,0,ann,5\n1,ap,b.png,1,bob,6\n"
    path = table(tmp_path, text, "a.png", "b.png")
    columns = TableColumns(
        images=("f",), sample_id="s", view="v", group="p", targets=(TargetColumn(column="y"),), numeric=("age",)
    )
    assert [message for message, _ in problems(path, columns)] == [
        "lines 2, 3: the rows of '1' differ in 'patient'",
        "line 3: '1' has the view 'ap' twice",
        "lines 2, 3: the rows of '1' differ in 'y'",
        "lines 2, 3: the rows of '1' differ in 'age'",
    ]


def test_every_missing_column_is_named_with_the_nearest(tmp_path: Path) -> None:
    path = table(tmp_path, "id_code,diagnosis,age\na,1,2\n")
    columns = TableColumns(
        images=("id_cod",), targets=(TargetColumn(column="diagnose"),), numeric=("age", "weight"), group="id_code"
    )
    assert problems(path, columns) == [
        ("has no column 'id_cod'; it has id_code, diagnosis, age", "did you mean 'id_code'?"),
        ("has no column 'diagnose'; it has id_code, diagnosis, age", "did you mean 'diagnosis'?"),
        ("has no column 'weight'; it has id_code, diagnosis, age", None),
    ]


def test_a_wrong_separator_is_recognised(tmp_path: Path) -> None:
    path = table(tmp_path, "image;y\na;1\n")
    with pytest.raises(DataError) as error:
        read_table(path, TableColumns(images=("image",)), separator=",")
    assert error.value.problems[0].hint == "the header holds ';': set the separator to it"


def test_everything_wrong_with_the_rows_at_once(tmp_path: Path) -> None:
    text = """f,y,grade,age,p,part
a.png,cat,0,1.5,ann,train
b.png,dgo,9,x,,Test
c.png,dog,2.0,"1,5",bob,exam
a.png,dog,9,200,bob,train
,dog,1,3,bob,val
"""
    path = table(tmp_path, text, "a.png", "b.jpg")
    columns = TableColumns(
        images=("f",),
        targets=(
            TargetColumn(column="y", classes=("cat", "dog")),
            TargetColumn(column="grade", classes=("0", "1", "2"), required=True),
            TargetColumn(column="age", kind="number", low=0, high=120),
        ),
        group="p",
        part="part",
    )
    assert problems(path, columns) == [
        ("column 'y': 'dgo' in line 3 is none of the classes cat, dog", "did you mean 'dog'?"),
        ("column 'grade': '9' in lines 3, 5 is none of the classes 0, 1, 2", None),
        ("column 'age': 'x' in line 3 is not a number", None),
        ("column 'age': '1,5' in line 4 is not a number", "the decimal mark is a comma: set decimal=','"),
        ("column 'age': 200 in line 5 is above 120", None),
        ("column 'part': 'exam' in line 4 is none of train, val, test", None),
        ("column 'p': the patient is missing in line 3", None),
        ("lines 2, 5 have the same id 'a'", None),
        ("line 6: 'line_6' has no image", None),
        ("b.png: no such file (line 3)", "there is b.jpg: set image_suffix"),
        ("c.png: no such file (line 4)", None),
    ]


def test_classes_of_a_column() -> None:
    assert derive_classes(["3", "0", "", "1"]) == ("0", "1", "2", "3")  # class 2 exists, nobody has it here
    assert derive_classes(["3", "1"]) == ("1", "2", "3")
    assert derive_classes(["100", "20"]) == ("20", "100")
    assert derive_classes(["severe", "mild"]) == ("mild", "severe")


def test_columns_of_one_scale_have_the_same_classes(tmp_path: Path) -> None:
    path = table(tmp_path, "zone_a,zone_b,ill,sick,side,own,x\n0,1,0,1,l,2,1\n3.0,2,1,1,r,5,1\n1,,,1,l,2,1\n")
    names = ("zone_a", "zone_b", "ill", "sick", "side")
    own = TargetColumn(column="own", classes=("2", "5"))
    targets = (*(TargetColumn(column=name) for name in names), own)
    found = read_table(path, TableColumns(targets=targets, numeric=("x",)))
    assert [target.classes for target in found.targets] == [
        *[("0", "1", "2", "3")] * 2,  # nobody has a 0 in zone_b
        *[("0", "1")] * 2,  # all are sick
        ("l", "r"),
        ("2", "5"),
    ]
    assert [sample.targets[:4] for sample in found.samples] == [(0, 1, 0, 1), (3, 2, 1, 1), (1, None, None, 1)]


def test_whole_numbers_with_a_point_are_classes(tmp_path: Path) -> None:
    path = table(tmp_path, "f,y\na.png,3.0\nb.png,\nc.png,0\n", "a.png", "b.png", "c.png")
    found = read_table(path, TableColumns(images=("f",), targets=(TargetColumn(column="y"),)))
    assert [sample.targets for sample in found.samples] == [(3,), (None,), (0,)]
    assert found.targets[0].classes == ("0", "1", "2", "3")


def test_tabular_samples_may_have_no_image(tmp_path: Path) -> None:
    path = table(tmp_path, "id;f;age;y\n1;a.png;1,5;0\n2;;2;1\n", "a.png")
    columns = TableColumns(
        images=("f",),
        sample_id="id",
        missing_images=True,
        numeric=("age",),
        decimal=",",
        targets=(TargetColumn(column="y"),),
    )
    assert [(s.images, s.numeric) for s in read_table(path, columns).samples] == [
        ((tmp_path / "a.png",), (1.5,)),
        ((None,), (2.0,)),
    ]
    only = TableColumns(sample_id="id", numeric=("age",), decimal=",", targets=(TargetColumn(column="y"),))
    assert [sample.images for sample in read_table(path, only).samples] == [(), ()]


def test_a_column_without_labels_and_a_table_without_rows(tmp_path: Path) -> None:
    path = table(tmp_path, "f,y\na.png,\n", "a.png")
    columns = TableColumns(images=("f",), targets=(TargetColumn(column="y"),))
    assert problems(path, columns) == [("column 'y' is empty: no sample is labelled", None)]
    assert problems(table(tmp_path, "f,y\n"), columns) == [("has a header and no rows", None)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing to learn from"),
        ({"images": ("a",), "image_pattern": "{a}"}, "not both"),
        ({"images": ("a",), "view": "v", "bag": "b", "sample_id": "s"}, "not both"),
        ({"images": ("a",), "view": "v"}, "needs a column of sample ids"),
        ({"images": ("a",), "views": ("v",)}, "no view column"),
        ({"images": ("a", "b"), "bag": "v"}, "each row holds one image"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_table(table(tmp_path, "a\n1\n"), TableColumns(**settings))  # type: ignore[arg-type]


def test_an_empty_cell_can_be_a_class_and_classes_can_have_names(tmp_path: Path) -> None:
    path = table(tmp_path, "f,a,b\n1.png,3,0\n2.png,,4\n3.png,0.0,\n", "1.png", "2.png", "3.png")
    targets = (
        TargetColumn(column="a", missing="unknown"),  # 4 classes occur, the fifth is what is not there
        TargetColumn(column="b", classes=("0", "1", "2", "3", "4"), names=("0", "1", "2", "3", "u"), missing="4"),
    )
    found = read_table(path, TableColumns(images=("f",), targets=targets))
    assert found.targets == (Target("a", ("0", "1", "2", "3", "unknown")), Target("b", ("0", "1", "2", "3", "u")))
    assert [sample.targets for sample in found.samples] == [(3, 0), (4, 4), (0, 4)]
    few = TargetColumn(column="a", names=("no", "yes"))
    assert problems(path, TableColumns(images=("f",), targets=(few,))) == [
        ("column 'a' has 4 classes, but 2 names are given", None)
    ]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (TargetColumn(column="y", kind="number", missing="0"), "its kind is number"),
        (TargetColumn(column="y", low=0), "low and high are of numbers"),
        (TargetColumn(column="y", required=True, missing="0"), "not both"),
    ],
)
def test_target_settings_that_contradict(tmp_path: Path, target: TargetColumn, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_table(tmp_path / "no.csv", TableColumns(images=("f",), targets=(target,)))


def test_patients_found_by_a_pattern(tmp_path: Path) -> None:
    path = table(tmp_path, "f,y,study\np1-a.png,1,S7/1\np1-b.png,0,S8/2\n", "p1-a.png", "p1-b.png")
    in_id = TableColumns(images=("f",), targets=(TargetColumn(column="y"),), group_pattern=r"^(\w+)-")
    assert [sample.group for sample in read_table(path, in_id).samples] == ["p1", "p1"]
    in_column = TableColumns(
        images=("f",), targets=(TargetColumn(column="y"),), group="study", group_pattern=r"^(\w+)/"
    )
    assert [sample.group for sample in read_table(path, in_column).samples] == ["S7", "S8"]
    with pytest.raises(UsageError, match="finds no patient in 2 of 2"):
        read_table(path, TableColumns(images=("f",), targets=(TargetColumn(column="y"),), group_pattern=r"(Q\d)"))


ZONES = tuple(f"zone_{letter}" for letter in "abcdef")


def brixia() -> Path:
    named = os.environ.get("MEDTRAIN_DATA")
    folder = Path(named or ".") / "brixia_cxr"
    if not named or not (folder / "labels.csv").is_file():
        pytest.skip("no real radiographs: set MEDTRAIN_DATA to the folder that holds brixia_cxr")
    return folder


def test_real_radiographs() -> None:
    folder = brixia()
    columns = TableColumns(
        images=("image",),
        image_folder="images",
        targets=tuple(TargetColumn(column=zone, classes=("0", "1", "2", "3")) for zone in ZONES),
        numeric=("global_score",),
    )
    found = read_table(folder / "labels.csv", columns)
    assert len(found.samples) == len({sample.sample_id for sample in found.samples}) > 100
    for sample in found.samples:
        assert sum(int(value or 0) for value in sample.targets) == sample.numeric[0]
    image = read_image_file(found.samples[0].images[0])  # type: ignore[arg-type]
    assert image.array.shape[0] == 1
    assert max(image.array.shape) <= 384


def test_boxes_and_points_of_what_matters(tmp_path: Path) -> None:
    header = "f,y,l,t,r,b,px,py,rad\n"
    path = table(tmp_path, f"{header}a.png,0,1,2,3.5,4,7,8,\nb.png,1,,,,,,,\n", "a.png", "b.png")
    shared = {"images": ("f",), "targets": (TargetColumn(column="y"),)}
    boxes = TableColumns(**shared, annotation_box=("l", "t", "r", "b"))
    assert [sample.annotation for sample in read_table(path, boxes).samples] == [Box(1, 2, 3.5, 4), None]
    points = TableColumns(**shared, annotation_point=("px", "py", "rad"))
    assert [sample.annotation for sample in read_table(path, points).samples] == [Point(7, 8), None]
    path = table(tmp_path, f"{header}a.png,0,3,2,1,4,7,8,0\nb.png,1,1,,2,3,7,,\n", "a.png", "b.png")
    assert [message for message, _ in problems(path, boxes)] == [
        "l, t, r, b are no box: left < right, top < bottom (line 2)",
        "l, t, r, b are filled in part (line 3)",
    ]
    assert [message for message, _ in problems(path, points)] == [
        "column 'rad': a radius must be above 0 (line 2)",
        "px, py, rad are filled in part (line 3)",
    ]


def test_metadata_are_kept_as_they_are_written(tmp_path: Path) -> None:
    path = table(tmp_path, 'f,y,site,dose\na.png,0,north,"1,5"\nb.png,1,,2\n', "a.png", "b.png")
    columns = TableColumns(images=("f",), targets=(TargetColumn(column="y"),), metadata=("site", "dose"), decimal=",")
    found = read_table(path, columns)
    assert found.metadata_names == ("site", "dose")
    assert [sample.metadata for sample in found.samples] == [("north", "1.5"), ("", "2")]
    assert (found.numeric_names, found.categorical_names) == ((), ())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"annotation": "m", "annotation_box": ("l", "t", "r", "b")}, "give one of annotation"),
        ({"annotation_point": ("x", "y", "r", "s")}, "two or three columns"),
        ({"annotation_box": ("l", "t")}, "four columns"),
        ({"annotation_point": ("x", "y"), "bag": "v"}, "not with views, bags"),
        ({"metadata": ("age",), "numeric": ("age",)}, "'age' is one of its numeric"),
    ],
)
def test_what_is_not_shown_to_the_model_contradicts(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_table(table(tmp_path, "a\n1\n"), TableColumns(images=("a",), **settings))  # type: ignore[arg-type]


def test_several_boxes_or_points_of_a_row_are_a_list(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        'file,y,b\na.png,1,"[[1, 2, 3, 4.5], [5, 6, 7, 8]]"\nb.png,0,\nc.png,0,"[1, 2, 3, 4]"\n',
    )
    columns = TableColumns(images=("file",), targets=(TargetColumn(column="y"),), annotation_box=("b",))
    found = [sample.annotation for sample in read_table(path, columns, require_files=False).samples]
    assert found == [Marks((Box(1, 2, 3, 4.5), Box(5, 6, 7, 8))), None, Box(1, 2, 3, 4)]
    path = table(tmp_path, 'file,y,p\na.png,1,"[[1, 2], [3, 4, 5]]"\nb.png,0,"[6, 7, 8]"\n')
    columns = TableColumns(images=("file",), targets=(TargetColumn(column="y"),), annotation_point=("p",))
    found = [sample.annotation for sample in read_table(path, columns, require_files=False).samples]
    assert found == [Marks((Point(1, 2), Point(3, 4, 5))), Point(6, 7, 8)]


@pytest.mark.parametrize(
    "cell", ["1;2", "[[1, 2, 3]]", "[[1, 2, 3, 'x']]", "[]", "[[3, 2, 1, 4]]", "{}", "[[1, 2, 3, NaN]]"]
)
def test_lists_of_another_form_are_told(tmp_path: Path, cell: str) -> None:
    path = table(tmp_path, f'file,y,b\na.png,1,"[[1, 2, 3, 4]]"\nb.png,0,"{cell}"\n')
    columns = TableColumns(images=("file",), targets=(TargetColumn(column="y"),), annotation_box=("b",))
    with pytest.raises(DataError, match=r"column 'b' must hold lists like \[\[left, top, .* \(line 3\)"):
        read_table(path, columns, require_files=False)
