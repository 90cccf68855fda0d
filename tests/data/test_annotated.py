"""Which outputs were annotated in which cases."""

import json
from pathlib import Path

import pytest

from medtrain.data.annotated import Annotated, read_annotated
from medtrain.errors import DataError

CLASSES = ("background", "edema", "core", "enhancing")
REGIONS = {"whole": (1, 2, 3), "tumour core": (2, 3), "enhancing": (3,)}


def read(path: Path, regions: dict[str, tuple[int, ...]] | None = None) -> Annotated:
    return read_annotated(path, case_ids=["a", "b", "c"], class_names=CLASSES, regions=regions)


def test_classes_of_both_kinds_of_file(tmp_path: Path) -> None:
    (tmp_path / "known.json").write_text(json.dumps({"a": ["core"], "b": []}))
    (tmp_path / "known.csv").write_text("case_id,annotated,who\na,core,me\nb,,you\nc, edema; enhancing ,us\n")
    assert read(tmp_path / "known.json") == {"a": (True, False, True, False), "b": (True, False, False, False)}
    assert read(tmp_path / "known.csv")["c"] == (True, True, False, True)


def test_a_region_was_annotated_if_it_is_named_or_all_of_its_classes_are(tmp_path: Path) -> None:
    path = tmp_path / "known.json"
    path.write_text(json.dumps({"a": ["whole"], "b": ["core", "enhancing"], "c": ["edema"]}))
    assert read(path, REGIONS) == {"a": (True, False, False), "b": (False, True, True), "c": (False, False, False)}


def test_everything_wrong_is_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "known.json"
    path.write_text(json.dumps({"d": ["core"], "a": ["edem"]}))
    with pytest.raises(DataError) as error:
        read(path)
    messages = [problem.message for problem in error.value.problems]
    assert messages == ["there is no case 'd'", "a: unknown class `edem`; known: edema, core, enhancing"]
    assert error.value.problems[1].hint == "did you mean `edema`?"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", '["core"]', 'expected {"case": ["class", ...], ...}'),
        ("a.json", '{"a": "core"}', 'expected {"case": ["class", ...], ...}'),
        ("a.csv", "case,annotated\n", "lacks the column case_id; expected case_id,annotated"),
        ("a.csv", "case_id,annotated\na,core\na,edema\n", "lists 'a' twice"),
        ("a.csv", None, "no such file"),
        ("a.json", None, "no such file"),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as error:
        read(tmp_path / name)
    assert said in str(error.value)
