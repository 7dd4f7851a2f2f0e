"""Functions of the distance for sixteen pairs at a time, each with its derivative; float32.

Derivatives are by the squared distance, as forces need them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Final, NamedTuple

from aimnet2mult.engine.clusters import SIZE
from aimnet2mult.engine.functions import complementary_error, exponential
from aimnet2mult.engine.simd import Floats, Int, Lanes

_COINCIDENT: Final = 1e-4  # square of distances below which the two atoms of a pair are the same one


class Distance:
    """Distances in several forms, each of which is worked out once, where it is first asked for."""

    def __init__(self, square: Lanes) -> None:
        self.square = square

    @cached_property
    def inverse(self) -> Lanes:
        """1 / r."""
        return self.square.like(1.0) / self.square.root()

    @cached_property
    def plain(self) -> Lanes:
        """r."""
        return self.square * self.inverse


class Slope(NamedTuple):
    """A function of the distance."""

    value: Lanes
    slope: Lanes  # derivative by the squared distance


PairFunction = Callable[[Distance], Slope]


class Apart(NamedTuple):
    """Where the second atoms of sixteen pairs stand, as seen from the first."""

    vector: list[Lanes]  # x, y, z
    distance: Distance


def apart(rows: Floats, row: Int, columns: Sequence[Lanes]) -> Apart:
    """From atom `row` of `rows` (3, 16) to the atoms `columns`."""
    from_row = rows.at(row)
    vector = [column - from_row.everywhere(SIZE * axis) for axis, column in enumerate(columns)]
    square = vector[0] * vector[0]
    for component in vector[1:]:
        square = component.times_plus(component, square)
    return Apart(vector, Distance(square))


def apart_from_others(rows: Floats, row: Int, columns: Sequence[Lanes], far: float) -> Apart:
    """The same where the atoms may be the same ones: an atom is seen from itself at the square `far`."""
    seen = apart(rows, row, columns)
    square = seen.distance.square
    return Apart(seen.vector, Distance(square.where_below(_COINCIDENT, far, square)))


def ended(function: PairFunction, cutoff: Lanes, per_width: Lanes) -> PairFunction:
    """The function switched off over the last stretch before the cutoff, as in `aimnet2mult.physics.switching`.

    `per_width` is one over the length of that stretch, a huge number for a sharp end.
    """

    def switched(r: Distance) -> Slope:
        full = function(r)
        x = (cutoff - r.plain) * per_width
        x = x.where_below(0.0, 0.0, x)
        x = x.where_below(1.0, x, 1.0)
        square = x * x
        switch = square * x * x.times_plus(x.times_plus(6.0, -15.0), 10.0)
        rest = x - 1.0
        falling = rest * rest * square * (per_width * -15.0) * r.inverse
        return Slope(full.value * switch, full.slope.times_plus(switch, full.value * falling))

    return switched


def counted(contact: Lanes, steepness: float) -> PairFunction:
    """1 / (1 + exp(-k (R / r - 1))), what a pair adds to coordination numbers of D3."""

    def count(r: Distance) -> Slope:
        ratio = contact * r.inverse
        power = exponential((ratio - 1.0) * -steepness)
        value = power.like(1.0) / (power + 1.0)
        slope = value * value * power * ratio * r.inverse * r.inverse * (-0.5 * steepness)
        return Slope(value, slope)

    return count


def damped(parameters: Floats) -> PairFunction:
    """s6 / (r^6 + R^6) + s8 q / (r^8 + R^8) from s6, s8 q, R^6, R^8, the formula of `aimnet2mult.physics.d3`."""
    scale6, scale8, radius6, radius8 = (parameters.everywhere(k) for k in range(4))

    def energy(r: Distance) -> Slope:
        r4 = r.square * r.square
        r6 = r4 * r.square
        d6, d8 = r6 + radius6, r4.times_plus(r4, radius8)
        both = d6.like(1.0) / (d6 * d8)
        inverse6, inverse8 = both * d8, both * d6
        part6, part8 = inverse6 * scale6, inverse8 * scale8
        slope = (part6 * inverse6 * r4).times_plus(-3.0, part8 * inverse8 * r6 * -4.0)
        return Slope(part6 + part8, slope)

    return energy


def inverse_distance(r: Distance) -> Slope:
    """1 / r."""
    return Slope(r.inverse, r.inverse * r.inverse * r.inverse * -0.5)


def screened(parameters: Floats) -> PairFunction:
    """erfc(a r) / r + b + c r from a, b, c; `aimnet2mult.physics.coulomb.Screening`."""
    alpha, offset, linear = (parameters.everywhere(k) for k in range(3))

    def potential(r: Distance) -> Slope:
        complement, bell = complementary_error(alpha * r.plain)
        over_r = complement * r.inverse
        by_r = linear - (alpha * bell).times_plus(2.0 / math.sqrt(math.pi), over_r) * r.inverse
        return Slope(linear.times_plus(r.plain, over_r + offset), by_r * r.inverse * 0.5)

    return potential


def bump(r: Distance, per_square: Lanes) -> Slope:
    """exp(1 - 1 / (1 - r^2 / rc^2)) within rc, from 1 / rc^2; `aimnet2mult.physics.radial.exponential_cutoff`."""
    most = 1.0 - 1e-4  # beyond, nothing is left
    ratio = r.square * per_square
    inside = ratio.where_below(most, ratio, most)
    inverse = inside.like(1.0) / (inside.like(1.0) - inside)
    value = ratio.where_below(most, exponential(inverse.like(1.0) - inverse), 0.0)
    return Slope(value, value * inverse * inverse * per_square * -1.0)


def without_near(function: PairFunction, per_square: Lanes) -> PairFunction:
    """The function minus f(r) / r with the switch f of `bump`: what the network learns at short range."""

    def rest(r: Distance) -> Slope:
        full, near, bare = function(r), bump(r, per_square), inverse_distance(r)
        value = full.value - near.value * bare.value
        return Slope(value, full.slope - near.slope * bare.value - near.value * bare.slope)

    return rest


def cut(function: PairFunction, cutoff_square: Lanes) -> PairFunction:
    """The function within a cutoff, where it has come to its end by itself; zero beyond."""

    def within(r: Distance) -> Slope:
        full = function(r)
        inside = (r.square - cutoff_square).where_below(0.0, 1.0, 0.0)
        return Slope(full.value * inside, full.slope * inside)

    return within
