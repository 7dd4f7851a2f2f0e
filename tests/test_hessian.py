"""Exact second derivatives against differences of forces, for every term of a potential."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import suites
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculationFailed
from numpy.typing import NDArray
from structures import alkane
from torch import Tensor, nn

from aimnet2mult.calculators import hessian as calculated
from aimnet2mult.calculators.inputs import System
from aimnet2mult.calculators.neighbors import Frame, VerletLists, door_entries
from aimnet2mult.calculators.preparation import Prepared
from aimnet2mult.calculators.runtime_dispersion import RuntimeDispersion
from aimnet2mult.errors import InputError
from aimnet2mult.models.derivatives import forces_from_energy
from aimnet2mult.models.dispersion import D3BJ
from aimnet2mult.models.dispersion_d4 import D4
from aimnet2mult.models.files import script_potential
from aimnet2mult.models.hessian import dipole_derivatives, hessian, hessian_by_differences, second_order
from aimnet2mult.models.potential import Potential, SelfAtomicEnergy
from aimnet2mult.physics.functionals import resolve_d3
from aimnet2mult.physics.functionals_d4 import resolve_d4
from aimnet2mult.physics.pair_sums import linear_surrogate
from aimnet2mult.units import ANGSTROM_PER_BOHR, BOHR_PER_ANGSTROM, EV_PER_HARTREE

Door = dict[str, Tensor]

ELEMENTS = [1, 6, 7, 8, 9, 14, 15, 16, 17]
SAE = dict.fromkeys(ELEMENTS, -2.0)
# neutral, cation, anion, radicals, triplet, linear, two atoms; no symmetry is left
CASES = (
    ("H2O", 0, None), ("CH3OH", 0, None), ("CH3", 1, 1), ("OH", -1, 1), ("CH3O", -1, 1), ("NO2", 0, None),
    ("H2O", 1, 2), ("CH2_s3B1d", 0, None), ("CO2", 0, None), ("HCN", 0, None), ("H2", 0, None), ("CH3SH", 0, None),
)  # fmt: skip
# Of the largest element. Five-point differences with steps of 1e-3 Å: truncation step^4 / 30 of the fifth derivative
# (1e-10 for features 0.3 Å wide), rounding 1e-13 eV/Å / 1e-3 Å = 1e-10. A missing term is 1e-3 and more.
TOLERANCE = 1e-6


class Both(NamedTuple):
    """A potential as it is made and as it comes out of a file."""

    eager: Potential
    scripted: torch.jit.ScriptModule


def potential(*terms: nn.Module, **changes: object) -> Potential:
    """A small network, Coulomb included, and dispersion, in float64."""
    return Potential(suites.network(**changes).at_fidelity(1).double(), SelfAtomicEnergy(SAE), terms).eval()


def loaded(eager: Potential) -> torch.jit.ScriptModule:
    """As it comes out of a file."""
    stream = io.BytesIO()
    torch.jit.save(script_potential(eager), stream)
    stream.seek(0)
    return torch.jit.load(stream)


def d3(s9: float = 0.0) -> D3BJ:
    return D3BJ(ELEMENTS, resolve_d3("pbe0", s9=s9).parameters)


def d4() -> D4:
    return D4(ELEMENTS, resolve_d4("pbe0").parameters)


@pytest.fixture(scope="module")
def potentials() -> dict[str, Both]:
    """With Coulomb energies and no, D3, D4 dispersion."""
    made = {"no dispersion": potential(), "D3": potential(d3()), "D4": potential(d4())}
    return {name: Both(eager, loaded(eager)) for name, eager in made.items()}


@pytest.fixture(scope="module")
def module(potentials: dict[str, Both]) -> torch.jit.ScriptModule:
    return potentials["D3"].scripted


def linear(name: str) -> Atoms:
    """Exactly on a line, out of equilibrium."""
    atoms = molecule(name)
    atoms.positions *= 1.05
    atoms.info = {"charge": 0, "mult": 1}
    return atoms


def door(atoms: Atoms, module: nn.Module | None = None) -> Door:
    """What a potential takes; with neighbour lists where the structure is periodic or `module` is given."""
    batch = suites.collate([atoms])
    data = {"coord": batch.coord, "numbers": batch.numbers, "charge": batch.charge, "mult": batch.mult}
    if module is None:
        return data
    cell = atoms.cell.array * atoms.pbc[:, None]
    pair_cutoff = module.pair_cutoff(len(atoms), abs(np.linalg.det(cell)) if atoms.pbc.all() else 0.0)
    lists = VerletLists().update(Frame(atoms.positions, cell), 5.0, pair_cutoff)
    return data | door_entries([lists], [cell], len(atoms), torch.device("cpu"))


def gradient_of(module: nn.Module, data: Mapping[str, Tensor]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    def gradient(positions: NDArray[np.float64]) -> NDArray[np.float64]:
        coord = torch.from_numpy(positions).unsqueeze(0).requires_grad_()
        return -forces_from_energy(module({**data, "coord": coord})["energy"], coord)[0].numpy()

    return gradient


def differences(module: nn.Module, data: Mapping[str, Tensor], step: float = 1e-3) -> Tensor:
    return torch.from_numpy(hessian_by_differences(gradient_of(module, data), data["coord"][0].numpy(), step))


def check(found: Tensor, expected: Tensor, name: str) -> None:
    largest = expected.abs().max()
    assert largest > 1e-2, f"{name}: second derivatives this small test nothing"
    assert (found - expected).abs().max() < TOLERANCE * largest, name


def check_invariances(found: Tensor) -> None:
    n = found.shape[0]
    square = found.view(3 * n, 3 * n)
    assert torch.equal(square, square.T)
    assert found.sum(2).abs().max() < suites.ROUNDING * found.abs().max() + 1e-14


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}{case[1]:+d}")
def test_equals_differences_of_forces(case: tuple[str, int, int | None], potentials: dict[str, Both]) -> None:
    atoms = suites.structure(*case)
    for name, both in potentials.items():
        expected = differences(both.scripted, door(atoms))
        for module in both:
            found = hessian(module, door(atoms))
            check(found, expected, name)
            check_invariances(found)


@pytest.mark.parametrize("name", ["CO2", "HCN", "C2H2"])
def test_linear_molecules(name: str, module: torch.jit.ScriptModule) -> None:
    found = hessian(module, door(linear(name)))
    check(found, differences(module, door(linear(name))), name)
    check_invariances(found)


def test_closed_shell_network_and_dsf() -> None:
    heads = "aimnet2mult.models.heads."
    dsf = {"lrcoulomb": {"class": heads + "LRCoulomb", "kwargs": {"method": "dsf"}}}
    atoms = suites.structure("HCOOH")
    for changes in ({"num_charge_channels": 1}, {"outputs": dsf}):
        eager = potential(**changes)
        check(hessian(loaded(eager), door(atoms)), differences(eager, door(atoms)), str(changes))


def test_many_rows_at_once_are_the_same_as_one_by_one(module: torch.jit.ScriptModule) -> None:
    data = door(suites.structure("C4H4NH"))
    one_by_one = hessian(module, data, max_pairs=1)
    for max_pairs in (700, 10**9):  # rows by sevens, with a last block of two; all at once
        suites.assert_close(hessian(module, data, max_pairs=max_pairs), one_by_one, 1e-13)


def test_jit_optimiser_changes_nothing(module: torch.jit.ScriptModule) -> None:
    data = door(suites.structure("CH3OH"))
    with torch.jit.optimized_execution(False):
        expected = hessian(module, data)
    with torch.jit.optimized_execution(True):
        for _ in range(3):  # it profiles, then compiles, then runs
            suites.assert_close(hessian(module, data), expected)


def test_modes_of_the_caller_do_not_matter(module: torch.jit.ScriptModule) -> None:
    data = door(suites.structure("H2O"))
    expected = hessian(module, data)
    with torch.no_grad():
        suites.assert_close(hessian(module, data), expected, 1e-13)
    with torch.inference_mode():
        suites.assert_close(hessian(module, door(suites.structure("H2O"))), expected, 1e-13)
    assert not data["coord"].requires_grad


def test_nested_torch_func_is_no_alternative(module: torch.jit.ScriptModule) -> None:
    """On a scripted potential it stops or returns wrong numbers; should it ever be right, it may be looked at again."""
    data = door(suites.structure("H2O"))

    def energy(coord: Tensor) -> Tensor:
        return module({**data, "coord": coord})["energy"].sum()

    exact = hessian(module, data)
    for transform in (torch.func.hessian(energy), torch.func.jacfwd(torch.func.grad(energy))):
        try:
            found = transform(data["coord"]).view_as(exact)
        except RuntimeError:
            continue
        assert (found - exact).abs().max() > 0.1 * exact.abs().max()


def test_single_atoms() -> None:
    module = loaded(potential(d3(), d4()))
    for symbol, charge, mult in (("H", 0, 2), ("Cl", -1, 1), ("O", 0, 3)):
        atoms = Atoms(symbol, [[0.3, -0.2, 0.9]], info={"charge": charge, "mult": mult})
        found = second_order(module, door(atoms))
        assert torch.equal(found.hessian, torch.zeros(1, 3, 1, 3, dtype=torch.float64))
        assert (found.forces == 0.0).all()
        polar = dipole_derivatives(module, door(atoms), torch.tensor([1.0]))
        assert polar.abs().max() < 1e-14  # the dipole about the only atom is zero wherever that is


def test_some_atoms_only(module: torch.jit.ScriptModule) -> None:
    data = door(suites.structure("CH3OH"))
    full = second_order(module, data)
    part = second_order(module, data, atoms=[4, 1])
    assert part.hessian.shape == (2, 3, 2, 3)
    suites.assert_close(part.hessian, full.hessian[[4, 1]][:, :, [4, 1]], 1e-13)
    suites.assert_close(part.forces, full.forces, 1e-13)


def test_energy_and_forces_come_with_it(module: torch.jit.ScriptModule) -> None:
    atoms = suites.structure("CH3CONH2")
    found = second_order(module, door(atoms))
    suites.assert_close(found.energy, module(door(atoms))["energy"].detach()[0], 1e-13)
    expected = -gradient_of(module, door(atoms))(atoms.positions)
    suites.assert_close(found.forces, torch.from_numpy(expected), 1e-13)


def test_padding_is_zero(module: torch.jit.ScriptModule) -> None:
    atoms = suites.structure("H2O")
    batch = suites.collate([atoms], extra=2, junk=0.7)
    found = hessian(module, {k: v for k, v in batch._asdict().items() if k != "fidelity"})
    suites.assert_close(found[:3, :, :3], hessian(module, door(atoms)))
    assert (found[3:] == 0.0).all()
    assert (found[:, :, 3:] == 0.0).all()


def test_molecule_by_neighbour_lists() -> None:
    atoms = alkane(4)
    atoms.rattle(0.05, seed=2)
    atoms.info = {"charge": 0, "mult": 1}
    for terms in ((), (d3(),), (d3(s9=1.0),), (d4(),)):
        module = potential(*terms)
        suites.assert_close(hessian(module, door(atoms, module)), hessian(module, door(atoms)), 1e-9)


def test_dispersion_of_large_molecules_has_second_derivatives() -> None:
    """Beyond 64 atoms D3 takes first derivatives by hand unless it is told not to, and is told so only meanwhile."""
    atoms = alkane(24)
    atoms.rattle(0.03, seed=3)
    atoms.info = {"charge": 0, "mult": 1}
    term = d3()
    module = potential(term)
    before = term.max_plain
    assert len(atoms) * (len(atoms) - 1) // 2 > before
    few = [0, 40]
    with_term = hessian(module, door(atoms), few)
    assert term.max_plain == before
    term.active = False
    extra = with_term - hessian(module, door(atoms), few)
    term.active = True
    package = RuntimeDispersion("d3bj", "pbe0")
    expected = torch.from_numpy(package.hessian(system_of(atoms))).view(len(atoms), 3, len(atoms), 3)
    # differences of the package's gradient are right to 1e-7 of its largest element
    assert (extra - expected[few][:, :, few]).abs().max() < 1e-6 * expected.abs().max()


def crystals() -> list[Atoms]:
    rng = np.random.default_rng(4)
    salt = bulk("SiC", "zincblende", 4.3)
    salt.rattle(0.05, seed=1)
    triclinic = Atoms("CHONHCl", rng.uniform(0, 1, (6, 3)) @ np.diag([5, 6, 7]), cell=[5.2, 6.1, 7.3, 80, 97, 108])
    triclinic.pbc = True
    slab = Atoms("CO2H2", rng.uniform(0, 3, (5, 3)), cell=[3.1, 3.3, 0.0], pbc=[True, True, False])
    for atoms in (salt, triclinic, slab):
        atoms.info = {"charge": 0, "mult": 1}
    return [salt, triclinic, slab]


@pytest.mark.parametrize("atoms", crystals(), ids=["salt", "triclinic", "slab"])
def test_periodic_systems(atoms: Atoms) -> None:
    terms = (d3(),) if atoms.pbc.all() else ()
    eager = potential(*terms, outputs={"lrcoulomb": None})
    module = loaded(eager)
    data = door(atoms, module)
    found = hessian(module, data)
    # pairs cross the cutoff of D3 in larger steps: its forces change by 1e-9 eV/Å there, as in the dftd3 package
    check(found, differences(module, data, 2e-4), str(atoms.symbols))
    check_invariances(found)


def test_periodic_with_ewald(potentials: dict[str, Both]) -> None:
    atoms, module = crystals()[1], potentials["no dispersion"].scripted
    found = hessian(module, door(atoms, module))
    check(found, differences(module, door(atoms, module)), "Ewald")
    check_invariances(found)


def test_supercell_folds_onto_the_cell(potentials: dict[str, Both]) -> None:
    """Moving an atom with all its images is moving all its copies in a supercell."""
    atoms = crystals()[0]
    module = potentials["no dispersion"].scripted
    large = atoms.repeat((2, 1, 1))
    large.info = atoms.info
    n = len(atoms)
    folded = hessian(module, door(large, module))[:n].view(n, 3, 2, n, 3).sum(2)
    suites.assert_close(folded, hessian(module, door(atoms, module)))


def dipole(module: nn.Module, data: Mapping[str, Tensor], masses: Tensor) -> Callable[[Tensor], Tensor]:
    def moment(coord: Tensor) -> Tensor:
        charges = module({**data, "coord": coord.unsqueeze(0)})["charges"][0].detach()
        return (charges.unsqueeze(1) * (coord - (masses.unsqueeze(1) * coord).sum(0) / masses.sum())).sum(0)

    return moment


@pytest.mark.parametrize("case", [("HCOOH", 0, None), ("CH3O", -1, 1), ("H2O", 1, 2)])
def test_dipole_derivatives(case: tuple[str, int, int | None], module: torch.jit.ScriptModule) -> None:
    atoms = suites.structure(*case)
    data = door(atoms)
    masses = torch.from_numpy(atoms.get_masses())
    found = dipole_derivatives(module, data, masses)
    moment = dipole(module, data, masses)
    start, step = data["coord"][0], 1e-3
    expected = torch.empty_like(found)
    for i, x in np.ndindex(len(atoms), 3):
        unit = torch.zeros_like(start)
        unit[i, x] = step
        ahead = [moment(start + k * unit) for k in (-2, -1, 1, 2)]
        expected[i, x] = (ahead[0] - 8 * ahead[1] + 8 * ahead[2] - ahead[3]) / (12 * step)
    check(found, expected, str(atoms.symbols))
    fixed = torch.eye(3, dtype=torch.float64) * data["charge"]
    charges = module(data)["charges"][0].detach().view(-1, 1, 1) * torch.eye(3, dtype=torch.float64)
    flux = found - charges + fixed * (masses / masses.sum()).view(-1, 1, 1)
    assert flux.abs().max() > 0.05, "charges that do not change as atoms move test little"
    # a moved molecule has the dipole that it had; a turned one turns it: sum_i (e x r_i) . Z_i = e x mu
    assert found.sum(0).abs().max() < suites.ROUNDING
    turned = torch.einsum("axi,ni,nxd->ad", levi_civita(), start, found)
    suites.assert_close(turned, torch.einsum("adi,i->ad", levi_civita(), moment(start)))


def levi_civita() -> Tensor:
    """e[a, x, i]: component x of (unit vector a) x (unit vector i)."""
    axes = torch.eye(3, dtype=torch.float64)
    return torch.stack([torch.stack([torch.linalg.cross(a, i) for i in axes], dim=1) for a in axes])


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


def system_of(atoms: Atoms) -> System:
    cell = atoms.cell.array * atoms.pbc[:, None]
    return System(atoms.positions, atoms.numbers.astype(np.int64), cell, atoms.info["charge"], atoms.info["mult"])


def prepared(atoms: Atoms, modules: tuple[nn.Module, ...], dispersion: RuntimeDispersion | None = None) -> Prepared:
    return Prepared(modules, door(atoms), system_of(atoms), dispersion, threading.RLock())


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


class Fake(nn.Module):
    """A potential with the energy of a function of the coordinates."""

    def __init__(self, energy: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.energy = energy

    def forward(self, data: Door) -> Door:
        return {"energy": self.energy(data["coord"]), "charges": data["coord"][..., 0].log()}


class NoGradient(torch.autograd.Function):
    """An energy whose forces are no gradient: those on an atom along y change as it moves along x, not conversely."""

    @staticmethod
    def forward(ctx: Any, coord: Tensor) -> Tensor:
        ctx.save_for_backward(coord)
        return torch.zeros_like(coord[:, 0, 0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (coord,) = ctx.saved_tensors
        return (coord - coord[:, 1:2]).roll(1, dims=2) * grad.view(-1, 1, 1)


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
