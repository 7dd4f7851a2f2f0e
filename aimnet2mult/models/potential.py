"""A complete potential: network + self-atomic energies + dispersion, dictionary in and dictionary out."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from aimnet2mult.models.embedding import MAX_ATOMIC_NUMBER
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.models.novelty import Novelty
from aimnet2mult.types import Molecules, NeighborLists


class SelfAtomicEnergy(nn.Module):
    """Sum of self-atomic energies; refuses elements that have none.

    Parameters
    ----------
    values
        eV per atomic number.
    """

    table: Tensor

    def __init__(self, values: Mapping[int, float]) -> None:
        super().__init__()
        table = torch.full((MAX_ATOMIC_NUMBER + 1,), float("nan"), dtype=torch.float64)
        table[0] = 0.0
        for number, energy in values.items():
            table[number] = energy
        self.register_buffer("table", table)

    def forward(self, numbers: Tensor) -> Tensor:
        """(B, N) atomic numbers -> (B,) float64 eV."""
        if self.table.dtype != torch.float64:
            raise RuntimeError("self-atomic energies lost their float64: cast the coordinates, not this potential")
        known = (numbers >= 0) & (numbers <= 118)
        energies = self.table[torch.where(known, numbers, torch.zeros_like(numbers))]
        if bool((~known | energies.isnan()).any()):
            wrong = int(numbers[~known | energies.isnan()][0])
            raise RuntimeError(f"this potential was not trained on the element with atomic number {wrong}")
        return energies.sum(-1)


class Potential(nn.Module):
    """What a compiled file holds: the network of one fidelity and the energy terms that are added to it.

    Parameters
    ----------
    network
        Network of exactly one fidelity.
    sae
        Its self-atomic energies.
    terms
        Modules (molecules, neighbour lists or None, charges (B, N) e) -> (B,) float64 eV, summed onto the network's
        energy. Each has a ``pair_cutoff`` (Å, 0 if it needs no pair list).
    novelty
        Tells how far structures lie from those of training; None where that is not known.
    """

    def __init__(
        self,
        network: MultiFidelityNetwork,
        sae: SelfAtomicEnergy,
        terms: Sequence[nn.Module] = (),
        novelty: Novelty | None = None,
    ) -> None:
        super().__init__()
        assert network.config.num_fidelities == 1
        self.network = network
        self.sae = sae
        self.terms = nn.ModuleList(terms)
        # in a list: TorchScript unrolls a list of none or one without a branch
        self.novelty = nn.ModuleList([] if novelty is None else [novelty])
        self.term_cutoff = max((float(term.pair_cutoff) for term in terms), default=0.0)  # type: ignore[arg-type]

    def forward(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        """Evaluate a padded batch.

        Parameters
        ----------
        data
            ``coord`` (B, N, 3) Å, ``numbers`` (B, N) with 0 = padding, ``charge`` (B,) e and optionally
            ``mult`` (B,), 1 if missing. For periodic and for large systems further ``cell`` (B, 3, 3) Å with zero
            rows in directions that are not periodic, ``neighbor_index`` (B, N, M) and ``neighbor_shift``
            (B, N, M, 3), and, if `pair_cutoff` is not 0, ``pair_index`` (P, 2) and ``pair_shift`` (P, 3); see
            `aimnet2mult.types.NeighborLists`.

        Returns
        -------
        dict
            ``energy`` (B,) float64 eV, ``charges`` and ``spin_charges`` (B, N) e, and ``novelty`` (B,) float64, above
            1 where a structure lies outside of what training has seen, if the potential knows that.
        """
        coord = data["coord"]
        numbers = data["numbers"].to(torch.int64)
        charge = data["charge"].to(coord.dtype)
        mult = data["mult"].to(coord.dtype) if "mult" in data else torch.ones_like(charge)
        molecules = Molecules(coord, numbers, charge, mult, torch.zeros_like(numbers[:, 0]))
        energy = self.sae(numbers)
        lists: NeighborLists | None = None
        if "neighbor_index" in data:
            lists = _lists_of(data)
            volume = float(torch.linalg.det(lists.cell.detach()).abs().max())
            if "pair_index" not in data and self.pair_cutoff(numbers.shape[1], volume) > 0.0:
                raise ValueError("this potential needs pair_index and pair_shift beside neighbor_index")
        elif "cell" in data and bool((data["cell"] != 0).any()):
            raise ValueError("a periodic system needs neighbor_index and neighbor_shift beside its cell")
        description = self.network.describe(molecules, lists)
        prediction = self.network.read_out(molecules, lists, description)
        energy = energy + prediction.energy
        for term in self.terms:
            energy = energy + term(molecules, lists, prediction.charges)
        found = {"energy": energy, "charges": prediction.charges, "spin_charges": prediction.spin_charges}
        for novelty in self.novelty:
            found["novelty"] = novelty(description.state.features, description.numbers, description.atoms)
        return found

    @torch.jit.export
    def pair_cutoff(self, n_atoms: int, volume: float) -> float:
        """Reach (Å) of the pair list that a structure needs; 0: none.

        Parameters
        ----------
        n_atoms
            Atoms of the structure.
        volume
            Å^3 of a cell that is periodic in all directions, otherwise 0.
        """
        return max(self.term_cutoff, self.network.pair_cutoff(n_atoms, volume))


def _lists_of(data: dict[str, Tensor]) -> NeighborLists:
    coord, index = data["coord"], data["neighbor_index"].to(torch.int64)
    if "cell" in data:
        cell = data["cell"]
    else:
        cell = torch.zeros([coord.shape[0], 3, 3], dtype=coord.dtype, device=coord.device)
    if "pair_index" in data:
        pair_index, pair_shift = data["pair_index"].to(torch.int64), data["pair_shift"]
    else:
        pair_index = torch.zeros([0, 2], dtype=torch.int64, device=coord.device)
        pair_shift = torch.zeros([0, 3], dtype=torch.int32, device=coord.device)
    first, second = pair_index[:, 0].contiguous(), pair_index[:, 1].contiguous()
    return NeighborLists(cell, index, data["neighbor_shift"], first, second, pair_shift)
