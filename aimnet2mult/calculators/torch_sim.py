"""Adapter for torch-sim: batched simulations of many systems with a compiled potential.

Needs the optional package torch-sim-atomistic (``pip install "aimnet2mult[torch-sim]"``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress
from torch import Tensor

from aimnet2mult.calculators.ase import AIMNet2MultCalculator
from aimnet2mult.errors import InputError

try:
    from torch_sim.models.interface import ModelInterface
except ImportError as error:
    raise ImportError(
        f'torch-sim cannot be imported ({error}); install it with: pip install "aimnet2mult[torch-sim]"'
    ) from error


class AIMNet2MultModel(ModelInterface):
    """A compiled potential as a model of torch-sim.

    Parameters
    ----------
    model, fidelity, coulomb
        As for `AIMNet2MultCalculator`.
    charge, mult
        Of every system; None: of the state where it holds them, else neutral and lowest spin.
    device
        ``"cpu"``, ``"cuda"`` or ``"cuda:N"``. None: the GPU if there is one.
    dtype
        Of the results, and of the states that the model is used with. With float64 the network runs in float64 too.
    compute_forces, compute_stress
        Whether results hold them; stress only for states that are periodic.

    Raises
    ------
    InputError, ModelFileError
        As for `AIMNet2MultCalculator`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        fidelity: int | str | None = None,
        charge: int | None = None,
        mult: int | None = None,
        coulomb: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float64,
        compute_forces: bool = True,
        compute_stress: bool = True,
    ) -> None:
        super().__init__()
        if dtype not in (torch.float32, torch.float64):
            raise InputError(f"dtype {dtype} cannot be used; give torch.float32 or torch.float64")
        self.calculator = AIMNet2MultCalculator(
            model,
            fidelity=fidelity,
            charge=charge,
            mult=mult,
            device=device,
            dtype="float64" if dtype == torch.float64 else "mixed",
            coulomb=coulomb,
        )
        self._device = torch.device(self.calculator.parameters["device"])
        self._dtype = dtype
        self._compute_forces = compute_forces
        self._compute_stress = compute_stress

    # torch-sim switches both on and off by assignment
    @property
    def compute_forces(self) -> bool:
        """Whether results hold forces."""
        return self._compute_forces

    @compute_forces.setter
    def compute_forces(self, value: bool) -> None:
        self._compute_forces = value

    @property
    def compute_stress(self) -> bool:
        """Whether results hold stresses."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, value: bool) -> None:
        self._compute_stress = value

    def forward(self, state: Any, **_unused: Any) -> dict[str, Tensor]:
        """Energies (S,) eV, forces (n, 3) eV/Å and stresses (S, 3, 3) eV/Å^3 of all systems of a state.

        Parameters
        ----------
        state
            A ``SimState`` of torch-sim, or a dictionary of its attributes. Cell vectors stand in columns there.

        Raises
        ------
        InputError
            A system cannot be used; the message starts with its place in the state.
        """
        systems = _structures(state)
        stress = self._compute_stress and all(bool(atoms.pbc.all()) for atoms in systems)
        found = self.calculator.evaluate(systems, forces=self._compute_forces, stress=stress)
        results = {"energy": self._tensor([one.energy for one in found])}
        if self._compute_forces:
            results["forces"] = torch.cat([self._tensor(one.forces) for one in found])
        if stress:
            results["stress"] = torch.stack([self._tensor(voigt_6_to_full_3x3_stress(one.stress)) for one in found])
        results["charges"] = torch.cat([self._tensor(one.charges) for one in found])
        return results

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=self._dtype, device=self._device)


def _structures(state: Any) -> list[Atoms]:
    """The systems of a state, one after the other."""
    values = state if isinstance(state, dict) else vars(state)
    positions = values["positions"].detach().cpu().double().numpy()
    numbers = values["atomic_numbers"].detach().cpu().numpy()
    cells = values["cell"].detach().cpu().double().transpose(-1, -2).reshape(-1, 3, 3).numpy()
    owner = values.get("system_idx", values.get("_system_idx"))
    rows = torch.zeros(len(numbers), dtype=torch.int64) if owner is None else owner.detach().cpu()
    periodic = torch.as_tensor(values["pbc"]).cpu().expand(3).tolist()
    systems = []
    for place, cell in enumerate(cells):
        mine = (rows == place).numpy()
        info = {key: _of_system(values.get(name), place) for key, name in (("charge", "charge"), ("mult", "spin"))}
        systems.append(Atoms(numbers[mine], positions[mine], cell=cell, pbc=periodic, info=info))
    return systems


def _of_system(values: Tensor | None, place: int) -> float | None:
    # newer versions of torch-sim keep charge and spin multiplicity, 0 where nobody has said
    if values is None or values.numel() == 0:
        return None
    value = float(values.flatten()[place])
    return value if value != 0.0 else None
