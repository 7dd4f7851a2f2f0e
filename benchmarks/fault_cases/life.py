"""A long life: many steps without growth of memory; threads, processes and other calculators that change no number."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet

from aimnet2mult import AIMNet2MultCalculator
from aimnet2mult.torch_threads import one_thread
from fault_cases.potentials import (
    ROADS,
    Calculators,
    alkane,
    boxed,
    calculator,
    road,
    water,
    write_potentials,
)
from fault_cases.table import Outcome

PART = "long life"
# Of the memory of the process. One float that is kept in each of 90,000 steps takes 2.1 MiB, one array of the forces of
# three atoms 16 MiB, neighbour lists of a cell in each of 2,500 steps 40 MiB.
GROWTH = 2.0  # MiB
# Of what the garbage collector knows of: lists, dictionaries, instances.
OBJECTS = 500
N_WORKERS = 4
Numbers = list[tuple[float, bytes, bytes]]


def life_cases(folder: Path, quick: bool, steps: int) -> Iterator[Outcome]:
    """Everything; `steps` of dynamics with the default way to evaluate, fewer with the other."""
    # of the noise of the others, liquids of random networks explode
    make = Calculators(write_potentials(folder / "potentials", noise=0.1))
    ways = ROADS[:1] if quick else ROADS
    for way in ways:
        n = steps if way == "default" else steps // 5
        yield _dynamics(make, way, n)
        if not quick:
            yield _driven(make, way, n // 20)
    for way in ways:
        yield from _workers(make, way, ("fork",) if quick else ("fork", "spawn"))
        yield _alternating(make, way)


class Springs:
    """Holds atoms of random networks in place, as a constraint of ASE: harmonic pairs, and atoms tied to sites.

    Parameters
    ----------
    atoms
        At rest; molecules of three atoms.
    tied
        Whether the first atom of each is tied to its place in the cell.
    """

    def __init__(self, atoms: Atoms, tied: bool) -> None:
        first = np.arange(0, len(atoms), 3)
        self._pairs = [(first + i, first + j) for i, j in ((0, 1), (0, 2), (1, 2))]
        self._rest = [np.linalg.norm(atoms.positions[i] - atoms.positions[j], axis=1) for i, j in self._pairs]
        self._sites = atoms.get_scaled_positions(wrap=False)[first] if tied else None
        self._first = first

    def adjust_potential_energy(self, atoms: Atoms) -> float:
        """Energy of the springs, 60 and 10 eV/Å^2; by having this, ASE knows that dynamics need the forces, too."""
        energy = 0.0
        for (i, j), rest in zip(self._pairs, self._rest, strict=True):
            length = np.linalg.norm(atoms.positions[i] - atoms.positions[j], axis=1)
            energy += 30.0 * float(((length - rest) ** 2).sum())
        if self._sites is not None:
            energy += 5.0 * float(((atoms.positions[self._first] - self._sites @ atoms.cell.array) ** 2).sum())
        return energy

    def adjust_forces(self, atoms: Atoms, forces: np.ndarray) -> None:
        """Add those of the springs."""
        for (i, j), rest in zip(self._pairs, self._rest, strict=True):
            apart = atoms.positions[i] - atoms.positions[j]
            length = np.linalg.norm(apart, axis=1)
            pull = 60.0 * ((length - rest) / length)[:, None] * apart
            np.subtract.at(forces, i, pull)
            np.add.at(forces, j, pull)
        if self._sites is not None:
            forces[self._first] -= 10.0 * (atoms.positions[self._first] - self._sites @ atoms.cell.array)

    def adjust_positions(self, atoms: Atoms, new: np.ndarray) -> None:
        """Nothing is held fast."""

    def adjust_momenta(self, atoms: Atoms, momenta: np.ndarray) -> None:
        """Nothing is held fast."""

    def get_removed_dof(self, atoms: Atoms) -> int:
        """None."""
        return 0


def memory() -> float:
    """MiB in use by this process: what is its own, without the holes that its allocator may fill again."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    summary = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return int(summary.split("Anonymous:")[1].split()[0]) / 1024


def _grown(run: Callable[[int], object], steps: int) -> tuple[str, bool]:
    """Run `steps`, and compare memory and objects at the end with those after 10,000 of them, or half if that is less.

    What libraries allocate once, some megabytes, they have by then: PyTorch the last of it after 3,000 to 6,000.
    """
    begin = min(10_000, steps // 2)
    run(begin)
    size, objects = memory(), len(gc.get_objects())
    run(steps - begin)
    grown, more = memory() - size, len(gc.get_objects()) - objects
    result = f"from step {begin:,} of {size:.0f} MiB on: {grown:+.2f} MiB, {more:+} objects"
    return result, grown < GROWTH and more < OBJECTS


def _warm(atoms: Atoms) -> None:
    """Momenta of 300 K."""
    width = np.sqrt(300 * units.kB * atoms.get_masses())[:, None]
    atoms.set_momenta(width * np.random.default_rng(0).normal(size=(len(atoms), 3)))


def _dynamics(make: Calculators, way: str, steps: int) -> Outcome:
    atoms = water()
    atoms.set_constraint(Springs(atoms, tied=False))
    atoms.calc = make(way)
    _warm(atoms)
    dynamics = VelocityVerlet(atoms, timestep=0.5 * units.fs)
    with road(way), one_thread():
        result, good = _grown(dynamics.run, steps)
    hot = atoms.get_temperature()
    sane = bool(np.isfinite(atoms.positions).all()) and hot < 3000
    return Outcome(PART, f"dynamics of a molecule, {way}", f"{steps:,} steps", f"{result}; {hot:.0f} K", good and sane)


def _driven(make: Calculators, way: str, steps: int) -> Outcome:
    atoms = boxed()
    start = atoms.cell.array.copy()
    # whole molecules
    atoms.positions += [atoms.cell.cartesian_positions(s) for s in _images(atoms)]
    atoms.set_constraint(Springs(atoms, tied=True))
    atoms.calc = make(way)
    _warm(atoms)
    cool = {"temperature_K": 300, "friction": 0.02 / units.fs, "rng": np.random.default_rng(1)}
    dynamics = Langevin(atoms, timestep=0.5 * units.fs, fixcm=False, **cool)
    done = 0

    def run(n: int) -> None:
        nonlocal done
        for _ in range(n):
            done += 1
            atoms.set_cell(start * (1 + 0.03 * np.sin(done / 40)), scale_atoms=True)
            dynamics.run(1)
            atoms.get_stress()

    with road(way), one_thread():
        result, good = _grown(run, steps)
    hot = atoms.get_temperature()
    case = f"dynamics in a cell that breathes, {way}"
    return Outcome(PART, case, f"{steps:,} steps, stress", f"{result}; {hot:.0f} K", good and hot < 3000)


def _images(atoms: Atoms) -> np.ndarray:
    """(n, 3) whole numbers of cell vectors that bring the atoms of each molecule of three to its first."""
    scaled = atoms.get_scaled_positions(wrap=False)
    return np.round(scaled[np.arange(len(atoms)) // 3 * 3] - scaled)


def structures() -> list[Atoms]:
    """Molecules of 3 to 122 atoms, cells, and cells so much alike that neighbour lists of one could serve another."""
    cells = [boxed() for _ in range(3)]
    for seed, cell in enumerate(cells):
        cell.rattle(0.03, seed=seed)
    return [water(), alkane(3), alkane(40), water(charge=2), *cells]


def evaluated(calc: AIMNet2MultCalculator, turn: int) -> Numbers:
    """Energies, forces and charges of the structures, thrice, from another one on each `turn`; in their own order."""
    all_of_them = structures()
    n = len(all_of_them)
    found: dict[int, tuple[float, bytes, bytes]] = {}
    for k in range(3 * n):
        which = (turn + k) % n
        atoms = all_of_them[which]
        one = _bits(calc, atoms)
        if found.setdefault(which, one) != one:
            found[which] = (np.nan, b"", b"")
    return [found[k] for k in range(n)]


def work(way: str, path: Path, turn: int) -> Numbers:
    """What a process of its own does."""
    with road(way), _threads_of(way):
        return evaluated(calculator(path, way), turn)


def _threads_of(way: str) -> ExitStack:
    stack = ExitStack()
    if way != "default":
        stack.enter_context(one_thread())
    return stack


def _workers(make: Calculators, way: str, methods: tuple[str, ...]) -> Iterator[Outcome]:
    with road(way), _threads_of(way):
        wanted = [_alone(make, way, atoms) for atoms in structures()]
        turns = range(N_WORKERS)
        for case, calcs in (
            ("4 threads, one calculator", [make(way)] * N_WORKERS),
            ("4 threads, one each", [calculator(make.model, way) for _ in turns]),
        ):
            with ThreadPoolExecutor(N_WORKERS) as pool:
                found = list(pool.map(evaluated, calcs, turns))
            yield _same(case, way, found, wanted)
        for method in methods:
            with multiprocessing.get_context(method).Pool(N_WORKERS) as processes:
                tasks = [processes.apply_async(work, (way, make.model, turn)) for turn in turns]
                found = [task.get(timeout=300) for task in tasks]
            yield _same(f"4 processes by {method}", way, found, wanted)


def _alone(make: Calculators, way: str, atoms: Atoms) -> tuple[float, bytes, bytes]:
    return _bits(make(way), atoms)


def _bits(calc: AIMNet2MultCalculator, atoms: Atoms) -> tuple[float, bytes, bytes]:
    forces = calc.get_property("forces", atoms)
    return calc.get_property("energy", atoms), forces.tobytes(), calc.get_property("charges", atoms).tobytes()


def _same(case: str, way: str, found: list[Numbers], wanted: Numbers) -> Outcome:
    other = sorted({k for numbers in found for k, (a, b) in enumerate(zip(numbers, wanted, strict=True)) if a != b})
    off = max((abs(numbers[k][0] - wanted[k][0]) for numbers in found for k in other), default=0.0)
    result = "the bits of one" if not other else f"structures {other} differ, energies by up to {off:.1e} eV"
    return Outcome(PART, f"{case}, {way}", f"{len(wanted)} structures, 3 times each", result, not other)


def _alternating(make: Calculators, way: str) -> Outcome:
    """Calculators of every dtype and fidelity in turns, and each alone."""
    kinds: list[dict[str, Any]] = [{"dtype": dtype, "fidelity": f} for dtype in ("mixed", "float64") for f in (0, 1)]
    with road(way), _threads_of(way):
        wanted = [evaluated(make(way, **kind), 0) for kind in kinds]
        calcs = [make(way, **kind) for kind in kinds]
        found: list[Numbers] = [[] for _ in kinds]
        for atoms in structures():
            for calc, numbers in zip(calcs, found, strict=True):
                numbers.append(_bits(calc, atoms))
    same, apart = found == wanted, len({numbers[0] for numbers in found}) == len(kinds)
    result = f"each gives what it gives alone: {same}; four different numbers: {apart}"
    return Outcome(PART, f"two dtypes and two fidelities in turns, {way}", "7 structures", result, same and apart)
