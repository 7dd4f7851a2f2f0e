"""Sums over neighbours of value times basis: the sum, its transpose, and its derivative by the basis.

For one atom with edges e to neighbours j(e): S[c, k, g] = sum_e x[j(e), c, g] W[e, k, g]. The map is linear in the
values x and in the basis W, so these three kernels are also all that second derivatives need.

Arrays are flat: values (n, channels, G), basis (edges, 4, G), sums (channels, 4, G) with G padded to a multiple of 16.
"""

from __future__ import annotations

from typing import Final

from aimnet2mult.engine.jit import F32, I32, part
from aimnet2mult.engine.matrix import TILE_VECTORS
from aimnet2mult.engine.simd import LANES, Emitter, Floats, Int, Integers, Lanes, emitted

# channels (edges for the third kernel) whose four vectors are held in registers together
_GROUP: Final = 6 if TILE_VECTORS > 1 else 1


@emitted
def _sum_group(
    e: Emitter, n_channels: Int, neighbor: Integers, first: Int, n_edges: Int, values: Floats, start: Int, stride: Int,
    basis: Floats, basis_start: Int, width: Int, sums: Floats, sums_start: Int,
) -> None:  # fmt: skip
    source, weight, target = values.at(start), basis.at(basis_start), sums.at(sums_start)

    def group(channels: int) -> None:
        def step(i: Int, sums: list[Lanes]) -> list[Lanes]:
            there = source.at(neighbor[first + i] * stride)
            w = [weight.lanes((i * 4 + k) * width) for k in range(4)]
            x = [there.lanes(width * c) for c in range(channels)]
            return [x[c].times_plus(w[k], sums[4 * c + k]) for c in range(channels) for k in range(4)]

        totals = e.repeat(n_edges, [e.lanes(0.0)] * (4 * channels), step)
        for i, total in enumerate(totals):
            target.store(width * i, total)

    e.choose(n_channels, range(1, _GROUP + 1), group)


@emitted
def _spread_group(
    e: Emitter, n_channels: Int, neighbor: Integers, first: Int, n_edges: Int, d_sums: Floats, sums_start: Int,
    basis: Floats, basis_start: Int, width: Int, d_values: Floats, start: Int, stride: Int,
) -> None:  # fmt: skip
    source, weight, target = d_sums.at(sums_start), basis.at(basis_start), d_values.at(start)

    def group(channels: int) -> None:
        d = [source.lanes(width * i) for i in range(4 * channels)]

        def step(i: Int, _: list[Lanes]) -> list[Lanes]:
            there = target.at(neighbor[first + i] * stride)
            w = [weight.lanes((i * 4 + k) * width) for k in range(4)]
            for c in range(channels):
                value = there.lanes(width * c)
                for k in range(4):
                    value = d[4 * c + k].times_plus(w[k], value)
                there.store(width * c, value)
            return []

        e.repeat(n_edges, [], step)

    e.choose(n_channels, range(1, _GROUP + 1), group)


@emitted
def _basis_group(
    e: Emitter, n_edges: Int, neighbor: Integers, first: Int, values: Floats, start: Int, stride: Int, d_sums: Floats,
    sums_start: Int, n_channels: Int, width: Int, d_basis: Floats, basis_start: Int,
) -> None:  # fmt: skip
    source, derivative, target = values.at(start), d_sums.at(sums_start), d_basis.at(basis_start)

    def group(edges: int) -> None:
        there = [source.at(neighbor[first + m] * stride) for m in range(edges)]

        def step(c: Int, sums: list[Lanes]) -> list[Lanes]:
            d = [derivative.lanes((c * 4 + k) * width) for k in range(4)]
            x = [row.lanes(c * width) for row in there]
            return [d[k].times_plus(x[m], sums[4 * m + k]) for m in range(edges) for k in range(4)]

        totals = e.repeat(n_channels, [e.lanes(0.0)] * (4 * edges), step)
        for i, total in enumerate(totals):
            target.store(width * i, total)

    e.choose(n_edges, range(1, _GROUP + 1), group)


@part
def sum_neighbors(
    n_channels: int, width: int, neighbor: I32, first: int, n_edges: int, values: F32, start: int, stride: int,
    basis: F32, sums: F32,
) -> None:  # fmt: skip
    """Sums of one atom over its edges.

    Parameters
    ----------
    n_channels, width
        Channels to sum, and G.
    neighbor, first, n_edges
        (E,) int32 neighbours; the atom's edges are `n_edges` from `first` on.
    values, start, stride
        Values of atom j begin at start + j * stride.
    basis
        (n_edges, 4, width) basis of the atom's edges.
    sums
        Where the (n_channels, 4, width) sums go.
    """
    n_groups = (n_channels + _GROUP - 1) // _GROUP
    for lane in range(0, width, LANES):
        for group in range(n_groups):
            channel = n_channels * group // n_groups
            size = n_channels * (group + 1) // n_groups - channel
            _sum_group(
                size, neighbor, first, n_edges, values, start + channel * width + lane, stride,
                basis, lane, width, sums, channel * 4 * width + lane,
            )  # fmt: skip


@part
def spread_to_neighbors(
    n_channels: int, width: int, neighbor: I32, first: int, n_edges: int, d_sums: F32, basis: F32, d_values: F32,
    stride: int,
) -> None:  # fmt: skip
    """Add sum_k dS[c, k, g] W[e, k, g] of one atom's sums to `d_values` of its neighbours; parameters as above."""
    n_groups = (n_channels + _GROUP - 1) // _GROUP
    for lane in range(0, width, LANES):
        for group in range(n_groups):
            channel = n_channels * group // n_groups
            size = n_channels * (group + 1) // n_groups - channel
            _spread_group(
                size, neighbor, first, n_edges, d_sums, channel * 4 * width + lane,
                basis, lane, width, d_values, channel * width + lane, stride,
            )  # fmt: skip


@part
def differentiate_basis(
    n_channels: int, width: int, neighbor: I32, first: int, n_edges: int, values: F32, start: int, stride: int,
    d_sums: F32, d_basis: F32,
) -> None:  # fmt: skip
    """dW[e, k, g] = sum_c x[j(e), c, g] dS[c, k, g] for the edges of one atom; parameters as above."""
    n_groups = (n_edges + _GROUP - 1) // _GROUP
    for lane in range(0, width, LANES):
        for group in range(n_groups):
            edge = n_edges * group // n_groups
            size = n_edges * (group + 1) // n_groups - edge
            _basis_group(
                size, neighbor, first + edge, values, start + lane, stride, d_sums, lane, n_channels, width,
                d_basis, edge * 4 * width + lane,
            )  # fmt: skip
