"""Work of the engine in parts: what a part is does not change results, and nothing else uses the cores meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from ase import Atoms
from crystals import crystal, water_box
from hypothesis import given
from hypothesis import strategies as st
from test_engine_pairs import PBE0, charges_of, compiled

pytest.importorskip("numba", reason="the engine needs the optional package numba")

from aimnet2mult.configs.model import CoulombSettings
from aimnet2mult.engine import clusters, team
from aimnet2mult.engine.distances import make_whitening, squared_distances
from aimnet2mult.engine.forward import count_blocks
from aimnet2mult.engine.reciprocal import reciprocal_sum
from aimnet2mult.engine.team import in_parts
from aimnet2mult.engine.workspace import MAX_ROWS
from aimnet2mult.models.coulomb import LRCoulomb
from aimnet2mult.models.dispersion import D3BJ
from aimnet2mult.models.novelty import Novelty, NoveltyStatistics
from aimnet2mult.torch_threads import one_thread
from aimnet2mult.types import AtomIndex


@pytest.mark.usefixtures("two_threads")
def test_parts_come_in_order_from_several_threads() -> None:
    both = threading.Barrier(2, timeout=60)
    seen = set()

    def work(part: int) -> int:
        if part < 2:
            both.wait()  # one thread alone would wait in vain
        seen.add(threading.get_ident())
        return part * part

    assert in_parts(work, 7) == [0, 1, 4, 9, 16, 25, 36]
    assert len(seen) == 2


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("bad", [0, 1, 5])
def test_errors_of_parts_are_raised(bad: int) -> None:
    def work(part: int) -> None:
        if part == bad:
            raise MemoryError(f"part {part}")

    with pytest.raises(MemoryError, match=f"part {bad}"):
        in_parts(work, 6)


@pytest.mark.usefixtures("two_threads")
def test_parts_that_are_left_are_not_done_after_an_error() -> None:
    done = []

    def work(part: int) -> None:
        done.append(part)
        if part == 0:
            raise MemoryError
        time.sleep(0.05)

    with pytest.raises(MemoryError):
        in_parts(work, 50)
    assert len(done) < 5


@pytest.mark.usefixtures("two_threads")
def test_parts_without_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert in_parts(lambda part: part, 4) == [0, 1, 2, 3]


def pair_terms() -> dict[str, Any]:
    return {
        "dispersion": compiled(D3BJ([1, 8], PBE0)),
        **{name: compiled(LRCoulomb(CoulombSettings(method=name))) for name in ("simple", "dsf", "ewald")},  # type: ignore[arg-type]
    }


class Numbers(NamedTuple):
    energy: float
    gradient: np.ndarray
    virial: np.ndarray


def evaluated(term: Any, atoms: Atoms) -> Numbers:
    if hasattr(term, "key"):
        found = term(atoms.positions, atoms.numbers.astype(np.int64), atoms.cell.array, True)
    else:
        found = term(atoms.positions, charges_of(atoms), atoms.cell.array)
    return Numbers(found.energy, found.gradient, found.virial)


def molecules() -> Atoms:
    """Enough of them for several parts."""
    atoms = water_box(512)
    atoms.pbc, atoms.cell = False, np.zeros((3, 3))
    return atoms


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name", list(pair_terms()))
def test_pair_sums_in_parts(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    term = pair_terms()[name]
    atoms = molecules() if name == "simple" else water_box(64)
    parts: list[int] = []

    def parts_of(found: clusters.Clusters) -> int:
        parts.append(clusters.parts_of(found))
        return parts[-1]

    for module in ("coulomb", "dispersion"):
        monkeypatch.setattr(f"aimnet2mult.engine.{module}.parts_of", parts_of)
    divided = evaluated(term, atoms)
    assert parts[0] > 1
    with one_thread():
        again = evaluated(term, atoms)
    monkeypatch.setattr(team, "_MOST_PARTS", 1)
    whole = evaluated(term, atoms)
    assert parts[-1] == 1
    for one, other, third in zip(divided, whole, again, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12 * len(atoms))  # sums in another order
        np.testing.assert_array_equal(one, third)


@pytest.mark.parametrize("kind", ["triclinic", "left-handed", "thin", "water"])
def test_reciprocal_sum(kind: str) -> None:
    """Against the sum over all wave vectors one by one; water has more atoms than are worked on at a time."""
    atoms = water_box(216) if kind == "water" else crystal(kind)
    assert kind != "water" or len(atoms) > 384
    charges, alpha = charges_of(atoms), 0.25 if kind == "water" else 0.35
    k_max = 10.0 * alpha
    found = reciprocal_sum(atoms.positions, charges, atoms.cell.array, alpha, k_max)
    cell = atoms.cell.array
    back, volume = 2.0 * np.pi * np.linalg.inv(cell).T, abs(np.linalg.det(cell))
    energy, by_charge = 0.0, np.zeros(len(atoms))
    gradient, virial = np.zeros((len(atoms), 3)), np.zeros((3, 3))
    most = [int(k_max * length / (2.0 * np.pi)) + 2 for length in np.linalg.norm(cell, axis=1)]
    for n in product(*(range(-m, m + 1) for m in most)):
        k = np.array(n) @ back
        square = k @ k
        if square == 0.0:
            continue
        weight = 4.0 * np.pi / volume * np.exp(-square / (4.0 * alpha**2)) / square
        waves = np.exp(1j * atoms.positions @ k)
        factor = charges @ waves
        energy += 0.5 * weight * abs(factor) ** 2
        by_charge += weight * (factor.conj() * waves).real
        gradient -= weight * (charges * (factor.conj() * waves).imag)[:, None] * k
        stretch = (2.0 / square + 0.5 / alpha**2) * np.outer(k, k) - np.eye(3)
        virial += 0.5 * weight * abs(factor) ** 2 * stretch
    # both leave out waves beyond k_max, but not the same ones: they weigh exp(-25)
    left_out = 1e-9
    assert found.energy == pytest.approx(energy, abs=left_out)
    np.testing.assert_allclose(found.gradient, gradient, atol=left_out)
    np.testing.assert_allclose(found.virial, virial, atol=left_out * len(atoms))
    np.testing.assert_allclose(found.by_charge, by_charge, atol=left_out)


@pytest.mark.parametrize(("n_atoms", "n_features"), [(1, 8), (47, 16), (500, 24), (500, 33)])
def test_distances(n_atoms: int, n_features: int) -> None:
    """Against the module of a potential; rows are wider than what counts, and the rest is not looked at."""
    rng = np.random.default_rng(n_atoms)
    width = -(-n_features // 16) * 16
    features = rng.normal(size=(n_atoms, width)).astype(np.float32)
    numbers = rng.choice([1, 6, 8], size=n_atoms)
    statistics = NoveltyStatistics(
        torch.tensor([1, 6, 8]),
        torch.from_numpy(rng.normal(size=(3, n_features)).astype(np.float32)),
        torch.from_numpy(rng.normal(size=(3, n_features, n_features)).astype(np.float32)),
        torch.tensor(1.0, dtype=torch.float64),
    )
    module = Novelty(statistics)
    index = AtomIndex(torch.zeros(n_atoms, dtype=torch.int64), torch.arange(n_atoms), (n_atoms, 1))
    wanted = module(torch.from_numpy(features[:, :n_features].copy()), torch.from_numpy(numbers), index)
    whitening = make_whitening(statistics.mean.numpy(), statistics.whitening.numpy())
    kinds = module.place.numpy()[numbers]
    found = squared_distances(np.where(np.arange(width) < n_features, features, np.nan), kinds, whitening)
    # float32 sums of up to 33 products, then of their squares
    np.testing.assert_allclose(np.sqrt(found / n_features), wanted.numpy(), rtol=1e-5)
    kinds[0] = -1
    assert np.isinf(squared_distances(features, kinds, whitening)).tolist() == [True] + [False] * (n_atoms - 1)


_PROGRAM = """
import os, sys, time
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[1])
from test_engine_parts import one_thread_of_work

def of_other_threads():  # hundredths of seconds
    tasks = Path("/proc/self/task").glob("*/stat")
    return sum(int(p.read_text().rsplit(")", 1)[1].split()[11]) for p in tasks if p.parent.name != str(os.getpid()))

square = np.ones((2000, 2000))
before = of_other_threads()
square @ square  # shows that threads of BLAS would be seen
time.sleep(1.0)  # until they sleep
awake, begin = of_other_threads() - before, of_other_threads()
one_thread_of_work()
print(awake, of_other_threads() - begin)
"""


def one_thread_of_work() -> None:
    """What the engine does beside the network, on one thread, of sizes for which BLAS would start several."""
    from aimnet2mult.engine.edges import find_edges

    rng = np.random.default_rng(0)
    atoms = water_box(16**3)
    features = rng.normal(size=(600, 256)).astype(np.float32)
    whitening = make_whitening(features[:2], rng.normal(size=(2, 256, 256)).astype(np.float32))
    with one_thread():
        for term in (compiled(LRCoulomb(CoulombSettings(method=name))) for name in ("dsf", "ewald")):
            evaluated(term, atoms)
        squared_distances(features, np.arange(600) % 2, whitening)
        find_edges(atoms.positions, atoms.cell.array, 5.0)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads what threads do from /proc")
def test_threads_of_blas_sleep() -> None:
    """They would spin on the cores that others compute on; on two threads, energies took three times as long."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("BLAS has threads only where there are two cores")
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(Path(__file__).parent)],
        env={key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    awake, used = map(int, done.stdout.split())
    assert awake > 0
    assert used == 0


@given(n_atoms=st.integers(1, 20_000), n_threads=st.integers(1, 64))
def test_blocks_fit_into_the_memory_of_a_thread(n_atoms: int, n_threads: int) -> None:
    count: Any = count_blocks
    n_blocks = count.py_func(n_atoms, n_threads)
    ends = np.arange(n_blocks + 1) * n_atoms // n_blocks
    assert 0 <= np.diff(ends).min() <= np.diff(ends).max() <= MAX_ROWS
    assert n_blocks % n_threads == 0
    assert count.py_func(n_atoms, -1) == 0  # threads that were started before the work was given up
