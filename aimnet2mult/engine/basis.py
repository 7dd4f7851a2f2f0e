"""Radial Gaussians and directions of edges, and the derivatives that come back through them."""

from __future__ import annotations

import math
from typing import Final

from aimnet2mult.engine.functions import exponential
from aimnet2mult.engine.jit import F32, F64, part
from aimnet2mult.engine.simd import LANES, Doubles, Emitter, Floats, Int, Lanes, emitted, four_sums

# float32 numbers kept of each edge
SWITCH: Final = 0  # cosine cutoff
SLOPE: Final = 1  # its derivative, 1/Å
INVERSE: Final = 2  # 1/distance, 1/Å
UNIT: Final = 3  # unit vector from i to j
DISTANCE: Final = 6  # Å
EDGE_SIZE: Final = 8

# Taylor series in angle^2 of sin(angle) / angle and of cos(angle); up to pi / 2 the next terms are below 1e-11
_SINE: Final = tuple((-1) ** k / math.factorial(2 * k + 1) for k in range(8))
_COSINE: Final = tuple((-1) ** k / math.factorial(2 * k) for k in range(9))


@part
def _series(square: float, coefficients: tuple[float, ...]) -> float:
    value = coefficients[-1]
    for k in range(len(coefficients) - 2, -1, -1):
        value = value * square + coefficients[k]
    return value


@part
def describe_edges(vector: F64, begin: int, end: int, cutoff: float, edge: F32) -> None:
    """Fill `edge` (E * EDGE_SIZE,) from `vector` (E, 3) Å for edges `begin` to `end` - 1.

    Cosine cutoff: Behler, J. Chem. Phys. 134, 074106 (2011), eq. 4.
    """
    for e in range(begin, end):
        x, y, z = vector[e, 0], vector[e, 1], vector[e, 2]
        r = math.sqrt(x * x + y * y + z * z)
        inverse = 1.0 / r
        # cos(pi r / cutoff) = -sin(angle)
        angle = math.pi * (r / cutoff - 0.5)
        square = angle * angle
        at = e * EDGE_SIZE
        # written so that a distance of NaN stays one
        edge[at + SWITCH] = 0.0 if r > cutoff else 0.5 - 0.5 * angle * _series(square, _SINE)
        edge[at + SLOPE] = 0.0 if r > cutoff else -0.5 * math.pi / cutoff * _series(square, _COSINE)
        edge[at + INVERSE] = inverse
        edge[at + UNIT] = x * inverse
        edge[at + UNIT + 1] = y * inverse
        edge[at + UNIT + 2] = z * inverse
        edge[at + DISTANCE] = r


@emitted
def fill_gaussians(
    e: Emitter, edge: Floats, first: Int, n_edges: Int, centres: Floats, exponent: Floats, n_blocks: Int,
    gaussians: Floats,
) -> None:  # fmt: skip
    """exp(-exponent (r - centre)^2), (E, 16 n_blocks), of `n_edges` edges from `first` on."""
    minus = exponent.everywhere() * -1.0

    def each(i: Int, _: list[Lanes]) -> list[Lanes]:
        r = edge.at((first + i) * EDGE_SIZE).everywhere(DISTANCE)

        def block(j: Int, _: list[Lanes]) -> list[Lanes]:
            offset = r - centres.lanes(j * LANES)
            power = offset * offset * minus
            gaussians.store(((first + i) * n_blocks + j) * LANES, exponential(power))
            return []

        return e.repeat(n_blocks, [], block)

    e.repeat(n_edges, [], each)


@emitted
def expand_basis(
    e: Emitter, edge: Floats, gaussians: Floats, first: Int, n_edges: Int, n_blocks: Int, basis: Floats
) -> None:
    """Cutoff * Gaussians * (1, unit vector) of `n_edges` edges from `first` on: (n_edges, 4, 16 n_blocks)."""

    def each(i: Int, _: list[Lanes]) -> list[Lanes]:
        numbers = edge.at((first + i) * EDGE_SIZE)
        switch = numbers.everywhere(SWITCH)
        unit = [numbers.everywhere(UNIT + k) for k in range(3)]
        row, target = gaussians.at((first + i) * n_blocks * LANES), basis.at(i * n_blocks * (4 * LANES))

        def block(j: Int, _: list[Lanes]) -> list[Lanes]:
            radial = row.lanes(j * LANES) * switch
            for k, value in enumerate([radial, *(radial * u for u in unit)]):
                target.store((n_blocks * k + j) * LANES, value)
            return []

        return e.repeat(n_blocks, [], block)

    e.repeat(n_edges, [], each)


@emitted
def add_edge_gradient(
    e: Emitter, edge: Floats, gaussians: Floats, first: Int, n_edges: Int, centres: Floats, exponent: Floats,
    n_blocks: Int, d_basis: Floats, gradient: Doubles,
) -> None:  # fmt: skip
    """Add dE/d(vector) of edges from `first` on to `gradient` (E * 3,), from `d_basis` (n_edges, 4, 16 n_blocks)."""
    twice = exponent.everywhere() * -2.0

    def each(i: Int, _: list[Lanes]) -> list[Lanes]:
        numbers = edge.at((first + i) * EDGE_SIZE)
        switch, slope, inverse, r = (numbers.everywhere(k) for k in (SWITCH, SLOPE, INVERSE, DISTANCE))
        unit = [numbers.everywhere(UNIT + k) for k in range(3)]
        row, source = gaussians.at((first + i) * n_blocks * LANES), d_basis.at(i * n_blocks * (4 * LANES))

        def block(j: Int, sums: list[Lanes]) -> list[Lanes]:
            gaussian = row.lanes(j * LANES)
            radial = gaussian * switch
            derivative = gaussian.times_plus(slope, (r - centres.lanes(j * LANES)) * twice * radial)
            scalar, *vector = (source.lanes((n_blocks * k + j) * LANES) for k in range(4))
            along = scalar
            for k in range(3):
                along = vector[k].times_plus(unit[k], along)
            across = [vector[k].times_plus(radial, sums[1 + k]) for k in range(3)]
            return [along.times_plus(derivative, sums[0]), *across]

        total = four_sums(e.repeat(n_blocks, [e.lanes(0.0)] * 4, block))
        _add_gradient(total, unit, inverse, gradient, (first + i) * 3)
        return []

    e.repeat(n_edges, [], each)


def _add_gradient(total: list[Lanes], unit: list[Lanes], inverse: Lanes, gradient: Doubles, position: Int) -> None:
    """With a = dE/dr and t = dE/du: dE/d(vector) = a u + (t - (t.u) u) / r."""
    along, *across = total
    projection = across[0] * unit[0] + across[1] * unit[1] + across[2] * unit[2]
    for k in range(3):
        value = (across[k] - projection * unit[k]) * inverse + along * unit[k]
        gradient.add(position + k, value.lane(0))
