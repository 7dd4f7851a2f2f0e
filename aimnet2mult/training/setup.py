"""What a run is made of, checked before anything is written: loss, architecture, weights to start from."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aimnet2mult.configs.classpaths import resolve
from aimnet2mult.configs.model import ModelConfig
from aimnet2mult.configs.train import TrainConfig
from aimnet2mult.datasets.format import LABELS
from aimnet2mult.errors import ConfigError
from aimnet2mult.models.files import Weights, load_weights
from aimnet2mult.training.checkpoints import differences
from aimnet2mult.training.dispersion import damping_of
from aimnet2mult.training.loss import LOSSES, MTLoss, energy_loss_fn, peratom_loss_fn


def build_loss(config: TrainConfig, own: Mapping[str, Any]) -> MTLoss:
    """The loss of the settings; `own` are class paths that the user allowed (see `imported`).

    Raises
    ------
    ConfigError
        A class path is not allowed, or a term needs a label that ``data.y`` does not list.
    """
    kind = resolve(config.loss.class_, {**LOSSES, **own}, "loss.class")
    if not (isinstance(kind, type) and issubclass(kind, MTLoss)):
        raise ConfigError(
            f"loss.class: {config.loss.class_} is not derived from aimnet2mult.train.loss.MTLoss; make it so"
        )
    components = {name: term.model_dump() for name, term in config.loss.kwargs.components.items()}
    loss = kind({name: {**term, "fn": own.get(term["fn"], term["fn"])} for name, term in components.items()})
    for name, term in loss.terms.items():
        where = f"loss.kwargs.components.{name}"
        if term.key_true not in config.data.y:
            raise ConfigError(f"{where}: the label '{term.key_true}' is not in data.y ({', '.join(config.data.y)})")
        if term.key_pred not in LABELS:
            raise ConfigError(
                f"{where}: the network predicts energy, forces, charges and spin_charges, not '{term.key_pred}'"
            )
        if term.key_pred != term.key_true:
            raise ConfigError(
                f"{where}: the prediction '{term.key_pred}' cannot be compared with the label '{term.key_true}'; "
                "give key_pred and key_true the same name"
            )
        # a quantity per molecule and one per atom have their own functions
        fitting = energy_loss_fn if term.key_true == "energy" else peratom_loss_fn
        if term.fn is not fitting and term.fn not in own.values():
            raise ConfigError(f"{where}.fn: '{term.key_true}' needs aimnet2mult.train.loss.{fitting.__name__}")
    return loss


def check_model(config: TrainConfig, model: ModelConfig, loss: MTLoss) -> None:
    count = len(config.data.fidelities)
    if model.num_fidelities != count:
        raise ConfigError(
            f"{config.model}: num_fidelities is {model.num_fidelities}, but data.fidelities lists {count}; "
            "make them agree"
        )
    if model.kwargs.num_charge_channels == 2 and "mult" not in config.data.x:
        raise ConfigError(
            f"data.x lacks mult, but {config.model} has num_charge_channels: 2, which needs it; add it to data.x "
            "(a file without it counts as mult 1)"
        )
    if model.kwargs.num_charge_channels == 1 and "spin_charges" in loss.needs.predictions:
        raise ConfigError(
            f"{config.model}: num_charge_channels is 1, so spin charges are zero and cannot be trained; "
            "set it to 2, or set the weight of that loss term to 0"
        )
    if model.kwargs.outputs.spin_charges is None and "spin_charges" in loss.needs.predictions:
        raise ConfigError(
            f"{config.model}: outputs.spin_charges is missing, so spin charges are zero and cannot be trained; "
            "add it, or set the weight of that loss term to 0"
        )
    for index, chosen in config.compile.dispersion.items():
        fidelity = config.data.fidelities[index]
        try:
            damping_of(chosen, includes_dispersion=fidelity.labels_include_dispersion, whose=fidelity.name)
        except ConfigError as error:
            raise ConfigError(f"compile.dispersion.{index}: {error}") from None


# what decides first weights only, or nothing at all
_START_ONLY = ("kwargs.embedding_norm", "kwargs.fidelity_offset")


def load_start(path: Path, config: TrainConfig, model: ModelConfig) -> Weights:
    """Read weights to start from; refuses those of another architecture, also where all shapes agree."""
    start = load_weights(path)
    for key, old, new in differences(start.config.to_dict(), model.to_dict()):
        if key not in _START_ONLY:
            raise ConfigError(
                f"--load: {path} was trained with {key} {old}, but {config.model} has {new}; "
                "make them agree, or leave --load out"
            )
    names = {index: fidelity.name for index, fidelity in config.data.fidelities.items()}
    numbers = {name: index for index, name in names.items()}
    for info in start.fidelities:
        if numbers.get(info.name, info.index) != info.index:
            raise ConfigError(
                f"--load: '{info.name}' is fidelity {info.index} in {path}, but fidelity {numbers[info.name]} in "
                "data.fidelities; number the fidelities alike"
            )
    return start


def other_names(start: Weights, config: TrainConfig) -> Iterator[str]:
    """Warnings about fidelities that start from the weights of one with another name."""
    for info in start.fidelities:
        name = config.data.fidelities[info.index].name
        if name != info.name:
            yield f"warning: fidelity {info.index} ({name}) starts from the weights of '{info.name}'"


def check_save(save: Path | None) -> None:
    """Refuse a place for the weights that cannot be written, before hours of training."""
    if save is None:
        return
    if save.is_dir():
        raise ConfigError(f"--save: {save} is a folder; give the name of a file in it, such as {save / 'model.pt'}")
    try:
        with tempfile.TemporaryFile(dir=next(parent for parent in save.absolute().parents if parent.exists())):
            pass
    except OSError as error:
        raise ConfigError(f"--save: {save} cannot be written ({error.strerror}); choose another place") from None
