"""From a batch to predictions, forces included when they are asked for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aimnet2mult.types import Batch, Molecules


def predict(model: nn.Module, batch: Batch, need_forces: bool, create_graph: bool) -> dict[str, Tensor]:
    """Evaluate a model on a batch.

    Parameters
    ----------
    model
        Of `aimnet2mult.training.step_model.step_model`.
    batch
        Collated molecules.
    need_forces
        Also differentiate the energies of the molecules that have force labels.
    create_graph
        True in training: predictions (and forces) can be differentiated with respect to the weights.

    Returns
    -------
    dict
        ``energy`` (B,) eV without self-atomic energies, ``charges`` and ``spin_charges`` (B, N) e, and with
        `need_forces` ``forces`` (B, N, 3) eV/Å, which are zero for molecules without force labels.
    """
    wanted = batch.masks["forces"] if need_forces else torch.zeros_like(batch.molecules.fidelity, dtype=torch.bool)
    predictions: dict[str, Tensor] = model(batch.molecules, wanted, create_graph)
    return predictions


def has_forces(batch: Batch) -> bool:
    """Whether at least one molecule of the batch has force labels."""
    mask = batch.masks.get("forces")
    return mask is not None and bool(mask.any())


def targets(batch: Batch) -> dict[str, Tensor]:
    """Labels, masks as ``{key}_mask`` and ``numbers``, in the form that the loss takes."""
    masks = {f"{key}_mask": mask for key, mask in batch.masks.items()}
    return {**batch.labels, **masks, "numbers": batch.molecules.numbers}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`; the same batch when it is there already."""
    if batch.molecules.coord.device == device:
        return batch
    molecules = Molecules(*(tensor.to(device, non_blocking=True) for tensor in batch.molecules))
    labels = {key: value.to(device, non_blocking=True) for key, value in batch.labels.items()}
    masks = {key: value.to(device, non_blocking=True) for key, value in batch.masks.items()}
    return Batch(molecules, labels, masks, batch.names)


def suspects(batch: Batch, predictions: dict[str, Tensor], limit: int = 3) -> list[str]:
    """Names of the molecules to blame for a non-finite loss: non-finite predictions first, else the largest errors."""
    with torch.no_grad():
        numbers = batch.molecules.numbers
        badness = torch.zeros(numbers.shape[0], dtype=torch.float64, device=numbers.device)
        for key, value in predictions.items():
            mask = batch.masks.get(key)
            if mask is None:
                continue
            flat = value.detach().reshape(len(badness), -1).double()
            error = (flat - batch.labels[key].reshape(len(badness), -1)).abs().amax(dim=1)
            error = torch.where(mask, error, 0)
            broken = ~torch.isfinite(flat).all(dim=1) | ~torch.isfinite(error)
            badness = torch.maximum(badness, torch.where(broken, torch.inf, error))
        worst = badness.argsort(descending=True)[:limit].tolist()
        broken_only = [i for i in worst if badness[i] == torch.inf]
    return [batch.names[i] for i in (broken_only or worst)]
