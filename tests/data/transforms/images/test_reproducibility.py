from __future__ import annotations

import pickle
import random
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from medtrain.data.transforms.images.build import _classes, albumentations
from tests.data.transforms.images.image_data import listed, make, photo

PRESETS = ["images", "retinal", "images_none"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_seed_means_the_same_in_any_order_process_and_thread(name: str) -> None:
    image = photo(60, 50, 3)
    first = make(name)
    expected = [first.train(image, seed=seed).image for seed in range(12)]
    backwards = {seed: first.train(image, seed=seed).image for seed in reversed(range(12))}
    pickled = pickle.loads(pickle.dumps(first))
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda seed: first.train(image, seed=seed).image, range(12)))
    for seed, result in enumerate(expected):
        np.testing.assert_array_equal(backwards[seed], result)
        np.testing.assert_array_equal(pickled.train(image, seed=seed).image, result)
        np.testing.assert_array_equal(threaded[seed], result)


def test_seeds_differ_and_large_ones_are_fine() -> None:
    augment = make("images", affine_p=1.0)
    image = photo(48, 48, 3)
    results = {augment.train(image, seed=seed).image.tobytes() for seed in (*range(20), 2**63, 2**64 - 1)}
    assert len(results) == 22


def test_transforms_of_equal_probability_are_drawn_independently() -> None:
    augment = listed({"name": "HorizontalFlip", "p": 0.5}, {"name": "VerticalFlip", "p": 0.5})
    image = photo(48, 48, 3)
    outcomes = {"none": image, "x": image[:, ::-1], "y": image[::-1], "xy": image[::-1, ::-1]}
    counts = dict.fromkeys(outcomes, 0)
    for seed in range(400):
        result = augment.train(image, seed=seed).image
        counts[next(name for name, outcome in outcomes.items() if np.array_equal(result, outcome))] += 1
    assert min(counts.values()) > 70  # 100 expected, 8.7 standard deviation; seeded alike, x and y never come alone
    assert sum(counts.values()) == 400


def test_global_random_states_are_neither_used_nor_changed() -> None:
    augment = make("images", noise_p=1.0, affine_p=1.0, dropout_p=1.0, resize="crop", margin=0.1)
    image = photo(60, 50, 3)
    results = []
    for global_seed in (1, 2):
        random.seed(global_seed)
        np.random.seed(global_seed)
        torch.manual_seed(global_seed)
        before = (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())
        results.append(augment.train(image, seed=3).image)
        assert before == (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())
    np.testing.assert_array_equal(*results)


def usable_transforms() -> list[str]:
    """All transforms of Albumentations that need no arguments and can be applied to colour pictures."""
    from medtrain.errors import MedtrainError

    found = []
    for name in _classes():
        try:
            listed({"name": name, "p": 1})
        except MedtrainError:
            continue
        found.append(name)
    return found


def test_every_transform_depends_on_the_seed_alone() -> None:
    names = usable_transforms()
    assert len(names) > 60
    image = photo(48, 48, 3)
    wrong = []
    for name in names:
        augment = listed({"name": name, "p": 1})
        expected = augment.train(image, seed=1).image
        augment.train(image, seed=2)
        if not np.array_equal(augment.train(image, seed=1).image, expected):
            wrong.append(name)
    assert not wrong


def test_importing_asks_no_network_and_evaluation_imports_nothing() -> None:
    program = """
        import os, sys, urllib.request
        import numpy as np
        from medtrain import registry

        os.environ.pop("NO_ALBUMENTATIONS_UPDATE", None)
        urllib.request.OpenerDirector.open = lambda *args, **kwargs: os._exit(9)
        sizes = dict(image_size=(8, 8), spatial_dims=2, in_channels=3)
        augment = registry.build("augment", {"name": "images"}, **sizes)
        image = np.zeros((9, 9, 3), dtype=np.uint8)
        augment.evaluate(image)
        assert augment.mirrors and "albumentations" not in sys.modules
        augment.train(image, seed=0)
        assert "albumentations" in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_pinned_version_is_installed() -> None:
    """Arguments, defaults and the ways around its traps are those of this version."""
    version: Any = albumentations().__version__
    assert version == "2.0.8"
