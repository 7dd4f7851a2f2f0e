"""Copies and sums of rows of float32.

Values of atoms lie channel by channel with G padded to a multiple of 16 (`width`), rows of perceptrons without padding
(`n_shifts`). Where vectors of lanes overlap in a row, each is written after the one whose end it overwrites.
"""

from __future__ import annotations

from typing import Final

from aimnet2mult.engine.simd import LANES, Emitter, Floats, Int, Lanes, emitted

# Å; centre of the Gaussians that pad: no atom is ever close to it
BEYOND: Final = 1e4


@emitted
def copy(e: Emitter, n_vectors: Int, source: Floats, start: Int, target: Floats, to: Int) -> None:
    """Copy 16 n_vectors numbers."""
    there, here = source.at(start), target.at(to)

    def step(i: Int, _: list[Lanes]) -> list[Lanes]:
        here.store(i * LANES, there.lanes(i * LANES))
        return []

    e.repeat(n_vectors, [], step)


@emitted
def add(e: Emitter, n_vectors: Int, source: Floats, start: Int, target: Floats, to: Int) -> None:
    """Add 16 n_vectors numbers to `target`."""
    there, here = source.at(start), target.at(to)

    def step(i: Int, _: list[Lanes]) -> list[Lanes]:
        here.store(i * LANES, here.lanes(i * LANES) + there.lanes(i * LANES))
        return []

    e.repeat(n_vectors, [], step)


@emitted
def clear(e: Emitter, n_vectors: Int, target: Floats, to: Int) -> None:
    """Write 16 n_vectors zeros."""
    here = target.at(to)

    def step(i: Int, _: list[Lanes]) -> list[Lanes]:
        here.store(i * LANES, e.lanes(0.0))
        return []

    e.repeat(n_vectors, [], step)


@emitted
def pack_channels(
    e: Emitter, n_channels: Int, width: Int, n_shifts: Int, values: Floats, start: Int, row: Floats, to: Int
) -> None:
    """Copy channels of an atom into a row, without padding."""
    there, here = values.at(start), row.at(to)

    def channel(c: Int, _: list[Lanes]) -> list[Lanes]:
        def step(i: Int, _: list[Lanes]) -> list[Lanes]:
            here.store(c * n_shifts + i * LANES, there.lanes(c * width + i * LANES))
            return []

        return e.repeat(width.divided(LANES), [], step)

    e.repeat(n_channels, [], channel)


@emitted
def add_channels(
    e: Emitter, n_channels: Int, width: Int, n_shifts: Int, row: Floats, start: Int, values: Floats, to: Int,
    centres: Floats,
) -> None:  # fmt: skip
    """Add a row without padding to channels of an atom; the padding, which `centres` tells, gets zeros."""
    there, here = row.at(start), values.at(to)

    def channel(c: Int, _: list[Lanes]) -> list[Lanes]:
        def step(i: Int, _: list[Lanes]) -> list[Lanes]:
            at = c * width + i * LANES
            total = here.lanes(at) + there.lanes(c * n_shifts + i * LANES)
            here.store(at, centres.lanes(i * LANES).where_below(0.5 * BEYOND, total, 0.0))
            return []

        return e.repeat(width.divided(LANES), [], step)

    e.repeat(n_channels, [], channel)
