"""D4 dispersion: coordination numbers, charge-scaled C6 coefficients and the two-body energy, as pure functions.

Sources: [1] Caldeweyher, Ehlert, Hansen, Neugebauer, Spicher, Bannwarth, Grimme, J. Chem. Phys. 150, 154122 (2019);
[2] Grimme, Ehrlich, Goerigk, J. Comput. Chem. 32, 1456 (2011): rational damping. Conventions are those of the dftd4
package (4.3.1, model "d4"), so that both give the same numbers: the three-body term uses C6 coefficients at charge
0, and its radii are those of the rational damping.

Atomic units throughout. All functions can be scripted and differentiated twice. `aimnet2mult.physics.d4_energy` puts
them together. B: systems, N: slots of the largest, n = B * N, S: elements of the model, R: reference systems of
these, G: Gaussians of these, P: pairs.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor

from aimnet2mult.physics.d4_pairs import HalfList
from aimnet2mult.physics.damping import DampingParameters
from aimnet2mult.physics.switching import beyond_start, smooth_cutoff

CN_STEEPNESS: Final = 7.5
# ([1], eq. 8) electronegativity scaling k4 exp(-(|dEN| + k5)^2 / k6) of the coordination number
EN_HEIGHT: Final = 4.10451
EN_SHIFT: Final = 19.08857
EN_WIDTH: Final = 2.0 * 11.28174**2
# The counting function is below 1e-25 beyond twice the sum of the covalent radii, where float64 sums end at 1e-16
CONTACT_REACH: Final = 2.0
WEIGHT_STEEPNESS: Final = 6.0  # beta_2 of [1], eq. 6
ZETA_HEIGHT: Final = 3.0  # beta_1 of [1], eq. 2
ZETA_STEEPNESS: Final = 2.0  # c of [1], eq. 2
COINCIDENT: Final = 1e-12  # Bohr^2; the dftd4 package skips closer pairs too
ATM_EXPONENT: Final = 16.0


class D4Data(NamedTuple):
    """Element data in atomic units, cut down to the S elements and R reference systems of a model."""

    species: Tensor  # (Zmax + 1,) int64: place of each atomic number among the S elements, -1 where absent
    covalent_radius: Tensor  # (S,) float64, scaled by 4/3
    electronegativity: Tensor  # (S,)
    r4r2: Tensor  # (S,) sqrt(0.5 sqrt(Z) <r4>/<r2>)
    hardness: Tensor  # (S,)
    effective_charge: Tensor  # (S,) e, nuclear charge without core electrons
    reference_species: Tensor  # (R,) int64
    reference_charge: Tensor  # (R,) e
    reference_c6: Tensor  # (R, R)
    gaussian_reference: Tensor  # (G,) int64: the reference system of each Gaussian, in rising order
    gaussian_cn: Tensor  # (G,) its coordination number
    gaussian_factor: Tensor  # (G,) its steepness as a multiple of WEIGHT_STEEPNESS


class D4Cutoffs(NamedTuple):
    """Real-space cutoffs in Bohr; the defaults of the dftd4 package are 60, 40, 0, 0."""

    disp2: float  # of the two-body term
    disp3: float  # of each side of a triangle
    width2: float  # range before the cutoff over which the term is switched off smoothly; 0: a sharp cutoff
    width3: float


def restricted(data: D4Data, species: Tensor) -> tuple[D4Data, Tensor]:
    """Cut data down to the elements that are there, which makes all that follows cheaper.

    Parameters
    ----------
    species
        (n,) place of each atom among the S elements.

    Returns
    -------
    tuple
        Data of the elements that occur (without the table from atomic numbers), and their places (S',) among the S.
    """
    n_species = data.r4r2.shape[0]
    there = torch.bincount(species, minlength=n_species) > 0
    chosen = there.nonzero().squeeze(1)
    place = there.to(torch.int64).cumsum(0) - 1
    kept = there[data.reference_species].nonzero().squeeze(1)
    gaussians = there[data.reference_species[data.gaussian_reference]].nonzero().squeeze(1)
    new_number = there[data.reference_species].to(torch.int64).cumsum(0) - 1
    cut = D4Data(
        place,
        data.covalent_radius[chosen],
        data.electronegativity[chosen],
        data.r4r2[chosen],
        data.hardness[chosen],
        data.effective_charge[chosen],
        place[data.reference_species[kept]],
        data.reference_charge[kept],
        data.reference_c6[kept][:, kept],
        new_number[data.gaussian_reference[gaussians]],
        data.gaussian_cn[gaussians],
        data.gaussian_factor[gaussians],
    )
    return cut, chosen


def contact_distance(species: Tensor, pairs: HalfList, data: D4Data) -> Tensor:
    """Sum of the scaled covalent radii of each pair (P,); species (n,)."""
    radius = data.covalent_radius[species]
    return radius.index_select(0, pairs.first) + radius.index_select(0, pairs.second)


def neighbor_counts(r2: Tensor, contact: Tensor, steepness: float = CN_STEEPNESS) -> Tensor:
    """Counting function (1 + erf(-k (r / R - 1))) / 2 of each pair ([1], eq. 7)."""
    return 0.5 * torch.erfc(steepness * (r2.sqrt() / contact - 1.0))


def coordination_numbers(counts: Tensor, pairs: HalfList, n_slots: int) -> Tensor:
    """Sum of the counts over the neighbours of each slot: (P,) -> (n_slots,)."""
    cn = torch.zeros(n_slots, dtype=counts.dtype, device=counts.device)
    return cn.index_add(0, pairs.first, counts).index_add(0, pairs.second, counts)


def electronegativity_factor(
    species: Tensor,
    pairs: HalfList,
    data: D4Data,
    height: float = EN_HEIGHT,
    shift: float = EN_SHIFT,
    width: float = EN_WIDTH,
) -> Tensor:
    """Weight (P,) of each pair in the D4 coordination number ([1], eq. 8)."""
    difference = data.electronegativity.unsqueeze(0) - data.electronegativity.unsqueeze(1)
    table = height * torch.exp(-(difference.abs() + shift).square() / width)
    kind = species.index_select(0, pairs.first) * table.shape[0] + species.index_select(0, pairs.second)
    return table.flatten().index_select(0, kind)


def gaussian_weights(cn: Tensor, species: Tensor, data: D4Data, steepness: float = WEIGHT_STEEPNESS) -> Tensor:
    """Normalised weight of every reference system in every atom before charge scaling ([1], eq. 6).

    The quotient of sums of Gaussians is taken as a softmax, which keeps its value where every single one underflows:
    an atom that is coordinated far beyond all references gets the nearest one, and the gradient stays finite.

    Parameters
    ----------
    cn
        (n,) D4 coordination numbers.
    species
        (n,) place of each atom among the elements.

    Returns
    -------
    Tensor
        (n, R), 0 for references of other elements.
    """
    exponent = -steepness * data.gaussian_factor * (cn.unsqueeze(1) - data.gaussian_cn).square()
    foreign = species.unsqueeze(1) != data.reference_species[data.gaussian_reference]
    gaussians = torch.softmax(exponent.masked_fill(foreign, float("-inf")), dim=1)
    weights = torch.zeros((cn.shape[0], data.reference_species.shape[0]), dtype=cn.dtype, device=cn.device)
    return weights.index_add(1, data.gaussian_reference, gaussians)


def charge_scaling(
    charges: Tensor, species: Tensor, data: D4Data, height: float = ZETA_HEIGHT, steepness: float = ZETA_STEEPNESS
) -> Tensor:
    """Factor zeta on the polarisability of every reference system in every atom ([1], eq. 2).

    zeta = exp(b [1 - exp(c g (1 - (Z + q_ref) / (Z + q)))], b = 3, c = 2, with the hardness g and the effective
    nuclear charge Z; e^b for a nucleus that has lost all electrons.

    Parameters
    ----------
    charges, species
        (n,) e; (n,).

    Returns
    -------
    Tensor
        (n, R); of no meaning for references of other elements.
    """
    nuclear = data.effective_charge[data.reference_species]
    bound = (data.effective_charge[species] + charges).unsqueeze(1)
    # below this the inner exponential is 0 already, and its derivative would be 0 / 0
    left = ~(bound < 1e-6)
    ratio = (nuclear + data.reference_charge) / torch.where(left, bound, torch.ones_like(bound))
    inner = torch.exp(steepness * data.hardness[data.reference_species] * (1.0 - ratio))
    return torch.exp(height * (1.0 - torch.where(left, inner, torch.zeros_like(inner))))


def neutral_scaling(data: D4Data, height: float = ZETA_HEIGHT, steepness: float = ZETA_STEEPNESS) -> Tensor:
    """The same at charge 0: (R,)."""
    ratio = data.reference_charge / data.effective_charge[data.reference_species]
    inner = torch.exp(-steepness * data.hardness[data.reference_species] * ratio)
    return torch.exp(height * (1.0 - inner))


def damped_powers(
    r2: Tensor,
    kind: Tensor,
    r4r2: Tensor,
    parameters: DampingParameters,
    cutoffs: D4Cutoffs,
    coincident: float = COINCIDENT,
) -> Tensor:
    """Two-body energy of each pair over -C6, with the rational damping of [2].

    s6 / (r^6 + R^6) + s8 3 Q_i Q_j / (r^8 + R^8) with R = a1 sqrt(3 Q_i Q_j) + a2; 0 beyond the cutoff.

    Parameters
    ----------
    r2
        (P,) Bohr^2.
    kind
        (P,) species of the first atom * S + species of the second.
    r4r2
        (S,) the Q of each element.
    """
    c8_over_c6 = 3.0 * r4r2.unsqueeze(0) * r4r2.unsqueeze(1)
    radius2 = (parameters.a1 * c8_over_c6.sqrt() + parameters.a2).square().flatten()
    # written so that a distance that is not a number stays and shows in the energy
    outside = (r2 > cutoffs.disp2 * cutoffs.disp2) | (r2 < coincident)
    inside2 = torch.where(outside, torch.full_like(r2, cutoffs.disp2 * cutoffs.disp2), r2)
    r6 = inside2 * inside2 * inside2
    damped6 = parameters.s6 / (r6 + (radius2 * radius2 * radius2)[kind])
    damped8 = (parameters.s8 * c8_over_c6.flatten())[kind] / (r6 * inside2 + radius2.square().square()[kind])
    damped = damped6 + damped8
    if cutoffs.width2 > 0.0 and beyond_start(inside2, cutoffs.disp2, cutoffs.width2):
        damped = damped * smooth_cutoff(inside2, cutoffs.disp2, cutoffs.width2)
    return torch.where(outside, torch.zeros_like(damped), damped)


def damping_radii(r4r2: Tensor, parameters: DampingParameters) -> Tensor:
    """Squared damping radius of each pair of elements: (S,) -> (S, S) Bohr^2."""
    return (parameters.a1 * (3.0 * r4r2.unsqueeze(0) * r4r2.unsqueeze(1)).sqrt() + parameters.a2).square()


def dense_c6(weights: Tensor, data: D4Data) -> Tensor:
    """C6 coefficients of all pairs of each system: (B, N, R) -> (B, N, N)."""
    return torch.matmul(torch.matmul(weights, data.reference_c6), weights.transpose(1, 2))


def largest_contact(data: D4Data, reach: float = CONTACT_REACH) -> float:
    """Distance (Bohr) beyond which no pair of atoms counts as neighbours."""
    return 2.0 * reach * float(data.covalent_radius.max())
