"""What `speed.py` asks of a program.

An adapter is a module of this package with a class `Adapter`. Ten lines measure another AIMNet2 program::

    from peers.base import Program, Settings

    class Adapter(Program):
        title = "other 1.0"
        requirements = (("torch==2.13.0",), ("other[ase]==1.0",))
        imports = "import other"

        def calculator(self, model, settings):
            from other import OtherCalculator
            return OtherCalculator(model)

The module is also imported outside the program's environment, so it imports its program inside the methods only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from numpy.typing import NDArray


class NotOfferedError(Exception):
    """The program cannot do this; the message says why."""


class Settings(NamedTuple):
    """Variants of one potential."""

    dispersion: bool = True  # with the D3(BJ) term of the published file
    coulomb: str = "simple"  # simple: all pairs; dsf: damped shifted force within 15 Å, 0.2 per Å; ewald: Ewald sum


class TrainingTask(NamedTuple):
    """One way to train a network of the published size with two charge channels."""

    labelled: Path  # HDF5 of molecules with energy, forces, charges and spin charges
    energy_only: Path | None  # HDF5 of further molecules with energies only
    batch: int  # molecules
    fidelities: int  # of the network; programs that know one only offer 1
    folder: Path  # to write to


class Evaluated(NamedTuple):
    """Results for one structure."""

    energy: float  # eV
    forces: NDArray[np.float64]  # (N, 3) eV/Å


Evaluate = Callable[[Sequence[Atoms]], list[Evaluated]]


class Program:
    """A program with one member of the published wB97M-D3 ensemble."""

    title = ""  # name and version for tables
    requirements: tuple[tuple[str, ...], ...] = ()  # arguments of pip, call by call; none: the environment of speed.py
    environment = ""  # program whose environment this one shares; its own where empty
    imports = ""  # statement whose time counts as import
    chunks: tuple[int, ...] = (16, 32, 64)  # structures per call that are tried for batches; the fastest counts

    def model_file(self, published: Path, folder: Path) -> Path:
        """The published file of one network (TorchScript), or what this program needs instead, written to `folder`."""
        return published

    def first_files(self, model: Path) -> dict[str, Path]:
        """Files with which a first energy is timed, and what they are; `model` is that of `model_file`."""
        return {"": model}

    def calculator(self, model: Path, settings: Settings) -> Any:
        """An ASE calculator.

        Raises
        ------
        NotOfferedError
            The program does not have these settings.
        """
        raise NotOfferedError("no ASE calculator")

    def evaluate(self, model: Path, settings: Settings) -> Evaluate:
        """Function that gives energies and forces of many molecules in one call, in their order."""
        raise NotOfferedError("no evaluation of several molecules in one call")

    def train(self, task: TrainingTask, steps: int) -> None:
        """Train for so many steps; their times are those between the steps of its ``torch.optim.Optimizer``."""
        raise NotOfferedError("no training")
