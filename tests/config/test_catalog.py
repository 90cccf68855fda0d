"""What is read from the sources must be what the components say once imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from medtrain import registry
from medtrain.config import catalog
from medtrain.config.annotations import choices
from medtrain.config.paths import ALL_GROUPS, PRESET_GROUPS, ROOT_KEYS, conf_dir, default_choices
from medtrain.config.render import write_override
from medtrain.config.schema import ROOT
from medtrain.errors import UsageError

BUILTIN = sorted(registry.builtin_modules())


@pytest.mark.parametrize(("group", "name"), BUILTIN)
def test_static_parameters_are_the_real_ones(group: str, name: str) -> None:
    real = registry.get(group, name).params
    read = catalog.parameters(group, name)
    assert set(read) == set(real)
    for key, param in real.items():
        assert list(read[key].choices) == choices(param.type), key
        if read[key].default is not None and not isinstance(param.default, str):
            assert read[key].default == write_override(registry.plain(param.default)), key


@pytest.mark.parametrize(("group", "name"), BUILTIN)
def test_every_component_has_a_summary(group: str, name: str) -> None:
    assert catalog.summary(group, name)


def test_options_include_presets_and_components() -> None:
    assert {"msd", "msd_liver", "nnunet", "phantom"} <= set(catalog.options("data"))
    assert set(registry.names("loss")) <= set(catalog.options("loss"))


def test_the_component_behind_a_preset() -> None:
    assert catalog.component_of("data", "msd_liver") == "msd"
    assert catalog.component_of("model", "unet") == "unet"
    assert catalog.component_of("sweep", "unet_basics") == "default"
    assert catalog.component_of("model", "nothing") == "nothing"


def test_groups() -> None:
    assert catalog.require_group("model") == "model"
    with pytest.raises(UsageError) as caught:
        catalog.require_group("modle")
    assert caught.value.hint == "did you mean `model`?"


def test_what_paths_repeats_is_true() -> None:
    assert tuple(ROOT) == ROOT_KEYS
    assert set(default_choices()) == {*registry.GROUPS, *PRESET_GROUPS}
    assert set(default_choices("sweep")) == set(ALL_GROUPS)
    assert (conf_dir() / "train.yaml").is_file()


def test_reading_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from medtrain.config import catalog\n"
        "assert catalog.parameters('model', 'unet') and catalog.summary('data', 'msd_liver')\n"
        "loaded = {'torch', 'numpy', 'hydra', 'omegaconf', 'yaml', 'rich'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
