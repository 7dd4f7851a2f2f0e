"""Long-range Coulomb energies: the three methods, in molecules, lists and cells, eager and scripted."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable

import coulomb_cases as cases
import numpy as np
import pytest
import torch
from coulomb_cases import KE, Batch, Charges
from pydantic import ValidationError
from torch import Tensor

from aimnet2mult.configs.model import CoulombSettings
from aimnet2mult.models.coulomb import LRCoulomb
from aimnet2mult.physics import coulomb
from aimnet2mult.physics.geometry import all_pairs
from aimnet2mult.physics.radial import exponential_cutoff
from aimnet2mult.types import Molecules, NeighborLists, Pairs

RC = 4.6  # Å
METHODS = ("simple", "dsf", "ewald")
# sums of some hundred float64 terms of up to 10 eV
ROUNDING = 1e-11
Head = Callable[[Tensor, Molecules, Pairs, NeighborLists | None], Tensor]


def head(method: str = "simple", scripted: bool = False, **settings: float) -> LRCoulomb:
    """A Coulomb head, also as it comes out of a file."""
    eager = LRCoulomb(CoulombSettings(rc=RC, **settings))
    if not scripted:
        eager.method = method
        return eager
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(eager), stream)
    stream.seek(0)
    loaded = torch.jit.load(stream)
    loaded.method = method  # after loading, as a calculator does
    return loaded


def batch_for(module: LRCoulomb, systems: list[Charges], extra: int = 0, junk: float = 0.0) -> Batch:
    """Pad systems with the pair list that a head asks for, and a little more."""
    volumes = [abs(float(np.linalg.det(system.cell))) for system in systems]
    sizes = [len(system.charges) for system in systems]
    cutoffs = [module.pair_cutoff(n, volume) + 0.3 for n, volume in zip(sizes, volumes, strict=True)]
    return cases.batch_of(systems, cutoffs, extra, junk)


def energies(module: LRCoulomb, systems: list[Charges], extra: int = 0, junk: float = 0.0) -> Tensor:
    """(B,) eV from lists."""
    batch = batch_for(module, systems, extra, junk)
    return module(batch.charges, batch.molecules, cases.no_pairs(), batch.lists)


def molecule_energies(module: LRCoulomb, systems: list[Charges]) -> Tensor:
    """(B,) eV from all pairs."""
    batch = cases.batch_of(systems, [0.0] * len(systems), extra=1)
    pairs = all_pairs(batch.molecules.coord, batch.molecules.numbers)
    return module(batch.charges, batch.molecules, pairs, None)


def molecule(seed: int, n: int, volume: float, charge: float = 0.0) -> Charges:
    return cases.random_cell(seed, n, volume, charge)._replace(cell=np.zeros((3, 3)))


def switch(r: float) -> float:
    return math.exp(1.0 - 1.0 / (1.0 - (r / RC) ** 2)) if r < RC else 0.0


def dsf(r: float, alpha: float, cutoff: float) -> float:
    """Fennell and Gezelter 2006, eq. 18, as it stands there, without charges."""
    if r >= cutoff:
        return 0.0
    at_end = math.erfc(alpha * cutoff) / cutoff
    slope = math.erfc(alpha * cutoff) / cutoff**2
    slope += 2.0 * alpha / math.sqrt(math.pi) * math.exp(-(alpha**2) * cutoff**2) / cutoff
    return math.erfc(alpha * r) / r - at_end + slope * (r - cutoff)


def by_loops(system: Charges, kernel: Callable[[float], float], cutoff: float) -> float:
    """k_e sum over pairs and images of q q kernel(r)."""
    total = 0.0
    for i, j, shift in zip(*cases.half_pairs(system.positions, system.cell, cutoff), strict=True):
        r = float(np.linalg.norm(system.positions[j] + np.array(shift) @ system.cell - system.positions[i]))
        total += KE * float(system.charges[i] * system.charges[j]) * kernel(r)
    return total


MOLECULES = [molecule(1, 9, 700.0), molecule(2, 1, 10.0, 1.0), molecule(3, 6, 3000.0, -2.0), molecule(4, 12, 150.0)]
CELLS = [cases.random_cell(5, 5, 200.0), cases.random_cell(6, 9, 120.0, 1.0), cases.random_cell(7, 1, 20.0, -1.0)]
SLAB = cases.random_cell(8, 6, 200.0)
SLAB = SLAB._replace(cell=SLAB.cell * np.array([[1.0], [1.0], [0.0]]))
WIRE = SLAB._replace(cell=SLAB.cell * np.array([[0.0], [1.0], [0.0]]))


@pytest.mark.parametrize("scripted", [False, True])
def test_simple_in_molecules(scripted: bool) -> None:
    expected = [by_loops(system, lambda r: (1.0 - switch(r)) / r, 1e3) for system in MOLECULES]
    for method in ("simple", "ewald"):
        module = head(method, scripted)
        assert module.pair_cutoff(100, 0.0) == 0.0
        wanted = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(molecule_energies(module, MOLECULES), wanted, rtol=0.0, atol=ROUNDING)
        torch.testing.assert_close(energies(module, MOLECULES, 2, 1e9), wanted, rtol=0.0, atol=ROUNDING)


@pytest.mark.parametrize("scripted", [False, True])
def test_dsf_is_the_published_formula(scripted: bool) -> None:
    for alpha, cutoff in ((0.2, 15.0), (0.0, 9.0), (0.3, 4.0)):
        module = head("dsf", scripted, dsf_alpha=alpha, dsf_cutoff=cutoff)
        assert module.pair_cutoff(100, 500.0) == max(cutoff, RC)
        # half the limit of kernel - 1/r, extrapolated from small distances: 1e-5 Å leave 1e-11 of 1/r
        own = (dsf(1e-5, alpha, cutoff) - 1e5) - 0.5 * (dsf(2e-5, alpha, cutoff) - 0.5e5)

        def expected(system: Charges, alpha: float = alpha, cutoff: float = cutoff, own: float = own) -> float:
            pairs = by_loops(system, lambda r: dsf(r, alpha, cutoff) - switch(r) / r, max(cutoff, RC))
            return pairs + KE * own * float(np.square(system.charges).sum())

        systems = [*MOLECULES, *CELLS, SLAB, WIRE]
        wanted = torch.tensor([expected(system) for system in systems], dtype=torch.float64)
        torch.testing.assert_close(energies(module, systems, 1, -7.0), wanted, rtol=0.0, atol=1e-8)
        torch.testing.assert_close(molecule_energies(module, MOLECULES), wanted[:4], rtol=0.0, atol=1e-8)
        torch.testing.assert_close(
            molecule_energies(module, MOLECULES), energies(module, MOLECULES), rtol=0.0, atol=ROUNDING
        )


def test_dsf_ends_smoothly() -> None:
    """Energy and force are zero at the cutoff, and the curvature that remains finite is that of the formula."""
    screening = coulomb.dsf_screening(1, 0.2, 15.0, torch.device("cpu"))
    r = torch.tensor([14.0, 15.0 - 1e-9, 15.0, 15.0 + 1e-9, 40.0], dtype=torch.float64, requires_grad=True)
    value = coulomb.screened_kernel(r, screening)
    (slope,) = torch.autograd.grad(value.sum(), r)
    assert value[0] > 1e-7
    assert slope[0] < -1e-7
    assert value.detach()[1:].abs().max() < 1e-16
    assert slope[1:].abs().max() < 1e-12
    assert (value[2:] == 0.0).all()
    # a scan of a pair through the cutoff of 15 Å and the end of the short range at 4.6 Å
    module = head("dsf")
    distances = np.arange(3.0, 16.0, 0.01)
    systems = [Charges(np.array([0.5, -0.5]), np.diag([0.0, d, 0.0])[:2], np.zeros((3, 3))) for d in distances]
    scan = energies(module, systems)
    force = -scan.diff() / 0.01
    for end in (RC, 15.0):
        near = torch.from_numpy(np.abs(distances[1:] - end) < 0.1)
        assert scan.diff().abs()[near].max() < 2e-2
        assert force.diff().abs()[near[1:]].max() < 0.05 * scan.diff().abs().max() / 0.01


def test_dsf_comes_near_ewald_as_the_cutoff_grows() -> None:
    system = cases.random_cell(30, 16, 260.0)
    exact = energies(head("ewald"), [system])[0]
    errors = []
    for cutoff in (8.0, 16.0, 32.0):
        module = head("dsf", dsf_alpha=2.5 / cutoff, dsf_cutoff=cutoff)
        errors.append(float((energies(module, [system])[0] - exact).abs()))
    assert errors[1] < 0.3 * errors[0]
    assert errors[2] < 0.3 * errors[1]
    assert errors[2] < 1e-3 * abs(float(exact))
    # without the self term it would be off by this much
    assert KE * 2.5 / 32.0 / math.sqrt(math.pi) * float(np.square(system.charges).sum()) > 100.0 * errors[2]


@pytest.mark.parametrize("scripted", [False, True])
def test_periodic_energy_is_ewald_minus_the_short_range(scripted: bool) -> None:
    long = LRCoulomb(CoulombSettings(method="ewald", rc=cases.NOWHERE))
    plain = energies(long, CELLS)
    short = torch.tensor([by_loops(system, lambda r: switch(r) / r, RC) for system in CELLS], dtype=torch.float64)
    assert short.abs().min() > 1.0
    for method in ("simple", "ewald"):
        found = energies(head(method, scripted), CELLS)
        torch.testing.assert_close(found, plain - short, rtol=0.0, atol=ROUNDING)


@pytest.mark.parametrize("method", METHODS)
def test_batches(method: str) -> None:
    """Cells of all sizes and molecules together, with padding anywhere, give what each gives alone."""
    module = head(method, scripted=True)
    systems = [MOLECULES[0], *CELLS, MOLECULES[2]]
    alone = torch.cat([energies(module, [system]) for system in systems])
    torch.testing.assert_close(energies(module, systems), alone, rtol=0.0, atol=ROUNDING)
    torch.testing.assert_close(energies(module, systems[::-1], 3, 1e9).flip(0), alone, rtol=0.0, atol=ROUNDING)
    batch = batch_for(module, systems)
    first = batch.charges.shape[1] - 1 - batch.lists.pair_first % batch.charges.shape[1]
    backwards = batch.lists._replace(
        pair_first=batch.lists.pair_first - batch.lists.pair_first % batch.charges.shape[1] + first,
        pair_second=batch.lists.pair_second
        + batch.charges.shape[1]
        - 1
        - 2 * (batch.lists.pair_second % batch.charges.shape[1]),
    )
    molecules = batch.molecules._replace(coord=batch.molecules.coord.flip(1), numbers=batch.molecules.numbers.flip(1))
    found = module(batch.charges.flip(1), molecules, cases.no_pairs(), backwards)
    torch.testing.assert_close(found, alone, rtol=0.0, atol=ROUNDING)


@pytest.mark.parametrize("method", METHODS)
def test_forces_and_stress(method: str) -> None:
    """Against five-point differences, with charges that depend on the positions as those of a network do.

    Steps of 2e-3 leave a truncation error of h^4 E^(5) / 30 ~ 1e-10 eV/Å and rounding of 1e-14 / 1e-3 = 1e-11; the
    Ewald sum has its own 1e-10.
    """
    module = head(method, scripted=True)
    system = cases.random_cell(40, 6, 150.0)
    volume = 150.0

    def energy(x: Tensor, strain: Tensor, wide: bool = True) -> Tensor:
        batch = cases.batch_of([system], [module.pair_cutoff(6, volume) + 1.0 * wide])
        deformation = torch.eye(3, dtype=torch.float64) + strain
        coord, cell = x @ deformation, batch.lists.cell @ deformation
        charges = batch.charges * (1.0 + 0.1 * torch.sin(coord).sum(-1)).unsqueeze(0)
        lists = batch.lists._replace(cell=cell)
        return module(charges, batch.molecules._replace(coord=coord.unsqueeze(0)), cases.no_pairs(), lists)[0]

    x = torch.from_numpy(system.positions).requires_grad_()
    strain = torch.zeros((3, 3), dtype=torch.float64, requires_grad=True)
    gradients = torch.autograd.grad(energy(x, strain), [x, strain])
    step = 2e-3
    for leaf, gradient, tolerance in ((x, gradients[0], 1e-8), (strain, gradients[1], 1e-8 * volume)):
        assert gradient.abs().max() > 0.1
        for place in itertools.product(*(range(n) for n in leaf.shape)):
            values = []
            for factor in (-2, -1, 1, 2):
                moved = leaf.detach().clone()
                moved[place] += factor * step
                inputs = (moved, strain.detach()) if leaf is x else (x.detach(), moved)
                values.append(float(energy(*inputs)))
            slope = (values[0] - 8.0 * values[1] + 8.0 * values[2] - values[3]) / (12.0 * step)
            assert float(gradient[place]) == pytest.approx(slope, abs=tolerance), (method, place)


def pieces(
    system: Charges, function: Callable[[Tensor, Tensor, NeighborLists], Tensor]
) -> tuple[Tensor, list[Tensor], Tensor]:
    """A sum, its gradients in charges, coordinates and cell, and a row of second derivatives."""
    batch = cases.batch_of([MOLECULES[1], system], [0.0, 7.0], extra=1)
    leaves = [batch.charges, batch.molecules.coord, batch.lists.cell]
    q, x, c = [leaf.clone().requires_grad_() for leaf in leaves]
    found = function(q, x, batch.lists._replace(cell=c))
    gradients = torch.autograd.grad(found.sum(), [q, x, c], create_graph=True, allow_unused=True)
    (second,) = torch.autograd.grad(gradients[1][-1, 0, 0], x, retain_graph=True)
    return found.detach(), [torch.zeros(1) if g is None else g.detach() for g in gradients], second


@pytest.mark.parametrize("kind", ["list", "molecule"])
@pytest.mark.parametrize("scripted", [False, True])
def test_chunks_give_the_same_and_no_second_derivatives(kind: str, scripted: bool) -> None:
    screening = coulomb.dsf_screening(2, 0.2, 6.0, torch.device("cpu"))
    name = {"list": coulomb.list_energy, "molecule": coulomb.molecule_energy}[kind]
    compiled = torch.jit.script(name) if scripted else name

    def total(max_pairs: int) -> Callable[[Tensor, Tensor, NeighborLists], Tensor]:
        if kind == "list":
            return lambda q, x, lists: compiled(q, x, lists, screening, RC, max_pairs)
        return lambda q, x, lists: compiled(q[1, :-1], x[1, :-1], RC, max_pairs).unsqueeze(0)

    system = CELLS[1] if kind == "list" else MOLECULES[3]
    whole, gradients, second = pieces(system, total(1_000_000))
    assert second.isfinite().all()
    assert second.abs().max() > 1e-3
    for max_pairs in (3, 50):
        found, slopes, unknown = pieces(system, total(max_pairs))
        torch.testing.assert_close(found, whole, rtol=0.0, atol=1e-12)
        for one, other in zip(slopes, gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=0.0, atol=1e-12)
        assert not unknown.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("system", [CELLS[0], MOLECULES[3]], ids=["cell", "molecule"])
def test_second_derivatives(method: str, system: Charges) -> None:
    module = head(method, scripted=True)
    batch = batch_for(module, [system])
    leaves = [leaf.clone().requires_grad_() for leaf in (batch.charges, batch.molecules.coord, batch.lists.cell)]

    def energy(q: Tensor, x: Tensor, c: Tensor) -> Tensor:
        lists = batch.lists._replace(cell=c if system is CELLS[0] else c.detach())
        return module(q, batch.molecules._replace(coord=x), cases.no_pairs(), lists)

    inputs = leaves if system is CELLS[0] else [*leaves[:2], leaves[2].detach()]
    # TorchScript compiles anew after the first runs, and rounds differently from then on
    assert torch.autograd.gradcheck(energy, inputs, atol=1e-6, nondet_tol=1e-10)
    assert torch.autograd.gradgradcheck(energy, inputs, atol=1e-6, nondet_tol=1e-10)


def test_padding_reaches_nothing() -> None:
    for method in METHODS:
        module = head(method, scripted=True)
        batch = batch_for(module, [CELLS[0], MOLECULES[0], CELLS[2]], 2, float("inf"))
        coord = batch.molecules.coord.clone()
        real = batch.molecules.numbers > 0
        coord[~real] = 1e200
        coord.requires_grad_()
        molecules = batch.molecules._replace(coord=coord)
        (gradient,) = torch.autograd.grad(module(batch.charges, molecules, cases.no_pairs(), batch.lists).sum(), coord)
        assert gradient.isfinite().all()
        assert (gradient[~real] == 0.0).all()
        assert gradient[real].abs().max() > 0.1


def test_many_atoms_in_linear_memory() -> None:
    """3000 atoms without a cell: blocks against a plain matrix."""
    generator = np.random.default_rng(0)
    grid = np.array(list(itertools.product(range(15), range(15), range(14))))[:3000]
    x = torch.from_numpy(2.3 * grid + generator.uniform(-0.3, 0.3, (3000, 3))).requires_grad_()
    q = torch.from_numpy(generator.uniform(-0.5, 0.5, 3000)).requires_grad_()
    found = torch.jit.script(coulomb.molecule_energy)(q, x, RC)
    gradients = torch.autograd.grad(found, [q, x])
    with torch.no_grad():
        r = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") + torch.eye(3000, dtype=torch.float64)
        kernel = (1.0 - exponential_cutoff(r, RC)) / r * (1.0 - torch.eye(3000, dtype=torch.float64))
        potential = kernel @ q
        assert float(found) == pytest.approx(0.5 * float(q @ potential), abs=1e-8)
        torch.testing.assert_close(gradients[0], potential, rtol=0.0, atol=1e-10)
    # no net force on a molecule
    assert gradients[1].sum(0).abs().max() < 1e-9
    assert gradients[1].abs().max() > 0.1


@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.parametrize("system", [SLAB, WIRE], ids=["slab", "wire"])
def test_partly_periodic_needs_dsf(system: Charges, scripted: bool) -> None:
    for method in ("simple", "ewald"):
        with pytest.raises(Exception, match="use 'dsf', or add vacuum and make all directions periodic"):
            energies(head(method, scripted), [CELLS[0], system])
    assert energies(head("dsf", scripted), [CELLS[0], system]).isfinite().all()


def test_what_is_refused() -> None:
    flat = CELLS[0]._replace(cell=np.array([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0], [3.0, 4.0, 0.0]]))
    batch = cases.batch_of([CELLS[0]], [0.0])
    lists = batch.lists._replace(cell=torch.from_numpy(flat.cell).unsqueeze(0))
    with pytest.raises(ValueError, match="give three that span a volume"):
        head()(batch.charges, batch.molecules, cases.no_pairs(), lists)
    with pytest.raises(ValueError, match="unknown Coulomb method 'pme'; choose simple, dsf or ewald"):
        head("pme")(batch.charges, batch.molecules, cases.no_pairs(), None)
    for wrong in ({"method": "pme"}, {"dsf_alpha": -0.1}, {"dsf_cutoff": 0.0}, {"dsf_cutoff": 1e9}, {"alpha": 1}):
        with pytest.raises(ValidationError):
            CoulombSettings.model_validate(wrong)
    old = CoulombSettings.model_validate({"method": "simple", "rc": 4.6})
    assert (old.dsf_alpha, old.dsf_cutoff) == (0.2, 15.0)


def test_pair_cutoff() -> None:
    module = head("ewald", scripted=True)
    assert module.pair_cutoff(1, 10.0) == 6.0
    assert 9.0 < module.pair_cutoff(3000, 30_000.0) < 13.0
    assert module.pair_cutoff(3000, 0.0) == 0.0
    wide = LRCoulomb(CoulombSettings(rc=9.0))
    assert wide.pair_cutoff(1, 10.0) == 9.0
    wide.method = "dsf"
    assert wide.pair_cutoff(1, 0.0) == 15.0
