"""Copies, processes, threads, and PyTorch's global state around the calculator."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from structures import alkane, water

from aimnet2mult import AIMNet2MultCalculator
from aimnet2mult.errors import InputError, ModelFileError

MakeCalculator = Callable[..., AIMNet2MultCalculator]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_are_independent(make: MakeCalculator, duplicate: Callable[..., AIMNet2MultCalculator]) -> None:
    atoms = water()
    atoms.calc = make(dtype="float64", charge=2)
    energy = atoms.get_potential_energy()
    twin = duplicate(atoms.calc)
    twin.charge = None
    other = water()
    other.calc = twin
    assert other.get_potential_energy() != energy
    assert atoms.calc.charge == 2
    twin.charge = 2
    assert other.get_potential_energy() == energy
    assert atoms.get_potential_energy() == energy
    assert duplicate(atoms).get_potential_energy() == energy


def test_unpickling_notices_another_file(potential_file: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(potential_file, tmp_path / "model_fid0.jpt"))
    frozen = pickle.dumps(AIMNet2MultCalculator(path, device="cpu"))
    shutil.copy(potential_file.with_name("model_fid1.jpt"), path)
    with pytest.raises(ModelFileError, match="has changed or gone since this calculator was made; make a new one"):
        pickle.loads(frozen).get_potential_energy(water())


def forces_of(atoms: Atoms) -> np.ndarray:
    return atoms.get_forces()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(make: MakeCalculator, two_threads: None, method: str) -> None:
    structures = [alkane(n) for n in (1, 20)]  # the larger one is worked on by several threads
    for atoms in structures:
        atoms.calc = make()
    expected = [atoms.get_forces() for atoms in structures]
    for atoms in structures:
        atoms.calc.reset()
    with multiprocessing.get_context(method).Pool(1) as pool:
        found = pool.map_async(forces_of, structures).get(timeout=30)  # a thread pool lost in a fork would hang
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)  # float32 network, another number of threads


def test_threads_share_one_calculator(make: MakeCalculator) -> None:
    names = ["H2O", "CH4", "NH3", "CO2"] * 6
    shared, alone = make(), make()
    expected = [alone.get_forces(molecule(name)) for name in names]

    def compute(name: str) -> np.ndarray:
        atoms = molecule(name)
        atoms.calc = shared
        return atoms.get_forces()

    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(compute, names), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.fixture
def default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", [None, "float64"])
@pytest.mark.parametrize("load_inside", [True, False])
@pytest.mark.parametrize("mode", ["no_grad", "inference", "autocast", "float64", "meta", "optimized"])
def test_same_numbers_in_every_mode(
    make: MakeCalculator, default_dtype: None, mode: str, load_inside: bool, dtype: str | None
) -> None:
    contexts = {
        "no_grad": torch.no_grad,
        "inference": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        "meta": lambda: torch.device("meta"),
        "optimized": lambda: torch.jit.optimized_execution(True),
    }
    atoms = water()
    atoms.calc = make(dtype=dtype)
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    calc = make(dtype=dtype)
    if mode == "float64":
        torch.set_default_dtype(torch.float64)
    with contexts.get(mode, torch.enable_grad)():
        atoms.calc = make(dtype=dtype) if load_inside else calc
        np.testing.assert_array_equal(atoms.get_forces(), forces)
        assert atoms.get_potential_energy() == energy


def test_global_state_is_left_alone(make: MakeCalculator) -> None:
    def state() -> tuple[object, ...]:
        return (
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch._C._get_graph_executor_optimize(),
            torch.random.get_rng_state().numpy().tobytes(),
            np.random.get_state()[1].tobytes(),  # noqa: NPY002 (it is the global generator that must not move)
            list(warnings.filters),
            np.geterr(),
        )

    before = state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor does it warn
        atoms = water()
        atoms.calc = make(dtype="float64")
        atoms.get_forces()
        atoms.calc.fidelity = 1
        pickle.loads(pickle.dumps(atoms)).get_forces()
    atoms.info["mult"] = 2
    with pytest.raises(InputError):
        atoms.get_forces()
    assert state() == before
