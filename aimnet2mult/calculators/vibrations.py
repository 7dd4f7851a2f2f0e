"""Harmonic vibrations, infrared intensities and ideal-gas thermochemistry from a Hessian, on top of ASE's classes."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from math import isfinite, pi, sqrt
from typing import Literal, NamedTuple

import ase.io
import numpy as np
from ase import Atoms, units
from ase.thermochemistry import HarmonicThermo, IdealGasThermo
from ase.vibrations import VibrationsData
from numpy.typing import NDArray

from aimnet2mult.calculators.hessian import dipole_derivatives, second_order
from aimnet2mult.calculators.preparation import Prepared
from aimnet2mult.errors import InputError

Array = NDArray[np.float64]
Geometry = Literal["monatomic", "linear", "nonlinear", "periodic", "frozen"]

# hbar sqrt(eV / Å^2 / amu) in eV, as in ase.vibrations
_EV_PER_ROOT = units._hbar * units.m / sqrt(units._e * units._amu)
# Integrated intensity N_A / (12 eps0 c^2) |dmu/dQ|^2 in km/mol for dmu/dQ in e/sqrt(amu) (Wilson, Decius, Cross,
# Molecular Vibrations, 1955, section 7-9, with natural logarithms and in SI units): 974.88, or 42.256 for
# (D/Å)^2/amu (Porezag and Pederson, Phys. Rev. B 54, 7830 (1996))
_KM_MOL = units._Nav * units._e**2 / (12.0 * units._eps0 * units._c**2 * units._amu) / 1000.0
# amu Å^2. What has a smaller moment of inertia is linear, bent at most by the rounding of a relaxation: no bent
# molecule has a rotational constant above 1,600 cm^-1; that of CH2 is 73.
_LINEAR = 1e-2
STATIONARY = 0.02  # eV/Å; with larger forces frequencies of soft modes are wrong by several cm^-1


class Thermochemistry(NamedTuple):
    """Thermodynamic functions of one molecule, its potential energy included."""

    temperature: float  # K
    pressure: float  # Pa
    zero_point_energy: float  # eV
    internal_energy: float  # eV
    enthalpy: float  # eV
    entropy: float  # eV/K
    gibbs_energy: float  # eV


class Spectrum(NamedTuple):
    """An infrared spectrum; its integral is the sum of the intensities."""

    wavenumber: Array  # (P,) cm^-1
    absorption: Array  # (P,) km/mol per cm^-1


@dataclass(frozen=True, eq=False)
class Vibrations:
    """Harmonic vibrations of a structure: M modes without its translations and rotations, lowest first.

    M is 3 N - 6 for a molecule (3 N - 5 if linear, 0 for an atom), 3 N - 3 for a periodic system (those of wave
    vector zero), and 3 n where n atoms move and the others are held by ``FixAtoms``.
    """

    atoms: Atoms  # the structure, with the masses that were used
    indices: NDArray[np.int64]  # (n,) the atoms that move
    hessian: Array  # (n, 3, n, 3) eV/Å^2
    geometry: Geometry
    energies: NDArray[np.complex128]  # (M,) eV, imaginary ones on the imaginary axis as in ASE
    modes: Array  # (M, N, 3) displacements per unit of the normal coordinate, 1/sqrt(amu), as in ASE
    ir_intensities: Array | None  # (M,) km/mol
    potential_energy: float  # eV
    spin: float  # S

    @property
    def frequencies(self) -> NDArray[np.complex128]:
        """(M,) cm^-1; imaginary frequencies are complex numbers without a real part, as in ASE."""
        return self.energies / units.invcm

    @property
    def reduced_masses(self) -> Array:
        """(M,) amu, 1 / sum of squares of `modes`: the mass that moves with the mode's displacement of length 1."""
        return 1.0 / np.square(self.modes).sum(axis=(1, 2))

    @property
    def n_imaginary(self) -> int:
        """Number of imaginary modes: 0 at a minimum, 1 at a transition state."""
        return int(np.count_nonzero(self.energies.imag))

    @property
    def zero_point_energy(self) -> float:
        """Half of the sum of the energies of all modes that are not imaginary, in eV."""
        return 0.5 * float(self.energies.real.sum())

    @property
    def data(self) -> VibrationsData:
        """ASE's own class for the same Hessian: 3 n modes, of which some are the translations and rotations."""
        return VibrationsData(self.atoms, self.hessian, indices=self.indices)

    def thermo(self, symmetrynumber: int = 1, ignore_imaginary: bool = False) -> IdealGasThermo | HarmonicThermo:
        """ASE's ideal gas of this molecule; where atoms are held, ASE's set of harmonic oscillators.

        Parameters
        ----------
        symmetrynumber
            Rotational symmetry number: 1 without symmetry, 2 for H2O, N2 and CO2, 3 for NH3, 12 for CH4 and C6H6.
        ignore_imaginary
            Leave imaginary modes out, as is right for the reaction coordinate of a transition state.

        Raises
        ------
        InputError
            There are imaginary modes and `ignore_imaginary` is False; a mode has no frequency; `symmetrynumber` is
            no positive integer; or the system is periodic and nothing holds it.
        """
        if self.geometry == "periodic":
            raise InputError(
                "the free energy of a crystal needs phonons of all wave vectors; use ase.phonons and CrystalThermo"
            )
        if isinstance(symmetrynumber, bool) or symmetrynumber != int(symmetrynumber) or symmetrynumber < 1:
            raise InputError(f"symmetrynumber must be a positive integer, not {symmetrynumber!r}")
        if self.n_imaginary and not ignore_imaginary:
            raise InputError(
                f"{_imaginary_sentence(self)}; relax the structure further, or say ignore_imaginary=True if it is a "
                "transition state"
            )
        real = self.energies[self.energies.imag == 0].real
        if (real == 0.0).any():
            raise InputError("a mode has frequency zero, so its entropy is infinite; fragments are too far apart")
        if self.geometry == "frozen":
            return HarmonicThermo(real, potentialenergy=self.potential_energy)
        return IdealGasThermo(
            vib_energies=real,
            geometry=self.geometry,
            potentialenergy=self.potential_energy,
            atoms=self.atoms,
            symmetrynumber=int(symmetrynumber),
            spin=self.spin,
            vib_selection="all",  # translations and rotations have been taken out here
        )

    def thermochemistry(
        self,
        temperature: float = 298.15,
        pressure: float = 101325.0,
        *,
        symmetrynumber: int = 1,
        ignore_imaginary: bool = False,
    ) -> Thermochemistry:
        """Thermodynamic functions in the rigid-rotor, harmonic-oscillator, ideal-gas approximation.

        Where atoms are held there is no rotor and no gas, and the enthalpy is the internal energy.

        Parameters
        ----------
        temperature
            K.
        pressure
            Pa.
        symmetrynumber, ignore_imaginary
            As for `thermo`.

        Raises
        ------
        InputError
            As for `thermo`, or temperature or pressure is not above zero.
        """
        for name, value in (("temperature", temperature), ("pressure", pressure)):
            if not (isfinite(value) and value > 0.0):
                raise InputError(f"{name} must be above zero, not {value}")
        thermo = self.thermo(symmetrynumber, ignore_imaginary)
        with np.errstate(over="ignore"):  # exp(E/kT) of a stiff mode near 0 K: infinite, its inverse zero
            internal = float(thermo.get_internal_energy(temperature, verbose=False))
            entropy = float(thermo.get_entropy(temperature, pressure=pressure, verbose=False))
        enthalpy = internal if self.geometry == "frozen" else internal + units.kB * temperature
        return Thermochemistry(
            temperature,
            pressure,
            self.zero_point_energy,
            internal,
            enthalpy,
            entropy,
            enthalpy - temperature * entropy,
        )

    def spectrum(self, width: float = 10.0, wavenumber: Array | None = None) -> Spectrum:
        """Infrared spectrum with a Lorentzian line for each mode that is not imaginary.

        Parameters
        ----------
        width
            Full width at half maximum, cm^-1.
        wavenumber
            (P,) cm^-1; None: 0 to 4500, or beyond the highest line, in steps of a quarter of `width`, 1 at most.

        Raises
        ------
        InputError
            There are no intensities, or `width` is not above zero.
        """
        if self.ir_intensities is None:
            raise InputError("there are no infrared intensities: a periodic system has no dipole")
        if not (isfinite(width) and width > 0.0):
            raise InputError(f"width must be above zero, not {width}")
        real = self.energies.imag == 0
        centres = self.frequencies.real[real]
        highest = max(4500.0, 1.1 * float(centres.max(initial=0.0)))
        grid = np.arange(0.0, highest, min(1.0, 0.25 * width)) if wavenumber is None else np.asarray(wavenumber)
        offset = grid - centres[:, np.newaxis]
        lines = 0.5 * width / pi / (offset**2 + (0.5 * width) ** 2)
        return Spectrum(grid, self.ir_intensities[real] @ lines)

    def table(self) -> str:
        """One line for each mode: number, frequency, reduced mass and intensity; ``i`` marks imaginary ones."""
        head = f"{'mode':>4} {'cm^-1':>10} {'amu':>8}"
        lines = [head if self.ir_intensities is None else f"{head} {'km/mol':>8}"]
        for k, (frequency, mass) in enumerate(zip(self.frequencies, self.reduced_masses, strict=True)):
            line = f"{k:4d} {_as_text(frequency):>10} {mass:8.3f}"
            lines.append(line if self.ir_intensities is None else f"{line} {self.ir_intensities[k]:8.2f}")
        return "\n".join([*lines, f"zero-point energy {self.zero_point_energy:.4f} eV"])

    def write_modes(self, path: str | os.PathLike[str]) -> None:
        """Write the modes to an extended XYZ file, one frame each with the array ``mode``, for viewers such as Jmol."""
        frames = []
        for k, mode in enumerate(self.modes):
            frame = Atoms(self.atoms.numbers, self.atoms.positions, cell=self.atoms.cell, pbc=self.atoms.pbc)
            frame.set_array("mode", mode)
            frame.info["mode"] = k
            frame.info["frequency_cm-1"] = float(self.frequencies[k].real - self.frequencies[k].imag)
            if self.ir_intensities is not None:
                frame.info["ir_intensity_km_mol"] = float(self.ir_intensities[k])
            frames.append(frame)
        ase.io.write(os.fspath(path), frames, format="extxyz")


def vibrations(
    atoms: Atoms,
    hessian: Array,
    *,
    dipole_derivatives: Array | None = None,
    potential_energy: float = 0.0,
    mult: int = 1,
    forces: Array | None = None,
) -> Vibrations:
    """Harmonic vibrations of a relaxed structure, with its translations and rotations projected out.

    Warns in a sentence if there are imaginary modes or the structure is not relaxed.

    Parameters
    ----------
    atoms
        The structure with its masses. Atoms under ``FixAtoms`` or ``FixCartesian`` are held, as in ASE.
    hessian
        (3 N, 3 N) or (N, 3, N, 3) eV/Å^2, or that of the n atoms that move.
    dipole_derivatives
        (N, 3, 3) e, see `aimnet2mult.models.hessian.dipole_derivatives`; None: no intensities.
    potential_energy
        eV, for the thermochemistry.
    mult
        Spin multiplicity, for the electronic entropy.
    forces
        (N, 3) eV/Å, to see whether the structure is relaxed.

    Raises
    ------
    InputError
        The Hessian has another shape or is not finite, no atom can move, or one has no mass.
    """
    indices = _moving_atoms(atoms)
    hessian = _of_moving_atoms(np.asarray(hessian, dtype=np.float64), len(atoms), indices)
    masses = atoms.get_masses()[indices]
    if not (np.isfinite(masses).all() and (masses > 0.0).all()):
        raise InputError("every atom that moves needs a mass above zero; use atoms.set_masses")
    geometry = _geometry(atoms, len(indices))
    root = np.repeat(np.sqrt(masses), 3)
    free = _vibrational_space(atoms.positions[indices], masses, geometry)
    squares, vectors = np.linalg.eigh(free.T @ (hessian.reshape(len(root), -1) / np.outer(root, root)) @ free)
    modes = np.zeros((len(squares), len(atoms), 3))
    modes[:, indices] = ((free @ vectors).T / root).reshape(-1, len(indices), 3)
    intensities = None
    if dipole_derivatives is not None and not atoms.pbc.any():
        slopes = np.einsum("kix,ixd->kd", modes, np.asarray(dipole_derivatives))  # (M, 3) e/sqrt(amu)
        intensities = _KM_MOL * np.square(slopes).sum(axis=1)
    result = Vibrations(
        atoms=atoms.copy(),
        indices=indices,
        hessian=hessian,
        geometry=geometry,
        energies=np.asarray(_EV_PER_ROOT * np.sqrt(squares.astype(complex)), dtype=np.complex128),
        modes=modes,
        ir_intensities=intensities,
        potential_energy=float(potential_energy),
        spin=0.5 * (mult - 1),
    )
    _warn(result, forces)
    return result


def vibrations_of(atoms: Atoms, prepared: Prepared) -> Vibrations:
    """Harmonic vibrations of a structure by the potentials that a calculator has prepared for it; see `vibrations`.

    Raises
    ------
    InputError
        As for `vibrations`.
    ase.calculators.calculator.CalculationFailed
        A potential stopped, or cannot be differentiated twice for this structure.
    """
    indices = _moving_atoms(atoms)
    found = second_order(prepared, indices.tolist())
    polar = None if prepared.system.n_periodic else dipole_derivatives(prepared, atoms.get_masses())
    return vibrations(
        atoms,
        found.hessian,
        dipole_derivatives=polar,
        potential_energy=found.energy,
        mult=prepared.system.mult,
        forces=found.forces,
    )


def _moving_atoms(atoms: Atoms) -> NDArray[np.int64]:
    indices = np.array(VibrationsData.indices_from_constraints(atoms), dtype=np.int64)
    if len(indices) == 0:
        raise InputError("all atoms of the structure are held by constraints; there is nothing to vibrate")
    return indices


def _of_moving_atoms(hessian: Array, n_atoms: int, indices: NDArray[np.int64]) -> Array:
    n = len(indices)
    for size in (n_atoms, n):
        if hessian.shape in ((3 * size, 3 * size), (size, 3, size, 3)):
            hessian = hessian.reshape(size, 3, size, 3)
            break
    else:
        raise InputError(f"the Hessian has shape {hessian.shape}; expected {(3 * n_atoms, 3 * n_atoms)}")
    if len(hessian) != n:
        hessian = hessian[indices][:, :, indices]
    if not np.isfinite(hessian).all():
        raise InputError("the Hessian has elements that are not finite")
    return 0.5 * (hessian + hessian.transpose(2, 3, 0, 1))


def _geometry(atoms: Atoms, n_moving: int) -> Geometry:
    if n_moving < len(atoms):
        return "frozen"
    if atoms.pbc.any():
        return "periodic"
    if n_moving == 1:
        return "monatomic"
    return "linear" if atoms.get_moments_of_inertia().min() < _LINEAR else "nonlinear"


def _vibrational_space(coord: Array, masses: Array, geometry: Geometry) -> Array:
    """Orthonormal columns (3 n, M) that span what is left of mass-weighted displacements by rigid motions.

    These are sqrt(m_i) e_a and sqrt(m_i) e_a x (r_i - R) (Eckart, Phys. Rev. 47, 552 (1935)).
    """
    n_rigid = {"monatomic": 3, "linear": 5, "nonlinear": 6, "periodic": 3, "frozen": 0}[geometry]
    n = len(masses)
    if n_rigid == 0:
        return np.eye(3 * n)
    root = np.sqrt(masses)[:, np.newaxis, np.newaxis]
    arms = coord - masses @ coord / masses.sum()
    axes = np.eye(3)
    # columns of about the same length, so that the singular values tell a missing rotation from a small one
    size = max(1.0, float(np.sqrt(np.square(arms).sum(axis=1).max())))
    motions = np.broadcast_to(axes, (n, 3, 3))
    if n_rigid > 3:
        turns = np.cross(axes[np.newaxis], arms[:, np.newaxis]).transpose(0, 2, 1) / size
        motions = np.concatenate([motions, turns], axis=2)
    left, _, _ = np.linalg.svd((root * motions).reshape(3 * n, -1))
    return left[:, n_rigid:]


def _warn(result: Vibrations, forces: Array | None) -> None:
    if forces is not None:
        largest = float(np.linalg.norm(np.asarray(forces)[result.indices], axis=1).max())
        if largest > STATIONARY:
            warnings.warn(
                f"the structure is not relaxed (largest force {largest:.3f} eV/Å), so its harmonic frequencies mean "
                f"little; relax it below {STATIONARY} eV/Å first",
                stacklevel=3,
            )
    if result.n_imaginary:
        warnings.warn(_imaginary_sentence(result), stacklevel=3)


def _imaginary_sentence(result: Vibrations) -> str:
    found = [_as_text(frequency) for frequency in result.frequencies if frequency.imag]
    shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
    verb = "is" if len(found) == 1 else "are"
    return f"{len(found)} of {len(result.energies)} modes {verb} imaginary ({shown} cm^-1): this is not a minimum"


def _as_text(frequency: complex) -> str:
    return f"{frequency.imag:.1f}i" if frequency.imag else f"{frequency.real:.1f}"
