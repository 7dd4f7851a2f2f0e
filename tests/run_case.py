"""A tiny training case: two data files, two YAML files, and what tests of runs look at."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path

import h5py
import numpy as np
import torch

from aimnet2mult.training.engine import Trainer

ROOT = Path(__file__).resolve().parent.parent
# closed-shell molecules by atomic numbers, so that parity of electrons and multiplicity holds
KINDS = {2: [(1, 1), (1, 9)], 3: [(8, 1, 1)], 4: [(7, 1, 1, 1)]}
SAE = {1: -13.0, 7: -1480.0, 8: -2040.0, 9: -2710.0}
FID0_ONLY = {"forces", "charges", "spin_charges"}


def write_data(path: Path, seed: int, labels: set[str], per_kind: int = 6) -> None:
    """Molecules with pairwise harmonic energies, their exact forces, and charges that sum to zero."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        for natoms, kinds in KINDS.items():
            base = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])[:natoms]
            numbers = np.array([kind for kind in kinds for _ in range(per_kind)])
            n = len(numbers)
            coord = base + rng.normal(scale=0.07, size=(n, natoms, 3))
            delta = coord[:, :, None] - coord[:, None]
            distance = np.linalg.norm(delta, axis=-1) + np.eye(natoms)
            stretch = (distance - 1.2) * (1 - np.eye(natoms))
            energy = 0.5 * 3.0 * (stretch**2).sum(axis=(1, 2)) / 2
            group = file.create_group(f"{natoms:03d}")
            group["coord"] = coord.astype(np.float32)
            group["numbers"] = numbers.astype(np.uint8)
            group["charge"] = np.zeros(n, dtype=np.float32)
            group["mult"] = np.ones(n, dtype=np.float32)
            # each geometry is a molecule of its own, so that the split has something to choose from
            group["structure_id"] = (natoms * 1000 + np.arange(n)) * 1000
            group["energy"] = energy + np.vectorize(SAE.get)(numbers).sum(axis=1)
            if "forces" in labels:
                group["forces"] = -3.0 * ((stretch / distance)[..., None] * delta).sum(axis=2).astype(np.float32)
            for key in ("charges", "spin_charges"):
                if key in labels:
                    values = rng.normal(scale=0.05, size=(n, natoms))
                    group[key] = (values - values.mean(axis=1, keepdims=True)).astype(np.float32)


MODEL = {
    "class": "aimnet2mult.models.network.MultiFidelityNetwork",
    "kwargs": {
        "num_fidelities": 2,
        "aev": {"rc_s": 4.0, "rmin": 0.8, "nshifts_s": 4},
        "nfeature": 4,
        "ncomb_v": 2,
        "hidden": [[8], [8]],
        "aim_size": 8,
        "outputs": {
            "energy_mlp": {"class": "aimnet2mult.models.heads.EnergyMLP", "kwargs": {"hidden": [8]}},
            "charges": {"class": "aimnet2mult.models.heads.Charges", "kwargs": {"source": "readout", "hidden": [4]}},
            "spin_charges": {"class": "aimnet2mult.models.heads.SpinCharges"},
            "atomic_shift": {"class": "aimnet2mult.models.heads.AtomicShift"},
            "atomic_sum": {"class": "aimnet2mult.models.heads.AtomicSum"},
            "lrcoulomb": {"class": "aimnet2mult.models.heads.LRCoulomb", "kwargs": {"method": "simple", "rc": 4.0}},
        },
    },
}


def component(key: str, weight: float) -> dict:
    if key == "energy":
        return {"fn": "aimnet2mult.train.loss.energy_loss_fn", "weight": weight}
    kwargs = {"key_true": key, "key_pred": key}
    return {"fn": "aimnet2mult.train.loss.peratom_loss_fn", "weight": weight, "kwargs": kwargs}


TRAIN = {
    "run": {"name": "tiny", "folder": "out", "seed": 7, "device": "cpu"},
    "data": {
        "fidelities": {0: {"name": "full", "files": "fid0.h5"}, 1: {"name": "energies", "files": "fid1.h5"}},
        "fidelity_weights": {0: 3, 1: 1},
        "val_fraction": 0.2,
        "samplers": {"train": {"batch_size": 8, "batches_per_epoch": 4}, "val": {"batch_size": 16}},
    },
    "loss": {
        "class": "aimnet2mult.train.loss.MTLoss",
        "kwargs": {"components": {k: component(k, 1.0) for k in ("energy", "forces", "charges", "spin_charges")}},
    },
    "optimizer": {"class": "torch.optim.AdamW", "kwargs": {"lr": 5.0e-3}},
    "scheduler": {"kind": "cosine", "warmup_steps": 3},
    "trainer": {"epochs": 3, "ema_decay": 0.9},
    "logging": {"tensorboard": False, "plots": False},
    "compile": {"enabled": False},
}


def state(folder: Path) -> dict:
    return torch.load(folder / "checkpoints/last.pt", weights_only=True)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs/metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


def assert_same(a, b, path=""):
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


def stop_at(monkeypatch, step: int, signum: int = signal.SIGTERM) -> None:
    """Send this process a signal after the step with this number."""
    original = Trainer._after_step

    def after_step(self, engine):
        if self.progress.total_steps == step:
            os.kill(os.getpid(), signum)
        original(self, engine)

    monkeypatch.setattr(Trainer, "_after_step", after_step)
