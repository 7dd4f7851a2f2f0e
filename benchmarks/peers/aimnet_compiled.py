"""The official AIMNet2 package with ``torch.compile``: minutes of compilation before the first numbers."""

from __future__ import annotations

from peers import aimnet
from peers.base import NotOfferedError, TrainingTask


class Adapter(aimnet.Adapter):
    """As `peers.aimnet`, with ``compile_model=True``."""

    title = "aimnet 0.2.5, compiled"
    environment = "aimnet"
    options = {"compile_model": True}  # noqa: RUF012
    chunks = (64,)

    def train(self, task: TrainingTask, steps: int) -> None:
        raise NotOfferedError("it compiles training on CUDA only")
