"""Perceptrons: one for all fidelities (backbone), or one per fidelity side by side (heads)."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def perceptron(n_in: int, hidden: Sequence[int], n_out: int) -> nn.Sequential:
    """Linear layers with GELU between them and none after the last."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(n_in, width), nn.GELU()]
        n_in = width
    return nn.Sequential(*layers, nn.Linear(n_in, n_out))


class FidelityLinear(nn.Module):
    """A linear layer per fidelity, stacked; all start from the same weights.

    Stacking keeps every parameter in every graph: a fidelity that a batch lacks gets a gradient of
    exactly zero, and distributed training sees no unused parameters.
    """

    def __init__(self, n_fidelities: int, n_in: int, n_out: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(n_in)
        weight = torch.empty(n_in, n_out).uniform_(-bound, bound)
        bias = torch.empty(1, n_out).uniform_(-bound, bound)
        self.weight = nn.Parameter(weight.expand(n_fidelities, n_in, n_out).clone())
        self.bias = nn.Parameter(bias.expand(n_fidelities, 1, n_out).clone())

    def forward(self, x: Tensor) -> Tensor:
        """(n_fidelities, n, n_in) -> (n_fidelities, n, n_out)."""
        return torch.baddbmm(self.bias, x, self.weight)


class FidelityPerceptron(nn.Module):
    """One perceptron per fidelity; each atom takes the result of its own.

    Parameters
    ----------
    n_fidelities
        1 gives a perceptron that all fidelities share.
    n_in, hidden, n_out
        Widths.
    """

    def __init__(self, n_fidelities: int, n_in: int, hidden: Sequence[int], n_out: int) -> None:
        super().__init__()
        widths = [n_in, *hidden, n_out]
        self.n_fidelities = n_fidelities
        self.layers = nn.ModuleList(FidelityLinear(n_fidelities, a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor, fidelity: Tensor) -> Tensor:
        """Packed features (n, n_in) of atoms at `fidelity` (n,) -> (n, n_out)."""
        h = x.unsqueeze(0).expand(self.n_fidelities, -1, -1)
        for i, layer in enumerate(self.layers):
            if i > 0:
                h = F.gelu(h)
            h = layer(h)
        if self.n_fidelities == 1:
            return h.squeeze(0)
        # rows of (n_fidelities * n): the block of the atom's fidelity, then the atom
        row = fidelity * x.shape[0] + torch.arange(x.shape[0], device=x.device)
        return h.flatten(0, 1).index_select(0, row)
