"""Checks of what a calculator is given; each fault is an `InputError` of one sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from ase.data import chemical_symbols
from ase.geometry import minkowski_reduce
from numpy.typing import NDArray

from aimnet2mult.calculators.locate import describe
from aimnet2mult.configs.metadata import PotentialMetadata
from aimnet2mult.errors import InputError
from aimnet2mult.physics.lattice import dual_vectors, mapped

MAX_ATOMIC_NUMBER = 118
CLOSEST = 0.3  # Å; no two nuclei of a molecule come nearer
FARTHEST = 1e6  # Å from the origin, where positions still have ten digits behind the point
FLATTEST = 1e-6  # volume of the cell over the product of its edges
FEW = 50  # atoms of which all pairs are looked at, in 50 us; beyond, a tree is quicker
WHOLE = 1e-6  # charges that went through a file may carry this much rounding
LARGEST = 10**9  # beyond every charge and multiplicity, and short enough for a message


class UndefinedPropertyError(InputError, PropertyNotImplementedError):
    """A property that does not exist for this structure; ASE's own tools know it as not implemented."""


class System(NamedTuple):
    """A checked structure with its charge and multiplicity."""

    coord: NDArray[np.float64]  # (N, 3) Å, contiguous, own memory
    numbers: NDArray[np.int64]  # (N,)
    cell: NDArray[np.float64]  # (3, 3) Å, one cell vector per row; zeros in directions that are not periodic
    charge: int  # e
    mult: int  # 2S + 1

    @property
    def n_periodic(self) -> int:
        """Number of periodic directions."""
        return int(self.cell.any(axis=1).sum())

    @property
    def volume(self) -> float:
        """Å^3 of a cell that is periodic in all directions, otherwise 0."""
        return abs(float(np.linalg.det(self.cell)))


def checked_system(atoms: Atoms, charge: int | None, mult: int | None, metadata: PotentialMetadata) -> System:
    """A structure that a potential can be asked about.

    Parameters
    ----------
    atoms
        The structure; stays as it is.
    charge, mult
        Arguments of the calculator, None where not given.
    metadata
        Of the potential.

    Raises
    ------
    InputError
        There are no atoms, a position or the cell is not finite, an atomic number is not 1 to 118 or unknown to the
        potential, two atoms are nearer than 0.3 Å, the cell is flat, or charge and multiplicity are impossible.
    """
    if len(atoms) == 0:
        raise InputError("the structure has no atoms")
    coord = np.array(atoms.positions, dtype=np.float64, order="C")
    numbers = np.array(atoms.numbers, dtype=np.int64)
    if not np.isfinite(coord).all():
        first = int(np.flatnonzero(~np.isfinite(coord).all(axis=1))[0])
        raise InputError(f"the position of atom {first} is not finite: {coord[first].tolist()}")
    if np.abs(coord).max() > FARTHEST:
        first = int(np.abs(coord).max(axis=1).argmax())
        raise InputError(
            f"the position of atom {first} is {coord[first].tolist()} Å; positions "
            f"may reach {FARTHEST:.0e} Å, so move the structure to the origin"
        )
    if numbers.min() < 1 or numbers.max() > MAX_ATOMIC_NUMBER:
        first = int(np.flatnonzero((numbers < 1) | (numbers > MAX_ATOMIC_NUMBER))[0])
        raise InputError(f"atom {first} has atomic number {numbers[first]}; elements are 1 to {MAX_ATOMIC_NUMBER}")
    cell = periodic_cell(atoms)
    _check_distinct(coord, cell)
    check_elements(numbers, metadata)
    total, wanted = wanted_state(atoms.info, charge, mult)
    return System(coord, numbers, cell, total, spin_multiplicity(numbers, total, wanted, metadata.num_charge_channels))


def periodic_cell(atoms: Atoms) -> NDArray[np.float64]:
    """Cell vectors (3, 3) in Å, with zero rows in directions that are not periodic.

    Raises
    ------
    InputError
        A vector of a periodic direction is zero or not finite, or the vectors do not span their directions.
    """
    periodic = np.asarray(atoms.pbc, dtype=bool)
    if not periodic.any():
        return np.zeros((3, 3))
    cell = np.array(atoms.cell.array, dtype=np.float64)
    cell[~periodic] = 0.0
    if not np.isfinite(cell).all():
        raise InputError(f"the cell is not finite: {cell.tolist()}")
    lengths = np.linalg.norm(cell, axis=1)
    missing = np.flatnonzero(periodic & (lengths == 0.0))
    if missing.size:
        name = "abc"[missing[0]]
        raise InputError(f"the cell vector {name} is zero but pbc asks for periodicity along it; set one of them right")
    directions = cell[periodic] / lengths[periodic, None]
    if np.sqrt(max(np.linalg.det(directions @ directions.T), 0.0)) < FLATTEST:
        raise InputError(f"the cell vectors are not independent, so that the cell has no volume: {cell.tolist()}")
    # before neighbours are looked up, whose number is boundless in a cell without extent
    if _is_thin(cell, periodic):
        shortest = float(np.linalg.norm(minkowski_reduce(cell, periodic)[0][periodic], axis=1).min())
        if shortest < CLOSEST:
            raise too_near(0, 0, shortest, images=True)
    return cell


def _is_thin(cell: NDArray[np.float64], periodic: NDArray[np.bool_]) -> bool:
    """Whether a lattice vector may be too short: none is shorter than the least height of the cell."""
    return bool((np.linalg.norm(dual_vectors(cell), axis=0)[periodic] * CLOSEST > 1.0).any())


def geometry_changes(before: Atoms, after: Atoms, tolerance: float) -> list[str]:
    """Which of ASE's inputs of a calculation differ; a cell counts where it is periodic only.

    ASE's own comparison takes a tenth of the time of a small molecule's energy and forces.
    """
    pbc = np.asarray(after.pbc)
    pairs = {
        "positions": (before.arrays["positions"], after.arrays["positions"]),
        "numbers": (before.arrays["numbers"], after.arrays["numbers"]),
        "cell": (before.cell.array[pbc], after.cell.array[pbc]),
    }
    changes = [name for name, (a, b) in pairs.items() if a.shape != b.shape or not (np.abs(a - b) <= tolerance).all()]
    return changes if (np.asarray(before.pbc) == pbc).all() else [*changes, "pbc"]


def check_defined(properties: Sequence[str], system: System) -> None:
    """Refuse properties that do not exist for a structure.

    Raises
    ------
    UndefinedPropertyError
        The stress of what is not periodic in all directions, or the dipole of what is in some.
    """
    n = system.n_periodic
    if "stress" in properties and n < 3:
        what = "a molecule" if n == 0 else f"a system that is periodic in {n} of 3 directions"
        raise UndefinedPropertyError(f"the stress of {what} is not defined; set pbc and a cell in all three directions")
    if "dipole" in properties and n > 0:
        raise UndefinedPropertyError("the dipole of a periodic system is not defined; set pbc to False for a molecule")


def too_near(first: int, second: int, distance: float, images: bool) -> InputError:
    """The error about two atoms, or images of atoms, that all but coincide."""
    if images and first == second:
        return InputError(f"atom {first} and its own image are {distance:.5f} Å apart; at least {CLOSEST} Å are needed")
    who = f"atom {first} and an image of atom {second}" if images else f"atoms {first} and {second}"
    return InputError(f"{who} are {distance:.5f} Å apart; at least {CLOSEST} Å are needed")


def _check_distinct(coord: NDArray[np.float64], cell: NDArray[np.float64]) -> None:
    """Refuse atoms that coincide; those on two sides of a cell face are seen when neighbours are looked up."""
    if cell.any():
        coord = coord - mapped(np.floor(mapped(coord, dual_vectors(cell))), cell)
    near = _near_pairs(coord) if len(coord) <= FEW else _near_pairs_of_many(coord)
    if near:
        i, j = min(near)
        raise too_near(i, j, float(np.linalg.norm(coord[i] - coord[j])), images=False)


def _near_pairs(coord: NDArray[np.float64]) -> set[tuple[int, int]]:
    apart = coord[:, None] - coord
    first, second = np.nonzero(np.einsum("ijc,ijc->ij", apart, apart) <= CLOSEST**2)
    return {(i, j) for i, j in zip(first.tolist(), second.tolist(), strict=True) if i < j}


def _near_pairs_of_many(coord: NDArray[np.float64]) -> set[tuple[int, int]]:
    from scipy.spatial import cKDTree  # takes a quarter of a second

    return cKDTree(coord).query_pairs(CLOSEST)


def check_elements(numbers: NDArray[np.int64], metadata: PotentialMetadata) -> None:
    """Refuse elements that this fidelity was not trained on.

    Raises
    ------
    InputError
        Names the elements, those that are known, and the other fidelities that know them.
    """
    missing = set(numbers.tolist()) - set(metadata.fidelity.elements)
    if not missing:
        return
    others = [info for info in metadata.all_fidelities if missing <= set(info.elements)]
    them = "it" if len(missing) == 1 else "them"
    if len(others) == 1:
        advice = f"fidelity {describe(others[0])} knows {them}"
    elif others:
        advice = f"fidelities {', '.join(describe(info) for info in others)} know {them}"
    else:
        advice = f"no fidelity of this model knows {them}"
    raise InputError(
        f"this potential knows {_symbols(metadata.fidelity.elements)} (fidelity {describe(metadata.fidelity)}); "
        f"the structure holds {_symbols(missing)}; {advice}"
    )


def whole_number(value: object, what: str) -> int:
    """A charge or multiplicity as an integer; `what` is its name in messages.

    Raises
    ------
    InputError
        It is not a number, not finite, not whole, or larger than that of anything.
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise InputError(f"{what} must be a whole number, not {value!r}")
    # whole numbers of Python know no limit, and those beyond 1e308 cannot become floats
    number = value if isinstance(value, int) else float(value)
    if LARGEST < abs(number) < math.inf:
        raise InputError(f"{what} is out of all bounds: a whole number within ±{LARGEST:,} is wanted")
    if not math.isfinite(number) or abs(number - round(number)) > WHOLE:
        raise InputError(f"{what} must be a whole number, not {value}")
    return round(number)


def whole_multiplicity(value: object, what: str) -> int:
    """A multiplicity 2S + 1 as an integer of at least 1.

    Raises
    ------
    InputError
        It is not whole or below 1.
    """
    mult = whole_number(value, what)
    if mult < 1:
        raise InputError(f"{what} is {mult}; a spin multiplicity 2S + 1 is 1 (singlet), 2 (doublet) or more")
    return mult


def wanted_state(info: Mapping[Any, Any], charge: int | None, mult: int | None) -> tuple[int, int | None]:
    """Charge and multiplicity that calculator and ``atoms.info`` ask for together.

    Parameters
    ----------
    info
        ``atoms.info``; its ``"charge"`` counts, and ``"mult"``, ``"multiplicity"`` or ``"spin"``, all three 2S + 1.
        A value of None is the same as none at all.
    charge, mult
        Arguments of the calculator, None where not given.

    Returns
    -------
    tuple
        Charge (0 where nobody says) and multiplicity (None where nobody says).

    Raises
    ------
    InputError
        A value is malformed, or two of them contradict each other.
    """
    charges = {} if charge is None else {"charge= of the calculator": charge}
    if info.get("charge") is not None:
        charges["atoms.info['charge']"] = whole_number(info["charge"], "atoms.info['charge']")
    mults = {} if mult is None else {"mult= of the calculator": mult}
    for key in ("mult", "multiplicity", "spin"):
        if info.get(key) is not None:
            mults[f"atoms.info[{key!r}]"] = whole_multiplicity(info[key], f"atoms.info[{key!r}]")
    return _agreed(charges) or 0, _agreed(mults)


def spin_multiplicity(numbers: NDArray[np.int64], charge: int, mult: int | None, n_channels: int) -> int:
    """Multiplicity of a molecule, checked against its electrons; singlet or doublet where `mult` is None.

    Raises
    ------
    InputError
        Charge and multiplicity are impossible for this structure, or the network is for closed shells only.
    """
    protons = int(numbers.sum())
    electrons = protons - charge
    if abs(charge) > protons:
        raise InputError(f"charge={charge} is impossible for this structure: it has {protons} protons")
    if mult is None:
        mult = 1 + electrons % 2
    elif (electrons + mult) % 2 == 0:
        parity = "an odd" if mult % 2 == 0 else "an even"
        raise InputError(f"mult={mult} needs {parity} number of electrons; this structure has {electrons}")
    if mult - 1 > electrons:
        raise InputError(f"mult={mult} needs {mult - 1} unpaired electrons; this structure has {electrons} in all")
    if n_channels == 1 and mult > 1:
        raise InputError(
            f"this potential is for closed shells only; the structure has mult={mult} ({electrons} electrons), "
            "use a potential with num_charge_channels: 2"
        )
    return mult


def checked_device(device: str | torch.device | None) -> torch.device:
    """The device of a name; None means the first GPU if there is one, else the CPU.

    Raises
    ------
    InputError
        The name is unknown or this machine has no such device.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    match = re.fullmatch(r"cpu|cuda(?::(\d+))?", str(device))
    if match is None:
        raise InputError(f"unknown device {str(device)!r}; use 'cpu', 'cuda' or 'cuda:0'")
    if str(device) == "cpu":
        return torch.device("cpu")
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(match[1] or 0) >= n_gpus:
        raise InputError(f"device {str(device)!r} is not there: PyTorch sees {n_gpus} GPUs on this machine")
    return torch.device(str(device))


def _agreed(values: Mapping[str, int]) -> int | None:
    if len(set(values.values())) > 1:
        said = " but ".join(f"{name} is {value}" for name, value in values.items())
        raise InputError(f"{said}; remove one of them")
    return next(iter(values.values()), None)


def _symbols(numbers: set[int] | list[int]) -> str:
    return " ".join(chemical_symbols[z] for z in sorted(numbers))
