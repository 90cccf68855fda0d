"""Generic: the model computes its own loss from the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medtrain.errors import UsageError
from medtrain.inference.images import ImageInference
from medtrain.losses.classes import ClassCrossEntropy
from medtrain.tasks.generic import Generic, LossFromModel, returned_rows
from tests.tasks.stubs import batch, number, plan, target

CPU = torch.device("cpu")


def task(**changes: Any) -> Generic:
    settings: dict[str, Any] = {
        "loss": LossFromModel(), "inference": ImageInference(), "plan": plan(number()), "device": CPU,
    }  # fmt: skip
    return Generic(**{**settings, **changes})


class Squares(nn.Module):
    """The mean squared difference of the pixel and the target, times a weight."""

    def __init__(self, *, as_dict: bool = True) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.as_dict = as_dict

    def forward(self, image: Tensor, target: Tensor) -> Tensor | dict[str, Tensor]:
        errors = (image.flatten(1) * self.scale - target).squeeze(1)
        loss = errors.square().mean()
        return {"loss": loss, "mae": errors.abs().mean(), "errors": errors} if self.as_dict else loss


def test_a_loss_or_a_dict_with_a_loss() -> None:
    data = batch([[1.0], [4.0]], [[0], [2]])
    assert task().training_step(Squares(as_dict=False), data).loss.item() == 2.5
    step = task().training_step(Squares(), data)
    assert step.loss.item() == 2.5
    assert {name: float(value) for name, value in step.logs.items()} == {"train/mae": 1.5}
    step.loss.backward()


def test_the_mean_over_samples_not_over_batches() -> None:
    found = task(scalars={"mae": "min"}, monitor="mae")
    records = found.evaluation_step(Squares(), batch([[1.0], [2.0], [3.0]], [[0], [0], [0]]), final=False)
    records += found.evaluation_step(Squares(), batch([[6.0]], [[0]], first=3), final=False)
    summary = found.summarize(records)
    assert summary["loss"] == pytest.approx((1 + 4 + 9 + 36) / 4)
    assert summary["mae"] == pytest.approx(3.0)
    assert found.monitor.name == "val/mae"
    assert found.worst_cases(records)[0] == ("c003", 36.0)


def test_micro_batches_of_samples_add_up() -> None:
    data = [batch([[1.0], [2.0]], [[0], [0]]), batch([[3.0]], [[0]])]
    found = task()
    total = sum(found.batch_weight(part) for part in data)
    value = sum(found.training_step(Squares(), part).loss.item() * found.batch_weight(part) / total for part in data)
    assert value == pytest.approx((1 + 4 + 9) / 3)


def test_the_batch_size_of_evaluation() -> None:
    seen = []

    class Counting(Squares):
        def forward(self, image: Tensor, target: Tensor) -> Tensor | dict[str, Tensor]:
            seen.append(len(image))
            return super().forward(image, target)

    found = task(inference=ImageInference(batch_size=2))
    records = found.evaluation_step(Counting(), batch([[1.0]] * 5, [[0]] * 5), final=False)
    assert seen == [2, 2, 1]
    assert len(records) == 5


def test_all_tensors_for_a_model_that_takes_anything() -> None:
    class Anything(nn.Module):
        def forward(self, **entries: Any) -> Tensor:
            assert set(entries) == {"image", "target"}
            return entries["image"].sum()

    assert task().training_step(Anything(), batch([[3.0]], [[0]])).loss.item() == 3.0


@pytest.mark.parametrize("found", [{"logits": torch.zeros(1)}, torch.zeros(2), "loss"])
def test_a_model_without_a_loss(found: Any) -> None:
    class Silent(nn.Module):
        def forward(self, image: Tensor) -> Any:
            return found

    with pytest.raises(UsageError, match="must return a loss or a dict with `loss`"):
        task().training_step(Silent(), batch([[3.0]], [[0]]))


def test_what_does_not_fit_is_said() -> None:
    classes = target("a", "b")
    with pytest.raises(UsageError, match="takes the loss that the model returns"):
        task(loss=ClassCrossEntropy([classes]), plan=plan(classes))
    with pytest.raises(UsageError, match="knows only the loss"):
        task(inference=ImageInference(calibrate=True))
    with pytest.raises(UsageError, match=r"task.monitor=dice is not a metric of this task; available: loss$"):
        task(monitor="dice")
    with pytest.raises(UsageError, match="the model does not return dice; it returns loss, mae"):
        task(scalars={"dice": "max"}).evaluation_step(Squares(), batch([[1.0]], [[0]]), final=False)


def test_it_is_written(tmp_path: Path) -> None:
    found = task()
    records = found.evaluation_step(Squares(), batch([[1.0]], [[0]]), final=True)
    found.write_evaluation(tmp_path, records, found.summarize(records), extra={"part": "val"})
    assert (tmp_path / "cases.csv").read_text().splitlines() == ["case_id,group,loss,mae", "c000,c000,1.0,1.0"]
    assert set(found.example_batch()) == {"image", "target"}


def test_rows_of_what_a_model_returns() -> None:
    found = {"a": torch.tensor([1.0, 2.0]), "b": torch.arange(8.0).reshape(2, 2, 2), "loss": torch.tensor(1.0)}
    assert returned_rows(found, 2) == [
        {"a": 1.0, "b/0": 0.0, "b/1": 1.0, "b/2": 2.0, "b/3": 3.0},
        {"a": 2.0, "b/0": 4.0, "b/1": 5.0, "b/2": 6.0, "b/3": 7.0},
    ]
    assert returned_rows(torch.tensor([[1.0], [2.0]]), 2) == [{"output/0": 1.0}, {"output/0": 2.0}]
    with pytest.raises(UsageError, match="returned no tensor with an entry per sample; it returned loss"):
        returned_rows({"loss": torch.tensor(1.0)}, 2)
    with pytest.raises(UsageError, match="1200 values of `map` per sample"):
        returned_rows({"map": torch.zeros(2, 1200)}, 2)
