"""ASE's own machinery on the calculator, as it is used for other calculators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.mixing import SumCalculator
from ase.db import connect
from ase.eos import EquationOfState
from ase.filters import FrechetCellFilter
from ase.io import Trajectory, read, write
from ase.md.langevin import Langevin
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from ase.phonons import Phonons
from crystals import LennardJones, crystal, short_ranged
from structures import water

from aimnet2mult import AIMNet2MultCalculator


@pytest.fixture(scope="module")
def short_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return short_ranged(tmp_path_factory.mktemp("short") / "short")


@pytest.fixture
def calc(short_file: Path) -> AIMNet2MultCalculator:
    return AIMNet2MultCalculator(short_file, device="cpu", dtype="float64")


@pytest.fixture(scope="module")
def solid(tmp_path_factory: pytest.TempPathFactory) -> Atoms:
    """A close-packed crystal at rest, cell included."""
    path = short_ranged(tmp_path_factory.mktemp("solid") / "solid", wells=LennardJones())
    atoms = bulk("C", "fcc", a=3.5, cubic=True)
    atoms.symbols = "COCN"
    atoms.rattle(0.05, seed=1)
    atoms.calc = AIMNet2MultCalculator(path, device="cpu", dtype="float64")
    with BFGS(FrechetCellFilter(atoms), logfile=None) as optimiser:
        assert optimiser.run(fmax=1e-3, steps=100)
    return atoms


def warm(solid: Atoms) -> Atoms:
    atoms = solid * (2, 2, 1)
    thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
    atoms.calc = solid.calc
    return atoms


def test_cell_and_atoms_relax(solid: Atoms) -> None:
    assert np.abs(solid.get_forces()).max() < 2e-3
    assert np.abs(solid.get_stress()).max() < 1e-4
    assert abs(solid.get_volume() - 3.5**3) > 1.0


def test_fire_finds_the_minimum_of_bfgs(calc: AIMNet2MultCalculator) -> None:
    energies = []
    for optimise in (FIRE, BFGS):
        atoms = water()
        atoms.calc = calc
        with optimise(atoms, logfile=None) as optimiser:
            assert optimiser.run(fmax=1e-4, steps=500)
        energies.append(atoms.get_potential_energy())
    assert energies[0] == pytest.approx(energies[1], abs=1e-7)


def test_nve_of_a_crystal(solid: Atoms) -> None:
    """No drift: below 0.1 meV per atom and ps. The swing falls with the square of the step; lists are reused."""
    swings = []
    builds = solid.calc._verlet.builds
    for step, n_steps in ((1.0, 150), (0.5, 300)):
        atoms = warm(solid)
        totals: list[float] = []
        dynamics = VelocityVerlet(atoms, timestep=step * units.fs)
        dynamics.attach(lambda a=atoms, t=totals: t.append(a.get_total_energy()))
        dynamics.run(n_steps)
        slope = np.polyfit(step * 1e-3 * np.arange(len(totals)), totals, 1)[0]
        assert abs(slope) / len(atoms) < 1e-4
        swings.append(np.ptp(totals))
    assert 3.5 < swings[0] / swings[1] < 4.5
    assert solid.calc._verlet.builds - builds < 10


def test_barostat(solid: Atoms) -> None:
    """The conserved quantity of isotropic MTK: a stress of wrong sign, scale or order would not keep it.

    What is left falls with the square of the step.
    """
    errors = []
    builds = solid.calc._verlet.builds
    for step, n_steps in ((2.0, 50), (1.0, 100)):
        atoms = warm(solid)
        times = {"timestep": step * units.fs, "tdamp": 50 * units.fs, "pdamp": 500 * units.fs}
        barostat = IsotropicMTKNPT(atoms, temperature_K=300, pressure_au=0.0, **times)
        before = barostat.get_conserved_energy()
        barostat.run(n_steps)
        errors.append(abs(barostat.get_conserved_energy() - before))
        assert abs(atoms.get_volume() / (4 * solid.get_volume()) - 1) > 0.005
    assert errors[1] / len(atoms) < 2e-4
    assert 3.0 < errors[0] / errors[1] < 5.0
    assert solid.calc._verlet.builds - builds < 10  # deformations of the cell by the barostat included


def test_langevin(solid: Atoms) -> None:
    atoms = warm(solid)
    forces = atoms.get_forces()
    thermostat = {"temperature_K": 300, "friction": 0.01 / units.fs, "rng": np.random.default_rng(1)}
    Langevin(atoms, timestep=1.0 * units.fs, fixcm=False, **thermostat).run(10)
    assert np.abs(atoms.get_forces() - forces).max() > 1e-3
    assert 50 < atoms.get_temperature() < 900


def test_equation_of_state(solid: Atoms) -> None:
    """Its minimum lies where the pressure vanishes, and its curvature is that of the stress."""
    volumes, energies, pressures = [], [], []
    for factor in np.linspace(0.994, 1.006, 7):
        atoms = solid.copy()
        atoms.set_cell(solid.cell.array * factor, scale_atoms=True)
        atoms.calc = solid.calc
        volumes.append(atoms.get_volume())
        energies.append(atoms.get_potential_energy())
        pressures.append(-atoms.get_stress()[:3].mean())
    v0, _, modulus = EquationOfState(volumes, energies, eos="birchmurnaghan").fit()
    assert v0 == pytest.approx(solid.get_volume(), rel=1e-3)
    expected = -volumes[3] * (pressures[4] - pressures[2]) / (volumes[4] - volumes[2])
    assert modulus == pytest.approx(expected, rel=0.02)


def test_phonons(solid: Atoms, tmp_path: Path) -> None:
    """Acoustic modes vanish at the zone centre, and a minimum has no imaginary ones."""
    phonons = Phonons(solid.copy(), solid.calc, supercell=(2, 2, 2), delta=0.01, name=str(tmp_path / "phonon"))
    phonons.run()
    phonons.read(acoustic=True)
    frequencies = phonons.band_structure(np.array([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0]]))
    assert np.abs(frequencies[0, :3]).max() < 1e-3
    assert np.min(frequencies[0, 3:]) > 1e-2
    assert np.min(frequencies[1]) > 5e-3


def test_band_of_images(calc: AIMNet2MultCalculator) -> None:
    """The hydrogen of HCN goes round; a shared calculator is used in turns."""
    first = Atoms("HCN", [[-1.1, 0, 0], [0, 0, 0], [1.2, 0, 0]])
    last = Atoms("HCN", [[2.3, 0, 0], [0, 0, 0], [1.2, 0, 0]])
    for atoms in (first, last):
        atoms.calc = calc
        with BFGS(atoms, logfile=None) as optimiser:
            optimiser.run(fmax=0.02, steps=200)
    images = [first, *(first.copy() for _ in range(5)), last]
    for image in images[1:-1]:
        image.calc = calc
    band = NEB(images, allow_shared_calculator=True, method="improvedtangent")
    band.interpolate()
    for index, image in enumerate(images[1:-1]):
        image.positions[0, 1] += 0.8 * np.sin(np.pi * (index + 1) / 6)
    start = np.abs(band.get_forces()).max()
    with FIRE(band, logfile=None) as optimiser:
        optimiser.run(fmax=0.1, steps=60)
    assert np.abs(band.get_forces()).max() < 0.5 * start
    assert max(band.energies) >= max(band.energies[0], band.energies[-1])


def test_files_and_sums_of_crystals(calc: AIMNet2MultCalculator, tmp_path: Path) -> None:
    atoms = crystal("left-handed")
    atoms.calc = calc
    forces, stress, energy = atoms.get_forces(), atoms.get_stress(), atoms.get_potential_energy()
    with Trajectory(tmp_path / "a.traj", "w", atoms) as trajectory:
        trajectory.write()
    write(tmp_path / "a.xyz", atoms)
    with connect(tmp_path / "a.db") as database:
        database.write(atoms)
    for found in (read(tmp_path / "a.traj"), read(tmp_path / "a.xyz"), connect(tmp_path / "a.db").get_atoms(1)):
        np.testing.assert_allclose(found.get_forces(), forces, atol=1e-7)  # extended xyz has 8 decimals
        np.testing.assert_allclose(found.get_stress(), stress, atol=1e-7)
        assert found.get_potential_energy() == pytest.approx(energy, abs=1e-7)
    atoms.calc = SumCalculator([calc, calc])
    np.testing.assert_allclose(atoms.get_stress(), 2 * stress, atol=1e-12)
    np.testing.assert_allclose(atoms.get_forces(), 2 * forces, atol=1e-12)


def test_hessian_and_vibrations(calc: AIMNet2MultCalculator, short_file: Path) -> None:
    """The thin methods hand on structure, charge and precision: the Hessian is the derivative of the forces."""
    atoms = water(charge=1)
    atoms.calc = AIMNet2MultCalculator(short_file, device="cpu")  # whose Hessian is in float64 all the same
    atoms.get_potential_energy()
    expected = []
    for place in range(9):
        moved = [atoms.copy(), atoms.copy()]
        for structure, step in zip(moved, (1e-4, -1e-4), strict=True):
            structure.positions.flat[place] += step
        backward, forward = (calc.get_forces(structure).ravel() for structure in reversed(moved))
        expected.append((backward - forward) / 2e-4)
    found = atoms.calc.get_hessian()
    # truncation, 1e-8 times fourth derivatives of 1e2 eV/Å^4
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(AIMNet2MultCalculator(short_file, device="cpu").get_hessian(atoms), found)
    atoms = water()
    atoms.calc = calc
    with BFGS(atoms, logfile=None) as optimiser:
        assert optimiser.run(fmax=1e-4, steps=300)
    vibrations = calc.get_vibrations(atoms)
    assert len(vibrations.frequencies) == 3
    assert vibrations.frequencies.real.min() > 100
