"""Long-range Coulomb energy of molecules and cells in compiled code."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from aimnet2mult.engine.clusters import Clusters, PairSums, added, make_clusters, parts_of
from aimnet2mult.engine.coulomb_sums import collect_potentials, sum_bare, sum_screened
from aimnet2mult.engine.pair_results import ChargeSum
from aimnet2mult.engine.reciprocal import reciprocal_sum
from aimnet2mult.engine.team import in_parts
from aimnet2mult.physics.coulomb import dsf_screening
from aimnet2mult.physics.ewald import ACCURACY, ewald_alpha, ewald_cutoff, splitting_exponent
from aimnet2mult.units import COULOMB_EV_ANGSTROM

Array = NDArray[np.float64]
_COST_RATIO: Final = 4e-3  # of a phase factor and a pair, measured; in PyTorch pairs cost more


class Coulomb:
    """The energy of `aimnet2mult.models.coulomb.LRCoulomb`, pairs in float32, sums in float64.

    Parameters
    ----------
    method
        'simple', 'ewald' or 'dsf'.
    short_range
        Å, up to where the network learns the interaction.
    dsf_alpha, dsf_cutoff
        1/Å and Å, of 'dsf'.
    """

    def __init__(self, method: str, short_range: float, dsf_alpha: float, dsf_cutoff: float) -> None:
        self._method = method
        self._short_range = short_range
        shift = dsf_screening(1, dsf_alpha, dsf_cutoff, torch.device("cpu"))
        self._dsf = (dsf_alpha, dsf_cutoff, shift.offset.item(), shift.slope.item())

    def __call__(self, coord: Array, charges: Array, cell: Array) -> ChargeSum:
        """Evaluate one structure.

        Parameters
        ----------
        coord
            (n, 3) Å.
        charges
            (n,) e.
        cell
            (3, 3) Å, zeros in directions that are not periodic; for 'simple' and 'ewald' in all or none.
        """
        if self._method == "dsf":
            return self._dsf_sum(coord, charges, cell)
        if cell.any():
            return self._ewald_sum(coord, charges, cell)
        clusters = _clusters(coord, cell, 0.0)
        known = (clusters, _by_cluster(clusters, charges), self._parameters(0.0, 0.0, 0.0, 0.0), self._short_range)
        n_parts = parts_of(clusters)
        sums = in_parts(lambda part: sum_bare(*known, part, n_parts), n_parts)
        return _collected(clusters, charges, added(sums))

    def _dsf_sum(self, coord: Array, charges: Array, cell: Array) -> ChargeSum:
        alpha, cutoff, offset, slope = self._dsf
        found = self._screened(coord, charges, cell, alpha, cutoff, offset, slope)
        own = 0.5 * offset - alpha / math.sqrt(math.pi)
        return _with_self(found, charges, own)

    def _ewald_sum(self, coord: Array, charges: Array, cell: Array) -> ChargeSum:
        volume = abs(float(np.linalg.det(cell)))
        cutoff = ewald_cutoff(len(coord), volume, cost_ratio=_COST_RATIO)
        alpha = ewald_alpha(cutoff)
        near = self._screened(coord, charges, cell, alpha, cutoff, 0.0, 0.0)
        far = reciprocal_sum(coord, charges, cell, alpha, 2.0 * alpha * splitting_exponent(ACCURACY))
        found = ChargeSum(
            near.energy + COULOMB_EV_ANGSTROM * far.energy,
            near.gradient + COULOMB_EV_ANGSTROM * far.gradient,
            near.virial + COULOMB_EV_ANGSTROM * far.virial,
            near.by_charge + COULOMB_EV_ANGSTROM * far.by_charge,
        )
        return _with_background(_with_self(found, charges, -alpha / math.sqrt(math.pi)), charges, alpha, volume)

    def _screened(
        self, coord: Array, charges: Array, cell: Array, alpha: float, cutoff: float, offset: float, slope: float
    ) -> ChargeSum:
        clusters = _clusters(coord, cell, max(cutoff, self._short_range))
        parameters = self._parameters(alpha, offset, slope, cutoff)
        known = (clusters, _by_cluster(clusters, charges), parameters, self._short_range, cutoff)
        n_parts = parts_of(clusters)
        sums = in_parts(lambda part: sum_screened(*known, part, n_parts), n_parts)
        return _collected(clusters, charges, added(sums))

    def _parameters(self, alpha: float, offset: float, slope: float, cutoff: float) -> NDArray[np.float32]:
        return np.array([alpha, offset, slope, cutoff**2, self._short_range**-2], dtype=np.float32)


def _clusters(coord: Array, cell: Array, reach: float) -> Clusters:
    return make_clusters(coord, np.zeros(len(coord), dtype=np.int64), cell, reach)


def _by_cluster(clusters: Clusters, charges: Array) -> NDArray[np.float32]:
    return charges[clusters.atom].astype(np.float32) * clusters.real


def _collected(clusters: Clusters, charges: Array, sums: PairSums) -> ChargeSum:
    potential, gradient = np.empty(len(charges)), np.empty((len(charges), 3))
    virial = collect_potentials(clusters, sums, potential, gradient)
    return ChargeSum(
        COULOMB_EV_ANGSTROM * 0.5 * _dot(charges, potential),
        COULOMB_EV_ANGSTROM * gradient,
        COULOMB_EV_ANGSTROM * 0.5 * (virial + virial.T),
        COULOMB_EV_ANGSTROM * potential,
    )


def _dot(a: Array, b: Array) -> float:
    """Without BLAS, whose threads go on spinning for a while on the cores that others compute on."""
    return float((a * b).sum())


def _with_self(found: ChargeSum, charges: Array, own: float) -> ChargeSum:
    """Add own * q^2 for every charge; `own` in 1/Å."""
    own *= COULOMB_EV_ANGSTROM
    return found._replace(
        energy=found.energy + own * _dot(charges, charges), by_charge=found.by_charge + 2.0 * own * charges
    )


def _with_background(found: ChargeSum, charges: Array, alpha: float, volume: float) -> ChargeSum:
    """Take off the energy of a charged cell in its background, pi Q^2 / (2 V a^2)."""
    total = float(charges.sum())
    energy = -COULOMB_EV_ANGSTROM * math.pi * total**2 / (2.0 * volume * alpha**2)
    return found._replace(
        energy=found.energy + energy,
        virial=found.virial - energy * np.eye(3),  # it goes with 1 / V
        by_charge=found.by_charge - COULOMB_EV_ANGSTROM * math.pi * total / (volume * alpha**2),
    )
