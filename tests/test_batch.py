"""Many structures at once: the numbers of single calculations, in order, under a memory budget."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import suites
from ase import Atoms
from ase.build import molecule
from crystals import crystal, short_ranged, water_box
from structures import alkane, water

from aimnet2mult import AIMNet2MultCalculator
from aimnet2mult.calculators import batch as batch_module
from aimnet2mult.calculators import preparation
from aimnet2mult.calculators.evaluation import Evaluation
from aimnet2mult.calculators.structures import evaluate
from aimnet2mult.errors import InputError

TOLERANCE = 1e-9  # float64; energies of 1e4 eV


@pytest.fixture(scope="module")
def short_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return short_ranged(tmp_path_factory.mktemp("short") / "short")


@pytest.fixture
def calc(short_file: Path) -> AIMNet2MultCalculator:
    return AIMNet2MultCalculator(short_file, device="cpu", dtype="float64")


def mixed_bag() -> list[Atoms]:
    """Molecules, ions and radicals of all sizes, crystals, a slab and a large molecule between them."""
    known = [1, 6, 7, 8, 9, 14, 16, 17]
    bag = [atoms for atoms in suites.structures() if set(atoms.numbers) <= set(known)]
    slab = crystal("triclinic")
    slab.pbc = (True, True, False)
    bag[3:3] = [crystal("thin"), alkane(12), slab]
    return [*bag, crystal("left-handed"), Atoms("O")]


def assert_as_single(calc: AIMNet2MultCalculator, atoms: Atoms, found: Evaluation, forces: bool, stress: bool) -> None:
    atoms = atoms.copy()
    atoms.calc = calc
    calc.reset()
    assert found.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
    np.testing.assert_allclose(found.charges, atoms.get_charges(), atol=TOLERANCE)
    np.testing.assert_allclose(found.spin_charges, atoms.get_magnetic_moments(), atol=TOLERANCE)
    assert (found.forces is not None) == forces
    assert (found.stress is not None) == stress
    if forces:
        np.testing.assert_allclose(found.forces, atoms.get_forces(), atol=TOLERANCE)
    if stress:
        np.testing.assert_allclose(found.stress, atoms.get_stress(), atol=TOLERANCE)


@pytest.mark.parametrize("memory", [None, 1, 100_000])
def test_same_numbers_as_one_by_one(
    calc: AIMNet2MultCalculator, monkeypatch: pytest.MonkeyPatch, memory: int | None
) -> None:
    monkeypatch.setattr(preparation, "ALL_PAIRS_UP_TO", 30)
    bag = mixed_bag()
    before = [(atoms.positions.copy(), dict(atoms.info)) for atoms in bag]
    found = calc.evaluate(bag, memory=memory)
    assert calc.results == {}
    for atoms, one, (positions, info) in zip(bag, found, before, strict=True):
        assert_as_single(calc, atoms, one, True, False)
        np.testing.assert_array_equal(atoms.positions, positions)
        assert atoms.info == info


def test_energies_alone_and_stress(calc: AIMNet2MultCalculator, short_file: Path) -> None:
    for atoms, one in zip(bag := [water(), alkane(2)], calc.evaluate(bag, forces=False), strict=True):
        assert_as_single(calc, atoms, one, False, False)
    cells = [crystal("triclinic"), water_box(8), crystal("thin")]
    found = evaluate(short_file, cells, stress=True, device="cpu", dtype="float64")
    for atoms, one in zip(cells, found, strict=True):
        assert_as_single(calc, atoms, one, True, True)
    (alone,) = evaluate(calc, cells[:1], forces=False, stress=True)
    np.testing.assert_allclose(alone.stress, found[0].stress, atol=TOLERANCE)
    assert alone.forces is None
    assert calc.evaluate([]) == []


def test_budget(calc: AIMNet2MultCalculator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches hold similar sizes, cost what is allowed, and are as few as that allows."""
    seen: list[list[int]] = []
    genuine = batch_module.evaluate

    def watched(modules: object, systems: list, *rest: object) -> list[Evaluation]:
        seen.append([len(system.numbers) for system in systems])
        return genuine(modules, systems, *rest)

    monkeypatch.setattr(batch_module, "evaluate", watched)
    structures = [alkane(n) for n in (1, 5, 1, 2, 5, 1, 9, 2)]
    calc.evaluate(structures)
    assert seen == [[5, 5, 5, 8, 8, 17, 17, 29]]
    seen.clear()
    calc.evaluate(structures, memory=1)
    assert seen == [[5], [5], [5], [8], [8], [17], [17], [29]]
    seen.clear()
    cost = batch_module.costs(calc._potentials.committee())
    three = 3 * 5 * (cost.per_atom + 5 * cost.per_pair)
    calc.evaluate(structures, memory=three)
    assert seen[0] == [5, 5, 5]
    assert sorted(itertools.chain(*seen)) == [5, 5, 5, 8, 8, 17, 17, 29]


def test_the_structure_that_is_wrong_is_named(calc: AIMNet2MultCalculator) -> None:
    with pytest.raises(InputError) as caught:
        calc.evaluate([water(), Atoms("OH2", [[0, 0, 0]] * 3)])
    assert str(caught.value) == "structure 1: atoms 0 and 1 are 0.00000 Å apart; at least 0.3 Å are needed"
    with pytest.raises(InputError, match=r"^structure 0: mult=2 needs an odd number of electrons"):
        calc.evaluate([water(mult=2), water()])
    with pytest.raises(InputError, match=r"^structure 1: the stress of a molecule is not defined"):
        calc.evaluate([crystal("thin"), water()], stress=True)
    with pytest.raises(InputError, match=r"^structure 1: atom 0 and its own image are 0.20000 Å apart"):
        calc.evaluate([crystal("thin"), Atoms("O", cell=[4, 4, 0.2], pbc=True)])


def test_charge_and_multiplicity_of_each(short_file: Path) -> None:
    bag = [water(), water(charge=1), water(charge=-1, mult=4), water(mult=3)]
    found = evaluate(short_file, bag, device="cpu")
    assert [round(float(one.charges.sum()), 5) for one in found] == [0, 1, -1, 0]
    assert [round(float(one.spin_charges.sum()), 5) for one in found] == [0, 1, 3, 2]
    with pytest.raises(InputError, match="these go with the path of a potential"):
        evaluate(AIMNet2MultCalculator(short_file, device="cpu"), bag, device="cpu")


@pytest.mark.parametrize("structures", [molecule("H2O"), [1, 2], [molecule("H2O"), None]])
def test_what_is_no_list_of_structures(structures: Any, potential_file: Path) -> None:
    with pytest.raises(InputError, match=r"^structures must be a list of ase\.Atoms; for one structure give a list"):
        AIMNet2MultCalculator(potential_file, device="cpu").evaluate(structures)
