"""Dispersion in compiled files: from the command line to energies of the dftd3 and dftd4 packages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import suites
import torch
from ase.build import molecule

from aimnet2mult.configs.dispersion import DispersionSettings
from aimnet2mult.configs.metadata import FidelityInfo
from aimnet2mult.datasets.sae_file import write_sae
from aimnet2mult.errors import ConfigError
from aimnet2mult.models.dispersion import DEFAULT_CUTOFFS as D3_CUTOFFS
from aimnet2mult.models.dispersion_d4 import DEFAULT_CUTOFFS as D4_CUTOFFS
from aimnet2mult.models.files import read_metadata, save_weights
from aimnet2mult.training.compile import compile_potential, main
from aimnet2mult.training.dispersion import dispersion_term, library_energy
from aimnet2mult.units import BOHR_PER_ANGSTROM, EV_PER_HARTREE

SAE = {1: -13.6, 6: -1030.1, 7: -1485.3, 8: -2042.6}
INFO = FidelityInfo(index=0, name="PBE0", elements=sorted(SAE), labels=["energy"])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    save_weights(folder / "model.pt", suites.network(num_fidelities=1).float(), [INFO], {}, {0: SAE})
    write_sae(folder / "sae.yaml", SAE)
    return folder / "model.pt"


def compiled(weights: Path, *flags: str) -> Path:
    """Compile through the command line."""
    output = weights.parent / ("model" + "".join(flags).replace("-", "_"))
    fixed = ["--weights", str(weights), "--output", str(output), "--fidelity", "0"]
    assert main([*fixed, "--sae", str(weights.parent / "sae.yaml"), *flags]) == 0
    return Path(f"{output}_fid0.jpt")


def energy(path: Path, name: str) -> float:
    return _energy(path, molecule(name).numbers, molecule(name).positions)


def _energy(path: Path, numbers: np.ndarray, coord: np.ndarray) -> float:
    data = {"coord": torch.tensor(coord)[None], "numbers": torch.tensor(numbers)[None]}
    return float(torch.jit.load(path)(data | {"charge": torch.zeros(1)})["energy"].detach())


@pytest.mark.parametrize("functional", ["pbe0", "b3lyp"])
@pytest.mark.parametrize("method", ["d3bj", "d4"])
def test_compiled_files_differ_by_the_energy_of_the_package(weights: Path, method: str, functional: str) -> None:
    with_it = compiled(weights, "--dispersion", method, "--dispersion-functional", functional)
    without = compiled(weights)
    info = read_metadata(with_it).dispersion
    assert info is not None
    assert (info.method, info.charges) == (method, "eeq" if method == "d4" else None)
    assert info.cutoffs is not None
    assert info.cutoffs.model_dump(exclude_none=True) == (D3_CUTOFFS if method == "d3bj" else D4_CUTOFFS)._asdict()
    for name in ("C6H6", "CH3CONH2"):
        atoms = molecule(name)
        expected = library_energy(info, atoms.numbers, atoms.positions)
        assert expected < -0.05
        # energies of 1e4 eV hold differences to 1e-11 eV
        assert abs(energy(with_it, name) - energy(without, name) - expected) < 1e-10
    assert library_energy(info, atoms.numbers, atoms.positions) == pytest.approx(
        _by_name(method, functional, atoms.numbers, atoms.positions), rel=1e-12
    )


def _by_name(method: str, functional: str, numbers: np.ndarray, coord: np.ndarray) -> float:
    """The package's own energy of a functional, two-body for D3."""
    if method == "d3bj":
        from dftd3 import interface as d3

        found = d3.DispersionModel(numbers, coord * BOHR_PER_ANGSTROM).get_dispersion(
            d3.RationalDampingParam(method=functional, atm=False), grad=False
        )
    else:
        from dftd4 import interface as d4

        model = d4.DispersionModel(numbers, coord * BOHR_PER_ANGSTROM)
        found = model.get_dispersion(d4.DampingParam(method=functional), grad=False)
    return float(found["energy"]) * EV_PER_HARTREE


def test_charges_of_the_network(weights: Path) -> None:
    flags = ("--dispersion", "d4", "--dispersion-functional", "pbe0")
    own = compiled(weights, *flags, "--dispersion-charges", "network")
    info = read_metadata(own).dispersion
    assert info is not None
    assert info.charges == "network"
    assert abs(energy(own, "CH3CONH2") - energy(compiled(weights, *flags), "CH3CONH2")) > 1e-6


def test_shorter_reach_of_the_three_body_term(weights: Path) -> None:
    flags = ("--dispersion", "d4", "--dispersion-functional", "pbe0")
    short = compiled(weights, *flags, "--dispersion-triple-cutoff", "10")
    info = read_metadata(short).dispersion
    assert info is not None
    assert info.triple_cutoff == 10.0
    assert info.cutoffs is not None
    assert info.cutoffs.disp3 == pytest.approx(10.0 * BOHR_PER_ANGSTROM)
    assert info.cutoffs.width3 == pytest.approx(0.1 * info.cutoffs.disp3)
    # benzene is smaller than the part of the reach that is not switched off
    assert abs(energy(short, "C6H6") - energy(compiled(weights, *flags), "C6H6")) < 1e-10


@pytest.mark.parametrize("flags", [["d3bj", "--dispersion-s9", "1"], ["d4"], ["d4", "--dispersion-triple-cutoff", "8"]])
def test_the_package_is_told_the_recorded_cutoffs(weights: Path, flags: list[str]) -> None:
    """A chain of water molecules, 36 Å long, has pairs and triangles that end."""
    path = compiled(weights, "--dispersion", *flags, "--dispersion-functional", "pbe0")
    info = read_metadata(path).dispersion
    assert info is not None
    chain = [molecule("H2O") for _ in range(13)]
    for place, one in enumerate(chain):
        one.translate((3.0 * place, 0, 0))
    numbers = np.concatenate([one.numbers for one in chain])
    coord = np.concatenate([one.positions for one in chain])
    expected = library_energy(info, numbers, coord)
    # 5e-9 eV come from the coordination numbers of D3, which the package ends sharply
    assert abs(_energy(path, numbers, coord) - _energy(compiled(weights), numbers, coord) - expected) < 1e-8
    # as older files have it: the sharp cutoffs of the package
    assert abs(library_energy(info.model_copy(update={"cutoffs": None}), numbers, coord) - expected) > 1e-7


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--dispersion-functional", "pbe0"], "method: is none although functional is given"),
        (["--dispersion-a1", "0.4"], "method: is none although a1 is given"),
        (
            ["--dispersion", "d3bj", "--dispersion-functional", "pbe0", "--dispersion-charges", "network"],
            "charges: only d4 scales with charges",
        ),
        (["--dispersion", "d3bj", "--dispersion-triple-cutoff", "10"], "triple_cutoff: is for d4 only"),
        (["--dispersion", "d4", "--dispersion-triple-cutoff", "3"], "triple_cutoff: must be"),
        (["--dispersion", "d4"], "D4 needs a functional"),
        (["--dispersion", "d4", "--dispersion-functional", "pbe00"], "close names: "),
    ],
)
def test_what_is_refused(weights: Path, flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = weights.parent / "refused"
    fixed = ["--weights", str(weights), "--output", str(output), "--fidelity", "0"]
    assert main([*fixed, "--sae", str(weights.parent / "sae.yaml"), *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert sentence in said
    assert not list(weights.parent.glob("refused*"))


def test_labels_with_dispersion_get_no_more(weights: Path) -> None:
    settings = DispersionSettings(method="d4", functional="pbe0")
    with pytest.raises(ConfigError, match="would count it twice"):
        dispersion_term(settings, INFO.model_copy(update={"labels_include_dispersion": True}))


def test_from_python(weights: Path) -> None:
    settings = DispersionSettings(method="d4", functional="pbe0", s9=0.0)
    path = compile_potential(weights, weights.parent / "py", 0, weights.parent / "sae.yaml", dispersion=settings)
    info = read_metadata(path).dispersion
    assert info is not None
    assert info.s9 == 0.0
