"""Float64 data that no cast of a module can spoil: 64-bit fixed-point integers.

``.half()``, ``.float()`` and ``.to(dtype)`` on a module or on a compiled potential around it cast floating-point
buffers only. Element data kept as integers stay exact, so what is computed from them is float64 whatever users cast.
"""

from typing import Final

import torch
from torch import Tensor

from aimnet2mult.errors import ConfigError

# Places after the binary point. Values below 2^14 fit 63 bits, and the rounding of 2^-49 is below the precision of a
# float64 for values above 16 and below 3e-15 relative for those above 1.
FRACTION_BITS: Final = 48
RESOLUTION: Final = 2.0**-FRACTION_BITS
LARGEST: Final = 2.0**14


def to_fixed_point(values: Tensor) -> Tensor:
    """Integers that stand for `values`: int64 as they are, floats in units of `RESOLUTION`.

    Raises
    ------
    ConfigError
        A value is not finite or too large.
    """
    if values.dtype == torch.int64:
        return values
    if not bool((values.abs() < LARGEST).all()):
        raise ConfigError(f"element data must be finite and below {LARGEST:g} to be stored in a potential")
    return (values.to(torch.float64) / RESOLUTION).round().to(torch.int64)


def from_fixed_point(stored: Tensor, resolution: float = RESOLUTION) -> Tensor:
    """Float64 values of `to_fixed_point`; can be called from TorchScript."""
    return stored.to(torch.float64) * resolution
