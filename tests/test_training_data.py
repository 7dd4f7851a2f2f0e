"""The data stage: what is held back stays unseen by the fit of self-atomic energies, and units are checked."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import run_case
import yaml

from aimnet2mult.configs.train import load_train_config
from aimnet2mult.datasets.sae_file import read_sae, write_sae
from aimnet2mult.errors import DataError
from aimnet2mult.training.data import TrainingData, prepare_data
from aimnet2mult.training.logs import RunLog
from aimnet2mult.training.processes import Processes

HARTREE = 27.211386245988


def prepared(case: Path, folder: str, *overrides: str) -> TrainingData:
    path = case.parent / folder
    path.mkdir()
    data = prepare_data(load_train_config(case, overrides), path, Processes(), RunLog(path / "run.log"))
    data.dataset.close()  # the files are changed between two calls; they open again when needed
    return data


def log_of(case: Path, folder: str) -> str:
    return (case.parent / folder / "run.log").read_text(encoding="utf-8")


def change_energies(data: TrainingData, file: Path, samples: np.ndarray, shift: float) -> None:
    """Add `shift` to the energies of these samples in their file."""
    with h5py.File(file, "r+") as handle:
        for name in (data.dataset.name_of(int(i)) for i in samples):
            owner, group, row = name.split("/")
            if owner == file.name:
                handle[group]["energy"][int(row)] += shift


def test_self_atomic_energies_do_not_see_what_is_held_back(case: Path) -> None:
    first = prepared(case, "first", "data.test_fraction=0.2")
    held_back = np.concatenate([first.split.val, first.split.test])
    files = [case.parent / f"fid{i}.h5" for i in range(2)]
    for file in files:
        change_energies(first, file, held_back, 500.0)
    again = prepared(case, "again", "data.test_fraction=0.2")
    np.testing.assert_array_equal(again.split.val, first.split.val)
    assert again.sae == first.sae
    for file in files:
        change_energies(first, file, first.split.train, 3.0)
    other = prepared(case, "other", "data.test_fraction=0.2")
    assert all(other.sae[i] != first.sae[i] for i in range(2))


def test_an_element_that_only_held_back_molecules_hold(case: Path) -> None:
    """Fidelity 1 is N2 and O2 alone: one of them has to be held back, and its element with it."""
    with h5py.File(case.parent / "fid1.h5", "w") as handle:
        group = handle.create_group("002")
        group["coord"] = np.array([[[0.0, 0, 0], [0, 0, 1.1]], [[0.0, 0, 0], [0, 0, 1.2]]], dtype=np.float32)
        group["numbers"] = np.array([[7, 7], [8, 8]], dtype=np.uint8)
        group["charge"] = np.zeros(2, dtype=np.float32)
        group["mult"] = np.array([1.0, 3.0], dtype=np.float32)
        group["structure_id"] = np.array([9_000_000, 9_001_000])
        group["energy"] = np.array([-2970.0, -4090.0])
    data = prepared(case, "out")
    assert data.sae[1] == pytest.approx({7: -1485.0, 8: -2045.0})
    assert data.sae[1] == read_sae(case.parent / "out" / "sae_fid1.yaml")
    (batch,) = data.loader([data.split.val])
    assert batch.labels["energy"].isfinite().all()
    absent = {7: "N", 8: "O"}[next(z for z in (7, 8) if z not in data.fidelity_infos()[1].elements)]
    assert (
        f"warning: fidelity 1 (energies): only validation or test molecules hold {absent}, so nothing is learned of "
        "that and its self-atomic energy is fitted to these; add more molecules that hold it"
    ) in log_of(case, "out")


def test_a_file_of_self_atomic_energies_in_hartree_is_called_out(case: Path) -> None:
    """Energies and their file both in Hartree: residuals are small, and only the values themselves tell."""
    with h5py.File(case.parent / "fid0.h5", "r+") as handle:
        for group in handle.values():
            group["energy"][...] = group["energy"][...] / HARTREE
    right, wrong = case.parent / "right.yaml", case.parent / "wrong.yaml"
    write_sae(right, run_case.SAE)
    write_sae(wrong, {z: energy / HARTREE for z, energy in run_case.SAE.items()})
    config = yaml.safe_load(case.read_text(encoding="utf-8"))
    for index, file in enumerate((wrong, right)):
        config["data"]["fidelities"][index]["sae"] = str(file)
    case.write_text(yaml.safe_dump(config), encoding="utf-8")
    prepared(case, "out")
    warnings = [line for line in log_of(case, "out").splitlines() if "look like" in line]
    assert warnings == [
        f"warning: fidelity 0 (full): the self-atomic energies in {wrong} look like Hartree, but all energies must be "
        "in eV; multiply them by 27.2113862, and the energies (and forces) of the data too where these are in Hartree"
    ]


def test_nothing_is_kept_when_a_given_file_of_self_atomic_energies_cannot_be_used(case: Path) -> None:
    with pytest.raises(DataError, match=r"data\.fidelities\.1\.sae: .*absent\.yaml does not exist"):
        prepared(case, "out", "data.fidelities.1.sae=absent.yaml")
    assert [path.name for path in (case.parent / "out").iterdir()] == ["run.log"]
