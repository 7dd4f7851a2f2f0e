"""The reciprocal-space part of Ewald sums, with derivatives; see `aimnet2mult.physics.ewald`."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aimnet2mult.engine.team import count_parts, in_parts
from aimnet2mult.engine.waves import Phases, Waves, sum_waves
from aimnet2mult.physics.lattice import mapped

Array = NDArray[np.float64]
# products of a row of wave vectors, an atom and a phase along the row: what a thread is worth starting for
_LEAST_WORK: Final = 200_000


class WaveSum(NamedTuple):
    """The sum with its first derivatives."""

    energy: float  # e^2/Å
    gradient: Array  # (n, 3) e^2/Å^2
    virial: Array  # (3, 3) e^2/Å, by the strain e of x' = x (1 + e)
    by_charge: Array  # (n,) e/Å


def reciprocal_sum(coord: Array, charges: Array, cell: Array, alpha: float, k_max: float) -> WaveSum:
    """1/2 sum_{k != 0} w(k) |S(k)|^2 with w(k) = 4 pi / V exp(-k^2 / 4 a^2) / k^2 and S(k) = sum_i q_i exp(i k r_i).

    Wave vectors are n @ B with three integers n and the reciprocal cell B. They stand in rows of the same first two
    integers, so that exp(i k r) is a product of the phase of the row and the phase along it.

    Parameters
    ----------
    coord
        (n, 3) Å.
    charges
        (n,) e.
    cell
        (3, 3) Å, periodic in all directions.
    alpha
        Splitting parameter, 1/Å.
    k_max
        1/Å, of the wave vectors that count; some longer ones count too.
    """
    waves = _waves(coord, cell, alpha, k_max)
    work = waves.rows.shape[0] * waves.last.cosine.size
    n_parts = count_parts(work, _LEAST_WORK)
    found = in_parts(lambda part: sum_waves(waves, charges, part, n_parts), n_parts)
    by_atom, totals = sum(one.by_atom for one in found), sum(one.totals for one in found)
    energy, xx, yy, zz, yz, xz, xy = totals
    # k shrinks and V grows with the strain
    virial = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]) - energy * np.eye(3)
    # the derivative of |S|^2 by r_i is -2 q_i k Im(S* exp(i k r_i)), by q_i 2 Re(S* exp(i k r_i))
    gradient = -2.0 * charges[:, None] * mapped(by_atom[1:].T, waves.reciprocal)
    return WaveSum(float(energy), gradient, virial, by_atom[0])


def _waves(coord: Array, cell: Array, alpha: float, k_max: float) -> Waves:
    counts = (k_max * np.linalg.norm(cell, axis=1) / (2.0 * math.pi)).astype(np.int64)
    order = np.argsort(counts, kind="stable")  # the axis with most wave vectors last
    reciprocal = np.ascontiguousarray(2.0 * math.pi * np.linalg.inv(cell).T[order])
    first, second, last = (int(count) for count in counts[order])
    fraction = [mapped(coord, vector / (2.0 * math.pi)) for vector in reciprocal]
    return Waves(
        _rows(first, second, reciprocal, k_max),
        reciprocal,
        _phases(fraction[0], 0, first),
        _phases(fraction[1], second, second),
        _phases(fraction[2], 0, last + 1 - last % 2),
        alpha,
        abs(float(np.linalg.det(cell))),
    )


def _rows(first: int, second: int, reciprocal: Array, k_max: float) -> NDArray[np.int64]:
    """First two integers (R, 2) of half the rows that reach into the sphere; a row and its opposite are the same."""
    a, b = np.meshgrid(np.arange(first + 1), np.arange(-second, second + 1), indexing="ij")
    rows = np.stack([a.ravel(), b.ravel()], axis=1)
    rows = rows[(rows[:, 0] > 0) | (rows[:, 1] >= 0)]
    along = reciprocal[2] / np.linalg.norm(reciprocal[2])
    middle = mapped(rows, reciprocal[:2])
    across = middle - np.outer(mapped(middle, along), along)
    return rows[np.einsum("rc,rc->r", across, across) <= k_max * k_max]


def _phases(fraction: Array, before: int, after: int) -> Phases:
    """exp(2 pi i m f) of fractional coordinates (n,) for m from -before (at most `after`) to `after`."""
    angle = 2.0 * math.pi * (fraction - np.floor(fraction))
    up = np.ones((after + 1, len(fraction)), dtype=np.complex128)
    np.cumprod(np.broadcast_to(np.exp(1j * angle), (after, len(fraction))), axis=0, out=up[1:])
    both = np.concatenate([up[before:0:-1].conj(), up])
    return Phases(np.ascontiguousarray(both.real), np.ascontiguousarray(both.imag), before)
