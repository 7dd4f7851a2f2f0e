"""Axilrod-Teller-Muto three-body dispersion over pair lists, images of a cell included, as pure functions of tensors.

Source: Grimme, Antony, Ehrlich, Krieg, J. Chem. Phys. 132, 154104 (2010), eqs. 11 to 14. Atomic units throughout.

Every triangle of atoms is met once, at its source: pairs are directed along an order of all atoms and images that no
lattice translation changes (`directed_pairs`), so that each triangle has exactly one corner from which two of its
sides start. Around each source the triangles are an upper triangle of a (targets x targets) block, worked out with
dense operations and no gathering. Memory is that of one chunk of blocks, except where derivatives are left to plain
automatic differentiation.
n: slots of the batch (B * N), P: directed pairs, S: elements, R: reference systems; A: sources of a chunk,
M: most targets of one of them, J and K: rows and columns of a part of their blocks.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor

from aimnet2mult.physics.switching import beyond_start, smooth_cutoff, switch_and_slope

COINCIDENT: Final = 1e-6  # Bohr^2: below this two atoms are one; far above the rounding of a distance by cosines
CHUNK_ENTRIES: Final = 100_000  # triangles worked out at a time; the arrays of a chunk then stay near the cache
DENSE_ROWS: Final = 32  # blocks up to this size are not cut into parts
PARTS: Final = 4  # of larger blocks: 4 parts leave 1/4 of the entries below the diagonal instead of 1


class DirectedPairs(NamedTuple):
    """Pairs in rising order of their source; the target stands at coord[target] + shift @ cell."""

    source: Tensor  # (P,) int64 slot
    target: Tensor  # (P,) int64 slot
    shift: Tensor  # (P, 3) integer lattice translations; (0, 3): no pair has one
    vector: Tensor  # (P, 3) Bohr, from source to target


class TripleTerm(NamedTuple):
    """What the energy of a triangle depends on besides its geometry."""

    weights: Tensor  # (n, R) weight of every reference system in every atom
    reference_c6: Tensor  # (R, R)
    species: Tensor  # (n,) int64 place of each atom among the S elements
    radius2: Tensor  # (S, S) Bohr^2, squared radii of the damping
    s9: float
    exponent: float  # alpha of eq. 14
    cutoff: float  # Bohr, for each side of a triangle
    width: float  # Bohr, range before the cutoff over which each side is switched off; 0: a sharp cutoff


class TripleGradient(NamedTuple):
    """Three-body energy and, where asked for, its derivatives."""

    energy: Tensor  # (n,) Hartree, each triangle booked on its source
    vector: Tensor  # (P, 3)
    weights: Tensor  # (n, R)


class _Block(NamedTuple):
    """Sources of a chunk with their targets; padded targets repeat the last real one."""

    vector: Tensor  # (A, M, 3) Bohr
    source_weights: Tensor  # (A, R)
    target_weights: Tensor  # (A, M, R)
    source_species: Tensor  # (A,)
    target_species: Tensor  # (A, M)
    degree: Tensor  # (A,) real targets


class _SourceSides(NamedTuple):
    """Sides between the sources of a chunk and their targets."""

    r2: Tensor  # (A, K) Bohr^2
    c6: Tensor  # (A, K)
    strength: Tensor  # (A, K) sqrt(C6 / r^6), switched off at the cutoff
    damping: Tensor  # (A, K) (R / r)^(alpha / 3)


def directed_pairs(first: Tensor, second: Tensor, shift: Tensor, vector: Tensor) -> DirectedPairs:
    """Direct the pairs of a half list along the order (lattice translation, atom) and sort them by source.

    Parameters
    ----------
    first, second
        (P,) slots of a half list: each pair once.
    shift
        (P, 3) integer translations of the second atom; (0, 3): no pair has one.
    vector
        (P, 3) Bohr, from the first to the second atom.
    """
    forward = second > first
    if shift.shape[0] > 0:
        s0, s1, s2 = shift.unbind(1)
        leading = torch.where(s0 != 0, s0, torch.where(s1 != 0, s1, s2))
        forward = (leading > 0) | ((leading == 0) & forward)
    source = torch.where(forward, first, second)
    order = torch.argsort(source, stable=True)
    sign = (forward.to(torch.int64) * 2 - 1).unsqueeze(1)
    if shift.shape[0] > 0:
        shift = (shift * sign.to(shift.dtype)).index_select(0, order)
    return DirectedPairs(
        source.index_select(0, order),
        torch.where(forward, second, first).index_select(0, order),
        shift,
        (vector * sign.to(vector.dtype)).index_select(0, order),
    )


def count_triples(pairs: DirectedPairs) -> int:
    """Number of pairs of targets over all sources: an upper bound of the number of triangles."""
    degree = torch.bincount(pairs.source)
    return int((degree * (degree - 1)).sum()) // 2


def triple_energy(pairs: DirectedPairs, term: TripleTerm) -> Tensor:
    """Three-body energy, left to plain automatic differentiation: memory grows with the number of triangles.

    E3 = s9 sum_{i<j<k} C9 (1 + 3 cos a cos b cos c) / [(r_ij r_jk r_ki)^3 (1 + 6 (R / r)^alpha)] with
    C9 = sqrt(C6_ij C6_jk C6_ki) and the geometric means r, R of the distances and of the damping radii.

    Parameters
    ----------
    pairs
        Directed pairs within the cutoff of `term`.

    Returns
    -------
    Tensor
        (n,) Hartree, each triangle booked on its source.
    """
    energy = torch.zeros_like(term.weights[:, 0])
    degree = torch.bincount(pairs.source, minlength=energy.shape[0])
    for members, index in _chunks(degree):
        block = _block(pairs, term, members, index, degree)
        n_targets = index.shape[1]
        rows = _rows(n_targets)
        for begin in range(0, n_targets - 1, rows):
            part = _part_energy(block, term, begin, min(begin + rows, n_targets))
            energy = energy.index_add(0, members, part)
    return energy


def triple_gradient(pairs: DirectedPairs, term: TripleTerm, gradient: bool) -> TripleGradient:
    """Three-body energy with first derivatives worked out chunk by chunk, in memory that does not grow with triangles.

    Parameters
    ----------
    pairs
        Directed pairs within the cutoff of `term`.
    gradient
        False: the energy only; the derivatives are zeros.
    """
    weights = term.weights.detach()
    energy = torch.zeros_like(weights[:, 0])
    by_vector = torch.zeros_like(pairs.vector).detach()
    by_weights = torch.zeros_like(weights)
    fixed = DirectedPairs(pairs.source, pairs.target, pairs.shift, pairs.vector.detach())
    degree = torch.bincount(pairs.source, minlength=energy.shape[0])
    for members, index in _chunks(degree):
        block = _block(fixed, _with_weights(term, weights), members, index, degree)
        n_targets = index.shape[1]
        rows = _rows(n_targets)
        targets = fixed.target[index]
        for begin in range(0, n_targets - 1, rows):
            end = min(begin + rows, n_targets)
            if not gradient:
                energy.index_add_(0, members, _part_energy(block, term, begin, end))
                continue
            part, vector, source_weights, target_weights = _part_gradient(block, term, begin, end)
            energy.index_add_(0, members, part)
            by_vector.index_add_(0, index.flatten(), vector.flatten(0, 1))
            by_weights.index_add_(0, members, source_weights)
            by_weights.index_add_(0, targets.flatten(), target_weights.flatten(0, 1))
    return TripleGradient(energy, by_vector, by_weights)


def _with_weights(term: TripleTerm, weights: Tensor) -> TripleTerm:
    return TripleTerm(
        weights, term.reference_c6, term.species, term.radius2, term.s9, term.exponent, term.cutoff, term.width
    )


def _rows(n_targets: int, dense: int = DENSE_ROWS, parts: int = PARTS, entries: int = CHUNK_ENTRIES) -> int:
    """Rows of a block that are worked out at a time."""
    if n_targets <= dense:
        return n_targets
    return max(1, min((n_targets + parts - 1) // parts, entries // n_targets))


def _chunks(degree: Tensor, entries: int = CHUNK_ENTRIES) -> list[tuple[Tensor, Tensor]]:
    """Group the sources by their number of targets: (A,) slots, and (A, M) numbers of their pairs."""
    order = torch.argsort(degree, descending=True)
    starts = (torch.cumsum(degree, 0) - degree)[order]
    sizes: list[int] = degree[order].tolist()
    chunks: list[tuple[Tensor, Tensor]] = []
    begin = 0
    while begin < len(sizes) and sizes[begin] > 1:
        n_targets = sizes[begin]
        most = max(1, entries // (_rows(n_targets) * n_targets))
        end = begin + 1
        # sources with much fewer targets wait for a chunk with less padding
        while end < len(sizes) and end - begin < most and sizes[end] > 1 and 5 * sizes[end] >= 4 * n_targets - 16:
            end += 1
        targets = torch.arange(n_targets, device=degree.device).unsqueeze(0)
        last = degree[order[begin:end]].unsqueeze(1) - 1
        chunks.append((order[begin:end], starts[begin:end].unsqueeze(1) + torch.minimum(targets, last)))
        begin = end
    return chunks


def _block(pairs: DirectedPairs, term: TripleTerm, members: Tensor, index: Tensor, degree: Tensor) -> _Block:
    targets = pairs.target[index]
    return _Block(
        pairs.vector[index],
        term.weights[members],
        term.weights[targets],
        term.species[members],
        term.species[targets],
        degree[members],
    )


def _part_gradient(block: _Block, term: TripleTerm, begin: int, end: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Energy (A,) of a part of the blocks and its derivatives by vectors, source weights and target weights.

    The derivatives are written out. With squared sides a (row), b (column), c of a triangle, P = 3 cos cos cos,
    X = (R / r)^alpha and the energy e = g (1 + P), all logarithmic derivatives share
    e (alpha X / (1 + 6 X) - 3/2) - g P; the rest comes from the numerator of P, (a + b - c) (c^2 - (a - b)^2).
    """
    n_rows = end - begin
    source = _source_sides(block, term, begin)
    kept, c, c6, radius2 = _target_sides(block, term, begin, end, source.r2)
    a, b = source.r2[:, :n_rows].unsqueeze(2), source.r2.unsqueeze(1)
    inverse = c.reciprocal()
    x = (radius2 * inverse).pow_(term.exponent / 6.0)
    x.mul_(6.0 * source.damping[:, :n_rows].unsqueeze(2)).mul_(source.damping.unsqueeze(1))
    strengths = (inverse * inverse).mul_(inverse).mul_(c6).sqrt_().mul_(kept)
    ending, ending_slope = _end(strengths, c, term)
    strengths.mul_(term.s9 * source.strength[:, :n_rows].unsqueeze(2)).mul_(source.strength.unsqueeze(1))
    g = strengths.div_(1.0 + x)
    damped = x.div_(1.0 + x)

    linear = (a + b).sub_(c)
    product = (c * c).sub_((a - b).square_())
    g_scaled = (g * inverse).mul_(0.375 / a).mul_(1.0 / b)
    by_linear = g_scaled * product
    by_product = g_scaled.mul_(linear)
    g_cosines = by_linear * linear
    triples = g.add_(g_cosines)
    shared = damped.mul_(term.exponent / 6.0).sub_(1.5).mul_(triples).sub_(g_cosines)
    by_c = (shared * inverse).sub_(by_linear).add_((2.0 * c).mul_(by_product))
    if ending.shape[0] > 0:
        by_c.view(-1).index_add_(0, ending, ending_slope.mul_(triples.view(-1).index_select(0, ending)))

    row_sum, column_sum = triples.sum(2), triples.sum(1)
    by_a = shared.sum(2) / source.r2[:, :n_rows] + by_linear.sum(2)
    by_a = by_a - 2.0 * (
        source.r2[:, :n_rows] * by_product.sum(2) - torch.bmm(by_product, b.transpose(1, 2)).squeeze(2)
    )
    by_b = shared.sum(1) / source.r2 + by_linear.sum(1)
    by_b = by_b + 2.0 * (torch.bmm(a.transpose(1, 2), by_product).squeeze(1) - source.r2 * by_product.sum(1))
    if term.width > 0.0 and beyond_start(source.r2, term.cutoff, term.width):
        switch, switch_slope = switch_and_slope(source.r2, term.cutoff, term.width)
        slope = _log_slope(switch, switch_slope)
        by_a = by_a + slope[:, :n_rows] * row_sum
        by_b = by_b + slope * column_sum

    vector, weights = block.vector[:, begin:], block.target_weights[:, begin:]
    by_vector = torch.zeros_like(block.vector)
    rows, columns = by_vector[:, begin:end], by_vector[:, begin:]
    rows.add_((by_a + by_c.sum(2)).unsqueeze(2) * vector[:, :n_rows]).sub_(torch.bmm(by_c, vector))
    columns.add_((by_b + by_c.sum(1)).unsqueeze(2) * vector)
    columns.sub_(torch.bmm(by_c.transpose(1, 2), vector[:, :n_rows]))

    by_c6 = triples.div_(c6)
    by_source_c6 = column_sum / source.c6
    by_source_c6[:, :n_rows].add_(row_sum / source.c6[:, :n_rows])
    projected = weights @ term.reference_c6
    by_target = torch.zeros_like(block.target_weights)
    by_target[:, begin:end].add_(torch.bmm(by_c6, projected))
    by_target[:, begin:].add_(torch.bmm(by_c6.transpose(1, 2), projected[:, :n_rows]))
    by_target[:, begin:].add_(by_source_c6.unsqueeze(2) * (block.source_weights @ term.reference_c6).unsqueeze(1))
    by_source = torch.bmm(by_source_c6.unsqueeze(1), projected).squeeze(1)
    return row_sum.sum(1), 2.0 * by_vector, 0.5 * by_source, 0.5 * by_target


def _end(strengths: Tensor, r2: Tensor, term: TripleTerm) -> tuple[Tensor, Tensor]:
    """Switch off strengths (A, J, K) of sides in place.

    Returns
    -------
    tuple of Tensor
        Places of the sides that are not as they were, and the derivative of the logarithm of the switch by r2 there.
    """
    if term.width <= 0.0 or not beyond_start(r2, term.cutoff, term.width):
        nothing = torch.zeros(0, dtype=torch.int64, device=r2.device)
        return nothing, r2.view(-1).index_select(0, nothing)
    start = term.cutoff - term.width
    # few of all sides, so that a search for them pays
    ending = (r2.view(-1) > start * start).nonzero().squeeze(-1)
    switch, slope = switch_and_slope(r2.view(-1).index_select(0, ending), term.cutoff, term.width)
    strengths.view(-1).scatter_(0, ending, strengths.view(-1).index_select(0, ending).mul_(switch))
    return ending, _log_slope(switch, slope)


def _log_slope(switch: Tensor, slope: Tensor) -> Tensor:
    """Derivative of the logarithm of a switch, given its derivative; 0 where the switch is 0."""
    return torch.where(switch > 0.0, slope / switch, torch.zeros_like(slope))


def _source_sides(block: _Block, term: TripleTerm, begin: int) -> _SourceSides:
    """Sides from the sources to target `begin` and later ones."""
    vector = block.vector[:, begin:]
    weights = block.target_weights[:, begin:]
    r2 = vector.square().sum(-1)
    c6 = torch.bmm(weights, (block.source_weights @ term.reference_c6).unsqueeze(2)).squeeze(2)
    kind = block.source_species.unsqueeze(1) * term.radius2.shape[0] + block.target_species[:, begin:]
    strength = (c6 / (r2 * r2 * r2)).sqrt()
    if term.width > 0.0 and beyond_start(r2, term.cutoff, term.width):
        strength = strength * smooth_cutoff(r2, term.cutoff, term.width)
    return _SourceSides(r2, c6, strength, (term.radius2.flatten()[kind] / r2) ** (term.exponent / 6.0))


def _target_sides(
    block: _Block, term: TripleTerm, begin: int, end: int, r2: Tensor, coincident: float = COINCIDENT
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sides (A, J, K) between targets: whether they close a triangle, r^2 (1 if not), C6, squared damping radius."""
    vector = block.vector[:, begin:]
    weights = block.target_weights[:, begin:]
    species = block.target_species[:, begin:]
    n_rows = end - begin
    sums = r2[:, :n_rows].unsqueeze(2) + r2.unsqueeze(1)
    c = torch.baddbmm(sums, vector[:, :n_rows], vector.transpose(1, 2), alpha=-2)
    number = torch.arange(begin, begin + vector.shape[1], device=c.device)
    kept = (number.unsqueeze(0) > number[:n_rows].unsqueeze(1)) & (number < block.degree.view(-1, 1, 1))
    # written so that a distance that is not a number stays and shows in the energy
    kept = kept & ~((c > term.cutoff * term.cutoff) | (c < coincident))
    c = torch.where(kept, c, torch.ones_like(c))
    c6 = torch.bmm(weights[:, :n_rows] @ term.reference_c6, weights.transpose(1, 2))
    place = torch.nn.functional.one_hot(species, term.radius2.shape[0]).to(c.dtype)
    return kept, c, c6, torch.bmm(term.radius2[species[:, :n_rows]], place.transpose(1, 2))


def _part_energy(block: _Block, term: TripleTerm, begin: int, end: int) -> Tensor:
    """Energy (A,) of the triangles whose second corner is target `begin` to `end` - 1, the third a later target."""
    n_rows = end - begin
    source = _source_sides(block, term, begin)
    kept, c, c6, radius2 = _target_sides(block, term, begin, end, source.r2)
    a, b = source.r2[:, :n_rows].unsqueeze(2), source.r2.unsqueeze(1)
    last = (c6 / (c * c * c)).sqrt()
    if term.width > 0.0 and beyond_start(c, term.cutoff, term.width):
        last = last * smooth_cutoff(c, term.cutoff, term.width)
    # 8 cos cos cos, by the law of cosines
    cosines = (a + b - c) * (c * c - (a - b).square()) / (a * b * c)
    dampings = source.damping[:, :n_rows].unsqueeze(2) * source.damping.unsqueeze(1)
    dampings = dampings * (radius2 / c) ** (term.exponent / 6.0)
    strengths = source.strength[:, :n_rows].unsqueeze(2) * source.strength.unsqueeze(1) * last
    triples = strengths * (1.0 + 0.375 * cosines) / (1.0 + 6.0 * dampings)
    return term.s9 * torch.where(kept, triples, torch.zeros_like(triples)).sum((1, 2))
