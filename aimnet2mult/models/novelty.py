"""How far the atoms of a structure lie from those that a fidelity was trained on."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aimnet2mult.models.embedding import MAX_ATOMIC_NUMBER
from aimnet2mult.types import AtomIndex


class NoveltyStatistics(NamedTuple):
    """Where the features of training atoms lie, element by element (S elements, A features)."""

    numbers: Tensor  # (S,) int64 atomic numbers, rising
    mean: Tensor  # (S, A) float32
    whitening: Tensor  # (S, A, A) float32: (x - mean) @ whitening has the unit matrix as covariance
    scale: Tensor  # () float64: distance beyond which one in a hundred training structures lie


class Novelty(nn.Module):
    """Mahalanobis distance of an atom's last features from those of the training atoms of its element.

    d^2 = (x - m)^T C^-1 (x - m) / A with mean m and covariance C (Mahalanobis, Proc. Natl. Inst. Sci. India 2, 49
    (1936); on the features of a network: Lee et al., NeurIPS 2018, eq. 2). A structure is as novel as its most
    novel atom. The unit is the distance that one in a hundred training structures exceed: what is above 1 lies
    outside of what the network has seen.

    Parameters
    ----------
    statistics
        Of one fidelity.
    """

    place: Tensor
    mean: Tensor
    whitening: Tensor
    scale: Tensor

    def __init__(self, statistics: NoveltyStatistics) -> None:
        super().__init__()
        place = torch.full((MAX_ATOMIC_NUMBER + 1,), -1, dtype=torch.int64)
        place[statistics.numbers] = torch.arange(len(statistics.numbers))
        self.n_elements: int = len(statistics.numbers)
        self.register_buffer("place", place)
        self.register_buffer("scale", statistics.scale.clone())
        self.register_buffer("mean", statistics.mean.clone())
        self.register_buffer("whitening", statistics.whitening.clone())

    def forward(self, features: Tensor, numbers: Tensor, index: AtomIndex) -> Tensor:
        """Novelty of every structure.

        Parameters
        ----------
        features
            (n, A) last features of the packed atoms.
        numbers
            (n,) their atomic numbers; one that training has not seen gives infinity.
        index
            Which structure each atom belongs to.

        Returns
        -------
        Tensor
            (B,) float64, without a gradient.
        """
        x = features.detach()
        place = self.place.index_select(0, numbers)
        distance = torch.full([x.shape[0]], float("inf"), dtype=torch.float64, device=x.device)
        for element in range(self.n_elements):
            mine = (place == element).nonzero().squeeze(-1)
            if mine.shape[0] > 0:
                offset = x.index_select(0, mine) - self.mean[element]
                square = torch.mm(offset, self.whitening[element]).square().mean(1)
                distance.index_copy_(0, mine, square.to(torch.float64).sqrt() / self.scale)
        largest = torch.zeros([index.shape[0]], dtype=torch.float64, device=x.device)
        return largest.scatter_reduce(0, index.molecule, distance, "amax")


def read_statistics(state: Mapping[str, Tensor], n_features: int) -> NoveltyStatistics:
    """Statistics from the tensors of a weights file.

    Raises
    ------
    KeyError, ValueError
        A tensor is missing, left over, or not what it must be.
    """
    found = NoveltyStatistics(**{name: state[name] for name in NoveltyStatistics._fields})
    n = found.numbers.numel()
    shapes = [(n,), (n, n_features), (n, n_features, n_features), ()]
    fits = len(state) == len(found) and [tuple(part.shape) for part in found] == shapes
    kinds = [torch.int64, torch.float32, torch.float32, torch.float64]
    if not (fits and [part.dtype for part in found] == kinds and n > 0):
        raise ValueError("the novelty statistics do not fit the network")
    rising = bool((found.numbers.diff() > 0).all())
    if not (rising and found.numbers[0] >= 1 and found.numbers[-1] <= MAX_ATOMIC_NUMBER and found.scale > 0.0):
        raise ValueError("the novelty statistics hold wrong numbers")
    return found
