"""Sums over wave vectors in compiled code; formulas of `aimnet2mult.engine.reciprocal`.

Wave vectors stand in rows n = (a, b, m) with m from -last to last. With the phase of a row at an atom, x = exp(i (a, b)
r), and the phase along it, c + i s = exp(i m r), those of m and of -m are x (c + i s) and x (c - i s): four sums of
products of real numbers over the atoms give the structure factors of both.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aimnet2mult.engine.jit import compiled, reordered

Reals = NDArray[np.float64]
Integers = NDArray[np.int64]
_TILE: Final = 384  # atoms that are worked on at a time: their phases stay in the cache while rows pass
# sums over atoms that make up the structure factors of m and -m, and factors of c and s that make up what goes back
_N_SUMS: Final = 4
_N_FACTORS: Final = 8


class Phases(NamedTuple):
    """exp(2 pi i m f) of fractional coordinates f along one axis."""

    cosine: Reals  # (integers, n)
    sine: Reals  # (integers, n)
    zero: int  # row of m = 0


class Waves(NamedTuple):
    """The wave vectors of half the space and what they are multiplied with."""

    rows: Integers  # (R, 2) first two integers
    reciprocal: Reals  # (3, 3) 1/Å, one vector per row
    first: Phases
    second: Phases
    last: Phases  # from 0 on, an even number of rows
    alpha: float  # 1/Å
    volume: float  # Å^3


class WavePart(NamedTuple):
    """What some rows add."""

    by_atom: Reals  # (4, n): derivative of the sum by the charge; by phases along the axes, over -2 times the charge
    totals: Reals  # (7,): the sum, and sum_k w |S|^2 (2 / k^2 + 1 / 2 a^2) k k by xx, yy, zz, yz, xz, xy


@compiled
def sum_waves(waves: Waves, charges: Reals, part: int, n_parts: int) -> WavePart:
    """Every `n_parts`-th row from number `part` on."""
    rows = waves.rows[part::n_parts]
    n, n_last = charges.shape[0], waves.last.cosine.shape[0]
    sums, factors = np.zeros((rows.shape[0], n_last, _N_SUMS)), np.zeros((rows.shape[0], n_last, _N_FACTORS))
    found = WavePart(np.zeros((4, n)), np.zeros(7))
    room = np.empty((6, _TILE))
    for start in range(0, n, _TILE):
        atoms = slice(start, min(start + _TILE, n))
        for r in range(rows.shape[0]):
            _across(waves, rows[r, 0], rows[r, 1], atoms, room)
            _add_products(waves.last, charges, room, atoms, sums[r])
    for r in range(rows.shape[0]):
        _weigh(waves, rows[r, 0], rows[r, 1], sums[r], factors[r], found.totals)
    for start in range(0, n, _TILE):
        atoms = slice(start, min(start + _TILE, n))
        for r in range(rows.shape[0]):
            _across(waves, rows[r, 0], rows[r, 1], atoms, room)
            _along(waves.last, factors[r], atoms, room)
            _add_back(rows[r, 0], rows[r, 1], room, atoms, found.by_atom)
    return found


@reordered
def _across(waves: Waves, a: int, b: int, atoms: slice, room: Reals) -> None:
    """Phases of a row at some atoms into the first two rows of `room`."""
    c, s = waves.first.cosine[a, atoms], waves.first.sine[a, atoms]
    b += waves.second.zero
    c2, s2 = waves.second.cosine[b, atoms], waves.second.sine[b, atoms]
    real, imaginary = room[0], room[1]
    for i in range(c.shape[0]):
        real[i] = c[i] * c2[i] - s[i] * s2[i]
        imaginary[i] = c[i] * s2[i] + s[i] * c2[i]


@reordered
def _add_products(last: Phases, charges: Reals, room: Reals, atoms: slice, sums: Reals) -> None:
    """Add the sums over some atoms of x c, y s, x s, y c of every m to `sums` (m, 4); x + i y: charge times phase."""
    charge, x, y = charges[atoms], room[2], room[3]
    for i in range(charge.shape[0]):
        x[i], y[i] = charge[i] * room[0, i], charge[i] * room[1, i]
    for m in range(last.cosine.shape[0]):
        c, s = last.cosine[m, atoms], last.sine[m, atoms]
        xc = ys = xs = yc = 0.0
        for i in range(c.shape[0]):
            xc += x[i] * c[i]
            ys += y[i] * s[i]
            xs += x[i] * s[i]
            yc += y[i] * c[i]
        sums[m, 0] += xc
        sums[m, 1] += ys
        sums[m, 2] += xs
        sums[m, 3] += yc


@reordered
def _weigh(waves: Waves, a: int, b: int, sums: Reals, factors: Reals, totals: Reals) -> None:
    """Add what a row gives to `totals`, and find the factors of its phases in what goes back to the atoms.

    With W = w conj(S) of m and V of -m, u = W + V and d = W - V, what goes back is Z = sum_m (W (c + i s) + V (c - i
    s)) for the charge and Y = sum_m m (W (c + i s) - V (c - i s)) for the phase along the row, that is

        Z = sum_m (u_r c - d_i s) + i (u_i c + d_r s),    Y = sum_m m ((d_r c - u_i s) + i (d_i c + u_r s)).
    """
    share = 0.5 if a == 0 and b == 0 else 1.0  # that row holds its own opposites
    for m in range(sums.shape[0]):
        up = _weighted(waves, a, b, m, sums[m, 0] - sums[m, 1], sums[m, 2] + sums[m, 3], share, totals)
        down = (0.0, 0.0)
        if m > 0:
            down = _weighted(waves, a, b, -m, sums[m, 0] + sums[m, 1], sums[m, 3] - sums[m, 2], share, totals)
        ur, ui, dr, di = up[0] + down[0], up[1] + down[1], up[0] - down[0], up[1] - down[1]
        factors[m, 0], factors[m, 1], factors[m, 2], factors[m, 3] = ur, -di, ui, dr
        factors[m, 4], factors[m, 5], factors[m, 6], factors[m, 7] = m * dr, -m * ui, m * di, m * ur


@reordered
def _weighted(
    waves: Waves, a: int, b: int, m: int, real: float, imaginary: float, share: float, totals: Reals
) -> tuple[float, float]:
    """w(k) conj(S) of the structure factor S = real + i imaginary; its energy goes to `totals`."""
    reciprocal = waves.reciprocal
    x = a * reciprocal[0, 0] + b * reciprocal[1, 0] + m * reciprocal[2, 0]
    y = a * reciprocal[0, 1] + b * reciprocal[1, 1] + m * reciprocal[2, 1]
    z = a * reciprocal[0, 2] + b * reciprocal[1, 2] + m * reciprocal[2, 2]
    square = x * x + y * y + z * z
    if square == 0.0:
        return 0.0, 0.0
    per_alpha = 0.25 / waves.alpha**2
    weight = share * 4.0 * math.pi / waves.volume * math.exp(-square * per_alpha) / square
    energy = weight * (real * real + imaginary * imaginary)
    pressure = energy * 2.0 * (1.0 / square + per_alpha)
    totals[0] += energy
    for place, product in enumerate((x * x, y * y, z * z, y * z, x * z, x * y)):
        totals[1 + place] += pressure * product
    return weight * real, -weight * imaginary


@reordered
def _along(last: Phases, factors: Reals, atoms: slice, room: Reals) -> None:
    """Z and Y of `_weigh` at some atoms into the last four rows of `room`, two m at a time."""
    zr, zi, yr, yi = room[2], room[3], room[4], room[5]
    room[2:] = 0.0
    for m in range(0, last.cosine.shape[0], 2):
        c, s, c2, s2 = last.cosine[m, atoms], last.sine[m, atoms], last.cosine[m + 1, atoms], last.sine[m + 1, atoms]
        f = factors[m]
        g = factors[m + 1]
        f0, f1, f2, f3, f4, f5, f6, f7 = f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7]
        g0, g1, g2, g3, g4, g5, g6, g7 = g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7]
        for i in range(c.shape[0]):
            zr[i] += f0 * c[i] + f1 * s[i] + g0 * c2[i] + g1 * s2[i]
            zi[i] += f2 * c[i] + f3 * s[i] + g2 * c2[i] + g3 * s2[i]
            yr[i] += f4 * c[i] + f5 * s[i] + g4 * c2[i] + g5 * s2[i]
            yi[i] += f6 * c[i] + f7 * s[i] + g6 * c2[i] + g7 * s2[i]


@reordered
def _add_back(a: int, b: int, room: Reals, atoms: slice, by_atom: Reals) -> None:
    """Add 2 Re(x Z) and Im(x Z) a, Im(x Z) b, Im(x Y) of a row to what belongs to the atoms."""
    real, imaginary, zr, zi, yr, yi = room[0], room[1], room[2], room[3], room[4], room[5]
    charge, first, second, last = by_atom[0, atoms], by_atom[1, atoms], by_atom[2, atoms], by_atom[3, atoms]
    for i in range(charge.shape[0]):
        turned = real[i] * zi[i] + imaginary[i] * zr[i]
        charge[i] += 2.0 * (real[i] * zr[i] - imaginary[i] * zi[i])
        first[i] += a * turned
        second[i] += b * turned
        last[i] += real[i] * yi[i] + imaginary[i] * yr[i]
