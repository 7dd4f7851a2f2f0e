from __future__ import annotations

import csv
import io

import numpy as np
import pytest
import torch

from aimnet2mult.training.metrics import ErrorSums, errors_csv, find_error, format_errors, significant
from aimnet2mult.types import Batch, Molecules

LABELS = ["energy", "forces", "charges", "spin_charges"]


def batch(natoms, fidelity, force_mask, seed):
    generator = torch.Generator().manual_seed(seed)
    size, width = len(natoms), max(natoms) + 1
    numbers = torch.zeros(size, width, dtype=torch.int64)
    for i, n in enumerate(natoms):
        numbers[i, :n] = 1
    shapes = {"energy": (size,), "forces": (size, width, 3), "charges": (size, width), "spin_charges": (size, width)}
    labels = {k: torch.randn(shape, generator=generator, dtype=torch.float64) for k, shape in shapes.items()}
    predictions = {k: torch.randn(shape, generator=generator, dtype=torch.float64) for k, shape in shapes.items()}
    mask = torch.tensor(force_mask)
    masks = {"energy": torch.ones(size, dtype=torch.bool), "forces": mask, "charges": mask, "spin_charges": mask}
    labels["forces"][~mask] = float("nan")
    molecules = Molecules(
        torch.zeros(size, width, 3), numbers, torch.zeros(size), torch.ones(size), torch.tensor(fidelity)
    )
    return Batch(molecules, labels, masks, [f"m{i}" for i in range(size)]), predictions


BATCHES = [
    batch([2, 3, 1], [0, 1, 0], [True, False, True], 1),
    batch([4, 2], [1, 2], [False, True], 2),
    batch([3], [0], [False], 3),
]


def expected(fidelity, label):
    """Errors written out in numpy: (label scale left out) a list of differences."""
    errors, per_atom = [], []
    for b, pred in BATCHES:
        for i in range(len(b.names)):
            if int(b.molecules.fidelity[i]) != fidelity or not bool(b.masks[label][i]):
                continue
            n = int((b.molecules.numbers[i] > 0).sum())
            p, t = pred[label][i].numpy(), b.labels[label][i].numpy()
            if label == "energy":
                errors.append(p - t)
                per_atom.append((p - t) / n)
            else:
                errors.extend((p[:n] - t[:n]).ravel())
    return np.array(errors), np.array(per_atom)


def collected():
    sums = ErrorSums(3, LABELS, collect=True)
    for b, pred in BATCHES:
        sums.update(pred, b)
    return sums


def test_errors_per_fidelity_and_label():
    rows = collected().rows()
    assert {(r.fidelity, r.quantity.label) for r in rows} == {
        (0, "energy"),
        (1, "energy"),
        (2, "energy"),
        *((f, label) for f in (0, 2) for label in LABELS[1:]),
    }
    for row in rows:
        errors, per_atom = expected(row.fidelity, row.quantity.label)
        values = (per_atom if row.quantity.per_atom else errors) * row.quantity.scale
        assert row.values == len(values)
        assert row.mae == pytest.approx(np.abs(values).mean(), rel=1e-12)
        assert row.rmse == pytest.approx(np.sqrt((values**2).mean()), rel=1e-12)
    units = {r.quantity.key: r.quantity.unit for r in rows}
    assert units == {
        "energy": "meV/atom",
        "energy_total": "meV",
        "forces": "meV/Å",
        "charges": "e",
        "spin_charges": "e",
    }


def test_sums_of_processes_add_up():
    whole = collected().rows()
    part = ErrorSums(3, LABELS)
    part.update(*reversed(BATCHES[0]))
    rest = ErrorSums(3, LABELS)
    for b, pred in BATCHES[1:]:
        rest.update(pred, b)
    part.reduce(lambda values: values + rest.sums)
    for a, b in zip(part.rows(), whole, strict=True):
        assert a[:3] == b[:3]
        assert a[3:] == pytest.approx(b[3:], rel=1e-13)


def test_parity_values():
    parity = collected().parity()
    assert set(parity) == {(0, "energy"), (1, "energy"), (2, "energy"), *((f, k) for f in (0, 2) for k in LABELS[1:])}
    errors, per_atom = expected(0, "energy")
    assert parity[0, "energy"].predicted - parity[0, "energy"].labelled == pytest.approx(per_atom)
    errors, _ = expected(2, "forces")
    assert parity[2, "forces"].predicted - parity[2, "forces"].labelled == pytest.approx(errors)


def test_missing_predictions_are_left_out():
    sums = ErrorSums(3, LABELS)
    b, pred = BATCHES[2]
    sums.update({"energy": pred["energy"]}, b)
    assert {r.quantity.label for r in sums.rows()} == {"energy"}


def test_find_format_and_csv():
    rows = collected().rows()
    names = {0: "PBE0", 1: 'a, "b"', 2: "xTB"}
    row = next(r for r in rows if r.fidelity == 2 and r.quantity.key == "forces")
    assert find_error(rows, 2, "forces", "mae") == row.mae
    assert find_error(rows, 2, "forces", "rmse") == row.rmse
    assert find_error(rows, 1, "forces", "mae") is None
    text = format_errors(rows, names)
    assert len({len(line.split("  ")[0]) for line in text.splitlines()}) >= 1
    assert len(text.splitlines()) == len(rows) + 2
    table = list(csv.DictReader(io.StringIO(errors_csv(rows, names, "test"))))
    assert len(table) == len(rows)
    assert {line["name"] for line in table} == set(names.values())
    assert float(table[0]["mae"]) == pytest.approx(rows[0].mae, rel=1e-5)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.00123456, "0.00123"),
        (0.5, "0.500"),
        (12.345, "12.3"),
        (123.45, "123"),
        (4567.8, "4568"),
        (1e-7, "1.00e-07"),
    ],
)
def test_significant(value, text):
    assert significant(value) == text
