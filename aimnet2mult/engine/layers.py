"""Perceptrons on a block of rows, forwards and backwards."""

from __future__ import annotations

from aimnet2mult.engine.functions import gelu_in_place, multiply_in_place
from aimnet2mult.engine.jit import F32, part
from aimnet2mult.engine.matrix import multiply
from aimnet2mult.engine.simd import LANES
from aimnet2mult.engine.weights import (
    BACK_COLUMNS,
    BACK_DEPTH,
    BACK_WEIGHT,
    BIAS,
    COLUMNS,
    DEPTH,
    SLOPES,
    WEIGHT,
    Perceptrons,
)


@part
def run_perceptron(
    mlp: Perceptrons, number: int, n_atoms: int, first_row: int, n_rows: int, stride: int, rows: F32, source: int,
    spare: int, target: F32, start: int, slopes: F32,
) -> None:  # fmt: skip
    """Outputs of perceptron `number` for `n_rows` rows, and the derivatives of its activations.

    Parameters
    ----------
    mlp, number
        `Perceptrons` and which of them.
    n_atoms, first_row, n_rows
        Rows of all atoms; those in question.
    stride
        Distance of rows in `rows` and `target`.
    rows, source, spare
        Inputs begin at `source`; room for as many numbers at `spare`. Both are overwritten.
    target, start
        Where the outputs of the rows go.
    slopes
        Derivatives of the activations of all atoms, layer by layer.
    """
    last = mlp.starts[number + 1] - 1
    for index in range(mlp.starts[number], last + 1):
        columns = mlp.layers[index, COLUMNS]
        out, begin = (target, start) if index == last else (rows, spare)
        multiply(
            n_rows, mlp.layers[index, DEPTH], columns, rows, source, mlp.weight, mlp.layers[index, WEIGHT],
            mlp.bias, mlp.layers[index, BIAS], out, begin, stride,
        )  # fmt: skip
        if mlp.layers[index, SLOPES] >= 0:
            slope = mlp.layers[index, SLOPES] * n_atoms + first_row * columns
            for row in range(n_rows):
                gelu_in_place(out, begin + row * stride, slopes, slope + row * columns, columns // LANES)
        source, spare = spare, source


@part
def differentiate_perceptron(
    mlp: Perceptrons, number: int, n_atoms: int, first_row: int, n_rows: int, stride: int, rows: F32, source: int,
    spare: int, target: F32, start: int, slopes: F32,
) -> None:  # fmt: skip
    """Derivatives by the inputs of perceptron `number` from those by its outputs at `source` in `rows`.

    Parameters are those of `run_perceptron`.
    """
    first = mlp.starts[number]
    for index in range(mlp.starts[number + 1] - 1, first - 1, -1):
        columns = mlp.layers[index, COLUMNS]
        if mlp.layers[index, SLOPES] >= 0:
            slope = mlp.layers[index, SLOPES] * n_atoms + first_row * columns
            for row in range(n_rows):
                multiply_in_place(rows, source + row * stride, slopes, slope + row * columns, columns // LANES)
        out, begin = (target, start) if index == first else (rows, spare)
        multiply(
            n_rows, mlp.layers[index, BACK_DEPTH], mlp.layers[index, BACK_COLUMNS], rows, source, mlp.back_weight,
            mlp.layers[index, BACK_WEIGHT], mlp.bias, mlp.no_bias, out, begin, stride,
        )  # fmt: skip
        source, spare = spare, source
