"""Perceptrons of a training step: values, their derivatives by the inputs, and the derivatives of both.

With pre-activations a_l = h_{l-1} W_l + b_l, activations h_l = f(a_l), f = GELU, and for the derivative of an energy

    t_l = dE/da_l = s_l f'(a_l),    s_l = dE/dh_l = t_{l+1} W_{l+1}^T,

the derivative along displacements r_0 of the inputs has r_l = v_l f'(a_l), v_l = r_{l-1} W_l, and adds v_l s_l f''(a_l)
to the gradient of a loss by a_l. Rows (atoms) do not depend on one another: each function takes a range of them, and
blocks of rows go through all layers while they are in the cache.

Arrays of layers are flat, (n, size): the layers of a row side by side, each padded to a multiple of 16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aimnet2mult.engine.functions import exponential, gelu
from aimnet2mult.engine.jit import F32, I64, compiled, part
from aimnet2mult.engine.matrix import padded
from aimnet2mult.engine.rows import add
from aimnet2mult.engine.simd import LANES, Emitter, Floats, Int, Lanes, emitted
from aimnet2mult.engine.training_products import multiply_rows

ROWS: Final = 96  # rows of a block

# what is known of each layer: columns of `Layers.table`
DEPTH: Final = 0  # inputs
COLUMNS: Final = 1  # outputs
WIDE: Final = 2  # outputs, padded
DEEP: Final = 3  # inputs, padded
PLACE: Final = 4  # where its activations stand in a row; -1 without activation
WEIGHT: Final = 5  # where its packed weights, bias and packed transposed weights begin
BIAS: Final = 6
BACK: Final = 7


class Layers(NamedTuple):
    """Sizes of a perceptron."""

    table: NDArray[np.int64]  # (layers, 8)
    size: int  # activations of a row, at least 1
    n_weights: int  # numbers of all packed weights
    n_biases: int
    n_back: int  # numbers of all packed transposed weights


def layers_of(shapes: Sequence[tuple[int, int]], activate: bool) -> Layers:
    """Layers of weights with these shapes (inputs, outputs); `activate`: GELU after the last one too."""
    table, size, weights, biases, back = [], 0, 0, 0, 0
    for number, (depth, columns) in enumerate(shapes):
        active = activate or number < len(shapes) - 1
        wide, deep = padded(columns), padded(depth)
        table.append([depth, columns, wide, deep, size if active else -1, weights, biases, back])
        size += wide if active else 0
        weights, biases, back = weights + depth * wide, biases + wide, back + columns * deep
    return Layers(np.array(table, dtype=np.int64), max(size, 1), weights, biases, back)


def _gelu(x: Lanes) -> tuple[Lanes, Lanes, Lanes]:
    """GELU, its derivative and its second derivative phi(x) (2 - x^2), phi the density of the normal distribution."""
    value, slope = gelu(x)
    square = x * x
    density = exponential(square * -0.5) * (1.0 / math.sqrt(2.0 * math.pi))
    return value, slope, density * (x.like(2.0) - square)


@emitted
def _activate(
    e: Emitter, n_vectors: Int, a: Floats, start: Int, value: Floats, slope: Floats, curvature: Floats, at: Int
) -> None:
    source, targets = a.at(start), [array.at(at) for array in (value, slope, curvature)]

    def step(i: Int, _: list[Lanes]) -> list[Lanes]:
        for target, lanes in zip(targets, _gelu(source.lanes(i * LANES)), strict=True):
            target.store(i * LANES, lanes)
        return []

    e.repeat(n_vectors, [], step)


@emitted
def _times_both(
    e: Emitter, n_vectors: Int, s: Floats, start: Int, slope: Floats, curvature: Floats, at: Int, t: Floats, w: Floats
) -> None:
    """t = s slope and w = s curvature."""
    source, first, second, one, other = s.at(start), slope.at(at), curvature.at(at), t.at(at), w.at(at)

    def step(i: Int, _: list[Lanes]) -> list[Lanes]:
        lanes = source.lanes(i * LANES)
        one.store(i * LANES, lanes * first.lanes(i * LANES))
        other.store(i * LANES, lanes * second.lanes(i * LANES))
        return []

    e.repeat(n_vectors, [], step)


@emitted
def _times(
    e: Emitter, n_vectors: Int, s: Floats, start: Int, slope: Floats, extra: Floats, has_extra: Int, at: Int, t: Floats
) -> None:
    """t = s slope (+ extra)."""
    source, factor, more, target = s.at(start), slope.at(at), extra.at(at), t.at(at)

    def write(adding: int) -> None:
        def step(i: Int, _: list[Lanes]) -> list[Lanes]:
            lanes, slopes = source.lanes(i * LANES), factor.lanes(i * LANES)
            target.store(i * LANES, lanes.times_plus(slopes, more.lanes(i * LANES)) if adding else lanes * slopes)
            return []

        e.repeat(n_vectors, [], step)

    e.choose(has_extra, range(2), write)


@part
def _scratch(layers: I64, n_rows: int) -> F32:
    widest = 0
    for number in range(layers.shape[0]):
        widest = max(widest, layers[number, WIDE], layers[number, DEEP])
    return np.zeros(n_rows * widest, dtype=np.float32)


@compiled
def run_layers(
    first: int, last: int, layers: I64, x: F32, x_row: int, weight: F32, bias: F32, kinds: I64, table: F32,
    has_table: bool, value: F32, slope: F32, curvature: F32, size: int, y: F32,
) -> None:  # fmt: skip
    """Outputs of rows `first` to `last` - 1, and GELU of all their pre-activations with two derivatives.

    Parameters
    ----------
    first, last
        Range of rows.
    layers, size
        Table and size of `Layers`.
    x, x_row
        Inputs, whose rows are x_row apart.
    weight, bias
        Packed weights and padded biases of all layers.
    kinds, table, has_table
        If has_table: row kinds[i] of `table` (kinds, outputs of the first layer, padded) is added for row i.
    value, slope, curvature
        (n, size).
    y
        (n, outputs).
    """
    n_layers, scratch = layers.shape[0], _scratch(layers, ROWS)
    for row in range(first, last, ROWS):
        n = min(ROWS, last - row)
        for number in range(n_layers):
            depth, columns, wide, place = (
                layers[number, DEPTH], layers[number, COLUMNS], layers[number, WIDE], layers[number, PLACE],
            )  # fmt: skip
            source, start, apart = (x, row * x_row, x_row)
            if number > 0:
                source, start, apart = value, row * size + layers[number - 1, PLACE], size
            multiply_rows(
                n, depth, wide, source, start, apart, weight, layers[number, WEIGHT], bias, layers[number, BIAS],
                scratch, 0, wide,
            )  # fmt: skip
            if number == 0 and has_table:
                for i in range(n):
                    add(wide // LANES, table, kinds[row + i] * wide, scratch, i * wide)
            if place >= 0:
                for i in range(n):
                    _activate(wide // LANES, scratch, i * wide, value, slope, curvature, (row + i) * size + place)
            if number == n_layers - 1:
                _keep_outputs(row, n, columns, wide, place, value, size, scratch, y)


@part
def _keep_outputs(
    row: int, n: int, columns: int, wide: int, place: int, activations: F32, size: int, scratch: F32, y: F32
) -> None:
    for i in range(n):
        for c in range(columns):
            active = activations[(row + i) * size + place + c] if place >= 0 else scratch[i * wide + c]
            y[(row + i) * columns + c] = active


@part
def _spread_outputs(row: int, n: int, columns: int, wide: int, g: F32, scratch: F32) -> None:
    for i in range(n):
        for c in range(columns):
            scratch[i * wide + c] = g[(row + i) * columns + c]


@part
def _keep_inputs(row: int, n: int, depth: int, deep: int, scratch: F32, gx: F32, gx_row: int) -> None:
    for i in range(n):
        for c in range(depth):
            gx[(row + i) * gx_row + c] = scratch[i * deep + c]


@compiled
def differentiate_layers(
    first: int, last: int, layers: I64, g: F32, back: F32, slope: F32, curvature: F32, size: int, t: F32, w: F32,
    gx: F32, gx_row: int,
) -> None:  # fmt: skip
    """Derivatives by the inputs, and what derivatives of those need: t_l and w_l = s_l f''(a_l).

    `g` (n, outputs) are the derivatives by the outputs, `back` the packed transposed weights; others as above.
    """
    n_layers, scratch, zeros = layers.shape[0], _scratch(layers, ROWS), _scratch(layers, 1)
    for row in range(first, last, ROWS):
        n = min(ROWS, last - row)
        for number in range(n_layers - 1, -1, -1):
            columns, wide, deep, place = (
                layers[number, COLUMNS], layers[number, WIDE], layers[number, DEEP], layers[number, PLACE],
            )  # fmt: skip
            if number == n_layers - 1 and place >= 0:
                _spread_outputs(row, n, columns, wide, g, scratch)
                for i in range(n):
                    _times_both(wide // LANES, scratch, i * wide, slope, curvature, (row + i) * size + place, t, w)
            source, start, apart = (t, row * size + place, size) if place >= 0 else (g, row * columns, columns)
            multiply_rows(
                n, columns, deep, source, start, apart, back, layers[number, BACK], zeros, 0, scratch, 0, deep
            )
            if number == 0:
                _keep_inputs(row, n, layers[0, DEPTH], deep, scratch, gx, gx_row)
                continue
            for i in range(n):
                at = (row + i) * size + layers[number - 1, PLACE]
                _times_both(deep // LANES, scratch, i * deep, slope, curvature, at, t, w)


@compiled
def reverse_layers(
    first: int, last: int, layers: I64, g: F32, back: F32, slope: F32, extra: F32, has_extra: int, size: int, t: F32,
    with_inputs: bool, gx: F32, gx_row: int,
) -> None:  # fmt: skip
    """Gradient of a loss by the pre-activations, t (n, size), and if with_inputs by the inputs.

    `g` (n, outputs) is the gradient by the outputs; if has_extra, `extra` (n, size) is added to t.
    """
    n_layers, scratch, zeros = layers.shape[0], _scratch(layers, ROWS), _scratch(layers, 1)
    for row in range(first, last, ROWS):
        n = min(ROWS, last - row)
        for number in range(n_layers - 1, -1, -1):
            columns, wide, deep, place = (
                layers[number, COLUMNS], layers[number, WIDE], layers[number, DEEP], layers[number, PLACE],
            )  # fmt: skip
            if number == n_layers - 1 and place >= 0:
                _spread_outputs(row, n, columns, wide, g, scratch)
                for i in range(n):
                    at = (row + i) * size + place
                    _times(wide // LANES, scratch, i * wide, slope, extra, has_extra, at, t)
            if number == 0 and not with_inputs:
                continue
            source, start, apart = (t, row * size + place, size) if place >= 0 else (g, row * columns, columns)
            multiply_rows(
                n, columns, deep, source, start, apart, back, layers[number, BACK], zeros, 0, scratch, 0, deep
            )
            if number == 0:
                _keep_inputs(row, n, layers[0, DEPTH], deep, scratch, gx, gx_row)
                continue
            for i in range(n):
                at = (row + i) * size + layers[number - 1, PLACE]
                _times(deep // LANES, scratch, i * deep, slope, extra, has_extra, at, t)


@compiled
def displace_layers(
    first: int, last: int, layers: I64, u: F32, u_row: int, weight: F32, slope: F32, w: F32, size: int, r: F32, p: F32,
    gy: F32,
) -> None:  # fmt: skip
    """Changes r_l of activations and gy of outputs along displacements `u` of the inputs; p_l = v_l w_l."""
    n_layers, scratch, zeros = layers.shape[0], _scratch(layers, ROWS), _scratch(layers, 1)
    for row in range(first, last, ROWS):
        n = min(ROWS, last - row)
        for number in range(n_layers):
            depth, columns, wide, place = (
                layers[number, DEPTH], layers[number, COLUMNS], layers[number, WIDE], layers[number, PLACE],
            )  # fmt: skip
            source, start, apart = (u, row * u_row, u_row)
            if number > 0:
                source, start, apart = r, row * size + layers[number - 1, PLACE], size
            multiply_rows(
                n, depth, wide, source, start, apart, weight, layers[number, WEIGHT], zeros, 0, scratch, 0, wide
            )
            if place >= 0:
                for i in range(n):
                    _times_both(wide // LANES, scratch, i * wide, slope, w, (row + i) * size + place, r, p)
            if number == n_layers - 1:
                _keep_outputs(row, n, columns, wide, place, r, size, scratch, gy)


@compiled
def sum_by_kind(n: int, kinds: I64, t: F32, start: int, row: int, width: int, out: F32, columns: int) -> None:
    """Add `width` numbers of rows of t, from `start` on and `row` apart, to those rows of `out` (kinds, columns)."""
    for i in range(n):
        for c in range(width):
            out[kinds[i] * columns + c] += t[start + i * row + c]
