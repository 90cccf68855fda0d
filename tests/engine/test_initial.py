"""Fine-tuning: what fits is taken, what does not is named, and too little is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medtrain.config.compose import load_config
from medtrain.config.saved import load_saved
from medtrain.engine.checkpoint import CheckpointFolder
from medtrain.engine.initial import check_initial, describe, find_source, load_initial
from medtrain.engine.launch import resume_run, start_run
from medtrain.errors import MedtrainError, UsageError
from medtrain.models.constant import ConstantTensors
from medtrain.registry import build


class Net(nn.Module):
    """Two layers of 4 features and a head."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, classes)


def checkpoint(place: Path, model: nn.Module, **facts: Any) -> Path:
    """A run's folder with one checkpoint; the average is the weights plus one."""
    folder = CheckpointFolder(place / "checkpoints", constant=facts.pop("constant", None))
    weights = model.state_dict()
    ema = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    meta = {"monitor": "val/dice", "value": 0.5, **facts}
    return folder.save(7, model=weights, ema=ema, state={}, meta=meta, best=True)


def test_a_run_gives_its_averaged_best(tmp_path: Path) -> None:
    source, model = Net(), Net()
    path = checkpoint(tmp_path, source)
    report, facts = load_initial(model, tmp_path, min_match=1.0)
    assert torch.equal(model.first.weight, source.first.weight + 1)
    assert report.matched == 1.0
    assert (facts["run"], facts["step"], facts["weights"], facts["val/dice"]) == (str(tmp_path), 7, "ema", 0.5)
    assert len(facts["sha256"]) == 64
    assert facts["loaded"] == [name for name in model.state_dict() if "num_batches" not in name]
    again = Net()
    load_initial(again, path, min_match=1.0)  # a checkpoint by its own folder
    assert torch.equal(again.head.bias, model.head.bias)


@pytest.mark.parametrize("dims", [2, 3])
def test_larger_kernels_of_mednext_are_interpolated_from_smaller_ones(dims: int, tmp_path: Path) -> None:
    """S. Roy et al., UpKern: every tensor but the depth-wise kernels as it is, these linearly interpolated."""
    settings = {"name": "mednext", "width": 4, "blocks": [1, 1, 1], "expansions": [2, 2, 2]}
    runtime = {"spatial_dims": dims, "in_channels": 1, "num_outputs": 2}
    small, large = (build("model", {**settings, "kernel_size": size}, **runtime) for size in (3, 5))
    checkpoint(tmp_path, small)
    report, facts = load_initial(large, tmp_path, min_match=1.0)
    trained = {name: tensor + 1 for name, tensor in small.state_dict().items()}  # the average
    kernels = [name for name in trained if name.endswith("depthwise.weight")]
    assert sorted(report.adapted) == sorted(facts["adapted"]) == sorted(kernels)
    assert len(kernels) == 5  # three blocks, one down, one up
    # half a voxel of 3 is 0.6 of 5: places -0.2 (held at 0), 0.4, 1, 1.6, 2.2 (held at 2)
    along = torch.tensor([[1, 0, 0], [0.6, 0.4, 0], [0, 1, 0], [0, 0.4, 0.6], [0, 0, 1]])
    for name, tensor in large.state_dict().items():
        expected = trained[name]
        if name in kernels:
            for axis in range(2, 2 + dims):
                expected = torch.tensordot(expected, along, dims=([axis], [1])).movedim(-1, axis)
        torch.testing.assert_close(tensor, expected)
    size = " x ".join(["3"] * dims)
    assert f"5 depth-wise kernels of {size} are interpolated to" in describe(report)[1]
    assert describe(report)[0].startswith(f"{len(trained)} of {len(trained)} tensors (100.0%)")


def test_kernels_of_other_networks_begin_anew(tmp_path: Path) -> None:
    settings = {"name": "cmunext", "widths": [4, 8], "blocks": [1, 1]}
    runtime = {"spatial_dims": 2, "in_channels": 1, "num_outputs": 2}
    small, large = (build("model", {**settings, "block_kernels": [size] * 2}, **runtime) for size in (3, 5))
    checkpoint(tmp_path, small)
    report, _ = load_initial(large, tmp_path, min_match=0.5)
    assert not report.adapted
    assert len(report.mismatched) == 2


def test_a_head_for_other_classes_begins_anew_and_is_named(tmp_path: Path) -> None:
    source, model = Net(3), Net(2)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    before = model.head.weight.clone()
    report, facts = load_initial(model, tmp_path / "w.safetensors", min_match=0.5)
    assert torch.equal(model.first.weight, source.first.weight)
    assert torch.equal(model.head.weight, before)
    assert report.matched == 6 / 8  # of first 2, norm 4, head 2
    assert facts["mismatched"] == {
        "head.weight": {"there": [3, 4], "here": [2, 4]},
        "head.bias": {"there": [3], "here": [2]},
    }
    lines = describe(report)
    assert lines[0].startswith("6 of 8 tensors (75.0%) are from ")
    assert "head.weight begins anew: [3, 4] there, [2, 4] here" in lines


def test_wrapped_names_and_other_parts_of_a_file_are_found(tmp_path: Path) -> None:
    source, model = Net(), Net()
    wrapped = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    extra = {"module.projector.weight": torch.ones(2)}
    torch.save({"epoch": 3, "state_dict": {**wrapped, **extra}, "optimizer": {"x": torch.ones(1)}}, tmp_path / "w.pth")
    report, facts = load_initial(model, tmp_path / "w.pth", min_match=1.0)
    assert torch.equal(model.head.weight, source.head.weight)
    assert facts["part"] == "state_dict"
    assert report.unexpected == ("projector.weight",)
    assert describe(report)[-1] == "there without use: projector.weight"


def test_too_little_is_an_error_with_the_list(tmp_path: Path) -> None:
    save_file({"first.weight": torch.ones(4, 5), "other": torch.ones(1)}, tmp_path / "w.safetensors")
    model = Net()
    before = model.first.weight.clone()
    with pytest.raises(MedtrainError, match=r"gives 12\.5% of the model's tensors, and trainer\.init_min_match is 50%"):
        load_initial(model, tmp_path / "w.safetensors", min_match=0.5)
    assert torch.equal(model.first.weight, before)
    load_initial(model, tmp_path / "w.safetensors", min_match=0.1)
    assert torch.equal(model.first.weight, torch.ones(4, 5))


def test_what_cannot_be_a_beginning_is_said_before_anything_is_made(tmp_path: Path) -> None:
    def config(path: Path, weights: str | None = None) -> dict[str, Any]:
        return {"trainer": {"init_from": str(path)}, "model": {"weights": weights}}

    check_initial({"trainer": {"init_from": None}, "model": {}})
    with pytest.raises(UsageError, match="there is no"):
        check_initial(config(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"trainer\.init_from=.* and model\.weights=timm both say"):
        check_initial(config(tmp_path, "timm"))
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UsageError, match="has no complete checkpoint"):
        check_initial(config(tmp_path / "empty"))
    (tmp_path / "cv").mkdir()
    (tmp_path / "cv" / "crossval.json").write_text("{}")
    with pytest.raises(UsageError, match="is a cross-validation"):
        check_initial(config(tmp_path / "cv"))
    (tmp_path / "bad.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(MedtrainError, match="cannot be opened as weights"):
        check_initial(config(tmp_path / "bad.safetensors"))
    (tmp_path / "bad.pth").write_text("no weights either")
    with pytest.raises(MedtrainError, match="cannot be opened as weights"):
        check_initial(config(tmp_path / "bad.pth"))
    constant = ConstantTensors(names=("first.weight",), digest="0", source="w")
    checkpoint(tmp_path / "lora", Net(), constant=constant)
    with pytest.raises(MedtrainError, match="holds only what was trained"):
        find_source(tmp_path / "lora")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    place = tmp_path_factory.mktemp("fine")
    root = place / "phantom"
    build("data", {"name": "phantom", "root": str(root), "num_cases": 4, "num_test_cases": 0}).discover()
    return [
        "data=msd", f"data.root={root}", f"data.store={place / 'store'}", "data.num_folds=2",
        "data.patch_size=[8,16,16]", "data.spacing=[9,9,9]", "data.batch_size=2", "model.channels=[4,8]",
        "trainer.precision=fp32", "trainer.num_threads=1", "trainer.eval_every=1step", "trainer.final_evaluation=false",
        "trainer.sanity_check=false", "trainer.device=cpu", "task.surface_metrics=never", "logger=[]", "callbacks=[]",
    ]  # fmt: skip


def test_a_run_begins_with_another_and_never_reads_it_again(words: list[str], tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    start_run(load_config([*words, "trainer.max_steps=1", f"run.dir={first}"]).tree, overrides=())
    merged = ["data.merge_labels={liver: [liver, cancer]}"]  # a head of two classes instead of three
    overrides = [*words, *merged, "trainer.max_steps=1", f"run.dir={second}", f"trainer.init_from={first}"]
    start_run(load_config(overrides).tree, overrides=())
    facts = json.loads((second / "initial_weights.json").read_text())
    assert facts["run"] == str(first)
    assert facts["step"] == 1
    assert set(facts["mismatched"]) == {n for n in facts["mismatched"] if "head" in n or "output" in n or "logits" in n}
    assert 0.5 < facts["matched"] < 1
    assert "Began with" in (second / "report.md").read_text()
    assert "initial weights: " in (second / "log.txt").read_text()

    (first / "checkpoints").rename(first / "gone")
    before = load_saved(second)
    assert before["trainer"]["init_from"] == str(first)
    resumed = load_saved(second, ["trainer.max_steps=2"])
    assert resume_run(second, resumed, before=before).exit_code == 0
    assert json.loads((second / "status.json").read_text())["step"] == 2


def test_a_plan_is_never_derived_again(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resuming and predicting take plan.json as it is, whatever this machine and the data would give now."""
    from medtrain.data import volume_data
    from medtrain.engine.restore import load_run

    run = tmp_path / "run"
    start_run(load_config([*words, "trainer.max_steps=1", f"run.dir={run}"]).tree, overrides=())
    plan = json.loads((run / "plan.json").read_text())
    plan["normalization"][0]["mean"] += 1.5  # as no data would give it
    (run / "plan.json").write_text(json.dumps(plan))

    def refuse(*arguments: Any, **named: Any) -> None:
        raise AssertionError("planned again")

    for name in ("make_plan", "fingerprint_cases"):
        monkeypatch.setattr(volume_data, name, refuse)
    before = load_saved(run)
    assert resume_run(run, load_saved(run, ["trainer.max_steps=2"]), before=before).exit_code == 0
    assert json.loads((run / "plan.json").read_text()) == plan
    assert load_run(run, load_saved(run), device="cpu").plan.normalization[0].mean == plan["normalization"][0]["mean"]
