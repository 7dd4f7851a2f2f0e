"""Methods for the long-range Coulomb energy of a compiled potential, chosen when it is loaded."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import suites
import torch
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from conftest import FIDELITIES, write_fidelity
from crystals import crystal
from structures import water

from aimnet2mult import AIMNet2MultCalculator
from aimnet2mult.errors import InputError
from aimnet2mult.models.network import MultiFidelityNetwork


def calculator(path: Path, **arguments: object) -> AIMNet2MultCalculator:
    return AIMNet2MultCalculator(path, device="cpu", dtype="float64", **arguments)


@pytest.fixture(scope="module")
def coulomb_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A potential with long-range Coulomb of method simple."""
    torch.manual_seed(0)
    network = suites.perturbed(MultiFidelityNetwork(suites.model_config(num_fidelities=2)).double(), scale=0.1)
    return write_fidelity(network, FIDELITIES[0], tmp_path_factory.mktemp("coulomb") / "coulomb")


def test_coulomb_method_can_be_changed(coulomb_file: Path) -> None:
    atoms, periodic = water(charge=1), crystal("triclinic")
    found = {}
    for method in (None, "simple", "dsf", "ewald"):
        calc = calculator(coulomb_file, coulomb=method)
        found[method] = calc.get_potential_energy(atoms), calc.get_potential_energy(periodic)
        assert calc.parameters["coulomb"] == method
        assert pickle.loads(pickle.dumps(calc)).get_potential_energy(periodic) == found[method][1]
    assert found[None] == found["simple"]
    # in a cell the limit of all pairs is the Ewald sum
    assert found["ewald"][1] == pytest.approx(found["simple"][1], abs=1e-9)
    assert abs(found["dsf"][0] - found["simple"][0]) > 1e-6
    assert abs(found["dsf"][1] - found["simple"][1]) > 1e-6


@pytest.mark.parametrize("coulomb", ["simple", "dsf", "ewald"])
def test_derivatives_with_coulomb(coulomb_file: Path, coulomb: str) -> None:
    """Strains and steps of 1e-4: truncation about 1e-8, rounding of 1e-12 eV / (1e-4 * 100 Å^3)."""
    atoms = crystal("triclinic")
    atoms.calc = calculator(coulomb_file, coulomb=coulomb)
    np.testing.assert_allclose(atoms.get_stress(), calculate_numerical_stress(atoms, eps=1e-4), atol=1e-6)
    expected = calculate_numerical_forces(atoms, eps=1e-4)
    np.testing.assert_allclose(atoms.get_forces(), expected, atol=1e-6 * max(1.0, np.abs(expected).max()))


def test_partly_periodic_coulomb(coulomb_file: Path) -> None:
    atoms = crystal("triclinic")
    atoms.pbc = (True, True, False)
    for method in ("simple", "ewald"):
        atoms.calc = calculator(coulomb_file, coulomb=method)
        with pytest.raises(InputError) as caught:
            atoms.get_potential_energy()
        assert str(caught.value) == (
            "the long-range Coulomb energy of a system that is periodic in 2 of 3 directions is not defined by this "
            'potential; use coulomb="dsf", or add vacuum and set pbc to True along it'
        )
    atoms.calc = calculator(coulomb_file, coulomb="dsf")
    expected = calculate_numerical_forces(atoms, eps=1e-4)
    np.testing.assert_allclose(atoms.get_forces(), expected, atol=1e-6 * max(1.0, np.abs(expected).max()))


def test_charged_cell_is_warned_of_once(coulomb_file: Path) -> None:
    ion = crystal("triclinic")
    ion.info["charge"] = 1
    calc = calculator(coulomb_file)
    with pytest.warns(UserWarning, match="uniform neutralising background"):
        calc.get_potential_energy(ion)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ion.rattle(0.01)
        calc.get_potential_energy(ion)
        calc.evaluate([ion])
        calculator(coulomb_file, coulomb="dsf").get_potential_energy(ion)
        calculator(coulomb_file).get_potential_energy(water(charge=1))
