"""Errors per fidelity and label over all molecules of a set: MAE and RMSE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from aimnet2mult.types import Batch
from aimnet2mult.units import MILLI


class Quantity(NamedTuple):
    """One kind of error: which label, in which unit."""

    key: str  # short and stable, for columns
    label: str
    unit: str
    scale: float  # from eV, eV/Å or e
    per_atom: bool = False


QUANTITIES = (
    Quantity("energy", "energy", "meV/atom", MILLI, per_atom=True),
    Quantity("energy_total", "energy", "meV", MILLI),
    Quantity("forces", "forces", "meV/Å", MILLI),
    Quantity("charges", "charges", "e", 1.0),
    Quantity("spin_charges", "spin_charges", "e", 1.0),
)


class ErrorRow(NamedTuple):
    """Errors of one quantity at one fidelity."""

    fidelity: int
    quantity: Quantity
    values: int  # number of values: molecules for energies, components for forces, atoms for charges
    mae: float  # in quantity.unit
    rmse: float


class Parity(NamedTuple):
    """Labelled and predicted values of one label at one fidelity; energies per atom, SAE removed."""

    labelled: np.ndarray
    predicted: np.ndarray


class ErrorSums:
    """Adds up errors batch by batch.

    Parameters
    ----------
    n_fidelities
        Number of fidelities.
    labels
        Labels to look at.
    collect
        Keep the values themselves for parity plots.
    device
        Where the sums are kept.
    """

    def __init__(
        self,
        n_fidelities: int,
        labels: Sequence[str],
        collect: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.quantities = [quantity for quantity in QUANTITIES if quantity.label in labels]
        self.n_fidelities = n_fidelities
        # per quantity and fidelity: sum of |error|, sum of error^2, number of values
        self.sums = torch.zeros(len(self.quantities), n_fidelities, 3, dtype=torch.float64, device=device)
        self.collect = collect
        self._values: dict[tuple[int, str], list[tuple[np.ndarray, np.ndarray]]] = {}

    def update(self, predictions: Mapping[str, Tensor], batch: Batch) -> None:
        """Add one batch; molecules without a label, and padding, do not count."""
        real = batch.molecules.numbers > 0
        natoms = real.sum(dim=1, dtype=torch.float64)
        for i, quantity in enumerate(self.quantities):
            predicted, labelled = predictions.get(quantity.label), batch.labels.get(quantity.label)
            if predicted is None or labelled is None:
                continue
            mask = batch.masks[quantity.label]
            if quantity.label == "energy":
                weight = 1.0 / natoms[mask] if quantity.per_atom else torch.ones_like(natoms[mask])
                a, b = predicted[mask].double() * weight, labelled[mask].double() * weight
                fidelity = batch.molecules.fidelity[mask]
            else:
                valid = real & mask.unsqueeze(1)
                a, b = predicted[valid].double(), labelled[valid].double()
                fidelity = batch.molecules.fidelity.unsqueeze(1).expand_as(valid)[valid]
                if a.dim() == 2:
                    fidelity = fidelity.repeat_interleave(a.shape[1])
                    a, b = a.flatten(), b.flatten()
            error = (a - b) * quantity.scale
            rows = torch.stack([error.abs(), error.square(), torch.ones_like(error)], dim=1)
            self.sums[i].index_add_(0, fidelity, rows)
            if self.collect and (quantity.per_atom or quantity.label != "energy"):
                self._keep(quantity.label, fidelity, b, a)

    def _keep(self, label: str, fidelity: Tensor, labelled: Tensor, predicted: Tensor) -> None:
        for f in range(self.n_fidelities):
            chosen = fidelity == f
            if bool(chosen.any()):
                pair = labelled[chosen].cpu().numpy(), predicted[chosen].cpu().numpy()
                self._values.setdefault((f, label), []).append(pair)

    def reduce(self, sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        """Add the sums of all processes."""
        self.sums = sum_over_processes(self.sums)

    def rows(self) -> list[ErrorRow]:
        """Errors of every fidelity and quantity that has at least one value, by fidelity."""
        table = self.sums.tolist()
        found = []
        for f in range(self.n_fidelities):
            for quantity, sums in zip(self.quantities, table, strict=True):
                absolute, square, count = sums[f]
                if count:
                    found.append(ErrorRow(f, quantity, int(count), absolute / count, (square / count) ** 0.5))
        return found

    def parity(self) -> dict[tuple[int, str], Parity]:
        """Collected values by (fidelity, label)."""
        return {
            key: Parity(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))
            for key, parts in self._values.items()
        }


def find_error(rows: Sequence[ErrorRow], fidelity: int, key: str, metric: str) -> float | None:
    """One number of the table, or None when there is no such value."""
    for row in rows:
        if row.fidelity == fidelity and row.quantity.key == key:
            return row.mae if metric == "mae" else row.rmse
    return None


def format_errors(rows: Sequence[ErrorRow], names: Mapping[int, str]) -> str:
    """Table of errors for a terminal."""
    head = ("fidelity", "label", "values", "MAE", "RMSE", "unit")
    body = [
        (
            f"{row.fidelity} {names[row.fidelity]}",
            row.quantity.label,
            str(row.values),
            significant(row.mae),
            significant(row.rmse),
            row.quantity.unit,
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = []
    for line in [head, tuple("-" * width for width in widths), *body]:
        cells = [
            f"{c:>{w}}" if i in (2, 3, 4) else f"{c:<{w}}" for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def errors_csv(rows: Sequence[ErrorRow], names: Mapping[int, str], subset: str) -> str:
    """The table of errors as CSV text."""
    lines = ["set,fidelity,name,label,unit,values,mae,rmse"]
    for row in rows:
        name = '"' + names[row.fidelity].replace('"', '""') + '"'
        unit = row.quantity.unit
        lines.append(
            f"{subset},{row.fidelity},{name},{row.quantity.label},{unit},{row.values},{row.mae:.6g},{row.rmse:.6g}"
        )
    return "\n".join(lines) + "\n"


def significant(value: float, digits: int = 3) -> str:
    """`value` with at least `digits` significant digits and no exponent for ordinary sizes."""
    if value == 0 or not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}" if value else "0"
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    leading = 0 if abs(value) >= 1 else -int(np.floor(np.log10(abs(value)))) - 1
    return f"{value:.{max(0, digits - whole + leading)}f}"
