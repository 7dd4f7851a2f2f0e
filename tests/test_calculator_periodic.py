"""Crystals, slabs, wires and large systems through the calculator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import make_supercell
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from crystals import crystal, short_ranged, water_box
from structures import alkane, water

from aimnet2mult import AIMNet2MultCalculator
from aimnet2mult.calculators import preparation
from aimnet2mult.errors import InputError

# energies of 1e4 eV and a few thousand float64 operations: rounding leaves 1e-11 relative to energies
ENERGY, FORCE = 1e-8, 1e-9


@pytest.fixture(scope="module")
def short_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return short_ranged(tmp_path_factory.mktemp("short") / "short")


@pytest.fixture
def calc(short_file: Path) -> AIMNet2MultCalculator:
    return AIMNet2MultCalculator(short_file, device="cpu", dtype="float64")


@pytest.mark.parametrize("kind", ["triclinic", "left-handed", "thin"])
def test_stress_and_forces_are_derivatives(calc: AIMNet2MultCalculator, kind: str) -> None:
    """Strains of 1e-4: truncation about 1e-8 of the stress, rounding of 1e-12 eV / (1e-4 * 100 Å^3)."""
    atoms = crystal(kind)
    atoms.calc = calc
    stress, forces = atoms.get_stress(), atoms.get_forces()
    assert np.abs(stress).max() > 1e-3
    np.testing.assert_allclose(stress, calculate_numerical_stress(atoms, eps=1e-4), atol=1e-6)
    expected = calculate_numerical_forces(atoms, eps=1e-4)
    assert np.abs(forces - expected).max() < 1e-6 * max(1.0, np.abs(forces).max())
    np.testing.assert_allclose(forces.sum(axis=0), np.zeros(3), atol=FORCE)


@pytest.mark.parametrize("kind", ["triclinic", "thin"])
def test_supercell_is_n_cells(calc: AIMNet2MultCalculator, kind: str) -> None:
    small = crystal(kind)
    large = make_supercell(small, [[2, 0, 0], [1, 1, 0], [0, -1, 1]], order="atom-major")
    small.calc, large.calc = calc, calc
    energy, forces, stress = small.get_potential_energy(), small.get_forces(), small.get_stress()
    assert len(large) == 2 * len(small)
    assert large.get_potential_energy() == pytest.approx(2 * energy, abs=ENERGY)
    np.testing.assert_allclose(large.get_forces(), np.repeat(forces, 2, axis=0), atol=FORCE)
    np.testing.assert_allclose(large.get_stress(), stress, atol=FORCE)


def test_wrapping_and_translation_change_nothing(calc: AIMNet2MultCalculator) -> None:
    atoms, other = crystal("triclinic"), crystal("triclinic")
    other.positions += [[1.0, 2.0, 3.0]]
    other.wrap()
    other.positions[0] += [3, -2, 1] @ other.cell.array
    atoms.calc, other.calc = calc, calc
    expected = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(), atoms.get_charges()
    assert other.get_potential_energy() == pytest.approx(expected[0], abs=ENERGY)
    for found, wanted in zip((other.get_forces(), other.get_stress(), other.get_charges()), expected[1:], strict=True):
        np.testing.assert_allclose(found, wanted, atol=FORCE)


def test_molecule_in_a_large_box_is_the_free_molecule(calc: AIMNet2MultCalculator) -> None:
    free, boxed = water(charge=1), water(charge=1)
    boxed.set_cell([20, 21, 22])
    boxed.pbc = True
    free.calc = boxed.calc = calc
    energy, forces = free.get_potential_energy(), free.get_forces()
    assert "dipole" in calc.results
    assert boxed.get_potential_energy() == pytest.approx(energy, abs=ENERGY)
    np.testing.assert_allclose(boxed.get_forces(), forces, atol=FORCE)
    np.testing.assert_allclose(boxed.get_stress() * boxed.get_volume(), _virial(free, forces), atol=FORCE)


def _virial(atoms: Atoms, forces: np.ndarray) -> np.ndarray:
    """Sum of -x f of a free molecule in Voigt order."""
    full = -(atoms.positions - atoms.positions.mean(axis=0)).T @ forces
    return (0.5 * (full + full.T))[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


@pytest.mark.parametrize("pbc", [(True, True, False), (False, True, True), (False, False, True)])
def test_slabs_and_wires(calc: AIMNet2MultCalculator, pbc: tuple[bool, bool, bool]) -> None:
    """A slab is a crystal with a large distance between layers; its third cell vector means nothing."""
    atoms, spaced = crystal("triclinic"), crystal("triclinic")
    cell = atoms.cell.array.copy()
    atoms.pbc = pbc
    spaced.set_cell(np.where(np.array(pbc)[:, None], cell, 12 * cell))
    atoms.calc, spaced.calc = calc, calc
    assert spaced.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=ENERGY)
    np.testing.assert_allclose(atoms.get_forces(), spaced.get_forces(), atol=FORCE)
    atoms.set_cell(np.where(np.array(pbc)[:, None], cell, 0.0))
    np.testing.assert_allclose(atoms.get_forces(), spaced.get_forces(), atol=FORCE)
    n = sum(pbc)
    with pytest.raises(InputError) as caught:
        atoms.get_stress()
    assert str(caught.value) == (
        f"the stress of a system that is periodic in {n} of 3 directions is not defined; "
        "set pbc and a cell in all three directions"
    )


def test_what_is_not_defined(calc: AIMNet2MultCalculator) -> None:
    atoms, periodic = water(), crystal("triclinic")
    atoms.calc = periodic.calc = calc
    with pytest.raises(PropertyNotImplementedError) as caught:
        atoms.get_stress()
    assert isinstance(caught.value, InputError)
    sentence = "the stress of a molecule is not defined; set pbc and a cell in all three directions"
    assert str(caught.value) == sentence
    with pytest.raises(PropertyNotImplementedError, match="the dipole of a periodic system is not defined"):
        periodic.get_dipole_moment()
    periodic.get_potential_energy()
    assert "dipole" not in calc.results
    assert "stress" not in calc.results


def test_one_atom_in_a_cell(calc: AIMNet2MultCalculator) -> None:
    atoms = Atoms("C", cell=[[0, 1.3, 1.3], [1.3, 0, 1.3], [1.3, 1.3, 0]], pbc=True, positions=[[5.0, -3.0, 0.2]])
    atoms.calc = calc
    np.testing.assert_allclose(atoms.get_forces(), np.zeros((1, 3)), atol=FORCE)
    np.testing.assert_allclose(atoms.get_stress(), calculate_numerical_stress(atoms, eps=1e-4), atol=1e-6)
    pair = atoms * (2, 1, 1)
    pair.calc = calc
    energy = atoms.get_potential_energy()
    assert pair.get_potential_energy() == pytest.approx(2 * energy, abs=ENERGY)


def test_changes_of_the_cell(calc: AIMNet2MultCalculator, calls: list[bool]) -> None:
    atoms = crystal("triclinic")
    atoms.calc = calc
    energies = [atoms.get_potential_energy()]
    atoms.cell[2, 2] += 0.1
    energies.append(atoms.get_potential_energy())
    atoms.pbc = (True, True, False)
    energies.append(atoms.get_potential_energy())
    atoms.pbc = False
    energies.append(atoms.get_potential_energy())
    assert len(set(energies)) == len(calls) == 4
    atoms.cell[2, 2] += 0.1  # means nothing any more
    atoms.get_potential_energy()
    atoms.pbc = (True, True, False)
    assert atoms.get_potential_energy() == pytest.approx(energies[2], abs=ENERGY)
    atoms.cell[2, 2] += 0.1  # means nothing either
    atoms.get_potential_energy()
    assert len(calls) == 5


def test_one_pass_gives_forces_and_stress(calc: AIMNet2MultCalculator, calls: list[bool]) -> None:
    atoms = crystal("triclinic")
    atoms.calc = calc
    atoms.get_forces()
    atoms.get_stress()
    atoms.get_potential_energy()
    assert calls == [True]
    assert atoms.get_stress(voigt=False)[1, 2] == calc.results["stress"][3]


@pytest.mark.parametrize("dtype", ["mixed", "float64"])
def test_lists_and_all_pairs_give_the_same_numbers(
    short_file: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    atoms = alkane(30)
    atoms.positions += np.random.default_rng(0).normal(scale=0.05, size=atoms.positions.shape)
    calc = AIMNet2MultCalculator(short_file, device="cpu", dtype=dtype)
    atoms.calc = calc
    energy, forces, charges = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_charges()
    calc.reset()
    assert calc._verlet.builds == 0
    monkeypatch.setattr(preparation, "ALL_PAIRS_UP_TO", 50)
    energy_tolerance, tolerance = (1e-4, 1e-4) if dtype == "mixed" else (ENERGY, FORCE)  # a float32 network
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=energy_tolerance)
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=tolerance)
    np.testing.assert_allclose(atoms.get_charges(), charges, atol=tolerance)
    assert calc._verlet.builds == 1


def test_lists_are_reused(calc: AIMNet2MultCalculator) -> None:
    """And give what new ones give, while atoms and cell move."""
    atoms = water_box(8)
    atoms.calc = calc
    rng = np.random.default_rng(0)
    for step in range(12):
        atoms.set_cell(atoms.cell.array * (1.0 + 1e-4 * rng.normal(size=(3, 3))), scale_atoms=True)
        atoms.positions += rng.normal(scale=0.02, size=atoms.positions.shape)
        forces = atoms.get_forces()
        if step % 4 == 3:
            fresh = atoms.copy()
            (single,) = calc.evaluate([fresh], stress=True)
            np.testing.assert_allclose(forces, single.forces, atol=FORCE)
            np.testing.assert_allclose(atoms.get_stress(), single.stress, atol=FORCE)
    assert 1 <= calc._verlet.builds < 6
