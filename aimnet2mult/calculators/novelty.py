"""How far structures lie from those of training, from the features that the compiled engine leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from aimnet2mult.engine.records import Forward

Array = NDArray[np.float64]


class EngineNovelty:
    """`aimnet2mult.models.novelty.Novelty` for the records of the engine.

    Parameters
    ----------
    module
        The one inside a potential.
    """

    def __init__(self, module: Any) -> None:
        self._place = module.place.tolist()
        self._mean = module.mean.numpy()
        self._whitening = module.whitening.numpy()
        self._scale = float(module.scale)

    def __call__(self, forward: Forward) -> Array:
        """(B,) novelty of every structure: that of its most novel atom."""
        numbers = forward.systems.numbers
        distance = np.empty(len(numbers))
        for number in set(numbers.tolist()):
            mine = np.flatnonzero(numbers == number)
            distance[mine] = self._distances(self._place[number], forward.features[mine])
        return np.maximum.reduceat(distance, forward.systems.offsets[:-1])

    def _distances(self, place: int, features: NDArray[np.float32]) -> Array | float:
        if place < 0:
            return np.inf
        offset = (features - self._mean[place]) @ self._whitening[place]
        return np.sqrt(np.einsum("ij,ij->i", offset, offset) / offset.shape[1]) / self._scale
