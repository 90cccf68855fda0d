"""What an annotation allows: say it in words, and check and coerce a value against it.

The walk covers bool, int, float, str, None, Literal, Annotated with Range or Format, unions, tuples, lists,
dicts with text keys, and dataclasses, nested in any way.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from medtrain.registry import Format, Param, Range, closest, plain, read_params

NUMBER_NAMES = {int: "int", float: "float", str: "text", bool: "true or false"}
REQUIRED = "required, not set"
"""How the message of a missing value begins."""

_NONE = type(None)
_KINDS: Mapping[type, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (float, int), str: (str,)}


@dataclass(frozen=True)
class Issue:
    """One thing wrong with a value.

    Args:
        path: Dotted path of the value, with `[i]` for list items.
        message: What is wrong and what is allowed.
        hint: What to type instead, or None.
        kind: `"type"` when the value has the wrong type altogether; a union then tries its other members.
            `"missing"` when there is no value.
    """

    path: str
    message: str
    hint: str | None = None
    kind: Literal["type", "value", "missing"] = "value"


@dataclass(frozen=True)
class _Spec:
    """An annotation without its `Annotated` wrappers, and what they carried."""

    base: Any
    range: Range | None = None
    format: Format | None = None


def _unwrap(annotation: Any, outer: _Spec | None = None) -> _Spec:
    """Strip `Annotated`; a Range or Format around a union or container applies to the values inside it."""
    found_range = outer.range if outer else None
    found_format = outer.format if outer else None
    while typing.get_origin(annotation) is typing.Annotated:
        annotation, *extras = typing.get_args(annotation)
        for extra in extras:
            if isinstance(extra, Range):
                found_range = extra
            elif isinstance(extra, Format):
                found_format = extra
    return _Spec(annotation, found_range, found_format)


def describe(annotation: Any) -> str:
    """Say in words what an annotation allows, e.g. `int >= 1 or null`."""
    return _describe(_unwrap(annotation))


def _describe(spec: _Spec) -> str:
    base, arguments = spec.base, typing.get_args(spec.base)
    if _is_union(base):
        members = sorted(arguments, key=lambda member: member is _NONE)
        return " or ".join(_describe(_unwrap(member, spec)) for member in members)
    origin = typing.get_origin(base)
    if origin is Literal:
        choices = ", ".join(show(choice) for choice in arguments)
        return f"one of {choices}" if len(arguments) > 1 else choices
    if origin is tuple:
        return _describe_tuple(arguments, spec)
    if origin is list:
        return f"list of {_describe_item(arguments[0], spec)}"
    if origin is dict:
        return f"mapping of names to {_describe(_unwrap(arguments[1], spec))}"
    if base in (None, _NONE):
        return "null"
    if base is str and spec.format:
        return f"text such as {spec.format.example}"
    if dataclasses.is_dataclass(base):
        return f"mapping with the keys {', '.join(read_params(base))}"  # type: ignore[arg-type]
    if base in (int, float) and spec.range:
        return f"{NUMBER_NAMES[base]} {spec.range}"
    if base in NUMBER_NAMES:
        return NUMBER_NAMES[base]
    if base is Any:
        return "any value"
    raise TypeError(f"a config schema cannot hold the annotation {base!r}")


def _describe_item(annotation: Any, outer: _Spec) -> str:
    spec = _unwrap(annotation, outer)
    return f"({_describe(spec)})" if _is_union(spec.base) else _describe(spec)


def _describe_tuple(arguments: tuple[Any, ...], spec: _Spec) -> str:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return f"list of {_describe_item(arguments[0], spec)}"
    items = [_describe(_unwrap(argument, spec)) for argument in arguments]
    if len(set(items)) == 1:
        return f"list of {len(items)} {items[0]}"
    return f"[{', '.join(items)}]"


def choices(annotation: Any) -> list[str]:
    """The values that can be listed: those of Literals, true and false, null; empty when there is no such list."""
    base, arguments = _unwrap(annotation).base, typing.get_args(_unwrap(annotation).base)
    if _is_union(base):
        found = [choices(member) for member in arguments]
        return [choice for member in found for choice in member]
    if typing.get_origin(base) is Literal:
        return [show(choice) for choice in arguments]
    if base is bool:
        return ["true", "false"]
    return ["null"] if base in (None, _NONE) else []


def accepts_text(annotation: Any) -> bool:
    """Whether free text is a valid value."""
    base = _unwrap(annotation).base
    if _is_union(base):
        return any(accepts_text(member) for member in typing.get_args(base))
    return base is str


def is_list_of_texts(annotation: Any) -> bool:
    """Whether a list of texts of any length, or null, is all that is valid."""
    base, arguments = _unwrap(annotation).base, typing.get_args(_unwrap(annotation).base)
    if _is_union(base):
        members = [member for member in arguments if member is not _NONE]
        return len(members) == 1 and is_list_of_texts(members[0])
    origin = typing.get_origin(base)
    is_list = origin is list or (origin is tuple and arguments[-1] is Ellipsis)
    return is_list and _unwrap(arguments[0]).base is str


def split_texts(text: str) -> list[str] | None:
    """Read `[parameters <= 2e6, a b]`, whose quotes the shell has eaten, or one bare text; None if it is neither."""
    if text.startswith("[") and text.endswith("]"):
        items = re.split(r",(?=(?:[^'\"]|'[^']*'|\"[^\"]*\")*$)", text[1:-1])
        return [re.sub(r"^(['\"])(.*)\1$", r"\2", item.strip(), flags=re.S) for item in items if item.strip()]
    if not text or text.startswith(("[", "{")) or "${" in text or text.lower() in ("none", "null", "~", "???"):
        return None
    return [text]


def range_words(text: str) -> str | None:
    """The range that `loguniform(1e-4, 1e-1)`, `log(...)` or `uniform(...)` of other libraries means; else None."""
    match = re.fullmatch(r"(log|log_?uniform|uniform)\((?:interval\()?([^(),]+),([^(),]+)\)+", text.strip())
    if match is None:
        return None
    words = f"interval({match[2].strip()}, {match[3].strip()})"
    return f"tag(log, {words})" if match[1].startswith("log") else words


def number_kind(annotation: Any) -> Literal["int", "float"] | None:
    """Whether an annotation takes numbers, and which; None when it takes none."""
    base = _unwrap(annotation).base
    if _is_union(base):
        kinds = {number_kind(member) for member in typing.get_args(base)}
        return "float" if "float" in kinds else "int" if "int" in kinds else None
    return "int" if base is int else "float" if base is float else None


def step_into(annotation: Any, key: str) -> Any | None:
    """The annotation of the item `key` of a container (a field, a dict key, a list index), or None."""
    base, arguments = _unwrap(annotation).base, typing.get_args(_unwrap(annotation).base)
    if _is_union(base):
        return next((found for member in arguments if (found := step_into(member, key)) is not None), None)
    origin = typing.get_origin(base)
    if origin is dict:
        return arguments[1]
    if origin is list or (origin is tuple and arguments[-1] is Ellipsis):
        return arguments[0] if key.isdigit() else None
    if origin is tuple:
        return arguments[int(key)] if key.isdigit() and int(key) < len(arguments) else None
    if dataclasses.is_dataclass(base):
        param = read_params(base).get(key)  # type: ignore[arg-type]
        return param.type if param else None
    return None


def show(value: Any) -> str:
    """Write a value as a user would type it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(show(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {show(item)}' for key, item in value.items())}}}"
    return str(value)


def _got(value: Any) -> str:
    return f"got {value!r}" if isinstance(value, str) else f"got {show(value)}"


def check(annotation: Any, value: Any, path: str) -> tuple[Any, list[Issue]]:
    """Check a value and coerce it to the declared type.

    An int becomes a float where a float is declared, a list becomes a tuple, `"1e-3"` becomes a number, and a
    mapping for a dataclass gets the defaults of the fields it leaves out (it stays a plain dict).

    Args:
        annotation: Of the parameter.
        value: Plain YAML data.
        path: Dotted path, used in the issues.

    Returns:
        The coerced value and every issue found; with issues, the value is meaningless.
    """
    return _check(_unwrap(annotation), value, path)


def _check(spec: _Spec, value: Any, path: str) -> tuple[Any, list[Issue]]:
    base = spec.base
    if base is Any:
        return value, []
    if _is_union(base):
        return _check_union(spec, value, path)
    origin = typing.get_origin(base)
    if origin is Literal:
        return _check_literal(spec, value, path)
    handler: Callable[[_Spec, Any, str], tuple[Any, list[Issue]]] | None = None
    if origin is tuple or origin is list:
        handler = _check_sequence
    elif origin is dict:
        handler = _check_dict
    elif dataclasses.is_dataclass(base):
        handler = _check_dataclass
    if handler is not None:
        return handler(spec, value, path)
    if base in (None, _NONE):
        return (None, []) if value is None else _wrong_type(spec, value, path)
    return _check_scalar(spec, value, path)


def _wrong_type(spec: _Spec, value: Any, path: str) -> tuple[Any, list[Issue]]:
    return value, [Issue(path, f"expected {_describe(spec)}, {_got(value)}", kind="type")]


def _check_scalar(spec: _Spec, value: Any, path: str) -> tuple[Any, list[Issue]]:
    base: type = spec.base
    given = value
    if base is float and isinstance(value, str):
        value = parse_float(value)
    if base is int and isinstance(value, float) and value.is_integer():
        value = int(value)  # 1e5 is written for 100000
    if base is str and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # run.name=2024
    if not _is_a(base, value):
        words = range_words(value) if base in (int, float) and isinstance(value, str) else None
        hint = f"a range, for `medtrain sweep`, is written `'{path}={words}'`" if words else None
        value, issues = _wrong_type(spec, value, path)
        return value, [dataclasses.replace(issues[0], hint=hint)]
    if base is float:
        value = float(value)
        if not math.isfinite(value):
            return value, [Issue(path, f"must be a finite number, got {show(given)}")]
    if base in (int, float) and spec.range and value not in spec.range:
        return value, [Issue(path, f"must be {spec.range}, got {show(given)}")]
    if base is str and spec.format:
        try:
            spec.format.parse(value)
        except ValueError as error:
            return value, [Issue(path, f"{value!r} is not valid: {error}", f"write for example {spec.format.example}")]
    return value, []


def _is_a(base: type, value: Any) -> bool:
    if isinstance(value, bool):
        return base is bool
    return isinstance(value, _KINDS[base])


def parse_float(text: str) -> float | str:
    """Read text such as `1e-3`, which YAML 1.1 takes for a string; other text is returned as it is."""
    try:
        return float(text)
    except ValueError:
        return text


def _check_literal(spec: _Spec, value: Any, path: str) -> tuple[Any, list[Issue]]:
    allowed = typing.get_args(spec.base)
    for choice in allowed:
        if type(choice) is type(value) and choice == value:
            return choice, []
    near = closest(str(value), [show(choice) for choice in allowed])
    hint = f"did you mean `{path}={near}`?" if near else None
    return value, [Issue(path, f"must be {_describe(spec)}, {_got(value)}", hint, kind="type")]


def _check_union(spec: _Spec, value: Any, path: str) -> tuple[Any, list[Issue]]:
    members = [_unwrap(member, spec) for member in typing.get_args(spec.base)]
    if value is None and any(member.base is _NONE for member in members):
        return None, []
    members = [member for member in members if member.base is not _NONE]
    members.sort(key=lambda member: member.base is not type(value))  # an int stays an int in `float | int`
    failures: list[list[Issue]] = []
    for member in members:
        coerced, issues = _check(member, value, path)
        if not issues:
            return coerced, []
        failures.append(issues)
    nearest = [issues for issues in failures if any(issue.kind == "value" or issue.path != path for issue in issues)]
    if len(nearest) == 1:  # right type, wrong value: its own message says more than "expected A or B"
        return value, nearest[0]
    hint = next((issue.hint for issues in failures for issue in issues if issue.hint), None)
    if str(value).lower() in ("none", "~") and accepts_none(spec.base):
        hint = f"did you mean `{path}=null`?"
    _, wrong = _wrong_type(spec, value, path)
    return value, [dataclasses.replace(wrong[0], hint=hint)]


def accepts_none(annotation: Any) -> bool:
    """Whether null is a valid value."""
    base = _unwrap(annotation).base
    return base in (None, _NONE) or (_is_union(base) and any(accepts_none(m) for m in typing.get_args(base)))


def _check_sequence(spec: _Spec, value: Any, path: str) -> tuple[Any, list[Issue]]:
    if not isinstance(value, list | tuple):
        value, issues = _wrong_type(spec, value, path)
        hint = f"a list is written in brackets: `{path}=[...]`"
        if is_list_of_texts(spec.base):
            hint = f"a list of text is written as {_example_list(_unwrap(typing.get_args(spec.base)[0], spec), path)}"
        return value, [dataclasses.replace(issues[0], hint=hint)]
    arguments = typing.get_args(spec.base)
    fixed = typing.get_origin(spec.base) is tuple and arguments[-1] is not Ellipsis
    if fixed and len(value) != len(arguments):
        return value, [Issue(path, f"expected {_describe(spec)}, got {len(value)} values")]
    items: list[Any] = []
    issues = []
    for index, item in enumerate(value):
        item_spec = _unwrap(arguments[index] if fixed else arguments[0], spec)
        coerced, found = _check(item_spec, item, f"{path}[{index}]")
        items.append(coerced)
        if item_spec.base is str and item_spec.format:
            hint = f"write for example {_example_list(item_spec, path)}"
            found = [dataclasses.replace(issue, hint=hint) for issue in found]
        issues += found
    return (tuple(items) if typing.get_origin(spec.base) is tuple else items), issues


def _example_list(item: _Spec, path: str) -> str:
    """A list of one text as it is typed in a shell, which eats the outer quotes."""
    match = re.match(r'"[^"]*"', item.format.example) if item.format else None
    text = match[0] if match else '"..."'
    return f"`'{path}=[{text}]'`"


def _check_dict(spec: _Spec, value: Any, path: str) -> tuple[Any, list[Issue]]:
    if not isinstance(value, Mapping):
        return _wrong_type(spec, value, path)
    item_spec = _unwrap(typing.get_args(spec.base)[1], spec)
    result, issues = {}, []
    for key, item in value.items():
        result[str(key)], found = _check(item_spec, item, f"{path}.{key}")
        issues += found
    return result, issues


def _check_dataclass(spec: _Spec, value: Any, path: str) -> tuple[Any, list[Issue]]:
    if not isinstance(value, Mapping):
        return _wrong_type(spec, value, path)
    return check_params(read_params(spec.base), value, path)


def check_params(
    params: Mapping[str, Param], value: Mapping[str, Any], path: str
) -> tuple[dict[str, Any], list[Issue]]:
    """Check a mapping against named parameters: unknown keys, missing keys, and every value.

    Args:
        params: What is allowed.
        value: Plain YAML data; `"???"` means not set.
        path: Dotted path of the mapping; empty for the root.
    """
    result: dict[str, Any] = {}
    issues = list(_unknown_keys(params, value, path))
    mistyped = {closest(str(key), params) for key in value if key not in params}
    for key, param in params.items():
        where = _join(path, key)
        given = value.get(key, "???")
        if isinstance(given, str) and given == "???":
            if param.required and key not in mistyped:  # a misspelt key is one mistake, not two
                hint = f"add `{where}=...`" if "[" not in where else None
                issues.append(Issue(where, f"{REQUIRED} ({describe(param.type)})", hint, "missing"))
            elif not param.required:
                result[key], _ = check(param.type, plain(param.default), where)
            continue
        result[key], found = check(param.type, given, where)
        issues += found
    return result, issues


def _unknown_keys(params: Mapping[str, Param], value: Mapping[str, Any], path: str) -> Iterator[Issue]:
    for key in value:
        if key not in params:
            near = closest(str(key), params)
            hint = f"did you mean `{_join(path, near)}`?" if near else f"known keys: {', '.join(params) or 'none'}"
            yield Issue(_join(path, str(key)), "unknown key", hint)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _is_union(base: Any) -> bool:
    return typing.get_origin(base) in (typing.Union, types.UnionType)
