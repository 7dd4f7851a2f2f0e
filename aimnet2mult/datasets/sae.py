"""Self-atomic energies (SAE): what each element contributes to total energies, by robust regression."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols
from scipy.linalg import null_space
from scipy.stats import median_abs_deviation

from aimnet2mult.datasets.reader import CompositionTable
from aimnet2mult.datasets.sae_file import read_sae, sae_array, write_sae
from aimnet2mult.errors import DataError
from aimnet2mult.units import EV_PER_HARTREE, EV_PER_KCAL_MOL, MILLI

_HUBER = 1.345  # standard deviations; 95 % efficiency on normal errors (Huber and Ronchetti, Robust Statistics, 2009)
_MAX_ROUNDS = 200
_NULL = 1e-9  # relative size below which a direction of composition space counts as empty
_OUTLIERS = 5
_JOULE_PER_CALORIE = 4.184
# other units that energies come in: their size in eV
_UNITS = {"Hartree": EV_PER_HARTREE, "kcal/mol": EV_PER_KCAL_MOL, "kJ/mol": EV_PER_KCAL_MOL / _JOULE_PER_CALORIE}
# eV; every method with explicit electrons puts hydrogen here: 13.6 for the free atom, a few more when bonded
_HYDROGEN = (-0.7 * EV_PER_HARTREE, -0.3 * EV_PER_HARTREE)
_FAR = 30.0  # eV per atom; above every binding and ionisation energy per atom, helium's 24.6 included
_ATOM_TOLERANCE = 0.08  # all-electron atoms lie within 3 % of the formula of `_statistical_atom`


@dataclass(frozen=True)
class SAEFit:
    """Result of `fit_sae`; all energies in eV."""

    values: dict[int, float]  # by atomic number
    warnings: tuple[str, ...]
    undetermined: tuple[int, ...]  # elements that composition alone cannot separate
    samples: int
    compositions: int  # different (composition, charge)
    rmse: float  # of the residuals
    mad: float  # median absolute deviation of the residuals from their median
    rmse_per_atom: float
    mad_per_atom: float
    outliers: tuple[tuple[int, float], ...]  # sample number and residual, largest residual per atom first

    def format(self, name_of: Mapping[int, str] | None = None) -> str:
        """Values and residual statistics as text; `name_of` gives the names of outliers."""
        lines = [f"  {chemical_symbols[z]:<3}{value:20.6f} eV" for z, value in self.values.items()]
        lines.append(f"{self.samples:,} samples of {self.compositions:,} compositions and charges")
        lines.append(
            f"residuals: RMSE {self.rmse:.4f} eV, MAD {self.mad:.4f} eV; per atom RMSE"
            f" {self.rmse_per_atom * MILLI:.2f} meV, MAD {self.mad_per_atom * MILLI:.2f} meV"
        )
        names = name_of or {}
        for index, residual in self.outliers:
            lines.append(f"  large residual: {names.get(index, f'sample {index}')}: {residual:+.3f} eV")
        return "\n".join(lines)


def fit_sae(table: CompositionTable) -> SAEFit:
    """Fit energies as sums of one value per element.

    Every combination of composition and charge enters once, with the median energy of its samples, so
    that neither wrong rows nor molecules with many geometries rule the fit. These medians are regressed
    on composition by iteratively reweighted least squares with Huber's weights (Huber and Ronchetti,
    Robust Statistics, 2nd ed. 2009, Sec. 7.8), in float64. Where composition leaves a choice, the
    solution of least norm is taken.

    Parameters
    ----------
    table
        Compositions and energies.

    Returns
    -------
    SAEFit
        Values of the elements that occur, statistics over all samples, and warnings: elements that cannot be
        separated, and energies that look like another unit.

    Raises
    ------
    DataError
        There is no sample.
    """
    if table.energies.size == 0:
        raise DataError("self-atomic energies cannot be fitted to no sample; add data")
    occurs = np.count_nonzero(table.counts, axis=0) > 0
    elements = [z for z, there in zip(table.elements, occurs, strict=True) if there]
    counts = table.counts[:, occurs].astype(np.float64)
    compositions, medians = _medians(counts, table.charges, table.energies)
    solution = _huber(compositions, medians)
    values = dict(zip(elements, solution.tolist(), strict=True))
    empty = null_space(np.linalg.qr(compositions, mode="r"), rcond=_NULL)
    undetermined, warnings = _inseparable(elements, empty)
    unit = _wrong_unit({z: value for z, value in values.items() if z not in undetermined})
    if unit is not None:
        warnings.append(
            f"these self-atomic energies look like {unit}, but energies must be in eV;"
            f" multiply the energies (and forces) of the data by {_UNITS[unit]:.9g}"
        )
    residuals = table.energies - counts @ solution
    per_atom = residuals / counts.sum(axis=1)
    # nothing is far out where the fit is exact
    deviation = np.abs(per_atom - np.median(per_atom))
    spread = median_abs_deviation(per_atom)
    limit = 10 * spread + 1e-6
    far = [i for i in _worst_of_each(table, deviation) if deviation[i] > limit][:_OUTLIERS]
    return SAEFit(
        values=values,
        warnings=tuple(warnings),
        undetermined=tuple(undetermined),
        samples=len(residuals),
        compositions=len(medians),
        rmse=float(np.sqrt(np.mean(residuals**2))),
        mad=float(median_abs_deviation(residuals)),
        rmse_per_atom=float(np.sqrt(np.mean(per_atom**2))),
        mad_per_atom=float(spread),
        outliers=tuple((int(table.indices[i]), float(residuals[i])) for i in far),
    )


def _codes(counts: np.ndarray, charges: np.ndarray) -> np.ndarray:
    """One number per row, equal for equal composition and charge."""
    rows = np.column_stack([counts.astype(np.float64), charges])
    # a random direction tells different rows of small integers apart, and one column sorts quickly
    return np.round(rows @ np.random.default_rng(0).standard_normal(rows.shape[1]), 9)


def _worst_of_each(table: CompositionTable, deviation: np.ndarray) -> np.ndarray:
    """The row of largest deviation of each composition and charge, largest first."""
    code = _codes(table.counts, table.charges)
    order = np.lexsort((deviation, code))
    last = np.append(np.nonzero(np.diff(code[order]))[0], len(order) - 1)
    worst = order[last]
    return worst[np.argsort(-deviation[worst], kind="stable")]


def _medians(counts: np.ndarray, charges: np.ndarray, energies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different rows of (composition, charge): compositions (m, E) and median energies (m,)."""
    code = _codes(counts, charges)
    order = np.lexsort((energies, code))
    starts = np.concatenate([[0], np.nonzero(np.diff(code[order]))[0] + 1, [len(order)]])
    low, high = (starts[:-1] + starts[1:] - 1) // 2, (starts[:-1] + starts[1:]) // 2
    medians = 0.5 * (energies[order[low]] + energies[order[high]])
    return counts[order[starts[:-1]]], medians


def _huber(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Robust regression; the least-norm solution where `matrix` lacks rank."""
    weights = np.ones(len(target))
    solution = np.zeros(matrix.shape[1])
    resolution = np.abs(target).max() * np.finfo(np.float64).eps * 16
    for _ in range(_MAX_ROUNDS):
        root = np.sqrt(weights)
        previous, solution = solution, np.linalg.lstsq(matrix * root[:, None], target * root, rcond=_NULL)[0]
        residuals = np.abs(target - matrix @ solution)
        scale = np.median(residuals) * 1.4826  # of a normal distribution with this median absolute value
        if scale <= resolution or np.abs(solution - previous).max() <= resolution:
            break
        weights = np.minimum(1.0, _HUBER * scale / np.maximum(residuals, resolution))
    return solution


def _inseparable(elements: list[int], empty: np.ndarray) -> tuple[list[int], list[str]]:
    """Elements that share a direction along which no energy changes, and a sentence per set of them."""
    projector = empty @ empty.T
    linked = np.abs(projector) > 1e-8
    undetermined = [z for z, row in zip(elements, linked, strict=True) if row.any()]
    warnings = []
    seen: set[int] = set()
    for first in range(len(elements)):
        if first in seen or not linked[first].any():
            continue
        group = {first}
        while (grown := {int(j) for i in group for j in np.nonzero(linked[i])[0]} | group) != group:
            group = grown
        seen |= group
        members = sorted(group)
        symbols = [chemical_symbols[elements[i]] for i in members]
        example = ""
        block = projector[np.ix_(members, members)]
        if np.isclose(np.trace(block), 1.0):
            step = block[np.argmax(np.abs(np.diag(block)))]
            step = step / np.abs(step).min()
            moves = ", ".join(f"{symbol} {change:+.4g} eV" for symbol, change in zip(symbols, step, strict=True))
            example = f" (changing {moves} at once changes no energy)"
        warnings.append(
            f"composition alone cannot separate {' and '.join(symbols)}{example}; the smallest values that fit are"
            " used: fine for molecules of the same ratios, meaningless for others; add molecules of other compositions"
        )
    return undetermined, warnings


def _statistical_atom(number: int) -> float:
    """Total energy of an atom in Hartree: Schwinger, Phys. Rev. A 1981, 24, 2353, Eq. (4)."""
    return -0.768745 * number ** (7 / 3) + 0.5 * number**2 - 0.269900 * number ** (5 / 3)


def _wrong_unit(values: Mapping[int, float]) -> str | None:
    """Name of the unit that `values` seem to be in, None when eV is possible."""
    if 1 in values:
        low, high = _HYDROGEN
        return next((unit for unit, size in _UNITS.items() if low < values[1] * size < high), None)
    for unit, size in _UNITS.items():
        ratios = [value * size / (_statistical_atom(z) * EV_PER_HARTREE) for z, value in values.items()]
        if ratios and all(abs(ratio - 1) < _ATOM_TOLERANCE for ratio in ratios):
            return unit
    return None


def unit_warning(values: Mapping[int, float], source: str) -> str | None:
    """A sentence for self-atomic energies from the file `source` that look like another unit than eV, else None.

    Where energies and self-atomic energies are both in the wrong unit, their residuals are small and tell nothing.
    """
    unit = _wrong_unit(values)
    if unit is None:
        return None
    return (
        f"the self-atomic energies in {source} look like {unit}, but all energies must be in eV; multiply them by"
        f" {_UNITS[unit]:.9g}, and the energies (and forces) of the data too where these are in {unit}"
    )


def check_sae_covers(sae: Mapping[int, float], elements: Iterable[int], fidelity: str, source: str = "the SAE") -> None:
    """Refuse self-atomic energies that lack an element of the data.

    Raises
    ------
    DataError
        Elements without a value are listed.
    """
    absent = [chemical_symbols[z] for z in sorted(set(elements) - set(sae))]
    if absent:
        raise DataError(
            f"{source} has no value for {', '.join(absent)}, which the data of fidelity {fidelity} hold;"
            " add the value or fit again with python -m aimnet2mult.training.calc_sae"
        )


def sae_residuals(table: CompositionTable, values: Mapping[int, float], source: str) -> tuple[str, str | None]:
    """How far energies lie from given self-atomic energies: one line for the log, and a warning where it is too far.

    Parameters
    ----------
    table
        Compositions and energies.
    values
        Self-atomic energies in eV, with every element of the table.
    source
        Where the values come from, for the warning.
    """
    atomic = np.array([values[z] for z in table.elements])
    counts = table.counts.astype(np.float64)
    per_atom = (table.energies - counts @ atomic) / counts.sum(axis=1)
    rmse, middle = float(np.sqrt(np.mean(per_atom**2))), float(np.median(per_atom))
    line = f"residuals per atom: median {middle * MILLI:.2f} meV, RMSE {rmse * MILLI:.2f} meV"
    if abs(middle) <= _FAR:
        return line, None
    return line, (
        f"the energies lie {middle:+.4g} eV per atom from the self-atomic energies in {source}: these belong to another"
        " level of theory, or one of the two is not in eV; fit them again with python -m aimnet2mult.training.calc_sae"
    )


__all__ = [
    "SAEFit",
    "check_sae_covers",
    "fit_sae",
    "read_sae",
    "sae_array",
    "sae_residuals",
    "unit_warning",
    "write_sae",
]
