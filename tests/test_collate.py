"""Collation: padding, masks, self-atomic energies, and loaders with workers."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import methane, two_fidelities, water, write

from aimnet2mult.datasets.reader import FidelitySource, MultiFidelityDataset, Sample
from aimnet2mult.datasets.sae import sae_array
from aimnet2mult.errors import DataError, TrainingError
from aimnet2mult.training.collate import Collate, make_loader
from aimnet2mult.types import Batch

SAE = {0: sae_array({1: -13.7, 6: -1030.0, 8: -2041.5}), 1: sae_array({1: -13.6, 6: -1029.0})}
LABELS = ("energy", "forces", "charges", "spin_charges")


@pytest.fixture
def data(tmp_path: Path) -> MultiFidelityDataset:
    return MultiFidelityDataset(two_fidelities(tmp_path), LABELS)


def test_padding_and_masks(data: MultiFidelityDataset) -> None:
    batch = Collate(SAE, LABELS)(data.read([3, 20, 12]))  # water, methane of fidelity 1, methane of fidelity 0
    molecules = batch.molecules
    assert molecules.numbers.tolist() == [[8, 1, 1, 0, 0], [6, 1, 1, 1, 1], [6, 1, 1, 1, 1]]
    assert molecules.fidelity.tolist() == [0, 1, 0]
    assert (molecules.coord[0, 3:] == 0).all()
    np.testing.assert_array_equal(molecules.coord[0, :3], water(10)["coord"][3])
    assert batch.masks["forces"].tolist() == [True, False, False]
    assert batch.masks["energy"].tolist() == [True] * 3
    assert list(batch.labels) == list(batch.masks) == list(LABELS)
    np.testing.assert_array_equal(batch.labels["forces"][0, :3], water(10)["forces"][3])
    assert (batch.labels["forces"][1:] == 0).all()
    assert (batch.labels["forces"][0, 3:] == 0).all()
    assert batch.labels["charges"].shape == (3, 5)
    assert batch.names == ["low.h5/003/3", "high.h5/005/4", "low.h5/5/2"]
    assert (molecules.coord.dtype, molecules.numbers.dtype) == (torch.float32, torch.int64)


def test_self_atomic_energies_leave_in_float64(tmp_path: Path) -> None:
    """At -1e6 eV float32 resolves 0.06 eV; differences of 1e-9 eV must survive."""
    columns = methane(2)
    columns["energy"] = np.array([-1e6, -1e6 + 1e-9])
    path = write(tmp_path / "a.h5", {"5": columns})
    data = MultiFidelityDataset({0: FidelitySource(0, "x", (path,))}, ("energy",))
    energy = Collate({0: sae_array({1: -1.0, 6: -999996.0})}, ("energy",))(data.read([0, 1])).labels["energy"]
    assert energy.dtype == torch.float64
    # float64 resolves 1.2e-10 eV at 1e6 eV
    assert float(energy[1] - energy[0]) == pytest.approx(1e-9, abs=2e-10)
    assert float(energy[0]) == pytest.approx(0.0, abs=2e-10)


def test_each_fidelity_has_its_own(data: MultiFidelityDataset) -> None:
    batch = Collate(SAE, ("energy",))(data.read([10, 16]))  # the same methane in both fidelities
    assert float(batch.labels["energy"][0]) == pytest.approx(methane()["energy"][0] + 1030.0 + 4 * 13.7, abs=1e-9)
    assert float(batch.labels["energy"][1]) == pytest.approx(methane()["energy"][0] + 1029.0 + 4 * 13.6, abs=1e-9)


def test_nan_in_an_unlabelled_slot_does_not_come_through(tmp_path: Path) -> None:
    columns = water(3)
    columns["forces"][1] = np.nan
    data = MultiFidelityDataset({0: FidelitySource(0, "x", (write(tmp_path / "a.h5", {"3": columns}),))})
    batch = Collate(SAE, LABELS)(data.read([0, 1, 2]))
    assert batch.masks["forces"].tolist() == [True, False, True]
    assert all(torch.isfinite(values).all() for values in batch.labels.values())


def test_missing_self_atomic_energies(data: MultiFidelityDataset) -> None:
    with pytest.raises(DataError, match=r"low.h5/003/0 holds O, .* fidelity 0"):
        Collate({0: SAE[1]}, LABELS)(data.read([11, 0]))
    with pytest.raises(DataError, match="fidelity 1 has no self-atomic energies"):
        Collate({0: SAE[0]}, LABELS)(data.read([16]))


def equal(one: Batch, other: Batch) -> bool:
    tensors = [(getattr(one.molecules, name), getattr(other.molecules, name)) for name in one.molecules._fields]
    for label in one.labels:
        tensors += [(one.labels[label], other.labels[label]), (one.masks[label], other.masks[label])]
    return one.names == other.names and all(torch.equal(a, b) for a, b in tensors)


@pytest.mark.parametrize(("workers", "context"), [(0, None), (2, "fork"), (2, "spawn")])
def test_loaders_give_the_same_batches(data: MultiFidelityDataset, workers: int, context: str | None) -> None:
    collate = pickle.loads(pickle.dumps(Collate(SAE, LABELS)))
    batches = np.array_split(np.random.default_rng(0).permutation(len(data)), 7)
    expected = [collate(data.read(batch)) for batch in batches]
    loader = make_loader(data, batches, collate, workers, multiprocessing_context=context)
    assert len(loader) == 7
    got = list(loader)
    assert all(isinstance(batch, Batch) for batch in got)
    assert all(equal(one, other) for one, other in zip(expected, got, strict=True))
    assert len(data.read([0])) == 1  # still readable here


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_arrives_as_a_sentence(data: MultiFidelityDataset, workers: int) -> None:
    context = "fork" if workers else None
    loader = make_loader(data, [np.array([16])], Collate({0: SAE[0]}, LABELS), workers, multiprocessing_context=context)
    with pytest.raises(DataError, match="no self-atomic energies") as caught:
        list(loader)
    assert "\n" not in str(caught.value)


class Dying(Collate):
    def __call__(self, samples: Sequence[Sample]) -> Batch:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(samples)


def test_a_worker_that_is_killed(data: MultiFidelityDataset) -> None:
    loader = make_loader(data, [np.array([16])], Dying(SAE, LABELS), 1, multiprocessing_context="fork")
    with pytest.raises(TrainingError, match="num_workers"):
        list(loader)
