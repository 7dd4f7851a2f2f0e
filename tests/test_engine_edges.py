"""Edges for the engine against sums over images written out, and the sums over edges."""

from __future__ import annotations

import numpy as np
import pytest
from test_neighbors import CELLS, TRICLINIC, Entry, frame, images

pytest.importorskip("numba", reason="the engine needs the optional package numba")

from aimnet2mult.calculators.neighbors import Frame
from aimnet2mult.engine import edges as edges_module
from aimnet2mult.engine.edges import FoundEdges, derivatives, find_edges, joined, within


def entries(system: Frame, found: FoundEdges) -> list[Entry]:
    """Edges as first atom, second atom, lattice translation; the opposite edge of each is checked by the way."""
    start, neighbor, vector, reverse = found.edges
    listed = []
    for i in range(len(system.coord)):
        for e in range(start[i], start[i + 1]):
            j = int(neighbor[e])
            shift = (system.coord[i] + vector[e] - system.coord[j]) @ np.linalg.pinv(system.cell)
            np.testing.assert_allclose(shift, np.round(shift), atol=1e-9)
            listed.append((i, j, *map(int, np.round(shift))))
            back = reverse[e]
            assert start[j] <= back < start[j + 1]
            assert neighbor[back] == i
            assert (vector[back] == -vector[e]).all()
    return listed


@pytest.mark.parametrize("cutoff", [2.5, 6.0])
@pytest.mark.parametrize("n_atoms", [1, 2, 7])
@pytest.mark.parametrize("name", CELLS)
def test_edges_are_those_of_brute_force(
    monkeypatch: pytest.MonkeyPatch, name: str, n_atoms: int, cutoff: float
) -> None:
    system = frame(CELLS[name], n_atoms)
    expected = sorted(images(system, cutoff))
    found = find_edges(system.coord, system.cell, cutoff)
    assert sorted(entries(system, found)) == expected
    monkeypatch.setattr(edges_module, "ALL_PAIRS_UP_TO", 0)  # molecules by bins too
    found = find_edges(system.coord, system.cell, cutoff)
    assert sorted(entries(system, found)) == expected


@pytest.mark.parametrize("spread", [0.0, 6.0, 400.0])
def test_many_atoms_in_bins(monkeypatch: pytest.MonkeyPatch, spread: float) -> None:
    """In a plane, as dense as a liquid, and so thin that bins are fewer than space would have."""
    coord = np.random.default_rng(1).uniform(-6.0, 6.0, (300, 3))
    coord[:, 2] *= spread / 6.0
    apart = np.linalg.norm(coord[:, None] - coord, axis=-1)
    first, second = np.nonzero((apart < 4.0) & (apart > 0.0))
    monkeypatch.setattr(edges_module, "ALL_PAIRS_UP_TO", 0)
    start, neighbor, vector, _ = find_edges(coord, np.zeros((3, 3)), 4.0).edges
    found = np.repeat(np.arange(300), np.diff(start))
    assert sorted(zip(found.tolist(), neighbor.tolist(), strict=True)) == list(
        zip(first.tolist(), second.tolist(), strict=True)
    )
    np.testing.assert_allclose(vector, coord[neighbor] - coord[found], atol=1e-12)


def test_nearest_pair() -> None:
    system = frame(TRICLINIC, 5)
    nearest = find_edges(system.coord, system.cell, 6.0).nearest
    assert nearest is not None
    every = [
        (float(np.linalg.norm(system.coord[j] + np.array(s) @ system.cell - system.coord[i])), i, j, s)
        for i, j, *s in images(system, 6.0)
    ]
    distance, first, second, shift = min(every)
    assert nearest.square**0.5 == pytest.approx(distance, abs=1e-12)
    assert (nearest.first, nearest.second, *nearest.shift) in (
        (first, second, *shift),
        (second, first, *(-x for x in shift)),
    )
    alone = find_edges(np.zeros((1, 3)), 9.0 * np.eye(3), 5.0).nearest
    assert alone is not None
    assert alone.square == np.inf


def test_systems_joined_are_those_alone() -> None:
    systems = [frame(CELLS[name], n, spread=3.0) for n, name in enumerate(("cubic", "molecule", "slab"), 1)]
    alone = [find_edges(system.coord, system.cell, 4.0) for system in systems]
    start, neighbor, vector, reverse = joined([found.edges for found in alone])
    n_atoms, n_edges = 0, 0
    for system, found in zip(systems, alone, strict=True):
        own = found.edges
        n, e = len(system.coord), len(own.neighbor)
        here = slice(n_edges, n_edges + e)
        assert (start[n_atoms : n_atoms + n + 1] == own.start + n_edges).all()
        assert (neighbor[here] == own.neighbor + n_atoms).all()
        assert (reverse[here] == own.reverse + n_edges).all()
        assert (vector[here] == own.vector).all()
        n_atoms, n_edges = n_atoms + n, n_edges + e
    assert start[-1] == len(neighbor) == n_edges
    assert neighbor.dtype == reverse.dtype == np.int32


def test_shorter_edges_are_those_of_the_shorter_cutoff() -> None:
    system = frame(TRICLINIC, 6)
    long, short = (find_edges(system.coord, system.cell, cutoff) for cutoff in (6.0, 4.0))
    kept = FoundEdges(within(long.edges, 4.0), None)
    assert sorted(entries(system, kept)) == sorted(entries(system, short))


def test_derivatives_are_those_of_a_sum_over_edges() -> None:
    """E = sum_e w_e . v_e(v_e . v_e): its derivative by each vector is known, those by atoms and strain by differences.

    Steps of 1e-5: truncation about 1e-9 of the derivative, rounding about 1e-9.
    """
    rng = np.random.default_rng(3)
    systems = [frame(TRICLINIC * 2.0, 5, spread=3.0), frame(np.zeros((3, 3)), 4, spread=2.0)]
    edges = joined([find_edges(s.coord, s.cell, 3.9).edges for s in systems])
    weight = rng.normal(size=edges.vector.shape)
    offsets = np.array([0, 5, 9])
    owner = np.repeat(np.arange(9), np.diff(edges.start))

    def energy(vector: np.ndarray) -> float:
        return float(np.sum(np.sum(weight * vector, axis=1) * np.sum(vector**2, axis=1)))

    v = edges.vector
    by_vector = weight * np.sum(v**2, axis=1, keepdims=True) + 2.0 * v * np.sum(weight * v, axis=1, keepdims=True)
    gradient, virial = derivatives(edges, by_vector, offsets)
    step = 1e-5
    for atom, axis in ((0, 0), (4, 2), (7, 1)):
        move = np.zeros((9, 3))
        move[atom, axis] = step
        change = move[edges.neighbor] - move[owner]
        expected = (energy(v + change) - energy(v - change)) / (2 * step)
        assert gradient[atom, axis] == pytest.approx(expected, rel=1e-6, abs=1e-6)
    for system, a, b in ((0, 0, 1), (0, 2, 2), (1, 1, 0)):
        strain = np.zeros((3, 3))
        strain[a, b] = step
        change = np.where((owner >= offsets[system]) & (owner < offsets[system + 1]), 1.0, 0.0)[:, None] * (v @ strain)
        expected = (energy(v + change) - energy(v - change)) / (2 * step)
        assert virial[system, a, b] == pytest.approx(expected, rel=1e-6, abs=1e-6)
