"""D3(BJ) of one structure from clusters of its atoms; formulas of `aimnet2mult.physics.d3`, atomic units."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from aimnet2mult.engine.clusters import (
    SIZE,
    Clusters,
    Integers,
    Reals,
    Singles,
    box_distances,
    second_atoms,
)
from aimnet2mult.engine.dispersion_blocks import (
    FORCE,
    N_SUMS,
    c6_block,
    count_block,
    count_block_ended,
    count_forces_block,
    count_forces_block_ended,
    energy_block,
    energy_block_ended,
)
from aimnet2mult.engine.jit import compiled
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


@compiled
def _end(reach: Range) -> Singles:
    """Cutoff and one over the width, for the blocks."""
    return np.array([reach.cutoff, 1.0 / max(reach.width, 1e-30)], dtype=np.float32)


@compiled
def sum_counts(clusters: Clusters, parameters: Singles, n_kinds: int, reach: Range) -> Reals:
    """Coordination numbers (K * 16,); `parameters` (S * S * 5,) of `dispersion_blocks`."""
    coord, low, high, own, shifts = clusters.coord, clusters.low, clusters.high, clusters.own, clusters.shifts
    n_clusters = clusters.filled.shape[0]
    columns = np.empty(3 * SIZE, dtype=np.float32)
    end = _end(reach)
    sums = np.zeros(n_clusters * SIZE)
    for second in range(n_clusters):
        place = second * SIZE
        for first in range(n_clusters):
            pair, n_rows = clusters.kind[first] * n_kinds + clusters.kind[second], clusters.filled[first]
            for t in range(shifts.shape[0] // 3):
                nearest, farthest = box_distances(low, high, shifts, first, second, t)
                if nearest > reach.cutoff**2:
                    continue
                second_atoms(coord, low, high, shifts, first, second, t, columns)
                if (first == second and t == 0) or farthest > (reach.cutoff - reach.width) ** 2:
                    count_block_ended(own, first, n_rows, columns, parameters, pair, end, sums, place)
                else:
                    count_block(own, first, n_rows, columns, parameters, pair, end, sums, place)
    return sums


@compiled
def sum_count_forces(
    clusters: Clusters, parameters: Singles, n_kinds: int, reach: Range, weights: Singles, sums: Reals
) -> None:
    """Add gradients and virials that come from coordination numbers with the `weights` dE/dCN (K * 16,) to `sums`."""
    coord, low, high, own, shifts = clusters.coord, clusters.low, clusters.high, clusters.own, clusters.shifts
    n_clusters = clusters.filled.shape[0]
    columns = np.empty(3 * SIZE, dtype=np.float32)
    end = _end(reach)
    for second in range(n_clusters):
        place = second * SIZE * N_SUMS
        for first in range(n_clusters):
            pair, n_rows = clusters.kind[first] * n_kinds + clusters.kind[second], clusters.filled[first]
            for t in range(shifts.shape[0] // 3):
                nearest, farthest = box_distances(low, high, shifts, first, second, t)
                if nearest > reach.cutoff**2:
                    continue
                second_atoms(coord, low, high, shifts, first, second, t, columns)
                if (first == second and t == 0) or farthest > (reach.cutoff - reach.width) ** 2:
                    count_forces_block_ended(
                        own, first, n_rows, columns, parameters, pair, end, weights, second, sums, place
                    )
                else:
                    count_forces_block(own, first, n_rows, columns, parameters, pair, end, weights, second, sums, place)


@compiled
def weigh_references(
    clusters: Clusters, cn: Reals, references: References, weights: Singles, slopes: Singles, partners: Singles
) -> None:
    """Weights of reference systems at coordination numbers `cn` (K * 16,).

    Parameters
    ----------
    weights, slopes
        (K * M * 16,) out: weight of each reference of a cluster's kind, and its derivative by the coordination number;
        M is the largest number of references of a kind.
    partners
        (K * 16 * R,) out: sum over the references of an atom of weight times C6 with every reference.
    """
    n_references = references.cn.shape[0]
    most = weights.shape[0] // cn.shape[0]
    for c in range(clusters.filled.shape[0]):
        begin, end = references.begin[clusters.kind[c]], references.begin[clusters.kind[c] + 1]
        for lane in range(SIZE):
            atom = c * SIZE + lane
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
            partners[atom * n_references : (atom + 1) * n_references] = 0.0
            for r in range(begin, end):
                off = cn[atom] - references.cn[r]
                weight = math.exp(-WEIGHT_STEEPNESS * off**2 - largest) / total
                place = (c * most + r - begin) * SIZE + lane
                weights[place] = weight
                slopes[place] = -2.0 * WEIGHT_STEEPNESS * weight * (off - mean)
                for k in range(n_references):
                    partners[atom * n_references + k] += weight * references.c6[r, k]


@compiled
def sum_energies(
    clusters: Clusters,
    parameters: Singles,
    n_kinds: int,
    reach: Range,
    references: References,
    weights: Singles,
    slopes: Singles,
    partners: Singles,
) -> Reals:
    """(K * 11 * 16,): energies, derivatives by coordination numbers, gradients and virials at fixed C6."""
    coord, low, high, own, shifts = clusters.coord, clusters.low, clusters.high, clusters.own, clusters.shifts
    n_clusters, n_references = clusters.filled.shape[0], references.cn.shape[0]
    size = weights.shape[0] // n_clusters
    columns = np.empty(3 * SIZE, dtype=np.float32)
    c6, by_cn = np.empty(SIZE * SIZE, dtype=np.float32), np.empty(SIZE * SIZE, dtype=np.float32)
    end = _end(reach)
    sums = np.zeros(n_clusters * N_SUMS * SIZE)
    for second in range(n_clusters):
        kind, place = clusters.kind[second], second * N_SUMS * SIZE
        begin, many = references.begin[kind], references.begin[kind + 1] - references.begin[kind]
        for first in range(n_clusters):
            pair, n_rows = clusters.kind[first] * n_kinds + kind, clusters.filled[first]
            known = False
            for t in range(shifts.shape[0] // 3):
                nearest, farthest = box_distances(low, high, shifts, first, second, t)
                if nearest > reach.cutoff**2:
                    continue
                if not known:
                    known = True
                    start = first * SIZE * n_references + begin
                    c6_block(
                        partners,
                        start,
                        n_references,
                        clusters.filled[first],
                        weights,
                        slopes,
                        second * size,
                        many,
                        c6,
                        by_cn,
                    )
                second_atoms(coord, low, high, shifts, first, second, t, columns)
                if (first == second and t == 0) or farthest > (reach.cutoff - reach.width) ** 2:
                    energy_block_ended(own, first, n_rows, columns, parameters, pair, end, c6, by_cn, sums, place)
                else:
                    energy_block(own, first, n_rows, columns, parameters, pair, end, c6, by_cn, sums, place)
    return sums


@compiled
def collect(clusters: Clusters, sums: Reals, gradient: Reals) -> tuple[float, Reals]:
    """Energy and virial (xx, yy, zz, yz, xz, xy) of `sums` (K, 11, 16); gradients go to the atoms (n, 3)."""
    energy, virial = 0.0, np.zeros(6)
    for c in range(clusters.filled.shape[0]):
        for lane in range(clusters.filled[c]):
            place = c * N_SUMS * SIZE + lane
            energy += sums[place]
            for axis in range(3):
                gradient[clusters.atom[c * SIZE + lane], axis] = sums[place + (FORCE + axis) * SIZE]
            for k in range(6):
                virial[k] += sums[place + (FORCE + 3 + k) * SIZE]
    return energy, virial
