"""The compiled engine behind the calculator: the numbers of the program inside the file, where it is used, where not.

Both ways are compared with the same potential in float64. What a float32 network leaves depends on the network and on
the size of its features; the engine may be no further off than the program of the file in float32 is, twice over,
because the two round independently, or than ENERGY and FORCE where that is less.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import foreign_cases
import numpy as np
import pytest
import suites
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import CalculationFailed
from ase.filters import FrechetCellFilter
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from conftest import FIDELITIES, SAE, write_fidelity
from crystals import LennardJones, crystal, short_ranged, water_box
from published_program import Ensemble
from structures import alkane, water

pytest.importorskip("numba", reason="the engine needs the optional package numba")

from aimnet2mult import AIMNet2MultCalculator
from aimnet2mult.calculators import engine_evaluator, evaluators, pair_terms
from aimnet2mult.calculators.engine_evaluator import EngineEvaluator
from aimnet2mult.calculators.evaluation import Evaluation
from aimnet2mult.calculators.reference import ReferenceEvaluator
from aimnet2mult.configs.dispersion import DispersionSettings
from aimnet2mult.datasets.sae_file import write_sae
from aimnet2mult.engine import warmup
from aimnet2mult.errors import InputError
from aimnet2mult.models.files import load_potential, read_metadata, save_weights, write_potential
from aimnet2mult.training.compile import compile_potential

ENERGY = 1e-6  # eV per atom
FORCE = 2e-5  # eV/Å; charges in e and stresses in eV/Å^3 are smaller numbers, so the same serves
Program = Callable[..., AIMNet2MultCalculator]


@pytest.fixture(autouse=True)
def kernels_are_there() -> None:
    warmup.compile_kernels(lambda line: None)


@pytest.fixture
def by_program(monkeypatch: pytest.MonkeyPatch) -> Program:
    """Makes calculators that run the programs of their files."""

    def build(path: Path, **arguments: object) -> AIMNet2MultCalculator:
        with monkeypatch.context() as patch:
            patch.setattr(warmup, "ready", lambda: False)
            calc = AIMNet2MultCalculator(path, device="cpu", **arguments)
        assert isinstance(calc._potentials.committee().evaluator, ReferenceEvaluator)
        return calc

    return build


def by_engine(path: Path | list[Path], **arguments: object) -> AIMNet2MultCalculator:
    calc = AIMNet2MultCalculator(path, device="cpu", **arguments)
    assert isinstance(calc._potentials.committee().evaluator, EngineEvaluator)
    return calc


def compiled_file(folder: Path, network: dict[str, object], dispersion: DispersionSettings | None = None) -> Path:
    """A potential without artificial wells, through the compile command."""
    net = suites.network(num_fidelities=1, **network).float()
    save_weights(folder / "model.pt", net, FIDELITIES[:1], {}, {0: SAE})
    write_sae(folder / "sae.yaml", SAE)
    extra = {} if dispersion is None else {"dispersion": dispersion}
    return compile_potential(folder / "model.pt", folder / "model", 0, folder / "sae.yaml", **extra)


def coulomb(method: str) -> dict[str, object]:
    return {"class": "aimnet2mult.models.heads.LRCoulomb", "kwargs": {"method": method, "rc": 4.6, "dsf_cutoff": 9.0}}


BARE = {"outputs": {"lrcoulomb": None}}
FILES: dict[str, Callable[[Path], Path]] = {
    "two channels": lambda folder: compiled_file(folder, BARE),
    "one channel": lambda folder: compiled_file(folder, BARE | {"num_charge_channels": 1}),
    "charge and spin": lambda folder: compiled_file(folder, BARE | {"equilibration": "charge_spin"}),
    "Coulomb": lambda folder: compiled_file(folder, {}),
    "DSF": lambda folder: compiled_file(folder, {"outputs": {"lrcoulomb": coulomb("dsf")}}),
    "D3": lambda folder: compiled_file(folder, {}, DispersionSettings(method="d3bj", functional="pbe0")),
    "D4 of the network's charges": lambda folder: compiled_file(
        folder, BARE, DispersionSettings(method="d4", functional="pbe0", charges="network", triple_cutoff=8.0)
    ),
    "wells that read the rows of neighbours": lambda folder: short_ranged(folder / "short"),
    "published": lambda folder: foreign_cases.write(folder / "published.jpt", foreign_cases.network()),
}


def molecules(channels: int, elements: set[int]) -> list[Atoms]:
    """The molecules of the suite that a potential knows, and larger ones with neighbour lists."""
    known = [atoms for atoms in suites.structures() if set(atoms.numbers) <= elements]
    chain = alkane(30)
    chain.rattle(0.05, seed=1)
    ion = alkane(90)  # 272 atoms: beyond the size where the program takes neighbour lists
    ion.rattle(0.05, seed=2)
    ion.info = {"charge": 2}
    everything = [*known, chain, ion, Atoms("H", info={"charge": 1})]
    return [atoms for atoms in everything if channels == 2 or atoms.info.get("mult", 1) == 1]


def cells() -> list[Atoms]:
    boxed = water(charge=2)
    boxed.set_cell([11.0, 12.0, 13.0])
    boxed.pbc = True
    return [crystal("triclinic"), crystal("left-handed"), crystal("thin"), water_box(8), boxed]


class Deviations(NamedTuple):
    """Largest differences from float64."""

    energy: float  # eV per atom
    forces: float
    charges: float
    spin_charges: float
    stress: float


def deviations(found: Evaluation, exact: Evaluation) -> Deviations:
    def largest(a: np.ndarray | None, b: np.ndarray | None) -> float:
        return 0.0 if a is None or b is None else float(np.abs(a - b).max())

    return Deviations(
        abs(found.energy - exact.energy) / len(exact.charges),
        largest(found.forces, exact.forces),
        largest(found.charges, exact.charges),
        largest(found.spin_charges, exact.spin_charges),
        largest(found.stress, exact.stress),
    )


@pytest.mark.filterwarnings("ignore:the cell is charged")
@pytest.mark.parametrize("kind", FILES)
def test_numbers_are_those_of_the_program(tmp_path: Path, by_program: Program, kind: str) -> None:
    path = FILES[kind](tmp_path)
    engine, program = by_engine(path), by_program(path)
    exact = AIMNet2MultCalculator(path, device="cpu", dtype="float64")
    bags = molecules(exact.metadata.num_charge_channels, set(exact.metadata.fidelity.elements)), cells()
    limits = Deviations(ENERGY, *[FORCE] * 4)
    for bag, stress in zip(bags, (False, True), strict=True):
        single = [calc.evaluate([atoms], stress=stress)[0] for atoms in bag for calc in (engine, program, exact)]
        together = engine.evaluate(bag, stress=stress)
        for k, atoms in enumerate(bag):
            mine, theirs, right = single[3 * k : 3 * k + 3]
            off, allowed = deviations(mine, right), deviations(theirs, right)
            for name, x, y, limit in zip(Deviations._fields, off, allowed, limits, strict=True):
                assert x <= max(2.0 * y, limit), f"{atoms.symbols}: {name} off by {x}, the program by {y}"
            batched = deviations(together[k], mine)
            # nothing but the order of sums in terms that run in padded batches
            assert max(batched) < 1e-9, f"{atoms.symbols}: {batched}"
            atoms.calc = engine
            assert atoms.get_potential_energy() == pytest.approx(mine.energy, abs=1e-9)
            np.testing.assert_allclose(atoms.get_forces(), mine.forces, atol=1e-9)


def test_dispersion_that_is_not_compiled_runs_in_its_program(tmp_path: Path, by_program: Program) -> None:
    path = compiled_file(tmp_path, BARE, DispersionSettings(method="d3bj", functional="pbe0", s9=1.0))
    engine, program = by_engine(path), by_program(path)
    member = engine._potentials.committee().evaluator._members[0]  # type: ignore[attr-defined]
    assert not member.dispersion
    assert member.others
    for atoms in (suites.structure("CH3CONH2"), alkane(20)):
        (mine,), (theirs,) = engine.evaluate([atoms]), program.evaluate([atoms])
        assert max(deviations(mine, theirs)) < 2 * FORCE


def test_where_the_engine_is_used(
    potential_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    atoms = water()
    engine = by_engine(potential_file)
    expected = engine.get_potential_energy(atoms)
    precise = AIMNet2MultCalculator(potential_file, device="cpu", dtype="float64")
    assert isinstance(precise._potentials.committee().evaluator, ReferenceEvaluator)
    assert isinstance(engine._potentials.committee(precise=True).evaluator, ReferenceEvaluator)  # Hessians
    assert precise.get_potential_energy(atoms) == pytest.approx(expected, abs=1e-5)
    assert precise.get_potential_energy(atoms) != expected
    # a program that says something else than its metadata
    monkeypatch.setattr(evaluators, "_SAME", 1e-12)
    other = AIMNet2MultCalculator(potential_file, device="cpu")
    assert isinstance(other._potentials.committee().evaluator, ReferenceEvaluator)
    assert "its program is used, because the compiled engine gives other numbers" in caplog.text


def test_programs_that_the_engine_does_not_know(potential_file: Path, tmp_path: Path) -> None:
    loaded, metadata = load_potential(potential_file), read_metadata(potential_file)
    strange = metadata.model_copy(update={"model": metadata.model | {"class": "another.Network"}})
    write_potential(tmp_path / "strange_fid0.jpt", loaded.module, strange)
    loaded.module.network.to(torch.float64)
    write_potential(tmp_path / "double_fid0.jpt", loaded.module, metadata)
    for name in ("strange", "double"):
        calc = AIMNet2MultCalculator(tmp_path / f"{name}_fid0.jpt", device="cpu")
        assert isinstance(calc._potentials.committee().evaluator, ReferenceEvaluator)
        assert calc.get_potential_energy(water()) == pytest.approx(
            by_engine(potential_file).get_potential_energy(water()), abs=1e-5
        )


def test_no_torch_where_none_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of a potential with compiled terms only enters no mode of PyTorch and makes no tensor."""
    path = FILES["D3"](tmp_path)
    calc, atoms = by_engine(path), water()
    expected = calc.get_forces(atoms)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("PyTorch was asked")

    for module, name in ((pair_terms, "own_settings"), (torch, "from_numpy"), (torch, "zeros"), (torch, "tensor")):
        monkeypatch.setattr(module, name, forbidden)
    calc.reset()
    np.testing.assert_array_equal(calc.get_forces(atoms), expected)


def test_ensembles(tmp_path: Path, by_program: Program) -> None:
    """Members of different cutoffs: each gets the edges that it knows."""
    paths = []
    for seed, cutoff in enumerate((5.0, 4.0, 5.0)):
        network = suites.network(seed, num_fidelities=1, aev={"rc_s": cutoff, "rmin": 0.8, "nshifts_s": 6})
        paths.append(write_fidelity(network, FIDELITIES[0], tmp_path / f"model_{seed}"))
    engine, program = by_engine(paths), by_program(paths)  # type: ignore[arg-type]
    for atoms in (alkane(8), crystal("triclinic")):
        stress = bool(atoms.pbc.any())
        (mine,), (theirs,) = (calc.evaluate([atoms], stress=stress) for calc in (engine, program))
        assert max(deviations(mine, theirs)) < 2 * FORCE
        assert mine.energy_std == pytest.approx(theirs.energy_std, abs=ENERGY * len(atoms))
        np.testing.assert_allclose(mine.forces_std, theirs.forces_std, atol=FORCE)


def test_published_ensembles_share_their_dispersion(
    tmp_path: Path, by_program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Ensemble([foreign_cases.network(seed) for seed in range(3)])
    path = foreign_cases.write(tmp_path / "published.jpt", program)
    engine = by_engine(path)
    calls = []
    genuine = engine_evaluator._dispersion
    monkeypatch.setattr(engine_evaluator, "_dispersion", lambda *args: calls.append(1) or genuine(*args))
    atoms = suites.structure("C6H6")
    (mine,), (theirs,) = engine.evaluate([atoms]), by_program(path).evaluate([atoms])
    assert len(calls) == 1
    assert max(deviations(mine, theirs)) < FORCE
    assert mine.energy_std == pytest.approx(theirs.energy_std, abs=ENERGY * len(atoms))


def test_all_fidelities(potential_file: Path, by_program: Program) -> None:
    atoms = suites.structure("CH3CONH2")
    found, expected = (calc.all_fidelities(atoms) for calc in (by_engine(potential_file), by_program(potential_file)))
    assert list(found.results) == list(expected.results)
    for name, one in found.results.items():
        assert max(deviations(one, expected.results[name])) < FORCE


def test_faults_are_said_as_by_the_program(potential_file: Path, by_program: Program) -> None:
    near = crystal("triclinic")
    near.positions[1] = near.positions[0] + near.cell.array[0] - [0.1, 0.0, 0.0]
    own = Atoms("O", cell=[4.0, 4.0, 0.2], pbc=True)
    slab = crystal("triclinic")
    slab.pbc = (True, True, False)
    for atoms in (near, own, slab, water(mult=2), Atoms("Fe"), Atoms("OH2", [[0, 0, np.nan]] * 3)):
        said = []
        for calc in (by_engine(potential_file), by_program(potential_file)):
            with pytest.raises(InputError) as caught:
                calc.get_potential_energy(atoms)
            said.append(str(caught.value))
        assert said[0] == said[1]


def test_weights_changed_in_place_are_used(potential_file: Path) -> None:
    calc, atoms = by_engine(potential_file), water()
    before = calc.get_potential_energy(atoms)
    weights = next(calc._potentials.committee().modules[0].network.energy_mlp.parameters())
    with torch.no_grad():
        weights.mul_(2.0)
    calc.reset()
    assert abs(calc.get_potential_energy(atoms) - before) > 1e-3
    with torch.no_grad():
        weights.fill_(torch.nan)
    calc.reset()
    with pytest.raises(CalculationFailed, match="the potential gave energy and forces that are not finite"):
        calc.get_forces(atoms)


def test_an_element_without_self_atomic_energy(potential_file: Path) -> None:
    calc = by_engine(potential_file)
    member = calc._potentials.committee().evaluator._members[0]  # type: ignore[attr-defined]
    member.sae = np.where(np.arange(119) == 8, np.nan, member.sae)
    with pytest.raises(CalculationFailed, match="this potential was not trained on the element with atomic number 8"):
        calc.get_potential_energy(water())


def test_energy_is_conserved(tmp_path: Path) -> None:
    """NVE of 0.25 ps at 1 fs: no drift. The forces are noisy by 1e-5 eV/Å, which heats by far less than the limit."""
    path = short_ranged(tmp_path / "solid", wells=LennardJones())
    atoms = bulk("C", "fcc", a=3.5, cubic=True)
    atoms.symbols = "COCN"
    atoms.rattle(0.05, seed=1)
    atoms.calc = by_engine(path)
    with BFGS(FrechetCellFilter(atoms), logfile=None) as optimiser:
        assert optimiser.run(fmax=1e-2, steps=100)
    warm = atoms * (2, 2, 2)
    warm.calc = atoms.calc
    thermalize_momenta(warm, temperature_K=300, rng=np.random.default_rng(0))
    totals: list[float] = []
    dynamics = VelocityVerlet(warm, timestep=1.0 * units.fs)
    dynamics.attach(lambda: totals.append(warm.get_total_energy()))
    dynamics.run(250)
    slope = np.polyfit(1e-3 * np.arange(len(totals)), totals, 1)[0]  # eV/ps
    assert abs(slope) / len(warm) < 1e-4
    assert warm.get_temperature() > 50


def test_without_warnings(potential_file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_engine(potential_file).get_potential_energy(water())


@pytest.mark.usefixtures("two_threads")
def test_a_batch_with_d4_on_two_threads(tmp_path: Path) -> None:
    """PyTorch's own solution of the equations for the charges of several large molecules is wrong on two threads."""
    file = compiled_file(tmp_path, BARE, DispersionSettings(method="d4", functional="pbe0", triple_cutoff=8.0))
    chains = [alkane(52) for _ in range(2)]
    for seed, chain in enumerate(chains):
        chain.rattle(0.02, seed=seed)
    calc = AIMNet2MultCalculator(file, device="cpu")
    alone = [calc.get_potential_energy(chain) for chain in chains]
    together = [result.energy for result in calc.evaluate(chains)]
    # float32 networks in batches of another shape; energies of 6e4 eV, without their atoms 1e2
    assert together == pytest.approx(alone, abs=1e-3)
