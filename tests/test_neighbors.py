"""Neighbour lists against a sum over images written out, and the skin that spares rebuilding them."""

from __future__ import annotations

import gc
import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from aimnet2mult.calculators.neighbors import FlatPairs, Frame, SystemLists, VerletLists, door_entries, find_pairs

TRICLINIC = np.array([[3.0, 0.0, 0.0], [1.0, 3.2, 0.0], [0.5, -0.7, 2.9]])
CELLS = {
    "cubic": 3.0 * np.eye(3),
    "triclinic": TRICLINIC,
    "left-handed": -TRICLINIC,
    "thin": np.array([[2.0, 0.0, 0.0], [0.0, 12.0, 0.0], [3.0, 1.0, 9.0]]),
    "slab": np.diag([4.0, 5.0, 0.0]),
    "wire": np.diag([0.0, 0.0, 3.0]),
    "tilted slab": np.array([[3.0, 1.0, 0.3], [0.0, 0.0, 0.0], [1.0, -2.0, 3.0]]),
    "molecule": np.zeros((3, 3)),
}
Entry = tuple[int, int, int, int, int]


def frame(cell: NDArray[np.float64], n_atoms: int, spread: float = 8.0) -> Frame:
    """Atoms inside and far outside the cell."""
    return Frame(np.random.default_rng(n_atoms).uniform(-spread, spread, (n_atoms, 3)), cell)


def images(system: Frame, cutoff: float) -> set[Entry]:
    """Every ordered pair by brute force over 21 images in each periodic direction."""
    found: set[Entry] = set()
    for shift in itertools.product(*(range(-10, 11) if vector.any() else (0,) for vector in system.cell)):
        there = system.coord + np.array(shift) @ system.cell
        distance = np.linalg.norm(there[None] - system.coord[:, None], axis=-1)
        near = zip(*np.nonzero(distance < cutoff), strict=True)
        found |= {(int(i), int(j), *shift) for i, j in near if i != j or any(shift)}
    return found


def entries(pairs: FlatPairs) -> list[Entry]:
    return [(int(i), int(j), *map(int, s)) for i, j, s in zip(*pairs, strict=True)]


@pytest.mark.parametrize("cutoff", [2.5, 6.0])
@pytest.mark.parametrize("n_atoms", [1, 5])
@pytest.mark.parametrize("name", CELLS)
def test_lists_are_those_of_brute_force(name: str, n_atoms: int, cutoff: float) -> None:
    system = frame(CELLS[name], n_atoms)
    expected = images(system, cutoff)
    found = entries(find_pairs(system, cutoff, each_once=False))
    assert sorted(found) == sorted(expected)
    assert [entry[0] for entry in found] == sorted(entry[0] for entry in found)


@pytest.mark.parametrize("name", CELLS)
def test_each_pair_once(name: str) -> None:
    system = frame(CELLS[name], 4)
    half = entries(find_pairs(system, 6.0, each_once=True))
    mirrored = [(j, i, -a, -b, -c) for i, j, a, b, c in half]
    assert sorted(half + mirrored) == sorted(images(system, 6.0))


def test_rows_of_the_padded_list() -> None:
    system = frame(TRICLINIC, 4)
    lists = VerletLists().update(system, 4.0, 0.0)
    assert lists.neighbor.shape == lists.shift.shape[:2]
    assert (lists.neighbor >= 0).sum(1).max() == lists.neighbor.shape[1], "no column of padding alone"
    rows = [
        (i, int(j), *map(int, s))
        for i, (row, shifts) in enumerate(zip(lists.neighbor, lists.shift, strict=True))
        for j, s in zip(row, shifts, strict=True)
        if j >= 0
    ]
    assert sorted(rows) == sorted(images(system, 4.0))
    assert len(lists.pairs.first) == 0, "no pair list was asked for"


def test_an_atom_alone_has_one_column_of_padding() -> None:
    lists = VerletLists().update(Frame(np.zeros((1, 3)), np.zeros((3, 3))), 5.0, 20.0)
    assert lists.neighbor.tolist() == [[-1]]
    assert len(lists.pairs.first) == 0


def test_lists_survive_small_moves_and_stay_right() -> None:
    """A walk of 60 steps of 0.05 Å, drifting as a whole: right at every step, rebuilt a few times only."""
    rng = np.random.default_rng(0)
    system = frame(TRICLINIC * 2.0, 6)
    verlet = VerletLists(skin=1.0)
    for _ in range(60):
        system = system._replace(coord=system.coord + rng.normal(scale=0.03, size=(6, 3)) + 0.5)
        lists = verlet.update(system, 4.0, 7.0)
        found = {
            (i, int(j), *map(int, s))
            for i in range(6)
            for j, s in zip(lists.neighbor[i], lists.shift[i], strict=True)
            if j >= 0
        }
        assert found == images(system, 4.0)
        far = set(entries(lists.pairs))
        assert images(system, 7.0) <= far | {(j, i, -a, -b, -c) for i, j, a, b, c in far}
    assert 1 < verlet.builds < 30


@pytest.mark.parametrize("name", CELLS)
def test_lists_do_not_depend_on_what_was_asked_before(name: str) -> None:
    """The last bit of a sum depends on the order of what is summed. No image stands just at these cutoffs."""
    rng = np.random.default_rng(1)
    start = frame(CELLS[name], 6, spread=4.0)
    walker = VerletLists(skin=1.0)
    walker.update(start, 4.1, 6.3)
    for _ in range(20):
        step = start._replace(coord=start.coord + rng.normal(scale=0.05, size=(6, 3)))
        for found, expected in zip(
            walker.update(step, 4.1, 6.3)[:3], VerletLists(skin=0.0).update(step, 4.1, 6.3)[:3], strict=True
        ):
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_array_equal(a, b)
    assert walker.builds == 1


def test_lists_of_many_sizes_leave_nothing_behind() -> None:
    """Each number of pairs had types of its own, which ctypes kept: some 15 objects and 10 kB for each list."""

    def known_after(cutoffs: NDArray[np.float64]) -> int:
        sizes = {len(find_pairs(frame(TRICLINIC, 5), cutoff, each_once=True).first) for cutoff in cutoffs}
        assert len(sizes) > 10
        gc.collect()
        return len(gc.get_objects())

    known_after(np.linspace(3.0, 4.0, 20))
    before = known_after(np.linspace(4.0, 5.0, 20))
    assert known_after(np.linspace(5.0, 7.0, 60)) < before + 60


def test_what_makes_lists_new() -> None:
    verlet, system = VerletLists(skin=0.5), frame(TRICLINIC, 3)
    builds = []
    moved = system.coord.copy()
    moved[1] += [0.3, 0.0, 0.0]  # its distance to the others' mean displacement: 0.2 Å
    further = system.coord.copy()
    further[1] += [0.6, 0.0, 0.0]
    for step in (
        system,
        system,
        system._replace(coord=moved),
        system._replace(coord=further),
        system._replace(cell=TRICLINIC * 1.2),
        frame(TRICLINIC, 2),
    ):
        verlet.update(step, 4.0, 6.0)
        builds.append(verlet.builds)
    verlet.update(frame(TRICLINIC, 2), 4.5, 6.0)
    assert [*builds, verlet.builds] == [1, 1, 1, 2, 3, 4, 5]


def test_a_batch_of_lists_at_the_door() -> None:
    systems = [frame(TRICLINIC, 2), frame(np.zeros((3, 3)), 3, spread=2.0)]
    lists = [VerletLists().update(s, 3.5, 5.0) for s in systems]
    door = door_entries(lists, [s.cell for s in systems], 4, torch.device("cpu"))
    assert door["neighbor_index"].shape == (2, 4, max(x.neighbor.shape[1] for x in lists))
    assert door["neighbor_shift"].shape == (*door["neighbor_index"].shape, 3)
    assert torch.equal(door["cell"], torch.from_numpy(np.stack([s.cell for s in systems])))
    for row, one in enumerate(lists):
        n, m = one.neighbor.shape
        assert (door["neighbor_index"][row, :n, :m].numpy() == one.neighbor).all()
        assert (door["neighbor_index"][row, n:] == -1).all()
        assert (door["neighbor_index"][row, :, m:] == -1).all()
    second = door["pair_index"][len(lists[0].pairs.first) :] - 4
    assert (second.numpy() == np.stack([lists[1].pairs.first, lists[1].pairs.second], axis=1)).all()
    assert len(door["pair_shift"]) == len(door["pair_index"])


def test_system_lists_hold_integers() -> None:
    lists: SystemLists = VerletLists().update(frame(TRICLINIC, 2), 3.0, 4.0)
    assert lists.neighbor.dtype == np.int64
    assert lists.shift.dtype == np.int32
    assert lists.pairs.first.dtype == lists.pairs.second.dtype == np.int64
    assert lists.pairs.shift.dtype == np.int32
