"""Loss and errors of a network over a set of molecules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from aimnet2mult.training.loss import MTLoss
from aimnet2mult.training.metrics import ErrorRow, ErrorSums, Parity
from aimnet2mult.training.processes import Processes
from aimnet2mult.training.step import has_forces, predict, targets, to_device
from aimnet2mult.training.step_model import step_model, threads_for
from aimnet2mult.types import Batch


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`."""

    loss: float
    components: dict[str, float]
    rows: list[ErrorRow]
    parity: dict[tuple[int, str], Parity]


def evaluate(
    network: nn.Module,
    loss: MTLoss,
    batches: Iterable[Batch],
    labels: Sequence[str],
    n_fidelities: int,
    processes: Processes,
    collect: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Evaluate every molecule of `batches` once.

    Each loss term is the mean over all molecules of the set that have the label, whatever the batches.

    Parameters
    ----------
    network, loss
        What is judged, and by which loss.
    batches
        This process' share of the set.
    labels
        Labels to measure.
    n_fidelities
        Number of fidelities.
    processes
        Sums are taken over all of them.
    collect
        Keep the values for parity plots (of this process).
    stop
        Asked before each batch; True gives up and returns None.
    """
    model = step_model(network)
    errors = ErrorSums(n_fidelities, labels, collect, processes.device)
    sums = torch.zeros(2, len(loss.names), dtype=torch.float64, device=processes.device)
    stopped = False
    with threads_for(model):
        for batch in batches:
            if stop():
                stopped = True
                break
            batch = to_device(batch, processes.device)
            predictions = predict(model, batch, "forces" in labels and has_forces(batch), create_graph=False)
            errors.update(predictions, batch)
            value = loss(predictions, targets(batch))
            means = torch.stack([value.components[name].detach().double() for name in loss.names])
            sums += torch.stack([means * value.counts, value.counts])
    if processes.any(stopped):
        return None
    sums = processes.sum(sums)
    errors.reduce(processes.sum)
    components = dict(zip(loss.names, (sums[0] / sums[1].clamp(min=1)).tolist(), strict=True))
    total = sum(term.weight * components[name] for name, term in loss.terms.items() if term.weight > 0)
    return Evaluation(total, components, errors.rows(), errors.parity())
