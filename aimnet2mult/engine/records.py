"""What goes into the compiled engine and what comes out: plain arrays without padding.

B: systems; n: atoms of all systems together; E: directed edges; C: charge channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from aimnet2mult.engine.workspace import Workspace


class FlatSystems(NamedTuple):
    """Atoms of several systems, one system after another."""

    numbers: NDArray[np.int64]  # (n,) atomic numbers
    offsets: NDArray[np.int64]  # (B + 1,) where each system begins, and the end
    charge: NDArray[np.float64]  # (B,) e
    mult: NDArray[np.float64]  # (B,) spin multiplicity 2S + 1


class Edges(NamedTuple):
    """Directed edges i -> j in the order of i; both directions of every pair, images of the cell included."""

    start: NDArray[np.int64]  # (n + 1,) where the edges of each atom begin, and the end
    neighbor: NDArray[np.int32]  # (E,) atom j, counted over all systems
    vector: NDArray[np.float64]  # (E, 3) Å from i to j, shorter than the cutoff of the network
    reverse: NDArray[np.int32]  # (E,) the edge j -> i with the opposite vector


class Forward(NamedTuple):
    """Energies of the network, and what its derivatives need."""

    energy: NDArray[np.float64]  # (B,) eV: energy head and atomic shifts; without self-atomic energies and pair terms
    charges: NDArray[np.float64]  # (n, C) e of the output head
    features: NDArray[np.float32]  # (n, W): A that the heads read, in rows of a multiple of 16; part of the workspace
    systems: FlatSystems
    edges: Edges
    workspace: Workspace  # intermediate results; lent from the engine while this record lives
