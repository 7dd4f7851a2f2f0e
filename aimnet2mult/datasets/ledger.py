"""The label ledger: what each fidelity holds, printed before training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols

from aimnet2mult.datasets.reader import MultiFidelityDataset

_HEADER = ("fidelity", "column", "present", "missing", "not finite", "defaulted")


@dataclass(frozen=True)
class LedgerRow:
    """Counts of samples for one column of one fidelity."""

    column: str
    present: int  # values are there
    missing: int  # not in the file, or NaN throughout: masked in training
    not_finite: int  # left out for partly NaN or infinite values
    defaulted: int  # not in the file, a default stands in (mult: 1)


@dataclass(frozen=True)
class FidelityLedger:
    """The ledger of one fidelity."""

    fidelity: int
    name: str
    samples: int
    molecules: int
    elements: tuple[str, ...]
    rows: tuple[LedgerRow, ...]
    left_out: tuple[tuple[str, int], ...]  # reason, samples
    empty_groups: int


@dataclass(frozen=True)
class Ledger:
    """The ledger of all fidelities."""

    fidelities: tuple[FidelityLedger, ...]
    samples: int
    molecules: int  # different ones over all fidelities
    identity: str  # what tells molecules apart

    def format(self) -> str:
        """The ledger as an aligned text table."""
        table = [_HEADER]
        for entry in self.fidelities:
            title = f"{entry.fidelity} {entry.name}"
            for row in entry.rows:
                counts = (row.present, row.missing, row.not_finite, row.defaulted)
                table.append((title, row.column, *(f"{count:,}" for count in counts)))  # type: ignore[arg-type]
                title = ""
        widths = [max(len(line[i]) for line in table) for i in range(len(_HEADER))]
        lines = [
            "  ".join(
                cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in table
        ]
        lines.insert(1, "-" * len(lines[0]))
        lines.append("-" * len(lines[1]))
        for entry in self.fidelities:
            lines.append(
                f"{entry.fidelity} {entry.name}: {entry.samples:,} samples of {entry.molecules:,} molecules,"
                f" elements {' '.join(entry.elements)}"
            )
            lines.extend(f"  left out, {reason}: {count:,}" for reason, count in entry.left_out)
            if entry.empty_groups:
                lines.append(f"  empty groups: {entry.empty_groups:,}")
        lines.append(f"all: {self.samples:,} samples of {self.molecules:,} molecules (told apart by {self.identity})")
        return "\n".join(line.rstrip() for line in lines)


def label_ledger(dataset: MultiFidelityDataset) -> Ledger:
    """Count, per fidelity and column, what is present, missing, not finite or defaulted.

    Parameters
    ----------
    dataset
        Opened data; only labels that were asked for are counted, besides charge and mult.

    Returns
    -------
    Ledger
        Counts of samples; `Ledger.format` makes the table.
    """
    entries = []
    for fidelity, spec in dataset.specs.items():
        mine = dataset.fidelity_of == fidelity
        total = int(mine.sum())
        counts = dataset.counts[fidelity]
        with_mult = int((dataset.has_mult() & mine).sum())
        rows = [
            LedgerRow("charge", total, 0, counts.bad["charge not finite"], 0),
            LedgerRow("mult", with_mult, 0, 0, total - with_mult),
        ]
        for label in dataset.labels:
            present = int((dataset.has_label(label) & mine).sum())
            rows.append(LedgerRow(label, present, total - present, counts.not_finite[label], 0))
        entries.append(
            FidelityLedger(
                fidelity=fidelity,
                name=spec.name,
                samples=total,
                molecules=len(np.unique(dataset.molecule_key_of[mine])),
                elements=tuple(chemical_symbols[z] for z in dataset.elements(fidelity)),
                rows=tuple(rows),
                left_out=tuple(sorted(counts.bad.items())),
                empty_groups=counts.empty_groups,
            )
        )
    return Ledger(tuple(entries), len(dataset), len(np.unique(dataset.molecule_key_of)), dataset.identity)
