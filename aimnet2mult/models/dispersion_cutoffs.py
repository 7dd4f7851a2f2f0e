"""Real-space cutoffs of D3 and D4: which make sense, and how the dftd3 and dftd4 packages take them."""

import math
from typing import Final

from aimnet2mult.errors import ConfigError
from aimnet2mult.physics.d3 import D3Cutoffs
from aimnet2mult.physics.d4 import D4Cutoffs

# Bohr; beyond it nothing is left of the coordination numbers of D4
_D4_CN: Final = 30.0


def check_d3_cutoffs(cutoffs: D3Cutoffs) -> None:
    """Refuse cutoffs that are not positive, and widths that are negative or longer than the cutoff.

    Raises
    ------
    ConfigError
        Names the cutoff.
    """
    _check("D3", "disp2", cutoffs.disp2, "width2", cutoffs.width2)
    _check("D3", "disp3", cutoffs.disp3, "width3", cutoffs.width3)
    _check("D3", "cn", cutoffs.cn, "width_cn", cutoffs.width_cn)


def check_d4_cutoffs(cutoffs: D4Cutoffs) -> None:
    """The same for D4."""
    _check("D4", "disp2", cutoffs.disp2, "width2", cutoffs.width2)
    _check("D4", "disp3", cutoffs.disp3, "width3", cutoffs.width3)


def package_cutoffs(cutoffs: D3Cutoffs | D4Cutoffs) -> dict[str, float]:
    """Arguments of ``set_realspace_cutoff`` of a model of the dftd3 or dftd4 package.

    The dftd3 package ends the coordination numbers sharply: in the middle of the range over which they end here.
    """
    cn = cutoffs.cn - 0.5 * cutoffs.width_cn if isinstance(cutoffs, D3Cutoffs) else _D4_CN
    return {
        "disp2": cutoffs.disp2,
        "disp3": cutoffs.disp3,
        "cn": cn,
        "width2": cutoffs.width2,
        "width3": cutoffs.width3,
    }


def _check(method: str, name: str, cutoff: float, width_name: str, width: float) -> None:
    if not (math.isfinite(cutoff) and cutoff > 0.0 and 0.0 <= width <= cutoff):
        raise ConfigError(
            f"{method} cutoff {name}={cutoff:g} must be positive and {width_name}={width:g} between 0 and it"
        )
