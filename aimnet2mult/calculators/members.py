"""The loaded potentials of a calculator: one, or the members of an ensemble."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from aimnet2mult.calculators.evaluation import Evaluator
from aimnet2mult.calculators.evaluators import evaluator_of
from aimnet2mult.calculators.inputs import checked_device
from aimnet2mult.calculators.locate import locate_siblings
from aimnet2mult.calculators.runtime_dispersion import RuntimeDispersion
from aimnet2mult.calculators.torch_modes import one_thread_if_forked
from aimnet2mult.collection import collection_paused
from aimnet2mult.configs.metadata import PotentialMetadata
from aimnet2mult.errors import InputError, ModelFileError
from aimnet2mult.models.files import LoadedPotential, load_potential
from aimnet2mult.models.foreign_file import is_foreign

COULOMB_METHODS = ("simple", "dsf", "ewald")


class Source(NamedTuple):
    """A file of potentials and the state that it was in."""

    path: Path
    digest: str  # SHA-256 of the content


class Changes(NamedTuple):
    """What is done differently from what the files say."""

    double: bool  # the network runs in float64
    coulomb: str | None  # method of the long-range Coulomb energy
    dispersion: RuntimeDispersion | None  # correction that is added
    replace_dispersion: bool  # whether it takes the place of the one inside


@dataclass(frozen=True)
class Committee:
    """Loaded potentials of one fidelity; what they predict is averaged."""

    modules: tuple[nn.Module, ...]
    metadata: PotentialMetadata  # what holds for all: the elements that every member knows, the largest cutoff
    double: bool  # whether the networks run in float64
    coulomb: frozenset[str]  # methods of the long-range Coulomb energies inside
    dispersion: RuntimeDispersion | None
    device: torch.device
    evaluator: Evaluator = field(compare=False, repr=False)
    # held while the modules run: copies of a calculator share them, and a Hessian changes their settings meanwhile
    lock: AbstractContextManager[bool] = field(default_factory=threading.RLock, compare=False, repr=False)

    @property
    def equilibrates(self) -> bool:
        """Whether a D4 correction inside takes its charges from electronegativity equilibration."""
        terms: list[Any] = [term for module in self.modules for term in module.terms.children()]  # type: ignore[union-attr]
        return any(getattr(term, "equilibrate", False) and term.active for term in terms)

    def pair_cutoff(self, n_atoms: int, volume: float) -> float:
        """Cutoff (Å) of the pair list for a system of this size and cell volume (Å^3; 0 if there is none)."""
        return max(float(module.pair_cutoff(n_atoms, volume)) for module in self.modules)  # type: ignore[operator]


class Potentials:
    """Files of one fidelity, loaded when they are needed.

    Immutable as far as users can see, so that copies share it. Compiled programs cannot be pickled: another process
    reads the files again, and makes sure that they are the same.

    Parameters
    ----------
    paths
        Of the files.
    device
        Where the potentials go; checked again wherever they are loaded.
    changes
        What is done differently from what the files say.

    Raises
    ------
    ModelFileError, InputError
        As for `load_committee`.
    """

    def __init__(self, paths: Sequence[Path], device: str, changes: Changes) -> None:
        self._files = sources(paths)
        self._device = device
        self._changes = changes
        self._loaded: dict[bool, Committee] = {}  # by whether the network runs in float64
        self._known = {tuple(paths): self}  # with those of other fidelities, once asked for; all know the same
        self.metadata = self.committee().metadata

    @property
    def paths(self) -> list[Path]:
        """Of the files."""
        return [file.path for file in self._files]

    def at(self, fidelity: int | str) -> Potentials:
        """The potentials of another fidelity, compiled beside these."""
        paths = tuple(locate_siblings(self.paths, fidelity))
        if paths not in self._known:
            other = Potentials(paths, self._device, self._changes)
            self._known[paths] = other
            other._known = self._known
        return self._known[paths]

    def committee(self, precise: bool = False) -> Committee:
        """The loaded potentials, in the wanted precision or, if `precise`, in float64."""
        double = precise or self._changes.double
        if double not in self._loaded:
            changes = self._changes._replace(double=double)
            self._loaded[double] = load_committee(self._files, checked_device(self._device), changes)
        return self._loaded[double]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_loaded": {}, "_known": {tuple(self.paths): self}}

    def __deepcopy__(self, memo: dict[int, Any]) -> Potentials:
        return self


def sources(paths: Sequence[Path]) -> tuple[Source, ...]:
    """The files with the digests of their present contents.

    Raises
    ------
    InputError
        Two of the files are the same.
    ModelFileError
        A file cannot be read.
    """
    found: dict[str, Path] = {}
    for path in paths:
        try:
            digest = file_digest(path)
        except OSError as error:
            raise ModelFileError(f"{path} cannot be read ({error.strerror}); give a file that is there") from None
        if digest in found:
            raise InputError(f"{path} and {found[digest]} are the same potential; give each member of an ensemble once")
        found[digest] = path
    return tuple(Source(path, digest) for digest, path in found.items())


def load_committee(files: Sequence[Source], device: torch.device, changes: Changes) -> Committee:
    """Load potentials, whose parameters need no gradient.

    Parameters
    ----------
    files
        Compiled potentials, or published AIMNet2 files of one network or several.
    device
        Where the tensors go.
    changes
        What is done differently from what the files say.

    Raises
    ------
    ModelFileError
        A file is missing, has changed, is damaged or not a potential.
    InputError
        The members do not belong together, or a change is not possible.
    """
    loaded: list[LoadedPotential] = []
    # tensors made in inference mode could never take part in a gradient
    with torch.inference_mode(False), one_thread_if_forked(), collection_paused():
        for path, digest in files:
            if not path.is_file() or file_digest(path) != digest:
                raise ModelFileError(f"{path} has changed or gone since this calculator was made; make a new one")
            loaded += _load(path, device)
        if changes.double:
            for member in loaded:
                member.module.to(torch.float64)
    for member in loaded:
        for parameter in member.module.parameters():
            parameter.requires_grad_(False)
        _apply(changes, member)
    methods = {_coulomb_method(head) for member in loaded for head in _coulomb(member.module)}
    metadata = _joint_metadata(loaded)
    with collection_paused():
        evaluator = evaluator_of(loaded, device, changes.double)
    modules = tuple(member.module for member in loaded)
    return Committee(modules, metadata, changes.double, frozenset(methods), changes.dispersion, device, evaluator)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _load(path: Path, device: torch.device) -> list[LoadedPotential]:
    if not is_foreign(path):
        return [load_potential(path, device)]
    from aimnet2mult.models.foreign import load_foreign  # with all that builds networks, which few users need

    return load_foreign(path, device)


def _joint_metadata(loaded: Sequence[LoadedPotential]) -> PotentialMetadata:
    """What holds for every member; refuses members that do not belong together."""
    first = loaded[0]
    for other in loaded[1:]:
        differing = [what for what, same in _agreement(first.metadata, other.metadata).items() if not same]
        if differing:
            raise InputError(
                f"{first.path} and {other.path} differ in their {differing[0]}; the members of an ensemble "
                "must predict the same quantity"
            )
    known = set.intersection(*(set(member.metadata.fidelity.elements) for member in loaded))
    fidelity = first.metadata.fidelity.model_copy(update={"elements": sorted(known)})
    if len(loaded) == 1:
        return first.metadata
    return first.metadata.model_copy(
        update={
            "fidelity": fidelity,
            "cutoff": max(member.metadata.cutoff for member in loaded),
            "num_charge_channels": min(member.metadata.num_charge_channels for member in loaded),
        }
    )


def _agreement(one: PotentialMetadata, other: PotentialMetadata) -> dict[str, bool]:
    level, name = one.fidelity.level_of_theory, one.fidelity.name.casefold()
    same_level = level is not None and level == other.fidelity.level_of_theory
    return {
        "fidelity": name == other.fidelity.name.casefold() or same_level,
        "dispersion": one.dispersion == other.dispersion,
        "labels (one set includes dispersion)": (
            one.fidelity.labels_include_dispersion == other.fidelity.labels_include_dispersion
        ),
    }


def _apply(changes: Changes, member: LoadedPotential) -> None:
    metadata = member.metadata
    if changes.dispersion is not None:
        method = changes.dispersion.method
        if metadata.fidelity.labels_include_dispersion:
            raise InputError(
                f"the energies that {member.path.name} was trained on include dispersion, which cannot be taken out; "
                f"leave dispersion={method!r} away"
            )
        if metadata.dispersion is not None and not changes.replace_dispersion:
            inside = f"{metadata.dispersion.method}, {metadata.dispersion.functional}"
            raise InputError(
                f"{member.path.name} holds dispersion already ({inside}), so that dispersion={method!r} would count it "
                "twice; use replace_dispersion=True to put it in the place of the one inside"
            )
        if metadata.dispersion is not None:
            _switch_off_dispersion(member)
    if changes.coulomb is not None:
        heads = _coulomb(member.module)
        if not heads:
            raise InputError(
                f"{member.path.name} has no long-range Coulomb energy; leave coulomb={changes.coulomb!r} away"
            )
        for head in heads:
            if not hasattr(head, "method"):
                raise _too_old(member, "the method of its Coulomb energy")
            head.method = changes.coulomb


def _switch_off_dispersion(member: LoadedPotential) -> None:
    module: Any = member.module
    terms = [term for term in module.terms.children() if hasattr(term, "active")]
    if not terms:
        raise _too_old(member, "its dispersion")
    for term in terms:
        term.active = False
    others = [term for term in module.terms.children() if getattr(term, "active", True)]
    module.term_cutoff = max((float(term.pair_cutoff) for term in others), default=0.0)  # no list for what is off


def _too_old(member: LoadedPotential, what: str) -> InputError:
    return InputError(f"{member.path.name} is too old to change {what}; compile it again from its weights")


def _coulomb(module: Any) -> list[Any]:
    return list(module.network.lrcoulomb.children())  # a scripted list that is empty cannot be iterated over


def _coulomb_method(head: nn.Module) -> str:
    return str(getattr(head, "method", "simple"))
