"""Checked opening of data files, and the checks of values."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from data_files import water, write

from aimnet2mult.datasets.checks import has_coincident
from aimnet2mult.datasets.format import open_checked
from aimnet2mult.datasets.reader import FidelitySource, MultiFidelityDataset
from aimnet2mult.errors import DataError


def dataset(path: Path, on_bad_rows: str = "error") -> MultiFidelityDataset:
    return MultiFidelityDataset({0: FidelitySource(0, "PBE0", (path,))}, on_bad_rows=on_bad_rows)


@pytest.mark.parametrize("name", ["3", "003", "0000003"])
def test_any_integer_names_a_group(tmp_path: Path, name: str) -> None:
    info = open_checked(write(tmp_path / "a.h5", {name: water()})).groups[name]
    assert (info.n, info.natoms, info.has_mult, info.identity) == (4, 3, True, None)
    assert info.labels == ("energy", "forces", "charges", "spin_charges")


@pytest.mark.parametrize("name", ["H2O", "3.0", "-3", "³"])
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="not named by an atom count"):
        open_checked(write(tmp_path / "a.h5", {name: water()}))


def test_name_that_disagrees_with_arrays(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"named for 4 atoms .* 3 atoms"):
        open_checked(write(tmp_path / "a.h5", {"004": water()}))


def test_empty_groups_are_counted(tmp_path: Path) -> None:
    empty = {key: values[:0] for key, values in water().items()}
    path = write(tmp_path / "a.h5", {"003": water(), "005": empty, "007": {}})
    assert open_checked(path).empty_groups == ("005", "007")
    assert dataset(path).counts[0].empty_groups == 2


def test_only_empty_groups(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no molecule"):
        open_checked(write(tmp_path / "a.h5", {"007": {}}))


@pytest.mark.parametrize("key", ["coord", "numbers", "charge", "mult", "energy", "forces", "charges", "spin_charges"])
def test_wrong_shape_names_the_dataset(tmp_path: Path, key: str) -> None:
    columns = water()
    columns[key] = columns[key].reshape(1, -1)
    with pytest.raises(DataError, match=f"003/{key} has shape .*expected"):
        open_checked(write(tmp_path / "a.h5", {"003": columns}))


@pytest.mark.parametrize("key", ["coord", "numbers", "charge", "energy"])
def test_missing_dataset(tmp_path: Path, key: str) -> None:
    columns = water()
    del columns[key]
    with pytest.raises(DataError, match=f"lacks '{key}'"):
        open_checked(write(tmp_path / "a.h5", {"003": columns}))


@pytest.mark.parametrize(
    ("key", "dtype"), [("numbers", np.float64), ("energy", np.int64), ("coord", "S4"), ("charge", "S4")]
)
def test_wrong_type(tmp_path: Path, key: str, dtype: str) -> None:
    columns = water()
    columns[key] = columns[key].astype(dtype)
    with pytest.raises(DataError, match=f"003/{key} is stored as"):
        open_checked(write(tmp_path / "a.h5", {"003": columns}))


def test_small_integers_do_not_overflow(tmp_path: Path) -> None:
    """Eight protons and more: with uint8 the sum over atoms passes 255 and the parity check would go wrong."""
    n, natoms = 2, 3
    columns = water(n)
    columns["numbers"] = np.full((n, natoms), 118, dtype=np.uint8)
    columns["coord"] = np.tile(np.arange(natoms)[None, :, None] * 3.0, (n, 1, 3)).astype(np.float32)
    data = dataset(write(tmp_path / "a.h5", {"003": columns}))
    assert data.read([0])[0].numbers.sum() == 118 * natoms
    columns["mult"] = np.full(n, 2)
    with pytest.raises(DataError, match="does not fit 354 electrons"):
        dataset(write(tmp_path / "b.h5", {"003": columns}))


def test_float32_energies_are_noted(tmp_path: Path) -> None:
    columns = water()
    columns["energy"] = columns["energy"].astype(np.float32)
    assert "stored as float32" in dataset(write(tmp_path / "a.h5", {"003": columns})).notes[0]


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty.h5").touch()
    (tmp_path / "text.h5").write_text("coord 1 2 3\n" * 100)
    whole = write(tmp_path / "whole.h5", {"003": water(400)}).read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    with h5py.File(tmp_path / "foreign.h5", "w") as handle:
        handle["positions"] = np.zeros((3, 3))
    for name, words in {
        "absent.h5": "does not exist",
        "empty.h5": "is empty",
        "text.h5": "not an HDF5 file",
        "cut.h5": "truncated",
        "foreign.h5": "top level",
        ".": "is a folder",
    }.items():
        with pytest.raises(DataError, match=words):
            open_checked(tmp_path / name)


def _spoil(key: str, value: float, at: tuple[int, ...]) -> dict[str, np.ndarray]:
    columns = {name: values.copy() for name, values in water().items()}
    columns[key][at] = value
    return columns


BAD = {
    "coordinates not finite": _spoil("coord", np.nan, (2, 1, 0)),
    "atomic number outside 1..118": _spoil("numbers", 0, (2, 1)),
    "charge not finite": _spoil("charge", np.inf, (2,)),
    "charge not an integer": _spoil("charge", 0.5, (2,)),
    "mult not a positive integer": _spoil("mult", 0, (2,)),
    "mult does not fit the electron count": _spoil("charge", 1, (2,)),
    "energy not finite": _spoil("energy", np.nan, (2,)),
    "energy beyond 1e8 eV": _spoil("energy", 1e30, (2,)),
    "forces not finite": _spoil("forces", np.nan, (2, 0, 1)),
    "charges not finite": _spoil("charges", np.inf, (2, 0)),
    "spin_charges not finite": _spoil("spin_charges", -np.inf, (2,)),
    "coord beyond 1e6 Å": _spoil("coord", -1e30, (2, 1, 0)),
    "forces beyond 1e6 eV/Å": _spoil("forces", 1e30, (2, 0, 1)),
    "charges beyond 1000 e": _spoil("charges", 1e4, (2, 0)),
    "spin_charges beyond 1000 e": _spoil("spin_charges", -1e4, (2, 0)),
}
BAD["coincident atoms"] = water()
BAD["coincident atoms"]["coord"][2, 2] = BAD["coincident atoms"]["coord"][2, 0] + 0.1


@pytest.mark.parametrize("reason", BAD)
def test_bad_rows_are_named_or_skipped(tmp_path: Path, reason: str) -> None:
    path = write(tmp_path / "a.h5", {"003": BAD[reason]})
    with pytest.raises(DataError, match=r"a\.h5: group 003, row 2: \w+: .*on_bad_rows: skip"):
        dataset(path)
    data = dataset(path, "skip")
    assert dict(data.counts[0].bad) == {reason: 1}
    assert [sample.name[-1] for sample in data.read(range(3))] == ["0", "1", "3"]


def test_more_electrons_gone_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not fit -40 electrons"):
        dataset(write(tmp_path / "a.h5", {"003": _spoil("charge", 50, (2,))}))


def test_missing_mult_of_a_radical(tmp_path: Path) -> None:
    columns = _spoil("charge", 1, (2,))
    del columns["mult"]
    with pytest.raises(DataError, match="no mult in the file"):
        dataset(write(tmp_path / "a.h5", {"003": columns}))


def test_coincident_atoms_name_both(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"atoms 0 \(O\) and 2 \(H\) are closer than 0.3 Å"):
        dataset(write(tmp_path / "a.h5", {"003": BAD["coincident atoms"]}))


def test_coincidence_in_large_molecules_and_far_away() -> None:
    """The tree used for many atoms and the all-pairs search agree, also 1000 Å from the origin."""
    grid = np.stack(np.meshgrid(*[np.arange(7.0)] * 3), axis=-1).reshape(1, -1, 3) + 1000.0
    near = grid.copy()
    near[0, 300] = near[0, 5] + 0.15
    for coord in (grid, near):
        expected = [coord is near]
        assert has_coincident(coord).tolist() == expected
        assert has_coincident(coord[:, [5, 300, 17]]).tolist() == expected


def test_all_bad(tmp_path: Path) -> None:
    columns = water()
    columns["energy"][:] = np.nan
    with pytest.raises(DataError, match="no usable molecule"):
        dataset(write(tmp_path / "a.h5", {"003": columns}), "skip")
