"""Distances of the features of atoms from those of training, whitened; see `aimnet2mult.models.novelty`."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aimnet2mult.engine.jit import F32, F64, I64, compiled
from aimnet2mult.engine.matrix import multiply, pack
from aimnet2mult.engine.team import count_parts, in_parts

_ROWS: Final = 48  # atoms that are multiplied together


class Whitening(NamedTuple):
    """Means and matrices of S elements; A features, W is A rounded up to a multiple of 16."""

    mean: F32  # (S, A)
    matrix: F32  # (S * A * W,) packed one after another


def make_whitening(mean: F32, matrices: F32) -> Whitening:
    """From means (S, A) and matrices (S, A, A)."""
    return Whitening(np.ascontiguousarray(mean), np.concatenate([pack(one) for one in matrices]))


def squared_distances(features: F32, kinds: I64, whitening: Whitening) -> NDArray[np.float64]:
    """|(x - mean) @ matrix|^2 of atoms (n,), infinite where an atom is of no known element.

    Parameters
    ----------
    features
        (n, W or more), of which the first A count.
    kinds
        (n,) which of the elements, or -1.
    whitening
        Of the elements.
    """
    found = np.full(len(kinds), np.inf)
    order = np.argsort(kinds, kind="stable")
    begin = np.searchsorted(kinds[order], np.arange(len(whitening.mean) + 1))
    n_parts = count_parts(len(kinds), 4 * _ROWS)
    in_parts(lambda part: _fill_squares(features, order, begin, whitening, part, n_parts, found), n_parts)
    return found


@compiled
def _fill_squares(
    features: F32, order: I64, begin: I64, whitening: Whitening, part: int, n_parts: int, found: F64
) -> None:
    """Every `n_parts`-th block of atoms of one element from number `part` on, into `found` (n,)."""
    n_kinds, n_features = whitening.mean.shape
    width = whitening.matrix.shape[0] // (n_kinds * n_features)
    rows, products = np.empty(_ROWS * width, dtype=np.float32), np.empty(_ROWS * width, dtype=np.float32)
    nothing = np.zeros(width, dtype=np.float32)
    number = 0
    for kind in range(n_kinds):
        for first in range(begin[kind], begin[kind + 1], _ROWS):
            number += 1
            if number % n_parts != part:
                continue
            atoms = order[first : min(first + _ROWS, begin[kind + 1])]
            for row in range(atoms.shape[0]):
                for k in range(n_features):
                    rows[row * width + k] = features[atoms[row], k] - whitening.mean[kind, k]
            start = kind * n_features * width
            multiply(
                atoms.shape[0], n_features, width, rows, 0, whitening.matrix, start, nothing, 0, products, 0, width
            )
            for row in range(atoms.shape[0]):
                total = 0.0
                for k in range(width):
                    total += np.float64(products[row * width + k]) ** 2
                found[atoms[row]] = total
