"""What functions with hand-written derivatives need to know of the reverse pass they are called in."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# functions of torch itself leave out gradients that nobody asked for, those written in Python are not told: so it is
# looked up, where torch has this (it is no public name)
_WILL_RUN = getattr(torch._C, "_will_engine_execute_node", None)


def requested(ctx: Any, argument: int) -> bool:
    """Whether the gradient of an argument of `apply` is wanted; all arguments after the first must be tensors."""
    node = ctx.next_functions[argument - 1][0]
    if node is None or _WILL_RUN is None:
        return node is not None
    try:
        return bool(_WILL_RUN(node))
    except RuntimeError:
        return True  # a leaf that the gradient is taken by; torch knows of no other


def numbers(tensor: Tensor) -> NDArray[np.float32]:
    """The numbers of a tensor in one row: its own memory if it is contiguous, else a copy."""
    return tensor.detach().numpy().ravel()


def unknown(shape: torch.Size, like: Tensor) -> Tensor:
    """NaN in place of a derivative that was not worked out, so that nobody can take it for zero."""
    return torch.full((), torch.nan, dtype=like.dtype).expand(shape)
