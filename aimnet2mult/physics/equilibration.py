"""Charge equilibration: atomic charges that sum exactly to the charge of their molecule."""

import torch
from torch import Tensor

from aimnet2mult.physics.geometry import sum_molecules
from aimnet2mult.types import AtomIndex


def channel_totals(charge: Tensor, mult: Tensor, n_channels: int) -> Tensor:
    """Total charge of each channel.

    One channel: the charge Q. Two channels (AIMNet2-NSE, 10.1002/anie.202516763): alpha and beta carry
    Q/2 + S and Q/2 - S with 2S = mult - 1, so that their sum is Q and their difference mult - 1.

    Parameters
    ----------
    charge, mult
        (B,) e and multiplicity.
    n_channels
        1 or 2.

    Returns
    -------
    Tensor
        (B, n_channels) e.
    """
    if n_channels == 1:
        return charge.unsqueeze(-1)
    half_spin = 0.5 * (mult - 1.0)
    return torch.stack([0.5 * charge + half_spin, 0.5 * charge - half_spin], dim=-1)


def equilibrate(
    raw: Tensor,
    response: Tensor,
    total: Tensor,
    index: AtomIndex,
    exact: bool = True,
    minimum_weight: float = 1e-6,
) -> Tensor:
    """Distribute the missing charge of each molecule over its atoms.

    q_i = q~_i + f_i / sum_k f_k * (Q - sum_k q~_k) with f_i = response_i^2 + minimum_weight
    (neutral spin equilibration, Chem. Sci. 2025, 16, 10228, section 2). The published programs add the minimum weight
    to the sum of all weights only, so that the charges miss Q by up to 1e-6 e; `exact` False does the same.

    Parameters
    ----------
    raw, response
        (n, C) unconstrained charges (e) and unsquared weights of the packed atoms.
    total
        (B, C) e.
    index
        Which molecule each atom belongs to.
    exact
        Whether the charges have to sum to `total` exactly.
    minimum_weight
        Keeps the division defined when a network gives every atom zero weight.

    Returns
    -------
    Tensor
        (n, C) float64 e; if `exact`, sums to `total` in every molecule and channel.
    """
    # in float32 the sums over some hundred atoms would already leave 1e-6 e
    charges = raw.to(torch.float64)
    weight = response.to(torch.float64).square()
    missing = total.to(torch.float64) - sum_molecules(charges, index)
    if exact:
        weight = weight + minimum_weight
        per_weight = missing / sum_molecules(weight, index).clamp(min=minimum_weight)
    else:
        per_weight = missing / (sum_molecules(weight, index) + minimum_weight)
    return charges + weight * per_weight.index_select(0, index.molecule)
