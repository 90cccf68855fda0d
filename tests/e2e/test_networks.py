"""Networks other than the U-Net through the command line, on patches that they have to pad."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from medtrain.config.compose import load_config
from medtrain.engine.derive import derive
from tests.e2e.conftest import TINY, read_rows

Command = Callable[..., int]

ODD = [
    "data.patch_size=[15,30,33]", "trainer.max_steps=2", "trainer.eval_every=2step", "trainer.final_evaluation=false",
]  # fmt: skip
"""A short run on patches that no stride divides."""

OF_MONAI = {
    "dynunet": ["model.channels=[4,8,16]"],
    "segresnet": ["model.width=8", "model.blocks_down=[1,1]", "model.blocks_up=[1]"],
    "attention_unet": ["model.channels=[4,8,16]"],
    "unetr": ["model.width=4", "model.hidden_size=12", "model.num_heads=2", "model.mlp_dim=8"],
}
NETWORKS = {
    "cmunext": ["model.widths=[4,8,8]", "model.blocks=[1,1,1]", "model.block_kernels=[3,3,5]"],
    "resenc_unet": ["model.channels=[4,8,16]"],
    "unetpp": ["model.channels=[4,8,16]"],
    "mednext": ["model.width=4", "model.blocks=[1,1,1,1,1]", "model.expansions=[2,2,2,2,2]"],
    **OF_MONAI,
}


@pytest.fixture
def words(phantom: Path, store: Path) -> list[str]:
    """Overrides of every run here."""
    tiny = [word for word in TINY if not word.startswith(("data.patch_size", "model."))]
    return ["data=msd", f"data.root={phantom}", f"data.store={store}", "data.num_folds=3", *tiny]


def test_cmunext_trains_evaluates_predicts_and_is_exported(
    words: list[str], phantom: Path, tmp_path: Path, medtrain: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert medtrain("train", *words, *ODD, "model=cmunext", *NETWORKS["cmunext"], f"run.dir={run}") == 0
    assert "val/dice" in read_rows(run)[-1]
    assert "patches of 15 x 30 x 33 are padded to 16 x 32 x 36 inside the network" in capsys.readouterr().err
    assert medtrain("evaluate", run) == 0
    assert medtrain("predict", run, phantom / "imagesTs", tmp_path / "out", "--no-mirror") == 0
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2
    assert medtrain("export", run, "--format", "torchscript", "--out", tmp_path / "export") == 0
    manifest = json.loads((tmp_path / "export" / "manifest.json").read_text())
    assert manifest["input"]["shape"][-3:] == [15, 30, 33]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_others_train_and_are_exported(name: str, words: list[str], tmp_path: Path, medtrain: Command) -> None:
    if name in OF_MONAI and importlib.util.find_spec("monai") is None:
        pytest.skip("MONAI is not installed")
    run = tmp_path / "run"
    assert medtrain("train", *words, *ODD, f"model={name}", *NETWORKS[name], f"run.dir={run}") == 0
    assert "val/dice" in read_rows(run)[-1]
    assert medtrain("export", run, "--format", "torchscript", "--format", "onnx") == 0


def test_patches_are_made_to_fit_strides_that_are_no_setting(words: list[str]) -> None:
    for model, multiple in ((["model=cmunext"], 16), (["model=mednext", "model.blocks=[1,1,1]"], 2)):
        expansions = ["model.expansions=[2,2,2]"] if multiple == 2 else []
        derivation = derive(load_config([*words, *model, *expansions]).tree)
        patch = derivation.plan.patch_size
        assert all(n % multiple == 0 for n in patch), patch
        assert derivation.config["data"]["patch_size"] == patch
        assert "strides" not in derivation.config["model"]
