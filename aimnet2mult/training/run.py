"""A whole run: data check, self-atomic energies, split, training, model files, model card."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from aimnet2mult.configs.classpaths import resolve
from aimnet2mult.configs.model import ModelConfig, load_model_config
from aimnet2mult.configs.train import TrainConfig
from aimnet2mult.datasets.format import LABELS
from aimnet2mult.errors import ConfigError, TrainingError
from aimnet2mult.models.files import Weights, fill_network, load_weights
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.training.checkpoints import check_identity, differences, identity_of, read_state
from aimnet2mult.training.data import TrainingData, prepare_data
from aimnet2mult.training.dispersion import damping_of
from aimnet2mult.training.engine import Trainer
from aimnet2mult.training.finish import finish
from aimnet2mult.training.logs import EpochLog, RunLog
from aimnet2mult.training.loss import LOSSES, MTLoss, energy_loss_fn, peratom_loss_fn
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
        Go through all stages with two batches, in a temporary folder that is removed afterwards.
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
    _check_save(save)
    if not dry_run:
        return _run(config, load, save, fresh)
    wanted = config.run.folder
    place = next(path for path in (wanted, *wanted.absolute().parents) if path.exists())
    try:
        folder = Path(tempfile.mkdtemp(prefix=".dry_run-", dir=place))
    except OSError as error:
        raise _bad_folder(wanted, error) from None
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
    start = None if load is None else _load_start(load, config, model)
    folder = config.run.folder
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    with processes(config.run.device) as group:
        older = _prepare_folder(config, fresh) if group.first else {}
        group.wait()
        log = RunLog(folder / "logs/run.log", quiet=not group.first)
        with _restored_on_failure(older):
            data, trainer = _prepare(config, model, loss, start, fresh, group, log, limit)
        try:
            _go(trainer, fresh)
        finally:
            trainer.log.close()
        progress = trainer.progress
        chosen = trainer.best if config.trainer.final_weights == "best" else trainer.last
        del trainer  # what averages gradients over processes must go before the processes part
    result = RunResult(folder, folder / "model.pt", {})
    if group.first:
        where = (folder, chosen, group, log, save, limit)
        try:
            result.compiled.update(finish(config, model, data, loss, progress, *where))
        except OSError as error:
            raise _unwritable(folder, error) from None
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
        if term.fn is not fitting:
            raise ConfigError(f"{where}.fn: '{term.key_true}' needs aimnet2mult.train.loss.{fitting.__name__}")
    return loss


def _check_model(config: TrainConfig, model: ModelConfig, loss: MTLoss) -> None:
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


def _load_start(path: Path, config: TrainConfig, model: ModelConfig) -> Weights:
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


def _other_names(start: Weights, config: TrainConfig) -> Iterator[str]:
    """Warnings about fidelities that start from the weights of one with another name."""
    for info in start.fidelities:
        name = config.data.fidelities[info.index].name
        if name != info.name:
            yield f"warning: fidelity {info.index} ({name}) starts from the weights of '{info.name}'"


def _bad_folder(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"run.folder: {folder} cannot be written ({error.strerror}); choose another folder")


def _unwritable(folder: Path, error: OSError) -> TrainingError:
    return TrainingError(f"{folder}: cannot be written ({error.strerror or error}); mend it and run again")


def _check_save(save: Path | None) -> None:
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


def _prepare_folder(config: TrainConfig, fresh: bool) -> dict[Path, bytes]:
    """Make the run folder; clear split and fitted energies of an older run when this one starts anew.

    Checkpoints stay until data and settings have passed their checks; what is cleared is returned until then.
    """
    folder = config.run.folder
    cleared = {}
    given = {fidelity.sae for fidelity in config.data.fidelities.values()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if fresh or not (folder / "checkpoints/last.pt").exists():
            for path in (*folder.glob("split.yaml"), *folder.glob("sae_fid*.yaml")):
                if path.resolve() not in given:
                    cleared[path] = path.read_bytes()
                    path.unlink()
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _bad_folder(folder, error) from None
    return cleared


@contextmanager
def _restored_on_failure(files: Mapping[Path, bytes]) -> Iterator[None]:
    """Put back what an older run needs to go on when this one fails before it starts."""
    try:
        yield
    except BaseException:
        for path, content in files.items():
            path.write_bytes(content)
        raise


def _prepare(
    config: TrainConfig,
    model: ModelConfig,
    loss: MTLoss,
    start: Weights | None,
    fresh: bool,
    group: Processes,
    log: RunLog,
    limit: int | None,
) -> tuple[TrainingData, Trainer]:
    """Everything that can refuse settings or data; no checkpoint is touched."""
    folder = config.run.folder
    data = prepare_data(config, folder, group, log)
    identity = identity_of(config, model.to_dict(), data.fingerprint, data.sae)
    # the seed of the first weights; nothing else draws from torch's generator
    torch.manual_seed(config.run.seed)
    network = MultiFidelityNetwork(model)
    last = folder / "checkpoints/last.pt"
    content = read_state(last) if last.exists() and not fresh else None
    if content is None and start is not None:
        fill_network(network, start.state)
        log.line(f"weights to start from: {start.path}")
        for warning in _other_names(start, config):
            log.line(warning)
    notes = [] if content is None else check_identity(content, identity, last)
    logs = folder / "logs" if group.first else None
    epochs = EpochLog(logs, config, loss.names, data.sampler.requested_shares, log)
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
        for note in (*(f"changed since the checkpoint: {note}" for note in notes), *trainer.resume(content)):
            log.line(note)
        if start is not None:
            log.line(f"note: --load {start.path} is not used, since {last} is there; start anew with --fresh")
        at = f"epoch {trainer.progress.epoch + 1}, step {trainer.progress.step + 1}"
        log.line(f"training is finished: {last}" if trainer.finished else f"training goes on at {at}: {last}")
    else:
        count = sum(p.numel() for p in network.parameters())
        log.line(f"training {count:,} parameters on {group.device}, {group.world_size} process(es)")
    epochs.open_trackers()
    return data, trainer


def _go(trainer: Trainer, fresh: bool) -> None:
    """Train; a run that starts anew first clears the checkpoints of an older one."""
    try:
        if trainer.processes.first:
            if fresh or not trainer.last.exists():
                for path in (trainer.last, trainer.best):
                    path.unlink(missing_ok=True)
            trainer.log.open_csv(trainer.progress.epoch)
        trainer.processes.wait()
        trainer.run()
    except OSError as error:
        raise _unwritable(trainer.config.run.folder, error) from None
