"""A complete potential: network + self-atomic energies + dispersion, dictionary in and dictionary out."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from aimnet2mult.models.embedding import MAX_ATOMIC_NUMBER
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.types import Molecules


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

    def forward(self, coord: Tensor, numbers: Tensor) -> Tensor:
        """(B, N) atomic numbers -> (B,) float64 eV; `coord` is there because every energy term takes it."""
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
    terms
        Modules (coord (B, N, 3) Å, numbers (B, N)) -> (B,) float64 eV, summed onto the network's energy.
    """

    def __init__(self, network: MultiFidelityNetwork, terms: Sequence[nn.Module]) -> None:
        super().__init__()
        assert network.config.num_fidelities == 1
        self.network = network
        self.terms = nn.ModuleList(terms)

    def forward(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        """Evaluate a padded batch.

        Parameters
        ----------
        data
            ``coord`` (B, N, 3) Å, ``numbers`` (B, N) with 0 = padding, ``charge`` (B,) e and optionally
            ``mult`` (B,), 1 if missing.

        Returns
        -------
        dict
            ``energy`` (B,) float64 eV, ``charges`` and ``spin_charges`` (B, N) e.
        """
        coord = data["coord"]
        numbers = data["numbers"].to(torch.int64)
        charge = data["charge"].to(coord.dtype)
        mult = data["mult"].to(coord.dtype) if "mult" in data else torch.ones_like(charge)
        fidelity = torch.zeros_like(numbers[:, 0])
        energy = torch.zeros(coord.shape[0], dtype=torch.float64, device=coord.device)
        for term in self.terms:
            energy = energy + term(coord, numbers)
        prediction = self.network(Molecules(coord, numbers, charge, mult, fidelity))
        energy = energy + prediction.energy
        return {"energy": energy, "charges": prediction.charges, "spin_charges": prediction.spin_charges}
