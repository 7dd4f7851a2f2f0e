"""Small calculations that between them call every compiled function of training, with the types of real use.

What they are called with in a training step stands in `training/fast_environment.py` and `training/fast_perceptron.py`.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from aimnet2mult.engine.basis import EDGE_SIZE
from aimnet2mult.engine.jit import F32
from aimnet2mult.engine.simd import LANES
from aimnet2mult.engine.training_environment import (
    BatchEdges,
    Shape,
    collect_values,
    describe_atoms,
    describe_basis,
    differentiate_atoms,
    displace_atoms,
    fill_values,
    find_batch_edges,
    gradient_of_coord,
    reverse_atoms,
)
from aimnet2mult.engine.training_perceptron import (
    differentiate_layers,
    displace_layers,
    layers_of,
    reverse_layers,
    run_layers,
    sum_by_kind,
)
from aimnet2mult.engine.training_products import pack_columns, pack_rows, sum_outer_products

_ATOMS: Final = 2
# one feature and one charge of each atom, one Gaussian, one combination
_SHAPE: Final = Shape(
    n_features=1, n_charges=1, each=1, n_shifts=1, width=LANES, n_combinations=1, length_width=LANES, own=2, row=6
)
_CHANNELS: Final = 2


def environments() -> None:
    """Environments of two atoms, and their derivatives."""
    edges, n = _edges(), _ATOMS
    features, charges, rows, one_value = _zeros(n), _zeros(n), _zeros(n * _SHAPE.row), n * _CHANNELS * LANES
    values, d_values = _zeros(2 * one_value), _zeros(one_value)
    mix = _zeros(_CHANNELS * LANES)
    combinations = _zeros(3 * one_value)
    fill_values(n, _SHAPE, features, charges, values, 0)
    describe_atoms(0, n, _SHAPE, edges, values, features, charges, mix, combinations, rows)
    by_vector, by_coord = np.zeros(3 * len(edges.neighbor)), np.zeros(3 * n)
    inputs = 0, n, _SHAPE, edges, values, rows, combinations
    differentiate_atoms(*inputs, mix, True, d_values, features, charges, by_vector)
    gradient_of_coord(0, n, edges, by_vector, by_coord)
    reverse_atoms(*inputs, combinations, 0, mix, d_values, features, charges)
    moved, extra, changes = _zeros(3 * n), _zeros(3 * one_value), _zeros(n * _SHAPE.row)
    displacements = moved, values, features, charges
    displace_atoms(0, n, n, _SHAPE, edges, *displacements, rows, combinations, mix, mix, changes, extra, d_values)
    collect_values(n, _SHAPE, d_values, features, charges)


def _edges() -> BatchEdges:
    coord = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=np.float32)
    start, neighbor, vector = find_batch_edges(coord, np.array([0, _ATOMS]), 4.0)
    centres, exponent = np.ones(LANES, dtype=np.float32), np.ones(1, dtype=np.float32)
    edge, gaussians = _zeros(len(neighbor) * EDGE_SIZE), _zeros(len(neighbor) * LANES)
    describe_basis(vector, 4.0, centres, exponent, 1, edge, gaussians)
    return BatchEdges(start, neighbor, edge, gaussians, centres, exponent)


def perceptrons() -> None:
    """A perceptron of two layers for two rows, and its derivatives."""
    n, layers = _ATOMS, layers_of([(1, 1), (1, 1)], False)
    x, y, kinds, table = _zeros(n), _zeros(n), np.zeros(n, dtype=np.int64), _zeros(LANES)
    weight, back, bias = _zeros(layers.n_weights), _zeros(layers.n_back), _zeros(layers.n_biases)
    value, slope, curvature, t, w = (_zeros(n * layers.size) for _ in range(5))
    first = 0, n, layers.table
    run_layers(*first, x, 1, weight, bias, kinds, table, True, value, slope, curvature, layers.size, y)
    differentiate_layers(*first, y, back, slope, curvature, layers.size, t, w, x, 1)
    displace_layers(*first, x, 1, weight, slope, w, layers.size, t, value, y)
    reverse_layers(*first, y, back, slope, value, 1, layers.size, t, True, x, 1)
    sum_by_kind(n, kinds, t, 0, layers.size, LANES, table, LANES)


def products() -> None:
    """Packing of a weight, and the gradient of one."""
    matrix, packed = _zeros(1), _zeros(LANES)
    pack_rows(1, 1, matrix, 1, packed)
    pack_columns(1, 1, matrix, 1, packed)
    sum_outer_products(0, 1, 1, 1, matrix, 0, 1, matrix, 0, 1, _zeros(1), False)


def _zeros(size: int) -> F32:
    return np.zeros(size, dtype=np.float32)
