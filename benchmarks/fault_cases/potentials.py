"""Compiled potentials that calculators are tried on, in a second, without a training; and the two ways to evaluate."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule

from aimnet2mult import AIMNet2MultCalculator
from aimnet2mult.configs.dispersion import DispersionSettings
from aimnet2mult.configs.metadata import FidelityInfo
from aimnet2mult.configs.model import ModelConfig
from aimnet2mult.datasets.sae_file import write_sae
from aimnet2mult.engine import warmup
from aimnet2mult.models.files import save_weights
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.training.compile import compile_potential
from fault_cases.material import MODEL

FIDELITIES = [
    FidelityInfo(index=0, name="PBE0", elements=[1, 6, 7, 8, 14], labels=["energy", "forces"]),
    FidelityInfo(index=1, name="CCSD(T)", elements=[1, 6, 8], labels=["energy"]),
]
# about the size of total energies, eV
SAE = {1: -13.6, 6: -1030.1, 7: -1485.3, 8: -2042.6, 14: -7876.3}
D3 = DispersionSettings(method="d3bj", functional="pbe0")
D4 = DispersionSettings(method="d4", functional="pbe0")
KINDS = (("model", D3), ("d4", D4))  # names of files, and the dispersion inside
ROADS = ("default", "program")


def write_potentials(
    folder: Path, name: str = "model", dispersion: DispersionSettings = D3, noise: float = 0.3
) -> Path:
    """Compile networks of random weights for both fidelities; returns the path of the first, ``<name>_fid0.jpt``.

    With the default `noise`, forces are of the size of an eV/Å; with 0.1 they are thirty times smaller.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        network = MultiFidelityNetwork(ModelConfig.model_validate(MODEL)).float()
        for parameter in network.parameters():
            # nothing is equal or zero by construction
            parameter.add_(noise * torch.randn(parameter.shape))
    sae = {info.index: {z: SAE[z] + info.index for z in info.elements} for info in FIDELITIES}
    save_weights(folder / f"{name}.pt", network, FIDELITIES, {}, sae)
    with contextlib.redirect_stdout(io.StringIO()):
        for info in FIDELITIES:
            energies = folder / f"{name}_sae{info.index}.yaml"
            write_sae(energies, sae[info.index])
            prefix = folder / name
            compile_potential(folder / f"{name}.pt", prefix, info.index, energies, dispersion=dispersion)
    return folder / f"{name}_fid0.jpt"


@contextmanager
def road(name: str) -> Iterator[None]:
    """Calculators made inside evaluate by default (the compiled engine where it is there) or by the files' programs."""
    if name == "default":
        yield
        return
    with patch.object(warmup, "ready", lambda: False):
        yield


def roads() -> dict[str, str]:
    """What calculators evaluate by: name of the road, and what it is on this machine."""
    return {"default": "compiled engine" if warmup.ready() else "program of the file", "program": "program of the file"}


def calculator(model: Any, way: str = "default", **arguments: Any) -> AIMNet2MultCalculator:
    """A calculator on the CPU that evaluates in one of the two ways, loaded anew."""
    with road(way):
        return AIMNet2MultCalculator(model, **({"device": "cpu"} | arguments))


class Calculators:
    """New calculators that share loaded potentials: loading takes a quarter of a second, which cases need not spend.

    Parameters
    ----------
    model
        Path of a potential.
    """

    def __init__(self, model: Path) -> None:
        self.model = model
        self._loaded: dict[str, AIMNet2MultCalculator] = {}

    def __call__(self, way: str, **arguments: Any) -> AIMNet2MultCalculator:
        """A calculator without results; charge and mult go to `set`, others to the constructor."""
        state = {key: arguments.pop(key) for key in ("charge", "mult", "fidelity") if key in arguments}
        name = f"{way} {arguments}"
        if name not in self._loaded:
            self._loaded[name] = calculator(self.model, way, **arguments)
        fresh = copy.copy(self._loaded[name])
        fresh.set(**state)
        return fresh


def water(**info: object) -> Atoms:
    """A water molecule without symmetry."""
    atoms = Atoms("OH2", molecule("H2O").positions, info=info)
    atoms.rattle(0.02, seed=1)
    return atoms


def alkane(n: int) -> Atoms:
    """A stretched chain CnH2n+2."""
    sites = np.arange(n)[:, None]
    up = np.where(sites % 2 == 0, 1.0, -1.0)
    carbon = np.hstack([1.27 * sites, 0.45 * up, np.zeros((n, 1))])
    side = np.hstack([np.zeros((n, 1)), 0.6 * up, np.full((n, 1), 0.9)])
    ends = np.array([[-0.95, -0.1, 0.0], [1.27 * (n - 1) + 0.95, -0.1, 0.0]])
    return Atoms(f"C{n}H{2 * n + 2}", np.vstack([carbon, carbon + side, carbon + side * [1, 1, -1], ends]))


def boxed(n: int = 2, length: float = 3.4) -> Atoms:
    """n^3 water molecules in a triclinic cell, each turned in its own way."""
    atoms = Atoms()
    for i in range(n**3):
        single = molecule("H2O")
        single.rotate(57.0 * i, (1.0, 0.3 * i, -0.7))
        single.translate((length * (i // n**2), length * (i // n % n), length * (i % n)))
        atoms += single
    atoms.set_cell(n * length * np.array([[1.0, 0.0, 0.0], [0.1, 1.0, 0.0], [-0.05, 0.1, 1.0]]))
    atoms.pbc = True
    atoms.wrap()
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)


def said(work: Callable[[], object]) -> str:
    """Kind and text of the error that `work` raises; empty if it raises none."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
