"""Sums over pairs of point charges from clusters of atoms; formulas of `aimnet2mult.physics.coulomb`.

In a block every atom of one cluster (rows) acts on all atoms of another one (columns), in float32. What is added up
belongs to the columns only, so that each pair of atoms is met twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from aimnet2mult.engine.clusters import SIZE, Clusters, Reals, Singles, box_distances, second_atoms
from aimnet2mult.engine.jit import compiled
from aimnet2mult.engine.pair_functions import (
    PairFunction,
    add_all,
    apart,
    cut,
    gradient_and_virial,
    inverse_distance,
    screened,
    without_near,
)
from aimnet2mult.engine.simd import Doubles, Emitter, Floats, Int, Lanes, emitted

# Å^2, where an atom is seen from itself: too far to matter
_FAR: Final = 1e30
# numbers that describe the potential of a charge: erfc(a r) / r + b + c r within a cutoff, and 1 / rc^2
ALPHA, OFFSET, SLOPE, CUTOFF_SQUARE, PER_NEAR_SQUARE = range(5)
N_SUMS: Final = 10  # of a column: potential, its gradient, its virial


def _bare(_: Floats) -> PairFunction:
    return inverse_distance


def _bare_near(parameters: Floats) -> PairFunction:
    return without_near(inverse_distance, parameters.everywhere(PER_NEAR_SQUARE))


def _screened(parameters: Floats) -> PairFunction:
    return screened(parameters)


def _screened_any(parameters: Floats) -> PairFunction:
    within = cut(screened(parameters), parameters.everywhere(CUTOFF_SQUARE))
    return without_near(within, parameters.everywhere(PER_NEAR_SQUARE))


def _potentials(make: Callable[[Floats], PairFunction]) -> Callable[..., None]:
    """Blocks of the potentials that the charges of the rows make at the columns."""

    def block(
        e: Emitter, own: Floats, first: Int, n_rows: Int, columns: Floats, parameters: Floats, charges: Floats,
        sums: Doubles, position: Int,
    ) -> None:  # fmt: skip
        function = make(parameters)
        rows, of_rows = own.at(first * (3 * SIZE)), charges.at(first * SIZE)
        places = [columns.lanes(SIZE * axis) for axis in range(3)]

        def each(i: Int, total: list[Lanes]) -> list[Lanes]:
            seen = apart(rows, i, places, _FAR)
            found, charge = function(seen.distance), of_rows.everywhere(i)
            potential = found.value.times_plus(charge, total[0])
            return [potential, *gradient_and_virial(seen, found.slope * charge, total[1:])]

        add_all(sums, position, e.repeat(n_rows, [e.lanes(0.0)] * N_SUMS, each))

    return block


bare_block = emitted(_potentials(_bare))
bare_block_near = emitted(_potentials(_bare_near))
screened_block = emitted(_potentials(_screened))
screened_block_any = emitted(_potentials(_screened_any))


@compiled
def sum_bare(clusters: Clusters, charges: Singles, parameters: Singles, near: float) -> Reals:
    """(K * 10 * 16,) potentials 1 / r of `charges` (K * 16,) without the short range up to `near`, of a molecule."""
    coord, low, high, own, shifts = clusters.coord, clusters.low, clusters.high, clusters.own, clusters.shifts
    n_clusters = clusters.filled.shape[0]
    columns = np.empty(3 * SIZE, dtype=np.float32)
    sums = np.zeros(n_clusters * N_SUMS * SIZE)
    for second in range(n_clusters):
        place = second * N_SUMS * SIZE
        for first in range(n_clusters):
            n_rows = clusters.filled[first]
            nearest, _ = box_distances(low, high, shifts, first, second, 0)
            second_atoms(coord, low, high, shifts, first, second, 0, columns)
            if nearest < near * near:
                bare_block_near(own, first, n_rows, columns, parameters, charges, sums, place)
            else:
                bare_block(own, first, n_rows, columns, parameters, charges, sums, place)
    return sums


@compiled
def sum_screened(clusters: Clusters, charges: Singles, parameters: Singles, near: float, cutoff: float) -> Reals:
    """(K * 10 * 16,) screened potentials of `charges` (K * 16,) without the short range up to `near`."""
    coord, low, high, own, shifts = clusters.coord, clusters.low, clusters.high, clusters.own, clusters.shifts
    n_clusters = clusters.filled.shape[0]
    columns = np.empty(3 * SIZE, dtype=np.float32)
    sums = np.zeros(n_clusters * N_SUMS * SIZE)
    reach = max(near, cutoff)
    for second in range(n_clusters):
        place = second * N_SUMS * SIZE
        for first in range(n_clusters):
            n_rows = clusters.filled[first]
            for t in range(shifts.shape[0] // 3):
                nearest, farthest = box_distances(low, high, shifts, first, second, t)
                if nearest >= reach * reach:
                    continue
                second_atoms(coord, low, high, shifts, first, second, t, columns)
                if nearest >= near * near and farthest < cutoff * cutoff:
                    screened_block(own, first, n_rows, columns, parameters, charges, sums, place)
                else:
                    screened_block_any(own, first, n_rows, columns, parameters, charges, sums, place)
    return sums


@compiled
def collect_potentials(clusters: Clusters, charges: Reals, sums: Reals, potential: Reals, gradient: Reals) -> Reals:
    """Virial (xx, yy, zz, yz, xz, xy); potentials go to the atoms (n,) and gradients of the energy to (n, 3)."""
    virial = np.zeros(6)
    for c in range(clusters.filled.shape[0]):
        for lane in range(clusters.filled[c]):
            atom, place = clusters.atom[c * SIZE + lane], c * N_SUMS * SIZE + lane
            potential[atom] = sums[place]
            for axis in range(3):
                gradient[atom, axis] = charges[atom] * sums[place + (1 + axis) * SIZE]
            for k in range(6):
                virial[k] += charges[atom] * sums[place + (4 + k) * SIZE]
    return virial
