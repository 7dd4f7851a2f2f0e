"""The network in periodic systems, and in molecules through neighbour lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import suites
import torch
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.lattice.cubic import SimpleCubic
from torch import Tensor

from aimnet2mult.calculators.neighbors import Frame, VerletLists, door_entries
from aimnet2mult.models.derivatives import forces_and_stress, strained
from aimnet2mult.models.files import script_potential
from aimnet2mult.models.potential import Potential, SelfAtomicEnergy

SAE = dict.fromkeys([1, 6, 7, 8, 9, 14, 15, 16, 17], -2.0)
CUTOFF = 5.0
# float64 through the network: rounding of 1e-15 relative in each of a few thousand operations
ROUNDING = 1e-10


class Found(NamedTuple):
    energy: Tensor  # (B,)
    forces: Tensor  # (B, N, 3)
    stress: Tensor  # (B, 3, 3)
    charges: Tensor  # (B, N)
    spin_charges: Tensor  # (B, N)


def potential(**changes: Any) -> torch.jit.ScriptModule:
    """A small scripted network without long-range Coulomb, in float64."""
    settings = {"outputs": {"lrcoulomb": None}} | changes
    return script_potential(Potential(suites.network(**settings).at_fidelity(1), SelfAtomicEnergy(SAE)))


@pytest.fixture(scope="module")
def module() -> torch.jit.ScriptModule:
    return potential()


def listed(module: torch.jit.ScriptModule, systems: Sequence[Atoms], extra: int = 0) -> Found:
    """Evaluate systems through neighbour lists, with `extra` slots of padding."""
    batch = suites.collate(systems, extra=extra)
    cells = [atoms.cell.array * atoms.pbc[:, None] for atoms in systems]
    frames = [Frame(atoms.positions, cell) for atoms, cell in zip(systems, cells, strict=True)]
    n_slots = batch.numbers.shape[1]
    lists = door_entries([VerletLists().update(f, CUTOFF, 0.0) for f in frames], cells, n_slots, torch.device("cpu"))
    coord = batch.coord.clone().requires_grad_()
    deformed = strained(coord, lists["cell"])
    data = lists | {"coord": deformed.coord, "cell": deformed.cell, "numbers": batch.numbers}
    found = module(data | {"charge": batch.charge, "mult": batch.mult})
    forces, stress = forces_and_stress(found["energy"], coord, deformed)
    return Found(found["energy"].detach(), forces, stress, found["charges"].detach(), found["spin_charges"].detach())


def unlisted(module: torch.jit.ScriptModule, systems: Sequence[Atoms]) -> suites.Results:
    def evaluate(molecules: Any) -> Any:
        names = ("coord", "numbers", "charge", "mult")
        found = module({name: getattr(molecules, name) for name in names})
        return suites.Prediction(found["energy"], found["charges"], found["spin_charges"])

    return suites.results(evaluate, suites.collate(systems))


def crystal(name: str) -> Atoms:
    """A periodic structure with every symmetry broken."""
    rng = np.random.default_rng(len(name))
    atoms = {
        "salt": lambda: bulk("SiC", "zincblende", 4.3, cubic=True),
        "one atom": lambda: bulk("C", "sc", 1.9),
        "triclinic": lambda: Atoms(
            "CHONHCl", rng.uniform(0, 1, (6, 3)) @ np.diag([5, 6, 7]), cell=[5.2, 6.1, 7.3, 80, 97, 108], pbc=True
        ),
        "left-handed": lambda: Atoms(
            "OHHN", rng.uniform(0, 4, (4, 3)), cell=[[0, 4.5, 0.3], [4.1, 0.2, 0], [0.7, 0, 5.0]], pbc=True
        ),
        "thin": lambda: Atoms("CO", [[0, 0, 0], [0.3, 1.2, 0.1]], cell=[2.1, 9.0, 8.0], pbc=True),
        "slab": lambda: Atoms("COHH", rng.uniform(0, 3, (4, 3)), cell=[3.3, 4.1, 0], pbc=[True, True, False]),
        "wire": lambda: Atoms("CFH", rng.uniform(0, 2, (3, 3)), cell=[0, 0, 2.7], pbc=[False, False, True]),
    }[name]()
    if name not in ("one atom",):
        atoms.positions += rng.normal(scale=0.05, size=(len(atoms), 3))
    electrons = int(atoms.numbers.sum())
    atoms.info = {"charge": 0, "mult": 1 + electrons % 2}
    return atoms


FULLY_PERIODIC = ["salt", "one atom", "triclinic", "left-handed", "thin"]


@pytest.mark.parametrize(
    "changes", [{}, {"num_charge_channels": 1, "d2features": False}], ids=["two channels", "one channel"]
)
def test_lists_and_all_pairs_give_the_same(changes: dict[str, Any]) -> None:
    """Molecules, ions and radicals of different sizes in one padded batch."""
    module, molecules = potential(**changes), suites.structures()
    expected, found = unlisted(module, molecules), listed(module, molecules, extra=2)
    n = expected.charges.shape[1]
    suites.assert_close(found.energy, expected.energy)
    for key in ("forces", "charges", "spin_charges"):
        suites.assert_close(getattr(found, key)[:, :n], getattr(expected, key))
        assert (getattr(found, key)[:, n:] == 0.0).all()


@pytest.mark.parametrize("name", [*FULLY_PERIODIC, "slab", "wire"])
def test_forces_are_the_gradient(module: torch.jit.ScriptModule, name: str) -> None:
    """Five-point differences with steps of 1e-4 Å: truncation 1e-12, rounding 1e-11 eV/Å."""
    atoms, step = crystal(name), 1e-4
    forces = listed(module, [atoms]).forces[0]
    for i, axis in ((0, 0), (len(atoms) - 1, 2)):
        moved = []
        for k in (-2, -1, 1, 2):
            other = atoms.copy()
            other.positions[i, axis] += k * step
            moved.append(other)
        e = listed(module, moved).energy
        expected = -(e[0] - 8 * e[1] + 8 * e[2] - e[3]) / (12 * step)
        assert abs(forces[i, axis] - expected) < 1e-9
    if len(atoms) > 1:
        assert forces.abs().max() > 1e-4, "forces this small test nothing"
    suites.assert_close(forces.sum(0), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("name", FULLY_PERIODIC)
def test_stress_is_the_strain_derivative(module: torch.jit.ScriptModule, name: str) -> None:
    """All six components, five-point differences with strains of 1e-4; the bar is 1e-6 eV/Å^3."""
    atoms, step = crystal(name), 1e-4
    stress = listed(module, [atoms]).stress[0]
    assert stress.abs().max() > 1e-5, "a stress this small tests nothing"
    for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        deformed = []
        for k in (-2, -1, 1, 2):
            strain = np.eye(3)
            strain[i, j] += 0.5 * k * step
            strain[j, i] += 0.5 * k * step
            other = atoms.copy()
            other.set_cell(atoms.cell.array @ strain, scale_atoms=False)
            other.positions = atoms.positions @ strain
            deformed.append(other)
        e = listed(module, deformed).energy
        expected = (e[0] - 8 * e[1] + 8 * e[2] - e[3]) / (12 * step) / atoms.get_volume()
        assert abs(stress[i, j] - expected) < 1e-9


@pytest.mark.parametrize("name", FULLY_PERIODIC)
def test_a_supercell_is_so_many_cells(module: torch.jit.ScriptModule, name: str) -> None:
    atoms = crystal(name)
    if atoms.info["mult"] == 2:
        atoms.info = {"charge": 1, "mult": 1}  # two or six radicals would have to say how their spins couple
    large = make_supercell(atoms, [[1, 1, 0], [-1, 1, 0], [0, 0, 3]])
    n = len(large) // len(atoms)
    assert n == 6
    large.info = {"charge": n * atoms.info["charge"], "mult": 1}
    one, many = listed(module, [atoms]), listed(module, [large])
    suites.assert_close(many.energy, n * one.energy)
    suites.assert_close(many.stress, one.stress)
    suites.assert_close(many.charges.sort().values, one.charges.repeat(1, n).sort().values)


@pytest.mark.parametrize("name", [*FULLY_PERIODIC, "slab", "wire"])
def test_wrapping_and_shifting_change_nothing(module: torch.jit.ScriptModule, name: str) -> None:
    atoms = crystal(name)
    rng = np.random.default_rng(3)
    moved = atoms.copy()
    moved.positions += rng.integers(-4, 5, (len(atoms), 3)) @ (atoms.cell.array * atoms.pbc[:, None]) + [1.3, -0.4, 2.0]
    before, after = listed(module, [atoms]), listed(module, [moved])
    # positions tens of Å away hold distances to 1e-14 Å
    for key in ("energy", "forces", "charges", "spin_charges"):
        suites.assert_close(getattr(after, key), getattr(before, key))


def test_a_molecule_in_a_large_box_is_the_free_molecule(module: torch.jit.ScriptModule) -> None:
    for free in suites.structures()[::5]:
        boxed = free.copy()
        boxed.info = free.info
        boxed.cell, boxed.pbc = [30.0, 31.0, 32.0], True
        found, expected = listed(module, [boxed]), unlisted(module, [free])
        suites.assert_close(found.energy, expected.energy)
        suites.assert_close(found.forces, expected.forces)


def test_different_cells_in_one_batch(module: torch.jit.ScriptModule) -> None:
    systems = [crystal(name) for name in FULLY_PERIODIC]
    together = listed(module, systems, extra=1)
    for row, atoms in enumerate(systems):
        alone = listed(module, [atoms])
        n = len(atoms)
        suites.assert_close(together.energy[row], alone.energy[0])
        suites.assert_close(together.stress[row], alone.stress[0])
        for key in ("forces", "charges", "spin_charges"):
            suites.assert_close(getattr(together, key)[row, :n], getattr(alone, key)[0])


def test_rotating_cell_and_atoms_together(module: torch.jit.ScriptModule) -> None:
    atoms = crystal("triclinic")
    turned = atoms.copy()
    turned.rotate(37.0, (1.0, -2.0, 0.5), rotate_cell=True)
    before, after = listed(module, [atoms]), listed(module, [turned])
    turn = torch.from_numpy(np.linalg.solve(atoms.cell.array, turned.cell.array))
    suites.assert_close(after.energy, before.energy)
    suites.assert_close(after.forces[0], before.forces[0] @ turn, 1e-9)
    suites.assert_close(after.stress[0], turn.T @ before.stress[0] @ turn, 1e-9)


def test_smooth_while_the_lattice_passes_the_cutoff(module: torch.jit.ScriptModule) -> None:
    """One atom whose six neighbours leave the cutoff together: energy and stress without a step."""
    lattice = np.arange(4.9, 5.1, 0.002)
    systems = []
    for a in lattice:
        atoms = SimpleCubic("O", latticeconstant=float(a))
        atoms.info = {"charge": 0, "mult": 1}
        systems.append(atoms)
    found = listed(module, systems)
    energy, stress = found.energy.numpy(), found.stress[:, 0, 0].numpy()
    # the cosine switch ends with zero slope: what happens in one step of 0.002 Å is second order in it
    assert np.abs(np.diff(energy)).max() < 1e-5
    assert np.abs(np.diff(stress)).max() < 1e-6
    assert abs(energy[0] - energy[-1]) > 1e-7, "nothing happens in this scan"


def test_what_a_periodic_system_needs_is_said(module: torch.jit.ScriptModule) -> None:
    atoms = crystal("salt")
    batch = suites.collate([atoms])
    data = {name: getattr(batch, name) for name in ("coord", "numbers", "charge", "mult")}
    with pytest.raises(Exception, match="a periodic system needs neighbor_index and neighbor_shift beside its cell"):
        module(data | {"cell": torch.from_numpy(atoms.cell.array).unsqueeze(0)})
