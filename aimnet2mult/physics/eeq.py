"""Atomic charges by electronegativity equilibration (EEQ), of molecules and of periodic cells, as pure functions.

Source: Caldeweyher et al., J. Chem. Phys. 150, 154122 (2019), eqs. 7 to 13. Atomic units throughout. Each atom holds a
Gaussian charge of width a; the charges minimise sum_i (chi_i - kappa_i sqrt(CN_i)) q_i + 1/2 q A q at a given
total, with A_ij = erf(g_ij r_ij) / r_ij, g_ij = (a_i^2 + a_j^2)^(-1/2) and A_ii = J_i + sqrt(2 / pi) / a_i. In a
crystal A is an Ewald sum over all images, here converged to rounding; a charged cell has a uniform background.

All functions can be scripted and differentiated twice.
B: systems, N: slots of the largest, n = B * N, S: elements, P: pairs, K: reciprocal vectors.
"""

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor

CN_CAP: Final = 8.0  # most neighbours that the charges notice
CN_FLOOR: Final = 1e-14  # keeps the square root of a coordination number differentiable at 0
COINCIDENT: Final = 1e-12  # Bohr^2
EWALD_DIGITS: Final = 6.0  # sums end where exp(-x^2) = 2e-16
MOST_ROWS_AT_ONCE: Final = 64  # of the matrices of a batch, see `solve_each`
REAL_SPACE_REACH: Final = 1.25  # of the real-space part of the lattice sum, in cube roots of the volume
ROOT_PI: Final = math.sqrt(math.pi)
ROOT_2_BY_PI: Final = math.sqrt(2.0 / math.pi)


class EEQData(NamedTuple):
    """Parameters of S elements in atomic units."""

    chi: Tensor  # (S,) electronegativity
    eta: Tensor  # (S,) hardness J
    kcn: Tensor  # (S,) kappa, the change of the electronegativity with the coordination number
    radius: Tensor  # (S,) width a


class PeriodicPairs(NamedTuple):
    """Pairs of a half list, images included, within `cutoff` or more."""

    first: Tensor  # (P,) int64 slot
    second: Tensor  # (P,) int64 slot
    r2: Tensor  # (P,) Bohr^2
    cutoff: float  # Bohr


class EwaldSplit(NamedTuple):
    """Where the lattice sum of one cell is split, and where both its parts end."""

    alpha: float  # 1/Bohr
    real_cutoff: float  # Bohr
    reciprocal_cutoff: float  # 1/Bohr


def limited_cn(cn: Tensor, cap: float = CN_CAP) -> Tensor:
    """Coordination number bent to stay below `cap`: log(1 + e^cap) - log(1 + e^(cap - cn)).

    The difference of the logarithms is taken analytically, once for small and once for large numbers: its rounding
    would show in the square root of a small number.
    """
    scale = 1.0 / (1.0 + math.exp(-cap))
    small = -torch.log1p(scale * torch.expm1(-cn))
    large = -torch.log(scale * (math.exp(-cap) + torch.exp(-cn)))
    return torch.where(cn < 1.0, small, large)


def driving_force(cn: Tensor, species: Tensor, data: EEQData, floor: float = CN_FLOOR) -> Tensor:
    """Right-hand side kappa sqrt(CN) - chi of the linear equations: (n,) limited coordination numbers -> (n,)."""
    return data.kcn[species] * cn / (cn + floor).sqrt() - data.chi[species]


def smallest_real_cutoff(radius: Tensor, digits: float = EWALD_DIGITS) -> float:
    """Distance (Bohr) from which on two Gaussian charges of any elements interact like points: (S,) -> float."""
    return digits * math.sqrt(2.0) * float(radius.max())


def equilibrated_charges(
    coord: Tensor,
    cell: Tensor,
    real: Tensor,
    charge: Tensor,
    force: Tensor,
    species: Tensor,
    data: EEQData,
    pairs: PeriodicPairs,
) -> Tensor:
    """EEQ charges of a padded batch.

    Parameters
    ----------
    coord
        (B, N, 3) Bohr.
    cell
        (B, 3, 3) Bohr; zeros for a molecule.
    real
        (B, N) bool, False on padding.
    charge
        (B,) total charges, e.
    force
        (B, N) right-hand side, see `driving_force`.
    species
        (B, N) int64 place of each atom among the elements; any valid place on padding.
    pairs
        Pairs of the periodic systems, at least up to `smallest_real_cutoff`; not looked at for molecules.

    Returns
    -------
    Tensor
        (B, N) e, 0 on padding.

    Raises
    ------
    ValueError
        A cell is periodic in one or two directions only.
    """
    matrix = coulomb_matrix(coord, cell, real, species, data, pairs)
    return solve_constrained(matrix, force, charge, real)


def solve_constrained(matrix: Tensor, force: Tensor, charge: Tensor, real: Tensor) -> Tensor:
    """Solve A q + lambda = x with sum q = Q: (B, N, N), (B, N), (B,), (B, N) bool -> (B, N).

    On padding A is the unit matrix and the result 0.
    """
    zero = torch.zeros_like(force)
    ones = real.to(force.dtype)
    empty = (~real.any(1)).to(force.dtype).view(-1, 1, 1)  # a system without atoms keeps the matrix regular
    bordered = torch.cat(
        [
            torch.cat([matrix, ones.unsqueeze(2)], 2),
            torch.cat([ones.unsqueeze(1), empty], 2),
        ],
        1,
    )
    right = torch.cat([torch.where(real, force, zero), charge.unsqueeze(1)], 1)
    charges = solve_each(bordered, right.unsqueeze(2)).squeeze(2)[:, :-1]
    return torch.where(real, charges, zero)


def solve_each(matrix: Tensor, right: Tensor, most_rows: int = MOST_ROWS_AT_ONCE) -> Tensor:
    """Solve A x = b for each of a batch: (B, N, N), (B, N, M) -> (B, N, M).

    On a CPU PyTorch (2.5 to 2.13 at least) hands the matrices of a batch to MKL on several threads at once, and MKL
    then factorises those of more than about 150 rows wrongly, with a message but without an error
    (github.com/pytorch/pytorch/issues/142815). One by one all is well.
    """
    if matrix.shape[0] == 1 or matrix.shape[1] <= most_rows or matrix.is_cuda:
        return torch.linalg.solve(matrix, right)
    return torch.stack([torch.linalg.solve(matrix[b], right[b]) for b in range(matrix.shape[0])])


def periodic_directions(cell: Tensor) -> int:
    """Number of periodic directions of a cell (3, 3): 3, or 0 for a molecule.

    Raises
    ------
    ValueError
        It is 1 or 2.
    """
    directions = int((cell != 0).any(1).sum())
    if directions == 1 or directions == 2:
        raise ValueError(
            "dispersion: D4 with EEQ charges needs a cell that is periodic in all three directions or in none, not "
            + str(directions)
            + "; set the third direction periodic with vacuum in it, or use D4 with the charges of the network, or D3"
        )
    return directions


def coulomb_matrix(
    coord: Tensor, cell: Tensor, real: Tensor, species: Tensor, data: EEQData, pairs: PeriodicPairs
) -> Tensor:
    """Interaction matrix A (B, N, N) of a batch, the unit matrix on padding."""
    if not bool((cell != 0).any()):
        return open_matrix(coord, real, species, data)
    rows: list[Tensor] = []
    for system in range(coord.shape[0]):
        atoms = (coord[system], real[system], species[system])
        if periodic_directions(cell[system]) == 0:
            one = open_matrix(atoms[0].unsqueeze(0), atoms[1].unsqueeze(0), atoms[2].unsqueeze(0), data)
            rows.append(one[0])
        else:
            rows.append(crystal_matrix(system, atoms[0], cell[system], atoms[1], atoms[2], data, pairs))
    return torch.stack(rows)


def open_matrix(coord: Tensor, real: Tensor, species: Tensor, data: EEQData) -> Tensor:
    """Interaction matrix (B, N, N) of molecules."""
    mask = real.unsqueeze(1) & real.unsqueeze(2)
    x, y, z = coord.unbind(2)
    r2 = (
        (x.unsqueeze(2) - x.unsqueeze(1)).square()
        + (y.unsqueeze(2) - y.unsqueeze(1)).square()
        + (z.unsqueeze(2) - z.unsqueeze(1)).square()
    )
    r2 = torch.where(mask, r2, torch.zeros_like(r2))
    radius = data.radius[species]
    interaction = gaussian_interaction(r2, pair_gamma(radius.unsqueeze(2), radius.unsqueeze(1)))
    own = torch.where(real, data.eta[species], torch.ones_like(x))
    return torch.where(mask, interaction, torch.zeros_like(r2)) + torch.diag_embed(own)


def pair_gamma(first: Tensor, second: Tensor) -> Tensor:
    """Exponent of the error function of two charges, from their widths."""
    return (first.square() + second.square()).rsqrt()


def gaussian_interaction(
    r2: Tensor, gamma: Tensor, coincident: float = COINCIDENT, two_by_root_pi: float = 2.0 / ROOT_PI
) -> Tensor:
    """erf(gamma r) / r, and its limit 2 gamma / sqrt(pi) where r is 0: an atom and itself, or two on one place."""
    # written so that a distance that is not a number stays and shows in the charges
    apart = ~(r2 < coincident)
    r = torch.where(apart, r2, torch.ones_like(r2)).sqrt()
    return torch.where(apart, torch.erf(gamma * r) / r, two_by_root_pi * gamma)


def self_interaction(species: Tensor, data: EEQData, root_2_by_pi: float = ROOT_2_BY_PI) -> Tensor:
    """J + sqrt(2 / pi) / a of each atom."""
    return data.eta[species] + root_2_by_pi / data.radius[species]


def self_correction(alpha: float, root_pi: float = ROOT_PI) -> float:
    """What the second error function of the splitting adds at distance 0."""
    return -2.0 * alpha / root_pi


def split_ewald(
    cell: Tensor,
    cutoff: float,
    radius: Tensor,
    alpha: float = 0.0,
    digits: float = EWALD_DIGITS,
    reach: float = REAL_SPACE_REACH,
) -> EwaldSplit:
    """Choose the splitting of the lattice sum of one cell (3, 3).

    The real part reaches somewhat more than a cell length, so that both parts cost about the same, but not beyond
    the cutoff of the pair list. `alpha` sets the splitting by hand instead.
    """
    nearest = smallest_real_cutoff(radius, digits)
    length = reach * float(torch.linalg.det(cell.detach()).abs()) ** (1.0 / 3.0)
    real_cutoff = max(nearest, digits / alpha) if alpha > 0.0 else max(nearest, min(length, cutoff))
    if real_cutoff > cutoff * (1.0 + 1e-9):
        raise ValueError(
            "dispersion: the charges need pairs up to " + str(real_cutoff) + " Bohr, but the pair list ends at "
            + str(cutoff) + " Bohr; build it with the cutoff that this potential asks for"
        )  # fmt: skip
    chosen = alpha if alpha > 0.0 else digits / real_cutoff
    return EwaldSplit(chosen, real_cutoff, 2.0 * chosen * digits)


def largest_real_cutoff(cell: Tensor, cutoff: float, radius: Tensor) -> float:
    """Distance (Bohr) up to which the lattice sums of any cell (B, 3, 3) of the batch need pairs, 0 for molecules."""
    largest = 0.0
    for system in range(cell.shape[0]):
        if periodic_directions(cell[system]) > 0:
            largest = max(largest, split_ewald(cell[system], cutoff, radius).real_cutoff)
    return largest


def crystal_matrix(
    system: int,
    coord: Tensor,
    cell: Tensor,
    real: Tensor,
    species: Tensor,
    data: EEQData,
    pairs: PeriodicPairs,
    alpha: float = 0.0,
) -> Tensor:
    """Interaction matrix (N, N) of one crystal by Ewald summation.

    A_ij = sum_T [erf(g r) - erf(alpha r)] / r + 4 pi / V sum_G exp(-G^2 / 4 alpha^2) / G^2 cos(G r_ij), the term
    without distance of the second error function taken off the diagonal. What the splitting leaves in the average of
    the potential is the same for all pairs and changes no charges.

    Parameters
    ----------
    system
        Number of the crystal in the batch, to find its pairs.
    coord, cell, real, species
        (N, 3) Bohr, 0 on padding; (3, 3) Bohr, (N,), (N,).
    alpha
        Splitting in 1/Bohr, 0: chosen by `split_ewald`.
    """
    n_slots = real.shape[0]
    split = split_ewald(cell, pairs.cutoff, data.radius, alpha)
    first = pairs.first - system * n_slots
    inside = (first >= 0) & (first < n_slots) & ~(pairs.r2 > split.real_cutoff * split.real_cutoff)
    kept = inside.nonzero().squeeze(1)
    i, j = first[kept], pairs.second[kept] - system * n_slots
    near = short_range(pairs.r2[kept], pair_gamma(data.radius[species[i]], data.radius[species[j]]), split.alpha)
    matrix = torch.zeros(n_slots * n_slots, dtype=coord.dtype, device=coord.device)
    matrix = matrix.index_add(0, i * n_slots + j, near).index_add(0, j * n_slots + i, near).view(n_slots, n_slots)

    vectors = reciprocal_vectors(reciprocal_numbers(cell, split.reciprocal_cutoff), cell)
    weight = reciprocal_weights(vectors, cell, split.alpha)
    phase = coord @ vectors.t()
    cosine, sine = phase.cos(), phase.sin()
    matrix = matrix + (cosine * weight) @ cosine.t() + (sine * weight) @ sine.t()

    matrix = matrix + torch.diag(self_interaction(species, data) + self_correction(split.alpha))
    mask = real.unsqueeze(0) & real.unsqueeze(1)
    return torch.where(mask, matrix, torch.eye(n_slots, dtype=coord.dtype, device=coord.device))


def short_range(r2: Tensor, gamma: Tensor, alpha: float) -> Tensor:
    """[erf(gamma r) - erf(alpha r)] / r of each pair."""
    r = r2.sqrt()
    return (torch.erfc(alpha * r) - torch.erfc(gamma * r)) / r


def reciprocal_numbers(cell: Tensor, cutoff: float) -> Tensor:
    """Integer coordinates (K, 3) of one of each two opposite reciprocal vectors up to `cutoff` (1/Bohr), without 0."""
    fixed = cell.detach()
    largest: list[float] = (fixed.square().sum(1).sqrt() * (cutoff / (2.0 * math.pi))).tolist()
    ranges = [torch.arange(-int(most) - 1, int(most) + 2, device=cell.device) for most in largest]
    number = torch.cartesian_prod(ranges[0], ranges[1], ranges[2])
    n0, n1, n2 = number.unbind(1)
    half = (n0 > 0) | ((n0 == 0) & ((n1 > 0) | ((n1 == 0) & (n2 > 0))))
    number = number[half].to(cell.dtype)
    return number[reciprocal_vectors(number, fixed).square().sum(1) <= cutoff * cutoff]


def reciprocal_vectors(numbers: Tensor, cell: Tensor) -> Tensor:
    """Reciprocal vectors (K, 3) in 1/Bohr from their integer coordinates (K, 3)."""
    return numbers @ (2.0 * math.pi * torch.linalg.inv(cell).t())


def reciprocal_weights(vectors: Tensor, cell: Tensor, alpha: float) -> Tensor:
    """Weight of both opposite vectors in the lattice sum: (K, 3) -> (K,)."""
    g2 = vectors.square().sum(1)
    return 8.0 * math.pi / torch.linalg.det(cell).abs() * torch.exp(-g2 / (4.0 * alpha * alpha)) / g2
