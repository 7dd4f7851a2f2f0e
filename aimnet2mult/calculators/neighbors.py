"""Neighbour lists of periodic and of large systems, reused while atoms move little."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import vesin
from numpy.typing import NDArray
from torch import Tensor

from aimnet2mult.physics.lattice import complete_cell, mapped

SKIN = 1.0  # Å; rebuilding every few dozen MD steps costs less than carrying more pairs
_EMPTY_CELL = np.eye(3)  # for vesin, which wants a cell even where nothing is periodic


class Frame(NamedTuple):
    """Positions and cell that neighbours are wanted for."""

    coord: NDArray[np.float64]  # (N, 3) Å
    cell: NDArray[np.float64]  # (3, 3) Å, one cell vector per row; zeros in directions that are not periodic


class FlatPairs(NamedTuple):
    """Pairs of atoms (first, second + shift @ cell), sorted by first atom, second atom and translation."""

    first: NDArray[np.int64]  # (P,)
    second: NDArray[np.int64]  # (P,)
    shift: NDArray[np.int32]  # (P, 3) lattice translations


class Nearest(NamedTuple):
    """The shortest distance between two atoms or images of atoms."""

    first: int
    second: int
    distance: float  # Å
    images: bool  # whether the two stand in different cells


class SystemLists(NamedTuple):
    """The lists of one system, in the form that potentials take."""

    neighbor: NDArray[np.int64]  # (N, M) neighbours within the cutoff of the network, -1 = padding; not for the engine
    shift: NDArray[np.int32]  # (N, M, 3)
    pairs: FlatPairs  # for Coulomb and dispersion, each pair once
    nearest: Nearest | None = None  # None: no atom has a neighbour


def find_pairs(frame: Frame, cutoff: float, each_once: bool) -> FlatPairs:
    """Pairs of atoms not farther apart than `cutoff`, images of the cell included.

    Parameters
    ----------
    frame
        Positions, which may lie outside the cell, and cell of any shape.
    cutoff
        Å.
    each_once
        True: i, j and j, i are one pair, and so are T and -T of an atom with its own image. False: both.
    """
    periodic: NDArray[np.bool_] = np.any(frame.cell, axis=1)
    finder = vesin.NeighborList(cutoff=cutoff, full_list=not each_once, sorted=True)
    box = complete_cell(frame.cell) if periodic.any() else _EMPTY_CELL
    # vesin wants positions inside the cell where it is thin; the shifts are then counted from where the atoms are
    home = np.zeros_like(frame.coord)
    home[:, periodic] = np.floor(mapped(frame.coord, np.linalg.inv(box)))[:, periodic]
    first, second, shift = finder.compute(frame.coord - mapped(home, box), box, periodic, quantities="ijS")
    _forget_array_types(len(first))
    first, second = first.astype(np.int64), second.astype(np.int64)
    shift = shift + (home[first] - home[second]).astype(np.int32)
    return _ordered(FlatPairs(first, second, shift), each_once)


def _forget_array_types(length: int) -> None:
    """Let go of the types that vesin makes for arrays of so many pairs.

    ctypes keeps every type that was ever pointed to, before Python 3.14; there is one for each number of pairs, so that
    long dynamics would take some ten kilobytes more with every list.
    """
    known: dict[Any, Any] = getattr(ctypes, "_pointer_type_cache", {})
    for kind in list(known):
        if getattr(kind, "_length_", None) == length and getattr(kind._type_, "_length_", None) in (2, 3):
            known.pop(kind, None)


def _ordered(pairs: FlatPairs, each_once: bool) -> FlatPairs:
    """The same pairs in an order, and each in a direction, that do not depend on how they were found."""
    first, second, shift = pairs
    if each_once:
        own = first == second
        x, y, z = shift.T
        back = (first > second) | (own & ((x < 0) | ((x == 0) & ((y < 0) | ((y == 0) & (z < 0))))))
        first, second = np.where(back, second, first), np.where(back, first, second)
        shift = np.where(back[:, None], -shift, shift)
    order = np.lexsort((shift[:, 2], shift[:, 1], shift[:, 0], second, first))
    return FlatPairs(first[order], second[order], shift[order])


def padded(pairs: FlatPairs, n_atoms: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Rows of neighbours: indices (N, M), -1 = padding, and lattice translations (N, M, 3); M is at least 1."""
    counts = np.bincount(pairs.first, minlength=n_atoms)
    column = np.arange(len(pairs.first)) - np.repeat(np.cumsum(counts) - counts, counts)
    width = max(1, int(counts.max(initial=0)))
    index = np.full((n_atoms, width), -1, dtype=np.int64)
    shift = np.zeros((n_atoms, width, 3), dtype=np.int32)
    index[pairs.first, column] = pairs.second
    shift[pairs.first, column] = pairs.shift
    return index, shift


class VerletLists:
    """Lists of one system that stay valid until atoms have moved by half the skin, deformations of the cell included.

    Verlet, Phys. Rev. 159, 98 (1967): pairs are collected within cutoff + skin, and only those within the cutoff at
    the present positions are handed out, always in the same order: work does not grow with the skin, and what is handed
    out, to the last bit of sums over it, does not depend on the frames that were asked about before.

    Parameters
    ----------
    skin
        Å.
    """

    def __init__(self, skin: float = SKIN) -> None:
        self._skin = skin
        self._built: Frame | None = None
        self._cutoffs = (0.0, 0.0)
        self._near = self._far = _no_pairs()
        self.builds = 0

    def update(self, frame: Frame, cutoff: float, pair_cutoff: float) -> SystemLists:
        """Lists at the present positions.

        Parameters
        ----------
        frame
            Positions and cell.
        cutoff, pair_cutoff
            Å, of the network and of Coulomb and dispersion (0: no list).
        """
        if not self._still_valid(frame, (cutoff, pair_cutoff)):
            self._near = find_pairs(frame, cutoff + self._skin, each_once=False) if cutoff > 0 else _no_pairs()
            self._far = find_pairs(frame, pair_cutoff + self._skin, each_once=True) if pair_cutoff > 0 else _no_pairs()
            self._built = Frame(frame.coord.copy(), frame.cell.copy())
            self._cutoffs = (cutoff, pair_cutoff)
            self.builds += 1
        near, square = _within(self._near, frame, cutoff)
        far, _ = _within(self._far, frame, pair_cutoff)
        index, shift = padded(near, len(frame.coord))
        return SystemLists(index, shift, far, _nearest(near, square))

    def _still_valid(self, frame: Frame, cutoffs: tuple[float, float]) -> bool:
        before = self._built
        if before is None or self._cutoffs != cutoffs or before.coord.shape != frame.coord.shape:
            return False
        coord, shrink = before.coord, 1.0
        if not np.array_equal(before.cell, frame.cell):
            # a barostat deforms cell and atoms together: a pair at distance d is at least shrink * d afterwards
            if not (before.cell.any(axis=1).all() and frame.cell.any(axis=1).all()):
                return False
            deform = np.linalg.solve(before.cell, frame.cell)
            coord, shrink = mapped(before.coord, deform), float(np.linalg.svd(deform, compute_uv=False)[-1])
        moved = frame.coord - coord
        moved -= moved.mean(axis=0)  # a drift of the whole system changes no distance
        room = min((shrink * (cutoff + self._skin) - cutoff for cutoff in cutoffs if cutoff > 0), default=np.inf)
        return room > 0 and bool(np.einsum("nc,nc->n", moved, moved).max() < (0.5 * room) ** 2)


def door_entries(
    systems: Sequence[SystemLists], cells: Sequence[NDArray[np.float64]], n_slots: int, device: torch.device
) -> dict[str, Tensor]:
    """Entries of the dictionary for a potential: the lists of a batch of systems, padded to `n_slots` atoms."""
    width = max(system.neighbor.shape[1] for system in systems)
    index = np.full((len(systems), n_slots, width), -1, dtype=np.int64)
    shift = np.zeros((len(systems), n_slots, width, 3), dtype=np.int32)
    for row, system in enumerate(systems):
        n, m = system.neighbor.shape
        index[row, :n, :m], shift[row, :n, :m] = system.neighbor, system.shift
    pair_index = np.concatenate(
        [np.stack([s.pairs.first, s.pairs.second], axis=1) + row * n_slots for row, s in enumerate(systems)]
    )
    pair_shift = np.concatenate([s.pairs.shift for s in systems])
    arrays = {
        "cell": np.stack(cells),
        "neighbor_index": index,
        "neighbor_shift": shift,
        "pair_index": pair_index,
        "pair_shift": pair_shift,
    }
    return {name: torch.from_numpy(values).to(device) for name, values in arrays.items()}


def _within(pairs: FlatPairs, frame: Frame, cutoff: float) -> tuple[FlatPairs, NDArray[np.float64]]:
    """The pairs that are nearer than the cutoff (Å) now, and their squared distances (Å^2)."""
    square = np.zeros(len(pairs.first))
    # axis by axis: four times quicker than a matrix product for rows of three, for which BLAS would wake its threads
    for axis in range(3):
        coord = np.ascontiguousarray(frame.coord[:, axis])
        there = coord[pairs.second]
        there -= coord[pairs.first]
        for vector in range(3):
            there += pairs.shift[:, vector] * frame.cell[vector, axis]
        there *= there
        square += there
    kept = square < cutoff * cutoff
    return FlatPairs(pairs.first[kept], pairs.second[kept], pairs.shift[kept]), square[kept]


def _nearest(pairs: FlatPairs, square: NDArray[np.float64]) -> Nearest | None:
    if len(square) == 0:
        return None
    place = int(square.argmin())
    images = bool(pairs.shift[place].any())
    first, second = sorted((int(pairs.first[place]), int(pairs.second[place])))
    return Nearest(first, second, float(square[place]) ** 0.5, images)


def _no_pairs() -> FlatPairs:
    return FlatPairs(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros((0, 3), dtype=np.int32))
