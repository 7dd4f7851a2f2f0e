"""D3(BJ) two-body dispersion of molecules and cells in compiled code."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aimnet2mult.engine.clusters import SIZE, Clusters, PairSums, added, make_clusters, parts_of
from aimnet2mult.engine.dispersion_blocks import (
    BY_CN,
    CONTACT,
    LONGEST,
    N_PARAMETERS,
    N_SUMS,
    RADIUS6,
    RADIUS8,
    SCALE6,
    SCALE8,
)
from aimnet2mult.engine.dispersion_sums import (
    Range,
    References,
    Weights,
    collect,
    sum_count_gradients,
    sum_counts,
    sum_energies,
    weigh_references,
)
from aimnet2mult.engine.pair_results import PairSum
from aimnet2mult.engine.team import in_parts
from aimnet2mult.physics.damping import DampingParameters
from aimnet2mult.units import ANGSTROM_PER_BOHR, BOHR_PER_ANGSTROM, EV_PER_HARTREE

Array = NDArray[np.float64]


class ElementTables(NamedTuple):
    """Element data in atomic units, as in `aimnet2mult.physics.d3.D3Data`."""

    species: NDArray[np.int64]  # (Zmax + 1,) place of each atomic number among the S elements, -1 where absent
    covalent_radius: Array  # (S,)
    r4r2: Array  # (S,)
    reference_species: NDArray[np.int64]  # (R,)
    reference_cn: Array  # (R,)
    reference_c6: Array  # (R, R)


class Dispersion:
    """The D3(BJ) energy of `aimnet2mult.models.dispersion.D3BJ`, pairs in float32, sums in float64.

    Parameters
    ----------
    tables
        Of the elements of a potential.
    damping
        s9 must be 0.
    energy, count
        How far two-body energies and coordination numbers reach.

    Attributes
    ----------
    key
        Equal for terms that give equal numbers.

    Raises
    ------
    ValueError
        There is a three-body term, or a cutoff is longer than 300 Bohr: this code cannot be used.
    """

    def __init__(self, tables: ElementTables, damping: DampingParameters, energy: Range, count: Range) -> None:
        if damping.s9 != 0.0 or max(energy.cutoff, count.cutoff) > LONGEST:
            raise ValueError(f"compiled D3 is two-body and reaches {LONGEST:g} Bohr at most")
        order = np.argsort(tables.reference_species, kind="stable")
        kinds = np.arange(len(tables.r4r2) + 1)
        self._species = tables.species
        self._references = References(
            np.searchsorted(tables.reference_species[order], kinds),
            tables.reference_cn[order],
            np.ascontiguousarray(tables.reference_c6[np.ix_(order, order)]),
        )
        self._most = int(np.diff(self._references.begin).max())
        self._parameters = _pair_parameters(tables, damping)
        self._n_kinds = len(tables.r4r2)
        self._energy, self._count = energy, count
        arrays: list[NDArray[Any]] = [self._species, self._parameters, *self._references]
        self.key = (energy, count, *(array.tobytes() for array in arrays))

    def __call__(self, coord: Array, numbers: NDArray[np.int64], cell: Array, gradient: bool) -> PairSum:
        """Evaluate one structure.

        Parameters
        ----------
        coord
            (n, 3) Å.
        numbers
            (n,) atomic numbers.
        cell
            (3, 3) Å, zeros in directions that are not periodic.
        gradient
            Whether the derivatives are wanted, else zeros.

        Raises
        ------
        ValueError
            An element has no data here.
        """
        kinds = self._species[numbers]
        if (kinds < 0).any():
            raise ValueError(
                f"dispersion: element with Z = {numbers[kinds < 0][0]} is not among those of this potential"
            )
        reach = max(self._energy.cutoff, self._count.cutoff)
        clusters = make_clusters(coord * BOHR_PER_ANGSTROM, kinds, cell * BOHR_PER_ANGSTROM, reach)
        sums = self._sums(clusters, gradient)
        by_coord = np.empty_like(coord)
        energy, virial = collect(clusters, sums, by_coord)
        return PairSum(
            energy * EV_PER_HARTREE,
            by_coord * (EV_PER_HARTREE / ANGSTROM_PER_BOHR),
            0.5 * (virial + virial.T) * EV_PER_HARTREE,
        )

    def _sums(self, clusters: Clusters, gradient: bool) -> PairSums:
        n_parts, pairs = parts_of(clusters), (clusters, self._parameters, self._n_kinds)
        counts = in_parts(lambda part: sum_counts(*pairs, self._count, part, n_parts), n_parts)
        cn = sum(counts[1:], counts[0])
        weights = self._weights(len(cn))
        in_parts(lambda part: weigh_references(clusters, cn, self._references, weights, part, n_parts), n_parts)
        known = (self._energy, self._references, weights)
        sums: list[PairSums] = in_parts(lambda part: sum_energies(*pairs, *known, part, n_parts), n_parts)
        if gradient:
            rows = sum(one.atoms.reshape(-1, N_SUMS, SIZE)[:, BY_CN] for one in sums)
            by_cn = np.asarray(rows, dtype=np.float32).ravel()
            in_parts(lambda part: sum_count_gradients(*pairs, self._count, by_cn, sums[part], part, n_parts), n_parts)
        return added(sums)

    def _weights(self, n_places: int) -> Weights:
        """Room for the weights in so many places of clusters."""
        own, all_kinds = n_places * self._most, n_places * len(self._references.cn)
        return Weights(*(np.empty(size, dtype=np.float32) for size in (own, own, all_kinds, all_kinds)))


def _pair_parameters(tables: ElementTables, damping: DampingParameters) -> NDArray[np.float32]:
    """(S * S * 5,) numbers of `dispersion_blocks` for each pair of elements."""
    c8_over_c6 = 3.0 * np.outer(tables.r4r2, tables.r4r2)
    radius = damping.a1 * np.sqrt(c8_over_c6) + damping.a2
    parameters = np.empty((*radius.shape, N_PARAMETERS), dtype=np.float32)
    parameters[..., SCALE6] = damping.s6
    parameters[..., SCALE8] = damping.s8 * c8_over_c6
    parameters[..., RADIUS6] = radius**6
    parameters[..., RADIUS8] = radius**8
    parameters[..., CONTACT] = np.add.outer(tables.covalent_radius, tables.covalent_radius)
    return parameters.ravel()
