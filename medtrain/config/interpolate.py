"""Resolve `${...}` in a tree, value by value, so that one broken reference does not hide the others."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import Container, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from medtrain.config.tree import leaves, origin_of
from medtrain.errors import Problem
from medtrain.registry import closest


def resolve(tree: Mapping[str, Any], origins: Mapping[str, str]) -> tuple[dict[str, Any], list[Problem]]:
    """Return a copy of a tree with every interpolation replaced by its value, and what could not be resolved.

    Args:
        tree: Plain data.
        origins: Where each value came from, for the problems.
    """
    result = copy.deepcopy(dict(tree))
    problems: list[Problem] = []
    keys = list(_interpolated(result, ()))
    if not keys:
        return result, problems
    config = OmegaConf.create(result)
    for path in keys:
        where = _write(path)
        try:
            value = _read(config, path)
        except OmegaConfBaseException as error:
            text = _read_plain(tree, path)
            problems.append(
                Problem(
                    where, f"cannot resolve {text}: {_reason(error)}", _hint(error, tree), origin_of(origins, where)
                )
            )
            continue
        _read_plain(result, path[:-1])[path[-1]] = value
    return result, problems


def _interpolated(node: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    if isinstance(node, str) and "${" in node:
        yield path
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _interpolated(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _interpolated(value, (*path, index))


def _read(config: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        config = config[key]
    return OmegaConf.to_container(config, resolve=True) if isinstance(config, Container) else config


def _read_plain(tree: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _write(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def _reason(error: OmegaConfBaseException) -> str:
    first = next(line.strip() for line in str(error).splitlines() if line.strip())
    return first[:1].lower() + first[1:]


def _hint(error: OmegaConfBaseException, tree: Mapping[str, Any]) -> str | None:
    if not isinstance(error, InterpolationKeyError):
        return None
    wanted = str(error).split("'")[1]
    near = closest(wanted, [key for key, _ in leaves(tree)])
    return f"did you mean `${{{near}}}`?" if near else None
