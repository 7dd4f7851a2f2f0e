"""Compiled loops that find the edges of molecules and cells, and that sum over edges."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aimnet2mult.engine.jit import compiled

Reals = NDArray[np.float64]
Integers = NDArray[np.int64]
Indices = NDArray[np.int32]


@compiled
def molecule_edges(coord: Reals, cutoff: float) -> tuple[Integers, Indices, Reals, Indices]:
    """All ordered pairs of `coord` (n, 3) nearer than `cutoff`, as start, neighbor, vector, reverse; quadratic in n."""
    n = coord.shape[0]
    x, y, z = coord[:, 0].copy(), coord[:, 1].copy(), coord[:, 2].copy()
    limit = cutoff * cutoff
    start = np.zeros(n + 1, dtype=np.int64)
    for i in range(n):
        count = -1  # the atom itself
        for j in range(n):
            count += (x[j] - x[i]) ** 2 + (y[j] - y[i]) ** 2 + (z[j] - z[i]) ** 2 < limit
        start[i + 1] = start[i] + count
    neighbor = np.empty(start[n], dtype=np.int32)
    reverse = np.empty(start[n], dtype=np.int32)
    vector = np.empty((start[n], 3), dtype=np.float64)
    place = start[:n].copy()
    for i in range(n):
        for j in range(i + 1, n):
            dx, dy, dz = x[j] - x[i], y[j] - y[i], z[j] - z[i]
            if dx**2 + dy**2 + dz**2 < limit:
                _put_pair(i, j, dx, dy, dz, place, neighbor, vector, reverse)
    return start, neighbor, vector, reverse


@compiled
def cell_edges(
    coord: Reals,
    box: Reals,
    periodic: NDArray[np.bool_],
    bins: Integers,
    n_bins: Integers,
    reach: Integers,
    cutoff: float,
) -> tuple[Integers, Indices, Reals, Indices, int, int, float, Integers]:
    """Edges from bins of atoms, for molecules and cells of any shape; linear in the number of atoms.

    Parameters
    ----------
    coord
        (n, 3) Å, inside the box where it is periodic.
    box, periodic
        (3, 3) Å, one vector per row, and (3,) bool.
    bins, n_bins
        (n, 3) bin of each atom along each vector, and (3,) their numbers.
    reach
        (3,) bins to either side that atoms within the cutoff may be in.
    cutoff
        Å.

    Returns
    -------
    tuple
        start, neighbor, vector and reverse of the edges, then the nearest pair: first, second, squared distance
        (infinite if there is no pair) and lattice translation (3,) from the first to the second.
    """
    n = coord.shape[0]
    begin, members = _sort_into_bins(bins, n_bins)
    capacity = max(64, 40 * n)
    first = np.empty(capacity, dtype=np.int32)
    second = np.empty(capacity, dtype=np.int32)
    apart = np.empty((capacity, 3), dtype=np.float64)
    n_pairs = 0
    limit = cutoff * cutoff
    nearest, nearest_square = np.zeros(5, dtype=np.int64), np.inf
    here = np.empty(3, dtype=np.int64)
    there = np.empty(3, dtype=np.int64)
    step = np.empty(3, dtype=np.int64)
    offsets = _half_of_offsets(reach)
    for home in range(begin.shape[0] - 1):
        if begin[home] == begin[home + 1]:
            continue
        here[0] = home // (n_bins[1] * n_bins[2])
        here[1] = home // n_bins[2] % n_bins[1]
        here[2] = home % n_bins[2]
        for o in range(offsets.shape[0]):
            inside = True
            for axis in range(3):
                there[axis] = here[axis] + offsets[o, axis]
                step[axis] = there[axis] // n_bins[axis]
                there[axis] -= step[axis] * n_bins[axis]
                inside = inside and (periodic[axis] or step[axis] == 0)
            if not inside:
                continue
            other = (there[0] * n_bins[1] + there[1]) * n_bins[2] + there[2]
            tx = step[0] * box[0, 0] + step[1] * box[1, 0] + step[2] * box[2, 0]
            ty = step[0] * box[0, 1] + step[1] * box[1, 1] + step[2] * box[2, 1]
            tz = step[0] * box[0, 2] + step[1] * box[1, 2] + step[2] * box[2, 2]
            for a in range(begin[home], begin[home + 1]):
                i = members[a]
                x, y, z = coord[i, 0] - tx, coord[i, 1] - ty, coord[i, 2] - tz
                # the first offset is zero: each pair of one bin once
                for b in range(a + 1 if o == 0 else begin[other], begin[other + 1]):
                    j = members[b]
                    dx, dy, dz = coord[j, 0] - x, coord[j, 1] - y, coord[j, 2] - z
                    square = dx * dx + dy * dy + dz * dz
                    if square >= limit:
                        continue
                    if square < nearest_square:
                        nearest_square = square
                        nearest[0], nearest[1] = i, j
                        nearest[2:] = step
                    if n_pairs == capacity:
                        capacity *= 2
                        first, second = _longer(first, capacity), _longer(second, capacity)
                        apart = _longer_rows(apart, capacity)
                    first[n_pairs], second[n_pairs] = i, j
                    apart[n_pairs, 0], apart[n_pairs, 1], apart[n_pairs, 2] = dx, dy, dz
                    n_pairs += 1
    start, neighbor, vector, reverse = _edges_of_pairs(first[:n_pairs], second[:n_pairs], apart, n)
    return start, neighbor, vector, reverse, nearest[0], nearest[1], nearest_square, nearest[2:]


@compiled
def sum_over_edges(
    start: Integers, neighbor: Indices, vector: Reals, by_vector: Reals, offsets: Integers
) -> tuple[Reals, Reals]:
    """Gradient (n, 3) and virial (B, 3, 3) from derivatives (E, 3) by the vectors of edges.

    vector = x_j - x_i, so the gradient of j gets the derivative and that of i its negative; under a strain e
    of x' = x (1 + e) the energy changes by sum over edges of vector (x) derivative.
    """
    n, n_systems = start.shape[0] - 1, offsets.shape[0] - 1
    gradient = np.zeros((n, 3), dtype=np.float64)
    virial = np.zeros((n_systems, 3, 3), dtype=np.float64)
    for system in range(n_systems):
        for i in range(offsets[system], offsets[system + 1]):
            for e in range(start[i], start[i + 1]):
                j = neighbor[e]
                for c in range(3):
                    gradient[i, c] -= by_vector[e, c]
                    gradient[j, c] += by_vector[e, c]
                    for k in range(3):
                        virial[system, k, c] += vector[e, k] * by_vector[e, c]
    return gradient, virial


@compiled
def _put_pair(
    i: int,
    j: int,
    dx: float,
    dy: float,
    dz: float,
    place: Integers,
    neighbor: Indices,
    vector: Reals,
    reverse: Indices,
) -> None:
    """Write the two edges of a pair to the next free places of their atoms."""
    there = place[i]
    place[i] += 1
    back = place[j]  # for an atom and its own image the next place of the same row
    place[j] += 1
    neighbor[there], neighbor[back] = j, i
    reverse[there], reverse[back] = back, there
    vector[there, 0], vector[there, 1], vector[there, 2] = dx, dy, dz
    vector[back, 0], vector[back, 1], vector[back, 2] = -dx, -dy, -dz


@compiled
def _edges_of_pairs(first: Indices, second: Indices, apart: Reals, n: int) -> tuple[Integers, Indices, Reals, Indices]:
    """Both edges of every pair, in the order of their first atoms."""
    start = np.zeros(n + 1, dtype=np.int64)
    for k in range(first.shape[0]):
        start[first[k] + 1] += 1
        start[second[k] + 1] += 1
    for i in range(n):
        start[i + 1] += start[i]
    neighbor = np.empty(start[n], dtype=np.int32)
    reverse = np.empty(start[n], dtype=np.int32)
    vector = np.empty((start[n], 3), dtype=np.float64)
    place = start[:n].copy()
    for k in range(first.shape[0]):
        _put_pair(first[k], second[k], apart[k, 0], apart[k, 1], apart[k, 2], place, neighbor, vector, reverse)
    return start, neighbor, vector, reverse


@compiled
def _sort_into_bins(bins: Integers, n_bins: Integers) -> tuple[Integers, Integers]:
    """Where the atoms of each bin begin, and the atoms in the order of their bins."""
    n = bins.shape[0]
    begin = np.zeros(n_bins[0] * n_bins[1] * n_bins[2] + 1, dtype=np.int64)
    flat = np.empty(n, dtype=np.int64)
    for i in range(n):
        flat[i] = (bins[i, 0] * n_bins[1] + bins[i, 1]) * n_bins[2] + bins[i, 2]
        begin[flat[i] + 1] += 1
    for k in range(begin.shape[0] - 1):
        begin[k + 1] += begin[k]
    place = begin.copy()
    members = np.empty(n, dtype=np.int64)
    for i in range(n):
        members[place[flat[i]]] = i
        place[flat[i]] += 1
    return begin, members


@compiled
def _half_of_offsets(reach: Integers) -> Integers:
    """Offsets between bins, zero first, of each pair of opposite ones the one that is positive in its first digit."""
    n_all = (2 * reach[0] + 1) * (2 * reach[1] + 1) * (2 * reach[2] + 1)
    offsets = np.empty((n_all // 2 + 1, 3), dtype=np.int64)
    place = 0
    for a in range(reach[0] + 1):
        for b in range(-reach[1] if a > 0 else 0, reach[1] + 1):
            for c in range(-reach[2] if a > 0 or b > 0 else 0, reach[2] + 1):
                offsets[place, 0], offsets[place, 1], offsets[place, 2] = a, b, c
                place += 1
    return offsets


@compiled
def _longer(values: Indices, size: int) -> Indices:
    longer = np.empty(size, dtype=values.dtype)
    longer[: values.shape[0]] = values
    return longer


@compiled
def _longer_rows(values: Reals, size: int) -> Reals:
    longer = np.empty((size, values.shape[1]), dtype=values.dtype)
    longer[: values.shape[0]] = values
    return longer
