"""Dispersion added to a potential at run time, through the dftd3 and dftd4 packages."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from ase.calculators.calculator import CalculationFailed
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from aimnet2mult.calculators.inputs import System
from aimnet2mult.errors import ConfigError, InputError
from aimnet2mult.models.dispersion import DEFAULT_CUTOFFS as D3_CUTOFFS
from aimnet2mult.models.dispersion_cutoffs import package_cutoffs
from aimnet2mult.models.dispersion_d4 import DEFAULT_CUTOFFS as D4_CUTOFFS
from aimnet2mult.models.hessian import hessian_by_differences
from aimnet2mult.physics.functionals import resolve_d3
from aimnet2mult.physics.functionals_d4 import resolve_d4
from aimnet2mult.units import ANGSTROM_PER_BOHR, BOHR_PER_ANGSTROM, EV_PER_HARTREE

if TYPE_CHECKING:
    from aimnet2mult.calculators.evaluation import Evaluation

METHODS = ("d3bj", "d4")


class Dispersion(NamedTuple):
    """A dispersion correction of one structure."""

    energy: float  # eV
    forces: NDArray[np.float64]  # (N, 3) eV/Å
    stress: NDArray[np.float64]  # (6,) eV/Å^3, Voigt order; zeros where nothing is periodic


class RuntimeDispersion:
    """A dispersion correction computed by the library of its authors, at the cutoffs of the one for compiled files.

    Parameters
    ----------
    method
        ``"d3bj"`` or ``"d4"``.
    functional
        A name as for ``--dispersion-functional`` of the compilation; D3 is two-body, D4 has its three-body term.

    Raises
    ------
    InputError
        The method or the functional is unknown, or there is no functional.
    """

    def __init__(self, method: str, functional: str | None) -> None:
        if method not in METHODS:
            raise InputError(f"unknown dispersion {method!r}; use 'd3bj' or 'd4'")
        if not isinstance(functional, str):
            raise InputError(f"dispersion={method!r} needs the functional of the reference data, functional='pbe0' say")
        self.method = method
        try:
            resolved = resolve_d3(functional) if method == "d3bj" else resolve_d4(functional)
        except ConfigError as error:
            raise InputError(str(error)) from None
        for sentence in resolved.warnings:
            warnings.warn(sentence, stacklevel=3)
        self._parameters = resolved.parameters._asdict()

    def evaluate(self, system: System, gradient: bool) -> Dispersion:
        """Energy and, with `gradient`, forces and stress (else zeros).

        Raises
        ------
        InputError
            The system is periodic in some directions only, or has an element that the library does not know.
        CalculationFailed
            The library stopped.
        """
        if system.n_periodic in (1, 2):
            raise InputError(
                f"the {self.method} library knows molecules and cells that are periodic in all three directions only; "
                "add vacuum and set pbc to True along it"
            )
        try:
            model, parameters = self._library_model(system)
            found = model.get_dispersion(parameters, gradient)
        except (RuntimeError, ValueError) as error:
            raise CalculationFailed(f"the {self.method} library stopped: {error}") from error
        forces = np.zeros_like(system.coord)
        stress = np.zeros(6)
        if gradient:
            forces = -found["gradient"] * (EV_PER_HARTREE / ANGSTROM_PER_BOHR)
            if system.n_periodic:
                stress = full_3x3_to_voigt_6_stress(found["virial"]) * (EV_PER_HARTREE / system.volume)
        return Dispersion(float(found["energy"]) * EV_PER_HARTREE, forces, stress)

    def hessian(self, system: System) -> NDArray[np.float64]:
        """Second derivatives (3N, 3N) in eV/Å^2: analytic for D3, differences of gradients for D4."""
        n = system.coord.size
        if self.method == "d3bj":
            model, parameters = self._library_model(system)
            return model.get_hessian(parameters)["hessian"] * (EV_PER_HARTREE / ANGSTROM_PER_BOHR**2)
        rows = hessian_by_differences(
            lambda coord: -self.evaluate(system._replace(coord=coord), True).forces, system.coord
        )
        return rows.reshape(n, n)

    def added_to(self, found: Evaluation, system: System) -> Evaluation:
        """The evaluation of a potential with this correction on top; deviations of an ensemble stay as they are."""
        extra = self.evaluate(system, found.forces is not None or found.stress is not None)
        return found._replace(
            energy=found.energy + extra.energy,
            forces=None if found.forces is None else found.forces + extra.forces,
            stress=None if found.stress is None else found.stress + extra.stress,
        )

    def _library_model(self, system: System) -> tuple[Any, Any]:
        """The structure and the damping parameters as objects of the library."""
        structure: dict[str, Any] = {"numbers": system.numbers, "positions": system.coord * BOHR_PER_ANGSTROM}
        if system.n_periodic:
            structure |= {"lattice": system.cell * BOHR_PER_ANGSTROM, "periodic": np.array([True] * 3)}
        if self.method == "d3bj":
            from dftd3 import interface as d3

            model = d3.DispersionModel(**structure)
            model.set_realspace_cutoff(**package_cutoffs(D3_CUTOFFS))
            return model, d3.RationalDampingParam(**self._parameters)
        from dftd4 import interface as d4

        model = d4.DispersionModel(**structure, charge=float(system.charge))
        model.set_realspace_cutoff(**package_cutoffs(D4_CUTOFFS))
        return model, d4.DampingParam(**self._parameters)
