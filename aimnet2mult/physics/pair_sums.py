"""Pieces of sums over flat pair lists with lattice images, in memory that does not grow with the number of pairs.

A short list is summed in one go and differentiated by autograd, as often as one likes. A long one is walked in blocks:

1. `sort_pairs` once, then `pair_blocks`: each block holds all pairs of a few consecutive first atoms of one molecule,
   so that a matrix (rows of the block, N) holds one number per pair of atoms of it;
2. for each block, `pair_displacements` of detached coordinates and cell, energies, and gradients with respect to
   coordinates, cell and atomic quantities: by hand, or by ``torch.autograd.grad`` on detached leaves under
   ``torch.enable_grad()``; all are added up and the block is forgotten;
3. `linear_surrogate` puts the gradients back under the energy.

All functions can be scripted. P: pairs; B: molecules; N: slots of the largest.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor

from aimnet2mult.types import NeighborLists

MAX_SHIFTS: Final = 65_536  # entries of a table of lattice translations; beyond, it holds only those that occur


class PairBlock(NamedTuple):
    """Pairs `start` to `stop` of a sorted list: all whose first slots are `row_start` to `row_stop`, exclusive."""

    molecule: int
    row_start: int  # slot b * N + i
    row_stop: int
    start: int
    stop: int


class ShiftTable(NamedTuple):
    """The lattice translations of a long pair list: few different ones, and their places in a table."""

    steps: Tensor  # (T, 3) float64
    place: Tensor  # (P,) int32


def sort_pairs(lists: NeighborLists) -> NeighborLists:
    """Lists whose pairs stand in the order of their first slots; the same object where they do already."""
    first = lists.pair_first
    if bool((first[1:] >= first[:-1]).all()):
        return lists
    order = first.argsort(stable=True)
    return NeighborLists(
        lists.cell, lists.neighbor, lists.shift, first[order], lists.pair_second[order], lists.pair_shift[order]
    )


def pair_blocks(
    lists: NeighborLists, n_molecules: int, n_slots: int, max_pairs: int, max_matrix: int
) -> list[PairBlock]:
    """Cut sorted pairs into blocks of whole rows.

    Parameters
    ----------
    lists
        From `sort_pairs`.
    n_molecules, n_slots
        B and N.
    max_pairs
        Most pairs of a block; a single row may have more.
    max_matrix
        Most elements of a matrix (rows of the block, N); a single row may have more.

    Returns
    -------
    list of PairBlock
        Blocks without pairs are left out.
    """
    slots = torch.arange(n_molecules * n_slots + 1, device=lists.pair_first.device)
    bounds: list[int] = torch.searchsorted(lists.pair_first.contiguous(), slots).tolist()
    max_rows = max(1, max_matrix // max(1, n_slots))
    blocks: list[PairBlock] = []
    for molecule in range(n_molecules):
        row, end = molecule * n_slots, (molecule + 1) * n_slots
        while row < end:
            stop = row + 1
            while stop < end and stop - row < max_rows and bounds[stop + 1] - bounds[row] <= max_pairs:
                stop += 1
            if bounds[stop] > bounds[row]:
                blocks.append(PairBlock(molecule, row, stop, bounds[row], bounds[stop]))
            row = stop
    return blocks


def tabulate_shifts(shift: Tensor, max_table: int = MAX_SHIFTS) -> ShiftTable:
    """Table of the lattice translations (P, 3) of a list.

    Looking up the translation vector of a pair takes a fraction of the time of a product with the cell. All triples
    between the smallest and the largest components make up the table, or, where they are more than `max_table`
    (molecules have drifted through many cells), those that occur.
    """
    if shift.shape[0] == 0:
        return ShiftTable(torch.zeros([1, 3], dtype=torch.float64, device=shift.device), shift[:, 0].to(torch.int32))
    low, high = shift.amin(0).to(torch.int64), shift.amax(0).to(torch.int64)
    first: list[int] = low.tolist()
    last: list[int] = high.tolist()
    sizes = [last[axis] - first[axis] + 1 for axis in range(3)]
    columns = [shift[:, axis].to(torch.int32) - first[axis] for axis in range(3)]
    if sizes[0] * sizes[1] * sizes[2] <= max_table:
        place = columns[0].mul_(sizes[1]).add_(columns[1]).mul_(sizes[2]).add_(columns[2])
        codes = torch.arange(sizes[0] * sizes[1] * sizes[2], device=shift.device)
    else:
        code = columns[0].to(torch.int64).mul_(sizes[1]).add_(columns[1]).mul_(sizes[2]).add_(columns[2])
        codes, inverse = torch.unique(code, return_inverse=True)
        place = inverse.to(torch.int32)
    rest = torch.div(codes, sizes[2], rounding_mode="floor")
    steps = torch.stack([torch.div(rest, sizes[1], rounding_mode="floor"), rest % sizes[1], codes % sizes[2]], dim=1)
    return ShiftTable((steps + low).to(torch.float64), place)


def pair_displacements(
    coord: Tensor, cell: Tensor, first: Tensor, second: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors coord[second] + shift @ cell - coord[first] of pairs, one tensor per Cartesian axis.

    Scalars are gathered and added up far quicker than rows of three, in both directions of differentiation.

    Parameters
    ----------
    coord
        (B, N, 3), any unit of length.
    cell
        (B, 3, 3) in the same unit; or (1, 3, 3): all pairs belong to one molecule, whichever of the B that is.
    first, second
        (P,) slots b * N + i.
    shift
        (P, 3) lattice translations, any integer type.

    Returns
    -------
    tuple of Tensor
        x, y, z, each (P,).
    """
    x, y, z = coord.reshape(-1, 3).unbind(1)
    dx = x.index_select(0, second) - x.index_select(0, first)
    dy = y.index_select(0, second) - y.index_select(0, first)
    dz = z.index_select(0, second) - z.index_select(0, first)
    steps = shift.t().contiguous().to(coord.dtype)
    if cell.shape[0] == 1:
        tx, ty, tz = torch.mm(cell[0].t(), steps).unbind(0)
    else:
        molecule = torch.div(first, coord.shape[1], rounding_mode="floor")
        by_pair = cell.permute(1, 2, 0).index_select(2, molecule)  # (3, 3, P): cell vector, axis
        tx, ty, tz = (steps.unsqueeze(1) * by_pair).sum(0).unbind(0)
    return dx + tx, dy + ty, dz + tz


def chain_displacements(
    by_vector: Tensor, first: Tensor, second: Tensor, shift: Tensor, shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Derivatives with respect to coordinates and cells from those with respect to the vectors of pairs.

    Parameters
    ----------
    by_vector
        (P, 3) derivatives with respect to the vectors of `pair_displacements`, without a graph.
    first, second, shift
        The pairs.
    shape
        (B, N).

    Returns
    -------
    tuple of Tensor
        (B, N, 3) and (B, 3, 3).
    """
    coord = torch.zeros([3, shape[0] * shape[1]], dtype=by_vector.dtype, device=by_vector.device)
    cell = torch.zeros([3, 3, shape[0]], dtype=by_vector.dtype, device=by_vector.device)
    molecule = torch.div(first, shape[1], rounding_mode="floor")
    for axis in range(3):
        component = by_vector[:, axis].contiguous()
        coord[axis].scatter_add_(0, second, component)
        coord[axis].scatter_add_(0, first, -component)
        for vector in range(3):
            cell[vector, axis].scatter_add_(0, molecule, component * shift[:, vector])
    return coord.t().reshape(shape[0], shape[1], 3), cell.permute(2, 0, 1)


def needs_gradient(coord: Tensor, cell: Tensor) -> bool:
    """Whether anybody may ask for the derivative of an energy made from these two."""
    return torch.is_grad_enabled() and (coord.requires_grad or cell.requires_grad)


def linear_surrogate(energy: Tensor, leaf: Tensor, gradient: Tensor) -> Tensor:
    """The same energy with a known gradient: E + (leaf - leaf.detach()) * gradient, summed per molecule.

    The second derivative of the energy is not known. It must not pass for zero: u^1.5, which is 0 at u = 0 as its
    first derivative is, makes every second derivative infinite or not a number.

    Parameters
    ----------
    energy
        (B,) without a graph to `leaf`.
    leaf
        (B, ...) finite: coordinates with the padding masked, cells, atomic quantities.
    gradient
        (B, ...) of the shape of `leaf`, without a graph.

    Returns
    -------
    Tensor
        (B,).
    """
    if not leaf.requires_grad:
        return energy
    step = leaf - leaf.detach()
    return energy + (step * gradient + step.pow(1.5)).flatten(1).sum(1)
