"""Pieces of the neighbour sums of a training step that evaluations do not need: displacements, gradients of the mixing.

Arrays are those of `convolution` and `lengths`: sums of one atom (channels, 4, width), combinations (channels, 3,
16 n_blocks), weights of combinations (channels, rows, columns).
"""

from __future__ import annotations

from typing import Final

from aimnet2mult.engine.basis import DISTANCE, EDGE_SIZE, INVERSE, SLOPE, SWITCH, UNIT
from aimnet2mult.engine.jit import F32, part
from aimnet2mult.engine.simd import LANES, Emitter, Floats, Int, Lanes, emitted

_CHANNELS: Final = 4  # channels combined together: twelve sums, enough to hide the latency of each


@emitted
def expand_both(
    e: Emitter, edge: Floats, gaussians: Floats, first: Int, n_edges: Int, centres: Floats, exponent: Floats,
    n_blocks: Int, moved: Floats, basis: Floats,
) -> None:  # fmt: skip
    """Changes of the basis of edges along displacements `moved` (n_edges, 3) of their vectors, then the basis itself.

    With G the Gaussians times the cutoff, u the unit vector and d the displacement: G' (u.d) for the scalar, and
    G' (u.d) u + G (d - (u.d) u) / r for the vector part; together (2 n_edges, 4, 16 n_blocks).
    """
    twice = exponent.everywhere() * -2.0
    plain = basis.at(n_edges * n_blocks * (4 * LANES))

    def each(i: Int, _: list[Lanes]) -> list[Lanes]:
        numbers = edge.at((first + i) * EDGE_SIZE)
        switch, slope, inverse, r = (numbers.everywhere(k) for k in (SWITCH, SLOPE, INVERSE, DISTANCE))
        unit = [numbers.everywhere(UNIT + k) for k in range(3)]
        d = [moved.everywhere(i * 3 + k) for k in range(3)]
        along = d[2].times_plus(unit[2], d[1].times_plus(unit[1], d[0] * unit[0]))
        across = [(d[k] - along * unit[k]) * inverse for k in range(3)]
        row, place = gaussians.at((first + i) * n_blocks * LANES), i * n_blocks * (4 * LANES)

        def block(j: Int, _: list[Lanes]) -> list[Lanes]:
            gaussian = row.lanes(j * LANES)
            radial = gaussian * switch
            change = gaussian.times_plus(slope, (r - centres.lanes(j * LANES)) * twice * radial) * along
            basis.store(place + j * LANES, change)
            plain.store(place + j * LANES, radial)
            for k in range(3):
                at = place + (n_blocks * (k + 1) + j) * LANES
                basis.store(at, change.times_plus(unit[k], radial * across[k]))
                plain.store(at, radial * unit[k])
            return []

        return e.repeat(n_blocks, [], block)

    e.repeat(n_edges, [], each)


@emitted
def _combine_group(
    e: Emitter, n_channels: Int, n_rows: Int, v: Floats, start: Int, stride: Int, row: Int, mix: Floats, mix_start: Int,
    columns: Int, out: Floats, out_start: Int, out_stride: Int,
) -> None:  # fmt: skip
    """out[c, k] = sum_g v[c, k, g] mix[c, g] for k = 0, 1, 2 and sixteen columns."""
    source, matrix, target = v.at(start), mix.at(mix_start), out.at(out_start)

    def group(n: int) -> None:
        places = [(c, k) for c in range(n) for k in range(3)]

        def step(g: Int, sums: list[Lanes]) -> list[Lanes]:
            weights = [matrix.lanes((n_rows * c + g) * columns) for c in range(n)]
            return [
                weights[c].times_plus(source.everywhere(stride * c + row * k + g), total)
                for (c, k), total in zip(places, sums, strict=True)
            ]

        totals = e.repeat(n_rows, [e.lanes(0.0)] * len(places), step)
        for (c, k), total in zip(places, totals, strict=True):
            target.store(out_stride * c + columns * k, total)

    e.choose(n_channels, range(1, _CHANNELS + 1), group)


@part
def combine_vectors(
    n_channels: int, n_rows: int, v: F32, start: int, stride: int, row: int, mix: F32, columns: int, out: F32,
    out_start: int, out_stride: int,
) -> None:  # fmt: skip
    """out[c, k, h] = sum_g v[c, k, g] mix[c, g, h], the three vectors of a channel `row` and channels `stride` apart.

    `mix` is (channels, n_rows, columns), `columns` a multiple of 16; channels of `out` are out_stride apart.
    """
    for block in range(0, columns, LANES):
        for c in range(0, n_channels, _CHANNELS):
            _combine_group(
                min(_CHANNELS, n_channels - c), n_rows, v, start + c * stride, stride, row, mix,
                c * n_rows * columns + block, columns, out, out_start + c * out_stride + block, out_stride,
            )  # fmt: skip


@emitted
def differentiate_lengths(
    e: Emitter, n_channels: Int, n_combinations: Int, n_blocks: Int, d_lengths: Floats, at: Int, combinations: Floats,
    start: Int, extra: Floats, extra_start: Int, has_extra: Int, out: Floats,
) -> None:  # fmt: skip
    """out[c, k, h] = 2 combinations[c, k, h] d_lengths[c, h] (+ extra)."""
    source, more = combinations.at(start), extra.at(extra_start)

    def write(adding: int) -> None:
        def channel(c: Int, _: list[Lanes]) -> list[Lanes]:
            def block(j: Int, _: list[Lanes]) -> list[Lanes]:
                twice = d_lengths.lanes(at + c * n_combinations + j * LANES) * 2.0
                for k in range(3):
                    place = (c * n_blocks * 3 + n_blocks * k + j) * LANES
                    lanes = source.lanes(place)
                    out.store(place, lanes.times_plus(twice, more.lanes(place)) if adding else lanes * twice)
                return []

            return e.repeat(n_blocks, [], block)

        e.repeat(n_channels, [], channel)

    e.choose(has_extra, range(2), write)


@emitted
def displace_lengths(
    e: Emitter, n_channels: Int, n_combinations: Int, n_blocks: Int, d_lengths: Floats, at: Int, combinations: Floats,
    start: Int, changes: Floats, out: Floats, by_combinations: Floats,
) -> None:  # fmt: skip
    """Changes of lengths, 2 sum_k combinations changes, to `out`; 2 d_lengths changes to by_combinations."""
    source, target = combinations.at(start), by_combinations.at(start)

    def channel(c: Int, _: list[Lanes]) -> list[Lanes]:
        def block(j: Int, _: list[Lanes]) -> list[Lanes]:
            position = at + c * n_combinations + j * LANES
            twice = d_lengths.lanes(position) * 2.0
            total = e.lanes(0.0)
            for k in range(3):
                place = (c * n_blocks * 3 + n_blocks * k + j) * LANES
                change = changes.lanes(place)
                total = change.times_plus(source.lanes(place), total)
                target.store(place, change * twice)
            out.store(position, total + total)
            return []

        return e.repeat(n_blocks, [], block)

    e.repeat(n_channels, [], channel)


@emitted
def sums_from_scalars(
    e: Emitter, n_channels: Int, n_shifts: Int, n_blocks: Int, row: Floats, scalars: Int, sums: Floats
) -> None:
    """sums[c, 0] = scalars of a row (channels, n_shifts)."""

    def channel(c: Int, _: list[Lanes]) -> list[Lanes]:
        def block(j: Int, _: list[Lanes]) -> list[Lanes]:
            sums.store((c * n_blocks * 4 + j) * LANES, row.lanes(scalars + c * n_shifts + j * LANES))
            return []

        return e.repeat(n_blocks, [], block)

    e.repeat(n_channels, [], channel)


@emitted
def scalars_from_sums(
    e: Emitter, n_channels: Int, n_shifts: Int, n_blocks: Int, row: Floats, scalars: Int, sums: Floats
) -> None:
    """Scalars of a row from sums[c, 0]; each overwrites the padding of the one before."""

    def channel(c: Int, _: list[Lanes]) -> list[Lanes]:
        def block(j: Int, _: list[Lanes]) -> list[Lanes]:
            row.store(scalars + c * n_shifts + j * LANES, sums.lanes((c * n_blocks * 4 + j) * LANES))
            return []

        return e.repeat(n_blocks, [], block)

    e.repeat(n_channels, [], channel)


@emitted
def add_outer_products(
    e: Emitter, n_channels: Int, n_shifts: Int, width: Int, n_blocks: Int, sums: Floats, by_combinations: Floats,
    out: Floats,
) -> None:  # fmt: skip
    """out[c, g, h] += sum_k sums[c, k + 1, g] by_combinations[c, k, h]: the gradient of the weights of combinations."""

    def channel(c: Int, _: list[Lanes]) -> list[Lanes]:
        vectors = sums.at(c * width * 4)

        def block(j: Int, _: list[Lanes]) -> list[Lanes]:
            factors = [by_combinations.lanes((c * n_blocks * 3 + n_blocks * k + j) * LANES) for k in range(3)]

            def step(g: Int, _: list[Lanes]) -> list[Lanes]:
                place = ((c * n_shifts + g) * n_blocks + j) * LANES
                total = out.lanes(place)
                for k in range(3):
                    total = factors[k].times_plus(vectors.everywhere(width * (k + 1) + g), total)
                out.store(place, total)
                return []

            return e.repeat(n_shifts, [], step)

        return e.repeat(n_blocks, [], block)

    e.repeat(n_channels, [], channel)
