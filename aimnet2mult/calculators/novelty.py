"""How far structures lie from those of training, from the features that the compiled engine leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
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
        from aimnet2mult.engine.distances import make_whitening

        self._place: NDArray[np.int64] = module.place.numpy()
        # in the unit of the result: a small molecule should not wait for more operations than it needs
        unit = float(module.scale) * module.mean.shape[1] ** 0.5
        self._whitening = make_whitening(module.mean.numpy(), (module.whitening / unit).numpy())

    def __call__(self, forward: Forward) -> Array:
        """(B,) novelty of every structure: that of its most novel atom."""
        from aimnet2mult.engine.distances import squared_distances

        square = squared_distances(forward.features, self._place[forward.systems.numbers], self._whitening)
        return np.sqrt(np.maximum.reduceat(square, forward.systems.offsets[:-1]))
