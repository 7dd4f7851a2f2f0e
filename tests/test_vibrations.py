"""Harmonic vibrations, intensities and thermochemistry against formulas, measured values and ASE's own classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.constraints import FixAtoms
from ase.optimize import BFGS
from ase.thermochemistry import HarmonicThermo, IdealGasThermo
from ase.vibrations import Vibrations as FiniteDifferences
from vibration_cases import bond_hessian, diatomic, relaxed, saddle

from aimnet2mult import AIMNet2MultCalculator
from aimnet2mult.calculators.vibrations import vibrations
from aimnet2mult.errors import InputError


def test_spring_of_two_atoms() -> None:
    found = diatomic("CO", 1.128, 2169.8)
    assert found.geometry == "linear"
    np.testing.assert_allclose(found.frequencies, [2169.8], rtol=1e-9)
    mass = found.atoms.get_masses()
    # the mass that moves when all displacements together have length 1
    direction = np.array([-1 / mass[0], 1 / mass[1]])
    direction /= np.linalg.norm(direction)
    np.testing.assert_allclose(found.reduced_masses, [(mass * direction**2).sum()], rtol=1e-12)
    assert found.zero_point_energy == pytest.approx(0.5 * 2169.8 * units.invcm, rel=1e-9)


def test_linear_molecule_of_three_atoms() -> None:
    """O-C-O with springs k between neighbours and kappa against bending: text-book normal modes."""
    k, kappa = 97.0, 3.1
    atoms = Atoms("OCO", [[-1.16, 0, 0], [0, 0, 0], [1.16, 0, 0]])
    stretches = [(k, [[-1, 0, 0], [1, 0, 0], [0, 0, 0]]), (k, [[0, 0, 0], [-1, 0, 0], [1, 0, 0]])]
    bends = [(kappa, [np.array(axis) * f for f in (1, -2, 1)]) for axis in ([0, 1, 0], [0, 0, 1])]
    found = vibrations(atoms, bond_hessian(3, [*stretches, *bends]))
    o, c, _ = atoms.get_masses()
    squares = np.array([kappa * (2 / o + 4 / c), kappa * (2 / o + 4 / c), k / o, k / o * (1 + 2 * o / c)])
    wavenumbers = np.sqrt(squares * units._e * 1e20 / units._amu) / (2 * np.pi * units._c * 100)
    np.testing.assert_allclose(found.frequencies, wavenumbers, rtol=1e-9)
    assert found.frequencies.dtype == np.complex128
    heavy = atoms.copy()
    heavy.set_masses([17.999, 13.003, 17.999])
    other = vibrations(heavy, bond_hessian(3, [*stretches, *bends]))
    np.testing.assert_allclose(other.frequencies[2] / found.frequencies[2], np.sqrt(o / 17.999), rtol=1e-9)


@pytest.mark.parametrize("name", ["H2O", "NH3", "CH3OH", "CO2", "HCN", "H2", "C2H4"])
def test_as_ase_by_finite_differences(name: str, tmp_path: Path) -> None:
    molecule = relaxed(name)
    atoms, found = molecule.atoms, molecule.vibrations()
    n_rigid = 6 if found.geometry == "nonlinear" else 5
    assert len(found.frequencies) == 3 * len(atoms) - n_rigid
    assert found.n_imaginary == 0
    reference = FiniteDifferences(atoms, name=str(tmp_path / "vib"), delta=2e-3, nfree=4)
    reference.run()
    expected = np.sort(reference.get_frequencies().real)[-len(found.frequencies) :]
    np.testing.assert_allclose(found.frequencies.real, expected, atol=0.1)
    # relaxed to 1e-9 eV/Å: a residual rotation has sqrt(1e-9 eV/Å / 1 Å / 1 amu), 0.02 cm^-1
    all_modes = np.abs(found.data.get_frequencies())
    assert np.sort(all_modes)[:n_rigid].max() < 0.1
    np.testing.assert_allclose(np.sort(all_modes)[n_rigid:], found.frequencies.real, atol=1e-6)
    modes = found.data.get_modes()[np.argsort(all_modes)[n_rigid:]]
    if name in ("H2O", "HCN", "H2"):  # no pair of equal frequencies but the bends of HCN
        overlap = np.einsum("kix,lix,i->kl", modes, found.modes, atoms.get_masses())
        np.testing.assert_allclose(np.linalg.det(overlap) ** 2, 1.0, atol=1e-6)


@pytest.mark.parametrize(("name", "charge"), [("H2O", 0), ("CH3OH", 0), ("NH3", 0), ("OH", -1)])
def test_a_compiled_network_as_ase_by_finite_differences(
    name: str, charge: int, make: Callable[..., AIMNet2MultCalculator], tmp_path: Path
) -> None:
    """The file's network is in float32, its second derivatives are those of the same weights in float64."""
    atoms = molecule(name)
    atoms.set_initial_magnetic_moments(None)
    atoms.info["charge"] = charge
    atoms.calc = make(dtype="float64")
    with BFGS(atoms, logfile=None) as optimiser:
        assert optimiser.run(fmax=1e-6, steps=500)
    found = make().get_vibrations(atoms)
    reference = FiniteDifferences(atoms, name=str(tmp_path / "vib"), delta=2e-3, nfree=4)
    reference.run()
    expected = np.sort(reference.get_frequencies().real)[-len(found.energies) :]
    np.testing.assert_allclose(found.frequencies.real, expected, atol=0.1)
    np.testing.assert_allclose(make().get_hessian(atoms), found.hessian.reshape(len(atoms) * 3, -1), atol=1e-12)
    assert found.potential_energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    result = found.thermochemistry()
    assert result.gibbs_energy < result.enthalpy


def test_modes_are_free_of_translation_and_rotation_anywhere() -> None:
    """Also where the gradient is not zero, and rotations mix into the plain eigenvectors."""
    start = relaxed("CH3OH")
    atoms = start.atoms
    atoms.rattle(0.1, seed=1)
    atoms.positions += [100.0, -50.0, 3.0]
    with pytest.warns(UserWarning, match="the structure is not relaxed"):
        found = start.vibrations()
    masses = atoms.get_masses()
    arms = atoms.positions - atoms.get_center_of_mass()
    assert np.abs(np.einsum("i,kix->kx", masses, found.modes)).max() < 1e-10
    assert np.abs(np.einsum("i,kix->kx", masses, np.cross(arms, found.modes))).max() < 1e-10
    norm = np.einsum("i,kix,lix->kl", masses, found.modes, found.modes)
    np.testing.assert_allclose(norm, np.eye(12), atol=1e-12)
    assert np.abs(np.sort(np.abs(found.data.get_frequencies()))[:6]).max() > 10


def test_nearly_linear_is_linear() -> None:
    atoms = molecule("CO2")
    atoms.positions += np.random.default_rng(0).normal(scale=2e-3, size=(3, 3))
    hessian = np.zeros((9, 9))
    assert vibrations(atoms, hessian).geometry == "linear"
    assert len(vibrations(atoms, hessian).energies) == 4
    bent = molecule("H2O")
    assert vibrations(bent, hessian).geometry == "nonlinear"
    assert vibrations(Atoms("H2", [[0, 0, 0], [0, 0, 0.7]]), np.zeros((6, 6))).geometry == "linear"


def test_imaginary_modes_are_said_and_never_dropped_silently() -> None:
    found = saddle()
    assert found.n_imaginary == 1
    assert found.frequencies[0].real == 0.0
    assert found.frequencies[0].imag == pytest.approx(found.frequencies[1].real)
    with pytest.raises(InputError, match=r"not a minimum; relax the structure further, or say ignore_imaginary=True"):
        found.thermochemistry()
    kept = found.energies[1:].real
    assert found.zero_point_energy == pytest.approx(0.5 * kept.sum())
    expected = IdealGasThermo(kept, "linear", atoms=found.atoms, symmetrynumber=2, spin=0, vib_selection="all")
    result = found.thermochemistry(300.0, 1e5, symmetrynumber=2, ignore_imaginary=True)
    assert result.gibbs_energy == pytest.approx(expected.get_gibbs_energy(300.0, 1e5, verbose=False))
    assert "i " in found.table().splitlines()[1]


def test_held_atoms() -> None:
    start = relaxed("CH3OH")
    atoms, hessian = start.atoms, start.vibrations().hessian
    atoms.set_constraint(FixAtoms([0, 3, 4]))
    found = start.vibrations()
    assert found.geometry == "frozen"
    assert found.indices.tolist() == [1, 2, 5]
    assert len(found.frequencies) == 9
    np.testing.assert_allclose(found.frequencies, found.data.get_frequencies(), atol=1e-8)
    np.testing.assert_allclose(found.hessian, hessian[np.ix_([1, 2, 5], range(3), [1, 2, 5], range(3))])
    assert (found.modes[:, [0, 3, 4]] == 0.0).all()
    again = vibrations(atoms, hessian)  # the full matrix is cut
    np.testing.assert_allclose(again.frequencies, found.frequencies)
    expected = HarmonicThermo(found.energies.real, potentialenergy=found.potential_energy)
    result = found.thermochemistry(350.0)
    assert result.gibbs_energy == pytest.approx(expected.get_helmholtz_energy(350.0, verbose=False))
    assert result.enthalpy == result.internal_energy
    atoms.set_constraint(FixAtoms(range(6)))
    with pytest.raises(InputError, match="all atoms of the structure are held by constraints"):
        start.vibrations()


def test_periodic_system() -> None:
    """Two atoms per cell with a spring: three optical modes sqrt(k / mu) of wave vector zero."""
    atoms = bulk("SiC", "zincblende", 4.36)
    spring = 20.0 * np.kron([[1, -1], [-1, 1]], np.eye(3))
    found = vibrations(atoms, spring, dipole_derivatives=np.ones((2, 3, 3)))
    assert found.geometry == "periodic"
    m1, m2 = atoms.get_masses()
    expected = np.sqrt(20.0 * (m1 + m2) / (m1 * m2) * units._e * 1e20 / units._amu) / (2 * np.pi * units._c * 100)
    np.testing.assert_allclose(found.frequencies, [expected] * 3, rtol=1e-9)
    assert found.ir_intensities is None
    with pytest.raises(InputError, match=r"needs phonons of all wave vectors; use ase\.phonons"):
        found.thermochemistry()
    with pytest.raises(InputError, match="no infrared intensities: a periodic system has no dipole"):
        found.spectrum()


def test_modes_in_a_file(tmp_path: Path) -> None:
    found = relaxed("H2O").vibrations()
    assert found.ir_intensities is not None
    found.write_modes(tmp_path / "modes.xyz")
    frames = ase.io.read(tmp_path / "modes.xyz", index=":")
    assert len(frames) == 3
    for k, frame in enumerate(frames):
        np.testing.assert_allclose(frame.arrays["mode"], found.modes[k], atol=1e-7)
        assert frame.info["frequency_cm-1"] == pytest.approx(found.frequencies[k].real)
        assert frame.info["ir_intensity_km_mol"] == pytest.approx(found.ir_intensities[k])
    saddle().write_modes(tmp_path / "saddle.xyz")
    assert ase.io.read(tmp_path / "saddle.xyz", index=0).info["frequency_cm-1"] < -600


def test_table() -> None:
    found = diatomic("CO", 1.128, 2169.81)
    assert found.table().splitlines() == [
        "mode      cm^-1      amu",
        f"   0     2169.8 {found.reduced_masses[0]:8.3f}",
        "zero-point energy 0.1345 eV",
    ]
    assert "km/mol" in relaxed("H2O").vibrations().table()


def test_structures_are_not_shared() -> None:
    start = relaxed("H2O")
    atoms, before = start.atoms, start.atoms.positions.copy()
    found = start.vibrations()
    atoms.positions += 1.0
    np.testing.assert_array_equal(found.atoms.positions, before)
    assert found.atoms.calc is None


def test_wrong_input() -> None:
    atoms = molecule("H2O")
    for hessian, message in (
        (np.zeros((6, 6)), r"the Hessian has shape \(6, 6\); expected \(9, 9\)"),
        (np.full((9, 9), np.nan), "elements that are not finite"),
    ):
        with pytest.raises(InputError, match=message):
            vibrations(atoms, hessian)
    massless = atoms.copy()
    massless.set_masses([0.0, 1.0, 1.0])
    with pytest.raises(InputError, match="needs a mass above zero"):
        vibrations(massless, np.zeros((9, 9)))
    found = relaxed("H2O").vibrations()
    for arguments, message in (
        ({"temperature": 0.0}, "temperature must be above zero, not 0.0"),
        ({"pressure": -1.0}, "pressure must be above zero, not -1.0"),
        ({"symmetrynumber": 0}, "symmetrynumber must be a positive integer, not 0"),
        ({"symmetrynumber": 1.5}, "symmetrynumber must be a positive integer, not 1.5"),
    ):
        with pytest.raises(InputError, match=message):
            found.thermochemistry(**arguments)
    with pytest.raises(InputError, match="a mode has frequency zero"):
        vibrations(atoms, np.zeros((9, 9))).thermochemistry()


def test_isotopes() -> None:
    """The product rule of Teller and Redlich: prod w'/w = sqrt(prod (m/m')^3 (M'/M)^3 prod I'/I) at a minimum."""
    start = relaxed("H2O")
    light, before = start.atoms, start.vibrations()
    heavy = light.copy()
    heavy.set_masses([15.999, 2.014, 2.014])
    found = vibrations(heavy, before.hessian)
    m, m_new = light.get_masses(), heavy.get_masses()
    inertia = np.prod(heavy.get_moments_of_inertia() / light.get_moments_of_inertia())
    ratio = np.sqrt(np.prod(m / m_new) ** 3 * (m_new.sum() / m.sum()) ** 3 * inertia)
    assert ratio < 0.5
    product = np.prod(found.frequencies / before.frequencies)
    np.testing.assert_allclose(product, ratio, rtol=1e-6)
