"""Cells with missing vectors."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from aimnet2mult.physics.lattice import complete_cell, dual_vectors

CELL = np.array([[4.0, 0.3, -1.1], [0.7, 6.0, 2.0], [-3.0, 0.4, 9.0]])
PERIODIC = [np.array(pbc) for pbc in product((True, False), repeat=3)]


@pytest.mark.parametrize("periodic", PERIODIC, ids=str)
def test_dual_vectors_are_the_pseudo_inverse(periodic: np.ndarray) -> None:
    cell = np.where(periodic[:, None], CELL, 0.0)
    # products and inverse of numbers up to 10 in float64
    assert np.abs(dual_vectors(cell) - np.linalg.pinv(cell)).max() < 1e-14


@pytest.mark.parametrize("periodic", PERIODIC, ids=str)
def test_missing_vectors_are_orthogonal_to_the_others(periodic: np.ndarray) -> None:
    cell = np.where(periodic[:, None], CELL, 0.0)
    complete = complete_cell(cell)
    assert (complete[periodic] == cell[periodic]).all()
    new = complete[~periodic]
    assert np.abs(new @ new.T - np.eye(len(new))).max(initial=0.0) < 1e-14
    assert np.abs(new @ cell.T).max(initial=0.0) < 1e-13
