"""The complete potential, as TorchScript, against the physics suite and its own eager network."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import suites
import torch
from torch import Tensor

from aimnet2mult.configs.metadata import FidelityInfo
from aimnet2mult.datasets.sae_file import write_sae
from aimnet2mult.models.files import save_weights, script_potential
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.models.potential import Potential, SelfAtomicEnergy
from aimnet2mult.types import Molecules, Prediction

SAE = {1: -0.6, 6: -3.1, 7: -2.2, 8: -4.4, 9: -1.9, 14: -2.5, 15: -3.6, 16: -2.7, 17: -1.3}
Module = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def as_dict(molecules: Molecules) -> dict[str, Tensor]:
    return {key: getattr(molecules, key) for key in ("coord", "numbers", "charge", "mult")}


def evaluated(module: Module) -> suites.Evaluate:
    def evaluate(molecules: Molecules) -> Prediction:
        found = module(as_dict(molecules))
        return Prediction(found["energy"], found["charges"], found["spin_charges"])

    return evaluate


def reloaded(potential: Potential) -> torch.jit.ScriptModule:
    """The potential after scripting, saving and loading."""
    stream = io.BytesIO()
    torch.jit.save(script_potential(potential), stream)
    stream.seek(0)
    module: torch.jit.ScriptModule = torch.jit.load(stream)
    return module


@pytest.fixture(scope="module")
def network() -> MultiFidelityNetwork:
    return suites.network().at_fidelity(1)


@pytest.fixture(scope="module")
def scripted(network: MultiFidelityNetwork) -> torch.jit.ScriptModule:
    return reloaded(Potential(network, SelfAtomicEnergy(SAE)))


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_charge_channels": 1, "d2features": False, "outputs": {"lrcoulomb": None, "atomic_shift": None}}],
    ids=["two channels", "one channel, shared features, no Coulomb"],
)
def test_physics(changes: dict[str, Any]) -> None:
    module = reloaded(Potential(suites.network(**changes).at_fidelity(2), SelfAtomicEnergy(SAE)))
    suites.check_everything(evaluated(module), spin=changes.get("num_charge_channels") != 1)


def test_scripted_is_network_plus_self_atomic_energies(scripted: Module, network: MultiFidelityNetwork) -> None:
    batch = suites.collate(suites.structures())
    expected = suites.results(network, batch)
    atomic = torch.tensor([sum(SAE[int(z)] for z in row if z > 0) for row in batch.numbers], dtype=torch.float64)
    for _ in range(3):  # TorchScript rewrites its program after the first calls
        found = suites.results(evaluated(scripted), batch)
        suites.assert_close(found.energy, expected.energy + atomic)
        for key in ("forces", "charges", "spin_charges"):
            suites.assert_close(getattr(found, key), getattr(expected, key))


@pytest.mark.parametrize("fidelity", [0, 1, 2])
def test_each_fidelity_equals_the_full_network(fidelity: int) -> None:
    network = suites.network()
    module = script_potential(Potential(network.at_fidelity(fidelity), SelfAtomicEnergy(dict.fromkeys(SAE, 0.0))))
    molecules = suites.structures()
    expected = suites.results(network, suites.collate(molecules, fidelity))
    found = suites.results(evaluated(module), suites.collate(molecules))
    for key in suites.Results._fields:
        suites.assert_close(getattr(found, key), getattr(expected, key))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_totals_keep_small_differences(network: MultiFidelityNetwork, dtype: torch.dtype) -> None:
    """At -1e6 eV a float64 has steps of 1.2e-10 eV: differences between geometries survive to 1e-9 eV."""
    network = network.at_fidelity(0).to(dtype)
    heavy = {number: -1.0e6 + number for number in SAE}
    module = script_potential(Potential(network, SelfAtomicEnergy(heavy)))
    h = suites.structure("H2O")
    scan = []
    for i in range(20):
        moved = h.copy()
        moved.positions[0, 2] += 0.01 * i
        scan.append(moved)
    batch = suites.collate(scan)
    with torch.no_grad():
        total, small = module(as_dict(batch))["energy"], network(batch).energy
    assert total.dtype == torch.float64
    assert (total < -2.9e6).all()
    assert small.diff().abs().max() > 1e-4
    assert (total.diff() - small.diff()).abs().max() < 1e-9


@pytest.mark.parametrize("number", [2, 118, 119, -6])
def test_unknown_element_is_refused(scripted: Module, number: int) -> None:
    batch = suites.collate(suites.structures()[:2])
    batch.numbers[1, 0] = number
    with pytest.raises(Exception, match=f"not trained on the element with atomic number {number}"):
        scripted(as_dict(batch))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_any_integer_numbers(scripted: Module, dtype: torch.dtype) -> None:
    data = as_dict(suites.collate(suites.structures()))
    expected = scripted(data)["energy"]
    assert torch.equal(scripted(data | {"numbers": data["numbers"].to(dtype)})["energy"], expected)


def test_missing_mult_is_one(scripted: Module) -> None:
    data = as_dict(suites.collate(suites.structures()))
    without = {key: value for key, value in data.items() if key != "mult"}
    singlet = data | {"mult": torch.ones_like(data["mult"])}
    expected, found = scripted(singlet), scripted(without)
    for key in ("energy", "charges", "spin_charges"):
        assert torch.equal(found[key], expected[key])
    assert not torch.equal(scripted(data)["energy"], expected["energy"])


def test_float32_file_and_inputs(network: MultiFidelityNetwork) -> None:
    """As saved (float32): float64 energies from float32 or float64 inputs, and ``.to(float64)`` computes throughout."""
    module = reloaded(Potential(network.at_fidelity(0).float(), SelfAtomicEnergy(SAE)))
    data = as_dict(suites.collate(suites.structures()))
    low = {key: value.float() if value.is_floating_point() else value for key, value in data.items()}
    exact = module.to(torch.float64)(data)["energy"]
    module = reloaded(Potential(network.at_fidelity(0).float(), SelfAtomicEnergy(SAE)))
    for inputs in (low, data):
        found = module(inputs)
        assert found["energy"].dtype == torch.float64
        assert found["charges"].dtype == torch.float64
        # float32 holds 7 digits of atomic energies of size 1 to 10; a few dozen operations deep
        torch.testing.assert_close(found["energy"], exact, rtol=1e-4, atol=1e-4)
    # equilibration is float64 even where the network is not
    suites.check_charge_sums(evaluated(module), suites.structures(), tolerance=1e-10)


def test_casting_the_self_atomic_energies_is_refused(network: MultiFidelityNetwork) -> None:
    module = reloaded(Potential(network.at_fidelity(0), SelfAtomicEnergy(SAE))).to(torch.float32)
    with pytest.raises(Exception, match="cast the coordinates, not this potential"):
        module(as_dict(suites.collate(suites.structures()[:1])))


def test_full_disk_ends_compilation_with_a_sentence(tmp_path: Path) -> None:
    """The kernel refuses more than 10 kB per file, as a full disk would; the older file stays."""
    info = FidelityInfo(index=0, name="PBE0", elements=sorted(SAE), labels=["energy"])
    save_weights(tmp_path / "model.pt", suites.network().float(), [info], {})
    write_sae(tmp_path / "sae.yaml", SAE)
    older = tmp_path / "model_fid0.jpt"
    older.write_bytes(b"older")
    program = (
        "import resource, sys; from aimnet2mult.training.compile import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)); sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["--weights", "model.pt", "--sae", "sae.yaml", "--output", "model", "--fidelity", "0"]
    root = str(Path(__file__).parents[1])
    ended = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r}); {program}", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.strip() == ("error: model_fid0.jpt cannot be written (File too large); choose another --output")
    assert older.read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt", "model_fid0.jpt", "sae.yaml"]
