"""Blocks of sixteen by sixteen pairs of the D3(BJ) sums; formulas of `aimnet2mult.physics.d3`, atomic units, float32.

In a block every atom of one cluster (rows) acts on all atoms of another one (columns). What is added up belongs to the
columns only, so that each pair of atoms is met twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from aimnet2mult.engine.clusters import SIZE
from aimnet2mult.engine.pair_functions import (
    PairFunction,
    add_all,
    apart,
    counted,
    damped,
    ended,
    gradient_and_virial,
)
from aimnet2mult.engine.simd import Doubles, Emitter, Floats, Int, Lanes, emitted
from aimnet2mult.physics.d3 import CN_STEEPNESS

# Bohr^2, where an atom is seen from itself: beyond every cutoff, and its powers fit float32
FAR: Final = 1e5
LONGEST: Final = 300.0  # Bohr, a cutoff may have
# numbers that describe the pairs of two kinds
SCALE6, SCALE8, RADIUS6, RADIUS8, CONTACT = range(5)
N_PARAMETERS: Final = 5
FORCE: Final = 2  # sums of a column: energy, derivative by the coordination number, forces, virial
N_SUMS: Final = 11

_Make = Callable[[Floats, Floats], PairFunction]


def _count(parameters: Floats, _: Floats) -> PairFunction:
    return counted(parameters.everywhere(CONTACT), CN_STEEPNESS)


def _count_ended(parameters: Floats, end: Floats) -> PairFunction:
    return ended(_count(parameters, end), end.everywhere(0), end.everywhere(1))


def _damped(parameters: Floats, _: Floats) -> PairFunction:
    return damped(parameters)


def _damped_ended(parameters: Floats, end: Floats) -> PairFunction:
    return ended(damped(parameters), end.everywhere(0), end.everywhere(1))


def _counts(make: _Make) -> Callable[..., None]:
    """Blocks of coordination numbers, with one function of the distance."""

    def block(
        e: Emitter, own: Floats, first: Int, n_rows: Int, columns: Floats, parameters: Floats, pair: Int, end: Floats,
        sums: Doubles, position: Int,
    ) -> None:  # fmt: skip
        function = make(parameters.at(pair * N_PARAMETERS), end)
        rows = own.at(first * (3 * SIZE))
        places = [columns.lanes(SIZE * axis) for axis in range(3)]

        def each(i: Int, total: list[Lanes]) -> list[Lanes]:
            return [total[0] + function(apart(rows, i, places, FAR).distance).value]

        add_all(sums, position, e.repeat(n_rows, [e.lanes(0.0)], each))

    return block


def _count_forces(make: _Make) -> Callable[..., None]:
    """Blocks of the forces from coordination numbers, whose weight is the sum of those of the two atoms."""

    def block(
        e: Emitter, own: Floats, first: Int, n_rows: Int, columns: Floats, parameters: Floats, pair: Int, end: Floats,
        weights: Floats, second: Int, sums: Doubles, position: Int,
    ) -> None:  # fmt: skip
        function = make(parameters.at(pair * N_PARAMETERS), end)
        rows = own.at(first * (3 * SIZE))
        places = [columns.lanes(SIZE * axis) for axis in range(3)]
        of_columns, of_rows = weights.lanes(second * SIZE), weights.at(first * SIZE)

        def each(i: Int, total: list[Lanes]) -> list[Lanes]:
            seen = apart(rows, i, places, FAR)
            return gradient_and_virial(
                seen, function(seen.distance).slope * (of_columns + of_rows.everywhere(i)), total
            )

        add_all(sums, position + SIZE * FORCE, e.repeat(n_rows, [e.lanes(0.0)] * 9, each))

    return block


def _energies(make: _Make) -> Callable[..., None]:
    """Blocks of energies at given C6, their forces, and derivatives by the coordination numbers of the columns."""

    def block(
        e: Emitter, own: Floats, first: Int, n_rows: Int, columns: Floats, parameters: Floats, pair: Int, end: Floats,
        c6: Floats, by_cn: Floats, sums: Doubles, position: Int,
    ) -> None:  # fmt: skip
        function = make(parameters.at(pair * N_PARAMETERS), end)
        rows = own.at(first * (3 * SIZE))
        places = [columns.lanes(SIZE * axis) for axis in range(3)]

        def each(i: Int, total: list[Lanes]) -> list[Lanes]:
            seen = apart(rows, i, places, FAR)
            found = function(seen.distance)
            strength = c6.lanes(i * SIZE) * -1.0
            energy = found.value.times_plus(strength * 0.5, total[0])
            derivative = found.value.times_plus(by_cn.lanes(i * SIZE) * -1.0, total[1])
            return [energy, derivative, *gradient_and_virial(seen, found.slope * strength, total[2:])]

        add_all(sums, position, e.repeat(n_rows, [e.lanes(0.0)] * N_SUMS, each))

    return block


count_block = emitted(_counts(_count))
count_block_ended = emitted(_counts(_count_ended))
count_forces_block = emitted(_count_forces(_count))
count_forces_block_ended = emitted(_count_forces(_count_ended))
energy_block = emitted(_energies(_damped))
energy_block_ended = emitted(_energies(_damped_ended))


@emitted
def c6_block(
    e: Emitter, partners: Floats, start: Int, row_size: Int, n_rows: Int, weights: Floats, slopes: Floats, begin: Int,
    n_references: Int, c6: Floats, by_cn: Floats,
) -> None:  # fmt: skip
    """C6 of a block of pairs, and their derivatives by the coordination numbers of the columns, (16, 16) each.

    Parameters
    ----------
    partners
        From `start` on sums over the reference systems of the rows of weight times C6, for the references of the
        columns' kind; rows are `row_size` apart.
    weights, slopes
        From `begin` on (n_references, 16) weights of the columns' references and their derivatives.
    """
    of_columns, of_slopes = weights.at(begin), slopes.at(begin)

    def each(i: Int, _: list[Lanes]) -> list[Lanes]:
        row = partners.at(i * row_size + start)

        def reference(k: Int, total: list[Lanes]) -> list[Lanes]:
            partner = row.everywhere(k)
            return [
                of_columns.lanes(k * SIZE).times_plus(partner, total[0]),
                of_slopes.lanes(k * SIZE).times_plus(partner, total[1]),
            ]

        found = e.repeat(n_references, [e.lanes(0.0)] * 2, reference)
        c6.store(i * SIZE, found[0])
        by_cn.store(i * SIZE, found[1])
        return []

    e.repeat(n_rows, [], each)
