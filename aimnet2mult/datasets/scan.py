"""One pass over a group when data are opened: values checked, rows kept, contents hashed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from aimnet2mult.datasets.checks import MAX_NUMBER, REASONS, check_rows, describe_bad_row
from aimnet2mult.datasets.format import COLUMNS, GEOMETRIES_PER_MOLECULE, GroupInfo, column_shape
from aimnet2mult.errors import DataError

if TYPE_CHECKING:
    from hashlib import _Hash

_BLOCK_BYTES = 8 * 1024 * 1024


@dataclass
class GroupScan:
    """What the pass found out about a group; arrays run over the m rows that are kept."""

    rows: np.ndarray  # (m,) int64
    present: dict[str, np.ndarray]  # per label: (m,) bool
    elements: np.ndarray  # (m, 15) uint8, bit Z of the 119 is set where element Z occurs
    composition: np.ndarray  # (m,) uint64, equal for equal compositions
    ids: np.ndarray | None  # (m,) int64 molecule number
    bad: Counter[str] = field(default_factory=Counter)  # reason -> rows left out
    not_finite: Counter[str] = field(default_factory=Counter)  # label -> rows left out for it


def mix(values: np.ndarray) -> np.ndarray:
    """Scatter uint64 values (the finaliser of splitmix64; Steele, Lea, Flood, OOPSLA 2014, Fig. 16)."""
    values = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def rows_per_block(natoms: int, columns: Sequence[str], budget: int = _BLOCK_BYTES) -> int:
    """How many molecules fit into `budget` bytes, at 8 bytes per number."""
    per_row = 8 * sum(int(np.prod(column_shape(name, natoms))) for name in columns)
    return max(1, budget // per_row)


def scan_group(
    path: Path, group: h5py.Group, info: GroupInfo, labels: Sequence[str], skip_bad: bool, digest: _Hash
) -> GroupScan:
    """Read a group block by block, check its values, and collect what a data set must know per molecule.

    Parameters
    ----------
    path, group, info
        The file, its open group, and what the structural check said about it.
    labels
        Labels that are asked for; only their values are checked.
    skip_bad
        Leave bad molecules out and count them, instead of raising.
    digest
        Hash that takes in all known columns as stored, whether asked for or not.

    Raises
    ------
    DataError
        A molecule is bad and `skip_bad` is off; file, group, row, fault and remedy are named.
    """
    columns = [name for name in COLUMNS if name in info.keys]
    digest.update(repr((int(info.name), info.n, columns)).encode())
    blocks: list[GroupScan] = []
    step = rows_per_block(info.natoms, columns)
    for start in range(0, info.n, step):
        values = {name: _read(path, group, info, name, slice(start, min(start + step, info.n))) for name in columns}
        for array in values.values():
            digest.update(np.ascontiguousarray(array).data)
        checks = check_rows(values, [label for label in labels if label == "energy" or label in values])
        bad = np.nonzero(checks.reasons)[0]
        if bad.size and not skip_bad:
            row = int(bad[0])
            raise DataError(
                f"{path}: group {info.name}, row {start + row}: {describe_bad_row(values, row, checks.reasons[row])};"
                " mend the row, or set on_bad_rows: skip to leave such molecules out"
            )
        keep = np.nonzero(checks.reasons == 0)[0]
        scan = _kept(values, info, keep)
        scan.rows = keep + start
        scan.present = {
            label: checks.present[label][keep] if label in checks.present else np.zeros(keep.size, dtype=bool)
            for label in labels
        }
        scan.bad = Counter(
            {REASONS[code]: int((checks.reasons == code).sum()) for code in np.unique(checks.reasons[bad])}
        )
        scan.not_finite = Counter(
            {label: int(flags.sum()) for label, flags in checks.not_finite.items() if flags.any()}
        )
        blocks.append(scan)
    return _join(blocks, labels)


def _read(path: Path, group: h5py.Group, info: GroupInfo, name: str, rows: slice) -> np.ndarray:
    """A block of a column; what cannot be unpacked is named."""
    try:
        return group[name][rows]
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: group {info.name}, rows {rows.start} to {rows.stop - 1}: {name}: cannot be read ({reason}); the "
            "file is damaged, copy it again"
        ) from error


def _kept(values: dict[str, np.ndarray], info: GroupInfo, keep: np.ndarray) -> GroupScan:
    numbers = values["numbers"][keep].astype(np.int64)
    occurs = np.zeros((keep.size, MAX_NUMBER + 1), dtype=bool)
    occurs[np.arange(keep.size)[:, None], numbers] = True
    ids = None
    if info.identity is not None:
        ids = values[info.identity][keep].astype(np.int64)
        if info.identity == "structure_id":
            ids = ids // GEOMETRIES_PER_MOLECULE
    return GroupScan(
        rows=keep,
        present={},
        elements=np.packbits(occurs, axis=1),
        composition=mix(mix(numbers).sum(axis=1, dtype=np.uint64)),
        ids=ids,
    )


def _join(blocks: list[GroupScan], labels: Sequence[str]) -> GroupScan:
    first = blocks[0]
    joined = GroupScan(
        rows=np.concatenate([block.rows for block in blocks]),
        present={label: np.concatenate([block.present[label] for block in blocks]) for label in labels},
        elements=np.concatenate([block.elements for block in blocks]),
        composition=np.concatenate([block.composition for block in blocks]),
        ids=None if first.ids is None else np.concatenate([b.ids for b in blocks if b.ids is not None]),
    )
    for block in blocks:
        joined.bad.update(block.bad)
        joined.not_finite.update(block.not_finite)
    return joined


def file_digest() -> _Hash:
    """A fresh hash for the contents of one file."""
    return sha256()
