"""Statistics of the training atoms, from which a compiled potential tells how novel a structure is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.models.novelty import Novelty, NoveltyStatistics
from aimnet2mult.training.data import TrainingData
from aimnet2mult.training.step import to_device
from aimnet2mult.types import AtomIndex, Molecules

STRUCTURES: Final = 5000  # of each fidelity: the quantile below rests on fifty of them
ATOMS: Final = 200_000  # in all, which bounds the memory: 400 MB with the published size
QUANTILE: Final = 0.99
# covariances of elements with few atoms lean on that of all elements, as if so many atoms per feature had been seen
PRIOR_ATOMS: Final = 8
RIDGE: Final = 1e-3  # of the mean variance, added in every direction: features that hardly vary tell nothing


class Features(NamedTuple):
    """Last features of the atoms of a batch."""

    values: Tensor  # (n, A)
    numbers: Tensor  # (n,) atomic numbers
    atoms: AtomIndex


def fit_novelty(
    network: MultiFidelityNetwork, data: TrainingData, fidelity: int, device: torch.device, limit: int | None
) -> NoveltyStatistics | None:
    """Statistics of training atoms of one fidelity.

    Parameters
    ----------
    network
        Trained.
    data
        Of the run; a seeded choice of at most 5000 training structures is taken.
    fidelity
        Whose structures.
    device
        Where the network is.
    limit
        At most so many batches; None: all.

    Returns
    -------
    NoveltyStatistics or None
        None where the fidelity has no training structure.
    """
    found = [
        features_of(network, to_device(batch, device).molecules)
        for batch in data.loader(_batches(data, fidelity)[:limit])
    ]
    return statistics_of(found) if found else None


def share_of_novel(
    network: MultiFidelityNetwork,
    data: TrainingData,
    side: str,
    fidelity: int,
    statistics: NoveltyStatistics,
    limit: int | None,
) -> float | None:
    """Which part of the validation or test structures of a fidelity lies outside; None without structures."""
    device = next(network.parameters()).device
    rows = getattr(data.split, side)
    rows = rows[data.dataset.fidelity_of[rows] == fidelity]
    batches = data.batches_of(rows)[:limit]
    novelty = Novelty(statistics).to(device)
    found = [novelty(*features_of(network, to_device(batch, device).molecules)) for batch in data.loader(batches)]
    return float((torch.cat(found) > 1.0).double().mean()) if found else None


def features_of(network: MultiFidelityNetwork, molecules: Molecules) -> Features:
    """Last features of the atoms of a batch."""
    with torch.no_grad():
        description = network.describe(molecules, None)
    return Features(description.state.features, description.numbers, description.atoms)


def statistics_of(batches: Sequence[Features]) -> NoveltyStatistics:
    """Means, whitening matrices and scale from the features of training structures."""
    features = torch.cat([batch.values for batch in batches]).cpu()
    numbers = torch.cat([batch.numbers for batch in batches]).cpu()
    elements, counts = numbers.unique(return_counts=True)
    groups = [features[numbers == z].double() for z in elements]
    mean = torch.stack([group.mean(0) for group in groups])
    scatter = torch.stack([_scatter(group - middle) for group, middle in zip(groups, mean, strict=True)])
    pooled = scatter.sum(0) / len(features)
    prior = PRIOR_ATOMS * features.shape[1]
    covariance = (scatter + prior * pooled) / (counts.view(-1, 1, 1) + prior)
    tiny = float(torch.finfo(torch.float32).tiny)
    ridge = RIDGE * pooled.diagonal().mean().clamp(min=tiny)
    covariance = covariance + ridge * torch.eye(features.shape[1], dtype=torch.float64)
    whitening = torch.stack([_whitening(one) for one in covariance])
    one = torch.ones((), dtype=torch.float64)
    raw = NoveltyStatistics(elements, mean.float(), whitening.float(), one)
    distance = Novelty(raw).to(batches[0].values.device)
    distances = torch.cat([distance(*batch) for batch in batches]).cpu()
    return raw._replace(scale=torch.quantile(distances, QUANTILE).clamp(min=tiny))


def _whitening(covariance: Tensor) -> Tensor:
    # by Cholesky, and one by one: of a batch of large matrices on several threads PyTorch makes LU factors that are
    # wrong, see `aimnet2mult.physics.eeq.solve_each`
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(covariance)))


def _scatter(offsets: Tensor) -> Tensor:
    return offsets.T @ offsets


def _batches(data: TrainingData, fidelity: int) -> list[np.ndarray]:
    """A seeded choice of the training structures of a fidelity, in which every element of the training occurs."""
    dataset, train = data.dataset, data.split.train
    rows = np.random.default_rng(fidelity).permutation(train[dataset.fidelity_of[train] == fidelity])
    n_taken = min(STRUCTURES, int(np.searchsorted(dataset.natoms_of[rows].cumsum(), ATOMS, side="right")))
    taken = list(rows[: max(n_taken, 1)])
    for z in dataset.elements(fidelity):
        having = rows[dataset.holds_element(z)[rows]]
        if len(having) and not dataset.holds_element(z)[taken].any():
            taken.append(having[0])
    return data.batches_of(np.sort(np.array(taken, dtype=rows.dtype)))
