"""Distances and unit vectors between the atoms of a padded batch, of molecules or of periodic systems."""

import torch
from torch import Tensor

from aimnet2mult.types import AtomIndex, NeighborLists, Pairs


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
    return _as_pairs(displacement, mask, None)


def listed_pairs(coord: Tensor, lists: NeighborLists, index: AtomIndex) -> Pairs:
    """Pairs of a neighbour list, images of the cell included.

    Parameters
    ----------
    coord
        (B, N, 3) Å.
    lists
        Neighbour lists and cells of the batch.
    index
        The n real atoms of the batch.

    Returns
    -------
    Pairs
        With rows of M neighbours for each of the n packed atoms.
    """
    n_slots = index.shape[1]
    neighbor = lists.neighbor.flatten(0, 1).index_select(0, index.flat)
    mask = neighbor >= 0
    slot = torch.where(mask, neighbor + (index.molecule * n_slots).unsqueeze(1), index.flat.unsqueeze(1))
    atoms = coord.flatten(0, 1)
    shift = lists.shift.flatten(0, 1).index_select(0, index.flat).to(coord.dtype)
    translation = torch.bmm(shift, lists.cell.to(coord.dtype).index_select(0, index.molecule))
    there = atoms.index_select(0, slot.flatten()).view(slot.shape[0], slot.shape[1], 3) + translation
    displacement = there - atoms.index_select(0, index.flat).unsqueeze(1)
    displacement = torch.where(mask.unsqueeze(-1), displacement, torch.zeros_like(displacement))
    packed_number = torch.zeros_like(lists.neighbor[:, :, 0]).flatten()
    packed_number = packed_number.index_copy(0, index.flat, torch.arange(slot.shape[0], device=slot.device))
    return _as_pairs(displacement, mask, packed_number[slot])


def _as_pairs(displacement: Tensor, mask: Tensor, neighbor: Tensor | None) -> Pairs:
    """Lengths and directions of displacements (..., 3), which are zero where masked."""
    distance = (displacement.square().sum(-1) + (~mask).to(displacement.dtype)).sqrt()
    return Pairs(distance, displacement / distance.unsqueeze(-1), mask, neighbor)
