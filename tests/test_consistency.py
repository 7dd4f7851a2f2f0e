"""Forces that do not belong to the energies are called out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.emt import EMT
from data_files import write

from aimnet2mult.datasets.consistency import check_forces
from aimnet2mult.datasets.reader import FidelitySource, MultiFidelityDataset


def columns(factor: float) -> dict[str, np.ndarray]:
    """Forty shaken and turned ethanes with energies of effective-medium theory and `factor` times its forces."""
    rng = np.random.default_rng(0)
    atoms = molecule("C2H6")
    atoms.calc = EMT()
    start = atoms.get_positions()
    rows = []
    for _ in range(40):
        turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
        turn[:, 0] *= np.linalg.det(turn)
        atoms.set_positions((start + 0.04 * rng.standard_normal(start.shape)) @ turn)
        rows.append((atoms.get_positions(), atoms.get_potential_energy(), factor * atoms.get_forces()))
    coord, energy, forces = (np.array(column) for column in zip(*rows, strict=True))
    numbers = np.tile(atoms.numbers, (40, 1))
    return {"coord": coord, "numbers": numbers, "charge": np.zeros(40), "energy": energy - 2000, "forces": forces}


@pytest.mark.parametrize(
    ("factor", "words"), [(1.0, None), (-1.0, "wrong sign"), (1 / 51.42, "not in eV/Å"), (23.06, "not in eV")]
)
def test_sign_and_unit(tmp_path: Path, factor: float, words: str | None) -> None:
    path = write(tmp_path / "a.h5", {"8": columns(factor)})
    check = check_forces(MultiFidelityDataset({0: FidelitySource(0, "emt", (path,))}, ("energy", "forces")), 0)
    assert check.pairs == 39
    if words is None:
        # third order in displacements of 0.05 Å
        assert check.slope == pytest.approx(1.0, abs=0.1)
        assert check.warning is None
    else:
        assert check.warning is not None
        assert words in check.warning


def test_too_few_pairs_say_nothing(tmp_path: Path) -> None:
    few = {key: values[:5] for key, values in columns(-1.0).items()}
    path = write(tmp_path / "a.h5", {"8": few})
    check = check_forces(MultiFidelityDataset({0: FidelitySource(0, "emt", (path,))}, ("energy", "forces")), 0)
    assert check.warning is None
    assert np.isnan(check.slope)
