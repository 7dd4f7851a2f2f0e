"""Lengths of learned combinations of neighbour vectors, and their derivative.

Sums of one atom: (channels, 4, G), of which [c, 1:] are vectors; combinations [c, k, h] = sum_g V[c, k, g] mix[c, g, h]
and lengths [c, h] = sum_k of their squares (Chem. Sci. 2025, 16, 10228). G and H are padded to multiples of 16 with
zeros in `mix`; scalars and lengths are packed in rows without padding, so vectors of lanes overlap there: each is
written after the one whose end it overwrites.
"""

from __future__ import annotations

from aimnet2mult.engine.simd import LANES, Emitter, Floats, Int, Lanes, emitted


@emitted
def combine(
    e: Emitter, n_channels: Int, n_shifts: Int, width: Int, n_combinations: Int, n_blocks: Int, sums: Floats,
    mix: Floats, combinations: Floats, start: Int, row: Floats, scalars: Int, lengths: Int,
) -> None:  # fmt: skip
    """Write scalars and lengths of one atom into `row`, and its combinations from `start` on.

    Parameters
    ----------
    n_channels, n_shifts, n_combinations
        Numbers of channels, Gaussians and combinations without padding.
    width, n_blocks
        Padded number of Gaussians; padded number of combinations / 16.
    sums
        (channels, 4, width).
    mix
        (channels, n_shifts, 16 n_blocks).
    combinations, start
        (channels, 3, 16 n_blocks) from start on.
    row, scalars, lengths
        Where the scalars (channels, n_shifts) and the lengths (channels, n_combinations) begin.
    """

    def channel(c: Int, _: list[Lanes]) -> list[Lanes]:
        here = sums.at(c * width * 4)
        vectors = [here.at(width * (k + 1)) for k in range(3)]

        def block(j: Int, _: list[Lanes]) -> list[Lanes]:
            matrix = mix.at((c * n_shifts * n_blocks + j) * LANES)

            def step(g: Int, totals: list[Lanes]) -> list[Lanes]:
                weight = matrix.lanes(g * n_blocks * LANES)
                return [weight.times_plus(v.everywhere(g), t) for v, t in zip(vectors, totals, strict=True)]

            x, y, z = e.repeat(n_shifts, [e.lanes(0.0)] * 3, step)
            for k, value in enumerate((x, y, z)):
                combinations.store(start + (c * n_blocks * 3 + n_blocks * k + j) * LANES, value)
            row.store(lengths + c * n_combinations + j * LANES, x * x + y * y + z * z)
            return []

        return e.repeat(n_blocks, [], block)

    def scalar(c: Int, _: list[Lanes]) -> list[Lanes]:
        def block(j: Int, _: list[Lanes]) -> list[Lanes]:
            row.store(scalars + c * n_shifts + j * LANES, sums.lanes(c * width * 4 + j * LANES))
            return []

        return e.repeat(width.divided(LANES), [], block)

    # in the order of the row, scalars before lengths: what overlaps is overwritten by what belongs there
    e.repeat(n_channels, [], scalar)
    e.repeat(n_channels, [], channel)


@emitted
def uncombine(
    e: Emitter, n_channels: Int, n_shifts: Int, width: Int, n_combinations: Int, n_blocks: Int, d_row: Floats,
    scalars: Int, lengths: Int, combinations: Floats, start: Int, mix: Floats, factors: Floats, d_sums: Floats,
) -> None:  # fmt: skip
    """Derivatives by the sums of one atom, from those by its scalars and lengths; parameters as of `combine`.

    `mix` is transposed here, (channels, n_combinations, width); `factors` is room for 48 n_blocks numbers.
    """

    def channel(c: Int, _: list[Lanes]) -> list[Lanes]:
        def double(j: Int, _: list[Lanes]) -> list[Lanes]:
            twice = d_row.lanes(lengths + c * n_combinations + j * LANES) * 2.0
            for k in range(3):
                position = n_blocks * k + j
                factors.store(
                    position * LANES, combinations.lanes(start + (c * n_blocks * 3 + position) * LANES) * twice
                )
            return []

        e.repeat(n_blocks, [], double)
        here, matrix = d_sums.at(c * width * 4), mix.at(c * n_combinations * width)

        def block(j: Int, _: list[Lanes]) -> list[Lanes]:
            def step(h: Int, totals: list[Lanes]) -> list[Lanes]:
                weight = matrix.lanes(h * width + j * LANES)
                return [weight.times_plus(factors.everywhere(n_blocks * (LANES * k) + h), totals[k]) for k in range(3)]

            totals = e.repeat(n_combinations, [e.lanes(0.0)] * 3, step)
            here.store(j * LANES, d_row.lanes(scalars + c * n_shifts + j * LANES))
            for k, total in enumerate(totals):
                here.store(width * (k + 1) + j * LANES, total)
            return []

        return e.repeat(width.divided(LANES), [], block)

    e.repeat(n_channels, [], channel)
