"""Helpers of the D4 tests: molecules, crystals, vesin pair lists, and the dftd4 package as reference."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import vesin
from ase import Atoms
from ase.build import bulk, molecule
from ase.collections import g2
from dftd4.interface import DampingParam, DispersionModel
from torch import Tensor, nn

from aimnet2mult.models.dispersion_cutoffs import package_cutoffs
from aimnet2mult.models.dispersion_d4 import D4, DEFAULT_CUTOFFS
from aimnet2mult.physics.d4 import D4Cutoffs
from aimnet2mult.physics.damping import DampingParameters
from aimnet2mult.physics.functionals_d4 import resolve_d4
from aimnet2mult.types import Molecules, NeighborLists
from aimnet2mult.units import ANGSTROM_PER_BOHR, BOHR_PER_ANGSTROM, EV_PER_HARTREE

PBE0 = resolve_d4("pbe0").parameters
# cutoffs with which the dftd4 package is quick enough for crystals of many atoms
SHORT = D4Cutoffs(disp2=30.0, disp3=16.0, width2=0.0, width3=0.0)
SHARP = DEFAULT_CUTOFFS._replace(width2=0.0, width3=0.0)
CUTOFFS = pytest.mark.parametrize("cutoffs", [DEFAULT_CUTOFFS, SHARP], ids=["smooth", "sharp"])
# what is left to automatic differentiation: everything, or nothing
PATHS = pytest.mark.parametrize("plain", [True, False], ids=["plain", "chunked"])


class Result(NamedTuple):
    energy: np.ndarray  # (B,) Hartree
    gradient: np.ndarray  # (B, N, 3) Hartree/Bohr
    virial: np.ndarray  # (B, 3, 3) Hartree, dE/d(strain)


def d4(systems: Sequence[Atoms], parameters: DampingParameters = PBE0, plain: bool | None = None, **options: Any) -> D4:
    """D4 for the elements of some systems; `plain`: all paths by automatic differentiation, or all in chunks."""
    module = D4(sorted({int(z) for atoms in systems for z in atoms.numbers}), parameters, **options)
    if plain is not None:
        module.max_plain = module.max_matrix = 10**9 if plain else 0
    return module


def reloaded(module: nn.Module) -> torch.jit.ScriptModule:
    """Scripted, saved and loaded."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(module), buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def charge_of(atoms: Atoms) -> float:
    return float(atoms.info.get("charge", 0.0))


def batch(systems: Sequence[Atoms], junk: float = 0.3) -> Molecules:
    """A padded batch; the padding holds rubbish coordinates."""
    size = max(len(atoms) for atoms in systems)
    coord = torch.full((len(systems), size, 3), junk, dtype=torch.float64)
    numbers = torch.zeros((len(systems), size), dtype=torch.int64)
    for row, atoms in enumerate(systems):
        coord[row, : len(atoms)] = torch.from_numpy(atoms.positions)
        numbers[row, : len(atoms)] = torch.from_numpy(atoms.numbers)
    charge = torch.tensor([charge_of(atoms) for atoms in systems], dtype=torch.float64)
    return Molecules(coord, numbers, charge, torch.ones_like(charge), torch.zeros(len(systems), dtype=torch.int64))


def pair_lists(systems: Sequence[Atoms], cutoff: float, shuffle: int | None = None) -> NeighborLists:
    """Half lists by vesin up to `cutoff` (Å), in any order; the part for the network is left empty."""
    size = max(len(atoms) for atoms in systems)
    parts, cells = [], []
    for row, atoms in enumerate(systems):
        cell = np.where(atoms.pbc[:, None], atoms.cell.array, 0.0)
        box = atoms.cell.array if atoms.pbc.any() else np.eye(3)
        finder = vesin.NeighborList(cutoff=cutoff, full_list=False)
        home = np.zeros((len(atoms), 3))
        home[:, atoms.pbc] = np.floor(atoms.positions @ np.linalg.inv(box))[:, atoms.pbc]
        i, j, shift = finder.compute(atoms.positions - home @ box, box, atoms.pbc, quantities="ijS")
        i, j = i.astype(np.int64), j.astype(np.int64)
        parts.append(np.column_stack([i + row * size, j + row * size, shift + (home[i] - home[j])]).astype(np.int64))
        cells.append(torch.from_numpy(cell))
    pairs = np.concatenate(parts)
    if shuffle is not None:
        pairs = np.random.default_rng(shuffle).permutation(pairs)
    columns = torch.from_numpy(pairs)
    empty = torch.zeros((len(systems), size, 0), dtype=torch.int64)
    shifts = empty.unsqueeze(3).expand(-1, -1, -1, 3)
    return NeighborLists(torch.stack(cells), empty, shifts, columns[:, 0], columns[:, 1], columns[:, 2:])


def results(
    module: nn.Module, systems: Sequence[Atoms], lists: NeighborLists | None = None, charges: Tensor | None = None
) -> Result:
    """Energies and derivatives by automatic differentiation; the virial by straining coordinates and cells."""
    molecules = batch(systems)
    coord = molecules.coord.clone().requires_grad_()
    strain = torch.zeros((len(systems), 3, 3), dtype=torch.float64, requires_grad=True)
    deform = torch.eye(3, dtype=torch.float64) + strain
    if lists is not None:
        lists = lists._replace(cell=lists.cell @ deform)
    if charges is None:
        charges = torch.zeros(molecules.numbers.shape, dtype=torch.float64)
    energy = module(molecules._replace(coord=coord @ deform), lists, charges)
    gradient, virial = torch.autograd.grad(energy.sum(), [coord, strain])
    return Result(
        energy.detach().numpy() / EV_PER_HARTREE,
        gradient.numpy() / EV_PER_HARTREE * ANGSTROM_PER_BOHR,
        virial.numpy() / EV_PER_HARTREE,
    )


def package_model(atoms: Atoms, cutoffs: D4Cutoffs = DEFAULT_CUTOFFS) -> DispersionModel:
    cell = {}
    if atoms.pbc.any():
        cell = {"lattice": atoms.cell.array * BOHR_PER_ANGSTROM, "periodic": atoms.pbc}
    model = DispersionModel(atoms.numbers, atoms.positions * BOHR_PER_ANGSTROM, charge_of(atoms), **cell)
    model.set_realspace_cutoff(**package_cutoffs(cutoffs))
    return model


def reference(
    atoms: Atoms, parameters: DampingParameters = PBE0, cutoffs: D4Cutoffs = DEFAULT_CUTOFFS
) -> tuple[Result, np.ndarray]:
    """Energy and derivatives of the dftd4 package, and its charges."""
    model = package_model(atoms, cutoffs)
    result = model.get_dispersion(DampingParam(**parameters._asdict(), alp=16.0), grad=True)
    found = Result(np.array([result["energy"]]), result["gradient"][None], result["virial"][None])
    return found, model.get_properties()["partial charges"]


def rattled(atoms: Atoms, seed: int, scale: float = 0.05) -> Atoms:
    atoms.positions += np.random.default_rng(seed).normal(scale=scale, size=atoms.positions.shape)
    return atoms


def g2_molecules() -> list[Atoms]:
    return [rattled(g2[name], seed) for seed, name in enumerate(g2.names)]


def ions() -> list[Atoms]:
    """Charged molecules: ions of chemistry, and others just given a charge."""
    ammonium, borohydride, hydronium = molecule("CH4"), molecule("CH4"), molecule("NH3")
    ammonium.numbers[0], borohydride.numbers[0], hydronium.numbers[0] = 7, 5, 8
    corners = np.array([(0, 0, 0), (1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)])
    charged = [
        (ammonium, 1),
        (borohydride, -1),
        (hydronium, 1),
        (Atoms("NO3", [(0, 0, 0), (1.24, 0, 0), (-0.62, 1.07, 0), (-0.62, -1.07, 0)]), -1),
        (Atoms("PO4", 1.54 / math.sqrt(3) * corners), -3),
        (Atoms("I3", [(0, 0, 0), (2.92, 0, 0), (-2.92, 0, 0)]), -1),
        (Atoms("OThO", [(0, 0, 1.76), (0, 0, 0), (0, 0, -1.76)]), 2),
        *[(molecule(name), charge) for name in ("OH", "CN", "SH", "HCOOH", "SiH4", "C6H6") for charge in (-1, 1)],
    ]
    for seed, (atoms, charge) in enumerate(charged):
        rattled(atoms, seed, 0.03)
        atoms.info["charge"] = charge
    return [atoms for atoms, _ in charged]


def dimers() -> list[Atoms]:
    """Rare gases, halogens and heavy atoms, near and far."""
    pairs = ("He2", "Ne2", "Ar2", "Kr2", "Xe2", "Rn2", "HeXe", "ArKr", "BrI", "PCl", "AuCl", "PbS", "CsI", "PtH")
    return [Atoms(pair, [(0, 0, 0), (0, 0, distance)]) for pair in pairs for distance in (2.5, 3.8, 12.0)]


def cluster(symbols: str, size: int, spacing: float, seed: int, charge: float = 0.0) -> Atoms:
    """Rattled piece of a cubic lattice with elements drawn from `symbols`."""
    rng = np.random.default_rng(seed)
    side = math.ceil(size ** (1 / 3))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3), -1).reshape(-1, 3)[:size] * spacing
    atoms = Atoms(rng.choice(symbols.split(), size), positions=grid + rng.normal(scale=0.1 * spacing, size=grid.shape))
    atoms.info["charge"] = charge
    return atoms


# cells whose lattice sum of charges the dftd4 package cuts off too early for eight digits: see test_eeq.py
IONIC = ("NaCl", "ZnO")
SLOW = ("diamond", "water")  # compared at shorter cutoffs


@functools.cache
def crystals() -> dict[str, Atoms]:
    """Cells of one atom to 18, triclinic, left-handed, smaller and larger than the cutoffs, atoms outside the cell."""
    found = {
        "NaCl": rattled(bulk("NaCl", "rocksalt", 5.64), 1),
        "ZnO": rattled(bulk("ZnO", "wurtzite", 3.25, c=5.2), 3),
        "Ar": bulk("Ar", "fcc", 5.26),
        "Cu": bulk("Cu"),
        "diamond": rattled(bulk("C"), 2),
        "CO2": Atoms("CO2", [(0, 0, 0), (0, 0.1, 1.16), (0, 0, -1.16)], cell=[[4, 0, 0], [1, 4.3, 0], [0.5, 0.8, 4.6]]),
        "left-handed": rattled(Atoms(molecule("NH3"), cell=[[0, 4.8, 0.6], [4.6, 0, 0], [0, 0, 4.9]]), 4),
        "box": Atoms(molecule("CH3Cl"), cell=[14, 14.5, 14]),
        "large box": Atoms(molecule("H2O"), cell=[40, 41, 42]),
        "benzene": rattled(Atoms(molecule("C6H6"), cell=[[7.4, 0, 0], [0.5, 7, 0], [0, 1, 7.2]]), 5),
        "acetamide": rattled(Atoms(molecule("CH3CONH2"), cell=[[5.5, 0, 0], [1.5, 5.6, 0], [-1, 0.7, 5.8]]), 6),
        "water": water_crystal(),
    }
    found["acetamide"].positions[:4] += found["acetamide"].cell[0] - 2 * found["acetamide"].cell[2]
    for atoms in found.values():
        atoms.pbc = True
    return found


def water_crystal() -> Atoms:
    atoms = Atoms(cell=[6, 6.2, 6.1])
    for number in range(6):
        water = molecule("H2O")
        water.rotate(60.0 * number, (1, number, 2))
        water.translate((number % 2 * 3.0, number // 2 % 2 * 3.1, number // 4 * 3.0))
        atoms += water
    return rattled(atoms, 7)


def ionic_supercells() -> dict[str, Atoms]:
    """Ionic crystals in cells whose lattice sum has converged in the dftd4 package, too."""
    return {
        "NaCl": rattled(bulk("NaCl", "rocksalt", 5.64, cubic=True).repeat(2), 8),
        "ZnO": rattled(bulk("ZnO", "zincblende", 4.8, cubic=True).repeat(2), 9),
        "CsCl": rattled(bulk("CsCl", "cesiumchloride", 4.12).repeat(3), 10),
    }


def crystal_cutoffs(name: str) -> D4Cutoffs:
    return SHORT if name in SLOW else DEFAULT_CUTOFFS


@functools.cache
def crystal_reference(name: str) -> tuple[Result, np.ndarray]:
    return reference(crystals()[name], cutoffs=crystal_cutoffs(name))
