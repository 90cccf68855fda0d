"""Export of networks for labelled images, bags, views and tables: inputs by name, and a real sample to compare on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from medtrain.data.images.copies import ImageCopies
from medtrain.data.images.plan import ImagePlan
from medtrain.data.images.samples import Normalizer, SampleReader
from medtrain.data.images.settings import ImageData
from medtrain.errors import MedtrainError, UsageError
from medtrain.export.formats import OUTPUT_NAME, Signature
from medtrain.export.image_manifest import describe_images
from medtrain.export.subject import Inputs, Script, Subject
from medtrain.export.types import TrainedRun
from medtrain.registry import build
from medtrain.tasks.images import ImageTask
from medtrain.tasks.model_io import as_outputs, example_batch, model_inputs

ATTENTION_NAME = "attention"

_ENTRIES = ("image", "present", "numeric", "categorical", "observed")
_SCRIPT = Script(
    "standalone_images.py",
    "python predict.py IN OUT.csv",
    ("numpy", "opencv-python-headless", "onnxruntime", "nibabel (for NIfTI files only)"),
)
_INSTANCES = (2, 3)  # of the two random bags, so that no number of them is taken for a constant


class Exported(nn.Module):
    """A network of a run as a function of tensors: returns its logits, and the attention where it has one.

    Args:
        network: Takes entries of a batch by name.
        names: The entries, in the order of the tensors.
        outputs: `logits`, and maybe `attention`.
        empty: Type of the entries that have no column.
    """

    def __init__(
        self, network: nn.Module, names: Sequence[str], outputs: Sequence[str], empty: Mapping[str, torch.dtype]
    ) -> None:
        super().__init__()
        self.exported = network
        self.names = tuple(names)
        self.outputs = tuple(outputs)
        self.empty = dict(empty)

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The outputs in their order; a single one as it is."""
        given = dict(zip(self.names, tensors, strict=True))
        for name, dtype in self.empty.items():
            given[name] = tensors[0].new_zeros((tensors[0].shape[0], 0), dtype=dtype)
        found = as_outputs(self.exported(**given))
        chosen = tuple(found[name] for name in self.outputs)
        return chosen[0] if len(chosen) == 1 else chosen


def image_subject(loaded: TrainedRun, network: nn.Module, samples: Sequence[tuple[str, Mapping[str, Any]]]) -> Subject:
    """A network from entries of a batch to logits.

    Args:
        loaded: The run.
        network: Its network as it is exported.
        samples: (case id, batch of one sample, normalised) of real samples.

    Raises:
        UsageError: The task predicts nothing, or inference leaves something open.
    """
    task = loaded.task
    if not isinstance(task, ImageTask):
        raise UsageError(
            f"task={loaded.config['task']['name']} is not exported: what its model returns has a meaning for the model "
            "alone, and the manifest could not tell how to use it",
            hint="`medtrain predict` writes what the model returns; train with another task to export",
        )
    if task.lacks_decision:
        raise UsageError(
            "inference leaves its threshold or temperature to the validation part, and none was chosen for these "
            "weights: the manifest could not tell it",
            hint=f"choose it first: medtrain evaluate {loaded.run_dir}",
        )
    plan: ImagePlan = loaded.plan
    _encode_at_once(network)
    batch = example_batch(plan)
    taken = [name for name in _ENTRIES if name in model_inputs(network) and name in batch]
    names = tuple(name for name in taken if batch[name].numel())
    empty = {name: batch[name].dtype for name in taken if name not in names}
    with torch.inference_mode():
        found = as_outputs(network(**{name: batch[name].to(loaded.device) for name in taken}))
    outputs = (OUTPUT_NAME, *((ATTENTION_NAME,) if ATTENTION_NAME in found else ()))
    generator = torch.Generator().manual_seed(0)
    inputs: list[tuple[str, Inputs]] = [
        ("random", _random(plan, batch, names, size, instances, generator))
        for size, instances in zip((1, 2), _INSTANCES)
    ]
    inputs += [(f"case {case_id}", tuple(sample[name].cpu() for name in names)) for case_id, sample in samples]
    signature = Signature(names, outputs, tuple(_free(plan, name) for name in names))
    trailing = tuple(found[OUTPUT_NAME].shape[1:])
    return Subject(
        network=Exported(network, names, outputs, empty).eval(),
        signature=signature,
        example=inputs[1][1],
        inputs=inputs,
        expected=lambda given: (len(given[0]), *trailing),
        description=describe_images(loaded, signature, batch, trailing),
        script=_SCRIPT,
    )


def real_sample(config: Mapping[str, Any], plan: ImagePlan) -> tuple[str, dict[str, Any]]:
    """Read the first sample of the run's data that has an image, as for prediction.

    Args:
        config: The run's configuration; its data have to be where it says.
        plan: The run's plan.

    Returns:
        Its id, and a normalised batch of it alone.

    Raises:
        MedtrainError: The data are not there or cannot be read.
    """
    settings: ImageData = build("data", config["data"])
    samples = settings.read().samples
    if not samples:
        raise MedtrainError(f"{config['data']['name']} holds no sample")
    sample = next((sample for sample in samples if any(sample.images)), samples[0])
    reader = SampleReader(
        plan=plan,
        copies=ImageCopies(Path(), plan.image_format, copied={}, digests={}),
        augment=build("augment", config["augment"], **plan.runtime()),
    )
    batch = reader.collate([reader.read(sample)])
    return sample.sample_id, Normalizer(plan)(batch, torch.device("cpu"))


def _encode_at_once(network: nn.Module) -> None:
    """Chunks bound the memory of training; in a file they would fix the number of images."""
    for module in network.modules():
        if getattr(module, "chunk_size", None) is not None:
            module.chunk_size = None  # type: ignore[assignment]


def _free(plan: ImagePlan, name: str) -> Mapping[int, str]:
    """The axes of an entry that may vary."""
    per_instance = plan.max_instances is not None and name in ("image", "present")
    return MappingProxyType({0: "batch", 1: "instances"} if per_instance else {0: "batch"})


def _random(
    plan: ImagePlan,
    example: Mapping[str, Tensor],
    names: Sequence[str],
    size: int,
    instances: int,
    generator: torch.Generator,
) -> Inputs:
    """Random values of every entry; the last view or instance of the last sample is missing."""
    made: dict[str, Tensor] = {}
    for name in names:
        shape = [size, *example[name].shape[1:]]
        if "instances" in _free(plan, name).values():
            shape[1] = instances
        if name in ("image", "numeric"):
            made[name] = torch.randn(shape, generator=generator)
        elif name == "categorical":
            codes = [torch.randint(0, n, (size,), generator=generator) for n in plan.category_sizes]
            made[name] = torch.stack(codes, 1) if codes else torch.zeros(shape, dtype=torch.int64)
        else:
            made[name] = torch.ones(shape, dtype=torch.bool)
    if "present" in made and made["present"].shape[1] > 1:
        made["present"][-1, -1] = False
        if "image" in made:
            made["image"][-1, -1] = 0.0
    return tuple(made[name] for name in names)
