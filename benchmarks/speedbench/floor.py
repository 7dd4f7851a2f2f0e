"""The floor: what the matrix products of the network alone take.

Forward, each atom goes through 2.21 million multiplications; its gradient by the inputs takes as many again, so energy
and forces are 8.85 MFLOP per atom. A training step with forces is three times that: the products of the forward and the
backward pass, and those of their derivatives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

FORCES_FLOP = 8.85e6  # per atom, energy and forces
TRAINING_FLOP = 26.6e6  # per atom, training step with forces
MAX_ROWS = 1024  # more rows are not multiplied faster
# widths of the network's layers at the published size, one charge channel
LAYERS = (
    *((704, 512), (512, 380), (380, 258)),
    *((733, 512), (512, 380), (380, 258)),
    *((733, 512), (512, 380), (380, 380), (380, 256)),
    *((256, 128), (128, 128)),
)
WARM_CALLS = 3


def product_rates(rows: Sequence[int], seconds: float) -> dict[int, float]:
    """FLOP per second of CPU time of float32 products with the network's weights, forward and backward, by rows."""
    return {count: _rate(count, seconds) for count in rows}


def _rate(rows: int, seconds: float) -> float:
    multiply, flop = _products(rows)
    for _ in range(WARM_CALLS):
        multiply()
    calls, started, wall = 0, time.process_time(), time.perf_counter()
    while calls == 0 or time.perf_counter() - wall < seconds:
        multiply()
        calls += 1
    return calls * flop / (time.process_time() - started)


def _products(rows: int) -> tuple[Callable[[], None], float]:
    """A function that multiplies `rows` vectors by all weights and their transposes, and its FLOP."""
    import torch

    # every layer with weights and outputs of its own, as in the network: nothing stays in the cache for free
    jobs = []
    for n_in, n_out in LAYERS:
        weight = torch.randn(n_out, n_in)
        x, gradient = torch.randn(rows, n_in), torch.randn(rows, n_out)
        jobs.append((x, weight.t(), torch.empty(rows, n_out)))
        jobs.append((gradient, weight, torch.empty(rows, n_in)))

    def multiply() -> None:
        for left, right, out in jobs:
            torch.mm(left, right, out=out)

    return multiply, 4.0 * rows * sum(n_in * n_out for n_in, n_out in LAYERS)
