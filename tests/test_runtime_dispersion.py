"""Dispersion by the dftd3 and dftd4 packages on top of a potential."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import suites
from ase import Atoms
from ase.build import molecule
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.io import Trajectory
from ase.units import Bohr, Hartree
from conftest import FIDELITIES, SAE
from crystals import crystal, short_ranged
from dftd3.ase import DFTD3
from dftd4.interface import DampingParam, DispersionModel
from structures import water

from aimnet2mult import AIMNet2MultCalculator
from aimnet2mult.calculators.inputs import checked_system
from aimnet2mult.configs.metadata import DispersionInfo
from aimnet2mult.errors import InputError
from aimnet2mult.models import files
from aimnet2mult.models.dispersion import D3BJ
from aimnet2mult.models.dispersion import DEFAULT_CUTOFFS as D3_CUTOFFS
from aimnet2mult.models.dispersion_cutoffs import package_cutoffs
from aimnet2mult.models.dispersion_d4 import D4
from aimnet2mult.models.dispersion_d4 import DEFAULT_CUTOFFS as D4_CUTOFFS
from aimnet2mult.models.potential import Potential, SelfAtomicEnergy
from aimnet2mult.physics.functionals import resolve_d3
from aimnet2mult.physics.functionals_d4 import resolve_d4

# ase and this package take their Hartree from different years of CODATA: 1e-8 relative
UNITS = 1e-7
INSIDE = DispersionInfo(method="d3bj", functional="pbe0", s6=1, s8=1.2177, s9=0, a1=0.4145, a2=4.8593, reference="-")


@pytest.fixture(scope="module")
def short_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return short_ranged(tmp_path_factory.mktemp("short") / "short")


def calculator(path: Path, **arguments: object) -> AIMNet2MultCalculator:
    return AIMNet2MultCalculator(path, device="cpu", dtype="float64", **arguments)


def difference(path: Path, atoms: Atoms, **arguments: str) -> dict[str, np.ndarray]:
    """What the correction adds."""
    wanted = ["energy", "forces"] + (["stress"] if atoms.pbc.all() else [])
    plain, corrected = calculator(path), calculator(path, **arguments)
    for calc in (plain, corrected):
        calc.calculate(atoms, wanted)
    return {name: corrected.results[name] - plain.results[name] for name in wanted}


def d4_of_package(atoms: Atoms, functional: str) -> dict[str, np.ndarray]:
    cell = {"lattice": atoms.cell.array / Bohr, "periodic": atoms.pbc} if atoms.pbc.any() else {}
    charge = float(atoms.info.get("charge", 0))
    model = DispersionModel(atoms.numbers, atoms.positions / Bohr, charge, **cell)
    model.set_realspace_cutoff(**package_cutoffs(D4_CUTOFFS))
    found = model.get_dispersion(DampingParam(method=functional), grad=True)
    results = {"energy": found["energy"] * Hartree, "forces": -found["gradient"] * Hartree / Bohr}
    if cell:
        results["stress"] = (found["virial"] * Hartree / atoms.get_volume()).flat[[0, 4, 8, 5, 2, 1]]
    return results


@pytest.mark.parametrize("atoms", [molecule("CH3CONH2"), water(charge=1), crystal("triclinic"), crystal("left-handed")])
def test_adds_what_the_packages_give(short_file: Path, atoms: Atoms) -> None:
    d3 = difference(short_file, atoms, dispersion="d3bj", functional="dftd3:pbe")
    reference = DFTD3(
        damping="d3bj",
        params_tweaks={"s6": 1.0, "s8": 0.7875, "s9": 0.0, "a1": 0.4289, "a2": 4.4407},
        realspace_cutoff={name: value * Bohr for name, value in package_cutoffs(D3_CUTOFFS).items()},
    )
    for name, value in d3.items():
        np.testing.assert_allclose(value, reference.get_property(name, atoms), atol=UNITS, rtol=UNITS)
    d4 = difference(short_file, atoms, dispersion="d4", functional="PBE0")
    for name, value in d4_of_package(atoms, "pbe0").items():
        np.testing.assert_allclose(d4[name], value, atol=UNITS, rtol=UNITS)
    assert d3["energy"] < -1e-3
    assert np.abs(d3["energy"] - d4["energy"]) > 1e-4


@pytest.mark.parametrize("dispersion", ["d3bj", "d4"])
def test_forces_with_dispersion_are_derivatives(short_file: Path, dispersion: str) -> None:
    atoms = molecule("CH3OH")
    atoms.calc = calculator(short_file, dispersion=dispersion, functional="pbe")
    expected = calculate_numerical_forces(atoms, eps=1e-4)
    np.testing.assert_allclose(atoms.get_forces(), expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("dispersion", ["d3bj", "d4"])
def test_stress_with_dispersion_is_a_derivative(short_file: Path, dispersion: str) -> None:
    """The packages are asked for smooth ends; those of coordination numbers are sharp in dftd3: 6e-8 eV/Å^3 here."""
    atoms = crystal("triclinic")
    atoms.calc = calculator(short_file, dispersion=dispersion, functional="pbe")
    np.testing.assert_allclose(atoms.get_stress(), calculate_numerical_stress(atoms, eps=1e-4), rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    ("dispersion", "atoms", "tolerance"),
    [  # differences of order step^2 times third derivatives of 1e-1 eV/Å^4; in the crystal also pairs at the sharp end
        # of the coordination numbers, of which the dftd3 package has no other
        ("d3bj", water(charge=1), 1e-6),
        ("d4", water(charge=1), 1e-6),
        ("d3bj", crystal("triclinic"), 5e-6),
    ],
)
def test_hessian_of_the_correction(short_file: Path, dispersion: str, atoms: Atoms, tolerance: float) -> None:
    calc = calculator(short_file, dispersion=dispersion, functional="pbe")
    extra = calc._potentials.committee().dispersion
    system = checked_system(atoms, None, None, calc.metadata)
    step = 1e-3
    rows = []
    for place in range(system.coord.size):
        moved = [system.coord.copy(), system.coord.copy()]
        moved[0].flat[place] += step
        moved[1].flat[place] -= step
        forces = [extra.evaluate(system._replace(coord=coord), True).forces.ravel() for coord in moved]
        rows.append((forces[1] - forces[0]) / (2 * step))
    np.testing.assert_allclose(extra.hessian(system), rows, atol=tolerance)


def test_batches_and_ensembles_have_it_too(short_file: Path, tmp_path: Path) -> None:
    other = short_ranged(tmp_path / "other", seed=1)
    bag = [water(), molecule("CH4"), water(charge=1), crystal("triclinic")]
    for model in (short_file, [short_file, other]):
        calc = calculator(model, dispersion="d4", functional="pbe0")
        plain = calculator(model)
        for atoms, found, bare in zip(bag, calc.evaluate(bag), plain.evaluate(bag), strict=True):
            assert found.energy == pytest.approx(calc.get_potential_energy(atoms), abs=1e-9)
            np.testing.assert_allclose(found.forces, calc.get_forces(atoms), atol=1e-9)
            assert found.energy < bare.energy - 1e-4
            assert found.energy_std == bare.energy_std


def test_recorded_and_kept_in_copies(short_file: Path, tmp_path: Path) -> None:
    atoms = water()
    atoms.calc = calculator(short_file, dispersion="d4", functional="pbe0")
    energy = atoms.get_potential_energy()
    assert atoms.calc.todict()["dispersion"] == "d4"
    assert atoms.calc.todict()["functional"] == "pbe0"
    assert "dispersion" not in calculator(short_file).todict()
    for twin in (copy.deepcopy(atoms.calc), pickle.loads(pickle.dumps(atoms.calc))):
        twin.reset()
        assert twin.get_potential_energy(water()) == energy
    with Trajectory(tmp_path / "a.traj", "w", atoms) as trajectory:
        trajectory.write()
    with Trajectory(tmp_path / "a.traj") as trajectory:
        assert trajectory[0].calc.parameters["dispersion"] == "d4"
    atoms.calc.fidelity = 0
    assert atoms.get_potential_energy() == energy
    with pytest.raises(InputError, match="'dispersion' cannot be set"):
        atoms.calc.set(dispersion=None)


def test_slabs_and_wires_are_refused(short_file: Path) -> None:
    atoms = crystal("triclinic")
    atoms.pbc = (True, False, True)
    for method in ("d3bj", "d4"):
        atoms.calc = calculator(short_file, dispersion=method, functional="pbe0")
        with pytest.raises(InputError) as caught:
            atoms.get_potential_energy()
        assert str(caught.value) == (
            f"the {method} library knows molecules and cells that are periodic in all three directions only; "
            "add vacuum and set pbc to True along it"
        )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dispersion": "d2", "functional": "pbe"}, "unknown dispersion 'd2'; use 'd3bj' or 'd4'"),
        ({"dispersion": "d4"}, "dispersion='d4' needs the functional of the reference data, functional='pbe0' say"),
        ({"functional": "pbe"}, "functional goes with dispersion='d3bj' or 'd4'; give one of these or leave it out"),
        (
            {"replace_dispersion": True},
            "replace_dispersion goes with dispersion='d3bj' or 'd4'; give one of these or leave it out",
        ),
        ({"coulomb": "pme"}, "unknown coulomb 'pme'; use 'simple', 'dsf' or 'ewald'"),
        ({"coulomb": "dsf"}, "short_fid0.jpt has no long-range Coulomb energy; leave coulomb='dsf' away"),
    ],
)
def test_wrong_arguments(short_file: Path, arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        calculator(short_file, **arguments)
    assert str(caught.value) == sentence


def test_unknown_functional_and_warning(short_file: Path) -> None:
    for method in ("d3bj", "d4"):
        with pytest.raises(InputError, match="functional 'pbe00' is"):
            calculator(short_file, dispersion=method, functional="pbe00")
    with pytest.warns(UserWarning, match="overbinds strongly"):
        calculator(short_file, dispersion="d3bj", functional="wb97x")


def with_metadata(source: Path, target: Path, **changes: object) -> Path:
    loaded = files.load_potential(source)
    files.write_potential(target, loaded.module, loaded.metadata.model_copy(update=changes))
    return target


def test_labels_that_include_dispersion(short_file: Path, tmp_path: Path) -> None:
    included = FIDELITIES[0].model_copy(update={"labels_include_dispersion": True})
    path = with_metadata(short_file, tmp_path / "labels.jpt", fidelity=included)
    for replace in (False, True):
        with pytest.raises(InputError) as caught:
            calculator(path, dispersion="d4", functional="pbe0", replace_dispersion=replace)
        assert str(caught.value) == (
            "the energies that labels.jpt was trained on include dispersion, which cannot be taken out; "
            "leave dispersion='d4' away"
        )
    calculator(path).get_potential_energy(water())


@pytest.mark.parametrize("method", ["d3bj", "d4"])
def test_dispersion_inside_is_that_of_the_package(tmp_path: Path, method: str) -> None:
    """The same numbers, in crystals too, whether the correction is in the file, added, or put in its place."""
    network = suites.network(num_fidelities=2, outputs={"lrcoulomb": None}).at_fidelity(0)
    sae = SelfAtomicEnergy({z: SAE[z] for z in (1, 6, 8)})
    correction = (
        D3BJ([1, 6, 8], resolve_d3("pbe0").parameters)
        if method == "d3bj"
        else D4([1, 6, 8], resolve_d4("pbe0").parameters)
    )
    paths = []
    for name, terms in (("plain", []), ("inside", [correction])):
        metadata = files.load_potential(short_ranged(tmp_path / "as")).metadata
        changed = metadata.model_copy(update={"dispersion": INSIDE if terms else None})
        paths.append(tmp_path / f"{name}.jpt")
        files.write_potential(paths[-1], files.script_potential(Potential(network, sae, terms)), changed)
    plain, inside = paths
    asked = {"dispersion": method, "functional": "pbe0"}
    for atoms in (molecule("CH3OH"), crystal("triclinic")):
        without = calculator(plain)
        others = [calculator(inside), calculator(plain, **asked), calculator(inside, **asked, replace_dispersion=True)]
        assert others[0].get_potential_energy(atoms) < without.get_potential_energy(atoms) - 1e-3
        for other in others[1:]:
            assert other.get_potential_energy(atoms) == pytest.approx(others[0].get_potential_energy(atoms), abs=UNITS)
            np.testing.assert_allclose(other.get_forces(atoms), others[0].get_forces(atoms), atol=UNITS)


def test_dispersion_inside_is_not_counted_twice(short_file: Path, tmp_path: Path) -> None:
    path = with_metadata(short_file, tmp_path / "d3.jpt", dispersion=INSIDE)
    with pytest.raises(InputError) as caught:
        calculator(path, dispersion="d4", functional="pbe0")
    assert str(caught.value) == (
        "d3.jpt holds dispersion already (d3bj, pbe0), so that dispersion='d4' would count it twice; "
        "use replace_dispersion=True to put it in the place of the one inside"
    )
    with pytest.raises(InputError, match=r"d3.jpt is too old to change its dispersion; compile it again"):
        calculator(path, dispersion="d4", functional="pbe0", replace_dispersion=True)
