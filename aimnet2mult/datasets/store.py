"""Lazy reading of columns: file handles per process and a bounded cache of row blocks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from aimnet2mult.datasets.scan import rows_per_block
from aimnet2mult.errors import DataError

_CHUNK_BYTES = 4 * 1024 * 1024
_FAR_FROM_ORIGIN = 20.0  # Å; beyond it float32 positions lose more than 1e-6 Å, so those molecules are moved
_DENSE = 8  # one row in so many wanted: reading the whole stretch beats picking rows


class Table(NamedTuple):
    """One group of one file, as the store reads it."""

    path: Path
    group: str
    n: int
    natoms: int
    columns: tuple[str, ...]
    chunk_rows: int  # rows per cached block


def make_table(path: Path, group: str, n: int, natoms: int, columns: tuple[str, ...]) -> Table:
    """A table whose blocks hold a few MiB."""
    return Table(path, group, n, natoms, columns, rows_per_block(natoms, columns, _CHUNK_BYTES))


def _converted(name: str, values: np.ndarray) -> np.ndarray:
    """Column as it is kept in memory: float32, except energies (float64) and numbers (uint8)."""
    if name == "numbers":
        return values.astype(np.uint8)
    if name == "energy":
        return values.astype(np.float64)
    if name == "coord":
        centre = values.mean(axis=1, dtype=np.float64, keepdims=True)
        far = (np.abs(centre) > _FAR_FROM_ORIGIN).any(axis=(1, 2))
        if far.any():
            values = values.astype(np.float64)
            values[far] -= centre[far]
    return values.astype(np.float32)


class Store:
    """Rows of many groups by number; picklable, safe after a fork.

    Blocks of rows are cached as they are first needed until `cache_mb` is used up; what does not fit
    is read row by row. Nothing is evicted: training visits rows in random order, where a fixed
    share of the data in memory is hit as often as a changing one, without reading blocks again and again.

    Parameters
    ----------
    tables
        The groups to read from.
    cache_mb
        Bound of the cache in MiB, per process.
    """

    def __init__(self, tables: Sequence[Table], cache_mb: float) -> None:
        self.tables = tuple(tables)
        self.capacity = int(cache_mb * 1024 * 1024)
        self.cached_bytes = 0
        self._chunks: dict[tuple[int, int], dict[str, np.ndarray]] = {}
        self._handles: dict[Path, h5py.File] = {}
        self._columns: dict[tuple[Path, str, str], h5py.Dataset] = {}
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"tables": self.tables, "capacity": self.capacity}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["tables"], 0)  # type: ignore[misc]
        self.capacity = state["capacity"]

    def close(self) -> None:
        """Close all files; they open again when needed."""
        for handle in self._handles.values():
            handle.close()
        self._handles, self._columns = {}, {}

    def _column(self, table: Table, key: str) -> h5py.Dataset:
        if self._process != os.getpid():
            # a forked child must not share file positions with its parent
            self.close()
            self._process = os.getpid()
        if table.path not in self._handles:
            self._handles[table.path] = h5py.File(table.path, "r", locking="best-effort")
        place = (table.path, table.group, key)
        if place not in self._columns:
            self._columns[place] = self._handles[table.path][table.group][key]
        return self._columns[place]

    def _read(self, table: Table, keys: Sequence[str], rows: slice | np.ndarray) -> dict[str, np.ndarray]:
        try:
            return {key: _converted(key, self._column(table, key)[rows]) for key in keys}
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise DataError(
                f"{table.path}: group {table.group} cannot be read any more ({error}); was the file changed or moved?"
            ) from error

    def _chunk(self, index: int, number: int) -> dict[str, np.ndarray] | None:
        """Block `number` of table `index`, or None when it is not in the cache and does not fit."""
        chunk = self._chunks.get((index, number))
        if chunk is not None or self.cached_bytes >= self.capacity:
            return chunk
        table = self.tables[index]
        size = table.chunk_rows
        chunk = self._read(table, table.columns, slice(number * size, (number + 1) * size))
        held = sum(values.nbytes for values in chunk.values())
        if self.cached_bytes + held <= self.capacity:
            self._chunks[index, number] = chunk
            self.cached_bytes += held
        else:
            self.cached_bytes = self.capacity  # full: later misses go straight to the file
        return chunk

    def take(self, index: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        """All columns of table `index` at `rows` (k,), in that order; repeated rows are allowed."""
        table = self.tables[index]
        numbers = rows // table.chunk_rows
        first = int(numbers[0])
        if len(rows) == 1 or (numbers == first).all():
            chunk = self._chunk(index, first)
            if chunk is not None:
                local = rows - first * table.chunk_rows
                return {key: values[local] for key, values in chunk.items()}
            return self._pick(table, rows)
        parts: list[dict[str, np.ndarray]] = []
        places: list[np.ndarray] = []
        direct: list[np.ndarray] = []
        for number in np.unique(numbers).tolist():
            where = np.nonzero(numbers == number)[0]
            chunk = self._chunk(index, number)
            if chunk is None:
                direct.append(where)
            else:
                local = rows[where] - number * table.chunk_rows
                parts.append({key: values[local] for key, values in chunk.items()})
                places.append(where)
        if direct:
            places.append(np.concatenate(direct))
            parts.append(self._pick(table, rows[places[-1]]))
        back = np.argsort(np.concatenate(places))
        return {key: np.concatenate([part[key] for part in parts])[back] for key in table.columns}

    def _pick(self, table: Table, rows: np.ndarray) -> dict[str, np.ndarray]:
        unique, inverse = np.unique(rows, return_inverse=True)
        low, high = int(unique[0]), int(unique[-1]) + 1
        if high - low <= _DENSE * unique.size:
            stretch = self._read(table, table.columns, slice(low, high))
            return {key: values[rows - low] for key, values in stretch.items()}
        return {key: values[inverse] for key, values in self._read(table, table.columns, unique).items()}

    def blocks(self, index: int, keys: Sequence[str]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """Go through table `index` from the first row to the last: (first row, columns `keys`) per block."""
        table = self.tables[index]
        size = table.chunk_rows
        for number in range(-(-table.n // size)):
            chunk = self._chunks.get((index, number))
            if chunk is None:
                yield number * size, self._read(table, keys, slice(number * size, (number + 1) * size))
            else:
                yield number * size, {key: chunk[key] for key in keys}

    def preload(self) -> None:
        """Fill the cache now, so that worker processes made by fork share it."""
        for index, table in enumerate(self.tables):
            for number in range(-(-table.n // table.chunk_rows)):
                if self.cached_bytes >= self.capacity:
                    return
                self._chunk(index, number)
