"""Checks of what a calculator is given; each fault is an `InputError` of one sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from aimnet2mult.calculators.locate import describe
from aimnet2mult.configs.metadata import PotentialMetadata
from aimnet2mult.errors import InputError

MAX_ATOMIC_NUMBER = 118
CLOSEST = 0.3  # Å; no two nuclei of a molecule come nearer
WHOLE = 1e-6  # charges that went through a file may carry this much rounding


class Geometry(NamedTuple):
    """A checked molecule."""

    coord: NDArray[np.float64]  # (N, 3) Å, contiguous, own memory
    numbers: NDArray[np.int64]  # (N,)


def checked_geometry(atoms: Atoms) -> Geometry:
    """Positions and atomic numbers of `atoms`, in native float64 and int64 whatever they are stored in.

    Raises
    ------
    InputError
        There are no atoms, a position is not finite, an atomic number is not 1 to 118, two atoms are
        nearer than 0.3 Å, or the structure is periodic.
    """
    if len(atoms) == 0:
        raise InputError("the structure has no atoms")
    if np.any(atoms.pbc):
        raise InputError("periodic systems are not supported by this version; set atoms.pbc = False for a molecule")
    coord = np.array(atoms.positions, dtype=np.float64, order="C")
    numbers = np.array(atoms.numbers, dtype=np.int64)
    wrong = np.flatnonzero(~np.isfinite(coord).all(axis=1))
    if wrong.size:
        raise InputError(f"the position of atom {wrong[0]} is not finite: {coord[wrong[0]].tolist()}")
    wrong = np.flatnonzero((numbers < 1) | (numbers > MAX_ATOMIC_NUMBER))
    if wrong.size:
        raise InputError(
            f"atom {wrong[0]} has atomic number {numbers[wrong[0]]}; elements are 1 to {MAX_ATOMIC_NUMBER}"
        )
    near = cKDTree(coord).query_pairs(CLOSEST)
    if near:
        i, j = min(near)
        distance = float(np.linalg.norm(coord[i] - coord[j]))
        raise InputError(f"atoms {i} and {j} are {distance:.3f} Å apart; at least {CLOSEST} Å are needed")
    return Geometry(coord, numbers)


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
        It is not a number, not finite or not whole.
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise InputError(f"{what} must be a whole number, not {value!r}")
    if not math.isfinite(value) or abs(value - round(value)) > WHOLE:
        raise InputError(f"{what} must be a whole number, not {value}")
    return round(float(value))


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
        ``atoms.info``; its ``"charge"``, ``"mult"`` and ``"spin"`` count, both of the latter being 2S + 1.
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
    for key in ("mult", "spin"):
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
