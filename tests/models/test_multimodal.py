"""Images and a table together: what is missing, what each setting does, and what neither alone can tell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from medtrain import registry
from medtrain.errors import UsageError
from medtrain.models.fusion import FUSIONS

RUNTIME: dict[str, Any] = {
    "in_channels": 1,
    "image_size": (12, 8),
    "view_names": (),
    "max_instances": None,
    "num_numeric": 3,
    "category_sizes": (5,),
    "num_outputs": 2,
}
VIEWS = ("frontal", "lateral")
NAMES = tuple(FUSIONS)


def make(**settings: Any) -> Any:
    torch.manual_seed(1)
    runtime = {key: settings.pop(key, value) for key, value in RUNTIME.items()}
    return registry.build("model", {"name": "multimodal", "arch": "cnn", **settings}, **runtime)


def batch(rows: int = 6, images: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "image": torch.randn(rows, images, 1, 12, 8, generator=generator),
        "present": torch.ones(rows, images, dtype=torch.bool),
        "numeric": torch.randn(rows, 3, generator=generator),
        "categorical": torch.randint(1, 5, (rows, 1), generator=generator),
        "observed": torch.ones(rows, 4, dtype=torch.bool),
    }


def single(rows: int = 6) -> dict[str, Tensor]:
    """As the data give single images: without an axis of their own, which exist in `present`."""
    entries = batch(rows)
    return {**entries, "image": entries["image"].squeeze(1)}


@pytest.mark.parametrize("fusion", NAMES)
def test_an_absent_table_is_absent_beside_columns_that_tell_so(tiny: Any, fusion: str) -> None:
    model = make(fusion=fusion, num_numeric=4).eval()  # two numbers, and two that tell which are missing
    entries = single() | {"numeric": torch.zeros(6, 4), "observed": torch.ones(6, 3, dtype=torch.bool)}
    entries["observed"][2:4] = False
    before = model(**entries)["logits"]
    entries["numeric"][:, 2:] = 1.0
    changed = (model(**entries)["logits"] != before).any(1)
    assert changed.tolist() == [True, True, False, False, True, True]


@pytest.mark.parametrize("fusion", NAMES)
def test_missing_modalities_degrade(tiny: Any, fusion: str) -> None:
    model = make(fusion=fusion, auxiliary_heads=True).eval()
    entries = single()
    full = model(**entries)["logits"]
    entries["present"] = torch.tensor([[True], [False], [True], [False], [True], [True]])
    entries["observed"][2:4] = False
    gone = model(**entries)
    assert all(value.isfinite().all() for value in gone.values())
    changed = (gone["logits"] != full).any(1)
    assert changed.tolist() == [False, True, True, True, False, False]
    # what stands in the place of something missing has no influence
    entries["image"][1], entries["image"][3] = float("nan"), 1e9
    entries["numeric"][2:4], entries["categorical"][2:4] = float("nan"), 0
    again = model(**entries)
    assert all(torch.equal(again[key], value) for key, value in gone.items())
    # two samples of which nothing is known are the same
    entries["present"][:2], entries["observed"][:2] = False, False
    nothing = model(**entries)["logits"]
    assert torch.equal(nothing[0], nothing[1])


@pytest.mark.parametrize("fusion", NAMES)
def test_training_goes_on_whatever_is_missing(tiny: Any, fusion: str) -> None:
    model = make(fusion=fusion, auxiliary_heads=True, modality_dropout=0.3).train()
    entries = single()
    for present, observed in ((False, True), (True, False), (False, False)):
        entries["present"] = torch.full((6, 1), present)
        entries["observed"] = torch.full((6, 4), observed)
        model.zero_grad()
        sum(value.square().sum() for value in model(**entries).values()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name  # ranks reduce the same gradients whatever their batches lack
            assert parameter.grad.isfinite().all(), name


def test_a_batch_may_lack_a_modality_altogether(tiny: Any) -> None:
    for fusion in ("gated", "cross_attention"):
        model = make(fusion=fusion).eval()
        entries = single()
        without = {**entries, "observed": torch.zeros(6, 4, dtype=torch.bool)}
        images = model(image=entries["image"])["logits"]
        torch.testing.assert_close(images, model(**without)["logits"])
        without = {**entries, "present": torch.zeros(6, 1, dtype=torch.bool)}
        table = model(**{key: entries[key] for key in ("numeric", "categorical", "observed")})["logits"]
        torch.testing.assert_close(table, model(**without)["logits"])


def test_a_batch_is_called_with_the_entries_that_the_model_names(tiny: Any) -> None:
    model = make()
    entries = single()
    assert set(model.inputs) == set(entries)
    output = model(**{name: entries[name] for name in model.inputs})
    assert set(output) == {"logits", "modality_weights"}
    assert output["logits"].shape == (6, 2)
    torch.testing.assert_close(output["modality_weights"].sum(1), torch.ones(6))


def test_views_are_modalities_of_their_own(tiny: Any) -> None:
    model = make(view_names=VIEWS, auxiliary_heads=True).eval()
    assert model.modalities == ("frontal", "lateral", "table")
    entries = batch(images=2)
    output = model(**entries)
    assert set(output) == {"logits", "modality_weights", "aux/frontal", "aux/lateral", "aux/table"}
    assert output["modality_weights"].shape == (6, 3)
    entries["present"][0, 1] = False
    assert model(**entries)["modality_weights"][0, 1] == 0.0
    assert make(view_names=VIEWS, num_numeric=0, category_sizes=()).modalities == VIEWS
    own = make(view_names=VIEWS, shared=False)
    assert [name for name, _ in own.encoder.named_children()] == ["view_frontal", "view_lateral", "maps"]


@pytest.mark.parametrize("data", [{"view_names": VIEWS}, {"max_instances": 2}])
def test_an_aggregator_makes_one_modality_of_several_images(tiny: Any, data: dict[str, Any]) -> None:
    model = make(aggregator="attention", aggregator_dim=5, auxiliary_heads=True, **data).eval()
    assert model.modalities == ("image", "table")
    entries = batch(images=2)
    entries["present"][0, 1], entries["present"][1] = False, False
    output = model(**entries)
    assert set(output) == {"logits", "modality_weights", "attention", "aux/image", "aux/table"}
    torch.testing.assert_close(output["attention"].sum(1), torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 1.0]))
    assert output["modality_weights"][1].tolist() == [0.0, 1.0]
    assert model.aggregator.hidden.out_features == 5


def test_modality_dropout_acts_in_training_only(tiny: Any) -> None:
    model = make(modality_dropout=0.5, fusion_drop=0.0, table_drop=0.0)
    entries = single(200)
    shares = model.train()(**entries)["modality_weights"]
    alone = (shares == 1.0).any(1).float().mean().item()
    assert alone == pytest.approx(0.75, abs=0.1)  # both stay with probability 1/4
    assert not (model.eval()(**entries)["modality_weights"] == 1.0).any()
    still = make(modality_dropout=0.0, fusion_drop=0.0, table_drop=0.0).train()
    assert not (still(**entries)["modality_weights"] == 1.0).any()


def test_auxiliary_heads_see_one_modality_each(tiny: Any) -> None:
    model = make(auxiliary_heads=True, modality_dropout=0.9).eval()
    entries = single()
    before = model(**entries)
    entries["numeric"] += 1.0
    after = model(**entries)
    assert torch.equal(after["aux/image"], before["aux/image"])
    assert not torch.allclose(after["aux/table"], before["aux/table"])
    assert len(make().auxiliary) == 0


def test_every_setting_has_an_effect(tiny: Any) -> None:
    def size(**settings: Any) -> int:
        return sum(parameter.numel() for parameter in make(**settings).parameters())

    assert size(table_dims=[9]) != size()
    assert size(table_dims=[9], table_arch="resnet") != size(table_dims=[9])
    assert size(fusion_dim=10) < size()
    assert size(fusion="attention", fusion_layers=3) > size(fusion="attention")
    assert size(fusion="bilinear", fusion_rank=3) < size(fusion="bilinear")
    assert size(fusion="compact_kronecker", fusion_sketch=64) < size(fusion="compact_kronecker")
    assert len({size(fusion=fusion) for fusion in NAMES}) == len(NAMES)
    assert make(fusion="cross_attention", fusion_heads=2).fusion.attention[0].heads == 2
    torch.testing.assert_close(make(fusion_weights=[0.3, 0.7]).fusion.scale.sigmoid(), torch.tensor([0.3, 0.7]))
    assert make(fusion_drop=0.25).fusion.dropout.p == 0.25
    assert make(chunk_size=3).encoder.chunk_size == 3
    assert make(arch="resnet50", weights="w.pt").encoder.shared.settings["weights"] == "w.pt"
    assert make(freeze="backbone").locked[0].startswith("encoder.shared.")
    drops = {layer.p for layer in make(table_drop=0.45).table.modules() if isinstance(layer, torch.nn.Dropout)}
    assert drops == {0.45}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_numeric": 0, "category_sizes": ()}, "fuses several modalities, and the data have images alone"),
        ({"in_channels": 0, "image_size": ()}, "the data have no images"),
        ({"max_instances": 4}, "bags of images, and model.aggregator does not say"),
        ({"aggregator": "mean"}, "aggregator=mean has no effect: the data have one image"),
        ({"aggregator_dim": 4}, "aggregator_dim has no effect without model.aggregator"),
        ({"fusion_rank": 4}, "fusion_rank has no effect with model.fusion=gated"),
        ({"shared": False}, "the data have no views"),
        ({"view_names": ("table", "b")}, "a view cannot be named `table`"),
        ({"fusion": "cross_attention", "image_size": (4, 4)}, "the modalities have 1, 4"),
        ({"fusion": "cross_attention", "num_numeric": 1, "category_sizes": ()}, "the modalities have 6, 1"),
        (
            {"fusion": "cross_attention", "view_names": VIEWS, "aggregator": "mean"},
            "looks at the feature map of each image, and model.aggregator leaves one vector",
        ),
        (
            {"num_numeric": 0, "category_sizes": (), "view_names": VIEWS, "table_drop": 0.1},
            "table_drop has no effect: the data have no tabular columns",
        ),
        ({"fusion": "kronecker", "fusion_dim": 90000}, "compact"),
    ],
)
def test_what_cannot_be_is_refused(tiny: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        make(**settings)
    assert message in f"{caught.value.message} {caught.value.hint}"
    assert caught.value.hint or "named" in message


def test_the_feature_layer_is_that_of_the_image_encoder(tiny: Any) -> None:
    from medtrain.models.cam import explain

    model = make()
    assert explain(model, single(), 1).shape == (6, 12, 8)
    assert explain(make(view_names=VIEWS, shared=False), batch(images=2), 1).shape == (6, 2, 12, 8)


@pytest.mark.parametrize("fusion", ["concat", "gated", "bilinear"])
def test_fusion_learns_what_neither_image_nor_table_tells(tiny: Any, fusion: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def samples(count: int) -> tuple[dict[str, Tensor], Tensor]:
        """The label is whether the square is bright, or the number positive, but not both."""
        bright = torch.randint(2, (count,), generator=generator)
        positive = torch.randint(2, (count,), generator=generator)
        image = 0.5 * torch.randn(count, 1, 8, 8, generator=generator)
        image[:, :, 2:6, 2:6] += 2.0 * bright[:, None, None, None]
        numeric = torch.randn(count, 2, generator=generator)
        numeric[:, 0] = (2.0 * positive - 1.0) * (0.5 + numeric[:, 0].abs())
        return {"image": image, "numeric": numeric}, bright ^ positive

    model = make(image_size=(8, 8), num_numeric=2, category_sizes=(), fusion=fusion, fusion_drop=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        entries, label = samples(32)
        loss = torch.nn.functional.cross_entropy(model(**entries)["logits"], label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    entries, label = samples(500)

    def accuracy(**given: Tensor) -> float:
        return (model(**given)["logits"].argmax(1) == label).float().mean().item()

    assert accuracy(**entries) > 0.95
    assert accuracy(image=entries["image"]) < 0.65
    assert accuracy(numeric=entries["numeric"]) < 0.65
