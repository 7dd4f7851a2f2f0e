"""Which samples go into which batch: a pure function of (seed, epoch).

Draws are one endless sequence. Its position t decides the fidelity, by the shares that were asked for,
and each fidelity deals its samples from an endless series of shuffles. An epoch is a stretch of that
sequence and a batch a stretch of an epoch, so that shares hold within every batch, no sample
comes twice before all others of its fidelity came once, and nothing has to be stored to go on after a restart.

With a size window, the molecules of so many consecutive batches are sorted by size and dealt out again, so that
little of a padded batch is padding; the batches are then shuffled.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from aimnet2mult.errors import ConfigError, DataError

_UNITS = ("molecules", "atoms")


def apportion(weights: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers in the ratio of `weights` (F,) that add up to `total`.

    Webster's method (the divisor method of rounding to nearest: Balinski and Young, Fair Representation,
    2001, Appendix A, Sec. 3): no count ever shrinks when `total` grows, and none drifts from its share.
    """
    shares = weights / weights.sum()
    counts = np.floor(shares * max(0, total - len(shares)) + 0.5).astype(np.int64)
    counts[shares == 0] = 0
    with np.errstate(divide="ignore"):
        for _ in range(total - int(counts.sum())):
            counts[np.argmin((counts + 0.5) / shares)] += 1
    return counts


class FidelityBatchSampler:
    """Batches that mix fidelities by weight and molecules of all sizes.

    Parameters
    ----------
    fidelity_of, natoms_of
        Fidelity and atom count of every sample of the data set, (len,).
    indices
        Samples to draw from, the training side of the split.
    weights
        Share of the draws per fidelity, in any scale; 0 means never drawn. None: by number of samples, so that an
        epoch holds each sample once.
    batch_size
        Molecules or atoms per batch of one rank. In molecules, batches of an epoch differ by at most one. In atoms,
        a batch is filled until the next molecule would exceed the budget; a larger molecule stands alone.
    batch_unit
        ``molecules`` or ``atoms``.
    batches_per_epoch
        Batches of all ranks together, raised to a multiple of `world_size`; None: as many as it takes to draw
        as many samples as `indices` holds, and a few more where ranks would else get different numbers of batches.
    seed
        Decides, with the epoch, content and order.
    size_window
        How many batches are sorted by size together; 1: none, every batch holds all sizes. In atoms, sorted
        batches are equally large and may exceed the budget by less than one molecule.
    rank, world_size
        Which process of how many; all get equally many batches.

    Raises
    ------
    ConfigError
        A weight is negative, all are zero, a fidelity has none or is unknown, or a number is not positive.
    DataError
        There is no sample, a fidelity that is to be drawn has none, or there are fewer than ranks.
    """

    def __init__(
        self,
        fidelity_of: np.ndarray,
        natoms_of: np.ndarray,
        indices: np.ndarray,
        weights: Mapping[int, float] | None,
        batch_size: int,
        batch_unit: str = "molecules",
        batches_per_epoch: int | None = None,
        seed: int = 0,
        size_window: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check_numbers(batch_size, batch_unit, batches_per_epoch, size_window, rank, world_size)
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size == 0:
            raise DataError("there is no training sample; add data or lower val_fraction and test_fraction")
        present = np.unique(np.asarray(fidelity_of))
        members = {int(f): indices[np.asarray(fidelity_of)[indices] == f] for f in present}
        self.requested_shares = _shares(members, weights)
        self._pools = {fid: members[fid] for fid, share in self.requested_shares.items() if share > 0}
        self._weights = np.array([self.requested_shares[fid] for fid in self._pools])
        self._natoms_of = np.asarray(natoms_of)
        self._window = size_window
        self._draws = indices.size
        self._batch_size, self._unit, self._seed = batch_size, batch_unit, seed
        self._rank, self._world = rank, world_size
        self._per_epoch = None if batches_per_epoch is None else -(-batches_per_epoch // world_size) * world_size
        self._starts = [0]  # position of the first draw of each epoch known so far; follows from the arguments alone
        self._shuffles: dict[tuple[int, int], np.ndarray] = {}
        if batch_unit == "molecules" and self._per_epoch is None and indices.size < world_size:
            raise DataError(f"{indices.size} training samples cannot feed {world_size} processes; use fewer")

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Batches of global sample numbers for this rank in `epoch` (0, 1, ...)."""
        return self._epoch(epoch)[self._rank :: self._world]

    def _start(self, epoch: int) -> int:
        while len(self._starts) <= epoch:
            # in molecules every epoch is equally long; in atoms its length depends on what was drawn
            self._starts.append(self._starts[-1] + self._length(len(self._starts) - 1))
        return self._starts[epoch]

    def _length(self, epoch: int) -> int:
        if self._unit == "molecules":
            return max(self._draws, self._count()) if self._per_epoch is None else self._per_epoch * self._batch_size
        return sum(len(batch) for batch in self._in_order(epoch))

    def _count(self) -> int:
        """Batches of an epoch in molecules, a multiple of the number of ranks."""
        return self._per_epoch or -(-self._draws // (self._batch_size * self._world)) * self._world

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        batches = self._in_order(epoch)
        if self._window == 1:
            return batches
        parts = [batches[i : i + self._window] for i in range(0, len(batches), self._window)]
        batches = [batch for part in parts for batch in self._by_size(part)]
        return [batches[i] for i in np.random.default_rng([self._seed, epoch]).permutation(len(batches))]

    def _by_size(self, batches: list[np.ndarray]) -> list[np.ndarray]:
        """The same molecules in as many batches, from small to large molecules."""
        molecules = np.concatenate(batches)
        molecules = molecules[np.argsort(self._natoms_of[molecules], kind="stable")]
        if self._unit == "molecules":
            return np.split(molecules, np.cumsum([len(batch) for batch in batches])[:-1])
        atoms = np.cumsum(self._natoms_of[molecules])
        cuts = np.searchsorted(atoms, atoms[-1] * np.arange(1, len(batches)) / len(batches))
        dealt = np.split(molecules, cuts)
        # with giants among them some batches could come out empty
        return dealt if all(len(batch) for batch in dealt) else batches

    def _in_order(self, epoch: int) -> list[np.ndarray]:
        start = self._start(epoch)
        if self._unit == "atoms":
            return self._fill(start)
        length = self._length(epoch)
        # no lone molecule in the last batch: sizes differ by one at most
        return np.array_split(self._sequence(start, start + length), self._count())

    def _fill(self, start: int) -> list[np.ndarray]:
        """Cut the sequence from `start` on into batches of at most the atom budget."""
        batches: list[np.ndarray] = []
        position, limit = start, start + self._draws
        ahead = self._sequence(position, limit)
        while True:
            if self._per_epoch is not None:
                if len(batches) == self._per_epoch:
                    return batches
            elif position >= limit and len(batches) % self._world == 0:
                return batches
            begin = position - start
            if begin + self._batch_size >= len(ahead) and (self._per_epoch is not None or position >= limit):
                stop = start + len(ahead)
                ahead = np.concatenate([ahead, self._sequence(stop, stop + self._draws + self._batch_size)])
            window = ahead[begin : begin + self._batch_size]
            if self._per_epoch is None and position < limit:
                window = window[: limit - position]
            size = np.searchsorted(np.cumsum(self._natoms_of[window]), self._batch_size, side="right")
            batches.append(window[: max(1, int(size))])
            position += len(batches[-1])

    def _sequence(self, start: int, stop: int) -> np.ndarray:
        """Samples at positions `start` to `stop` of the endless sequence of draws."""
        first, last = apportion(self._weights, start), apportion(self._weights, stop)
        drawn = [self._deal(fid, *bounds) for fid, *bounds in zip(self._pools, first, last, strict=True)]
        # the k-th draw of a fidelity is due at (k + 1/2) / share: the order in which apportion hands out
        due = [(np.arange(*b) + 0.5) / share for *b, share in zip(first, last, self._weights, strict=True)]
        order = np.lexsort((np.repeat(np.arange(len(due)), last - first), np.concatenate(due)))
        return np.concatenate(drawn)[order]

    def _deal(self, fidelity: int, start: int, stop: int) -> np.ndarray:
        """Draws `start` to `stop` of one fidelity."""
        pool = self._pools[fidelity]
        size = len(pool)
        rounds = range(start // size, -(-stop // size))
        if stop <= start:
            return pool[:0]
        dealt = np.concatenate([self._shuffle(fidelity, number) for number in rounds])
        return pool[dealt[start - rounds[0] * size : stop - rounds[0] * size]]

    def _shuffle(self, fidelity: int, number: int) -> np.ndarray:
        key = (fidelity, number)
        if key not in self._shuffles:
            while len(self._shuffles) > 2 * len(self._pools):
                del self._shuffles[next(iter(self._shuffles))]
            generator = np.random.default_rng([self._seed, fidelity, number])
            self._shuffles[key] = generator.permutation(len(self._pools[fidelity]))
        return self._shuffles[key]


def evaluation_batches(
    natoms_of: np.ndarray, indices: np.ndarray, batch_size: int, rank: int = 0, world_size: int = 1
) -> list[np.ndarray]:
    """Batches of `batch_size` molecules that hold each of `indices` once, from small to large molecules.

    The batches of all ranks together cover everything; ranks may get one batch more or less.
    """
    _check_numbers(batch_size, "molecules", None, 1, rank, world_size)
    indices = np.asarray(indices, dtype=np.int64)
    ordered = indices[np.argsort(np.asarray(natoms_of)[indices], kind="stable")]
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)][rank::world_size]


def _shares(members: Mapping[int, np.ndarray], weights: Mapping[int, float] | None) -> dict[int, float]:
    """Normalised draw share per fidelity."""
    if weights is None:
        weights = {fid: float(len(pool)) for fid, pool in members.items()}
    unknown = sorted(set(weights) - set(members))
    if unknown:
        raise ConfigError(
            f"fidelity_weights names fidelity {', '.join(map(str, unknown))}, which has no data;"
            f" the fidelities are {', '.join(map(str, members))}"
        )
    for fid, pool in members.items():
        if fid not in weights:
            raise ConfigError(f"fidelity_weights lacks fidelity {fid}; give its share of the draws, 0 for none")
        if not (np.isfinite(weights[fid]) and weights[fid] >= 0):
            raise ConfigError(f"fidelity_weights: {weights[fid]} for fidelity {fid} is not a share; give 0 or more")
        if weights[fid] > 0 and pool.size == 0:
            raise DataError(f"fidelity {fid} has no training sample; add data or set its fidelity_weights entry to 0")
    total = float(sum(weights.values()))
    if total <= 0:
        raise ConfigError("fidelity_weights are all 0; give at least one fidelity a share")
    return {fid: float(weights[fid]) / total for fid in members}


def _check_numbers(size: int, unit: str, per_epoch: int | None, window: int, rank: int, world_size: int) -> None:
    if window < 1:
        raise ConfigError(f"size_window is {window}; give 1 or more")
    if size < 1:
        raise ConfigError(f"batch_size is {size}; give 1 or more")
    if unit not in _UNITS:
        raise ConfigError(f"batch_unit is {unit!r}; give 'molecules' or 'atoms'")
    if per_epoch is not None and per_epoch < 1:
        raise ConfigError(f"batches_per_epoch is {per_epoch}; give 1 or more, or null")
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank {rank} does not exist among {world_size} processes")
