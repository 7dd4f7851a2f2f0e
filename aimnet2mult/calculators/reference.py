"""Evaluation of potentials by their own programs in PyTorch: in every precision, on every device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from aimnet2mult.calculators.evaluation import Outputs, Surroundings
from aimnet2mult.calculators.inputs import System
from aimnet2mult.calculators.neighbors import SystemLists, door_entries
from aimnet2mult.calculators.torch_modes import STOPPED, own_settings, stopped
from aimnet2mult.models.derivatives import forces_and_stress, forces_from_energy, strained

VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))  # xx, yy, zz, yz, xz, xy


def door(systems: Sequence[System], lists: Sequence[SystemLists], device: torch.device) -> dict[str, Tensor]:
    """The dictionary that potentials take, for a padded batch.

    Positions stay in float64 even for a network in float32, and are counted from the centre of each structure:
    displacements keep their precision.

    Parameters
    ----------
    systems
        The structures.
    lists
        Their neighbour lists; none for molecules of which all pairs are to be formed.
    device
        Where the tensors go.
    """
    n_slots = max(len(system.numbers) for system in systems)
    coord = np.zeros((len(systems), n_slots, 3))
    numbers = np.zeros((len(systems), n_slots), dtype=np.int64)
    for row, system in enumerate(systems):
        n = len(system.numbers)
        coord[row, :n] = system.coord - system.coord.mean(axis=0)
        numbers[row, :n] = system.numbers
    arrays = {
        "coord": coord,
        "numbers": numbers,
        "charge": np.array([system.charge for system in systems], dtype=np.float64),
        "mult": np.array([system.mult for system in systems], dtype=np.float64),
    }
    data = {name: torch.from_numpy(values).to(device) for name, values in arrays.items()}
    return data | door_entries(lists, [s.cell for s in systems], n_slots, device) if lists else data


def listed(surroundings: Sequence[Surroundings]) -> list[SystemLists]:
    """The neighbour lists of a batch: of all its structures, or none where all pairs are formed."""
    return [one.lists for one in surroundings if one.lists is not None]


class ReferenceEvaluator:
    """Runs the programs of potentials and differentiates them.

    Parameters
    ----------
    modules
        Potentials.
    device
        Where they are.
    """

    def __init__(self, modules: Sequence[nn.Module], device: torch.device) -> None:
        self._modules = tuple(modules)
        self._device = device

    def __call__(
        self, systems: Sequence[System], surroundings: Sequence[Surroundings], stress: bool, forces: bool
    ) -> list[Outputs]:
        """One result per potential; see `aimnet2mult.calculators.evaluation.evaluate`."""
        with own_settings(self._device, forces or stress):
            data = door(systems, listed(surroundings), self._device)
            return [_run(module, data, stress, forces) for module in self._modules]


def _run(module: nn.Module, data: dict[str, Tensor], stress: bool, forces: bool) -> Outputs:
    coord = data["coord"].detach().requires_grad_(forces or stress)
    gradient: Tensor | None = None
    virial: Tensor | None = None
    try:
        if stress:
            deformed = strained(coord, data["cell"])
            output: dict[str, Tensor] = module(data | {"coord": deformed.coord, "cell": deformed.cell})
            gradient, virial = forces_and_stress(output["energy"], coord, deformed)
        else:
            output = module(data | {"coord": coord})
            gradient = forces_from_energy(output["energy"], coord) if forces else None
    except STOPPED as error:
        raise stopped(error) from error
    real = data["numbers"] > 0
    return Outputs(
        energy=_array(output["energy"]),
        charges=_array(output["charges"][real]),
        spin_charges=_array(output["spin_charges"][real]),
        forces=_array(gradient[real]) if forces and gradient is not None else None,
        stress=None if virial is None else _array(virial[:, VOIGT[0], VOIGT[1]]),
        novelty=_array(output["novelty"]) if "novelty" in output else None,
    )


def _array(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy().astype(np.float64)
