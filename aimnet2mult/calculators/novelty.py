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
        self._mean = list(module.mean.numpy())
        # in the unit of the result: a small molecule should not wait for more operations than it needs
        unit = float(module.scale) * module.mean.shape[1] ** 0.5
        self._whitening = list((module.whitening / unit).numpy())

    def __call__(self, forward: Forward) -> Array:
        """(B,) novelty of every structure: that of its most novel atom."""
        numbers = forward.systems.numbers
        square = np.empty(len(numbers))
        for number in set(numbers.tolist()):
            mine = (numbers == number).nonzero()[0]
            square[mine] = self._squares(self._place[number], forward.features[mine])
        return np.sqrt(np.maximum.reduceat(square, forward.systems.offsets[:-1]))

    def _squares(self, place: int, features: NDArray[np.float32]) -> NDArray[np.float32] | float:
        """(n,) squared distances of atoms of one element."""
        if place < 0:
            return np.inf
        offset = (features - self._mean[place]) @ self._whitening[place]
        return np.einsum("ij,ij->i", offset, offset)
