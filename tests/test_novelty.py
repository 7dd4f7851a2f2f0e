"""How far structures lie from those of training: the statistics, their way through files, what calculators say."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import suites
import torch
from ase import Atoms
from ase.build import molecule
from conftest import FIDELITIES, SAE, write_fidelity
from structures import water

from aimnet2mult import AIMNet2MultCalculator, NoveltyWarning
from aimnet2mult.calculators.reference import ReferenceEvaluator
from aimnet2mult.datasets.sae_file import write_sae
from aimnet2mult.engine import warmup
from aimnet2mult.errors import ModelFileError
from aimnet2mult.models.archive import write_sealed
from aimnet2mult.models.files import load_weights, read_archive, save_weights
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.models.novelty import Novelty, NoveltyStatistics
from aimnet2mult.training.compile import compile_potential
from aimnet2mult.training.novelty import QUANTILE, Features, features_of, statistics_of
from aimnet2mult.types import AtomIndex, Molecules


def packed(counts: list[int]) -> AtomIndex:
    """Structures without padding between them."""
    molecule_of = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return AtomIndex(torch.arange(sum(counts)), molecule_of, (len(counts), max(counts)))


def gaussian(n: int, seed: int = 0) -> Features:
    """Structures of three atoms, H H O, whose features have a known covariance for each element."""
    random = np.random.default_rng(seed)
    numbers = np.tile([1, 1, 8], n)
    values = random.normal(size=(3 * n, 4)) @ np.diag([2.0, 1.0, 0.5, 1.0])
    values[numbers == 8] += 5.0
    return Features(torch.tensor(values).float(), torch.tensor(numbers), packed([3] * n))


def test_distances_are_those_of_the_definition() -> None:
    features = gaussian(4000)
    novelty = Novelty(statistics_of([features]))(*features).numpy()
    x, z = features.values.double().numpy(), features.numbers.numpy()
    distance = np.empty(len(z))
    for element in (1, 8):
        mine = x[z == element]
        offset = mine - mine.mean(axis=0)
        covariance = np.cov(mine, rowvar=False, bias=True)
        distance[z == element] = np.sqrt(np.einsum("ij,jk,ik->i", offset, np.linalg.inv(covariance), offset) / 4)
    expected = distance.reshape(-1, 3).max(axis=1)
    expected /= np.quantile(expected, QUANTILE)
    # the prior of 32 atoms and the ridge of a thousandth change covariances of thousands of atoms by about 1 %
    assert novelty == pytest.approx(expected, rel=0.03)


def test_one_in_a_hundred_training_structures_lies_outside() -> None:
    features = gaussian(2000)
    novelty = Novelty(statistics_of([features]))(*features)
    assert int((novelty > 1.0).sum()) == 20


def test_the_most_novel_atom_decides() -> None:
    novelty = Novelty(statistics_of([gaussian(500)]))
    usual = gaussian(2, seed=1)
    strange = usual.values.clone()
    strange[4] += 100.0  # an H of the second structure
    before, after = novelty(*usual), novelty(*usual._replace(values=strange))
    assert after[0] == before[0]
    assert after[1] > 10.0


def test_an_element_that_training_has_not_seen_is_infinitely_novel() -> None:
    novelty = Novelty(statistics_of([gaussian(50)]))
    usual = gaussian(2)
    numbers = usual.numbers.clone()
    numbers[5] = 7
    found = novelty(*usual._replace(numbers=numbers))
    assert found.isfinite().tolist() == [True, False]


def test_rare_elements_have_finite_statistics() -> None:
    """One atom of an element, and features that do not vary at all, leave nothing singular."""
    usual = gaussian(100)
    values, numbers = usual.values.clone(), usual.numbers.clone()
    numbers[2], values[:, 3] = 7, 1.5
    statistics = statistics_of([usual._replace(values=values, numbers=numbers)])
    assert statistics.numbers.tolist() == [1, 7, 8]
    assert all(bool(part.isfinite().all()) for part in statistics)


def from_batches(parts: list[int]) -> NoveltyStatistics:
    whole = gaussian(sum(parts))
    cuts, begin = [], 0
    for n in parts:
        rows = slice(3 * begin, 3 * (begin + n))
        cuts.append(Features(whole.values[rows], whole.numbers[rows], packed([3] * n)))
        begin += n
    return statistics_of(cuts)


def test_statistics_do_not_depend_on_batches() -> None:
    one, other = from_batches([60]), from_batches([7, 40, 13])
    for a, b in zip(one, other, strict=True):
        assert torch.allclose(a, b, rtol=1e-6)


# ---- through the files and the calculators


@pytest.mark.usefixtures("two_threads")
def test_statistics_of_many_features_on_two_threads() -> None:
    """PyTorch's own inverse of several matrices of this size is wrong on two threads."""
    random = torch.Generator().manual_seed(0)
    values, numbers = torch.randn(2000, 200, generator=random), torch.tensor([1, 8] * 1000)
    statistics = statistics_of([Features(values, numbers, packed([4] * 500))])
    for z, whitening in zip((1, 8), statistics.whitening.double(), strict=True):
        offsets = values[numbers == z].double()
        covariance = torch.cov(offsets.T)
        whitened = whitening.T @ covariance @ whitening
        # the prior of all elements together is another draw of the same covariance, by some tenths off
        assert (whitened - torch.eye(200)).abs().max() < 0.5


def shaken(n: int, width: float, seed: int) -> list[Atoms]:
    """Water and methanol with shaken atoms."""
    random = np.random.default_rng(seed)
    found = []
    for i in range(n):
        atoms = molecule("H2O" if i % 2 else "CH3OH")
        atoms.positions += random.normal(scale=width, size=atoms.positions.shape)
        found.append(atoms)
    return found


def batch_of(structures: list[Atoms]) -> Molecules:
    n = max(len(atoms) for atoms in structures)
    coord, numbers = torch.zeros(len(structures), n, 3), torch.zeros(len(structures), n, dtype=torch.int64)
    for row, atoms in enumerate(structures):
        coord[row, : len(atoms)] = torch.tensor(atoms.positions)
        numbers[row, : len(atoms)] = torch.tensor(atoms.numbers)
    zeros = torch.zeros(len(structures))
    return Molecules(coord, numbers, zeros, zeros + 1.0, zeros.long())


def seen_by(network: MultiFidelityNetwork, structures: list[Atoms]) -> NoveltyStatistics:
    return statistics_of([features_of(network, batch_of(structures))])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights and a potential of a network that has 'seen' water and methanol with atoms shaken by 0.05 Å."""
    folder = tmp_path_factory.mktemp("novelty")
    network = suites.network(num_fidelities=1, outputs={"lrcoulomb": None}).float()
    info = FIDELITIES[0].model_copy(update={"elements": [1, 6, 8]})
    sae = {z: SAE[z] for z in info.elements}
    seen = seen_by(network, shaken(400, 0.05, seed=1))
    save_weights(folder / "model.pt", network, [info], {}, {0: sae}, {0: seen})
    write_sae(folder / "sae.yaml", sae)
    compile_potential(folder / "model.pt", folder / "model", 0, folder / "sae.yaml")
    return folder


@pytest.fixture(params=["engine", "program"])
def calc(request: pytest.FixtureRequest, trained: Path, monkeypatch: pytest.MonkeyPatch) -> AIMNet2MultCalculator:
    """A calculator of the potential, by the compiled engine and by the program of the file."""
    if request.param == "program":
        monkeypatch.setattr(warmup, "ready", lambda: False)
        found = AIMNet2MultCalculator(trained / "model_fid0.jpt", device="cpu")
        assert isinstance(found._potentials.committee().evaluator, ReferenceEvaluator)
        return found
    pytest.importorskip("numba", reason="the engine needs the optional package numba")
    warmup.compile_kernels(lambda line: None)
    return AIMNet2MultCalculator(trained / "model_fid0.jpt", device="cpu")


def test_what_is_like_training_lies_inside(calc: AIMNet2MultCalculator) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoveltyWarning)
        found = calc.evaluate(shaken(100, 0.04, seed=2))
    assert max(one.novelty for one in found) < 1.0


def test_what_is_not_like_training_lies_outside_and_is_said_once(calc: AIMNet2MultCalculator) -> None:
    strange = shaken(4, 0.4, seed=3)
    strange[0].calc = calc
    with pytest.warns(NoveltyWarning, match=r"outside of what PBE0 was trained on \(novelty .*said once"):
        strange[0].get_potential_energy()
    assert calc.results["novelty"] > 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoveltyWarning)
        found = calc.evaluate(strange)
    assert all(one.novelty > 1.0 for one in found)


def test_several_structures_are_warned_of_together(calc: AIMNet2MultCalculator) -> None:
    structures = shaken(3, 0.03, seed=4) + shaken(2, 0.5, seed=5)
    with pytest.warns(NoveltyWarning, match=r"2 of 5 structures lie outside .* of structure [34];"):
        calc.evaluate(structures)


def test_both_ways_and_the_definition_agree(trained: Path, calc: AIMNet2MultCalculator) -> None:
    structures = shaken(6, 0.2, seed=6)
    weights = load_weights(trained / "model.pt")
    batch = batch_of(structures)
    expected = Novelty(weights.novelty[0])(*features_of(weights.build(), batch))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoveltyWarning)
        found = [one.novelty for one in calc.evaluate(structures)]
        alone = []
        for atoms in structures:
            atoms.calc = calc
            atoms.get_potential_energy()
            alone.append(calc.results["novelty"])
    # float32 features, whose rounding the whitening of a stiff direction (ridge 1e-3 of the mean) enlarges 30 times
    assert found == pytest.approx(expected.numpy(), rel=1e-3)
    assert alone == pytest.approx(found, rel=1e-3)


def test_an_ensemble_gives_the_mean(trained: Path, tmp_path: Path) -> None:
    weights = load_weights(trained / "model.pt")
    wider = weights.novelty[0]._replace(scale=weights.novelty[0].scale * 3.0)
    save_weights(tmp_path / "model.pt", weights.build(), weights.fidelities, {}, weights.sae, {0: wider})
    compile_potential(tmp_path / "model.pt", tmp_path / "other", 0, trained / "sae.yaml")
    atoms = water()
    found = []
    for model in (trained / "model_fid0.jpt", tmp_path / "other_fid0.jpt"):
        calc = AIMNet2MultCalculator([model, tmp_path / "other_fid0.jpt"][: 1 if "other" in str(model) else 2])
        found.append(calc.evaluate([atoms])[0].novelty)
    both, third = found
    assert both == pytest.approx(2.0 * third, rel=1e-3)  # (3 + 1) / 2 of the wider one's


def test_potentials_that_know_nothing_of_training_say_nothing(tmp_path: Path) -> None:
    calc = AIMNet2MultCalculator(write_fidelity(suites.network(num_fidelities=1), FIDELITIES[0], tmp_path / "old"))
    atoms = water()
    atoms.calc = calc
    atoms.get_forces()
    assert "novelty" not in calc.results
    assert calc.evaluate([atoms])[0].novelty is None


def test_warnings_given_are_not_taken_back_by_copies(calc: AIMNet2MultCalculator) -> None:
    copied = pickle.loads(pickle.dumps(calc))
    strange = shaken(1, 0.5, seed=8)
    for one in (calc, copied):
        with pytest.warns(NoveltyWarning):
            one.evaluate(strange)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("mean", torch.zeros(3, 5), "do not fit the network"),
        ("numbers", torch.tensor([1, 8, 6]), "hold wrong numbers"),
        ("numbers", torch.tensor([1, 6, 200]), "hold wrong numbers"),
        ("scale", torch.zeros((), dtype=torch.float64), "hold wrong numbers"),
        ("scale", torch.tensor(float("nan"), dtype=torch.float64), "not finite"),
        ("whitening", "text", "not tensors by name"),
    ],
)
def test_wrong_statistics_in_a_file_are_refused(
    trained: Path, tmp_path: Path, part: str, value: object, message: str
) -> None:
    content = read_archive(trained / "model.pt", "")
    content["novelty"][0][part] = value
    write_sealed(tmp_path / "model.pt", content)
    with pytest.raises(ModelFileError, match=message):
        load_weights(tmp_path / "model.pt")


@pytest.mark.parametrize("novelty", [[1], {"0": {}}, {0: {}}])
def test_statistics_of_another_form_are_refused(trained: Path, tmp_path: Path, novelty: object) -> None:
    content = read_archive(trained / "model.pt", "") | {"novelty": novelty}
    write_sealed(tmp_path / "model.pt", content)
    with pytest.raises(ModelFileError, match="malformed"):
        load_weights(tmp_path / "model.pt")
