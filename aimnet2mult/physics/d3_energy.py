"""The D3(BJ) dispersion energy of molecules and crystals, put together from its parts.

Up to `max_plain` pairs everything is left to automatic differentiation, so that derivatives of any order exist. Beyond,
sums are walked in blocks with gradients by hand, which is many times quicker and takes little memory: first
derivatives are exact, second ones come out as inf or NaN (`aimnet2mult.physics.pair_sums.linear_surrogate`).
B: molecules, N: slots of the largest, n = B * N, P: pairs.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from aimnet2mult.physics.d3 import (
    D3Cutoffs,
    D3Data,
    coordination_numbers,
    find_pairs,
    listed_pairs,
    pair_c6,
    pair_energy,
    reference_weights,
    species_of,
)
from aimnet2mult.physics.d3_blocks import atom_tables, molecule_sums
from aimnet2mult.physics.d3_lists import list_sums
from aimnet2mult.physics.d3_triples import plain_triples
from aimnet2mult.physics.damping import DampingParameters
from aimnet2mult.physics.pair_sums import linear_surrogate, needs_gradient
from aimnet2mult.types import NeighborLists
from aimnet2mult.units import BOHR_PER_ANGSTROM, EV_PER_HARTREE


class D3Settings(NamedTuple):
    """What does not change from call to call."""

    parameters: DampingParameters
    cutoffs: D3Cutoffs
    max_plain: int  # pairs, of one molecule or of a whole list, that are left to plain automatic differentiation
    block: int  # pairs that are worked out at a time beyond that


def longest_cutoff(parameters: DampingParameters, cutoffs: D3Cutoffs) -> float:
    """How far (Bohr) a pair list has to reach."""
    longest = max(cutoffs.disp2, cutoffs.cn)
    return longest if parameters.s9 == 0.0 else max(longest, cutoffs.disp3)


def d3_energy(
    coord: Tensor,
    numbers: Tensor,
    lists: NeighborLists | None,
    data: D3Data,
    settings: D3Settings,
    bohr_per_angstrom: float = BOHR_PER_ANGSTROM,
    ev_per_hartree: float = EV_PER_HARTREE,
) -> Tensor:
    """D3(BJ) dispersion energy of every molecule or cell of a padded batch: two-body and, when s9 is not 0, three-body.

    Parameters
    ----------
    coord
        (B, N, 3) float64 Å.
    numbers
        (B, N) int64 atomic numbers, 0 = padding. Every element must be in `data`.
    lists
        Cells, and pairs that reach at least as far as the cutoffs; None: all pairs of molecules.
    data
        Element data, on the device of `coord`.

    Returns
    -------
    Tensor
        (B,) float64 eV.
    """
    real = numbers > 0
    coord = torch.where(real.unsqueeze(-1), coord, torch.zeros_like(coord)) * bohr_per_angstrom
    if lists is None:
        cell = torch.zeros_like(coord[:, :1]).detach().expand(-1, 3, -1)
        n_pairs = coord.shape[1] * (coord.shape[1] - 1) // 2
    else:
        cell = lists.cell.to(coord.dtype) * bohr_per_angstrom
        n_pairs = lists.pair_first.shape[0]
    if n_pairs <= settings.max_plain:
        energy = plain_energy(coord, cell, numbers, lists, data, settings)
    else:
        energy = block_energy(coord, cell, numbers, lists, data, settings)
    return energy * ev_per_hartree


def plain_energy(
    coord: Tensor, cell: Tensor, numbers: Tensor, lists: NeighborLists | None, data: D3Data, settings: D3Settings
) -> Tensor:
    """Energy (B,) in Hartree of coordinates and cells in Bohr, for automatic differentiation."""
    parameters, cutoffs = settings.parameters, settings.cutoffs
    shape = numbers.shape
    species = species_of(numbers, data).flatten()
    reach = longest_cutoff(parameters, cutoffs)
    pairs = find_pairs(coord, numbers > 0, reach) if lists is None else listed_pairs(coord, cell, lists, reach)
    cn = coordination_numbers(pairs, species, data.covalent_radius, cutoffs.cn, cutoffs.width_cn)
    weights = reference_weights(cn, species, data)
    c6 = pair_c6(weights.view(shape[0], shape[1], -1), pairs, data)
    per_atom = pair_energy(pairs, c6, species, data.r4r2, parameters, cutoffs)
    if parameters.s9 != 0.0:
        per_atom = per_atom + plain_triples(pairs, weights, species, data, parameters.s9, cutoffs)
    return per_atom.view(shape[0], shape[1]).sum(1)


def block_energy(
    coord: Tensor, cell: Tensor, numbers: Tensor, lists: NeighborLists | None, data: D3Data, settings: D3Settings
) -> Tensor:
    """Energy (B,) in Hartree of coordinates and cells in Bohr, with first derivatives only."""
    wanted = needs_gradient(coord, cell)
    species = species_of(numbers, data)
    with torch.no_grad():
        if lists is None:
            energy, by_coord = molecules_energy(coord.detach(), numbers, species, data, settings, wanted)
            by_cell = torch.zeros_like(cell)
        else:
            tables = atom_tables(species.flatten(), data)
            energy, by_coord, by_cell = list_sums(
                coord.detach(),
                cell.detach(),
                lists,
                tables,
                settings.parameters,
                settings.cutoffs,
                settings.block,
                wanted,
            )
    if not wanted:
        return energy
    return linear_surrogate(linear_surrogate(energy, coord, by_coord), cell, by_cell)


def molecules_energy(
    coord: Tensor, numbers: Tensor, species: Tensor, data: D3Data, settings: D3Settings, gradient: bool
) -> tuple[Tensor, Tensor]:
    """Energies (B,) in Hartree and gradients (B, N, 3) of molecules, one after the other, from all their pairs."""
    energy = torch.zeros_like(coord[:, 0, 0])
    by_coord = torch.zeros_like(coord)
    for molecule in range(coord.shape[0]):
        atoms = (numbers[molecule] > 0).nonzero().squeeze(-1)
        if atoms.shape[0] < 2:
            continue
        energy[molecule], by_coord[molecule, atoms] = molecule_sums(
            coord[molecule].index_select(0, atoms),
            atom_tables(species[molecule].index_select(0, atoms), data),
            settings.parameters,
            settings.cutoffs,
            settings.block,
            gradient,
        )
    return energy, by_coord
