"""Perceptrons: one for all fidelities (backbone), or one per fidelity side by side (heads)."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def perceptron(n_in: int, hidden: Sequence[int], n_out: int, activate: bool = False) -> nn.Sequential:
    """Linear layers with GELU between them, and one more after the last if `activate`."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(n_in, width), nn.GELU()]
        n_in = width
    layers.append(nn.Linear(n_in, n_out))
    return nn.Sequential(*layers, *([nn.GELU()] if activate else []))


class FidelityLinear(nn.Module):
    """A linear layer per fidelity, stacked; all start from the same weights.

    Stacking keeps every parameter in every graph: a fidelity that a batch lacks gets a gradient of
    exactly zero, and distributed training sees no unused parameters.

    Parameters
    ----------
    n_fidelities, n_in, n_out
        Sizes.
    difference
        True: weights shared by all fidelities plus a difference per fidelity that starts at zero.
        False: weights of each fidelity by itself.
    """

    def __init__(self, n_fidelities: int, n_in: int, n_out: int, difference: bool) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(n_in)
        weight = torch.empty(1, n_in, n_out).uniform_(-bound, bound)
        bias = torch.empty(1, 1, n_out).uniform_(-bound, bound)
        n_own = 1 if difference else n_fidelities
        self.weight = nn.Parameter(weight.repeat(n_own, 1, 1))
        self.bias = nn.Parameter(bias.repeat(n_own, 1, 1))
        if difference:
            self.difference_weight = nn.Parameter(torch.zeros(n_fidelities, n_in, n_out))
            self.difference_bias = nn.Parameter(torch.zeros(n_fidelities, 1, n_out))
        else:
            self.register_parameter("difference_weight", None)
            self.register_parameter("difference_bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """(n_fidelities, n, n_in) -> (n_fidelities, n, n_out)."""
        weight, bias = self.stacked()
        return torch.baddbmm(bias, x, weight)

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Weights (n_fidelities, n_in, n_out) and biases (n_fidelities, 1, n_out)."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if self.difference_weight is not None and self.difference_bias is not None:
            weight, bias = weight + self.difference_weight, bias + self.difference_bias
        return weight, bias

    def at_fidelity(self, fidelity: int) -> dict[str, Tensor]:
        """State of the layer that holds one fidelity alone."""
        weight, bias = self.weight.detach(), self.bias.detach()
        only = slice(fidelity, fidelity + 1)
        if self.difference_weight is not None and self.difference_bias is not None:
            return {
                "weight": weight + self.difference_weight.detach()[only],
                "bias": bias + self.difference_bias.detach()[only],
            }
        return {"weight": weight[only].clone(), "bias": bias[only].clone()}


class FidelityPerceptron(nn.Module):
    """One perceptron per fidelity; each atom takes the result of its own.

    Parameters
    ----------
    n_fidelities
        1 gives a perceptron that all fidelities share.
    n_in, hidden, n_out
        Widths.
    difference
        See `FidelityLinear`.
    """

    def __init__(self, n_fidelities: int, n_in: int, hidden: Sequence[int], n_out: int, difference: bool) -> None:
        super().__init__()
        widths = [n_in, *hidden, n_out]
        self.n_fidelities = n_fidelities
        self.layers = nn.ModuleList(FidelityLinear(n_fidelities, a, b, difference) for a, b in pairwise(widths))

    @torch.jit.unused
    def stacked(self) -> list[tuple[Tensor, Tensor]]:
        """Weights (n_fidelities, inputs, outputs) and biases (n_fidelities, 1, outputs) of each layer."""
        return [layer.stacked() for layer in self.layers if isinstance(layer, FidelityLinear)]

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
