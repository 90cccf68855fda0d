"""Parameter groups: what decays, whose learning rate differs, and rules that have no effect."""

from __future__ import annotations

import pytest
import timm
import timm.optim
import torch
from torch import nn

from medtrain.errors import ConfigError, UsageError
from medtrain.models.stages import UNetSettings
from medtrain.models.timm_encoder import TimmEncoder
from medtrain.models.unet import UNet
from medtrain.optim.param_groups import ParamRule, make_param_groups
from medtrain.registry import build


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, bias=False))
        self.mixer = nn.LayerNorm((4, 4))
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.head = nn.Linear(4, 2)


def names_by_label(model: nn.Module, groups: list[dict]) -> dict[str, set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["label"]: {names[id(parameter)] for parameter in group["params"]} for group in groups}


def test_norms_and_biases_are_not_decayed() -> None:
    model = Small()
    groups = make_param_groups(model, lr=0.1, weight_decay=0.01)
    assert names_by_label(model, groups) == {
        "all": {"encoder.0.weight", "encoder.2.weight", "token", "head.weight"},
        "all (norms and biases)": {
            "encoder.0.bias",
            "encoder.1.weight",
            "encoder.1.bias",
            "mixer.weight",  # two axes, but a norm
            "mixer.bias",
            "head.bias",
        },
    }
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]


def test_rules_multiply_and_the_first_match_wins() -> None:
    model = Small()
    rules = [ParamRule(pattern="encoder.0", lr_mult=0.1, wd_mult=2.0), ParamRule(pattern="enc*", lr_mult=0.5)]
    groups = make_param_groups(model, lr=0.2, weight_decay=0.01, rules=rules)
    assert names_by_label(model, groups) == {
        "encoder.0": {"encoder.0.weight"},
        "encoder.0 (norms and biases)": {"encoder.0.bias"},
        "enc*": {"encoder.2.weight"},
        "enc* (norms and biases)": {"encoder.1.weight", "encoder.1.bias"},
        "others": {"token", "head.weight"},
        "others (norms and biases)": {"mixer.weight", "mixer.bias", "head.bias"},
    }
    assert [group["lr_mult"] for group in groups] == [0.1, 0.1, 0.5, 0.5, 1.0, 1.0]
    assert [group["base_lr"] for group in groups] == pytest.approx([0.02, 0.02, 0.1, 0.1, 0.2, 0.2])
    assert all(group["lr"] == group["base_lr"] for group in groups)
    assert [group["weight_decay"] for group in groups] == pytest.approx([0.02, 0, 0.01, 0, 0.01, 0])


def test_every_parameter_is_in_exactly_one_group() -> None:
    stages = UNetSettings(channels=(4, 8, 8), strides=(1, 2, 2), kernel_sizes=(3, 3, 3))
    model = UNet(spatial_dims=3, in_channels=1, num_outputs=2, settings=stages)
    rules = [ParamRule(pattern="encoder.1", lr_mult=0.3), ParamRule(pattern="*.norm.weight", wd_mult=0.0)]
    groups = make_param_groups(model, lr=0.1, weight_decay=0.1, rules=rules)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in model.parameters()}
    for group in groups:  # the network's own normalisation counts as one
        assert all((parameter.ndim > 1) == (group["weight_decay"] > 0) for parameter in group["params"])


def test_shared_parameters_appear_once() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    groups = make_param_groups(model, lr=0.1, weight_decay=0.0)
    assert sum(len(group["params"]) for group in groups) == 3


def test_a_frozen_part_trains_after_it_is_unfrozen() -> None:
    model = Small()
    model.encoder.requires_grad_(False)
    optimizer = build("optimizer", {"name": "adamw", "lr": 0.1}, model=model)
    before = model.encoder[0].weight.clone()

    def step() -> None:
        optimizer.zero_grad()
        features = model.encoder(torch.ones(2, 1, 8, 8)).mean((2, 3)) + model.token[0]
        model.head(features).square().sum().backward()
        optimizer.step()

    step()
    assert torch.equal(model.encoder[0].weight, before)
    model.encoder.requires_grad_(True)
    step()
    assert not torch.equal(model.encoder[0].weight, before)


def test_a_factor_of_zero_keeps_the_parameters() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    before = model["a"].weight.clone()
    optimizer = build("optimizer", {"name": "sgd", "lr": 0.1, "rules": [{"pattern": "a", "lr_mult": 0.0}]}, model=model)
    model["b"](model["a"](torch.ones(1, 2))).sum().backward()
    optimizer.step()
    assert torch.equal(model["a"].weight, before)


def test_unmatched_patterns_are_all_reported_with_the_nearest_name() -> None:
    rules = [ParamRule(pattern="encodr.*"), ParamRule(pattern="head"), ParamRule(pattern="zzz")]
    with pytest.raises(ConfigError) as error:
        make_param_groups(Small(), lr=0.1, weight_decay=0.0, rules=rules)
    first, second = error.value.problems
    assert first.where == "optimizer.rules[0].pattern"
    assert first.message == "`encodr.*` matches no parameter; top-level names: encoder, head, mixer, token"
    assert first.hint == "did you mean `encoder`?"
    assert (second.where, second.hint) == ("optimizer.rules[2].pattern", None)


def test_a_rule_hidden_by_an_earlier_one_is_an_error() -> None:
    rules = [ParamRule(pattern="encoder"), ParamRule(pattern="encoder.0", lr_mult=0.1)]
    with pytest.raises(ConfigError, match=r"`encoder.0` has no effect: earlier rules such as `encoder` match"):
        make_param_groups(Small(), lr=0.1, weight_decay=0.0, rules=rules)


def test_lower_layers_of_an_encoder_learn_more_slowly() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = TimmEncoder("test_vit", in_channels=1, image_size=(32, 32))
            self.head = nn.Linear(self.encoder.num_features, 2)

    model = Network()
    rules = [ParamRule(pattern="head", lr_mult=2.0)]
    groups = make_param_groups(model, lr=0.1, weight_decay=0.05, rules=rules, layer_decay=0.5)
    rates = {id(parameter): group["base_lr"] for group in groups for parameter in group["params"]}
    assert sorted(rates) == sorted(id(parameter) for parameter in model.parameters())  # everything, once
    blocks = len(model.encoder.model.blocks)
    top = blocks + 1  # the stem is layer 0, and the head lies above layer `blocks`
    expected = {"cls_token": 0, "pos_embed": 0, "patch_embed.proj.weight": 0}
    expected |= {f"blocks.{index}.attn.qkv.weight": index + 1 for index in range(blocks)}
    for name, layer in expected.items():
        rate = rates[id(model.encoder.model.get_parameter(name))]
        assert rate == pytest.approx(0.1 * 0.5 ** (top - layer)), name
    assert rates[id(model.head.weight)] == 0.2
    assert groups[0]["label"] == "head"
    assert "layer 1 from the top" in str([group["label"] for group in groups])
    # as timm's own, which counts the same layers for its whole network
    own = timm.create_model("test_vit", num_classes=2, img_size=32, in_chans=1)
    theirs = {
        name: group["lr_scale"]
        for group in timm.optim.param_groups_layer_decay(own, weight_decay=0.05, layer_decay=0.5)
        for name, value in own.named_parameters()
        if any(value is parameter for parameter in group["params"])
    }
    for name, layer in expected.items():
        assert theirs[name] == pytest.approx(0.5 ** (top - layer)), name


def test_a_decay_without_layers_is_refused() -> None:
    with pytest.raises(UsageError, match=r"optimizer\.layer_decay is for encoders whose layers are known"):
        make_param_groups(nn.Linear(2, 2), lr=0.1, weight_decay=0.0, layer_decay=0.7)
