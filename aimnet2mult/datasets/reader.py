"""The data of all fidelities as one sequence of molecules, read lazily."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aimnet2mult.datasets.checks import MAX_NUMBER
from aimnet2mult.datasets.connectivity import graph_hashes, molecule_keys
from aimnet2mult.datasets.format import IDENTITIES, INPUTS, LABELS, H5File, open_checked, open_h5
from aimnet2mult.datasets.scan import GroupScan, file_digest, scan_group
from aimnet2mult.datasets.store import Store, Table, make_table
from aimnet2mult.errors import ConfigError, DataError


@dataclass(frozen=True)
class FidelitySource:
    """Where the data of one fidelity are."""

    fidelity: int
    name: str
    files: tuple[Path, ...]


class Sample(NamedTuple):
    """One molecule of N atoms with the labels that it has."""

    coord: np.ndarray  # (N, 3) float32 Å; moved to its centre when far from the origin
    numbers: np.ndarray  # (N,) int64
    charge: float  # e
    mult: float
    energy: float  # eV, as in the file: self-atomic energies included; float64
    labels: dict[
        str, np.ndarray
    ]  # optional labels that are there: forces (N, 3), charges (N,), spin_charges (N,); float32
    fidelity: int
    name: str  # file/group/row


class CompositionTable(NamedTuple):
    """Compositions and energies of m samples, for the fit of self-atomic energies."""

    indices: np.ndarray  # (m,) global sample numbers
    elements: list[int]  # E atomic numbers, ascending
    counts: np.ndarray  # (m, E) uint16 atoms of each element
    energies: np.ndarray  # (m,) float64 eV
    charges: np.ndarray  # (m,) e


@dataclass
class FidelityCounts:
    """What opening the data of one fidelity found besides the samples."""

    bad: Counter[str] = field(default_factory=Counter)  # reason -> samples left out
    not_finite: Counter[str] = field(default_factory=Counter)  # label -> samples left out for it
    empty_groups: int = 0


class MultiFidelityDataset:
    """All molecules of all fidelities, numbered from 0; values are checked once, when this is made.

    Parameters
    ----------
    specs
        The files of each fidelity.
    labels
        Labels that are asked for; the energy is always read.
    on_bad_rows
        ``error`` raises on the first molecule with values that cannot be used; ``skip`` leaves such
        molecules out and counts them in `counts`.
    cache_mb
        Memory for rows that were read, in MiB per process.

    Attributes
    ----------
    fidelity_of, natoms_of, molecule_key_of : ndarray (len,)
        Fidelity, number of atoms, and key of the molecule that each sample is a geometry of.
    notes : list of str
        Sentences for the log.
    identity : str
        What the molecule keys stand on: ``molecule_id``, ``structure_id`` or ``connectivity``.

    Raises
    ------
    ConfigError
        `on_bad_rows` is neither of its values.
    DataError
        A file or a value is bad, a label is nowhere present, or a file is listed twice.
    """

    def __init__(
        self,
        specs: Mapping[int, FidelitySource],
        labels: Sequence[str] = LABELS,
        on_bad_rows: str = "error",
        cache_mb: float = 1024,
    ) -> None:
        if on_bad_rows not in ("error", "skip"):
            raise ConfigError(f"on_bad_rows is {on_bad_rows!r}; give 'error' or 'skip'")
        self.specs = dict(sorted(specs.items()))
        self.labels = tuple(dict.fromkeys(("energy", *labels)))
        self.notes: list[str] = []
        self.counts = {fidelity: FidelityCounts() for fidelity in self.specs}
        _refuse_repeated_files(self.specs)
        files = [(fid, open_checked(path)) for fid, spec in self.specs.items() for path in spec.files]
        _check_labels(self.labels, files)
        self._open(files, on_bad_rows == "skip", cache_mb)

    def _open(self, files: list[tuple[int, H5File]], skip_bad: bool, cache_mb: float) -> None:
        tables: list[Table] = []
        scans: list[GroupScan] = []
        owners: list[int] = []
        self._digests: list[tuple[int, str]] = []
        for fidelity, file in files:
            self.notes.extend(file.notes)
            counts = self.counts[fidelity]
            counts.empty_groups += len(file.empty_groups)
            digest = file_digest()
            with open_h5(file.path) as handle:
                for name, info in file.groups.items():
                    scan = scan_group(file.path, handle[name], info, self.labels, skip_bad, digest)
                    counts.bad.update(scan.bad)
                    counts.not_finite.update(scan.not_finite)
                    wanted = tuple(k for k in (*INPUTS, *self.labels) if k in info.keys)
                    tables.append(make_table(file.path, name, info.n, info.natoms, wanted))
                    scans.append(scan)
                    owners.append(fidelity)
            self._digests.append((fidelity, digest.hexdigest()))
        self._store = Store(tables, cache_mb)
        self._owner = np.array(owners, dtype=np.int64)
        lengths = [scan.rows.size for scan in scans]
        self._table_of = np.repeat(np.arange(len(tables), dtype=np.int32), lengths)
        self._row_of = np.concatenate([scan.rows for scan in scans])
        self.fidelity_of = self._owner[self._table_of]
        self.natoms_of = np.array([table.natoms for table in tables])[self._table_of]
        self._present = {label: np.concatenate([scan.present[label] for scan in scans]) for label in self.labels}
        self._elements = np.concatenate([scan.elements for scan in scans])
        for fidelity, spec in self.specs.items():
            if not (self.fidelity_of == fidelity).any():
                raise DataError(f"fidelity {fidelity} ({spec.name}): no usable molecule is left; mend the data")
        self._note_copies([file for _, file in files])
        self._identify(files, scans)

    def _note_copies(self, files: Sequence[H5File]) -> None:
        first: dict[str, Path] = {}
        for file, (_, digest) in zip(files, self._digests, strict=True):
            other = first.setdefault(digest, file.path)
            if other is not file.path:
                self.notes.append(f"{file.path} holds the same data as {other}: its molecules count twice")

    def _identify(self, files: list[tuple[int, H5File]], scans: list[GroupScan]) -> None:
        """Settle what tells molecules apart; connectivity keys themselves are made on first use."""
        self.identity, reason = _choose_identity(files)
        self._keys: np.ndarray | None = None
        if self.identity != "connectivity":
            keys = np.concatenate([scan.ids for scan in scans if scan.ids is not None])
            composition = np.concatenate([scan.composition for scan in scans])
            order = np.lexsort((composition, keys))
            same = np.diff(keys[order]) == 0
            if (same & (composition[order][1:] != composition[order][:-1])).any():
                reason = f"{self.identity} gives one number to molecules of different composition"
                self.identity = "connectivity"
            else:
                self._keys = keys
        if reason is not None:
            self.notes.append(f"{reason}; molecules are told apart by composition and connectivity instead")

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def molecule_key_of(self) -> np.ndarray:
        """(len,) int64: equal for all geometries of one molecule, in every fidelity."""
        if self._keys is None:
            hashes = np.empty((len(self), 2), dtype=np.int64)
            for where, rows, values in self._columns(("coord", "numbers")):
                hashes[where] = graph_hashes(values["coord"][rows], values["numbers"][rows])
            self._keys = molecule_keys(hashes)
        return self._keys

    def _columns(
        self, keys: Sequence[str], fidelity: int | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
        """Blocks of columns: (global sample numbers, their rows in the block, columns of the block)."""
        ends = np.searchsorted(self._table_of, np.arange(len(self._store.tables) + 1))
        for index in range(len(self._store.tables)):
            if fidelity is not None and self._owner[index] != fidelity:
                continue
            rows = self._row_of[ends[index] : ends[index + 1]]
            for start, values in self._store.blocks(index, keys):
                size = len(values[keys[0]])
                low, high = np.searchsorted(rows, (start, start + size))
                if high > low:
                    yield np.arange(ends[index] + low, ends[index] + high), rows[low:high] - start, values

    def has_label(self, label: str) -> np.ndarray:
        """Which samples have `label`: (len,) bool."""
        return self._present[label]

    def has_mult(self) -> np.ndarray:
        """Which samples have their multiplicity in the file: (len,) bool."""
        return np.array(["mult" in table.columns for table in self._store.tables])[self._table_of]

    def holds_element(self, number: int) -> np.ndarray:
        """Which samples hold the element with this atomic number: (len,) bool."""
        return (self._elements[:, number // 8] >> (7 - number % 8)) & 1 == 1

    def elements(self, fidelity: int | None = None) -> list[int]:
        """Atomic numbers that occur, in one fidelity or in all."""
        chosen = self._elements if fidelity is None else self._elements[self.fidelity_of == fidelity]
        return [int(z) for z in np.nonzero(np.unpackbits(np.bitwise_or.reduce(chosen, axis=0))[: MAX_NUMBER + 1])[0]]

    def name_of(self, index: int) -> str:
        """Where a sample stands, as file/group/row."""
        table = self._store.tables[self._table_of[index]]
        return f"{table.path.name}/{table.group}/{self._row_of[index]}"

    def read(self, indices: Sequence[int] | np.ndarray) -> list[Sample]:
        """Read samples by global number, in the order asked for; repeated numbers are allowed."""
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"sample numbers go from 0 to {len(self) - 1}")
        tables = self._table_of[wanted]
        order = np.argsort(tables, kind="stable")
        samples: dict[int, Sample] = {}
        cuts = np.nonzero(np.diff(tables[order]))[0] + 1
        for places in np.split(order, cuts) if wanted.size else ():
            samples.update(zip(places.tolist(), self._samples(int(tables[places[0]]), wanted[places]), strict=True))
        return [samples[place] for place in range(wanted.size)]

    def _samples(self, index: int, wanted: np.ndarray) -> list[Sample]:
        table = self._store.tables[index]
        rows = self._row_of[wanted]
        values = self._store.take(index, rows)
        coord, numbers = values["coord"], values["numbers"].astype(np.int64)
        charge, energy = values["charge"].tolist(), values["energy"].tolist()
        mult = values["mult"].tolist() if "mult" in values else [1.0] * len(wanted)
        optional = [
            (label, values[label], self._present[label][wanted]) for label in table.columns if label in LABELS[1:]
        ]
        fidelity, prefix = int(self._owner[index]), f"{table.path.name}/{table.group}/"
        return [
            Sample(
                coord[i],
                numbers[i],
                charge[i],
                mult[i],
                energy[i],
                {label: array[i] for label, array, there in optional if there[i]},
                fidelity,
                f"{prefix}{row}",
            )
            for i, row in enumerate(rows.tolist())
        ]

    def compositions(self, fidelity: int, indices: np.ndarray | None = None) -> CompositionTable:
        """Compositions and energies of one fidelity, of all its samples or those among `indices`."""
        chosen = np.zeros(len(self), dtype=bool)
        chosen[slice(None) if indices is None else indices] = True
        elements = self.elements(fidelity)
        parts: list[tuple[np.ndarray, ...]] = []
        for where, rows, values in self._columns(("numbers", "energy", "charge"), fidelity):
            rows, where = rows[chosen[where]], where[chosen[where]]
            numbers = values["numbers"][rows]
            counts = np.stack([(numbers == z).sum(axis=1) for z in elements], axis=1).astype(np.uint16)
            parts.append((where, counts, values["energy"][rows], values["charge"][rows]))
        where, counts, energies, charges = (np.concatenate(column) for column in zip(*parts, strict=True))
        return CompositionTable(where, elements, counts, energies, charges)

    def preload(self) -> None:
        """Fill the cache now; worker processes made by fork then share it."""
        self._store.preload()

    def close(self) -> None:
        """Close all files; they open again when needed."""
        self._store.close()


def data_fingerprint(dataset: MultiFidelityDataset) -> str:
    """Hash of everything that the data hold, to tell whether they changed since.

    SHA-256 over all known columns of all files as stored (also labels that were not asked for), made
    in the pass that checks values. Names and places of files do not enter, nor do other datasets; the
    order of the files of a fidelity does, because the numbers of the samples follow from it.
    """
    return sha256(repr(dataset._digests).encode()).hexdigest()


def _refuse_repeated_files(specs: Mapping[int, FidelitySource]) -> None:
    seen: dict[tuple[int, int], tuple[Path, int]] = {}
    for fidelity, spec in specs.items():
        if spec.fidelity != fidelity:
            raise DataError(f"the source of fidelity {fidelity} says fidelity {spec.fidelity}; make them agree")
        if not spec.files:
            raise DataError(f"fidelity {fidelity} ({spec.name}) lists no file; give at least one")
        for path in map(Path, spec.files):
            if not path.exists():
                continue  # opening it says so
            status = path.stat()
            other = seen.setdefault((status.st_dev, status.st_ino), (path, fidelity))
            if other != (path, fidelity) or list(map(Path, spec.files)).count(path) > 1:
                raise DataError(
                    f"{path} of fidelity {fidelity} is listed twice (also as {other[0]} of fidelity {other[1]});"
                    " list each file once"
                )


def _check_labels(labels: Sequence[str], files: list[tuple[int, H5File]]) -> None:
    there = set().union(*(file.keys for _, file in files))
    known = sorted(there & set(LABELS))
    for label in labels:
        if label in known:
            continue
        others = sorted(there - set(LABELS) - set(INPUTS) - set(IDENTITIES))
        close = get_close_matches(label, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "; take it out of data.y or add it to a file"
        extra = f" and, not usable as labels, {', '.join(others)}" if others else ""
        raise DataError(f"no file holds the label {label!r}; the labels there are {', '.join(known)}{extra}{hint}")


def _choose_identity(files: list[tuple[int, H5File]]) -> tuple[str, str | None]:
    """Column that tells molecules apart, and why it is not an id column when some files have one."""
    found = {group.identity for _, file in files for group in file.groups.values()}
    if found == {None}:
        return "connectivity", None
    if len(found) == 1:
        return str(found.pop()), None
    without = [file.path.name for _, file in files if any(group.identity is None for group in file.groups.values())]
    if without:
        return "connectivity", f"{', '.join(without)} holds no molecule_id or structure_id while other files do"
    return "connectivity", "some files hold molecule_id and others structure_id, which are not comparable"


__all__ = [
    "CompositionTable",
    "FidelityCounts",
    "FidelitySource",
    "MultiFidelityDataset",
    "Sample",
    "data_fingerprint",
]
