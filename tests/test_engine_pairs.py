"""Compiled D3(BJ) and Coulomb sums against the terms of the potential in float64.

Pairs are worked out in float32: to 1e-7 of each. Dispersion energies are of the order of 0.05 eV per atom and Coulomb
energies of charges as large as here of 1 eV, so 1e-7 eV per atom (1e-6 for Coulomb) leaves room for rounding only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import suites
import torch
from ase import Atoms
from crystals import crystal, water_box
from structures import alkane
from torch import Tensor, nn

pytest.importorskip("numba", reason="the engine needs the optional package numba")

from aimnet2mult.calculators.compiled_terms import split_terms
from aimnet2mult.calculators.neighbors import FlatPairs, Frame, find_pairs
from aimnet2mult.configs.model import CoulombSettings
from aimnet2mult.engine.clusters import make_clusters
from aimnet2mult.engine.coulomb import Coulomb
from aimnet2mult.engine.dispersion import Dispersion
from aimnet2mult.models.coulomb import LRCoulomb
from aimnet2mult.models.dispersion import D3BJ
from aimnet2mult.models.foreign_dispersion import PublishedD3
from aimnet2mult.physics.d3 import D3Cutoffs
from aimnet2mult.physics.damping import DampingParameters
from aimnet2mult.types import Molecules, NeighborLists, Pairs

ELEMENTS = [1, 6, 7, 8, 9, 14, 15, 16, 17]
PBE0 = DampingParameters(1.0, 1.2177, 0.4145, 4.8593, 0.0)
SMOOTH = D3Cutoffs(60.0, 40.0, 3.0, 2.0, 41.0, 2.0)
SHORT = D3Cutoffs(disp2=14.0, disp3=10.0, width2=4.0, width3=1.0, cn=11.0, width_cn=3.0)  # cells with many ends
SHARP = D3Cutoffs(disp2=14.0, disp3=10.0, width2=0.0, width3=0.0, cn=11.0, width_cn=0.0)


def alone() -> Atoms:
    return Atoms("O", [[0.3, 0.2, 0.1]])


def stretched() -> Atoms:
    """Fragments within and beyond all cutoffs, 2,000 Å from the origin."""
    atoms = suites.structure("CH3CONH2") + suites.structure("C2H6SO")
    atoms.positions[9:] += [4.0, 20.0, 3.0]
    far = suites.structure("H2O")
    far.positions += [60.0, 0.0, 0.0]
    atoms += far
    atoms.positions += 2000.0
    return atoms


def slab() -> Atoms:
    atoms = crystal("triclinic")
    atoms.pbc = (True, True, False)
    return atoms


SYSTEMS = {
    "atom": alone,
    "two": lambda: Atoms("HO", [[0, 0, 0], [0, 0.6, 0.8]]),
    "acetamide": lambda: suites.structure("CH3CONH2"),
    "fragments": stretched,
    "alkane": lambda: alkane(40),
    "triclinic": lambda: crystal("triclinic"),
    "left-handed": lambda: crystal("left-handed"),
    "thin": lambda: crystal("thin"),
    "water": lambda: water_box(27),
}


def as_batch(atoms: Atoms, coord: Tensor, strain: Tensor, cutoff: float) -> tuple[Molecules, NeighborLists]:
    """The structure for a term of a potential; the pair list reaches to `cutoff` (Å)."""
    cell = np.where(atoms.pbc[:, None], atoms.cell.array, 0.0)
    nothing = FlatPairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.int32))
    pairs = find_pairs(Frame(atoms.positions, cell), cutoff, each_once=True) if cutoff > 0 else nothing
    deform = torch.eye(3, dtype=torch.float64) + strain
    n = len(atoms)
    rows = torch.zeros(1, n, 0, dtype=torch.int64), torch.zeros(1, n, 0, 3, dtype=torch.int32)
    lists = NeighborLists(torch.from_numpy(cell)[None] @ deform, *rows, *(torch.from_numpy(x) for x in pairs))
    one = torch.ones(1, dtype=torch.float64)
    numbers = torch.from_numpy(atoms.numbers.astype(np.int64))[None]
    return Molecules(coord @ deform, numbers, 0 * one, one, torch.zeros(1, dtype=torch.int64)), lists


def leaves(atoms: Atoms, charges: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    strain = torch.zeros(1, 3, 3, dtype=torch.float64)
    values = torch.from_numpy(atoms.positions)[None].clone(), strain, torch.from_numpy(charges)[None].clone()
    return tuple(value.requires_grad_() for value in values)  # type: ignore[return-value]


def compiled(term: nn.Module) -> Any:
    """The compiled form that a potential with this term gets."""
    holder = nn.Module()
    holder.network = nn.Module()
    heads = isinstance(term, LRCoulomb)
    term.original_name = type(term).__name__  # as scripted modules have it
    holder.network.lrcoulomb, holder.terms = nn.ModuleList([term] * heads), nn.ModuleList([term] * (not heads))
    split = split_terms(holder)
    found = [*split.coulomb, *split.dispersion]
    return found[0] if found else None


def symmetric(virial: Tensor) -> np.ndarray:
    return 0.5 * (virial[0] + virial[0].T).numpy()


@pytest.mark.parametrize("cutoffs", [SMOOTH, SHORT, SHARP], ids=["default", "short", "sharp"])
@pytest.mark.parametrize("kind", [D3BJ, PublishedD3])
@pytest.mark.parametrize("name", [*SYSTEMS, "slab"])
def test_dispersion(name: str, kind: type[D3BJ], cutoffs: D3Cutoffs) -> None:
    atoms = slab() if name == "slab" else SYSTEMS[name]()
    term = kind(ELEMENTS, PBE0)
    term.cutoffs = cutoffs
    term.pair_cutoff = 0.6 * cutoffs.disp2  # Å
    coord, strain, charges = leaves(atoms, np.zeros(len(atoms)))
    molecules, lists = as_batch(atoms, coord, strain, term.pair_cutoff)
    energy = term(molecules, lists, charges)
    gradient, virial = torch.autograd.grad(energy.sum(), [coord, strain])
    engine = compiled(term)
    assert isinstance(engine, Dispersion)
    found = engine(atoms.positions, atoms.numbers.astype(np.int64), lists.cell[0].detach().numpy(), True)
    n = len(atoms)
    assert found.energy == pytest.approx(energy.item(), abs=1e-7 * n)
    np.testing.assert_allclose(found.gradient, gradient[0].numpy(), atol=1e-6)
    np.testing.assert_allclose(found.virial, symmetric(virial), atol=1e-6 * n)
    assert engine(atoms.positions, atoms.numbers, lists.cell[0].detach().numpy(), False).energy == found.energy


def test_dispersion_that_is_not_compiled() -> None:
    three_body = D3BJ(ELEMENTS, PBE0._replace(s9=1.0))
    assert compiled(three_body) is None
    far = D3BJ(ELEMENTS, PBE0, SMOOTH._replace(disp2=400.0))
    assert compiled(far) is None
    engine = compiled(D3BJ([1, 8], PBE0))
    with pytest.raises(ValueError, match="element with Z = 6 is not among those of this potential"):
        engine(np.zeros((1, 3)), np.array([6]), np.zeros((3, 3)), True)
    assert engine.key == compiled(D3BJ([1, 8], PBE0)).key
    assert engine.key != compiled(D3BJ([1, 8], PBE0._replace(a1=0.5))).key
    assert engine.key != compiled(D3BJ([1, 8], PBE0, SHORT)).key


def charges_of(atoms: Atoms) -> np.ndarray:
    """Charges that sum to 1 e."""
    charges = np.random.default_rng(len(atoms)).normal(scale=0.3, size=len(atoms))
    return charges + (1.0 - charges.sum()) / len(atoms)


METHODS = [("simple", 15.0), ("ewald", 15.0), ("dsf", 15.0), ("dsf", 6.0)]


@pytest.mark.parametrize("short_range", [4.6, 9.0])
@pytest.mark.parametrize(
    ("name", "method", "dsf_cutoff"),
    [*((name, *method) for name in SYSTEMS for method in METHODS), *(("slab", *method) for method in METHODS[2:])],
)
def test_coulomb(name: str, method: str, dsf_cutoff: float, short_range: float) -> None:
    atoms = slab() if name == "slab" else SYSTEMS[name]()
    head = LRCoulomb(CoulombSettings(method=method, rc=short_range, dsf_cutoff=dsf_cutoff))  # type: ignore[arg-type]
    q = charges_of(atoms)
    coord, strain, charges = leaves(atoms, q)
    n, volume = len(atoms), atoms.get_volume() if atoms.pbc.all() else 0.0
    molecules, lists = as_batch(atoms, coord, strain, head.pair_cutoff(n, volume))
    unused = torch.zeros(0, 0)
    energy = head(charges, molecules, Pairs(unused, unused, unused.bool(), None), lists)
    gradient, virial, by_charge = torch.autograd.grad(energy.sum(), [coord, strain, charges])
    engine = compiled(head)
    assert isinstance(engine, Coulomb)
    found = engine(atoms.positions, q, lists.cell[0].detach().numpy())
    assert found.energy == pytest.approx(energy.item(), abs=1e-6 * n)
    np.testing.assert_allclose(found.gradient, gradient[0].numpy(), atol=3e-6)
    np.testing.assert_allclose(found.by_charge, by_charge[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(found.virial, symmetric(virial), atol=1e-5 * max(1, n // 10))


def test_clusters_hold_every_atom_once() -> None:
    atoms = water_box(27)
    kinds = (atoms.numbers == 8).astype(np.int64)
    clusters = make_clusters(atoms.positions - 50.0, kinds, atoms.cell.array, 12.0)
    lanes = clusters.atom.reshape(-1, 16)
    real = [atom for row, n in zip(lanes, clusters.filled, strict=True) for atom in row[:n]]
    assert sorted(real) == list(range(len(atoms)))
    for row, kind in zip(lanes, clusters.kind, strict=True):
        assert (kinds[row] == kind).all()
    places = clusters.coord.reshape(-1, 3, 16).transpose(0, 2, 1)
    assert (places >= clusters.low.reshape(-1, 1, 3)).all()
    assert (places <= clusters.high.reshape(-1, 1, 3)).all()
    inside = places @ np.linalg.inv(atoms.cell.array)
    assert ((inside > -1e-9) & (inside < 1 + 1e-9)).all()
    shifts = clusters.shifts.reshape(-1, 3)
    assert (shifts[0] == 0.0).all()
    # every translation that brings a part of the cell within the cutoff of another one
    listed = {tuple(np.round(s @ np.linalg.inv(atoms.cell.array)).astype(int)) for s in shifts}
    for n in np.ndindex(7, 7, 7):
        step = np.array(n) - 3
        nearest = np.clip(np.abs(step) - 1, 0, None) @ atoms.cell.array
        if np.linalg.norm(nearest) < 12.0:
            assert tuple(step) in listed
