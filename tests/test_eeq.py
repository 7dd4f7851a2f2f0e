"""EEQ charges against the dftd4 package, and lattice sums against what the package's own cannot give."""

from __future__ import annotations

import d4_cases
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from d4_cases import batch, pair_lists
from torch import Tensor

from aimnet2mult.models.dispersion_d4 import load_d4_data
from aimnet2mult.physics import eeq
from aimnet2mult.physics.d4 import contact_distance, coordination_numbers, neighbor_counts
from aimnet2mult.physics.d4_pairs import HalfList, half_list, select, squared_distance
from aimnet2mult.physics.eeq_chunked import LargeSystem, batch_gradient, large_systems, solve_batch
from aimnet2mult.units import ANGSTROM_PER_BOHR, BOHR_PER_ANGSTROM

CHARGE_LIMIT = 1e-12  # e: the same equations in float64
# e: in a molecule with an atom that has nearly no neighbours, the package takes the square root of the rounding of a
# difference of two logarithms, 2e-15 of 1e-14
LONELY_LIMIT = 1e-9


class Problem:
    """The inputs of the EEQ equations for some systems, in Bohr."""

    def __init__(self, systems: list[Atoms], cutoff: float = 45.0) -> None:
        """Pair lists up to `cutoff` Bohr."""
        molecules, lists = batch(systems), pair_lists(systems, cutoff * ANGSTROM_PER_BOHR)
        d4_data, self.data = load_d4_data(sorted({int(z) for atoms in systems for z in atoms.numbers}))
        self.real = molecules.numbers > 0
        zero = torch.zeros_like(molecules.coord)
        self.coord = torch.where(self.real.unsqueeze(-1), molecules.coord, zero) * BOHR_PER_ANGSTROM
        self.cell = lists.cell * BOHR_PER_ANGSTROM
        self.species = d4_data.species[molecules.numbers].clamp(min=0)
        self.charge = molecules.charge
        self.cutoff = cutoff
        self.list = half_list(lists.pair_first, lists.pair_second, lists.pair_shift)
        self._d4 = d4_data

    def force(self, coord: Tensor, cell: Tensor) -> Tensor:
        flat = self.species.flatten()
        r2 = squared_distance(coord, cell, self.list)
        counts = neighbor_counts(r2, contact_distance(flat, self.list, self._d4))
        cn = eeq.limited_cn(coordination_numbers(counts, self.list, flat.numel()))
        return eeq.driving_force(cn, flat, self.data).view(self.real.shape)

    def pairs(self, coord: Tensor, cell: Tensor) -> eeq.PeriodicPairs:
        return eeq.PeriodicPairs(
            self.list.first, self.list.second, squared_distance(coord, cell, self.list), self.cutoff
        )

    def charges(self, coord: Tensor | None = None, cell: Tensor | None = None) -> Tensor:
        coord, cell = self.coord if coord is None else coord, self.cell if cell is None else cell
        force, pairs = self.force(coord, cell), self.pairs(coord, cell)
        return eeq.equilibrated_charges(coord, cell, self.real, self.charge, force, self.species, self.data, pairs)


def package_charges(atoms: Atoms) -> np.ndarray:
    return d4_cases.package_model(atoms).get_properties()["partial charges"]


def test_charges_of_molecules_are_those_of_the_package() -> None:
    systems = [
        *d4_cases.g2_molecules(),
        *d4_cases.ions(),
        *d4_cases.dimers(),
        d4_cases.cluster("H C O Si Na", 60, 1.9, 1, 3.0),
    ]
    found = Problem(systems).charges()
    for row, atoms in enumerate(systems):
        n = len(atoms)
        error = np.abs(found[row, :n].numpy() - package_charges(atoms)).max()
        assert error < (LONELY_LIMIT if n == 2 else CHARGE_LIMIT), atoms.symbols
        assert abs(float(found[row].sum()) - d4_cases.charge_of(atoms)) < 1e-12
        assert (found[row, n:] == 0.0).all()


@pytest.mark.parametrize("name", d4_cases.ionic_supercells())
def test_charges_of_ionic_crystals_are_those_of_the_package_where_it_has_converged(name: str) -> None:
    atoms = d4_cases.ionic_supercells()[name]
    found = Problem([atoms]).charges()[0].numpy()
    assert np.abs(found - package_charges(atoms)).max() < 2e-7  # 1.5e-7, 7e-8 and 4e-11 e: what the package leaves out
    assert np.abs(found).max() > 0.3


def test_the_package_ends_its_lattice_sum_early_and_we_do_not() -> None:
    """The charge of Na in the same crystal, described by cells of 8, 64 and 216 atoms, and by ours."""
    cell = bulk("NaCl", "rocksalt", 5.64, cubic=True)
    small, middle, large = (package_charges(cell.repeat(n))[0] for n in (1, 2, 3))
    assert abs(small - large) > 1e-6
    assert abs(middle - large) < 1e-10
    ours = [
        Problem([crystal]).charges()[0, 0] for crystal in (cell, cell.repeat((1, 1, 3)), bulk("NaCl", "rocksalt", 5.64))
    ]
    assert max(abs(float(charge) - large) for charge in ours) < 1e-10


@pytest.mark.parametrize("name", ["CO2", "left-handed", "acetamide", "water"])
@pytest.mark.parametrize("charge", [0.0, 1.0])
def test_charges_do_not_depend_on_the_splitting(name: str, charge: float) -> None:
    """Also with a neutralising background: the charges of a cell with charge 1 are those of any splitting."""
    atoms = d4_cases.crystals()[name].copy()
    atoms.info["charge"] = charge
    problem = Problem([atoms], 80.0)
    pairs, force = problem.pairs(problem.coord, problem.cell), problem.force(problem.coord, problem.cell)
    found = []
    for alpha in (0.0, 0.08, 0.15, 0.4):
        matrix = eeq.crystal_matrix(
            0, problem.coord[0], problem.cell[0], problem.real[0], problem.species[0], problem.data, pairs, alpha
        )
        found.append(eeq.solve_constrained(matrix.unsqueeze(0), force, problem.charge, problem.real))
    assert float(found[0].abs().max()) > 0.05
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-13)
    assert abs(float(found[0].sum()) - charge) < 1e-12


def test_a_supercell_has_the_charges_of_its_cell() -> None:
    atoms = d4_cases.crystals()["NaCl"].copy()
    atoms.info["charge"] = 0.5
    large = atoms.repeat((1, 2, 4))
    large.info["charge"] = 4.0
    found = Problem([large]).charges().view(8, 2)
    torch.testing.assert_close(found, Problem([atoms]).charges().expand(8, 2), rtol=0, atol=1e-12)


def test_a_molecule_in_a_growing_box_becomes_the_free_molecule() -> None:
    """What images of dipoles do goes with 1 / volume: each doubling of the box divides it by 8."""
    free = molecule("CH3CH2OH")
    expected = Problem([free]).charges()
    errors = []
    for length in (12.0, 24.0, 48.0):
        boxed = Atoms(free, cell=[length] * 3, pbc=True)
        errors.append(float((Problem([boxed]).charges() - expected).abs().max()))
    assert errors[0] < 1e-2
    assert errors[0] / errors[1] == pytest.approx(8.0, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(8.0, rel=0.05)


def test_matrix_of_two_gaussian_charges_is_their_coulomb_integral() -> None:
    """erf(g r) / r against a numerical integral over the potential of one Gaussian on a fine grid around the other."""
    problem = Problem([Atoms("HO", [(0, 0, 0), (0, 0, 0.4)])])
    matrix = eeq.open_matrix(problem.coord, problem.real, problem.species, problem.data)[0]
    r = 0.4 * BOHR_PER_ANGSTROM
    a, b = problem.data.radius[problem.species[0]].tolist()
    grid = torch.linspace(-8.0 * b, 8.0 * b, 161, dtype=torch.float64)
    x, y, z = torch.meshgrid(grid, grid, grid, indexing="ij")
    density = torch.exp(-(x * x + y * y + z * z) / b**2)
    distance = (x * x + y * y + (z + r) ** 2).sqrt()
    integral = float((density * torch.erf(distance / a) / distance).sum() / density.sum())
    assert float(matrix[0, 1]) == pytest.approx(integral, rel=1e-6)


@pytest.mark.parametrize("systems", ["molecules", "crystals"])
def test_chunked_solution_and_gradient_are_those_of_plain_differentiation(systems: str) -> None:
    cells = d4_cases.crystals()
    chosen = (
        [*d4_cases.ions()[:5], molecule("C6H6")]
        if systems == "molecules"
        else [cells["NaCl"], cells["CO2"], molecule("H2O")]
    )
    problem = Problem(chosen)
    coord, cell = problem.coord.clone().requires_grad_(), problem.cell.clone().requires_grad_()
    force = problem.force(coord, cell).detach().requires_grad_()
    pairs = problem.pairs(coord, cell)
    expected = eeq.equilibrated_charges(
        coord, cell, problem.real, problem.charge, force, problem.species, problem.data, pairs
    )
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.where(problem.real, weights, torch.zeros_like(weights))
    gradients = torch.autograd.grad((expected * weights).sum(), [coord, cell, force], materialize_grads=True)

    separate = large_systems(problem.coord, problem.cell, problem.real, problem.species, problem.list, problem.cutoff)
    # a pair of the list is used up to the real-space cutoff only; the filter stands before `large_systems`
    separate = [system._replace(pairs=within(system.pairs, system, problem)) for system in separate]
    charges, factors = solve_batch(separate, problem.charge, force, problem.data)
    torch.testing.assert_close(charges, expected.detach(), rtol=0, atol=1e-12)
    found = batch_gradient(separate, factors, charges, weights, problem.data)
    for one, other in zip(found, gradients, strict=True):
        assert float(other.abs().max()) > 1e-3 or (systems == "molecules" and other.shape == cell.shape)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def within(pairs: HalfList, system: LargeSystem, problem: Problem) -> HalfList:
    """Pairs up to the largest real-space cutoff of the batch, as the energy hands them over."""
    cutoff = eeq.largest_real_cutoff(problem.cell, problem.cutoff, problem.data.radius)
    r2 = squared_distance(system.coord.unsqueeze(0), system.cell.unsqueeze(0), pairs)
    kept = r2 <= cutoff * cutoff
    return select(pairs, kept.nonzero().squeeze(1))


@pytest.mark.parametrize("name", ["molecule", "crystal"])
def test_charges_can_be_differentiated_twice(name: str) -> None:
    atoms = d4_cases.rattled(molecule("H2O"), 1) if name == "molecule" else d4_cases.crystals()["NaCl"]
    problem = Problem([atoms], 35.0)
    function = lambda coord, cell: problem.charges(coord, cell)[0, :1]  # noqa: E731
    inputs = (problem.coord.clone().requires_grad_(), problem.cell.clone().requires_grad_())
    if name == "molecule":
        single = lambda coord: function(coord, problem.cell)  # noqa: E731
        assert torch.autograd.gradcheck(single, inputs[:1])
        assert torch.autograd.gradgradcheck(single, inputs[:1])
        return
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_limited_coordination_number() -> None:
    cn = torch.tensor([0.0, 1e-12, 0.5, 4.0, 8.0, 50.0], dtype=torch.float64)
    expected = np.log1p(np.exp(8.0)) - np.log1p(np.exp(8.0 - cn.numpy()))
    np.testing.assert_allclose(eeq.limited_cn(cn).numpy(), expected, rtol=0, atol=1e-14)
    assert float(eeq.limited_cn(cn)[1]) == pytest.approx(1e-12 / (1.0 + np.exp(-8.0)), rel=1e-9)


def test_systems_without_atoms_and_coincident_atoms_keep_the_equations_regular() -> None:
    pair = Atoms("HHO", [(0, 0, 0), (0, 0, 0), (0, 0, 1.0)])
    problem = Problem([molecule("H2O"), pair])
    problem.real[0] = False
    coord = problem.coord.clone().requires_grad_()
    force = torch.ones_like(problem.real, dtype=torch.float64)
    charges = eeq.equilibrated_charges(
        coord,
        problem.cell,
        problem.real,
        problem.charge,
        force,
        problem.species,
        problem.data,
        problem.pairs(problem.coord, problem.cell),
    )
    assert (charges[0] == 0.0).all()
    (gradient,) = torch.autograd.grad(charges.square().sum(), coord)
    assert gradient.isfinite().all()
    assert float(charges[1, 0].detach()) == pytest.approx(float(charges[1, 1].detach()), abs=1e-12)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("n_rows", [eeq.MOST_ROWS_AT_ONCE, eeq.MOST_ROWS_AT_ONCE + 1, 200])
def test_batches_of_large_matrices_on_two_threads(n_rows: int) -> None:
    """PyTorch's own solution for a batch is wrong from about 150 rows on."""
    random = np.random.default_rng(0)
    matrix = random.normal(size=(3, n_rows, n_rows)) + 2 * np.sqrt(n_rows) * np.eye(n_rows)
    right = random.normal(size=(3, n_rows, 1))
    found = torch.jit.script(eeq.solve_each)(torch.from_numpy(matrix), torch.from_numpy(right))
    # matrices of condition 3: rounding
    assert np.abs(found.numpy() - np.linalg.solve(matrix, right)).max() < 1e-13
