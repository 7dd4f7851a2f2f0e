"""Products of a few rows with a matrix that is packed once for many products."""

from __future__ import annotations

from itertools import product
from typing import Final

import numpy as np
from llvmlite import binding
from numba.core import config

from aimnet2mult.engine.jit import F32, part
from aimnet2mult.engine.simd import LANES, Emitter, Floats, Int, Lanes, emitted


def _has_wide_registers() -> bool:
    """Whether code is generated for 32 registers of 16 floats."""
    if (features := config.CPU_FEATURES) is not None:  # type: ignore[attr-defined]
        return "+avx512f" in features
    return bool(binding.get_host_cpu_features().get("avx512f", False))


# rows and vectors of 16 columns whose sums are held in registers together: 24 of 32 registers with AVX-512, 12 of 16
# with AVX2, 24 of 32 with NEON
TILE_ROWS: Final = 6
TILE_VECTORS: Final = 4 if _has_wide_registers() else 1
TILE_COLUMNS: Final = TILE_VECTORS * LANES
# sums of so many products are added up: rounding errors of long sums stay those of short ones
DEPTH_BLOCK: Final = 128


def padded(n: int) -> int:
    """Next multiple of 16."""
    return -(-n // LANES) * LANES


def pack(matrix: F32) -> F32:
    """Order the numbers of a matrix (depth, columns) as `multiply` reads them: (depth * padded(columns),).

    Panels of `TILE_COLUMNS` columns (the last may have fewer) lie one after another, each row by row; columns up to
    the next multiple of 16 are zero.
    """
    depth, columns = matrix.shape
    wide = np.zeros((depth, padded(columns)), dtype=np.float32)
    wide[:, :columns] = matrix
    panels = [wide[:, first : first + TILE_COLUMNS].reshape(-1) for first in range(0, wide.shape[1], TILE_COLUMNS)]
    return np.concatenate(panels) if panels else np.zeros(0, dtype=np.float32)


def _tile(
    e: Emitter, shape: tuple[int, int], a: Floats, b: Floats, summands: Floats, summand_stride: Int, c: Floats,
    stride: Int, depth: Int,
) -> None:  # fmt: skip
    """Write the code of c = summands + a b for `shape` = (rows, vectors of 16 columns)."""
    rows, vectors = shape
    first = [a.at(stride * i) for i in range(rows)]

    def step(k: Int, sums: list[Lanes]) -> list[Lanes]:
        right = [b.lanes(k * (LANES * vectors) + LANES * j) for j in range(vectors)]
        left = [row.everywhere(k) for row in first]
        return [left[i].times_plus(right[j], sums[i * vectors + j]) for i, j in product(range(rows), range(vectors))]

    sums = e.repeat(depth, [e.lanes(0.0)] * (rows * vectors), step)
    for (i, j), total in zip(product(range(rows), range(vectors)), sums, strict=True):
        c.store(stride * i + LANES * j, total + summands.lanes(summand_stride * i + LANES * j))


@emitted
def _multiply_tile(
    e: Emitter, rows: Int, vectors: Int, a: Floats, a_start: Int, b: Floats, b_start: Int, summands: Floats,
    summand_start: Int, summand_stride: Int, c: Floats, c_start: Int, stride: Int, depth: Int,
) -> None:  # fmt: skip
    """c = summands + a b for one tile: `rows` up to `TILE_ROWS` and `vectors` of 16 columns up to `TILE_VECTORS`."""
    parts = (a.at(a_start), b.at(b_start), summands.at(summand_start), summand_stride, c.at(c_start), stride, depth)

    def shape(number: int) -> None:
        _tile(e, (number // TILE_VECTORS + 1, number % TILE_VECTORS + 1), *parts)

    e.choose(rows * TILE_VECTORS + vectors + (-TILE_VECTORS - 1), range(TILE_ROWS * TILE_VECTORS), shape)


@part
def multiply(
    n_rows: int, depth: int, columns: int, a: F32, a_start: int, b: F32, b_start: int, bias: F32, bias_start: int,
    c: F32, c_start: int, stride: int,
) -> None:  # fmt: skip
    """Rows of c = bias + a b for a packed matrix b.

    Parameters
    ----------
    n_rows, depth, columns
        Sizes: a is (n_rows, depth), b (depth, columns), `columns` a multiple of 16.
    a, c, stride
        Flat arrays with rows from a_start (c_start) on that are `stride` apart.
    b, bias
        Flat arrays with the packed matrix from b_start and (columns,) summands from bias_start on.
    """
    n_blocks = (n_rows + TILE_ROWS - 1) // TILE_ROWS
    for column in range(0, columns, TILE_COLUMNS):
        vectors = min(TILE_COLUMNS, columns - column) // LANES
        for block in range(n_blocks):
            # blocks of nearly equal height: 10 rows are 5 + 5, not 6 + 4
            row = n_rows * block // n_blocks
            height = n_rows * (block + 1) // n_blocks - row
            source, target = a_start + row * stride, c_start + row * stride + column
            panel = b_start + column * depth
            for k in range(0, depth, DEPTH_BLOCK):
                summands, start, apart = (c, target, stride) if k > 0 else (bias, bias_start + column, 0)
                _multiply_tile(
                    height, vectors, a, source + k, b, panel + k * vectors * LANES, summands, start, apart,
                    c, target, stride, min(DEPTH_BLOCK, depth - k),
                )  # fmt: skip
