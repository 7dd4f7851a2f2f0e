"""Cutoffs, radial basis, pairs, charge equilibration and Coulomb against plain loops and known values."""

from __future__ import annotations

import math

import pytest
import suites
import torch

from aimnet2mult.physics.coulomb import simple_coulomb
from aimnet2mult.physics.equilibration import channel_totals, equilibrate, equilibrate_spin
from aimnet2mult.physics.geometry import all_pairs, atom_index, pack, sum_molecules, unpack
from aimnet2mult.physics.radial import (
    cosine_cutoff,
    exponential_cutoff,
    gaussian_centres,
    gaussian_exponent,
    radial_features,
)
from aimnet2mult.units import COULOMB_EV_ANGSTROM

# sums of a few dozen float64 numbers of size 1
EXACT = 1e-12


def derivatives(function: object, at: list[float], order: int) -> list[torch.Tensor]:
    x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    values = [function(x, 5.0)]  # type: ignore[operator]
    for _ in range(order):
        (slope,) = torch.autograd.grad(values[-1].sum(), x, create_graph=True)
        values.append(slope)
    return [value.detach() for value in values]


def test_cosine_cutoff() -> None:
    value, slope = derivatives(cosine_cutoff, [0.0, 1.25, 2.5, 5.0, 5.5, 40.0], 1)
    expected = [1.0, 0.5 + 0.25 * math.sqrt(2.0), 0.5, 0.0, 0.0, 0.0]
    steepest = -0.5 * math.pi / 5.0
    slopes = [0.0, steepest * math.sqrt(0.5), steepest, 0.0, 0.0, 0.0]
    suites.assert_close(value, torch.tensor(expected, dtype=torch.float64), EXACT)
    suites.assert_close(slope, torch.tensor(slopes, dtype=torch.float64), EXACT)


def test_exponential_cutoff() -> None:
    value, slope, bend = derivatives(exponential_cutoff, [0.0, 2.5, 4.9, 4.9999, 5.0, 5.1, 40.0], 2)
    assert value[0] == 1.0
    assert slope[0] == 0.0
    # at d/rc = 1/2: exp(1 - 4/3), slope -2 d / rc^2 / (1 - 1/4)^2 times that
    assert value[1].item() == pytest.approx(math.exp(-1.0 / 3.0), abs=EXACT)
    assert slope[1].item() == pytest.approx(-0.2 * 16.0 / 9.0 * math.exp(-1.0 / 3.0), abs=EXACT)
    assert 0.0 < value[2] < 1e-9
    for number in (value, slope, bend):
        assert number.isfinite().all()
        assert (number[3:] == 0.0).all()
    rising = exponential_cutoff(torch.linspace(0.0, 5.0, 2001, dtype=torch.float64), 5.0)
    assert (rising.diff() <= 0.0).all()


def test_gaussians() -> None:
    centres = gaussian_centres(0.8, 5.0, 16)
    expected = torch.tensor([0.8 + 4.2 / 16 * i for i in range(16)], dtype=torch.float64)
    suites.assert_close(centres, expected, EXACT)
    exponent = gaussian_exponent(0.8, 5.0, 16)
    half_way = 0.5 * float(centres[1] - centres[0])
    assert math.exp(-exponent * half_way**2) == pytest.approx(math.exp(-0.25), abs=EXACT)

    distance = torch.tensor([[[1.0, 2.0], [4.9, 6.0]]], dtype=torch.float64)
    mask = torch.tensor([[[False, True], [True, True]]])
    features = radial_features(distance, mask, centres, exponent, 5.0)
    assert features.shape == (1, 16, 2, 2)
    for g in range(16):
        for j, i in ((0, 1), (1, 0)):
            d = distance[0, j, i].item()
            by_hand = math.exp(-exponent * (d - centres[g].item()) ** 2) * 0.5 * (math.cos(math.pi * d / 5.0) + 1.0)
            assert features[0, g, j, i].item() == pytest.approx(by_hand, abs=EXACT)
    assert (features[0, :, 0, 0] == 0.0).all()  # masked
    assert (features[0, :, 1, 1] == 0.0).all()  # beyond the cutoff


def test_pairs() -> None:
    batch = suites.collate([suites.structure("H2O"), suites.structure("OH", -1, 1)], extra=1)
    pairs = all_pairs(batch.coord, batch.numbers)
    assert pairs.mask.sum().item() == 3 * 2 + 2 * 1
    for b in range(2):
        for j in range(4):
            for i in range(4):
                real = i != j and batch.numbers[b, i] > 0 and batch.numbers[b, j] > 0
                assert bool(pairs.mask[b, j, i]) == real
                to_neighbour = batch.coord[b, j] - batch.coord[b, i]
                d = to_neighbour.norm().item() if real else 1.0
                assert pairs.distance[b, j, i].item() == pytest.approx(d, abs=EXACT)
                unit = to_neighbour / d if real else torch.zeros(3, dtype=torch.float64)
                suites.assert_close(pairs.unit[b, j, i], unit, EXACT)


def test_pairs_of_coincident_padding_have_a_finite_gradient() -> None:
    batch = suites.collate([suites.structure("H2O")], extra=3)
    coord = batch.coord.requires_grad_()
    pairs = all_pairs(coord, batch.numbers)
    (pairs.distance.sum() + pairs.unit.sum()).backward()
    assert coord.grad is not None
    assert coord.grad.isfinite().all()
    assert (coord.grad[0, 3:] == 0.0).all()


def test_pack_and_unpack() -> None:
    numbers = torch.tensor([[8, 0, 1], [0, 0, 0], [1, 6, 7]])
    index = atom_index(numbers)
    assert index.molecule.tolist() == [0, 0, 2, 2, 2]
    padded = torch.arange(1.0, 10.0).view(3, 3, 1)
    packed = pack(padded, index)
    assert packed.squeeze(-1).tolist() == [1.0, 3.0, 7.0, 8.0, 9.0]
    assert torch.equal(unpack(packed, index), padded * (numbers > 0).unsqueeze(-1))
    assert sum_molecules(packed, index).squeeze(-1).tolist() == [4.0, 0.0, 24.0]


def test_channel_totals() -> None:
    charge, mult = torch.tensor([0.0, -1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])
    assert channel_totals(charge, mult, 1).tolist() == [[0.0], [-1.0], [2.0]]
    both = channel_totals(charge, mult, 2)
    assert both.tolist() == [[0.0, 0.0], [0.0, -1.0], [2.0, 0.0]]
    assert both.sum(-1).tolist() == charge.tolist()
    assert (both[:, 0] - both[:, 1]).tolist() == [0.0, 1.0, 2.0]


def test_equilibration_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    index = atom_index(torch.tensor([[1, 1, 0, 0], [8, 1, 1, 0], [6, 0, 0, 0], [6, 1, 1, 1]]))
    raw = torch.randn(10, 2, generator=generator, dtype=torch.float64)
    response = torch.randn(10, 2, generator=generator, dtype=torch.float64)
    total = torch.tensor([[0.0, 0.0], [0.5, -0.5], [-0.5, 0.5], [1.0, 1.0]], dtype=torch.float64)
    found = equilibrate(raw, response, total, index)
    for molecule in range(4):
        atoms = [i for i in range(10) if index.molecule[i] == molecule]
        for c in range(2):
            weight = {i: response[i, c].item() ** 2 + 1e-6 for i in atoms}
            missing = total[molecule, c].item() - sum(raw[i, c].item() for i in atoms)
            for i in atoms:
                expected = raw[i, c].item() + weight[i] / sum(weight.values()) * missing
                assert found[i, c].item() == pytest.approx(expected, abs=EXACT)
    suites.assert_close(sum_molecules(found, index), total, EXACT)


def test_equilibration_of_charge_and_spin_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(2)
    index = atom_index(torch.tensor([[1, 1, 0, 0], [8, 1, 1, 0], [6, 0, 0, 0], [6, 1, 1, 1]]))
    raw = torch.randn(10, 2, generator=generator, dtype=torch.float64)
    response = torch.randn(10, 2, generator=generator, dtype=torch.float64)
    charge, mult = [0.0, 1.0, -1.0, 0.0], [1.0, 2.0, 3.0, 1.0]
    total = channel_totals(torch.tensor(charge).double(), torch.tensor(mult).double(), 2)
    found = equilibrate_spin(raw, response, total, index)
    for molecule in range(4):
        atoms = [i for i in range(10) if index.molecule[i] == molecule]
        for sign, c, wanted in ((1.0, 0, charge[molecule]), (-1.0, 1, mult[molecule] - 1.0)):
            start = {i: raw[i, 0].item() + sign * raw[i, 1].item() for i in atoms}
            if c == 1 and mult[molecule] == 1.0:
                start = dict.fromkeys(atoms, 0.0)
            weight = {i: response[i, c].item() ** 2 + 1e-6 for i in atoms}
            missing = wanted - sum(start.values())
            for i in atoms:
                expected = start[i] + weight[i] / sum(weight.values()) * missing
                assert found[i, 0].item() + sign * found[i, 1].item() == pytest.approx(expected, abs=EXACT)
    suites.assert_close(sum_molecules(found, index), total, EXACT)


def test_equilibration_without_any_response_still_sums() -> None:
    index = atom_index(torch.tensor([[1, 1, 8]]))
    raw = torch.tensor([[0.3], [0.1], [0.2]], dtype=torch.float64)
    found = equilibrate(raw, torch.zeros_like(raw), torch.zeros(1, 1, dtype=torch.float64), index)
    suites.assert_close(found, torch.tensor([[0.1], [-0.1], [0.0]], dtype=torch.float64), EXACT)


def bump(distance: float, cutoff: float) -> float:
    return math.exp(1.0 - 1.0 / (1.0 - (distance / cutoff) ** 2)) if distance < cutoff else 0.0


def test_coulomb_against_a_double_loop() -> None:
    molecules = suites.structures()
    batch = suites.collate(molecules, extra=1)
    generator = torch.Generator().manual_seed(2)
    charges = torch.randn(batch.numbers.shape, generator=generator, dtype=torch.float64) * (batch.numbers > 0)
    energy = simple_coulomb(charges, all_pairs(batch.coord, batch.numbers), 4.6)
    assert energy.dtype == torch.float64
    for b, atoms in enumerate(molecules):
        distances = atoms.get_all_distances()
        expected = sum(
            COULOMB_EV_ANGSTROM
            * (1.0 - bump(distances[i, j], 4.6))
            * (charges[b, i] * charges[b, j]).item()
            / distances[i, j]
            for i in range(len(atoms))
            for j in range(i)
        )
        assert energy[b].item() == pytest.approx(expected, abs=1e-11)  # k_e is 14.4: a digit more than EXACT


@pytest.mark.parametrize("distance", [4.6, 7.0, 1000.0])
def test_coulomb_far_apart_is_that_of_point_charges(distance: float) -> None:
    coord = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, distance]]], dtype=torch.float64)
    pairs = all_pairs(coord, torch.tensor([[11, 17]]))
    energy = simple_coulomb(torch.tensor([[0.9, -0.7]], dtype=torch.float64), pairs, 4.6)
    # e^2 / (4 pi eps0) = 14.39964548 eV Å (CODATA 2018)
    assert energy.item() == pytest.approx(-14.39964548 * 0.63 / distance, rel=1e-9)


def test_coulomb_ignores_single_precision_of_the_charges() -> None:
    """The sum is formed in float64 whatever the dtype of the charges."""
    batch = suites.collate(suites.structures()[:3])
    charges = 0.1 * (batch.numbers > 0)
    pairs = all_pairs(batch.coord, batch.numbers)
    single = simple_coulomb(charges.float(), pairs, 4.6)
    suites.assert_close(single, simple_coulomb(charges.float().double(), pairs, 4.6), EXACT)
