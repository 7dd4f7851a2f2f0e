"""One process, or several started by torchrun: who am I, and sums over all."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import ignite.distributed as idist
import torch
from torch import Tensor, nn

from aimnet2mult.errors import ConfigError, TrainingError


@dataclass(frozen=True)
class Processes:
    """The processes of a run."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there is more than one process."""
        return self.world_size > 1

    def sum(self, values: Tensor) -> Tensor:
        """Sum of `values` over all processes."""
        if not self.several:
            return values
        total = idist.all_reduce(values.detach().clone())
        assert isinstance(total, Tensor)
        return total

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0) if self.several else flag

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.several:
            idist.barrier()

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network with gradients averaged over processes."""
        return idist.auto_model(network) if self.several else network


def worker_death(error: BaseException) -> TrainingError | None:
    """The sentence for an error that tells of a dead loader process; None for any other error.

    Torch raises it in the main thread wherever that happens to be.
    """
    text = str(error)
    if not isinstance(error, RuntimeError) or "DataLoader worker" not in text:
        return None
    return TrainingError(
        f"a process that reads data died ({text.splitlines()[0]}); set data.num_workers to 0 or give the machine more "
        "memory, and run again"
    )


def choose_device(name: str) -> torch.device:
    """The device that the settings ask for.

    Raises
    ------
    ConfigError
        It is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise ConfigError("run.device: no CUDA device is available here; use cpu or auto")
        if device.index is not None and device.index >= count:
            raise ConfigError(f"run.device: {name} does not exist; there are {count} (cuda:0 to cuda:{count - 1})")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("run.device: mps is not available here; use cpu or auto")
    return device


@contextmanager
def processes(device_name: str) -> Iterator[Processes]:
    """Join the process group when torchrun started this program; leave it at the end."""
    device = choose_device(device_name)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes(device=device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    idist.initialize("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(idist.get_rank(), idist.get_world_size(), device)
    finally:
        # networks wrapped for several processes sit in reference cycles; one that outlives the group can abort at exit
        gc.collect()
        idist.finalize()
