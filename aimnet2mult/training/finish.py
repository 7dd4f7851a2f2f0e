"""What follows training: weights file, tables of errors, plots, model files, model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from aimnet2mult.configs.metadata import FidelityInfo
from aimnet2mult.configs.model import ModelConfig
from aimnet2mult.configs.train import TrainConfig
from aimnet2mult.files import atomic_write_text
from aimnet2mult.models.files import fill_network, save_weights
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.models.novelty import NoveltyStatistics
from aimnet2mult.training.checkpoints import Progress, read_state
from aimnet2mult.training.compile import compile_potential
from aimnet2mult.training.data import TrainingData
from aimnet2mult.training.evaluate import Evaluation, evaluate
from aimnet2mult.training.logs import RunLog, read_metrics
from aimnet2mult.training.loss import MTLoss
from aimnet2mult.training.metrics import ErrorRow, errors_csv, format_errors
from aimnet2mult.training.model_card import model_card
from aimnet2mult.training.novelty import fit_novelty, share_of_novel
from aimnet2mult.training.plots import plot_learning_curves, plot_parity
from aimnet2mult.training.processes import Processes
from aimnet2mult.training.provenance import provenance

SIDES = {"val": "validation", "test": "test"}


def finish(
    config: TrainConfig,
    model: ModelConfig,
    data: TrainingData,
    loss: MTLoss,
    progress: Progress,
    folder: Path,
    checkpoint: Path,
    processes: Processes,
    log: RunLog,
    save: Path | None = None,
    limit: int | None = None,
) -> dict[int, Path]:
    """Make everything that a run leaves behind, from the weights of a checkpoint.

    Parameters
    ----------
    config, model, data, loss, progress
        The run.
    folder
        Run folder.
    checkpoint
        Whose running mean of the weights is taken.
    processes
        Gives the device; this stage runs in the first process alone.
    log
        For tables and file names.
    save
        Another place for a copy of the weights file.
    limit
        At most so many batches per set; None: all.

    Returns
    -------
    dict
        Model file of each fidelity that was drawn; empty when compiling is switched off.
    """
    infos = data.fidelity_infos()
    network = fill_network(MultiFidelityNetwork(model), read_state(checkpoint)["ema"])
    origin = {**provenance(), "run": config.run.name, "seed": str(config.run.seed), "data": data.fingerprint}
    epoch = progress.best_epoch if config.trainer.final_weights == "best" else progress.epoch
    origin |= {"epoch": str(epoch), "best_epoch": str(progress.best_epoch), "steps": str(progress.total_steps)}
    weights = folder / "model.pt"
    alone = Processes(device=processes.device)
    network = network.to(alone.device).eval()
    seen = _fit_novelty(network, data, infos, alone, log, limit)
    for path in (weights, save):
        if path is not None:
            save_weights(path, network, infos, origin, data.sae, seen)
            log.line(f"weights of epoch {epoch}: {path}")
    results = {}
    for side, name in SIDES.items():
        batches = data.evaluation(side, alone)[:limit]
        if batches:
            labels, n = list(config.data.y), len(config.data.fidelities)
            result = evaluate(network, loss, data.loader(batches), labels, n, alone, collect=config.logging.plots)
            assert result is not None  # nothing asks this evaluation to stop
            results[name] = result
    errors = {name: result.rows for name, result in results.items()}
    _write_errors(errors, infos, folder, log)
    if config.logging.plots:
        _plot(results, infos, folder, log)
    compiled = _compile(config, data, infos, weights, folder, log) if config.compile.enabled else {}
    card = model_card(config, model.to_dict(), data, infos, progress, errors, compiled, origin, folder)
    atomic_write_text(folder / "model_card.md", card)
    log.line(f"model card: {folder / 'model_card.md'}")
    return compiled


def _fit_novelty(
    network: MultiFidelityNetwork,
    data: TrainingData,
    infos: Sequence[FidelityInfo],
    alone: Processes,
    log: RunLog,
    limit: int | None,
) -> dict[int, NoveltyStatistics]:
    """What each fidelity has seen, and how much of what was held back lies outside of that."""
    seen = {}
    for info in infos:
        statistics = fit_novelty(network, data, info.index, alone.device, limit)
        if statistics is None:
            continue
        seen[info.index] = statistics
        told = []
        for side, name in SIDES.items():
            share = share_of_novel(network, data, side, info.index, statistics, limit)
            told += [] if share is None else [f"{100 * share:.0f} % of the {name} structures"]
        if told:
            log.line(f"novelty above 1, fidelity {info.index} ({info.name}): {' and '.join(told)}")
    return seen


def _write_errors(
    errors: Mapping[str, Sequence[ErrorRow]], infos: Sequence[FidelityInfo], folder: Path, log: RunLog
) -> None:
    names = {info.index: info.name for info in infos}
    for subset, rows in errors.items():
        log.line(f"\nerrors on the {subset} molecules\n{format_errors(rows, names)}")
    parts = [errors_csv(rows, names, subset) for subset, rows in errors.items()]
    if parts:
        # one head for all sets
        text = parts[0] + "".join(part.split("\n", 1)[1] for part in parts[1:])
        atomic_write_text(folder / "errors.csv", text)
        log.line(f"\ntable of errors: {folder / 'errors.csv'}")


def _plot(results: Mapping[str, Evaluation], infos: Sequence[FidelityInfo], folder: Path, log: RunLog) -> None:
    names = {info.index: info.name for info in infos}
    paths: list[Path | None] = [
        plot_learning_curves(folder / "plots/learning_curves.png", read_metrics(folder / "logs/metrics.csv"), names)
    ]
    if results:
        # the test molecules where there are any, else those of validation
        subset, result = list(results.items())[-1]
        paths += plot_parity(folder / "plots", result.parity, result.rows, names, f"{subset} molecules")
    log.line(f"plots: {', '.join(str(path) for path in paths if path is not None)}")


def _compile(
    config: TrainConfig,
    data: TrainingData,
    infos: Sequence[FidelityInfo],
    weights: Path,
    folder: Path,
    log: RunLog,
) -> dict[int, Path]:
    compiled = {}
    for info in infos:
        if data.sampler.requested_shares[info.index] == 0:
            log.line(f"fidelity {info.index} ({info.name}) was never drawn: it is not compiled")
            continue
        compiled[info.index] = compile_potential(
            weights,
            folder / config.compile.prefix,
            info.index,
            data.sae_files[info.index],
            dispersion=config.compile.dispersion.get(info.index),
        )
    return compiled
