"""What stands around a call of the calculator: PyTorch's modes, copies, processes and threads, devices, files."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import pickle
import random
import shutil
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from ase import Atoms

from aimnet2mult import AIMNet2MultCalculator
from aimnet2mult.configs.metadata import FORMAT_VERSION
from aimnet2mult.models.files import load_potential, read_metadata, write_potential
from aimnet2mult.torch_threads import one_thread
from fault_cases.calls import PART, both
from fault_cases.potentials import (
    Calculators,
    alkane,
    boxed,
    calculator,
    road,
    said,
    water,
    write_potentials,
)
from fault_cases.table import Outcome


def around_cases(folder: Path, damages: int, seed: int) -> Iterator[Outcome]:
    """Everything; `damages` is the number of files with 64 bytes overwritten."""
    path = write_potentials(folder / "potentials é ü")  # spaces and letters beyond ASCII on purpose
    make = Calculators(path)
    yield from _modes(make)
    yield from _copies(make)
    yield from _devices(path)
    yield from _paths(path, folder)
    yield from _files(path, folder)
    yield _damaged(path, folder, damages, seed)


def numbers(calc: Any, atoms: Atoms) -> tuple[float, bytes]:
    """Energy and the bits of the forces."""
    return calc.get_potential_energy(atoms), calc.get_forces(atoms).tobytes()


# ---- the modes of PyTorch ----


@contextlib.contextmanager
def _default_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


def _state() -> tuple[object, ...]:
    """What other code could notice."""
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_num_threads(),
        torch.get_num_interop_threads(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch._C._get_graph_executor_optimize(),
        torch.are_deterministic_algorithms_enabled(),
        torch.random.get_rng_state().numpy().tobytes(),
        np.random.get_state()[1].tobytes(),  # type: ignore[index]  # noqa: NPY002
        random.getstate(),
        list(warnings.filters),
        np.geterr(),
        os.environ.copy(),
        threading.active_count(),
    )


def _modes(make: Calculators) -> Iterator[Outcome]:
    modes: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("no_grad", torch.no_grad),
        ("inference_mode", torch.inference_mode),
        ("autocast to bfloat16", lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
        ("float64 as default dtype", _default_dtype),
        ("another default device", _default_device),
        ("optimised execution", lambda: torch.jit.optimized_execution(True)),
        ("NaN as an error of numpy", lambda: np.errstate(all="raise")),
    )
    for name, mode in modes:

        def work(way: str, mode: Callable[[], Any] = mode) -> tuple[str, bool]:
            made_before, alone = make(way), make(way)
            wanted = [numbers(alone, atoms) for atoms in (water(), boxed())]
            with mode():
                inside = _state()
                made_inside = calculator(make.model, way)
                found = [numbers(c, atoms) for c in (made_before, made_inside) for atoms in (water(), boxed())]
                kept = _state() == inside
            return f"the same bits: {found == 2 * wanted}; mode as it was: {kept}", found == 2 * wanted and kept

        yield both(f"inside {name}", "loaded before and inside", work)
    yield both("global state", "loading, energy, forces, stress, an error", lambda way: _untouched(make.model, way))


def _untouched(path: Path, way: str) -> tuple[str, bool]:
    before = _state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calc = calculator(path, way)
        calc.get_stress(boxed())
        calc.fidelity = 1
        refused = said(lambda: calc.get_forces(water(mult=2)))
    names = "default dtype, device, threads, modes, generators, warning filters, environment"
    kept = _state() == before
    return f"{names} as before: {kept}; no warning", kept and refused.startswith("InputError")


# ---- copies, processes, threads ----


def work_elsewhere(way: str, calc: AIMNet2MultCalculator) -> list[tuple[float, bytes]]:
    """What a process does with a calculator that it was sent."""
    with road(way), one_thread():
        return [numbers(calc, atoms) for atoms in (water(), alkane(3), boxed())]


def _copies(make: Calculators) -> Iterator[Outcome]:
    ways: tuple[tuple[str, Callable[[Any], Any]], ...] = (
        ("copy", copy.copy),
        ("deepcopy", copy.deepcopy),
        ("pickle", lambda calc: pickle.loads(pickle.dumps(calc))),
    )
    for name, duplicate in ways:

        def work(way: str, duplicate: Callable[[Any], Any] = duplicate) -> tuple[str, bool]:
            calc = make(way)
            wanted = work_elsewhere(way, calc)
            with road(way):
                twin = duplicate(calc)
                same = work_elsewhere(way, twin) == wanted
                twin.charge = 2
                apart = calc.charge is None and numbers(twin, water()) != wanted[0] == numbers(calc, water())
                whole = numbers(duplicate(_attached(calc)).calc, water()) == wanted[0]
            return f"same bits: {same and whole}; independent: {apart}", same and apart and whole

        yield both(name, "of a calculator, of Atoms with one", work)
    for method in ("fork", "spawn"):
        yield both(f"multiprocessing, {method}", "a calculator is sent", lambda way, m=method: _sent(make, way, m))
    yield both("4 threads, one calculator", "24 structures", lambda way: _threads(make, way))
    yield _dask(make)


def _attached(calc: AIMNet2MultCalculator) -> Atoms:
    atoms = water()
    atoms.calc = calc
    return atoms


def _sent(make: Calculators, way: str, method: str) -> tuple[str, bool]:
    calc = make(way)
    wanted = work_elsewhere(way, calc)
    with multiprocessing.get_context(method).Pool(1) as pool:
        # a lock or a pool of threads that was lost in a fork would hang
        found = pool.apply_async(work_elsewhere, (way, calc)).get(timeout=120)
    return f"same bits: {found == wanted}", found == wanted


def _threads(make: Calculators, way: str) -> tuple[str, bool]:
    structures = [atoms for n in range(8) for atoms in (water(), alkane(1 + n % 3), boxed())]
    alone, shared = make(way), make(way)
    wanted = [numbers(alone, atoms) for atoms in structures]

    def work(atoms: Atoms) -> tuple[float, bytes]:
        atoms.calc = shared
        return atoms.get_potential_energy(), atoms.get_forces().tobytes()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, structures))
    return f"same bits: {found == wanted}", found == wanted


def _dask(make: Calculators) -> Outcome:
    if find_spec("dask") is None:
        return Outcome(PART, "Dask", "not tried: dask is not installed", "-", True)
    import dask

    calc = make("default")
    wanted = work_elsewhere("default", calc)
    for scheduler in ("threads", "processes"):
        tasks = [dask.delayed(work_elsewhere)("default", calc) for _ in range(4)]
        if dask.compute(*tasks, scheduler=scheduler, num_workers=2) != (wanted,) * 4:
            return Outcome(PART, "Dask", scheduler, "other numbers", False)
    return Outcome(PART, "Dask", "threads, processes", "same bits", True)


# ---- devices ----


def _devices(path: Path) -> Iterator[Outcome]:
    known = "use 'cpu', 'cuda' or 'cuda:0'"
    for device, words in (
        ("cuda", ("device 'cuda' is not there", "0 GPUs")),
        ("cuda:0", ("device 'cuda:0' is not there", "0 GPUs")),
        ("cuda:9", ("device 'cuda:9' is not there", "0 GPUs")),
        ("gpu", ("unknown device 'gpu'", known)),
        ("", ("unknown device ''", known)),
        ("CPU", ("unknown device 'CPU'", known)),
        ("cuda:-1", ("unknown device 'cuda:-1'", known)),
        ("meta", ("unknown device 'meta'", known)),
        (7, ("unknown device '7'", known)),
        (torch.device("meta"), ("unknown device 'meta'", known)),
    ):
        with patch.object(torch.cuda, "is_available", lambda: False):
            text = said(lambda device=device: AIMNet2MultCalculator(path, device=device))  # type: ignore[misc]
        good = text.startswith("InputError: ") and all(word in text for word in words)
        yield Outcome(PART, f"device={device!r}", "on a machine without GPU", text, good)


# ---- paths and files ----


def _paths(path: Path, folder: Path) -> Iterator[Outcome]:
    wanted = numbers(calculator(path), water())
    for name, model in (
        ("pathlib path, spaces, letters beyond ASCII", path),
        ("the same as text", str(path)),
        ("the same as bytes", os.fsencode(path)),
        ("folder with fidelity=0", path.parent),
        ("prefix with fidelity=0", path.parent / "model"),
    ):
        more = {} if name.startswith(("path", "the")) else {"fidelity": 0}
        text = said(lambda model=model, more=more: _expect(numbers(calculator(model, **more), water()) == wanted))
        good = not text if not isinstance(model, bytes) else not text or text.startswith("InputError: model must be")
        yield Outcome(PART, name, "a good file", text or "the right numbers", good)
    before = Path.cwd()
    try:
        os.chdir(path.parent)
        calc = calculator(path.name)
        os.chdir(folder)
        right = numbers(pickle.loads(pickle.dumps(calc)), water()) == wanted
    finally:
        os.chdir(before)
    yield Outcome(PART, "relative path, another folder later", "pickled there", f"the right numbers: {right}", right)


def _expect(condition: bool) -> None:
    if not condition:
        raise AssertionError("other numbers")


def _files(path: Path, folder: Path) -> Iterator[Outcome]:
    whole = path.read_bytes()
    loaded, metadata = load_potential(path), read_metadata(path)

    def newer(file: Path) -> None:
        write_potential(file, loaded.module, metadata.model_copy(update={"format_version": FORMAT_VERSION + 1}))

    def mixed(file: Path) -> None:
        write_potential(file, loaded.module, metadata)
        other = load_potential(path.with_name("model_fid1.jpt")).metadata.weights_sha256
        _edited(file, metadata.model_copy(update={"weights_sha256": other}).model_dump_json())

    def foreign(file: Path) -> None:
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(file))

    def without_access(file: Path) -> None:
        file.write_bytes(whole)
        file.chmod(0)

    damaged = ("damaged, or another kind of file",)
    cases: tuple[tuple[str, Callable[[Path], object], tuple[str, ...]], ...] = (
        ("a missing file", lambda file: None, ("does not exist",)),
        ("an empty folder", lambda file: file.mkdir(exist_ok=True), ("holds no *_fid{N}.jpt",)),
        ("an empty file", lambda file: file.touch(), damaged),
        ("a text file", lambda file: file.write_text("C 0 0 0\n"), damaged),
        ("a truncated file", lambda file: file.write_bytes(whole[: len(whole) // 2]), damaged),
        ("a file without its last byte", lambda file: file.write_bytes(whole[:-1]), damaged),
        ("a random pickle", lambda file: file.write_bytes(pickle.dumps({"a": [1, 2]})), damaged),
        ("weights of a training", lambda file: shutil.copy(path.with_name("model.pt"), file), ("not a potential",)),
        ("a .jpt of another program", foreign, ("not a published AIMNet2 network",)),
        ("an archive of other things", lambda file: _zip(file), ("not a potential compiled by aimnet2mult",)),
        ("metadata of a newer format", newer, (f"format version {FORMAT_VERSION + 1} is newer", "update aimnet2mult")),
        ("metadata changed afterwards", mixed, ("changed after it was written",)),
    )
    if os.geteuid() != 0:
        cases = (*cases, ("a file without permission to read", without_access, ("cannot be read",)))
    for number, (name, make, words) in enumerate(cases):
        file = folder / f"file {number}.jpt"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.*")
            make(file)
        text = said(lambda file=file: calculator(file))
        good = text.startswith("ModelFileError: ") and str(file) in text and all(word in text for word in words)
        yield Outcome(PART, name, "as model", text.replace(f"{folder}/", ""), good and "\n" not in text)
    yield _changed_meanwhile(path, folder)


def _edited(file: Path, metadata: str) -> None:
    """Replace the metadata, with checksums of the archive that fit."""
    with zipfile.ZipFile(file) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries:
            archive.writestr(name, metadata if name.endswith("/metadata.json") else content)


def _zip(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("letter.txt", "dear colleague")


def _changed_meanwhile(path: Path, folder: Path) -> Outcome:
    file = folder / "meanwhile_fid0.jpt"
    shutil.copy(path, file)
    frozen = pickle.dumps(calculator(file))
    shutil.copy(path.with_name("model_fid1.jpt"), file)
    text = said(lambda: pickle.loads(frozen).get_potential_energy(water()))
    good = text.startswith("ModelFileError: ") and "has changed or gone since this calculator was made" in text
    return Outcome(PART, "another file under the old name", "unpickled afterwards", text.replace(str(folder), ""), good)


def _damaged(path: Path, folder: Path, count: int, seed: int) -> Outcome:
    whole, generator = path.read_bytes(), random.Random(seed)
    wanted = numbers(calculator(path), water())
    file = folder / "damaged.jpt"
    refused, same, wrong = 0, 0, []
    for start in [0, len(whole) - 64, *(generator.randrange(len(whole) - 64) for _ in range(count - 2))]:
        file.write_bytes(whole[:start] + generator.randbytes(64) + whole[start + 64 :])
        found: list[Any] = []
        text = said(lambda found=found: found.append(numbers(calculator(file), water())))
        refused += text.startswith("ModelFileError: ") and "\n" not in text
        same += found == [wanted]  # padding between the entries is the only harmless place
        if not text.startswith("ModelFileError: ") and found != [wanted]:
            wrong.append(f"at byte {start}: {text or 'other numbers'}")
    result = f"{refused} refused, {same} load as before (padding)" + (f"; {wrong[0]}" if wrong else "")
    return Outcome(PART, "64 bytes overwritten", f"at {count} places", result, not wrong and refused > count // 2)
