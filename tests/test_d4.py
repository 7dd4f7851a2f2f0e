"""D4 against the dftd4 package, and the guarantees that the package cannot give."""

from __future__ import annotations

import math
from pathlib import Path

import d4_cases
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from d4_cases import (
    CUTOFFS,
    DEFAULT_CUTOFFS,
    PATHS,
    PBE0,
    SHARP,
    SHORT,
    batch,
    d4,
    pair_lists,
    reference,
    reloaded,
    results,
)
from d4_checks import ALL_PARAMETERS, EMPTY_SLOT, ENERGY_LIMIT, ROUNDING, check_equal, check_molecules
from dftd4.interface import DampingParam

from aimnet2mult.errors import ConfigError
from aimnet2mult.models.dispersion_d4 import D4, load_d4_data
from aimnet2mult.models.fixed_point import from_fixed_point, to_fixed_point
from aimnet2mult.physics import functionals_d4
from aimnet2mult.physics.d4 import D4Cutoffs, neutral_scaling
from aimnet2mult.physics.functionals_d4 import resolve_d4
from aimnet2mult.units import BOHR_PER_ANGSTROM, EV_PER_HARTREE


@pytest.mark.parametrize("name", ALL_PARAMETERS)
def test_molecules_agree_with_the_dftd4_package(name: str) -> None:
    systems = [*d4_cases.g2_molecules(), *d4_cases.ions(), *d4_cases.dimers()]
    assert len(systems) >= 200
    assert len({z for atoms in systems for z in atoms.numbers}) >= 20
    check_molecules(systems, ALL_PARAMETERS[name])


@PATHS
def test_clusters_and_heavy_elements_agree_with_the_dftd4_package(plain: bool) -> None:
    systems = [
        d4_cases.cluster("H C N O F", 45, 1.5, 1),
        d4_cases.cluster("C O S Cl Br I", 40, 2.2, 2, 1.0),
        d4_cases.cluster("Pb Th I Br Au Cs La Lr", 40, 3.0, 3, -1.0),
        d4_cases.cluster("Ni Pa No Fr H", 40, 1.4, 4, 2.0),  # coordination far beyond every reference system
        d4_cases.cluster("P Si B", 60, 2.0, 5, -2.0),
    ]
    check_molecules(systems, plain=plain)


def test_a_molecule_of_300_atoms_agrees_with_the_dftd4_package() -> None:
    check_molecules([d4_cases.cluster("H C N O", 300, 1.6, 6)])


@pytest.mark.parametrize("charge", [-1.0, 0.0, 1.0])
def test_every_element_agrees_with_the_dftd4_package(charge: float) -> None:
    elements = [z for z in range(1, 104) if z not in EMPTY_SLOT]
    systems = [Atoms([z]) for z in elements]
    systems += [Atoms([z, p], [(0, 0, 0), (0, 0, d)]) for z in elements for p in (1, 8, 53) for d in (2.4, 6.0)]
    for atoms in systems:
        atoms.info["charge"] = charge
    check_molecules(systems)


@pytest.mark.parametrize("number", EMPTY_SLOT)
def test_three_actinides_differ_because_the_package_counts_an_empty_reference(number: int) -> None:
    """Empty, at CN 0: it takes half the weight of the free atom, and makes the number of Gaussians there 6, not 3."""
    (package,) = d4_cases.package_model(Atoms([number])).get_properties()["c6 coefficients"].flatten()
    data, _ = load_d4_data([number])
    gaussians = torch.exp(-6.0 * data.gaussian_factor * data.gaussian_cn.square())
    sums = torch.zeros_like(data.reference_charge).index_add(0, data.gaussian_reference, gaussians)
    assert sums[0] == 3.0
    ours = sums / sums.sum() * neutral_scaling(data)
    sums[0] = 6.0
    theirs = sums / (sums.sum() + 6.0) * neutral_scaling(data)
    assert abs(float(theirs @ data.reference_c6 @ theirs) / package - 1.0) < 1e-12
    assert float(ours @ data.reference_c6 @ ours) > 3.9 * package


@CUTOFFS
@pytest.mark.parametrize("name", ["pbe0", "two-body"])
def test_the_cutoffs_are_those_of_the_dftd4_package(name: str, cutoffs: D4Cutoffs) -> None:
    """Fragments on both sides of 40 Bohr (21.2 Å) and 60 Bohr (31.8 Å)."""
    systems = []
    for distance in (20.5, 21.5, 30.5, 31.0, 32.5, 45.0):
        near, far, third = molecule("C6H6"), molecule("CH3Cl"), molecule("H2O")
        far.translate((distance, 0.0, 0.0))
        third.translate((0.5 * distance, 3.0, 0.0))
        systems.append(near + far + third)
    check_molecules(systems, ALL_PARAMETERS[name], cutoffs)


@PATHS
@pytest.mark.parametrize("cutoffs", [D4Cutoffs(18.0, 12.0, 6.0, 5.0), D4Cutoffs(14.0, 9.0, 14.0, 0.0), SHORT])
def test_other_cutoffs_and_smooth_ones_agree_with_the_dftd4_package(cutoffs: D4Cutoffs, plain: bool) -> None:
    atoms = d4_cases.cluster("H C N O", 40, 1.9, 7)
    right, _ = reference(atoms, cutoffs=cutoffs)
    check_equal(results(d4([atoms], cutoffs=cutoffs, plain=plain), [atoms]), right, ENERGY_LIMIT)


@pytest.mark.parametrize("charges", ["eeq", "network"])
def test_chunks_saved_scripts_and_batches_give_the_same_numbers(charges: str) -> None:
    """Molecules and crystals in one batch: by plain differentiation, in chunks, saved and loaded, one by one."""
    cells = d4_cases.crystals()
    ethanol = molecule("CH3CH2OH")
    ethanol.info["charge"] = 1
    systems = [cells["NaCl"], cells["CO2"], ethanol, cells["box"], molecule("H2O")]
    generator = torch.Generator().manual_seed(0)
    network = 0.3 * torch.randn(batch(systems).numbers.shape, dtype=torch.float64, generator=generator)
    plain = d4(systems, charges=charges, plain=True)
    chunked = d4(systems, charges=charges, plain=False)
    lists = pair_lists(systems, plain.pair_cutoff, shuffle=4)
    expected = results(plain, systems, lists, network)
    for module in (chunked, reloaded(plain), reloaded(chunked)):
        for _ in range(3):  # TorchScript optimises on the second call
            check_equal(results(module, systems, lists, network), expected)
    for row, atoms in enumerate(systems):
        alone = results(plain, [atoms], pair_lists([atoms], plain.pair_cutoff), network[row : row + 1, : len(atoms)])
        assert abs(alone.energy[0] - expected.energy[row]) < ROUNDING
        np.testing.assert_allclose(alone.virial[0], expected.virial[row], rtol=0, atol=ROUNDING)


@PATHS
def test_derivatives_by_network_charges(plain: bool) -> None:
    atoms = d4_cases.cluster("H C N O", 14, 1.6, 9)
    module = d4([atoms], charges="network", plain=plain)
    charges = (
        0.2 * torch.randn(1, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ).requires_grad_()
    (gradient,) = torch.autograd.grad(module(batch([atoms]), None, charges).sum(), charges)
    step = 1e-4
    shifts = step * torch.eye(14, dtype=torch.float64).unsqueeze(1)
    with torch.no_grad():
        differences = [
            module(batch([atoms]), None, charges + s) - module(batch([atoms]), None, charges - s) for s in shifts
        ]
    expected = torch.cat(differences) / (2 * step)
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(gradient[0], expected, rtol=0, atol=1e-8)  # truncation step^2 E'''/6


def test_energies_without_gradients_are_the_same() -> None:
    systems = [*d4_cases.ions()[:4], d4_cases.cluster("H C O", 30, 1.6, 10)]
    expected = results(d4(systems, plain=True), systems).energy
    for plain in (True, False):
        module = d4(systems, plain=plain)
        molecules = batch(systems)
        charges = torch.zeros(molecules.numbers.shape, dtype=torch.float64)
        with torch.no_grad():
            silent = module(molecules._replace(coord=molecules.coord.clone().requires_grad_()), None, charges)
        for energy in (silent, module(molecules, None, charges)):
            np.testing.assert_allclose(energy.numpy() / EV_PER_HARTREE, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("scripted", [False, True])
def test_second_derivatives_are_right(scripted: bool) -> None:
    systems = [d4_cases.rattled(molecule("CH3CH2OH"), 11), d4_cases.ions()[3]]
    module = d4(systems, plain=True)
    program = reloaded(module) if scripted else module
    molecules = batch(systems)
    charges = torch.zeros(molecules.numbers.shape, dtype=torch.float64)
    coord = molecules.coord.clone().requires_grad_()
    for _ in range(2):
        energy = program(molecules._replace(coord=coord), None, charges)
        (gradient,) = torch.autograd.grad(energy.sum(), coord, create_graph=True)
        rows = [torch.autograd.grad(g, coord, retain_graph=True)[0] for g in gradient[:, :4].flatten()]
    hessian = torch.stack(rows)
    step = 1e-4
    expected = []
    for direction in torch.eye(coord.numel(), dtype=torch.float64).view(-1, *coord.shape):
        ends = []
        for sign in (1, -1):
            moved = (molecules.coord + sign * step * direction).requires_grad_()
            energy = module(molecules._replace(coord=moved), None, charges)
            ends.append(torch.autograd.grad(energy.sum(), moved)[0][:, :4].flatten())
        expected.append((ends[0] - ends[1]) / (2 * step))
    expected_hessian = torch.stack(expected, 1).view(hessian.shape)
    assert expected_hessian.abs().max() > 1e-2
    # truncation step^2 E''''/6
    torch.testing.assert_close(hessian, expected_hessian, rtol=0, atol=1e-6)


def test_second_derivatives_of_chunks_are_not_finite_rather_than_wrong() -> None:
    atoms = molecule("CH3OH")
    coord = batch([atoms]).coord.clone().requires_grad_()
    energy = d4([atoms], plain=False)(
        batch([atoms])._replace(coord=coord), None, torch.zeros(1, 6, dtype=torch.float64)
    )
    (gradient,) = torch.autograd.grad(energy.sum(), coord, create_graph=True)
    assert gradient.isfinite().all()
    (second,) = torch.autograd.grad(gradient[0, 0, 0], coord)
    assert not second.isfinite().any()


@pytest.mark.parametrize("cast", ["float", "half", "double"])
def test_casts_do_not_spoil_the_numbers(cast: str) -> None:
    systems = d4_cases.ions()
    module = d4(systems)
    expected = results(module, systems)
    check_equal(results(getattr(reloaded(module), cast)(), systems), expected, 0.0)
    check_equal(results(getattr(module, cast)(), systems), expected, 0.0)


def test_fixed_point_numbers_come_back_and_refuse_what_does_not_fit() -> None:
    values = torch.tensor([0.0, -1.5, 1 / 3, 11006.040311746883, -1.7e-4], dtype=torch.float64)
    torch.testing.assert_close(from_fixed_point(to_fixed_point(values)), values, rtol=0, atol=2.0**-48)
    for bad in (2.0**14, math.nan, math.inf):
        with pytest.raises(ConfigError, match="finite and below 16384"):
            to_fixed_point(torch.tensor([1.0, bad]))


def test_padding_is_never_seen() -> None:
    systems = [molecule("H2O"), molecule("CH3CH2OH"), Atoms("He")]
    module = d4(systems)
    clean, dirty = batch(systems), batch(systems, junk=math.nan)
    outcomes = []
    for molecules in (clean, dirty):
        coord = molecules.coord.clone().requires_grad_()
        energy = module(molecules._replace(coord=coord), None, torch.zeros(3, 9, dtype=torch.float64))
        (gradient,) = torch.autograd.grad(energy.sum(), coord)
        outcomes.append((energy.detach(), gradient))
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=0, atol=0)
    assert outcomes[0][0][2] == 0.0  # a single atom


def test_a_position_that_is_not_a_number_shows_in_the_energy() -> None:
    atoms = molecule("CH3CH2OH")
    atoms.positions[3, 1] = math.nan
    assert results(d4([atoms]), [atoms, molecule("H2O")]).energy[0] != results(d4([atoms]), [atoms]).energy[0]
    assert np.isnan(results(d4([atoms]), [atoms, molecule("H2O")]).energy).tolist() == [True, False]


@pytest.mark.parametrize(("cutoffs", "jump"), [(SHARP, 4e-8), (DEFAULT_CUTOFFS, 1e-10)])
def test_dimer_scans_are_smooth(cutoffs: D4Cutoffs, jump: float) -> None:
    """From 0.3 to 40 Å, past all cutoffs: sharp ones make steps of at most 1e-6 eV, smooth ones none."""
    distances = np.arange(0.3, 40.0, 0.01)
    systems = [Atoms("ArCO", [(0, 0, 0), (0, 0, d), (0, 0, d + 1.13)]) for d in distances]
    found = results(d4(systems, cutoffs=cutoffs), systems)
    assert np.isfinite(found.gradient).all()
    second = np.abs(np.diff(found.energy, 2))
    assert second[distances[1:-1] > 2.0].max() < 1e-6  # the curvature of the energy itself, times 0.01^2
    assert second[distances[1:-1] > 12.0].max() < jump


def test_coincident_atoms_do_not_break_the_others() -> None:
    atoms = Atoms("ArArCO", [(0, 0, 0), (0, 0, 0), (0, 0, 4), (0, 0, 5.13)])
    assert np.isfinite(results(d4([atoms]), [atoms]).gradient).all()


def test_inactive_and_unknown() -> None:
    systems = [molecule("H2O"), molecule("CH3OH")]
    module = d4(systems)
    charges = torch.zeros(2, 6)
    for program in (module, reloaded(module)):
        program.active = False
        assert program(batch(systems), None, charges).tolist() == [0.0, 0.0]
        program.active = True
    with pytest.raises(ValueError, match="element with Z = 14 is not among those of this potential"):
        module(batch([molecule("SiH4")]), None, torch.zeros(1, 5))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="no data for Rf, Z=119, only for H to Lr"):
        D4([1, 104, 119], PBE0)
    with pytest.raises(ConfigError, match="a model without elements"):
        D4([], PBE0)
    with pytest.raises(ConfigError, match="one of eeq, network, not 'hirshfeld'"):
        D4([1], PBE0, charges="hirshfeld")
    for cutoffs in (D4Cutoffs(0.0, 40.0, 0.0, 0.0), D4Cutoffs(60.0, 40.0, 61.0, 0.0), D4Cutoffs(60.0, 40.0, 0.0, -1.0)):
        with pytest.raises(ConfigError, match="must be positive and width"):
            D4([1], PBE0, cutoffs=cutoffs)


def test_small_molecules_get_what_the_package_gives_by_default() -> None:
    """Its cutoffs are 60 and 40 Bohr, and sharp."""
    assert tuple(SHARP) == (60.0, 40.0, 0.0, 0.0)
    atoms = molecule("C6H6")
    found = results(d4([atoms], resolve_d4("pbe").parameters), [atoms]).energy[0]
    package = d4_cases.DispersionModel(atoms.numbers, atoms.positions * BOHR_PER_ANGSTROM)
    assert abs(found - package.get_dispersion(DampingParam(method="pbe"), grad=False)["energy"]) < ENERGY_LIMIT


def test_data_name_their_source() -> None:
    with np.load(Path(functionals_d4.__file__).parent / "data" / "d4.npz", allow_pickle=False) as tables:
        text = " ".join(tables["source"])
    for part in ("tad_dftd4-0.8.0", "tad_multicharge-0.7.0", "tad_mctc-0.11.3", "Apache-2.0"):
        assert part in text
