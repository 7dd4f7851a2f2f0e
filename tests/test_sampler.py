"""Draws: shares, no repetition before all were drawn, and nothing but (seed, epoch) decides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from aimnet2mult.errors import ConfigError, DataError
from aimnet2mult.training.sampler import FidelityBatchSampler, apportion, evaluation_batches

SIZES = {0: 70, 2: 23, 5: 207}
FIDELITY = np.repeat(list(SIZES), list(SIZES.values()))
NATOMS = np.random.default_rng(0).integers(2, 25, FIDELITY.size)
INDICES = np.arange(FIDELITY.size)[::-1].copy()


def sampler(weights: dict[int, float] | None = None, batch_size: int = 32, **options: object) -> FidelityBatchSampler:
    return FidelityBatchSampler(FIDELITY, NATOMS, INDICES, weights, batch_size, **options)  # type: ignore[arg-type]


def shares_of(batches: list[np.ndarray]) -> dict[int, float]:
    drawn = FIDELITY[np.concatenate(batches)]
    return {fid: float((drawn == fid).mean()) for fid in SIZES}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6), st.integers(0, 500))
def test_apportion_adds_up_keeps_shares_and_never_takes_back(weights: list[int], total: int) -> None:
    shares = np.array(weights) / sum(weights)
    counts = apportion(shares, total)
    assert counts.sum() == total
    assert (apportion(shares, total + 1) - counts >= 0).all()
    # rounding to nearest strays from the exact share by about one draw, however many there were
    assert np.abs(counts - shares * total).max() < 2
    assert np.abs(apportion(shares, 10**9 + total) - shares * (10**9 + total)).max() < 2


def test_without_weights_an_epoch_holds_each_sample_once() -> None:
    for epoch in (0, 1, 7):
        batches = sampler().batches(epoch)
        assert sorted(np.concatenate(batches)) == sorted(INDICES)
        assert {len(batch) for batch in batches} == {30}  # 300 in ten batches of at most 32
    assert shares_of(sampler().batches(3)) == pytest.approx({0: 70 / 300, 2: 23 / 300, 5: 207 / 300}, abs=1e-12)


def test_weights_decide_what_is_drawn() -> None:
    mine = sampler({0: 1.0, 2: 2.0, 5: 1.0})
    assert mine.requested_shares == {0: 0.25, 2: 0.5, 5: 0.25}
    for epoch in range(5):
        batches = mine.batches(epoch)
        assert shares_of(batches) == pytest.approx(mine.requested_shares, abs=1 / sum(map(len, batches)))
    for batch in mine.batches(0):
        assert set(FIDELITY[batch]) == set(SIZES)
        assert np.ptp(NATOMS[batch]) > 5
    assert not (FIDELITY[np.concatenate(sampler({0: 1, 2: 0, 5: 1}).batches(0))] == 2).any()


def test_no_sample_comes_twice_before_all_came_once() -> None:
    mine = sampler({0: 1.0, 2: 5.0, 5: 0.6}, batches_per_epoch=3)
    drawn = np.concatenate([np.concatenate(mine.batches(epoch)) for epoch in range(40)])
    for fid, size in SIZES.items():
        own = drawn[FIDELITY[drawn] == fid]
        assert own.size > size
        for start in range(0, own.size - size + 1, size):
            assert len(set(own[start : start + size].tolist())) == size
    rounds = drawn[FIDELITY[drawn] == 2][: 2 * 23].reshape(2, 23)
    assert (rounds[0] != rounds[1]).any()  # shuffled anew


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batches_per_epoch": 7},
        {"batch_unit": "atoms", "batch_size": 200},
        {"batch_unit": "atoms", "batches_per_epoch": 5},
    ],
)
def test_only_seed_and_epoch_decide(options: dict[str, object]) -> None:
    weights = {0: 1.0, 2: 1.0, 5: 2.5}
    used = sampler(weights, seed=3, **options)
    for epoch in (4, 0, 2):
        used.batches(epoch)
    fresh = sampler(weights, seed=3, **options)
    for mine, other in zip(used.batches(5), fresh.batches(5), strict=True):
        np.testing.assert_array_equal(mine, other)
    first, second = np.concatenate(fresh.batches(5)), np.concatenate(sampler(weights, seed=4, **options).batches(5))
    assert first.shape != second.shape or (first != second).any()
    later = np.concatenate(fresh.batches(6))
    assert first.shape != later.shape or (first != later).any()


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("per_epoch", [None, 10])
def test_atom_budget(per_epoch: int | None, world_size: int) -> None:
    options = {"batch_unit": "atoms", "batches_per_epoch": per_epoch, "world_size": world_size}
    ranks = [sampler(None, 100, rank=rank, **options) for rank in range(world_size)]
    for epoch in range(3):
        batches = [mine.batches(epoch) for mine in ranks]
        assert len({len(own) for own in batches}) == 1
        in_turn = [batches[i % world_size][i // world_size] for i in range(sum(map(len, batches)))]
        atoms = np.array([NATOMS[batch].sum() for batch in in_turn])
        assert atoms.max() <= 100
        # a batch is closed only when the next molecule (at most 24 atoms) does not fit; the last may end the epoch
        assert (atoms[:-1] > 76).sum() >= len(atoms) - 2
        if per_epoch is not None:
            assert len(in_turn) == -(-per_epoch // world_size) * world_size
        elif world_size == 1:
            assert sorted(np.concatenate(in_turn)) == sorted(INDICES)
        else:
            assert set(np.concatenate(in_turn)) >= set(INDICES) or epoch > 0


def test_molecule_above_the_budget_stands_alone() -> None:
    natoms = np.array([3, 50, 3, 3, 50])
    mine = FidelityBatchSampler(np.zeros(5, dtype=int), natoms, np.arange(5), None, 10, "atoms")
    assert all(len(batch) == 1 for batch in mine.batches(0) if natoms[batch].max() == 50)
    assert sorted(np.concatenate(mine.batches(0))) == list(range(5))


@pytest.mark.parametrize("per_epoch", [None, 10])
def test_ranks_share_an_epoch(per_epoch: int | None) -> None:
    alone = [sampler(batches_per_epoch=per_epoch, rank=rank, world_size=4).batches(2) for rank in range(4)]
    assert {len(own) for own in alone} == {3}
    drawn = np.concatenate([np.concatenate(own) for own in alone])
    assert drawn.size == (300 if per_epoch is None else 12 * 32)
    assert len(set(drawn.tolist())) == 300 or per_epoch is not None


@settings(max_examples=150, deadline=None)
@given(
    size=st.integers(1, 12),
    batch_size=st.integers(1, 5),
    world_size=st.integers(1, 5),
    unit=st.sampled_from(["molecules", "atoms"]),
    per_epoch=st.none() | st.integers(1, 7),
    window=st.integers(1, 3),
)
@example(size=5, batch_size=1, world_size=2, unit="molecules", per_epoch=None, window=1)
def test_all_ranks_get_equally_many_batches(
    size: int, batch_size: int, world_size: int, unit: str, per_epoch: int | None, window: int
) -> None:
    assume(size >= world_size)
    natoms = np.random.default_rng(size).integers(1, 4, size)
    common = (np.arange(size) % 2, natoms, np.arange(size), None, batch_size, unit, per_epoch, 0, window)
    ranks = [FidelityBatchSampler(*common, rank, world_size) for rank in range(world_size)]
    for epoch in range(3):
        own = [mine.batches(epoch) for mine in ranks]
        assert len({len(batches) for batches in own}) == 1
        flat = [batch for batches in own for batch in batches]
        assert all(len(batch) for batch in flat)
        if unit == "molecules":
            assert max(len(batch) for batch in flat) <= batch_size
        if per_epoch is not None:
            assert len(flat) == -(-per_epoch // world_size) * world_size
        elif epoch == 0:
            assert set(np.concatenate(flat).tolist()) == set(range(size))


@pytest.mark.parametrize("options", [{}, {"batch_unit": "atoms", "batch_size": 300}], ids=["molecules", "atoms"])
def test_size_window_deals_the_same_draws_by_size(options: dict[str, object]) -> None:
    plain, sorted_ = sampler(**options), sampler(size_window=4, **options)  # type: ignore[arg-type]
    for epoch in (0, 3):
        before, after = plain.batches(epoch), sorted_.batches(epoch)
        assert len(after) == len(before)
        assert sorted(np.concatenate(after)) == sorted(np.concatenate(before))
        # what a padded batch computes: molecules times the largest of them, squared for pairs
        cost = [sum(len(b) * NATOMS[b].max() ** 2 for b in batches) for batches in (before, after)]
        assert cost[1] < 0.7 * cost[0]
        again = sampler(size_window=4, **options).batches(epoch)  # type: ignore[arg-type]
        assert all((a == b).all() for a, b in zip(after, again, strict=True))
    if options:
        assert max(NATOMS[b].sum() for b in sorted_.batches(0)) < 300 + NATOMS.max()


def test_settings_that_make_no_sense() -> None:
    for weights, words in [
        ({0: 0, 2: 0, 5: 0}, "all 0"),
        ({0: 1, 2: -1, 5: 1}, "-1 for fidelity 2"),
        ({0: 1, 2: float("nan"), 5: 1}, "nan for fidelity 2"),
        ({0: 1, 2: 1}, "lacks fidelity 5"),
        ({0: 1, 2: 1, 5: 1, 7: 1}, "names fidelity 7"),
    ]:
        with pytest.raises(ConfigError, match=words):
            sampler(weights)
    for options, words in [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_unit": "bonds"}, "batch_unit"),
        ({"batches_per_epoch": 0}, "batches_per_epoch is 0"),
        ({"rank": 2, "world_size": 2}, "rank 2"),
    ]:
        with pytest.raises(ConfigError, match=words):
            sampler(**options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="fidelity 2 has no training sample"):
        FidelityBatchSampler(FIDELITY, NATOMS, INDICES[FIDELITY[INDICES] != 2], {0: 1, 2: 1, 5: 1}, 8)
    with pytest.raises(DataError, match="no training sample"):
        FidelityBatchSampler(FIDELITY, NATOMS, np.array([], dtype=int), None, 8)


def test_evaluation_visits_everything_once_by_size() -> None:
    chosen = INDICES[::3]
    batches = evaluation_batches(NATOMS, chosen, 16)
    flat = np.concatenate(batches)
    assert sorted(flat) == sorted(chosen)
    assert (np.diff(NATOMS[flat]) >= 0).all()
    assert {len(batch) for batch in batches[:-1]} == {16}
    halves = [evaluation_batches(NATOMS, chosen, 16, rank, 2) for rank in range(2)]
    assert sorted(np.concatenate([np.concatenate(half) for half in halves])) == sorted(chosen)
    assert evaluation_batches(NATOMS, INDICES[:0], 16) == []
