"""EEQ charges of systems whose interaction matrix is too large for automatic differentiation.

The charges are solved for as constants. What depends on them hands in its derivatives g by the charges; a second
solution with the same factors, A l = g with sum l = 0, gives the derivatives by everything else:
dE = l . dx - l . dA q. The second term is summed up in chunks. Memory: the matrix and its factors.
Formulas and units: `aimnet2mult.physics.eeq`. N: atoms of one system, P: pairs, K: reciprocal vectors.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor

from aimnet2mult.physics.d4_pairs import HalfList, between, chain_to_atoms, pair_vectors, select
from aimnet2mult.physics.eeq import (
    EEQData,
    EwaldSplit,
    gaussian_interaction,
    pair_gamma,
    periodic_directions,
    reciprocal_numbers,
    reciprocal_vectors,
    reciprocal_weights,
    self_correction,
    self_interaction,
    short_range,
    split_ewald,
)

CHUNK_PAIRS: Final = 500_000
CHUNK_ENTRIES: Final = 2_000_000


class LargeSystem(NamedTuple):
    """One system of a batch without padding, all of it constants."""

    atoms: Tensor  # (N,) their slots in the system
    coord: Tensor  # (N, 3) Bohr
    cell: Tensor  # (3, 3) Bohr, zeros for a molecule
    species: Tensor  # (N,)
    pairs: HalfList  # by numbers of atoms of this system, up to the real-space cutoff; only looked at in a crystal
    list_cutoff: float  # Bohr, of the pair list of the batch


class Factors(NamedTuple):
    """Factors of the matrix with its border, for further solutions."""

    lu: Tensor  # (N + 1, N + 1)
    pivots: Tensor  # (N + 1,)


def large_systems(
    coord: Tensor, cell: Tensor, real: Tensor, species: Tensor, pairs: HalfList, list_cutoff: float
) -> list[LargeSystem]:
    """Take a batch apart: (B, N, 3), (B, 3, 3), (B, N), (B, N), pairs up to the real-space cutoff, Bohr."""
    systems: list[LargeSystem] = []
    n_slots = real.shape[1]
    owner = torch.div(pairs.first, n_slots, rounding_mode="floor")
    for number in range(real.shape[0]):
        atoms = real[number].nonzero().squeeze(1)
        place = real[number].to(torch.int64).cumsum(0) - 1
        own = select(pairs, (owner == number).nonzero().squeeze(1))
        first, second = place[own.first - number * n_slots], place[own.second - number * n_slots]
        own = HalfList(first, second, own.image, own.translations)
        systems.append(
            LargeSystem(
                atoms,
                coord[number, atoms].detach(),
                cell[number].detach(),
                species[number, atoms],
                own,
                list_cutoff,
            )
        )
    return systems


def solve_batch(
    systems: list[LargeSystem], charge: Tensor, force: Tensor, data: EEQData
) -> tuple[Tensor, list[Factors]]:
    """EEQ charges (B, N) from total charges (B,) and driving forces (B, N), all constants."""
    charges = torch.zeros_like(force).detach()
    factors: list[Factors] = []
    for number in range(len(systems)):
        system = systems[number]
        factors.append(factorise(system, data))
        right = force[number, system.atoms].detach()
        charges[number].index_copy_(0, system.atoms, solve(factors[number], right, charge[number].detach()))
    return charges, factors


def batch_gradient(
    systems: list[LargeSystem], factors: list[Factors], charges: Tensor, by_charges: Tensor, data: EEQData
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives by coordinates (B, N, 3), cells (B, 3, 3) and driving forces (B, N), from those by charges (B, N)."""
    by_force = torch.zeros_like(charges)
    by_coord = charges.new_zeros([charges.shape[0], charges.shape[1], 3])
    by_cell = charges.new_zeros([charges.shape[0], 3, 3])
    for number in range(len(systems)):
        system = systems[number]
        left = solve(factors[number], by_charges[number, system.atoms], charges.new_zeros([]))
        coord, cell = bilinear_gradient(system, left, charges[number, system.atoms], data)
        by_coord[number].index_copy_(0, system.atoms, -coord)
        by_cell[number].copy_(-cell)
        by_force[number].index_copy_(0, system.atoms, left)
    return by_coord, by_cell, by_force


def factorise(system: LargeSystem, data: EEQData) -> Factors:
    """Factors of the matrix of one system."""
    n_atoms = system.species.shape[0]
    bordered = torch.zeros((n_atoms + 1, n_atoms + 1), dtype=system.coord.dtype, device=system.coord.device)
    bordered[n_atoms, :n_atoms] = 1.0
    bordered[:n_atoms, n_atoms] = 1.0
    if n_atoms == 0:
        bordered[0, 0] = 1.0
    elif periodic_directions(system.cell) == 0:
        _fill_open(bordered[:n_atoms, :n_atoms], system, data)
    else:
        _fill_crystal(bordered, system, data)
    lu, pivots = torch.linalg.lu_factor(bordered)
    return Factors(lu, pivots)


def solve(factors: Factors, right: Tensor, total: Tensor) -> Tensor:
    """Solve A x + mu = right (N,) with the given sum of x ()."""
    bordered = torch.cat([right, total.view(1)]).unsqueeze(1)
    return torch.linalg.lu_solve(factors.lu, factors.pivots, bordered)[:-1, 0]


def bilinear_gradient(system: LargeSystem, left: Tensor, charges: Tensor, data: EEQData) -> tuple[Tensor, Tensor]:
    """Derivatives of l . A q by the coordinates (N, 3) and the cell (3, 3); l and q (N,) are constants."""
    if periodic_directions(system.cell) == 0:
        return _open_gradient(system, left, charges, data), torch.zeros_like(system.cell)
    split = split_ewald(system.cell, system.list_cutoff, data.radius)
    near_coord, near_cell = _near_gradient(system, left, charges, data, split)
    far_coord, far_cell = _far_gradient(system, left, charges, split)
    return near_coord + far_coord, near_cell + far_cell


def _row_chunk(n_atoms: int, entries: int = CHUNK_ENTRIES) -> int:
    return max(1, entries // max(1, n_atoms))


def _open_rows(coord: Tensor, radius: Tensor, begin: int, end: int) -> Tensor:
    """Rows `begin` to `end` - 1 of the matrix of a molecule, without hardness."""
    difference = coord[begin:end].unsqueeze(1) - coord.unsqueeze(0)
    gamma = pair_gamma(radius[begin:end].unsqueeze(1), radius.unsqueeze(0))
    return gaussian_interaction(difference.square().sum(2), gamma)


def _fill_open(matrix: Tensor, system: LargeSystem, data: EEQData) -> None:
    n_atoms = matrix.shape[0]
    radius = data.radius[system.species]
    step = _row_chunk(n_atoms)
    for begin in range(0, n_atoms, step):
        end = min(begin + step, n_atoms)
        matrix[begin:end] = _open_rows(system.coord, radius, begin, end)
    matrix.diagonal().add_(data.eta[system.species])


def _open_gradient(system: LargeSystem, left: Tensor, charges: Tensor, data: EEQData) -> Tensor:
    radius = data.radius[system.species]
    total = torch.zeros_like(system.coord)
    n_atoms = total.shape[0]
    step = _row_chunk(n_atoms)
    for begin in range(0, n_atoms, step):
        end = min(begin + step, n_atoms)
        leaf = system.coord.detach().requires_grad_()
        value = torch.dot(left[begin:end], _open_rows(leaf, radius, begin, end) @ charges)
        gradient = torch.autograd.grad([value], [leaf])[0]
        assert gradient is not None
        total.add_(gradient)
    return total


def _fill_crystal(bordered: Tensor, system: LargeSystem, data: EEQData) -> None:
    size = bordered.shape[0]
    matrix = bordered[: size - 1, : size - 1]
    split = split_ewald(system.cell, system.list_cutoff, data.radius)
    radius = data.radius[system.species]
    flat = bordered.view(-1)
    n_pairs = system.pairs.first.shape[0]
    step = _pair_chunk()
    for begin in range(0, n_pairs, step):
        part = between(system.pairs, begin, min(begin + step, n_pairs))
        r2, gamma = _near_geometry(system, part, radius)[:2]
        value = short_range(r2, gamma, split.alpha)
        flat.index_add_(0, part.first * size + part.second, value)
        flat.index_add_(0, part.second * size + part.first, value)
    numbers = reciprocal_numbers(system.cell, split.reciprocal_cutoff)
    step = _row_chunk(size)
    for begin in range(0, numbers.shape[0], step):
        vectors = reciprocal_vectors(numbers[begin : begin + step], system.cell)
        phase = system.coord @ vectors.t()
        weight = reciprocal_weights(vectors, system.cell, split.alpha)
        for wave in (phase.cos(), phase.sin()):
            matrix.addmm_(wave * weight, wave.t())
    matrix.diagonal().add_(self_interaction(system.species, data) + self_correction(split.alpha))


def _pair_chunk(chunk: int = CHUNK_PAIRS) -> int:
    return chunk


def _near_geometry(
    system: LargeSystem, part: HalfList, radius: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Squared distances, exponents of the error function and vectors of a chunk of pairs."""
    x, y, z = pair_vectors(system.coord.unsqueeze(0), system.cell.unsqueeze(0), part)
    return x * x + y * y + z * z, pair_gamma(radius[part.first], radius[part.second]), (x, y, z)


def _near_gradient(
    system: LargeSystem, left: Tensor, charges: Tensor, data: EEQData, split: EwaldSplit
) -> tuple[Tensor, Tensor]:
    radius = data.radius[system.species]
    total_coord, total_cell = torch.zeros_like(system.coord), torch.zeros_like(system.cell)
    n_atoms, n_pairs = radius.shape[0], system.pairs.first.shape[0]
    step = _pair_chunk()
    for begin in range(0, n_pairs, step):
        part = between(system.pairs, begin, min(begin + step, n_pairs))
        r2, gamma, (x, y, z) = _near_geometry(system, part, radius)
        leaf = r2.detach().requires_grad_()
        slope = torch.autograd.grad([short_range(leaf, gamma, split.alpha).sum()], [leaf])[0]
        assert slope is not None
        product = left[part.first] * charges[part.second] + left[part.second] * charges[part.first]
        force = 2.0 * product * slope
        by_coord, by_cell = chain_to_atoms((force * x, force * y, force * z), part, 1, n_atoms)
        total_coord.add_(by_coord[0])
        total_cell.add_(by_cell[0])
    return total_coord, total_cell


def _far_gradient(system: LargeSystem, left: Tensor, charges: Tensor, split: EwaldSplit) -> tuple[Tensor, Tensor]:
    total_coord, total_cell = torch.zeros_like(system.coord), torch.zeros_like(system.cell)
    numbers = reciprocal_numbers(system.cell, split.reciprocal_cutoff)
    step = _row_chunk(charges.shape[0])
    for begin in range(0, numbers.shape[0], step):
        coord = system.coord.detach().requires_grad_()
        cell = system.cell.detach().requires_grad_()
        vectors = reciprocal_vectors(numbers[begin : begin + step], cell)
        phase = coord @ vectors.t()
        cosine, sine = phase.cos(), phase.sin()
        products = (left @ cosine) * (charges @ cosine) + (left @ sine) * (charges @ sine)
        value = torch.dot(reciprocal_weights(vectors, cell, split.alpha), products)
        derivatives = torch.autograd.grad([value], [coord, cell])
        by_coord, by_cell = derivatives[0], derivatives[1]
        assert by_coord is not None
        assert by_cell is not None
        total_coord.add_(by_coord)
        total_cell.add_(by_cell)
    return total_coord, total_cell
