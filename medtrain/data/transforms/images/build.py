"""Albumentations transforms from names and arguments, with every mistake in them.

Albumentations itself answers an argument that it does not know with a warning and goes on without it, and fails in the
middle of training where a transform does not fit the images.
"""

from __future__ import annotations

import functools
import inspect
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import cv2
import numpy as np

from medtrain.errors import ConfigError, Problem
from medtrain.registry import closest

WHERE = "augment.transforms"

_NESTING = ("OneOf", "OneOrOther", "SomeOf", "RandomOrder", "Sequential", "SelectiveChannelTransform")
_REFUSED = {
    "Normalize": "images are normalised after the augmentation, on the device: leave it out",
    "ToTensorV2": "images become tensors after the augmentation: leave it out",
    "ToTensor3D": "images become tensors after the augmentation: leave it out",
    "ToFloat": "images keep their type: leave it out",
    "FromFloat": "images keep their type: leave it out",
    "Lambda": "a configuration cannot hold the functions it takes",
    "Compose": "transforms of a list are applied one after another; inside of OneOf that is Sequential",
    "ReplayCompose": "transforms of a list are applied one after another; inside of OneOf that is Sequential",
}
_ABSTRACT = ("BasicTransform", "DualTransform", "ImageOnlyTransform", "Transform3D", "BaseCompose")
_COLOUR = ("ChannelShuffle", "ColorJitter", "HueSaturationValue", "RGBShift", "ToGray", "ToSepia")
_RENAMED = {  # arguments of Albumentations 1 -> 2
    "max_holes": "num_holes_range",
    "min_holes": "num_holes_range",
    "max_height": "hole_height_range",
    "min_height": "hole_height_range",
    "max_width": "hole_width_range",
    "min_width": "hole_width_range",
    "num_holes": "num_holes_range",
    "var_limit": "std_range",
    "value": "fill",
    "fill_value": "fill",
    "cval": "fill",
    "mask_value": "fill_mask",
    "mask_fill_value": "fill_mask",
    "cval_mask": "fill_mask",
    "mode": "border_mode",
    "quality_lower": "quality_range",
    "quality_upper": "quality_range",
    "always_apply": "p",
    "height": "size",
    "width": "size",
}
_FLAGS = {"interpolation": "INTER_", "mask_interpolation": "INTER_", "border_mode": "BORDER_"}


@dataclass(frozen=True)
class Leaf:
    """A transform that holds no others.

    Args:
        where: Its place in the config.
        transform: The object.
        channels: How many channels it is given; None for all.
    """

    where: str
    transform: Any
    channels: int | None


@dataclass
class Built:
    """What a list of names and arguments became.

    Args:
        transforms: In the order of the list; where there are problems some are missing.
        leaves: Those that change images, at any depth.
        problems: Everything that is wrong.
    """

    transforms: list[Any] = field(default_factory=list)
    leaves: list[Leaf] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@functools.cache
def albumentations() -> ModuleType:
    """Import Albumentations, which takes seconds and would ask the network for a newer version of itself."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations as library

    return library


def build_transforms(items: Sequence[Mapping[str, Any]]) -> Built:
    """Construct transforms.

    Args:
        items: Each with the `name` of a transform and its arguments; OneOf and its kind hold such a list, `transforms`.
            Interpolations and borders may be written as words (`cubic`, `reflect_101`).

    Raises:
        ConfigError: All names, arguments and values that Albumentations does not know.
    """
    built = Built()
    built.transforms = _build_list(items, WHERE, None, built)
    if built.problems:
        raise ConfigError(built.problems)
    return built


def try_transforms(built: Built, *, image_size: Sequence[int], in_channels: int) -> None:
    """Apply every transform once to random images of either type.

    Args:
        built: What `build_transforms` returns.
        image_size: Of the images; two or three sides.
        in_channels: Of the images.

    Raises:
        ConfigError: All transforms that cannot be applied, or return something that is no such image.
    """
    problems = [
        Problem(leaf.where, f"{type(leaf.transform).__name__} {wrong}", hint)
        for leaf in built.leaves
        for wrong, hint in _wrongs(leaf.transform, image_size, leaf.channels or in_channels)
    ]
    if problems:
        raise ConfigError(problems)


def _build_list(items: Any, where: str, channels: int | None, built: Built) -> list[Any]:
    if not isinstance(items, list | tuple):
        built.problems.append(Problem(where, f"must be a list of transforms, got {items!r}"))
        return []
    made = (_build(item, f"{where}[{index}]", channels, built) for index, item in enumerate(items))
    return [transform for transform in made if transform is not None]


def _build(item: Any, where: str, channels: int | None, built: Built) -> Any | None:
    """One transform, or None after noting what is wrong with it."""
    before = len(built.problems)
    name = item.get("name") if isinstance(item, Mapping) else None
    if not isinstance(name, str):
        example = "`{name: RandomGamma, gamma_limit: [80, 120], p: 0.3}`"
        built.problems.append(Problem(where, f"has no name, got {item!r}", f"a transform is written like {example}"))
        return None
    kind = _find_class(name, f"{where}.name", built)
    if kind is None:
        return None
    known = list(inspect.signature(kind).parameters)
    arguments = {}
    for key, value in item.items():
        if key == "name":
            continue
        if key not in known:
            built.problems.append(_unknown_argument(name, key, known, where))
        elif key in _FLAGS and isinstance(value, str):
            arguments[key] = _flag(key, value, where, built)
        else:
            arguments[key] = value
    if name in _NESTING:
        return _build_nest(kind, arguments, where, channels, built)
    if len(built.problems) > before:
        return None
    if channels is not None and issubclass(kind, albumentations().DualTransform):
        message = f"{name} changes masks along with images, so it cannot be applied to some channels only"
        built.problems.append(Problem(where, message))
        return None
    transform = _construct(kind, arguments, where, built)
    if transform is not None:
        built.leaves.append(Leaf(where, transform, channels))
    return transform


def _build_nest(kind: type, arguments: dict[str, Any], where: str, channels: int | None, built: Built) -> Any | None:
    before = len(built.problems)
    if kind.__name__ == "SelectiveChannelTransform":
        channels = len(arguments.get("channels", (0, 1, 2)))
    probability = arguments.get("p", 1)
    if not isinstance(probability, int | float) or not 0 <= probability <= 1:
        built.problems.append(Problem(f"{where}.p", f"must be a number from 0 to 1, got {probability!r}"))
    if "first" in arguments or "second" in arguments or "transforms" not in arguments:
        built.problems.append(Problem(where, f"{kind.__name__} needs `transforms`, a list of transforms"))
        return None
    inner = _build_list(arguments["transforms"], f"{where}.transforms", channels, built)
    if len(built.problems) > before:
        return None
    if not inner or all(transform.p == 0 for transform in inner):
        built.problems.append(Problem(f"{where}.transforms", f"{kind.__name__} has nothing to choose from"))
        return None
    return _construct(kind, {**arguments, "transforms": inner}, where, built)


def _find_class(name: str, where: str, built: Built) -> type | None:
    if name in _REFUSED:
        built.problems.append(Problem(where, f"{name} has no place here: {_REFUSED[name]}"))
        return None
    known = _classes()
    if name not in known:
        lower = {other.lower(): other for other in known}
        near = lower.get(closest(name.replace("_", "").lower(), lower) or "")
        hint = f"did you mean `{near}`?" if near else f"transforms are: {', '.join(known)}"
        built.problems.append(Problem(where, f"Albumentations has no transform {name!r}", hint))
        return None
    return known[name]


@functools.cache
def _classes() -> dict[str, type]:
    """All transforms by name."""
    library = albumentations()
    transform: type = library.BasicTransform
    found = {
        name: value
        for name, value in vars(library).items()
        if isinstance(value, type) and issubclass(value, transform) and name not in (*_ABSTRACT, *_REFUSED)
    }
    return dict(sorted((found | {name: getattr(library, name) for name in _NESTING}).items()))


def _unknown_argument(name: str, key: str, known: Sequence[str], where: str) -> Problem:
    renamed = _RENAMED.get(key)
    near = renamed if renamed in known else closest(key, known)
    hint = f"did you mean `{near}`?" if near else f"its arguments are: {', '.join(known)}"
    return Problem(f"{where}.{key}", f"{name} has no argument {key!r}", hint)


def _flag(key: str, word: str, where: str, built: Built) -> int:
    prefix = _FLAGS[key]
    words = [name.removeprefix(prefix).lower() for name in dir(cv2) if name.startswith(prefix)]
    if word not in words:
        near = closest(word, words)
        hint = f"did you mean `{near}`?" if near else f"known are: {', '.join(words)}"
        built.problems.append(Problem(f"{where}.{key}", f"OpenCV has no {key} {word!r}", hint))
        return 0
    return int(getattr(cv2, prefix + word.upper()))


def _construct(kind: type, arguments: Mapping[str, Any], where: str, built: Built) -> Any | None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            transform = kind(**arguments)
        except (ValueError, TypeError, ZeroDivisionError, NotImplementedError) as error:
            built.problems += _explain(error, kind.__name__, where)
            return None
    if warned:
        built.problems.append(Problem(where, f"{kind.__name__}: {_one_line(warned[0].message)}"))
        return None
    return transform


def _explain(error: Exception, name: str, where: str) -> Iterator[Problem]:
    """The problems that a pydantic error lists, or the error itself."""
    listed = getattr(error.__cause__, "errors", None)
    for item in listed() if callable(listed) else ():
        place = ".".join([where, *(str(part) for part in item["loc"][:1])])
        given = f", got {item['input']!r}" if item["loc"] and item["type"] != "missing" else ""
        yield Problem(place, f"{name}: {_one_line(item['msg'])}{given}")
    if not callable(listed):
        yield Problem(where, f"{name}: {_one_line(error)}")


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _wrongs(transform: Any, image_size: Sequence[int], channels: int) -> Iterator[tuple[str, str | None]]:
    """What is wrong with a transform for such images, with hints; nothing if it can be applied."""
    key, what = ("image", "pictures") if len(image_size) == 2 else ("images", "volumes")  # slices
    if key not in transform.targets:
        yield f"cannot be applied to {what}", None
        return
    missing = sorted(set(transform.targets_as_params) - {"image", "images"})
    if missing:
        yield f"needs {', '.join(missing)}, which is not there", None
        return
    if channels != 3 and type(transform).__name__ in _COLOUR:
        hint = "RandomBrightnessContrast and RandomGamma work with any number of channels"
        yield f"changes colours: it needs 3 channels, and the images have {channels}", hint
        return
    for image in _samples((*image_size, channels)):
        wrong = _try(transform, key, image)
        if wrong:
            yield wrong, None
            return


def _samples(shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    yield rng.integers(256, size=shape, dtype=np.uint8)
    yield rng.random(shape, dtype=np.float32)


def _try(transform: Any, key: str, image: np.ndarray) -> str | None:
    transform.set_random_seed(0)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            changed = transform(force_apply=True, **{key: image})[key]
        except Exception as error:  # of any kind: it is told to the user
            shape = " x ".join(str(side) for side in image.shape)
            return f"cannot be applied to {image.dtype} images of {shape}: {_one_line(error) or type(error).__name__}"
    if warned:
        return f"does not fit the images: {_one_line(warned[0].message)}"
    if not isinstance(changed, np.ndarray) or changed.dtype != image.dtype or changed.ndim != image.ndim:
        return "does not return an image of the type it is given"
    if changed.shape[-1] != image.shape[-1]:
        return f"turns {image.shape[-1]} channels into {changed.shape[-1]}"
    return None
