"""Blocks of sixteen by sixteen pairs: each atom of one cluster (rows) with all atoms of another one (columns).

What a pair adds to its second atom is summed up over the rows, in float32, and goes to sums in float64 at the end of
the block. What it adds to its first atom is summed up over the lanes, and goes there at once. Places beyond the atoms
of the second cluster repeat its last atom: what pairs do must be zero there, but for what goes to these places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from aimnet2mult.engine.clusters import SIZE
from aimnet2mult.engine.pair_functions import Apart, PairFunction, apart, apart_from_others
from aimnet2mult.engine.simd import Doubles, Emitter, Floats, Int, Lanes, four_sums


class Effect(NamedTuple):
    """What sixteen pairs of one row add to the sums of their atoms, in the order of the sums."""

    second: list[Lanes]
    first: list[Lanes]  # at most four


class Block(NamedTuple):
    """The clusters of a block and the sums that it adds to."""

    own: Floats  # all clusters, each counted from the middle of its box
    columns: Floats  # the second cluster, counted from the middle of the box of the first
    first: Int
    second: Int
    n_rows: Int
    sums: Doubles  # (clusters, n_sums, 16)
    n_sums: int


# from the number of a row and where the second atoms stand
Act = Callable[[Int, Apart], Effect]


def add_pairs(e: Emitter, block: Block, act: Act, offset: int) -> list[Lanes]:
    """Add a block of pairs of two clusters; sums of the first atoms begin at number `offset` of the sums.

    Returns what has been added to the second atoms.
    """
    rows, places = _clusters(block)
    to_first = block.first * (SIZE * block.n_sums)

    def each(i: Int, total: list[Lanes]) -> list[Lanes]:
        effect = act(i, apart(rows, i, places))
        some = [*effect.first, *[e.lanes(0.0)] * (4 - len(effect.first))]
        for number, value in enumerate(four_sums(some)[: len(effect.first)]):
            block.sums.add(to_first + i + SIZE * (offset + number), value.lane(0))
        return [a + b for a, b in zip(total, effect.second, strict=True)]

    return _added(block, e.repeat(block.n_rows, [e.lanes(0.0)] * block.n_sums, each))


def add_own_pairs(e: Emitter, block: Block, act: Act, far: float) -> list[Lanes]:
    """Add a block of pairs of a cluster and itself or an image of it, to the second atoms only: all pairs occur twice.

    An atom is seen from itself at the square `far`. Returns what has been added.
    """
    rows, places = _clusters(block)

    def each(i: Int, total: list[Lanes]) -> list[Lanes]:
        effect = act(i, apart_from_others(rows, i, places, far))
        return [a + b for a, b in zip(total, effect.second, strict=True)]

    return _added(block, e.repeat(block.n_rows, [e.lanes(0.0)] * block.n_sums, each))


def _clusters(block: Block) -> tuple[Floats, list[Lanes]]:
    return block.own.at(block.first * (3 * SIZE)), [block.columns.lanes(SIZE * axis) for axis in range(3)]


def _added(block: Block, total: list[Lanes]) -> list[Lanes]:
    to_second = block.second * (SIZE * block.n_sums)
    for number, values in enumerate(total):
        block.sums.add_lanes(to_second + SIZE * number, values)
    return total


def add_translation(sums: Doubles, number: Int, real: Lanes, gradient: Sequence[Lanes]) -> None:
    """Add the gradients of the second atoms of a block to those of a lattice translation; `real` is 0 beyond them."""
    total = four_sums([*(component * real for component in gradient), real])
    for axis in range(3):
        sums.add(number * 3 + axis, total[axis].lane(0))


def gradient_of(seen: Apart, function: PairFunction, factor: Lanes) -> list[Lanes]:
    """Gradient by the second atoms of factor * f(r)."""
    double = function(seen.distance).slope * factor * 2.0
    return [component * double for component in seen.vector]


def opposite(vector: Sequence[Lanes]) -> list[Lanes]:
    """Its negative."""
    return [component * -1.0 for component in vector]
