"""Tries files that `mutations` names on stdin: one line of verdict per file.

``refused``: an error of the package. ``same``: it gives exactly what the good file gives. ``valid``: data or settings
that are in order by all rules, and are read as they stand in the file. Anything else is a fault. Of archives without a
seal, which older versions wrote, no more is asked than an error of the package or a load without one.
"""

from __future__ import annotations

import resource
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from aimnet2mult.configs.model import load_model_config
from aimnet2mult.configs.train import TrainConfig, load_train_config
from aimnet2mult.configs.yaml_io import read_yaml
from aimnet2mult.datasets.reader import FidelitySource, MultiFidelityDataset
from aimnet2mult.datasets.sae_file import read_sae
from aimnet2mult.datasets.split import read_split
from aimnet2mult.errors import AIMNet2MultError
from aimnet2mult.models.files import load_potential, load_weights
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.training.checkpoints import read_state, restore
from aimnet2mult.training.optim import LearningRate, build_optimizer

FOLDER = Path(sys.argv[1])
MEMORY = 8 << 30  # bytes; a file of some kB that needs more is a fault
WATER = {
    "coord": torch.tensor([[[0.0, 0.0, 0.1], [0.8, 0.0, -0.5], [-0.8, 0.0, -0.5]]]),
    "numbers": torch.tensor([[8, 1, 1]]),
    "charge": torch.zeros(1),
}


def plain(value: Any) -> Any:
    """Content as comparable plain data."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.numpy().tobytes())
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def potential(path: Path) -> Any:
    loaded = load_potential(path)
    with torch.jit.optimized_execution(False):
        return loaded.metadata, plain(loaded.module(WATER)["energy"].detach())


def weights(path: Path) -> Any:
    loaded = load_weights(path)
    network = loaded.build()
    assert isinstance(network, MultiFidelityNetwork)
    return loaded.config, plain(network.state_dict()), loaded.fidelities, loaded.provenance, loaded.sae


def checkpoint(path: Path) -> Any:
    content = read_state(path)
    settings, model = load_train_config(FOLDER / "train.yaml"), load_model_config(FOLDER / "model.yaml")
    network, ema = MultiFidelityNetwork(model), MultiFidelityNetwork(model)
    optimizer = build_optimizer(network, settings.optimizer)
    parts = {"network": network, "ema": ema, "optimizer": optimizer}
    parts["schedule"] = LearningRate(optimizer, settings.scheduler, 100)
    restore(content, parts, content["progress"]["sums"], path)
    return plain({name: part.state_dict() for name, part in parts.items()})


def data(path: Path) -> str:
    """Every sample as read by the package against what h5py says is in the file."""
    source = {0: FidelitySource(0, "x", (path,))}
    labels = ("energy", "forces", "charges")
    try:
        dataset = MultiFidelityDataset(source, labels, "error", 16)
    except AIMNet2MultError:
        dataset = MultiFidelityDataset(source, labels, "skip", 16)
    assert len(dataset.molecule_key_of) == len(dataset)
    with h5py.File(path) as file:
        for sample in dataset.read(range(len(dataset))):
            _, group, row = sample.name.split("/")
            stored = {key: file[group][key][int(row)] for key in ("numbers", "energy", *sample.labels)}
            if not all(np.isfinite(values).all() for values in (sample.coord, sample.energy, *sample.labels.values())):
                return "wrong: values that are not finite"
            read = {"numbers": sample.numbers, "energy": sample.energy, **sample.labels}
            for key, values in stored.items():
                if not np.array_equal(np.asarray(values, dtype=np.asarray(read[key]).dtype), read[key]):
                    return f"wrong: {key} differs from the file"
    dataset.close()
    return "valid"


def train_settings(path: Path) -> str:
    config = load_train_config(path)
    again = TrainConfig.model_validate(config.model_dump(by_alias=True))
    return "valid" if again == config else "wrong: settings change when they are written out"


def model_settings(path: Path) -> str:
    config = load_model_config(path)
    return "valid" if type(config).model_validate(config.to_dict()) == config else "wrong: settings change"


def energies(path: Path) -> str:
    return "valid" if all(np.isfinite(value) for value in read_sae(path).values()) else "wrong: not finite"


def split(path: Path) -> str:
    read_split(path)
    read_yaml(path)
    return "valid"


SAME: dict[str, tuple[Callable[[Path], Any], str]] = {
    "compiled potential (.jpt)": (potential, "out/compiled/model_fid0.jpt"),
    "weights (.pt)": (weights, "out/model.pt"),
    "checkpoint (.pt)": (checkpoint, "out/checkpoints/last.pt"),
}
VALID: dict[str, Callable[[Path], str]] = {
    "data (HDF5)": data,
    "train.yaml": train_settings,
    "model.yaml": model_settings,
    "self-atomic energies (YAML)": energies,
    "split (YAML)": split,
}


def main() -> None:
    """Answer until stdin ends."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    good = {kind: reader(FOLDER / place) for kind, (reader, place) in SAME.items()}
    for line in sys.stdin:
        kind, _, name = line.rstrip("\n").partition("\t")
        path = Path(name)
        try:
            sealed, _, without = kind.partition(", ")
            if sealed in good:
                same = SAME[sealed][0](path) == good[sealed]
                answer = "same" if same else "valid" if without else "wrong: loads as something else"
            else:
                answer = VALID[kind](path)
        except AIMNet2MultError as error:
            answer = "refused" if str(error).startswith(str(path)) else f"unnamed: {error}"
        except BaseException as error:  # what a user would see as a traceback
            frame = traceback.extract_tb(error.__traceback__)[-1]
            answer = f"traceback: {type(error).__name__}: {error} in {Path(frame.filename).name}:{frame.lineno}"
        print(" ".join(answer.split())[:300], flush=True)


if __name__ == "__main__":
    main()
