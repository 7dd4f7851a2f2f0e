"""Memory of one evaluation, kept from one evaluation to the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from aimnet2mult.engine.basis import EDGE_SIZE
from aimnet2mult.engine.jit import F32, F64
from aimnet2mult.engine.weights import Network, aligned

# rows that pass through a perceptron together: their activations stay in the cache of the core
MAX_ROWS: Final = 120
# memory grows by more than is needed, so that it does not grow at every step of a simulation
_RESERVE: Final = 1.1


class Arrays(NamedTuple):
    """What an evaluation writes. Flat arrays of float32 unless said; n atoms, E edges, B systems, T passes."""

    edge: F32  # (E, EDGE_SIZE)
    gaussians: F32  # (E, width)
    values: F32  # (T, n, F + C, width): features and charges at the start of each pass
    combinations: F32  # (T, n, F + C, 3, length_width)
    slopes: F32  # derivatives of activations: per layer (n, columns)
    update: F32  # (n, row_size) outputs of a pass
    features: F32  # (n, last_width) what the heads read
    d_values: F32  # (n, F + C, width)
    d_sums: F32  # (n, F + C, 4, width) if there are several threads, otherwise of one atom
    # float64, with room for at least as many
    charges: F64  # (n, C) e
    d_charges: F64  # (n, C)
    response: F64  # (T, n, C): unsquared weights of the equilibrations; the last is the head's
    d_response: F64  # (n, C)
    share: F64  # (T, B, C)
    weight: F64  # (T, B, C)


class Scratch(NamedTuple):
    """What one thread writes and nobody reads later."""

    basis: F32  # (edges of an atom, 4, width)
    d_basis: F32  # the same
    sums: F32  # (F + C, 4, width) of one atom
    rows: F32  # (4, MAX_ROWS, row_size)
    factors: F32  # (3, length_width)


class Workspace:
    """Memory lent by a `Pool`; it goes back when the last record that uses it is gone."""

    def __init__(self, pool: Pool, arrays: Arrays, scratches: list[Scratch]) -> None:
        self._pool = pool
        self.arrays = arrays
        self.scratches = scratches

    def __del__(self) -> None:
        self._pool.take_back((self.arrays, self.scratches))


class Pool:
    """Lends memory to evaluations, which may run in several threads, and keeps what came back last."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._free: deque[tuple[Arrays, list[Scratch]]] = deque(maxlen=2)

    def lend(self, n_atoms: int, n_edges: int, n_systems: int, most_edges: int, n_threads: int) -> Workspace:
        """Memory for so many atoms, edges, systems, edges of one atom and threads."""
        shapes = _shapes(self._network, n_atoms, n_edges, n_systems, n_threads)
        scratch_shapes = _scratch_shapes(self._network, most_edges)
        try:
            arrays, scratches = self._free.pop()
        except IndexError:
            arrays, scratches = None, []
        if arrays is None or not _fits(arrays, shapes):
            arrays = Arrays(**_allocated(shapes))
        scratches = [scratch for scratch in scratches if _fits(scratch, scratch_shapes)][:n_threads]
        while len(scratches) < n_threads:
            scratches.append(Scratch(**_allocated(scratch_shapes)))
        return Workspace(self, arrays, scratches)

    def take_back(self, memory: tuple[Arrays, list[Scratch]]) -> None:
        """Keep memory for the next evaluation."""
        self._free.append(memory)


def _fits(arrays: Arrays | Scratch, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    pairs = [(getattr(arrays, name).shape, shape) for name, shape in shapes.items()]
    return all(have >= need for large, small in pairs for have, need in zip(large, small, strict=True))


def _allocated(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    arrays: dict[str, F32 | F64] = {}
    for name, shape in shapes.items():
        more = tuple(int(size * _RESERVE) for size in shape[:-1])
        arrays[name] = aligned(int(shape[0] * _RESERVE)) if len(shape) == 1 else np.empty((*more, shape[-1]))
    return arrays


def _shapes(net: Network, n: int, n_edges: int, n_systems: int, n_threads: int) -> dict[str, tuple[int, ...]]:
    """Shapes of `Arrays`; arrays of float32 are flat."""
    channels, c = net.n_features + net.n_charges, net.n_charges
    return {
        "edge": (n_edges * EDGE_SIZE,),
        "gaussians": (n_edges * net.width,),
        "values": (net.n_passes * n * channels * net.width,),
        "combinations": (net.n_passes * n * channels * 3 * net.length_width,),
        "slopes": (n * net.slopes,),
        "update": (n * net.row_size,),
        "features": (n * net.last_width,),
        "d_values": (n * channels * net.width,),
        "d_sums": ((n if n_threads > 1 else 1) * channels * 4 * net.width,),
        "charges": (n, c),
        "d_charges": (n, c),
        "response": (net.n_passes, n, c),
        "d_response": (n, c),
        "share": (net.n_passes, n_systems, c),
        "weight": (net.n_passes, n_systems, c),
    }


def _scratch_shapes(net: Network, most_edges: int) -> dict[str, tuple[int, ...]]:
    return {
        "basis": (most_edges * 4 * net.width,),
        "d_basis": (most_edges * 4 * net.width,),
        "sums": ((net.n_features + net.n_charges) * 4 * net.width,),
        "rows": (4 * MAX_ROWS * net.row_size,),
        "factors": (3 * net.length_width,),
    }
