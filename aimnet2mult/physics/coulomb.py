"""Long-range Coulomb energy of atomic point charges, in molecules and periodic systems.

Within a short range rc the network learns the interaction. What is added to it is the Coulomb sum of a method minus
k_e sum_pairs f(r) q_i q_j / r, where f switches from 1 to 0 at rc (`exponential_cutoff`; Chem. Sci. 2025, 16, 10228).

Methods: the plain sum over all pairs, Ewald summation, which is its limit in a cell that is periodic in all
directions, and the damped shifted force (DSF) of [1] Fennell, Gezelter, J. Chem. Phys. 124, 234104 (2006).
B: molecules, N: slots of the largest, P: pairs of a list, n: atoms of one molecule.
"""

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor

from aimnet2mult.physics import ewald
from aimnet2mult.physics.ewald import ACCURACY
from aimnet2mult.physics.pair_sums import linear_surrogate, pair_displacements
from aimnet2mult.physics.radial import exponential_cutoff
from aimnet2mult.types import NeighborLists, Pairs
from aimnet2mult.units import COULOMB_EV_ANGSTROM

MAX_PAIRS: Final = 2_000_000  # more pairs than this are summed in chunks of half as many


class Screening(NamedTuple):
    """The pair potential erfc(a r) / r + offset + slope r within a cutoff, one set of numbers per molecule."""

    alpha: Tensor  # (B,) float64 1/Å
    cutoff: Tensor  # (B,) float64 Å; 0: only the short range is subtracted; below 0: no pair of this molecule counts
    offset: Tensor  # (B,) float64 1/Å
    slope: Tensor  # (B,) float64 1/Å^2


def simple_coulomb(
    charges: Tensor, pairs: Pairs, cutoff: float, coulomb_constant: float = COULOMB_EV_ANGSTROM
) -> Tensor:
    """Coulomb energy of all pairs, switched off smoothly at short range.

    E = k_e / 2 sum_{i != j} [1 - f(d_ij)] q_i q_j / d_ij with f from `exponential_cutoff`: within the
    cutoff the network learns the interaction (Chem. Sci. 2025, 16, 10228).

    Parameters
    ----------
    charges
        (B, N) e, 0 on padding.
    pairs
        All pairs of each molecule.
    cutoff
        Å.
    coulomb_constant
        e^2 / (4 pi eps0) in eV Å (an argument because TorchScript sees no module constants).

    Returns
    -------
    Tensor
        (B,) float64 eV.
    """
    kernel = (1.0 - exponential_cutoff(pairs.distance, cutoff)) / pairs.distance
    return _all_pairs_energy(charges, pairs, kernel) * coulomb_constant


def dsf_coulomb(
    charges: Tensor,
    pairs: Pairs,
    short_range: float,
    alpha: float,
    cutoff: float,
    coulomb_constant: float = COULOMB_EV_ANGSTROM,
) -> Tensor:
    """Damped shifted force energy of all pairs, minus the short range. See `dsf_screening`.

    Parameters
    ----------
    charges
        (B, N) e, 0 on padding.
    pairs
        All pairs of each molecule.
    short_range
        rc, Å.
    alpha, cutoff
        Damping in 1/Å and cutoff in Å.

    Returns
    -------
    Tensor
        (B,) float64 eV.
    """
    screening = dsf_screening(1, alpha, cutoff, charges.device)
    distance = pairs.distance.to(torch.float64)
    kernel = screened_kernel(distance, screening) - exponential_cutoff(distance, short_range) / distance
    energy = _all_pairs_energy(charges, pairs, kernel) + dsf_self_energy(charges, screening)
    return energy * coulomb_constant


def _all_pairs_energy(charges: Tensor, pairs: Pairs, kernel: Tensor) -> Tensor:
    """1/2 sum_{i != j} q_i q_j kernel_ij: (B,) float64 e^2/Å."""
    kernel = torch.where(pairs.mask, kernel, torch.zeros_like(kernel)).to(torch.float64)
    q = charges.to(torch.float64)
    return 0.5 * torch.einsum("bj,bji,bi->b", q, kernel, q)


def dsf_screening(n_molecules: int, alpha: float, cutoff: float, device: torch.device) -> Screening:
    """Damped shifted force: erfc(a r) / r made to end at the cutoff without a jump in energy or force ([1], eq. 18)."""
    value = math.erfc(alpha * cutoff) / cutoff
    slope = (value + 2.0 * alpha / math.sqrt(math.pi) * math.exp(-((alpha * cutoff) ** 2))) / cutoff
    return screening_of(alpha, cutoff, -value - slope * cutoff, slope, n_molecules, device)


def screening_of(
    alpha: float, cutoff: float, offset: float, slope: float, n_molecules: int, device: torch.device
) -> Screening:
    """The same numbers for some molecules."""
    # torch.tensor of Python numbers would pass through single precision in TorchScript, torch.full does not
    return Screening(
        torch.full((n_molecules,), alpha, dtype=torch.float64, device=device),
        torch.full((n_molecules,), cutoff, dtype=torch.float64, device=device),
        torch.full((n_molecules,), offset, dtype=torch.float64, device=device),
        torch.full((n_molecules,), slope, dtype=torch.float64, device=device),
    )


def dsf_self_energy(charges: Tensor, screening: Screening) -> Tensor:
    """Energy of every charge in its own screening and neutralising images: (B,) e^2/Å.

    1/2 q_i^2 lim_{r -> 0} [V(r) - 1/r] = q_i^2 (offset / 2 - a / sqrt(pi)), what [1], eq. 18 makes of the self term of
    Wolf et al., J. Chem. Phys. 110, 8254 (1999). [1] leaves it out, because it is constant for fixed
    charges. Here charges vary with the geometry, and without it no energy comes near that of an Ewald sum.
    """
    own = 0.5 * screening.offset - screening.alpha / math.sqrt(math.pi)
    return own * charges.to(torch.float64).square().sum(1)


def screened_kernel(distance: Tensor, screening: Screening) -> Tensor:
    """Pair potential (1/Å) at distances of any shape, to which the fields of `screening` must broadcast."""
    value = torch.erfc(screening.alpha * distance) / distance + screening.offset + screening.slope * distance
    return torch.where(distance < screening.cutoff, value, torch.zeros_like(value))


def dsf_coulomb_list(
    charges: Tensor,
    coord: Tensor,
    lists: NeighborLists,
    short_range: float,
    alpha: float,
    cutoff: float,
    coulomb_constant: float = COULOMB_EV_ANGSTROM,
) -> Tensor:
    """Damped shifted force energy from a pair list that reaches to `cutoff` and `short_range`; see `dsf_coulomb`.

    `charges` (B, N) float64 e and `coord` (B, N, 3) float64 Å give (B,) float64 eV.
    """
    screening = dsf_screening(charges.shape[0], alpha, cutoff, charges.device)
    energy = list_energy(charges, coord, lists, screening, short_range) + dsf_self_energy(charges, screening)
    return energy * coulomb_constant


def exact_coulomb_list(
    charges: Tensor,
    coord: Tensor,
    numbers: Tensor,
    lists: NeighborLists,
    short_range: float,
    accuracy: float = ACCURACY,
    coulomb_constant: float = COULOMB_EV_ANGSTROM,
) -> Tensor:
    """Coulomb energy without approximation, minus the short range: Ewald sums of cells, all pairs of molecules.

    Parameters
    ----------
    charges
        (B, N) float64 e, 0 on padding. A charged cell gets a uniform neutralising background.
    coord
        (B, N, 3) float64 Å.
    numbers
        (B, N) atomic numbers, 0 = padding.
    lists
        Cells that are periodic in all directions or none; the pair list must reach to `short_range` and to
        `ewald.ewald_cutoff` of every cell, and is not looked at for molecules.
    short_range
        rc, Å.
    accuracy
        Of the Ewald sums.

    Returns
    -------
    Tensor
        (B,) float64 eV.

    Raises
    ------
    ValueError
        A cell is periodic in some directions only, or flat.
    """
    cells = lists.cell.to(torch.float64)
    check_cells(cells)
    alphas: list[float] = []
    screenings: list[Screening] = []
    for b, cell in enumerate(cells.detach()):
        volume = float(ewald.cell_volume(cell))
        cutoff = ewald.ewald_cutoff(int((numbers[b] > 0).sum()), volume, accuracy) if volume > 0.0 else -1.0
        alphas.append(ewald.ewald_alpha(cutoff, accuracy) if volume > 0.0 else 0.0)
        screenings.append(screening_of(alphas[b], cutoff, 0.0, 0.0, 1, charges.device))
    screening = Screening(
        torch.cat([one.alpha for one in screenings]),
        torch.cat([one.cutoff for one in screenings]),
        torch.cat([one.offset for one in screenings]),
        torch.cat([one.slope for one in screenings]),
    )
    energy = list_energy(charges, coord, lists, screening, short_range)
    rest: list[Tensor] = []
    for b, alpha in enumerate(alphas):
        atoms = (numbers[b] > 0).nonzero().squeeze(-1)
        q, x = charges[b].index_select(0, atoms), coord[b].index_select(0, atoms)
        if alpha > 0.0:
            k_max = 2.0 * alpha * ewald.splitting_exponent(accuracy)
            reciprocal = ewald.reciprocal_energy(q, x, cells[b], alpha, k_max)
            rest.append(reciprocal + ewald.self_energy(q, cells[b], alpha))
        else:
            rest.append(molecule_energy(q, x, short_range))
    return (energy + torch.stack(rest)) * coulomb_constant


def check_cells(cells: Tensor) -> None:
    """Refuse cells (B, 3, 3) for which a plain Coulomb sum has no limit.

    Raises
    ------
    ValueError
        A cell is periodic in one or two directions, or its vectors lie in a plane.
    """
    lengths = cells.detach().square().sum(2).sqrt()
    n_periodic = (lengths > 0.0).sum(1)
    if bool(((n_periodic == 1) | (n_periodic == 2)).any()):
        raise ValueError(
            "the Coulomb methods 'simple' and 'ewald' need a cell that is periodic in all three directions or in none; "
            "use 'dsf', or add vacuum and make all directions periodic"
        )
    for cell, length in zip(cells.detach(), lengths, strict=True):
        if bool(ewald.cell_volume(cell) < 1e-9 * length.prod()):
            raise ValueError("the cell vectors lie in a plane: give three that span a volume")


def list_energy(
    charges: Tensor,
    coord: Tensor,
    lists: NeighborLists,
    screening: Screening,
    short_range: float,
    max_pairs: int = MAX_PAIRS,
) -> Tensor:
    """Sum of q_i q_j [V(r) - f(r) / r] over the pairs of a list: (B,) float64 e^2/Å.

    Beyond `max_pairs` the sum runs over chunks whose graphs are forgotten: the result can then be differentiated once.
    """
    n_pairs = lists.pair_first.shape[0]
    cell = lists.cell.to(torch.float64)
    if n_pairs <= max_pairs:
        return _chunk_energy(charges, coord, cell, lists, screening, short_range, 0, n_pairs)
    differentiate = torch.is_grad_enabled() and (charges.requires_grad or coord.requires_grad or cell.requires_grad)
    leaves = [charges.detach(), coord.detach(), cell.detach()]
    gradients = [torch.zeros_like(leaf) for leaf in leaves]
    energy = torch.zeros(charges.shape[0], dtype=torch.float64, device=charges.device)
    chunk = max(1, max_pairs // 2)
    for start in range(0, n_pairs, chunk):
        q, x, c = [leaf.detach().requires_grad_(differentiate) for leaf in leaves]
        part = _chunk_energy(q, x, c, lists, screening, short_range, start, min(start + chunk, n_pairs))
        energy = energy + part.detach()
        if differentiate:
            for k, gradient in enumerate(torch.autograd.grad([part.sum()], [q, x, c])):
                assert gradient is not None
                gradients[k] += gradient
    energy = linear_surrogate(energy, charges, gradients[0])
    energy = linear_surrogate(energy, coord, gradients[1])
    return linear_surrogate(energy, cell, gradients[2])


def _chunk_energy(
    charges: Tensor,
    coord: Tensor,
    cell: Tensor,
    lists: NeighborLists,
    screening: Screening,
    short_range: float,
    start: int,
    stop: int,
) -> Tensor:
    """`list_energy` of the pairs from `start` to `stop`, whose distances are looked at before any graph is made."""
    n_molecules, n_slots = charges.shape
    first, second = lists.pair_first[start:stop], lists.pair_second[start:stop]
    shift = lists.pair_shift[start:stop]
    molecule = torch.div(first, n_slots, rounding_mode="floor")
    zero = torch.zeros_like(screening.cutoff)
    reach = torch.where(screening.cutoff < 0.0, zero, screening.cutoff.clamp(min=short_range))
    dx, dy, dz = pair_displacements(coord.detach(), cell.detach(), first, second, shift)
    # written so that a distance that is not a number stays in the sum and shows in the energy
    kept = (~((dx * dx + dy * dy + dz * dz) >= reach.square()[molecule])).nonzero().squeeze(-1)
    if kept.shape[0] != first.shape[0]:
        first, second, shift, molecule = first[kept], second[kept], shift[kept], molecule[kept]

    dx, dy, dz = pair_displacements(coord, cell, first, second, shift)
    distance = (dx * dx + dy * dy + dz * dz).sqrt()
    q = charges.flatten()
    product = q.index_select(0, first) * q.index_select(0, second)
    per_pair = Screening(
        screening.alpha[molecule], screening.cutoff[molecule], screening.offset[molecule], screening.slope[molecule]
    )
    near = (distance.detach() < short_range).nonzero().squeeze(-1)
    close = distance.index_select(0, near)
    switched = product.index_select(0, near) * exponential_cutoff(close, short_range) / close
    energy = torch.zeros(n_molecules, dtype=torch.float64, device=charges.device)
    energy = energy.index_add(0, molecule, product * screened_kernel(distance, per_pair))
    return energy.index_add(0, molecule[near], -switched)


def molecule_energy(charges: Tensor, coord: Tensor, short_range: float, max_pairs: int = MAX_PAIRS) -> Tensor:
    """Sum of q_i q_j [1 - f(r)] / r over all pairs of one molecule: () e^2/Å, in memory linear in its atoms.

    Parameters
    ----------
    charges
        (n,) float64 e, without padding.
    coord
        (n, 3) float64 Å.
    short_range
        rc, Å.
    max_pairs
        Beyond this number the sum runs over blocks of rows whose graphs are forgotten: the result can then be
        differentiated once.
    """
    n = charges.shape[0]
    if n * n <= max_pairs:
        return _block_energy(charges, coord, short_range, 0, n)
    differentiate = torch.is_grad_enabled() and (charges.requires_grad or coord.requires_grad)
    gradients = [torch.zeros_like(charges), torch.zeros_like(coord)]
    energy = torch.zeros_like(charges[0]).detach()
    n_rows = max(1, max_pairs // (10 * n))  # blocks that stay in the processor's cache
    for start in range(0, n, n_rows):
        q = charges.detach().requires_grad_(differentiate)
        x = coord.detach().requires_grad_(differentiate)
        part = _block_energy(q, x, short_range, start, min(start + n_rows, n))
        energy = energy + part.detach()
        if differentiate:
            for k, gradient in enumerate(torch.autograd.grad([part], [q, x])):
                assert gradient is not None
                gradients[k] += gradient
    total = linear_surrogate(energy.unsqueeze(0), charges.unsqueeze(0), gradients[0].unsqueeze(0))
    return linear_surrogate(total, coord.unsqueeze(0), gradients[1].unsqueeze(0))[0]


def _block_energy(charges: Tensor, coord: Tensor, short_range: float, start: int, stop: int) -> Tensor:
    """`molecule_energy` of the pairs i < j with i from `start` to `stop`, exclusive."""
    n_rows, n_columns = stop - start, coord.shape[0] - start
    counted = torch.ones((n_rows, n_columns), dtype=torch.bool, device=coord.device).triu(1)
    r2 = torch.zeros((n_rows, n_columns), dtype=coord.dtype, device=coord.device)
    for axis in coord.unbind(1):
        r2 = r2 + (axis[start:] - axis[start:stop].unsqueeze(1)).square()
    # at infinity 1/r and all its derivatives are zero
    r2 = torch.where(counted, r2, torch.full_like(r2, math.inf))
    energy = torch.dot(charges[start:stop], torch.mv(r2.rsqrt(), charges[start:]))
    near = (r2.detach() < short_range * short_range).flatten().nonzero().squeeze(-1)
    close = r2.flatten().index_select(0, near).sqrt()
    first = charges[start:stop].index_select(0, torch.div(near, n_columns, rounding_mode="floor"))
    second = charges[start:].index_select(0, near % n_columns)
    return energy - (first * second * exponential_cutoff(close, short_range) / close).sum()
