"""The HDF5 format of labelled molecules, and its checked opening.

A file holds one group per atom count; any integer name will do (``003`` and ``3`` mean the same).
Every dataset of a group has the molecule as its first axis:

=================  ==========  ========================================================
dataset            shape       meaning
=================  ==========  ========================================================
``coord``          (n, N, 3)   positions in Å
``numbers``        (n, N)      atomic numbers, any integer type
``charge``         (n,)        molecular charge in e
``mult``           (n,)        spin multiplicity, optional: 1 where missing
``energy``         (n,)        total energy in eV, float64
``forces``         (n, N, 3)   eV/Å, optional
``charges``        (n, N)      atomic charges in e, optional
``spin_charges``   (n, N)      alpha minus beta electrons per atom, optional
``molecule_id``    (n,)        which molecule a geometry belongs to, optional
``structure_id``   (n,)        molecule number * 1000 + geometry number, optional
=================  ==========  ========================================================

Other datasets and all attributes are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py

from aimnet2mult.errors import DataError

INPUTS = ("coord", "numbers", "charge", "mult")
LABELS = ("energy", "forces", "charges", "spin_charges")
IDENTITIES = ("molecule_id", "structure_id")
GEOMETRIES_PER_MOLECULE = 1000  # structure_id // 1000 is the molecule
COLUMNS = (*INPUTS, *LABELS, *IDENTITIES)
MAX_ATOMS = 1_000_000  # of one molecule
MAX_CHUNK = 256 << 20  # bytes that HDF5 unpacks at once
_REQUIRED = ("coord", "numbers", "charge")
_REAL = "a real number type"
_INTEGER = "an integer type"
# what a column may be stored as: numpy dtype kinds and their name in messages
_KINDS = {
    "coord": ("f", "a floating-point type"),
    "numbers": ("iu", _INTEGER),
    "charge": ("fiu", _REAL),
    "mult": ("fiu", _REAL),
    "molecule_id": ("iu", _INTEGER),
    "structure_id": ("iu", _INTEGER),
}
_FLOATS = ("f", "a floating-point type")


@dataclass(frozen=True)
class GroupInfo:
    """One group of a file: `n` molecules of `natoms` atoms each."""

    name: str
    n: int
    natoms: int
    labels: tuple[str, ...]  # known labels that the group holds
    keys: tuple[str, ...]  # all datasets of the group
    identity: str | None  # "molecule_id", "structure_id" or None

    @property
    def has_mult(self) -> bool:
        """Whether the group holds multiplicities (otherwise they are 1)."""
        return "mult" in self.keys


@dataclass(frozen=True)
class H5File:
    """What a checked file holds."""

    path: Path
    groups: dict[str, GroupInfo]
    empty_groups: tuple[str, ...]  # groups without a molecule, left out
    notes: tuple[str, ...]  # things that are allowed yet worth a line in the log

    @property
    def keys(self) -> set[str]:
        """All dataset names found in any group."""
        return {key for group in self.groups.values() for key in group.keys}


def _inside(path: Path, parent: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """What `name` stands for, when it is in this very file."""
    if isinstance(parent.get(name, getlink=True), h5py.ExternalLink):
        raise DataError(f"{path}: {parent.name.rstrip('/')}/{name} is a link to another file; list that file instead")
    return parent[name]


def _check_stored(path: Path, where: str, column: h5py.Dataset) -> None:
    """Refuse values that are not in this file: HDF5 reads what was never written as zeros."""
    if column.is_virtual or column.external:
        raise DataError(f"{path}: {where} keeps its values in other files; copy them into this one")
    chunks = 1
    if column.chunks is not None:
        if math.prod(column.chunks) * column.dtype.itemsize > MAX_CHUNK:
            raise DataError(
                f"{path}: {where} is stored in chunks above {MAX_CHUNK >> 20} MiB; store it in smaller ones"
            )
        chunks = math.prod(-(-size // step) for size, step in zip(column.shape, column.chunks, strict=True))
    written = int(column.id.get_storage_size() > 0) if column.chunks is None else column.id.get_num_chunks()
    if written < chunks:
        rows = "" if written == 0 else f" beyond {written} of {chunks} chunks"
        raise DataError(f"{path}: {where} was never filled{rows}; write the values, or leave the dataset out")


def column_shape(name: str, natoms: int) -> tuple[int, ...]:
    """Shape of one molecule's entry in column `name`, for `natoms` atoms."""
    if name in ("coord", "forces"):
        return (natoms, 3)
    return (natoms,) if name in ("numbers", "charges", "spin_charges") else ()


@contextmanager
def open_h5(path: Path) -> Iterator[h5py.File]:
    """Open `path` for reading; every failure, also while reading, becomes a `DataError`."""
    try:
        if not path.exists():
            raise DataError(f"{path}: the file does not exist; check the path")
        if path.is_dir():
            raise DataError(f"{path} is a folder; give an HDF5 file")
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty; write the data again")
        if not h5py.is_hdf5(path):
            raise DataError(f"{path} is not an HDF5 file; convert the data to the HDF5 format first")
        with h5py.File(path, "r", locking="best-effort") as handle:
            yield handle
    except PermissionError as error:
        raise DataError(f"{path} may not be read by this user; change its permissions") from error
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:  # damage shows in many ways
        reason = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read ({reason}); the file is damaged or truncated, copy it again") from error


def open_checked(path: str | Path, *, require_energy: bool = True) -> H5File:
    """Check names, shapes and types of everything in a data file, without reading values.

    Parameters
    ----------
    path
        HDF5 file in the format of this module.
    require_energy
        Whether every group must hold energies.

    Raises
    ------
    DataError
        The file is missing, unreadable, or does not follow the format; the sentence names the dataset.
    """
    path = Path(path)
    groups: dict[str, GroupInfo] = {}
    empty: list[str] = []
    notes: list[str] = []
    with open_h5(path) as handle:
        for name in handle:
            item = _inside(path, handle, name)
            if not isinstance(item, h5py.Group):
                raise DataError(
                    f"{path}: dataset {name!r} stands at the top level; this format has one group per atom count,"
                    " for example '003/coord'"
                )
            if not (name.isascii() and name.isdigit()):
                raise DataError(f"{path}: group {name!r} is not named by an atom count, for example '003'; rename it")
            info = _group_info(path, name, item, require_energy)
            if info is None:
                empty.append(name)
                continue
            groups[name] = info
            if "energy" in info.labels and item["energy"].dtype.itemsize < 8:
                notes.append(
                    f"{path.name}/{name}/energy is stored as {item['energy'].dtype}: large total energies are rounded"
                    " by up to several meV; store float64"
                )
    if not groups:
        raise DataError(f"{path} holds no molecule; add data or take the file out of the list")
    return H5File(path, groups, tuple(empty), tuple(notes))


def _group_info(path: Path, name: str, group: h5py.Group, require_energy: bool) -> GroupInfo | None:
    """Check one group; None when it holds no molecule."""
    where = f"{path}: group {name}"
    keys = tuple(key for key in group if isinstance(_inside(path, group, key), h5py.Dataset))
    if not keys or ("coord" in keys and group["coord"].shape[:1] == (0,)):
        return None
    for key in (*_REQUIRED, "energy") if require_energy else _REQUIRED:
        if key not in keys:
            raise DataError(f"{where} lacks {key!r} (it holds {', '.join(keys)}); every group needs it")
    shape = group["coord"].shape
    if len(shape) != 3 or shape[2] != 3:
        raise DataError(f"{path}: {name}/coord has shape {shape}; expected (molecules, {int(name)}, 3)")
    n, natoms = int(shape[0]), int(shape[1])
    if natoms != int(name):
        raise DataError(
            f"{where} is named for {int(name)} atoms but its coord has shape {shape}, that is {natoms} atoms;"
            " rename the group or mend the arrays"
        )
    if natoms == 0:
        return None
    if natoms > MAX_ATOMS:
        raise DataError(f"{where} holds molecules of {natoms:,} atoms; at most {MAX_ATOMS:,} are read")
    for key in keys:
        if key in COLUMNS:
            _check_column(path, f"{name}/{key}", group[key], (n, *column_shape(key, natoms)))
    return GroupInfo(
        name=name,
        n=n,
        natoms=natoms,
        labels=tuple(label for label in LABELS if label in keys),
        keys=keys,
        identity=next((key for key in IDENTITIES if key in keys), None),
    )


def _check_column(path: Path, where: str, column: h5py.Dataset, expected: tuple[int, ...]) -> None:
    if column.shape != expected:
        raise DataError(f"{path}: {where} has shape {column.shape}; expected {expected}")
    _check_stored(path, where, column)
    kinds, wanted = _KINDS.get(where.split("/")[-1], _FLOATS)
    # what is wider than 8 bytes has as many layouts as there are machines
    if column.dtype.kind not in kinds or column.dtype.itemsize > 8:
        raise DataError(f"{path}: {where} is stored as {column.dtype}; expected {wanted}, store it again as such")
