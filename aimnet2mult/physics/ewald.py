"""Ewald summation: choice of the splitting, and everything but the real-space sum.

Source: Frenkel, Smit, Understanding Molecular Simulation, 2nd ed., section 12.1 (there without background);
background of charged cells: Hub, de Groot, Grubmüller, Groenhof, J. Chem. Theory Comput. 10, 381 (2014).
With the surroundings conducting ("tin foil") and erfc(a r) / r summed over pairs in real space,

    E / k_e = sum_pairs q_i q_j erfc(a r) / r + 1/2 sum_{k != 0} w(k) |S(k)|^2 - a / sqrt(pi) sum_i q_i^2
              - pi Q^2 / (2 V a^2),        w(k) = 4 pi / V exp(-k^2 / 4 a^2) / k^2,   S(k) = sum_i q_i exp(i k r_i).

A wave vector is k = n @ reciprocal_cell with three integers n, so that k r = 2 pi n f for fractional coordinates f.
All functions can be scripted and differentiated twice; they are about one cell, without padding.
n: atoms; R: rows of wave vectors with two integers in common.
"""

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor

from aimnet2mult.physics.pair_sums import linear_surrogate

ACCURACY: Final = 1e-10  # terms are left out where their weight is below this part of the largest
SHORTEST_CUTOFF: Final = 6.0  # Å
LONGEST_CUTOFF: Final = 20.0  # Å
CUTOFF_STEP: Final = 0.5  # Å
MAX_PHASES: Final = 10_000_000  # more (row of wave vectors, atom) pairs than this are summed in chunks


class WaveRows(NamedTuple):
    """Wave vectors of one half space in rows: n = (row[0], row[1], m) with m from -last to last, axes in `order`."""

    order: Tensor  # (3,) int64 the cell vectors, that with most wave vectors last
    rows: Tensor  # (R, 2) float64 integers
    last: int


def ewald_cutoff(
    n_atoms: int,
    volume: float,
    accuracy: float = ACCURACY,
    shortest: float = SHORTEST_CUTOFF,
    longest: float = LONGEST_CUTOFF,
    step: float = CUTOFF_STEP,
    cost_ratio: float = 3e-4,
) -> float:
    """Cutoff of the real-space sum (Å) that makes both sums about equally expensive.

    The real-space sum costs about n^2 c^3 / V, the reciprocal one n V (s^2 / c)^3 with s of `splitting_exponent`:
    equal at c = s (ratio V^2 / n)^(1/6). Bounded, because pair lists take memory and very short cutoffs save nothing;
    in steps, so that a cell that breathes keeps its splitting and its pair list.

    Parameters
    ----------
    n_atoms
        Atoms of the cell.
    volume
        Å^3.
    cost_ratio
        Cost of one phase factor in terms of one pair, measured.
    """
    balanced = splitting_exponent(accuracy) * (cost_ratio * volume * volume / max(1, n_atoms)) ** (1.0 / 6.0)
    return min(max(step * math.floor(balanced / step + 0.5), shortest), longest)


def splitting_exponent(accuracy: float = ACCURACY) -> float:
    """The s with exp(-s^2) = accuracy: real space ends at a r = s, reciprocal space at k = 2 a s."""
    return math.sqrt(-math.log(accuracy))


def ewald_alpha(cutoff: float, accuracy: float = ACCURACY) -> float:
    """Splitting parameter a (1/Å) for a real-space cutoff (Å)."""
    return splitting_exponent(accuracy) / cutoff


def cell_volume(cell: Tensor) -> Tensor:
    """Volume () Å^3 of a cell (3, 3) of either handedness."""
    return torch.dot(cell[0], torch.linalg.cross(cell[1], cell[2])).abs()


def fractional_coordinates(coord: Tensor, cell: Tensor) -> Tensor:
    """Fractional coordinates (n, 3) within [0, 1): phases keep all digits wherever an atom has wandered."""
    fractional = torch.matmul(coord, torch.inverse(cell))
    return fractional - fractional.detach().floor()


def wave_vector_counts(cell: Tensor, k_max: float) -> list[int]:
    """Largest |n| along each cell vector a of wave vectors up to k_max (1/Å): 2 pi |n| = |k a| <= k_max |a|."""
    lengths: list[float] = cell.square().sum(1).sqrt().tolist()
    return [int(k_max * length / (2.0 * math.pi)) for length in lengths]


def wave_vector_weights(integers: Tensor, cell: Tensor, alpha: float) -> Tensor:
    """Weights w(k) = 4 pi / V exp(-k^2 / 4 a^2) / k^2 (1/Å) of wave vectors, 0 for k = 0.

    Parameters
    ----------
    integers
        (..., 3) float64 integers n.
    cell
        (3, 3) Å.
    alpha
        1/Å.

    Returns
    -------
    Tensor
        (...,).
    """
    k2 = wave_vector_squares(integers, cell)
    zero = (integers == 0.0).all(-1)
    safe = torch.where(zero, torch.ones_like(k2), k2)
    weight = torch.exp(safe * (-0.25 / (alpha * alpha))) / safe
    return torch.where(zero, torch.zeros_like(k2), weight) * (4.0 * math.pi / cell_volume(cell))


def wave_vector_squares(integers: Tensor, cell: Tensor) -> Tensor:
    """k^2 (...,) 1/Å^2 of integers n (..., 3)."""
    return torch.matmul(integers, 2.0 * math.pi * torch.inverse(cell).t()).square().sum(-1)


def wave_rows(cell: Tensor, k_max: float) -> WaveRows:
    """Rows of wave vectors that reach into the sphere of radius k_max (1/Å), whatever the shape of the cell (3, 3)."""
    counts = wave_vector_counts(cell, k_max)
    order = torch.tensor(counts, device=cell.device).argsort()
    a, b, last = sorted(counts)
    first = torch.arange(a + 1, dtype=cell.dtype, device=cell.device)
    second = torch.arange(-b, b + 1, dtype=cell.dtype, device=cell.device)
    rows = torch.cartesian_prod(first, second)
    rows = rows[(rows[:, 0] > 0.0) | (rows[:, 1] >= 0.0)]
    near = wave_vector_squares(row_integers(WaveRows(order, rows, last)), cell[order]) <= k_max * k_max
    return WaveRows(order, rows[near.any(1)], last)


def row_integers(grid: WaveRows) -> Tensor:
    """Integers n of all wave vectors of the rows: (R, 2 last + 1, 3), axes in the order of the grid."""
    m = torch.arange(-grid.last, grid.last + 1, dtype=grid.rows.dtype, device=grid.rows.device)
    n_rows, n_last = grid.rows.shape[0], m.shape[0]
    return torch.cat(
        [grid.rows.unsqueeze(1).expand(n_rows, n_last, 2), m.view(1, n_last, 1).expand(n_rows, n_last, 1)], dim=2
    )


def reciprocal_energy(
    charges: Tensor, coord: Tensor, cell: Tensor, alpha: float, k_max: float, max_phases: int = MAX_PHASES
) -> Tensor:
    """Reciprocal-space sum 1/2 sum_{0 < k <= k_max} w(k) |S(k)|^2.

    Parameters
    ----------
    charges
        (n,) float64 e.
    coord
        (n, 3) float64 Å.
    cell
        (3, 3) float64 Å, periodic in all directions.
    alpha
        Splitting parameter, 1/Å.
    k_max
        1/Å.
    max_phases
        Beyond this number of rows times atoms the sum runs over chunks whose graphs are forgotten: memory stays
        linear in the atoms, and the result can be differentiated only once.

    Returns
    -------
    Tensor
        () e^2/Å.
    """
    grid = wave_rows(cell.detach(), k_max)
    if grid.rows.shape[0] * charges.shape[0] <= max_phases:
        return rows_energy(charges, coord, cell, grid, alpha)
    n_rows = max(1, max_phases // (5 * charges.shape[0]))
    differentiate = torch.is_grad_enabled() and (charges.requires_grad or coord.requires_grad or cell.requires_grad)
    leaves = [charges.detach(), coord.detach(), cell.detach()]
    gradients = [torch.zeros_like(leaf) for leaf in leaves]
    energy = torch.zeros_like(leaves[0][0])
    for start in range(0, grid.rows.shape[0], n_rows):
        chunk = WaveRows(grid.order, grid.rows[start : start + n_rows], grid.last)
        if differentiate:
            q, x, c = [leaf.detach().requires_grad_() for leaf in leaves]
            part = rows_energy(q, x, c, chunk, alpha)
            for k, gradient in enumerate(torch.autograd.grad([part], [q, x, c])):
                assert gradient is not None
                gradients[k] += gradient
            energy = energy + part.detach()
        else:
            energy = energy + rows_energy(leaves[0], leaves[1], leaves[2], chunk, alpha)
    total = energy.unsqueeze(0)
    total = linear_surrogate(total, charges.unsqueeze(0), gradients[0].unsqueeze(0))
    total = linear_surrogate(total, coord.unsqueeze(0), gradients[1].unsqueeze(0))
    return linear_surrogate(total, cell.unsqueeze(0), gradients[2].unsqueeze(0))[0]


def rows_energy(charges: Tensor, coord: Tensor, cell: Tensor, grid: WaveRows, alpha: float) -> Tensor:
    """1/2 sum_k w(k) |S(k)|^2 over the wave vectors of some rows and their opposites: () e^2/Å.

    exp(i k r) is the phase of the row times that along the last axis, so the sum over atoms is a matrix product, and
    cosines and sines are needed per row only, not per wave vector. The same products serve m and -m.
    """
    axes = cell[grid.order]
    angles = 2.0 * math.pi * fractional_coordinates(coord, axes).t()
    across = torch.matmul(grid.rows, angles[:2])
    along = torch.arange(grid.last + 1, dtype=cell.dtype, device=cell.device).unsqueeze(1) * angles[2]
    products = torch.matmul(
        torch.cat([torch.cos(across), torch.sin(across)]),
        torch.cat([torch.cos(along), torch.sin(along)]).t() * charges.unsqueeze(1),
    )
    n_rows, n_along = grid.rows.shape[0], grid.last + 1
    cc, cs = products[:n_rows, :n_along], products[:n_rows, n_along:]
    sc, ss = products[n_rows:, :n_along], products[n_rows:, n_along:]
    forward = (cc - ss).square() + (sc + cs).square()
    backward = (cc + ss).square() + (sc - cs).square()
    weight = wave_vector_weights(row_integers(grid), axes, alpha)
    # the row through the origin holds its own opposites
    weight = torch.where((grid.rows == 0.0).all(1, keepdim=True), 0.5 * weight, weight)
    energy = (weight[:, grid.last :] * forward).sum()
    return energy + (weight[:, : grid.last].flip(1) * backward[:, 1:]).sum()


def self_energy(charges: Tensor, cell: Tensor, alpha: float) -> Tensor:
    """Interaction of every charge with its own screening and of the cell with its background: () e^2/Å.

    Parameters
    ----------
    charges
        (n,) float64 e.
    cell
        (3, 3) float64 Å.
    alpha
        1/Å.
    """
    background = charges.sum().square() * (0.5 * math.pi / (alpha * alpha)) / cell_volume(cell)
    return -charges.square().sum() * (alpha / math.sqrt(math.pi)) - background
