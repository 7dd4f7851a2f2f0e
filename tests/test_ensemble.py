"""Committees: which files they are, their mean and deviation, what must agree; and all fidelities at once."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import suites
from ase import Atoms
from ase.build import molecule
from ase.io import Trajectory, read, write
from conftest import FIDELITIES, write_fidelity
from crystals import crystal, short_ranged
from structures import water

from aimnet2mult import AIMNet2MultCalculator
from aimnet2mult.calculators import members
from aimnet2mult.configs.metadata import DispersionInfo
from aimnet2mult.errors import InputError, ModelFileError
from aimnet2mult.models import files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model_a``, ``model_b`` and ``model_c`` at two fidelities."""
    path = tmp_path_factory.mktemp("committee")
    for seed, letter in enumerate("abc"):
        for fidelity in (0, 1):
            short_ranged(path / f"model_{letter}", seed, fidelity)
    return path


def singles(folder: Path, fidelity: int = 0) -> list[AIMNet2MultCalculator]:
    paths = [folder / f"model_{letter}_fid{fidelity}.jpt" for letter in "abc"]
    return [AIMNet2MultCalculator(path, device="cpu", dtype="float64") for path in paths]


def committee(folder: Path, **arguments: object) -> AIMNet2MultCalculator:
    model = [folder / f"model_{letter}_fid0.jpt" for letter in "abc"]
    return AIMNet2MultCalculator(model, device="cpu", dtype="float64", **arguments)


@pytest.mark.parametrize(
    ("model", "fidelity"),
    [
        (["model_a_fid0.jpt", "model_b_fid0.jpt", "model_c_fid0.jpt"], None),
        (["model_a", "model_b", "model_c"], "PBE0"),
        ("model_*_fid0.jpt", None),
        ("model_[abc]_fid?.jpt", 0),
        ("*.jpt", "pbe0"),
        ("", 0),
    ],
)
def test_ways_to_name_a_committee(folder: Path, model: str | list[str], fidelity: int | str | None) -> None:
    asked = [folder / name for name in model] if isinstance(model, list) else str(folder / model)
    calc = AIMNet2MultCalculator(asked, fidelity=fidelity, device="cpu")
    expected = [str(folder / f"model_{letter}_fid0.jpt") for letter in "abc"]
    assert calc.parameters["model"] == expected
    calc.fidelity = "CCSD(T)"
    assert calc.parameters["model"] == [path.replace("fid0", "fid1") for path in expected]


@pytest.mark.parametrize("make_atoms", [lambda: water(charge=1), lambda: crystal("triclinic")])
def test_mean_and_deviation(folder: Path, make_atoms: Callable[[], Atoms]) -> None:
    atoms = make_atoms()
    wanted = ["forces"] + (["stress"] if atoms.pbc.all() else [])
    alone = []
    for single in singles(folder):
        single.calculate(atoms, wanted)
        assert "energy_std" not in single.results
        assert "energy_std" not in single.implemented_properties
        alone.append(single.results)
    atoms.calc = committee(folder)
    atoms.get_forces()
    results = atoms.calc.results
    for name in ("energy", "forces", "charges", "magmoms", *wanted):
        mean = np.mean([one[name] for one in alone], axis=0)
        np.testing.assert_allclose(results[name], mean, rtol=1e-12, atol=1e-12)
    energies = np.array([one["energy"] for one in alone])
    # 1e-11: rounding of energies of 1e3 eV
    assert results["energy_std"] == pytest.approx(np.sqrt(((energies - energies.mean()) ** 2).sum() / 2), abs=1e-11)
    forces = np.array([one["forces"] for one in alone])
    np.testing.assert_allclose(results["forces_std"], forces.std(axis=0, ddof=1), atol=1e-12)
    assert results["energy_std"] > 1e-3
    assert atoms.calc.get_property("energy_std", atoms) == results["energy_std"]
    np.testing.assert_array_equal(atoms.calc.get_property("forces_std", atoms), results["forces_std"])


def test_deviation_alone_can_be_asked_for(folder: Path) -> None:
    calc = committee(folder)
    assert calc.get_property("forces_std", water()).shape == (3, 3)
    calc = committee(folder)
    assert calc.get_property("energy_std", water()) > 0
    assert "forces_std" not in calc.results


def test_ase_keeps_what_it_has_names_for(folder: Path, tmp_path: Path) -> None:
    atoms = water()
    atoms.calc = committee(folder)
    forces = atoms.get_forces()
    assert "energy_std" not in atoms.calc.export_properties()
    with Trajectory(tmp_path / "a.traj", "w", atoms) as trajectory:
        trajectory.write()
    write(tmp_path / "a.xyz", atoms)
    for name in ("a.traj", "a.xyz"):
        np.testing.assert_allclose(read(tmp_path / name).get_forces(), forces, atol=1e-8)  # xyz: 8 decimals


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies(folder: Path, duplicate: Callable[..., AIMNet2MultCalculator]) -> None:
    calc = committee(folder)
    twin = duplicate(calc)
    assert twin.get_potential_energy(water()) == calc.get_potential_energy(water())
    assert twin.get_property("energy_std", water()) == calc.results["energy_std"]


def test_elements_are_those_that_all_know(folder: Path, tmp_path: Path) -> None:
    network = suites.network(seed=5, num_fidelities=2, outputs={"lrcoulomb": None})
    narrow = FIDELITIES[0].model_copy(update={"elements": [1, 8]})
    path = write_fidelity(network, narrow, tmp_path / "narrow")
    calc = AIMNet2MultCalculator([folder / "model_a_fid0.jpt", path], device="cpu")
    assert calc.metadata.fidelity.elements == [1, 8]
    assert calc.get_property("energy_std", water()) > 0
    with pytest.raises(InputError, match=r"this potential knows H O \(fidelity 0 'PBE0'\); the structure holds C"):
        calc.get_potential_energy(molecule("CH4"))


def with_metadata(source: Path, target: Path, **changes: object) -> Path:
    loaded = files.load_potential(source)
    files.write_potential(target, loaded.module, loaded.metadata.model_copy(update=changes))
    return target


def test_members_must_belong_together(folder: Path, tmp_path: Path) -> None:
    a, b = folder / "model_a_fid0.jpt", folder / "model_b_fid0.jpt"
    with pytest.raises(InputError) as caught:
        AIMNet2MultCalculator([a, folder / "model_b_fid1.jpt"], device="cpu")
    assert str(caught.value) == (
        f"{a} and {folder / 'model_b_fid1.jpt'} differ in their fidelity; "
        "the members of an ensemble must predict the same quantity"
    )
    dispersion = DispersionInfo(method="d3bj", functional="pbe", s6=1, s8=1, s9=0, a1=0.4, a2=4, reference="none")
    other = with_metadata(b, tmp_path / "d3.jpt", dispersion=dispersion)
    with pytest.raises(InputError, match=r"model_a_fid0\.jpt and .*d3\.jpt differ in their dispersion; the members"):
        AIMNet2MultCalculator([a, other], device="cpu")
    included = FIDELITIES[0].model_copy(update={"labels_include_dispersion": True})
    other = with_metadata(b, tmp_path / "labels.jpt", fidelity=included)
    with pytest.raises(InputError, match=r"differ in their labels \(one set includes dispersion\); the members"):
        AIMNet2MultCalculator([a, other], device="cpu")
    with pytest.raises(InputError, match="are the same potential; give each member of an ensemble once"):
        AIMNet2MultCalculator([a, b, a], device="cpu")


def test_patterns_that_fit_nothing_or_too_much(folder: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no file fits the pattern .*nothing_\*.jpt"):
        AIMNet2MultCalculator(folder / "nothing_*.jpt", device="cpu")
    with pytest.raises(InputError, match=r"has several fidelities: 0 'PBE0' .*; choose one with fidelity="):
        AIMNet2MultCalculator(folder / "model_*.jpt", device="cpu")
    with pytest.raises(InputError, match=r"model must be the path of a .jpt file, a folder, a prefix or a list"):
        AIMNet2MultCalculator([], device="cpu")


def test_all_fidelities(folder: Path) -> None:
    atoms = water(charge=1)
    for calc, model in ((singles(folder)[0], "model_a"), (committee(folder), "model_[abc]")):
        found = calc.all_fidelities(atoms)
        assert list(found.results) == ["PBE0", "CCSD(T)"]
        assert found.without == {}
        expected = []
        for index, name in enumerate(found.results):
            alone = AIMNet2MultCalculator(folder / f"{model}_fid{index}.jpt", device="cpu", dtype="float64")
            expected.append(alone.get_potential_energy(atoms))
            assert found.results[name].energy == pytest.approx(expected[-1], abs=1e-9)
            np.testing.assert_allclose(found.results[name].forces, alone.get_forces(atoms), atol=1e-9)
            np.testing.assert_allclose(found.results[name].charges, alone.get_charges(atoms), atol=1e-9)
        assert found.energy_std == pytest.approx(abs(expected[1] - expected[0]) / np.sqrt(2), abs=1e-9)
        both = [one.forces for one in found.results.values()]
        np.testing.assert_allclose(found.forces_std, np.abs(both[1] - both[0]) / np.sqrt(2), atol=1e-9)
        assert found.charges_std.shape == (3,)
        assert calc.fidelity == 0
        assert calc.results == {}


def test_switching_to_and_fro_loads_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calc = committee(folder)
    energies = []
    for fidelity in (0, 1, 0, 1):
        calc.fidelity = fidelity
        energies.append(calc.get_potential_energy(water()))
        if fidelity == 1:
            monkeypatch.setattr(members, "load_committee", None)  # nothing is loaded from now on
    assert energies[0] == energies[2] != energies[1] == energies[3]


def test_fidelities_that_do_not_know_an_element(folder: Path) -> None:
    calc = singles(folder)[0]
    found = calc.all_fidelities(molecule("SiH4"))
    assert list(found.results) == ["PBE0"]
    assert found.without["CCSD(T)"].startswith("this potential knows H C N O (fidelity 1 'CCSD(T)'); the structure")
    assert found.energy_std == 0.0
    with pytest.raises(InputError, match="the structure holds Xe"):
        calc.all_fidelities(Atoms("Xe"))
