"""Published AIMNet2 files: the numbers are those of their own programs, and other files are refused.

A small network of the published form with its own implementation of the formulas (`published_program`) is always
compared; the published files themselves where the folder AIMNET2_PUBLISHED names holds ``*.jpt`` files.

Tolerances. Charges know no constants: only rounding. Energies: the published programs round the Coulomb constant, the
Hartree and the Bohr to 2e-8, and their tables are float32 (6e-8), so the Coulomb and dispersion energies of up to a
few eV per atom differ by 1e-7 at most.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import suites
import torch
import yaml
from foreign_cases import (
    PUBLISHED,
    network,
    ours,
    published_double,
    published_structures,
    structures,
    theirs,
    water_box,
    write,
)
from published_program import ELEMENTS, Ensemble

from aimnet2mult import AIMNet2MultCalculator
from aimnet2mult.configs.model import load_model_config
from aimnet2mult.configs.train import load_train_config
from aimnet2mult.models.derivatives import forces_from_energy
from aimnet2mult.models.dispersion import D3BJ
from aimnet2mult.models.files import load_weights, script_potential, write_potential
from aimnet2mult.models.foreign import foreign_potentials, import_weights, load_aimnet2_weights, load_foreign
from aimnet2mult.models.foreign_dispersion import PublishedD3
from aimnet2mult.models.foreign_file import is_foreign
from aimnet2mult.training.run import train


@pytest.mark.parametrize("activate", [True, False])
@pytest.mark.parametrize("hidden", [[[8, 6], [6, 5]], [[8, 6], [7], [6, 5]], [[8], [7, 5], [5], [6]]])
def test_numbers_are_those_of_the_program(tmp_path: Path, hidden: list[list[int]], activate: bool) -> None:
    program = network(hidden=hidden, activate=activate)
    potential = load_aimnet2_weights(write(tmp_path / "one.jpt", program)).potential().double()
    program.double()
    for atoms in structures():
        energy, forces, charges = theirs(program, atoms)
        found = ours(potential, atoms)
        scale = 1e-7 * max(1, len(atoms))
        assert abs(found.energy - energy) < scale, str(atoms.symbols)
        assert (found.forces - forces).abs().max() < 1e-6, str(atoms.symbols)
        assert (found.charges - charges).abs().max() < 1e-11 * (1.0 + charges.abs().max()), str(atoms.symbols)


def test_a_padded_batch_gives_the_same(tmp_path: Path) -> None:
    program = network(1)
    potential = load_aimnet2_weights(write(tmp_path / "one.jpt", program)).potential().double()
    program.double()
    cases = structures()
    batch = suites.collate(cases, extra=2, junk=3.0)
    found = potential({"coord": batch.coord, "numbers": batch.numbers, "charge": batch.charge})
    for row, atoms in enumerate(cases):
        energy, _, charges = theirs(program, atoms)
        assert abs(found["energy"][row] - energy) < 1e-7 * len(atoms)
        assert (found["charges"][row, : len(atoms)] - charges).abs().max() < 1e-11 * (1.0 + charges.abs().max())


def test_empty_reference_slots_matter(tmp_path: Path) -> None:
    """Without them the D3 energy of an uncoordinated ion beside water is off by more than any tolerance here."""
    program = network(2)
    imported = load_aimnet2_weights(write(tmp_path / "one.jpt", program))
    term = PublishedD3(ELEMENTS, imported.damping)
    plain = D3BJ(ELEMENTS, imported.damping)
    atoms = structures()[-3]
    assert str(atoms.symbols) == "OH2Cl"
    batch = suites.collate([atoms])
    charges = torch.zeros_like(batch.coord[..., 0])
    difference = term(batch, None, charges) - plain(batch, None, charges)
    assert 1e-4 < difference.item() < 1e-2


def test_an_ensemble_becomes_as_many_potentials(tmp_path: Path) -> None:
    programs = [network(seed) for seed in (3, 4, 5)]
    path = write(tmp_path / "three ens.jpt", Ensemble(programs))
    loaded = load_foreign(path)
    assert len(loaded) == 3
    atoms = suites.structure("CH3CONH2")
    for number, (program, one) in enumerate(zip(programs, loaded, strict=True)):
        found = ours(one.module, atoms)
        energy, forces, charges = theirs(program.double(), atoms)
        # the network runs in float32: relative 6e-8 of charges and energies of about 10 e and 100 eV, a few roundings
        assert abs(found.energy - energy) < 1e-3
        assert (found.forces - forces).abs().max() < 1e-3 * (1.0 + forces.abs().max())
        assert (found.charges - charges).abs().max() < 1e-4
        metadata = one.metadata
        assert metadata.fidelity.elements == list(ELEMENTS)
        assert metadata.fidelity.level_of_theory == "wB97M-D3(BJ)"
        assert metadata.provenance["imported_member"] == f"{number} of 3"
        assert metadata.dispersion is not None
        assert metadata.dispersion.functional == "wb97m"
        assert metadata.sae["O"] == pytest.approx(-13.6 * 8**2.4, rel=1e-7)
        assert (metadata.cutoff, metadata.num_charge_channels) == (5.0, 1)
    energies = {ours(one.module, atoms).energy.item() for one in loaded}
    assert len(energies) == 3


def test_calculator_takes_the_file(tmp_path: Path) -> None:
    programs = [network(seed).double() for seed in (3, 4)]
    path = write(tmp_path / "two_ens.jpt", Ensemble([network(seed) for seed in (3, 4)]))
    atoms = suites.structure("OH", -1, 1)
    expected = [theirs(program, atoms) for program in programs]
    atoms.calc = AIMNet2MultCalculator(path, device="cpu")
    # means over the members, which run in float32
    assert abs(atoms.get_potential_energy() - sum(one[0].item() for one in expected) / 2) < 1e-3
    assert abs(torch.tensor(atoms.get_forces()) - (expected[0][1] + expected[1][1]) / 2).max() < 1e-3
    assert abs(torch.tensor(atoms.get_charges()) - (expected[0][2] + expected[1][2]) / 2).max() < 1e-4


@pytest.mark.parametrize("n", [2, 3])  # 24 atoms, and 81 whose dispersion is summed in blocks
def test_neighbour_lists_give_the_same(tmp_path: Path, n: int) -> None:
    potential = load_aimnet2_weights(write(tmp_path / "one.jpt", network())).potential().double()
    batch = suites.collate([water_box(n)])
    data = {"coord": batch.coord.requires_grad_(), "numbers": batch.numbers, "charge": batch.charge}
    expected = potential(data)
    count = batch.numbers.shape[1]
    apart = torch.cdist(batch.coord[0].detach(), batch.coord[0].detach())
    near = (apart < 5.0) & ~torch.eye(count, dtype=torch.bool)
    index = torch.where(near, torch.arange(count), -1).unsqueeze(0)
    pairs = torch.combinations(torch.arange(count))
    shifts = {"neighbor_shift": torch.zeros((*index.shape, 3)), "pair_shift": torch.zeros((len(pairs), 3))}
    found = potential(data | shifts | {"neighbor_index": index, "pair_index": pairs})
    assert abs(found["energy"] - expected["energy"]) < 1e-9
    forces = [forces_from_energy(one["energy"], data["coord"]) for one in (found, expected)]
    assert (forces[0] - forces[1]).abs().max() < 1e-9
    assert (found["charges"] - expected["charges"]).abs().max() < 1e-11


def test_compiled_potential_survives_a_file(tmp_path: Path) -> None:
    (potential, metadata), *_ = foreign_potentials(write(tmp_path / "one.jpt", network()))
    write_potential(tmp_path / "ours.jpt", script_potential(potential), metadata)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = torch.jit.load(str(tmp_path / "ours.jpt"))
    atoms = suites.structure("HCOOH")
    suites.assert_close(ours(again.double(), atoms).forces, ours(potential.double(), atoms).forces)
    assert not is_foreign(tmp_path / "ours.jpt")


def test_weights_file_to_train_on(tmp_path: Path) -> None:
    path = write(tmp_path / "one.jpt", network())
    before = torch.random.get_rng_state()
    imported = import_weights(path, tmp_path / "start.pt")
    assert torch.equal(before, torch.random.get_rng_state())
    weights = load_weights(tmp_path / "start.pt")
    assert weights.sae == {0: imported.sae}
    assert weights.fidelities == [imported.fidelity]
    # the same architecture from a model.yaml, as `--load` wants it
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(weights.config.to_dict()))
    assert load_model_config(tmp_path / "model.yaml") == weights.config
    batch = suites.collate(structures())
    found, expected = weights.build().double()(batch), imported.network.double()(batch)
    # only the rounding of the published Gaussians is lost
    assert (found.energy - expected.energy).abs().max() < 1e-3
    assert (found.charges - expected.charges).abs().max() < 1e-4


def test_training_starts_from_imported_weights(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imported = import_weights(write(case.parent / "one.jpt", network()), case.parent / "start.pt")
    (case.parent / "model.yaml").write_text(yaml.safe_dump(imported.network.config.to_dict()))
    settings = yaml.safe_load(case.read_text())
    settings["data"]["fidelities"] = {0: {"name": "own data", "files": "fid0.h5"}}
    settings["data"]["fidelity_weights"] = {0: 1}
    del settings["loss"]["kwargs"]["components"]["spin_charges"]
    settings["optimizer"]["kwargs"]["lr"] = 1e-9
    settings["trainer"] = {"epochs": 1}
    case.write_text(yaml.safe_dump(settings))
    result = train(load_train_config(case), load=case.parent / "start.pt")
    assert f"weights to start from: {case.parent / 'start.pt'}" in capsys.readouterr().out
    trained = load_weights(result.weights).state
    start = imported.network.state_dict()
    assert trained.keys() == start.keys()
    moved = [(trained[name] - value).abs().max().item() for name, value in start.items()]
    assert 0.0 < max(moved) < 1e-6  # a few steps of 1e-9


@pytest.mark.skipif(not PUBLISHED, reason="AIMNET2_PUBLISHED does not name a folder with published AIMNet2 .jpt files")
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_files(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        single, double = torch.jit.load(str(path)), torch.jit.load(str(path)).double()
    loaded = load_foreign(path)
    potentials = foreign_potentials(path)
    for number, (one, (potential, _)) in enumerate(zip(loaded, potentials, strict=True)):
        potential.double()
        with torch.jit.optimized_execution(False):
            for atoms in published_structures():
                exact = published_double(getattr(double.models, str(number)).module, atoms)
                found = ours(potential, atoms)
                what = f"{atoms.symbols} of member {number}"
                # float32 tables: dispersion energies of up to 12 eV (C60) to 1e-7
                assert abs(found.energy - exact[0]) < 1e-7 * max(1.0, 0.3 * len(atoms)), what
                assert (found.forces - exact[1]).abs().max() < 3e-7, what
                assert (found.charges - exact[2]).abs().max() < 1e-13, what

                batch = suites.collate([atoms])
                data = {"coord": batch.coord.float(), "numbers": batch.numbers, "charge": batch.charge.float()}
                published = getattr(single.models, str(number))(data)
                found = ours(one.module, atoms)
                # the published program adds the atomic shift in float32, which rounds to 4e-3 eV for the heaviest
                rounding = sum(6e-8 * abs(one.metadata.sae[symbol]) for symbol in atoms.symbols)
                assert abs(found.energy - published["energy"]) < 2e-4 + rounding, what
                assert (found.forces - published["forces"]).abs().max() < 5e-5, what
                assert (found.charges - published["charges"]).abs().max() < 2e-6, what
