"""Reading samples: right rows, lazily, with the labels that are there."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from data_files import WATER, methane, water, write

from aimnet2mult.datasets.connectivity import graph_hashes, molecule_keys
from aimnet2mult.datasets.reader import FidelitySource, MultiFidelityDataset, data_fingerprint
from aimnet2mult.datasets.store import Store, make_table
from aimnet2mult.errors import ConfigError, DataError


@pytest.fixture
def specs(tmp_path: Path) -> dict[int, FidelitySource]:
    first = write(tmp_path / "a.h5", {"003": water(5), "5": methane()})
    second = write(tmp_path / "b.h5", {"5": methane(4)})
    third = write(tmp_path / "c.h5", {"03": {k: v for k, v in water(6).items() if k != "mult"}})
    return {4: FidelitySource(4, "high", (second,)), 0: FidelitySource(0, "low", (first, third))}


@pytest.mark.parametrize("cache_mb", [0, 0.0005, 64])
def test_samples_are_the_rows_of_the_files(specs: dict[int, FidelitySource], cache_mb: float) -> None:
    data = MultiFidelityDataset(specs, cache_mb=cache_mb)
    assert len(data) == 18
    assert data.fidelity_of.tolist() == [0] * 14 + [4] * 4
    assert data.natoms_of.tolist() == [3] * 5 + [5] * 3 + [3] * 6 + [5] * 4
    order = [17, 0, 6, 13, 0, 2, 9]
    samples = data.read(order)
    assert [s.name for s in samples] == [data.name_of(i) for i in order]
    assert [s.name for s in samples][:4] == ["b.h5/5/3", "a.h5/003/0", "a.h5/5/1", "c.h5/03/5"]
    np.testing.assert_array_equal(samples[1].coord, water(5)["coord"][0])
    np.testing.assert_array_equal(samples[1].labels["forces"], water(5)["forces"][0])
    assert samples[0].energy == methane(4)["energy"][3]  # all digits of float64
    assert samples[0].labels == {}
    assert set(samples[3].labels) == {"forces", "charges", "spin_charges"}
    assert samples[3].mult == 1.0
    assert samples[2].numbers.tolist() == [6, 1, 1, 1, 1]
    assert samples[2].numbers.dtype == np.int64
    assert samples[2].coord.dtype == np.float32
    assert data.read([]) == []
    with pytest.raises(IndexError):
        data.read([18])


def test_cache_stays_within_its_bound(tmp_path: Path) -> None:
    """Blocks of 4 MiB, a file of several: the cache takes what fits and the rest is read again and again."""
    n = 40_000
    columns = water(n)
    path = write(tmp_path / "a.h5", {"003": columns})
    store = Store([make_table(path, "003", n, 3, tuple(columns))], cache_mb=3)
    rows = np.random.default_rng(0).integers(0, n, 300)
    for chosen in (rows, rows[:1], np.arange(n - 50, n)):
        taken = store.take(0, chosen)
        for key in ("coord", "energy", "forces"):
            np.testing.assert_array_equal(taken[key], columns[key][chosen])
    held = sum(array.nbytes for chunk in store._chunks.values() for array in chunk.values())
    assert 0 < held <= 3 * 1024 * 1024
    assert 0 < len(store._chunks) < n // store.tables[0].chunk_rows


def test_molecules_far_from_the_origin_keep_their_shape(tmp_path: Path) -> None:
    columns = water(2)
    columns["coord"] = columns["coord"].astype(np.float64)
    near = MultiFidelityDataset({0: FidelitySource(0, "x", (write(tmp_path / "a.h5", {"3": columns}),))}).read([0])[0]
    columns["coord"] += 1000.0
    far = MultiFidelityDataset({0: FidelitySource(0, "x", (write(tmp_path / "b.h5", {"3": columns}),))}).read([0])[0]
    # float32 resolves 6e-5 Å at 1000 Å, but 1e-7 Å at the origin
    np.testing.assert_allclose(far.coord - far.coord[0], near.coord - near.coord[0], atol=5e-7)


def test_label_that_is_nan_throughout_is_missing(tmp_path: Path) -> None:
    columns = water(3)
    columns["forces"][1] = np.nan
    data = MultiFidelityDataset({0: FidelitySource(0, "x", (write(tmp_path / "a.h5", {"3": columns}),))})
    assert data.has_label("forces").tolist() == [True, False, True]
    assert "forces" not in data.read([1])[0].labels


def test_pickle_and_fork(specs: dict[int, FidelitySource]) -> None:
    data = MultiFidelityDataset(specs, cache_mb=0)
    expected = data.read(range(len(data)))
    copy = pickle.loads(pickle.dumps(data))
    for mine, other in zip(expected, copy.read(range(len(data))), strict=True):
        np.testing.assert_array_equal(mine.coord, other.coord)
    child = os.fork()
    if child == 0:
        good = all((a.coord == b.coord).all() for a, b in zip(expected, data.read(range(len(data))), strict=True))
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_labels_that_no_file_holds(tmp_path: Path) -> None:
    source = {0: FidelitySource(0, "x", (write(tmp_path / "a.h5", {"3": water(), "5": methane()}),))}
    with pytest.raises(DataError, match=r"'forcess'.*charges, energy, forces, spin_charges.*did you mean 'forces'"):
        MultiFidelityDataset(source, ("energy", "forcess"))
    only = {0: FidelitySource(0, "x", (write(tmp_path / "b.h5", {"5": methane() | {"dipole": np.zeros((3, 3))}}),))}
    with pytest.raises(DataError, match=r"'forces'; the labels there are energy and, not usable as labels, dipole"):
        MultiFidelityDataset(only, ("energy", "forces"))
    with pytest.raises(ConfigError, match="on_bad_rows"):
        MultiFidelityDataset(only, (), "ignore")


def test_files_listed_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", {"3": water()})
    link = tmp_path / "link.h5"
    link.symlink_to(path)
    for files in ({0: (path, path)}, {0: (path, link)}, {0: (path,), 1: (link,)}):
        with pytest.raises(DataError, match="listed twice"):
            MultiFidelityDataset({fid: FidelitySource(fid, "x", paths) for fid, paths in files.items()})
    with pytest.raises(DataError, match="lists no file"):
        MultiFidelityDataset({0: FidelitySource(0, "x", ())})


def test_copies_of_a_file_are_noted(tmp_path: Path) -> None:
    paths = tuple(write(tmp_path / name, {"3": water(n)}) for name, n in [("a.h5", 4), ("b.h5", 4), ("c.h5", 5)])
    notes = MultiFidelityDataset({0: FidelitySource(0, "x", paths)}).notes
    assert [note for note in notes if "same data" in note] == [
        f"{paths[1]} holds the same data as {paths[0]}: its molecules count twice"
    ]


def test_fingerprint_follows_contents_only(tmp_path: Path) -> None:
    def fingerprint(name: str, columns: dict[str, np.ndarray], labels: tuple[str, ...] = ("energy", "forces")) -> str:
        path = write(tmp_path / name, {"3": columns})
        return data_fingerprint(MultiFidelityDataset({0: FidelitySource(0, "x", (path,))}, labels))

    first = fingerprint("a.h5", water())
    assert fingerprint("b.h5", water()) == first
    assert fingerprint("b.h5", water(), ("energy",)) == first
    changed = water()
    changed["charges"][3, 2] += 1e-6
    assert fingerprint("a.h5", changed, ("energy",)) != first


def test_fingerprint_follows_the_order_of_files(tmp_path: Path) -> None:
    """The numbers of the samples do, and what is kept by number (a shuffle, a resumed epoch) with them."""
    a, b = (write(tmp_path / f"{n}.h5", {"3": water(n)}) for n in (3, 4))
    first, other = (MultiFidelityDataset({0: FidelitySource(0, "x", files)}, cache_mb=0) for files in ((a, b), (b, a)))
    assert first.name_of(3) != other.name_of(3)
    assert data_fingerprint(first) != data_fingerprint(other)


def _keys(tmp_path: Path, **ids: dict[str, np.ndarray]) -> MultiFidelityDataset:
    specs = {}
    for number, (name, extra) in enumerate(ids.items()):
        path = write(tmp_path / f"{name}.h5", {"3": water(4) | extra})
        specs[number] = FidelitySource(number, name, (path,))
    return MultiFidelityDataset(specs)


def test_molecule_keys_from_ids(tmp_path: Path) -> None:
    data = _keys(
        tmp_path, a={"structure_id": np.array([1000, 1999, 2000, 7001])}, b={"structure_id": np.arange(4) + 7000}
    )
    assert data.identity == "structure_id"
    assert data.molecule_key_of.tolist() == [1, 1, 2, 7, 7, 7, 7, 7]
    data = _keys(tmp_path, a={"molecule_id": np.array([5, 5, 6, 6], dtype=np.uint16)})
    assert data.molecule_key_of.tolist() == [5, 5, 6, 6]


def test_ids_that_cannot_be_used_give_way_to_connectivity(tmp_path: Path) -> None:
    ids = {"structure_id": np.arange(4) * 1000}
    mixed = _keys(tmp_path, a=ids, b={})
    assert "b.h5 holds no molecule_id" in mixed.notes[0]
    two = _keys(tmp_path, a=ids, b={"molecule_id": np.arange(4)})
    assert "not comparable" in two.notes[0]
    per_group = {"3": water(2) | {"molecule_id": np.arange(2)}, "5": methane(2) | {"molecule_id": np.arange(2)}}
    clash = MultiFidelityDataset({0: FidelitySource(0, "x", (write(tmp_path / "g.h5", per_group),))})
    assert "different composition" in clash.notes[0]
    for data in (mixed, two):
        assert data.identity == "connectivity"
        assert len(set(data.molecule_key_of.tolist())) == 1
    keys = clash.molecule_key_of.tolist()
    assert keys[0] == keys[1] != keys[2] == keys[3]


def test_connectivity_tells_isomers_apart_and_ignores_order_and_motion() -> None:
    rng = np.random.default_rng(0)
    ethanol = np.array([6, 6, 8, 1, 1, 1, 1, 1, 1])
    carbon = np.array([[0, 0, 0], [1.5, 0, 0]])
    hydrogens = [[-0.4, 1, 0], [-0.4, -0.5, 0.9], [-0.4, -0.5, -0.9]]
    positions = np.array([*carbon, [2.0, 1.35, 0], *hydrogens, [1.9, -0.5, 0.9], [1.9, -0.5, -0.9], [2.95, 1.3, 0]])
    ether = np.array(
        [[0, 0, 0], [2.3, 0, 0], [1.15, 0.8, 0], *hydrogens, [2.7, 1, 0], [2.7, -0.5, 0.9], [2.7, -0.5, -0.9]]
    )
    shaken = positions + 0.03 * rng.standard_normal(positions.shape)
    order = rng.permutation(9)
    coords = np.stack([positions, shaken, positions[order], ether])
    keys = molecule_keys(graph_hashes(coords, np.stack([ethanol, ethanol, ethanol[order], ethanol])))
    assert keys[0] == keys[1] == keys[2] != keys[3]


def test_a_stretched_bond_does_not_make_a_new_molecule() -> None:
    """H2 (radii 0.31 Å each: usual up to 0.775 Å) while it vibrates, and two atoms far apart."""
    lengths = np.array([0.70, 0.74, 0.80, 0.90, 4.0])
    coord = np.zeros((5, 2, 3))
    coord[:, 1, 0] = lengths
    hashes = graph_hashes(coord, np.ones((5, 2), dtype=int))
    keys = molecule_keys(hashes)
    assert hashes[1, 0] != hashes[2, 0]
    assert len(set(keys[:4].tolist())) == 1
    # 0.80 Å looks dissociated by usual bonds, as 4 Å does by both: this one is joined too
    assert keys[4] == keys[0]
    apart = molecule_keys(hashes[[0, 1, 4]])
    assert apart[0] == apart[1] != apart[2]
    # which key it is depends on the set of geometries only, not on their order
    np.testing.assert_array_equal(molecule_keys(hashes[::-1])[::-1], keys)


def test_connectivity_of_large_molecules_follows_the_same_rule() -> None:
    """Hundred waters: more atoms than the all-pairs branch takes; order and motion still do not matter."""
    grid = 4.0 * np.stack(np.meshgrid(*[np.arange(5.0)] * 3), axis=-1).reshape(-1, 1, 3)[:100]
    coord = (grid + WATER).reshape(-1, 3)
    numbers = np.tile([8, 1, 1], 100)
    order = np.random.default_rng(0).permutation(300)
    broken = coord.copy()
    broken[1] += [0.0, 1.2, 0.0]
    hashes = graph_hashes(np.stack([coord, coord[order], broken]), np.stack([numbers, numbers[order], numbers]))
    keys = molecule_keys(hashes)
    assert keys[0] == keys[1] != keys[2]


def test_elements_and_compositions(specs: dict[int, FidelitySource]) -> None:
    data = MultiFidelityDataset(specs)
    assert data.elements() == [1, 6, 8]
    assert data.elements(4) == [1, 6]
    assert data.holds_element(6).tolist() == [False] * 5 + [True] * 3 + [False] * 6 + [True] * 4
    table = data.compositions(0, np.array([7, 1, 17]))
    assert table.indices.tolist() == [1, 7]
    assert table.elements == [1, 6, 8]
    assert table.counts.tolist() == [[2, 0, 1], [4, 1, 0]]
    assert table.energies[1] == methane()["energy"][2]
