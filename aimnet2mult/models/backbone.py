"""The shared part of the network: embedding, message passing, charge equilibration."""

import torch
from torch import Tensor, nn

from aimnet2mult.configs.model import NetworkSettings
from aimnet2mult.models.convolution import Convolution, EnvironmentBasis
from aimnet2mult.models.embedding import FidelityEmbedding
from aimnet2mult.models.equilibration import Equilibration
from aimnet2mult.models.perceptron import perceptron
from aimnet2mult.physics.equilibration import channel_totals
from aimnet2mult.types import AtomIndex, AtomState, Molecules, Pairs


class Backbone(nn.Module):
    """AIMNet2 message passing (Anstine, Zubatyuk, Isayev, Chem. Sci. 2025, 16, 10228).

    Each pass looks at the neighbours' features and (from the second on) charges, and updates both; the
    charges are equilibrated to the molecular charge (and spin) in every pass but the last, which yields
    the final features.

    Parameters
    ----------
    settings
        Sizes of the network.
    """

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        self.n_channels: int = settings.num_charge_channels
        self.equilibration = Equilibration(settings, settings.exact_charges)
        n_shifts = settings.aev.nshifts_s
        width = settings.nfeature * (n_shifts if settings.d2features else 1)
        self.embedding = FidelityEmbedding(
            settings.num_fidelities, width, settings.embedding_norm, settings.fidelity_embedding == "difference"
        )
        self.basis = EnvironmentBasis(settings.aev.rc_s, settings.aev.rmin, n_shifts)
        self.convolution = Convolution(
            settings.nfeature, self.n_channels, n_shifts, settings.ncomb_v, settings.d2features
        )
        per_channel = self.convolution.size_per_channel
        n_first = width + settings.nfeature * per_channel
        n_later = n_first + self.n_channels * (1 + per_channel)
        n_update = width + 2 * self.n_channels
        first, *middle, last = settings.hidden
        self.first = perceptron(n_first, first, n_update)
        activate = settings.activate_passes
        self.middle = nn.ModuleList(perceptron(n_later, widths, n_update, activate) for widths in middle)
        self.last = perceptron(n_later, last, settings.aim_size, activate)

    def forward(
        self, molecules: Molecules, pairs: Pairs, index: AtomIndex, numbers: Tensor, fidelity: Tensor
    ) -> AtomState:
        """Features (n, A) and channel charges (n, C), float64, of the n real atoms of a batch.

        Parameters
        ----------
        molecules, pairs, index
            The padded batch, its pairs and where its real atoms stand.
        numbers, fidelity
            (n,) atomic number and fidelity of each real atom.
        """
        totals = channel_totals(molecules.charge, molecules.mult, self.n_channels)
        basis = self.basis(pairs)
        features = self.embedding(numbers, fidelity)
        update = self.first(self._environment(features, features[:, :0], basis, pairs, index))
        charges = torch.zeros_like(update[:, : self.n_channels], dtype=torch.float64)
        features, charges = self.advance(update, features, charges, totals, index)
        for layer in self.middle:
            update = layer(self._environment(features, charges, basis, pairs, index))
            features, charges = self.advance(update, features, charges, totals, index)
        return AtomState(self.last(self._environment(features, charges, basis, pairs, index)), charges)

    def _environment(self, features: Tensor, charges: Tensor, basis: Tensor, pairs: Pairs, index: AtomIndex) -> Tensor:
        q = charges.to(features.dtype)
        return torch.cat([features, q, self.convolution(features, q, basis, pairs, index)], dim=-1)

    def advance(
        self, update: Tensor, features: Tensor, charges: Tensor, totals: Tensor, index: AtomIndex
    ) -> tuple[Tensor, Tensor]:
        """Features and charges after an update (n, 2 C + F): charges, their weights, features."""
        c = self.n_channels
        charges = self.equilibration(charges + update[:, :c], update[:, c : 2 * c], totals, index)
        return features + update[:, 2 * c :], charges
