"""Evaluation of potentials by the compiled engine: the network without PyTorch, on the CPU in float32."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from ase.calculators.calculator import CalculationFailed
from numpy.typing import NDArray
from torch import nn

from aimnet2mult.calculators.evaluation import Outputs, Surroundings
from aimnet2mult.calculators.inputs import System
from aimnet2mult.calculators.novelty import EngineNovelty
from aimnet2mult.calculators.pair_terms import PairTerms, TermSums
from aimnet2mult.calculators.reference import VOIGT
from aimnet2mult.calculators.torch_modes import stopped
from aimnet2mult.configs.model import NetworkSettings
from aimnet2mult.engine.records import Edges, FlatSystems, Forward

if TYPE_CHECKING:
    from aimnet2mult.engine.coulomb import Coulomb
    from aimnet2mult.engine.dispersion import Dispersion
    from aimnet2mult.engine.engine import NetworkEngine

Array = NDArray[np.float64]
_VERSION: Final = attrgetter("_version")  # counts the changes of a tensor in place


class EngineMember:
    """One potential in the form that the engine works on.

    Parameters
    ----------
    module
        A loaded potential.
    settings
        Of its network.

    Attributes
    ----------
    cutoff
        Å, of the network.
    sae
        (119,) eV by atomic number, NaN where not known.
    with_spin
        Whether spin charges are among the outputs.
    coulomb, dispersion
        Energy terms in compiled code.
    others
        Terms that only their own programs know.
    novelty
        One, or none where the potential does not know what it was trained on.
    """

    def __init__(self, module: Any, settings: NetworkSettings) -> None:
        self.cutoff = settings.aev.rc_s
        self.sae: Array = module.sae.table.numpy()
        self.with_spin = settings.num_charge_channels == 2 and settings.outputs.spin_charges is not None
        from aimnet2mult.calculators.compiled_terms import split_terms

        terms = split_terms(module)
        self.coulomb, self.dispersion = terms.coulomb, terms.dispersion
        # files of older versions and published ones know nothing of what they were trained on
        self.novelty = [EngineNovelty(one) for one in getattr(module, "novelty", nn.ModuleList()).children()]
        self.others = PairTerms(terms.other_heads, terms.other_terms)
        self._network = module.network
        self._settings = settings
        self._parameters = tuple(self._network.parameters())
        self._version = -1
        self._engine: NetworkEngine | None = None

    def engine(self) -> NetworkEngine:
        """The network with its present weights, which are packed anew if they were changed in place."""
        version = sum(map(_VERSION, self._parameters))
        if self._engine is None or version != self._version:
            from aimnet2mult.engine.engine import NetworkEngine

            basis = self._network.backbone.basis
            state = self._network.state_dict()
            self._engine = NetworkEngine(self._settings, state, basis.centres, float(basis.exponent))
            self._version = version
        return self._engine


class EngineEvaluator:
    """Runs the networks of potentials in the compiled engine, and their other energy terms beside it.

    Parameters
    ----------
    members
        Potentials.
    """

    def __init__(self, members: Sequence[EngineMember]) -> None:
        self._members = tuple(members)
        self.cutoff = max(member.cutoff for member in members)
        self.needs_lists = any(member.others for member in members)
        self.needs_rows = any(member.others.read_rows for member in members)

    def pair_cutoff(self, n_atoms: int, volume: float) -> float:
        """Reach (Å) of the pair list for a system of this size and cell volume (Å^3; 0 if there is none); 0: none."""
        return max(member.others.pair_cutoff(n_atoms, volume) for member in self._members)

    def __call__(
        self, systems: Sequence[System], surroundings: Sequence[Surroundings], stress: bool, forces: bool
    ) -> list[Outputs]:
        """One result per potential; see `aimnet2mult.calculators.evaluation.evaluate`."""
        from aimnet2mult.engine.edges import joined, within

        flat = flat_systems(systems)
        edges = joined([one.edges for one in surroundings if one.edges is not None])
        wanted = _Wanted(stress, forces)
        dispersion: dict[object, TermSums] = {}  # the members of an ensemble mostly have the same
        found = []
        for member in self._members:
            for term in member.dispersion:
                if term.key not in dispersion:
                    dispersion[term.key] = _dispersion(term, systems, flat, stress or forces)
            near = edges if member.cutoff == self.cutoff else within(edges, member.cutoff)
            rest = [dispersion[term.key] for term in member.dispersion]
            found.append(_run(member, systems, surroundings, flat, near, rest, wanted))
        return found


def flat_systems(systems: Sequence[System]) -> FlatSystems:
    """Structures one after another, without padding."""
    offsets = np.zeros(len(systems) + 1, dtype=np.int64)
    np.cumsum([len(system.numbers) for system in systems], out=offsets[1:])
    return FlatSystems(
        numbers=systems[0].numbers if len(systems) == 1 else np.concatenate([s.numbers for s in systems]),
        offsets=offsets,
        charge=np.array([system.charge for system in systems], dtype=np.float64),
        mult=np.array([system.mult for system in systems], dtype=np.float64),
    )


class _Wanted(NamedTuple):
    """Which derivatives are to be taken."""

    stress: bool
    forces: bool


def _run(
    member: EngineMember,
    systems: Sequence[System],
    surroundings: Sequence[Surroundings],
    flat: FlatSystems,
    edges: Edges,
    rest: list[TermSums],
    wanted: _Wanted,
) -> Outputs:
    """The network of one potential and its terms; `rest` are those that do not depend on charges."""
    engine = member.engine()
    forward = engine.forward(flat, edges)
    novelty = next((one(forward) for one in member.novelty), None)  # of features that are lent
    charges = forward.charges.sum(axis=1)
    rest = rest + [_coulomb(term, systems, flat, charges) for term in member.coulomb]
    if member.others:
        rest.append(member.others(systems, surroundings, charges, wanted.stress, wanted.forces))
    energy = sum((term.energy for term in rest), _self_atomic_energies(member.sae, flat) + forward.energy)
    gradient = virial = None
    if wanted.forces or wanted.stress:
        gradient, virial = _derivatives(engine, forward, rest)
    spin = forward.charges[:, 0] - forward.charges[:, 1] if member.with_spin else np.zeros_like(charges)
    return Outputs(
        energy=energy,
        charges=charges,
        spin_charges=spin,
        forces=-gradient if wanted.forces and gradient is not None else None,
        stress=_voigt_stress(virial, systems) if wanted.stress and virial is not None else None,
        novelty=novelty,
    )


def _derivatives(engine: NetworkEngine, forward: Forward, rest: Sequence[TermSums]) -> tuple[Array, Array]:
    """Derivatives of the energy by positions (n, 3) and strain (B, 3, 3), through the charges too."""
    from aimnet2mult.engine.edges import derivatives

    by_charge = None
    if rest:
        # the charge of an atom is the sum over its channels
        total = sum((term.by_charge for term in rest), np.zeros(len(forward.charges)))
        by_charge = np.repeat(total[:, None], forward.charges.shape[1], axis=1)
    by_vector = engine.backward(forward, by_charge)
    gradient, virial = derivatives(forward.edges, by_vector, forward.systems.offsets)
    for term in rest:
        gradient += term.gradient
        virial += term.virial
    return gradient, virial


def _dispersion(term: Dispersion, systems: Sequence[System], flat: FlatSystems, gradient: bool) -> TermSums:
    try:
        found = [term(system.coord, system.numbers, system.cell, gradient) for system in systems]
    except ValueError as error:
        raise stopped(error) from error
    return TermSums(
        energy=np.array([one.energy for one in found]),
        gradient=np.concatenate([one.gradient for one in found]),
        virial=np.array([one.virial for one in found]),
        by_charge=np.zeros(len(flat.numbers)),
    )


def _coulomb(term: Coulomb, systems: Sequence[System], flat: FlatSystems, charges: Array) -> TermSums:
    ends = zip(systems, flat.offsets[:-1], flat.offsets[1:], strict=True)
    found = [term(system.coord, charges[begin:end], system.cell) for system, begin, end in ends]
    return TermSums(
        energy=np.array([one.energy for one in found]),
        gradient=np.concatenate([one.gradient for one in found]),
        virial=np.array([one.virial for one in found]),
        by_charge=np.concatenate([one.by_charge for one in found]),
    )


def _self_atomic_energies(table: Array, flat: FlatSystems) -> Array:
    """(B,) eV."""
    atomic = table[flat.numbers]
    energy = np.add.reduceat(atomic, flat.offsets[:-1])
    if np.isnan(energy).any():
        unknown = int(flat.numbers[np.isnan(atomic)][0])
        raise CalculationFailed(
            f"the potential stopped: this potential was not trained on the element with atomic number {unknown}"
        )
    return energy


def _voigt_stress(virial: Array, systems: Sequence[System]) -> Array:
    """(B, 6) eV/Å^3: the symmetric part of the derivative by strain, per volume."""
    volume = np.array([system.volume for system in systems])
    symmetric = 0.5 * (virial + virial.transpose(0, 2, 1)) / volume[:, None, None]
    return symmetric[:, VOIGT[0], VOIGT[1]]
