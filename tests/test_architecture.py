"""The rules of the house that no linter knows. Import rules are in pyproject.toml (`lint-imports`)."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import pkgutil
import re
import sys
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import medtrain
from medtrain import registry
from medtrain.registry import Component, Range

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "medtrain"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TEXTS = sorted(
    path
    for pattern in (
        "medtrain/**/*.py",
        "conf/**/*.yaml",
        "scripts/**/*",
        "tests/**/*.py",
        ".ci/run",
        "*.toml",
        "Makefile",
    )
    for path in ROOT.glob(pattern)
    if path.is_file() and "__pycache__" not in path.parts
)
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 60

# what must not be in a file, as patterns that do not match themselves
MACHINE_PATH = re.compile(r"(?<![\w.$}~])/(?:root|Users)/\w")
PACKAGE_INDEX = re.compile(r"index[-_]url|find[-_]links")
UNFINISHED = re.compile(r"\b(?:TOD[O]|FIXM[E]|HAC[K]|XX[X])\b")


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _modules() -> Iterator[str]:
    for module in pkgutil.walk_packages([str(PACKAGE)], prefix="medtrain."):
        if not module.name.endswith("__main__"):
            yield module.name


@pytest.fixture(scope="module")
def components() -> dict[tuple[str, str], Component]:
    """What is registered once every module of the package has been imported."""
    for name in _modules():
        importlib.import_module(name)
    return {key: value for key, value in registry._STATE.components.items() if value.origin.startswith("medtrain.")}


def test_the_scan_finds_exactly_what_is_registered(components: dict[tuple[str, str], Component]) -> None:
    assert {key: component.origin for key, component in components.items()} == dict(registry.builtin_modules())


def test_every_component_and_every_parameter_is_documented(components: dict[tuple[str, str], Component]) -> None:
    assert components
    missing = []
    for component in components.values():
        where = f"{component.group}={component.name} ({component.origin})"
        if not component.summary.endswith("."):
            missing.append(f"{where}: the docstring's first line must be one sentence: {component.summary!r}")
        missing += [f"{where}: {param.name} is not in Args" for param in component.params.values() if not param.doc]
    assert not missing, "\n".join(missing)


def test_every_default_lies_in_its_own_range(components: dict[tuple[str, str], Component]) -> None:
    wrong = [
        f"{component.group}={component.name}: {param.name}={param.default} is not {allowed}"
        for component in components.values()
        for param in component.params.values()
        for allowed in _ranges(param.type)
        if isinstance(param.default, int | float) and not isinstance(param.default, bool)
        if param.default not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def _ranges(annotation: Any) -> Iterator[Range]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _ranges(member)
    for entry in getattr(annotation, "__metadata__", ()):
        if isinstance(entry, Range):
            yield entry


def test_files_are_short_enough_to_read() -> None:
    lengths = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    long = [f"{name}: {lines} lines" for name, lines in lengths.items() if lines > MAX_FILE_LINES]
    assert not long, f"more than {MAX_FILE_LINES} lines, split by concept:\n" + "\n".join(long)


def test_functions_are_short_enough_to_read() -> None:
    long = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                lines = (node.end_lineno or 0) - first.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long.append(f"{_name(path)}:{node.lineno} {node.name}: {lines} lines")
    assert not long, f"more than {MAX_FUNCTION_LINES} lines beside signature and docstring:\n" + "\n".join(long)


def test_source_is_ascii_and_finished() -> None:
    wrong = []
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        wrong += [f"{_name(path)}: {line!r} is not ASCII" for line in text.splitlines() if not line.isascii()]
        wrong += [f"{_name(path)}: {match[0]}" for match in UNFINISHED.finditer(text)]
    assert not wrong, "\n".join(wrong)


def test_nothing_names_a_machine_or_a_package_index() -> None:
    wrong = [
        f"{_name(path)}: {match[0]}"
        for path in TEXTS
        for pattern in (MACHINE_PATH, PACKAGE_INDEX)
        for match in pattern.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not wrong, "\n".join(wrong)


def test_every_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core = _distributions(project["dependencies"])
    extras = _distributions(
        text for extra, texts in project["optional-dependencies"].items() if extra != "dev" for text in texts
    )
    owners = importlib.metadata.packages_distributions()
    wrong = []
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        at_top = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            for module in _imported(node):
                if module in sys.stdlib_module_names or module == "medtrain":
                    continue
                names = {canonicalize_name(name) for name in owners.get(module, [module])}
                allowed = core if id(node) in at_top else core | extras
                if not names & allowed:
                    kind = "a dependency" if id(node) in at_top else "a dependency or an extra"
                    wrong.append(f"{_name(path)}:{node.lineno} imports {module}, which is not {kind}")
    assert not wrong, "\n".join(wrong)


def _distributions(requirements: Iterable[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
        return [node.module.partition(".")[0]]
    return []


def test_the_version_is_the_installed_one() -> None:
    assert importlib.metadata.version("medtrain") == medtrain.__version__
