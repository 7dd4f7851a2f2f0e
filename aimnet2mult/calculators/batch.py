"""Many structures at once: padded batches of similar size under a memory budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from ase import Atoms

from aimnet2mult.calculators.engine_evaluator import EngineEvaluator
from aimnet2mult.calculators.evaluation import Evaluation, Surroundings, evaluate
from aimnet2mult.calculators.inputs import System, check_defined, checked_system
from aimnet2mult.calculators.members import Committee
from aimnet2mult.calculators.neighbors import VerletLists
from aimnet2mult.calculators.preparation import look_up, needs_lists
from aimnet2mult.configs.metadata import PotentialMetadata
from aimnet2mult.errors import InputError

CPU_MEMORY = 1 << 27  # bytes; measured: 32 to 128 MiB are equally quick, 1 GiB takes a quarter to a third longer


class Costs(NamedTuple):
    """Bytes that an evaluation with forces takes."""

    per_atom: int
    per_pair: int  # of all pairs
    per_neighbor: int  # of a list


def costs(committee: Committee) -> Costs:
    """What networks of this size take.

    In PyTorch the counts of floats are those that a network stores for its gradient, times factors that were measured
    with the published size: 80 kB per atom, 2 kB per pair, 10 kB per neighbour.
    """
    settings = committee.metadata.model["kwargs"]
    shifts, channels = settings["aev"]["nshifts_s"], settings["nfeature"] + settings["num_charge_channels"]
    passes = len(settings["hidden"])
    layers = sum(sum(widths) for widths in settings["hidden"])
    inputs = passes * channels * (2 * shifts + settings["ncomb_v"])
    if isinstance(committee.evaluator, EngineEvaluator):
        return Costs(8 * (layers + inputs), 200 if committee.evaluator.needs_lists else 0, 8 * shifts)
    size = 8 if committee.double else 4
    return Costs(3 * size * (layers + inputs), 30 * size * shifts, 9 * size * shifts * channels)


def budget(device: torch.device) -> int:
    """Bytes for a batch where the user does not say: half of a GPU's free memory, and little on a CPU."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else CPU_MEMORY


@dataclass
class _Batch:
    """Structures that are evaluated together, by their places among all."""

    listed: bool
    places: list[int] = field(default_factory=list)
    surroundings: list[Surroundings] = field(default_factory=list)
    width: int = 0  # pairs of an atom, padding included


def checked_systems(
    structures: Sequence[Atoms],
    charge: int | None,
    mult: int | None,
    metadata: PotentialMetadata,
    wanted: Sequence[str],
) -> list[System]:
    """Structures of which a potential can be asked for some properties; see `aimnet2mult.calculators.inputs`.

    Raises
    ------
    InputError
        A structure cannot be used; the message starts with its place.
    """
    if isinstance(structures, Atoms) or not all(isinstance(atoms, Atoms) for atoms in structures):
        raise InputError("structures must be a list of ase.Atoms; for one structure give a list of one")
    systems = []
    for place, atoms in enumerate(structures):
        with _named(place):
            systems.append(checked_system(atoms, charge, mult, metadata))
            check_defined(wanted, systems[-1])
    return systems


def evaluate_batches(
    committee: Committee, systems: Sequence[System], stress: bool, forces: bool, memory: int | None = None
) -> list[Evaluation]:
    """Evaluate structures of any sizes, in the order given; see `aimnet2mult.calculators.ase` for the arguments."""
    found: dict[int, Evaluation] = {}
    for batch in _batches(systems, committee, memory or budget(committee.device)):
        chosen = [systems[place] for place in batch.places]
        with committee.lock:
            results = evaluate(committee.evaluator, chosen, batch.surroundings, committee.dispersion, stress, forces)
        found |= dict(zip(batch.places, results, strict=True))
    return [found[place] for place in range(len(systems))]


def _batches(systems: Sequence[System], committee: Committee, memory: int) -> Iterator[_Batch]:
    """Batches of structures of similar size, molecules of which all pairs are formed apart from the others."""
    cost, batch = costs(committee), _Batch(listed=False)
    for place in sorted(range(len(systems)), key=lambda i: (needs_lists(systems[i]), len(systems[i].numbers))):
        system = systems[place]
        listed, n_slots = needs_lists(system), len(system.numbers)
        with _named(place):
            around = look_up(system, committee, VerletLists(skin=0.0))
        own = around.lists.neighbor.shape[1] if around.lists is not None else n_slots
        width = max(batch.width, own)
        per_atom = cost.per_atom + width * (cost.per_neighbor if listed else cost.per_pair)
        needed = (len(batch.places) + 1) * n_slots * per_atom
        if batch.places and (listed != batch.listed or needed > memory):
            yield batch
            batch, width = _Batch(listed), own
        batch.listed, batch.width = listed, width
        batch.places.append(place)
        batch.surroundings.append(around)
    if batch.places:
        yield batch


@contextmanager
def _named(place: int) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise type(error)(f"structure {place}: {error}") from None
