"""A whole run: data check, self-atomic energies, split, training, model files, model card."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from aimnet2mult.configs.classpaths import resolve
from aimnet2mult.configs.model import ModelConfig, load_model_config
from aimnet2mult.configs.train import TrainConfig
from aimnet2mult.errors import ConfigError, TrainingError
from aimnet2mult.models.files import fill_network, load_weights
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.training.checkpoints import check_identity, identity_of, read_state
from aimnet2mult.training.data import TrainingData, prepare_data
from aimnet2mult.training.engine import Trainer
from aimnet2mult.training.finish import finish
from aimnet2mult.training.logs import EpochLog, RunLog
from aimnet2mult.training.loss import LOSSES, MTLoss
from aimnet2mult.training.processes import Processes, processes


@dataclass(frozen=True)
class RunResult:
    """What a run made."""

    folder: Path
    weights: Path
    compiled: dict[int, Path]


def train(
    config: TrainConfig,
    load: Path | None = None,
    save: Path | None = None,
    dry_run: bool = False,
    fresh: bool = False,
) -> RunResult:
    """Train a multi-fidelity network and compile it.

    When the run folder holds a checkpoint, training goes on from there, with the same result as if it
    had never stopped (on CPU, to the last bit).

    Parameters
    ----------
    config
        Settings, from `load_train_config`.
    load
        Weights to start from, for a run that starts anew.
    save
        Another place for a copy of the final weights.
    dry_run
        Go through all stages with two batches, in a sub-folder that is removed afterwards.
    fresh
        Start anew, even when the folder holds a checkpoint.

    Returns
    -------
    RunResult
        Where everything is.

    Raises
    ------
    ConfigError, DataError, ModelFileError, TrainingError
        Something is wrong with settings, data, weights or the course of training; one sentence says what.
    aimnet2mult.training.interrupt.StoppedError
        SIGINT or SIGTERM came; the state is saved.
    """
    if not dry_run:
        return _run(config, load, save, fresh)
    folder = config.run.folder / "dry_run"
    run = config.run.model_copy(update={"folder": folder})
    trainer = config.trainer.model_copy(update={"epochs": 1})
    logging = config.logging.model_copy(update={"wandb": None})
    try:
        result = _run(
            config.model_copy(update={"run": run, "trainer": trainer, "logging": logging}), load, None, True, 2
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"dry run complete: every stage works; {folder} is removed again")
    return result


def _run(config: TrainConfig, load: Path | None, save: Path | None, fresh: bool, limit: int | None = None) -> RunResult:
    model = load_model_config(config.model)
    loss = build_loss(config)
    _check_model(config, model, loss)
    folder = config.run.folder
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    with processes(config.run.device) as group:
        if group.first:
            _prepare_folder(folder, fresh)
        group.wait()
        log = RunLog(folder / "logs/run.log", quiet=not group.first)
        data, trainer = _train(config, model, loss, load, group, log, limit)
    result = RunResult(folder, folder / "model.pt", {})
    if group.first:
        where = (folder, trainer.best, group, log, save, limit)
        result.compiled.update(finish(config, model, data, loss, trainer.progress, *where))
    return result


def build_loss(config: TrainConfig) -> MTLoss:
    """The loss of the settings.

    Raises
    ------
    ConfigError
        A class path is not allowed, or a term needs a label that ``data.y`` does not list.
    """
    kind = resolve(config.loss.class_, LOSSES, "loss.class")
    loss = kind({name: term.model_dump() for name, term in config.loss.kwargs.components.items()})
    for name, term in loss.terms.items():
        if term.key_true not in config.data.y:
            raise ConfigError(
                f"loss.kwargs.components.{name}: the label '{term.key_true}' is not in data.y "
                f"({', '.join(config.data.y)})"
            )
        if term.key_pred not in ("energy", "forces", "charges", "spin_charges"):
            raise ConfigError(
                f"loss.kwargs.components.{name}: the network predicts energy, forces, charges and spin_charges, "
                f"not '{term.key_pred}'"
            )
    return loss


def _check_model(config: TrainConfig, model: ModelConfig, loss: MTLoss) -> None:
    count = len(config.data.fidelities)
    if model.num_fidelities != count:
        raise ConfigError(
            f"{config.model}: num_fidelities is {model.num_fidelities}, but data.fidelities lists {count}; "
            "make them agree"
        )
    if model.kwargs.num_charge_channels == 1 and "spin_charges" in loss.needs.predictions:
        raise ConfigError(
            f"{config.model}: num_charge_channels is 1, so spin charges are zero and cannot be trained; "
            "set it to 2, or set the weight of that loss term to 0"
        )
    for index, chosen in config.compile.dispersion.items():
        fidelity = config.data.fidelities[index]
        if chosen.method != "none" and fidelity.labels_include_dispersion:
            raise ConfigError(
                f"compile.dispersion.{index}: the labels of {fidelity.name} include dispersion already "
                "(labels_include_dispersion: true), so adding it would count it twice; set method: none"
            )


def _prepare_folder(folder: Path, fresh: bool) -> None:
    """Make the run folder; clear what an older run left there when this one starts anew."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if fresh or not (folder / "checkpoints/last.pt").exists():
            for name in ("checkpoints/last.pt", "checkpoints/best.pt", "logs/metrics.csv", "split.yaml"):
                (folder / name).unlink(missing_ok=True)
            for path in folder.glob("sae_fid*.yaml"):
                path.unlink()
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"run.folder: {folder} cannot be written ({error.strerror}); choose another folder") from None


def _train(
    config: TrainConfig,
    model: ModelConfig,
    loss: MTLoss,
    load: Path | None,
    group: Processes,
    log: RunLog,
    limit: int | None,
) -> tuple[TrainingData, Trainer]:
    folder = config.run.folder
    data = prepare_data(config, folder, group, log)
    identity = identity_of(config, model.to_dict(), data.fingerprint, data.sae)
    # the seed of the first weights; nothing else draws from torch's generator
    torch.manual_seed(config.run.seed)
    network = MultiFidelityNetwork(model)
    last = folder / "checkpoints/last.pt"
    content = read_state(last) if last.exists() else None
    if content is None and load is not None:
        fill_network(network, load_weights(load).state)
        log.line(f"weights to start from: {load}")
    notes = [] if content is None else check_identity(content, identity, last)
    done = 0 if content is None else int(content["progress"]["epoch"])
    epochs = EpochLog(
        folder / "logs" if group.first else None, config, loss.names, data.sampler.requested_shares, log, done
    )
    trainer = Trainer(
        network.to(group.device),
        loss,
        data,
        config,
        identity,
        group,
        epochs,
        folder / "checkpoints",
        limit,
    )
    if content is not None:
        trainer.resume(content)
        for note in notes:
            log.line(f"changed since the checkpoint: {note}")
        if load is not None:
            log.line(f"note: --load {load} is not used, since {last} is there; start anew with --fresh")
        at = f"epoch {trainer.progress.epoch + 1}, step {trainer.progress.step + 1}"
        log.line(f"training is finished: {last}" if trainer.finished else f"training goes on at {at}: {last}")
    else:
        count = sum(p.numel() for p in network.parameters())
        log.line(f"training {count:,} parameters on {group.device}, {group.world_size} process(es)")
    try:
        trainer.run()
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written ({error.strerror or error}); mend it and run again") from None
    finally:
        epochs.close()
    return data, trainer
