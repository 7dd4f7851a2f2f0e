"""Matrix products of a training step: rows times packed weights, and the gradients of weights.

Weights change with every step, so they are packed with every step; the rows of a and c may be any distance apart.
"""

from __future__ import annotations

from itertools import product
from typing import Final

import numpy as np

from aimnet2mult.engine.jit import F32, compiled, part
from aimnet2mult.engine.matrix import DEPTH_BLOCK, TILE_COLUMNS, TILE_ROWS, TILE_VECTORS
from aimnet2mult.engine.simd import LANES, Emitter, Floats, Int, Lanes, emitted

BLOCK: Final = 256  # rows of which a gradient of weights is summed at once
PART: Final = 384  # columns of the left factor that are packed at once; with BLOCK, what stays in the cache of a core


def _tile(
    e: Emitter, shape: tuple[int, int], depth: Int, a: Floats, a_row: Int, a_step: Int, b: Floats, summands: Floats,
    summand_row: Int, c: Floats, c_row: Int,
) -> None:  # fmt: skip
    """Write the code of c = summands + a b for `shape` = (rows, vectors of 16 columns)."""
    rows, vectors = shape
    places = list(product(range(rows), range(vectors)))
    first = [a.at(a_row * i) for i in range(rows)]

    def step(k: Int, sums: list[Lanes]) -> list[Lanes]:
        right = [b.lanes(k * (LANES * vectors) + LANES * j) for j in range(vectors)]
        left = [row.everywhere(k * a_step) for row in first]
        return [left[i].times_plus(right[j], sums[i * vectors + j]) for i, j in places]

    sums = e.repeat(depth, [e.lanes(0.0)] * len(places), step)
    for (i, j), total in zip(places, sums, strict=True):
        c.store(c_row * i + LANES * j, total + summands.lanes(summand_row * i + LANES * j))


@emitted
def _multiply_tile(
    e: Emitter, rows: Int, vectors: Int, depth: Int, a: Floats, a_start: Int, a_row: Int, a_step: Int, b: Floats,
    b_start: Int, summands: Floats, summand_start: Int, summand_row: Int, c: Floats, c_start: Int, c_row: Int,
) -> None:  # fmt: skip
    """c = summands + a b for one tile; numbers of a that are multiplied one after another are `a_step` apart."""
    parts = (
        depth, a.at(a_start), a_row, a_step, b.at(b_start), summands.at(summand_start), summand_row, c.at(c_start),
        c_row,
    )  # fmt: skip

    def shape(number: int) -> None:
        _tile(e, (number // TILE_VECTORS + 1, number % TILE_VECTORS + 1), *parts)

    e.choose(rows * TILE_VECTORS + vectors + (-TILE_VECTORS - 1), range(TILE_ROWS * TILE_VECTORS), shape)


@part
def multiply_rows(
    n_rows: int, depth: int, columns: int, a: F32, a_start: int, a_row: int, b: F32, b_start: int, bias: F32,
    bias_start: int, c: F32, c_start: int, c_row: int,
) -> None:  # fmt: skip
    """Rows of c = bias + a b.

    Parameters
    ----------
    n_rows, depth, columns
        Sizes: a is (n_rows, depth), b (depth, columns), `columns` a multiple of 16.
    a, a_start, a_row
        Flat array with rows from a_start on that are a_row apart; so too c.
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
            source, target = a_start + row * a_row, c_start + row * c_row + column
            panel = b_start + column * depth
            for k in range(0, depth, DEPTH_BLOCK):
                summands, start, apart = (c, target, c_row) if k > 0 else (bias, bias_start + column, 0)
                _multiply_tile(
                    height, vectors, min(DEPTH_BLOCK, depth - k), a, source + k, a_row, 1, b,
                    panel + k * vectors * LANES, summands, start, apart, c, target, c_row,
                )  # fmt: skip


@emitted
def _copy_panel(
    e: Emitter, n_rows: Int, vectors: Int, a: Floats, start: Int, row: Int, out: Floats, out_start: Int
) -> None:
    """Rows of `vectors` times 16 numbers, one directly after another."""
    source, target = a.at(start), out.at(out_start)

    def copy(n: int) -> None:
        def step(k: Int, _: list[Lanes]) -> list[Lanes]:
            for j in range(n):
                target.store(k * (LANES * n) + LANES * j, source.lanes(row * k + LANES * j))
            return []

        e.repeat(n_rows, [], step)

    e.choose(vectors, range(1, TILE_VECTORS + 1), copy)


@emitted
def _transpose_square(e: Emitter, a: Floats, start: Int, row: Int, out: Floats, out_start: Int, out_row: Int) -> None:
    """16 x 16 numbers, rows to columns."""
    rows = [a.at(start).lanes(row * i) for i in range(LANES)]
    distance = LANES // 2
    while distance:
        # rows `distance` apart exchange those halves of their squares that lie off the diagonal
        low = [lane + LANES - distance if lane & distance else lane for lane in range(LANES)]
        high = [lane + LANES if lane & distance else lane + distance for lane in range(LANES)]
        for i in (i for i in range(LANES) if not i & distance):
            x, y = rows[i], rows[i + distance]
            rows[i], rows[i + distance] = x.shuffled(y, low), x.shuffled(y, high)
        distance //= 2
    for i, lanes in enumerate(rows):
        out.at(out_start).store(out_row * i, lanes)


@part
def _copy_ragged(n_rows: int, count: int, width: int, a: F32, start: int, row: int, out: F32, at: int) -> None:
    """Rows of `count` numbers, filled up with zeros to `width`, one directly after another."""
    for k in range(n_rows):
        for i in range(count):
            out[at + k * width + i] = a[start + k * row + i]
        for i in range(count, width):
            out[at + k * width + i] = 0.0


@compiled
def pack_rows(depth: int, columns: int, matrix: F32, row: int, out: F32) -> None:
    """Pack a matrix (depth, columns), whose rows are `row` apart, in the order of `matrix.pack`."""
    at = 0
    for first in range(0, columns, TILE_COLUMNS):
        real = min(TILE_COLUMNS, columns - first)
        width = (real + LANES - 1) // LANES * LANES
        if real == width:
            _copy_panel(depth, width // LANES, matrix, first, row, out, at)
        else:
            _copy_ragged(depth, real, width, matrix, first, row, out, at)
        at += depth * width


@compiled
def pack_columns(depth: int, columns: int, matrix: F32, row: int, out: F32) -> None:
    """Pack the transpose (depth, columns) of a matrix (columns, depth), whose rows are `row` apart."""
    at = 0
    for first in range(0, columns, TILE_COLUMNS):
        real = min(TILE_COLUMNS, columns - first)
        width = (real + LANES - 1) // LANES * LANES
        for column in range(0, width, LANES):
            squares = depth // LANES * LANES if column + LANES <= real else 0
            for k in range(0, squares, LANES):
                _transpose_square(matrix, (first + column) * row + k, row, out, at + k * width + column, width)
            for k in range(squares, depth):
                for i in range(column, column + LANES):
                    out[at + k * width + i] = matrix[(first + i) * row + k] if i < real else np.float32(0.0)
        at += depth * width


@part
def _multiply_panel(
    count: int, real: int, depth: int, packed: F32, panel: F32, zeros: F32, tile: F32, c: F32, at: int, c_row: int,
    adding: bool,
) -> None:  # fmt: skip
    """`count` rows of c (+)= packed^T panel, of which `real` columns are stored from `at` on."""
    vectors = (real + LANES - 1) // LANES
    width = vectors * LANES
    for i in range(0, count, LANES):
        size = min(LANES, count - i)
        n_blocks = (size + TILE_ROWS - 1) // TILE_ROWS
        for block in range(n_blocks):
            j = size * block // n_blocks
            height = size * (block + 1) // n_blocks - j
            left, to = i * depth + j, at + (i + j) * c_row
            if real == width:
                summands, start, apart = (c, to, c_row) if adding else (zeros, 0, 0)
                _multiply_tile(
                    height, vectors, depth, packed, left, 1, LANES, panel, 0, summands, start, apart, c, to, c_row
                )
                continue
            _multiply_tile(height, vectors, depth, packed, left, 1, LANES, panel, 0, zeros, 0, 0, tile, 0, width)
            for h in range(height):
                for k in range(real):
                    before = c[to + h * c_row + k] if adding else np.float32(0.0)
                    c[to + h * c_row + k] = before + tile[h * width + k]


@compiled
def sum_outer_products(
    first: int, last: int, n_rows: int, n: int, a: F32, a_start: int, a_row: int, b: F32, b_start: int, b_row: int,
    c: F32, adding: bool,
) -> None:  # fmt: skip
    """Rows `first` to `last` - 1 of c (m, n) (+)= a^T b: the gradient of weights.

    Parameters
    ----------
    first, last
        Range of rows of c, columns of a.
    n_rows, n
        Sizes: a is (n_rows, m), b (n_rows, n).
    a, a_start, a_row
        Flat array with rows from a_start on that are a_row apart; so too b.
    c
        (m * n,).
    adding
        Whether c keeps what it holds.
    """
    tile = np.empty(TILE_ROWS * TILE_COLUMNS, dtype=np.float32)
    zeros = np.zeros(TILE_COLUMNS, dtype=np.float32)
    depth = min(BLOCK, n_rows)
    packed = np.empty(depth * (min(PART, last - first) + LANES), dtype=np.float32)
    panel = np.empty(depth * TILE_COLUMNS, dtype=np.float32)
    for row in range(0, n_rows, BLOCK):
        depth = min(BLOCK, n_rows - row)
        left, right = a_start + row * a_row, b_start + row * b_row
        for begin in range(first, last, PART):
            count = min(PART, last - begin)
            full = count // LANES * LANES
            for i in range(0, full, LANES):
                _copy_panel(depth, 1, a, left + begin + i, a_row, packed, i * depth)
            if full < count:
                _copy_ragged(depth, count - full, LANES, a, left + begin + full, a_row, packed, full * depth)
            for column in range(0, n, TILE_COLUMNS):
                real = min(TILE_COLUMNS, n - column)
                if real % LANES == 0:
                    _copy_panel(depth, real // LANES, b, right + column, b_row, panel, 0)
                else:
                    width = (real + LANES - 1) // LANES * LANES
                    _copy_ragged(depth, real, width, b, right + column, b_row, panel, 0)
                _multiply_panel(
                    count, real, depth, packed, panel, zeros, tile, c, begin * n + column, n, adding or row > 0
                )
