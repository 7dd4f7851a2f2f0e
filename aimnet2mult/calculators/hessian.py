"""Hessians and dipole derivatives of what a calculator computes: the mean of its members plus dispersion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from ase.calculators.calculator import CalculationFailed
from ase.data import atomic_masses
from numpy.typing import NDArray

from aimnet2mult.calculators.preparation import Prepared
from aimnet2mult.calculators.torch_modes import STOPPED, own_settings, stopped
from aimnet2mult.errors import InputError
from aimnet2mult.models import hessian as derivatives

Array = NDArray[np.float64]


class SecondOrder(NamedTuple):
    """Energy, forces and Hessian of a structure."""

    energy: float  # eV
    forces: Array  # (N, 3) eV/Å
    hessian: Array  # (3 n, 3 n) eV/Å^2, of the n atoms that move


def hessian(prepared: Prepared) -> Array:
    """Second derivatives of the energy, (3 N, 3 N) eV/Å^2; for periodic systems those of wave vector zero.

    Raises
    ------
    ase.calculators.calculator.CalculationFailed
        A potential stopped, or cannot be differentiated twice for this structure.
    """
    return second_order(prepared).hessian


def second_order(prepared: Prepared, atoms: Sequence[int] | None = None) -> SecondOrder:
    """Energy, forces and Hessian from one pass per member.

    Parameters
    ----------
    prepared
        The structure, potentials in float64 and run-time dispersion.
    atoms
        The n atoms that move, None: all N.

    Raises
    ------
    ase.calculators.calculator.CalculationFailed
        As for `hessian`.
    """
    n_atoms = len(prepared.system.numbers)
    chosen = list(range(n_atoms)) if atoms is None else list(atoms)
    with _running(prepared):
        members = [derivatives.second_order(module, prepared.data, chosen) for module in prepared.modules]
    energy = float(np.mean([float(member.energy) for member in members]))
    forces = _mean([member.forces for member in members])[:n_atoms]
    matrix = _mean([member.hessian for member in members]).reshape(3 * len(chosen), -1)
    if prepared.dispersion is not None:
        extra = prepared.dispersion.evaluate(prepared.system, True)
        places = (3 * np.array(chosen)[:, np.newaxis] + np.arange(3)).ravel()
        energy, forces = energy + extra.energy, forces + extra.forces
        matrix = matrix + prepared.dispersion.hessian(prepared.system)[np.ix_(places, places)]
    if not (np.isfinite(energy) and np.isfinite(forces).all() and np.isfinite(matrix).all()):
        raise CalculationFailed("the potential or its dispersion is not finite for this geometry")
    return SecondOrder(energy, forces, matrix)


def dipole_derivatives(prepared: Prepared, masses: Array | None = None) -> Array:
    """Atomic polar tensors (N, 3, 3) in e: atom, direction of its displacement, component of the dipole.

    Parameters
    ----------
    prepared
        The molecule and potentials in float64.
    masses
        (N,) amu, for the centre of mass, about which the dipole of an ion is taken. None: the standard ones, as for
        the dipole among the results of the calculator.

    Raises
    ------
    InputError
        The system is periodic.
    ase.calculators.calculator.CalculationFailed
        A potential stopped, or a derivative is not finite.
    """
    if prepared.system.n_periodic:
        raise InputError("a periodic system has no dipole moment that could be differentiated")
    weights = torch.from_numpy(np.array(atomic_masses[prepared.system.numbers] if masses is None else masses))
    with _running(prepared):
        return _mean([derivatives.dipole_derivatives(m, prepared.data, weights) for m in prepared.modules])


@contextmanager
def _running(prepared: Prepared) -> Iterator[None]:
    """PyTorch's modes for potentials; what stops them is said as in other calculations."""
    try:
        with prepared.lock, own_settings(prepared.data["coord"].device, True):
            yield
    except (CalculationFailed, InputError):
        raise
    except STOPPED as error:
        raise stopped(error) from error


def _mean(members: Sequence[torch.Tensor]) -> Array:
    return np.mean([member.cpu().numpy() for member in members], axis=0, dtype=np.float64)
