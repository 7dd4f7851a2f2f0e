"""The label ledger counts what is there, what is not, and what was left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from data_files import two_fidelities, water, write

from aimnet2mult.datasets.ledger import LedgerRow, label_ledger
from aimnet2mult.datasets.reader import FidelitySource, MultiFidelityDataset


def test_counts(tmp_path: Path) -> None:
    columns = water(6)
    columns["forces"][1] = np.nan
    columns["forces"][2, 0, 0] = np.nan
    columns["energy"][3] = np.inf
    specs = two_fidelities(tmp_path) | {
        3: FidelitySource(3, "spoilt", (write(tmp_path / "s.h5", {"3": columns, "4": {}}),))
    }
    ledger = label_ledger(MultiFidelityDataset(specs, ("energy", "forces"), "skip"))
    low, high, spoilt = ledger.fidelities
    assert low.rows == (
        LedgerRow("charge", 16, 0, 0, 0),
        LedgerRow("mult", 10, 0, 0, 6),
        LedgerRow("energy", 16, 0, 0, 0),
        LedgerRow("forces", 10, 6, 0, 0),
    )
    assert high.rows[1:] == (
        LedgerRow("mult", 0, 0, 0, 8),
        LedgerRow("energy", 8, 0, 0, 0),
        LedgerRow("forces", 0, 8, 0, 0),
    )
    assert spoilt.rows[2:] == (LedgerRow("energy", 4, 0, 1, 0), LedgerRow("forces", 3, 1, 1, 0))
    assert dict(spoilt.left_out) == {"energy not finite": 1, "forces not finite": 1}
    assert (low.elements, spoilt.empty_groups) == (("H", "C", "O"), 1)
    assert ledger.samples == 16 + 8 + 4


def test_molecules_are_counted_once_over_fidelities(tmp_path: Path) -> None:
    ledger = label_ledger(MultiFidelityDataset(two_fidelities(tmp_path)))
    # water: 5 molecules, methane: 3 in the first and 4 in the second fidelity, of which 3 are the same
    assert [entry.molecules for entry in ledger.fidelities] == [8, 4]
    assert ledger.molecules == 9
    assert ledger.identity == "molecule_id"


def test_table_is_aligned(tmp_path: Path) -> None:
    text = label_ledger(MultiFidelityDataset(two_fidelities(tmp_path))).format()
    lines = text.splitlines()
    head = next(line for line in lines if line.startswith("fidelity"))
    assert head.split() == ["fidelity", "column", "present", "missing", "not", "finite", "defaulted"]
    forces = next(line for line in lines if "forces" in line)
    assert forces.split() == ["forces", "10", "6", "0", "0"]
    assert forces.index("10") + 2 == head.index("present") + len("present")
    assert "0 low: 16 samples of 8 molecules, elements H C O" in text
    assert lines[-1] == "all: 24 samples of 9 molecules (told apart by molecule_id)"
    assert all(line == line.rstrip() for line in lines)
