"""PairSums over pairs of point charges from clusters of atoms; formulas of `aimnet2mult.physics.coulomb`.

Pairs of two clusters are met once, those of a cluster with itself and its images twice. Each function does the work of
every `n_parts`-th cluster as the second of a pair, down from number `part` of the last ones, which have most partners.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from aimnet2mult.engine.clusters import (
    SIZE,
    Clusters,
    PairSums,
    Reals,
    Singles,
    add_translations,
    box_distances,
    second_atoms,
)
from aimnet2mult.engine.jit import compiled
from aimnet2mult.engine.pair_blocks import (
    Act,
    Block,
    Effect,
    add_own_pairs,
    add_pairs,
    add_translation,
    gradient_of,
    opposite,
)
from aimnet2mult.engine.pair_functions import Apart, PairFunction, cut, inverse_distance, screened, without_near
from aimnet2mult.engine.simd import Doubles, Emitter, Floats, Int, Lanes, emitted

# Å^2, where an atom is seen from itself: too far to matter
_FAR: Final = 1e30
# numbers that describe the potential of a charge: erfc(a r) / r + b + c r within a cutoff, and 1 / rc^2
ALPHA, OFFSET, SLOPE, CUTOFF_SQUARE, PER_NEAR_SQUARE = range(5)
_N_SUMS: Final = 4  # of an atom: potential, gradient of the energy


def _bare(_: Floats) -> PairFunction:
    return inverse_distance


def _bare_near(parameters: Floats) -> PairFunction:
    return without_near(inverse_distance, parameters.everywhere(PER_NEAR_SQUARE))


def _screened(parameters: Floats) -> PairFunction:
    return screened(parameters)


def _screened_any(parameters: Floats) -> PairFunction:
    within = cut(screened(parameters), parameters.everywhere(CUTOFF_SQUARE))
    return without_near(within, parameters.everywhere(PER_NEAR_SQUARE))


def _potentials(
    make: Callable[[Floats], PairFunction], add: Callable[[Emitter, Block, Act], list[Lanes]]
) -> Callable[..., None]:
    """Blocks of potentials and of gradients of the energies; charges are 0 in places beyond the atoms."""

    def write(
        e: Emitter, own: Floats, columns: Floats, first: Int, second: Int, n_rows: Int, real: Floats,
        charges: Floats, parameters: Floats, sums: Doubles, translations: Doubles, number: Int,
    ) -> None:  # fmt: skip
        function, there = make(parameters), real.lanes(second * SIZE)
        of_rows, of_columns = charges.at(first * SIZE), charges.lanes(second * SIZE)

        def act(i: Int, seen: Apart) -> Effect:
            found, charge = function(seen.distance), of_rows.everywhere(i)
            gradient = gradient_of(seen, lambda _: found, charge * of_columns)
            return Effect([found.value * charge, *gradient], [found.value * of_columns, *opposite(gradient)])

        added = add(e, Block(own, columns, first, second, n_rows, sums, _N_SUMS), act)
        add_translation(translations, number, there, added[1:])

    return write


def _own(e: Emitter, block: Block, act: Act) -> list[Lanes]:
    return add_own_pairs(e, block, act, _FAR)


def _both(e: Emitter, block: Block, act: Act) -> list[Lanes]:
    return add_pairs(e, block, act, 0)


bare_block = emitted(_potentials(_bare, _both))
bare_block_near = emitted(_potentials(_bare_near, _both))
bare_block_own = emitted(_potentials(_bare_near, _own))
screened_block = emitted(_potentials(_screened, _both))
screened_block_any = emitted(_potentials(_screened_any, _both))
screened_block_own = emitted(_potentials(_screened_any, _own))


@compiled
def sum_bare(
    clusters: Clusters, charges: Singles, parameters: Singles, near: float, part: int, n_parts: int
) -> PairSums:
    """Potentials 1 / r of `charges` (K * 16,) in a molecule, without the short range up to `near`."""
    coord, low, high, own, shifts = clusters.coord, clusters.low, clusters.high, clusters.own, clusters.shifts
    real, n_clusters = clusters.real, clusters.filled.shape[0]
    columns = np.empty(3 * SIZE, dtype=np.float32)
    sums = PairSums(np.zeros(n_clusters * _N_SUMS * SIZE), np.zeros(6))
    to, by_shift = sums.atoms, sums.translations
    for second in range(n_clusters - 1 - part, -1, -n_parts):
        for first in range(second + 1):
            n = clusters.filled[first]
            nearest, _ = box_distances(low, high, shifts, first, second, 0)
            second_atoms(coord, low, high, shifts, first, second, 0, columns)
            if first == second:
                bare_block_own(own, columns, first, second, n, real, charges, parameters, to, by_shift, 1)
            elif nearest < near * near:
                bare_block_near(own, columns, first, second, n, real, charges, parameters, to, by_shift, 0)
            else:
                bare_block(own, columns, first, second, n, real, charges, parameters, to, by_shift, 0)
    return sums


@compiled
def sum_screened(
    clusters: Clusters, charges: Singles, parameters: Singles, near: float, cutoff: float, part: int, n_parts: int
) -> PairSums:
    """Screened potentials of `charges` (K * 16,) within `cutoff`, without the short range up to `near`."""
    coord, low, high, own, shifts = clusters.coord, clusters.low, clusters.high, clusters.own, clusters.shifts
    real, n_clusters, n_shifts = clusters.real, clusters.filled.shape[0], clusters.shifts.shape[0] // 3
    columns = np.empty(3 * SIZE, dtype=np.float32)
    sums = PairSums(np.zeros(n_clusters * _N_SUMS * SIZE), np.zeros(2 * n_shifts * 3))
    to, by_shift, reach = sums.atoms, sums.translations, max(near, cutoff)
    for second in range(n_clusters - 1 - part, -1, -n_parts):
        for first in range(second + 1):
            n = clusters.filled[first]
            for t in range(n_shifts):
                nearest, farthest = box_distances(low, high, shifts, first, second, t)
                if nearest >= reach * reach:
                    continue
                second_atoms(coord, low, high, shifts, first, second, t, columns)
                if first == second:
                    screened_block_own(
                        own, columns, first, second, n, real, charges, parameters, to, by_shift, t + n_shifts
                    )
                elif nearest >= near * near and farthest < cutoff * cutoff:
                    screened_block(own, columns, first, second, n, real, charges, parameters, to, by_shift, t)
                else:
                    screened_block_any(own, columns, first, second, n, real, charges, parameters, to, by_shift, t)
    return sums


@compiled
def collect_potentials(clusters: Clusters, sums: PairSums, potential: Reals, gradient: Reals) -> Reals:
    """Virial (3, 3); potentials go to the atoms (n,) and gradients of the energy to (n, 3)."""
    virial = np.zeros((3, 3))
    for c in range(clusters.filled.shape[0]):
        for lane in range(clusters.filled[c]):
            atom, place = clusters.atom[c * SIZE + lane], c * _N_SUMS * SIZE + lane
            potential[atom] = sums.atoms[place]
            for axis in range(3):
                value = sums.atoms[place + (1 + axis) * SIZE]
                gradient[atom, axis] = value
                for k in range(3):
                    virial[k, axis] += clusters.coord[(3 * c + k) * SIZE + lane] * value
    add_translations(clusters.shifts, sums.translations, virial)
    return virial
