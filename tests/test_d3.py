"""D3(BJ) against the dftd3 package, and the guarantees that the package cannot give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.collections import g2
from d3_cases import CUTOFFS, PATHS, SHARP, ZONES, evaluate, module_for, padded, reference, results

from aimnet2mult.errors import ConfigError
from aimnet2mult.models.dispersion import BLOCK, D3BJ, DEFAULT_CUTOFFS, load_d3_data
from aimnet2mult.models.fixed_point import from_fixed_point
from aimnet2mult.physics.d3 import D3Cutoffs
from aimnet2mult.physics.d3_energy import D3Settings, d3_energy
from aimnet2mult.physics.damping import DampingParameters
from aimnet2mult.physics.functionals import BUILTIN_D3, resolve_d3
from aimnet2mult.units import ANGSTROM_PER_BOHR, BOHR_PER_ANGSTROM, EV_PER_HARTREE

# Both sides work in float64 with the same formulas; the worst deviation seen is 6e-15. These are the promised limits.
ENERGY_LIMIT = 1e-9  # Hartree
GRADIENT_LIMIT = 1e-8  # Hartree/Bohr

TWO_BODY = {name: resolve_d3(name).parameters for name in BUILTIN_D3}
THREE_BODY = resolve_d3("pbe0", s9=1.0).parameters
ALL_PARAMETERS = {**TWO_BODY, "pbe0 with s9": THREE_BODY, "b3lyp with s9 0.5": resolve_d3("b3lyp", s9=0.5).parameters}


def energy_and_gradient(module: torch.nn.Module, coord: torch.Tensor, numbers: torch.Tensor) -> tuple:
    """Energies (B,) in Hartree and gradients (B, N, 3) in Hartree/Bohr by automatic differentiation."""
    coord = coord.clone().requires_grad_()
    energy = evaluate(module, coord, numbers)
    (gradient,) = torch.autograd.grad(energy.sum(), coord)
    return energy.detach().numpy() / EV_PER_HARTREE, gradient.numpy() / EV_PER_HARTREE * ANGSTROM_PER_BOHR


def check_against_package(
    molecules: list[Atoms], parameters: DampingParameters, max_plain: int, cutoffs: D3Cutoffs = DEFAULT_CUTOFFS
) -> None:
    """Evaluate all molecules as one padded batch and compare each with the dftd3 package."""
    module = module_for(molecules, parameters, max_plain, cutoffs)
    energies, gradients = energy_and_gradient(module, *padded(molecules))
    for atoms, energy, gradient in zip(molecules, energies, gradients, strict=True):
        right = reference(atoms, parameters, cutoffs)
        formula = atoms.get_chemical_formula()
        assert abs(energy - right.energy[0]) < ENERGY_LIMIT, formula
        assert np.abs(gradient[: len(atoms)] - right.gradient[0]).max() < GRADIENT_LIMIT, formula
        assert (gradient[len(atoms) :] == 0.0).all(), formula


def packed_cluster(symbols: str, size: int, spacing: float, seed: int) -> Atoms:
    """Rattled piece of a cubic lattice with elements drawn from `symbols`."""
    rng = np.random.default_rng(seed)
    side = math.ceil(size ** (1 / 3))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3), -1).reshape(-1, 3)[:size] * spacing
    elements = rng.choice(symbols.split(), size)
    return Atoms(elements, positions=grid + rng.normal(scale=0.1 * spacing, size=grid.shape))


def g2_molecules() -> list[Atoms]:
    return [g2[name] for name in g2.names if len(g2[name]) > 1]


def ions() -> list[Atoms]:
    """Geometries of ions; D3 depends on the composition and geometry alone."""
    ammonium, borohydride = molecule("CH4"), molecule("CH4")
    ammonium.numbers[0], borohydride.numbers[0] = 7, 5
    hydronium = molecule("NH3")
    hydronium.numbers[0] = 8
    return [
        ammonium,
        borohydride,
        hydronium,
        Atoms("NO3", [(0, 0, 0), (1.24, 0, 0), (-0.62, 1.07, 0), (-0.62, -1.07, 0)]),
        Atoms("I3", [(0, 0, 0), (2.92, 0, 0), (-2.92, 0, 0)]),
        Atoms("OUO", [(0, 0, 1.76), (0, 0, 0), (0, 0, -1.76)]),
    ]


def rare_gas_dimers() -> list[Atoms]:
    return [
        Atoms(pair, [(0, 0, 0), (0, 0, distance)])
        for pair in ("He2", "Ne2", "Ar2", "Kr2", "Xe2", "Rn2", "HeXe", "ArKr")
        for distance in (2.5, 3.8, 6.0, 12.0)
    ]


def large_systems() -> list[Atoms]:
    return [
        packed_cluster("H C N O F", 45, 1.5, 1),
        packed_cluster("C O S Cl Br I", 40, 2.2, 2),
        packed_cluster("Pb U I Br Au Cs La Lr", 40, 3.0, 3),
        packed_cluster("Ni Pa No Fr H", 40, 1.4, 4),  # coordination far beyond every reference system
    ]


def far_fragments() -> list[Atoms]:
    """Fragments on both sides of the 40 Bohr (21.2 Å) and 60 Bohr (31.8 Å) cutoffs."""
    systems = []
    for distance in (20.5, 21.5, 31.0, 32.5, 35.0, 45.0):
        near, far = molecule("C6H6"), molecule("CH3Cl")
        far.translate((distance, 0.0, 0.0))
        third = molecule("H2O")
        third.translate((0.5 * distance, 3.0, 0.0))
        systems.append(near + far + third)
    return systems


@PATHS
@pytest.mark.parametrize("name", ALL_PARAMETERS)
def test_small_molecules_agree_with_the_dftd3_package(name: str, max_plain: int) -> None:
    molecules = [*g2_molecules(), *ions(), *rare_gas_dimers()]
    assert len(molecules) >= 100
    check_against_package(molecules, ALL_PARAMETERS[name], max_plain)


@PATHS
@pytest.mark.parametrize("name", ["wb97x", "pbe", "pbe0 with s9"])
def test_clusters_and_heavy_elements_agree_with_the_dftd3_package(name: str, max_plain: int) -> None:
    check_against_package(large_systems(), ALL_PARAMETERS[name], max_plain)


@PATHS
@CUTOFFS
@pytest.mark.parametrize("name", ["wb97m", "pbe0 with s9"])
def test_the_cutoffs_are_those_of_the_dftd3_package(name: str, cutoffs: D3Cutoffs, max_plain: int) -> None:
    check_against_package(far_fragments(), ALL_PARAMETERS[name], max_plain, cutoffs)


@PATHS
@pytest.mark.parametrize("name", ["wb97m", "pbe0 with s9"])
def test_smooth_ends_are_those_of_the_dftd3_package(name: str, max_plain: int) -> None:
    clusters = [packed_cluster("H C N O F", 45, 2.5, 1), packed_cluster("C O S Cl Br I", 66, 3.0, 2)]
    cutoffs = ZONES._replace(width_cn=0.0)  # which the package does not know
    check_against_package(clusters, ALL_PARAMETERS[name], max_plain, cutoffs)


@PATHS
def test_every_element_agrees_with_the_dftd3_package(max_plain: int) -> None:
    elements = [z for z in range(1, 104) if z != 101]  # mendelevium: see the next test
    dimers = [
        Atoms([z, partner], [(0, 0, 0), (0, 0, distance)])
        for z in elements
        for partner in (1, 8, 53)
        for distance in (2.4, 6.0)
    ]
    check_against_package(dimers, TWO_BODY["b3lyp"], max_plain)


def test_mendelevium_differs_by_an_empty_reference_of_the_dftd3_package() -> None:
    """s-dftd3 1.7.0 counts six references of Md; the sixth is an empty slot (CN -1, C6 0) of its own table."""
    atoms = Atoms([101, 101, 1], [(0, 0, 0), (0, 0, 3.4), (0, 1.9, 0)])
    coord, numbers = padded([atoms])
    data = load_d3_data([1, 101])
    c6 = torch.zeros(len(data.reference_cn) + 1, len(data.reference_cn) + 1, dtype=torch.float64)
    c6[:-1, :-1] = data.reference_c6
    with_empty_slot = data._replace(
        reference_species=torch.cat([data.reference_species, data.species[101:102]]),
        reference_cn=torch.cat([data.reference_cn, torch.tensor([-1.0], dtype=torch.float64)]),
        reference_c6=c6,
    )
    settings = D3Settings(TWO_BODY["b3lyp"], DEFAULT_CUTOFFS, 100, BLOCK)
    energy = d3_energy(coord, numbers, None, with_empty_slot, settings).item() / EV_PER_HARTREE
    assert abs(energy - reference(atoms, TWO_BODY["b3lyp"]).energy[0]) < 1e-15


@PATHS
def test_padding_may_hold_anything(max_plain: int) -> None:
    molecules = [molecule("CH3CH2OH"), molecule("H2O")]
    module = module_for(molecules, THREE_BODY, max_plain)
    coord, numbers = padded(molecules)
    clean = energy_and_gradient(module, coord, numbers)
    coord[1, 3:] = math.nan
    assert all(np.array_equal(a, b) for a, b in zip(energy_and_gradient(module, coord, numbers), clean, strict=True))
    alone = energy_and_gradient(module, *padded(molecules[1:]))
    # summation order differs with the padding, hence not bit for bit
    assert abs(alone[0][0] - clean[0][1]) < 1e-16
    # an atom that is real shows a broken coordinate instead of vanishing from the sum
    coord[1, 0] = math.nan
    assert math.isnan(energy_and_gradient(module, coord, numbers)[0][1])


@PATHS
@pytest.mark.parametrize("parameters", [TWO_BODY["pbe0"], THREE_BODY], ids=["two-body", "three-body"])
def test_single_atoms_and_empty_rows_give_zero(parameters: DampingParameters, max_plain: int) -> None:
    numbers = torch.tensor([[8, 0], [6, 0], [0, 0]])
    module = D3BJ([6, 8], parameters)
    module.max_plain = max_plain
    energies, gradients = energy_and_gradient(module, torch.ones(3, 2, 3).double(), numbers)
    assert (energies == 0.0).all()
    assert (gradients == 0.0).all()
    # two atoms on one spot are no pair, in the dftd3 package's terms too
    energies, gradients = energy_and_gradient(module, torch.ones(1, 2, 3).double(), numbers[1:2] * 0 + 6)
    assert energies[0] == 0.0
    assert (gradients == 0.0).all()


@pytest.mark.parametrize("parameters", [TWO_BODY["pbe0"], THREE_BODY], ids=["two-body", "three-body"])
def test_saved_script_equals_eager_whatever_it_is_cast_to(parameters: DampingParameters, tmp_path) -> None:
    module = D3BJ([1, 6, 7, 8, 9], parameters)
    torch.jit.script(module).save(str(tmp_path / "d3.pt"))
    coord, numbers = padded([packed_cluster("H C N O F", 20, 1.5, 5), molecule("CH3CN")])
    eager = energy_and_gradient(module, coord, numbers)
    for cast in (None, torch.float64, torch.float32, torch.float16):
        loaded = torch.jit.load(str(tmp_path / "d3.pt"))
        loaded = loaded if cast is None else loaded.to(cast)
        for _ in range(3):  # the second call profiles, the third runs the optimised graph
            scripted = energy_and_gradient(loaded, coord, numbers)
        # same operations in the same order; a fused kernel may round differently once
        assert np.abs(scripted[0] - eager[0]).max() < 1e-14
        assert np.abs(scripted[1] - eager[1]).max() < 1e-14
    assert (tmp_path / "d3.pt").stat().st_size < 100_000


def test_low_precision_coordinates_are_taken_up_in_float64() -> None:
    module = D3BJ([1, 6, 8], TWO_BODY["pbe0"])
    coord, numbers = padded([molecule("CH3CH2OH")])
    single = coord.float().requires_grad_()
    energy = evaluate(module, single, numbers.to(torch.int32))
    assert energy.dtype == torch.float64
    assert torch.equal(energy, evaluate(module, single.detach().double(), numbers))
    (gradient,) = torch.autograd.grad(energy.sum(), single)
    assert gradient.dtype == torch.float32


@pytest.mark.parametrize("parameters", [TWO_BODY["wb97m"], THREE_BODY], ids=["two-body", "three-body"])
def test_gradient_and_hessian_are_derivatives_of_the_energy(parameters: DampingParameters) -> None:
    coord, numbers = padded([molecule("CH3OH"), molecule("H2O")])
    module = torch.jit.script(D3BJ([1, 6, 8], parameters))
    coord.requires_grad_()
    (gradient,) = torch.autograd.grad(evaluate(module, coord, numbers).sum(), coord, create_graph=True)
    direction = torch.nn.functional.normalize(
        torch.from_numpy(np.random.default_rng(6).normal(size=coord.shape)), dim=2
    )
    (product,) = torch.autograd.grad((gradient * direction).sum(), coord)

    step = 1e-4  # Å: the central difference is off by step^2 / 6 times the third derivative (eV/Å^3), about 1e-9
    above, below = coord.detach() + step * direction, coord.detach() - step * direction
    slope = (evaluate(module, above, numbers) - evaluate(module, below, numbers)) / (2 * step)
    torch.testing.assert_close(slope, (gradient * direction).sum((1, 2)).detach(), rtol=1e-6, atol=1e-8)
    difference = []
    for points in (above, below):
        points = points.requires_grad_()
        difference.append(torch.autograd.grad(evaluate(module, points, numbers).sum(), points)[0])
    torch.testing.assert_close((difference[0] - difference[1]) / (2 * step), product, rtol=1e-5, atol=1e-7)
    assert not product[1, 3:].any()


def test_energy_does_not_depend_on_order_place_or_orientation() -> None:
    atoms = packed_cluster("H C O S", 30, 1.8, 7)
    moved = atoms[np.random.default_rng(8).permutation(len(atoms))]
    moved.rotate(37.0, (1.0, 2.0, -1.0))
    moved.translate((100.0, -50.0, 3.0))
    module = D3BJ([1, 6, 8, 16], THREE_BODY)
    energies, _ = energy_and_gradient(module, *padded([atoms, moved]))
    # 100 Å of translation rounds the positions by 1e-14, times forces of 1e-3
    assert abs(energies[0] - energies[1]) < 1e-13


def test_the_energy_does_not_depend_on_which_other_elements_the_model_knows() -> None:
    coord, numbers = padded([molecule("CH3SH")])
    few = energy_and_gradient(D3BJ([16, 1, 6, 6], THREE_BODY), coord, numbers)
    many = energy_and_gradient(D3BJ(range(1, 104), THREE_BODY), coord, numbers)
    assert abs(few[0][0] - many[0][0]) < 1e-15
    assert np.abs(few[1] - many[1]).max() < 1e-15


def test_three_body_term_counts_each_triangle_once() -> None:
    """Equilateral argon triangle, far apart: E = C9 (1 + 3/8) / r^9 with C9 = C6^1.5 of free argon."""
    side = 15.0  # Å: undamped to 1e-6
    atoms = Atoms("Ar3", [(0, 0, 0), (side, 0, 0), (side / 2, side * math.sqrt(0.75), 0)])
    coord, numbers = padded([atoms])
    data = load_d3_data([18])
    only_triples = DampingParameters(s6=0.0, s8=0.0, a1=0.4, a2=4.0, s9=1.0)
    settings = D3Settings(only_triples, DEFAULT_CUTOFFS, 100, BLOCK)
    energy = d3_energy(coord, numbers, None, data, settings).item() / EV_PER_HARTREE
    expected = data.reference_c6[0, 0].item() ** 1.5 * (1 + 3 / 8) / (side * BOHR_PER_ANGSTROM) ** 9
    assert side * BOHR_PER_ANGSTROM < DEFAULT_CUTOFFS.disp3 - DEFAULT_CUTOFFS.width3
    assert energy == pytest.approx(expected, rel=1e-4)


def test_elements_without_data_are_refused() -> None:
    with pytest.raises(ConfigError, match="Fl"):
        D3BJ([1, 114], TWO_BODY["pbe"])
    with pytest.raises(ConfigError, match="Z=-3"):
        D3BJ([-3, 1], TWO_BODY["pbe"])
    with pytest.raises(ConfigError, match="without elements"):
        D3BJ([], TWO_BODY["pbe"])


@pytest.mark.parametrize("number", [7, 118, 200, -1])
def test_an_atom_of_another_element_is_refused(number: int) -> None:
    module = D3BJ([1, 6, 8], TWO_BODY["pbe"])
    numbers = torch.tensor([[1, number]])
    with pytest.raises(ValueError, match=f"Z = {number} "):
        evaluate(module, torch.rand(1, 2, 3), numbers)
    with pytest.raises(torch.jit.Error, match=f"Z = {number} "):
        evaluate(torch.jit.script(module), torch.rand(1, 2, 3), numbers)


def test_the_stored_data_are_exact() -> None:
    module = D3BJ(range(1, 104), TWO_BODY["pbe"]).half()
    for name, values in load_d3_data(range(1, 104))._asdict().items():
        if values.dtype == torch.float64:
            # 2^-49 absolute: the rounding of the fixed-point form
            torch.testing.assert_close(from_fixed_point(getattr(module, name)), values, rtol=0.0, atol=2.0**-49)


@pytest.mark.parametrize("parameters", [TWO_BODY["wb97m"], THREE_BODY], ids=["two-body", "three-body"])
def test_blocks_give_what_plain_differentiation_gives(parameters: DampingParameters, tmp_path) -> None:
    systems = [packed_cluster("H C N O S", 90, 1.9, 9), molecule("CH3OH"), packed_cluster("Pb I H", 70, 3.0, 10)]
    coord, numbers = padded(systems)
    plain = results(module_for(systems, parameters, 10**9), coord, numbers)
    torch.jit.script(module_for(systems, parameters)).save(str(tmp_path / "d3.pt"))
    loaded = torch.jit.load(str(tmp_path / "d3.pt"))
    assert loaded.max_plain < 70 * 69 // 2  # so large molecules go by blocks of themselves
    for block in (loaded.block, 500, 1):
        loaded.block = block
        for _ in range(3 if block == 500 else 1):  # the second call profiles, the third runs the optimised graph
            blocks = results(loaded, coord, numbers)
        for found, expected in zip(blocks, plain, strict=True):
            # sums of 1e4 pairs of size 1e-4 in another order
            assert np.abs(found - expected).max() < 1e-13
    with torch.no_grad():
        energy = evaluate(loaded, coord, numbers)
    assert np.abs(energy.numpy() / EV_PER_HARTREE - plain.energy).max() < 1e-13


def test_second_derivatives_are_exact_or_not_finite_but_never_missing() -> None:
    systems = [packed_cluster("H C O", 66, 1.9, 11)]
    coord, numbers = padded(systems)
    module = torch.jit.script(module_for(systems, TWO_BODY["pbe0"]))
    rows = []
    for max_plain in (module.max_plain, 10**9):
        module.max_plain = max_plain
        coord.requires_grad_()
        (gradient,) = torch.autograd.grad(evaluate(module, coord, numbers).sum(), coord, create_graph=True)
        rows.append(torch.autograd.grad(gradient[0, 5, 1], coord)[0][0])
    assert not rows[0].isfinite().all()
    step = 1e-3  # Å: off by step^2 / 6 times the fourth derivative, 1e-6 of the second
    moved = coord.detach().repeat(2, 1, 1)
    moved[:, 5, 1] += torch.tensor([step, -step])
    forces = energy_and_gradient(module, moved, numbers.repeat(2, 1))[1] * EV_PER_HARTREE / ANGSTROM_PER_BOHR
    expected = torch.from_numpy((forces[0] - forces[1]) / (2 * step))
    torch.testing.assert_close(rows[1], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_an_inactive_term_contributes_zeros() -> None:
    coord, numbers = padded([molecule("CH3OH"), molecule("H2O")])
    module = torch.jit.script(D3BJ([1, 6, 8], TWO_BODY["pbe0"]))
    module.active = False
    energy = evaluate(module, coord, numbers)
    assert energy.dtype == torch.float64
    assert torch.equal(energy, torch.zeros(2, dtype=torch.float64))


def test_cutoffs_can_be_chosen() -> None:
    pair = Atoms("Ar2", [(0, 0, 0), (5.0, 0, 0)])
    long, short = (
        evaluate(D3BJ([18], TWO_BODY["pbe0"], SHARP._replace(disp2=cutoff)), *padded([pair])).item()
        for cutoff in (5.0 * BOHR_PER_ANGSTROM + 0.01, 5.0 * BOHR_PER_ANGSTROM - 0.01)
    )
    assert long < 0.0
    assert short == 0.0
    assert D3BJ([18], TWO_BODY["pbe0"]).pair_cutoff == pytest.approx(60.0 * ANGSTROM_PER_BOHR, abs=1e-12)
    for changes, sentence in (
        ({"cn": 0.0}, "D3 cutoff cn=0 must be positive and width_cn=2 between 0 and it"),
        ({"disp2": math.nan}, "D3 cutoff disp2=nan must"),
        ({"width2": 61.0}, "width2=61 between"),
        ({"width3": -1.0}, "width3=-1 between"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            D3BJ([18], TWO_BODY["pbe0"], DEFAULT_CUTOFFS._replace(**changes))
