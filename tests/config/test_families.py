"""Components for labelled voxels and for labelled images are not mixed."""

from __future__ import annotations

import pytest

from medtrain import registry
from medtrain.config.compose import load_config
from medtrain.config.families import FAMILIES, GROUPS, family_issues
from medtrain.errors import ConfigError


def test_every_component_for_images_or_voxels_says_so() -> None:
    for group in ("data", "task", "loss", "augment", "inference"):
        for name in registry.names(group):
            assert FAMILIES.keys() & set(registry.get(group, name).tags), f"{group}={name}"


def test_an_augmentation_of_the_other_family_is_named_with_those_that_fit() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(["augment=images"])
    (problem,) = caught.value.problems
    assert problem.where == "augment"
    assert "augment=images is for images with a label, but data=phantom holds labelled voxels" in problem.message
    assert problem.hint == "choose one of augment=auto, light, nnunet, none"


def test_all_misfits_are_said_at_once() -> None:
    tree = {"data": {"name": "phantom"}, "task": {"name": "classification"}, "inference": {"name": "images"}}
    assert [issue.path for issue in family_issues(tree)] == ["task", "inference"]
    assert list(family_issues({**tree, "data": {"name": "nothing"}})) == []
    assert set(GROUPS) <= set(registry.GROUPS)
