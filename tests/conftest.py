"""Compiled potentials that several test modules share: random weights, quick to make and to evaluate."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import run_case
import suites
import torch
import yaml
from ase.data import chemical_symbols
from torch import Tensor, nn

from aimnet2mult import AIMNet2MultCalculator, torch_threads
from aimnet2mult.calculators import ase as calculator_module
from aimnet2mult.calculators.evaluation import Evaluation
from aimnet2mult.configs.metadata import FidelityInfo, PotentialMetadata
from aimnet2mult.configs.model import ModelConfig
from aimnet2mult.engine import warmup
from aimnet2mult.models.files import script_potential, write_potential
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.models.potential import Potential, SelfAtomicEnergy
from aimnet2mult.physics.geometry import all_pairs, atom_index, listed_pairs, sum_molecules
from aimnet2mult.physics.radial import cosine_cutoff
from aimnet2mult.types import Molecules, NeighborLists, Pairs

FIDELITIES = [
    FidelityInfo(index=0, name="PBE0", elements=[1, 6, 7, 8, 9, 14, 16, 17], labels=["energy", "forces"]),
    FidelityInfo(index=1, name="CCSD(T)", elements=[1, 6, 7, 8], labels=["energy"]),
]
# about the size of total energies, in eV
SAE = {1: -13.6, 6: -1030.1, 7: -1485.3, 8: -2042.6, 9: -2713.5, 14: -7876.3, 16: -10832.9, 17: -12520.4, 26: -34369.0}


class Springs(nn.Module):
    """Keeps molecules of random networks in shape: Morse wells (1 - exp(1.2 - r))^2 - 1 of all pairs within 5 Å."""

    def __init__(self) -> None:
        super().__init__()
        self.pair_cutoff = 0.0

    def forward(self, molecules: Molecules, lists: NeighborLists | None, charges: Tensor) -> Tensor:
        """(B,) eV."""
        if lists is None:
            pairs = all_pairs(molecules.coord, molecules.numbers)
            return 0.5 * self._wells(pairs).sum(dim=(1, 2))
        index = atom_index(molecules.numbers)
        pairs = listed_pairs(molecules.coord, lists, index)
        return 0.5 * sum_molecules(self._wells(pairs).sum(dim=1), index)

    def _wells(self, pairs: Pairs) -> Tensor:
        r = pairs.distance.to(torch.float64)
        well = ((1.0 - torch.exp(1.2 - r)).square() - 1.0) * cosine_cutoff(r, 5.0)
        return torch.where(pairs.mask, well, torch.zeros_like(well))


def write_fidelity(network: MultiFidelityNetwork, info: FidelityInfo, prefix: Path) -> Path:
    """Compile one fidelity of `network` to ``<prefix>_fid<N>.jpt``."""
    single = network.at_fidelity(info.index).float()
    sae = {z: SAE[z] + info.index for z in info.elements}
    metadata = PotentialMetadata(
        fidelity=info,
        all_fidelities=FIDELITIES,
        sae={chemical_symbols[z]: e for z, e in sae.items()},
        dispersion=None,
        cutoff=single.config.kwargs.aev.rc_s,
        num_charge_channels=single.config.kwargs.num_charge_channels,
        model=single.config.to_dict(),
        provenance={},
    )
    path = Path(f"{prefix}_fid{info.index}.jpt")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_potential(path, script_potential(Potential(single, SelfAtomicEnergy(sae), [Springs()])), metadata)
    return path


@pytest.fixture(scope="session", autouse=True)
def compiled_kernels() -> None:
    """Calculators take the fast path wherever they can: its kernels are compiled before the first test.

    Where AIMNET2MULT_NO_WARMUP is set and they are not compiled yet, all tests run on the programs of the files.
    """
    if find_spec("numba") is not None and not os.environ.get(warmup.NO_WARMUP):
        warmup.compile_kernels(lambda line: None)


@pytest.fixture(scope="session")
def small_model_config() -> ModelConfig:
    """Two fidelities, two charge channels, every head."""
    return suites.model_config(num_fidelities=2)


@pytest.fixture(scope="session")
def potential_file(small_model_config: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model_fid0.jpt`` (PBE0), with ``model_fid1.jpt`` (CCSD(T), fewer elements) beside it."""
    torch.manual_seed(1)
    # less noise than elsewhere: bond frequencies stay chemical, so that molecular dynamics can be tested
    network = suites.perturbed(MultiFidelityNetwork(small_model_config).double(), scale=0.1)
    folder = tmp_path_factory.mktemp("compiled models é")  # a space and a letter beyond ASCII on purpose
    first, *_ = [write_fidelity(network, info, folder / "model") for info in FIDELITIES]
    return first


@pytest.fixture(scope="session")
def closed_shell_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A potential with one charge channel."""
    network = suites.network(num_fidelities=1, num_charge_channels=1)
    return write_fidelity(network, FIDELITIES[0], tmp_path_factory.mktemp("closed") / "closed")


@pytest.fixture
def make(potential_file: Path) -> Callable[..., AIMNet2MultCalculator]:
    """Makes calculators of `potential_file` on the CPU."""

    def build(**kwargs: object) -> AIMNet2MultCalculator:
        return AIMNet2MultCalculator(potential_file, **({"device": "cpu"} | kwargs))

    return build


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry per evaluation of the potential: whether forces were computed."""
    seen: list[bool] = []
    genuine = calculator_module.evaluate

    def counted(*args: object) -> Evaluation:
        seen.append(bool(args[-1]))
        return genuine(*args)

    monkeypatch.setattr(calculator_module, "evaluate", counted)
    return seen


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in one order: runs that must agree to the bit use one thread."""
    with torch_threads.one_thread():
        yield


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Of PyTorch; the tests are run on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A folder with two data files, model.yaml and train.yaml; the path of the latter."""
    run_case.write_data(tmp_path / "fid0.h5", 1, run_case.FID0_ONLY)
    run_case.write_data(tmp_path / "fid1.h5", 2, set())
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(run_case.MODEL))
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(run_case.TRAIN))
    return tmp_path / "train.yaml"
