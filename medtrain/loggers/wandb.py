"""Weights & Biases, offline unless a key is found."""

from __future__ import annotations

import json
import logging
import netrc
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np

from medtrain.errors import MedtrainError, UsageError
from medtrain.loggers.base import Logger, RunInfo
from medtrain.registry import register
from medtrain.run.atomic import atomic_write

_LOG = logging.getLogger(__name__)

_PUBLIC_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com", "forge.coreweave.com")


@register("logger", "wandb", runtime=("run_dir", "run_info"))
class WandbLogger(Logger):
    """Send everything to Weights & Biases, or keep it in wandb/ for `wandb sync`. Never asks for a key.

    The run's id is kept, so a resumed run continues the same W&B run. Points logged between the checkpoint and the
    stop are sent again, at the same step.

    Args:
        run_dir: The run folder.
        run_info: The run's name, experiment and configuration.
        project: W&B project.
        entity: W&B user or team; null is the key's own.
        group: Runs to be shown together; null is the experiment. A run inside a folder of this name is called by its
            place in there, so that the trials of a sweep can be told apart.
        job: File that `medtrain sweep --wandb-agent` writes for a trial: the run of a W&B sweep that this run is.
        mode: `auto` is online when WANDB_API_KEY or a netrc entry is found and offline otherwise; WANDB_MODE decides
            before that.
    """

    def __init__(
        self,
        *,
        run_dir: Path,
        run_info: RunInfo,
        project: str = "medtrain",
        entity: str | None = None,
        group: str | None = None,
        job: str | None = None,
        mode: Literal["auto", "online", "offline"] = "auto",
    ) -> None:
        import wandb

        if mode == "online" and not has_key():
            raise UsageError(
                "logger.wandb.mode=online needs a W&B key, and there is none",
                hint="set WANDB_API_KEY or run `wandb login`; or use logger.wandb.mode=offline",
            )
        chosen = _choose_mode() if mode == "auto" else mode
        if job is None:
            name = _run_name(run_dir, group) or run_info.run_name
            place: dict[str, Any] = {"project": project, "entity": entity, "id": _run_id(run_dir), "name": name}
        else:  # W&B has chosen all of these
            _join(job)
            place = {}
        try:
            self._run = wandb.init(
                **place,
                group=group or run_info.experiment,
                notes=run_info.note or None,
                tags=list(run_info.tags),
                config=dict(run_info.config),
                dir=str(run_dir),
                resume="allow",
                mode=chosen,
                settings=wandb.Settings(console="off", silent=True),
            )
        except (wandb.Error, OSError) as error:
            raise MedtrainError(
                f"W&B cannot start: {error}", hint="use logger.wandb.mode=offline, and `wandb sync` later"
            ) from error
        self._wandb: Any = wandb
        # W&B drops what comes with an older step than before; with a step of our own a resumed run can repeat some
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        later = f"; upload later with: wandb sync {Path(self._run.dir).parent}" if chosen == "offline" else ""
        _LOG.info("W&B is %s%s", chosen, later)

    def log_scalars(self, step: int, epoch: int, scalars: Mapping[str, float]) -> None:
        """Send one point per number."""
        self._run.log({"step": step, "epoch": epoch, **{key: float(value) for key, value in scalars.items()}})

    def log_image(self, step: int, tag: str, image: np.ndarray) -> None:
        """Send a picture."""
        self._run.log({"step": step, tag: self._wandb.Image(image)})

    def log_text(self, step: int, tag: str, text: str) -> None:
        """Send text, shown as it is."""
        self._run.log({"step": step, tag: self._wandb.Html(f"<pre>{_escape(text)}</pre>")})

    def close(self) -> None:
        """Wait until everything is sent or stored."""
        self._run.finish()


def has_key() -> bool:
    """Whether W&B's client would find a key for its server, without asking for one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    wanted = _hosts(os.environ.get("WANDB_BASE_URL"))
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        file = Path(path).expanduser() if path else None
        if file is None or not file.is_file():
            continue
        try:
            content = netrc.netrc(file)
        except (netrc.NetrcParseError, OSError) as error:
            _LOG.warning("%s cannot be read (%s): taken as holding no W&B key", file, error)
            continue
        entries = [content.authenticators(host) for host in wanted]
        if any(entry is not None and entry[2] for entry in entries):
            return True
    return False


def _hosts(url: str | None) -> list[str]:
    """The names under which a netrc file may keep the key of a server; those of the public one have changed."""
    address = urlsplit(url or f"https://{_PUBLIC_HOSTS[0]}")
    names = {address.netloc, address.hostname or ""}
    return [*_PUBLIC_HOSTS] if names & set(_PUBLIC_HOSTS) else sorted(names)


def _join(job: str) -> None:
    """Become the run of a W&B sweep that `medtrain sweep --wandb-agent` was given, as W&B's own agent would say it."""
    import wandb

    try:
        settings = json.loads(Path(job).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MedtrainError(
            f"logger.wandb.job={job} cannot be read: {error}",
            hint="`medtrain sweep --wandb-agent` writes it; use logger.wandb.job=null for a run of its own",
        ) from error
    wandb.setup(wandb.Settings(**settings))


def _run_name(run_dir: Path, group: str | None) -> str | None:
    """The run's place below the folder of its group: `0007/fold0` of SWEEP/trials/0007/fold0."""
    *above, own = run_dir.absolute().parts
    if group not in above:
        return None
    below = [*above[len(above) - above[::-1].index(group) :], own]
    return "/".join(below[1:] if below[0] == "trials" else below)


def _choose_mode() -> Literal["online", "offline", "disabled"]:
    wish = os.environ.get("WANDB_MODE", "")
    if wish == "disabled":
        return "disabled"
    return "offline" if wish in ("offline", "dryrun") or not has_key() else "online"


def _run_id(run_dir: Path) -> str:
    """The W&B id of this run, kept in wandb_id.txt."""
    path = run_dir / "wandb_id.txt"
    if not path.exists():
        atomic_write(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8").strip()


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
