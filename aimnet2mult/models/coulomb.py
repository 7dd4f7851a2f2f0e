"""The long-range Coulomb energy as a part of the network."""

import torch
from torch import Tensor, nn

from aimnet2mult.configs.model import CoulombSettings
from aimnet2mult.physics.coulomb import (
    dsf_coulomb,
    dsf_coulomb_list,
    exact_coulomb_list,
    simple_coulomb,
)
from aimnet2mult.physics.ewald import ewald_cutoff
from aimnet2mult.types import Molecules, NeighborLists, Pairs


class LRCoulomb(nn.Module):
    """Long-range Coulomb energy of the predicted charges, without the short range that the network learns.

    The attributes may be changed at any time, on a module loaded from a compiled potential too.

    Attributes
    ----------
    method
        'simple': every pair; in a cell that is periodic in all directions, its limit, which is the Ewald sum.
        'ewald': the same. 'dsf': damped shifted force within a cutoff, also for partly periodic systems.
    rc
        Å, where the short range ends.
    dsf_alpha, dsf_cutoff
        Damping (1/Å) and cutoff (Å) of 'dsf'.
    """

    method: str
    rc: float
    dsf_alpha: float
    dsf_cutoff: float

    def __init__(self, settings: CoulombSettings) -> None:
        super().__init__()
        self.method = settings.method
        self.rc = settings.rc
        self.dsf_alpha = settings.dsf_alpha
        self.dsf_cutoff = settings.dsf_cutoff

    def forward(self, charges: Tensor, molecules: Molecules, pairs: Pairs, lists: NeighborLists | None) -> Tensor:
        """Energy of each molecule.

        Parameters
        ----------
        charges
            (B, N) e, 0 on padding.
        molecules
            The batch.
        pairs
            All pairs of each molecule; not used with `lists`.
        lists
            Cells, and a pair list that reaches to `pair_cutoff` of each; None for molecules.

        Returns
        -------
        Tensor
            (B,) float64 eV.

        Raises
        ------
        ValueError
            The method is not known, or not defined for a partly periodic cell.
        """
        if self.method not in ("simple", "dsf", "ewald"):
            raise ValueError("unknown Coulomb method '" + self.method + "'; choose simple, dsf or ewald")
        if lists is None:
            if self.method == "dsf":
                return dsf_coulomb(charges, pairs, self.rc, self.dsf_alpha, self.dsf_cutoff)
            return simple_coulomb(charges, pairs, self.rc)
        coord = molecules.coord.to(torch.float64)
        q = charges.to(torch.float64)
        if self.method == "dsf":
            return dsf_coulomb_list(q, coord, lists, self.rc, self.dsf_alpha, self.dsf_cutoff)
        return exact_coulomb_list(q, coord, molecules.numbers, lists, self.rc)

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
        if self.method == "dsf":
            return max(self.dsf_cutoff, self.rc)
        if volume > 0.0:
            return max(ewald_cutoff(n_atoms, volume), self.rc)
        return 0.0
