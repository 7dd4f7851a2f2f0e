"""The list of what is measured, and the files that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import write
from peers.base import Settings

from speedbench import systems
from speedbench.floor import FORCES_FLOP, MAX_ROWS, TRAINING_FLOP

PUBLISHED = Settings()
WITHOUT_D3 = Settings(dispersion=False)
DSF_FROM = 999  # atoms from which a Coulomb sum with a cutoff is measured too
TRAINING_SAMPLES = 768
TRAINING_BATCHES = (64, 256)
TRAINING_ATOMS = 12


@dataclass(frozen=True)
class Item:
    """One line of the table."""

    section: str  # forces, dynamics, batch or training
    label: str
    request: dict[str, Any]
    atoms: int  # in one unit of work: a call, a step, a batch
    flop_per_atom: float = FORCES_FLOP
    molecules: int | None = None  # in one unit, where molecules per second are what counts
    size: int | None = None  # of the system, for the plot
    settings: Settings = field(default=PUBLISHED)

    @property
    def flop(self) -> float:
        """FLOP of the matrix products in one unit."""
        return self.atoms * self.flop_per_atom

    @property
    def rows(self) -> int:
        """Rows of the matrix products whose rate makes the floor."""
        return min(self.atoms, MAX_ROWS)


def describe(settings: Settings) -> str:
    """Settings in words, for labels."""
    dispersion = "" if settings.dispersion else ", without D3"
    return {"simple": "", "dsf": ", DSF Coulomb", "ewald": ", Ewald Coulomb"}[settings.coulomb] + dispersion


class Plan:
    """Writes the structures to `folder` and lists the items."""

    def __init__(self, folder: Path, sizes: Sequence[int], sections: Sequence[str]) -> None:
        self._folder = folder.resolve()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sizes = sizes
        self._sections = sections

    def items(self) -> list[Item]:
        """Everything of the chosen sections, in the order of the table."""
        parts = {"forces": self._forces, "dynamics": self._dynamics, "batch": self._batch, "training": self._training}
        return [item for name, part in parts.items() if name in self._sections for item in part()]

    def system_file(self, n_atoms: int) -> Path:
        """File of the structure of this size."""
        return self._file(f"{n_atoms}", lambda: systems.system(n_atoms))

    def box_file(self) -> Path:
        """File of the periodic box of water."""
        return self._file("box", systems.water_box)

    def _forces(self) -> list[Item]:
        items = []
        for settings in (PUBLISHED, WITHOUT_D3, Settings(coulomb="dsf")):
            for size in self._sizes:
                if settings.coulomb == "simple" or size >= DSF_FROM:
                    name = f"{systems.NAMED[size]}, " if size in systems.NAMED else ""
                    request = {"do": "forces", "file": str(self.system_file(size)), "settings": settings._asdict()}
                    label = f"{name}{size} atoms{describe(settings)}"
                    items.append(Item("forces", label, request, size, size=size, settings=settings))
        return items

    def _dynamics(self) -> list[Item]:
        box = self.box_file()
        cases = [(self.system_file(113), "MD step, paclitaxel", PUBLISHED)]
        for settings in (Settings(True, "dsf"), Settings(False, "dsf"), Settings(True, "ewald")):
            cases.append((box, "MD step, 192 atoms of periodic water", settings))
        items = []
        for file, name, settings in cases:
            request = {"do": "dynamics", "file": str(file), "settings": settings._asdict()}
            atoms = 192 if file == box else 113
            items.append(Item("dynamics", f"{name}{describe(settings)}", request, atoms, settings=settings))
        return items

    def _batch(self) -> list[Item]:
        structures = systems.batch()
        file = self._file("batch", lambda: structures)
        atoms = sum(map(len, structures))
        items = []
        for settings in (PUBLISHED, WITHOUT_D3):
            request = {"do": "batch", "file": str(file), "settings": settings._asdict()}
            label = f"{len(structures)} molecules of 10 to 40 atoms in one call{describe(settings)}"
            items.append(Item("batch", label, request, atoms, molecules=len(structures), settings=settings))
        return items

    def _training(self) -> list[Item]:
        labelled, energy_only = self._folder / "labelled.h5", self._folder / "energy_only.h5"
        third = TRAINING_SAMPLES // 3
        write_training_data(labelled, 2 * third, with_all_labels=True)
        write_training_data(energy_only, third, with_all_labels=False)
        items = []
        for extra, what in ((None, "all four labels"), (energy_only, "a third with energies only")):
            items += [self._training_item(batch, labelled, extra, 1, what) for batch in TRAINING_BATCHES]
        items.append(self._training_item(TRAINING_BATCHES[0], labelled, None, 3, "all four labels, three fidelities"))
        return items

    def _training_item(self, batch: int, labelled: Path, extra: Path | None, fidelities: int, what: str) -> Item:
        task = {
            "labelled": str(labelled),
            "energy_only": extra and str(extra),
            "batch": batch,
            "fidelities": fidelities,
        }
        atoms = batch * TRAINING_ATOMS
        label = f"training, batch of {batch}, {what}"
        # without forces, the derivatives of the backward pass are not needed: half the products, for a third
        flop = TRAINING_FLOP if extra is None else TRAINING_FLOP * (2 + 0.5) / 3
        return Item("training", label, {"do": "training", "task": task}, atoms, flop, molecules=batch)

    def _file(self, name: str, make: Any) -> Path:
        path = self._folder / f"{name}.xyz"
        if not path.exists():
            write(path, make(), format="extxyz")
        return path


def write_training_data(path: Path, count: int, with_all_labels: bool) -> None:
    """Molecules of 12 atoms in the HDF5 format of both packages, with random labels: time does not depend on them."""
    import h5py

    molecules = systems.training_molecules(count)
    random = np.random.default_rng(count)
    shape = (count, TRAINING_ATOMS)
    with h5py.File(path, "w") as file:
        group = file.create_group(f"{TRAINING_ATOMS:03d}")
        group["coord"] = np.array([a.positions for a in molecules], dtype=np.float32)
        group["numbers"] = np.array([a.numbers for a in molecules])
        group["charge"] = np.zeros(count, dtype=np.float32)
        group["mult"] = np.ones(count, dtype=np.float32)
        group["molecule_id"] = np.arange(count)
        group["energy"] = np.array([_roughly(a) for a in molecules]) + random.normal(scale=0.1, size=count)
        if with_all_labels:
            group["forces"] = random.normal(size=(*shape, 3)).astype(np.float32)
            group["charges"] = random.normal(scale=0.1, size=shape).astype(np.float32)
            group["spin_charges"] = random.normal(scale=0.1, size=shape).astype(np.float32)


def _roughly(atoms: Atoms) -> float:
    """Total energy in eV as a sum over atoms."""
    return float(sum({1: -16.0, 6: -1035.0, 8: -2045.0}[z] for z in atoms.numbers.tolist()))
