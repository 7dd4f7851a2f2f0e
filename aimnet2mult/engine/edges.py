"""Edges of structures for the engine, found anew for every geometry: 1 to 3 % of the time that the network takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aimnet2mult.engine.edge_kernels import cell_edges, molecule_edges, sum_over_edges
from aimnet2mult.engine.records import Edges
from aimnet2mult.physics.lattice import complete_cell, mapped

# Atoms of a molecule. Up to here looking at all pairs is quicker than sorting atoms into bins.
ALL_PAIRS_UP_TO: Final = 1000


class NearestImages(NamedTuple):
    """The shortest distance between two atoms, images of the cell included."""

    first: int
    second: int
    square: float  # Å^2, infinite if there is no pair within the cutoff
    shift: NDArray[np.int64]  # (3,) lattice translation of the second atom as it stands


class FoundEdges(NamedTuple):
    """Edges of one structure."""

    edges: Edges
    nearest: NearestImages | None  # None: not looked for


class Derivatives(NamedTuple):
    """First derivatives of the energies of several systems."""

    gradient: NDArray[np.float64]  # (n, 3) eV/Å, by the positions of all atoms
    virial: NDArray[np.float64]  # (B, 3, 3) eV, by the strain e of x' = x (1 + e)


def find_edges(coord: NDArray[np.float64], cell: NDArray[np.float64], cutoff: float) -> FoundEdges:
    """Edges of one molecule or cell of any shape.

    Parameters
    ----------
    coord
        (n, 3) Å, finite; atoms may stand outside the cell.
    cell
        (3, 3) Å, one vector per row; zeros in directions that are not periodic.
    cutoff
        Å.
    """
    if len(coord) <= ALL_PAIRS_UP_TO and not cell.any():
        return FoundEdges(Edges(*molecule_edges(coord, cutoff)), None)
    periodic: NDArray[np.bool_] = np.any(cell, axis=1)
    box = complete_cell(cell)
    inverse = np.linalg.inv(box)
    fraction = mapped(coord, inverse)
    home = np.where(periodic, np.floor(fraction), 0.0)
    fraction -= np.where(periodic, home, fraction.min(axis=0))
    extent = np.where(periodic, 1.0, fraction.max(axis=0))
    n_bins, reach = _bins(extent / np.linalg.norm(inverse, axis=0), periodic, cutoff, len(coord))
    scale = n_bins / np.where(extent > 0.0, extent, 1.0)
    bins = np.minimum((fraction * scale).astype(np.int64), n_bins - 1)
    *arrays, first, second, square, step = cell_edges(
        coord - mapped(home, box), box, periodic, bins, n_bins, reach, cutoff
    )
    shift = step + (home[first] - home[second]).astype(np.int64)
    return FoundEdges(Edges(*arrays), NearestImages(int(first), int(second), float(square), shift))


def joined(edges: Sequence[Edges]) -> Edges:
    """Edges of several systems as those of one, whose atoms stand one system after another."""
    if len(edges) == 1:
        return edges[0]
    n_edges = np.cumsum([0, *(len(one.neighbor) for one in edges)])
    n_atoms = np.cumsum([0, *(len(one.start) - 1 for one in edges)])
    return Edges(
        np.concatenate([*(one.start[:-1] + k for one, k in zip(edges, n_edges[:-1], strict=True)), n_edges[-1:]]),
        np.concatenate([one.neighbor + np.int32(k) for one, k in zip(edges, n_atoms[:-1], strict=True)]),
        np.concatenate([one.vector for one in edges]),
        np.concatenate([one.reverse + np.int32(k) for one, k in zip(edges, n_edges[:-1], strict=True)]),
    )


def within(edges: Edges, cutoff: float) -> Edges:
    """The edges that are shorter than `cutoff` (Å)."""
    kept = np.einsum("ec,ec->e", edges.vector, edges.vector) < cutoff * cutoff
    before = np.concatenate([[0], np.cumsum(kept)])
    return Edges(
        before[edges.start], edges.neighbor[kept], edges.vector[kept], before[edges.reverse[kept]].astype(np.int32)
    )


def derivatives(edges: Edges, by_vector: NDArray[np.float64], offsets: NDArray[np.int64]) -> Derivatives:
    """Derivatives by positions and strain from those by the vectors of edges.

    Parameters
    ----------
    edges
        Of all systems.
    by_vector
        (E, 3) eV/Å.
    offsets
        (B + 1,) where each system begins, and the end.
    """
    return Derivatives(*sum_over_edges(edges.start, edges.neighbor, edges.vector, by_vector, offsets))


def _bins(
    length: NDArray[np.float64], periodic: NDArray[np.bool_], cutoff: float, n_atoms: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of bins along each vector, and how many of them to either side the cutoff reaches.

    Bins of half the cutoff leave twice the volume of its sphere to look at. Where atoms are few in much space, there
    are no more bins than a few per atom.
    """
    n_bins = np.maximum(np.minimum(length / (0.5 * cutoff), 1e6).astype(np.int64), 1)
    while n_bins.prod() > 8 * n_atoms + 64:
        n_bins[n_bins.argmax()] //= 2
    side = length / n_bins
    reach = np.ceil(cutoff / np.where(side > 0.0, side, cutoff)).astype(np.int64)
    return n_bins, np.where(periodic, reach, np.minimum(reach, n_bins - 1))
