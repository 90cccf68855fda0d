"""What can be chosen and set, read from the sources and the YAML files without importing any component.

Completion and `medtrain list` must answer at once, so nothing here imports torch, Hydra or a component: signatures
are read from the syntax tree. Standard library only.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medtrain import registry
from medtrain.config.paths import ALL_GROUPS, COMPONENT_GROUPS, conf_dir
from medtrain.errors import UsageError

_SCHEMA_LINE = re.compile(r"schema/(\w+)@")
_PARENT = re.compile(r"^\s*-\s*(\w+)\s*$|^defaults:\s*\[\s*(\w+)", re.MULTILINE)
_COMMENT_LINE = re.compile(r"^#\s?(?!@)(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Parameter:
    """A parameter as its source shows it.

    Args:
        name: Of the parameter.
        choices: Values that can be listed; empty when the type has no such list.
        default: As a user would type it; None when it is required or no plain literal.
    """

    name: str
    choices: tuple[str, ...]
    default: str | None


def require_group(group: str) -> str:
    """Return the group, or say which groups there are.

    Raises:
        UsageError: There is no such group.
    """
    if group not in ALL_GROUPS:
        near = registry.closest(group, ALL_GROUPS)
        raise UsageError(
            f"unknown group `{group}`; groups are: {', '.join(ALL_GROUPS)}",
            hint=f"did you mean `{near}`?" if near else None,
        )
    return group


def options(group: str, config_dirs: Sequence[Path] = ()) -> list[str]:
    """The options of a group: YAML files of every config folder, and components that have none."""
    found = set(registry.names(group)) if group in COMPONENT_GROUPS else set()
    for folder in (*config_dirs, conf_dir()):
        root = Path(folder) / group
        found |= {path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml")}
    return sorted(found)


def component_of(group: str, option: str, config_dirs: Sequence[Path] = ()) -> str:
    """The component behind an option: that of its YAML file, or the one of the same name."""
    for folder in (*config_dirs, conf_dir()):
        path = Path(folder) / group / f"{option}.yaml"
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            schema = _SCHEMA_LINE.search(text)
            parents = ("".join(groups) for groups in _PARENT.findall(text))
            parent = next((name for name in parents if name not in ("_self_", option)), None)
            if schema:
                return schema[1]
            if parent:
                return component_of(group, parent, config_dirs)
            break
    components = registry.names(group) if group in COMPONENT_GROUPS else []
    return "default" if option not in components and "default" in components else option


def summary(group: str, option: str, config_dirs: Sequence[Path] = ()) -> str:
    """One line about an option: the comment its YAML file begins with, or the first line of the docstring."""
    for folder in (*config_dirs, conf_dir()):
        path = Path(folder) / group / f"{option}.yaml"
        comment = _COMMENT_LINE.search(path.read_text(encoding="utf-8")) if path.is_file() else None
        if comment:
            return comment[1].strip()
    found = _find(group, component_of(group, option, config_dirs))
    if found is None:
        known = registry.registered(group, option)
        return known.summary if known else ""
    return (ast.get_docstring(found[1]) or "").split("\n", 1)[0]


def parameters(group: str, component: str) -> dict[str, Parameter]:
    """The parameters of a built-in component; empty when there is none of this name."""
    found = _find(group, component)
    if found is None:
        return {}
    module, node = found
    runtime = {
        element.value
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call)
        for keyword in decorator.keywords
        if keyword.arg == "runtime"
        for element in ast.walk(keyword.value)
        if isinstance(element, ast.Constant)
    }
    return {
        name: Parameter(name, tuple(_choices(where, annotation)), _literal(default))
        for where, name, annotation, default in _signature(module, node)
        if name not in runtime
    }


_Definition = ast.ClassDef | ast.FunctionDef


def _find(group: str, component: str) -> tuple[str, _Definition] | None:
    module = registry.builtin_modules().get((group, component))
    tree = _parse(module) if module else None
    if module is None or tree is None:
        return None
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            for decorator in node.decorator_list:
                if _is_registration(decorator, group, component):
                    return module, node
    return None


def _is_registration(node: ast.expr, group: str, component: str) -> bool:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "register"):
        return False
    return [argument.value for argument in node.args if isinstance(argument, ast.Constant)] == [group, component]


@functools.cache
def _parse(module: str) -> ast.Module | None:
    package = Path(registry.__file__).parent
    parts = module.split(".")[1:]
    for path in (package.joinpath(*parts).with_suffix(".py"), package.joinpath(*parts, "__init__.py")):
        if path.is_file():
            return ast.parse(path.read_text(encoding="utf-8"))
    return None


def _signature(module: str, node: _Definition) -> Iterator[tuple[str, str, ast.expr | None, ast.expr | None]]:
    """Yield (module, name, annotation, default) of keyword-only parameters, or of a dataclass's fields and its bases'.

    The module is the one in which the annotation was written, and its names mean something.
    """
    function = node if isinstance(node, ast.FunctionDef) else _method(node, "__init__")
    if function is not None:
        for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
            settings = _spread(module, argument.annotation)
            if settings is None:
                yield module, argument.arg, argument.annotation, default
            else:
                yield from _with_defaults(settings, default)
        return
    assert isinstance(node, ast.ClassDef)
    for base in node.bases:
        resolved = _resolve(module, base)
        if resolved is not None and isinstance(resolved[1], ast.ClassDef):
            yield from _signature(resolved[0], resolved[1])
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and _is_parameter(item):
            yield module, item.target.id, item.annotation, item.value


def _spread(module: str, annotation: ast.expr | None) -> tuple[str, ast.ClassDef] | None:
    """The settings dataclass of a parameter that stands for several (see `medtrain.registry.Spread`)."""
    if not (isinstance(annotation, ast.Subscript) and isinstance(annotation.slice, ast.Tuple)):
        return None
    wrapped, *marks = annotation.slice.elts
    if not any(isinstance(m, ast.Call) and isinstance(m.func, ast.Name) and m.func.id == "Spread" for m in marks):
        return None
    resolved = _resolve(module, wrapped)
    return (resolved[0], resolved[1]) if resolved is not None and isinstance(resolved[1], ast.ClassDef) else None


def _with_defaults(
    settings: tuple[str, ast.ClassDef], default: ast.expr | None
) -> Iterator[tuple[str, str, ast.expr | None, ast.expr | None]]:
    """Fields of a settings dataclass, with the defaults that a call of it changes."""
    changed = {k.arg: k.value for k in default.keywords} if isinstance(default, ast.Call) else {}
    for module, name, annotation, value in _signature(*settings):
        yield module, name, annotation, changed.get(name, value)


def _is_parameter(item: ast.AnnAssign) -> bool:
    """Whether a field of a dataclass is a parameter of its constructor."""
    annotation = item.annotation.value if isinstance(item.annotation, ast.Subscript) else item.annotation
    if isinstance(annotation, ast.Name) and annotation.id == "ClassVar":
        return False
    keywords = item.value.keywords if isinstance(item.value, ast.Call) else []
    return not any(k.arg == "init" and isinstance(k.value, ast.Constant) and not k.value.value for k in keywords)


def _method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == name), None)


def _resolve(module: str, node: ast.expr | None) -> tuple[str, ast.AST] | None:
    """What a name in a module stands for: a class or an assigned value there, or in the medtrain module it is from."""
    tree = _parse(module)
    if not isinstance(node, ast.Name) or tree is None:
        return None
    for item in tree.body:
        if isinstance(item, ast.ClassDef) and item.name == node.id:
            return module, item
        if isinstance(item, ast.Assign) and any(isinstance(t, ast.Name) and t.id == node.id for t in item.targets):
            return module, item.value
        if isinstance(item, ast.ImportFrom) and (item.module or "").startswith("medtrain."):
            for alias in item.names:
                if (alias.asname or alias.name) == node.id and item.module:
                    return _resolve(item.module, ast.Name(alias.name))
    return None


def _choices(module: str, node: ast.expr | None) -> Iterator[str]:
    if isinstance(node, ast.BinOp):
        yield from _choices(module, node.left)
        yield from _choices(module, node.right)
    elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if node.value.id == "Literal":
            yield from (text for item in items if (text := _literal(item)) is not None)
        elif node.value.id == "Annotated":
            yield from _choices(module, items[0])
    elif isinstance(node, ast.Constant) and node.value is None:
        yield "null"
    elif isinstance(node, ast.Name):
        resolved = _resolve(module, node)
        if node.id == "bool":
            yield from ("true", "false")
        elif resolved is not None and isinstance(resolved[1], ast.expr):
            yield from _choices(resolved[0], resolved[1])


def _literal(node: ast.expr | None) -> str | None:
    """A literal as a user would type it; None for anything else."""
    try:
        value = ast.literal_eval(node) if node is not None else ...
    except ValueError:
        return None
    return _write(value) if value is not ... else None


def _write(value: object) -> str | None:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        items = [_write(item) for item in value]
        return f"[{','.join(item for item in items if item is not None)}]"
    return str(value) if isinstance(value, int | float | str) else None
