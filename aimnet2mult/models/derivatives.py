"""Derivatives of the energy, taken outside the scripted graph by training and calculators alike."""

from typing import NamedTuple

import torch
from torch import Tensor


class Strained(NamedTuple):
    """Positions and cells as functions of a strain, which is zero but carries the gradient."""

    coord: Tensor  # (B, N, 3) Å
    cell: Tensor  # (B, 3, 3) Å
    strain: Tensor  # (B, 3, 3)


def strained(coord: Tensor, cell: Tensor) -> Strained:
    """Deform positions and cells by the strain e, x' = x (1 + e), so that dE/de can be taken.

    Parameters
    ----------
    coord
        (B, N, 3) Å.
    cell
        (B, 3, 3) Å, one cell vector per row.
    """
    strain = torch.zeros_like(cell).requires_grad_()
    deform = torch.eye(3, dtype=cell.dtype, device=cell.device) + strain
    return Strained(torch.bmm(coord, deform), torch.bmm(cell, deform), strain)


def forces_and_stress(energy: Tensor, coord: Tensor, deformed: Strained) -> tuple[Tensor, Tensor]:
    """Forces and stress from one reverse pass.

    sigma = 1/V dE/de (Knuth et al., Comput. Phys. Commun. 190, 33 (2015), eq. 6), made symmetric: the antisymmetric
    part is the torque of a rotation, which is zero but for rounding.

    Parameters
    ----------
    energy
        (B,) eV, computed from `deformed`.
    coord
        (B, N, 3) Å, from which `deformed` was made.
    deformed
        Positions and cells as functions of the strain.

    Returns
    -------
    tuple
        Forces (B, N, 3) eV/Å and stress (B, 3, 3) eV/Å^3 (positive under tension), both in the dtype of `coord`.
    """
    gradient, virial = torch.autograd.grad([energy.sum()], [coord, deformed.strain])
    assert gradient is not None
    assert virial is not None
    volume = torch.linalg.det(deformed.cell.detach()).abs()
    return -gradient, 0.5 * (virial + virial.transpose(1, 2)) / volume.view(-1, 1, 1)


def forces_from_energy(energy: Tensor, coord: Tensor, create_graph: bool = False) -> Tensor:
    """Forces F = -dE/dx by reverse-mode differentiation.

    Parameters
    ----------
    energy
        (B,) eV, computed from `coord`.
    coord
        (B, N, 3) Å that requires a gradient.
    create_graph
        Keep the graph of the forces themselves, for a loss on forces.

    Returns
    -------
    Tensor
        (B, N, 3) eV/Å in the dtype of `coord`.
    """
    (gradient,) = torch.autograd.grad([energy.sum()], [coord], create_graph=create_graph)
    assert gradient is not None
    return -gradient
