"""Atoms in clusters of sixteen of one kind that stand close together, for sums over pairs within long cutoffs.

Lengths are in the unit of the caller. Arrays are flat: a view of a row costs as much as the work on it.

A pair of clusters is looked at as a whole: whether it is near enough, and whether all its pairs are away from the
places where a function of the distance changes its form. What is then summed are sixteen rows of sixteen lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aimnet2mult.engine.jit import compiled, part
from aimnet2mult.engine.team import count_parts
from aimnet2mult.physics.lattice import dual_vectors, mapped

SIZE: Final = 16  # atoms of a cluster
_BIN: Final = 3.0  # Å or Bohr; atoms are put in the order of bins of this side
_BITS: Final = 15  # of the number of a bin along each axis
# pairs of clusters and their images: what a thread is worth starting for; most of them stand too far apart
_PAIRS_OF_PART: Final = 2_000

Reals = NDArray[np.float64]
Integers = NDArray[np.int64]
Singles = NDArray[np.float32]


class Clusters(NamedTuple):
    """K clusters of the atoms of one structure. Places beyond the atoms of a cluster repeat its last atom."""

    atom: Integers  # (K * 16,)
    filled: Integers  # (K,) atoms of each cluster
    real: Singles  # (K * 16,) 1 for atoms, 0 for the places beyond
    kind: Integers  # (K,)
    coord: Reals  # (K * 3 * 16,) cluster, axis, atom; inside the cell where it is periodic
    low: Reals  # (K * 3,) corners of the box around each cluster
    high: Reals  # (K * 3,)
    own: Singles  # (K * 3 * 16,) coord counted from the middle of the box
    shifts: Reals  # (T * 3,) lattice vectors by which second atoms are moved; the first is zero


class PairSums(NamedTuple):
    """What is summed over pairs of K clusters and T lattice vectors.

    One record serves all sums: numba takes two kinds of records with equal fields for one another at first, and every
    call of a compiled function then costs 0.1 ms.
    """

    atoms: Reals  # (K * m * 16,) m sums of each atom
    translations: Reals  # (2 * T * 3,) gradients of second atoms by lattice vector; then of pairs that count half


def make_clusters(coord: Reals, kinds: Integers, cell: Reals, reach: float) -> Clusters:
    """Put the atoms of a structure in clusters.

    Parameters
    ----------
    coord
        (n, 3), finite.
    kinds
        (n,) from 0; a cluster holds atoms of one kind.
    cell
        (3, 3), one vector per row; zeros in directions that are not periodic.
    reach
        Lattice vectors are listed as far as pairs within this distance may need them.
    """
    coord = coord - coord.mean(axis=0)  # the virial of positions times gradients is as exact as positions are small
    shifts = np.zeros((1, 3))
    if cell.any():
        dual = dual_vectors(cell)
        coord = coord - mapped(np.floor(mapped(coord, dual)), cell)  # inside the cell
        shifts = _lattice_vectors(cell, dual, reach + float(np.linalg.norm(np.ptp(coord, axis=0))))
    order = np.argsort(_keys(coord, kinds), kind="stable")
    atom, filled, real, kind, places, low, high, own = _fill(coord, kinds, order)
    return Clusters(atom, filled, real, kind, places, low, high, own, shifts.ravel())


def parts_of(clusters: Clusters) -> int:
    """Into how many parts sums over pairs are divided."""
    n_clusters = len(clusters.filled)
    pairs = n_clusters * (n_clusters + 1) // 2 * (len(clusters.shifts) // 3)
    return min(n_clusters, count_parts(pairs, _PAIRS_OF_PART))


def added(parts: Sequence[PairSums]) -> PairSums:
    """Sums over all pairs from those of the parts."""
    atoms, translations = parts[0]
    for one in parts[1:]:
        atoms, translations = atoms + one.atoms, translations + one.translations
    return PairSums(atoms, translations)


def _lattice_vectors(cell: Reals, dual: Reals, reach: float) -> Reals:
    """Lattice vectors no longer than `reach`, zero first."""
    # |n_a| = |T . dual_a| <= |T| |dual_a|
    most = np.floor(reach * np.linalg.norm(dual, axis=0)).astype(np.int64)
    steps = np.stack(np.meshgrid(*(np.arange(-m, m + 1) for m in most), indexing="ij"), axis=-1).reshape(-1, 3)
    vectors = mapped(steps, cell)
    square = np.einsum("tc,tc->t", vectors, vectors)
    near = square <= reach * reach
    return vectors[near][np.argsort(square[near], kind="stable")]


@compiled
def _keys(coord: Reals, kinds: Integers) -> Integers:
    """Numbers by which atoms are sorted: kind, then the place of the bin on a curve through all bins.

    The bits of the numbers of a bin along the axes take turns (Morton 1966): bins that follow each other stand close.
    """
    n = coord.shape[0]
    low, extent = np.empty(3), 0.0
    for axis in range(3):
        # not by numpy's min and max: with code that holds them, numba loads 0.1 s worth of modules
        high = low[axis] = coord[0, axis]
        for i in range(1, n):
            low[axis], high = min(low[axis], coord[i, axis]), max(high, coord[i, axis])
        extent = max(extent, high - low[axis])
    scale = min(1.0 / _BIN, (2**_BITS - 1) / max(extent, 1.0))
    keys = np.empty(n, dtype=np.int64)
    for i in range(n):
        key = kinds[i] << (3 * _BITS)
        for axis in range(3):
            place = int((coord[i, axis] - low[axis]) * scale)
            for bit in range(_BITS):
                key |= ((place >> bit) & 1) << (3 * bit + axis)
        keys[i] = key
    return keys


@compiled
def _fill(
    coord: Reals, kinds: Integers, order: Integers
) -> tuple[Integers, Integers, Singles, Integers, Reals, Reals, Reals, Singles]:
    """The fields of `Clusters` but the lattice vectors, from atoms in order."""
    n = order.shape[0]
    begin = np.empty(n + 1, dtype=np.int64)
    n_clusters = 0
    for place in range(n):
        start = begin[n_clusters - 1] if n_clusters > 0 else 0
        if place == 0 or place - start == SIZE or kinds[order[place]] != kinds[order[place - 1]]:
            begin[n_clusters] = place
            n_clusters += 1
    begin[n_clusters] = n
    atom = np.empty(n_clusters * SIZE, dtype=np.int64)
    filled = np.empty(n_clusters, dtype=np.int64)
    real = np.zeros(n_clusters * SIZE, dtype=np.float32)
    kind = np.empty(n_clusters, dtype=np.int64)
    places = np.empty(n_clusters * 3 * SIZE)
    low, high = np.empty(n_clusters * 3), np.empty(n_clusters * 3)
    own = np.empty(n_clusters * 3 * SIZE, dtype=np.float32)
    for c in range(n_clusters):
        filled[c] = begin[c + 1] - begin[c]
        real[c * SIZE : c * SIZE + filled[c]] = 1.0
        kind[c] = kinds[order[begin[c]]]
        for lane in range(SIZE):
            atom[c * SIZE + lane] = order[min(begin[c] + lane, begin[c + 1] - 1)]
        for axis in range(3):
            start = (3 * c + axis) * SIZE
            least = most = coord[atom[c * SIZE], axis]
            for lane in range(SIZE):
                x = coord[atom[c * SIZE + lane], axis]
                places[start + lane] = x
                least, most = min(least, x), max(most, x)
            low[3 * c + axis], high[3 * c + axis] = least, most
            for lane in range(SIZE):
                own[start + lane] = places[start + lane] - 0.5 * (least + most)
    return atom, filled, real, kind, places, low, high, own


@part
def box_distances(low: Reals, high: Reals, shifts: Reals, first: int, second: int, t: int) -> tuple[float, float]:
    """Squares of the smallest and of the largest distance that points in two boxes can have, the second one moved."""
    nearest, farthest = 0.0, 0.0
    for axis in range(3):
        shift = shifts[3 * t + axis]
        a = low[3 * second + axis] + shift - high[3 * first + axis]
        b = low[3 * first + axis] - high[3 * second + axis] - shift
        gap = max(0.0, a, b)
        span = max(-a, -b)
        nearest += gap * gap
        farthest += span * span
    return nearest, farthest


@part
def second_atoms(
    coord: Reals, low: Reals, high: Reals, shifts: Reals, first: int, second: int, t: int, columns: Singles
) -> None:
    """Positions of the moved second cluster counted from the middle of the box of the first, into `columns` (48,)."""
    for axis in range(3):
        offset = shifts[3 * t + axis] - 0.5 * (low[3 * first + axis] + high[3 * first + axis])
        start = (3 * second + axis) * SIZE
        for lane in range(SIZE):
            columns[axis * SIZE + lane] = coord[start + lane] + offset


@part
def add_translations(shifts: Reals, gradients: Reals, virial: Reals) -> None:
    """Add to a virial (3, 3) what comes from lattice translations: the gradients (2 * T * 3,), the second half halved.

    A pair at the distance d = x_j + T - x_i with the gradient g of its second atom adds d (x) g to the virial: the
    positions of atoms times their gradients in all, and the translations times theirs.
    """
    n = shifts.shape[0]
    for t in range(n // 3):
        for k in range(3):
            for axis in range(3):
                value = gradients[3 * t + axis] + 0.5 * gradients[n + 3 * t + axis]
                virial[k, axis] += shifts[3 * t + k] * value
