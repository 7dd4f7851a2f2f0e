"""Distances and unit vectors inside the molecules of a padded batch."""

import torch
from torch import Tensor

from aimnet2mult.types import AtomIndex, Pairs


def atom_index(numbers: Tensor) -> AtomIndex:
    """Find the real atoms of a padded batch.

    Parameters
    ----------
    numbers
        (B, N) atomic numbers, 0 = padding.

    Returns
    -------
    AtomIndex
        Positions and molecules of the n real atoms, in the order of the batch.
    """
    flat = (numbers.flatten() > 0).nonzero().squeeze(-1)
    molecule = torch.div(flat, numbers.shape[1], rounding_mode="floor")
    return AtomIndex(flat, molecule, (numbers.shape[0], numbers.shape[1]))


def pack(padded: Tensor, index: AtomIndex) -> Tensor:
    """Keep the real atoms of a padded array: (B, N, ...) -> (n, ...)."""
    rows = padded.flatten(0, 1)
    if rows.shape[0] == index.flat.shape[0]:
        return rows
    return rows.index_select(0, index.flat)


def unpack(packed: Tensor, index: AtomIndex) -> Tensor:
    """Spread packed atoms over the padded batch, zeros elsewhere: (n, F) -> (B, N, F)."""
    n_slots = index.shape[0] * index.shape[1]
    rows = packed
    if n_slots != packed.shape[0]:
        rows = packed.new_zeros((n_slots, packed.shape[1])).index_copy(0, index.flat, packed)
    return rows.view(index.shape[0], index.shape[1], packed.shape[1])


def sum_molecules(values: Tensor, index: AtomIndex) -> Tensor:
    """Sum an atomic quantity over each molecule: (n, ...) -> (B, ...), in the dtype of `values`."""
    totals = values.new_zeros([index.shape[0]] + list(values.shape[1:]))  # noqa: RUF005  (TorchScript knows no star here)
    return totals.index_add(0, index.molecule, values)


def all_pairs(coord: Tensor, numbers: Tensor) -> Pairs:
    """Ordered pairs of distinct real atoms of each molecule.

    Parameters
    ----------
    coord
        (B, N, 3) Å. Displacements are formed in this dtype, so float64 coordinates far from the
        origin lose nothing when the network itself runs in float32.
    numbers
        (B, N) atomic numbers, 0 = padding.

    Returns
    -------
    Pairs
        Distances (1 Å where masked, so that no gradient is singular there), unit vectors and mask.
    """
    real = numbers > 0
    mask = real.unsqueeze(1) & real.unsqueeze(2)
    mask = mask & ~torch.eye(numbers.shape[1], dtype=torch.bool, device=numbers.device)
    # masked before anything is squared: whatever stands in the padding reaches neither energies nor gradients
    displacement = coord.unsqueeze(2) - coord.unsqueeze(1)
    displacement = torch.where(mask.unsqueeze(-1), displacement, torch.zeros_like(displacement))
    distance = (displacement.square().sum(-1) + (~mask).to(coord.dtype)).sqrt()
    return Pairs(distance, displacement / distance.unsqueeze(-1), mask)
