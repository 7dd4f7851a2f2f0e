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
            self.shared = nn.Parameter(rows)
            self.own = nn.Parameter(torch.zeros(shape))
        else:
            self.register_parameter("shared", None)
            self.own = nn.Parameter(rows.expand(shape).clone())
        self.n_features = n_features

    def forward(self, numbers: Tensor, fidelity: Tensor) -> Tensor:
        """Rows (n, F) of packed atoms with atomic `numbers` (n,) at `fidelity` (n,)."""
        row = fidelity * self.own.shape[1] + numbers
        features = self.own.flatten(0, 1).index_select(0, row)
        if self.shared is not None:
            features = features + self.shared.index_select(0, numbers)
        return features

    def at_fidelity(self, fidelity: int) -> dict[str, Tensor]:
        """State of the table that holds one fidelity alone."""
        own = self.own.detach()[fidelity : fidelity + 1]
        return {"own": own.clone() if self.shared is None else own + self.shared.detach()}
