"""The ASE calculator: its results, its cache, and ASE's own tools on top of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import suites
import torch
from ase import Atoms, units
from ase.calculators.fd import calculate_numerical_forces
from ase.calculators.mixing import SumCalculator
from ase.constraints import FixAtoms
from ase.db import connect
from ase.io import Trajectory
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.vibrations import Vibrations
from structures import alkane, water

from aimnet2mult import AIMNet2MultCalculator
from aimnet2mult.errors import InputError
from aimnet2mult.models.files import load_potential

MakeCalculator = Callable[..., AIMNet2MultCalculator]
# (g2 name, charge, mult): neutral, ions, radicals, a triplet
MOLECULES = [("H2O", 0, 1), ("CH3OH", 0, 1), ("CN", -1, 1), ("CH3", 1, 1), ("NO2", 0, 2), ("O2", 0, 3), ("SiH4", 0, 1)]


def test_results_are_those_of_the_compiled_file(make: MakeCalculator, potential_file: Path) -> None:
    atoms = water(charge=1, mult=2)
    data = {
        "coord": torch.tensor(atoms.positions).unsqueeze(0),
        "numbers": torch.tensor(atoms.numbers).unsqueeze(0),
        "charge": torch.tensor([1.0]),
        "mult": torch.tensor([2.0]),
    }
    expected = load_potential(potential_file).module(data)
    atoms.calc = make()
    # 1e-6: float32 network; the calculator centres the molecule first, which may turn a last bit
    assert atoms.get_potential_energy() == pytest.approx(expected["energy"].item(), abs=1e-6)
    np.testing.assert_allclose(atoms.get_charges(), expected["charges"][0].detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(atoms.get_magnetic_moments(), expected["spin_charges"][0].detach().numpy(), atol=1e-6)
    assert atoms.get_charges().sum() == pytest.approx(1.0, abs=1e-6)
    assert atoms.get_magnetic_moment() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("dtype", [None, "float64"])
def test_types_and_shapes(make: MakeCalculator, dtype: str | None) -> None:
    atoms = water()
    atoms.calc = make(dtype=dtype)
    atoms.get_forces()
    results = atoms.calc.results
    assert set(results) == set(atoms.calc.implemented_properties) - {"stress"}
    for key in ("energy", "free_energy", "magmom"):
        assert type(results[key]) is float
    for key, shape in {"forces": (3, 3), "charges": (3,), "magmoms": (3,), "dipole": (3,)}.items():
        assert results[key].dtype == np.float64
        assert results[key].shape == shape
        assert results[key].flags.writeable


@pytest.mark.parametrize(("name", "charge", "mult"), MOLECULES)
def test_forces_are_minus_the_gradient(make: MakeCalculator, name: str, charge: int, mult: int) -> None:
    """Step 1e-4 Å: truncation about 1e-8 of the force, and rounding of energies of 1e4 eV about 1e-8 eV/Å."""
    atoms = suites.structure(name, charge, mult)
    atoms.positions *= 1.15  # away from the minimum, so that there is a force to be relative to
    atoms.calc = make(dtype="float64")
    expected = calculate_numerical_forces(atoms, eps=1e-4)
    forces = atoms.get_forces()
    assert np.abs(forces - expected).max() < 1e-6 * np.abs(forces).max()


def test_energy_is_the_same_bits_with_and_without_forces(make: MakeCalculator) -> None:
    alone, both = alkane(3), alkane(3)
    alone.calc, both.calc = make(), make()
    both.get_forces()
    assert alone.get_potential_energy() == both.get_potential_energy() == both.get_potential_energy(True)


def test_small_steps_are_resolved(make: MakeCalculator) -> None:
    """Total energies near -2e4 eV: float32 sums would have steps of 2e-3 eV and give a handful of different values."""
    atoms = alkane(20)
    atoms.calc = make()
    energies = []
    for _ in range(81):
        atoms.positions[0, 0] += 1e-4
        energies.append(atoms.get_potential_energy())
    assert len(set(energies)) == 81


def test_translation_by_1000_angstrom(make: MakeCalculator) -> None:
    here, there = alkane(3), alkane(3)
    there.positions += [1000.0, -1000.0, 577.0]
    here.calc, there.calc = make(), make()
    np.testing.assert_allclose(there.get_forces(), here.get_forces(), atol=1e-5)
    np.testing.assert_allclose(there.get_dipole_moment(), here.get_dipole_moment(), atol=1e-5)


def test_dipole(make: MakeCalculator) -> None:
    neutral, ion = water(), water(charge=1)
    neutral.calc, ion.calc = make(), make()
    # about any origin for a neutral molecule; charges sum to zero within float32 rounding
    np.testing.assert_allclose(neutral.get_dipole_moment(), neutral.get_charges() @ neutral.positions, atol=1e-6)
    about_mass = ion.get_charges() @ (ion.positions - ion.get_center_of_mass())
    np.testing.assert_allclose(ion.get_dipole_moment(), about_mass, atol=1e-12)
    assert np.abs(ion.get_charges() @ ion.positions - about_mass).max() > 0.01


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.astype(">f8"),
        lambda x: np.asfortranarray(x),
        lambda x: np.repeat(x, 2, axis=0)[::2],
        lambda x: x.astype(np.float32),
        lambda x: x.astype(np.int64),
    ],
    ids=["big-endian", "Fortran order", "strided", "float32", "int64"],
)
def test_layout_of_positions_does_not_matter(make: MakeCalculator, convert: Callable[..., np.ndarray]) -> None:
    plain = Atoms("OCH2", np.array([[0.0, 0, 0], [0, 0, 2], [1, 0, 3], [-1, 0, 3]]))  # exact in every format
    other = plain.copy()
    other.arrays["positions"] = convert(plain.positions)
    other.arrays["positions"].flags.writeable = False
    other.arrays["numbers"] = plain.numbers.astype(">i4")
    plain.calc, other.calc = make(), make()
    assert other.get_potential_energy() == plain.get_potential_energy()
    np.testing.assert_array_equal(other.get_forces(), plain.get_forces())


def test_far_apart_and_alone(make: MakeCalculator) -> None:
    one = Atoms("O")
    pair = Atoms("O2", [[0, 0, 0], [0, 0, 1000.0]], info={"mult": 1})
    one.calc, pair.calc = make(), make()
    np.testing.assert_array_equal(one.get_forces(), np.zeros((1, 3)))
    # nothing but the Coulomb energy of the charges is left at this distance, 14.4 eV Å * q1 q2 / 1000 Å^2
    assert np.abs(pair.get_forces()).max() < 1e-4
    assert np.isfinite(pair.get_potential_energy())


def test_one_evaluation_gives_everything(make: MakeCalculator, calls: list[bool]) -> None:
    atoms = water()
    atoms.calc = make()
    atoms.get_potential_energy()
    atoms.get_charges()
    assert calls == [False]  # no gradient for an energy
    atoms.get_forces()
    atoms.get_potential_energy(force_consistent=True)
    atoms.get_dipole_moment()
    assert calls == [False, True]
    atoms.set_initial_charges([1, 0, 0])  # not an input of the potential
    atoms.get_forces()
    assert len(calls) == 2
    atoms.positions[0, 0] += 1e-9
    atoms.get_forces()
    assert len(calls) == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.info.update(charge=2),
        lambda a: a.info.update(mult=3),
        lambda a: a.info.update(spin=3),
        lambda a: a.calc.set(charge=2),
        lambda a: a.calc.set(mult=3),
        lambda a: setattr(a.calc, "charge", 2),
        lambda a: setattr(a.calc, "mult", 3),
        lambda a: setattr(a.calc, "fidelity", 1),
        lambda a: setattr(a.calc, "fidelity", "ccsd(t)"),
    ],
)
def test_changes_recompute(make: MakeCalculator, calls: list[bool], change: Callable[[Atoms], None]) -> None:
    atoms = water()
    atoms.calc = make()
    before = atoms.get_potential_energy()
    change(atoms)
    after = atoms.get_potential_energy()
    assert len(calls) == 2
    assert after != before
    fresh = water(**atoms.info)
    fresh.calc = make(charge=atoms.calc.charge, mult=atoms.calc.mult)
    fresh.calc.fidelity = atoms.calc.fidelity
    assert fresh.get_potential_energy() == after


def test_deleting_info_returns_to_the_default(make: MakeCalculator) -> None:
    atoms = water()
    atoms.calc = make()
    neutral = atoms.get_potential_energy()
    atoms.info.update(charge=1, mult=2)
    assert atoms.get_potential_energy() != neutral
    atoms.info.clear()
    assert atoms.get_potential_energy() == neutral
    atoms.info.update(charge=0.0, spin=np.int64(1), mult=None)  # the default, spelt out
    assert atoms.get_potential_energy() == neutral
    assert atoms.info == {"charge": 0.0, "spin": 1, "mult": None}


def test_charge_does_not_leak_to_the_next_structure(make: MakeCalculator) -> None:
    calc = make()
    ion, neutral, fresh = water(charge=-2), water(), water()
    fresh.calc = make()
    ion.calc = neutral.calc = calc
    ion.get_potential_energy()
    assert neutral.get_potential_energy() == fresh.get_potential_energy()
    assert neutral.info == {}
    assert set(neutral.arrays) == {"numbers", "positions"}


def test_default_multiplicity_follows_the_electrons(make: MakeCalculator) -> None:
    radical, explicit = Atoms("OH", [[0, 0, 0], [0, 0, 0.97]]), Atoms("OH", [[0, 0, 0], [0, 0, 0.97]])
    radical.calc, explicit.calc = make(), make(mult=2)
    assert radical.get_potential_energy() == explicit.get_potential_energy()
    assert radical.get_magnetic_moment() == pytest.approx(1.0, abs=1e-6)


def test_a_failure_leaves_no_stale_result(make: MakeCalculator) -> None:
    atoms = water()
    atoms.calc = make()
    good = atoms.get_potential_energy()
    atoms.info["mult"] = 2
    with pytest.raises(InputError):
        atoms.get_potential_energy()
    with pytest.raises(InputError):
        atoms.get_potential_energy()
    del atoms.info["mult"]
    assert atoms.get_potential_energy() == good


def test_trajectory_and_database(make: MakeCalculator, tmp_path: Path) -> None:
    atoms = water()
    atoms.calc = make(charge=1)
    forces, energy = atoms.get_forces(), atoms.get_potential_energy()
    with Trajectory(tmp_path / "a.traj", "w", atoms) as trajectory:
        trajectory.write()
    with Trajectory(tmp_path / "a.traj") as trajectory:
        read = trajectory[0]
    np.testing.assert_array_equal(read.get_forces(), forces)
    with connect(tmp_path / "a.db") as database:
        database.write(atoms)
    row = connect(tmp_path / "a.db").get(1)
    assert (row.energy, row.free_energy, row.calculator) == (energy, energy, "aimnet2mult")
    np.testing.assert_array_equal(row.forces, forces)
    assert row.calculator_parameters["charge"] == 1
    assert row.calculator_parameters["fidelity"] == 0
    assert set(atoms.calc.export_properties()) == {*atoms.calc.implemented_properties, "natoms"} - {"stress"}


def test_sum_and_constraints(make: MakeCalculator) -> None:
    atoms = water()
    atoms.calc = make()
    forces, energy = atoms.get_forces(), atoms.get_potential_energy()
    atoms.set_constraint(FixAtoms([0]))
    np.testing.assert_array_equal(atoms.get_forces()[0], np.zeros(3))
    np.testing.assert_array_equal(atoms.get_forces(apply_constraint=False), forces)
    atoms.set_constraint()
    atoms.calc = SumCalculator([make(), make()])
    assert atoms.get_potential_energy() == 2 * energy
    np.testing.assert_array_equal(atoms.get_forces(), 2 * forces)


def test_optimisation_and_vibrations(make: MakeCalculator, calls: list[bool], tmp_path: Path) -> None:
    atoms = water()
    atoms.calc = make()
    with BFGS(atoms, logfile=None) as optimiser:
        assert optimiser.run(fmax=0.01, steps=200)
    assert all(calls)  # energy and forces of a step come from one evaluation
    atoms.calc = make(dtype="float64")
    with BFGS(atoms, logfile=None) as optimiser:
        assert optimiser.run(fmax=1e-5, steps=200)
    vibrations = Vibrations(atoms, name=str(tmp_path / "vib"), delta=1e-3)
    vibrations.run()
    frequencies = np.sort_complex(vibrations.get_frequencies())
    # a minimum: six zero modes, here within the finite-difference error, and three real ones
    assert np.abs(frequencies[:6]).max() < 20
    assert frequencies[6:].real.min() > 100


def test_nve_conserves_energy(make: MakeCalculator) -> None:
    """Velocity Verlet keeps a shadow energy; the true total swings by at most (omega dt)^2 / 8 of the kinetic energy.

    This potential's highest frequency is 1134 cm-1: omega dt = 0.053 at 0.25 fs, and 0.11 eV of kinetic energy give
    4e-5 eV. Half the step must make the swing four times smaller, which forces that are not the gradient would not do.
    """
    start = water()
    start.calc = make(dtype="float64")
    with BFGS(start, logfile=None) as optimiser:
        optimiser.run(fmax=0.01, steps=200)
    thermal = np.sqrt(600 * units.kB * start.get_masses())[:, None]
    start.set_momenta(thermal * np.random.default_rng(1).normal(size=(3, 3)))
    spread = []
    for steps, step in ((200, 0.25), (400, 0.125)):
        atoms = start.copy()
        atoms.calc = start.calc
        totals = []
        dynamics = VelocityVerlet(atoms, timestep=step * units.fs)
        dynamics.attach(lambda a=atoms, t=totals: t.append(a.get_total_energy()))
        dynamics.run(steps)
        spread.append(np.ptp(totals))
    assert spread[0] < 4e-5
    assert 3.5 < spread[0] / spread[1] < 4.5
