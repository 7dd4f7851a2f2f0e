"""Splits keep molecules together, represent every fidelity, and survive being written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_files import methane, two_fidelities, water, write

from aimnet2mult.datasets.reader import FidelitySource, MultiFidelityDataset
from aimnet2mult.datasets.split import read_split, split_by_molecule, write_split
from aimnet2mult.errors import ConfigError, DataError


@pytest.fixture
def data(tmp_path: Path) -> MultiFidelityDataset:
    """Fidelity 0: 100 waters and 20 methanes; fidelity 1: 3 of the methanes; two geometries of each."""
    low = {
        "3": water(200) | {"molecule_id": np.arange(200) // 2},
        "5": methane(40) | {"molecule_id": 100 + np.arange(40) // 2},
    }
    high = {"5": methane(6) | {"molecule_id": 110 + np.arange(6) // 2}}
    specs = {
        0: FidelitySource(0, "low", (write(tmp_path / "low.h5", low),)),
        1: FidelitySource(1, "high", (write(tmp_path / "high.h5", high),)),
    }
    return MultiFidelityDataset(specs)


@pytest.mark.parametrize("seed", range(5))
def test_molecules_stay_together_and_fractions_hold(data: MultiFidelityDataset, seed: int) -> None:
    split = split_by_molecule(data, 0.1, 0.2, seed)
    sides = split.indices(data.molecule_key_of)
    assert sorted(np.concatenate(sides)) == list(range(len(data)))
    keys = [set(data.molecule_key_of[side].tolist()) for side in sides]
    assert not keys[0] & keys[1]
    assert not keys[0] & keys[2]
    assert not keys[1] & keys[2]
    assert [len(own) for own in keys] == [84, 12, 24]
    for side in sides:
        assert set(data.fidelity_of[side]) == {0, 1}
    assert split.notes == ()


def test_seed_decides(data: MultiFidelityDataset) -> None:
    first, again, other = (split_by_molecule(data, 0.2, 0.0, seed).val.tolist() for seed in (1, 1, 2))
    assert first == again != other
    assert split_by_molecule(data, 0.2, 0.0, 1).test.size == 0


def test_chance_of_a_molecule_is_about_even(data: MultiFidelityDataset) -> None:
    """Only molecules that must represent a small fidelity are drawn more often: 3 methanes share one draw."""
    drawn = np.zeros(120)
    for seed in range(200):
        drawn[split_by_molecule(data, 0.25, 0.0, seed).val] += 1 / 200
    assert drawn.sum() == pytest.approx(30)
    # 200 draws at 1/4 have a standard deviation of 0.03; 117 molecules stay within 5 of them
    assert np.abs(np.delete(drawn, [110, 111, 112]) - 0.25).max() < 0.16


def test_training_keeps_every_element_of_every_fidelity(tmp_path: Path) -> None:
    groups = {"3": water(40) | {"molecule_id": np.arange(40)}, "5": methane(1) | {"molecule_id": np.array([40])}}
    data = MultiFidelityDataset({0: FidelitySource(0, "x", (write(tmp_path / "a.h5", groups),))})
    assert all(40 in split_by_molecule(data, 0.5, 0.3, seed).train for seed in range(10))


def test_small_fidelities(tmp_path: Path) -> None:
    specs = two_fidelities(tmp_path)
    one = write(tmp_path / "one.h5", {"3": water(2) | {"molecule_id": np.array([100, 100])}})
    two = write(tmp_path / "two.h5", {"3": water(1) | {"molecule_id": [101]}, "5": methane(1) | {"molecule_id": [0]}})
    specs |= {2: FidelitySource(2, "one", (one,)), 3: FidelitySource(3, "two", (two,))}
    data = MultiFidelityDataset(specs)
    for seed in range(5):
        split = split_by_molecule(data, 0.3, 0.0, seed)
        sides = split.indices(data.molecule_key_of)
        assert set(data.fidelity_of[sides.train]) == {0, 1, 2, 3}
        assert set(data.fidelity_of[sides.val]) == {0, 1, 3}
        assert any("fidelity 2 (one) has too few molecules" in note for note in split.notes)
        assert any("some element of fidelity 3 (two)" in note for note in split.notes)


def test_too_little_data(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", {"3": water(9)})
    data = MultiFidelityDataset({0: FidelitySource(0, "x", (path,))})
    with pytest.raises(DataError, match=r"one molecule in all.*val_fraction: 0"):
        split_by_molecule(data, 0.1)
    assert split_by_molecule(data, 0.0).train.size == 1
    for fractions in ((0.6, 0.4), (-0.1, 0.0), (0.1, 1.0)):
        with pytest.raises(ConfigError, match="fraction"):
            split_by_molecule(data, *fractions)


def test_written_and_read(data: MultiFidelityDataset, tmp_path: Path) -> None:
    split = split_by_molecule(data, 0.2, 0.1, 7)
    path = tmp_path / "run" / "split.yaml"
    write_split(split, path)
    back = read_split(path, split.fingerprint)
    for side in ("train", "val", "test"):
        np.testing.assert_array_equal(getattr(back, side), getattr(split, side))
    assert (back.seed, back.identity, back.fingerprint) == (7, "molecule_id", split.fingerprint)
    with pytest.raises(DataError, match="other data"):
        read_split(path, "0" * 64)
    with pytest.raises(DataError, match="does not know"):
        back.indices(np.array([0, 999]))


def test_connectivity_keys_survive(tmp_path: Path) -> None:
    """Hashes fill 64 bits, negative ones included."""
    path = write(tmp_path / "a.h5", {"3": water(2), "5": methane(2)})
    data = MultiFidelityDataset({0: FidelitySource(0, "x", (path,))})
    split = split_by_molecule(data, 0.5)
    write_split(split, tmp_path / "split.yaml")
    back = read_split(tmp_path / "split.yaml")
    assert {len(side) for side in back.indices(data.molecule_key_of)} == {2, 0}


@pytest.mark.parametrize(
    "text", ["", "train: [1]", "[", "train: [x]\nval: []\ntest: []\nseed: 1\nidentity: a\nfingerprint: b"]
)
def test_damaged_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "split.yaml").write_text(text)
    with pytest.raises(DataError, match="is not a split file") as caught:
        read_split(tmp_path / "split.yaml")
    assert "\n" not in str(caught.value)
