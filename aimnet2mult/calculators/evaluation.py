"""Evaluation of loaded potentials, untouched by and not touching PyTorch's global state."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import numpy as np
import torch
from ase.calculators.calculator import CalculationFailed
from numpy.typing import NDArray
from torch import Tensor, nn

from aimnet2mult.calculators.inputs import System
from aimnet2mult.calculators.neighbors import SystemLists, door_entries
from aimnet2mult.calculators.runtime_dispersion import RuntimeDispersion
from aimnet2mult.models.derivatives import forces_and_stress, forces_from_energy, strained

_IMPORTED_IN = os.getpid()
STOPPED = (RuntimeError, ValueError, torch.jit.Error)  # what a potential, eager or scripted, may raise
_VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))  # xx, yy, zz, yz, xz, xy


class Evaluation(NamedTuple):
    """What a potential, or the mean of an ensemble, says of one structure."""

    energy: float  # eV
    charges: NDArray[np.float64]  # (N,) e
    spin_charges: NDArray[np.float64]  # (N,) e
    forces: NDArray[np.float64] | None  # (N, 3) eV/Å
    stress: NDArray[np.float64] | None  # (6,) eV/Å^3, Voigt order xx, yy, zz, yz, xz, xy
    energy_std: float | None = None  # eV, over the members of an ensemble
    forces_std: NDArray[np.float64] | None = None  # (N, 3) eV/Å


class _Outputs(NamedTuple):
    """What one potential, or several along a first axis, say of a batch."""

    energy: NDArray[np.float64]  # (B,)
    charges: NDArray[np.float64]  # (B, N)
    spin_charges: NDArray[np.float64]  # (B, N)
    forces: NDArray[np.float64]  # (B, N, 3), or empty
    stress: NDArray[np.float64]  # (B, 6), or empty


def door(systems: Sequence[System], lists: Sequence[SystemLists], device: torch.device) -> dict[str, Tensor]:
    """The dictionary that potentials take, for a padded batch.

    Positions stay in float64 even for a network in float32, and are counted from the centre of each structure:
    displacements keep their precision.

    Parameters
    ----------
    systems
        The structures.
    lists
        Their neighbour lists; none for molecules of which all pairs are to be formed.
    device
        Where the tensors go.
    """
    n_slots = max(len(system.numbers) for system in systems)
    coord = np.zeros((len(systems), n_slots, 3))
    numbers = np.zeros((len(systems), n_slots), dtype=np.int64)
    for row, system in enumerate(systems):
        n = len(system.numbers)
        coord[row, :n] = system.coord - system.coord.mean(axis=0)
        numbers[row, :n] = system.numbers
    arrays = {
        "coord": coord,
        "numbers": numbers,
        "charge": np.array([system.charge for system in systems], dtype=np.float64),
        "mult": np.array([system.mult for system in systems], dtype=np.float64),
    }
    data = {name: torch.from_numpy(values).to(device) for name, values in arrays.items()}
    return data | door_entries(lists, [s.cell for s in systems], n_slots, device) if lists else data


def evaluate(
    modules: Sequence[nn.Module],
    systems: Sequence[System],
    lists: Sequence[SystemLists],
    dispersion: RuntimeDispersion | None,
    device: torch.device,
    stress: bool,
    forces: bool,
) -> list[Evaluation]:
    """Energies and charges of a batch and, where asked for, forces and stress from the same pass.

    Parameters
    ----------
    modules
        Potentials whose mean is taken.
    systems, lists
        The structures and their neighbour lists, see `door`.
    dispersion
        A correction that is added to the potentials.
    device
        Where the potentials are.
    stress
        Whether to compute stress too; needs lists and cells that are periodic in all directions.
    forces
        Whether to compute forces.

    Raises
    ------
    CalculationFailed
        A potential stopped, or a result is not finite.
    """
    with own_settings(device, forces or stress):
        data = door(systems, lists, device)
        outputs = [_run(module, data, forces, stress) for module in modules]
    members = _Outputs(*(np.stack(values) for values in zip(*outputs, strict=True)))
    found = [_of_one(members, row, len(system.numbers), forces, stress) for row, system in enumerate(systems)]
    if dispersion is not None:
        found = [dispersion.added_to(one, system) for one, system in zip(found, systems, strict=True)]
    for one in found:
        _check_finite(one)
    return found


@contextmanager
def own_settings(device: torch.device, gradients: bool) -> Iterator[None]:
    """The modes of PyTorch that potentials run in, whatever those of the caller are."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        # TorchScript's profiling executor recompiles during the first calls and when gradients are switched on or off,
        # 0.1 s or more each time, and gains nothing measurable afterwards: the time is spent in a few large
        # operations. Run as written, every call takes the same time, and an energy is the same bits with and without
        # forces. The setting belongs to the calling thread.
        stack.enter_context(torch.jit.optimized_execution(False))
        stack.enter_context(one_thread_if_forked())
        yield


@contextmanager
def one_thread_if_forked() -> Iterator[None]:
    """In a forked process, run on one thread: the thread pool of OpenMP does not survive a fork."""
    if os.getpid() == _IMPORTED_IN:
        yield
        return
    # a parallel region in the child would wait for ever
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def stopped(error: BaseException) -> CalculationFailed:
    """What a potential said when it stopped, without what TorchScript writes around it."""
    lines = str(error).strip().splitlines()
    said = re.sub(r"^'?builtins\.\w+: |'$", "", lines[-1]) if lines else repr(error)
    return CalculationFailed(f"the potential stopped: {said}")


def _run(module: nn.Module, data: dict[str, Tensor], forces: bool, stress: bool) -> _Outputs:
    coord = data["coord"].detach().requires_grad_(forces or stress)
    gradient = virial = coord[:0]  # where they are not asked for
    try:
        if stress:
            deformed = strained(coord, data["cell"])
            output: dict[str, Tensor] = module(data | {"coord": deformed.coord, "cell": deformed.cell})
            gradient, virial = forces_and_stress(output["energy"], coord, deformed)
            virial = virial[:, _VOIGT[0], _VOIGT[1]]
        else:
            output = module(data | {"coord": coord})
            gradient = forces_from_energy(output["energy"], coord) if forces else gradient
    except STOPPED as error:
        raise stopped(error) from error
    tensors = (output["energy"], output["charges"], output["spin_charges"], gradient, virial)
    return _Outputs(*(value.detach().cpu().numpy().astype(np.float64) for value in tensors))


def _of_one(members: _Outputs, row: int, n_atoms: int, forces: bool, stress: bool) -> Evaluation:
    """Mean and, for two members or more, sample standard deviation of one structure of the batch."""
    energy = members.energy[:, row]
    gradient = members.forces[:, row, :n_atoms] if forces else None
    several = len(energy) > 1
    return Evaluation(
        energy=float(energy.mean()),
        charges=members.charges[:, row, :n_atoms].mean(axis=0),
        spin_charges=members.spin_charges[:, row, :n_atoms].mean(axis=0),
        forces=None if gradient is None else gradient.mean(axis=0),
        stress=members.stress[:, row].mean(axis=0) if stress else None,
        energy_std=float(energy.std(ddof=1)) if several else None,
        forces_std=gradient.std(axis=0, ddof=1) if several and gradient is not None else None,
    )


def _check_finite(found: Evaluation) -> None:
    wrong = [name for name, value in found._asdict().items() if value is not None and not np.isfinite(value).all()]
    if wrong:
        raise CalculationFailed(f"the potential gave {' and '.join(wrong)} that are not finite for this geometry")
