"""Energy terms beside the network for which there is no compiled code, with the derivatives that the engine needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aimnet2mult.calculators.evaluation import Surroundings
from aimnet2mult.calculators.inputs import System
from aimnet2mult.calculators.neighbors import SystemLists
from aimnet2mult.calculators.reference import door, listed
from aimnet2mult.calculators.torch_modes import STOPPED, own_settings, stopped
from aimnet2mult.models.derivatives import strained
from aimnet2mult.physics.geometry import all_pairs
from aimnet2mult.types import Molecules, NeighborLists, Pairs

Array = NDArray[np.float64]
_CPU: Final = torch.device("cpu")
# what the program of a term is called, if it looks at the list of pairs only and not at the rows of neighbours
_READS_PAIRS: Final = frozenset({"LRCoulomb", "D3BJ", "PublishedD3", "D4"})


class TermSums(NamedTuple):
    """Sum of some energy terms and its first derivatives; n atoms of all structures, one after another."""

    energy: Array  # (B,) eV
    gradient: Array  # (n, 3) eV/Å, by positions
    virial: Array  # (B, 3, 3) eV, by the strain e of x' = x (1 + e)
    by_charge: Array  # (n,) eV/e

    def __add__(self, other: object) -> TermSums:
        assert isinstance(other, TermSums)
        return TermSums(*(a + b for a, b in zip(self, other, strict=True)))


class PairTerms:
    """Terms of one potential, evaluated by their own programs and differentiated by PyTorch.

    Parameters
    ----------
    coulomb, terms
        Coulomb heads of a loaded network, and further terms of the potential.
    """

    def __init__(self, coulomb: Sequence[Any], terms: Sequence[Any]) -> None:
        self._coulomb = tuple(coulomb)
        self._terms = tuple(terms)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._coulomb or self._terms)

    @property
    def read_rows(self) -> bool:
        """Whether a term looks at the rows of neighbours that the network has in PyTorch."""
        return any(term.original_name not in _READS_PAIRS for term in self._terms)

    def pair_cutoff(self, n_atoms: int, volume: float) -> float:
        """Reach (Å) of the pair list for `n_atoms` in a cell of `volume` (Å^3; 0 if there is none); 0: no list."""
        heads = (float(head.pair_cutoff(n_atoms, volume)) for head in self._coulomb)
        return max(0.0, *heads, *(float(term.pair_cutoff) for term in self._terms))

    def __call__(
        self,
        systems: Sequence[System],
        surroundings: Sequence[Surroundings],
        charges: Array,
        stress: bool,
        forces: bool,
    ) -> TermSums:
        """Evaluate structures: all with neighbour lists, or all without.

        Parameters
        ----------
        systems, surroundings
            The structures.
        charges
            (n,) e, of the network.
        stress, forces
            Which derivatives to take.

        Raises
        ------
        CalculationFailed
            A term stopped.
        """
        wanted = stress or forces
        with own_settings(_CPU, wanted):
            batch = _Batch(systems, listed(surroundings), charges, stress, wanted)
            try:
                energy = self._energy(batch)
                return batch.sums(energy)
            except STOPPED as error:
                raise stopped(error) from error

    def _energy(self, batch: _Batch) -> Tensor:
        energy = torch.zeros(len(batch.numbers), dtype=torch.float64, device=_CPU)
        molecules, lists = batch.molecules, batch.lists
        if self._coulomb:
            pairs = all_pairs(molecules.coord, molecules.numbers) if lists is None else _no_pairs()
            for coulomb in self._coulomb:
                energy = energy + coulomb(batch.charges, molecules, pairs, lists)
        for term in self._terms:
            energy = energy + term(molecules, lists, batch.charges)
        return energy


class _Batch:
    """A padded batch whose positions, strain and charges are the variables to differentiate by."""

    def __init__(
        self, systems: Sequence[System], lists: Sequence[SystemLists], charges: Array, stress: bool, wanted: bool
    ) -> None:
        data = door(systems, [], _CPU)
        self.numbers = data["numbers"]
        self._real = self.numbers > 0
        padded = torch.zeros(self.numbers.shape, dtype=torch.float64, device=_CPU)
        padded[self._real] = torch.from_numpy(charges)
        self.charges = padded.requires_grad_(wanted)
        coord = data["coord"].requires_grad_(wanted)
        self._leaves = [coord, self.charges] if wanted else []
        self.lists = _neighbor_lists(systems, lists, self.numbers.shape[1]) if lists else None
        if stress and self.lists is not None:
            deformed = strained(coord, self.lists.cell)
            self._leaves.append(deformed.strain)
            coord, self.lists = deformed.coord, self.lists._replace(cell=deformed.cell)
        fidelity = torch.zeros(len(systems), dtype=torch.int64, device=_CPU)
        self.molecules = Molecules(coord, self.numbers, data["charge"], data["mult"], fidelity)

    def sums(self, energy: Tensor) -> TermSums:
        """The energy with its derivatives."""
        found: list[Tensor | None] = [None] * len(self._leaves)
        if self._leaves and energy.requires_grad:
            found = list(torch.autograd.grad([energy.sum()], self._leaves, allow_unused=True))
        arrays = [
            np.zeros(leaf.shape) if value is None else value.numpy()
            for leaf, value in zip(self._leaves, found, strict=True)
        ]
        real = self._real.numpy()
        none = np.zeros((len(self.numbers), 3, 3))
        return TermSums(
            energy=energy.detach().numpy(),
            gradient=arrays[0][real] if arrays else np.zeros((int(real.sum()), 3)),
            virial=arrays[2] if len(arrays) > 2 else none,
            by_charge=arrays[1][real] if arrays else np.zeros(int(real.sum())),
        )


def _neighbor_lists(systems: Sequence[System], lists: Sequence[SystemLists], n_slots: int) -> NeighborLists:
    """Lists of a batch; those of a single structure are views of its arrays."""
    cell = torch.from_numpy(np.stack([system.cell for system in systems]))
    width = max(one.neighbor.shape[1] for one in lists)
    neighbor = np.full((len(systems), n_slots, width), -1, dtype=np.int64)
    shift = np.zeros((len(systems), n_slots, width, 3), dtype=np.int32)
    for row, one in enumerate(lists):
        n, m = one.neighbor.shape
        neighbor[row, :n, :m], shift[row, :n, :m] = one.neighbor, one.shift
    if len(lists) == 1:
        first, second, steps = lists[0].pairs
    else:
        first = np.concatenate([one.pairs.first + row * n_slots for row, one in enumerate(lists)])
        second = np.concatenate([one.pairs.second + row * n_slots for row, one in enumerate(lists)])
        steps = np.concatenate([one.pairs.shift for one in lists])
    arrays = (neighbor, shift, first, second, steps)
    return NeighborLists(cell, *(torch.from_numpy(values) for values in arrays))


def _no_pairs() -> Pairs:
    """Where there are lists, Coulomb energies do not look at the pairs of the network."""
    empty = torch.zeros((0, 0), dtype=torch.float64, device=_CPU)
    return Pairs(empty, empty, empty.to(torch.bool), None)
