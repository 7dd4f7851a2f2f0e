"""The data stage of a run: files checked, ledger, split, self-atomic energies, batches."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase.data import chemical_symbols

from aimnet2mult.configs.metadata import FidelityInfo
from aimnet2mult.configs.train import DataSettings, FidelitySettings, TrainConfig
from aimnet2mult.datasets.consistency import check_forces
from aimnet2mult.datasets.ledger import Ledger, label_ledger
from aimnet2mult.datasets.reader import FidelitySource, MultiFidelityDataset, data_fingerprint
from aimnet2mult.datasets.sae import (
    check_sae_covers,
    fit_sae,
    read_sae,
    sae_array,
    sae_residuals,
    unit_warning,
    write_sae,
)
from aimnet2mult.datasets.split import SplitIndices, read_split, split_by_molecule, write_split
from aimnet2mult.errors import DataError
from aimnet2mult.files import atomic_copy
from aimnet2mult.training.collate import Collate, make_loader
from aimnet2mult.training.logs import RunLog
from aimnet2mult.training.processes import Processes
from aimnet2mult.training.sampler import FidelityBatchSampler, evaluation_batches
from aimnet2mult.types import Batch


@dataclass(frozen=True)
class TrainingData:
    """Everything that training asks of the data."""

    dataset: MultiFidelityDataset
    ledger: Ledger
    fingerprint: str
    sae: dict[int, dict[int, float]]  # eV by fidelity and atomic number
    sae_files: dict[int, Path]
    split: SplitIndices
    sampler: FidelityBatchSampler
    collate: Collate
    settings: DataSettings

    @property
    def val(self) -> np.ndarray:
        """Samples held back for validation."""
        return self.split.val

    def loader(self, batches: Sequence[np.ndarray]) -> Iterable[Batch]:
        """Collated batches of these samples, in this order."""
        loader = make_loader(self.dataset, batches, self.collate, self.settings.num_workers if len(batches) > 1 else 0)
        # a loader draws a seed for its workers: not from torch's own generator, which a resumed run finds as it was
        loader.generator = torch.Generator()
        loader.worker_init_fn = leave_signals_to_the_parent
        return loader

    def evaluation(self, side: str, processes: Processes) -> list[np.ndarray]:
        """Batches that hold every sample of ``train``, ``val`` or ``test`` once, over all processes."""
        return evaluation_batches(
            self.dataset.natoms_of,
            getattr(self.split, side),
            self.settings.samplers.val.batch_size,
            processes.rank,
            processes.world_size,
        )

    def batches_of(self, rows: np.ndarray) -> list[np.ndarray]:
        """Batches that hold every one of `rows` once."""
        return evaluation_batches(self.dataset.natoms_of, rows, self.settings.samplers.val.batch_size)

    def fidelity_infos(self) -> list[FidelityInfo]:
        """What the network can know of each fidelity: elements and labels of the training molecules."""
        train = np.zeros(len(self.dataset), dtype=bool)
        train[self.split.train] = True
        infos = []
        for index, settings in sorted(self.settings.fidelities.items()):
            mine = train & (self.dataset.fidelity_of == index)
            elements = [z for z in self.dataset.elements(index) if (self.dataset.holds_element(z) & mine).any()]
            labels = [label for label in self.settings.y if (self.dataset.has_label(label) & mine).any()]
            infos.append(
                FidelityInfo(
                    index=index,
                    name=settings.name,
                    level_of_theory=settings.level_of_theory,
                    elements=elements,
                    labels=labels,
                    labels_include_dispersion=settings.labels_include_dispersion,
                )
            )
        return infos


def leave_signals_to_the_parent(_worker: int) -> None:
    """Let signals pass a worker process by: queues send them to all processes, and the parent ends its workers itself.

    A worker whose parent is gone ends within seconds: it looks for its parent while it waits for work.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def open_data(settings: DataSettings) -> MultiFidelityDataset:
    """Open and check all files of the settings; see `MultiFidelityDataset` for the errors."""
    sources = {i: FidelitySource(i, f.name, tuple(f.files)) for i, f in settings.fidelities.items()}
    return MultiFidelityDataset(sources, settings.y, settings.on_bad_rows, settings.cache_mb)


def check_data(settings: DataSettings, log: RunLog) -> tuple[MultiFidelityDataset, Ledger]:
    """Open the data and print the ledger of labels."""
    dataset = open_data(settings)
    ledger = label_ledger(dataset)
    log.line(ledger.format())
    for note in dataset.notes:
        log.line(f"note: {note}")
    for fidelity in settings.fidelities if "forces" in settings.y else ():
        warning = check_forces(dataset, fidelity).warning
        if warning is not None:
            log.line(f"warning: {warning}")
    return dataset, ledger


def prepare_data(config: TrainConfig, folder: Path, processes: Processes, log: RunLog) -> TrainingData:
    """Check the data, settle split and self-atomic energies, and set up the batches.

    Parameters
    ----------
    config
        Settings.
    folder
        Run folder; fitted self-atomic energies and the split are kept there and taken up again on resume.
    processes
        The first process works and writes, the others follow.
    log
        For the ledger and the statistics of fits.

    Raises
    ------
    DataError
        The data, an SAE file or the stored split cannot be used.
    """
    if not processes.first:
        processes.wait()
    settings = config.data
    dataset, ledger = check_data(settings, log)
    fingerprint = data_fingerprint(dataset)
    for index, fidelity in settings.fidelities.items():
        # before anything is written: a mended path must not meet the split of a failed run
        if fidelity.sae is not None:
            _checked_sae(dataset, index, fidelity.sae)
    split = _split(dataset, config, folder / "split.yaml", fingerprint, processes, log)
    sae, files = {}, {}
    for index, fidelity in sorted(settings.fidelities.items()):
        files[index] = folder / f"sae_fid{index}.yaml"
        sae[index] = _self_energies(dataset, split, index, fidelity, files[index], processes, log)
    if processes.first:
        processes.wait()
    train = settings.samplers.train
    sampler = FidelityBatchSampler(
        dataset.fidelity_of,
        dataset.natoms_of,
        split.train,
        settings.fidelity_weights,
        train.batch_size,
        train.batch_unit,
        train.batches_per_epoch,
        config.run.seed,
        size_window=train.size_window,
        rank=processes.rank,
        world_size=processes.world_size,
    )
    for index in (index for index, share in sampler.requested_shares.items() if share == 0):
        log.line(f"warning: fidelity {index} ({settings.fidelities[index].name}) is never drawn: it learns nothing")
    collate = Collate({index: sae_array(values) for index, values in sae.items()}, settings.y)
    return TrainingData(dataset, ledger, fingerprint, sae, files, split, sampler, collate, settings)


def _self_energies(
    dataset: MultiFidelityDataset,
    split: SplitIndices,
    index: int,
    fidelity: FidelitySettings,
    kept: Path,
    processes: Processes,
    log: RunLog,
) -> dict[int, float]:
    """Read the SAE of a fidelity where a file is given or was fitted before, else fit it; `kept` gets a copy.

    Only training molecules enter a fit, and the residuals that are printed: what is held back stays unseen.
    """
    training = dataset.compositions(index, split.train)
    title = f"self-atomic energies of fidelity {index} ({fidelity.name})"
    source = fidelity.sae or kept
    if source.is_file():
        values = _checked_sae(dataset, index, source)
        line, far = sae_residuals(training, values, str(source))
        log.line(f"{title}: read from {source}\n{line}")
        unit = None if fidelity.sae is None else unit_warning(values, str(source))
        for warning in (unit, far):
            if warning is not None:
                log.line(f"warning: fidelity {index} ({fidelity.name}): {warning}")
    else:
        fit = fit_sae(training)
        values = fit.values | _of_held_back_elements(dataset, index, fidelity, fit.values, log)
        log.line(f"{title}: fitted, written to {kept}\n{fit.format({i: dataset.name_of(i) for i, _ in fit.outliers})}")
        for warning in fit.warnings:
            log.line(f"warning: {warning}")
        if processes.first:
            write_sae(
                kept,
                values,
                f"fitted to {', '.join(path.name for path in fidelity.files)}: {fit.samples} training samples",
            )
    if processes.first and fidelity.sae is not None and fidelity.sae != kept:
        atomic_copy(fidelity.sae, kept)
    return values


def _checked_sae(dataset: MultiFidelityDataset, index: int, path: Path) -> dict[int, float]:
    """SAE (eV) of a file that holds all elements of the fidelity."""
    if not path.is_file():
        raise DataError(
            f"data.fidelities.{index}.sae: {path} does not exist; make it with python -m "
            "aimnet2mult.training.calc_sae, or leave the option out to have it fitted"
        )
    values = read_sae(path)
    check_sae_covers(values, dataset.elements(index), str(index), str(path))
    return values


def _of_held_back_elements(
    dataset: MultiFidelityDataset, index: int, fidelity: FidelitySettings, fitted: Mapping[int, float], log: RunLog
) -> dict[int, float]:
    """SAE (eV) of elements that only molecules outside training hold, from a fit to all molecules of the fidelity."""
    absent = [z for z in dataset.elements(index) if z not in fitted]
    if not absent:
        return {}
    symbols = ", ".join(chemical_symbols[z] for z in absent)
    log.line(
        f"warning: fidelity {index} ({fidelity.name}): only validation or test molecules hold {symbols}, so nothing is "
        "learned of that and its self-atomic energy is fitted to these; add more molecules that hold it"
    )
    everything = fit_sae(dataset.compositions(index)).values
    return {z: everything[z] for z in absent}


def _split(
    dataset: MultiFidelityDataset,
    config: TrainConfig,
    path: Path,
    fingerprint: str,
    processes: Processes,
    log: RunLog,
) -> SplitIndices:
    if path.is_file():
        split = read_split(path, fingerprint)
        log.line(f"split: read from {path}")
    else:
        split = split_by_molecule(dataset, config.data.val_fraction, config.data.test_fraction, config.run.seed)
        for note in split.notes:
            log.line(f"note: {note}")
        if processes.first:
            write_split(split, path)
    indices = split.indices(dataset.molecule_key_of)
    keys = dataset.molecule_key_of
    parts = [f"{n} {len(i):,} samples of {len(np.unique(keys[i])):,} molecules" for n, i in indices._asdict().items()]
    log.line(f"split: {', '.join(parts)}")
    return indices
