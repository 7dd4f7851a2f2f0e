"""Exponential and GELU of sixteen float32 at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

from aimnet2mult.engine.simd import LANES, Emitter, Floats, Int, Lanes, emitted

# below, results are zero for all purposes of float32, and still far from numbers that slow processors down
LOWEST: Final = -80.0
# adding it leaves the nearest integer in the lowest bits of a float32
_ROUNDING: Final = 1.5 * 2.0**23
_MANTISSA_BITS: Final = 23
# ln 2 in two parts, of which the first has few enough bits that its multiples are exact (Cody and Waite 1980)
_LN2_HIGH: Final = 0.693359375
_LN2_LOW: Final = math.log(2.0) - _LN2_HIGH


def horner(x: Lanes, coefficients: Sequence[float]) -> Lanes:
    """Polynomial with `coefficients` from the lowest power up."""
    value = x.like(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value.times_plus(x, coefficient)
    return value


def _coefficients(function: Callable[..., Any], degree: int, low: float, high: float) -> list[float]:
    """The polynomial that equals `function` at the Chebyshev points of [low, high], from the lowest power up."""
    polynomial = Chebyshev.interpolate(function, degree, domain=[low, high]).convert(kind=Polynomial)
    return [float(coefficient) for coefficient in polynomial.coef]


def exponential(x: Lanes) -> Lanes:
    """exp(x) for x <= 0, to 1e-7 relative; 0 below `LOWEST`.

    2^n exp(y) with y = x - n ln 2 in [-ln 2 / 2, ln 2 / 2] and a polynomial through the Chebyshev points there.
    """
    bounded = x.where_below(LOWEST, LOWEST, x)
    shifted = bounded.times_plus(1.0 / math.log(2.0), _ROUNDING)
    n = shifted - _ROUNDING
    y = n.times_plus(-_LN2_LOW, n.times_plus(-_LN2_HIGH, bounded))
    half = 0.5 * math.log(2.0)
    series = _coefficients(np.exp, 6, -half, half)
    # n added to the exponent bits
    value = horner(y, series).plus_bits(shifted.bits_shifted_left(_MANTISSA_BITS))
    return x.where_below(LOWEST, 0.0, value)


def _scaled_erfc(t: np.ndarray) -> np.ndarray:
    """erfcx(z) / t for t = 1 / (1 + z / 2): bounded and smooth from t = 0 (z = infinity) to t = 1 (z = 0)."""
    from scipy.special import erfcx  # for compilation only

    t = np.maximum(t, 1e-12)
    return erfcx(2.0 * (1.0 / t - 1.0)) / t


def complementary_error(z: Lanes) -> tuple[Lanes, Lanes]:
    """erfc(z) and exp(-z^2), for z >= 0.

    exp(-z^2) erfcx(z) with erfcx(z) = t P(t), t = 1 / (1 + z / 2) and a polynomial P through the Chebyshev points: 2e-8
    absolute, less than the rounding of float32.
    """
    series = _coefficients(_scaled_erfc, 8, 0.0, 1.0)
    bell = exponential(z * z * -1.0)
    t = z.like(1.0) / z.times_plus(0.5, 1.0)
    return bell * t * horner(t, series), bell


def gelu(x: Lanes) -> tuple[Lanes, Lanes]:
    """GELU, x Phi(x) (Hendrycks and Gimpel, arXiv:1606.08415, eq. 2), and its derivative Phi(x) + x phi(x)."""
    erfc, bell = complementary_error(x.magnitude() * math.sqrt(0.5))
    tail = erfc * 0.5
    phi = x.where_below(0.0, tail, x.like(1.0) - tail)
    return x * phi, (x * bell).times_plus(1.0 / math.sqrt(2.0 * math.pi), phi)


@emitted
def gelu_in_place(e: Emitter, values: Floats, start: Int, derivatives: Floats, to: Int, n_vectors: Int) -> None:
    """GELU of 16 n_vectors numbers of `values` from `start` on; its derivatives go to `derivatives` from `to` on."""
    source, target = values.at(start), derivatives.at(to)

    def step(i: Int, _: list[Lanes]) -> list[Lanes]:
        value, derivative = gelu(source.lanes(i * LANES))
        source.store(i * LANES, value)
        target.store(i * LANES, derivative)
        return []

    e.repeat(n_vectors, [], step)


@emitted
def multiply_in_place(e: Emitter, values: Floats, start: Int, factors: Floats, begin: Int, n_vectors: Int) -> None:
    """Multiply 16 n_vectors numbers of `values` from `start` on by those of `factors` from `begin` on."""
    target, factor = values.at(start), factors.at(begin)

    def step(i: Int, _: list[Lanes]) -> list[Lanes]:
        target.store(i * LANES, target.lanes(i * LANES) * factor.lanes(i * LANES))
        return []

    e.repeat(n_vectors, [], step)
