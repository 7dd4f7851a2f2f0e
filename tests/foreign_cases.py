"""Small networks in the published layout."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import suites
import torch
from ase import Atoms
from ase.build import molecule
from published_program import AIMNet2
from torch import Tensor, nn

from aimnet2mult.models.derivatives import forces_from_energy

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*")
TINY: dict[str, Any] = {"n": 3, "g": 5, "h": 4, "hidden": [[8, 6], [7], [6, 5]]}
PUBLISHED = (
    sorted(Path(os.environ.get("AIMNET2_PUBLISHED", "")).glob("*.jpt")) if "AIMNET2_PUBLISHED" in os.environ else []
)


def network(seed: int = 0, **changes: Any) -> AIMNet2:
    torch.manual_seed(seed)
    return AIMNet2(**{**TINY, **changes})


def write(path: Path, module: nn.Module) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module.eval()), str(path))
    return path


def bare(symbols: str, positions: Any = None, charge: int = 0) -> Atoms:
    return Atoms(symbols, positions=positions, info={"charge": charge, "mult": 1})


def water_box(n: int) -> Atoms:
    """n^3 water molecules on a loose grid, each turned in its own way."""
    atoms, one = Atoms(), molecule("H2O")
    for i in range(n**3):
        single = one.copy()
        single.rotate(57.0 * i, (1.0, 0.3 * i, -0.7))
        single.translate((3.1 * (i // n**2), 3.1 * (i // n % n), 3.1 * (i % n)))
        atoms += single
    atoms.info = {"charge": 0, "mult": 1}
    return atoms


def structures() -> list[Atoms]:
    """Neutral molecules and ions of 1 to 81 atoms, atoms without neighbours among them."""
    tetrahedron = [[1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]]
    cases = [suites.structure(name) for name in ("H2O", "CH4", "C6H6", "CH3CONH2", "CH3Cl", "SO2", "C2H6SO")]
    cases += [suites.structure("OH", -1, 1), suites.structure("CN", -1, 1), bare("Cl", charge=-1), bare("H", charge=1)]
    cases.append(bare("NH4", [[0, 0, 0], *(0.6 * torch.tensor(tetrahedron)).tolist()], 1))
    cases.append(bare("SO4", [[0, 0.1, 0], *(0.86 * torch.tensor(tetrahedron)).tolist()], -2))
    chloride = suites.structure("H2O") + Atoms("Cl", positions=[[0.1, 2.2, -2.6]])  # next to no coordination
    chloride.info = {"charge": -1, "mult": 1}
    far = suites.structure("CH4") + Atoms("OH", positions=[[7.0, 0.3, 0.1], [7.9, 0.2, 0.4]])
    far.info = {"charge": -1, "mult": 1}
    return [*cases, chloride, far, water_box(3)]


def ours(module: Callable[[dict[str, Tensor]], dict[str, Tensor]], atoms: Atoms) -> suites.Results:
    batch = suites.collate([atoms])
    coord = batch.coord.requires_grad_()
    found = module({"coord": coord, "numbers": batch.numbers, "charge": batch.charge})
    forces = forces_from_energy(found["energy"], coord)
    return suites.Results(found["energy"].detach(), forces, found["charges"].detach(), found["spin_charges"])


def theirs(program: nn.Module, atoms: Atoms) -> tuple[Tensor, Tensor, Tensor]:
    coord = torch.tensor(atoms.positions, requires_grad=True)
    charge = torch.tensor(atoms.info["charge"], dtype=torch.float64)
    energy, charges = program(coord, torch.tensor(atoms.numbers, dtype=torch.int64), charge)
    (gradient,) = torch.autograd.grad(energy, coord)
    return energy.detach(), -gradient, charges.detach()


def rewritten(path: Path, change: Callable[[AIMNet2], None], **changes: Any) -> Path:
    program = network(**changes)
    with torch.no_grad():
        change(program)
    return write(path, program)


def set_attribute(dotted: str, value: object) -> Callable[[AIMNet2], None]:
    def change(program: AIMNet2) -> None:
        owner, _, name = dotted.rpartition(".")
        setattr(program.get_submodule(owner), name, value)

    return change


def set_values(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[AIMNet2], None]:
    def apply(program: AIMNet2) -> None:
        owner, _, attribute = name.rpartition(".")
        module = program.get_submodule(owner)
        setattr(module, attribute, nn.Parameter(change(getattr(module, attribute).detach())))

    return apply


def published_double(program: Any, atoms: Atoms) -> tuple[Tensor, Tensor, Tensor]:
    """The published program in float64: its own methods one by one, because its entrance rounds to float32."""
    coord = torch.tensor(atoms.positions, requires_grad=True)
    numbers = torch.tensor(atoms.numbers, dtype=torch.int64)
    charge = torch.tensor([float(atoms.info["charge"])], dtype=torch.float64)
    data = {"coord": coord.unsqueeze(0), "numbers": numbers.unsqueeze(0), "charge": charge}
    data["pad_mask"] = torch.tensor([0])
    data["a"] = program.afv(data["numbers"]).unflatten(-1, list(program.conv_a.agh.shape[:2]))
    data = program.aev(data)
    passes = list(program.mlps.children())
    data = program._update_q(data, passes[0](program._prepare_in_a(data)), False)
    for layers in passes[1:]:
        data["aim"] = layers(torch.cat([program._prepare_in_a(data), program._prepare_in_q(data)], -1))
        if layers is not passes[-1]:
            data = program._update_q(data, data["aim"], True)
    for head in program.outputs.children():
        data = head(data)
    (gradient,) = torch.autograd.grad(data["energy"].sum(), coord)
    return data["energy"][0].detach(), -gradient, data["charges"][0].detach()


def published_structures() -> list[Atoms]:
    """As above, with the other elements that the published networks know."""
    cases = structures()
    for name in ("SiH4", "PH3", "BF3"):
        cases.append(suites.structure(name))
    cases.append(bare("IBr", [[0, 0, 0], [0, 0.1, 2.47]]))
    cases.append(bare("AsH3", [[0, 0, 0], [0, 1.25, 0.85], [1.08, -0.62, 0.85], [-1.08, -0.62, 0.85]]))
    cases.append(bare("SeH2", [[0, 0, 0], [1.03, 0, 1.03], [-1.03, 0, 1.03]]))
    c60 = molecule("C60")
    c60.info = {"charge": 0, "mult": 1}
    return [*cases, c60]
