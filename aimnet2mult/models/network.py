"""The multi-fidelity network: one backbone, per-fidelity embeddings, shifts and heads."""

import torch
from torch import nn

from aimnet2mult.configs.model import ModelConfig
from aimnet2mult.errors import ConfigError
from aimnet2mult.models.backbone import Backbone
from aimnet2mult.models.coulomb import LRCoulomb
from aimnet2mult.models.embedding import FidelityEmbedding
from aimnet2mult.models.heads import AtomicShift, AtomicSum, Charges, EnergyMLP, SpinCharges
from aimnet2mult.models.perceptron import FidelityLinear
from aimnet2mult.physics.geometry import all_pairs, atom_index, listed_pairs, unpack
from aimnet2mult.types import Description, Molecules, NeighborLists, Prediction


class MultiFidelityNetwork(nn.Module):
    """AIMNet2 for several levels of theory at once.

    Parameters
    ----------
    config
        Architecture, as read from ``model.yaml``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        settings = config.kwargs
        outputs = settings.outputs
        self.config = config
        self.separate_readouts: bool = settings.use_fidelity_readouts
        n_readouts = settings.num_fidelities if settings.use_fidelity_readouts else 1
        sizes = (n_readouts, settings.aim_size)
        difference = settings.fidelity_readouts == "difference"
        self.backbone = Backbone(settings)
        self.energy_mlp = EnergyMLP(*sizes, difference, outputs.energy_mlp.kwargs)
        self.charges = Charges(n_readouts, settings)
        self.spin_charges = SpinCharges(outputs.spin_charges is not None)
        self.atomic_sum = AtomicSum()
        # optional heads stand in lists: TorchScript unrolls a list of none or one without a branch
        self.atomic_shift = nn.ModuleList([AtomicShift(n_readouts)] if outputs.atomic_shift else [])
        self.lrcoulomb = nn.ModuleList([LRCoulomb(outputs.lrcoulomb.kwargs)] if outputs.lrcoulomb else [])

    def forward(self, molecules: Molecules, lists: NeighborLists | None = None) -> Prediction:
        """Energies without self-atomic energies (B,) float64 eV, charges and spin charges (B, N) e.

        Without `lists` the systems are molecules, and all pairs of their atoms are looked at.
        """
        return self.read_out(molecules, lists, self.describe(molecules, lists))

    def describe(self, molecules: Molecules, lists: NeighborLists | None) -> Description:
        """Pass messages between the atoms of a batch; `lists` as for `forward`."""
        index = atom_index(molecules.numbers)
        if lists is None:
            pairs = all_pairs(molecules.coord, molecules.numbers)
        else:
            pairs = listed_pairs(molecules.coord, lists, index)
        fidelity = molecules.fidelity.index_select(0, index.molecule)
        numbers = molecules.numbers.flatten().index_select(0, index.flat)
        readout = fidelity if self.separate_readouts else torch.zeros_like(fidelity)
        state = self.backbone(molecules, pairs, index, numbers, fidelity)
        return Description(pairs, index, numbers, readout, state)

    def read_out(self, molecules: Molecules, lists: NeighborLists | None, description: Description) -> Prediction:
        """What `forward` returns, from the description of the same batch."""
        pairs, index, numbers, readout, state = description
        channels = self.charges(state, molecules, index, readout)
        charges = unpack(channels.sum(dim=-1, keepdim=True), index).squeeze(-1)
        atomic = self.energy_mlp(state.features, readout).to(torch.float64)
        for shift in self.atomic_shift:
            atomic = atomic + shift(numbers, readout).to(torch.float64)
        energy = self.atomic_sum(atomic, index)
        for coulomb in self.lrcoulomb:
            energy = energy + coulomb(charges, molecules, pairs, lists)
        return Prediction(energy, charges, self.spin_charges(channels, index))

    @torch.jit.export
    def pair_cutoff(self, n_atoms: int, volume: float) -> float:
        """Cutoff (Å) of the pair list that long-range Coulomb needs for `n_atoms` in `volume` (Å^3); 0 if none."""
        cutoff = 0.0
        for coulomb in self.lrcoulomb:
            cutoff = max(cutoff, coulomb.pair_cutoff(n_atoms, volume))  # type: ignore[operator]
        return cutoff

    def at_fidelity(self, fidelity: int) -> "MultiFidelityNetwork":
        """Copy of the network for one fidelity, which is then its fidelity 0.

        Raises
        ------
        ConfigError
            The network has no such fidelity.
        """
        n = self.config.num_fidelities
        if not 0 <= fidelity < n:
            raise ConfigError(f"fidelity {fidelity} does not exist: this network has {n} (0 to {n - 1})")
        settings = self.config.kwargs.model_copy(
            update={
                "num_fidelities": 1,
                "fidelity_embedding": "separate",
                "fidelity_readouts": "separate",
                "use_fidelity_readouts": True,
            }
        )
        with torch.random.fork_rng(devices=[]):  # the random start is overwritten; the generator stays as it is
            single = MultiFidelityNetwork(self.config.model_copy(update={"kwargs": settings}))
        single.to(next(self.parameters()).dtype)
        state = self.state_dict()
        for name, module in self.named_modules():
            if isinstance(module, FidelityEmbedding | FidelityLinear | AtomicShift):
                shared = not (self.separate_readouts or isinstance(module, FidelityEmbedding))
                state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
                state |= {f"{name}.{key}": v for key, v in module.at_fidelity(0 if shared else fidelity).items()}
        single.load_state_dict(state, strict=True)
        return single.train(self.training)
