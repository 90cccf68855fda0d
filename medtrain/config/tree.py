"""Nested plain data with a record of where every value came from."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any


class OriginTree:
    """A config tree under construction.

    Layers are merged into it in order; every leaf (a scalar, a list, an empty mapping) remembers the layer that set it.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}

    def merge(self, content: Mapping[str, Any], origin: str, package: str = "") -> None:
        """Merge a layer: mappings are merged key by key, anything else is replaced.

        Args:
            content: Plain data.
            origin: Recorded for every leaf.
            package: Dotted path at which the content is placed.
        """
        for key in reversed(package.split(".") if package else []):
            content = {key: content}
        self._merge(self.values, content, origin, "")

    def _merge(self, target: dict[str, Any], content: Mapping[str, Any], origin: str, path: str) -> None:
        for key, value in content.items():
            where = f"{path}.{key}" if path else str(key)
            current = target.get(key)
            if isinstance(value, Mapping) and value:
                if not isinstance(current, dict):
                    self._forget(where)
                    current = target[key] = {}
                self.origins.pop(where, None)
                self._merge(current, value, origin, where)
            else:
                if isinstance(value, Mapping) and isinstance(current, dict) and current:
                    continue  # merging an empty mapping changes nothing
                self._forget(where)
                target[key] = copy.deepcopy(value)
                self.origins[where] = origin

    def set(self, key: str, value: Any, origin: str) -> str | None:
        """Set one value at a dotted path, e.g. `optimizer.rules.0.lr_mult`.

        Returns:
            Why it cannot be set, or None.
        """
        *parents, last = key.split(".")
        node: Any = self.values
        walked = ""
        for index, part in enumerate(parents):
            rest = (*parents[index + 1 :], last)
            walked = f"{walked}.{part}" if walked else part
            if isinstance(node, list):
                if not part.isdigit() or int(part) >= len(node):
                    return f"the list has {len(node)} items"
                node = node[int(part)]
                continue
            if not isinstance(node.get(part), dict | list):
                if node.get(part) not in (None, "???"):
                    return f"`{walked}` is a single value and has no keys"
                if rest[0].isdigit():
                    return f"`{walked}` has no items; set the whole list"
                self._forget(walked)
                node[part] = {}
            node = node[part]
        if isinstance(node, list):
            return self._set_item(node, key, last, value, origin)
        self._merge(node, {last: value}, origin, ".".join(parents))
        return None

    def _set_item(self, items: list[Any], key: str, last: str, value: Any, origin: str) -> str | None:
        if not last.isdigit() or int(last) >= len(items):
            return f"the list has {len(items)} items"
        items[int(last)] = copy.deepcopy(value)
        self.origins[key.rpartition(".")[0]] = origin
        return None

    def _forget(self, path: str) -> None:
        for known in [known for known in self.origins if known == path or known.startswith(f"{path}.")]:
            del self.origins[known]


def origin_of(origins: Mapping[str, str], path: str) -> str | None:
    """The origin of a value, of what holds it, or of the first value in it.

    `optimizer.rules[0].lr_mult` finds that of `optimizer.rules`.
    """
    path = path.split("[", 1)[0]
    inside = next((origin for key, origin in origins.items() if key.startswith(f"{path}.")), None)
    if path not in origins and inside is not None:
        return inside
    while path:
        if path in origins:
            return origins[path]
        path = path.rpartition(".")[0]
    return None


def leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a tree as (dotted path, value); lists and empty mappings are leaves."""
    for key, value in tree.items():
        where = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping) and value:
            yield from leaves(value, where)
        else:
            yield where, value


def lookup(tree: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted path.

    Raises:
        KeyError: There is no such key.
    """
    node: Any = tree
    for part in key.split("."):
        if isinstance(node, list | tuple) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, Mapping) and part in node:
            node = node[part]
        else:
            raise KeyError(key)
    return node
