"""Training state on disk: everything that an exact continuation needs, and the check that it belongs to this run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from aimnet2mult.configs.train import TrainConfig
from aimnet2mult.errors import ConfigError, ModelFileError, TrainingError
from aimnet2mult.files import atomic_path
from aimnet2mult.models.files import read_archive

KIND = "aimnet2mult training state"
VERSION = 1

# settings that decide what is learnt: a run continues only while they stay the same
FIXED = (
    *(f"data.{key}" for key in ("x", "y", "fidelity_weights", "val_fraction", "test_fraction", "samplers.train")),
    "run.seed",
    "loss",
    "optimizer.class",
    "optimizer.kwargs.amsgrad",  # keeps moments of its own
)
# settings that may change between starts without a word
FREE = ("run.folder", "run.name", "run.threads", "run.device", "model", "data", "logging", "compile")


@dataclass
class Progress:
    """Where a run stands; plain numbers only."""

    epoch: int = 0  # epochs that are complete
    step: int = 0  # steps done in the epoch under way
    total_steps: int = 0  # steps done in all
    best: float | None = None  # best value of the selection metric
    best_epoch: int = 0  # 1 for the first epoch; 0: none yet
    waited: int = 0  # epochs since the best
    seconds: float = 0.0  # wall time of training
    selection: str = ""  # what `best` is a value of; empty: nothing was compared yet
    sums: dict[str, float] = field(default_factory=dict)  # of the epoch under way, for its line in the log


@dataclass(frozen=True)
class RunIdentity:
    """What a checkpoint must agree with."""

    settings: dict[str, Any]  # train.yaml as checked
    model: dict[str, Any]  # model.yaml as checked
    data: str  # fingerprint of the data
    sae: dict[str, dict[str, float]]  # self-atomic energies by fidelity and element


def identity_of(
    config: TrainConfig, model: dict[str, Any], data: str, sae: Mapping[int, Mapping[int, float]]
) -> RunIdentity:
    """Collect what a checkpoint must agree with."""
    energies = {str(f): {str(z): float(value) for z, value in values.items()} for f, values in sae.items()}
    identity = RunIdentity(config.model_dump(mode="json", by_alias=True), model, data, energies)
    return RunIdentity(**json.loads(json.dumps(asdict(identity))))


def save_state(path: Path, identity: RunIdentity, progress: Progress, parts: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    Parameters
    ----------
    path
        Target.
    identity, progress
        What the state belongs to, and where the run stands.
    parts
        Objects with ``state_dict()``.

    Raises
    ------
    TrainingError
        The file cannot be written, for example because the disk is full; the older file is kept.
    """
    content = {
        "kind": KIND,
        "version": VERSION,
        "identity": json.dumps(asdict(identity)),
        "progress": asdict(progress),
        "rng": _random_state(),
        **{name: part.state_dict() for name, part in parts.items()},
    }
    try:
        with atomic_path(path) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(
            f"{path} cannot be written ({reason}); make room or mend the folder and run again: "
            "training goes on from the last checkpoint that was written"
        ) from None


def read_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises
    ------
    TrainingError
        The file is damaged or no checkpoint of this package.
    """
    hint = "start anew with --fresh, or put a good checkpoint there"
    if not path.is_file():
        raise TrainingError(f"{path}: this checkpoint is missing; {hint}")
    try:
        content = read_archive(path, hint)
    except ModelFileError as error:
        raise TrainingError(str(error)) from None
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise TrainingError(f"{path}: not a checkpoint of this package; {hint}")
    if content.get("version") != VERSION:
        raise TrainingError(f"{path}: checkpoint version {content.get('version')} is not known here; {hint}")
    return content


def restore(content: Mapping[str, Any], parts: Mapping[str, Any]) -> Progress:
    """Put a checkpoint into the objects that it was made from; returns where the run stood."""
    for name, part in parts.items():
        part.load_state_dict(content[name])
    torch.set_rng_state(content["rng"]["cpu"])
    if torch.cuda.is_available() and len(content["rng"]["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(content["rng"]["cuda"])
    return Progress(**content["progress"])


def check_identity(content: Mapping[str, Any], now: RunIdentity, path: Path) -> list[str]:
    """Compare a checkpoint with the run at hand.

    Returns
    -------
    list of str
        Settings that changed and take effect from here on, as ``key: old -> new``.

    Raises
    ------
    ConfigError
        The data, the model, the self-atomic energies or a setting that decides what is learnt changed; the
        message names the key.
    """
    then = RunIdentity(**json.loads(content["identity"]))
    hint = "use another run.folder, or start anew with --fresh"
    if then.data != now.data:
        raise ConfigError(f"data.fidelities: the data changed since {path} was written; {hint}")
    for key, old, new in differences(then.model, now.model):
        raise ConfigError(f"model: {key} is {new} but {path} was trained with {old}; {hint}")
    for key, old, new in differences(then.sae, now.sae):
        raise ConfigError(f"self-atomic energies: {key} is {new} but {path} was trained with {old}; {hint}")
    notes = []
    for key, old, new in differences(then.settings, now.settings):
        if any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED):
            raise ConfigError(f"{key} is {new} but {path} was trained with {old}; {hint}")
        if not any(key == free or key.startswith(f"{free}.") for free in FREE):
            notes.append(f"{key}: {old} -> {new}")
    return notes


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, old and new value of everything in which two nested mappings differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield path, old, new


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}
