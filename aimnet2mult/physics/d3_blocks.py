"""D3(BJ) energy of a large molecule and its first derivative, block by block with the gradient by hand.

The formulas are those of `aimnet2mult.physics.d3`; atomic units. Three steps, each over blocks of pairs small enough
to stay in the processor's cache: coordination numbers; energies, forces at fixed C6, and the derivatives with respect
to the weights of the reference systems; forces from the change of the coordination numbers. One number per pair is
kept from the first step for the third. The C6 of a block are a product of two thin matrices, because the reference
systems of an atom do not depend on its partner. The three-body term joins in after the second step.

n: atoms of the molecule; I: atoms of a block, M: their possible partners.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from aimnet2mult.physics.d3 import (
    CN_STEEPNESS,
    COINCIDENT,
    WEIGHT_STEEPNESS,
    D3Cutoffs,
    D3Data,
    find_pairs,
    reference_weights,
)
from aimnet2mult.physics.d3_triples import triple_sums
from aimnet2mult.physics.damping import DampingParameters
from aimnet2mult.physics.switching import beyond_start, switch_and_slope


class AtomTables(NamedTuple):
    """What the pair functions need of each atom, and the data of the elements that occur."""

    species: Tensor  # (n,)
    contact: Tensor  # (n,) covalent radius
    root: Tensor  # (n,) (3 Q^2)^(1/4): products of two are sqrt(C8 / C6)
    data: D3Data


def atom_tables(species: Tensor, data: D3Data) -> AtomTables:
    """Tables of atoms (n,) whose data hold only those reference systems that occur."""
    used = torch.isin(data.reference_species, species).nonzero().squeeze(-1)
    fewer = D3Data(
        data.species,
        data.covalent_radius,
        data.r4r2,
        data.vdw_radius,
        data.reference_species[used],
        data.reference_cn[used],
        data.reference_c6[used][:, used],
    )
    return AtomTables(species, data.covalent_radius[species], (3.0 * data.r4r2.square()).sqrt().sqrt()[species], fewer)


def count_and_slope(r2: Tensor, contact: Tensor, steepness: float = CN_STEEPNESS) -> tuple[Tensor, Tensor]:
    """Contribution of pairs to coordination numbers and its derivative with respect to r2.

    Parameters
    ----------
    r2
        Squared distances; any shape, not 0.
    contact
        Sums of the covalent radii, same shape.
    """
    ratio = contact / r2.sqrt()
    count = torch.sigmoid((ratio - 1.0).mul_(steepness))
    slope = (1.0 - count).mul_(count).mul_(ratio).div_(r2).mul_(-0.5 * steepness)
    return count, slope


def damped_and_slope(r2: Tensor, root: Tensor, parameters: DampingParameters) -> tuple[Tensor, Tensor]:
    """Energy of pairs per unit of C6 and its derivative with respect to r2; the formula of `d3.pair_energy`.

    Parameters
    ----------
    r2
        Squared distances; any shape.
    root
        sqrt(C8 / C6) of the pairs, same shape.
    """
    radius2 = (root * parameters.a1).add_(parameters.a2).square_()
    radius4 = radius2 * radius2
    r4 = r2 * r2
    r6 = r4 * r2
    eighth = (r4 * r4).addcmul_(radius4, radius4).reciprocal_()
    sixth = radius4.mul_(radius2).add_(r6).reciprocal_()
    eighth_scale = root.square().mul_(parameters.s8)
    damped = (eighth_scale * eighth).add_(sixth, alpha=parameters.s6).neg_()
    slope = eighth.square_().mul_(eighth_scale).mul_(r6).mul_(4.0)
    slope.addcmul_(sixth.square_(), r4, value=3.0 * parameters.s6)
    return damped, slope


def cut_off(
    values: Tensor, slopes: Tensor, r2: Tensor, cutoff: float, width: float, coincident: float = COINCIDENT
) -> None:
    """End functions of pairs and their slopes at the cutoff, and leave out atoms on one spot; both in place.

    Few pairs are near the cutoff, so that a search for them pays.

    Parameters
    ----------
    values, slopes
        Functions and their derivatives with respect to r2; any shape, contiguous.
    r2
        Squared distances, same shape.
    cutoff, width
        Bohr; the width is that of the smooth end, 0: a sharp one.
    """
    if r2.numel() == 0:
        return
    if not bool(r2.amin() >= coincident):
        values.masked_fill_(r2 < coincident, 0.0)
        slopes.masked_fill_(r2 < coincident, 0.0)
    if not beyond_start(r2, cutoff, width):
        return
    start = cutoff - width
    ending = (r2.view(-1) > start * start).nonzero().squeeze(-1)
    if width <= 0.0:
        values.view(-1).index_fill_(0, ending, 0.0)
        slopes.view(-1).index_fill_(0, ending, 0.0)
        return
    switch, switch_slope = switch_and_slope(r2.view(-1).index_select(0, ending), cutoff, width)
    value = values.view(-1).index_select(0, ending)
    slope = slopes.view(-1).index_select(0, ending).mul_(switch).addcmul_(value, switch_slope)
    values.view(-1).scatter_(0, ending, value.mul_(switch))
    slopes.view(-1).scatter_(0, ending, slope)


def weight_slopes(weights: Tensor, cn: Tensor, data: D3Data, steepness: float = WEIGHT_STEEPNESS) -> Tensor:
    """Derivatives of `d3.reference_weights` (n, R) with respect to the coordination number of the atom."""
    exponent = (cn.unsqueeze(1) - data.reference_cn) * (-2.0 * steepness)
    return weights * (exponent - (weights * exponent).sum(1, keepdim=True))


def molecule_sums(
    coord: Tensor, tables: AtomTables, parameters: DampingParameters, cutoffs: D3Cutoffs, size: int, gradient: bool
) -> tuple[Tensor, Tensor]:
    """Energy of one molecule from all its pairs.

    Parameters
    ----------
    coord
        (n, 3), without a graph.
    size
        About so many pairs go into a block.
    gradient
        Whether the second result is wanted.

    Returns
    -------
    tuple of Tensor
        Energy (), gradient (n, 3).
    """
    n = coord.shape[0]
    axes = coord.t().contiguous()
    blocks = triangle_blocks(n, size)
    cn = torch.zeros_like(axes[0])
    slopes: list[Tensor] = []
    for start, stop in blocks:
        _, r2 = triangle_distances(axes, start, stop)
        contact = tables.contact[start:stop].unsqueeze(1) + tables.contact[start:]
        count, slope = count_and_slope(r2, contact)
        cut_off(count, slope, r2, cutoffs.cn, cutoffs.width_cn)
        fill_triangle(count, 0.0)
        cn[start:stop] += count.sum(1)
        cn[start:] += count.sum(0)
        if gradient:
            fill_triangle(slope, 0.0)
            slopes.append(slope)

    weights = reference_weights(cn, tables.species, tables.data)
    partners = torch.mm(weights, tables.data.reference_c6)
    energy = torch.zeros_like(cn[0])
    by_weight = torch.zeros_like(weights)
    forces = torch.zeros_like(axes)
    for start, stop in blocks:
        displacement, r2 = triangle_distances(axes, start, stop)
        root = tables.root[start:stop].unsqueeze(1) * tables.root[start:]
        damped, slope = damped_and_slope(r2, root, parameters)
        cut_off(damped, slope, r2, cutoffs.disp2, cutoffs.width2)
        fill_triangle(damped, 0.0)
        c6 = torch.mm(weights[start:stop], partners[start:].t())
        fill_triangle(c6, 0.0)
        energy += torch.dot(c6.view(-1), damped.view(-1))
        if gradient:
            by_weight[start:stop] += torch.mm(damped, partners[start:])
            by_weight[start:] += torch.mm(damped.t(), partners[start:stop])
            add_triangle_forces(forces, displacement, slope.mul_(c6), start, stop)
    if parameters.s9 != 0.0:
        real = torch.ones([1, n], dtype=torch.bool, device=coord.device)
        pairs = find_pairs(coord.unsqueeze(0), real, cutoffs.disp3)
        triples = triple_sums(pairs, weights, tables.species, tables.data, parameters.s9, cutoffs, (1, n), gradient)
        energy += triples.energy[0]
        forces -= triples.coord[0].t()
        by_weight += triples.weights
    if gradient:
        by_cn = (by_weight * weight_slopes(weights, cn, tables.data)).sum(1)
        for block, slope in zip(blocks, slopes):  # noqa: B905  (TorchScript knows no strict here)
            start, stop = block
            slope.mul_(by_cn[start:stop].unsqueeze(1) + by_cn[start:])
            displacement = axes[:, start:].unsqueeze(1) - axes[:, start:stop].unsqueeze(2)
            add_triangle_forces(forces, displacement, slope, start, stop)
    return energy, forces.t().neg()


def triangle_blocks(n: int, size: int) -> list[tuple[int, int]]:
    """Rows `start` to `stop` (exclusive) of the upper triangle of an (n, n) matrix, about `size` elements each."""
    blocks: list[tuple[int, int]] = []
    start = 0
    while start < n - 1:
        stop = min(n, start + max(1, size // (n - start)))
        blocks.append((start, stop))
        start = stop
    return blocks


def triangle_distances(axes: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Pairs (i, j) of atoms i from `start` to `stop` (exclusive) and all atoms j from `start` on.

    Returns
    -------
    tuple of Tensor
        Vectors from i to j (3, I, M) and their squares (I, M), 1 for j <= i.
    """
    displacement = axes[:, start:].unsqueeze(1) - axes[:, start:stop].unsqueeze(2)
    r2 = displacement[0].square().addcmul_(displacement[1], displacement[1])
    r2.addcmul_(displacement[2], displacement[2])
    fill_triangle(r2, 1.0)
    return displacement, r2


def fill_triangle(values: Tensor, value: float) -> None:
    """Set what stands at j <= i in the arrays (I, M) of `triangle_distances`."""
    rows = values.shape[0]
    values[:, :rows].masked_fill_(torch.ones([rows, rows], dtype=torch.bool, device=values.device).tril(), value)


def add_triangle_forces(forces: Tensor, displacement: Tensor, slope: Tensor, start: int, stop: int) -> None:
    """Add -dE/dx to forces (3, n), given dE/d(r2) of the pairs of `triangle_distances`; uses up `displacement`."""
    displacement.mul_(slope)
    forces[:, start:stop] += displacement.sum(2).mul_(2.0)
    forces[:, start:] -= displacement.sum(1).mul_(2.0)
