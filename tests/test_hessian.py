"""Exact second derivatives against differences of forces, for every term of a potential."""

from __future__ import annotations

import d3_cases
import numpy as np
import pytest
import suites
import torch
from ase import Atoms
from hessian_cases import (
    CASES,
    Both,
    check,
    check_invariances,
    crystals,
    d3,
    d4,
    differences,
    dipole,
    door,
    gradient_of,
    levi_civita,
    linear,
    loaded,
    potential,
    system_of,
)
from structures import alkane
from torch import Tensor

from aimnet2mult.calculators.runtime_dispersion import RuntimeDispersion
from aimnet2mult.models.hessian import dipole_derivatives, hessian, second_order


@pytest.fixture(scope="module")
def potentials() -> dict[str, Both]:
    """With Coulomb energies and no, D3, D4 dispersion."""
    made = {"no dispersion": potential(), "D3": potential(d3()), "D4": potential(d4())}
    return {name: Both(eager, loaded(eager)) for name, eager in made.items()}


@pytest.fixture(scope="module")
def module(potentials: dict[str, Both]) -> torch.jit.ScriptModule:
    return potentials["D3"].scripted


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
    term = d3(cutoffs=d3_cases.SMOOTH)
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


@pytest.mark.parametrize("atoms", crystals(), ids=["salt", "triclinic", "slab"])
def test_periodic_systems(atoms: Atoms) -> None:
    terms = (d3(),) if atoms.pbc.all() else ()
    eager = potential(*terms, outputs={"lrcoulomb": None})
    module = loaded(eager)
    data = door(atoms, module)
    found = hessian(module, data)
    check(found, differences(module, data), str(atoms.symbols))
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
