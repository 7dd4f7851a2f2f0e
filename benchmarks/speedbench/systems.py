"""What is computed: molecules, droplets and a box of water, a batch of drug molecules, training data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.io import iread
from numpy.typing import NDArray

SITE = 29.9 ** (1 / 3)  # Å; 29.9 Å^3 is the volume of a water molecule at 1 g/cm^3
MOLECULES = Path(__file__).resolve().parent.parent / "molecules.xyz"
NAMED = {10: "acetone", 20: "paracetamol", 50: "loratadine", 113: "paclitaxel"}
SIZES = (3, 10, 20, 50, 99, 113, 198, 399, 999, 3000, 9999)
TRIALS = 20  # orientations that are tried for each water molecule
COPIES = 5  # of each of the molecules of the batch
# molecules of 12 atoms among those of ASE
TWELVE_ATOMS = ("C6H6", "CH3CH2OCH3", "isobutene", "cyclobutane")


def system(n_atoms: int) -> Atoms:
    """The structure of this size: a drug molecule, or a droplet of water.

    Raises
    ------
    ValueError
        Neither is possible.
    """
    if n_atoms in NAMED:
        return next(a for a in drugs() if a.info["name"] == NAMED[n_atoms])
    if n_atoms < 3 or n_atoms % 3:
        raise ValueError(
            f"no structure of {n_atoms} atoms; give a multiple of 3 (water), or {', '.join(map(str, NAMED))}"
        )
    return droplet(n_atoms // 3)


def drugs() -> list[Atoms]:
    """All molecules of `molecules.xyz`."""
    return structures(MOLECULES)


def structures(path: str | Path) -> list[Atoms]:
    """All structures of a file."""
    return list(iread(path, ":"))


def batch() -> list[Atoms]:
    """250 molecules of 10 to 40 atoms: the 50 smallest drugs, displaced at random."""
    random = np.random.default_rng(0)
    return [displaced(a, 0.05, random) for a in sorted(drugs(), key=len)[:50] for _ in range(COPIES)]


def displaced(atoms: Atoms, distance: float, random: np.random.Generator) -> Atoms:
    """A copy with every coordinate moved by a normally distributed amount of this standard deviation in Å."""
    copy = atoms.copy()
    copy.positions += random.normal(scale=distance, size=copy.positions.shape)
    return copy


def droplet(n_molecules: int) -> Atoms:
    """Water molecules at the density of the liquid, those of a lattice that are nearest to its middle."""
    sites = _lattice(int(np.ceil(n_molecules ** (1 / 3))) + 1)
    middle = sites.mean(0) + 0.01  # off the symmetric point, so that no two sites are equally far
    nearest = np.argsort(np.linalg.norm(sites - middle, axis=1), kind="stable")[:n_molecules]
    return _water_on(sites[nearest], None)


def water_box(side: int = 4) -> Atoms:
    """A periodic cube with side^3 water molecules at the density of the liquid."""
    return _water_on(_lattice(side), side * SITE)


def training_molecules(count: int) -> list[Atoms]:
    """Molecules of 12 atoms, displaced at random."""
    random = np.random.default_rng(1)
    return [displaced(molecule(TWELVE_ATOMS[i % len(TWELVE_ATOMS)]), 0.05, random) for i in range(count)]


def _lattice(side: int) -> NDArray[np.float64]:
    axis = SITE * np.arange(side, dtype=np.float64)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)


def _water_on(sites: NDArray[np.float64], period: float | None) -> Atoms:
    """One water molecule per site, each turned away from those before it as well as a few random turns can."""
    random = np.random.default_rng(0)
    water = molecule("H2O")
    water.positions -= water.get_center_of_mass()
    placed = np.full((len(sites), 3, 3), np.inf)
    for i, (site, before) in enumerate(zip(sites, _earlier_neighbors(sites, period), strict=True)):
        turns = [water.positions @ rotation.T for rotation in _rotations(TRIALS, random)]
        trials = site + np.array(turns) + random.normal(scale=0.05, size=3)
        others = placed[before].reshape(-1, 3)
        placed[i] = trials[int(np.argmax([_closest(trial, others, period) for trial in trials]))]
    cell = None if period is None else [period] * 3
    return Atoms("OH2" * len(sites), placed.reshape(-1, 3), cell=cell, pbc=period is not None)


def _rotations(count: int, random: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """Uniform random rotation matrices, from normalised quaternions of normal numbers."""
    for q in random.normal(size=(count, 4)):
        w, x, y, z = q / np.linalg.norm(q)
        yield np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
        )


def _earlier_neighbors(sites: NDArray[np.float64], period: float | None) -> Sequence[NDArray[np.int64]]:
    """For each site those before it that are no further than the corner of its lattice cube."""
    found = []
    for i, site in enumerate(sites):
        distance = np.linalg.norm(_nearest_image(sites[:i] - site, period), axis=1)
        found.append(np.flatnonzero(distance < 1.8 * SITE))
    return found


def _closest(trial: NDArray[np.float64], others: NDArray[np.float64], period: float | None) -> float:
    if not len(others):
        return np.inf
    return float(np.linalg.norm(_nearest_image(trial[:, None] - others, period), axis=-1).min())


def _nearest_image(vectors: NDArray[np.float64], period: float | None) -> NDArray[np.float64]:
    return vectors if period is None else vectors - period * np.round(vectors / period)
