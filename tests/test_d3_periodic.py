"""D3(BJ) with pair lists: crystals against the dftd3 package, and what holds for any periodic sum."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc100, graphene, make_supercell, molecule
from d3_cases import (
    CUTOFFS,
    PATHS,
    SHARP,
    ZONES,
    Result,
    brute_force_pairs,
    evaluate,
    module_for,
    padded,
    pair_lists,
    reference,
    results,
)

from aimnet2mult.models.dispersion import D3BJ
from aimnet2mult.physics.d3 import D3Cutoffs
from aimnet2mult.physics.damping import DampingParameters
from aimnet2mult.physics.functionals import resolve_d3
from aimnet2mult.physics.pair_sums import tabulate_shifts
from aimnet2mult.units import ANGSTROM_PER_BOHR

# The promised limits are 1e-8 Hartree, 1e-7 Hartree/Bohr and likewise for the virial. Both sides sum up to 1e5 pairs
# (1e7 triangles) in float64 with the same formulas; the worst deviation seen is 1e-14 of a virial of size 0.2.
LIMIT = 1e-11

TWO_BODY = resolve_d3("pbe0").parameters
THREE_BODY = resolve_d3("pbe0", s9=1.0).parameters
PARAMETERS = pytest.mark.parametrize("parameters", [TWO_BODY, THREE_BODY], ids=["two-body", "three-body"])


def rattled(atoms: Atoms, scale: float = 0.1, seed: int = 0) -> Atoms:
    atoms.positions += np.random.default_rng(seed).normal(scale=scale, size=atoms.positions.shape)
    return atoms


def molecules_in(names: list[str], cell: object, seed: int, pbc: object = True) -> Atoms:
    """Turned molecules along a diagonal of a cell; some atoms stand outside it, in periodic directions."""
    rng = np.random.default_rng(seed)
    atoms = Atoms(cell=cell, pbc=pbc)
    corners = np.linspace(0.0, 1.0, len(names), endpoint=False)
    for name, corner in zip(names, corners, strict=True):
        one = molecule(name)
        one.rotate(rng.uniform(0, 360), rng.normal(size=3))
        one.positions += np.array([corner, corner + 0.1, 0.5 * corner]) @ atoms.cell.array
        atoms += one
    # the dftd3 package folds atoms into the cell, even where it is not periodic; then other images are nearest
    fraction = atoms.get_scaled_positions(wrap=False).min(0) - 0.01
    atoms.positions -= np.where(atoms.pbc, 0.0, fraction) @ atoms.cell.array
    return atoms


def partly(atoms: Atoms, pbc: tuple[bool, bool, bool]) -> Atoms:
    atoms.pbc = pbc
    return atoms


CELLS: dict[str, Callable[[], Atoms]] = {
    "argon, one atom": lambda: bulk("Ar", "fcc", 5.26),
    "polonium, one atom, cubic": lambda: bulk("Po", "sc", 3.35),
    "xenon, one atom, cell beyond all cutoffs but one": lambda: Atoms("Xe", cell=[28.0, 40.0, 75.0], pbc=True),
    "xenon, one atom, cell beyond all cutoffs": lambda: Atoms("Xe", cell=[35.0, 40.0, 75.0], pbc=True),
    "rock salt": lambda: rattled(bulk("NaCl", "rocksalt", 5.64, cubic=True)),
    "caesium iodide": lambda: rattled(bulk("CsI", "cesiumchloride", 4.57)),
    "carbon dioxide crystal": lambda: rattled(molecules_in(["CO2"] * 2, [4.5, 4.4, 4.6], 1)),
    "triclinic": lambda: molecules_in(["H2O", "NH3"], [5.2, 6.1, 7.3, 71.0, 98.0, 112.0], 2),
    "left-handed": lambda: molecules_in(["CH3OH", "H2O"], [[0, 6.5, 0.4], [7.0, 0.3, 0], [0.5, 0.2, 6.0]], 3),
    "very oblique": lambda: molecules_in(["HCN"], [[4.5, 0, 0], [9.5, 4.4, 0], [-8.0, 6.0, 4.6]], 4),
    "thin": lambda: molecules_in(["HF"], [2.6, 15.0, 18.0], 5),
    "slab": lambda: rattled(partly(fcc100("Al", (1, 1, 3), vacuum=7.0), (True, True, False))),
    "slab in the first and third direction": lambda: molecules_in(
        ["CH4", "H2O"], [[6.0, 0, 0.7], [0, 9.0, 0], [1.1, 0, 6.4]], 6, (True, False, True)
    ),
    "layer": lambda: partly(graphene(formula="BN", vacuum=8.0), (True, True, False)),
    "polymer": lambda: molecules_in(["HF", "HF"], [5.0, 20.0, 20.0], 7, (True, False, False)),
    "chain along the third direction": lambda: molecules_in(["CO"], [20.0, 20.0, 3.9], 8, (False, False, True)),
}


def in_lists(atoms: Atoms, module: torch.nn.Module, shuffle: int | None = None) -> Result:
    return results(module, *padded([atoms]), pair_lists([atoms], module.pair_cutoff, shuffle))


def assert_equal(found: Result, expected: Result, limit: float = LIMIT) -> None:
    for a, b in zip(found, expected, strict=True):
        assert np.abs(a - b).max() < limit


@PATHS
@CUTOFFS
@PARAMETERS
@pytest.mark.parametrize("name", CELLS)
def test_crystals_agree_with_the_dftd3_package(
    name: str, parameters: DampingParameters, cutoffs: D3Cutoffs, max_plain: int
) -> None:
    atoms = CELLS[name]()
    expected = reference(atoms, parameters, cutoffs)
    assert not np.allclose(expected.virial, 0.0) or "beyond all cutoffs" in name
    assert_equal(in_lists(atoms, module_for([atoms], parameters, max_plain, cutoffs), shuffle=1), expected)


@PATHS
@PARAMETERS
def test_a_supercell_has_n_times_the_energy(parameters: DampingParameters, max_plain: int) -> None:
    atoms = CELLS["very oblique"]()
    matrix = np.array([[1, 0, 0], [1, 2, 0], [0, -1, 1]])
    twice = make_supercell(atoms, matrix)
    one, two = (in_lists(a, module_for([a], parameters, max_plain)) for a in (atoms, twice))
    assert abs(two.energy[0] - 2 * one.energy[0]) < LIMIT
    assert np.abs(two.virial - 2 * one.virial).max() < LIMIT
    # atoms of the supercell stand at atoms of the cell, shifted by lattice vectors
    fraction = (twice.positions[:, None] - atoms.positions[None]) @ np.linalg.inv(atoms.cell.array)
    origin = np.abs(fraction - fraction.round()).max(2).argmin(1)
    assert np.abs(two.gradient[0] - one.gradient[0][origin]).max() < LIMIT


@PATHS
@PARAMETERS
def test_wrapping_and_choice_of_cell_vectors_change_nothing(parameters: DampingParameters, max_plain: int) -> None:
    atoms = CELLS["triclinic"]()
    module = module_for([atoms], parameters, max_plain)
    expected = in_lists(atoms, module)
    far = np.random.default_rng(1).integers(-60, 60, (len(atoms), 3))  # beyond any table of translations
    for moved in (atoms.positions + far % 3 @ atoms.cell.array, atoms.positions + far @ atoms.cell.array):
        home = pair_lists([atoms], module.pair_cutoff)
        steps = torch.from_numpy(((moved - atoms.positions) @ np.linalg.inv(atoms.cell.array)).round().astype(np.int32))
        lists = home._replace(pair_shift=home.pair_shift - steps[home.pair_second] + steps[home.pair_first])
        numbers = torch.from_numpy(atoms.numbers[None])
        # coordinates of 1e3 Å round distances by 1e-13 Å
        assert_equal(results(module, torch.from_numpy(moved[None]), numbers, lists), expected)
    oblique = atoms.copy()
    oblique.set_cell(np.array([[1, 1, 0], [0, 1, 0], [-1, 0, 1]]) @ atoms.cell.array)
    assert_equal(in_lists(oblique, module), expected)


@PATHS
@PARAMETERS
def test_a_batch_of_cells_and_molecules_equals_each_alone(parameters: DampingParameters, max_plain: int) -> None:
    box = molecule("CH3OH")
    systems = [CELLS["triclinic"](), box, CELLS["argon, one atom"](), CELLS["polymer"](), Atoms("Xe")]
    module = module_for(systems, parameters, max_plain)
    batch = results(module, *padded(systems), pair_lists(systems, module.pair_cutoff, shuffle=2))
    for row, atoms in enumerate(systems):
        alone = in_lists(atoms, module)
        assert_equal(Result(batch.energy[[row]], batch.gradient[[row], : len(atoms)], batch.virial[[row]]), alone)
        assert (batch.gradient[row, len(atoms) :] == 0.0).all()


@PATHS
@PARAMETERS
def test_molecules_give_the_same_with_and_without_lists(parameters: DampingParameters, max_plain: int) -> None:
    far = molecule("C6H6") + molecule("CH3Cl")
    far.positions[12:] += [22.0, 20.0, 8.0]  # pairs within and beyond each cutoff
    systems = [far, molecule("CH3CH2OH"), Atoms("O")]
    module = module_for(systems, parameters, max_plain)
    coord, numbers = padded(systems)
    without = results(module, coord, numbers)
    assert_equal(results(module, coord, numbers, pair_lists(systems, module.pair_cutoff)), without)
    # a longer list, as built for a longer-ranged term or with a skin, changes nothing
    assert_equal(results(module, coord, numbers, pair_lists(systems, module.pair_cutoff + 9.0, 3)), without)


@PATHS
def test_a_molecule_in_a_large_box_is_free(max_plain: int) -> None:
    free, boxed = molecule("C6H6"), molecule("C6H6")
    boxed.set_cell([40.0, 41.0, 39.0])
    boxed.pbc = True
    boxed.positions += [39.0, 0.0, 20.0]
    boxed.wrap()
    module = module_for([free], THREE_BODY, max_plain)
    found, expected = in_lists(boxed, module), in_lists(free, module)
    assert_equal(found, expected)


@PARAMETERS
def test_saved_script_equals_eager(parameters: DampingParameters, tmp_path) -> None:
    systems = [CELLS["caesium iodide"](), CELLS["very oblique"](), molecule("H2O")]
    module = module_for(systems, parameters)
    coord, numbers = padded(systems)
    lists = pair_lists(systems, module.pair_cutoff)
    assert len(lists.pair_first) > module.max_plain  # so the list goes by blocks of itself
    eager = results(module, coord, numbers, lists)
    torch.jit.script(module).save(str(tmp_path / "d3.pt"))
    loaded = torch.jit.load(str(tmp_path / "d3.pt"))
    for block in (loaded.block, 900):
        for max_plain in (loaded.max_plain, 10**9):
            loaded.block, loaded.max_plain = block, max_plain
            for _ in range(3):  # the second call profiles, the third runs the optimised graph
                assert_equal(results(loaded, coord, numbers, lists), eager)
    with torch.no_grad():
        assert torch.equal(evaluate(loaded, coord, numbers, lists), evaluate(loaded, coord, numbers, lists))


@PATHS
@PARAMETERS
def test_gradient_and_virial_are_derivatives_of_the_energy(parameters: DampingParameters, max_plain: int) -> None:
    atoms = CELLS["left-handed"]()
    module = module_for([atoms], parameters, max_plain, ZONES)
    coord, numbers = padded([atoms])
    lists = pair_lists([atoms], module.pair_cutoff + 0.1)  # whatever a step brings into the cutoffs is there
    result = results(module, coord, numbers, lists)
    rng = np.random.default_rng(3)
    step = 1e-4  # Å and 1: truncation is step^2 / 6 times the third derivative
    move, strain = (torch.from_numpy(rng.normal(size=shape)) for shape in (coord.shape, (3, 3)))
    by_move = np.sum(result.gradient * move.numpy()) / ANGSTROM_PER_BOHR
    by_strain = np.sum(result.virial[0] * strain.numpy())
    energies = [[], []]
    for sign in (-1, 1):
        deform = torch.eye(3, dtype=torch.float64) + sign * step * strain
        for kept, points, cell in ((energies[0], coord + sign * step * move, lists.cell),
                                   (energies[1], coord @ deform, lists.cell @ deform)):  # fmt: skip
            kept.append(results(module, points, numbers, lists._replace(cell=cell)).energy[0])
    for (below, above), expected in zip(energies, (by_move, by_strain), strict=True):
        assert (above - below) / (2 * step) == pytest.approx(expected, rel=2e-5)


def test_hessians_of_crystals_are_exact_or_not_finite() -> None:
    atoms = CELLS["triclinic"]()
    coord, numbers = padded([atoms])
    module = module_for([atoms], THREE_BODY, 100, ZONES)
    lists = pair_lists([atoms], module.pair_cutoff + 0.1)
    coord.requires_grad_()
    rows = []
    for max_plain in (module.max_plain, 10**9):
        module.max_plain = max_plain
        (gradient,) = torch.autograd.grad(evaluate(module, coord, numbers, lists).sum(), coord, create_graph=True)
        rows.append(torch.autograd.grad(gradient[0, 2, 0], coord)[0][0])
    assert not rows[0].isfinite().all()
    slopes = []
    for step in (1e-3, -1e-3):
        moved = coord.detach().clone()
        moved[0, 2, 0] += step
        moved.requires_grad_()
        slopes.append(torch.autograd.grad(evaluate(module, moved, numbers, lists).sum(), moved)[0][0])
    expected = (slopes[0] - slopes[1]) / 2e-3
    torch.testing.assert_close(rows[1], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["argon, one atom", "polymer"])
def test_only_what_is_asked_for_is_differentiated(name: str) -> None:
    atoms = CELLS[name]()
    coord, numbers = padded([atoms])
    module = module_for([atoms], TWO_BODY, 0)
    lists = pair_lists([atoms], module.pair_cutoff)
    full = evaluate(module, coord, numbers, lists)
    assert not full.requires_grad
    cell = lists.cell.clone().requires_grad_()
    energy = evaluate(module, coord, numbers, lists._replace(cell=cell))
    assert torch.equal(energy.detach(), full)
    (by_cell,) = torch.autograd.grad(energy.sum(), cell)
    assert by_cell[0, 0].any()
    assert not by_cell[0][~torch.from_numpy(atoms.pbc)].any()
    with torch.no_grad():
        assert not evaluate(module, coord, numbers, lists._replace(cell=cell)).requires_grad


def test_cutoffs_of_crystals_can_be_chosen() -> None:
    """With cutoffs between the first and second shell of argon, only the 12 nearest neighbours count."""
    atoms = CELLS["argon, one atom"]()
    nearest = 5.26 / np.sqrt(2) / ANGSTROM_PER_BOHR
    short = SHARP._replace(cn=nearest + 0.5, disp2=nearest + 0.5)
    crystal = D3BJ([18], TWO_BODY, short)
    dimer = Atoms("Ar2", [(0, 0, 0), (5.26 / np.sqrt(2), 0, 0)])
    found = in_lists(atoms, crystal).energy[0]
    assert len(brute_force_pairs(atoms, crystal.pair_cutoff)[0]) == 6
    # the only reference system of argon has the C6 of the free atom, whatever its neighbours
    assert found == pytest.approx(6 * in_lists(dimer, crystal).energy[0], rel=1e-12)


def test_tables_of_translations_give_the_translations_back() -> None:
    shift = torch.from_numpy(np.random.default_rng(4).integers(-9, 4, (500, 3)))
    for kind in (torch.int8, torch.int32, torch.int64):
        for scale, largest in ((1, 65_536), (1, 10), (100_000, 65_536)):
            given = shift.to(kind) if kind == torch.int8 else (shift * scale).to(kind)
            before = given.clone()
            table = torch.jit.script(tabulate_shifts)(given, largest)
            assert torch.equal(table.steps[table.place.long()], given.double())
            assert torch.equal(given, before)
    assert tabulate_shifts(shift[:0]).place.shape == (0,)
