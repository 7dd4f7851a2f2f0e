"""The reciprocal-space part of Ewald sums, with derivatives, by matrix products; see `aimnet2mult.physics.ewald`."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Waves = NDArray[np.complex128]
_MOST_PHASES: Final = 1_000_000  # (row of wave vectors, atom) pairs that are worked on at a time


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
    counts = (k_max * np.linalg.norm(cell, axis=1) / (2.0 * math.pi)).astype(np.int64)
    order = np.argsort(counts, kind="stable")  # the axis with most wave vectors last
    reciprocal = np.asarray(2.0 * math.pi * np.linalg.inv(cell).T[order], dtype=np.float64)
    rows, last = _rows(counts[order], reciprocal, k_max), int(counts[order[2]])
    powers = [_powers(coord @ (reciprocal[axis] / (2.0 * math.pi)), int(counts[order[axis]])) for axis in range(3)]
    total = WaveSum(0.0, np.zeros_like(coord), np.zeros((3, 3)), np.zeros_like(charges))
    volume = abs(float(np.linalg.det(cell)))
    chunk = max(1, _MOST_PHASES // len(coord))
    for start in range(0, len(rows), chunk):
        part = _chunk(rows[start : start + chunk], last, powers, charges, reciprocal, alpha, volume)
        total = WaveSum(
            total.energy + part.energy,
            total.gradient + part.gradient,
            total.virial + part.virial,
            total.by_charge + part.by_charge,
        )
    return total


def _rows(counts: NDArray[np.int64], reciprocal: Array, k_max: float) -> NDArray[np.int64]:
    """First two integers (R, 2) of half the rows that reach into the sphere; a row and its opposite are the same."""
    a, b = np.meshgrid(np.arange(counts[0] + 1), np.arange(-counts[1], counts[1] + 1), indexing="ij")
    rows = np.stack([a.ravel(), b.ravel()], axis=1)
    rows = rows[(rows[:, 0] > 0) | (rows[:, 1] >= 0)]
    along = reciprocal[2] / np.linalg.norm(reciprocal[2])
    middle = rows @ reciprocal[:2]
    across = middle - np.outer(middle @ along, along)
    return rows[np.einsum("rc,rc->r", across, across) <= k_max * k_max]


def _powers(fraction: Array, last: int) -> Waves:
    """exp(2 pi i m f) of fractional coordinates (n,) for m from -last to last: (2 last + 1, n)."""
    angle = 2.0 * math.pi * (fraction - np.floor(fraction))
    up = np.ones((last + 1, len(fraction)), dtype=np.complex128)
    np.cumprod(np.broadcast_to(np.exp(1j * angle), (last, len(fraction))), axis=0, out=up[1:])
    return np.concatenate([up[:0:-1].conj(), up])


def _chunk(
    rows: NDArray[np.int64],
    last: int,
    powers: list[Waves],
    charges: Array,
    reciprocal: Array,
    alpha: float,
    volume: float,
) -> WaveSum:
    """The sum over the wave vectors of some rows and their opposites."""
    m = np.arange(-last, last + 1)
    first, second = (powers[axis][rows[:, axis] + len(powers[axis]) // 2] for axis in range(2))
    across, along = first * second, powers[2]
    k = (rows @ reciprocal[:2])[:, None] + m[:, None] * reciprocal[2]
    square = np.einsum("rmc,rmc->rm", k, k)
    zero = square == 0.0
    safe = np.where(zero, 1.0, square)
    weight = np.where(zero, 0.0, np.exp(safe * (-0.25 / alpha**2)) / safe * (4.0 * math.pi / volume))
    weight[~rows.any(axis=1)] *= 0.5  # the row through the origin holds its own opposites
    structure = across @ (along * charges).T
    weighted = weight * structure.conj()
    energies = (weighted * structure).real
    # d|S|^2 by q_i is 2 Re(S* exp(i k r_i)), by r_i -2 q_i k Im(S* exp(i k r_i))
    back = [across.T @ (weighted * factor) for factor in (1.0, rows[:, :1], rows[:, 1:])]
    by_charge = 2.0 * (back[0] * along.T).real.sum(axis=1)
    slopes = [(back[1] * along.T).imag.sum(axis=1), (back[2] * along.T).imag.sum(axis=1)]
    slopes.append((back[0] * along.T).imag @ m)
    gradient = -2.0 * charges[:, None] * (np.stack(slopes, axis=1) @ reciprocal)
    # k shrinks and V grows with the strain
    pressure = np.where(zero, 0.0, energies * (2.0 / safe + 0.5 / alpha**2))
    virial = np.einsum("rm,rmc,rmd->cd", pressure, k, k) - energies.sum() * np.eye(3)
    return WaveSum(float(energies.sum()), gradient, virial, by_charge)
