"""Harmonic vibrations, intensities and thermochemistry against formulas, measured values and ASE's own classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms
from ase.optimize import BFGS
from ase.thermochemistry import HarmonicThermo, IdealGasThermo
from ase.vibrations import Vibrations as FiniteDifferences
from numpy.typing import NDArray
from test_hessian import door, prepared

from aimnet2mult import AIMNet2MultCalculator
from aimnet2mult.calculators.vibrations import Vibrations, vibrations, vibrations_of
from aimnet2mult.errors import InputError
from aimnet2mult.models.derivatives import forces_from_energy

J_MOL_K = units.J / units.mol  # J/(mol K) in eV/K
DEBYE = 0.2081943  # e Å, CODATA 2018


class Springs(torch.nn.Module):
    """An elastic network as a potential with fixed charges: springs between all pairs of atoms of a molecule.

    Those that are not bonded rest a tenth farther apart than in the molecule, so that linear molecules resist bending.
    """

    def __init__(self, atoms: Atoms) -> None:
        super().__init__()
        self.first, self.second = torch.triu_indices(len(atoms), len(atoms), 1)
        length = torch.from_numpy(atoms.get_all_distances())[self.first, self.second]
        bonded = length < 1.6
        self.length = torch.where(bonded, length, 1.1 * length)
        self.stiffness = torch.where(bonded, 40.0, 6.0) + self.first  # no two alike

    def forward(self, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        coord, numbers = data["coord"], data["numbers"].double()
        r = (coord[:, self.first] - coord[:, self.second]).norm(dim=-1)
        charges = 0.1 * (numbers - numbers.mean(dim=1, keepdim=True))
        energy = 0.5 * (self.stiffness * (r - self.length).square()).sum(1)
        return {"energy": energy, "charges": charges + 0.0 * coord.sum(-1)}


class Relaxed(NamedTuple):
    atoms: Atoms
    potential: Springs

    def vibrations(self, mult: int = 1) -> Vibrations:
        self.atoms.info["mult"] = mult
        return vibrations_of(self.atoms, prepared(self.atoms, (self.potential,)))


class OfPotential(Calculator):
    """The smallest ASE calculator of a potential."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, potential: Springs) -> None:
        super().__init__()
        self.potential = potential

    def calculate(
        self, atoms: Atoms | None = None, properties: Sequence[str] = (), system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        self.atoms.info = {"charge": 0, "mult": 1}
        data = door(self.atoms)
        coord = data["coord"].requires_grad_()
        energy = self.potential(data)["energy"]
        self.results = {"energy": float(energy.detach()), "forces": forces_from_energy(energy, coord)[0].numpy()}


def relaxed(name: str, fmax: float = 1e-9) -> Relaxed:
    atoms = molecule(name)
    atoms.info = {"charge": 0, "mult": 1}
    found = Relaxed(atoms, Springs(atoms))
    atoms.calc = OfPotential(found.potential)
    with BFGS(atoms, logfile=None) as optimiser:
        assert optimiser.run(fmax=fmax, steps=500)
    return found


def bond_hessian(n_atoms: int, terms: Sequence[tuple[float, Sequence[Sequence[float]]]]) -> NDArray[np.float64]:
    """Hessian of E = sum of k/2 (g . x)^2, each g an (N, 3) combination of displacements."""
    matrix = np.zeros((3 * n_atoms, 3 * n_atoms))
    for k, g in terms:
        matrix += k * np.outer(np.ravel(g), np.ravel(g))
    return matrix


def diatomic(symbols: str, length: float, wavenumber: float, mult: int = 1) -> Vibrations:
    """A molecule of two atoms along x with a spring that gives this frequency in cm^-1."""
    atoms = Atoms(symbols, [[0, 0, 0], [length, 0, 0]])
    mass = np.prod(atoms.get_masses()) / atoms.get_masses().sum() * units._amu
    k = mass * (2 * np.pi * units._c * 100 * wavenumber) ** 2 / units._e / 1e20  # N/m in eV/Å^2
    return vibrations(atoms, bond_hessian(2, [(k, [[-1, 0, 0], [1, 0, 0]])]), mult=mult)


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


def saddle() -> Vibrations:
    atoms = Atoms("OCO", [[-1.16, 0, 0], [0, 0, 0], [1.16, 0, 0]])
    stretches = [(90.0, [[-1, 0, 0], [1, 0, 0], [0, 0, 0]]), (90.0, [[0, 0, 0], [-1, 0, 0], [1, 0, 0]])]
    bends = [(k, [np.array(axis) * f for f in (1, -2, 1)]) for k, axis in ((-3.0, [0, 1, 0]), (3.0, [0, 0, 1]))]
    sentence = r"1 of 4 modes is imaginary \(6\d\d\.\di cm\^-1\): this is not a minimum$"
    with pytest.warns(UserWarning, match=f"^{sentence}"):
        return vibrations(atoms, bond_hessian(3, [*stretches, *bends]))


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
