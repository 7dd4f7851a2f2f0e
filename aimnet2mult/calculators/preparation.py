"""From a checked structure to what potentials take: neighbour lists, and what Coulomb energies allow."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple

from torch import Tensor, nn

from aimnet2mult.calculators.engine_evaluator import EngineEvaluator
from aimnet2mult.calculators.evaluation import Surroundings
from aimnet2mult.calculators.inputs import CLOSEST, System, too_near
from aimnet2mult.calculators.members import Committee
from aimnet2mult.calculators.neighbors import Frame, SystemLists, VerletLists
from aimnet2mult.calculators.runtime_dispersion import RuntimeDispersion
from aimnet2mult.errors import InputError

# Atoms. Measured with energy and forces of a network of the published size, one thread: lists are quicker from 150
# atoms on for a stretched chain (21 neighbours each) and from 450 on for a droplet of water (80 neighbours).
ALL_PAIRS_UP_TO = 250
# Å^3. A reciprocal sum has as many terms as volume, however few the atoms: 2 GB and 12 s at this size.
LARGEST_VOLUME = 1e8


class Prepared(NamedTuple):
    """One structure and everything that its energy is made of, for derivatives of any order."""

    modules: tuple[nn.Module, ...]  # members of the ensemble, in float64
    data: dict[str, Tensor]  # the dictionary at their door, one structure, no gradients
    system: System
    dispersion: RuntimeDispersion | None  # is added to the mean of the members
    lock: AbstractContextManager[bool]  # to be held while the modules run


def needs_lists(system: System) -> bool:
    """Whether neighbour lists are used: for every periodic system, and where all pairs of a molecule are too many."""
    return system.n_periodic > 0 or len(system.numbers) > ALL_PAIRS_UP_TO


def look_up(system: System, committee: Committee, verlet: VerletLists) -> Surroundings:
    """What the evaluator of a committee has to know about the surroundings of the atoms of a system.

    Raises
    ------
    InputError
        Two atoms or images are nearer than 0.3 Å, or the Coulomb energy is not defined for this periodicity.
    """
    if system.n_periodic > 0:
        _check_lattice_sums(system, committee)
    if isinstance(committee.evaluator, EngineEvaluator):
        return _for_engine(system, committee.evaluator, verlet)
    if not needs_lists(system):
        return Surroundings(None, None)
    pair_cutoff = committee.pair_cutoff(len(system.numbers), system.volume)
    lists = verlet.update(Frame(system.coord, system.cell), committee.metadata.cutoff, pair_cutoff)
    nearest = lists.nearest
    if nearest is not None and nearest.distance < CLOSEST:
        raise too_near(nearest.first, nearest.second, nearest.distance, nearest.images)
    return Surroundings(lists, None)


def _for_engine(system: System, evaluator: EngineEvaluator, verlet: VerletLists) -> Surroundings:
    from aimnet2mult.engine.edges import find_edges

    edges, nearest = find_edges(system.coord, system.cell, evaluator.cutoff)
    if nearest is not None and nearest.square < CLOSEST**2:
        first, second = sorted((nearest.first, nearest.second))
        raise too_near(first, second, nearest.square**0.5, bool(nearest.shift.any()))
    lists: SystemLists | None = None
    if evaluator.needs_lists and needs_lists(system):
        cutoff = evaluator.cutoff if evaluator.needs_rows else 0.0
        pair_cutoff = evaluator.pair_cutoff(len(system.numbers), system.volume)
        lists = verlet.update(Frame(system.coord, system.cell), cutoff, pair_cutoff)
    return Surroundings(lists, edges)


def _check_lattice_sums(system: System, committee: Committee) -> None:
    """Refuse periodic systems whose Coulomb energy or D4 charges the potentials do not define."""
    if system.n_periodic in (1, 2) and committee.coulomb & {"simple", "ewald"}:
        raise InputError(
            f"the long-range Coulomb energy of a system that is periodic in {system.n_periodic} of 3 directions is not "
            'defined by this potential; use coulomb="dsf", or add vacuum and set pbc to True along it'
        )
    if system.n_periodic in (1, 2) and committee.equilibrates:
        raise InputError(
            f"the D4 charges of a system that is periodic in {system.n_periodic} of 3 directions are not defined; add "
            "vacuum and set pbc to True along it, or compile with D3(BJ), or with the charges of the network"
        )
    if system.volume > LARGEST_VOLUME and (committee.equilibrates or committee.coulomb & {"simple", "ewald"}):
        raise InputError(
            f"a cell of {system.volume:.1e} Å^3 is too large for its lattice sums; set pbc to False for a molecule, or "
            'use coulomb="dsf"'
        )
