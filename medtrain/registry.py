"""Named components: register, find, describe and build them.

A component is a plain, typed, keyword-only class or function. Its configuration schema (types, ranges,
choices, documentation) is its signature. Names are found by scanning the source of medtrain's own component
packages, so listing them imports nothing and adding one needs no second place to edit.

This module imports the standard library only.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from medtrain.errors import MedtrainError, UsageError

GROUPS = (
    "task",
    "model",
    "data",
    "loss",
    "augment",
    "optimizer",
    "scheduler",
    "trainer",
    "inference",
    "callbacks",
    "logger",
    "run",
)
"""The groups of a run's configuration."""

SWEEP_GROUPS = ("sweep", "sampler", "pruner")
"""The groups that a sweep's configuration has besides."""

PLUGIN_GROUP = "medtrain.plugins"
_PACKAGE_DIR = Path(__file__).parent
_COMPONENT_DIRS = (
    "tasks",
    "models",
    "data",
    "losses",
    "optim",
    "engine",
    "inference",
    "callbacks",
    "loggers",
    "run",
    "sweep",
)
_REGISTER_CALL = re.compile(r'^@register\(\s*"(\w+)",\s*"(\w+)"', re.MULTILINE)
_MISSING = inspect.Parameter.empty
_T = TypeVar("_T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Range:
    """Allowed numbers, written in an annotation: `Annotated[float, Range(ge=0, lt=1)]`."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def __str__(self) -> str:
        pairs = ((">=", self.ge), (">", self.gt), ("<=", self.le), ("<", self.lt))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in pairs if bound is not None)


@dataclass(frozen=True)
class Format:
    """A string with a syntax, written in an annotation: `Annotated[str, Format(parse, "500step")]`.

    Args:
        parse: Raises ValueError with the reason when the text is not valid.
        example: Shown to the user, e.g. `"500step", "10ep", "20min"`.
    """

    parse: Callable[[str], Any]
    example: str


@dataclass(frozen=True)
class Spread:
    """A parameter that stands for several: `encoder: Annotated[EncoderSettings, Spread()] = EncoderSettings()`.

    The fields of the settings dataclass stand among the component's own parameters in a configuration, so that
    components share them without repeating them. The component's docstring may describe a field anew.
    """


@dataclass(frozen=True)
class Param:
    """One configurable parameter of a component: its name, type with metadata, default and documentation."""

    name: str
    type: Any
    default: Any = _MISSING
    doc: str = ""

    @property
    def required(self) -> bool:
        """Whether the user must set it."""
        return self.default is _MISSING


@dataclass(frozen=True)
class Component:
    """A registered class or function and the schema read from its signature.

    Args:
        group: One of GROUPS or SWEEP_GROUPS.
        name: The name used in configs; snake case, the paper's name.
        target: The class or function.
        params: What a config may set.
        spreads: Parameters that stand for several, with the settings that these make.
        runtime: Parameters that the builder supplies and a config cannot set.
        tags: Capabilities and families, for listing.
        summary: First line of the docstring.
        origin: Distribution or module that registered it.
    """

    group: str
    name: str
    target: Callable[..., Any]
    params: Mapping[str, Param]
    spreads: Mapping[str, Any] = field(default_factory=dict)
    runtime: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    summary: str = ""
    origin: str = ""

    def defaults(self) -> dict[str, Any]:
        """Every parameter with its default; required ones hold `"???"`."""
        return {p.name: "???" if p.required else plain(p.default) for p in self.params.values()}


@dataclass
class _State:
    components: dict[tuple[str, str], Component] = field(default_factory=dict)
    plugins: list[str] = field(default_factory=list)
    plugins_loaded: bool = False


_STATE = _State()


def register(group: str, name: str, *, runtime: Iterable[str] = (), tags: Iterable[str] = ()) -> Callable[[_T], _T]:
    """Register a class or function as the component `name` of `group`.

    Args:
        group: One of GROUPS or SWEEP_GROUPS.
        name: Unique within the group.
        runtime: Parameters supplied by the builder (`params`, `num_classes`, ...), hidden from configs.
        tags: Capabilities shown by `medtrain list --long`.

    Raises:
        TypeError: The group is unknown, the name is taken, or the signature cannot serve as a schema.
    """

    def decorate(target: _T) -> _T:
        if group not in (*GROUPS, *SWEEP_GROUPS):
            known_groups = ", ".join((*GROUPS, *SWEEP_GROUPS))
            raise TypeError(f"unknown component group {group!r}; groups are: {known_groups}")
        known = _STATE.components.get((group, name))
        if known is not None and _identity(known.target) != _identity(target):
            raise TypeError(
                f"two components are named {group}={name}: {_identity(known.target)} and {_identity(target)}"
            )
        runtime_names = tuple(runtime)
        params, spreads = _read_params(target, runtime_names)
        _STATE.components[(group, name)] = Component(
            group=group,
            name=name,
            target=target,
            params=params,
            spreads=spreads,
            runtime=runtime_names,
            tags=tuple(tags),
            summary=(inspect.getdoc(target) or "").split("\n", 1)[0],
            origin=target.__module__,
        )
        return target

    return decorate


def get(group: str, name: str) -> Component:
    """Return a component, importing its module if needed.

    Raises:
        UsageError: No component has this name; the nearest names are suggested.
    """
    if (group, name) not in _STATE.components:
        module = builtin_modules().get((group, name))
        if module is not None:
            importlib.import_module(module)
        else:
            load_plugins()
    try:
        return _STATE.components[(group, name)]
    except KeyError:
        known = names(group)
        close = closest(name, known)
        raise UsageError(
            f"unknown {group} `{name}`; available: {', '.join(known)}",
            hint=f"did you mean `{group}={close}`?" if close else None,
        ) from None


def registered(group: str, name: str) -> Component | None:
    """A component that is registered already, without importing anything."""
    return _STATE.components.get((group, name))


def names(group: str) -> list[str]:
    """All names of a group, without importing any component."""
    found = {name for g, name in builtin_modules() if g == group}
    found |= {name for g, name in _STATE.components if g == group}
    return sorted(found)


def build(group: str, config: Mapping[str, Any], **runtime: Any) -> Any:
    """Construct the component named by `config["name"]` with the config's values and the builder's runtime values.

    Args:
        group: One of GROUPS or SWEEP_GROUPS.
        config: A checked mapping of `name` and parameters.
        runtime: Values offered by the builder; a component receives those it declares in `runtime`.
    """
    component = get(group, config["name"])
    values = {key: construct(component.params[key].type, value) for key, value in config.items() if key != "name"}
    for name, settings in component.spreads.items():
        own = {f.name: values.pop(f.name) for f in dataclasses.fields(settings) if f.name in values}
        values[name] = dataclasses.replace(settings, **own)
    needed = {key: runtime[key] for key in component.runtime if key in runtime}
    missing = [key for key in component.runtime if key not in runtime and _is_required(component, key)]
    assert not missing, f"the builder does not offer {missing} to {group}={component.name}"
    return component.target(**values, **needed)


def construct(annotation: Any, value: Any) -> Any:
    """Turn checked plain data into what an annotation declares: mappings into dataclasses, lists into tuples.

    Args:
        annotation: Of the parameter.
        value: Plain data that fits the annotation, or a value that is already of the declared type.
    """
    while typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        built = (construct(member, value) for member in arguments)
        return next((item for item in built if item is not value), value)
    if isinstance(value, Mapping) and isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        hints = _type_hints(annotation)
        return annotation(**{key: construct(hints[key], item) for key, item in value.items()})
    if isinstance(value, Mapping) and origin is dict:
        return {key: construct(arguments[1], item) for key, item in value.items()}
    if isinstance(value, list | tuple) and origin is tuple:
        item_types = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(construct(item_type, item) for item_type, item in zip(item_types, value, strict=True))
    if isinstance(value, list | tuple) and origin is list:
        return [construct(arguments[0], item) for item in value]
    return value


def load_plugins() -> list[str]:
    """Import every installed package that declares the entry point `medtrain.plugins`, once; return their names."""
    if not _STATE.plugins_loaded and not os.environ.get("MEDTRAIN_NO_PLUGINS"):
        import importlib.metadata  # slow to import, and `medtrain --help` has no use for it

        _STATE.plugins_loaded = True
        for entry in importlib.metadata.entry_points(group=PLUGIN_GROUP):
            try:
                entry.load()
            except Exception as error:
                raise MedtrainError(
                    f"the plug-in {entry.name} ({entry.value}) cannot be imported: {error}",
                    hint="mend or uninstall it, or set MEDTRAIN_NO_PLUGINS=1",
                ) from error
            version = entry.dist.version if entry.dist else "unknown"
            _STATE.plugins.append(f"{entry.name} {version}")
    return list(_STATE.plugins)


@functools.cache
def builtin_modules() -> dict[tuple[str, str], str]:
    """Map every built-in (group, name) to the module that registers it, read from the source without importing."""
    found: dict[tuple[str, str], str] = {}
    for folder in _COMPONENT_DIRS:
        for path in sorted((_PACKAGE_DIR / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            for match in _REGISTER_CALL.finditer(text):
                module = ".".join(("medtrain", *path.relative_to(_PACKAGE_DIR).with_suffix("").parts))
                found[(match[1], match[2])] = module.removesuffix(".__init__")
    return found


def closest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The nearest known word, or None when nothing is near."""
    import difflib

    found = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return found[0] if found else None


def plain(value: Any) -> Any:
    """Turn a default into YAML-able data: tuples become lists, dataclasses become dicts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def read_params(target: Callable[..., Any]) -> dict[str, Param]:
    """The parameters of a keyword-only class or function, in order, with types, defaults and documentation."""
    return dict(_read_params(target, ())[0])


def _read_params(target: Callable[..., Any], runtime: tuple[str, ...]) -> tuple[Mapping[str, Param], Mapping[str, Any]]:
    """The parameters, and the settings of those that are spread, by the name of the parameter they make up."""
    signature = inspect.signature(target)
    unknown = set(runtime) - set(signature.parameters)
    if unknown:
        raise TypeError(f"{_identity(target)}: runtime names {sorted(unknown)} are not parameters")
    hints = _type_hints(target, runtime)
    docs = _read_arg_docs(target)
    params: dict[str, Param] = {}
    spreads: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            raise TypeError(f"{_identity(target)}: *{name} cannot be described by a schema")
        if name in runtime:
            continue
        if name == "name":
            raise TypeError(f"{_identity(target)}: the parameter `name` is reserved for the component's name")
        if parameter.kind is not parameter.KEYWORD_ONLY:
            raise TypeError(f"{_identity(target)}: parameter `{name}` must be keyword-only")
        if name not in hints:
            raise TypeError(f"{_identity(target)}: parameter `{name}` has no annotation")
        default = parameter.default
        if any(isinstance(mark, Spread) for mark in getattr(hints[name], "__metadata__", ())):
            assert dataclasses.is_dataclass(default), f"{_identity(target)}: `{name}` needs its settings as default"
            own = _arg_docs(target)  # what a base class says of a parameter of its own is not meant for these
            for key, param in read_params(type(default)).items():
                doc = own.get(key, param.doc)
                params[key] = dataclasses.replace(param, default=getattr(default, key), doc=doc)
            spreads[name] = default
            continue
        params[name] = Param(name=name, type=hints[name], default=default, doc=docs.get(name, ""))
    _fill_dataclass_factories(target, params)
    return types.MappingProxyType(params), types.MappingProxyType(spreads)


def _fill_dataclass_factories(target: Callable[..., Any], params: dict[str, Param]) -> None:
    """Dataclass signatures show `<factory>` for default factories: replace it by the value."""
    if isinstance(target, type) and dataclasses.is_dataclass(target):
        for f in dataclasses.fields(target):
            if f.name in params and f.default_factory is not dataclasses.MISSING:
                params[f.name] = dataclasses.replace(params[f.name], default=f.default_factory())


def _type_hints(target: Callable[..., Any], runtime: tuple[str, ...] = ()) -> dict[str, Any]:
    """Evaluate the annotations of the configurable parameters; those of runtime ones may be for type checkers only."""
    if isinstance(target, type) and dataclasses.is_dataclass(target):
        return typing.get_type_hints(target, include_extras=True)
    function: Any = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    if function is object.__init__:
        return {}
    wanted = {name: hint for name, hint in function.__annotations__.items() if name not in (*runtime, "return")}
    holder = types.SimpleNamespace(__annotations__=wanted)
    return typing.get_type_hints(holder, globalns=inspect.unwrap(function).__globals__, include_extras=True)


def _read_arg_docs(target: Callable[..., Any]) -> dict[str, str]:
    """The `Args:` section of a docstring and of the base classes' as {parameter: text}."""
    owners = [c for c in reversed(target.__mro__) if c is not object] if isinstance(target, type) else [target]
    return {name: text for owner in owners for name, text in _arg_docs(owner).items()}


def _arg_docs(owner: Callable[..., Any]) -> dict[str, str]:
    """Parse the `Args:` section of a Google docstring into {parameter: text}."""
    docs: dict[str, str] = {}
    raw = owner.__doc__
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", inspect.cleandoc(raw) if raw else "", re.MULTILINE)
    current = ""
    for line in section[1].splitlines() if section else ():
        entry = re.match(r"^ {4}(\w+):\s*(.*)$", line)
        if entry:
            current = entry[1]
            docs[current] = entry[2].strip()
        elif current and line.strip():
            docs[current] += " " + line.strip()
    return docs


def _is_required(component: Component, name: str) -> bool:
    return inspect.signature(component.target).parameters[name].default is _MISSING


def _identity(target: Any) -> str:
    return f"{target.__module__}.{target.__qualname__}"
