"""The ASE calculator of a compiled potential."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from aimnet2mult.calculators.evaluation import ase_results, evaluate, file_digest, load_for_evaluation
from aimnet2mult.calculators.inputs import (
    check_elements,
    checked_device,
    checked_geometry,
    spin_multiplicity,
    wanted_state,
    whole_multiplicity,
    whole_number,
)
from aimnet2mult.calculators.locate import locate, locate_sibling
from aimnet2mult.configs.metadata import PotentialMetadata
from aimnet2mult.errors import InputError, ModelFileError
from aimnet2mult.models.files import LoadedPotential

DTYPES = (None, "mixed", "float64")
PROPERTIES = ("energy", "free_energy", "forces", "charges", "magmom", "magmoms", "dipole")


class AIMNet2MultCalculator(Calculator):
    """Energies, forces, charges and spin charges of molecules from a compiled potential.

    ::

        from ase.build import molecule
        from aimnet2mult import AIMNet2MultCalculator

        atoms = molecule("CH3OH")
        atoms.calc = AIMNet2MultCalculator("compiled/model_fid0.jpt")
        atoms.get_forces()  # (N, 3) eV/Å

    Parameters
    ----------
    model
        A ``.jpt`` file; a folder that holds ``*_fid{N}.jpt``; or the prefix of such files, ``compiled/model``.
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

    Raises
    ------
    InputError
        An argument is wrong; later: a structure is wrong, has an element that this fidelity does not know, an
        impossible charge or multiplicity, or is periodic.
    ModelFileError
        The file is missing, damaged or not a potential of this package.

    Notes
    -----
    Results are Python floats and float64 arrays: ``energy`` and ``free_energy`` (the same) in eV, ``forces`` (N, 3)
    in eV/Å, ``charges`` (N,) in e, ``magmoms`` (N,), the spin charges, ``magmom``, their sum, and ``dipole`` (3,) in
    e Å, sum_i q_i (r_i - R) about the centre of mass R (standard atomic masses): for neutral molecules any other
    origin gives the same, for ions this one is the convention. Non-finite results raise ASE's `CalculationFailed`.

    A gradient is only computed when forces are asked for. Nothing is written into the Atoms. Calculators can be
    pickled (the file must then be where it was), copied, and shared by threads, which take turns.
    """

    # ASE reads these from the class and declares them without ClassVar
    name = "aimnet2mult"
    implemented_properties = list(PROPERTIES)  # noqa: RUF012
    default_parameters = {"charge": None, "mult": None}  # noqa: RUF012
    ignored_changes = {"cell", "initial_charges", "initial_magmoms"}  # noqa: RUF012

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        fidelity: int | str | None = None,
        charge: int | None = None,
        mult: int | None = None,
        device: str | torch.device | None = None,
        dtype: str | None = None,
    ) -> None:
        self._lock = threading.RLock()
        self._potential: LoadedPotential | None = None
        self._state: tuple[int, int | None] | None = None  # charge and multiplicity that the results are for
        super().__init__()
        if dtype not in DTYPES:
            raise InputError(f"unknown dtype {dtype!r}; use 'mixed' (float32 network, float64 energies) or 'float64'")
        self.parameters["device"] = str(checked_device(device))
        self.parameters["dtype"] = dtype or "mixed"
        self._use(locate(model, fidelity))
        self.set(charge=charge, mult=mult)

    @property
    def metadata(self) -> PotentialMetadata:
        """What the compiled potential says of itself."""
        return self._metadata

    @property
    def fidelity(self) -> int:
        """Number of the fidelity; can be set to the number or name of another one compiled beside it."""
        return self._metadata.fidelity.index

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
                self._use(locate_sibling(self._path, values.pop("fidelity")))
                changed = {"fidelity": self.fidelity} if self.fidelity != before else {}
            changed |= super().set(**values)
            if changed:
                self.reset()
        return changed

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation, charge and multiplicity included."""
        changes: list[str] = super().check_state(atoms, tol=tol)
        try:
            state = wanted_state(atoms.info, self.charge, self.mult)
        except InputError:
            state = None  # calculate() will say what is wrong
        return changes if state is not None and state == self._state else [*changes, "info"]

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """A result by its ASE name, computed if needed; threads that share the calculator take turns."""
        with self._lock:
            return super().get_property(name, atoms, allow_calculation)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute everything but forces, and these too when `properties` holds them.

        Raises
        ------
        InputError
            The structure, its charge or its multiplicity cannot be used.
        ase.calculators.calculator.CalculationFailed
            The potential stopped or gave results that are not finite.
        """
        with self._lock:
            atoms = self.atoms if atoms is None else atoms
            if atoms is None:
                raise InputError("there is no structure to calculate; attach the calculator to one")
            geometry = checked_geometry(atoms)
            check_elements(geometry.numbers, self._metadata)
            state = wanted_state(atoms.info, self.charge, self.mult)
            mult = spin_multiplicity(geometry.numbers, *state, self._metadata.num_charge_channels)
            module = self._loaded().module
            device = torch.device(self.parameters["device"])
            found = evaluate(module, geometry, state[0], mult, device, "forces" in properties)
            self.results = ase_results(found, geometry)
            self.atoms = atoms.copy()
            self._state = state

    def __getstate__(self) -> dict[str, Any]:
        # compiled programs cannot be pickled; each process reads the file again, and makes sure that it is the same
        state = {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_potential")}
        return state | {"parameters": copy.copy(self.parameters)}  # set() changes it in place

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()
        self._potential = None

    def __deepcopy__(self, memo: dict[int, Any]) -> AIMNet2MultCalculator:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        twin._potential = self._potential  # never changed once loaded, so copies share it
        return twin

    def _use(self, path: Path) -> None:
        digest = file_digest(path)
        loaded = self._load(path)
        self._path, self._digest = path, digest
        self._potential = loaded
        self._metadata = loaded.metadata
        self.parameters["model"] = str(path)
        self.parameters["fidelity"] = loaded.metadata.fidelity.index

    def _loaded(self) -> LoadedPotential:
        if self._potential is None:
            if not self._path.is_file() or file_digest(self._path) != self._digest:
                raise ModelFileError(f"{self._path} has changed or gone since this calculator was made; make a new one")
            self._potential = self._load(self._path)
        return self._potential

    def _load(self, path: Path) -> LoadedPotential:
        device = checked_device(self.parameters["device"])  # again: a pickled calculator may wake up elsewhere
        return load_for_evaluation(path, device, self.parameters["dtype"] == "float64")
