"""Long-range Coulomb energy of atomic point charges."""

import torch
from torch import Tensor

from aimnet2mult.physics.radial import exponential_cutoff
from aimnet2mult.types import Pairs
from aimnet2mult.units import COULOMB_EV_ANGSTROM


def simple_coulomb(
    charges: Tensor, pairs: Pairs, cutoff: float, coulomb_constant: float = COULOMB_EV_ANGSTROM
) -> Tensor:
    """Coulomb energy of all pairs, switched off smoothly at short range.

    E = k_e / 2 sum_{i != j} [1 - f(d_ij)] q_i q_j / d_ij with f from `exponential_cutoff`: within the
    cutoff the network learns the interaction (Chem. Sci. 2025, 16, 10228).

    Parameters
    ----------
    charges
        (B, N) e, 0 on padding.
    pairs
        All pairs of each molecule.
    cutoff
        Å.
    coulomb_constant
        e^2 / (4 pi eps0) in eV Å (an argument because TorchScript sees no module constants).

    Returns
    -------
    Tensor
        (B,) float64 eV.
    """
    kernel = (1.0 - exponential_cutoff(pairs.distance, cutoff)) / pairs.distance
    kernel = torch.where(pairs.mask, kernel, torch.zeros_like(kernel)).to(torch.float64)
    q = charges.to(torch.float64)
    return 0.5 * coulomb_constant * torch.einsum("bj,bji,bi->b", q, kernel, q)
