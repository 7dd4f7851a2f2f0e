"""D3(BJ) of one structure from clusters of its atoms; formulas of `aimnet2mult.physics.d3`, atomic units.

Pairs of two clusters are met once, those of a cluster with itself and its images twice. Each function does the work of
every `n_parts`-th cluster as the second of a pair, down from number `part` of the last ones, which have most partners.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from aimnet2mult.engine.clusters import (
    SIZE,
    Clusters,
    Integers,
    PairSums,
    Reals,
    Singles,
    add_translations,
    box_distances,
    second_atoms,
)
from aimnet2mult.engine.dispersion_blocks import (
    GRADIENT,
    N_SUMS,
    c6_block,
    count_block,
    count_block_ended,
    count_block_own,
    count_gradient_block,
    count_gradient_block_ended,
    count_gradient_block_own,
    energy_block,
    energy_block_ended,
    energy_block_own,
)
from aimnet2mult.engine.jit import compiled, part
from aimnet2mult.physics.d3 import WEIGHT_STEEPNESS


class References(NamedTuple):
    """Reference systems in the order of their kinds of atoms."""

    begin: Integers  # (S + 1,) where those of each kind begin, and the end
    cn: Reals  # (R,)
    c6: Reals  # (R, R)


class Range(NamedTuple):
    """How far a sum goes, Bohr."""

    cutoff: float
    width: float  # of the stretch over which it ends smoothly, 0: sharply


class Weights(NamedTuple):
    """Weights of reference systems in atoms; M is the largest number of references of a kind."""

    of_own: Singles  # (K * M * 16,) of the references of a cluster's kind
    slopes: Singles  # (K * M * 16,) their derivatives by the coordination number
    partners: Singles  # (K * 16 * R,) sum over the references of an atom of weight times C6 with every reference
    by_cn: Singles  # (K * 16 * R,) their derivatives by the coordination number of the atom


@part
def _end(reach: Range) -> Singles:
    """Cutoff and one over the width, for the blocks."""
    return np.array([reach.cutoff, 1.0 / max(reach.width, 1e-30)], dtype=np.float32)


@compiled
def sum_counts(clusters: Clusters, parameters: Singles, n_kinds: int, reach: Range, part: int, n_parts: int) -> Reals:
    """Coordination numbers (K * 16,); `parameters` (S * S * 5,) of `dispersion_blocks`."""
    coord, low, high, own, shifts = clusters.coord, clusters.low, clusters.high, clusters.own, clusters.shifts
    real, n_clusters = clusters.real, clusters.filled.shape[0]
    columns = np.empty(3 * SIZE, dtype=np.float32)
    end, plain = _end(reach), (reach.cutoff - reach.width) ** 2
    sums = np.zeros(n_clusters * SIZE)
    for second in range(n_clusters - 1 - part, -1, -n_parts):
        for first in range(second + 1):
            pair, n = clusters.kind[first] * n_kinds + clusters.kind[second], clusters.filled[first]
            for t in range(shifts.shape[0] // 3):
                nearest, farthest = box_distances(low, high, shifts, first, second, t)
                if nearest > reach.cutoff**2:
                    continue
                second_atoms(coord, low, high, shifts, first, second, t, columns)
                if first == second:
                    count_block_own(own, columns, first, second, n, real, parameters, pair, end, sums)
                elif farthest > plain:
                    count_block_ended(own, columns, first, second, n, real, parameters, pair, end, sums)
                else:
                    count_block(own, columns, first, second, n, real, parameters, pair, end, sums)
    return sums


@compiled
def sum_count_gradients(
    clusters: Clusters, parameters: Singles, n_kinds: int, reach: Range, weights: Singles, sums: PairSums, part: int,
    n_parts: int,
) -> None:  # fmt: skip
    """Add gradients that come from coordination numbers with the `weights` dE/dCN (K * 16,) to `sums`."""
    coord, low, high, own, shifts = clusters.coord, clusters.low, clusters.high, clusters.own, clusters.shifts
    real, n_clusters, n_shifts = clusters.real, clusters.filled.shape[0], clusters.shifts.shape[0] // 3
    columns = np.empty(3 * SIZE, dtype=np.float32)
    end, plain = _end(reach), (reach.cutoff - reach.width) ** 2
    to, by_shift = sums.atoms, sums.translations
    for second in range(n_clusters - 1 - part, -1, -n_parts):
        for first in range(second + 1):
            pair, n = clusters.kind[first] * n_kinds + clusters.kind[second], clusters.filled[first]
            for t in range(n_shifts):
                nearest, farthest = box_distances(low, high, shifts, first, second, t)
                if nearest > reach.cutoff**2:
                    continue
                second_atoms(coord, low, high, shifts, first, second, t, columns)
                if first == second:
                    count_gradient_block_own(
                        own, columns, first, second, n, real, parameters, pair, end, weights, to, by_shift, t + n_shifts
                    )
                elif farthest > plain:
                    count_gradient_block_ended(
                        own, columns, first, second, n, real, parameters, pair, end, weights, to, by_shift, t
                    )
                else:
                    count_gradient_block(
                        own, columns, first, second, n, real, parameters, pair, end, weights, to, by_shift, t
                    )


@compiled
def weigh_references(
    clusters: Clusters, cn: Reals, references: References, weights: Weights, part: int, n_parts: int
) -> None:
    """Fill `weights` at the coordination numbers `cn` (K * 16,)."""
    n_references = references.cn.shape[0]
    most = weights.of_own.shape[0] // cn.shape[0]
    for c in range(part, clusters.filled.shape[0], n_parts):
        begin, end = references.begin[clusters.kind[c]], references.begin[clusters.kind[c] + 1]
        for lane in range(SIZE):
            atom = c * SIZE + lane
            row = slice(atom * n_references, (atom + 1) * n_references)
            weights.partners[row], weights.by_cn[row] = 0.0, 0.0
            largest = -np.inf
            for r in range(begin, end):
                largest = max(largest, -WEIGHT_STEEPNESS * (cn[atom] - references.cn[r]) ** 2)
            total, mean = 0.0, 0.0
            for r in range(begin, end):
                off = cn[atom] - references.cn[r]
                gaussian = math.exp(-WEIGHT_STEEPNESS * off**2 - largest)
                total += gaussian
                mean += gaussian * off
            mean /= total
            for r in range(begin, end):
                off = cn[atom] - references.cn[r]
                weight = clusters.real[atom] * math.exp(-WEIGHT_STEEPNESS * off**2 - largest) / total
                slope = -2.0 * WEIGHT_STEEPNESS * weight * (off - mean)
                place = (c * most + r - begin) * SIZE + lane
                weights.of_own[place], weights.slopes[place] = weight, slope
                for k in range(n_references):
                    weights.partners[atom * n_references + k] += weight * references.c6[r, k]
                    weights.by_cn[atom * n_references + k] += slope * references.c6[r, k]


@compiled
def sum_energies(
    clusters: Clusters, parameters: Singles, n_kinds: int, reach: Range, references: References, weights: Weights,
    part: int, n_parts: int,
) -> PairSums:  # fmt: skip
    """Energies, derivatives by coordination numbers and gradients at fixed C6: five sums of each atom."""
    coord, low, high, own, shifts = clusters.coord, clusters.low, clusters.high, clusters.own, clusters.shifts
    real, n_clusters, n_shifts = clusters.real, clusters.filled.shape[0], clusters.shifts.shape[0] // 3
    n_references, size = references.cn.shape[0], weights.of_own.shape[0] // n_clusters
    columns = np.empty(3 * SIZE, dtype=np.float32)
    c6 = np.empty(3 * SIZE * SIZE, dtype=np.float32)
    end, plain = _end(reach), (reach.cutoff - reach.width) ** 2
    sums = PairSums(np.zeros(n_clusters * N_SUMS * SIZE), np.zeros(2 * n_shifts * 3))
    to, by_shift = sums.atoms, sums.translations
    for second in range(n_clusters - 1 - part, -1, -n_parts):
        kind = clusters.kind[second]
        begin, many = references.begin[kind], references.begin[kind + 1] - references.begin[kind]
        for first in range(second + 1):
            pair, n = clusters.kind[first] * n_kinds + kind, clusters.filled[first]
            known = False
            for t in range(n_shifts):
                nearest, farthest = box_distances(low, high, shifts, first, second, t)
                if nearest > reach.cutoff**2:
                    continue
                if not known:
                    known = True
                    start = first * SIZE * n_references + begin
                    c6_block(
                        weights.partners, weights.by_cn, start, n_references, n, weights.of_own, weights.slopes,
                        second * size, many, c6,
                    )  # fmt: skip
                second_atoms(coord, low, high, shifts, first, second, t, columns)
                if first == second:
                    energy_block_own(
                        own, columns, first, second, n, real, parameters, pair, end, c6, to, by_shift, t + n_shifts
                    )
                elif farthest > plain:
                    energy_block_ended(own, columns, first, second, n, real, parameters, pair, end, c6, to, by_shift, t)
                else:
                    energy_block(own, columns, first, second, n, real, parameters, pair, end, c6, to, by_shift, t)
    return sums


@compiled
def collect(clusters: Clusters, sums: PairSums, gradient: Reals) -> tuple[float, Reals]:
    """Energy and virial (3, 3) of `sums`; gradients go to the atoms (n, 3)."""
    energy, virial = 0.0, np.zeros((3, 3))
    for c in range(clusters.filled.shape[0]):
        for lane in range(clusters.filled[c]):
            place = c * N_SUMS * SIZE + lane
            energy += sums.atoms[place]
            for axis in range(3):
                value = sums.atoms[place + (GRADIENT + axis) * SIZE]
                gradient[clusters.atom[c * SIZE + lane], axis] = value
                for k in range(3):
                    virial[k, axis] += clusters.coord[(3 * c + k) * SIZE + lane] * value
    add_translations(clusters.shifts, sums.translations, virial)
    return energy, virial
