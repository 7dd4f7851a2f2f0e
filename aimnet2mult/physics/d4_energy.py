"""The D4 dispersion energy of molecules and crystals, put together from its parts.

Small systems are left to plain automatic differentiation, so that derivatives of any order exist. Sums over more
than `max_plain` pairs or triangles are worked out in chunks, and so is what would need matrices of more than
`max_matrix` elements: first derivatives are exact, second ones come out as inf or NaN (`pair_sums.linear_surrogate`).
B: systems, N: slots of the largest, n = B * N, S: elements, R: reference systems, P: pairs.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor

from aimnet2mult.physics.d4 import (
    ATM_EXPONENT,
    CONTACT_REACH,
    D4Cutoffs,
    D4Data,
    charge_scaling,
    contact_distance,
    coordination_numbers,
    damped_powers,
    damping_radii,
    dense_c6,
    electronegativity_factor,
    gaussian_weights,
    neighbor_counts,
    neutral_scaling,
    restricted,
)
from aimnet2mult.physics.d4_chunked import two_body_sum
from aimnet2mult.physics.d4_pairs import (
    HalfList,
    all_pairs_list,
    chain_to_atoms,
    half_list,
    pair_kinds,
    pair_vectors,
    pairs_within,
    squared_distance,
)
from aimnet2mult.physics.damping import DampingParameters
from aimnet2mult.physics.eeq import (
    EEQData,
    PeriodicPairs,
    driving_force,
    equilibrated_charges,
    largest_real_cutoff,
    limited_cn,
)
from aimnet2mult.physics.eeq_chunked import batch_gradient, large_systems, solve_batch
from aimnet2mult.physics.pair_sums import linear_surrogate
from aimnet2mult.physics.three_body import (
    DirectedPairs,
    TripleTerm,
    count_triples,
    directed_pairs,
    triple_energy,
    triple_gradient,
)
from aimnet2mult.types import Molecules, NeighborLists
from aimnet2mult.units import BOHR_PER_ANGSTROM, EV_PER_HARTREE

CHUNK_PAIRS: Final = 2_000_000


class D4Settings(NamedTuple):
    """What does not change from call to call."""

    parameters: DampingParameters
    cutoffs: D4Cutoffs
    equilibrate: bool  # charges by electronegativity equilibration; else those handed in
    max_plain: int  # pairs or triangles that are left to plain automatic differentiation
    max_matrix: int  # elements of the matrices (B, N, N) that are


class _System(NamedTuple):
    """A batch in atomic units."""

    coord: Tensor  # (B, N, 3) Bohr, 0 on padding
    cell: Tensor  # (B, 3, 3) Bohr
    real: Tensor  # (B, N) bool
    charge: Tensor  # (B,) e
    species: Tensor  # (n,)
    list_cutoff: float  # Bohr, of the pairs
    pairs: HalfList  # all
    close: HalfList  # those that count as neighbours
    charged: HalfList  # those of the lattice sum of charges
    sides: HalfList  # those that are sides of triangles


def d4_energy(
    molecules: Molecules,
    lists: NeighborLists | None,
    charges: Tensor,
    data: D4Data,
    eeq: EEQData,
    settings: D4Settings,
    list_cutoff: float,
    bohr_per_angstrom: float = BOHR_PER_ANGSTROM,
    ev_per_hartree: float = EV_PER_HARTREE,
) -> Tensor:
    """D4 dispersion energy of every system of a padded batch: two-body and, when s9 is not 0, three-body.

    Parameters
    ----------
    molecules
        Batch with float64 coordinates, every element in `data`.
    lists
        Pairs up to `list_cutoff` or more, and cells; None: all pairs of molecules.
    charges
        (B, N) float64 e; used, and differentiated by, only if the settings say so.
    list_cutoff
        Å.

    Returns
    -------
    Tensor
        (B,) float64 eV.
    """
    real = molecules.numbers > 0
    coord = torch.where(real.unsqueeze(-1), molecules.coord, torch.zeros_like(molecules.coord)) * bohr_per_angstrom
    species = data.species[molecules.numbers.flatten()]
    # padding takes the place of any element that is there
    species = torch.where(species < 0, species.max().clamp(min=0), species)
    data, chosen = restricted(data, species)
    species = data.species[species]
    eeq = EEQData(eeq.chi[chosen], eeq.eta[chosen], eeq.kcn[chosen], eeq.radius[chosen])
    if lists is None:
        cell = torch.zeros_like(coord[:, :1]).expand(-1, 3, -1).detach()
        pairs = all_pairs_list(real)
    else:
        cell = lists.cell.to(coord.dtype) * bohr_per_angstrom
        pairs = half_list(lists.pair_first, lists.pair_second, lists.pair_shift)
    charge = molecules.charge.to(coord.dtype)
    limits = _limits(cell, data, eeq, settings, list_cutoff * bohr_per_angstrom)
    found = pairs_within(coord, cell, pairs, species, limits)
    close, charged, sides = found[0], found[1], found[2]
    system = _System(coord, cell, real, charge, species, list_cutoff * bohr_per_angstrom, pairs, close, charged, sides)

    counts = neighbor_counts(squared_distance(coord, cell, close), contact_distance(species, close, data))
    factor = electronegativity_factor(species, close, data)
    gaussians = gaussian_weights(coordination_numbers(counts * factor, close, real.numel()), species, data)
    if settings.equilibrate:
        cn = limited_cn(coordination_numbers(counts, close, real.numel()))
        force = driving_force(cn, species, eeq).view(real.shape)
        energy = _equilibrated_two_body(system, gaussians, force, data, eeq, settings)
    else:
        energy = _two_body(system, gaussians * charge_scaling(charges.flatten(), species, data), data, settings)
    if settings.parameters.s9 != 0.0:
        energy = energy + _three_body(system, gaussians * neutral_scaling(data), data, settings)
    return energy * ev_per_hartree


def _limits(
    cell: Tensor, data: D4Data, eeq: EEQData, settings: D4Settings, list_cutoff: float, reach: float = CONTACT_REACH
) -> list[Tensor]:
    """Squared distances (S, S) of what counts as neighbours, of the lattice sum of charges, of sides of triangles.

    Negative where nothing is asked for.
    """
    contact = (reach * (data.covalent_radius.unsqueeze(0) + data.covalent_radius.unsqueeze(1))).square()
    charged = largest_real_cutoff(cell, list_cutoff, eeq.radius) if settings.equilibrate else 0.0
    side = settings.cutoffs.disp3 if settings.parameters.s9 != 0.0 else 0.0
    return [
        contact,
        torch.full_like(contact, charged * charged if charged > 0.0 else -1.0),
        torch.full_like(contact, side * side if side > 0.0 else -1.0),
    ]


def _equilibrated_two_body(
    system: _System, gaussians: Tensor, force: Tensor, data: D4Data, eeq: EEQData, settings: D4Settings
) -> Tensor:
    """Two-body energy (B,) with EEQ charges, from weights (n, R) before charge scaling and the driving force (B, N)."""
    coord, cell = system.coord, system.cell
    near = system.charged
    species = system.species.view(force.shape)
    if max(force.numel() * force.shape[1], near.first.shape[0]) <= settings.max_matrix:
        pairs = PeriodicPairs(near.first, near.second, squared_distance(coord, cell, near), system.list_cutoff)
        charges = equilibrated_charges(coord, cell, system.real, system.charge, force, species, eeq, pairs)
        scaling = charge_scaling(charges.flatten(), system.species, data)
        return _two_body(system, gaussians * scaling, data, settings)

    systems = large_systems(coord, cell, system.real, species, near, system.list_cutoff)
    charges, factors = solve_batch(systems, system.charge, force, eeq)
    gradient = torch.is_grad_enabled() and (coord.requires_grad or cell.requires_grad)
    if gradient:
        charges = charges.requires_grad_()
    energy = _two_body(system, gaussians * charge_scaling(charges.flatten(), system.species, data), data, settings)
    if gradient:
        by_charges = torch.autograd.grad([energy.sum()], [charges], retain_graph=True)[0]
        assert by_charges is not None
        by_coord, by_cell, by_force = batch_gradient(systems, factors, charges.detach(), by_charges, eeq)
        energy = linear_surrogate(energy, coord, by_coord)
        energy = linear_surrogate(energy, cell, by_cell)
        energy = linear_surrogate(energy, force, by_force)
    return energy


def _two_body(system: _System, weights: Tensor, data: D4Data, settings: D4Settings) -> Tensor:
    """Two-body energy (B,) from the charge-scaled weights (n, R)."""
    n_systems, n_slots = system.real.shape
    pairs = system.pairs
    padded = weights.view(n_systems, n_slots, -1)
    if pairs.first.shape[0] <= settings.max_plain and n_systems * n_slots * n_slots <= settings.max_matrix:
        kind = pair_kinds(system.species, pairs, data.r4r2.shape[0])
        r2 = squared_distance(system.coord, system.cell, pairs)
        c6 = dense_c6(padded, data).flatten()
        c6 = c6.index_select(0, pairs.first * n_slots + pairs.second % n_slots)
        powers = damped_powers(r2, kind, data.r4r2, settings.parameters, settings.cutoffs)
        return _sum_by_system(-c6 * powers, pairs.first, n_systems, n_slots)
    gradient = torch.is_grad_enabled() and (
        system.coord.requires_grad or system.cell.requires_grad or weights.requires_grad
    )
    total = two_body_sum(
        system.coord.detach(),
        system.cell.detach(),
        pairs,
        padded.detach(),
        system.species,
        data,
        settings.parameters,
        settings.cutoffs,
        gradient,
    )
    energy = total.energy
    if gradient:
        energy = linear_surrogate(energy, system.coord, total.coord)
        energy = linear_surrogate(energy, system.cell, total.cell)
        energy = linear_surrogate(energy, padded, total.weights)
    return energy


def _three_body(
    system: _System, weights: Tensor, data: D4Data, settings: D4Settings, exponent: float = ATM_EXPONENT
) -> Tensor:
    """Three-body energy (B,) from the weights (n, R) at charge 0."""
    n_systems, n_slots = system.real.shape
    cutoffs = settings.cutoffs
    radius2 = damping_radii(data.r4r2, settings.parameters)
    sides = system.sides
    vector = torch.stack(pair_vectors(system.coord.detach(), system.cell.detach(), sides), 1)
    shift = sides.translations
    if shift.shape[0] > 0:
        shift = sides.translations.index_select(0, sides.image)
    pairs = directed_pairs(sides.first, sides.second, shift, vector)
    directed = half_list(pairs.source, pairs.target, pairs.shift)
    term = TripleTerm(
        weights,
        data.reference_c6,
        system.species,
        radius2,
        settings.parameters.s9,
        exponent,
        cutoffs.disp3,
        cutoffs.width3,
    )
    slots = torch.arange(n_systems * n_slots, device=weights.device)
    if count_triples(pairs) <= settings.max_plain:
        vector = torch.stack(pair_vectors(system.coord, system.cell, directed), 1)
        energy = triple_energy(DirectedPairs(pairs.source, pairs.target, pairs.shift, vector), term)
        return _sum_by_system(energy, slots, n_systems, n_slots)
    gradient = torch.is_grad_enabled() and (
        system.coord.requires_grad or system.cell.requires_grad or weights.requires_grad
    )
    total = triple_gradient(pairs, term, gradient)
    energy = _sum_by_system(total.energy, slots, n_systems, n_slots)
    if gradient:
        x, y, z = total.vector.unbind(1)
        by_coord, by_cell = chain_to_atoms((x, y, z), directed, n_systems, n_slots)
        energy = linear_surrogate(energy, system.coord, by_coord)
        energy = linear_surrogate(energy, system.cell, by_cell)
        by_weights = total.weights.view(n_systems, n_slots, -1)
        energy = linear_surrogate(energy, weights.view(n_systems, n_slots, -1), by_weights)
    return energy


def _sum_by_system(values: Tensor, slots: Tensor, n_systems: int, n_slots: int) -> Tensor:
    """Sum what belongs to each slot over the slots of each system: (P,) -> (B,)."""
    if n_systems == 1:
        return values.sum().view(1)
    total = torch.zeros(n_systems, dtype=values.dtype, device=values.device)
    return total.index_add(0, torch.div(slots, n_slots, rounding_mode="floor"), values)
