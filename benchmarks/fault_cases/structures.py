"""Calls of the calculator with structures that cannot be, or that look odd and can: geometry, chemistry, cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError

from aimnet2mult import AIMNet2MultCalculator
from fault_cases.calls import PART, both, unchanged
from fault_cases.potentials import Calculators, alkane, boxed, said, water
from fault_cases.table import Outcome


def structure_cases(make: Calculators, d4: Calculators) -> Iterator[Outcome]:
    """All of them; `d4` makes calculators with D4 inside."""
    yield from _geometry(make)
    yield from _chemistry(make)
    yield from _periodicity(make, d4)


def refusals(
    make: Calculators, cases: tuple[tuple[str, Atoms, dict[str, Any], tuple[str, ...]], ...], kind: str = "InputError"
) -> Iterator[Outcome]:
    """Structures that are refused: name, structure, arguments of the calculator, words of the sentence."""
    for name, atoms, arguments, words in cases:

        def work(way: str, atoms: Atoms = atoms, arguments: Any = arguments, words: Any = words) -> tuple[str, bool]:
            calc = make(way, **arguments)
            before = atoms.copy()
            text = said(lambda: calc.get_forces(atoms))
            good = text.startswith(f"{kind}: ") and "\n" not in text and all(word in text for word in words)
            return text or "no error", good and not calc.results and unchanged(before, atoms)

        yield both(name, f"forces of {len(atoms)} atoms", work)


_NEAR = [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.1]]


def _with(place: tuple[int, int], value: float) -> Atoms:
    atoms = water()
    atoms.positions[place] = value
    return atoms


def _crowded(atoms: Atoms, first: int, second: int) -> Atoms:
    atoms.positions[second] = atoms.positions[first] + [0.0, 0.1, 0.0]
    return atoms


def _geometry(make: Calculators) -> Iterator[Outcome]:
    across = Atoms("O2", [[0.1, 0, 0], [3.9, 0, 0]], pbc=True, cell=[4, 4, 4])
    yield from refusals(
        make,
        (
            ("no atoms", Atoms(), {}, ("the structure has no atoms",)),
            ("NaN coordinate", _with((1, 2), np.nan), {}, ("position of atom 1 is not finite",)),
            ("infinite coordinate", _with((2, 0), np.inf), {}, ("position of atom 2 is not finite",)),
            ("minus infinite coordinate", _with((0, 0), -np.inf), {}, ("position of atom 0 is not finite",)),
            ("coincident atoms", Atoms("OH2", [[0, 0, 0]] * 3), {}, ("atoms 0 and 1", "0.00000 Å apart")),
            ("atoms 0.1 Å apart", Atoms("OH2", _NEAR), {}, ("atoms 1 and 2", "at least 0.3 Å")),
            ("atoms 0.1 Å apart among 62", _crowded(alkane(20), 3, 40), {}, ("atoms 3 and 40", "0.10000 Å")),
            ("atoms 0.1 Å apart among 302", _crowded(alkane(100), 3, 250), {}, ("atoms 3 and 250", "0.10000 Å")),
            ("an image 0.2 Å away", across, {}, ("atom 0 and an image of atom 1", "0.20000 Å")),
            ("position of 2e6 Å", _with((0, 0), 2e6), {}, ("position of atom 0", "move the structure to the origin")),
        ),
    )
    yield both("one atom", "O", lambda way: _alone(make, way))
    yield both("two atoms 1000 Å apart", "O2", lambda way: _apart(make, way))
    for n in (1, 20, 90):  # 92 and 272 atoms: with neighbour lists
        name = f"a chain of {3 * n + 2} atoms moved by 1000 Å"
        yield both(name, "forces equal to 1e-5 eV/Å", lambda way, n=n: _moved(make, way, n))
    for name, convert in (
        ("big-endian", lambda x: x.astype(x.dtype.newbyteorder(">"))),
        ("strided", lambda x: np.repeat(x, 2, axis=0)[::2]),
        ("in Fortran's order", np.asfortranarray),
        ("for reading only", np.copy),
        ("of 32 bits", lambda x: x.astype(np.float32 if x.dtype.kind == "f" else np.int32)),
        ("of integers", lambda x: x.astype(np.int64)),
    ):
        yield both(f"arrays {name}", "same bits", lambda way, c=convert: _layout(make, way, c))


def _alone(make: Calculators, way: str) -> tuple[str, bool]:
    calc = make(way)
    forces, energy = calc.get_forces(Atoms("O")), calc.get_potential_energy(Atoms("O"))
    good = np.array_equal(forces, np.zeros((1, 3))) and np.isfinite(energy)
    return f"no force, a finite energy: {good}", bool(good)


def _apart(make: Calculators, way: str) -> tuple[str, bool]:
    calc = make(way)
    pair = Atoms("O2", [[0, 0, 0], [0, 0, 1000.0]], info={"mult": 1})
    off = calc.get_potential_energy(pair) - 2 * calc.get_potential_energy(Atoms("O", info={"mult": 1}))
    forces = calc.get_forces(pair)
    good = abs(off) < 1e-5 and np.abs(forces).max() < 1e-5
    return f"twice one atom, no force: {good}", bool(good)


def _moved(make: Calculators, way: str, n: int) -> tuple[str, bool]:
    calc = make(way)
    here, there = alkane(n), alkane(n)
    there.positions += [1000.0, -1000.0, 577.0]
    first, second = calc.get_forces(here), calc.get_forces(there)
    good = np.abs(first - second).max() < 1e-5 < np.abs(first).max()
    return f"equal: {good}", bool(good)


def _layout(make: Calculators, way: str, convert: Callable[[np.ndarray], np.ndarray]) -> tuple[str, bool]:
    calc = make(way)
    plain = Atoms("OCH2", np.array([[0.0, 0, 0], [0, 0, 2], [1, 0, 3], [-1, 0, 3]]))  # exact in every format
    other = plain.copy()
    for key in ("positions", "numbers"):
        other.arrays[key] = convert(plain.arrays[key])
        other.arrays[key].flags.writeable = False
    same = calc.get_potential_energy(plain) == make(way).get_potential_energy(other)
    same = same and np.array_equal(calc.get_forces(plain), make(way).get_forces(other))
    return f"the same: {same}", same


def _chemistry(make: Calculators) -> Iterator[Outcome]:
    nan = float("nan")
    unfit = "must be a whole number"
    other = "this potential knows H C O (fidelity 1 'CCSD(T)')", "holds Si", "fidelity 0 'PBE0' knows it"
    silane = Atoms("SiH", [[0, 0, 0], [0, 0, 1.5]])
    yield from refusals(make, (("element of another fidelity", silane, {"fidelity": 1}, other),))
    yield from refusals(
        make,
        (
            ("element of no fidelity", Atoms("Fe"), {}, ("H C N O Si", "holds Fe", "no fidelity of this model")),
            ("Z = 0", Atoms(numbers=[8, 0], positions=_NEAR[:2]), {}, ("atom 1 has atomic number 0", "1 to 118")),
            ("Z = 119", Atoms(numbers=[119]), {}, ("atom 0 has atomic number 119", "1 to 118")),
            ("Z = -1", Atoms(numbers=[-1]), {}, ("atom 0 has atomic number -1", "1 to 118")),
            ("charge NaN", water(charge=nan), {}, ("atoms.info['charge']", unfit)),
            ("charge infinite", water(charge=np.inf), {}, ("atoms.info['charge']", unfit)),
            ("charge 0.5", water(charge=0.5), {}, ("atoms.info['charge']", unfit, "0.5")),
            ("charge as text", water(charge="one"), {}, ("atoms.info['charge']", unfit, "'one'")),
            ("charge +50 on water", water(charge=50), {}, ("charge=50 is impossible", "10 protons")),
            ("charge -50 on water", water(charge=-50), {}, ("charge=-50 is impossible", "10 protons")),
            ("charge 1e300", water(charge=1e300), {}, ("atoms.info['charge']", "out of all bounds")),
            ("mult against the electrons", water(mult=2), {}, ("mult=2 needs an odd number", "has 10")),
            ("mult above the electrons", water(mult=13), {}, ("mult=13 needs 12 unpaired", "10 in all")),
            ("mult 0", water(mult=0), {}, ("atoms.info['mult'] is 0", "1 (singlet)")),
            ("spin 0", water(spin=0), {}, ("atoms.info['spin'] is 0", "1 (singlet)")),
            ("mult 1.5", water(mult=1.5), {}, ("atoms.info['mult']", unfit)),
            ("mult NaN", water(mult=nan), {}, ("atoms.info['mult']", unfit)),
            ("mult against spin", water(mult=1, spin=3), {}, ("atoms.info['mult'] is 1", "atoms.info['spin'] is 3")),
            ("charge= against info", water(charge=0), {"charge": 2}, ("calculator is 2", "info['charge'] is 0")),
            ("mult= against info", water(mult=1), {"mult": 3}, ("calculator is 3", "info['mult'] is 1")),
        ),
    )
    for name, arguments, words in (
        ("charge=NaN", {"charge": nan}, ("charge", unfit)),
        ("charge=0.5", {"charge": 0.5}, ("charge", unfit)),
        ("mult=0", {"mult": 0}, ("mult is 0",)),
        ("mult='singlet'", {"mult": "singlet"}, ("mult", unfit)),
        ("dtype='float16'", {"dtype": "float16"}, ("unknown dtype 'float16'", "'float64'")),
        ("coulomb='none'", {"coulomb": "none"}, ("unknown coulomb 'none'", "'dsf'")),
        ("fidelity=7", {"fidelity": 7}, ("no fidelity 7", "0 'PBE0'")),
        ("dispersion twice", {"dispersion": "d3bj", "functional": "pbe0"}, ("holds dispersion already",)),
    ):
        text = said(lambda arguments=arguments: AIMNet2MultCalculator(make.model, **({"device": "cpu"} | arguments)))
        good = text.startswith("InputError: ") and all(word in text for word in words)
        yield Outcome(PART, f"argument {name}", "a calculator is made", text, good)


def _periodicity(make: Calculators, d4: Calculators) -> Iterator[Outcome]:
    slab, wire, flat, spoilt = boxed(), boxed(), boxed(), boxed()
    slab.pbc = (True, True, False)
    wire.pbc = (False, False, True)
    flat.cell[2] = flat.cell[0] + flat.cell[1]
    spoilt.cell[1, 1] = np.nan
    dsf = {"coulomb": "dsf"}
    needs = ("not defined", "add vacuum")
    yield from refusals(
        make,
        (
            ("Coulomb sum of a slab", slab, {}, ("periodic in 2 of 3 directions", 'coulomb="dsf"')),
            ("Coulomb sum of a wire", wire, {}, ("periodic in 1 of 3 directions", 'coulomb="dsf"')),
            ("pbc without a cell", Atoms("O", pbc=True), {}, ("cell vector a is zero", "pbc")),
            ("a flat cell", flat, {}, ("cell vectors are not independent",)),
            ("NaN in the cell", spoilt, {}, ("the cell is not finite",)),
        ),
    )
    yield from refusals(d4, (("D4 charges of a slab", slab, dsf, ("D4 charges", "2 of 3 directions", *needs)),))

    def undefined(way: str) -> tuple[str, bool]:
        texts, kinds = [], []
        for atoms, name in ((water(), "stress"), (slab, "stress"), (boxed(), "dipole")):
            calc = make(way, **dsf)
            try:
                calc.get_property(name, atoms)
            except PropertyNotImplementedError as error:
                kinds.append(True)
                texts.append(str(error))
        return " / ".join(texts) or "no error", len(kinds) == 3 and all("not defined" in text for text in texts)

    yield both("stress of a molecule, of a slab; dipole of a cell", "ASE's own error", undefined)

    def isolated(way: str) -> tuple[str, bool]:
        atoms = water()
        atoms.set_cell([4.0, 4.0, 4.0])
        single = make(way).get_potential_energy(atoms)
        atoms.pbc = True
        periodic = make(way).get_potential_energy(atoms)
        free = make(way).get_potential_energy(water())
        good = single == free and abs(periodic - free) > 1e-4
        return f"as a molecule without pbc, another energy with: {good}", good

    yield both("a cell without pbc, and with", "water in 4 Å", isolated)
