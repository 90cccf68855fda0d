"""Where configs come from: the search path, the options of each group, and the layers Hydra's defaults list selects.

This is the one module that touches Hydra's composition. Hydra 1.3 decides which files are composed and in which
order; merging, overriding and checking are ours, because they must know where each value came from and report all
problems at once. The internals used here are those of Hydra 1.3, which pyproject.toml pins.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hydra.version
import yaml
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.structured_config_source import StructuredConfigSource
from hydra._internal.defaults_list import create_defaults_list
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import ConfigDefault, GroupDefault, ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medtrain import registry
from medtrain.config.paths import ALL_GROUPS, COMPONENT_GROUPS, MULTI_GROUPS, PRESET_GROUPS, conf_dir, groups_of
from medtrain.config.schema import component_defaults
from medtrain.errors import ConfigError, Problem, UsageError
from medtrain.registry import plain

COMMAND_LINE = "command line"
"""The origin of what the user typed."""

SCHEMA = "schema"
_SCHEMA_PATH = re.compile(r"^(\w+)/schema/(\w+)$")
_FILE_OPTION = "file__"
_READ: dict[str, tuple[tuple[int, int, int], ConfigResult | None]] = {}
"""What this process has read, by path, with the version of the file."""
_GLOBAL = re.compile(r"^#\s*@package\s+_global_\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Layer:
    """The content of one config file or schema.

    Args:
        origin: For people, e.g. `conf/model/unet.yaml`.
        package: Dotted path at which the content is placed; empty for the root.
        content: Plain data, interpolations unresolved.
    """

    origin: str
    package: str
    content: Mapping[str, Any]


@dataclass(frozen=True)
class Selection:
    """What a defaults list selects.

    Args:
        layers: In merge order; later layers win.
        choices: Option of each group; None where nothing is chosen.
        chosen_by: Where each choice was made.
        listed: Options of each group of which any number can be chosen.
        problems: Options and files that do not exist or cannot be read.
        broken: Groups whose option could not be loaded; their values cannot be checked.
    """

    layers: tuple[Layer, ...]
    choices: Mapping[str, str | None]
    chosen_by: Mapping[str, str]
    listed: Mapping[str, list[str]]
    problems: tuple[Problem, ...]
    broken: frozenset[str]


class Sources(ConfigRepository):
    """The search path: the user's folders, then medtrain's own conf/, then the schemas of the components.

    Args:
        config_dirs: The user's folders, searched in this order.

    Raises:
        UsageError: A folder does not exist.
    """

    def __init__(self, config_dirs: Sequence[Path | str] = ()) -> None:
        hydra.version.setbase("1.3")
        for source_type in (FileConfigSource, StructuredConfigSource):
            SourcesRegistry.instance().register(source_type)
        _store_names()
        search_path = ConfigSearchPathImpl()
        for folder in config_dirs:
            if not Path(folder).is_dir():
                raise UsageError(f"the config folder {folder} does not exist", hint="give --config-dir a folder")
            search_path.append("--config-dir", str(Path(folder)))
        search_path.append("medtrain", str(conf_dir()))
        search_path.append("schema", "structured://")
        super().__init__(search_path)
        self.is_shipped = not config_dirs
        self._cache: dict[str, ConfigResult | None] = {}
        self._optional: set[str] = set()
        self._files: dict[str, str] = {}
        self._problems: list[Problem] = []
        self._broken: set[str] = set()
        self._noted: set[str] = set()

    def options(self, group: str) -> list[str]:
        """The options of a group, those of sub-folders as `folder/name`."""
        found = self.get_group_options(group, ObjectType.CONFIG)
        for folder in self.get_group_options(group, ObjectType.GROUP):
            if folder != SCHEMA:
                found += [f"{folder}/{name}" for name in self.options(f"{group}/{folder}")]
        return sorted(name for name in found if not name.startswith(_FILE_OPTION))

    def add_file(self, group: str, path: Path) -> str:
        """Make a file outside the search path an option of a group; return the option's name.

        Raises:
            ConfigError: The file is not valid YAML or not a mapping.
        """
        name = f"{_FILE_OPTION}{len(self._files)}"
        try:
            content = OmegaConf.load(path)
        except (yaml.YAMLError, OSError, OmegaConfBaseException) as error:
            raise ConfigError([Problem(str(path), _describe_yaml_error(error))]) from error
        if not isinstance(content, DictConfig):
            raise ConfigError([Problem(str(path), "must be a mapping of keys to values")])
        is_global = group in PRESET_GROUPS or any(key in ALL_GROUPS for key in content)
        is_global = is_global or bool(_GLOBAL.search(path.read_text(encoding="utf-8")))
        store = ConfigStore.instance()
        store.store(group=group, name=name, node=content, package="_global_" if is_global else None)
        self._files[f"{group}/{name}"] = str(path)
        self._cache.pop(f"{group}/{name}", None)
        return name

    def select(self, config_name: str, chosen: Mapping[str, str | list[str]], *, only: str | None = None) -> Selection:
        """Compute the defaults list and load what it names.

        Args:
            config_name: Primary config, e.g. `train`.
            chosen: Options the user chose.
            only: Load the layers of this group only; the components of the others are not imported.
        """
        for config_path in self._noted:
            self._cache.pop(config_path, None)  # so that it is noted again
        self._problems, self._broken, self._noted = [], set(), set()
        parser = OverridesParser.create()
        overrides = parser.parse_overrides([f"{group}={_write(option)}" for group, option in chosen.items()])
        try:
            found = create_defaults_list(self, config_name, overrides, prepend_hydra=False, skip_missing=False)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise ConfigError([*self._problems, _explain(error, config_name)]) from error
        selected = [
            (default.config_path or "", default.package or "")
            for default in found.defaults
            if only is None or (default.config_path or "").startswith(f"{only}/")
        ]
        layers = [layer for path, package in selected if (layer := self._layer(path, package))]
        groups = (*groups_of(config_name), *PRESET_GROUPS)
        choices = {group: _choice(found.overrides.known_choices.get(group)) for group in groups}
        chosen_by = {}
        for group in groups:
            by = found.overrides.override_metadata.get(group)
            typed = by is not None and by.external_override
            primary = config_name if group not in registry.GROUPS or config_name != "sweep" else "train"
            file = (by.containing_config_path if by else None) or primary
            chosen_by[group] = COMMAND_LINE if typed else self.origin(file)
        problems = [
            replace(problem, origin=chosen_by.get(problem.where.partition("=")[0])) for problem in self._problems
        ]
        listed = {group: _listed(group, found.defaults) for group in MULTI_GROUPS}
        return Selection(tuple(layers), choices, chosen_by, listed, tuple(problems), frozenset(self._broken))

    def _layer(self, config_path: str, package: str) -> Layer | None:
        loaded = self.load_config(config_path)
        if loaded is None:
            return None
        schema = _SCHEMA_PATH.match(config_path)
        if schema and schema[1] not in self._broken:
            # here, and not where Hydra reads it: only the modules of selected components are imported
            return Layer(self.origin(config_path), package, plain(component_defaults(schema[1], schema[2])))
        content: Any = OmegaConf.to_container(loaded.config, resolve=False)
        if not isinstance(content, dict):
            self._note(config_path, Problem(self.origin(config_path), "must be a mapping of keys to values"))
            return None
        return Layer(self.origin(config_path), package, content)

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Load one config; what is missing or unreadable is noted as a problem and replaced by nothing."""
        if config_path not in self._cache:
            self._cache[config_path] = self._load(config_path)
        return self._cache[config_path]

    def _load(self, config_path: str) -> ConfigResult | None:
        try:
            loaded = self._read(config_path)
        except (yaml.YAMLError, OSError, HydraException, OmegaConfBaseException, ValueError) as error:
            return self._note(config_path, Problem(self.origin(config_path), _describe_yaml_error(error)))
        if loaded is None:
            group, _, name = config_path.rpartition("/")
            if group in self._optional or name == "None":  # Hydra asks for `debug/None` when nothing is chosen
                return None
            return self._note(config_path, unknown_option(group, name, self.options(group)))
        if config_path.startswith("sweep/") and not _SCHEMA_PATH.match(config_path):
            self._complete_preset(loaded)
        for default in loaded.defaults_list or []:
            if not isinstance(default, GroupDefault) or default.group is None:
                continue
            if default.optional:
                self._optional.add(default.group)
            if default.override and default.package is None and default.group.startswith("/"):
                # Hydra would look for the group inside the section of this file; `/task` means the one at the root
                default.package = f"_global_.{default.group[1:]}"
        return loaded

    def _read(self, config_path: str) -> ConfigResult | None:
        """Read a config, a file only if it has changed since this process read it last."""
        schema = _SCHEMA_PATH.match(config_path)
        if schema and schema[2] in registry.names(schema[1]):  # Hydra needs no more of it than that it is there
            config = OmegaConf.create({"name": schema[2]})
            return ConfigResult("schema", "structured://", config, {"package": None}, [], is_schema_source=True)
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if not isinstance(source, FileConfigSource):
            return super().load_config(config_path)
        file = os.path.join(source.path, f"{config_path}.yaml")
        status = os.stat(file)
        version = (status.st_mtime_ns, status.st_size, status.st_ino)
        if _READ.get(file, (None, None))[0] != version:
            _READ[file] = (version, super().load_config(config_path))
        loaded = _READ[file][1]
        # the lists are completed below, for these sources
        return loaded and replace(loaded, defaults_list=copy.deepcopy(loaded.defaults_list))

    def _complete_preset(self, loaded: ConfigResult) -> None:
        """Let a file of the group sweep say what it changes only, also one that changes the whole config."""
        defaults = loaded.defaults_list = list(loaded.defaults_list or [])
        children = [child for child in defaults if isinstance(child, ConfigDefault) and not child.is_self()]
        if not children:
            children = [ConfigDefault(path="default")]
            defaults.insert(0, children[0])
        if loaded.header["package"] != "_global_":
            return
        for child in children:
            found = self.load_config(f"sweep/{child.path}")
            if child.package is None and found is not None and found.header["package"] != "_global_":
                child.package = "_global_.sweep"  # Hydra would put it where this file's own content goes

    def _note(self, config_path: str, problem: Problem) -> ConfigResult:
        self._problems.append(problem)
        self._noted.add(config_path)
        self._broken.add(config_path.split("/", 1)[0])
        return ConfigResult(
            provider="missing",
            path=config_path,
            config=OmegaConf.create({}),
            header={"package": None},
            defaults_list=[],
        )

    def origin(self, config_path: str) -> str:
        """Name the file or schema of a config for people."""
        schema = _SCHEMA_PATH.match(config_path)
        if schema:
            return f"default of {schema[1]}={schema[2]}"
        if config_path in self._files:
            return self._files[config_path]
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or source.scheme() != "file":
            return config_path
        folder = "conf" if Path(source.path) == conf_dir() else source.path
        return f"{folder}/{config_path}.yaml"


def unknown_option(group: str, name: str, known: Sequence[str]) -> Problem:
    """The problem of an option that a group does not have."""
    where = f"{group}={name}" if group else name
    near = registry.closest(name, known)
    message = f"unknown {group or 'config'} `{name}`; " + (
        f"available: {', '.join(known)}" if known else "there is none"
    )
    return Problem(where, message, hint=f"did you mean `{group}={near}`?" if near else None)


def _store_names() -> None:
    """Declare every component in Hydra's ConfigStore without importing it.

    `GROUP/schema/NAME` stands for the defaults of its signature. `GROUP/NAME` makes a component selectable that has no
    YAML file; a file of the same name is found first.
    """
    store = ConfigStore.instance()
    for group in COMPONENT_GROUPS:
        for name in registry.names(group):
            if store.get_type(f"{group}/{SCHEMA}/{name}.yaml") == ObjectType.NOT_FOUND:
                package = name if group in MULTI_GROUPS else "_here_"
                store.store(group=f"{group}/{SCHEMA}", name=name, node={"name": name})
                store.store(group=group, name=name, node={"defaults": [f"{SCHEMA}/{name}@{package}"]})


def _write(option: str | list[str]) -> str:
    return f"[{','.join(option)}]" if isinstance(option, list) else option


def _listed(group: str, defaults: Iterable[ResultDefault]) -> list[str]:
    """The options of a group that were chosen, without the files that they are made of."""
    return [
        (default.config_path or "").removeprefix(f"{group}/")
        for default in defaults
        if (default.config_path or "").startswith(f"{group}/") and not (default.parent or "").startswith(f"{group}/")
    ]


def _choice(option: Any) -> str | None:
    return option if isinstance(option, str) else None


def _describe_yaml_error(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        reason = getattr(error, "problem", None) or "syntax error"
        return f"not valid YAML: {reason} in line {mark.line + 1}, column {mark.column + 1}"
    if isinstance(error, OSError):
        return f"cannot be read: {(error.strerror or str(error)).lower()}"
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _explain(error: Exception, config_name: str) -> Problem:
    """Translate a failure of Hydra's defaults list."""
    text = " ".join(str(error).split())
    match = re.match(r"(?:In '?([\w/.-]+)'?: )?(.*)", text)
    where, message = (match[1] or config_name, match[2]) if match else (config_name, text)
    unused = re.match(r"Could not override '([^']+)'\.", message)
    if unused:
        return _unknown_override(where, unused[1], (*groups_of(config_name), *PRESET_GROUPS))
    return Problem(where, message)


def _unknown_override(where: str, group: str, known: Sequence[str]) -> Problem:
    if group in registry.SWEEP_GROUPS:
        return Problem(
            where,
            f"the defaults list overrides the group `{group}`, which comes after it",
            hint=f"choose it on the command line, `medtrain sweep {group}=...`, or in a file of the group sweep",
        )
    near = registry.closest(group, known)
    return Problem(
        where,
        f"the defaults list overrides the unknown group `{group}`",
        hint=f"did you mean `override /{near}: ...`?" if near else f"groups are: {', '.join(known)}",
    )
