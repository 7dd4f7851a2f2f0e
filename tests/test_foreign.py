"""Published AIMNet2 files: the numbers are those of their own programs, and other files are refused.

A small network of the published form with its own implementation of the formulas (`published_program`) is always
compared; the published files themselves where the folder AIMNET2_PUBLISHED names holds ``*.jpt`` files.

Tolerances. Charges know no constants: only rounding. Energies: the published programs round the Coulomb constant, the
Hartree and the Bohr to 2e-8, and their tables are float32 (6e-8), so the Coulomb and dispersion energies of up to a
few eV per atom differ by 1e-7 at most.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import suites
import torch
import yaml
from ase import Atoms
from ase.build import molecule
from published_program import ELEMENTS, AIMNet2, Ensemble
from torch import Tensor, nn

from aimnet2mult import AIMNet2MultCalculator
from aimnet2mult.configs.model import load_model_config
from aimnet2mult.configs.train import load_train_config
from aimnet2mult.errors import ModelFileError
from aimnet2mult.models.derivatives import forces_from_energy
from aimnet2mult.models.dispersion import D3BJ
from aimnet2mult.models.files import load_weights, script_potential, write_potential
from aimnet2mult.models.foreign import foreign_potentials, import_weights, load_aimnet2_weights, load_foreign
from aimnet2mult.models.foreign_dispersion import PublishedD3
from aimnet2mult.models.foreign_file import is_foreign, read_members
from aimnet2mult.training.run import train

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*")
TINY: dict[str, Any] = {"n": 3, "g": 5, "h": 4, "hidden": [[8, 6], [7], [6, 5]]}
PUBLISHED = (
    sorted(Path(os.environ.get("AIMNET2_PUBLISHED", "")).glob("*.jpt")) if "AIMNET2_PUBLISHED" in os.environ else []
)


def network(seed: int = 0, **changes: Any) -> AIMNet2:
    torch.manual_seed(seed)
    return AIMNet2(**{**TINY, **changes})


def write(path: Path, module: nn.Module) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module.eval()), str(path))
    return path


def bare(symbols: str, positions: Any = None, charge: int = 0) -> Atoms:
    return Atoms(symbols, positions=positions, info={"charge": charge, "mult": 1})


def water_box(n: int) -> Atoms:
    """n^3 water molecules on a loose grid, each turned in its own way."""
    atoms, one = Atoms(), molecule("H2O")
    for i in range(n**3):
        single = one.copy()
        single.rotate(57.0 * i, (1.0, 0.3 * i, -0.7))
        single.translate((3.1 * (i // n**2), 3.1 * (i // n % n), 3.1 * (i % n)))
        atoms += single
    atoms.info = {"charge": 0, "mult": 1}
    return atoms


def structures() -> list[Atoms]:
    """Neutral molecules and ions of 1 to 81 atoms, atoms without neighbours among them."""
    tetrahedron = [[1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]]
    cases = [suites.structure(name) for name in ("H2O", "CH4", "C6H6", "CH3CONH2", "CH3Cl", "SO2", "C2H6SO")]
    cases += [suites.structure("OH", -1, 1), suites.structure("CN", -1, 1), bare("Cl", charge=-1), bare("H", charge=1)]
    cases.append(bare("NH4", [[0, 0, 0], *(0.6 * torch.tensor(tetrahedron)).tolist()], 1))
    cases.append(bare("SO4", [[0, 0.1, 0], *(0.86 * torch.tensor(tetrahedron)).tolist()], -2))
    chloride = suites.structure("H2O") + Atoms("Cl", positions=[[0.1, 2.2, -2.6]])  # next to no coordination
    chloride.info = {"charge": -1, "mult": 1}
    far = suites.structure("CH4") + Atoms("OH", positions=[[7.0, 0.3, 0.1], [7.9, 0.2, 0.4]])
    far.info = {"charge": -1, "mult": 1}
    return [*cases, chloride, far, water_box(3)]


def ours(module: Callable[[dict[str, Tensor]], dict[str, Tensor]], atoms: Atoms) -> suites.Results:
    batch = suites.collate([atoms])
    coord = batch.coord.requires_grad_()
    found = module({"coord": coord, "numbers": batch.numbers, "charge": batch.charge})
    forces = forces_from_energy(found["energy"], coord)
    return suites.Results(found["energy"].detach(), forces, found["charges"].detach(), found["spin_charges"])


def theirs(program: nn.Module, atoms: Atoms) -> tuple[Tensor, Tensor, Tensor]:
    coord = torch.tensor(atoms.positions, requires_grad=True)
    charge = torch.tensor(atoms.info["charge"], dtype=torch.float64)
    energy, charges = program(coord, torch.tensor(atoms.numbers, dtype=torch.int64), charge)
    (gradient,) = torch.autograd.grad(energy, coord)
    return energy.detach(), -gradient, charges.detach()


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


def test_elements_without_training_are_refused(tmp_path: Path) -> None:
    potential = load_aimnet2_weights(write(tmp_path / "one.jpt", network())).potential()
    with pytest.raises(RuntimeError, match="not trained on the element with atomic number 3"):
        ours(potential, bare("LiH", [[0, 0, 0], [0, 0, 1.6]]))


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


def rewritten(path: Path, change: Callable[[AIMNet2], None], **changes: Any) -> Path:
    program = network(**changes)
    with torch.no_grad():
        change(program)
    return write(path, program)


def set_attribute(dotted: str, value: object) -> Callable[[AIMNet2], None]:
    def change(program: AIMNet2) -> None:
        owner, _, name = dotted.rpartition(".")
        setattr(program.get_submodule(owner), name, value)

    return change


def set_values(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[AIMNet2], None]:
    def apply(program: AIMNet2) -> None:
        owner, _, attribute = name.rpartition(".")
        module = program.get_submodule(owner)
        setattr(module, attribute, nn.Parameter(change(getattr(module, attribute).detach())))

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_attribute("aev._dual_basis", True), "aev._dual_basis = True instead of False"),
        (set_attribute("outputs.energy_mlp.apply_fn", "pow2"), "apply_fn = 'pow2'"),
        (set_attribute("outputs.d3bj.k3", -3.0), "outputs.d3bj.k3 = -3.0"),
        (set_attribute("outputs.d3bj.s8", float("inf")), "D3 parameters"),
        (set_values("afv.weight", lambda x: x.half()), "afv.weight that is not of finite"),
        (set_values("afv.weight", lambda x: x / 0.0), "afv.weight that is not of finite"),
        (set_values("afv.weight", lambda x: x[:, 1:].contiguous()), "an embedding of the shape"),
        (set_values("afv.weight", lambda x: x[0, 0].expand(10**6, 10**4)), "claim more numbers than the file holds"),
        (set_values("aev.shifts_s", lambda x: x**1.1), "not evenly spaced"),
        (set_values("aev.eta_s", lambda x: 2.0 * x), "not evenly spaced"),
        (set_values("outputs.lrcoulomb.rc", lambda x: -x), "rc"),
        (set_values("outputs.atomic_shift.shifts.weight", torch.zeros_like), "no element"),
        (set_values("outputs.d3bj.c6ab", lambda x: 1.01 * x), "table c6ab holds other values"),
        (set_values("outputs.d3bj.rcov", lambda x: x + 0.01), "table rcov holds other values"),
        (set_values("outputs.d3bj.c6ab", lambda x: x[:20, :20].contiguous()), "D3 table"),
        (set_values("conv_a.agh", lambda x: x[0].contiguous()), "conv_a.agh of the shape"),
        (lambda p: setattr(p.mlps[0], "5", nn.GELU()), "GELU at the ends"),
        (lambda p: setattr(p.mlps[1], "1", nn.SiLU()), "a perceptron of Linear, SiLU"),
        (lambda p: setattr(p.mlps[1], "1", nn.GELU(approximate="tanh")), "a perceptron of"),
        (set_values("mlps.0.4.weight", lambda x: x[:-1].contiguous()), "no layer mlps.0.4 with a weight and a bias"),
        (set_values("mlps.1.0.weight", lambda x: x[:, 1:].contiguous()), "inputs of mlps.1.0, not 52"),
        (lambda p: setattr(p.mlps[1], "2", nn.Linear(7, 16)), "outputs of mlps.1, not 17"),
        (lambda p: setattr(p.mlps[2], "4", nn.Linear(5, 8)), "outputs of mlps.2, not 9"),
        (lambda p: setattr(p.mlps[2], "2", nn.Linear(6, 5, bias=False)), "no layer mlps.2.2|outputs of mlps.2"),
        (set_values("conv_q.agh", lambda x: x[:, 1:].contiguous()), "conv_q.agh of the shape"),
        (set_values("aev.rc_s", lambda x: -x), "at a cutoff of -5.0"),
        (set_values("outputs.atomic_shift.shifts.weight", lambda x: torch.ones(130, 1)), "shifts of 130 elements"),
        (set_values("afv.weight", lambda x: x[:10].contiguous()), "shift but no embedding"),
        (lambda p: setattr(p, "spin", nn.Parameter(torch.zeros(2))), "a tensor spin of unknown meaning"),
    ],
)
def test_other_architectures_are_refused(tmp_path: Path, change: Callable[[AIMNet2], None], message: str) -> None:
    path = rewritten(tmp_path / "strange.jpt", change)
    with pytest.raises(ModelFileError, match=message) as caught:
        load_aimnet2_weights(path)
    assert str(caught.value).startswith(str(path))


def test_two_charge_channels_are_refused(tmp_path: Path) -> None:
    class TwoChannels(AIMNet2):
        def forward(self, coord: Tensor, numbers: Tensor, charge: Tensor) -> tuple[Tensor, Tensor]:
            return charge, coord

    path = write(tmp_path / "nse.jpt", TwoChannels(**TINY, n_charges=2))
    with pytest.raises(ModelFileError, match="2 charge channels; only closed-shell"):
        load_aimnet2_weights(path)


def test_other_files_are_refused(tmp_path: Path, potential_file: Path) -> None:
    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.slope(x)

    other = write(tmp_path / "line.jpt", Line())
    assert is_foreign(other)
    with pytest.raises(ModelFileError, match=r"no tensor afv\.weight, but slope\.bias, slope\.weight"):
        read_members(other)
    assert not is_foreign(potential_file)
    with pytest.raises(ModelFileError, match="not a TorchScript file of another package"):
        read_members(potential_file)
    torch.save({"a": torch.ones(2)}, tmp_path / "state.pt")
    (tmp_path / "text.jpt").write_text("no zip")
    for name in ("state.pt", "text.jpt"):
        assert not is_foreign(tmp_path / name)
        with pytest.raises(ModelFileError, match="not a TorchScript file of another package"):
            read_members(tmp_path / name)
    for missing in (tmp_path / "nothing.jpt", tmp_path):
        assert not is_foreign(missing)
        with pytest.raises(ModelFileError, match="does not exist or is no file"):
            read_members(missing)


def test_damage_and_wrong_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "one.jpt", network())
    for member in (-1, 1):
        with pytest.raises(ModelFileError, match=rf"has 1 networks \(0 to 0\), and none is {member}"):
            load_aimnet2_weights(path, member)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        place = max(archive.infolist(), key=lambda entry: entry.file_size).header_offset + 5000
    content[place] ^= 0xFF
    (tmp_path / "damaged.jpt").write_bytes(content)
    with pytest.raises(ModelFileError, match="fails its checksum"):
        read_members(tmp_path / "damaged.jpt")
    monkeypatch.setattr("aimnet2mult.models.foreign_file._MAX_BYTES", 1000)
    with pytest.raises(ModelFileError, match="too much for an AIMNet2 file"):
        read_members(path)


def published_double(program: Any, atoms: Atoms) -> tuple[Tensor, Tensor, Tensor]:
    """The published program in float64: its own methods one by one, because its entrance rounds to float32."""
    coord = torch.tensor(atoms.positions, requires_grad=True)
    numbers = torch.tensor(atoms.numbers, dtype=torch.int64)
    charge = torch.tensor([float(atoms.info["charge"])], dtype=torch.float64)
    data = {"coord": coord.unsqueeze(0), "numbers": numbers.unsqueeze(0), "charge": charge}
    data["pad_mask"] = torch.tensor([0])
    data["a"] = program.afv(data["numbers"]).unflatten(-1, list(program.conv_a.agh.shape[:2]))
    data = program.aev(data)
    passes = list(program.mlps.children())
    data = program._update_q(data, passes[0](program._prepare_in_a(data)), False)
    for layers in passes[1:]:
        data["aim"] = layers(torch.cat([program._prepare_in_a(data), program._prepare_in_q(data)], -1))
        if layers is not passes[-1]:
            data = program._update_q(data, data["aim"], True)
    for head in program.outputs.children():
        data = head(data)
    (gradient,) = torch.autograd.grad(data["energy"].sum(), coord)
    return data["energy"][0].detach(), -gradient, data["charges"][0].detach()


def published_structures() -> list[Atoms]:
    """As above, with the other elements that the published networks know."""
    cases = structures()
    for name in ("SiH4", "PH3", "BF3"):
        cases.append(suites.structure(name))
    cases.append(bare("IBr", [[0, 0, 0], [0, 0.1, 2.47]]))
    cases.append(bare("AsH3", [[0, 0, 0], [0, 1.25, 0.85], [1.08, -0.62, 0.85], [-1.08, -0.62, 0.85]]))
    cases.append(bare("SeH2", [[0, 0, 0], [1.03, 0, 1.03], [-1.03, 0, 1.03]]))
    c60 = molecule("C60")
    c60.info = {"charge": 0, "mult": 1}
    return [*cases, c60]


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
