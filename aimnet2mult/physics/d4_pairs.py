"""Lists of pairs of atoms of a batch, images of a cell included: their vectors and the way back to the atoms.

B: systems, N: slots of the largest, n = B * N, P: pairs, T: different lattice translations, S: elements.
All functions can be scripted.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor

COINCIDENT: Final = 1e-12  # Bohr^2; the dftd4 package skips closer pairs too
CHUNK_PAIRS: Final = 500_000
LARGEST_TABLE: Final = 1_000_000  # translations; a table of all up to the largest, or of those that occur


class HalfList(NamedTuple):
    """Pairs of atoms, each once; the second atom stands at coord[second] + translations[image] @ cell."""

    first: Tensor  # (P,) int64 slot b * N + i
    second: Tensor  # (P,) int64 slot b * N + j
    image: Tensor  # (P,) int64; (0,) where there are no translations
    translations: Tensor  # (T, 3) int64; (0, 3): no pair has one


def all_pairs_list(real: Tensor) -> HalfList:
    """All pairs i < j of real atoms of each molecule, in rising order of i: (B, N) bool -> HalfList."""
    n_slots = real.shape[1]
    dense = (real.unsqueeze(1) & real.unsqueeze(2)).triu(1).flatten().nonzero().squeeze(1)
    first = torch.div(dense, n_slots, rounding_mode="floor")
    second = torch.div(first, n_slots, rounding_mode="floor") * n_slots + dense % n_slots
    return HalfList(first, second, first[:0], first[:0].view(0, 1).expand(-1, 3))


def half_list(first: Tensor, second: Tensor, shift: Tensor, largest: int = LARGEST_TABLE) -> HalfList:
    """Pairs in rising order of their first atom, with a table of their translations.

    Parameters
    ----------
    first, second
        (P,) slots, in any order.
    shift
        (P, 3) integer lattice translations of the second atom; (0, 3): no pair has one.
    """
    if not bool((first[1:] >= first[:-1]).all()):
        order = torch.argsort(first, stable=True)
        first, second = first[order], second[order]
        shift = shift[order] if shift.shape[0] > 0 else shift
    none = HalfList(first, second, first[:0], first[:0].view(0, 1).expand(-1, 3))
    if shift.shape[0] == 0:
        return none
    low, high = shift.amin(0).to(torch.int64), shift.amax(0).to(torch.int64)
    spans: list[int] = (high - low + 1).tolist()
    lows: list[int] = low.tolist()
    if max(spans) == 1 and max(lows) == 0 and min(lows) == 0:
        return none
    if spans[0] * spans[1] * spans[2] > largest:
        translations, image = torch.unique(shift.to(torch.int64), dim=0, return_inverse=True)
        return HalfList(first, second, image, translations)
    s0, s1, s2 = shift.unbind(1)
    image = ((s0.to(torch.int64) - lows[0]) * spans[1] + (s1 - lows[1])) * spans[2] + (s2 - lows[2])
    ranges = [torch.arange(lows[axis], lows[axis] + spans[axis], device=shift.device) for axis in range(3)]
    return HalfList(first, second, image, torch.cartesian_prod(ranges[0], ranges[1], ranges[2]))


def select(pairs: HalfList, index: Tensor) -> HalfList:
    """Keep the pairs with the given numbers."""
    image = pairs.image
    if image.shape[0] > 0:
        image = image.index_select(0, index)
    return HalfList(pairs.first.index_select(0, index), pairs.second.index_select(0, index), image, pairs.translations)


def between(pairs: HalfList, begin: int, end: int) -> HalfList:
    """Keep the pairs `begin` to `end` - 1, without copying."""
    image = pairs.image
    if image.shape[0] > 0:
        image = image[begin:end]
    return HalfList(pairs.first[begin:end], pairs.second[begin:end], image, pairs.translations)


def pair_vectors(coord: Tensor, cell: Tensor, pairs: HalfList) -> tuple[Tensor, Tensor, Tensor]:
    """Components (P,) of the vectors from first to second atom; coord (B, N, 3) and cell (B, 3, 3) in Bohr."""
    # one column per Cartesian axis: gathering scalars differentiates far quicker than gathering rows
    x, y, z = coord.reshape(-1, 3).unbind(1)
    dx = x.index_select(0, pairs.second) - x.index_select(0, pairs.first)
    dy = y.index_select(0, pairs.second) - y.index_select(0, pairs.first)
    dz = z.index_select(0, pairs.second) - z.index_select(0, pairs.first)
    if pairs.image.shape[0] > 0:
        table = torch.matmul(pairs.translations.to(coord.dtype).unsqueeze(0), cell)
        place = _table_place(pairs, coord.shape[0], coord.shape[1])
        tx, ty, tz = table.reshape(-1, 3).unbind(1)
        dx = dx + tx.index_select(0, place)
        dy = dy + ty.index_select(0, place)
        dz = dz + tz.index_select(0, place)
    return dx, dy, dz


def _table_place(pairs: HalfList, n_systems: int, n_slots: int) -> Tensor:
    """Place (P,) of each pair in a table (B, T) of the translations of each system."""
    if n_systems == 1:
        return pairs.image
    return torch.div(pairs.first, n_slots, rounding_mode="floor") * pairs.translations.shape[0] + pairs.image


def squared_distance(coord: Tensor, cell: Tensor, pairs: HalfList) -> Tensor:
    """Squared distance (P,) of each pair, Bohr^2."""
    dx, dy, dz = pair_vectors(coord, cell, pairs)
    return dx * dx + dy * dy + dz * dz


def pair_kinds(species: Tensor, pairs: HalfList, n_species: int) -> Tensor:
    """Species of the first atom * S + species of the second (P,)."""
    return species.index_select(0, pairs.first) * n_species + species.index_select(0, pairs.second)


def pairs_within(
    coord: Tensor,
    cell: Tensor,
    pairs: HalfList,
    species: Tensor,
    limits: list[Tensor],
    coincident: float = COINCIDENT,
    chunk: int = CHUNK_PAIRS,
) -> list[HalfList]:
    """For each table of squared distances (S, S) in Bohr^2: the pairs closer than it says, none of them coincident.

    Distances are worked out once, as constants.
    """
    coord, cell = coord.detach(), cell.detach()
    none = torch.zeros(0, dtype=torch.int64, device=coord.device)
    numbers: list[list[Tensor]] = [[none] for _ in limits]
    n_pairs = pairs.first.shape[0]
    for begin in range(0, n_pairs, chunk):
        part = between(pairs, begin, min(begin + chunk, n_pairs))
        r2 = squared_distance(coord, cell, part)
        kind = pair_kinds(species, part, limits[0].shape[0])
        apart = ~(r2 < coincident)
        for which in range(len(limits)):
            # written so that a distance that is not a number stays in the list and shows in the energy
            near = apart & ~(r2 > limits[which].reshape(-1).index_select(0, kind))
            numbers[which].append(near.nonzero().squeeze(1) + begin)
    found: list[HalfList] = []
    for parts in numbers:
        kept = torch.cat(parts)
        found.append(pairs if kept.shape[0] == n_pairs else select(pairs, kept))
    return found


def chain_to_atoms(
    by_vector: tuple[Tensor, Tensor, Tensor], pairs: HalfList, n_systems: int, n_slots: int
) -> tuple[Tensor, Tensor]:
    """Derivatives by pair vectors (three components (P,)) -> by coordinates (B, N, 3) and cells (B, 3, 3)."""
    columns: list[Tensor] = []
    rows: list[Tensor] = []
    n_images = pairs.translations.shape[0]
    place = pairs.image
    if place.shape[0] > 0:
        place = _table_place(pairs, n_systems, n_slots)
    for component in by_vector:
        column = torch.zeros(n_systems * n_slots, dtype=component.dtype, device=component.device)
        columns.append(column.index_add(0, pairs.second, component).index_add(0, pairs.first, -component))
        table = torch.zeros(n_systems * n_images, dtype=component.dtype, device=component.device)
        if place.shape[0] > 0:
            table = table.index_add(0, place, component)
        rows.append(table.view(n_systems, n_images) @ pairs.translations.to(component.dtype))
    return torch.stack(columns, 1).view(n_systems, n_slots, 3), torch.stack(rows, 2)
