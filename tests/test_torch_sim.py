"""The adapter for torch-sim, against torch-sim's own validation and the ASE calculator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import suites
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.stress import voigt_6_to_full_3x3_stress
from conftest import write_fidelity

from aimnet2mult import AIMNet2MultCalculator
from aimnet2mult.configs.metadata import FidelityInfo
from aimnet2mult.errors import InputError

torch_sim = pytest.importorskip("torch_sim", reason="the optional package torch-sim-atomistic is not installed")


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A potential that knows the silicon and iron of torch-sim's validation."""
    elements = [1, 6, 8, 14, 26]
    info = FidelityInfo(index=0, name="PBE", elements=elements, labels=["energy", "forces"])
    network = suites.network(num_fidelities=1, outputs={"lrcoulomb": None})
    return write_fidelity(network, info, tmp_path_factory.mktemp("torch_sim") / "model")


def model(path: Path, **arguments: Any) -> Any:
    from aimnet2mult.calculators.torch_sim import AIMNet2MultModel

    return AIMNet2MultModel(path, device="cpu", **arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_passes_the_validation_of_torch_sim(model_file: Path, dtype: torch.dtype) -> None:
    from torch_sim.models.interface import validate_model_outputs

    validate_model_outputs(model(model_file, dtype=dtype), torch.device("cpu"), dtype)


def test_gives_what_the_calculator_gives(model_file: Path) -> None:
    """Two cells of different shape, one triclinic: cell vectors stand in columns in torch-sim, in rows in ASE."""
    silicon = bulk("Si", "diamond", a=5.4)
    silicon.rattle(0.1, seed=1)
    water = Atoms("OH2", [[0, 0, 0], [0.9, 0.3, 0], [-0.4, 0.8, 0.2]], cell=[4.0, 5.0, 6.0, 70, 80, 95], pbc=True)
    state = torch_sim.io.atoms_to_state([silicon, water], torch.device("cpu"), torch.float64)
    found = model(model_file)(state)
    start = 0
    for place, atoms in enumerate((silicon, water)):
        atoms.calc = AIMNet2MultCalculator(model_file, dtype="float64", device="cpu")
        rows = slice(start, start + len(atoms))
        start += len(atoms)
        # two float64 evaluations that differ in padding only
        np.testing.assert_allclose(found["energy"][place], atoms.get_potential_energy(), rtol=1e-12)
        np.testing.assert_allclose(found["forces"][rows], atoms.get_forces(), atol=1e-9)
        np.testing.assert_allclose(found["stress"][place], voigt_6_to_full_3x3_stress(atoms.get_stress()), atol=1e-9)


def test_relaxes_many_systems(model_file: Path) -> None:
    systems = [bulk("Si", "diamond", a=5.4) for _ in range(3)]
    for seed, atoms in enumerate(systems):
        atoms.rattle(0.15, seed=seed)
    potential = model(model_file)
    before = potential(torch_sim.io.atoms_to_state(systems, torch.device("cpu"), torch.float64))
    final = torch_sim.optimize(
        system=systems, model=potential, optimizer=_fire(), max_steps=20, autobatcher=False, steps_between_swaps=5
    )
    after = potential(final)
    assert (after["energy"] < before["energy"]).all()


def test_molecules_have_no_stress(model_file: Path) -> None:
    water = molecule("H2O")
    water.cell = np.eye(3) * 10.0
    state = torch_sim.io.atoms_to_state([water], torch.device("cpu"), torch.float64)
    state.pbc = False
    found = model(model_file)(state)
    assert "stress" not in found
    water.calc = AIMNet2MultCalculator(model_file, dtype="float64", device="cpu")
    np.testing.assert_allclose(found["energy"][0], water.get_potential_energy(), rtol=1e-12)


def test_charge_and_precision(model_file: Path) -> None:
    state = torch_sim.io.atoms_to_state([bulk("Si", "diamond", a=5.4)], torch.device("cpu"), torch.float64)
    neutral, charged = model(model_file)(state), model(model_file, charge=1)(state)
    assert abs(float(charged["charges"].sum()) - 1.0) < 1e-6
    assert abs(float(neutral["charges"].sum())) < 1e-6
    with pytest.raises(InputError, match=r"dtype torch\.float16 cannot be used"):
        model(model_file, dtype=torch.float16)


def _fire() -> Any:
    return torch_sim.Optimizer.fire if hasattr(torch_sim, "Optimizer") else torch_sim.optimizers.fire
