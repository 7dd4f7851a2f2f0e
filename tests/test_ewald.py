"""Ewald sums against published lattice constants, plain lattice sums, other splittings and finite differences."""

from __future__ import annotations

import itertools
import math

import coulomb_cases as cases
import numpy as np
import pytest
import torch
from coulomb_cases import KE, NOWHERE, Charges
from torch import Tensor

from aimnet2mult.physics import coulomb, ewald

CORNERS = np.array(list(itertools.product((0.0, 0.5), repeat=3)))  # of a conventional cell, half the lattice constant
FCC = np.array([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
CUBE = 2.837297479480620  # energy of a charge in a neutralised cube, times -2 L; Hub et al. 2014 (see ewald.py)
BCC = np.array([[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]])


def energy(system: Charges, accuracy: float = ewald.ACCURACY) -> float:
    """Coulomb energy of a cell with the splitting of the package, eV."""
    cutoff = ewald.ewald_cutoff(len(system.charges), abs(float(np.linalg.det(system.cell))), accuracy)
    batch = cases.batch_of([system], [cutoff])
    numbers = batch.molecules.numbers
    found = coulomb.exact_coulomb_list(batch.charges, batch.molecules.coord, numbers, batch.lists, NOWHERE, accuracy)
    return float(found[0])


def assert_energy(system: Charges, expected: float) -> None:
    """Within 1e-9 by default, where terms below 1e-10 of the largest are left out, and to rounding where none are."""
    assert energy(system) == pytest.approx(expected, rel=1e-9)
    assert energy(system, accuracy=1e-16) == pytest.approx(expected, rel=2e-12)


def energy_with(system: Charges, cutoff: float, alpha: float, k_max: float) -> tuple[Tensor, list[Tensor]]:
    """The same with a splitting of one's own, with gradients in charges, positions and cell."""
    batch = cases.batch_of([system], [cutoff])
    leaves = [batch.charges[0], batch.molecules.coord[0], batch.lists.cell[0]]
    q, x, c = [leaf.clone().requires_grad_() for leaf in leaves]
    fields = torch.tensor([[alpha], [cutoff], [0.0]], dtype=torch.float64)
    screening = coulomb.Screening(fields[0], fields[1], fields[2], fields[2])
    lists = batch.lists._replace(cell=c.unsqueeze(0))
    real = coulomb.list_energy(q.unsqueeze(0), x.unsqueeze(0), lists, screening, NOWHERE)[0]
    total = KE * (real + ewald.reciprocal_energy(q, x, c, alpha, k_max) + ewald.self_energy(q, c, alpha))
    return total.detach(), list(torch.autograd.grad(total, [q, x, c]))


# Madelung constants per formula unit and nearest distance, OEIS A085469, A181152, A182566 (with the sign turned);
# the names of the primitive cells are those of the ions in fractional coordinates of the conventional cell
CRYSTALS = {
    "rock salt": (FCC, [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]], 0.5, 1.747564594633182190636),
    "caesium chloride": (np.eye(3), [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]], math.sqrt(0.75), 1.762674773070988397898),
    "zincblende": (FCC, [[0.0, 0.0, 0.0], [0.25, 0.25, 0.25]], math.sqrt(3.0) / 4.0, 1.638055053388789423750),
}


@pytest.mark.parametrize("name", CRYSTALS)
@pytest.mark.parametrize("constant", [1.7, 5.64])
def test_madelung_constants(name: str, constant: float) -> None:
    lattice, ions, nearest, madelung = CRYSTALS[name]
    crystal = Charges(np.array([1.0, -1.0]), constant * np.array(ions), constant * lattice)
    expected = -madelung * KE / (nearest * constant)
    assert_energy(crystal, expected)


def test_conventional_cell_of_rock_salt() -> None:
    signs = np.array([1.0 if round(2.0 * corner.sum()) % 2 == 0 else -1.0 for corner in CORNERS])
    crystal = Charges(signs, 5.64 * CORNERS, 5.64 * np.eye(3))
    assert_energy(crystal, -4.0 * CRYSTALS["rock salt"][3] * KE / 2.82)


@pytest.mark.parametrize(
    ("lattice", "per_wigner_seitz_radius"),
    # Fuchs, Proc. R. Soc. A 151, 585 (1935); all digits in Baldereschi et al., Solid State Commun. 81, 21 (1992)
    [(BCC, 0.895929255682), (FCC, 0.895873615195)],
    ids=["bcc", "fcc"],
)
def test_wigner_crystals(lattice: np.ndarray, per_wigner_seitz_radius: float) -> None:
    for length in (2.0, 11.0):
        crystal = Charges(np.array([-1.0]), np.array([[0.3, 7.1, -2.0]]), length * lattice)
        radius = (3.0 * abs(np.linalg.det(crystal.cell)) / (4.0 * math.pi)) ** (1.0 / 3.0)
        assert_energy(crystal, -per_wigner_seitz_radius * KE / radius)


def test_one_charge_in_a_cube() -> None:
    cube = Charges(np.array([1.0]), np.zeros((1, 3)), 7.0 * np.eye(3))
    assert_energy(cube, -CUBE / 2.0 * KE / 7.0)


def lattice_sum(system: Charges) -> float:
    """Plain sum over whole cells without dipole, in growing parallelepipeds, extrapolated to infinity: eV.

    Cells without charge and dipole interact like quadrupoles, R^-5: what lies outside of |n| <= M + 1/2 falls off in
    even powers of 1 / (M + 1/2), beginning with the second, and is removed by a fit.
    """
    q, x = system.charges, system.positions
    within: list[float] = []
    sizes = range(4, 17)
    pairs = np.outer(q, q)
    difference = x[None] - x[:, None]
    own = np.linalg.norm(difference, axis=2) + np.eye(len(q))
    total = 0.5 * float((pairs / own)[~np.eye(len(q), dtype=bool)].sum())
    for m in range(1, sizes.stop):
        shell = np.array([s for s in itertools.product(range(-m, m + 1), repeat=3) if max(map(abs, s)) == m])
        for block in np.array_split(shell @ system.cell, 1 + len(shell) // 2000):
            total += 0.5 * float((pairs / np.linalg.norm(difference + block[:, None, None], axis=3)).sum())
        if m in sizes:
            within.append(total)
    inverse = 1.0 / (np.array(sizes) + 0.5)
    powers = np.stack([np.ones_like(inverse), *(inverse**k for k in (2, 4, 6, 8, 10))], axis=1)
    return KE * float(np.linalg.lstsq(powers, np.array(within), rcond=None)[0][0])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_plain_lattice_sum(seed: int) -> None:
    half = cases.random_cell(seed, 4, 60.0, skew=0.3)
    # every charge stands at x and at -x: no dipole, and none of the surface terms that come with it
    system = Charges(np.tile(half.charges, 2), np.concatenate([half.positions, -half.positions]), half.cell)
    # what the fit leaves; each power less multiplies it by ten or more
    assert energy(system) == pytest.approx(lattice_sum(system), abs=5e-8)


SYSTEMS = {
    "neutral": cases.random_cell(10, 8, 300.0),
    "left-handed": cases.random_cell(11, 8, 300.0),
    "charged": cases.random_cell(12, 6, 250.0, charge=2.0),
    "charged and left-handed": cases.random_cell(13, 7, 250.0, charge=-1.0),
    "one atom": cases.random_cell(14, 1, 30.0, charge=1.0),
    "small": cases.random_cell(15, 2, 12.0),
    "thin": Charges(
        np.array([0.7, -0.9, 0.4]),
        np.array([[0.1, 0.2, 0.3], [1.0, 5.0, 2.0], [0.5, 9.0, 20.0]]),
        np.array([[2.2, 0.0, 0.0], [1.5, 12.0, 0.0], [-4.0, 3.0, 25.0]]),
    ),
    "very skew": Charges(
        np.array([1.0, -0.6, -0.4]),
        np.array([[0.0, 0.0, 0.0], [1.6, 0.3, 0.2], [0.2, 1.5, 2.0]]),
        np.array([[4.0, 0.0, 0.0], [3.8, 2.0, 0.0], [3.6, 1.8, 3.0]]),
    ),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_splitting_means_nothing(name: str) -> None:
    system = SYSTEMS[name]
    found = []
    for cutoff in (6.0, 8.5, 12.0):
        alpha = ewald.ewald_alpha(cutoff)
        found.append(energy_with(system, cutoff, alpha, 2.0 * alpha * ewald.splitting_exponent()))
    size = KE * float(np.square(system.charges).sum())
    for total, gradients in found[1:]:
        # ten times the accuracy of 1e-10
        assert abs(float(total - found[0][0])) < 1e-9 * size
        for one, other in zip(gradients, found[0][1], strict=True):
            assert float((one - other).abs().max()) < 1e-8 * size
    # the splitting of the package is one of them
    assert energy(system) == pytest.approx(float(found[0][0]), abs=1e-9 * size)


@pytest.mark.parametrize("name", SYSTEMS)
def test_supercell(name: str) -> None:
    system = SYSTEMS[name]
    size = KE * float(np.square(system.charges).sum())
    for counts in ((2, 1, 1), (1, 2, 2)):
        n = math.prod(counts)
        assert energy(system.repeated(counts)) == pytest.approx(n * energy(system), abs=1e-9 * n * size)


def test_same_lattice_in_other_vectors() -> None:
    system = SYSTEMS["charged"]
    other = np.array([[1, 0, 0], [2, -1, 0], [-1, 3, 1]])
    same = system._replace(cell=other @ system.cell)
    assert energy(same) == pytest.approx(energy(system), abs=1e-8)


def test_atoms_that_wandered_away() -> None:
    system = SYSTEMS["neutral"]
    cells = np.random.default_rng(3).integers(-1000, 1000, system.positions.shape)
    alpha, k_max = 0.5, 5.0
    tensors = [torch.from_numpy(array) for array in (system.charges, system.positions, system.cell)]
    away = torch.from_numpy(system.positions + cells @ system.cell)
    here = ewald.reciprocal_energy(tensors[0], tensors[1], tensors[2], alpha, k_max)
    there = ewald.reciprocal_energy(tensors[0], away, tensors[2], alpha, k_max)
    # coordinates of 1e4 Å carry 1e-12 Å
    assert float(there) == pytest.approx(float(here), abs=1e-10)


@pytest.mark.parametrize("charge", [0.0, 1.0])
def test_large_box(charge: float) -> None:
    """A molecule in a cube of side L: E(L) = E + k_e [-2.837 Q^2 / 2L + 2 pi / 3L^3 (Q sum q r^2 - p^2)] + O(L^-5).

    Makov, Payne, Phys. Rev. B 51, 4014 (1995), for point charges and conducting surroundings.
    """
    molecule = cases.random_cell(20, 5, 25.0, charge=charge)
    q, x = molecule.charges, molecule.positions
    dipole, spread = q @ x, float(q @ np.square(x).sum(1))
    assert np.linalg.norm(dipole) > 1.0
    left = []
    for side in (20.0, 40.0, 80.0):
        box = molecule._replace(cell=side * np.eye(3))
        cubic = 2.0 * math.pi / (3.0 * side**3) * (charge * spread - float(dipole @ dipole))
        left.append(energy(box) - cases.direct_sum(molecule) - KE * (cubic - CUBE * charge**2 / (2.0 * side)))
        assert abs(left[-1]) < 0.1 * abs(KE * cubic)
    # what is left falls off with the fifth power, and is the next term alone when the box is large
    assert left[0] / left[1] == pytest.approx(32.0, rel=0.2)
    assert left[1] / left[2] == pytest.approx(32.0, rel=0.1)


def reciprocal(system: Charges, max_phases: int = ewald.MAX_PHASES) -> tuple[float, list[Tensor]]:
    """Reciprocal-space sum and its gradients in charges, positions, cell."""
    leaves = [torch.from_numpy(array).requires_grad_() for array in (system.charges, system.positions, system.cell)]
    total = ewald.reciprocal_energy(leaves[0], leaves[1], leaves[2], 0.6, 6.0, max_phases)
    return float(total.detach()), list(torch.autograd.grad(total, leaves))


@pytest.mark.parametrize("name", SYSTEMS)
def test_wave_vectors_one_by_one(name: str) -> None:
    """Structure factors by a loop over all integers in a box that is far too large."""
    system, alpha, k_max = SYSTEMS[name], 0.6, 6.0
    dual = 2.0 * math.pi * np.linalg.inv(system.cell).T
    reach = [range(-n, n + 1) for n in np.ceil(k_max * np.linalg.norm(system.cell, axis=1) / 6.0).astype(int) + 1]
    integers = np.array([n for n in itertools.product(*reach) if any(n)])
    k = integers @ dual
    k2 = np.square(k).sum(1)
    factor = np.exp(1j * (system.positions @ k.T)).T @ system.charges
    terms = np.exp(-k2 / (4.0 * alpha**2)) / k2 * np.abs(factor) ** 2
    expected = 2.0 * math.pi / abs(np.linalg.det(system.cell)) * float(terms.sum())
    # all k up to k_max are there, and exp(-6^2 / 4 0.6^2) = 1e-11
    assert reciprocal(system)[0] == pytest.approx(expected, abs=1e-9)
    # the rows hold them all, and with their opposites none twice
    grid = ewald.wave_rows(torch.from_numpy(system.cell), k_max)
    listed = ewald.row_integers(grid).to(torch.int64).flatten(0, 1)[:, grid.order.argsort()].tolist()
    half = {tuple(n) for n in listed if any(n)}
    both = half | {(-a, -b, -c) for a, b, c in half}
    line = {n for n in half if (-n[0], -n[1], -n[2]) in half}
    assert {tuple(n) for n in integers[k2 <= k_max**2].tolist()} <= both
    assert len(both) == 2 * len(half) - len(line)
    assert len(line) == 2 * grid.last


@pytest.mark.parametrize("name", ["charged and left-handed", "thin"])
def test_chunks_of_wave_vectors(name: str) -> None:
    whole, gradients = reciprocal(SYSTEMS[name])
    pieces, found = reciprocal(SYSTEMS[name], max_phases=40)
    assert pieces == pytest.approx(whole, abs=1e-12)
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        tensors = [torch.from_numpy(array) for array in SYSTEMS[name]]
        assert float(ewald.reciprocal_energy(tensors[0], tensors[1], tensors[2], 0.6, 6.0, 40)) == pieces


def test_chunks_never_pass_off_zeros_as_second_derivatives() -> None:
    tensors = [torch.from_numpy(array).requires_grad_() for array in SYSTEMS["neutral"]]
    total = ewald.reciprocal_energy(tensors[0], tensors[1], tensors[2], 0.6, 6.0, 40)
    (gradient,) = torch.autograd.grad(total, tensors[1], create_graph=True)
    (second,) = torch.autograd.grad(gradient[0, 0], tensors[1])
    assert not second.isfinite().all()


def test_second_derivatives() -> None:
    tensors = [torch.from_numpy(array).requires_grad_() for array in SYSTEMS["charged and left-handed"]]

    def function(q: Tensor, x: Tensor, c: Tensor) -> Tensor:
        return ewald.reciprocal_energy(q, x, c, 0.6, 4.0) + ewald.self_energy(q, c, 0.6)

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_cutoff() -> None:
    assert ewald.ewald_cutoff(1, 10.0) == ewald.SHORTEST_CUTOFF
    assert ewald.ewald_cutoff(10_000_000, 1e8) == ewald.LONGEST_CUTOFF
    # at one density it grows like n^(1/6), in steps, so that the cost grows like n^1.5
    small, large = (ewald.ewald_cutoff(n, 10.0 * n, step=1e-9) for n in (500, 32_000))
    assert large / small == pytest.approx(2.0)
    assert ewald.ewald_cutoff(500, 5000.0) == ewald.ewald_cutoff(500, 5010.0)
    assert abs(ewald.ewald_cutoff(500, 5000.0) - small) <= 0.25
    for cutoff in (6.0, 20.0):
        assert math.exp(-((ewald.ewald_alpha(cutoff, 1e-8) * cutoff) ** 2)) == pytest.approx(1e-8)
