"""The three-body term of D3 (Axilrod-Teller-Muto with zero damping), from `aimnet2mult.physics.three_body`.

Radii and exponent: Grimme, Antony, Ehrlich, Krieg, J. Chem. Phys. 132, 154104 (2010), eq. 14 and the text beside it.
Atomic units. n: slots of the batch (B * N), R: reference systems, P: pairs.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor

from aimnet2mult.physics.d3 import D3Cutoffs, D3Data, D3Pairs, outside
from aimnet2mult.physics.pair_sums import chain_displacements
from aimnet2mult.physics.three_body import DirectedPairs, TripleTerm, directed_pairs, triple_energy, triple_gradient

RADIUS_SCALE: Final = 4.0 / 3.0
EXPONENT: Final = 16.0


class TripleSums(NamedTuple):
    """Three-body energy and its first derivatives, zeros where they were not asked for."""

    energy: Tensor  # (B,)
    coord: Tensor  # (B, N, 3)
    cell: Tensor  # (B, 3, 3)
    weights: Tensor  # (n, R)


def plain_triples(
    pairs: D3Pairs, weights: Tensor, species: Tensor, data: D3Data, s9: float, cutoffs: D3Cutoffs
) -> Tensor:
    """Three-body energy (n,) for automatic differentiation, each triangle booked on one of its atoms.

    Parameters
    ----------
    pairs
        All pairs within the cutoff of triangles, or more.
    weights
        (n, R) of the reference systems.
    species
        (n,) place of each atom among the elements.
    """
    return triple_energy(_directed(pairs, cutoffs.disp3), _term(weights, species, data, s9, cutoffs))


def triple_sums(
    pairs: D3Pairs,
    weights: Tensor,
    species: Tensor,
    data: D3Data,
    s9: float,
    cutoffs: D3Cutoffs,
    shape: tuple[int, int],
    gradient: bool,
) -> TripleSums:
    """Three-body energy with first derivatives, in memory that does not grow with the number of triangles.

    Parameters are those of `plain_triples`, none of them with a graph, and the shape (B, N) of the batch.
    """
    directed = _directed(pairs, cutoffs.disp3)
    total = triple_gradient(directed, _term(weights, species, data, s9, cutoffs), gradient)
    coord, cell = chain_displacements(total.vector, directed.source, directed.target, directed.shift, shape)
    return TripleSums(total.energy.view(shape[0], shape[1]).sum(1), coord, cell, total.weights)


def _directed(pairs: D3Pairs, cutoff: float) -> DirectedPairs:
    near = (~outside(pairs.r2.detach(), cutoff)).nonzero().squeeze(-1)
    vector = torch.stack([pairs.x[near], pairs.y[near], pairs.z[near]], dim=1)
    return directed_pairs(pairs.first[near], pairs.second[near], pairs.shift[near], vector)


def _term(
    weights: Tensor,
    species: Tensor,
    data: D3Data,
    s9: float,
    cutoffs: D3Cutoffs,
    radius_scale: float = RADIUS_SCALE,
    exponent: float = EXPONENT,
) -> TripleTerm:
    radius2 = (radius_scale * data.vdw_radius).square()
    return TripleTerm(weights, data.reference_c6, species, radius2, s9, exponent, cutoffs.disp3, cutoffs.width3)
