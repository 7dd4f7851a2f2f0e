"""A small training that every case starts from: data files, settings, and how to run the command line on them."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[2]
# closed-shell molecules by atomic numbers, so that electrons and multiplicity fit
KINDS = {2: [(1, 1), (1, 9)], 3: [(8, 1, 1)], 4: [(7, 1, 1, 1)]}
SAE = {1: -13.6, 7: -1485.0, 8: -2042.0, 9: -2713.0}
PLACES = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def columns(natoms: int, seed: int, per_kind: int = 8) -> dict[str, np.ndarray]:
    """Molecules of `natoms` atoms with harmonic pair energies (eV), their forces, and charges that sum to zero."""
    rng = np.random.default_rng([seed, natoms])
    numbers = np.array([kind for kind in KINDS[natoms] for _ in range(per_kind)], dtype=np.uint8)
    n = len(numbers)
    coord = PLACES[:natoms] + rng.normal(scale=0.07, size=(n, natoms, 3))
    delta = coord[:, :, None] - coord[:, None]
    distance = np.linalg.norm(delta, axis=-1) + np.eye(natoms)
    stretch = (distance - 1.2) * (1 - np.eye(natoms))
    charges = rng.normal(scale=0.05, size=(n, natoms))
    return {
        "coord": coord.astype(np.float32),
        "numbers": numbers,
        "charge": np.zeros(n, dtype=np.float32),
        "mult": np.ones(n, dtype=np.float32),
        "structure_id": (natoms * 1000 + np.arange(n)) * 1000,
        "energy": 0.75 * (stretch**2).sum(axis=(1, 2)) + np.vectorize(SAE.get)(numbers).sum(axis=1),
        "forces": (-3.0 * ((stretch / distance)[..., None] * delta).sum(axis=2)).astype(np.float32),
        "charges": (charges - charges.mean(axis=1, keepdims=True)).astype(np.float32),
    }


def write_h5(path: Path, groups: Mapping[str, Mapping[str, np.ndarray]]) -> Path:
    """Write groups of columns as a data file."""
    with h5py.File(path, "w") as file:
        for name, values in groups.items():
            group = file.create_group(name)
            for key, array in values.items():
                group[key] = array
    return path


def groups(seed: int, labels: Sequence[str] = ("forces", "charges")) -> dict[str, dict[str, np.ndarray]]:
    """All groups of a data file with these labels besides the energy."""
    keys = ("coord", "numbers", "charge", "mult", "structure_id", "energy", *labels)
    return {f"{n:03d}": {key: columns(n, seed)[key] for key in keys} for n in KINDS}


def _term(key: str) -> dict[str, Any]:
    if key == "energy":
        return {"fn": "aimnet2mult.train.loss.energy_loss_fn"}
    kwargs = {"key_true": key, "key_pred": key}
    return {"fn": "aimnet2mult.train.loss.peratom_loss_fn", "weight": 0.5, "kwargs": kwargs}


_HEADS = "aimnet2mult.models.heads"
MODEL: Mapping[str, Any] = {
    "class": "aimnet2mult.models.network.MultiFidelityNetwork",
    "kwargs": {
        "num_fidelities": 2,
        "aev": {"rc_s": 4.0, "rmin": 0.8, "nshifts_s": 4},
        "nfeature": 4,
        "ncomb_v": 2,
        "hidden": [[8], [8]],
        "aim_size": 8,
        "outputs": {
            "energy_mlp": {"class": f"{_HEADS}.EnergyMLP", "kwargs": {"hidden": [8]}},
            "charges": {"class": f"{_HEADS}.Charges", "kwargs": {"source": "readout", "hidden": [4]}},
            "spin_charges": {"class": f"{_HEADS}.SpinCharges"},
            "atomic_shift": {"class": f"{_HEADS}.AtomicShift"},
            "atomic_sum": {"class": f"{_HEADS}.AtomicSum"},
            "lrcoulomb": {"class": f"{_HEADS}.LRCoulomb", "kwargs": {"method": "simple", "rc": 4.0}},
        },
    },
}
TRAIN: Mapping[str, Any] = {
    "run": {"name": "faults", "folder": "out", "seed": 7, "device": "cpu", "threads": 1},
    "model": "model.yaml",
    "data": {
        "y": ["energy", "forces", "charges"],
        "fidelities": {0: {"name": "full", "files": "fid0.h5"}, 1: {"name": "energies", "files": "fid1.h5"}},
        "fidelity_weights": {0: 3, 1: 1},
        "val_fraction": 0.2,
        "samplers": {"train": {"batch_size": 8, "batches_per_epoch": 4}, "val": {"batch_size": 16}},
    },
    "loss": {
        "class": "aimnet2mult.train.loss.MTLoss",
        "kwargs": {"components": {key: _term(key) for key in ("energy", "forces", "charges")}},
    },
    "optimizer": {"class": "torch.optim.AdamW", "kwargs": {"lr": 5.0e-3}},
    "scheduler": {"kind": "cosine", "warmup_steps": 3},
    "trainer": {"epochs": 2, "ema_decay": 0.9, "checkpoint_minutes": 10.0},
    "logging": {"tensorboard": False, "plots": False},
    "compile": {"enabled": False, "prefix": "compiled/model"},
}


def train_settings(**changes: Any) -> dict[str, Any]:
    """`TRAIN` with values at dotted keys changed; dots are written as two underscores."""
    settings = copy.deepcopy(dict(TRAIN))
    for dotted, value in changes.items():
        *way, last = dotted.split("__")
        here = settings
        for key in way:
            here = here[key]
        here[last] = value
    return settings


def make_case(folder: Path, **changes: Any) -> Path:
    """Write data, model.yaml and train.yaml to `folder`; returns the path of the last."""
    folder.mkdir(parents=True, exist_ok=True)
    write_h5(folder / "fid0.h5", groups(1))
    write_h5(folder / "fid1.h5", groups(2, ()))
    (folder / "model.yaml").write_text(yaml.safe_dump(dict(MODEL)), encoding="utf-8")
    (folder / "train.yaml").write_text(yaml.safe_dump(train_settings(**changes)), encoding="utf-8")
    return folder / "train.yaml"


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    output: str
    error: str

    @property
    def sentence(self) -> str:
        """The last line of stderr that is not part of a progress bar."""
        lines = [line.split("\r")[-1].strip() for line in self.error.splitlines()]
        return next((line for line in reversed(lines) if line and not line.startswith("training:")), "")

    def refused(self, *words: str) -> bool:
        """Whether it ended with exit code 2 and one sentence that holds all `words`, and no traceback."""
        clean = self.code == 2 and "Traceback" not in self.error and self.sentence.startswith("error: ")
        return clean and all(word in self.error for word in words)


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


def command(*arguments: str | Path, module: str = "aimnet2mult.training") -> list[str]:
    """The command line of a module of the package."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def start(*arguments: str | Path, module: str = "aimnet2mult.training", **options: Any) -> subprocess.Popen[str]:
    """Start a command in a session of its own, so that it can be killed with all its children."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    return subprocess.Popen(
        command(*arguments, module=module), env=ENVIRONMENT, start_new_session=True, **(pipes | options)
    )


def finish(process: subprocess.Popen[str], timeout: float = 300.0) -> Ended:
    """Wait for a command that was started."""
    output, error = process.communicate(timeout=timeout)
    return Ended(process.returncode, output or "", error or "")


def run(*arguments: str | Path, module: str = "aimnet2mult.training", **options: Any) -> Ended:
    """Run a command to its end."""
    return finish(start(*arguments, module=module, **options))
