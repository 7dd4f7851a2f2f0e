"""Seeded split of molecules into training, validation and test sides, over all fidelities at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from aimnet2mult.datasets.reader import MultiFidelityDataset, data_fingerprint
from aimnet2mult.errors import ConfigError, DataError
from aimnet2mult.files import atomic_write_text

_SIDES = ("train", "val", "test")
_PER_LINE = 12


class SplitIndices(NamedTuple):
    """Global sample numbers of each side, ascending."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray

    def fingerprint(self) -> str:
        """SHA-256 of the sample numbers."""
        digest = hashlib.sha256()
        for side in self:
            digest.update(f"{len(side)}\n".encode() + np.ascontiguousarray(side, dtype="<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Split:
    """Molecule keys of each side, and what the split was made from."""

    train: np.ndarray  # (m,) int64, ascending; likewise the others
    val: np.ndarray
    test: np.ndarray
    seed: int
    identity: str  # what the keys stand on
    fingerprint: str  # of the data
    notes: tuple[str, ...] = field(default=(), compare=False)

    def indices(self, molecule_key_of: np.ndarray) -> SplitIndices:
        """Sample numbers of each side, given the molecule key of every sample.

        Raises
        ------
        DataError
            A sample belongs to a molecule that the split does not know.
        """
        sides = [np.isin(molecule_key_of, getattr(self, side)) for side in _SIDES]
        if not np.logical_or.reduce(sides).all():
            raise DataError("the data hold molecules that the split does not know; delete the split file to split anew")
        return SplitIndices(*(np.nonzero(side)[0] for side in sides))


def split_by_molecule(
    dataset: MultiFidelityDataset, val_fraction: float, test_fraction: float = 0.0, seed: int = 0
) -> Split:
    """Split a data set so that all geometries of a molecule, in every fidelity, are on one side.

    Validation first, then test, gets one random molecule of each fidelity, then more until the fraction is reached.
    A molecule stays in training when it is the last one there of its fidelity, or the last one of a fidelity
    with one of its elements.

    Parameters
    ----------
    dataset
        Opened data.
    val_fraction, test_fraction
        Fractions of the molecules, 0 for none.
    seed
        Decides the split, together with the data.

    Raises
    ------
    ConfigError
        Fractions are negative or leave nothing for training.
    DataError
        There are too few molecules.
    """
    for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 <= fraction < 1:
            raise ConfigError(f"{name} is {fraction}; give 0 or more and less than 1")
    if val_fraction + test_fraction >= 1:
        raise ConfigError("val_fraction and test_fraction add up to 1 or more; leave some molecules for training")
    molecules, place = np.unique(dataset.molecule_key_of, return_inverse=True)
    sides = 1 + (val_fraction > 0) + (test_fraction > 0)
    if len(molecules) < sides:
        amount = "one molecule" if len(molecules) == 1 else f"{len(molecules)} molecules"
        raise DataError(
            f"the data hold {amount} in all, too few for {sides} sides of a split; set val_fraction: 0"
            f"{' and test_fraction: 0' if test_fraction > 0 else ''}, or add data"
        )
    chooser = _Chooser(dataset, place, len(molecules), np.random.default_rng([seed, len(molecules)]))
    chooser.fill("val", val_fraction)
    chooser.fill("test", test_fraction)
    train, val, test = (molecules[chooser.side == number] for number in range(len(_SIDES)))
    return Split(train, val, test, seed, dataset.identity, data_fingerprint(dataset), tuple(chooser.notes))


class _Chooser:
    """Moves molecules out of training, one at a time."""

    def __init__(
        self, dataset: MultiFidelityDataset, place: np.ndarray, molecules: int, generator: np.random.Generator
    ) -> None:
        self.side = np.zeros(molecules, dtype=np.int8)  # position in _SIDES
        self.notes: list[str] = []
        self._order = generator.permutation(molecules)
        self._names = [f"{fid} ({spec.name})" for fid, spec in dataset.specs.items()]
        # what training must not lose: the first columns are the fidelities, then the elements of each
        self._fidelities = len(dataset.specs)
        elements = dataset.elements()
        self._has = np.zeros((molecules, self._fidelities * (1 + len(elements))), dtype=bool)
        for column, fidelity in enumerate(dataset.specs):
            mine = dataset.fidelity_of == fidelity
            self._has[place[mine], column] = True
            first = self._fidelities + column * len(elements)
            for offset, element in enumerate(elements):
                self._has[place[mine & dataset.holds_element(element)], first + offset] = True
        self._left = self._has.sum(axis=0)

    def _movable(self, molecule: int, columns: slice) -> bool:
        return bool((self._left[columns][self._has[molecule, columns]] > 1).all())

    def _move(self, molecule: int, number: int) -> None:
        self.side[molecule] = number
        self._left -= self._has[molecule]

    def fill(self, side: str, fraction: float) -> None:
        """Move `fraction` of the molecules to `side`, at least one of each fidelity where that is possible."""
        if fraction == 0:
            return
        number = _SIDES.index(side)
        for column in np.argsort(self._left[: self._fidelities], kind="stable"):
            if not self._has[self.side == number, column].any():
                self._represent(int(column), side, number)
        lacking = max(1, round(fraction * len(self.side))) - int((self.side == number).sum())
        for molecule in self._order:
            if lacking <= 0:
                return
            if self.side[molecule] == 0 and self._movable(molecule, slice(None)):
                self._move(molecule, number)
                lacking -= 1

    def _represent(self, column: int, side: str, number: int) -> None:
        name = self._names[column]
        own = [m for m in self._order if self.side[m] == 0 and self._has[m, column]]
        for columns in (slice(None), slice(0, self._fidelities)):
            found = next((m for m in own if self._movable(m, columns)), None)
            if found is not None:
                if columns.start == 0:
                    self.notes.append(f"{side} holds the only molecules with some element of fidelity {name}")
                self._move(int(found), number)
                return
        self.notes.append(f"fidelity {name} has too few molecules to be represented in {side}")


def write_split(split: Split, path: str | Path) -> None:
    """Write a split as YAML, whole or not at all."""
    lines = ["# molecule keys per side; all geometries of a molecule, in every fidelity, are on one side"]
    for name in ("seed", "identity", "fingerprint"):
        lines.append(f"{name}: {json.dumps(getattr(split, name))}")
    for side in _SIDES:
        keys = [str(key) for key in getattr(split, side).tolist()]
        rows = [", ".join(keys[start : start + _PER_LINE]) for start in range(0, len(keys), _PER_LINE)]
        lines.append(f"{side}: [" + ",\n  ".join(rows) + "]")
    atomic_write_text(path, "\n".join(lines) + "\n")


def read_split(path: str | Path, fingerprint: str | None = None) -> Split:
    """Read a split that `write_split` wrote.

    Parameters
    ----------
    path
        The YAML file.
    fingerprint
        Of the data at hand; None: not compared.

    Raises
    ------
    DataError
        The file cannot be read, or belongs to other data.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        train, val, test = (_keys(content[side]) for side in _SIDES)
        stored = str(content["fingerprint"])
        split = Split(train, val, test, int(content["seed"]), str(content["identity"]), stored)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is not a split file ({reason}); delete it to split anew") from error
    if fingerprint is not None and fingerprint != split.fingerprint:
        raise DataError(f"{path} was made from other data than the files hold now; use a new run folder")
    return split


def _keys(values: Sequence[int]) -> np.ndarray:
    if not all(isinstance(value, int) for value in values):
        raise ValueError("molecule keys are not integers")
    return np.array(values, dtype=np.int64)
