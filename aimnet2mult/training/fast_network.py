"""The network on a CPU by compiled kernels: the numbers of `MultiFidelityNetwork`, differentiable twice.

Atoms are packed without padding, molecules whose forces are wanted first and molecules of one fidelity together, so
that each head sees only its own atoms and no force is worked out that has no label.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimnet2mult.configs.model import NetworkSettings
from aimnet2mult.engine.matrix import padded
from aimnet2mult.engine.training_environment import Shape
from aimnet2mult.engine.training_perceptron import layers_of
from aimnet2mult.models.embedding import MAX_ATOMIC_NUMBER
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.models.perceptron import FidelityPerceptron
from aimnet2mult.physics.equilibration import channel_totals
from aimnet2mult.physics.geometry import all_pairs, atom_index, unpack
from aimnet2mult.training.fast_environment import Surroundings, batch_edges, describe_environments
from aimnet2mult.training.fast_perceptron import Rows, Segment, run_perceptron
from aimnet2mult.training.threads import Threads
from aimnet2mult.types import AtomIndex, Molecules, Prediction

_NO_KINDS = np.zeros(0, dtype=np.int64)


class FastNetwork(nn.Module):
    """Evaluates a network of float32 on the CPU; its parameters are those of the network.

    Parameters
    ----------
    network
        The network.
    """

    def __init__(self, network: MultiFidelityNetwork) -> None:
        super().__init__()
        self.network = network
        self.threads = Threads()
        settings, backbone = network.config.kwargs, network.backbone
        passes = [backbone.first, *backbone.middle, backbone.last]
        self.width = settings.nfeature * (settings.aev.nshifts_s if settings.d2features else 1)
        self.linears = [[layer for layer in one if isinstance(layer, nn.Linear)] for one in passes]
        shapes = [[(layer.in_features, layer.out_features) for layer in one] for one in self.linears]
        # the features of the first pass are those of the elements, and enter as a table
        shapes[0][0] = (shapes[0][0][0] - self.width, shapes[0][0][1])
        activate = settings.activate_passes
        self.passes = [layers_of(sizes, activate and number > 0) for number, sizes in enumerate(shapes)]
        self.shapes = [_shape(settings, first=number == 0) for number in range(len(passes))]

    def forward(self, molecules: Molecules, wanted: Tensor) -> Prediction:
        """Energies without self-atomic energies (B,) float64 eV, charges and spin charges (B, N) e.

        Parameters
        ----------
        molecules
            The padded batch.
        wanted
            (B,) bool: molecules whose energies may be differentiated by positions so that the result can be
            differentiated by the weights. Plain derivatives may be taken of all.
        """
        readout = molecules.fidelity if self.network.separate_readouts else torch.zeros_like(molecules.fidelity)
        order = (readout + (~wanted) * self.network.config.num_fidelities).argsort(stable=True)
        ordered = Molecules(*(part.index_select(0, order) for part in molecules))
        prediction = self._predict(ordered, readout.index_select(0, order), int(wanted.sum()))
        back = order.argsort()
        return Prediction(*(part.index_select(0, back) for part in prediction))

    def _predict(self, molecules: Molecules, readout: Tensor, n_wanted: int) -> Prediction:
        """`forward` for molecules in order, of which the first n_wanted are wanted."""
        network, settings = self.network, self.network.config.kwargs
        index = atom_index(molecules.numbers)
        coord = molecules.coord.flatten(0, 1).index_select(0, index.flat)
        offsets = np.concatenate([[0], (molecules.numbers > 0).sum(1).cumsum(0).numpy()])
        n_forces = int(offsets[n_wanted])
        basis = network.backbone.basis
        edges = batch_edges(coord, offsets, settings.aev.rc_s, basis.centres, basis.exponent)
        spans = self.threads.molecules(offsets, len(coord))
        around = Surroundings(edges, spans, self.threads.molecules(offsets, n_forces), self.threads)
        readouts = readout.index_select(0, index.molecule)
        heads = Rows(_segments(readouts, n_forces), n_forces, _NO_KINDS, self.threads)

        features, charges = self._pass_messages(molecules, index, around, coord)
        channels = self._charges(features, charges, molecules, index, heads)
        charges = unpack(channels.sum(dim=-1, keepdim=True), index).squeeze(-1)
        numbers = molecules.numbers.flatten().index_select(0, index.flat)
        atomic = self._head(network.energy_mlp.mlp, features, heads).squeeze(-1).to(torch.float64)
        for shift in network.atomic_shift:
            atomic = atomic + shift(numbers, readouts).to(torch.float64)
        energy = network.atomic_sum(atomic, index)
        for coulomb in network.lrcoulomb:
            energy = energy + coulomb(charges, molecules, all_pairs(molecules.coord, molecules.numbers), None)
        return Prediction(energy, charges, network.spin_charges(channels, index))

    def _pass_messages(
        self, molecules: Molecules, index: AtomIndex, around: Surroundings, coord: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Features (n, A) and channel charges (n, C) after message passing; see `Backbone`."""
        backbone = self.network.backbone
        totals = channel_totals(molecules.charge, molecules.mult, backbone.n_channels)
        mix = backbone.convolution.mix
        rows = Rows([Segment(0, len(coord), 0)], around.n_forces, _NO_KINDS, self.threads)
        update, features = self._first_pass(molecules, index, around, coord)
        charges = torch.zeros_like(update[:, : backbone.n_channels], dtype=torch.float64)
        for layers, linears, shape in zip(self.passes[1:], self.linears[1:], self.shapes[1:], strict=True):
            features, charges = backbone.advance(update, features, charges, totals, index)
            environment = describe_environments(shape, around, coord, features, charges.to(features.dtype), mix)
            update = run_perceptron(layers, rows, environment, _parameters(linears), None)
        return update, charges

    def _first_pass(
        self, molecules: Molecules, index: AtomIndex, around: Surroundings, coord: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Outputs of the first pass, and the features that it began with.

        What the first layer makes of an atom's own features is the same for all atoms of an element and fidelity.
        """
        backbone = self.network.backbone
        numbers = molecules.numbers.flatten().index_select(0, index.flat)
        n_elements = MAX_ATOMIC_NUMBER + 1
        labels = molecules.fidelity.index_select(0, index.molecule) * n_elements + numbers
        label, kinds = torch.unique(labels, return_inverse=True)
        elements = backbone.embedding(label % n_elements, torch.div(label, n_elements, rounding_mode="floor"))
        features = elements.index_select(0, kinds)
        none = features[:, :0]
        environment = describe_environments(self.shapes[0], around, coord, features, none, backbone.convolution.mix)
        first, *others = self.linears[0]
        own, rest = first.weight[:, : self.width], first.weight[:, self.width :]
        table = F.pad(elements @ own.t(), (0, padded(own.shape[0]) - own.shape[0]))
        parameters = [rest.t().unsqueeze(0), first.bias.unsqueeze(0), *_parameters(others)]
        rows = Rows([Segment(0, len(coord), 0)], around.n_forces, kinds.numpy(), self.threads)
        return run_perceptron(self.passes[0], rows, environment, parameters, table), features

    def _charges(
        self, features: Tensor, charges: Tensor, molecules: Molecules, index: AtomIndex, heads: Rows
    ) -> Tensor:
        """(n, C) float64 e; see `heads.Charges`."""
        head = self.network.charges
        for mlp in head.readouts:
            update = self._head(mlp, features, heads)
            totals = channel_totals(molecules.charge, molecules.mult, head.n_channels)
            raw, response = charges + update[:, : head.n_channels], update[:, head.n_channels :]
            charges = head.equilibration(raw, response, totals, index)
        return charges

    def _head(self, mlp: nn.Module, features: Tensor, heads: Rows) -> Tensor:
        """Outputs (n, outputs) of a head, each atom by the weights of its fidelity."""
        assert isinstance(mlp, FidelityPerceptron)
        stacked = mlp.stacked()
        layers = layers_of([(weight.shape[1], weight.shape[2]) for weight, _ in stacked], activate=False)
        parameters = [parameter for weight, bias in stacked for parameter in (weight, bias.squeeze(1))]
        return run_perceptron(layers, heads, features, parameters, None)


def _shape(settings: NetworkSettings, first: bool) -> Shape:
    """Sizes of the environments of a pass; those of the first hold neither charges nor own features."""
    n_shifts, n_combinations = settings.aev.nshifts_s, settings.ncomb_v
    n_charges = 0 if first else settings.num_charge_channels
    each = n_shifts if settings.d2features else 1
    own = 0 if first else settings.nfeature * each + n_charges
    return Shape(
        n_features=settings.nfeature,
        n_charges=n_charges,
        each=each,
        n_shifts=n_shifts,
        width=padded(n_shifts),
        n_combinations=n_combinations,
        length_width=padded(n_combinations),
        own=own,
        row=own + (settings.nfeature + n_charges) * (n_shifts + n_combinations),
    )


def _parameters(linears: Sequence[nn.Linear]) -> list[Tensor]:
    return [parameter for layer in linears for parameter in (layer.weight.t().unsqueeze(0), layer.bias.unsqueeze(0))]


def _segments(readouts: Tensor, n_forces: int) -> list[Segment]:
    """Runs of atoms of one readout (n,), atoms with and without forces apart."""
    segments = []
    for first, last in ((0, n_forces), (n_forces, len(readouts))):
        which, counts = torch.unique_consecutive(readouts[first:last], return_counts=True)
        for readout, count in zip(which.tolist(), counts.tolist(), strict=True):
            segments.append(Segment(first, first + count, readout))
            first += count
    return segments
