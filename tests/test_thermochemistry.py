"""Thermochemistry and infrared spectra from vibrations."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.thermochemistry import IdealGasThermo
from vibration_cases import DEBYE, J_MOL_K, bond_hessian, diatomic, relaxed

from aimnet2mult.calculators.vibrations import vibrations
from aimnet2mult.errors import InputError


def test_single_atom() -> None:
    found = vibrations(Atoms("Ar"), np.zeros((3, 3)))
    assert found.geometry == "monatomic"
    assert found.frequencies.shape == (0,)
    assert found.modes.shape == (0, 1, 3)
    assert found.zero_point_energy == 0.0
    # Sackur-Tetrode at 298.15 K and 1 bar: NIST gives 154.846 J/(mol K)
    thermo = found.thermochemistry(298.15, 1e5)
    assert thermo.entropy / J_MOL_K == pytest.approx(154.846, abs=2e-3)
    mass, kt = 39.948 * units._amu, units._k * 298.15
    cells = (2 * np.pi * mass * kt / units._hplanck**2) ** 1.5 * kt / 1e5
    assert thermo.entropy == pytest.approx(units.kB * (np.log(cells) + 2.5), rel=1e-9)
    assert thermo.enthalpy == pytest.approx(2.5 * units.kB * 298.15, rel=1e-12)


def test_entropies_as_measured() -> None:
    """S at 298.15 K and 1 bar from CODATA (Cox, Wagman, Medvedev, 1989), harmonic frequencies and bond lengths."""
    cases = (
        ("N2", 1.0977, 2358.6, 1, 2, 191.609), ("CO", 1.1283, 2169.8, 1, 1, 197.660),
        ("O2", 1.2075, 1580.2, 3, 2, 205.152), ("Cl2", 1.9879, 559.7, 1, 2, 223.081),
    )  # fmt: skip
    for symbols, length, wavenumber, mult, symmetrynumber, measured in cases:
        found = diatomic(symbols, length, wavenumber, mult).thermochemistry(298.15, 1e5, symmetrynumber=symmetrynumber)
        # rotation is classical here and vibration harmonic: worth 0.1 J/(mol K)
        assert found.entropy / J_MOL_K == pytest.approx(measured, abs=0.15), symbols


@pytest.mark.parametrize(("name", "symmetrynumber", "mult"), [("H2O", 2, 1), ("CO2", 2, 1), ("NH3", 3, 3)])
def test_thermochemistry_as_by_hand(name: str, symmetrynumber: int, mult: int) -> None:
    start = relaxed(name)
    atoms, found = start.atoms, start.vibrations(mult)
    energy = atoms.get_potential_energy()
    expected = IdealGasThermo(
        found.data.get_energies(),
        geometry="linear" if name == "CO2" else "nonlinear",
        potentialenergy=energy,
        atoms=atoms,
        symmetrynumber=symmetrynumber,
        spin=0.5 * (mult - 1),
    )
    result = found.thermochemistry(400.0, 2e5, symmetrynumber=symmetrynumber)
    quiet = {"verbose": False}
    assert result.temperature == 400.0
    assert result.pressure == 2e5
    assert result.zero_point_energy == pytest.approx(expected.get_ZPE_correction(), abs=1e-8)
    assert result.internal_energy == pytest.approx(expected.get_internal_energy(400.0, **quiet), abs=1e-8)
    assert result.enthalpy == pytest.approx(expected.get_enthalpy(400.0, **quiet), abs=1e-8)
    assert result.entropy == pytest.approx(expected.get_entropy(400.0, 2e5, **quiet), abs=1e-11)
    assert result.gibbs_energy == pytest.approx(expected.get_gibbs_energy(400.0, 2e5, **quiet), abs=1e-8)
    assert isinstance(found.thermo(symmetrynumber), IdealGasThermo)
    cold = found.thermochemistry(1.0)
    assert cold.internal_energy == pytest.approx(energy + found.zero_point_energy, abs=1e-3)


def test_intensity_of_fixed_charges() -> None:
    """Two charges q and -q on a spring: dmu/dQ = q / sqrt(mu), with 42.256 km/mol per (D/Å)^2/amu."""
    q = 0.3
    atoms = Atoms("HF", [[0, 0, 0], [0.9, 0, 0]])
    polar = q * np.array([1.0, -1.0])[:, None, None] * np.eye(3)
    found = vibrations(atoms, bond_hessian(2, [(50.0, [[-1, 0, 0], [1, 0, 0]])]), dipole_derivatives=polar)
    m1, m2 = atoms.get_masses()
    assert found.ir_intensities is not None
    np.testing.assert_allclose(found.ir_intensities, 42.2561 * (q / DEBYE) ** 2 * (m1 + m2) / (m1 * m2), rtol=1e-5)


def test_intensities_of_a_potential() -> None:
    """Carbon dioxide absorbs in its bends and its antisymmetric stretch, not in the symmetric one."""
    found = relaxed("CO2").vibrations()
    intensities = found.ir_intensities
    assert intensities is not None
    silent = np.argmin(intensities)
    assert intensities[silent] < 1e-8
    assert np.sort(intensities)[1:].min() > 0.1
    displacement = found.modes[silent]
    np.testing.assert_allclose(displacement[1], -displacement[2], atol=1e-8)  # the two O mirrored, C at rest
    np.testing.assert_allclose(displacement[0], 0.0, atol=1e-8)


def test_intensities_of_ions_do_not_depend_on_the_origin() -> None:
    start = relaxed("H2O")
    atoms, hessian = start.atoms, start.vibrations().hessian
    polar = np.random.default_rng(0).normal(size=(3, 3, 3))
    moved = polar - np.eye(3) * np.array([0.2, 0.5, 0.3])[:, None, None]  # charge 1 about another centre
    shares = atoms.get_masses() / atoms.get_masses().sum()
    centred = polar - np.eye(3) * shares[:, None, None]
    found = [vibrations(atoms, hessian, dipole_derivatives=p).ir_intensities for p in (polar, centred, moved)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-9)
    assert np.abs(found[0] - found[2]).max() > 1.0  # only the centre of mass stays where it is


def test_spectrum() -> None:
    found = relaxed("H2O").vibrations()
    assert found.ir_intensities is not None
    wavenumber, absorption = found.spectrum(width=4.0)
    step = wavenumber[1] - wavenumber[0]
    assert step == 1.0
    # tails of Lorentzian lines beyond 4500 cm^-1 and below 0: width / (2 pi) (1/a + 1/b), 0.2 %
    np.testing.assert_allclose(absorption.sum() * step, found.ir_intensities.sum(), rtol=5e-3)
    strongest = found.ir_intensities.argmax()
    centre = found.frequencies[strongest].real
    at = found.spectrum(4.0, np.array([centre, centre - 2.0])).absorption
    assert at[0] == pytest.approx(found.ir_intensities[strongest] * 2 / (np.pi * 4.0), rel=1e-2)
    assert at[1] == pytest.approx(0.5 * at[0], rel=1e-2)
    with pytest.raises(InputError, match="width must be above zero, not 0"):
        found.spectrum(0.0)
