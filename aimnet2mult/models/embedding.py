"""Element embeddings that differ between fidelities."""

import torch
from torch import Tensor, nn

MAX_ATOMIC_NUMBER = 118


def _random_rows(n_features: int, norm: float) -> Tensor:
    rows = torch.randn(MAX_ATOMIC_NUMBER + 1, n_features)
    return rows * (norm / rows.norm(dim=-1, keepdim=True))


class FidelityEmbedding(nn.Module):
    """Feature vector of an element at a fidelity.

    Parameters
    ----------
    n_fidelities, n_features
        Sizes of the table.
    norm
        Euclidean norm of every row at the start. All fidelities start from the same rows.
    difference
        True: one shared row per element plus a difference per fidelity that starts at zero.
        False: an own row per fidelity and element.
    """

    def __init__(self, n_fidelities: int, n_features: int, norm: float, difference: bool) -> None:
        super().__init__()
        rows = _random_rows(n_features, norm)
        shape = (n_fidelities, MAX_ATOMIC_NUMBER + 1, n_features)
        if difference:
            self.weight = nn.Parameter(rows.unsqueeze(0))
            self.difference_weight = nn.Parameter(torch.zeros(shape))
        else:
            self.weight = nn.Parameter(rows.repeat(n_fidelities, 1, 1))
            self.register_parameter("difference_weight", None)

    def forward(self, numbers: Tensor, fidelity: Tensor) -> Tensor:
        """Rows (n, F) of packed atoms with atomic `numbers` (n,) at `fidelity` (n,)."""
        row = fidelity * self.weight.shape[1] + numbers
        if self.difference_weight is not None:
            shared = self.weight.squeeze(0).index_select(0, numbers)
            return shared + self.difference_weight.flatten(0, 1).index_select(0, row)
        return self.weight.flatten(0, 1).index_select(0, row)

    def at_fidelity(self, fidelity: int) -> dict[str, Tensor]:
        """State of the table that holds one fidelity alone."""
        if self.difference_weight is not None:
            return {"weight": self.weight.detach() + self.difference_weight.detach()[fidelity : fidelity + 1]}
        return {"weight": self.weight.detach()[fidelity : fidelity + 1].clone()}
