"""Parameters of rational damping, shared by D3(BJ) and D4: what they are, and which values make sense.

Annotations are real here (no postponed evaluation), because TorchScript reads those of `DampingParameters`.
"""

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

from aimnet2mult.errors import ConfigError

# sqrt(C8 / C6) of the softest (He-He) and hardest (Cs-Cs) pair of elements, Bohr: between them lie all pairs
_C8_C6_ROOT_RANGE: Final = (2.7, 20.5)


class DampingParameters(NamedTuple):
    """Parameters of the energy expressions in `aimnet2mult.physics.d3_energy` and `aimnet2mult.physics.d4_energy`."""

    s6: float
    s8: float
    a1: float
    a2: float  # Bohr
    s9: float  # scale of the three-body term, 0: two-body only


class Resolved(NamedTuple):
    """Parameters and what has to be recorded or said about them."""

    parameters: DampingParameters
    functional: str  # 'pbe0', 'dftd3:blyp', 'dftd4:pbe0' or 'custom'
    reference: str  # where the values come from
    warnings: tuple[str, ...]


def normalised(name: str) -> str:
    """Name of a functional without case, '-' and '_': names match exactly after that."""
    return name.strip().lower().replace("-", "").replace("_", "")


def given_by_hand(method: str, values: Mapping[str, float | None]) -> dict[str, float]:
    """The values that are not None, checked.

    Raises
    ------
    ConfigError
        A value is not a finite number, or is negative where that makes no sense.
    """
    return {key: _checked(method, key, value) for key, value in values.items() if value is not None}


def merged(method: str, row: Mapping[str, float], given: Mapping[str, float], functional: str) -> DampingParameters:
    """A row with the values given by hand in place of its own.

    Raises
    ------
    ConfigError
        Some pair of elements would not be damped.
    """
    values = {**row, **given}
    parameters = DampingParameters(*(values[key] for key in DampingParameters._fields))
    if any(parameters.a1 * root + parameters.a2 <= 0.0 for root in _C8_C6_ROOT_RANGE):
        raise ConfigError(
            f"{method} parameters a1={parameters.a1:g} and a2={parameters.a2:g} of functional {functional!r} give a "
            "damping radius a1 sqrt(C8/C6) + a2 that is not positive; increase a1 or a2"
        )
    return parameters


def with_changes(reference: str, given: Mapping[str, float]) -> str:
    """The source of a row, and which values are not its own."""
    if not given:
        return reference
    return f"{reference}; set by hand: {', '.join(f'{key}={value:g}' for key, value in given.items())}"


def _checked(method: str, key: str, value: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{method} parameter {key} must be a number, not {value!r}") from error
    if not math.isfinite(number):
        raise ConfigError(f"{method} parameter {key} must be finite, not {number}")
    if number < 0.0 and key != "a1":
        raise ConfigError(f"{method} parameter {key} must not be negative, but is {number:g}")
    return number
