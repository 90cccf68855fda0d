"""Checkpoints of a model whose frozen part is in a file already: small, and a resume is the same to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from medtrain.engine.ema import EMA
from medtrain.engine.final import best_weights
from medtrain.engine.loop import Engine
from medtrain.engine.stages import Stage, Stages, locked_parameters
from medtrain.errors import ConfigError, MedtrainError
from medtrain.models.constant import find_constant
from medtrain.models.encoders import Encoder
from medtrain.models.freezing import FreezableModel
from tests.engine.toy import Recorder, make_engine, weights

WIDTH = 64


class Base(Encoder):
    """What a file of pretrained weights holds: a layer and a norm."""

    def __init__(self, seed: int) -> None:
        super().__init__("base", 5, ())
        torch.manual_seed(seed)
        self.layer, self.norm, self.more = nn.Linear(5, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.weights_report: Any = SimpleNamespace(exact=tuple(self.state_dict()), source=Path("base.pt"))

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.more(self.norm(self.layer(image)).relu())
        return found


class Adapted(FreezableModel):
    """A frozen base with a head."""

    def __init__(self, seed: int = 3) -> None:
        super().__init__()
        self.encoder = Base(seed)
        torch.manual_seed(1)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(WIDTH, 1))
        self.lock(["encoder"])

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.encoder(x))
        return found


def make(folder: Path, *, constant: bool = True, model: nn.Module | None = None, **options: Any) -> Engine:
    """As `build_engine` does it."""
    model = Adapted() if model is None else model
    engine = make_engine(folder, model=model, **options)
    if constant:
        engine.checkpoints.constant = find_constant(model)
        engine.ema = EMA(model, decay=0.9, locked=locked_parameters(model))
    return engine


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in a), [n for n in a if not torch.equal(a[n], b[n])]


def test_the_average_is_the_same_without_copies_of_what_is_locked(tmp_path: Path) -> None:
    whole, small = make(tmp_path / "a", constant=False), make(tmp_path / "b")
    assert whole.fit().status == small.fit().status == "done"
    assert_equal(weights(whole), weights(small))
    assert whole.history == small.history
    assert small.ema is not None
    # the head, and the running statistics of the norm
    assert set(small.ema.shadow) == {
        "encoder.norm.running_mean", "encoder.norm.running_var", "encoder.norm.num_batches_tracked", "head.1.weight",
        "head.1.bias",
    }  # fmt: skip


def test_files_hold_what_was_learned(tmp_path: Path) -> None:
    make(tmp_path / "whole", constant=False).fit()
    engine = make(tmp_path / "small")
    engine.fit()
    checkpoint = engine.checkpoints.last()
    assert checkpoint is not None
    for name in ("model", "ema"):
        saved = load_file(checkpoint.path / f"{name}.safetensors")
        assert {key for key in saved if key.startswith("encoder.")} == {
            "encoder.norm.running_mean", "encoder.norm.running_var", "encoder.norm.num_batches_tracked"
        }  # fmt: skip
        whole = tmp_path / "whole" / "checkpoints" / checkpoint.path.name / f"{name}.safetensors"
        # 4 bytes for each of the 4672 = 5 * 64 + 64 + 2 * 64 + 64 * 64 + 64 locked parameters
        assert whole.stat().st_size - (checkpoint.path / f"{name}.safetensors").stat().st_size > 4 * 4600
    assert checkpoint.constant == engine.checkpoints.constant
    assert "constant" not in json.loads((engine.checkpoints.path / "best.json").read_text())


@pytest.mark.parametrize("stop", [3, 6])
def test_a_resume_is_bit_identical(tmp_path: Path, stop: int) -> None:
    straight_log, log = Recorder(), Recorder()
    straight = make(tmp_path / "a", steps=9, logger=straight_log)
    straight.fit()
    first = make(tmp_path / "b", steps=9, logger=log, checkpoint="1step", keep="1step")
    first.fit()
    again = make(tmp_path / "c", steps=9, logger=log)
    again.load(next(c for c in first.checkpoints.list() if c.step == stop))
    again.fit()
    assert_equal(weights(straight), weights(again))
    assert straight_log.rows == log.rows


def test_another_base_is_refused(tmp_path: Path) -> None:
    engine = make(tmp_path / "a")
    engine.fit()
    other = make(tmp_path / "b", model=Adapted(seed=4))
    checkpoint = engine.checkpoints.last()
    assert checkpoint is not None
    with pytest.raises(MedtrainError, match=r"not those that the run was trained with: base\.pt has changed") as caught:
        other.load(checkpoint)
    assert caught.value.hint is not None
    assert "model.weights" in caught.value.hint


def test_the_best_weights_come_and_go(tmp_path: Path) -> None:
    engine = make(tmp_path, steps=9, evaluate="3step")
    engine.fit()
    trained = weights(engine)
    head = engine.model.head[1].weight  # type: ignore[index, union-attr]
    assert isinstance(head, Tensor)
    with best_weights(engine) as best:
        assert best.has_ema
        assert torch.equal(head, best.weights(ema=True)["head.1.weight"])
        assert engine.ema is None
    assert_equal(trained, weights(engine))


def test_no_stage_unfreezes_what_a_model_locked() -> None:
    model = Adapted()
    stages = Stages(
        (Stage(duration="1step", freeze=("head",), unfreeze=("head.1.bias",)), Stage(unfreeze=("*",))),
        model,
        steps_per_epoch=1,
    )
    assert stages.describe() == "stage 1 of 2 (1step): 1 of 4,737 parameters train"
    stages.advance(step=1, progress=0, elapsed=0)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["head.1.weight", "head.1.bias"]
    assert locked_parameters(model) == {name for name, _ in model.named_parameters() if name.startswith("encoder.")}
    with pytest.raises(ConfigError, match=r"`encoder\.norm` is locked by the model and never trains"):
        Stages((Stage(unfreeze=("encoder.norm",)),), Adapted(), steps_per_epoch=1)
