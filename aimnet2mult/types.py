"""Typed records that travel between the rooms of the package, with shapes and units.

B: molecules in a batch; N: atoms of the largest molecule; n: real atoms of the whole batch, packed
without padding; C: charge channels (1: closed shell, 2: alpha and beta); A: features per atom.
Padding atoms have atomic number 0. All records survive ``torch.jit.script``.
"""

from typing import NamedTuple

from torch import Tensor


class Molecules(NamedTuple):
    """A padded batch of molecules."""

    coord: Tensor  # (B, N, 3) Å
    numbers: Tensor  # (B, N) int64 atomic numbers, 0 = padding
    charge: Tensor  # (B,) e
    mult: Tensor  # (B,) spin multiplicity 2S + 1
    fidelity: Tensor  # (B,) int64


class AtomIndex(NamedTuple):
    """Where the real atoms of a padded batch stand; made once per batch."""

    flat: Tensor  # (n,) position of each real atom among the B * N slots
    molecule: Tensor  # (n,) molecule of each real atom
    shape: tuple[int, int]  # (B, N)


class NeighborLists(NamedTuple):
    """Cell and neighbour lists of a batch: for periodic systems, and where all pairs of a molecule are too many.

    The neighbour j of atom i in an entry with lattice translation s stands at coord[j] + s @ cell.
    """

    cell: Tensor  # (B, 3, 3) Å, one cell vector per row; zeros in directions that are not periodic
    neighbor: Tensor  # (B, N, M) int64: neighbours j (0 to N - 1) within the cutoff of the network, -1 = padding
    shift: Tensor  # (B, N, M, 3) integer lattice translations
    pair_first: Tensor  # (P,) int64 slot b * N + i; pairs within the cutoff of Coulomb and dispersion, each once
    pair_second: Tensor  # (P,) int64 slot b * N + j
    pair_shift: Tensor  # (P, 3) integer lattice translations


class Pairs(NamedTuple):
    """Pairs (j neighbour, i centre): either all of each molecule, or those of a neighbour list.

    Self and padding pairs are masked. Shapes of all pairs: (B, N_j, N_i); of a list: (n, M), by packed centre.
    """

    distance: Tensor  # Å, 1 where masked
    unit: Tensor  # (..., 3) unit vector from i to j, 0 where masked
    mask: Tensor  # bool
    neighbor: Tensor | None  # (n, M) int64 packed number of j, that of i where masked; None: all pairs


class AtomState(NamedTuple):
    """What the backbone knows of each real atom after message passing."""

    features: Tensor  # (n, A)
    charges: Tensor  # (n, C) float64 e per channel


class Description(NamedTuple):
    """What the backbone makes of a batch: all that its readouts need."""

    pairs: Pairs
    atoms: AtomIndex
    numbers: Tensor  # (n,) atomic numbers
    readout: Tensor  # (n,) which weights of the heads each atom uses
    state: AtomState


class Prediction(NamedTuple):
    """What a network or potential predicts for a batch."""

    energy: Tensor  # (B,) float64 eV
    charges: Tensor  # (B, N) float64 e, 0 on padding
    spin_charges: Tensor  # (B, N) float64 e, 0 on padding


class Batch(NamedTuple):
    """A collated training batch: inputs, labels and one mask per label and molecule."""

    molecules: Molecules
    # energy (B,) float64 eV without self-atomic energies; forces (B, N, 3) eV/Å; charges, spin_charges (B, N) e
    labels: dict[str, Tensor]
    masks: dict[str, Tensor]  # per label: (B,) bool, True where the molecule has it
    names: list[str]  # (B,) "file/group/row" of each molecule, for messages
