"""D3 dispersion energy with rational (Becke-Johnson) damping, as pure functions of tensors.

Sources: [1] Grimme, Antony, Ehrlich, Krieg, J. Chem. Phys. 132, 154104 (2010): coordination numbers, C6
interpolation, three-body term; [2] Grimme, Ehrlich, Goerigk, J. Comput. Chem. 32, 1456 (2011): rational damping.
Cutoffs and conventions are those of the dftd3 package (s-dftd3 1.7.0), so that both give the same numbers for every
element but mendelevium, of which that package counts an empty reference slot.

Everything but `d3_energy` works in atomic units. All functions can be scripted and differentiated twice. Only
pairs of distinct real atoms are ever formed: what stands in the padding can reach neither energy nor gradient.
B: molecules, N: slots of the largest, S: elements of the model, R: reference systems of these, P: pairs.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor

from aimnet2mult.physics.functionals import D3Parameters
from aimnet2mult.units import BOHR_PER_ANGSTROM, EV_PER_HARTREE

CN_STEEPNESS: Final = 16.0  # k1 of [1], eq. 15
WEIGHT_STEEPNESS: Final = 4.0  # k3 of [1], eq. 16
CN_CUTOFF: Final = 40.0  # Bohr
PAIR_CUTOFF: Final = 60.0  # Bohr
TRIPLE_CUTOFF: Final = 40.0  # Bohr, for each side of the triangle
ATM_RADIUS_SCALE: Final = 4.0 / 3.0  # beside [1], eq. 14
ATM_EXPONENT: Final = 16.0  # alpha of [1], eq. 14
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


class D3Pairs(NamedTuple):
    """Pairs i < j of real atoms within the two-body cutoff; atoms counted over all B * N slots."""

    first: Tensor  # (P,) int64 slot of i
    second: Tensor  # (P,) int64 slot of j
    dense: Tensor  # (P,) int64 place of the pair in a flattened (B, N, N) array
    r2: Tensor  # (P,) squared distance, Bohr^2


def d3_energy(
    coord: Tensor,
    numbers: Tensor,
    data: D3Data,
    parameters: D3Parameters,
    bohr_per_angstrom: float = BOHR_PER_ANGSTROM,
    ev_per_hartree: float = EV_PER_HARTREE,
) -> Tensor:
    """D3(BJ) dispersion energy of every molecule of a padded batch.

    E = E2 + E3 from `pair_energy` and, only when s9 is not 0, `triple_energy`.

    Parameters
    ----------
    coord
        (B, N, 3) float64 Å.
    numbers
        (B, N) int64 atomic numbers, 0 = padding. Every element must be in `data`.
    data
        Element data, on the device of `coord`.
    parameters
        Damping parameters s6, s8, a1, a2 (Bohr), s9.

    Returns
    -------
    Tensor
        (B,) float64 eV.
    """
    shape = numbers.shape
    real = numbers > 0
    species = data.species[torch.where(real, numbers, torch.ones_like(numbers))].clamp(min=0)
    pairs = find_pairs(coord * bohr_per_angstrom, real)
    cn = coordination_numbers(pairs, species.flatten(), data.covalent_radius)
    c6 = pair_c6(reference_weights(cn, species.flatten(), data).view(shape[0], shape[1], -1), pairs, data)
    per_atom = pair_energy(pairs, c6, species.flatten(), data.r4r2, parameters)
    if parameters.s9 != 0.0:
        per_atom = per_atom + triple_energy(pairs, c6, species, data.vdw_radius, parameters.s9)
    return per_atom.view(shape[0], shape[1]).sum(1) * ev_per_hartree


def find_pairs(coord: Tensor, real: Tensor, cutoff: float = PAIR_CUTOFF, coincident: float = COINCIDENT) -> D3Pairs:
    """List the pairs i < j of real atoms that are not farther apart than `cutoff` (Bohr).

    Parameters
    ----------
    coord
        (B, N, 3) Bohr.
    real
        (B, N) bool, False on padding.
    """
    n_slots = real.shape[1]
    candidates = (real.unsqueeze(1) & real.unsqueeze(2)).triu(1).flatten().nonzero().squeeze(-1)
    # one column per Cartesian axis: gathering scalars differentiates far quicker than gathering rows
    x, y, z = coord.reshape(-1, 3).unbind(1)
    first, second = pair_slots(candidates, n_slots)
    r2 = squared_distance(x.detach(), y.detach(), z.detach(), first, second)
    # written so that a distance that is not a number stays in the list and shows in the energy
    kept = (~((r2 > cutoff * cutoff) | (r2 < coincident))).nonzero().squeeze(-1)
    if kept.shape[0] != candidates.shape[0]:
        candidates = candidates[kept]
        first, second = pair_slots(candidates, n_slots)
    return D3Pairs(first, second, candidates, squared_distance(x, y, z, first, second))


def pair_slots(dense: Tensor, n_slots: int) -> tuple[Tensor, Tensor]:
    """Slots of both atoms from the place of a pair in a flattened (B, N, N) array."""
    first = torch.div(dense, n_slots, rounding_mode="floor")
    molecule = torch.div(first, n_slots, rounding_mode="floor")
    return first, molecule * n_slots + dense % n_slots


def squared_distance(x: Tensor, y: Tensor, z: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Squared distance (P,) of each pair from the coordinates (B * N,) per axis."""
    dx = x.index_select(0, second) - x.index_select(0, first)
    dy = y.index_select(0, second) - y.index_select(0, first)
    dz = z.index_select(0, second) - z.index_select(0, first)
    return dx * dx + dy * dy + dz * dz


def coordination_numbers(
    pairs: D3Pairs,
    species: Tensor,
    covalent_radius: Tensor,
    steepness: float = CN_STEEPNESS,
    cutoff: float = CN_CUTOFF,
) -> Tensor:
    """Fractional coordination number of every slot, 0 on padding ([1], eq. 15).

    CN_i = sum_j 1 / (1 + exp(-k1 (R_ij^cov / r_ij - 1))), the radii already scaled by 4/3.

    Parameters
    ----------
    pairs
        Pairs within a cutoff that is not smaller than `cutoff`.
    species
        (B * N,) place of each atom among the elements; any valid place on padding.
    covalent_radius
        (S,) Bohr.

    Returns
    -------
    Tensor
        (B * N,).
    """
    radius = covalent_radius[species]
    contact = radius[pairs.first] + radius[pairs.second]
    count = torch.sigmoid(steepness * (contact / pairs.r2.sqrt() - 1.0))
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


def pair_energy(pairs: D3Pairs, c6: Tensor, species: Tensor, r4r2: Tensor, parameters: D3Parameters) -> Tensor:
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
    energy = torch.zeros(species.shape, dtype=r2.dtype, device=r2.device)
    return -energy.index_add(0, pairs.first, c6 * (damped6 + damped8))


def triple_energy(
    pairs: D3Pairs,
    c6: Tensor,
    species: Tensor,
    vdw_radius: Tensor,
    s9: float,
    cutoff: float = TRIPLE_CUTOFF,
    radius_scale: float = ATM_RADIUS_SCALE,
    exponent: float = ATM_EXPONENT,
) -> Tensor:
    """Axilrod-Teller-Muto three-body energy with zero damping ([1], eqs. 11 to 14).

    E3 = s9 sum_{i<j<k} C9 (1 + 3 cos a cos b cos c) / [(r_ij r_jk r_ki)^3 (1 + 6 (R / r)^alpha)] with
    C9 = sqrt(C6_ij C6_jk C6_ki) and the geometric means r, R of the distances and of 4/3 times the van der Waals
    radii. C9, damping and the cubes are products of one factor per side, so each side is worked out once per pair.
    Memory grows with the number of triples.

    Parameters
    ----------
    c6
        (P,) atomic units.
    species
        (B, N) place of each atom among the elements.
    vdw_radius
        (S, S) Bohr.

    Returns
    -------
    Tensor
        (B * N,) Hartree, each triple booked on its first atom.
    """
    n_slots = species.shape[1]
    near = (~(pairs.r2 > cutoff * cutoff)).nonzero().squeeze(-1)
    first, second, dense = pairs.first[near], pairs.second[near], pairs.dense[near]
    # pair number of every (atom, partner) with partner > atom; a partner k that both i and j have closes a triangle
    number = torch.full([species.numel() * n_slots], -1, dtype=torch.int64, device=species.device)
    number[dense] = torch.arange(dense.shape[0], device=species.device)
    has_partner = (number >= 0).view(-1, n_slots)
    ij, k = (has_partner[first] & has_partner[second]).nonzero().unbind(1)
    ik = number[first[ij] * n_slots + k]
    jk = number[second[ij] * n_slots + k]

    flat_species = species.flatten()
    radius2 = (radius_scale * vdw_radius[flat_species[first], flat_species[second]]).square()
    r2 = pairs.r2.index_select(0, near)
    strength = (c6.index_select(0, near) / (r2 * r2 * r2)).sqrt()
    damping = (radius2 / r2) ** (exponent / 6.0)

    a, b, c = r2.index_select(0, ij), r2.index_select(0, ik), r2.index_select(0, jk)
    cosines = (a + b - c) * (a + c - b) * (b + c - a) / (a * b * c)  # 8 cos cos cos, by the law of cosines
    strengths = strength.index_select(0, ij) * strength.index_select(0, ik) * strength.index_select(0, jk)
    dampings = damping.index_select(0, ij) * damping.index_select(0, ik) * damping.index_select(0, jk)
    triples = s9 * strengths * (1.0 + 0.375 * cosines) / (1.0 + 6.0 * dampings)
    energy = torch.zeros(flat_species.shape, dtype=triples.dtype, device=triples.device)
    return energy.index_add(0, first[ij], triples)
