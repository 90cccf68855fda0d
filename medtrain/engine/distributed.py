"""One process or many: the few collective operations the engine needs, no-ops for a single process.

Several processes come from `medtrain train --nproc`, `torchrun` or any launcher that sets RANK, LOCAL_RANK and
WORLD_SIZE, and train with DistributedDataParallel. What they must agree on (the time, whether to stop, what was
evaluated) goes over a group of its own between the hosts, so that agreeing never waits for a GPU.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_PATIENCE = datetime.timedelta(days=7)  # others may wait for hours, while one prepares the data or judges a large case


class Dist:
    """This process's place among the training processes.

    Args:
        rank: Index of this process.
        local_rank: Index on this machine; selects the GPU.
        world_size: Number of processes.
        local_world_size: Number of processes on this machine, among which its cores are divided.
    """

    def __init__(self, rank: int = 0, local_rank: int = 0, world_size: int = 1, local_world_size: int = 1) -> None:
        self.rank = rank
        self.local_rank = local_rank
        self.world_size = world_size
        self.local_world_size = local_world_size
        self._hosts: Any = None

    @classmethod
    def from_environment(cls) -> Dist:
        """Read the launcher's variables; without them this is the only process."""
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size == 1:
            return cls()
        local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return cls(int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]), world_size, local_world_size)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def start(self, device: torch.device) -> None:
        """Join the process group: NCCL on CUDA, gloo elsewhere."""
        if self.world_size == 1 or dist.is_initialized():
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
            dist.init_process_group("nccl", device_id=device)
        else:
            dist.init_process_group("gloo", timeout=_PATIENCE)
        self._hosts = dist.new_group(backend="gloo", timeout=_PATIENCE)

    def close(self) -> None:
        """Leave the process group, after a run that ended well: a failing process just ends, or it might wait."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as the forward pass must call it."""
        if self.world_size == 1:
            return model
        # without device_ids, which would move what a model reads on the host to the GPU
        return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)

    def sync_gradients(self, model: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[object]:
        """Average gradients over the processes in the last micro-batch of a window only."""
        if self.world_size > 1 and not last:
            assert isinstance(model, nn.parallel.DistributedDataParallel)
            return model.no_sync()
        return contextlib.nullcontext()

    def sum(self, value: float) -> float:
        """Sum a host number over the processes."""
        if self.world_size == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(total, group=self._hosts)
        return float(total)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum a tensor on the device over the processes in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        if self.world_size == 1:
            return flag
        value = torch.tensor([int(flag)])
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self._hosts)
        return bool(value)

    def agree(self, numbers: list[float]) -> list[float]:
        """The main process's numbers, on every process."""
        if self.world_size == 1:
            return numbers
        values = torch.tensor(numbers, dtype=torch.float64)
        dist.broadcast(values, 0, group=self._hosts)
        return values.tolist()

    def gather(self, values: list[Any]) -> list[Any]:
        """Concatenate lists of plain objects over the processes, on every process."""
        if self.world_size == 1:
            return values
        parts: list[list[Any] | None] = [None] * self.world_size
        dist.all_gather_object(parts, values, group=self._hosts)
        return [value for part in parts if part is not None for value in part]

    def broadcast(self, value: Any) -> Any:
        """The main process's value, on every process."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, group=self._hosts)
        return box[0]

    def sync_buffers(self, model: nn.Module) -> None:
        """Give every process the main one's buffers: running statistics differ, for each sees other samples."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def barrier(self) -> None:
        """Wait for every process."""
        if self.world_size > 1:
            dist.barrier(group=self._hosts)
