"""Training state on disk: everything that an exact continuation needs, and the check that it belongs to this run."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter

from aimnet2mult.configs.train import TrainConfig
from aimnet2mult.errors import ConfigError, ModelFileError, TrainingError
from aimnet2mult.files import atomic_path
from aimnet2mult.models.archive import first_line, write_sealed
from aimnet2mult.models.files import read_archive
from aimnet2mult.training.optim import with_settings_of

KIND = "aimnet2mult training state"
VERSION = 1
_ANEW = "start anew with --fresh, or put a good checkpoint there"

# settings that decide what is learnt from the first step on: a run never goes on with others
FIXED = (
    *(f"data.{key}" for key in ("x", "y", "fidelity_weights", "val_fraction", "test_fraction", "samplers.train")),
    "run.seed",
    "loss",
    "optimizer.class",
    "optimizer.kwargs.amsgrad",  # keeps moments of its own
)
# settings that change nothing of what is learnt from a batch: a run goes on with new values, and says so
HARMLESS = (
    *("run", "model", "data", "logging", "compile"),
    *(f"trainer.{key}" for key in ("epochs", "checkpoint_minutes", "final_weights", "early_stopping.patience")),
)


@dataclass
class Progress:
    """Where a run stands; plain numbers only."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    epoch: int = 0  # epochs that are complete
    step: int = 0  # steps done in the epoch under way
    total_steps: int = 0  # steps done in all
    best: float | None = None  # best value of the selection metric
    best_epoch: int = 0  # 1 for the first epoch; 0: none yet
    waited: int = 0  # epochs since the best
    seconds: float = 0.0  # wall time of training
    selection: str = ""  # what `best` is a value of; empty: nothing was compared yet
    sums: dict[str, float] = field(default_factory=dict)  # of the epoch under way, for its line in the log
    log_bytes: int | None = None  # length of run.log; what a killed run wrote after that is written again


@dataclass(frozen=True)
class RunIdentity:
    """What a checkpoint must agree with."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    settings: dict[str, Any]  # train.yaml as checked
    model: dict[str, Any]  # model.yaml as checked
    data: str  # fingerprint of the data
    sae: dict[str, dict[str, float]]  # self-atomic energies by fidelity and element
    split: str = ""  # fingerprint of the split; empty in older files


def identity_of(
    config: TrainConfig, model: dict[str, Any], data: str, sae: Mapping[int, Mapping[int, float]], split: str
) -> RunIdentity:
    """Collect what a checkpoint must agree with."""
    energies = {str(f): {str(z): float(value) for z, value in values.items()} for f, values in sae.items()}
    identity = RunIdentity(config.model_dump(mode="json", by_alias=True), model, data, energies, split)
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
            write_sealed(temporary, content)
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be written ({error.strerror or error}); make room or mend the folder and run again: "
            "training goes on from the last checkpoint that was written"
        ) from None


def read_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises
    ------
    TrainingError
        The file is damaged or no checkpoint of this package.
    """
    if not path.is_file():
        raise TrainingError(f"{path}: this checkpoint is missing; {_ANEW}")
    try:
        content = read_archive(path, _ANEW)
    except ModelFileError as error:
        raise TrainingError(str(error)) from None
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise TrainingError(f"{path}: not a checkpoint of this package; {_ANEW}")
    if content.get("version") != VERSION:
        raise TrainingError(f"{path}: checkpoint version {content.get('version')} is not known here; {_ANEW}")
    try:
        _identity_in(content)
        progress_of(content)
    except (KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path}: the description inside is malformed ({first_line(error)}); {_ANEW}") from None
    return content


def read_latest(last: Path, best: Path | None) -> dict[str, Any]:
    """Read the checkpoint that a run goes on from.

    Parameters
    ----------
    last
        The state that was saved last.
    best
        The state after the best epoch; None when the run does not need it.

    Raises
    ------
    TrainingError
        One of them is missing, damaged or no checkpoint of this package.
    """
    content = read_state(last)
    if best is None or not progress_of(content).best_epoch:
        return content
    chosen = read_state(best)
    # that of the best epoch is written first: a run killed between the two has gone further than `last` says
    return max((content, chosen), key=lambda state: progress_of(state).total_steps)


def progress_of(content: Mapping[str, Any]) -> Progress:
    """Where the run of a checkpoint stood."""
    return TypeAdapter(Progress).validate_python(content["progress"])


def _identity_in(content: Mapping[str, Any]) -> RunIdentity:
    return TypeAdapter(RunIdentity).validate_json(content["identity"])


def restore(content: Mapping[str, Any], parts: Mapping[str, Any], sums: Collection[str], path: Path) -> Progress:
    """Put a checkpoint into the objects that it was made from; returns where the run stood.

    `sums` are the names of the sums of an epoch, see `Progress`.

    Raises
    ------
    TrainingError
        It does not fit these objects.
    """
    try:
        progress = progress_of(content)
        if set(progress.sums) != set(sums):
            raise ValueError("its sums are of other quantities")
        for name, part in parts.items():
            optimizer = isinstance(part, torch.optim.Optimizer)
            part.load_state_dict(with_settings_of(part, content[name]) if optimizer else content[name])
        torch.set_rng_state(content["rng"]["cpu"])
        if torch.cuda.is_available() and len(content["rng"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(content["rng"]["cuda"])
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise TrainingError(f"{path}: the state inside does not fit this run ({first_line(error)}); {_ANEW}") from None
    return progress


def check_identity(content: Mapping[str, Any], now: RunIdentity, path: Path, accept: bool = False) -> list[str]:
    """Compare a checkpoint with the run at hand.

    Parameters
    ----------
    content, now, path
        The checkpoint, the run, and where the first comes from.
    accept
        Also take new values of settings that change how the weights move from here on, such as the learning rate.

    Returns
    -------
    list of str
        Settings that changed and take effect from here on, as ``key: old -> new``.

    Raises
    ------
    ConfigError
        The data, the split, the model, the self-atomic energies or a setting that decides what is learnt changed; the
        message names the key.
    """
    then = _identity_in(content)
    hint = "use another run.folder, or start anew with --fresh"
    if then.data != now.data:
        raise ConfigError(f"data.fidelities: the data changed since {path} was written; {hint}")
    if then.split not in ("", now.split):
        raise ConfigError(f"split.yaml: another split than {path} was trained with; put the old one back, {hint}")
    for key, old, new in differences(then.model, now.model):
        raise ConfigError(f"model: {key} is {new} but {path} was trained with {old}; {hint}")
    for key, old, new in differences(then.sae, now.sae):
        raise ConfigError(f"self-atomic energies: {key} is {new} but {path} was trained with {old}; {hint}")
    notes = []
    for key, old, new in differences(then.settings, now.settings):
        if _among(key, FIXED):
            raise ConfigError(f"{key} is {new} but {path} was trained with {old}; {hint}")
        if not (accept or _among(key, HARMLESS)):
            raise ConfigError(
                f"{key} is {new} but {path} was trained with {old}; set it back, add --accept-changes to go on with "
                f"the new value, or {hint}"
            )
        notes.append(f"{key}: {old} -> {new}")
    return notes


def _among(key: str, settings: Sequence[str]) -> bool:
    return any(key == setting or key.startswith(f"{setting}.") for setting in settings)


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
