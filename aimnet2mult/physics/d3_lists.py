"""D3(BJ) energy from a long pair list and its first derivatives, block by block with gradients by hand.

The steps are those of `aimnet2mult.physics.d3_blocks`; atomic units. Memory beyond the pair list is two numbers per
pair within the cutoff of the coordination numbers, and what a single block needs.

B: molecules, N: slots of the largest, R: reference systems, p: pairs of a block.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor

from aimnet2mult.physics.d3 import D3Cutoffs, listed_pairs, outside, reference_weights
from aimnet2mult.physics.d3_blocks import AtomTables, count_and_slope, cut_off, damped_and_slope, weight_slopes
from aimnet2mult.physics.d3_triples import triple_sums
from aimnet2mult.physics.damping import DampingParameters
from aimnet2mult.physics.pair_sums import PairBlock, pair_blocks, sort_pairs, tabulate_shifts
from aimnet2mult.types import NeighborLists

MATRIX_PER_PAIR: Final = 8  # most elements of the C6 matrix of a block, in block sizes


class ListedSystem(NamedTuple):
    """A padded batch with a pair list, none of it with a graph."""

    coord: Tensor  # (3, B * N)
    translation: Tensor  # (3, B, T) translation vectors
    first: Tensor  # (P,) int64 slots b * N + i, in rising order
    second: Tensor  # (P,)
    place: Tensor  # (P,) int32 translation vector of each pair
    blocks: list[PairBlock]
    tables: AtomTables  # of all B * N slots, with some valid element on padding


class ListedPairs(NamedTuple):
    """Some pairs of a list, in its order and all of one block."""

    first: Tensor  # (p,) slots b * N + i
    second: Tensor
    place: Tensor  # (p,) translation vector
    rows: Tensor  # (I + 1,) where the pairs of each first atom of the block begin, and the end
    x: Tensor  # (p,) vector from i to j
    y: Tensor
    z: Tensor


class ListedGradient(NamedTuple):
    """Derivatives of the energy, added up block by block."""

    coord: Tensor  # (3, B * N)
    translation: Tensor  # (3, B, T)
    weights: Tensor  # (B * N, R)


def list_sums(
    coord: Tensor,
    cell: Tensor,
    lists: NeighborLists,
    tables: AtomTables,
    parameters: DampingParameters,
    cutoffs: D3Cutoffs,
    size: int,
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Energies of all molecules or cells of a batch from a pair list.

    Parameters
    ----------
    coord, cell
        (B, N, 3) and (B, 3, 3), without a graph.
    lists
        Pair list; its own cell is not read.
    tables
        Of all B * N slots, with some valid element on padding.
    size
        About so many pairs go into a block.
    gradient
        Whether the derivatives are wanted; zeros else.

    Returns
    -------
    tuple of Tensor
        Energies (B,), gradients with respect to coordinates (B, N, 3) and cell (B, 3, 3).
    """
    lists = sort_pairs(lists)
    shifts = tabulate_shifts(lists.pair_shift)
    system = ListedSystem(
        coord.flatten(0, 1).t().contiguous(),
        torch.matmul(shifts.steps, cell).permute(2, 0, 1).contiguous(),
        lists.pair_first,
        lists.pair_second,
        shifts.place,
        blocks_of(lists, coord.shape[0], coord.shape[1], size),
        tables,
    )
    energy = torch.zeros_like(cell[:, 0, 0])
    cn = torch.zeros_like(tables.contact)
    near: list[Tensor] = []
    slopes: list[Tensor] = []
    for block in system.blocks:
        kept, slope = add_counts(cn, system, block, cutoffs)
        if gradient:
            near.append(kept)
            slopes.append(slope)

    weights = reference_weights(cn, tables.species, tables.data)
    partners = torch.mm(weights, tables.data.reference_c6)
    sums = ListedGradient(
        torch.zeros_like(system.coord), torch.zeros_like(system.translation), torch.zeros_like(weights)
    )
    for block in system.blocks:
        add_energy(energy, sums, system, block, weights, partners, parameters, cutoffs, gradient)
    by_cell = torch.zeros_like(cell)
    if parameters.s9 != 0.0:
        pairs_near = listed_pairs(coord, cell, near_part(system, lists, cutoffs.disp3), cutoffs.disp3)
        shape = (coord.shape[0], coord.shape[1])
        triples = triple_sums(pairs_near, weights, tables.species, tables.data, parameters.s9, cutoffs, shape, gradient)
        energy += triples.energy
        sums.coord.add_(triples.coord.view(-1, 3).t())
        sums.weights.add_(triples.weights)
        by_cell = triples.cell
    if gradient:
        by_cn = (sums.weights * weight_slopes(weights, cn, tables.data)).sum(1)
        for block, kept, slope in zip(system.blocks, near, slopes):  # noqa: B905  (TorchScript knows no strict here)
            pairs = picked_pairs(system, block, kept)
            slope.mul_(by_cn.index_select(0, pairs.first).add_(by_cn.index_select(0, pairs.second)))
            add_pair_gradient(sums, block, pairs, slope)
    by_cell = by_cell + torch.matmul(shifts.steps.t(), sums.translation.permute(1, 2, 0))
    return energy, sums.coord.t().reshape(coord.shape), by_cell


def blocks_of(
    lists: NeighborLists, n_molecules: int, n_slots: int, size: int, matrix_per_pair: int = MATRIX_PER_PAIR
) -> list[PairBlock]:
    """Blocks of about `size` pairs."""
    return pair_blocks(lists, n_molecules, n_slots, size, matrix_per_pair * size)


def near_part(system: ListedSystem, lists: NeighborLists, cutoff: float) -> NeighborLists:
    """The pairs of sorted lists within a cutoff."""
    near: list[Tensor] = []
    for block in system.blocks:
        r2 = squared_length(block_pairs(system, block))
        near.append((~outside(r2, cutoff)).nonzero().squeeze(-1).add_(block.start))
    kept = torch.cat(near) if len(near) > 0 else torch.zeros_like(lists.pair_first)
    return NeighborLists(
        lists.cell,
        lists.neighbor,
        lists.shift,
        lists.pair_first.index_select(0, kept),
        lists.pair_second.index_select(0, kept),
        lists.pair_shift.index_select(0, kept),
    )


def block_pairs(system: ListedSystem, block: PairBlock) -> ListedPairs:
    """All pairs of a block."""
    first = system.first[block.start : block.stop].contiguous()
    second = system.second[block.start : block.stop].contiguous()
    return measured(system, block, first, second, system.place[block.start : block.stop])


def picked_pairs(system: ListedSystem, block: PairBlock, places: Tensor) -> ListedPairs:
    """The pairs of a block that stand at `places` (p,), in rising order, in the whole list."""
    first, second = system.first.index_select(0, places), system.second.index_select(0, places)
    return measured(system, block, first, second, system.place.index_select(0, places))


def measured(system: ListedSystem, block: PairBlock, first: Tensor, second: Tensor, place: Tensor) -> ListedPairs:
    """Pairs of a block with their vectors."""
    rows = torch.searchsorted(first, torch.arange(block.row_start, block.row_stop + 1, device=first.device))
    columns: list[Tensor] = []
    for axis in range(3):
        translation = system.translation[axis, block.molecule].index_select(0, place)
        there = system.coord[axis].index_select(0, second).add_(translation)
        columns.append(there.sub_(system.coord[axis].index_select(0, first)))
    return ListedPairs(first, second, place, rows, columns[0], columns[1], columns[2])


def squared_length(pairs: ListedPairs) -> Tensor:
    """Squared distances (p,)."""
    return pairs.x.square().addcmul_(pairs.y, pairs.y).addcmul_(pairs.z, pairs.z)


def sum_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Sum (p,) over the pairs of each first atom: (I,); far quicker than a scattered sum onto few places."""
    return torch.segment_reduce(values, "sum", offsets=rows, initial=0.0)


def add_counts(cn: Tensor, system: ListedSystem, block: PairBlock, cutoffs: D3Cutoffs) -> tuple[Tensor, Tensor]:
    """Add the pairs of a block to the coordination numbers (B * N,).

    Returns
    -------
    tuple of Tensor
        Places in the list of the pairs within the cutoff, and the slope of `count_and_slope` of each.
    """
    pairs = block_pairs(system, block)
    r2 = squared_length(pairs)
    # written so that a distance that is not a number stays and shows in the energy
    kept = (~(r2 > cutoffs.cn * cutoffs.cn)).nonzero().squeeze(-1)
    first, second = pairs.first.index_select(0, kept), pairs.second.index_select(0, kept)
    contact = system.tables.contact.index_select(0, first).add_(system.tables.contact.index_select(0, second))
    r2 = r2.index_select(0, kept)
    count, slope = count_and_slope(r2, contact)
    cut_off(count, slope, r2, cutoffs.cn, cutoffs.width_cn)
    cn.scatter_add_(0, second, count)
    cn[block.row_start : block.row_stop] += sum_rows(count, torch.searchsorted(kept, pairs.rows))
    return kept.add_(block.start), slope


def add_energy(
    energy: Tensor,
    sums: ListedGradient,
    system: ListedSystem,
    block: PairBlock,
    weights: Tensor,
    partners: Tensor,
    parameters: DampingParameters,
    cutoffs: D3Cutoffs,
    gradient: bool,
) -> None:
    """Add the energy of a block to that of its molecule (B,), and its derivatives at fixed coordination numbers.

    Parameters
    ----------
    weights, partners
        (B * N, R) of the reference systems, and their product with the reference C6.
    """
    n_slots = weights.shape[0] // energy.shape[0]
    start = block.molecule * n_slots
    rows = weights[block.row_start : block.row_stop]
    c6_matrix = torch.mm(rows, partners[start : start + n_slots].t())

    pairs = block_pairs(system, block)
    place = torch.add(pairs.second, pairs.first, alpha=n_slots).sub_(start + block.row_start * n_slots)
    root = system.tables.root.index_select(0, pairs.first).mul_(system.tables.root.index_select(0, pairs.second))
    r2 = squared_length(pairs)
    damped, slope = damped_and_slope(r2, root, parameters)
    cut_off(damped, slope, r2, cutoffs.disp2, cutoffs.width2)
    c6 = c6_matrix.view(-1).index_select(0, place)
    energy[block.molecule] += torch.dot(c6, damped)
    if gradient:
        by_c6 = torch.zeros_like(c6_matrix)
        by_c6.view(-1).scatter_add_(0, place, damped)
        sums.weights[block.row_start : block.row_stop] += torch.mm(by_c6, partners[start : start + n_slots])
        sums.weights[start : start + n_slots] += torch.mm(by_c6.t(), partners[block.row_start : block.row_stop])
        add_pair_gradient(sums, block, pairs, slope.mul_(c6))


def add_pair_gradient(sums: ListedGradient, block: PairBlock, pairs: ListedPairs, slope: Tensor) -> None:
    """Add the gradient of pairs, given their dE/d(r2) (p,); uses up `slope` and the vectors."""
    slope.mul_(2.0)
    for axis, displacement in enumerate((pairs.x, pairs.y, pairs.z)):
        pull = displacement.mul_(slope)
        sums.coord[axis].scatter_add_(0, pairs.second, pull)
        sums.coord[axis, block.row_start : block.row_stop] -= sum_rows(pull, pairs.rows)
        sums.translation[axis, block.molecule].index_add_(0, pairs.place, pull)
