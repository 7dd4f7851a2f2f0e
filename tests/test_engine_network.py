"""The compiled network against the reference network in float64, on one flat batch without padding."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import pytest
import suites
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray
from torch import Tensor, nn

from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.types import Molecules, NeighborLists

pytest.importorskip("numba", reason="the engine needs the optional package numba")

from aimnet2mult.engine.engine import NetworkEngine
from aimnet2mult.engine.forward import compute_energies
from aimnet2mult.engine.jit import I64, compiled
from aimnet2mult.engine.records import Edges, FlatSystems
from aimnet2mult.engine.team import meet, run_together

FORMS: dict[str, dict[str, Any]] = {
    "two channels": {},
    "one channel": {"num_charge_channels": 1},
    "shared features": {"d2features": False},
    "charge and spin": {"equilibration": "charge_spin"},
    "as published": {"num_charge_channels": 1, "activate_passes": True, "exact_charges": False, "nfeature": 7},
    "charges of the backbone": {
        "outputs": {"charges": {"class": "aimnet2mult.models.heads.Charges", "kwargs": {"source": "backbone"}}}
    },
    "many passes, no shift": {"hidden": [[10], [10], [], [10, 9]], "outputs": {"atomic_shift": None}},
    "wide": {"aev": {"rc_s": 4.5, "nshifts_s": 20}, "ncomb_v": 18, "hidden": [[70, 40], [130]], "aim_size": 33},
    "narrow": {"aev": {"rc_s": 5.0, "nshifts_s": 1}, "ncomb_v": 1, "nfeature": 1, "hidden": [[], []], "aim_size": 1},
}  # fmt: skip


class Results(NamedTuple):
    energy: NDArray[np.float64]  # (B,)
    charges: NDArray[np.float64]  # (n, C)
    forces: NDArray[np.float64]  # (n, 3)
    virial: NDArray[np.float64]  # (3, 3), of all systems together


def network(form: str = "two channels", seed: int = 0) -> MultiFidelityNetwork:
    """A small float32 network of one fidelity, without long-range Coulomb."""
    outputs = {"lrcoulomb": None} | FORMS[form].get("outputs", {})
    return suites.network(seed, **(FORMS[form] | {"outputs": outputs})).at_fidelity(0).float()


def engine_of(net: MultiFidelityNetwork) -> NetworkEngine:
    basis = net.backbone.basis
    return NetworkEngine(net.config.kwargs, net.state_dict(), basis.centres, basis.exponent)


def flat(structures: list[Atoms]) -> FlatSystems:
    sizes = [len(atoms) for atoms in structures]
    return FlatSystems(
        np.concatenate([atoms.numbers for atoms in structures]),
        np.cumsum([0, *sizes]),
        np.array([float(atoms.info["charge"]) for atoms in structures]),
        np.array([float(atoms.info["mult"]) for atoms in structures]),
    )


def edges_of(structures: list[Atoms], cutoff: float) -> Edges:
    lists = [neighbor_list("ijD", atoms, cutoff) for atoms in structures]
    first = np.cumsum([0, *[len(atoms) for atoms in structures]])
    i = np.concatenate([found[0] + start for found, start in zip(lists, first, strict=False)])
    j = np.concatenate([found[1] + start for found, start in zip(lists, first, strict=False)])
    vector = np.concatenate([found[2] for found in lists])
    order = np.argsort(i, kind="stable")
    start = np.searchsorted(i[order], np.arange(first[-1] + 1))
    # the engine does not look at the numbers of the reverse edges
    return Edges(start, j[order].astype(np.int32), vector[order], np.zeros(len(j), dtype=np.int32))


def run(
    engine: NetworkEngine, systems: FlatSystems, edges: Edges, weight: NDArray[np.float64] | None = None
) -> Results:
    """Results of the engine; with `weight` (n, C) forces and virial are those of the energy plus sum(weight * q)."""
    forward = engine.forward(systems, edges)
    gradient = engine.backward(forward, weight)
    forces = np.zeros((len(systems.numbers), 3))
    np.add.at(forces, np.repeat(np.arange(len(forces)), np.diff(edges.start)), gradient)
    np.add.at(forces, edges.neighbor, -gradient)
    return Results(forward.energy, forward.charges, forces, edges.vector.T @ gradient)


def reference(
    net: nn.Module,
    structures: list[Atoms],
    lists: NeighborLists | None = None,
    weight: NDArray[np.float64] | None = None,
) -> Results:
    """The same from the network itself."""
    batch = suites.collate(structures)
    strain = torch.eye(3, dtype=torch.float64).requires_grad_()
    coord = batch.coord.requires_grad_()
    strained = Molecules(coord @ strain, *batch[1:])
    found = net(strained, None if lists is None else lists._replace(cell=lists.cell @ strain))
    real = batch.numbers > 0
    charges, spins = found.charges[real], found.spin_charges[real]
    channels = charges.unsqueeze(1)
    if net.config.kwargs.num_charge_channels == 2:
        channels = torch.stack([charges + spins, charges - spins], 1) / 2
    total = found.energy.sum() + (0.0 if weight is None else (torch.from_numpy(weight) * channels).sum())
    gradient, virial = torch.autograd.grad(total, (coord, strain))
    parts: list[Tensor] = [found.energy, channels, -gradient[real], virial]
    return Results(*[part.detach().double().numpy() for part in parts])


def compare(found: Results, single: Results, exact: Results) -> None:
    """The engine is as far from float64 as the network in float32 is.

    Both round in other places. Over seeds and forms the root mean squares of their errors are equal to 10 % in the
    mean, and never more than 4 times apart; 1e-7 of the largest number is one rounding of a result.
    """
    for name, a, b, c in zip(Results._fields, found, single, exact, strict=True):
        error, usual = (float(np.sqrt(np.mean((x - c) ** 2))) for x in (a, b))
        assert error < 5.0 * usual + 1e-7 * np.abs(c).max(), f"{name}: {error}, float32 {usual}"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("with_charges", [False, True])
def test_molecules_ions_and_radicals(form: str, with_charges: bool) -> None:
    net, structures = network(form), suites.structures()
    settings = net.config.kwargs
    systems, edges = flat(structures), edges_of(structures, settings.aev.rc_s)
    weight = None
    if with_charges:
        weight = np.random.default_rng(0).normal(size=(len(systems.numbers), settings.num_charge_channels))
    found = run(engine_of(net), systems, edges, weight)
    single = reference(net, structures, weight=weight)
    exact = reference(net.double(), structures, weight=weight)
    assert np.abs(exact.forces).max() > 1e-2
    compare(found, single, exact)


def crystal(seed: int) -> Atoms:
    """A triclinic cell, smaller than the cutoff, in which atoms are neighbours of their own images."""
    rng = np.random.default_rng(seed)
    cell = np.array([[3.6, 0.2, -0.3], [0.9, 4.0, 0.1], [-0.7, 0.5, 4.4]])
    atoms = Atoms(
        "COHN", scaled_positions=rng.uniform(0.1, 0.2, (4, 3)) + np.arange(4)[:, None] / 4, cell=cell, pbc=True
    )
    atoms.info = {"charge": 0, "mult": 1}
    return atoms


def padded_lists(atoms: Atoms, cutoff: float) -> NeighborLists:
    i, j, shift = neighbor_list("ijS", atoms, cutoff)
    most = int(np.bincount(i).max())
    neighbor, shifts = torch.full((1, len(atoms), most), -1), torch.zeros((1, len(atoms), most, 3), dtype=torch.int64)
    for atom in range(len(atoms)):
        here = np.flatnonzero(i == atom)
        neighbor[0, atom, : len(here)] = torch.from_numpy(j[here])
        shifts[0, atom, : len(here)] = torch.from_numpy(shift[here])
    nothing = torch.zeros(0, dtype=torch.int64)
    cell = torch.from_numpy(np.array(atoms.cell)).unsqueeze(0)
    return NeighborLists(cell, neighbor, shifts, nothing, nothing, torch.zeros((0, 3), dtype=torch.int64))


@pytest.mark.parametrize("form", ["two channels", "as published"])
def test_crystals(form: str) -> None:
    net, atoms = network(form), crystal(1)
    edges = edges_of([atoms], 5.0)
    assert (edges.neighbor[: edges.start[1]] == 0).any(), "no atom sees its own image"
    lists = padded_lists(atoms, 5.0)
    found = run(engine_of(net), flat([atoms]), edges)
    compare(found, reference(net, [atoms], lists), reference(net.double(), [atoms], lists))


def test_systems_of_a_batch_do_not_know_each_other() -> None:
    """Each row passes through the same operations in the same order wherever it stands, so numbers are equal."""
    engine, structures = engine_of(network()), suites.structures() * 2
    together = run(engine, flat(structures), edges_of(structures, 5.0))
    assert len(together.charges) > 120, "all atoms in one block"
    first = 0
    for number, atoms in enumerate(structures):
        alone = run(engine, flat([atoms]), edges_of([atoms], 5.0))
        rows = slice(first, first + len(atoms))
        first += len(atoms)
        assert alone.energy[0] == together.energy[number]
        assert np.array_equal(alone.charges, together.charges[rows])
        assert np.array_equal(alone.forces, together.forces[rows])


def test_nan_stays_in_its_system_and_its_evaluation() -> None:
    engine, structures = engine_of(network()), suites.structures()[:6]
    systems, edges = flat(structures), edges_of(structures, 5.0)
    clean = run(engine, systems, edges)
    wrong = edges.vector.copy()
    wrong[edges.start[systems.offsets[2]]] = np.nan
    spoilt = run(engine, systems, edges._replace(vector=wrong))
    others = np.arange(6) != 2
    atoms = np.repeat(others, np.diff(systems.offsets))
    assert np.isnan(spoilt.energy[2])
    assert np.isnan(spoilt.charges[~atoms]).all()
    assert np.isnan(spoilt.forces[~atoms]).any()
    assert np.array_equal(spoilt.energy[others], clean.energy[others])
    assert np.array_equal(spoilt.forces[atoms], clean.forces[atoms])
    again = run(engine, systems, edges)
    assert all(np.array_equal(a, b) for a, b in zip(again, clean, strict=True))


def test_single_atoms_and_nothing_at_all() -> None:
    net = network()
    structures = [
        suites.structure("O2"),
        Atoms("O", info={"charge": 0, "mult": 3}),
        Atoms("H", info={"charge": 1, "mult": 1}),
    ]
    engine = engine_of(net)
    found = run(engine, flat(structures[1:]), edges_of(structures[1:], 5.0))
    assert np.allclose(found.charges.sum(1), [0.0, 1.0], atol=1e-12)
    assert (found.forces == 0.0).all()
    exact = reference(net.double(), structures)
    assert np.allclose(found.energy, exact.energy[1:], atol=1e-6)
    nothing = run(engine, FlatSystems(*[np.zeros(0)] * 4)._replace(offsets=np.zeros(1)), edges_of([Atoms()], 5.0))
    assert nothing.energy.shape == (0,)


def test_forward_may_be_differentiated_twice_and_later() -> None:
    engine = engine_of(network())
    first, second = ([suites.structure(name)] for name in ("CH3CONH2", "C4H4NH"))
    edges = edges_of(first, 5.0)
    kept = engine.forward(flat(first), edges)
    once = engine.backward(kept, None)
    run(engine, flat(second), edges_of(second, 5.0))
    assert np.array_equal(engine.backward(kept, None), once)
    assert np.array_equal(engine.backward(kept, np.zeros_like(kept.charges)), once)
    weight = np.zeros_like(kept.charges)
    weight[0, 0] = 1.0
    assert not np.array_equal(engine.backward(kept, weight), once)


def test_memory_is_used_again() -> None:
    engine, atoms = engine_of(network()), [suites.structure("CH3CONH2")]
    places = set()
    for _ in range(3):
        forward = engine.forward(flat(atoms), edges_of(atoms, 5.0))
        places.add(forward.workspace.arrays.values.ctypes.data)
        del forward
    assert len(places) == 1


def test_threads_share_an_engine() -> None:
    engine, structures = engine_of(network()), suites.structures()
    inputs = [(flat([atoms]), edges_of([atoms], 5.0)) for atoms in structures] * 4
    expected = [run(engine, *arguments) for arguments in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda arguments: run(engine, *arguments), inputs))
    for a, b in zip(found, expected, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def _energy_elsewhere(engine: NetworkEngine, systems: FlatSystems, edges: Edges, answers: Any) -> None:
    answers.put(engine.forward(systems, edges).energy)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_engine_works_after_fork() -> None:
    engine, atoms = engine_of(network()), [suites.structure("CH3CONH2")]
    systems, edges = flat(atoms), edges_of(atoms, 5.0)
    expected = engine.forward(systems, edges).energy
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_energy_elsewhere, args=(engine, systems, edges, answers))
    child.start()
    found = answers.get(timeout=60)
    child.join()
    assert np.array_equal(found, expected)


def test_other_kinds_of_arrays_are_not_compiled_for() -> None:
    engine, atoms = engine_of(network()), [suites.structure("CH3CONH2")]
    systems, edges = flat(atoms), edges_of(atoms, 5.0)
    expected, kinds = run(engine, systems, edges), len(compute_energies.signatures)
    locked = edges.vector.copy()
    locked.flags.writeable = False
    other = Edges(edges.start.astype(np.int32), edges.neighbor.astype(np.int64), locked, edges.reverse)
    found = run(engine, systems._replace(numbers=np.asfortranarray(systems.numbers)[::1].astype(np.int16)), other)
    assert np.array_equal(found.forces, expected.forces)
    assert len(compute_energies.signatures) == kinds


@pytest.mark.parametrize("with_charges", [False, True])
def test_results_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch, with_charges: bool) -> None:
    engine, structures = engine_of(network()), suites.structures() * 3
    systems, edges = flat(structures), edges_of(structures, 5.0)
    weight = np.random.default_rng(0).normal(size=(len(systems.numbers), 2)) if with_charges else None
    found = []
    for n_threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=n_threads: n)
        found.append(run(engine, systems, edges, weight))
        assert len(engine.forward(systems, edges).workspace.scratches) == n_threads
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(other, found[0], strict=True))


@compiled
def wait_for_the_team(team: I64) -> int:
    return meet(team, 0)


def test_a_team_whose_first_member_fails_ends() -> None:
    """The others would wait for it for ever."""

    def work(team: NDArray[np.int64], rank: int) -> None:
        if rank == 0:
            raise ValueError("stopped")
        wait_for_the_team(team)

    with pytest.raises(ValueError, match="stopped"):
        run_together(work, 3)


def test_a_team_does_with_fewer_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: Thread) -> None:
        raise RuntimeError("can't start new thread")

    ranks: list[int] = []

    def work(team: NDArray[np.int64], rank: int) -> None:
        wait_for_the_team(team)
        ranks.append(rank)

    monkeypatch.setattr(Thread, "start", refuse)
    run_together(work, 3)
    assert ranks == [0]
