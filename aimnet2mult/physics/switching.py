"""How the sums of D3 and D4 end: a switch from 1 to 0 over the last stretch before a cutoff.

The polynomial x^3 (10 - 15 x + 6 x^2) of x = (cutoff - r) / width is that of the dftd3 and dftd4 packages, whose
"smooth cutoff width" is the width here. It is the lowest one whose first and second derivatives vanish at both ends
(Perlin, ACM Trans. Graph. 21, 681 (2002)).

Distances in Bohr. All functions can be scripted.
"""

from torch import Tensor


def smooth_cutoff(r2: Tensor, cutoff: float, width: float) -> Tensor:
    """Switch from 1 to 0 over the last `width` before `cutoff`, twice differentiable; 0 beyond.

    Parameters
    ----------
    r2
        Squared distances, any shape.
    cutoff, width
        Bohr; the width is not 0.
    """
    x = ((cutoff - r2.sqrt()) / width).clamp(0.0, 1.0)
    return x * x * x * (10.0 + x * (6.0 * x - 15.0))


def beyond_start(r2: Tensor, cutoff: float, width: float) -> bool:
    """Whether any distance is so long that the switch is not 1; True as well for a width of 0 and one beyond.

    The largest is found in a fraction of the time that looking at each takes, and most molecules are small. True also
    where a distance is not a number.
    """
    start = cutoff - width
    return r2.numel() > 0 and not bool(r2.detach().amax() <= start * start)


def switch_and_slope(r2: Tensor, cutoff: float, width: float) -> tuple[Tensor, Tensor]:
    """`smooth_cutoff` and its derivative by the squared distance; no graph.

    Parameters
    ----------
    r2
        Squared distances, any shape.
    cutoff, width
        Bohr; the width is not 0.

    Returns
    -------
    tuple of Tensor
        Of the shape of `r2`.
    """
    r = r2.sqrt()
    x = (cutoff - r).div_(width).clamp_(0.0, 1.0)
    square = x * x
    switch = (6.0 * x).sub_(15.0).mul_(x).add_(10.0).mul_(x).mul_(square)
    # -30 x^2 (1 - x)^2 / width is the derivative by r, and 1 / (2 r) that of r
    slope = x.neg_().add_(1.0).square_().mul_(square).div_(r).mul_(-15.0 / width)
    return switch, slope
