"""Which way a loaded potential is evaluated: by the compiled engine where that can be, else by its own program."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from ase.calculators.calculator import CalculationFailed
from pydantic import ValidationError

from aimnet2mult.calculators.engine_evaluator import EngineEvaluator, EngineMember
from aimnet2mult.calculators.evaluation import Evaluator, Surroundings
from aimnet2mult.calculators.inputs import System
from aimnet2mult.calculators.reference import ReferenceEvaluator
from aimnet2mult.configs.metadata import PotentialMetadata
from aimnet2mult.configs.model import ModelConfig
from aimnet2mult.engine import warmup
from aimnet2mult.models.files import LoadedPotential
from aimnet2mult.torch_threads import one_thread

_LOG: Final = logging.getLogger("aimnet2mult")
# relative to the largest number: far above the rounding of float32 networks, far below what another network gives
_SAME: Final = 1e-3


def evaluator_of(loaded: Sequence[LoadedPotential], device: torch.device, double: bool) -> Evaluator:
    """The quickest way to evaluate potentials.

    Parameters
    ----------
    loaded
        Potentials, as they are to be used.
    device
        Where they are.
    double
        Whether their networks run in float64.
    """
    reference = ReferenceEvaluator([one.module for one in loaded], device)
    if double or device.type != "cpu" or not warmup.ready():
        return reference
    members = [member for member in map(_engine_member, loaded) if member is not None]
    if len(members) < len(loaded):
        return reference
    for one, member in zip(loaded, members, strict=True):
        if not _agree(one, member, device):
            _LOG.warning("%s: its program is used, because the compiled engine gives other numbers", one.path)
            return reference
    return EngineEvaluator(members)


def _engine_member(loaded: LoadedPotential) -> EngineMember | None:
    """A potential for the engine, or None if its network is not one that the engine knows."""
    network: Any = loaded.module.network
    try:
        settings = ModelConfig.model_validate(loaded.metadata.model).kwargs
    except ValidationError:
        return None
    single = all(parameter.dtype == torch.float32 for parameter in network.parameters())
    if network.original_name != "MultiFidelityNetwork" or settings.num_fidelities != 1 or not single:
        return None
    return EngineMember(loaded.module, settings)


def _agree(loaded: LoadedPotential, member: EngineMember, device: torch.device) -> bool:
    """Whether engine and program say the same of a small molecule.

    The engine works from the metadata of the file. A file from a time when the same metadata meant something else,
    or from somebody's own network under the same names, shows here.
    """
    from aimnet2mult.engine.edges import find_edges

    system = _probe(loaded.metadata)
    around = Surroundings(None, find_edges(system.coord, system.cell, member.cutoff).edges)
    try:
        with one_thread():  # others would have to be started, and have nothing to do
            (expected,) = ReferenceEvaluator([loaded.module], device)([system], [Surroundings(None, None)], False, True)
            (found,) = EngineEvaluator([member])([system], [around], False, True)
    except CalculationFailed:
        return False
    own = member.sae[system.numbers].sum()
    pairs = [(found.energy - own, expected.energy - own), (found.charges, expected.charges)]
    pairs += [(found.spin_charges, expected.spin_charges), (found.forces, expected.forces)]
    return all(np.abs(a - b).max() <= _SAME * max(1.0, np.abs(b).max()) for a, b in pairs)


def _probe(metadata: PotentialMetadata) -> System:
    """Four atoms of known elements without symmetry, with an even number of electrons."""
    coord = np.array([[0.0, 0.1, -0.2], [1.5, 0.0, 0.3], [-0.4, 1.4, 0.5], [0.6, 0.9, 1.9]])
    numbers = np.resize(np.array(sorted(metadata.fidelity.elements), dtype=np.int64), 4)
    charge = int(numbers.sum()) % 2
    return System(coord, numbers, np.zeros((3, 3)), charge, 3 if metadata.num_charge_channels == 2 else 1)
