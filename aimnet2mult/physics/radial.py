"""Radial basis and cutoff functions of the AIMNet2 environment features."""

import math

import torch
from torch import Tensor


def gaussian_centres(rmin: float, cutoff: float, n: int) -> Tensor:
    """Centres of the radial Gaussians, evenly spaced over [rmin, cutoff): (n,) Å, float64."""
    return rmin + (cutoff - rmin) / n * torch.arange(n, dtype=torch.float64)


def gaussian_exponent(rmin: float, cutoff: float, n: int) -> float:
    """Exponent (1/Å^2) for which neighbouring Gaussians meet at exp(-1/4): one over the spacing squared."""
    return (n / (cutoff - rmin)) ** 2


def cosine_cutoff(distance: Tensor, cutoff: float) -> Tensor:
    """Switch from 1 at 0 to 0 at `cutoff` with zero slope at both ends.

    Behler, J. Chem. Phys. 134, 074106 (2011), eq. 4. Distances in Å, any shape.
    """
    inside = distance.clamp(max=cutoff)
    return 0.5 * torch.cos(inside * (math.pi / cutoff)) + 0.5


def exponential_cutoff(distance: Tensor, cutoff: float) -> Tensor:
    """Infinitely smooth switch exp(1 - 1 / (1 - (d/cutoff)^2)) from 1 at 0 to 0 at `cutoff`.

    The bump function that AIMNet2 uses to hand over from the network to the long-range Coulomb term
    (Anstine, Zubatyuk, Isayev, Chem. Sci. 2025, 16, 10228). Distances in Å, any shape.
    """
    # beyond the last representable step before the cutoff the exponential underflows to zero anyway
    ratio = (distance / cutoff).square().clamp(max=1.0 - 1e-4)
    value = torch.exp(1.0 - 1.0 / (1.0 - ratio))
    return torch.where(distance < cutoff, value, torch.zeros_like(value))


def radial_features(distance: Tensor, mask: Tensor, centres: Tensor, exponent: float, cutoff: float) -> Tensor:
    """Gaussians times cosine cutoff (Chem. Sci. 2025, 16, 10228, atomic environment vectors).

    Parameters
    ----------
    distance, mask
        (B, N_j, N_i) or (n, M): Å and validity of each pair.
    centres, exponent, cutoff
        (G,) Å, 1/Å^2 and Å.

    Returns
    -------
    Tensor
        (B, G, N_j, N_i) or (n, G, M), zero where masked or beyond the cutoff.
    """
    envelope = torch.where(mask, cosine_cutoff(distance, cutoff), torch.zeros_like(distance))
    offset = distance.unsqueeze(1) - centres.view([1, -1] + [1] * (distance.dim() - 1))
    return torch.exp(-exponent * offset.square()) * envelope.unsqueeze(1)
