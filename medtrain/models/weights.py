"""Pretrained weights: found, renamed, adapted to the images and loaded, with a report of what fitted."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from medtrain.errors import MedtrainError, UsageError
from medtrain.models.encoders import Encoder
from medtrain.models.weight_files import find_cached, read_tensors
from medtrain.models.weight_names import count_known, to_network_names

log = logging.getLogger(__name__)
_SHOWN = 5
# older files lack the counter, and nothing but a momentum of null reads it
_UNCOUNTED = "num_batches_tracked"


@dataclass(frozen=True)
class LoadReport:
    """What became of the weights of a file.

    Args:
        source: The file or folder.
        part: The key of the set of weights inside the file; "" when it holds one set only.
        exact: Names in the network that got their values from the file unchanged.
        adapted: Names whose values were computed from the file's, with how.
        missing: Names of the network that the file lacks: they keep their random initial values.
        unexpected: Names in the file that the network lacks, such as those of a classifier.
        mismatched: Names in both with different shapes: that in the file, that in the network.
    """

    source: Path
    part: str
    exact: tuple[str, ...]
    adapted: Mapping[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @property
    def matched(self) -> float:
        """Share of the network's tensors that the file gave, in [0, 1]."""
        given = len(self.exact) + len(self.adapted)
        wanted = given + len(self.missing) + len(self.mismatched)
        return given / wanted if wanted else 1.0

    def lines(self) -> list[str]:
        """The report as text, one line per kind of finding."""
        where = f"{self.source} ({self.part})" if self.part else str(self.source)
        lines = [f"{self.matched:.1%} of the encoder's tensors are from {where}"]
        lines += [f"adapted {name}: {how}" for name, how in self.adapted.items()]
        for name, (there, here) in list(self.mismatched.items())[:_SHOWN]:
            lines.append(f"not loaded {name}: {list(there)} in the file, {list(here)} here")
        if len(self.mismatched) > _SHOWN:
            lines.append(f"and {len(self.mismatched) - _SHOWN} more shapes that differ")
        for kind, names in (("not in the file", self.missing), ("in the file without use", self.unexpected)):
            if names:
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                lines.append(f"{kind}: {', '.join(names[:_SHOWN])}{more}")
        return lines


def load_weights(encoder: Encoder, source: Path | Literal["timm"], *, min_matched: float = 0.9) -> LoadReport:
    """Load pretrained weights into an encoder.

    The first convolution is adapted to the images' channels, position embeddings and window tables to their size,
    and the names of other libraries to timm's.

    Args:
        encoder: Of `build_encoder`.
        source: A file or folder (see `read_tensors`), or `timm`: what its local cache has for the architecture.
        min_matched: Share of the encoder's tensors that the file must give, in [0, 1].

    Returns:
        The report, which is also kept as `encoder.weights_report`.

    Raises:
        UsageError: There are no such weights.
        MedtrainError: The file cannot be opened safely, or gives less than `min_matched`.
    """
    if source == "timm":
        if encoder.pretrained_config is None:
            raise UsageError("timm has no weights for this encoder", hint="set model.weights to a file, or to null")
        path = find_cached(encoder.pretrained_config, encoder.arch)
    else:
        path = Path(source).expanduser()
    network = encoder.network
    wanted = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith(_UNCOUNTED)}
    sets = read_tensors(path)
    part = max(sets, key=lambda key: (count_known(sets[key], wanted), "teacher" in key))
    tensors = to_network_names(sets[part], wanted)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    tensors = _translate(network, tensors, path, encoder.arch)
    adapted = {
        name: f"{_show(shapes[name])} became {_show(tensor.shape)}"
        for name, tensor in tensors.items()
        if name in shapes and name in wanted and shapes[name] != tuple(tensor.shape)
    }
    for name in encoder.first_convolutions:
        if name in tensors and name in wanted and tensors[name].shape[1] != wanted[name].shape[1]:
            before = tensors[name].shape[1]
            tensors[name] = adapt_channels(tensors[name], wanted[name].shape[1])
            adapted[name] = f"{before} input channels became {tensors[name].shape[1]}"
    report = _compare(tensors, wanted, adapted, path, part if len(sets) > 1 or part else "")
    if report.matched < min_matched:
        raise MedtrainError(
            f"{path} gives {report.matched:.1%} of the weights of {encoder.arch}, and model.min_matched is "
            f"{min_matched:.0%}:\n  " + "\n  ".join(report.lines()[1:]),
            hint="choose the arch that the file was made with, or lower model.min_matched if this is meant",
        )
    network.load_state_dict({name: tensors[name] for name in (*report.exact, *report.adapted)}, strict=False)
    encoder.weights_report = report
    for line in report.lines():
        log.info(line)
    return report


def _translate(network: nn.Module, tensors: dict[str, Tensor], path: Path, arch: str) -> dict[str, Tensor]:
    """Let timm turn the layouts that it knows into its own, and resize what depends on the image size."""
    translate: Callable[..., dict[str, Tensor]] | None
    translate = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if translate is None or not type(network).__module__.startswith("timm."):
        return tensors
    try:
        return dict(translate(dict(tensors), network))
    except (KeyError, IndexError, AttributeError, RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise MedtrainError(
            f"{path} cannot be read as weights of {arch}: {error}",
            hint="choose the arch that the file was made with",
        ) from error


def _compare(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], adapted: Mapping[str, str], path: Path, part: str
) -> LoadReport:
    fits = {name for name in wanted if name in tensors and tensors[name].shape == wanted[name].shape}
    return LoadReport(
        source=path,
        part=part,
        exact=tuple(name for name in wanted if name in fits and name not in adapted),
        adapted={name: how for name, how in adapted.items() if name in fits},
        missing=tuple(name for name in wanted if name not in tensors),
        unexpected=tuple(n for n in tensors if n not in wanted and not n.endswith(_UNCOUNTED)),
        mismatched={
            name: (tuple(tensors[name].shape), tuple(wanted[name].shape))
            for name in wanted
            if name in tensors and name not in fits
        },
    )


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Adapt the kernel of a first convolution to another number of input channels.

    One channel gets the sum over the channels, so that a grey image gives what its copies in red, green and blue
    gave. More channels repeat the kernel and scale it, so that the response to equal channels stays as it was.

    Args:
        weight: [F, I, *k].
        channels: Of the images.

    Returns:
        [F, channels, *k].
    """
    before = weight.shape[1]
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    repeated = weight[:, torch.arange(channels) % before].float() * (before / channels)
    # where the last repetition is cut off, what it lacks is spread over all channels
    lacking = weight.float().sum(dim=1, keepdim=True) - repeated.sum(dim=1, keepdim=True)
    return (repeated + lacking / channels).to(weight.dtype)


def _show(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape)
