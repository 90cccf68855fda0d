"""Check many configs at once: files of the user, or everything that ships."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from medtrain.config.annotations import REQUIRED
from medtrain.config.compose import load_config
from medtrain.config.families import GENERATED
from medtrain.config.imports import import_modules
from medtrain.config.overrides import Search, is_override, read_override
from medtrain.config.paths import ALL_GROUPS, MULTI_GROUPS
from medtrain.config.sources import Sources
from medtrain.config.sweeps import NOTHING_VARIES, load_sweep
from medtrain.errors import ConfigError, Problem, UsageError
from medtrain.registry import SWEEP_GROUPS


def check_all(
    targets: Sequence[str], *, config_dirs: Sequence[Path | str] = (), imports: Sequence[str] = ()
) -> Iterator[tuple[str, tuple[Problem, ...]]]:
    """Compose and check configs; yield the name of each with its problems.

    Args:
        targets: Overrides, checked together; files or patterns of files, experiments or spaces of sweeps, each checked
            with the overrides. Nothing checks every option of every group.
        config_dirs: Folders searched before the built-in configs.
        imports: Modules that register components.

    Raises:
        UsageError: A pattern matches no file.
    """
    overrides = [target for target in targets if is_override(target)]
    files = [file for target in targets if not is_override(target) for file in _expand(target)]
    import_modules(imports)
    if files:
        cases = [(file, [_as_override(file), *overrides]) for file in files]
    elif overrides:
        cases = [(" ".join(overrides), overrides)]
    else:
        cases = [("train", []), *_everything(config_dirs)]
    for name, words in cases:
        yield name, _check(words, config_dirs) if targets else _check_option(words, config_dirs)


def _check_option(words: Sequence[str], config_dirs: Sequence[Path | str]) -> tuple[Problem, ...]:
    """What is wrong with an option beside data that it is for."""
    problems = _check_alone(words, config_dirs)
    for data in reversed(GENERATED.values()):  # the default data is the first
        if not problems or any(word.startswith("data=") for word in words):
            break
        problems = min(problems, _check_alone([*words, f"data={data}"], config_dirs), key=len)
    return problems


def _check_alone(words: Sequence[str], config_dirs: Sequence[Path | str]) -> tuple[Problem, ...]:
    """A component may well require a value that only its user knows, and a sweep what it varies."""
    problems = _check(words, config_dirs)
    return tuple(p for p in problems if not p.message.startswith(REQUIRED) and p != NOTHING_VARIES)


def _as_override(file: str) -> str:
    """How a file is chosen: one with a space, or with settings of a sweep, is for `medtrain sweep`."""
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        content = None  # composing it says what is wrong
    is_sweep = isinstance(content, dict) and not {"space", *SWEEP_GROUPS}.isdisjoint(content)
    return f"{'sweep' if is_sweep else 'experiment'}={file}"


def _expand(pattern: str) -> list[str]:
    found = sorted(glob.glob(pattern, recursive=True))
    if not found:
        raise UsageError(f"there is no file {pattern}", hint="give overrides as KEY=VALUE, or the paths of YAML files")
    return found


def _everything(config_dirs: Sequence[Path | str]) -> Iterator[tuple[str, list[str]]]:
    sources = Sources(config_dirs)
    for group in ALL_GROUPS:
        for option in sources.options(group):
            chosen = f"{group}=[{option}]" if group in MULTI_GROUPS else f"{group}={option}"
            yield f"{group}={option}", [chosen]


def _check(overrides: Sequence[str], config_dirs: Sequence[Path | str]) -> tuple[Problem, ...]:
    try:
        if any(_is_for_sweep(word) for word in overrides):
            load_sweep(overrides, config_dirs=config_dirs)
        else:
            load_config(overrides, config_dirs=config_dirs)
    except ConfigError as error:
        return error.problems
    return ()


def _is_for_sweep(word: str) -> bool:
    read = read_override(word)
    return isinstance(read, Search) or (not isinstance(read, Problem) and read.key.split(".", 1)[0] in SWEEP_GROUPS)
