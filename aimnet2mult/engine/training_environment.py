"""Environments of atoms in a training step: values, first derivatives, and the derivatives of both.

For one atom: sums S = sum_e x_j(e) W_e of the values x of its neighbours times the basis W of its edges, combinations
T = mix V of the vector part V of S, and lengths |T|^2 (`convolution`, `lengths`). All of it is bilinear but for the
lengths, so the second derivatives are made of the same sums, with displaced values or a displaced basis.

Each function takes a range of atoms which holds whole molecules, since an atom adds to what its neighbours get.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from aimnet2mult.engine.basis import add_edge_gradient, describe_edges, expand_basis, fill_gaussians
from aimnet2mult.engine.convolution import differentiate_basis, spread_to_neighbors, sum_neighbors
from aimnet2mult.engine.jit import F32, F64, I32, I64, compiled, part
from aimnet2mult.engine.lengths import combine
from aimnet2mult.engine.simd import LANES
from aimnet2mult.engine.training_emitters import (
    add_outer_products,
    combine_vectors,
    differentiate_lengths,
    displace_lengths,
    expand_both,
    scalars_from_sums,
    sums_from_scalars,
)


class Shape(NamedTuple):
    """Sizes of environments."""

    n_features: int
    n_charges: int
    each: int  # numbers per feature: n_shifts, or 1 if features do not depend on the Gaussian
    n_shifts: int
    width: int  # n_shifts, padded
    n_combinations: int
    length_width: int  # n_combinations, padded
    own: int  # numbers of the atom's own features and charges at the beginning of a row; 0: left out
    row: int  # numbers of a row: own, scalars, lengths


class BatchEdges(NamedTuple):
    """Edges of a batch and what the basis is made of."""

    start: I64  # (n + 1,) where the edges of each atom begin, and the end
    neighbor: I32  # (E,)
    edge: F32  # see `basis.describe_edges`
    gaussians: F32  # see `basis.fill_gaussians`
    centres: F32  # (width,) Å
    exponent: F32  # (1,) 1/Å^2


@compiled
def find_batch_edges(coord: F32, offsets: I64, cutoff: float) -> tuple[I64, I32, F64]:
    """start, neighbor (E,) and vector (E, 3) of all ordered pairs of each molecule that are nearer than `cutoff`.

    `coord` is (n, 3) Å; the atoms of molecule m stand from offsets[m] to offsets[m + 1] - 1.
    """
    limit = cutoff * cutoff
    start = np.zeros(coord.shape[0] + 1, dtype=np.int64)
    most = 0
    for m in range(offsets.shape[0] - 1):
        n = offsets[m + 1] - offsets[m]
        most += n * (n - 1)
    neighbor = np.empty(most, dtype=np.int32)
    vector = np.empty((most, 3), dtype=np.float64)
    place = 0
    for m in range(offsets.shape[0] - 1):
        for i in range(offsets[m], offsets[m + 1]):
            for j in range(offsets[m], offsets[m + 1]):
                dx = np.float64(coord[j, 0]) - np.float64(coord[i, 0])
                dy = np.float64(coord[j, 1]) - np.float64(coord[i, 1])
                dz = np.float64(coord[j, 2]) - np.float64(coord[i, 2])
                # written so that a distance that is not a number stays, and shows in the loss
                if i != j and not dx * dx + dy * dy + dz * dz >= limit:
                    neighbor[place] = j
                    vector[place, 0], vector[place, 1], vector[place, 2] = dx, dy, dz
                    place += 1
            start[i + 1] = place
    return start, neighbor[:place].copy(), vector[:place].copy()


@compiled
def describe_basis(
    vector: F64, cutoff: float, centres: F32, exponent: F32, n_blocks: int, edge: F32, gaussians: F32
) -> None:
    """Fill `edge` and `gaussians` of `BatchEdges`."""
    describe_edges(vector, 0, len(vector), cutoff, edge)
    fill_gaussians(edge, 0, len(vector), centres, exponent, n_blocks, gaussians)


@compiled
def fill_values(n: int, shape: Shape, features: F32, charges: F32, values: F32, at: int) -> None:
    """Values (n, channels, width) of atoms from `at` on: features, and charges that are the same for all Gaussians."""
    channels = shape.n_features + shape.n_charges
    for i in range(n):
        place = at + i * channels * shape.width
        for c in range(shape.n_features):
            source = (i * shape.n_features + c) * shape.each
            for g in range(shape.n_shifts):
                values[place + g] = features[source + g] if shape.each > 1 else features[source]
            for g in range(shape.n_shifts, shape.width):
                values[place + g] = 0.0
            place += shape.width
        for c in range(shape.n_charges):
            for g in range(shape.width):
                values[place + g] = charges[i * shape.n_charges + c]
            place += shape.width


@compiled
def collect_values(n: int, shape: Shape, d_values: F32, d_features: F32, d_charges: F32) -> None:
    """Add to d_features and d_charges what belongs to them of `d_values`: the transpose of `fill_values`."""
    channels = shape.n_features + shape.n_charges
    for i in range(n):
        place = i * channels * shape.width
        for c in range(shape.n_features):
            target = (i * shape.n_features + c) * shape.each
            for g in range(shape.n_shifts):
                d_features[target + (g if shape.each > 1 else 0)] += d_values[place + g]
            place += shape.width
        for c in range(shape.n_charges):
            total = np.float32(0.0)
            for g in range(shape.n_shifts):
                total += d_values[place + g]
            d_charges[i * shape.n_charges + c] += total
            place += shape.width


@part
def _most_edges(first: int, last: int, start: I64) -> int:
    most = 0
    for i in range(first, last):
        most = max(most, start[i + 1] - start[i])
    return most


@part
def _floats(size: int) -> F32:
    return np.zeros(size, dtype=np.float32)


@part
def _own_to_row(i: int, shape: Shape, features: F32, charges: F32, row: F32) -> None:
    n = shape.n_features * shape.each
    for k in range(n if shape.own > 0 else 0):
        row[k] = features[i * n + k]
    for k in range(shape.n_charges if shape.own > 0 else 0):
        row[n + k] = charges[i * shape.n_charges + k]


@part
def _own_from_row(i: int, shape: Shape, row: F32, d_features: F32, d_charges: F32) -> None:
    n = shape.n_features * shape.each
    for k in range(n if shape.own > 0 else 0):
        d_features[i * n + k] += row[k]
    for k in range(shape.n_charges if shape.own > 0 else 0):
        d_charges[i * shape.n_charges + k] += row[n + k]


@compiled
def describe_atoms(
    first: int, last: int, shape: Shape, edges: BatchEdges, values: F32, features: F32, charges: F32, mix: F32,
    combinations: F32, rows: F32,
) -> None:  # fmt: skip
    """Rows of atoms `first` to `last` - 1: own features and charges, scalars, lengths.

    Parameters
    ----------
    first, last, shape, edges
        Range of atoms, `Shape`, `BatchEdges`.
    values, features, charges
        Of all atoms.
    mix
        (channels, n_shifts, length_width).
    combinations, rows
        (n, channels, 3, length_width) and (n, row): filled.
    """
    channels = shape.n_features + shape.n_charges
    width, size = shape.width, shape.length_width
    row, sums = _floats(shape.row + LANES), _floats(channels * 4 * width)
    basis = _floats(_most_edges(first, last, edges.start) * 4 * width)
    lengths = shape.own + channels * shape.n_shifts
    for i in range(first, last):
        begin = edges.start[i]
        n_edges = edges.start[i + 1] - begin
        expand_basis(edges.edge, edges.gaussians, begin, n_edges, width // LANES, basis)
        sum_neighbors(channels, width, edges.neighbor, begin, n_edges, values, 0, channels * width, basis, sums)
        combine(
            channels, shape.n_shifts, width, shape.n_combinations, size // LANES, sums, mix, combinations,
            i * channels * 3 * size, row, shape.own, lengths,
        )  # fmt: skip
        _own_to_row(i, shape, features, charges, row)
        rows[i * shape.row : (i + 1) * shape.row] = row[: shape.row]


@part
def _by_sums(
    i: int, shape: Shape, row: F32, combinations: F32, extra: F32, has_extra: int, mix_back: F32,
    by_combinations: F32, sums: F32,
) -> None:  # fmt: skip
    """Derivatives by combinations and sums of atom i from those by its row."""
    channels = shape.n_features + shape.n_charges
    width, size = shape.width, shape.length_width
    place = i * channels * 3 * size
    differentiate_lengths(
        channels, shape.n_combinations, size // LANES, row, shape.own + channels * shape.n_shifts, combinations, place,
        extra, place if has_extra else 0, has_extra, by_combinations,
    )  # fmt: skip
    sums_from_scalars(channels, shape.n_shifts, width // LANES, row, shape.own, sums)
    combine_vectors(
        channels, shape.n_combinations, by_combinations, 0, 3 * size, size, mix_back, width, sums, width, 4 * width
    )


@compiled
def differentiate_atoms(
    first: int, last: int, shape: Shape, edges: BatchEdges, values: F32, d_rows: F32, combinations: F32, mix_back: F32,
    with_values: bool, d_values: F32, d_features: F32, d_charges: F32, by_vector: F64,
) -> None:  # fmt: skip
    """Add the derivatives by values, own features and charges (if with_values) and by the vectors of edges (E * 3,).

    `d_rows` (n, row) are the derivatives by the rows, `mix_back` is mix transposed, (channels, n_combinations, width).
    """
    channels = shape.n_features + shape.n_charges
    width = shape.width
    row, sums = _floats(shape.row + LANES), _floats(channels * 4 * width)
    by_combinations = _floats(channels * 3 * shape.length_width)
    basis = _floats(_most_edges(first, last, edges.start) * 4 * width)
    for i in range(first, last):
        begin = edges.start[i]
        n_edges = edges.start[i + 1] - begin
        row[: shape.row] = d_rows[i * shape.row : (i + 1) * shape.row]
        _by_sums(i, shape, row, combinations, combinations, 0, mix_back, by_combinations, sums)
        differentiate_basis(channels, width, edges.neighbor, begin, n_edges, values, 0, channels * width, sums, basis)
        add_edge_gradient(
            edges.edge, edges.gaussians, begin, n_edges, edges.centres, edges.exponent, width // LANES, basis, by_vector
        )
        if with_values:
            expand_basis(edges.edge, edges.gaussians, begin, n_edges, width // LANES, basis)
            spread_to_neighbors(
                channels, width, edges.neighbor, begin, n_edges, sums, basis, d_values, channels * width
            )
            _own_from_row(i, shape, row, d_features, d_charges)


@compiled
def reverse_atoms(
    first: int, last: int, shape: Shape, edges: BatchEdges, values: F32, d_rows: F32, combinations: F32, extra: F32,
    has_extra: int, mix_back: F32, d_values: F32, d_features: F32, d_charges: F32,
) -> F32:  # fmt: skip
    """Add the gradient of a loss by values, own features and charges; returns that by mix, (channels, n_shifts, size).

    If has_extra, `extra` (n, channels, 3, length_width) is added to the gradient by the combinations.
    """
    channels = shape.n_features + shape.n_charges
    width, size = shape.width, shape.length_width
    row, sums, by_sums = _floats(shape.row + LANES), _floats(channels * 4 * width), _floats(channels * 4 * width)
    by_combinations, d_mix = _floats(channels * 3 * size), _floats(channels * shape.n_shifts * size)
    basis = _floats(_most_edges(first, last, edges.start) * 4 * width)
    for i in range(first, last):
        begin = edges.start[i]
        n_edges = edges.start[i + 1] - begin
        row[: shape.row] = d_rows[i * shape.row : (i + 1) * shape.row]
        _by_sums(i, shape, row, combinations, extra, has_extra, mix_back, by_combinations, by_sums)
        expand_basis(edges.edge, edges.gaussians, begin, n_edges, width // LANES, basis)
        sum_neighbors(channels, width, edges.neighbor, begin, n_edges, values, 0, channels * width, basis, sums)
        add_outer_products(channels, shape.n_shifts, width, size // LANES, sums, by_combinations, d_mix)
        spread_to_neighbors(channels, width, edges.neighbor, begin, n_edges, by_sums, basis, d_values, channels * width)
        _own_from_row(i, shape, row, d_features, d_charges)
    return d_mix


@compiled
def displace_atoms(
    first: int, last: int, n: int, shape: Shape, edges: BatchEdges, moved: F32, values: F32, features: F32,
    charges: F32, d_rows: F32, combinations: F32, mix: F32, mix_back: F32, rows: F32, extra: F32, d_values: F32,
) -> F32:  # fmt: skip
    """Change of rows along displacements, and the gradient of the derivative along them; returns the one by mix.

    Parameters
    ----------
    moved
        (n, 3): displacements of the atoms.
    values
        (2 n, channels, width): of the atoms, then the displacements of the values.
    features, charges
        Displacements of the atoms' own.
    d_rows
        (n, row): derivatives of the energy by the rows.
    rows, extra
        Changes of rows; derivatives by the combinations (n, channels, 3, length_width). Filled.
    d_values
        The gradient by values is added to it.
    """
    channels = shape.n_features + shape.n_charges
    width, size = shape.width, shape.length_width
    row, change = _floats(shape.row + LANES), _floats(shape.row + LANES)
    sums, by_combinations = _floats(channels * 4 * width), _floats(channels * 3 * size)
    changes, d_mix = _floats(channels * 3 * size), _floats(channels * shape.n_shifts * size)
    most = _most_edges(first, last, edges.start)
    basis, vectors, both = _floats(2 * most * 4 * width), _floats(3 * most), np.zeros(2 * most, dtype=np.int32)
    lengths = shape.own + channels * shape.n_shifts
    for i in range(first, last):
        begin = edges.start[i]
        n_edges = edges.start[i + 1] - begin
        for e in range(n_edges):
            j = edges.neighbor[begin + e]
            # the displaced basis goes with the values, the basis with their displacements
            both[e], both[n_edges + e] = j, j + n
            for k in range(3):
                vectors[3 * e + k] = moved[3 * j + k] - moved[3 * i + k]
        expand_both(
            edges.edge, edges.gaussians, begin, n_edges, edges.centres, edges.exponent, width // LANES, vectors, basis
        )
        row[: shape.row] = d_rows[i * shape.row : (i + 1) * shape.row]
        _by_sums(i, shape, row, combinations, combinations, 0, mix_back, by_combinations, sums)
        spread_to_neighbors(channels, width, both, 0, n_edges, sums, basis, d_values, channels * width)
        sum_neighbors(channels, width, both, 0, 2 * n_edges, values, 0, channels * width, basis, sums)
        add_outer_products(channels, shape.n_shifts, width, size // LANES, sums, by_combinations, d_mix)
        combine_vectors(channels, shape.n_shifts, sums, width, 4 * width, width, mix, size, changes, 0, 3 * size)
        scalars_from_sums(channels, shape.n_shifts, width // LANES, change, shape.own, sums)
        displace_lengths(
            channels, shape.n_combinations, size // LANES, row, lengths, combinations, i * channels * 3 * size,
            changes, change, extra,
        )  # fmt: skip
        _own_to_row(i, shape, features, charges, change)
        rows[i * shape.row : (i + 1) * shape.row] = change[: shape.row]
    return d_mix


@compiled
def gradient_of_coord(first: int, last: int, edges: BatchEdges, by_vector: F64, out: F64) -> None:
    """Add derivatives by the vectors of edges to those by positions, `out` (n * 3,)."""
    for i in range(first, last):
        for e in range(edges.start[i], edges.start[i + 1]):
            j = edges.neighbor[e]
            for k in range(3):
                out[3 * j + k] += by_vector[3 * e + k]
                out[3 * i + k] -= by_vector[3 * e + k]
