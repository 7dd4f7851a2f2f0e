"""The ASE calculator of compiled potentials."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.outputs import Properties, all_outputs
from numpy.typing import NDArray

from aimnet2mult.calculators.batch import checked_systems, evaluate_batches
from aimnet2mult.calculators.cautions import Cautions
from aimnet2mult.calculators.evaluation import Evaluation, evaluate
from aimnet2mult.calculators.fidelities import Fidelities, all_fidelities
from aimnet2mult.calculators.hessian import hessian
from aimnet2mult.calculators.inputs import (
    check_defined,
    checked_device,
    checked_system,
    geometry_changes,
    wanted_state,
    whole_multiplicity,
    whole_number,
)
from aimnet2mult.calculators.locate import locate
from aimnet2mult.calculators.members import COULOMB_METHODS, Changes, Potentials
from aimnet2mult.calculators.neighbors import VerletLists
from aimnet2mult.calculators.preparation import Prepared, look_up
from aimnet2mult.calculators.reference import door, listed
from aimnet2mult.calculators.results import ase_results
from aimnet2mult.calculators.runtime_dispersion import RuntimeDispersion
from aimnet2mult.calculators.torch_modes import own_settings
from aimnet2mult.configs.metadata import PotentialMetadata
from aimnet2mult.errors import InputError

if TYPE_CHECKING:
    from aimnet2mult.calculators.vibrations import Vibrations

DTYPES = (None, "mixed", "float64")
PROPERTIES = ("energy", "free_energy", "forces", "stress", "charges", "magmom", "magmoms", "dipole")
DEVIATIONS = ("energy_std", "forces_std")
Model = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class AIMNet2MultCalculator(Calculator):
    """Energies, forces, stress, charges and spin charges of molecules and periodic systems from compiled potentials.

    ::

        from ase.build import molecule
        from aimnet2mult import AIMNet2MultCalculator

        atoms = molecule("CH3OH")
        atoms.calc = AIMNet2MultCalculator("compiled/model_fid0.jpt")
        atoms.get_forces()  # (N, 3) eV/Å

    Parameters
    ----------
    model
        A ``.jpt`` file, compiled by this package or a published AIMNet2 one; a folder that holds ``*_fid{N}.jpt``;
        or the prefix of such files, ``compiled/model``. An ensemble is a list of files, a pattern as
        ``models/model_*_fid0.jpt``, a folder with several files of the fidelity, or a published file of several
        networks: results are means over its members.
    fidelity
        Number or name of the fidelity; needed where `model` offers several, and checked where it is one file.
        Setting ``calc.fidelity`` later switches to the file of that fidelity beside it.
    charge
        Charge in e of every structure. None: ``atoms.info["charge"]`` of each, else 0.
    mult
        Spin multiplicity 2S + 1 of every structure. None: ``atoms.info["mult"]`` or ``atoms.info["spin"]`` (the
        multiplicity too, not the number of unpaired electrons), else singlet or doublet by the electron count.
    device
        ``"cpu"``, ``"cuda"`` or ``"cuda:N"``. None: the GPU if there is one.
    dtype
        None or ``"mixed"``: network in float32, displacements and energies in float64. ``"float64"``: everything,
        for vibrations by finite differences and other needs of smoothness below 1e-5 eV/Å.
    dispersion
        ``"d3bj"`` or ``"d4"``: added by the dftd3 or dftd4 package. Refused where the potential holds dispersion
        already, unless it is to be replaced, and where its training energies include dispersion.
    functional
        Whose dispersion parameters are used, as for ``--dispersion-functional`` of the compilation; goes with
        `dispersion`.
    replace_dispersion
        Switch the dispersion inside the potential off.
    coulomb
        ``"simple"``, ``"dsf"`` or ``"ewald"``: method of the long-range Coulomb energy. None: as compiled. In a cell
        that is periodic in all directions ``"simple"`` is the Ewald sum too; systems that are periodic in one or two
        directions need ``"dsf"``.

    Raises
    ------
    InputError
        An argument is wrong; later: a structure is wrong, has an element that this fidelity does not know, or an
        impossible charge or multiplicity.
    ModelFileError
        The file is missing, damaged or not a potential.

    Notes
    -----
    Results are Python floats and float64 arrays: ``energy`` and ``free_energy`` (the same) in eV, ``forces`` (N, 3)
    in eV/Å, ``stress`` (6,) in eV/Å^3 in ASE's order xx, yy, zz, yz, xz, xy (only where all three directions are
    periodic), ``charges`` (N,) in e, ``magmoms`` (N,), the spin charges, ``magmom``, their sum, and ``dipole`` (3,)
    in e Å, sum_i q_i (r_i - R) about the centre of mass R (standard atomic masses): for neutral molecules any other
    origin gives the same, for ions this one is the convention. The dipole of a periodic system is not defined and not
    among its results. An ensemble has further ``energy_std`` and ``forces_std``, sample standard deviations
    (n - 1) over its members. Potentials that know what they were trained on give ``novelty``: above 1 a structure lies
    outside of that, and a `NoveltyWarning` says so once. Non-finite results raise ASE's `CalculationFailed`.

    Only what is asked for is computed: a gradient for forces, and the strain for stress. Nothing is written into the
    Atoms. Calculators can be pickled (the file must then be where it was), copied, and shared by threads, which take
    turns.
    """

    # ASE reads these from the class and declares them without ClassVar
    name = "aimnet2mult"
    implemented_properties = list(PROPERTIES)  # noqa: RUF012
    default_parameters = {  # noqa: RUF012
        "charge": None,
        "mult": None,
        "dispersion": None,
        "functional": None,
        "replace_dispersion": False,
        "coulomb": None,
    }
    ignored_changes = {"initial_charges", "initial_magmoms"}  # noqa: RUF012

    def __init__(
        self,
        model: Model,
        *,
        fidelity: int | str | None = None,
        charge: int | None = None,
        mult: int | None = None,
        device: str | torch.device | None = None,
        dtype: str | None = None,
        dispersion: str | None = None,
        functional: str | None = None,
        replace_dispersion: bool = False,
        coulomb: str | None = None,
    ) -> None:
        self._lock = threading.RLock()
        self._verlet = VerletLists()
        self._state: tuple[int, int | None] | None = None  # charge and multiplicity that the results are for
        self._cautions = Cautions()
        super().__init__()
        if dtype not in DTYPES:
            raise InputError(f"unknown dtype {dtype!r}; use 'mixed' (float32 network, float64 energies) or 'float64'")
        if coulomb is not None and coulomb not in COULOMB_METHODS:
            raise InputError(f"unknown coulomb {coulomb!r}; use 'simple', 'dsf' or 'ewald'")
        if dispersion is None and (functional is not None or replace_dispersion):
            given = "functional" if functional is not None else "replace_dispersion"
            raise InputError(f"{given} goes with dispersion='d3bj' or 'd4'; give one of these or leave it out")
        extra = None if dispersion is None else RuntimeDispersion(dispersion, functional)
        self.parameters |= {
            "device": str(checked_device(device)),
            "dtype": dtype or "mixed",
            "dispersion": dispersion,
            "functional": functional,
            "replace_dispersion": replace_dispersion,
            "coulomb": coulomb,
        }
        changes = Changes(dtype == "float64", coulomb, extra, replace_dispersion)
        self._use(Potentials(locate(model, fidelity), self.parameters["device"], changes))
        self.set(charge=charge, mult=mult)

    @property
    def metadata(self) -> PotentialMetadata:
        """What the compiled potential says of itself; for an ensemble what holds for all its members."""
        return self._potentials.metadata

    @property
    def fidelity(self) -> int:
        """Number of the fidelity; can be set to the number or name of another one compiled beside it."""
        return self._potentials.metadata.fidelity.index

    @fidelity.setter
    def fidelity(self, value: int | str) -> None:
        self.set(fidelity=value)

    @property
    def charge(self) -> int | None:
        """Charge given to the calculator, None if left to each structure."""
        return self.parameters["charge"]

    @charge.setter
    def charge(self, value: int | None) -> None:
        self.set(charge=value)

    @property
    def mult(self) -> int | None:
        """Spin multiplicity given to the calculator, None if left to each structure."""
        return self.parameters["mult"]

    @mult.setter
    def mult(self, value: int | None) -> None:
        self.set(mult=value)

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Change `charge`, `mult` or `fidelity`; cached results are dropped when a value differs.

        Raises
        ------
        InputError
            Another name, or a wrong value; nothing is changed then.
        """
        for key in kwargs:
            if key not in ("charge", "mult", "fidelity"):
                raise InputError(f"{key!r} cannot be set; charge, mult and fidelity can, else make a new calculator")
        values = dict(kwargs)
        if values.get("charge") is not None:
            values["charge"] = whole_number(values["charge"], "charge")
        if values.get("mult") is not None:
            values["mult"] = whole_multiplicity(values["mult"], "mult")
        with self._lock:
            changed: dict[str, Any] = {}
            if "fidelity" in values:
                before = self.fidelity
                self._use(self._potentials.at(values.pop("fidelity")))
                changed = {"fidelity": self.fidelity} if self.fidelity != before else {}
            changed |= super().set(**values)
            if changed:
                self.reset()
        return changed

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation, charge and multiplicity included."""
        changes = list(all_changes) if self.atoms is None else geometry_changes(self.atoms, atoms, tol)
        try:
            state = wanted_state(atoms.info, self.charge, self.mult)
        except InputError:
            state = None  # calculate() will say what is wrong
        return changes if state is not None and state == self._state else [*changes, "info"]

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """A result by its ASE name, computed if needed; threads that share the calculator take turns."""
        with self._lock:
            return super().get_property(name, atoms, allow_calculation)

    def export_properties(self) -> Properties:
        """The results that ASE has a name for."""
        return Properties({name: value for name, value in self.results.items() if name in all_outputs})

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute everything but forces and stress, and these too when `properties` holds them.

        Raises
        ------
        InputError
            The structure, its charge or its multiplicity cannot be used, or the property is not defined for it.
        ase.calculators.calculator.CalculationFailed
            The potential stopped or gave results that are not finite.
        """
        with self._lock:
            atoms = self._structure(atoms)
            system = checked_system(atoms, self.charge, self.mult, self._potentials.metadata)
            check_defined(properties, system)
            forces = bool({"forces", "forces_std", "stress"} & {*properties})
            stress = forces and system.n_periodic == 3  # optimisers and barostats want both: one pass, little more work
            committee = self._potentials.committee()
            self._cautions.before([system], committee)
            around = look_up(system, committee, self._verlet)
            with committee.lock:
                (found,) = evaluate(committee.evaluator, [system], [around], committee.dispersion, stress, forces)
            self._cautions.after([found], committee)
            self.results = ase_results(found, system)
            self.atoms = atoms.copy()
            self._state = wanted_state(atoms.info, self.charge, self.mult)

    def evaluate(
        self, structures: Sequence[Atoms], *, forces: bool = True, stress: bool = False, memory: int | None = None
    ) -> list[Evaluation]:
        """Many structures at once, batched by size: much quicker for small ones than one after another.

        Parameters
        ----------
        structures
            Molecules and periodic systems of any sizes; charge and multiplicity as for single calculations.
        forces, stress
            Whether to compute these too; a stress needs structures that are periodic in all directions.
        memory
            Bytes that one batch may take, roughly; a structure that needs more makes a batch of its own. None: 128 MiB
            on a CPU, half of what is free on a GPU.

        Returns
        -------
        list of Evaluation
            In the order of `structures`, equal to single calculations but for rounding. Results of the calculator
            itself stay as they are.

        Raises
        ------
        InputError
            A structure cannot be used; the message starts with its place in the list.
        ase.calculators.calculator.CalculationFailed
            The potential stopped or gave results that are not finite.
        """
        with self._lock:
            committee = self._potentials.committee()
            with_stress = ["stress"] if stress else []
            systems = checked_systems(structures, self.charge, self.mult, self.metadata, with_stress)
            self._cautions.before(systems, committee)
            found = evaluate_batches(committee, systems, stress, forces, memory)
            self._cautions.after(found, committee)
            return found

    def all_fidelities(self, atoms: Atoms) -> Fidelities:
        """Energy, forces and charges at every fidelity compiled beside this one, and their spread.

        Total energies of different fidelities may differ by much more than what chemistry depends on: their spread
        says something where differences of energies, or forces, are compared.

        Raises
        ------
        InputError
            No fidelity can be asked about this structure.
        """
        with self._lock:
            return all_fidelities(self._potentials, atoms, self.charge, self.mult)

    def get_hessian(self, atoms: Atoms | None = None) -> NDArray[np.float64]:
        """Second derivatives of the energy, (3N, 3N) in eV/Å^2, exact and in float64 whatever `dtype` is.

        Raises
        ------
        InputError
            The structure cannot be used.
        ase.calculators.calculator.CalculationFailed
            A potential stopped, or cannot be differentiated twice for this structure.
        """
        return hessian(self._prepared(atoms))

    def get_vibrations(self, atoms: Atoms | None = None) -> Vibrations:
        """Harmonic vibrations, infrared intensities and thermochemistry of a relaxed structure, from its Hessian.

        Raises
        ------
        InputError
            The structure cannot be used, or no atom can move.
        ase.calculators.calculator.CalculationFailed
            As for `get_hessian`.
        """
        from aimnet2mult.calculators.vibrations import vibrations_of  # with ASE's, which imports matplotlib

        return vibrations_of(self._structure(atoms), self._prepared(atoms))

    def _prepared(self, atoms: Atoms | None = None) -> Prepared:
        """A structure and all that its energy is made of, in float64."""
        with self._lock:
            system = checked_system(self._structure(atoms), self.charge, self.mult, self._potentials.metadata)
            committee = self._potentials.committee(precise=True)
            self._cautions.before([system], committee)
            around = look_up(system, committee, self._verlet)
            with own_settings(committee.device, False):
                data = door([system], listed([around]), committee.device)
        return Prepared(committee.modules, data, system, committee.dispersion, committee.lock)

    def _structure(self, atoms: Atoms | None) -> Atoms:
        chosen: Atoms | None = self.atoms if atoms is None else atoms
        if chosen is None:
            raise InputError("there is no structure to calculate; attach the calculator to one")
        return chosen

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_verlet")}
        # set() changes the one in place, warnings the other
        return state | {"parameters": copy.copy(self.parameters), "_cautions": copy.copy(self._cautions)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
        self._verlet = VerletLists()

    def _use(self, potentials: Potentials) -> None:
        self._potentials = potentials
        names = [str(path) for path in potentials.paths]
        self.parameters["model"] = names[0] if len(names) == 1 else names
        self.parameters["fidelity"] = potentials.metadata.fidelity.index
        several = len(potentials.committee().modules) > 1
        self.implemented_properties = [*PROPERTIES, *(DEVIATIONS if several else ())]
