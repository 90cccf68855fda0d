from dataclasses import fields

import pytest

from medtrain.data.volume_data import VolumeData
from medtrain.registry import build, read_params


def test_every_setting_is_documented_and_has_a_default() -> None:
    params = read_params(VolumeData)
    assert list(params) == [field.name for field in fields(VolumeData)]
    for param in params.values():
        assert param.doc, param.name
        assert not param.required, param.name


@pytest.mark.parametrize("source", ["msd", "nnunet", "phantom"])
def test_sources_take_every_shared_setting(source: str) -> None:
    settings = build("data", {"name": source, "root": "somewhere", "fold": 3, "patch_size": (8, 8, 8)})
    assert isinstance(settings, VolumeData)
    assert (settings.root, settings.fold, settings.patch_size, settings.num_folds) == ("somewhere", 3, (8, 8, 8), 5)


def test_a_source_has_to_say_how_cases_are_found() -> None:
    with pytest.raises(NotImplementedError, match="VolumeData does not say how its cases are found"):
        VolumeData().discover()
