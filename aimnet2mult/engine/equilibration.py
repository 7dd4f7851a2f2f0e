"""Charge equilibration of flat systems, in float64; see `aimnet2mult.physics.equilibration` for the formulas."""

from __future__ import annotations

from typing import Final

from aimnet2mult.engine.jit import F64, part
from aimnet2mult.engine.records import FlatSystems

# keeps the division defined when a network gives every atom zero weight
MINIMUM_WEIGHT: Final = 1e-6


@part
def _total(charge: float, mult: float, n_channels: int, by_spin: bool, channel: int) -> float:
    """Charge (e) to which a channel sums: of one channel, of charge and spin, or of alpha and beta."""
    if n_channels == 1:
        return charge
    if by_spin:
        return charge if channel == 0 else mult - 1.0
    return 0.5 * charge + (0.5 if channel == 0 else -0.5) * (mult - 1.0)


@part
def _rotate(values: F64, first: int, last: int, factor: float) -> None:
    """(a, b) -> factor (a + b, a - b) for atoms `first` to `last` - 1."""
    for i in range(first, last):
        a, b = values[i, 0], values[i, 1]
        values[i, 0] = factor * (a + b)
        values[i, 1] = factor * (a - b)


@part
def _clear_spin(values: F64, first: int, last: int, mult: float) -> None:
    """No atom of a system of multiplicity 1 has spin."""
    if abs(mult - 1.0) <= 0.5:
        for i in range(first, last):
            values[i, 1] = 0.0


@part
def equilibrate(
    systems: FlatSystems, by_spin: bool, exact: bool, stage: int, charges: F64, response: F64, share: F64, weight: F64
) -> None:
    """Make the unconstrained `charges` (n, C) e sum to the totals of their systems, in place.

    `response` (stages, n, C) holds the unsquared weights. Kept for the derivative: the missing charge per weight
    `share` and the sum of weights `weight`, both (stages, B, C).
    """
    smallest = MINIMUM_WEIGHT if exact else 0.0
    n_channels = charges.shape[1]
    for b in range(systems.charge.shape[0]):
        first, last = systems.offsets[b], systems.offsets[b + 1]
        if by_spin:
            _rotate(charges, first, last, 1.0)
            _clear_spin(charges, first, last, systems.mult[b])
        for c in range(n_channels):
            missing = _total(systems.charge[b], systems.mult[b], n_channels, by_spin, c)
            total = 0.0 if exact else MINIMUM_WEIGHT
            for i in range(first, last):
                missing -= charges[i, c]
                total += response[stage, i, c] * response[stage, i, c] + smallest
            share[stage, b, c] = missing / total
            weight[stage, b, c] = total
            for i in range(first, last):
                charges[i, c] += (response[stage, i, c] * response[stage, i, c] + smallest) * share[stage, b, c]
        if by_spin:
            _rotate(charges, first, last, 0.5)


@part
def differentiate_equilibration(
    systems: FlatSystems, by_spin: bool, exact: bool, stage: int, response: F64, share: F64, weight: F64,
    d_charges: F64, d_response: F64,
) -> None:  # fmt: skip
    """Derivatives by the unconstrained charges, in place of those by the charges `d_charges`, and by `response`.

    With q_i = q~_i + w_i L, L = (Q - sum q~) / W: dE/dq~_i = g_i - s and dE/dw_i = (g_i - s) L, where
    s = sum_k g_k w_k / W.
    """
    smallest = MINIMUM_WEIGHT if exact else 0.0
    for b in range(systems.charge.shape[0]):
        first, last = systems.offsets[b], systems.offsets[b + 1]
        if by_spin:
            _rotate(d_charges, first, last, 0.5)
        for c in range(d_charges.shape[1]):
            mean = 0.0
            for i in range(first, last):
                mean += d_charges[i, c] * (response[stage, i, c] * response[stage, i, c] + smallest)
            mean /= weight[stage, b, c]
            for i in range(first, last):
                d_charges[i, c] -= mean
                d_response[i, c] = 2.0 * response[stage, i, c] * d_charges[i, c] * share[stage, b, c]
        if by_spin:
            _clear_spin(d_charges, first, last, systems.mult[b])
            _rotate(d_charges, first, last, 1.0)
