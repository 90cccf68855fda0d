"""Fine-tuning: a new run that begins with the weights of another one, or of a file, and says what fitted."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from medtrain.engine.checkpoint import Checkpoint, CheckpointFolder, check_format, read_checkpoint
from medtrain.errors import MedtrainError, UsageError
from medtrain.models.weight_files import read_tensors
from medtrain.models.weight_names import common_prefix
from medtrain.models.weights import LoadReport

log = logging.getLogger(__name__)

REPORT = "initial_weights.json"
"""In the run's folder: what the weights it began with came from, and which tensors fitted."""

_UNCOUNTED = "num_batches_tracked"  # a counter that older files lack and that decides nothing
_CROSSVAL = "crossval.json"
_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LINEAR = {4: "bilinear", 5: "trilinear"}


@dataclass(frozen=True)
class Source:
    """Where initial weights come from.

    Args:
        path: The file that is read, or a folder of shards.
        checkpoint: The checkpoint it belongs to; None for a file that no run has written.
    """

    path: Path
    checkpoint: Checkpoint | None = None

    def describe(self) -> dict[str, Any]:
        """What identifies it, for the run's folder."""
        facts: dict[str, Any] = {"file": str(self.path)}
        if self.path.is_file():
            with self.path.open("rb") as file:
                facts["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
        if self.checkpoint is not None:
            run = self.checkpoint.path.parent.parent
            facts |= {
                "run": str(run),
                "step": self.checkpoint.step,
                "weights": "ema" if self.checkpoint.has_ema else "raw",
                self.checkpoint.meta["monitor"]: self.checkpoint.meta.get("value"),
            }
        return facts


def check_initial(config: Mapping[str, Any]) -> None:
    """See that the weights to begin with can be read, before anything else is read or made.

    Args:
        config: A checked configuration.

    Raises:
        UsageError: They do not, or `model.weights` names others.
        MedtrainError: The checkpoint cannot be used alone, or the file cannot be opened safely.
    """
    given = config["trainer"]["init_from"]
    if given is None:
        return
    weights = config["model"].get("weights")
    if weights is not None:
        raise UsageError(
            f"trainer.init_from={given} and model.weights={weights} both say what the network begins with",
            hint="drop one: model.weights reads pretrained weights of the encoder, trainer.init_from those of the "
            "whole model",
        )
    read_tensors(find_source(Path(given).expanduser()).path)  # mapped: nothing is copied


def find_source(path: Path) -> Source:
    """The weights of a run (its best, averaged where it kept an average), of a checkpoint, or of a file.

    Args:
        path: A run's folder, a checkpoint's folder, a file, or a folder in the style of HuggingFace.

    Raises:
        UsageError: There is nothing to read.
        MedtrainError: The checkpoint leaves out pretrained weights.
    """
    if not path.exists():
        raise UsageError(
            f"trainer.init_from: there is no {path}", hint="give the folder of a run or a checkpoint, or a file"
        )
    if (path / _CROSSVAL).is_file():
        raise UsageError(
            f"trainer.init_from: {path} is a cross-validation, which has several models",
            hint=f"choose one of them, such as {path / 'fold_0'}",
        )
    if not path.is_dir():
        return Source(path)
    checkpoint = read_checkpoint(path)
    if checkpoint is None and (path / "checkpoints").is_dir():
        checkpoints = CheckpointFolder(path / "checkpoints")
        checkpoint = checkpoints.best() or checkpoints.last()
        if checkpoint is None:
            raise UsageError(
                f"trainer.init_from: {path} has no complete checkpoint", hint=f"train it first: medtrain resume {path}"
            )
    if checkpoint is None:
        return Source(path)  # a folder of files
    check_format(checkpoint)
    if checkpoint.constant is not None:
        raise MedtrainError(
            f"trainer.init_from: {checkpoint.path} holds only what was trained; the rest is in the pretrained weights "
            "that its run began with",
            hint="begin with the same model.weights instead",
        )
    return Source(checkpoint.path / ("ema.safetensors" if checkpoint.has_ema else "model.safetensors"), checkpoint)


def load_initial(model: nn.Module, path: Path, *, min_match: float) -> tuple[LoadReport, dict[str, Any]]:
    """Give a freshly built model the weights of another run or of a file, as far as names and shapes agree.

    MedNeXt's depth-wise kernels that have another size are interpolated linearly: UpKern (S. Roy et al., MICCAI 2023),
    by which a network with kernels of 5 begins with kernels of 3 that were trained. What else does not agree, such as a
    head for other classes, keeps its random initial values.

    Args:
        model: As built from the configuration.
        path: See `find_source`.
        min_match: Share of the model's tensors that must be given, in [0, 1].

    Returns:
        What fitted, and the content of `initial_weights.json`.

    Raises:
        UsageError: There are no such weights.
        MedtrainError: They cannot be opened safely, or fewer than `min_match` of the model's tensors fit.
    """
    source = find_source(path)
    wanted = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(_UNCOUNTED)}
    sets = {key: _without_prefix(tensors, wanted) for key, tensors in read_tensors(source.path).items()}
    part = max(sets, key=lambda key: (len(sets[key].keys() & wanted.keys()), "ema" in key))
    resized = _resized_kernels(model, sets[part])
    report = _compare(sets[part], wanted, source.path, part, resized)
    lines = describe(report)
    for line in lines:
        log.info("initial weights: %s", line)
    if report.matched < min_match:
        raise MedtrainError(
            f"{source.path} gives {report.matched:.1%} of the model's tensors, and trainer.init_min_match is "
            f"{min_match:.0%}:\n  " + "\n  ".join(lines[1:]),
            hint="choose the model (and its channels and strides) that the weights were trained with, or lower "
            "trainer.init_min_match if this is meant",
        )
    model.load_state_dict({name: sets[part][name] for name in report.exact} | resized, strict=False)
    counters = {n: t for n, t in sets[part].items() if n.endswith(_UNCOUNTED)}
    model.load_state_dict({n: t for n, t in counters.items() if n in model.state_dict()}, strict=False)
    return report, {
        **source.describe(),
        "part": part,
        "matched": report.matched,
        "loaded": list(report.exact),
        "adapted": dict(report.adapted),
        "missing": list(report.missing),
        "unexpected": list(report.unexpected),
        "mismatched": {n: {"there": list(a), "here": list(b)} for n, (a, b) in report.mismatched.items()},
    }


def describe(report: LoadReport) -> list[str]:
    """The report as text, one line per finding."""
    given = len(report.exact) + len(report.adapted)
    total = given + len(report.missing) + len(report.mismatched)
    where = f"{report.source} ({report.part})" if report.part else str(report.source)
    lines = [f"{given} of {total} tensors ({report.matched:.1%}) are from {where}"]
    lines += [f"{count} {how}" for how, count in Counter(report.adapted.values()).items()]
    for name, (there, here) in report.mismatched.items():
        lines.append(f"{name} begins anew: {list(there)} there, {list(here)} here")
    if report.missing:
        lines.append(f"not there, and begin anew: {_some(report.missing)}")
    if report.unexpected:
        lines.append(f"there without use: {_some(report.unexpected)}")
    return lines


def _resized_kernels(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Depth-wise kernels of a model that says they may be resized, interpolated from those of another size."""
    found: dict[str, Tensor] = {}
    if not getattr(model, "resizable_kernels", False):
        return found
    for place, module in model.named_modules():
        if not isinstance(module, _CONVOLUTIONS) or module.groups == 1:
            continue
        name, here = f"{place}.weight", module.weight
        there = tensors.get(name)
        if there is None or there.shape == here.shape or there.shape[:2] != here.shape[:2] or there.ndim != here.ndim:
            continue
        mode = _LINEAR[there.ndim]
        found[name] = F.interpolate(there.float(), size=here.shape[2:], mode=mode, align_corners=False).to(here.dtype)
    return found


def _compare(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path, part: str, resized: Mapping[str, Tensor]
) -> LoadReport:
    both = [name for name in wanted if name in tensors]
    differ = [name for name in both if tensors[name].shape != wanted[name].shape]
    return LoadReport(
        source=path,
        part=part,
        exact=tuple(name for name in both if tensors[name].shape == wanted[name].shape),
        adapted={name: _how(tensors[name], wanted[name]) for name in differ if name in resized},
        missing=tuple(name for name in wanted if name not in tensors),
        unexpected=tuple(name for name in tensors if name not in wanted and not name.endswith(_UNCOUNTED)),
        mismatched={
            name: (tuple(tensors[name].shape), tuple(wanted[name].shape)) for name in differ if name not in resized
        },
    )


def _how(there: Tensor, here: Tensor) -> str:
    sizes = [" x ".join(map(str, tensor.shape[2:])) for tensor in (there, here)]
    return f"depth-wise kernels of {sizes[0]} are interpolated to {sizes[1]} (UpKern)"


def _without_prefix(tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    prefix = common_prefix(tensors, names) or ""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _some(names: Collection[str], limit: int = 8) -> str:
    listed = list(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
