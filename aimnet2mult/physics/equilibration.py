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


def equilibrate_spin(raw: Tensor, response: Tensor, total: Tensor, index: AtomIndex, exact: bool = True) -> Tensor:
    """Distribute the missing charge and the missing spin of each molecule, instead of those of alpha and beta.

    With q = alpha + beta and s = alpha - beta both follow `equilibrate`, with weights of their own, and s~ = 0 in
    molecules of multiplicity 1, so that none of their atoms has spin. Two channels that know nothing of each other
    leave singlets with opposite spins of up to 0.1 e.

    Parameters and result are those of `equilibrate`, for two channels; the weights are those of q and s.
    """
    alpha, beta = raw.to(torch.float64).unbind(1)
    total_alpha, total_beta = total.to(torch.float64).unbind(1)
    total_spin = total_alpha - total_beta
    # multiplicities are whole numbers: half of one unpaired electron tells singlets from all others
    open_shell = (total_spin.abs() > 0.5).index_select(0, index.molecule)
    spin = torch.where(open_shell, alpha - beta, torch.zeros_like(alpha))
    totals = torch.stack([total_alpha + total_beta, total_spin], dim=-1)
    q, s = equilibrate(torch.stack([alpha + beta, spin], dim=-1), response, totals, index, exact).unbind(1)
    return torch.stack([0.5 * (q + s), 0.5 * (q - s)], dim=-1)
