"""Blocks of pairs of the D3(BJ) sums; formulas of `aimnet2mult.physics.d3`, atomic units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from aimnet2mult.engine.clusters import SIZE
from aimnet2mult.engine.pair_blocks import (
    Act,
    Block,
    Effect,
    add_own_pairs,
    add_pairs,
    add_translation,
    gradient_of,
    opposite,
)
from aimnet2mult.engine.pair_functions import Apart, PairFunction, counted, damped, ended
from aimnet2mult.engine.simd import Doubles, Emitter, Floats, Int, Lanes, emitted
from aimnet2mult.physics.d3 import CN_STEEPNESS

LONGEST: Final = 300.0  # Bohr, a cutoff may have
# Bohr^2, where an atom is seen from itself: beyond every cutoff, and its powers fit float32
_FAR: Final = 1e5
# numbers that describe the pairs of two kinds
SCALE6, SCALE8, RADIUS6, RADIUS8, CONTACT = range(5)
N_PARAMETERS: Final = 5
# sums of an atom: energy, derivative by the coordination number, gradient
BY_CN: Final = 1
GRADIENT: Final = 2
N_SUMS: Final = 5

_Make = Callable[[Floats, Floats], PairFunction]


def _count(parameters: Floats, _: Floats) -> PairFunction:
    return counted(parameters.everywhere(CONTACT), CN_STEEPNESS)


def _count_ended(parameters: Floats, end: Floats) -> PairFunction:
    return ended(_count(parameters, end), end.everywhere(0), end.everywhere(1))


def _damped(parameters: Floats, _: Floats) -> PairFunction:
    return damped(parameters)


def _damped_ended(parameters: Floats, end: Floats) -> PairFunction:
    return ended(damped(parameters), end.everywhere(0), end.everywhere(1))


def _counts(make: _Make, add: Callable[[Emitter, Block, Act], list[Lanes]]) -> Callable[..., None]:
    """Coordination numbers, of sums with a single number for each atom."""

    def write(
        e: Emitter, own: Floats, columns: Floats, first: Int, second: Int, n_rows: Int, real: Floats,
        parameters: Floats, pair: Int, end: Floats, sums: Doubles,
    ) -> None:  # fmt: skip
        function, there = make(parameters.at(pair * N_PARAMETERS), end), real.lanes(second * SIZE)

        def act(i: Int, seen: Apart) -> Effect:
            count = function(seen.distance).value * there
            return Effect([count], [count])

        add(e, Block(own, columns, first, second, n_rows, sums, 1), act)

    return write


def _count_gradients(make: _Make, add: Callable[[Emitter, Block, Act], list[Lanes]]) -> Callable[..., None]:
    """Gradients from coordination numbers: a pair weighs as much as both its atoms, of `weights`, together."""

    def write(
        e: Emitter, own: Floats, columns: Floats, first: Int, second: Int, n_rows: Int, real: Floats,
        parameters: Floats, pair: Int, end: Floats, weights: Floats, sums: Doubles, translations: Doubles, number: Int,
    ) -> None:  # fmt: skip
        function, there = make(parameters.at(pair * N_PARAMETERS), end), real.lanes(second * SIZE)
        of_rows, of_columns = weights.at(first * SIZE), weights.lanes(second * SIZE)

        def act(i: Int, seen: Apart) -> Effect:
            gradient = gradient_of(seen, function, (of_columns + of_rows.everywhere(i)) * there)
            return Effect([e.lanes(0.0)] * GRADIENT + gradient, opposite(gradient))

        added = add(e, Block(own, columns, first, second, n_rows, sums, N_SUMS), act)
        add_translation(translations, number, there, added[GRADIENT:])

    return write


def _energies(make: _Make, add: Callable[[Emitter, Block, Act], list[Lanes]], share: float) -> Callable[..., None]:
    """Energies at given C6 (of each pair the `share`), their gradients and derivatives by coordination numbers."""

    def write(
        e: Emitter, own: Floats, columns: Floats, first: Int, second: Int, n_rows: Int, real: Floats,
        parameters: Floats, pair: Int, end: Floats, c6: Floats, sums: Doubles, translations: Doubles, number: Int,
    ) -> None:  # fmt: skip
        function, there = make(parameters.at(pair * N_PARAMETERS), end), real.lanes(second * SIZE)

        def act(i: Int, seen: Apart) -> Effect:
            found = function(seen.distance)
            strength, by_first, by_second = (c6.lanes(i * SIZE + SIZE * SIZE * k) for k in range(3))
            gradient = gradient_of(seen, lambda _: found, strength * -1.0)
            energy = found.value * strength * -share
            minus = found.value * -1.0
            return Effect([energy, minus * by_second, *gradient], [minus * by_first, *opposite(gradient)])

        added = add(e, Block(own, columns, first, second, n_rows, sums, N_SUMS), act)
        add_translation(translations, number, there, added[GRADIENT:])

    return write


def _own(e: Emitter, block: Block, act: Act) -> list[Lanes]:
    return add_own_pairs(e, block, act, _FAR)


def _both(offset: int) -> Callable[[Emitter, Block, Act], list[Lanes]]:
    return lambda e, block, act: add_pairs(e, block, act, offset)


count_block = emitted(_counts(_count, _both(0)))
count_block_ended = emitted(_counts(_count_ended, _both(0)))
count_block_own = emitted(_counts(_count_ended, _own))
count_gradient_block = emitted(_count_gradients(_count, _both(GRADIENT)))
count_gradient_block_ended = emitted(_count_gradients(_count_ended, _both(GRADIENT)))
count_gradient_block_own = emitted(_count_gradients(_count_ended, _own))
energy_block = emitted(_energies(_damped, _both(BY_CN), 1.0))
energy_block_ended = emitted(_energies(_damped_ended, _both(BY_CN), 1.0))
energy_block_own = emitted(_energies(_damped_ended, _own, 0.5))


@emitted
def c6_block(
    e: Emitter, partners: Floats, by_cn: Floats, start: Int, row_size: Int, n_rows: Int, weights: Floats,
    slopes: Floats, begin: Int, n_references: Int, c6: Floats,
) -> None:  # fmt: skip
    """C6 of a block of pairs, and their derivatives by the coordination numbers of rows and columns, (3, 16, 16).

    Parameters
    ----------
    partners, by_cn
        From `start` on sums over the reference systems of the rows of weight times C6, for the references of the
        columns' kind, and their derivatives by the coordination number; rows are `row_size` apart.
    weights, slopes
        From `begin` on (n_references, 16) weights of the columns' references and their derivatives.
    """
    of_columns, of_slopes = weights.at(begin), slopes.at(begin)

    def each(i: Int, _: list[Lanes]) -> list[Lanes]:
        row, row_slope = partners.at(i * row_size + start), by_cn.at(i * row_size + start)

        def reference(k: Int, total: list[Lanes]) -> list[Lanes]:
            weight, slope, partner = of_columns.lanes(k * SIZE), of_slopes.lanes(k * SIZE), row.everywhere(k)
            return [
                weight.times_plus(partner, total[0]),
                weight.times_plus(row_slope.everywhere(k), total[1]),
                slope.times_plus(partner, total[2]),
            ]

        for k, found in enumerate(e.repeat(n_references, [e.lanes(0.0)] * 3, reference)):
            c6.store(i * SIZE + SIZE * SIZE * k, found)
        return []

    e.repeat(n_rows, [], each)
