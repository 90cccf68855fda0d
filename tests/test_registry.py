"""Registering, finding and building components."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import pytest

from medtrain import registry
from medtrain.errors import MedtrainError, UsageError
from medtrain.registry import Param, Range, Spread, build, closest, construct, get, names, plain, read_params, register

if TYPE_CHECKING:
    from somewhere import Unknown  # type: ignore[import-not-found]


@pytest.fixture(autouse=True)
def _own_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_STATE", registry._State(plugins_loaded=True))


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule.

    Args:
        pattern: What it applies to.
        factor: By how much.
    """

    pattern: str
    factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Base:
    """Base.

    Args:
        size: From the base,
            on two lines.
        names: Overridden below.
    """

    size: int = 3
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Derived(Base):
    """Derived.

    Args:
        names: Of the class below.
        rules: A factory.
    """

    rules: list[Rule] = field(default_factory=lambda: [Rule(pattern="a")])


def net(*, width: Annotated[int, Range(ge=1)], params: Unknown, depth: int = 2) -> Unknown:
    """Make a net.

    More text.

    Args:
        width: Channels.
        params: Of the run.
        depth: Levels.
    """
    return width, params, depth


def test_a_function() -> None:
    register("model", "net", runtime=("params",), tags=("2d",))(net)
    component = get("model", "net")
    assert list(component.params) == ["width", "depth"]
    assert component.params["width"] == Param("width", Annotated[int, Range(ge=1)], doc="Channels.")
    assert component.params["width"].required
    assert component.defaults() == {"width": "???", "depth": 2}
    assert (component.summary, component.tags, component.runtime) == ("Make a net.", ("2d",), ("params",))
    assert build("model", {"name": "net", "width": 4}, params="p", other="not declared") == (4, "p", 2)


def test_settings_inherit_parameters_and_their_documentation() -> None:
    params = read_params(Derived)
    assert {name: param.doc for name, param in params.items()} == {
        "size": "From the base, on two lines.",
        "names": "Of the class below.",
        "rules": "A factory.",
    }
    assert plain(params["rules"].default) == [{"pattern": "a", "factor": 1.0}]


def test_settings_that_components_share_are_spread_among_their_own_parameters() -> None:
    class Base:
        """Has parameters of its own.

        Args:
            pattern: Another thing of this name.
        """

    @register("model", "sharing")
    class Sharing(Base):
        """Shares.

        Args:
            rule: Of it.
            factor: By how much here.
        """

        def __init__(
            self,
            *,
            size: int = 1,
            rule: Annotated[Rule, Spread()] = Rule(pattern="a"),
            last: bool = False,
        ) -> None:
            self.size, self.rule = size, rule

    params = get("model", "sharing").params
    assert list(params) == ["size", "pattern", "factor", "last"]
    assert (params["pattern"].default, params["factor"].default) == ("a", 1.0)  # those of the default, not required
    assert (params["pattern"].doc, params["factor"].doc) == ("What it applies to.", "By how much here.")
    assert build("model", {"name": "sharing"}).rule == Rule(pattern="a")
    assert build("model", {"name": "sharing", "size": 2, "factor": 3.0}).rule == Rule(pattern="a", factor=3.0)


def test_build_makes_dataclasses_and_tuples_of_plain_data() -> None:
    register("trainer", "derived")(Derived)
    built = build("trainer", {"name": "derived", "names": ["x", "y"], "rules": [{"pattern": "b"}]})
    assert built == Derived(names=("x", "y"), rules=[Rule(pattern="b")])


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (int, 3, 3),
        (Rule | None, None, None),
        (Rule | None, {"pattern": "a"}, Rule(pattern="a")),
        (Rule, Rule(pattern="a"), Rule(pattern="a")),
        (tuple[int, ...] | None, [1, 2], (1, 2)),
        (tuple[int | tuple[int, ...], ...], [1, [2, 3]], (1, (2, 3))),
        (tuple[Rule, int], [{"pattern": "a"}, 2], (Rule(pattern="a"), 2)),
        (dict[str, list[Rule]], {"k": [{"pattern": "a"}]}, {"k": [Rule(pattern="a")]}),
        (Annotated[list[int], Range(ge=0)], (1, 2), [1, 2]),
    ],
)
def test_construct(annotation: Any, value: Any, expected: Any) -> None:
    built = construct(annotation, value)
    assert built == expected
    assert type(built) is type(expected)


def test_an_unknown_name() -> None:
    register("model", "net", runtime=("params",))(net)
    with pytest.raises(UsageError, match="unknown model `nett`") as caught:
        get("model", "nett")
    assert caught.value.hint == "did you mean `model=net`?"


def _positional(width: int) -> None:
    """Bad."""


def _star(**values: int) -> None:
    """Bad."""


def _untyped(*, width) -> None:  # type: ignore[no-untyped-def]
    """Bad."""


def _named(*, name: str) -> None:
    """Bad."""


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (_positional, "must be keyword-only"),
        (_star, "cannot be described by a schema"),
        (_untyped, "has no annotation"),
        (_named, "is reserved"),
    ],
)
def test_signatures_that_cannot_be_a_schema(target: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        register("model", "bad")(target)


def test_names_are_unique_and_groups_are_closed() -> None:
    register("model", "net", runtime=("params",))(net)
    register("model", "net", runtime=("params",))(net)  # a module that is imported again
    with pytest.raises(TypeError, match="two components are named model=net"):
        register("model", "net")(Derived)
    with pytest.raises(TypeError, match="unknown component group 'modle'"):
        register("modle", "net")(Derived)
    with pytest.raises(TypeError, match="are not parameters"):
        register("model", "other", runtime=("nothing",))(net)


def test_names_come_from_the_source_and_from_what_is_registered() -> None:
    register("model", "net", runtime=("params",))(net)
    assert {"net", "unet"} <= set(names("model"))


def test_what_the_scan_finds_is_what_the_modules_register() -> None:
    code = (
        "import importlib\n"
        "from medtrain import registry\n"
        "found = registry.builtin_modules()\n"
        "for module in set(found.values()):\n"
        "    importlib.import_module(module)\n"
        "registered = {key: part.origin for key, part in registry._STATE.components.items()}\n"
        "assert registered == found, set(registered.items()) ^ set(found.items())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class _Entry:
    name = "lab"
    value = "lab.medtrain"
    dist = None
    loads: Any = None

    def load(self) -> None:
        self.loads()


def test_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = _Entry()
    entry.loads = lambda: register("model", "lab", runtime=("params",))(net)
    monkeypatch.setattr(registry._STATE, "plugins_loaded", False)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry])
    monkeypatch.delenv("MEDTRAIN_NO_PLUGINS", raising=False)
    assert get("model", "lab").target is net
    assert registry.load_plugins() == ["lab unknown"]


def test_a_broken_plugin_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ImportError("no lab")

    entry = _Entry()
    entry.loads = fail
    monkeypatch.setattr(registry._STATE, "plugins_loaded", False)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry])
    monkeypatch.setenv("MEDTRAIN_NO_PLUGINS", "1")
    assert registry.load_plugins() == []
    monkeypatch.delenv("MEDTRAIN_NO_PLUGINS")
    with pytest.raises(MedtrainError, match=r"the plug-in lab \(lab\.medtrain\) cannot be imported: no lab"):
        registry.load_plugins()


def test_range() -> None:
    inside = Range(ge=0, lt=1)
    assert 0 in inside
    assert 1 not in inside
    assert str(inside) == ">= 0 and < 1"
    assert str(Range(gt=0, le=0.5)) == "> 0 and <= 0.5"
    assert 0 not in Range(gt=0)


def test_closest() -> None:
    assert closest("unett", ["swin", "unet"]) == "unet"
    assert closest("zzz", ["unet"]) is None
