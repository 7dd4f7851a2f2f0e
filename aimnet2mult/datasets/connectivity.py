"""Molecule identity from the structure: composition and bonding graph, whatever the charge.

A bond that is stretched beyond its usual length, or a contact that is shorter than usual, changes the graph.
So each geometry gets two graphs, of usual and of stretched bonds, and geometries that share
either are one molecule: a vibrating molecule stays one, at the price of merging a few isomers.
"""

from __future__ import annotations

import numpy as np
from ase.data import covalent_radii
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from aimnet2mult.datasets.checks import row_blocks, squared_distances
from aimnet2mult.datasets.scan import mix

BOND_FACTORS = (1.25, 1.5)  # atoms closer than this times the sum of their covalent radii are bonded
_ROUNDS = 8  # refinements: atoms are told apart by their surroundings up to this many bonds away
_TREE_ATOMS = 256


def molecule_keys(hashes: np.ndarray) -> np.ndarray:
    """Join geometries that share a graph.

    Parameters
    ----------
    hashes
        Result of `graph_hashes` for all geometries, (n, 2).

    Returns
    -------
    ndarray
        Keys (n,) int64, equal for geometries that are linked by shared graphs: the smallest first hash among them.
    """
    first, usual = np.unique(hashes[:, 0], return_inverse=True)
    stretched = np.unique(hashes[:, 1], return_inverse=True)[1] + len(first)
    size = len(first) + int(stretched.max(initial=0)) + 1
    links = coo_matrix((np.ones(len(hashes), dtype=bool), (usual, stretched)), shape=(size, size))
    label = connected_components(links, directed=False)[1][: len(first)]
    # `first` ascends, so the first member of each component is its smallest hash
    smallest, back = np.unique(label, return_index=True, return_inverse=True)[1:]
    return first[smallest[back]][usual]


def graph_hashes(coord: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Hashes of composition and bonding graph of each geometry, with usual and with stretched bonds.

    Bonds come from sums of covalent radii (Cordero et al., Dalton Trans. 2008, 2832, as tabulated in
    ASE). The graph is hashed by Weisfeiler-Lehman colour refinement (Shervashidze et al., J. Mach.
    Learn. Res. 2011, 12, 2539, Sec. 2.2), so that the order of atoms does not matter.

    Parameters
    ----------
    coord
        Positions (n, N, 3) in Å.
    numbers
        Atomic numbers (n, N).

    Returns
    -------
    ndarray
        Hashes (n, 2) int64, one column per entry of `BOND_FACTORS`.
    """
    n, natoms = numbers.shape
    hashes = np.empty((n, len(BOND_FACTORS)), dtype=np.int64)
    if natoms > _TREE_ATOMS:
        for row in range(n):
            hashes[row] = [_large_hash(coord[row], numbers[row].astype(np.int64), factor) for factor in BOND_FACTORS]
        return hashes
    for block in row_blocks(n, natoms):
        z = numbers[block].astype(np.int64)
        radii = covalent_radii[z]
        reach = radii[:, :, None] + radii[:, None, :]
        squared = squared_distances(coord[block])
        squared[:, np.arange(natoms), np.arange(natoms)] = np.inf
        usual, stretched = (squared < (factor * reach) ** 2 for factor in BOND_FACTORS)
        hashes[block, 0] = _hash(z, usual)
        hashes[block, 1] = hashes[block, 0]
        differ = (usual != stretched).any(axis=(1, 2))
        hashes[np.arange(n)[block][differ], 1] = _hash(z[differ], stretched[differ])
    return hashes


def _hash(z: np.ndarray, bonded: np.ndarray) -> np.ndarray:
    """Hash (n,) int64 of the graphs with adjacency `bonded` (n, N, N) on atoms `z` (n, N)."""
    colour = mix(z)
    zero = np.uint64(0)
    for _ in range(min(_ROUNDS, z.shape[1])):
        around = np.where(bonded, mix(colour)[:, None, :], zero).sum(axis=2, dtype=np.uint64)
        colour = mix(colour * np.uint64(3) + around)
    return mix(mix(colour).sum(axis=1, dtype=np.uint64)).view(np.int64)


def _large_hash(coord: np.ndarray, z: np.ndarray, factor: float) -> np.int64:
    """The same hash for one large molecule, by neighbour search."""
    radii = covalent_radii[z]
    pairs = cKDTree(coord).query_pairs(2 * factor * radii.max(), output_type="ndarray")
    first, second = pairs[:, 0], pairs[:, 1]
    distance = np.linalg.norm(coord[first].astype(np.float64) - coord[second].astype(np.float64), axis=1)
    bonded = distance < factor * (radii[first] + radii[second])
    first, second = first[bonded], second[bonded]
    colour = mix(z)
    for _ in range(_ROUNDS):
        scattered = mix(colour)
        around = np.zeros_like(colour)
        np.add.at(around, first, scattered[second])
        np.add.at(around, second, scattered[first])
        colour = mix(colour * np.uint64(3) + around)
    return mix(mix(colour).sum(dtype=np.uint64, keepdims=True)).view(np.int64)[0]
