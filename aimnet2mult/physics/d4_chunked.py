"""First derivatives of large sums over pairs without keeping what automatic differentiation would keep.

A sum over P pairs is worked out in chunks, each with its derivatives, which are handed to the rest of the graph as a
linear function of the leaves (`pair_sums.linear_surrogate`). Memory is then that of the pair list and of one chunk.
B: systems, N: slots of the largest, n = B * N, R: reference systems, P: pairs.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor

from aimnet2mult.physics.d4 import D4Cutoffs, D4Data, damped_powers
from aimnet2mult.physics.d4_pairs import HalfList, between, chain_to_atoms, pair_kinds, pair_vectors
from aimnet2mult.physics.damping import DampingParameters

CHUNK_PAIRS: Final = 500_000
CHUNK_ENTRIES: Final = 4_000_000  # of a block of the matrix of C6 coefficients


class PairSum(NamedTuple):
    """Energy and, where asked for, its derivatives."""

    energy: Tensor  # (B,) Hartree
    coord: Tensor  # (B, N, 3)
    cell: Tensor  # (B, 3, 3)
    weights: Tensor  # (B, N, R)


def two_body_sum(
    coord: Tensor,
    cell: Tensor,
    pairs: HalfList,
    weights: Tensor,
    species: Tensor,
    data: D4Data,
    parameters: DampingParameters,
    cutoffs: D4Cutoffs,
    gradient: bool,
    chunk_pairs: int = CHUNK_PAIRS,
    chunk_entries: int = CHUNK_ENTRIES,
) -> PairSum:
    """Two-body energy of each system; C6 coefficients are formed by blocks of rows.

    Parameters
    ----------
    coord, cell
        (B, N, 3) and (B, 3, 3) Bohr, taken as constants.
    pairs
        Half list in rising order of the first atom.
    weights
        (B, N, R) charge-scaled weights of the reference systems, taken as constants.
    species
        (n,) place of each atom among the elements.
    gradient
        False: the energy only; the derivatives are zeros.
    """
    n_systems, n_slots = weights.shape[0], weights.shape[1]
    projected = weights @ data.reference_c6
    # plain variables: what is done in place to fields of a NamedTuple gets lost when a script is saved and loaded
    energy = torch.zeros_like(weights[:, 0, 0])
    by_coord, by_cell = torch.zeros_like(coord), torch.zeros_like(cell)
    by_weights = torch.zeros_like(weights)
    ends: list[int] = torch.bincount(pairs.first, minlength=n_systems * n_slots).cumsum(0).tolist()
    row = 0
    begin = 0
    while row < n_systems * n_slots:
        system = row // n_slots
        stop = row + 1
        while (
            stop < (system + 1) * n_slots
            and ends[stop] - begin <= chunk_pairs
            and (stop + 1 - row) * n_slots <= chunk_entries
        ):
            stop += 1
        if ends[stop - 1] > begin:
            part = between(pairs, begin, ends[stop - 1])
            rows = projected[system, row - system * n_slots : stop - system * n_slots]
            place = (part.first - row) * n_slots + (part.second - system * n_slots)
            c6 = (rows @ weights[system].t()).flatten().index_select(0, place)
            kind = pair_kinds(species, part, data.r4r2.shape[0])
            x, y, z = pair_vectors(coord, cell, part)
            r2 = x * x + y * y + z * z
            damped, slope = _powers_and_slope(r2, kind, data.r4r2, parameters, cutoffs, gradient)
            energy[system].sub_((c6 * damped).sum())
            if gradient:
                force = -2.0 * c6 * slope
                coord_part, cell_part = chain_to_atoms((force * x, force * y, force * z), part, n_systems, n_slots)
                by_coord.add_(coord_part)
                by_cell.add_(cell_part)
                by_c6 = torch.zeros((stop - row) * n_slots, dtype=r2.dtype, device=r2.device)
                by_c6 = by_c6.index_add(0, place, -damped).view(stop - row, n_slots)
                of_system = by_weights[system]
                of_system[row - system * n_slots : stop - system * n_slots].add_(by_c6 @ projected[system])
                of_system.add_(by_c6.t() @ rows)
        begin = ends[stop - 1]
        row = stop
    return PairSum(energy, by_coord, by_cell, by_weights)


def _powers_and_slope(
    r2: Tensor, kind: Tensor, r4r2: Tensor, parameters: DampingParameters, cutoffs: D4Cutoffs, gradient: bool
) -> tuple[Tensor, Tensor]:
    """`damped_powers` (P,) and its derivative by r2 (P,)."""
    if not gradient:
        return damped_powers(r2, kind, r4r2, parameters, cutoffs), r2
    leaf = r2.detach().requires_grad_()
    damped = damped_powers(leaf, kind, r4r2, parameters, cutoffs)
    slope = torch.autograd.grad([damped.sum()], [leaf])[0]
    assert slope is not None
    return damped.detach(), slope
