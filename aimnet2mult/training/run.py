"""A whole run: data check, self-atomic energies, split, training, model files, model card."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aimnet2mult.configs.classpaths import imported
from aimnet2mult.configs.model import ModelConfig, load_model_config
from aimnet2mult.configs.train import TrainConfig
from aimnet2mult.errors import ConfigError
from aimnet2mult.files import atomic_write_bytes, machine_tag, process_exists, remove_leftovers
from aimnet2mult.models.files import Weights, fill_network
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.training.checkpoints import check_identity, identity_of, progress_of, read_latest
from aimnet2mult.training.data import TrainingData, prepare_data
from aimnet2mult.training.engine import Trainer
from aimnet2mult.training.finish import finish
from aimnet2mult.training.lock import FolderLock, folder_lock
from aimnet2mult.training.logs import EpochLog, RunLog, unwritable
from aimnet2mult.training.loss import MTLoss
from aimnet2mult.training.processes import Processes, processes, worker_death
from aimnet2mult.training.setup import build_loss, check_model, check_save, load_start, other_names
from aimnet2mult.training.step_model import prepare_kernels


@dataclass(frozen=True)
class RunResult:
    """What a run made."""

    folder: Path
    weights: Path
    compiled: dict[int, Path]


@dataclass(frozen=True)
class Options:
    """What a run is asked for besides its settings; see `train`."""

    load: Path | None = None
    save: Path | None = None
    fresh: bool = False
    accept_changes: bool = False
    limit: int | None = None  # batches per epoch and set of a dry run


@dataclass(frozen=True)
class _Plan:
    """Settings and options, checked."""

    config: TrainConfig
    options: Options
    model: ModelConfig
    loss: MTLoss
    start: Weights | None
    own: Mapping[str, Any]  # class paths that the user allowed

    @property
    def last(self) -> Path:
        return self.config.run.folder / "checkpoints/last.pt"

    @property
    def best(self) -> Path:
        return self.config.run.folder / "checkpoints/best.pt"

    @property
    def anew(self) -> bool:
        """Whether there is no checkpoint to go on from, or none is wanted."""
        return self.options.fresh or not self.last.exists()


def train(
    config: TrainConfig,
    load: Path | None = None,
    save: Path | None = None,
    dry_run: bool = False,
    fresh: bool = False,
    accept_changes: bool = False,
    allow_import: Sequence[str] = (),
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
    accept_changes
        Go on from a checkpoint though the learning rate or another setting of how the weights move has changed.
    allow_import
        Modules whose classes and functions the settings may name by class path; they are imported.

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
    check_save(save)
    own = imported(allow_import)
    if not dry_run:
        return _run(config, Options(load, save, fresh, accept_changes), own)
    with _dry_folder(config.run.folder) as folder:
        run = config.run.model_copy(update={"folder": folder})
        trainer = config.trainer.model_copy(update={"epochs": 1})
        logging = config.logging.model_copy(update={"wandb": None})
        config = config.model_copy(update={"run": run, "trainer": trainer, "logging": logging})
        result = _run(config, Options(load, fresh=True, limit=2), own)
    print(f"dry run complete: every stage works; {folder} is removed again")
    return result


@contextmanager
def _dry_folder(wanted: Path) -> Iterator[Path]:
    """A folder for a dry run, removed afterwards; those that killed dry runs left there go too."""
    place = next(path for path in (wanted, *wanted.absolute().parents) if path.exists())
    mine = f".dry_run-{machine_tag()}-"
    try:
        for path in place.glob(f"{mine}*"):
            if not process_exists(int(path.name.removeprefix(mine).partition("-")[0])):
                shutil.rmtree(path, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{mine}{os.getpid()}-", dir=place))
    except OSError as error:
        raise _bad_folder(wanted, error) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(config: TrainConfig, options: Options, own: Mapping[str, Any]) -> RunResult:
    model = load_model_config(config.model)
    loss = build_loss(config, own)
    check_model(config, model, loss)
    start = None if options.load is None else load_start(options.load, config, model)
    plan = _Plan(config, options, model, loss, start, own)
    folder = config.run.folder
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    with ExitStack() as until_the_end:
        with processes(config.run.device) as group:
            lock = until_the_end.enter_context(_held(folder)) if group.first else None
            check_folder: Callable[[], None] = (lambda: None) if lock is None else lock.check
            older = _cleared(plan) if group.first else {}
            group.wait()
            log = RunLog(folder / "logs/run.log", quiet=not group.first)
            with _restored_on_failure(older):
                data, trainer = _prepare(plan, group, log, check_folder)
            try:
                _go(plan, trainer)
            except RuntimeError as error:
                raise worker_death(error) or error from None
            finally:
                trainer.log.close()
            progress = trainer.progress
            del trainer  # what averages gradients over processes must go before the processes part
        result = RunResult(folder, folder / "model.pt", {})
        if group.first:
            check_folder()
            chosen = plan.best if config.trainer.final_weights == "best" else plan.last
            where = (folder, chosen, group, log, options.save, options.limit)
            try:
                result.compiled.update(finish(config, model, data, loss, progress, *where))
            except OSError as error:
                raise unwritable(folder, error) from None
            except RuntimeError as error:
                raise worker_death(error) or error from None
    return result


def _bad_folder(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"run.folder: {folder} cannot be written ({error.strerror}); choose another folder")


@contextmanager
def _held(folder: Path) -> Iterator[FolderLock]:
    """Make the run folder, keep other runs out, and remove what killed ones left half written."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(folder_lock(folder, lambda text: print(text, flush=True)))
            for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
                remove_leftovers(place)
        except OSError as error:
            raise _bad_folder(folder, error) from None
        yield lock


def _cleared(plan: _Plan) -> dict[Path, bytes]:
    """Clear split and fitted energies of an older run when this one starts anew.

    Checkpoints stay until data and settings have passed their checks; what is cleared is returned until then.
    """
    folder = plan.config.run.folder
    cleared = {}
    given = {fidelity.sae for fidelity in plan.config.data.fidelities.values()}
    if plan.anew:
        for path in (*folder.glob("split.yaml"), *folder.glob("sae_fid*.yaml")):
            if path.resolve() not in given:
                cleared[path] = path.read_bytes()
                path.unlink()
    return cleared


@contextmanager
def _restored_on_failure(files: Mapping[Path, bytes]) -> Iterator[None]:
    """Put back what an older run needs to go on when this one fails before it starts."""
    try:
        yield
    except BaseException:
        for path, content in files.items():
            atomic_write_bytes(path, content)
        raise


def _prepare(
    plan: _Plan, group: Processes, log: RunLog, check_folder: Callable[[], None]
) -> tuple[TrainingData, Trainer]:
    """Everything that can refuse settings or data; no checkpoint is touched."""
    config, options, start = plan.config, plan.options, plan.start
    folder = config.run.folder
    try:
        data = prepare_data(config, folder, group, log)
    except OSError as error:
        raise unwritable(folder, error) from None
    identity = identity_of(config, plan.model.to_dict(), data.fingerprint, data.sae, data.split.fingerprint())
    # the seed of the first weights; nothing else draws from torch's generator
    torch.manual_seed(config.run.seed)
    network = MultiFidelityNetwork(plan.model)
    needed = plan.best if config.trainer.final_weights == "best" else None
    content = None if plan.anew else read_latest(plan.last, needed)
    if content is None and start is not None:
        fill_network(network, start.state)
        log.line(f"weights to start from: {start.path}")
        for warning in other_names(start, config):
            log.line(warning)
    notes = [] if content is None else check_identity(content, identity, plan.last, options.accept_changes)
    logs = folder / "logs" if group.first else None
    epochs = EpochLog(logs, config, plan.loss.names, data.sampler.requested_shares, log)
    trainer = Trainer(
        network.to(group.device),
        plan.loss,
        data,
        config,
        identity,
        group,
        epochs,
        plan.last.parent,
        options.limit,
        check_folder,
        plan.own,
    )
    for path in plan.own:
        log.line(f"note: {path} may be named in the settings, as allowed on the command line")
    if content is not None:
        log.forget(progress_of(content).log_bytes)
        for note in (*(f"changed since the checkpoint: {note}" for note in notes), *trainer.resume(content)):
            log.line(note)
        if start is not None:
            log.line(f"note: --load {start.path} is not used, since {plan.last} is there; start anew with --fresh")
        at = f"epoch {trainer.progress.epoch + 1}, step {trainer.progress.step + 1}"
        log.line(f"training is finished: {plan.last}" if trainer.finished else f"training goes on at {at}: {plan.last}")
    else:
        count = sum(p.numel() for p in network.parameters())
        log.line(f"training {count:,} parameters on {group.device}, {group.world_size} process(es)")
    epochs.open_trackers(trainer.progress.epoch)
    if not trainer.finished:
        prepare_kernels(network, log.line)
    return data, trainer


def _go(plan: _Plan, trainer: Trainer) -> None:
    """Train; a run that starts anew first clears the checkpoints of an older one."""
    try:
        if trainer.processes.first:
            if plan.anew:
                for path in (plan.last, plan.best):
                    path.unlink(missing_ok=True)
            trainer.log.open_csv(trainer.progress.epoch)
        trainer.processes.wait()
        trainer.run()
    except OSError as error:
        raise unwritable(plan.config.run.folder, error) from None
