"""What the calculator says of wrong structures and arguments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import CalculationFailed
from structures import alkane, water

from aimnet2mult import AIMNet2MultCalculator
from aimnet2mult.errors import InputError

MakeCalculator = Callable[..., AIMNet2MultCalculator]


NEAR = [[0, 0, 0], [0, 0, 1.0], [0, 0, 1.1]]
BOUNDS = "atoms.info['charge'] is out of all bounds: a whole number within ±1,000,000,000 is wanted"


@pytest.mark.parametrize(
    ("atoms", "sentence"),
    [
        (Atoms(), "the structure has no atoms"),
        (Atoms("OH", [[0, 0, 0], [0, np.nan, 1]]), "the position of atom 1 is not finite: [0.0, nan, 1.0]"),
        (Atoms("HO", [[np.inf, 0, 0], [0, 0, 1]]), "the position of atom 0 is not finite: [inf, 0.0, 0.0]"),
        (Atoms(numbers=[8, 0], positions=NEAR[:2]), "atom 1 has atomic number 0; elements are 1 to 118"),
        (Atoms(numbers=[119], positions=NEAR[:1]), "atom 0 has atomic number 119; elements are 1 to 118"),
        (Atoms("OH2", NEAR), "atoms 1 and 2 are 0.10000 Å apart; at least 0.3 Å are needed"),
        (Atoms("OH2", [[0, 0, 0]] * 3), "atoms 0 and 1 are 0.00000 Å apart; at least 0.3 Å are needed"),
        (
            Atoms("O", pbc=[False, True, False], cell=[2, 0, 2]),
            "the cell vector b is zero but pbc asks for periodicity along it; set one of them right",
        ),
        (
            Atoms("O", pbc=True, cell=[[2, 0, 0], [0, np.nan, 0], [0, 0, 2]]),
            "the cell is not finite: [[2.0, 0.0, 0.0], [0.0, nan, 0.0], [0.0, 0.0, 2.0]]",
        ),
        (
            Atoms("O", pbc=True, cell=[[2, 0, 0], [1, 1, 0], [3, 1, 0]]),
            "the cell vectors are not independent, so that the cell has no volume: "
            "[[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [3.0, 1.0, 0.0]]",
        ),
        (
            Atoms("O", pbc=[True, True, False], cell=[[2, 0, 0], [4, 0, 0], [0, 0, 9]]),
            "the cell vectors are not independent, so that the cell has no volume: "
            "[[2.0, 0.0, 0.0], [4.0, 0.0, 0.0], [0.0, 0.0, 0.0]]",
        ),
        (
            Atoms("O2", [[0, 0, 0], [4.0, 8.0, 0]], pbc=True, cell=[4, 4, 4]),
            "atoms 0 and 1 are 0.00000 Å apart; at least 0.3 Å are needed",
        ),
        (
            Atoms("O2", [[0.1, 0, 0], [3.9, 0, 0]], pbc=True, cell=[4, 4, 4]),
            "atom 0 and an image of atom 1 are 0.20000 Å apart; at least 0.3 Å are needed",
        ),
        (
            Atoms("O", pbc=True, cell=[1e-4, 1e-4, 1e-4]),
            "atom 0 and its own image are 0.00010 Å apart; at least 0.3 Å are needed",
        ),
        (
            Atoms("O", pbc=[True, True, False], cell=[[5.0, 0, 0], [5.0, 0.01, 0], [0, 0, 0]]),
            "atom 0 and its own image are 0.01000 Å apart; at least 0.3 Å are needed",
        ),
        (
            Atoms("OH", [[0, 0, 0], [0, 2e6, 0]]),
            "the position of atom 1 is [0.0, 2000000.0, 0.0] Å; positions may reach 1e+06 Å, so move the "
            "structure to the origin",
        ),
        (
            Atoms("O", pbc=True, cell=[4, 0.25, 4]),
            "atom 0 and its own image are 0.25000 Å apart; at least 0.3 Å are needed",
        ),
        (water(mult=2), "mult=2 needs an odd number of electrons; this structure has 10"),
        (water(charge=1, spin=3), "mult=3 needs an even number of electrons; this structure has 9"),
        (water(mult=13), "mult=13 needs 12 unpaired electrons; this structure has 10 in all"),
        (water(charge=50), "charge=50 is impossible for this structure: it has 10 protons"),
        (water(charge=-50), "charge=-50 is impossible for this structure: it has 10 protons"),
        (water(charge=np.nan), "atoms.info['charge'] must be a whole number, not nan"),
        (water(charge=1e300), BOUNDS),
        (water(charge=-(10**400)), BOUNDS),
        (water(charge=np.inf), "atoms.info['charge'] must be a whole number, not inf"),
        (water(charge=0.5), "atoms.info['charge'] must be a whole number, not 0.5"),
        (water(charge="1"), "atoms.info['charge'] must be a whole number, not '1'"),
        (water(charge=True), "atoms.info['charge'] must be a whole number, not True"),
        (water(mult=1.5), "atoms.info['mult'] must be a whole number, not 1.5"),
        (
            water(spin=0),
            "atoms.info['spin'] is 0; a spin multiplicity 2S + 1 is 1 (singlet), 2 (doublet) or more",
        ),
        (water(mult=1, spin=3), "atoms.info['mult'] is 1 but atoms.info['spin'] is 3; remove one of them"),
    ],
)
def test_wrong_structures(make: MakeCalculator, calls: list[bool], atoms: Atoms, sentence: str) -> None:
    atoms.calc = make()
    with pytest.raises(InputError) as caught:
        atoms.get_forces()
    assert str(caught.value) == sentence
    assert calls == []


@pytest.mark.parametrize("n", [2, 20])
def test_the_first_two_atoms_that_coincide_are_named(make: MakeCalculator, n: int) -> None:
    """Among few atoms and among many, which are looked through in another way."""
    atoms = alkane(n)
    atoms.positions[[4, 6]] = atoms.positions[[1, 3]] + [0.0, 0.1, 0.0]
    with pytest.raises(InputError, match=r"^atoms 1 and 4 are 0\.10000 Å apart; at least 0\.3 Å are needed$"):
        make().get_potential_energy(atoms)


def test_unknown_elements(make: MakeCalculator) -> None:
    calc = make()
    silane, carborane = molecule("SiH4"), Atoms("CBFe", [[0, 0, 0], [0, 0, 1.5], [0, 0, 3.5]])
    silane.calc = carborane.calc = calc
    with pytest.raises(InputError) as caught:
        carborane.get_potential_energy()
    assert str(caught.value) == (
        "this potential knows H C N O F Si S Cl (fidelity 0 'PBE0'); the structure holds B Fe; "
        "no fidelity of this model knows them"
    )
    calc.fidelity = 1
    with pytest.raises(InputError) as caught:
        silane.get_potential_energy()
    assert str(caught.value) == (
        "this potential knows H C N O (fidelity 1 'CCSD(T)'); the structure holds Si; fidelity 0 'PBE0' knows it"
    )


@pytest.mark.parametrize(
    ("arguments", "info", "sentence"),
    [
        ({"charge": 1}, {"charge": 0}, "charge= of the calculator is 1 but atoms.info['charge'] is 0"),
        ({"mult": 3}, {"mult": 1}, "mult= of the calculator is 3 but atoms.info['mult'] is 1"),
        ({"mult": 3}, {"spin": 1}, "mult= of the calculator is 3 but atoms.info['spin'] is 1"),
    ],
)
def test_argument_against_info(make: MakeCalculator, arguments: dict, info: dict, sentence: str) -> None:
    atoms = water(**info)
    atoms.calc = make(**arguments)
    with pytest.raises(InputError) as caught:
        atoms.get_potential_energy()
    assert str(caught.value) == f"{sentence}; remove one of them"
    atoms.info = dict(arguments)  # agreement is fine
    atoms.get_potential_energy()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"charge": 0.5}, "charge must be a whole number, not 0.5"),
        ({"charge": float("nan")}, "charge must be a whole number, not nan"),
        ({"mult": 0}, "mult is 0; a spin multiplicity 2S + 1 is 1 (singlet), 2 (doublet) or more"),
        ({"mult": "singlet"}, "mult must be a whole number, not 'singlet'"),
        ({"dtype": "float32"}, "unknown dtype 'float32'; use 'mixed' (float32 network, float64 energies) or 'float64'"),
        ({"device": "gpu"}, "unknown device 'gpu'; use 'cpu', 'cuda' or 'cuda:0'"),
        ({"device": ""}, "unknown device ''; use 'cpu', 'cuda' or 'cuda:0'"),
        ({"device": "meta"}, "unknown device 'meta'; use 'cpu', 'cuda' or 'cuda:0'"),
        ({"fidelity": True}, "fidelity must be a number or a name, not True"),
    ],
)
def test_wrong_arguments(make: MakeCalculator, arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        make(**arguments)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("device", ["cuda", "cuda:9"])
def test_missing_gpu(make: MakeCalculator, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError) as caught:
        make(device=device)
    assert str(caught.value) == f"device {device!r} is not there: PyTorch sees 0 GPUs on this machine"
    assert make(device=None).parameters["device"] == "cpu"


def test_wrong_settings_change_nothing(make: MakeCalculator, calls: list[bool]) -> None:
    atoms = water()
    atoms.calc = make()
    atoms.get_potential_energy()
    for wrong in ({"mult": 0}, {"charge": 0.5}, {"fidelity": 7}, {"chrage": 1}, {"charge": 1, "mult": -1}):
        with pytest.raises(InputError):
            atoms.calc.set(**wrong)
    with pytest.raises(InputError, match="'device' cannot be set; charge, mult and fidelity can"):
        atoms.calc.set(device="cpu")
    atoms.get_potential_energy()
    assert len(calls) == 1
    assert (atoms.calc.charge, atoms.calc.mult, atoms.calc.fidelity) == (None, None, 0)


def test_closed_shell_potential(closed_shell_file: Path) -> None:
    atoms = water()
    atoms.calc = AIMNet2MultCalculator(closed_shell_file, device="cpu")
    atoms.get_forces()
    np.testing.assert_array_equal(atoms.get_magnetic_moments(), np.zeros(3))
    for info in ({"mult": 3}, {"charge": 1}):
        atoms.info = info
        with pytest.raises(InputError, match=r"^this potential is for closed shells only; the structure has mult="):
            atoms.get_potential_energy()


def test_results_that_are_not_finite(make: MakeCalculator) -> None:
    atoms = water()
    atoms.calc = make()
    with torch.no_grad():
        next(atoms.calc._potentials.committee().modules[0].parameters()).fill_(torch.nan)
    with pytest.raises(
        CalculationFailed, match="the potential gave energy and charges and spin_charges and forces that"
    ):
        atoms.get_forces()
    assert atoms.calc.results == {}
    with pytest.raises(InputError, match="there is no structure to calculate"):
        make().calculate()
