"""What a run needs of its data settings: find the data, plan with it, prepare it, open it.

Every component of the group `data` is a settings dataclass that offers this; nothing outside of a family of data
knows what its files, plans and batches are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from medtrain.engine.protocol import TrainData

Progress = Callable[[int, int, str], None]
"""Called with (done, total, case id) while files are read."""

Fold = dict[str, list[str]]
"""Part of the data -> case ids: `train`, `val` and, where some are kept back, `test`."""


@dataclass(frozen=True)
class Machine:
    """Where training runs.

    Args:
        device: Kind of device.
        memory_gib: Its memory in GiB.
        cores: CPU cores for all processes of this machine.
        processes: Training processes on this machine, among which the cores are divided.
        thread_limit: Threads that each of them may compute with; None for its share of the cores.
        half: Whether a GPU computes in a 16-bit precision.
    """

    device: Literal["cpu", "cuda", "mps"]
    memory_gib: float
    cores: int
    processes: int = 1
    thread_limit: int | None = None
    half: bool = True

    @property
    def threads(self) -> int:
        """Threads of one training process."""
        return min(self._share, self.thread_limit or self._share)

    @property
    def _share(self) -> int:
        return max(1, self.cores // self.processes)

    def data_workers(self) -> tuple[int, str]:
        """How many processes read data beside a training process, and why."""
        if self.device == "cpu":
            return 0, "the CPU trains, so it reads in between"
        return min(8, self._share), "one per core"


@dataclass(frozen=True)
class DerivedValue:
    """A value that was not given.

    Args:
        key: Dotted config key.
        value: What it is.
        reason: Why, in one sentence.
        fills: Whether it replaces a null in the config; others, such as what `auto` stands for, are only told.
    """

    key: str
    value: Any
    reason: str
    fills: bool = True


class DataPlan(Protocol):
    """What is known about the data when networks are built, kept in `plan.json`."""

    @property
    def family(self) -> Literal["segmentation", "images"]:
        """Which tasks, losses, augmentations, models and inference settings fit the data: those with this tag."""
        ...

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        ...

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        ...

    def runtime(self) -> dict[str, Any]:
        """What components that ask for it by name (`runtime=`) get to know about the data."""
        ...

    def case_cost(self, inference: Mapping[str, Any]) -> float:
        """What judging a case costs in steps of training, by the size of what is computed.

        Args:
            inference: Its settings.
        """
        ...

    def facts(self) -> list[tuple[str, str, str]]:
        """What `medtrain data prepare` tells: name, value and why."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        ...


class FoundData(Protocol):
    """The files of a data set and their division into parts."""

    @property
    def dataset_name(self) -> str:
        """Name of the data set."""
        ...

    @property
    def split(self) -> Fold:
        """Case ids of this run's parts: `train`, `val` and maybe `test`."""
        ...

    @property
    def split_hash(self) -> str:
        """Names the division of this run, as `TrainData.describe` does."""
        ...

    def save_splits(self, path: Path) -> None:
        """Write the division so that `find(splits=path)` gives the same one."""
        ...


class DataSource(Protocol):
    """A component of the group `data`."""

    def find(self, *, splits: Path | None = None) -> Any:
        """Find the data and divide it.

        Args:
            splits: Division of an existing run, instead of what the settings say.

        Raises:
            MedtrainError: The data is missing or contradicts the settings.
        """
        ...

    def derive(
        self,
        found: Any,
        machine: Machine,
        *,
        model: Mapping[str, Any],
        augment: Mapping[str, Any],
        progress: Progress | None = None,
    ) -> tuple[Any, list[DerivedValue]]:
        """Look at the data and settle what the user left open.

        Args:
            found: Of `find`.
            machine: Where training runs.
            model: Settings of the model; those that are None may follow from the data.
            augment: Settings of the augmentation.
            progress: Told how far it is.

        Returns:
            The plan (a `DataPlan`), and the values that were not given.
        """
        ...

    def read_plan(self, data: Mapping[str, Any]) -> Any:
        """The plan from what its `to_json` gave."""
        ...

    def prepare(self, plan: Any, found: Any, *, workers: int | None = None, progress: Progress | None = None) -> Any:
        """Prepare what is not prepared yet, sharing the work with other processes that do the same.

        Returns:
            What `open` reads from; its `case_ids` are those that are prepared, of before included.
        """
        ...

    def open(
        self, plan: Any, found: Any, prepared: Any, *, augment: Any, seed: int, pin_memory: bool = False
    ) -> TrainData:
        """The prepared data as the engine uses it."""
        ...
