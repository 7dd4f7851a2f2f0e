"""D4 in crystals, slabs and boxes."""

from __future__ import annotations

import d4_cases
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.build.supercells import make_supercell
from d4_cases import PATHS, SHARP, SHORT, d4, pair_lists, reference, results
from d4_checks import CRYSTAL_ENERGY_LIMIT, ROUNDING, check_crystal, check_equal

from aimnet2mult.physics.d4 import D4Cutoffs
from aimnet2mult.units import ANGSTROM_PER_BOHR


@PATHS
@pytest.mark.parametrize("name", d4_cases.crystals())
def test_crystals_with_the_charges_of_the_package_agree_exactly(name: str, plain: bool) -> None:
    """All but the charges: coordination numbers, weights, two- and three-body sums over images."""
    atoms, cutoffs = d4_cases.crystals()[name], d4_cases.crystal_cutoffs(name)
    right, charges = d4_cases.crystal_reference(name)
    module = d4([atoms], charges="network", cutoffs=cutoffs, plain=plain)
    lists = pair_lists([atoms], module.pair_cutoff, shuffle=1)
    found = results(module, [atoms], lists, torch.from_numpy(charges[None]))
    assert abs(found.energy - right.energy) < ROUNDING


@pytest.mark.parametrize("name", sorted(set(d4_cases.crystals()) - set(d4_cases.IONIC)))
def test_crystals_agree_with_the_dftd4_package(name: str) -> None:
    atoms, cutoffs = d4_cases.crystals()[name], d4_cases.crystal_cutoffs(name)
    module = d4([atoms], cutoffs=cutoffs)
    check_crystal(
        results(module, [atoms], pair_lists([atoms], module.pair_cutoff)), d4_cases.crystal_reference(name)[0]
    )


@pytest.mark.parametrize("name", ["CO2", "left-handed"])
def test_sharp_cutoffs_of_crystals_agree_too(name: str) -> None:
    atoms = d4_cases.crystals()[name]
    module = d4([atoms], cutoffs=SHARP)
    found = results(module, [atoms], pair_lists([atoms], module.pair_cutoff))
    right, _ = reference(atoms, cutoffs=SHARP)
    check_crystal(found, right)
    smooth = d4_cases.crystal_reference(name)[0]
    assert abs(right.energy - smooth.energy) > 5 * CRYSTAL_ENERGY_LIMIT  # so that the limit tells them apart


@pytest.mark.parametrize("name", d4_cases.ionic_supercells())
def test_ionic_crystals_agree_with_the_dftd4_package_where_that_has_converged(name: str) -> None:
    atoms = d4_cases.ionic_supercells()[name]
    module = d4([atoms], cutoffs=SHORT)
    found = results(module, [atoms], pair_lists([atoms], module.pair_cutoff))
    check_crystal(found, reference(atoms, cutoffs=SHORT)[0])


@PATHS
def test_pair_lists_give_the_numbers_of_all_pairs(plain: bool) -> None:
    systems = [*d4_cases.ions(), d4_cases.cluster("H C N O S", 30, 1.7, 8)]
    module = d4(systems, plain=plain)
    expected = results(module, systems)
    check_equal(results(module, systems, pair_lists(systems, module.pair_cutoff, shuffle=2)), expected)
    check_equal(results(module, systems, pair_lists(systems, 60.0, shuffle=3)), expected)  # pairs beyond the cutoff


@pytest.mark.parametrize("name", ["NaCl", "CO2", "left-handed"])
def test_supercells_wrapping_and_other_cell_vectors_change_nothing(name: str) -> None:
    atoms = d4_cases.crystals()[name]
    skewed = make_supercell(atoms, [[1, 0, 0], [1, 1, 0], [0, -1, 1]])
    moved = atoms.copy()
    moved.positions += 0.3 + np.array([2, -1, 3])[: len(moved), None] * atoms.cell[1] if len(moved) == 3 else 17.3
    module = d4([atoms], cutoffs=SHORT)
    expected = results(module, [atoms], pair_lists([atoms], module.pair_cutoff))
    for other in (atoms.repeat((2, 1, 3)), skewed, moved):
        found = results(module, [other], pair_lists([other], module.pair_cutoff))
        n = len(other) // len(atoms)
        np.testing.assert_allclose(found.energy / n, expected.energy, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.virial / n, expected.virial, rtol=0, atol=1e-11)


@PATHS
def test_virial_is_the_derivative_by_strain(plain: bool) -> None:
    """With smooth cutoffs: shells of atoms that cross a sharp one under strain would make steps in the differences."""
    atoms = d4_cases.crystals()["NaCl"]
    module = d4([atoms], cutoffs=D4Cutoffs(30.0, 16.0, 15.0, 8.0), plain=plain)
    lists = pair_lists([atoms], module.pair_cutoff + 1.0)
    found = results(module, [atoms], lists)
    step = 1e-4
    for i, j in ((0, 0), (1, 2), (2, 2), (0, 1)):
        energies = []
        for sign in (1, -1):
            deform = np.eye(3)
            deform[i, j] += sign * step
            strained = Atoms(atoms.numbers, atoms.positions @ deform, cell=atoms.cell.array @ deform, pbc=True)
            new = lists._replace(cell=torch.from_numpy(strained.cell.array[None]))
            energies.append(results(module, [strained], new).energy[0])
        # truncation step^2 E'''/6
        assert abs((energies[0] - energies[1]) / (2 * step) - found.virial[0, i, j]) < 1e-7
    assert np.abs(found.virial).max() > 1e-3


def test_a_molecule_in_a_large_box_is_the_free_molecule() -> None:
    """With given charges nothing but dispersion between images 40 Å apart is left, which is beyond the cutoffs."""
    free, boxed = molecule("CH3CH2OH"), Atoms(molecule("CH3CH2OH"), cell=[40, 41, 42], pbc=True)
    module = d4([free], charges="network")
    charges = 0.1 * torch.ones(1, 9, dtype=torch.float64)
    lists = pair_lists([boxed], module.pair_cutoff)
    check_equal(results(module, [boxed], lists, charges), results(module, [free], None, charges))


@pytest.mark.parametrize("directions", [(True, True, False), (False, True, False)])
def test_partly_periodic_systems_need_other_charges(directions: tuple[bool, bool, bool]) -> None:
    atoms = Atoms(molecule("CH3Cl"), cell=[5, 5.5, 30], pbc=directions)
    eeq, network = d4([atoms], cutoffs=SHORT), d4([atoms], cutoffs=SHORT, charges="network")
    with pytest.raises(ValueError, match=r"periodic in all three directions or in none, not [12]"):
        results(eeq, [atoms], pair_lists([atoms], eeq.pair_cutoff))
    full = atoms.copy()
    full.set_cell([5 if directions[0] else 60, 5.5, 60])
    full.pbc = True  # images in the other directions are beyond the cutoffs
    expected = results(network, [full], pair_lists([full], network.pair_cutoff))
    check_equal(results(network, [atoms], pair_lists([atoms], network.pair_cutoff)), expected)


def test_a_pair_list_that_is_too_short_for_the_charges_is_refused() -> None:
    """The cutoffs may be short; the list must reach as far as the charges need it, which `pair_cutoff` says."""
    atoms = d4_cases.crystals()["NaCl"]
    tiny = d4([atoms], cutoffs=D4Cutoffs(5.0, 5.0, 0.0, 0.0))
    assert tiny.pair_cutoff > 5.0 * ANGSTROM_PER_BOHR
    results(tiny, [atoms], pair_lists([atoms], tiny.pair_cutoff))
    assert d4([atoms]).pair_cutoff == 60.0 * ANGSTROM_PER_BOHR
    tiny.pair_cutoff = 6.0
    with pytest.raises(ValueError, match=r"the pair list ends at 11\.3"):
        results(tiny, [atoms], pair_lists([atoms], 6.0))


def test_bulk_of_argon_is_cohesive_and_pressure_has_the_right_sign() -> None:
    """A check that needs no package: compressed argon is pulled together more strongly."""
    energies = []
    for constant in (5.0, 5.26, 5.6):
        atoms = bulk("Ar", "fcc", constant)
        module = d4([atoms], cutoffs=SHORT)
        found = results(module, [atoms], pair_lists([atoms], module.pair_cutoff))
        assert np.trace(found.virial[0]) > 0
        energies.append(found.energy[0])
    assert energies[0] < energies[1] < energies[2] < 0
