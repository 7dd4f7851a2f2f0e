"""The network of one fidelity on the CPU in float32: energies, charges and first derivatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from aimnet2mult.configs.model import NetworkSettings
from aimnet2mult.engine.backward import compute_gradient
from aimnet2mult.engine.forward import compute_energies
from aimnet2mult.engine.jit import I64
from aimnet2mult.engine.records import Edges, FlatSystems, Forward
from aimnet2mult.engine.team import run_together
from aimnet2mult.engine.weights import network_weights
from aimnet2mult.engine.workspace import Pool

# with fewer, starting a thread takes longer than it saves
_ATOMS_PER_THREAD: Final = 32


class NetworkEngine:
    """Compiled evaluation of a `MultiFidelityNetwork` with one fidelity; may be shared by threads.

    Parameters
    ----------
    settings
        Sizes of the network.
    state
        State of a `MultiFidelityNetwork` with one fidelity.
    centres
        (G,) Å of the radial Gaussians.
    exponent
        1/Å^2 of the radial Gaussians.
    """

    def __init__(
        self, settings: NetworkSettings, state: Mapping[str, Tensor], centres: Tensor, exponent: float
    ) -> None:
        self._network = network_weights(settings, state, centres, exponent)
        self._pool = Pool(self._network)
        self._no_charges = np.zeros((0, settings.num_charge_channels))

    def forward(self, systems: FlatSystems, edges: Edges) -> Forward:
        """Energies (B,) eV and charges (n, C) e.

        Parameters
        ----------
        systems
            Atoms whose elements the embedding knows; not checked here.
        edges
            All directed pairs within the cutoff of the network.

        Returns
        -------
        Forward
            As long as it lives, a workspace is lent to it.
        """
        systems, edges = _plain_systems(systems), _plain_edges(edges)
        n_atoms, n_systems = len(systems.numbers), len(systems.charge)
        most_edges = int(np.diff(edges.start).max(initial=0))
        n_threads = _count_threads(n_atoms)
        workspace = self._pool.lend(n_atoms, len(edges.neighbor), n_systems, most_edges, n_threads)
        energy = np.empty(n_systems)

        def compute(team: I64, rank: int) -> None:
            scratch = workspace.scratches[rank]
            compute_energies(self._network, systems, edges, workspace.arrays, scratch, team, rank, energy)

        run_together(compute, n_threads)
        charges, width = workspace.arrays.charges[:n_atoms].copy(), self._network.last_width
        features = workspace.arrays.features[: n_atoms * width].reshape(n_atoms, width)
        return Forward(energy, charges, features, systems, edges, workspace)

    def backward(self, forward: Forward, d_charges: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """Derivative of the energies by the vectors of the edges.

        Parameters
        ----------
        forward
            Of this engine. It may be differentiated several times, but not in two threads at once.
        d_charges
            (n, C) eV/e: derivative of further energy terms by the charges, or None if there are none.

        Returns
        -------
        NDArray
            (E, 3) eV/Å: of the network's energy plus what depends on the charges.
        """
        gradient = np.empty((len(forward.edges.neighbor), 3))
        by_charge = self._no_charges if d_charges is None else _plain(d_charges, np.float64)
        systems, edges, workspace = forward.systems, forward.edges, forward.workspace

        def compute(team: I64, rank: int) -> None:
            compute_gradient(
                self._network,
                systems,
                edges,
                workspace.arrays,
                workspace.scratches[rank],
                team,
                rank,
                by_charge,
                gradient.reshape(-1),
            )

        # the memory is for as many threads as there were at first
        run_together(compute, len(workspace.scratches))
        return gradient


def _count_threads(n_atoms: int) -> int:
    """As many as PyTorch uses, unless there are too few atoms for them."""
    return max(1, min(torch.get_num_threads(), n_atoms // _ATOMS_PER_THREAD))


def _plain(array: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """The array as the compiled functions take it: others would be compiled anew for each other kind of memory."""
    if array.dtype == dtype and array.flags.carray:
        return array
    return np.array(array, dtype=dtype, order="C")


def _plain_systems(systems: FlatSystems) -> FlatSystems:
    return FlatSystems(
        _plain(systems.numbers, np.int64),
        _plain(systems.offsets, np.int64),
        _plain(systems.charge, np.float64),
        _plain(systems.mult, np.float64),
    )


def _plain_edges(edges: Edges) -> Edges:
    return Edges(
        _plain(edges.start, np.int64),
        _plain(edges.neighbor, np.int32),
        _plain(edges.vector, np.float64),
        _plain(edges.reverse, np.int32),
    )
