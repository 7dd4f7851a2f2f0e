"""D3 dispersion energy with rational (Becke-Johnson) damping, as pure functions of tensors.

Sources: [1] Grimme, Antony, Ehrlich, Krieg, J. Chem. Phys. 132, 154104 (2010): coordination numbers, C6
interpolation; [2] Grimme, Ehrlich, Goerigk, J. Comput. Chem. 32, 1456 (2011): rational damping.
Conventions are those of the dftd3 package (s-dftd3 1.7.0), so that both give the same numbers at the same cutoffs for
every element but mendelevium, of which that package counts an empty reference slot. The package has no smooth end for
coordination numbers, to which each pair adds at least e^-16: set `D3Cutoffs.width_cn` to 0 to compare them.

Atomic units throughout. All functions can be scripted and differentiated twice; `aimnet2mult.physics.d3_energy` puts
them together. Only pairs of distinct real atoms are ever formed: what stands in the padding can reach neither energy
nor gradient.
B: molecules, N: slots of the largest, S: elements of the model, R: reference systems of these, P: pairs.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor

from aimnet2mult.physics.damping import DampingParameters
from aimnet2mult.physics.pair_sums import pair_displacements
from aimnet2mult.physics.switching import beyond_start, smooth_cutoff
from aimnet2mult.types import NeighborLists

CN_STEEPNESS: Final = 16.0  # k1 of [1], eq. 15
WEIGHT_STEEPNESS: Final = 4.0  # k3 of [1], eq. 16
COINCIDENT: Final = 1e-12  # Bohr^2; the dftd3 package skips closer pairs too


class D3Data(NamedTuple):
    """Element data in atomic units, cut down to the S elements and R reference systems of a model."""

    species: Tensor  # (Zmax + 1,) int64: place of each atomic number among the S elements, -1 where absent
    covalent_radius: Tensor  # (S,) float64, scaled by 4/3
    r4r2: Tensor  # (S,) float64, sqrt(0.5 sqrt(Z) <r4>/<r2>)
    vdw_radius: Tensor  # (S, S) float64, R0 of the three-body damping
    reference_species: Tensor  # (R,) int64
    reference_cn: Tensor  # (R,) float64
    reference_c6: Tensor  # (R, R) float64


class D3Cutoffs(NamedTuple):
    """Real-space cutoffs in Bohr; the defaults of the dftd3 package are 60, 40, 0, 0, 40, and it knows no width_cn."""

    disp2: float  # of the two-body term
    disp3: float  # of each side of a triangle
    width2: float  # range before the cutoff over which the term is switched off smoothly; 0: a sharp cutoff
    width3: float
    cn: float  # of the coordination numbers
    width_cn: float


class D3Pairs(NamedTuple):
    """Pairs of real atoms, or of an atom and an image, each once; atoms counted over all B * N slots."""

    first: Tensor  # (P,) int64 slot of i
    second: Tensor  # (P,) int64 slot of j
    shift: Tensor  # (P, 3) integer lattice translations of j
    dense: Tensor  # (P,) int64 place of the pair in a flattened (B, N, N) array; images share theirs
    x: Tensor  # (P,) Bohr, vector from i to j
    y: Tensor
    z: Tensor
    r2: Tensor  # (P,) squared distance, Bohr^2


def species_of(numbers: Tensor, data: D3Data) -> Tensor:
    """Place of each atom among the elements of `data`, some valid place on padding: (B, N) -> (B, N)."""
    return data.species[torch.where(numbers > 0, numbers, torch.ones_like(numbers))].clamp(min=0)


def find_pairs(coord: Tensor, real: Tensor, cutoff: float) -> D3Pairs:
    """List the pairs i < j of real atoms of each molecule that are not farther apart than `cutoff` (Bohr).

    Parameters
    ----------
    coord
        (B, N, 3) Bohr.
    real
        (B, N) bool, False on padding.
    """
    dense = (real.unsqueeze(1) & real.unsqueeze(2)).triu(1).flatten().nonzero().squeeze(-1)
    pairs = pairs_at(coord, dense)
    kept = (~outside(pairs.r2.detach(), cutoff)).nonzero().squeeze(-1)
    return pairs if kept.shape[0] == dense.shape[0] else pairs_at(coord, dense[kept])


def pairs_at(coord: Tensor, dense: Tensor) -> D3Pairs:
    """Pairs at the places `dense` (P,) of a flattened (B, N, N) array."""
    n_slots = coord.shape[1]
    first = torch.div(dense, n_slots, rounding_mode="floor")
    second = torch.div(first, n_slots, rounding_mode="floor") * n_slots + dense % n_slots
    # one column per Cartesian axis: gathering scalars differentiates far quicker than gathering rows
    x, y, z = coord.reshape(-1, 3).unbind(1)
    dx = x.index_select(0, second) - x.index_select(0, first)
    dy = y.index_select(0, second) - y.index_select(0, first)
    dz = z.index_select(0, second) - z.index_select(0, first)
    no_shift = torch.zeros_like(first).unsqueeze(1).expand(-1, 3)
    return D3Pairs(first, second, no_shift, dense, dx, dy, dz, dx * dx + dy * dy + dz * dz)


def listed_pairs(coord: Tensor, cell: Tensor, lists: NeighborLists, cutoff: float) -> D3Pairs:
    """Pairs of a list that are not farther apart than `cutoff`; coordinates (B, N, 3) and cell (B, 3, 3) in Bohr."""
    first, second, shift = lists.pair_first, lists.pair_second, lists.pair_shift
    x, y, z = pair_displacements(coord, cell, first, second, shift)
    r2 = x * x + y * y + z * z
    kept = (~outside(r2.detach(), cutoff)).nonzero().squeeze(-1)
    if kept.shape[0] != first.shape[0]:
        first, second, shift = first[kept], second[kept], shift[kept]
        x, y, z = pair_displacements(coord, cell, first, second, shift)
        r2 = x * x + y * y + z * z
    return D3Pairs(first, second, shift, first * coord.shape[1] + second % coord.shape[1], x, y, z, r2)


def outside(r2: Tensor, cutoff: float, coincident: float = COINCIDENT) -> Tensor:
    """Which squared distances (Bohr^2) do not count: beyond the cutoff, or two atoms on one spot.

    Written so that a distance that is not a number counts, and shows in the energy.
    """
    return (r2 > cutoff * cutoff) | (r2 < coincident)


def coordination_numbers(
    pairs: D3Pairs,
    species: Tensor,
    covalent_radius: Tensor,
    cutoff: float,
    width: float,
    steepness: float = CN_STEEPNESS,
) -> Tensor:
    """Fractional coordination number of every slot, 0 on padding ([1], eq. 15).

    CN_i = sum_j 1 / (1 + exp(-k1 (R_ij^cov / r_ij - 1))), the radii already scaled by 4/3.

    Parameters
    ----------
    pairs
        All pairs within `cutoff`, or more.
    species
        (B * N,) place of each atom among the elements; any valid place on padding.
    covalent_radius
        (S,) Bohr.
    cutoff, width
        Bohr; the width is that of the smooth end, 0: a sharp one.

    Returns
    -------
    Tensor
        (B * N,).
    """
    radius = covalent_radius[species]
    contact = radius[pairs.first] + radius[pairs.second]
    count = torch.sigmoid(steepness * (contact / pairs.r2.sqrt() - 1.0))
    if width > 0.0 and beyond_start(pairs.r2, cutoff, width):
        count = count * smooth_cutoff(pairs.r2, cutoff, width)
    count = torch.where(pairs.r2 > cutoff * cutoff, torch.zeros_like(count), count)
    cn = torch.zeros(species.shape, dtype=count.dtype, device=count.device)
    return cn.index_add(0, pairs.first, count).index_add(0, pairs.second, count)


def reference_weights(cn: Tensor, species: Tensor, data: D3Data, steepness: float = WEIGHT_STEEPNESS) -> Tensor:
    """Normalised Gaussian weight of every reference system in every atom ([1], eq. 16).

    W_ir = exp(-k3 (CN_i - CN_r)^2) / sum_r' exp(-k3 (CN_i - CN_r')^2) over the references of the element of i.
    The quotient is taken as a softmax, which keeps its value where every single Gaussian underflows: an atom
    that is coordinated far beyond all references gets the nearest one, and the gradient stays finite.

    Parameters
    ----------
    cn
        (B * N,).
    species
        (B * N,) place of each atom among the elements.

    Returns
    -------
    Tensor
        (B * N, R), 0 for references of other elements.
    """
    exponent = -steepness * (cn.unsqueeze(1) - data.reference_cn).square()
    foreign = species.unsqueeze(1) != data.reference_species
    return torch.softmax(exponent.masked_fill(foreign, float("-inf")), dim=1)


def pair_c6(weights: Tensor, pairs: D3Pairs, data: D3Data) -> Tensor:
    """C6 coefficient of each pair, sum_rs W_ir C6_rs W_js ([1], eq. 16), through two matrix products.

    Parameters
    ----------
    weights
        (B, N, R).

    Returns
    -------
    Tensor
        (P,) atomic units.
    """
    c6 = torch.matmul(torch.matmul(weights, data.reference_c6), weights.transpose(1, 2))
    return c6.flatten().index_select(0, pairs.dense)


def pair_energy(
    pairs: D3Pairs, c6: Tensor, species: Tensor, r4r2: Tensor, parameters: DampingParameters, cutoffs: D3Cutoffs
) -> Tensor:
    """Two-body energy with rational damping of [2].

    E2 = -sum_{i<j} [s6 C6 / (r^6 + R^6) + s8 C8 / (r^8 + R^8)], C8 = 3 C6 Q_i Q_j ([1], eq. 6) and
    R = a1 sqrt(C8 / C6) + a2.

    Parameters
    ----------
    c6
        (P,) atomic units.
    species
        (B * N,) place of each atom among the elements.
    r4r2
        (S,) the Q of each element.

    Returns
    -------
    Tensor
        (B * N,) Hartree, each pair booked on its first atom.
    """
    n_species = r4r2.shape[0]
    c8_over_c6 = 3.0 * r4r2.unsqueeze(0) * r4r2.unsqueeze(1)
    radius2 = (parameters.a1 * c8_over_c6.sqrt() + parameters.a2).square().flatten()
    kind = species[pairs.first] * n_species + species[pairs.second]
    r2 = pairs.r2
    r6 = r2 * r2 * r2
    damped6 = parameters.s6 / (r6 + (radius2 * radius2 * radius2)[kind])
    damped8 = (parameters.s8 * c8_over_c6.flatten())[kind] / (r6 * r2 + radius2.square().square()[kind])
    damped = c6 * (damped6 + damped8)
    if cutoffs.width2 > 0.0 and beyond_start(r2, cutoffs.disp2, cutoffs.width2):
        damped = damped * smooth_cutoff(r2, cutoffs.disp2, cutoffs.width2)
    damped = torch.where(r2 > cutoffs.disp2 * cutoffs.disp2, torch.zeros_like(damped), damped)
    energy = torch.zeros(species.shape, dtype=r2.dtype, device=r2.device)
    return -energy.index_add(0, pairs.first, damped)
