"""Derivatives of the energy, taken outside the scripted graph by training and calculators alike."""

import torch
from torch import Tensor


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
