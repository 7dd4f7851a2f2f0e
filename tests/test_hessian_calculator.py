"""Second derivatives of what a calculator computes, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import suites
import torch
from ase.build import molecule
from ase.calculators.calculator import CalculationFailed
from hessian_cases import Fake, NoGradient, crystals, d3, door, loaded, potential, prepared
from numpy.typing import NDArray

from aimnet2mult.calculators import hessian as calculated
from aimnet2mult.calculators.runtime_dispersion import RuntimeDispersion
from aimnet2mult.errors import InputError
from aimnet2mult.models.hessian import dipole_derivatives, hessian, hessian_by_differences, second_order
from aimnet2mult.physics.pair_sums import linear_surrogate
from aimnet2mult.units import ANGSTROM_PER_BOHR, BOHR_PER_ANGSTROM, EV_PER_HARTREE


def test_differences_against_the_analytic_hessian_of_dftd3() -> None:
    interface = pytest.importorskip("dftd3.interface")
    atoms = molecule("CH3CONH2")
    parameters = interface.RationalDampingParam(s6=1.0, s8=1.2177, a1=0.4145, a2=4.8593, s9=1.0)

    def model(positions: NDArray[np.float64]) -> object:
        return interface.DispersionModel(atoms.numbers, positions * BOHR_PER_ANGSTROM)

    def gradient(positions: NDArray[np.float64]) -> NDArray[np.float64]:
        found = model(positions).get_dispersion(parameters, grad=True)["gradient"]
        return found * (EV_PER_HARTREE / ANGSTROM_PER_BOHR)

    exact = model(atoms.positions).get_hessian(parameters)["hessian"] * (EV_PER_HARTREE / ANGSTROM_PER_BOHR**2)
    found = hessian_by_differences(gradient, atoms.positions)
    np.testing.assert_allclose(found.reshape(exact.shape), exact, atol=1e-9 * np.abs(exact).max() + 1e-11)


def test_of_a_calculator() -> None:
    """The mean over the members and run-time dispersion, which is what the same dispersion inside would be."""
    atoms = suites.structure("CH3OH")
    members = (loaded(potential()), loaded(potential(nfeature=5)))
    mean = 0.5 * (hessian(members[0], door(atoms)) + hessian(members[1], door(atoms)))
    found = calculated.hessian(prepared(atoms, members))
    np.testing.assert_allclose(found, mean.view(18, 18).numpy(), atol=1e-12)
    inside = hessian(loaded(potential(d3())), door(atoms)).view(18, 18).numpy()
    outside = calculated.second_order(prepared(atoms, members[:1], RuntimeDispersion("d3bj", "pbe0")), [2, 5])
    places = [6, 7, 8, 15, 16, 17]
    np.testing.assert_allclose(outside.hessian, inside[np.ix_(places, places)], atol=1e-8)
    within = second_order(loaded(potential(d3())), door(atoms))
    np.testing.assert_allclose(outside.forces, within.forces.numpy(), atol=1e-8)
    assert abs(outside.energy - float(within.energy)) < 1e-8


def test_dipole_derivatives_of_a_calculator() -> None:
    atoms = suites.structure("CH3O", -1, 1)
    modules = (loaded(potential()), loaded(potential(nfeature=5)))
    masses = atoms.get_masses()
    expected = [dipole_derivatives(m, door(atoms), torch.from_numpy(masses)).numpy() for m in modules]
    np.testing.assert_allclose(calculated.dipole_derivatives(prepared(atoms, modules)), np.mean(expected, axis=0))
    heavy = masses * [1.0, 1.0, 2.0, 2.0, 2.0]
    found = calculated.dipole_derivatives(prepared(atoms, modules), heavy)
    assert np.abs(found - np.mean(expected, axis=0)).max() > 1e-2
    crystal = crystals()[0]
    with pytest.raises(InputError, match="periodic system has no dipole"):
        calculated.dipole_derivatives(prepared(crystal, modules))


def test_what_cannot_be_differentiated_is_refused() -> None:
    data = door(suites.structure("H2O"))
    with pytest.raises(CalculationFailed, match="not finite for this structure: it is too large"):
        hessian(Fake(lambda x: linear_surrogate(x.detach().sum((1, 2)), x, torch.ones_like(x))), data)
    with pytest.raises(CalculationFailed, match=r"not translation invariant \(by 2\.0e\+00 eV/Å\^2\)"):
        hessian(Fake(lambda x: x.square().sum((1, 2))), data)
    with pytest.raises(CalculationFailed, match="Hessian is not symmetric"):
        hessian(Fake(NoGradient.apply), data)
    with pytest.raises(CalculationFailed, match="dipole derivatives are not finite"):
        dipole_derivatives(Fake(lambda x: x.sum((1, 2))), {**data, "coord": -data["coord"].abs()}, torch.ones(3))


def test_single_precision_and_batches_are_refused() -> None:
    data = door(suites.structure("H2O"))
    with pytest.raises(InputError, match=r"in float64, this one is in torch.float32; use module.to\(torch.float64\)"):
        hessian(potential().float(), data)
    two = {key: torch.cat([value, value]) for key, value in data.items()}
    with pytest.raises(InputError, match=r"one system at a time: coord must be \(1, N, 3\), not \(2, 3, 3\)"):
        hessian(potential(), two)


def test_a_potential_that_stops_says_so() -> None:
    atoms = suites.structure("H2O")
    atoms.numbers[0] = 5
    with pytest.raises(CalculationFailed, match=r"the potential stopped: .*atomic number 5"):
        calculated.hessian(prepared(atoms, (loaded(potential()),)))
