"""The training loop: steps, running mean of the weights, validation, choice of the best, checkpoints."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from aimnet2mult.configs.train import TrainConfig
from aimnet2mult.errors import TrainingError
from aimnet2mult.training.checkpoints import Progress, RunIdentity, restore, save_state
from aimnet2mult.training.data import TrainingData
from aimnet2mult.training.evaluate import Evaluation, evaluate
from aimnet2mult.training.interrupt import StoppedError, StopRequest
from aimnet2mult.training.logs import EpochLog
from aimnet2mult.training.loss import LossValue, MTLoss
from aimnet2mult.training.memory import keep_freed_memory
from aimnet2mult.training.metrics import find_error
from aimnet2mult.training.optim import LearningRate, build_optimizer
from aimnet2mult.training.processes import Processes
from aimnet2mult.training.step import has_forces, predict, suspects, targets, to_device
from aimnet2mult.training.step_model import step_model, threads_for
from aimnet2mult.types import Batch


class MeanWeights(EMAHandler):
    """Ignite's running mean of the weights, updated in one call for all weights instead of two for each."""

    def __init__(self, network: nn.Module) -> None:
        # the momentum is set on the engine before every step
        super().__init__(network, momentum=0.5)
        self._pairs = list(self.ema_model.parameters()), list(self.model.parameters())

    def _update_ema_model(self, engine: Engine, name: str) -> None:
        get_ema_multi_avg_fn(1 - getattr(engine.state, name))(*self._pairs, None)


@dataclass
class Parts:
    """The objects whose state makes a checkpoint."""

    network: nn.Module
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LearningRate

    def items(self) -> dict[str, Any]:
        """By the names used in a checkpoint."""
        return {"network": self.network, "ema": self.ema, "optimizer": self.optimizer, "schedule": self.schedule}


class Trainer:
    """Trains one network.

    Parameters
    ----------
    network
        The network, on its device.
    loss
        What is minimised.
    data
        Batches of training and validation.
    config
        Settings.
    identity
        What checkpoints of this run must agree with.
    processes
        Who takes part.
    log
        Where the numbers of an epoch go.
    folder
        Folder of the checkpoints.
    limit
        At most so many batches per epoch, of training and of validation; None: all.
    check_folder
        Called before anything is written; raises when the run folder is no longer this run's.
    own
        Optimisers by class path that the settings may name besides those of torch.

    Attributes
    ----------
    progress
        Where the run stands.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: MTLoss,
        data: TrainingData,
        config: TrainConfig,
        identity: RunIdentity,
        processes: Processes,
        log: EpochLog,
        folder: Path,
        limit: int | None = None,
        check_folder: Callable[[], None] = lambda: None,
        own: Mapping[str, Any] | None = None,
    ) -> None:
        self.loss, self.data, self.config, self.identity = loss, data, config, identity
        self.processes, self.log, self.limit, self.check_folder = processes, log, limit, check_folder
        self.last, self.best = folder / "last.pt", folder / "best.pt"
        self.model = processes.wrap(step_model(network))
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.progress = Progress(sums=self._no_sums())
        self.ema = MeanWeights(network)
        optimizer = build_optimizer(network, config.optimizer, own or {})
        steps = config.trainer.epochs * max(1, len(self._train_batches(0)))
        self.parts = Parts(network, self.ema.ema_model, optimizer, LearningRate(optimizer, config.scheduler, steps))
        self._settle_selection()
        self.stop = StopRequest()
        self.bar: Any = None
        self.started = self.saved = time.monotonic()  # the epoch under way; the last checkpoint
        self.engine = Engine(self._step)
        # exceptions reach the caller; the engine need not report them too
        self.engine.logger = logging.getLogger("aimnet2mult.training.engine")
        self.engine.logger.setLevel(logging.CRITICAL + 1)
        self.ema.attach(self.engine, name="ema_momentum")
        self.engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)

    # ---- state -------------------------------------------------------------------------------------------------

    def resume(self, content: Mapping[str, Any]) -> list[str]:
        """Go on from a checkpoint; returns notes for the log."""
        self.progress = restore(content, self.parts.items(), self.progress.sums, self.last)
        if not self.processes.first:
            # the sums in a checkpoint are those of all processes
            self.progress.sums = dict.fromkeys(self.progress.sums, 0.0)
        return self._settle_selection()

    def _settle_selection(self) -> list[str]:
        """Forget the best epoch when the checkpoint chose it by another quantity than this run."""
        progress, stopping = self.progress, self.config.trainer.early_stopping
        now = "loss"
        if stopping is not None:
            now = f"{stopping.metric} of {stopping.label} of fidelity {stopping.fidelity}"
        # with no epoch to come there is nothing to choose again
        if progress.epoch >= self.config.trainer.epochs:
            return []
        then, progress.selection = progress.selection, now
        if then in ("", now):
            return []
        progress.best, progress.best_epoch, progress.waited = None, 0, 0
        self.parts.schedule.forget_best()
        return [f"the best epoch is now chosen by the {now}, not the {then}: earlier epochs no longer take part"]

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or early stopping has spoken."""
        stopping = self.config.trainer.early_stopping
        waited_enough = stopping is not None and self.progress.waited >= stopping.patience
        return self.progress.epoch >= self.config.trainer.epochs or waited_enough

    def save(self, path: Path, progress: Progress | None = None) -> None:
        """Write the state, with another progress where it is given; refuses to write weights that are not finite."""
        self.saved = time.monotonic()
        if not self.processes.first:
            return
        self.check_folder()
        if not all(bool(torch.isfinite(p).all()) for p in self.parameters):
            raise TrainingError(
                f"the weights are not finite after epoch {self.progress.epoch}; {self.last} keeps the last good state; "
                f"{self._remedy()}"
            )
        progress = replace(progress or self.progress, log_bytes=self.log.length())
        try:
            save_state(path, self.identity, progress, self.parts.items())
        except TrainingError:
            self.check_folder()  # a folder that vanished just now explains more than a file that cannot be written
            raise

    # ---- the loop ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train until `finished`.

        Raises
        ------
        TrainingError
            A loss, gradient or weight is not finite, or a checkpoint cannot be written.
        StoppedError
            A signal came; the state is saved.
        """
        keep_freed_memory()
        with self.stop.listening():
            if not self.last.exists():
                self.save(self.last)
            self.processes.wait()
            total = self.parts.schedule.total_steps
            self.bar = tqdm(
                total=total,
                initial=min(self.progress.total_steps, total),
                desc="training",
                unit="step",
                dynamic_ncols=True,
                mininterval=0.5,
                disable=None if self.processes.first else True,
            )
            try:
                while not self.finished:
                    self._epoch()
                if self.processes.any(self.stop.made):  # while the last epoch was being saved
                    raise self._stopped()
            finally:
                self.bar.close()

    def _epoch(self) -> None:
        self.started = time.monotonic()
        progress = self.progress
        batches = self._train_batches(progress.epoch)[progress.step :]
        if batches:
            # a fresh state for each epoch; the position in the run is kept in `progress`
            with threads_for(self.model):
                self.engine.run(self.data.loader(batches), max_epochs=1, epoch_length=len(batches))
        validation = None if self.processes.any(self.stop.made) else self._validate()
        seconds = time.monotonic() - self.started
        progress.seconds += seconds
        # a signal may reach the processes at different moments, or one of them only: all decide together
        if self.processes.any(self.stop.made) or (self.data.val.size and validation is None):
            progress.sums = self._sums_of_all()
            self.save(self.last)
            self.bar.close()
            raise self._stopped()
        self._close_epoch(validation, seconds)

    def _stopped(self) -> StoppedError:
        return StoppedError(self.stop.signum or signal.SIGTERM, self.last)

    def _train_batches(self, epoch: int) -> Sequence[Any]:
        return self.data.sampler.batches(epoch)[: self.limit]

    def _step(self, engine: Engine, batch: Batch) -> None:
        batch = to_device(batch, self.processes.device)
        optimizer = self.parts.optimizer
        self.parts.schedule.before_step(self.progress.total_steps)
        optimizer.zero_grad(set_to_none=True)
        forces = "forces" in self.loss.needs.predictions and has_forces(batch)
        predictions = predict(self.model, batch, forces, create_graph=True)
        value = self.loss(predictions, targets(batch), self.processes.sum if self.processes.several else None)
        (value.total + _tie(predictions) if self.processes.several else value.total).backward()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
        # one transfer from the device for all numbers of the step
        numbers = torch.stack([value.total, norm, *value.components.values(), *value.counts]).tolist()
        if not (math.isfinite(numbers[0]) and math.isfinite(numbers[1])):
            self._refuse(numbers, batch, predictions)
        clip = self.config.trainer.gradient_clip
        if clip is not None and numbers[1] > clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, clip, norm, foreach=True)
        optimizer.step()
        self._add(numbers, value, batch)
        setattr(engine.state, "ema_momentum", self._ema_momentum())  # noqa: B010

    def _ema_momentum(self) -> float:
        """1 - decay, larger at first, so that the first weights are soon forgotten: decay <= (1 + t) / (10 + t)."""
        steps = self.progress.total_steps
        return 1 - min(self.config.trainer.ema_decay, (1 + steps) / (10 + steps))

    def _add(self, numbers: list[float], value: LossValue, batch: Batch) -> None:
        progress, sums, n = self.progress, self.progress.sums, len(value.components)
        progress.step += 1
        progress.total_steps += 1
        sums["steps"] += 1
        sums["loss"] += numbers[0]
        sums["grad_norm"] += numbers[1]
        for name, mean, count in zip(value.components, numbers[2 : 2 + n], numbers[2 + n :], strict=True):
            sums[f"term_{name}"] += mean * count
            sums[f"count_{name}"] += count
        for fidelity, count in enumerate(batch.molecules.fidelity.bincount().tolist()):
            sums[f"drawn_{fidelity}"] += count

    def _no_sums(self) -> dict[str, float]:
        keys = [f"{kind}_{name}" for name in self.loss.names for kind in ("term", "count")]
        keys += [f"drawn_{fidelity}" for fidelity in self.config.data.fidelities]
        return dict.fromkeys(["steps", "loss", "grad_norm", *keys], 0.0)

    def _sums_of_all(self) -> dict[str, float]:
        """Sums of the epoch under way over all processes."""
        keys = list(self.progress.sums)
        values = torch.tensor(list(self.progress.sums.values()), dtype=torch.float64, device=self.processes.device)
        return dict(zip(keys, self.processes.sum(values).tolist(), strict=True))

    def _after_step(self, engine: Engine) -> None:
        if self.bar.update(1):  # true when the bar was drawn, twice a second at most
            sums = self.progress.sums
            self.bar.set_postfix_str(
                f"epoch {self.progress.epoch + 1}, loss {sums['loss'] / sums['steps']:.4g}", refresh=False
            )
        minutes = self.config.trainer.checkpoint_minutes
        due = self.processes.first and minutes is not None and time.monotonic() - self.saved > 60 * minutes
        if self.processes.any(self.stop.made or due):
            if self.processes.any(self.stop.made):
                engine.terminate()
            else:
                self._save_midway()

    def _save_midway(self) -> None:
        """Write the state inside an epoch; its sums are those of all processes, and go on in each of them."""
        elapsed = time.monotonic() - self.started
        sums = self._sums_of_all()
        self.save(self.last, replace(self.progress, sums=sums, seconds=self.progress.seconds + elapsed))

    def _validate(self) -> Evaluation | None:
        if not self.data.val.size:
            return None
        batches = self.data.evaluation("val", self.processes)[: self.limit]
        return evaluate(
            self.ema.ema_model,
            self.loss,
            self.data.loader(batches),
            list(self.config.data.y),
            len(self.config.data.fidelities),
            self.processes,
            stop=lambda: self.stop.made,
        )

    def _close_epoch(self, validation: Evaluation | None, seconds: float) -> None:
        progress = self.progress
        sums = self._sums_of_all()
        chosen = self._selection(sums, validation)
        if not math.isfinite(chosen):
            raise TrainingError(
                f"the selection metric of epoch {progress.epoch + 1} is not finite; {self.last} keeps the last good "
                f"state; {self._remedy()}"
            )
        if self.processes.first:
            self.check_folder()
        rate = self.parts.schedule.before_step(max(0, progress.total_steps - 1))
        self.parts.schedule.after_epoch(chosen)
        progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, self._no_sums()
        better = progress.best is None or chosen < progress.best
        if better:
            progress.best, progress.best_epoch, progress.waited = chosen, progress.epoch, 0
        else:
            progress.waited += 1
        # the row comes before the checkpoints: a row too many is dropped on resume, a missing one would be lost;
        # the best comes before the last: a run that goes on from the last finds the best that this one speaks of
        self.log.epoch(progress, sums, validation, rate, seconds, better)
        if better:
            self.save(self.best)
        self.save(self.last)

    def _selection(self, sums: Mapping[str, float], validation: Evaluation | None) -> float:
        """The number that chooses the best weights; lower is better."""
        stopping = self.config.trainer.early_stopping
        if validation is None:
            return sums["loss"] / sums["steps"]
        if stopping is None:
            return validation.loss
        error = find_error(validation.rows, stopping.fidelity, stopping.label, stopping.metric)
        if error is None:
            raise TrainingError(
                f"trainer.early_stopping: no validation molecule of fidelity {stopping.fidelity} has the label "
                f"'{stopping.label}'; choose another label or raise data.val_fraction"
            )
        return error

    def _remedy(self) -> str:
        return (
            f"lower optimizer.kwargs.lr (now {self.config.optimizer.kwargs['lr']:g}) or trainer.gradient_clip "
            f"(now {self.config.trainer.gradient_clip}) and run again with --accept-changes"
        )

    def _refuse(self, numbers: Sequence[float], batch: Batch, predictions: Mapping[str, Tensor]) -> None:
        what = "loss" if not math.isfinite(numbers[0]) else "gradient"
        raise TrainingError(
            f"the {what} is not finite in epoch {self.progress.epoch + 1}, step {self.progress.step + 1}, "
            f"with molecules {', '.join(suspects(batch, dict(predictions)))}; "
            f"{self.last} keeps the last good state; check their labels, or {self._remedy()}"
        )


def _tie(predictions: Mapping[str, Tensor]) -> Tensor:
    """Zero that keeps every parameter in the graph, so that all processes average the same gradients."""
    zeros = [torch.where(torch.zeros_like(v, dtype=torch.bool), v, 0).sum() for v in predictions.values()]
    return torch.stack([zero.double() for zero in zeros]).sum()
