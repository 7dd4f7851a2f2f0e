"""Checks of the values of molecules: each bad molecule gets one reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols
from scipy.spatial import cKDTree

MIN_DISTANCE = 0.3  # Å; no two nuclei of a molecule come closer, the bond of H2 is 0.74
# a value beyond these is damaged, not large: 100 times the largest total energies of this format (eV), molecules 0.1 mm
# across (Å), forces far above those at MIN_DISTANCE (eV/Å), and more charge than any nucleus has (e)
LIMITS = {
    "coord": (1e6, "1e6 Å"),
    "energy": (1e8, "1e8 eV"),
    "forces": (1e6, "1e6 eV/Å"),
    "charges": (1e3, "1000 e"),
    "spin_charges": (1e3, "1000 e"),
}
MAX_NUMBER = 118
_PAIRS_AT_ONCE = 2_000_000  # distances held in memory at a time
_TREE_ATOMS = 256  # from here on a tree finds neighbours faster than all pairs

# position in this tuple = code in `RowChecks.reasons`; 0 means that the molecule is good
REASONS = (
    "good",
    "coordinates not finite",
    "atomic number outside 1..118",
    "charge not finite",
    "charge not an integer",
    "mult not a positive integer",
    "mult does not fit the electron count",
    "coincident atoms",
    "energy not finite",
    "forces not finite",
    "charges not finite",
    "spin_charges not finite",
    *(f"{column} beyond {text}" for column, (_, text) in LIMITS.items()),
)
_CODE = {reason: code for code, reason in enumerate(REASONS)}


class RowChecks(NamedTuple):
    """Verdict on the n molecules of a block of rows."""

    reasons: np.ndarray  # (n,) uint8, index into REASONS
    present: dict[str, np.ndarray]  # per label: (n,) bool, finite values are there
    not_finite: dict[str, np.ndarray]  # per label: (n,) bool, infinite or partly NaN


def check_rows(columns: Mapping[str, np.ndarray], labels: Sequence[str]) -> RowChecks:
    """Check the values of a block of molecules of one atom count.

    Parameters
    ----------
    columns
        The columns of the block as stored; ``coord``, ``numbers`` and ``charge`` must be there.
    labels
        Labels to check. A label whose values are all NaN counts as missing, except the energy.

    Returns
    -------
    RowChecks
        Reason code, label presence and non-finite labels per molecule.
    """
    coord, numbers = columns["coord"], columns["numbers"]
    n = len(coord)
    reasons = np.zeros(n, dtype=np.uint8)

    def mark(bad: np.ndarray | np.bool_, reason: str) -> None:
        reasons[(reasons == 0) & bad] = _CODE[reason]

    mark(~np.isfinite(coord).all(axis=(1, 2)), "coordinates not finite")
    mark(_beyond(coord, "coord"), _beyond_reason("coord"))
    wide = numbers.astype(np.int64)
    mark(((wide < 1) | (wide > MAX_NUMBER)).any(axis=1), "atomic number outside 1..118")
    charge = columns["charge"].astype(np.float64)
    mark(~np.isfinite(charge), "charge not finite")
    charge = np.where(np.isfinite(charge), charge, 0.0)
    mark(charge != np.rint(charge), "charge not an integer")
    mult = columns["mult"].astype(np.float64) if "mult" in columns else np.ones(n)
    mark(~np.isfinite(mult) | (mult < 1) | (mult != np.rint(mult)), "mult not a positive integer")
    unpaired = np.where(np.isfinite(mult), mult, 1.0) - 1.0
    electrons = wide.sum(axis=1) - charge
    mark((electrons < unpaired) | ((electrons - unpaired) % 2 != 0), "mult does not fit the electron count")
    good = np.nonzero(reasons == 0)[0]
    near = np.zeros(n, dtype=bool)
    near[good] = has_coincident(coord[good])
    mark(near, "coincident atoms")

    present: dict[str, np.ndarray] = {}
    not_finite: dict[str, np.ndarray] = {}
    for label in labels:
        present[label], not_finite[label] = _label_state(columns.get(label), n, required=label == "energy")
        mark(not_finite[label], f"{label} not finite")
        if label in columns:
            mark(_beyond(columns[label], label), _beyond_reason(label))
    return RowChecks(reasons, present, not_finite)


def _beyond(values: np.ndarray, column: str) -> np.ndarray:
    """Which molecules hold a value outside `LIMITS`: (n,) bool; NaN is not for this check."""
    return (np.abs(values) > np.float64(LIMITS[column][0])).reshape(len(values), -1).any(axis=1)


def _beyond_reason(column: str) -> str:
    return f"{column} beyond {LIMITS[column][1]}"


def _label_state(values: np.ndarray | None, n: int, required: bool) -> tuple[np.ndarray, np.ndarray]:
    if values is None:
        return np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    axes = tuple(range(1, values.ndim))
    present = np.isfinite(values).all(axis=axes)
    missing = np.isnan(values).all(axis=axes) & (not required)
    return present, ~present & ~missing


def squared_distances(coord: np.ndarray) -> np.ndarray:
    """Squared distances (n, N, N) in Å² of molecules `coord` (n, N, 3), in float64."""
    coord = coord.astype(np.float64)
    total = np.zeros((*coord.shape[:2], coord.shape[1]))
    for axis in range(3):
        x = coord[:, :, axis]
        total += (x[:, :, None] - x[:, None, :]) ** 2
    return total


def row_blocks(n: int, natoms: int) -> list[slice]:
    """Blocks of rows whose all-pairs arrays stay small in memory."""
    step = max(1, _PAIRS_AT_ONCE // max(1, natoms * natoms))
    return [slice(start, start + step) for start in range(0, n, step)]


def has_coincident(coord: np.ndarray) -> np.ndarray:
    """Which of the molecules `coord` (n, N, 3) hold two atoms closer than `MIN_DISTANCE`: (n,) bool."""
    n, natoms = coord.shape[:2]
    if natoms > _TREE_ATOMS:
        return np.array([bool(cKDTree(one).query_pairs(MIN_DISTANCE)) for one in coord], dtype=bool)
    near = np.zeros(n, dtype=bool)
    diagonal = np.arange(natoms)
    for block in row_blocks(n, natoms):
        squared = squared_distances(coord[block])
        squared[:, diagonal, diagonal] = np.inf
        near[block] = squared.min(axis=(1, 2)) < MIN_DISTANCE**2
    return near


def describe_bad_row(columns: Mapping[str, np.ndarray], row: int, code: int) -> str:
    """What is wrong with molecule `row` of a block: the column, and its values."""
    first = REASONS[code].split()[0]
    column = {"coordinates": "coord", "coincident": "coord", "atomic": "numbers"}.get(first, first)
    return f"{column}: {_fault(columns, row, code)}"


def _fault(columns: Mapping[str, np.ndarray], row: int, code: int) -> str:
    reason = REASONS[code]
    numbers = columns["numbers"][row].astype(np.int64)
    charge = float(columns["charge"][row])
    if reason == "coincident atoms":
        first, second = min(cKDTree(columns["coord"][row]).query_pairs(MIN_DISTANCE))
        pair = " and ".join(f"{i} ({chemical_symbols[numbers[i]]})" for i in (first, second))
        return f"atoms {pair} are closer than {MIN_DISTANCE} Å"
    if reason == "atomic number outside 1..118":
        bad = sorted({int(z) for z in numbers if not 1 <= z <= MAX_NUMBER})
        return f"holds {', '.join(map(str, bad))}; atomic numbers go from 1 to {MAX_NUMBER}"
    if reason == "charge not an integer":
        return f"{charge:g}; molecular charges are whole numbers"
    if reason == "mult not a positive integer":
        return f"{float(columns['mult'][row]):g}; multiplicities are 1, 2, 3, ..."
    if reason == "mult does not fit the electron count":
        electrons = int(numbers.sum() - charge)
        given = f"mult={float(columns['mult'][row]):g}" if "mult" in columns else "mult=1 (no mult in the file)"
        return f"{given} does not fit {electrons} electrons (charge {charge:+g})"
    column = next((name for name in LIMITS if reason == _beyond_reason(name)), None)
    if column is not None:
        return f"reaches {float(np.abs(columns[column][row]).max()):g}, beyond {LIMITS[column][1]}"
    return "not finite (NaN or infinite)"
