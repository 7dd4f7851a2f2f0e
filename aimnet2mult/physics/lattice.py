"""Cells that are periodic in up to three directions, of which missing vectors are rows of zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def mapped(rows: NDArray[np.number[Any]], matrix: NDArray[np.number[Any]]) -> NDArray[np.float64]:
    """``rows @ matrix`` of rows (n, k) and a matrix (k, m) or a vector (k,), without BLAS.

    The threads of BLAS, once woken by a large product, go on spinning for a while on the cores that others compute on.
    """
    return np.einsum("nc,c...->n...", rows, matrix)


def complete_cell(cell: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cell (3, 3) with unit vectors, orthogonal to the periodic ones, in place of the missing vectors."""
    periodic: NDArray[np.bool_] = np.any(cell, axis=1)
    if periodic.all():
        return cell
    if not periodic.any():
        return np.eye(3)
    # the rows of V^T beyond the rank span what is orthogonal to the periodic vectors
    _, _, directions = np.linalg.svd(cell)
    complete = cell.copy()
    complete[~periodic] = directions[int(periodic.sum()) :]
    return complete


def dual_vectors(cell: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns (3, 3) whose products with a position are its coordinates along the cell vectors; zero for missing ones.

    The pseudo-inverse of the cell, at a tenth of the cost of finding out its rank.
    """
    return np.where(np.any(cell, axis=1), np.linalg.inv(complete_cell(cell)), 0.0)
