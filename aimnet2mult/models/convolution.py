"""The AIMNet2 convolution: atomic features summed over neighbours into scalars and vector lengths."""

import torch
from torch import Tensor, nn

from aimnet2mult.physics.geometry import pack, unpack
from aimnet2mult.physics.radial import gaussian_centres, gaussian_exponent, radial_features
from aimnet2mult.types import AtomIndex, Pairs


class EnvironmentBasis(nn.Module):
    """Radial Gaussians times (1, unit vector) for every pair of atoms.

    Parameters
    ----------
    cutoff, rmin
        Å.
    n_shifts
        Number of Gaussians.
    """

    centres: Tensor

    def __init__(self, cutoff: float, rmin: float, n_shifts: int) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.exponent = gaussian_exponent(rmin, cutoff, n_shifts)
        # they follow from the settings, so weights files hold none; a TorchScript file keeps such buffers all the same
        centres = gaussian_centres(rmin, cutoff, n_shifts).to(torch.get_default_dtype())
        self.register_buffer("centres", centres, persistent=False)

    def forward(self, pairs: Pairs) -> Tensor:
        """Pair features (B, G, N_j, N_i, 4) or (n, G, M, 4) in the dtype of the network; zero for masked pairs."""
        dtype = self.centres.dtype
        radial = radial_features(pairs.distance.to(dtype), pairs.mask, self.centres, self.exponent, self.cutoff)
        one = torch.ones_like(pairs.distance).unsqueeze(-1)
        direction = torch.cat([one, pairs.unit], dim=-1).to(dtype)
        return radial.unsqueeze(-1) * direction.unsqueeze(1)


class Convolution(nn.Module):
    """Neighbour sums of features and charges (Chem. Sci. 2025, 16, 10228, "convolution of embedding and AEV").

    For channel a and Gaussian g of atom i: S_ag = sum_j x_jag G_g(r_ij), a scalar, and the vector
    V_ag = sum_j x_jag G_g(r_ij) u_ij. Rotation-invariant features are S and |sum_g c_agh V_ag|^2.
    Charges are further channels whose x does not depend on g, so one matrix product serves both.

    Parameters
    ----------
    n_channels, n_charges
        Numbers of feature channels and of charge channels.
    n_shifts, n_combinations
        Numbers of Gaussians g and of learned combinations h.
    per_shift
        Whether the features of the neighbours depend on g too (``d2features``).
    """

    def __init__(self, n_channels: int, n_charges: int, n_shifts: int, n_combinations: int, per_shift: bool) -> None:
        super().__init__()
        self.per_shift = per_shift
        self.n_channels = n_channels
        self.n_shifts = n_shifts
        self.size_per_channel = n_shifts + n_combinations
        # orthonormal columns keep the lengths of the vectors at the start
        columns = [nn.init.orthogonal_(torch.empty(n_shifts, n_combinations)) for _ in range(n_channels + n_charges)]
        self.mix = nn.Parameter(torch.stack(columns))

    def forward(self, features: Tensor, charges: Tensor, basis: Tensor, pairs: Pairs, index: AtomIndex) -> Tensor:
        """Environment features of every atom.

        Parameters
        ----------
        features
            (n, n_channels * n_shifts) if `per_shift`, else (n, n_channels).
        charges
            (n, n_charges), or (n, 0) to leave the charges out.
        basis
            (B, n_shifts, N_j, N_i, 4) for all pairs, (n, n_shifts, M, 4) for those of a list.
        pairs, index
            The pairs of the basis and where the real atoms stand.

        Returns
        -------
        Tensor
            (n, channels * size_per_channel).
        """
        values = self._values(features, charges)
        neighbor = pairs.neighbor
        sums = self._sum_all(values, basis, index) if neighbor is None else self._sum_listed(values, basis, neighbor)
        n, n_channels = values.shape[0], values.shape[1]
        scalars = sums[..., 0].permute(0, 2, 1).reshape(n, -1)
        vectors = sums[..., 1:].permute(2, 0, 3, 1).reshape(n_channels, n * 3, self.n_shifts)
        combined = torch.bmm(vectors, self.mix[:n_channels]).view(n_channels, n, 3, -1)
        lengths = combined.square().sum(2).permute(1, 0, 2).reshape(n, -1)
        return torch.cat([scalars, lengths], dim=-1)

    def _values(self, features: Tensor, charges: Tensor) -> Tensor:
        """What is summed over neighbours: (n, channels, n_shifts)."""
        if self.per_shift:
            values = features.unflatten(-1, (self.n_channels, self.n_shifts))
        else:
            values = features.unsqueeze(-1).expand(-1, -1, self.n_shifts)
        if charges.shape[1] > 0:
            values = torch.cat([values, charges.unsqueeze(-1).expand(-1, -1, self.n_shifts)], dim=1)
        return values

    def _sum_all(self, values: Tensor, basis: Tensor, index: AtomIndex) -> Tensor:
        """Sum over all atoms of the molecule: (n, channels, n_shifts) -> (n, n_shifts, channels, 4)."""
        b, n_slots, n_channels = index.shape[0], index.shape[1], values.shape[1]
        padded = unpack(values.flatten(1), index).view(b, n_slots, n_channels, self.n_shifts)
        sums = torch.matmul(padded.permute(0, 3, 2, 1), basis.flatten(-2, -1))
        sums = sums.view(b, self.n_shifts, n_channels, n_slots, 4).permute(0, 3, 1, 2, 4)
        return pack(sums, index)

    def _sum_listed(self, values: Tensor, basis: Tensor, neighbor: Tensor) -> Tensor:
        """Sum over listed neighbours (n, M): (n, channels, n_shifts) -> (n, n_shifts, channels, 4)."""
        n, m, n_channels = neighbor.shape[0], neighbor.shape[1], values.shape[1]
        gathered = values.flatten(1).index_select(0, neighbor.flatten())
        return torch.matmul(gathered.view(n, m, n_channels, self.n_shifts).permute(0, 3, 2, 1), basis)
