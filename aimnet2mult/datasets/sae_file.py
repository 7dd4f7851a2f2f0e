"""Files of self-atomic energies: YAML, one element per line, in eV."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ase.data import atomic_numbers, chemical_symbols

from aimnet2mult.configs.yaml_io import parse_yaml
from aimnet2mult.datasets.checks import MAX_NUMBER
from aimnet2mult.errors import ConfigError, DataError
from aimnet2mult.files import atomic_write_text

_MAX_BYTES = 100_000  # 118 elements with comments fit many times over


def write_sae(path: str | Path, values: Mapping[int, float], comment: str = "") -> None:
    """Write self-atomic energies in eV, by symbol, with all digits of float64; whole or not at all.

    Parameters
    ----------
    path
        Target file.
    values
        Energies in eV by atomic number.
    comment
        Text for the head of the file.
    """
    head = "".join(f"# {line}\n" for line in ["self-atomic energies in eV", *comment.splitlines()])
    content = {chemical_symbols[z]: float(values[z]) for z in sorted(values)}
    atomic_write_text(path, head + yaml.safe_dump(content, sort_keys=False))


def read_sae(path: str | Path) -> dict[int, float]:
    """Read self-atomic energies in eV by atomic number; keys may be symbols or atomic numbers.

    Raises
    ------
    DataError
        The file cannot be read, names something that is no element, or holds something that is no finite number.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path} is too large for a file of self-atomic energies; check the path")
        content = parse_yaml(path.read_text(encoding="utf-8-sig"), str(path))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; fit it with python -m aimnet2mult.training.calc_sae") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); fit it again with calc_sae") from error
    except ConfigError as error:
        raise DataError(f"{error}; mend it, or fit it again with calc_sae") from None
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path} holds no self-atomic energies; expected lines like 'H: -13.6'")
    values: dict[int, float] = {}
    for key, value in content.items():
        number = _atomic_number(key, path)
        if number in values:
            raise DataError(f"{path} gives {chemical_symbols[number]} twice; keep one")
        values[number] = _energy(value, chemical_symbols[number], path)
    return dict(sorted(values.items()))


def sae_array(values: Mapping[int, float]) -> np.ndarray:
    """Energies (119,) float64 in eV by atomic number: 0 for padding, NaN for elements without a value."""
    table = np.full(MAX_NUMBER + 1, np.nan)
    table[0] = 0.0
    for number, value in values.items():
        table[number] = value
    return table


def _atomic_number(key: Any, path: Path) -> int:
    if isinstance(key, int) and not isinstance(key, bool) and 1 <= key <= MAX_NUMBER:
        return key
    if isinstance(key, str):
        if key.strip().isascii() and key.strip().isdigit() and 1 <= int(key) <= MAX_NUMBER:
            return int(key)
        if atomic_numbers.get(key.strip(), 0) > 0:
            return int(atomic_numbers[key.strip()])
    raise DataError(
        f"{path}: {str(key)[:40]!r} is neither an element symbol nor an atomic number from 1 to {MAX_NUMBER}"
    )


def _energy(value: Any, symbol: str, path: Path) -> float:
    try:
        energy = math.nan if isinstance(value, bool | list | dict) else float(value)
    except (TypeError, ValueError):
        energy = math.nan
    if not math.isfinite(energy):
        raise DataError(f"{path}: the value of {symbol} is not a finite number; give its energy in eV")
    return energy
