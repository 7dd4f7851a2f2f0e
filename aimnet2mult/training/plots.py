"""Pictures of a run: parity per label with one panel per fidelity, and learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from aimnet2mult.files import atomic_path
from aimnet2mult.training.metrics import QUANTITIES, ErrorRow, Parity, Quantity, significant

MAX_POINTS = 20_000  # per panel; more only makes the picture slow
COLOURS = ("#1f6fb2", "#d1662b", "#2f8f5b", "#8d5bb0", "#b3364a", "#7a7a2e")
AXIS_UNITS = {"energy": "eV/atom", "forces": "eV/Å", "charges": "e", "spin_charges": "e"}
TITLES = {
    "energy": "energy per atom, self-atomic energies removed",
    "forces": "force components",
    "charges": "partial charges",
    "spin_charges": "spin charges",
}


def plot_parity(
    folder: Path,
    parity: Mapping[tuple[int, str], Parity],
    rows: Sequence[ErrorRow],
    names: Mapping[int, str],
    subset: str,
) -> list[Path]:
    """Write ``parity_{label}.png`` for every label that has values.

    Parameters
    ----------
    folder
        Where to.
    parity
        Values by (fidelity, label).
    rows
        Errors, for the legends.
    names
        Name of each fidelity.
    subset
        What the molecules are, for the title.
    """
    paths = []
    for quantity in QUANTITIES:
        if quantity.key == "energy_total":
            continue
        fidelities = [f for f in sorted(names) if (f, quantity.label) in parity]
        if not fidelities:
            continue
        figure = _figure(4.1 * len(fidelities) + 0.4, 4.5)
        for i, fidelity in enumerate(fidelities):
            axes = figure.add_subplot(1, len(fidelities), i + 1)
            row = next(r for r in rows if r.fidelity == fidelity and r.quantity.key == quantity.key)
            _parity_panel(axes, parity[fidelity, quantity.label], row, COLOURS[fidelity % len(COLOURS)])
            axes.set_title(names[fidelity], fontsize=11)
            unit = AXIS_UNITS[quantity.label]
            axes.set_xlabel(f"reference ({unit})")
            if i == 0:
                axes.set_ylabel(f"predicted ({unit})")
        figure.suptitle(f"{TITLES[quantity.label]} — {subset}", fontsize=12)
        paths.append(_write(figure, folder / f"parity_{quantity.label}.png"))
    return paths


def _parity_panel(axes: Axes, values: Parity, row: ErrorRow, colour: str) -> None:
    labelled, predicted = values
    low, high = float(min(labelled.min(), predicted.min())), float(max(labelled.max(), predicted.max()))
    margin = 0.05 * (high - low) or 0.1
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color="0.45", linewidth=0.9, zorder=1)
    if len(labelled) > MAX_POINTS:
        chosen = np.random.default_rng(0).choice(len(labelled), MAX_POINTS, replace=False)
        labelled, predicted = labelled[chosen], predicted[chosen]
    crowded = len(labelled) > 2000
    unit = row.quantity.unit
    legend = f"MAE {significant(row.mae)} {unit}\nRMSE {significant(row.rmse)} {unit}\n{row.values:,} values"
    axes.scatter(
        labelled,
        predicted,
        s=5 if crowded else 12,
        alpha=0.25 if crowded else 0.6,
        color=colour,
        linewidths=0,
        rasterized=True,
        zorder=2,
    )
    # no handle: the text alone says what matters
    axes.text(
        0.04,
        0.96,
        legend,
        transform=axes.transAxes,
        va="top",
        fontsize=9,
        bbox={"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": "0.8", "alpha": 0.9},
        zorder=3,
    )
    axes.set_xlim(limits)
    axes.set_ylim(limits)
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    _plain(axes)


def plot_learning_curves(path: Path, metrics: Sequence[Mapping[str, str]], names: Mapping[int, str]) -> Path | None:
    """Write the loss and the validation errors of each label against the epoch; None without any row."""
    if not metrics:
        return None
    shown = [q for q in QUANTITIES if q.key != "energy_total" and any(_filled(metrics, _column(q, f)) for f in names)]
    panels = 1 + len(shown)
    columns = min(panels, 3)
    lines = -(-panels // columns)
    figure = _figure(4.6 * columns, 3.6 * lines + 0.2)
    epochs = [int(row["epoch"]) for row in metrics]
    axes = figure.add_subplot(lines, columns, 1)
    for name, colour in (("train_loss", "0.55"), ("val_loss", "0.1")):
        if _filled(metrics, name):
            _curve(axes, epochs, metrics, name, name.replace("_", " ").replace("val ", "validation "), colour)
    _dress(axes, "loss", "weighted loss")
    for place, quantity in enumerate(shown, start=2):
        axes = figure.add_subplot(lines, columns, place)
        for fidelity, name in names.items():
            if _filled(metrics, _column(quantity, fidelity)):
                last = significant(float(metrics[-1][_column(quantity, fidelity)] or "nan"))
                label = f"{name}: {last}"
                _curve(axes, epochs, metrics, _column(quantity, fidelity), label, COLOURS[fidelity % len(COLOURS)])
        _dress(axes, f"{quantity.label.replace('_', ' ')}, validation", f"MAE ({quantity.unit})")
    return _write(figure, path)


def _column(quantity: Quantity, fidelity: int) -> str:
    return f"val_{quantity.key}_mae_fid{fidelity}"


def _filled(metrics: Sequence[Mapping[str, str]], column: str) -> bool:
    return any(row.get(column) for row in metrics)


def _curve(
    axes: Axes, epochs: list[int], metrics: Sequence[Mapping[str, str]], column: str, label: str, colour: str
) -> None:
    values = [float(row[column]) if row.get(column) else float("nan") for row in metrics]
    marker = "o" if len(epochs) < 15 else None
    axes.plot(epochs, values, label=label, color=colour, linewidth=1.4, marker=marker, markersize=3)


def _dress(axes: Axes, title: str, ylabel: str) -> None:
    axes.set_yscale("log")
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("epoch")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    low, high = axes.get_ylim()
    if high / low < 20:
        # less than about a decade: name some values between the powers of ten
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=8.5, frameon=False)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.grid(True, color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=9)


def _figure(width: float, height: float) -> Figure:
    # Figure without pyplot: no global state, no display needed
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _write(figure: Any, path: Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=160, format="png", bbox_inches="tight", pad_inches=0.12)
    return path
