"""Output heads: from atomic features to energies and charges, one set of weights per fidelity."""

import torch
from torch import Tensor, nn

from aimnet2mult.configs.model import EnergyMLPSettings, NetworkSettings
from aimnet2mult.models.embedding import MAX_ATOMIC_NUMBER
from aimnet2mult.models.equilibration import Equilibration
from aimnet2mult.models.perceptron import FidelityPerceptron
from aimnet2mult.physics.equilibration import channel_totals
from aimnet2mult.physics.geometry import sum_molecules, unpack
from aimnet2mult.types import AtomIndex, AtomState, Molecules


class EnergyMLP(nn.Module):
    """Atomic energies from atomic features."""

    def __init__(self, n_readouts: int, n_features: int, difference: bool, settings: EnergyMLPSettings) -> None:
        super().__init__()
        self.mlp = FidelityPerceptron(n_readouts, n_features, settings.hidden, 1, difference)

    def forward(self, features: Tensor, readout: Tensor) -> Tensor:
        """(n, A) features of atoms that use `readout` (n,) -> (n,) eV."""
        return self.mlp(features, readout).squeeze(-1)


class AtomicShift(nn.Module):
    """A learned energy per element and fidelity, on top of the self-atomic energies; starts at zero."""

    def __init__(self, n_readouts: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(n_readouts, MAX_ATOMIC_NUMBER + 1))

    def forward(self, numbers: Tensor, readout: Tensor) -> Tensor:
        """(n,) atomic numbers -> (n,) eV."""
        return self.shift.flatten().index_select(0, readout * self.shift.shape[1] + numbers)

    def at_fidelity(self, readout: int) -> dict[str, Tensor]:
        """State of the shifts of one fidelity alone."""
        return {"shift": self.shift.detach()[readout : readout + 1].clone()}


class AtomicSum(nn.Module):
    """Sum of atomic energies over each molecule, in float64."""

    def forward(self, energies: Tensor, index: AtomIndex) -> Tensor:
        """(n,) eV -> (B,) float64 eV."""
        return sum_molecules(energies.to(torch.float64), index)


class Charges(nn.Module):
    """Atomic charges per channel, equilibrated to the molecular charge and multiplicity.

    With ``source: readout`` each fidelity corrects the backbone's charges from the final features, because
    partial charges of two levels of theory may follow different definitions (Hirshfeld, Mulliken); the
    corrected ones are equilibrated again.
    """

    def __init__(self, n_readouts: int, settings: NetworkSettings) -> None:
        super().__init__()
        self.n_channels: int = settings.num_charge_channels
        self.equilibration = Equilibration(settings, exact=True)
        self.readouts = nn.ModuleList()
        head = settings.outputs.charges.kwargs
        if head.source == "readout":
            difference = settings.fidelity_readouts == "difference"
            sizes = (settings.aim_size, head.hidden, 2 * self.n_channels)
            self.readouts.append(FidelityPerceptron(n_readouts, *sizes, difference))

    def forward(self, state: AtomState, molecules: Molecules, index: AtomIndex, readout: Tensor) -> Tensor:
        """(n, C) float64 e."""
        charges = state.charges
        for mlp in self.readouts:
            update = mlp(state.features, readout)
            total = channel_totals(molecules.charge, molecules.mult, self.n_channels)
            raw = charges + update[:, : self.n_channels]
            charges = self.equilibration(raw, update[:, self.n_channels :], total, index)
        return charges


class SpinCharges(nn.Module):
    """Difference of the alpha and beta charges; zero for a closed-shell network.

    Parameters
    ----------
    wanted
        False gives zeros whatever the charges are: the output is left out.
    """

    def __init__(self, wanted: bool) -> None:
        super().__init__()
        self.wanted = wanted

    def forward(self, charges: Tensor, index: AtomIndex) -> Tensor:
        """(n, C) e -> (B, N) e."""
        if charges.shape[1] == 1 or not self.wanted:
            return unpack(torch.zeros_like(charges[:, :1]), index).squeeze(-1)
        return unpack(charges[:, :1] - charges[:, 1:], index).squeeze(-1)
