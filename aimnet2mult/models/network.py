"""The multi-fidelity network: one backbone, per-fidelity embeddings, shifts and heads."""

import torch
from torch import Tensor, nn

from aimnet2mult.configs.model import ModelConfig
from aimnet2mult.errors import ConfigError
from aimnet2mult.models.backbone import Backbone, index_and_fidelity
from aimnet2mult.models.heads import AtomicShift, AtomicSum, Charges, EnergyMLP, LRCoulomb, SpinCharges
from aimnet2mult.physics.geometry import all_pairs, unpack
from aimnet2mult.types import Molecules, Prediction


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
        self.backbone = Backbone(settings)
        self.energy_mlp = EnergyMLP(n_readouts, settings.aim_size, outputs.energy_mlp.kwargs)
        self.charges = Charges(n_readouts, settings.aim_size, settings.num_charge_channels, outputs.charges.kwargs)
        self.spin_charges = SpinCharges()
        self.atomic_sum = AtomicSum()
        # optional heads stand in lists: TorchScript unrolls a list of none or one without a branch
        self.atomic_shift = nn.ModuleList([AtomicShift(n_readouts)] if outputs.atomic_shift else [])
        self.lrcoulomb = nn.ModuleList([LRCoulomb(outputs.lrcoulomb.kwargs)] if outputs.lrcoulomb else [])

    def forward(self, molecules: Molecules) -> Prediction:
        """Energies without self-atomic energies (B,) float64 eV, charges and spin charges (B, N) e."""
        pairs = all_pairs(molecules.coord, molecules.numbers)
        index, fidelity = index_and_fidelity(molecules)
        numbers = molecules.numbers.flatten().index_select(0, index.flat)
        readout = fidelity if self.separate_readouts else torch.zeros_like(fidelity)

        state = self.backbone(molecules, pairs, index)
        channels = self.charges(state, molecules, index, readout)
        charges = unpack(channels.sum(dim=-1, keepdim=True), index).squeeze(-1)
        atomic = self.energy_mlp(state.features, readout).to(torch.float64)
        for shift in self.atomic_shift:
            atomic = atomic + shift(numbers, readout).to(torch.float64)
        energy = self.atomic_sum(atomic, index)
        for coulomb in self.lrcoulomb:
            energy = energy + coulomb(charges, pairs)
        return Prediction(energy, charges, self.spin_charges(channels, index))

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
            update={"num_fidelities": 1, "fidelity_embedding": "separate", "use_fidelity_readouts": True}
        )
        single = MultiFidelityNetwork(self.config.model_copy(update={"kwargs": settings}))
        single.to(next(self.parameters()).dtype)
        state: dict[str, Tensor] = {}
        for name, value in self.state_dict().items():
            if name.startswith("backbone.embedding."):
                continue
            stacked = name.startswith(("energy_mlp.", "charges.", "atomic_shift."))
            state[name] = value[fidelity if self.separate_readouts else 0].unsqueeze(0) if stacked else value
        state["backbone.embedding.own"] = self.backbone.embedding.table(fidelity).unsqueeze(0)
        single.load_state_dict(state, strict=True)
        return single.train(self.training)
