"""A small network in the form of published AIMNet2 files, with the published formulas written down independently.

It runs eagerly in float64 as the reference, and goes through TorchScript to a file whose tensors and settings have
the published names. Formulas: Anstine, Zubatyuk, Isayev, Chem. Sci. 2025, 16, 10228; constants as in the published
programs (7.1998226 eV Å is half the Coulomb constant; Hartree and Bohr of CODATA 2014).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from aimnet2mult.models.dispersion import load_d3_data

ELEMENTS = (1, 6, 7, 8, 9, 16, 17)


def perceptron(widths: list[int], activate: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.GELU()]
    return nn.Sequential(*(layers if activate else layers[:-1]))


class AEV(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self._dual_basis = False
        for kind in "sv":
            setattr(self, f"rc_{kind}", nn.Parameter(torch.tensor(5.0)))
            setattr(self, f"eta_{kind}", nn.Parameter(torch.tensor((n / 4.2) ** 2)))
            # rounding to float32 in other ways than ours, as in the published files
            setattr(self, f"shifts_{kind}", nn.Parameter(torch.linspace(0.8, 5.0, n + 1)[:-1].clone()))

    def forward(self, coord: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 3) Å -> distances (N, N), 5 Å on the diagonal; scalars (N, N, G); unit vectors (N, N, 3)."""
        apart = coord.unsqueeze(0) - coord.unsqueeze(1)
        same = torch.eye(coord.shape[0], dtype=torch.bool)
        d = apart.square().sum(-1).masked_fill(same, 25.0).sqrt()
        window = 0.5 * (1.0 + torch.cos(math.pi * torch.clamp(d / self.rc_s, max=1.0)))
        gauss = torch.exp(-self.eta_s * (d.unsqueeze(-1) - self.shifts_s) ** 2)
        return d, gauss * window.unsqueeze(-1), apart / d.unsqueeze(-1)


class Conv(nn.Module):
    def __init__(self, n: int, g: int, h: int, per_shift: bool) -> None:
        super().__init__()
        self.do_vector = True
        self.d2features = per_shift
        self.agh = nn.Parameter(torch.randn(n, g, h))

    def forward(self, x: Tensor, basis: Tensor, unit: Tensor) -> Tensor:
        """x (N, A, G) -> (N, A * (G + H))."""
        scalars = torch.einsum("ijg,jag->iag", basis, x)
        vectors = torch.einsum("ijg,ijd,jag->iagd", basis, unit, x)
        mixed = torch.einsum("iagd,agh->iahd", vectors, self.agh)
        return torch.cat([scalars.flatten(1), mixed.pow(2).sum(-1).flatten(1)], dim=1)


class Readout(nn.Module):
    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.key_in = "aim"
        self.apply_fn = "none"
        self.mlp = perceptron(widths, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x).squeeze(-1)


class Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shifts = nn.Embedding(64, 1, padding_idx=0)
        values = torch.zeros(64, 1)
        for z in ELEMENTS:
            values[z] = -13.6 * z**2.4
        self.shifts.weight = nn.Parameter(values)

    def forward(self, numbers: Tensor) -> Tensor:
        return self.shifts(numbers).squeeze(-1)


class Sum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.float64).sum()


class Coulomb(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.key_in = "charges"
        self.rc = nn.Parameter(torch.tensor(4.6))

    def forward(self, d: Tensor, q: Tensor) -> Tensor:
        x = torch.clamp(d / self.rc, max=0.999999)
        far = 1.0 - torch.exp(1.0 - 1.0 / (1.0 - x * x))
        return (7.1998226 * far * torch.outer(q, q) / d).fill_diagonal_(0.0).sum()


class D3(nn.Module):
    def __init__(self, n_elements: int = 95) -> None:
        super().__init__()
        self.s6, self.s8, self.a1, self.a2 = 1.0, 0.3908, 0.566, 3.128
        self.k1, self.k3 = -16.0, -4.0
        data = load_d3_data(range(1, n_elements))
        table = torch.zeros(n_elements, n_elements, 5, 5, 3)
        table[..., 1:] = -1.0
        own = [(data.reference_species == z - 1).nonzero().squeeze(-1) for z in range(n_elements)]
        for z in ELEMENTS:
            for y in ELEMENTS:
                for i, first in enumerate(own[z]):
                    table[z, y, i, :, 1] = data.reference_cn[first]
                    for j, second in enumerate(own[y]):
                        table[z, y, :, j, 2] = data.reference_cn[second]
                        table[z, y, i, j, 0] = data.reference_c6[first, second]
        self.c6ab = nn.Parameter(table)
        nothing = torch.zeros(1, dtype=torch.float64)
        self.r4r2 = nn.Parameter(torch.cat([nothing, data.r4r2]).float())
        self.rcov = nn.Parameter(torch.cat([nothing, data.covalent_radius]).float())
        self.cnmax = nn.Parameter(torch.tensor([float(len(references)) for references in own]))

    def forward(self, d: Tensor, numbers: Tensor) -> Tensor:
        """(N, N) Å, 5 on the diagonal -> eV."""
        same = torch.eye(d.shape[0], dtype=torch.bool)
        r = 1.8897261258369282 * d
        radius = self.rcov[numbers]
        count = 1.0 / (1.0 + torch.exp(self.k1 * ((radius.unsqueeze(0) + radius.unsqueeze(1)) / r - 1.0)))
        cn = torch.minimum(count.masked_fill(same, 0.0).sum(1), self.cnmax[numbers])
        entries = self.c6ab[numbers.unsqueeze(1), numbers.unsqueeze(0)]
        away_i = cn.view(-1, 1, 1, 1) - entries[..., 1]
        away_j = cn.view(1, -1, 1, 1) - entries[..., 2]
        weight = torch.exp(self.k3 * (away_i**2 + away_j**2))
        c6 = (weight * entries[..., 0]).sum((-1, -2)) / weight.sum((-1, -2))
        ratio = 3.0 * torch.outer(self.r4r2[numbers], self.r4r2[numbers])
        damp = self.a1 * ratio.sqrt() + self.a2
        pair = c6 * (self.s6 / (r**6 + damp**6) + self.s8 * ratio / (r**8 + damp**8))
        return -13.605693012183622 * pair.masked_fill(same, 0.0).sum()


class AIMNet2(nn.Module):
    """One network: `n` feature channels, `g` Gaussians, `h` combinations, hidden widths of every pass."""

    def __init__(
        self, n: int, g: int, h: int, hidden: list[list[int]], activate: bool = True, n_charges: int = 1
    ) -> None:
        super().__init__()
        self.n, self.g = n, g
        self.aev = AEV(g)
        self.afv = nn.Embedding(64, n * g, padding_idx=0)
        self.afv.weight = nn.Parameter(0.5 * torch.randn(64, n * g))
        self.conv_a = Conv(n, g, h, per_shift=True)
        self.conv_q = Conv(n_charges, g, h, per_shift=False)
        first = n * (2 * g + h)
        later = first + n_charges * (1 + g + h)
        update = n * g + 2 * n_charges
        self.mlps = nn.ModuleList(
            perceptron([later if i else first, *widths, 9 if i == len(hidden) - 1 else update], activate and i > 0)
            for i, widths in enumerate(hidden)
        )
        self.outputs = nn.ModuleDict(
            {
                "energy_mlp": Readout([9, 7, 1]),
                "atomic_shift": Shift(),
                "atomic_sum": Sum(),
                "lrcoulomb": Coulomb(),
                "d3bj": D3(),
            }
        )

    def forward(self, coord: Tensor, numbers: Tensor, charge: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3) Å, (N,), () e -> energy () float64 eV and charges (N,) e of one molecule."""
        d, basis, unit = self.aev(coord)
        a = self.afv(numbers)
        q = torch.zeros_like(a[:, :1])
        aim = a
        last = len(self.mlps) - 1
        for i, layers in enumerate(self.mlps):
            x = torch.cat([a, self.conv_a(a.view(-1, self.n, self.g), basis, unit)], dim=1)
            if i > 0:
                spread = q.unsqueeze(-1).expand(-1, -1, self.g)
                x = torch.cat([x, q, self.conv_q(spread, basis, unit)], dim=1)
            aim = layers(x)
            if i < last:
                raw, weight = q + aim[:, :1], aim[:, 1:2] ** 2
                q = raw + weight * (charge - raw.sum()) / (weight.sum() + 1e-6)
                a = a + aim[:, 2:]
        atomic = self.outputs["energy_mlp"](aim) + self.outputs["atomic_shift"](numbers)
        energy = self.outputs["atomic_sum"](atomic) + self.outputs["lrcoulomb"](d, q.squeeze(-1))
        return energy + self.outputs["d3bj"](d, numbers), q.squeeze(-1)


class Wrapper(nn.Module):
    """Stands where the published files have the module that takes forces."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, coord: Tensor, numbers: Tensor, charge: Tensor) -> tuple[Tensor, Tensor]:
        return self.module(coord, numbers, charge)


class Ensemble(nn.Module):
    def __init__(self, networks: list[AIMNet2]) -> None:
        super().__init__()
        self.models = nn.ModuleList(Wrapper(network) for network in networks)

    def forward(self, coord: Tensor, numbers: Tensor, charge: Tensor) -> tuple[Tensor, Tensor]:
        total, charges = torch.zeros([], dtype=torch.float64), torch.zeros_like(coord[:, 0])
        for model in self.models:
            energy, q = model(coord, numbers, charge)
            total, charges = total + energy, charges + q
        return total, charges
