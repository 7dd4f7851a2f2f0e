"""One evaluation of a compiled potential, untouched by and not touching PyTorch's global state."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase.calculators.calculator import CalculationFailed
from ase.data import atomic_masses
from numpy.typing import NDArray
from torch import Tensor

from aimnet2mult.calculators.inputs import Geometry
from aimnet2mult.models.derivatives import forces_from_energy
from aimnet2mult.models.files import LoadedPotential, load_potential

_IMPORTED_IN = os.getpid()


class Evaluation(NamedTuple):
    """What a potential says of one molecule."""

    energy: float  # eV
    charges: NDArray[np.float64]  # (N,) e
    spin_charges: NDArray[np.float64]  # (N,) e
    forces: NDArray[np.float64] | None  # (N, 3) eV/Å


def load_for_evaluation(path: Path, device: torch.device, double: bool) -> LoadedPotential:
    """Load a potential whose parameters need no gradient; `double` casts the network to float64 too.

    Raises
    ------
    ModelFileError
        As for `load_potential`.
    """
    # tensors made in inference mode could never take part in a gradient
    with torch.inference_mode(False), _one_thread_if_forked():
        loaded = load_potential(path, device)
        if double:
            loaded.module.to(torch.float64)
    for parameter in loaded.module.parameters():
        parameter.requires_grad_(False)
    return loaded


def evaluate(
    module: torch.jit.ScriptModule, geometry: Geometry, charge: int, mult: int, device: torch.device, forces: bool
) -> Evaluation:
    """Energy and charges of one molecule and, where asked for, forces from the same pass.

    Positions enter in float64 even when the network runs in float32: displacements keep their precision.

    Raises
    ------
    CalculationFailed
        The potential stopped, or a result is not finite.
    """
    with _own_settings(device, forces):
        centred = geometry.coord - geometry.coord.mean(axis=0)
        coord = torch.tensor(centred, dtype=torch.float64, device=device).unsqueeze(0).requires_grad_(forces)
        data = {
            "coord": coord,
            "numbers": torch.tensor(geometry.numbers, dtype=torch.int64, device=device).unsqueeze(0),
            "charge": torch.tensor([charge], dtype=torch.float64, device=device),
            "mult": torch.tensor([mult], dtype=torch.float64, device=device),
        }
        try:
            output: dict[str, Tensor] = module(data)
            gradient = forces_from_energy(output["energy"], coord) if forces else None
        except RuntimeError as error:
            lines = str(error).strip().splitlines()
            raise CalculationFailed(f"the potential stopped: {lines[-1] if lines else error!r}") from error
        result = Evaluation(
            energy=float(output["energy"].detach()[0]),
            charges=_array(output["charges"]),
            spin_charges=_array(output["spin_charges"]),
            forces=None if gradient is None else _array(gradient),
        )
    wrong = [name for name, value in result._asdict().items() if value is not None and not np.isfinite(value).all()]
    if wrong:
        raise CalculationFailed(f"the potential gave {' and '.join(wrong)} that are not finite for this geometry")
    return result


def ase_results(found: Evaluation, geometry: Geometry) -> dict[str, Any]:
    """Results under ASE's names; the dipole (e Å) is taken about the centre of mass.

    The masses are the standard ones: ASE does not tell a calculator when a structure's own masses change.
    """
    masses = atomic_masses[geometry.numbers]
    centre = masses @ geometry.coord / masses.sum()
    results: dict[str, Any] = {
        "energy": found.energy,
        "free_energy": found.energy,
        "charges": found.charges,
        "magmoms": found.spin_charges,
        "magmom": float(found.spin_charges.sum()),
        "dipole": found.charges @ (geometry.coord - centre),
    }
    if found.forces is not None:
        results["forces"] = found.forces
    return results


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _own_settings(device: torch.device, gradients: bool) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        stack.enter_context(torch.autocast(device.type, enabled=False))
        # TorchScript's profiling executor recompiles during the first calls and when gradients are switched on or off,
        # 0.1 s or more each time, and gains nothing measurable afterwards: the time is spent in a few large
        # operations. Run as written, every call takes the same time, and an energy is the same bits with and without
        # forces. The setting belongs to the calling thread.
        stack.enter_context(torch.jit.optimized_execution(False))
        stack.enter_context(_one_thread_if_forked())
        yield


@contextmanager
def _one_thread_if_forked() -> Iterator[None]:
    if os.getpid() == _IMPORTED_IN:
        yield
        return
    # the thread pool of OpenMP does not survive a fork: a parallel region in the child would wait for ever
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _array(batch: Tensor) -> NDArray[np.float64]:
    return np.array(batch.detach()[0].cpu().numpy(), dtype=np.float64)
