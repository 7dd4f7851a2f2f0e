"""What a compiled potential must pass before its file gets its final name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aimnet2mult.errors import ModelFileError
from aimnet2mult.models.derivatives import forces_from_energy
from aimnet2mult.training.dispersion import DispersionTerm, library_energy
from aimnet2mult.types import Molecules
from aimnet2mult.units import EV_PER_HARTREE

Evaluate = Callable[[dict[str, Tensor]], dict[str, Tensor]]

# float64 through a few hundred operations on energies of up to 1e6 eV leaves 1e-9 relative to that scale
ROUNDING = 1e-13
# error of a central difference with step h: h^2/6 * third derivative + rounding of the energy / h
STEP = 1e-4
FORCE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class SelfTestReport:
    """Largest deviations found: eV, eV/Å, eV, eV; None where there is no dispersion."""

    scripted_eager: float
    forces_differences: float
    alone_padded: float
    dispersion_library: float | None

    def format(self) -> str:
        """One line for logs and the model card."""
        parts = [
            f"scripted = eager to {self.scripted_eager:.1e} eV",
            f"forces = finite differences to {self.forces_differences:.1e} eV/Å",
            f"alone = padded to {self.alone_padded:.1e} eV",
        ]
        if self.dispersion_library is not None:
            parts.append(f"dispersion = its authors' package to {self.dispersion_library:.1e} eV")
        return "; ".join(parts)


def run_selftest(
    scripted: torch.jit.ScriptModule,
    eager: torch.nn.Module,
    dispersion: DispersionTerm | None,
    elements: Sequence[int],
) -> SelfTestReport:
    """Compare a compiled potential with independent routes to the same numbers.

    Parameters
    ----------
    scripted, eager
        The compiled and the Python potential, both in float64 throughout.
    dispersion
        The dispersion correction inside, None without one.
    elements
        Atomic numbers that the potential knows.

    Raises
    ------
    ModelFileError
        A comparison fails; the message says which and by how much.
    """
    batch = synthetic_molecules(elements)
    reference = eager(batch)["energy"].detach()
    scale = float(reference.abs().max()) + 1.0
    report = SelfTestReport(
        scripted_eager=_max_difference(scripted(batch)["energy"].detach(), reference),
        forces_differences=_force_deviation(scripted, batch),
        alone_padded=_padding_deviation(scripted, batch),
        dispersion_library=(
            None
            # the package has no means to take charges from outside
            if dispersion is None or dispersion.info.charges == "network"
            else _library_deviation(dispersion, batch)
        ),
    )
    _require("scripted and eager energies", report.scripted_eager, ROUNDING * scale + 1e-9, "eV")
    _require(
        "forces and finite differences", report.forces_differences, FORCE_TOLERANCE + 2e-16 * scale / STEP * 10, "eV/Å"
    )
    _require("a molecule alone and in a padded batch", report.alone_padded, ROUNDING * scale + 1e-9, "eV")
    if report.dispersion_library is not None:
        _require("dispersion and the package of its authors", report.dispersion_library, 1e-9 * EV_PER_HARTREE, "eV")
    return report


def synthetic_molecules(elements: Sequence[int], sizes: Sequence[int] = (1, 2, 5, 9)) -> dict[str, Tensor]:
    """A padded float64 batch of made-up clusters of the given elements, the same at every call."""
    random = np.random.default_rng(7)
    n_max = max(sizes)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    coord = np.zeros((len(sizes), n_max, 3))
    numbers = np.zeros((len(sizes), n_max), dtype=np.int64)
    for row, size in enumerate(sizes):
        # sites of a cubic lattice, shaken: no pair closer than about 1 Å
        coord[row, :size] = 1.5 * grid[random.permutation(len(grid))[:size]] + random.uniform(-0.2, 0.2, (size, 3))
        numbers[row, :size] = random.permutation(np.resize(np.asarray(elements), max(size, len(elements))))[:size]
    electrons = numbers.sum(1)
    return {
        "coord": torch.from_numpy(coord),
        "numbers": torch.from_numpy(numbers),
        "charge": torch.zeros(len(sizes), dtype=torch.float64),
        "mult": torch.from_numpy(1.0 + electrons % 2),
    }


def _force_deviation(potential: Evaluate, batch: dict[str, Tensor]) -> float:
    largest = {key: value[-1:] for key, value in batch.items()}
    coord = largest["coord"].clone().requires_grad_()
    forces = forces_from_energy(potential({**largest, "coord": coord})["energy"], coord).flatten()
    # every displaced copy of the molecule, forwards and backwards, as one batch
    steps = STEP * torch.eye(forces.numel(), dtype=torch.float64).view(forces.numel(), -1, 3)
    moved = {k: v.expand(2 * forces.numel(), *v.shape[1:]) for k, v in largest.items()}
    energies = potential({**moved, "coord": moved["coord"] + torch.cat([steps, -steps])})["energy"].detach()
    forward, backward = energies.chunk(2)
    numeric = -(forward - backward) / (2.0 * STEP)
    return float(((numeric - forces).abs() / (1.0 + numeric.abs())).max())


def _padding_deviation(potential: Evaluate, batch: dict[str, Tensor]) -> float:
    together = potential(batch)["energy"].detach()
    worst = 0.0
    for row in range(len(together)):
        size = int((batch["numbers"][row] > 0).sum())
        alone = {k: v[row : row + 1, :size] if v.dim() > 1 else v[row : row + 1] for k, v in batch.items()}
        worst = max(worst, _max_difference(potential(alone)["energy"].detach(), together[row : row + 1]))
    return worst


def _library_deviation(dispersion: DispersionTerm, batch: dict[str, Tensor]) -> float:
    fidelity = torch.zeros_like(batch["numbers"][:, 0])
    molecules = Molecules(batch["coord"], batch["numbers"], batch["charge"], batch["mult"], fidelity)
    ours = dispersion.term(molecules, None, torch.zeros_like(batch["coord"][..., 0])).detach()
    worst = 0.0
    for row, numbers in enumerate(batch["numbers"].numpy()):
        real = numbers > 0
        theirs = library_energy(dispersion.info, numbers[real], batch["coord"].numpy()[row][real])
        worst = max(worst, abs(float(ours[row]) - theirs))
    return worst


def _max_difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _require(what: str, deviation: float, bound: float, unit: str) -> None:
    if not deviation <= bound:  # also true for NaN
        raise ModelFileError(
            f"self-test failed: {what} differ by {deviation:.3e} {unit} (bound {bound:.1e}); the file was not written"
        )
