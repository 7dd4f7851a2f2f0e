"""The elements that a dispersion correction has data for, chosen from tables over the periodic table."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor

from aimnet2mult.errors import ConfigError

_MAX_NUMBER: Final = len(chemical_symbols) - 1


class ChosenElements(NamedTuple):
    """Elements of a potential, in rising order."""

    numbers: NDArray[np.int64]  # (S,) atomic numbers
    place: NDArray[np.int64]  # (Zmax + 1,) where each atomic number stands among them, -1 where it does not


def choose_elements(elements: Sequence[int], known: int, method: str) -> ChosenElements:
    """The elements of a potential among those of the tables.

    Parameters
    ----------
    elements
        Atomic numbers, in any order.
    known
        The tables go from hydrogen to this atomic number.
    method
        'D3' or 'D4', for messages.

    Raises
    ------
    ConfigError
        There is no element, or one has no data.
    """
    chosen = np.unique(np.asarray(elements, dtype=np.int64))
    beyond = chosen[(chosen < 1) | (chosen > known)]
    if len(chosen) == 0 or len(beyond) > 0:
        names = [chemical_symbols[z] if 0 < z <= _MAX_NUMBER else f"Z={z}" for z in beyond]
        raise ConfigError(
            f"{method} dispersion has no data for {', '.join(names) or 'a model without elements'}, only for H to "
            f"{chemical_symbols[known]}; use no dispersion for this model"
        )
    place = np.full(_MAX_NUMBER + 1, -1, dtype=np.int64)
    place[chosen] = np.arange(len(chosen))
    return ChosenElements(chosen, place)


def check_elements_known(numbers: Tensor, place: Tensor) -> None:
    """Refuse atoms that a correction was not made for; can be called from TorchScript.

    Parameters
    ----------
    numbers
        (B, N) int64 atomic numbers, 0 = padding.
    place
        (Zmax + 1,) of `ChosenElements`.

    Raises
    ------
    ValueError
        Names the first unknown atomic number.
    """
    in_table = numbers.clamp(0, place.shape[0] - 1)
    unknown = (numbers != in_table) | ((place[in_table] < 0) & (numbers != 0))
    if bool(unknown.any()):
        first = str(int(numbers[unknown][0]))
        raise ValueError("dispersion: element with Z = " + first + " is not among those of this potential")
