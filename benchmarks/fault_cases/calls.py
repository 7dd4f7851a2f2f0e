"""Calls of the calculator: stale results, ASE's contract, small differences.

Every case runs on both ways to evaluate; see `potentials`. Odd structures are in `structures`, what stands around a
call in `around_calls`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.mixing import SumCalculator
from ase.constraints import FixAtoms
from ase.db import connect
from ase.io import Trajectory
from ase.outputs import all_outputs

from aimnet2mult.torch_threads import one_thread
from fault_cases.potentials import (
    ROADS,
    Calculators,
    alkane,
    boxed,
    road,
    roads,
    water,
)
from fault_cases.table import Outcome

PART = "calls of the calculator"
# eV/Å: differences of energies with steps of 1e-3 Å, of a float32 network whose energies are noisy by 1e-7 eV
_NOISE = 1e-3


def both(case: str, done: str, work: Callable[[str], tuple[str, bool]]) -> Outcome:
    """One case on both ways to evaluate: `work` gets the way, and says what came out and whether it is right."""
    found = {}
    for way in ROADS:
        with road(way), one_thread():  # for what is loaded later, too
            found[way] = work(way)
    texts = {text for text, _ in found.values()}
    result = texts.pop() if len(texts) == 1 else "; ".join(f"{way}: {text}" for way, (text, _) in found.items())
    return Outcome(PART, case, done, result, all(good for _, good in found.values()))


def unchanged(before: Atoms, after: Atoms) -> bool:
    """Whether nothing was written into a structure."""
    same = set(before.arrays) == set(after.arrays) and repr(before.info) == repr(after.info)
    same = same and not before.calc and not before.constraints and not after.constraints
    arrays = all(np.array_equal(before.arrays[key], after.arrays[key], equal_nan=True) for key in before.arrays)
    return same and arrays and np.array_equal(before.cell.array, after.cell.array, equal_nan=True)


def call_cases(make: Calculators, folder: Path) -> Iterator[Outcome]:
    """All of them; files go into `folder`."""
    yield Outcome(PART, "ways to evaluate", "default; program", "; ".join(roads().values()), True)
    yield from _stale(make)
    yield from _contract(make, folder)
    yield from _differences(make)


def _stale(make: Calculators) -> Iterator[Outcome]:
    def deleted(atoms: Atoms) -> None:
        atoms.info["charge"] = 2
        atoms.get_potential_energy()
        del atoms.info["charge"]

    changes: tuple[tuple[str, Callable[[Atoms], object], bool], ...] = (
        ("info['charge'] = 2", lambda a: a.info.update(charge=2), True),
        ("info['mult'] = 3", lambda a: a.info.update(mult=3), True),
        ("info['spin'] = 3", lambda a: a.info.update(spin=3), True),
        ("calc.set(charge=2)", lambda a: a.calc.set(charge=2), True),
        ("calc.set(mult=3)", lambda a: a.calc.set(mult=3), True),
        ("calc.charge = 2", lambda a: setattr(a.calc, "charge", 2), True),
        ("calc.mult = 3", lambda a: setattr(a.calc, "mult", 3), True),
        ("calc.fidelity = 1", lambda a: setattr(a.calc, "fidelity", 1), True),
        ("calc.fidelity = 'ccsd(t)'", lambda a: setattr(a.calc, "fidelity", "ccsd(t)"), True),
        ("positions += 1e-6 in place", lambda a: a.positions.__iadd__(1e-6 * np.arange(9).reshape(3, 3)), True),
        ("numbers changed in place", lambda a: a.numbers.__setitem__(0, 6), True),
        ("info['charge'] deleted", deleted, False),
    )
    for name, change, differs in changes:

        def work(way: str, change: Any = change, differs: bool = differs) -> tuple[str, bool]:
            atoms = water()
            atoms.calc = make(way)
            before = atoms.get_potential_energy(), atoms.get_forces()
            change(atoms)
            after = atoms.get_potential_energy(), atoms.get_forces()
            fresh = atoms.copy()
            fresh.calc = make(way, fidelity=atoms.calc.fidelity, charge=atoms.calc.charge, mult=atoms.calc.mult)
            right = after[0] == fresh.get_potential_energy() and np.array_equal(after[1], fresh.get_forces())
            result = f"a new result: {after[0] != before[0]}; that of a new calculator: {right}"
            return result, right and differs == (after[0] != before[0])

        yield both(f"changed: {name}", "energy and forces before and after", work)
    yield both("a charge does not leak", "an ion, then a neutral one", lambda way: _leak(make, way))


def _leak(make: Calculators, way: str) -> tuple[str, bool]:
    calc = make(way)
    ion, neutral = water(charge=2, mult=3), water()
    names = set(vars(neutral))
    calc.get_forces(ion)
    found = calc.get_potential_energy(neutral)
    right = found == make(way).get_potential_energy(water())
    clean = unchanged(water(), neutral) and unchanged(water(charge=2, mult=3), ion) and set(vars(neutral)) == names
    return f"right energy: {right}; nothing written into the Atoms: {clean}", right and clean


def _contract(make: Calculators, folder: Path) -> Iterator[Outcome]:
    for name, work in (
        ("types and shapes", _types),
        ("forces against ase.calculators.fd", _fd_forces),
        ("stress against ase.calculators.fd", _fd_stress),
        ("force_consistent=True", _force_consistent),
        ("export_properties", _export),
        ("SumCalculator", _sum),
        ("constraints", _constraints),
    ):
        yield both(f"ASE: {name}", "water, and eight of them in a cell", lambda way, work=work: work(make, way))
    for suffix in ("traj", "db", "extxyz"):
        yield both(f"ASE: .{suffix} file", "written, read", lambda way, s=suffix: _stored(make, way, folder, s))


def _types(make: Calculators, way: str) -> tuple[str, bool]:
    wrong: list[str] = []
    for atoms, shapes in (
        (water(), {"forces": (3, 3), "charges": (3,), "magmoms": (3,), "dipole": (3,)}),
        (boxed(), {"forces": (24, 3), "charges": (24,), "magmoms": (24,), "stress": (6,)}),
    ):
        calc = make(way)
        calc.get_forces(atoms)
        results = calc.results
        wrong += [k for k in ("energy", "free_energy", "magmom") if not isinstance(results.get(k), float)]
        for key, shape in shapes.items():
            value = results.get(key)
            if not isinstance(value, np.ndarray) or value.dtype != np.float64 or value.shape != shape:
                wrong.append(key)
        wrong += ["free_energy is another"] * (results["free_energy"] != results["energy"])
        wrong += ["not ASE's name"] * (not set(results) & set(all_outputs) >= set(shapes))
    return f"float64, right shapes; wrong: {', '.join(wrong) or 'none'}", not wrong


def _fd_forces(make: Calculators, way: str) -> tuple[str, bool]:
    atoms = water()
    atoms.calc = make(way)
    off = np.abs(calculate_numerical_forces(atoms, eps=1e-3) - atoms.get_forces()).max()
    return f"differ by less than {_NOISE} eV/Å: {off < _NOISE}", bool(off < _NOISE < np.abs(atoms.get_forces()).max())


def _fd_stress(make: Calculators, way: str) -> tuple[str, bool]:
    atoms = boxed()
    atoms.calc = make(way)
    stress = atoms.get_stress()
    off = np.abs(calculate_numerical_stress(atoms, eps=1e-3) - stress).max()
    # strains of 1e-3 move energies by some 1e-2 eV: five digits of a volume of 314 Å^3
    good = off < 1e-3 * np.abs(stress).max() + 1e-6
    return f"Voigt-6, equal: {good}", bool(good) and len({round(abs(v), 7) for v in stress}) == 6


def _force_consistent(make: Calculators, way: str) -> tuple[str, bool]:
    atoms = water()
    atoms.calc = make(way)
    same = atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    return f"the energy: {same}", same


def _export(make: Calculators, way: str) -> tuple[str, bool]:
    atoms = water()
    atoms.calc = make(way)
    atoms.get_forces()
    found = set(atoms.calc.export_properties())
    wanted = {"energy", "free_energy", "forces", "charges", "magmom", "magmoms", "dipole"}
    return f"lacks: {', '.join(sorted(wanted - found)) or 'nothing'}", wanted <= found


def _sum(make: Calculators, way: str) -> tuple[str, bool]:
    atoms, alone = water(), make(way)
    atoms.calc = SumCalculator([make(way), make(way)])
    twice = np.array_equal(atoms.get_forces(), 2 * alone.get_forces(water()))
    twice = twice and atoms.get_potential_energy() == 2 * alone.get_potential_energy(water())
    return f"twice the numbers: {twice}", twice


def _constraints(make: Calculators, way: str) -> tuple[str, bool]:
    atoms = water()
    atoms.calc = make(way)
    forces = atoms.get_forces()
    atoms.set_constraint(FixAtoms([0]))
    held = not atoms.get_forces()[0].any() and np.array_equal(atoms.get_forces()[1:], forces[1:])
    free = np.array_equal(atoms.get_forces(apply_constraint=False), forces)
    return f"held: {held}; apply_constraint=False gives the true forces: {free}", held and free


def _stored(make: Calculators, way: str, folder: Path, suffix: str) -> tuple[str, bool]:
    from ase.io import read, write

    file = folder / f"{way}.{suffix}"
    file.unlink(missing_ok=True)
    atoms = boxed()
    atoms.calc = make(way)
    forces, energy, stress = atoms.get_forces(), atoms.get_potential_energy(), atoms.get_stress()
    if suffix == "traj":
        with Trajectory(file, "w", atoms) as trajectory:
            trajectory.write()
    elif suffix == "db":
        with connect(file) as database:
            database.write(atoms)
    else:
        write(file, atoms)
    again = read(file)
    # extended xyz keeps eight digits
    exact = 0.0 if suffix != "extxyz" else 1e-7
    pairs = (again.get_forces(), forces), (again.get_stress(), stress), (again.get_potential_energy(), energy)
    same = all(np.abs(np.subtract(a, b)).max() <= exact for a, b in pairs)
    return f"energy, forces and stress as written: {same}", same


def _differences(make: Calculators) -> Iterator[Outcome]:
    def scan(way: str) -> tuple[str, bool]:
        atoms = alkane(20)
        atoms.calc = make(way)
        energies = []
        for _ in range(81):
            energies.append(atoms.get_potential_energy())
            atoms.positions[0, 0] += 1e-4
        return f"{len(set(energies))} different energies", len(set(energies)) == 81

    yield both("C20H42 in 81 steps of 1e-4 Å", f"energies of {make.model.name}", scan)
