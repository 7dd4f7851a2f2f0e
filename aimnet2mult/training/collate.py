"""From samples to padded batches: padding, label masks and the removal of self-atomic energies, all here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from ase.data import chemical_symbols
from torch.utils.data import DataLoader, Dataset, get_worker_info

from aimnet2mult.datasets.checks import MAX_NUMBER
from aimnet2mult.datasets.format import column_shape
from aimnet2mult.datasets.reader import MultiFidelityDataset, Sample
from aimnet2mult.errors import AIMNet2MultError, DataError, TrainingError
from aimnet2mult.types import Batch, Molecules


class Collate:
    """Make a `Batch` of samples; can be pickled.

    Parameters
    ----------
    sae
        Per fidelity: self-atomic energies (119,) float64 in eV by atomic number; NaN where there is none.
    labels
        Labels that batches shall hold; each comes with a mask.

    Raises
    ------
    DataError
        A sample belongs to a fidelity or holds an element without self-atomic energy.
    """

    def __init__(self, sae: Mapping[int, np.ndarray], labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self._place = {fidelity: place for place, fidelity in enumerate(sorted(sae))}
        self._table = np.zeros((len(sae), MAX_NUMBER + 1), dtype=np.float64)
        for fidelity, place in self._place.items():
            self._table[place] = sae[fidelity]
        self._table[:, 0] = 0.0  # padding

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        size, width = len(samples), max(len(sample.numbers) for sample in samples)
        coord = np.zeros((size, width, 3), dtype=np.float32)
        numbers = np.zeros((size, width), dtype=np.int64)
        optional = [label for label in self.labels if label != "energy"]
        labels = {label: np.zeros((size, *column_shape(label, width)), dtype=np.float32) for label in optional}
        masks = {label: np.zeros(size, dtype=bool) for label in optional}
        for i, sample in enumerate(samples):
            natoms = len(sample.numbers)
            coord[i, :natoms] = sample.coord
            numbers[i, :natoms] = sample.numbers
            for label in optional:
                if label in sample.labels:
                    labels[label][i, :natoms] = sample.labels[label]
                    masks[label][i] = True
        fidelity = np.array([sample.fidelity for sample in samples], dtype=np.int64)
        if "energy" in self.labels:
            energy = np.array([sample.energy for sample in samples], dtype=np.float64)
            labels["energy"] = energy - self._self_energy(samples, fidelity, numbers)
            masks["energy"] = np.ones(size, dtype=bool)
        molecules = Molecules(
            coord=torch.from_numpy(coord),
            numbers=torch.from_numpy(numbers),
            charge=torch.tensor([sample.charge for sample in samples], dtype=torch.float32),
            mult=torch.tensor([sample.mult for sample in samples], dtype=torch.float32),
            fidelity=torch.from_numpy(fidelity),
        )
        return Batch(
            molecules=molecules,
            labels={label: torch.from_numpy(labels[label]) for label in self.labels},
            masks={label: torch.from_numpy(masks[label]) for label in self.labels},
            names=[sample.name for sample in samples],
        )

    def _self_energy(self, samples: Sequence[Sample], fidelity: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Sum of self-atomic energies of each molecule (B,) in eV."""
        absent = sorted(set(fidelity.tolist()) - set(self._place))
        if absent:
            raise DataError(f"fidelity {absent[0]} has no self-atomic energies; fit them with calc_sae")
        places = np.array([self._place[fid] for fid in fidelity.tolist()])
        terms = self._table[places[:, None], numbers]
        if np.isnan(terms).any():
            row, atom = np.argwhere(np.isnan(terms))[0]
            raise DataError(
                f"{samples[row].name} holds {chemical_symbols[numbers[row, atom]]}, which has no self-atomic energy"
                f" in fidelity {fidelity[row]}; add it to the SAE file"
            )
        return terms.sum(axis=1)


class _Arrays(NamedTuple):
    """A batch on its way out of a worker: numpy arrays travel through a pipe, tensors would need shared memory."""

    molecules: list[np.ndarray]
    labels: dict[str, np.ndarray]
    masks: dict[str, np.ndarray]
    names: list[str]

    @classmethod
    def of(cls, batch: Batch) -> _Arrays:
        molecules = [tensor.numpy() for tensor in batch.molecules]
        labels, masks = ({k: v.numpy() for k, v in part.items()} for part in (batch.labels, batch.masks))
        return cls(molecules, labels, masks, batch.names)

    def batch(self, pin: bool) -> Batch:
        def tensor(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values).pin_memory() if pin else torch.from_numpy(values)

        molecules = Molecules(*map(tensor, self.molecules))
        labels, masks = ({k: tensor(v) for k, v in part.items()} for part in (self.labels, self.masks))
        return Batch(molecules, labels, masks, self.names)


class _BatchReads(Dataset[Any]):
    """Batch i of a list, read in one call."""

    def __init__(self, dataset: MultiFidelityDataset, batches: Sequence[np.ndarray], collate: Collate) -> None:
        self._dataset, self._batches, self._collate = dataset, list(batches), collate

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Batch | _Arrays | AIMNet2MultError:
        try:
            batch = self._collate(self._dataset.read(self._batches[index]))
            return batch if get_worker_info() is None else _Arrays.of(batch)
        except AIMNet2MultError as error:
            return error  # raised by the loader: an exception that crosses processes would drag a traceback in its text


class _Loader(DataLoader[Any]):
    """Loader that turns troubles of its workers into sentences."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        try:
            iterator = super().__iter__()
        except OSError as error:
            raise TrainingError(
                f"the processes that read data cannot be started ({error.strerror or error}); set data.num_workers to "
                "0 or give the machine more (shared) memory"
            ) from error
        while True:
            try:
                item = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if "worker" in str(error) and ("exited" in str(error) or "killed" in str(error)):
                    reason = str(error).splitlines()[0]
                    raise TrainingError(
                        f"a process that reads data died ({reason}); set data.num_workers to 0 or give the machine"
                        " more (shared) memory"
                    ) from error
                raise
            if isinstance(item, AIMNet2MultError):
                raise item
            yield item.batch(pin=self.pin_memory) if isinstance(item, _Arrays) else item


def _unchanged(batch: Any) -> Any:
    return batch


def make_loader(
    dataset: MultiFidelityDataset,
    batches: Sequence[np.ndarray],
    collate: Collate,
    num_workers: int = 0,
    *,
    pin_memory: bool = False,
    multiprocessing_context: str | None = None,
) -> DataLoader[Any]:
    """Loader that yields one `Batch` per entry of `batches`, in that order.

    Parameters
    ----------
    dataset, collate
        Where samples come from and how they become a batch.
    batches
        Global sample numbers per batch.
    num_workers
        Processes that read ahead; 0 reads in this process. Workers made by fork share the cache that is filled
        here first; the cache of others counts per process.
    pin_memory
        Page-locked tensors, for copies to an accelerator.
    multiprocessing_context
        ``fork`` or ``spawn``; None: the default of the system.

    Raises
    ------
    DataError
        While iterating: samples cannot be read or collated.
    TrainingError
        While iterating: a worker died.
    """
    if num_workers > 0:
        dataset.preload()
        dataset.close()
    return _Loader(
        _BatchReads(dataset, batches, collate),
        batch_size=None,
        shuffle=False,
        num_workers=num_workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        multiprocessing_context=multiprocessing_context if num_workers > 0 else None,
    )
