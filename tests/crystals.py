"""Periodic structures and potentials without long-range terms, for tests of the calculator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import suites
import torch
from ase import Atoms
from ase.build import molecule
from ase.data import atomic_numbers
from conftest import FIDELITIES, Springs, write_fidelity
from scipy.spatial.transform import Rotation
from torch import Tensor

from aimnet2mult.models.files import read_metadata, script_potential, write_potential
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.models.potential import Potential, SelfAtomicEnergy
from aimnet2mult.physics.radial import cosine_cutoff
from aimnet2mult.types import Pairs


class LennardJones(Springs):
    """Holds atoms of random networks in close packing: wells of 0.5 eV at 2.5 Å of all pairs within 5 Å."""

    def _wells(self, pairs: Pairs) -> Tensor:
        r = pairs.distance.to(torch.float64)
        attraction = (2.5 / torch.where(pairs.mask, r, 2.5 * torch.ones_like(r))).pow(6)
        well = 0.5 * (attraction.square() - 2.0 * attraction) * cosine_cutoff(r, 5.0)
        return torch.where(pairs.mask, well, torch.zeros_like(well))


def short_ranged(path: Path, seed: int = 0, fidelity: int = 0, wells: Springs | None = None) -> Path:
    """A potential without long-range Coulomb in ``<path>_fid<fidelity>.jpt``; `wells` in place of `Springs`."""
    torch.manual_seed(seed)
    network = MultiFidelityNetwork(suites.model_config(num_fidelities=2, outputs={"lrcoulomb": None})).double()
    suites.perturbed(network, seed, scale=0.1)  # little enough that bonds keep chemical frequencies
    written = write_fidelity(network, FIDELITIES[fidelity], path)
    if wells is not None:
        metadata = read_metadata(written)
        sae = SelfAtomicEnergy({atomic_numbers[symbol]: energy for symbol, energy in metadata.sae.items()})
        potential = Potential(network.at_fidelity(fidelity).float(), sae, [wells])
        write_potential(written, script_potential(potential), metadata)
    return written


def water_box(n_molecules: int, length: float = 3.1, seed: int = 0) -> Atoms:
    """Water molecules in random orientations on a cubic lattice, `length` Å apart (3.1: the density of water)."""
    per_side = round(n_molecules ** (1 / 3))
    assert per_side**3 == n_molecules
    sites = np.stack(np.meshgrid(*[np.arange(per_side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3) * length
    turned = Rotation.random(n_molecules, random_state=seed).as_matrix() @ molecule("H2O").positions.T
    positions = (sites[:, None] + turned.transpose(0, 2, 1)).reshape(-1, 3)
    return Atoms("OH2" * n_molecules, positions, cell=[per_side * length] * 3, pbc=True)


def crystal(kind: str) -> Atoms:
    """Formaldehyde without symmetry in cells of several shapes."""
    cells = {
        "triclinic": [[4.6, 0.0, 0.0], [1.1, 4.4, 0.0], [-0.8, 1.3, 5.0]],
        "left-handed": [[0.0, 4.4, 0.6], [4.7, 0.5, 0.0], [0.4, 0.0, 4.9]],
        "thin": [[3.1, 0.0, 0.0], [0.4, 5.8, 0.0], [0.3, 0.5, 7.5]],
    }
    atoms = suites.structure("H2CO")
    return Atoms(atoms.symbols, atoms.positions + np.array([0.3, -7.0, 2.0]), cell=cells[kind], pbc=True)
