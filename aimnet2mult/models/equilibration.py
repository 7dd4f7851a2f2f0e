"""How the charges of a network are made to sum to the charge and spin of each molecule."""

from torch import Tensor, nn

from aimnet2mult.configs.model import NetworkSettings
from aimnet2mult.physics.equilibration import equilibrate, equilibrate_spin
from aimnet2mult.types import AtomIndex


class Equilibration(nn.Module):
    """Charge equilibration in the form that the settings ask for; it has no parameters.

    Parameters
    ----------
    settings
        Of the network.
    exact
        Whether charges have to sum to their totals exactly.
    """

    def __init__(self, settings: NetworkSettings, exact: bool) -> None:
        super().__init__()
        self.by_spin: bool = settings.num_charge_channels == 2 and settings.equilibration == "charge_spin"
        self.exact = exact

    def forward(self, raw: Tensor, response: Tensor, total: Tensor, index: AtomIndex) -> Tensor:
        """See `aimnet2mult.physics.equilibration.equilibrate`: (n, C) -> (n, C) float64 e."""
        if self.by_spin:
            return equilibrate_spin(raw, response, total, index, self.exact)
        return equilibrate(raw, response, total, index, self.exact)
