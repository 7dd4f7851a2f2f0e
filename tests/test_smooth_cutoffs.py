"""D3 and D4 end smoothly: forces and stress are what the energy does, at every distance and every strain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import d3_cases
import d4_cases
import numpy as np
import pytest
import suites
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.fd import calculate_numerical_stress
from conftest import FIDELITIES, SAE, Springs, write_fidelity
from crystals import crystal
from numpy.typing import NDArray
from torch import nn

from aimnet2mult import AIMNet2MultCalculator
from aimnet2mult.models.dispersion import D3BJ
from aimnet2mult.models.dispersion_d4 import D4
from aimnet2mult.models.files import read_metadata, script_potential, write_potential
from aimnet2mult.models.potential import Potential, SelfAtomicEnergy
from aimnet2mult.physics.d4 import D4Cutoffs
from aimnet2mult.physics.functionals import resolve_d3
from aimnet2mult.physics.functionals_d4 import resolve_d4
from aimnet2mult.physics.switching import smooth_cutoff, switch_and_slope
from aimnet2mult.units import ANGSTROM_PER_BOHR, EV_PER_HARTREE

Term = Callable[..., nn.Module]
# each makes the correction for some elements, with its default cutoffs or others
TERMS: dict[str, Term] = {
    "d3": lambda elements, *cutoffs: D3BJ(elements, resolve_d3("pbe0").parameters, *cutoffs),
    "d3 three-body": lambda elements, *cutoffs: D3BJ(elements, resolve_d3("pbe0", s9=1.0).parameters, *cutoffs),
    "d4": lambda elements, *cutoffs: D4(elements, resolve_d4("pbe0").parameters, "eeq", *cutoffs),
    "d4 two-body": lambda elements, *cutoffs: D4(elements, resolve_d4("pbe0", s9=0.0).parameters, "eeq", *cutoffs),
}
SHARP = {name: d3_cases.SHARP if "d3" in name else d4_cases.SHARP for name in TERMS}
D4_ZONES = D4Cutoffs(disp2=20.0, disp3=14.0, width2=9.0, width3=6.0)
NAMES = pytest.mark.parametrize("name", TERMS)


def elements_of(atoms: Atoms) -> list[int]:
    return sorted({int(z) for z in atoms.numbers})


def triclinic() -> dict[str, Atoms]:
    diamond = bulk("C")
    diamond.set_cell(diamond.cell.array @ [[1.0, 0.03, 0.02], [0.01, 1.0, -0.02], [0.02, 0.0, 1.04]], scale_atoms=True)
    diamond.positions += np.random.default_rng(0).normal(scale=0.05, size=(2, 3))
    return {"diamond": diamond, "formaldehyde": crystal("triclinic"), "acetamide": d4_cases.crystals()["acetamide"]}


def strained(module: nn.Module, atoms: Atoms, direction: NDArray[np.float64], size: float) -> tuple[float, float]:
    """Energy (eV) at a strain of some size and direction, and its derivative (eV) by the size."""
    lists = d4_cases.pair_lists([atoms], module.pair_cutoff + 0.5)  # the strains here bring in no other pairs
    coord, numbers = d3_cases.padded([atoms])
    leaf = torch.tensor(size, dtype=torch.float64, requires_grad=True)
    deform = torch.eye(3, dtype=torch.float64) + leaf * torch.from_numpy(direction)
    energy = d3_cases.evaluate(module, coord @ deform, numbers, lists._replace(cell=lists.cell @ deform)).sum()
    (slope,) = torch.autograd.grad(energy, leaf)
    return energy.item(), slope.item()


def worst_stress(module: nn.Module, atoms: Atoms, step: float = 1e-4) -> float:
    """Largest deviation (eV/Å^3) of a stretch and a shear from finite strains."""
    worst = 0.0
    for direction in (np.diag([1.0, 0.0, 0.0]), np.array([[0, 0, 0], [0, 0, 0.5], [0, 0.5, 0]])):
        (below, _), (_, slope), (above, _) = (strained(module, atoms, direction, n * step) for n in (-1, 0, 1))
        worst = max(worst, abs((above - below) / (2 * step) - slope) / atoms.get_volume())
    return worst


@pytest.mark.parametrize(
    ("kind", "name"),
    [*[("formaldehyde", name) for name in TERMS], ("diamond", "d3"), ("diamond", "d4 two-body")],
)
def test_stress_of_the_correction_is_its_derivative(kind: str, name: str) -> None:
    """Steps of 1e-4: truncation of 4e-10 eV/Å^3 at most, measured; sharp cutoffs are off by 3e-7 to 1e-5."""
    atoms = triclinic()[kind]
    module = TERMS[name](elements_of(atoms))
    assert worst_stress(module, atoms) < 1e-8
    assert worst_stress(TERMS[name](elements_of(atoms), SHARP[name]), atoms) > 1e-7


@pytest.mark.parametrize(
    ("kind", "name"),
    [*[("acetamide", name) for name in TERMS], ("diamond", "d3"), ("diamond", "d4 two-body")],
)
def test_stress_of_a_calculator_is_its_derivative(kind: str, name: str, tmp_path: Path) -> None:
    """The bar of this package for a whole potential; with sharp cutoffs these are off by 1.5e-6 to 1e-5 eV/Å^3."""
    atoms = triclinic()[kind]
    atoms.calc = AIMNet2MultCalculator(compiled(tmp_path, atoms, name), device="cpu", dtype="float64")
    stress = atoms.get_stress()
    assert np.abs(stress).max() > 1e-4
    np.testing.assert_allclose(stress, calculate_numerical_stress(atoms, eps=1e-4), rtol=0, atol=1e-6)


def compiled(folder: Path, atoms: Atoms, name: str) -> Path:
    """A network without long-range Coulomb, and the correction."""
    network = suites.network(num_fidelities=2, outputs={"lrcoulomb": None})
    path = write_fidelity(network, FIDELITIES[0], folder / "short")
    terms = [Springs(), TERMS[name](elements_of(atoms))]
    sae = SelfAtomicEnergy({z: SAE[z] for z in FIDELITIES[0].elements})
    potential = Potential(network.at_fidelity(0).float(), sae, terms)
    write_potential(path, script_potential(potential), read_metadata(path))
    return path


@pytest.mark.parametrize(
    ("kind", "name"),
    [("diamond", "d3"), ("diamond", "d4 two-body"), ("formaldehyde", "d3 three-body"), ("formaldehyde", "d4")],
)
def test_the_energy_of_a_crystal_changes_smoothly(kind: str, name: str) -> None:
    """Points every 2e-4 up to a strain of 0.4 %: each step of the energy is that of the trapezium rule.

    The rule is off by step^3 / 12 times the third derivative, here 1.5e-12 eV at most; sharp cutoffs step by 1e-7 eV.
    """
    atoms = triclinic()[kind]
    step = 2e-4
    errors = []
    for cutoffs in ([], [SHARP[name]]):
        module = TERMS[name](elements_of(atoms), *cutoffs)
        points = [strained(module, atoms, np.diag([1.0, -0.5, 0.3]), n * step) for n in range(21)]
        energy, slope = np.array(points).T
        errors.append(np.abs(np.diff(energy) - 0.5 * step * (slope[1:] + slope[:-1])).max())
    assert errors[0] < 5e-12
    assert errors[1] > 1e4 * errors[0]


def chains() -> list[Atoms]:
    """Two atoms, and three of which one is pulled away: a side of the triangle passes the cutoffs, another does not."""
    pairs = [Atoms(pair, [(0, 0, 0), (1, 0, 0)]) for pair in ("CO", "I2", "CsAr")]
    return [*pairs, Atoms("Cs3", [(0, 0, 0), (1, 0, 0), (-7, 0.5, 0)])]


@d3_cases.PATHS
@NAMES
def test_forces_are_derivatives_through_every_cutoff(name: str, max_plain: int) -> None:
    """In steps of 0.02 Å around the cutoffs at 21 and 32 Å.

    Differences are off by step^2 / 6 times the third derivative, 1e-7 eV/Å at most for three Cs atoms; where a sharp
    cutoff is passed they show the step of the energy.
    """
    distances = np.concatenate([np.arange(20.0, 22.5, 0.02), np.arange(29.5, 32.5, 0.02)])
    inside = np.ptp(np.stack([distances[:-2], distances[2:]]), axis=0) < 0.05  # of one of the two ranges
    for atoms in chains():
        coord = torch.from_numpy(atoms.positions).repeat(len(distances), 1, 1)
        coord[:, 1, 0] = torch.from_numpy(distances)
        numbers = torch.from_numpy(atoms.numbers).expand(len(distances), -1)
        errors = []
        for cutoffs in ([], [SHARP[name]]):
            module = with_path(TERMS[name](elements_of(atoms), *cutoffs), max_plain)
            points = coord.clone().requires_grad_()
            energy = d3_cases.evaluate(module, points, numbers)
            (gradient,) = torch.autograd.grad(energy.sum(), points)
            found, slope = energy.detach().numpy(), gradient[:, 1, 0].numpy()
            errors.append(np.abs((found[2:] - found[:-2]) / 0.04 - slope[1:-1])[inside].max())
        assert errors[0] < 2e-7
        assert errors[1] > 1000 * errors[0]


def with_path(module: nn.Module, max_plain: int) -> nn.Module:
    """Everything left to automatic differentiation, or nothing."""
    module.max_plain = max_plain
    if isinstance(module, D4):
        module.max_matrix = max_plain
    return module


def in_zones(name: str, atoms: Atoms, max_plain: int) -> nn.Module:
    """The correction with short cutoffs and long ends, in which most pairs of a small cluster stand."""
    module = TERMS[name](elements_of(atoms), d3_cases.ZONES if "d3" in name else D4_ZONES)
    if isinstance(module, D3BJ):
        module.block = 200
    return with_path(module, max_plain)


@d3_cases.PATHS
@NAMES
def test_gradients_where_pairs_end(name: str, max_plain: int) -> None:
    """With and without lists, automatic and by hand: all the derivative of the energy."""
    atoms = d4_cases.cluster("H C N O S", 40, 2.8, 5)
    module = in_zones(name, atoms, max_plain)
    coord, numbers = d3_cases.padded([atoms])
    r = np.linalg.norm(atoms.positions[:, None] - atoms.positions, axis=2) / ANGSTROM_PER_BOHR
    assert ((r > 11.0) & (r < 20.0)).sum() > 0.3 * r.size
    assert (r > 20.0).any()
    direction = torch.from_numpy(np.random.default_rng(6).normal(size=coord.shape))
    step = 1e-4
    with torch.no_grad():
        ends = [d3_cases.evaluate(module, coord + side * step * direction, numbers).item() for side in (1, -1)]
    expected = (ends[0] - ends[1]) / (2 * step)
    free = d3_cases.results(module, coord, numbers)
    slope = np.sum(free.gradient * direction.numpy()) * EV_PER_HARTREE / ANGSTROM_PER_BOHR
    assert slope == pytest.approx(expected, rel=1e-5)  # step^2 / 6 times the third derivative: 2e-6 of it here
    listed = d3_cases.results(module, coord, numbers, d3_cases.pair_lists([atoms], module.pair_cutoff + 1.0, shuffle=1))
    plain = d3_cases.results(in_zones(name, atoms, 10**9), coord, numbers)
    for other in (listed, plain):
        for a, b in zip(free, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)  # 1e3 pairs of size 1e-4 in another order


@pytest.mark.parametrize("name", ["d3", "d3 three-body"])
def test_smooth_ends_of_coordination_numbers_change_crystals_little(name: str) -> None:
    """The dftd3 package ends them sharply, in the middle of the range over which they end here."""
    for atoms in triclinic().values():
        parameters = TERMS[name](elements_of(atoms)).damping
        module = TERMS[name](elements_of(atoms))
        lists = d3_cases.pair_lists([atoms], module.pair_cutoff)
        found = d3_cases.results(module, *d3_cases.padded([atoms]), lists)
        right = d3_cases.reference(atoms, parameters)
        differences = [np.abs(a - b).max() / len(atoms) for a, b in zip(found, right, strict=True)]
        # Hartree, Hartree/Bohr; the virial of a sharp end lacks what atoms do that pass it
        assert np.less(differences, (1e-10, 1e-9, 1e-7)).all()
        assert differences[0] > 0.0


@d3_cases.PATHS
@NAMES
def test_a_broken_structure_leaves_others_of_the_batch_alone(name: str, max_plain: int) -> None:
    broken, whole = (d4_cases.cluster("H C N O S", 30, 2.8, seed) for seed in (7, 8))
    broken.numbers[: len(whole)] = whole.numbers
    module = in_zones(name, whole, max_plain)
    expected = d3_cases.results(module, *d3_cases.padded([broken, whole]))
    broken.positions[4, 1] = np.nan
    found = d3_cases.results(module, *d3_cases.padded([broken, whole]))
    assert np.isnan(found.energy).tolist() == [True, False]
    assert abs(found.energy[1] - expected.energy[1]) < 1e-15
    np.testing.assert_allclose(found.gradient[1], expected.gradient[1], rtol=0, atol=1e-15)


def test_the_switch() -> None:
    """1 before, 0 beyond, half way in the middle; twice differentiable, with the slope worked out by hand."""
    r = torch.tensor([1.0, 7.0, 7.5, 8.5, 9.9, 10.0, 12.0], dtype=torch.float64)
    r2 = r.square().requires_grad_()
    value = smooth_cutoff(r2, 10.0, 3.0)
    assert value[:2].tolist() == [1.0, 1.0]
    assert value[5:].tolist() == [0.0, 0.0]
    assert value[3].item() == pytest.approx(0.5, abs=1e-15)
    (slope,) = torch.autograd.grad(value.sum(), r2)
    switch, by_hand = switch_and_slope(r2.detach(), 10.0, 3.0)
    torch.testing.assert_close(switch, value.detach(), rtol=0, atol=1e-15)
    torch.testing.assert_close(by_hand, slope, rtol=0, atol=1e-16)
    assert torch.autograd.gradgradcheck(lambda x: smooth_cutoff(x, 10.0, 3.0), r2[[0, 2, 3, 4, 6]])
