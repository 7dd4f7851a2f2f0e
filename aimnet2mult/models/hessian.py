"""Second derivatives of the energy and first derivatives of the dipole, exact, by reverse mode only.

The energy is differentiated once with its graph kept, and each component of the gradient once more. Nested transforms
of ``torch.func`` are no alternative: on a scripted potential they return wrong numbers without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from ase.calculators.calculator import CalculationFailed
from numpy.typing import NDArray
from torch import Tensor, nn

from aimnet2mult.errors import InputError
from aimnet2mult.physics.damping import DampingParameters

Array = NDArray[np.float64]

# Pairs of atoms times rows of the Hessian that are differentiated in one pass. Each takes about 3.4 kB with the
# published network. On a CPU 16,384 (55 MB) is the fastest between 3 and 100 atoms: fewer leave the cost of calling
# many small operations, more do not fit the cache. A GPU wants long rows: 2^20 take 3.6 GB.
PAIRS_ON_CPU = 1 << 14
PAIRS_ON_GPU = 1 << 20
MOST_ROWS = 64
# Pairs or triangles that dispersion terms leave to automatic differentiation while a Hessian is taken; what their
# `max_plain` means elsewhere is the faster first derivative. A pair takes 2 kB and a triangle 0.8 kB, which is 8 GB and
# 3 GB at most. D3 counts pairs only, which with a three-body term are up to 160 kB each.
PLAIN = 4_000_000
PLAIN_THREE_BODY_D3 = 20_000
# what float64 may leave of the largest element, and at least (eV/Å^2): it leaves 1e-12, a missing term 1e-3 and more
ROUNDING = 1e-6
NEGLIGIBLE = 1e-9
# Å. Against the analytic D3 Hessian of benzene (largest element 7e-3 eV/Å^2) the error of the five-point rule is
# 7e-12 eV/Å^2 with this step, grows with its fourth power and shrinks to rounding, 4e-14, at 2e-4; the step is not
# smaller because D4 solves linear equations, which leaves more rounding in its gradient.
STEP = 1e-3
_STENCIL = ((-2, 1.0), (-1, -8.0), (1, 8.0), (2, -1.0))  # over 12; Abramowitz and Stegun, 25.3.6


class SecondOrder(NamedTuple):
    """Energy, forces and Hessian of one system."""

    energy: Tensor  # () float64 eV
    forces: Tensor  # (N, 3) float64 eV/Å
    hessian: Tensor  # (n, 3, n, 3) float64 eV/Å^2, of the n atoms that move


def hessian(
    module: nn.Module, data: Mapping[str, Tensor], atoms: Sequence[int] | None = None, max_pairs: int | None = None
) -> Tensor:
    """Matrix of second derivatives d2E/dx_i dx_j of one system: (n, 3, n, 3), see `second_order`."""
    return second_order(module, data, atoms, max_pairs).hessian


def second_order(
    module: nn.Module, data: Mapping[str, Tensor], atoms: Sequence[int] | None = None, max_pairs: int | None = None
) -> SecondOrder:
    """Energy, forces and Hessian of one system.

    Parameters
    ----------
    module
        A potential in float64, eager or loaded from a file: dictionary in, dictionary out, see
        `aimnet2mult.models.potential.Potential`.
    data
        Its input for one system (B = 1); with neighbour lists for a periodic one, whose atoms then move with all
        their images (wave vector zero).
    atoms
        The n atoms that move, None: all N. The others are held, which saves their share of the time.
    max_pairs
        Pairs of atoms times rows of the Hessian in one pass, which sets the memory. None: what is fast.

    Returns
    -------
    SecondOrder
        Whose Hessian is symmetric to the bit.

    Raises
    ------
    InputError
        The module is not in float64, or the batch holds more than one system.
    ase.calculators.calculator.CalculationFailed
        An element is not finite, or the matrix is not symmetric or changes the energy when all atoms move together.
    """
    _check_precision(module)
    with torch.inference_mode(False), torch.enable_grad(), _twice_differentiable(module):
        inputs, coord = _with_leaf(data)
        energy = module(inputs)["energy"]
        (gradient,) = torch.autograd.grad([energy.sum()], [coord], create_graph=True)
        n_atoms = coord.shape[1]
        chosen = torch.arange(n_atoms) if atoms is None else torch.tensor(list(atoms), dtype=torch.int64)
        places = (3 * chosen.unsqueeze(1) + torch.arange(3)).flatten().to(coord.device)
        rows = _rows(gradient, coord, places, _rows_at_once(data, max_pairs))
    _check_rows(rows.view(-1, n_atoms, 3), places)
    square = rows[:, places]
    symmetric = (0.5 * (square + square.T)).view(len(chosen), 3, len(chosen), 3)
    return SecondOrder(energy.detach()[0], -gradient.detach()[0], symmetric)


def dipole_derivatives(module: nn.Module, data: Mapping[str, Tensor], masses: Tensor) -> Tensor:
    """Atomic polar tensors d mu / dx of one molecule, from predicted charges and how they change as atoms move.

    mu = sum_i q_i (r_i - R) about the centre of mass R. For a neutral molecule R drops out; for an ion it takes
    charge * m_i / M from the diagonal of atom i, so that a moved or turned ion has the dipole that it had.

    Parameters
    ----------
    module, data
        As for `hessian`, without a cell.
    masses
        (N,) amu.

    Returns
    -------
    Tensor
        (N, 3, 3) float64 e: atom, direction of its displacement, component of the dipole.

    Raises
    ------
    InputError
        As for `hessian`.
    ase.calculators.calculator.CalculationFailed
        An element is not finite.
    """
    _check_precision(module)
    with torch.inference_mode(False), torch.enable_grad():
        inputs, coord = _with_leaf(data)
        charges = module(inputs)["charges"].to(torch.float64)[0]
        weight = masses.to(coord) / masses.sum().to(coord)
        dipole = charges @ (coord[0] - weight @ coord[0])
        columns = [torch.autograd.grad([mu], [coord], retain_graph=True)[0][0] for mu in dipole]
    tensors = torch.stack(columns, dim=-1)
    if not bool(tensors.isfinite().all()):
        raise CalculationFailed("the dipole derivatives are not finite for this geometry")
    return tensors


def hessian_by_differences(gradient: Callable[[Array], Array], coord: Array, step: float = STEP) -> Array:
    """Hessian from 12 N gradients by the central five-point rule.

    Parameters
    ----------
    gradient
        Positions (N, 3) Å -> dE/dx (N, 3) eV/Å, right to float64.
    coord
        (N, 3) Å.
    step
        Å.

    Returns
    -------
    ndarray
        (N, 3, N, 3) eV/Å^2, symmetric.
    """
    n_atoms = len(coord)
    rows = np.zeros((n_atoms, 3, n_atoms, 3))
    for atom, axis in np.ndindex(n_atoms, 3):
        for factor, weight in _STENCIL:
            moved = np.array(coord, dtype=np.float64)
            moved[atom, axis] += factor * step
            rows[atom, axis] += weight / (12.0 * step) * gradient(moved)
    return 0.5 * (rows + rows.transpose(2, 3, 0, 1))


def _check_precision(module: nn.Module) -> None:
    coarse = {str(p.dtype) for p in module.parameters() if p.is_floating_point() and p.dtype != torch.float64}
    if coarse:
        raise InputError(
            f"second derivatives need a network in float64, this one is in {coarse.pop()}; use module.to(torch.float64)"
        )


@contextmanager
def _twice_differentiable(module: nn.Module) -> Iterator[None]:
    """Let terms that take first derivatives by hand keep a graph for second ones, as far as memory allows."""
    terms: list[Any] = [term for term in module.modules() if hasattr(term, "max_plain")]
    before = [int(term.max_plain) for term in terms]
    try:
        for term, limit in zip(terms, before, strict=True):
            triples_of_d3 = hasattr(term, "block") and DampingParameters(*term.damping).s9 != 0.0  # D4 has no blocks
            term.max_plain = max(limit, PLAIN_THREE_BODY_D3 if triples_of_d3 else PLAIN)
        yield
    finally:
        for term, limit in zip(terms, before, strict=True):
            term.max_plain = limit


def _with_leaf(data: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """The dictionary with coordinates that are the start of a new graph."""
    if data["coord"].dim() != 3 or data["coord"].shape[0] != 1:
        raise InputError(f"one system at a time: coord must be (1, N, 3), not {tuple(data['coord'].shape)}")
    coord = data["coord"].detach().to(torch.float64).clone().requires_grad_()
    return {**data, "coord": coord}, coord


def _rows_at_once(data: Mapping[str, Tensor], max_pairs: int | None) -> int:
    on_cpu = data["coord"].device.type == "cpu"
    n_pairs = data["coord"].shape[1] ** 2
    if "neighbor_index" in data:
        n_pairs = max(data["neighbor_index"].numel(), data["pair_index"].shape[0] if "pair_index" in data else 0)
        if max_pairs is None and on_cpu:
            return 1  # gathering from lists gains nothing from several rows
    if max_pairs is None:
        max_pairs = PAIRS_ON_CPU if on_cpu else PAIRS_ON_GPU
    return min(MOST_ROWS, max(1, max_pairs // n_pairs))


def _rows(gradient: Tensor, coord: Tensor, places: Tensor, n_at_once: int) -> Tensor:
    """Rows of the Hessian: derivatives (n, 3 N) of the n components of the gradient at `places`."""
    rows = gradient.new_zeros((len(places), coord.numel()))
    if not gradient.requires_grad:  # an atom on its own: the gradient is a constant
        return rows
    for start in range(0, len(places), n_at_once):
        block = places[start : start + n_at_once]
        unit = torch.nn.functional.one_hot(block, coord.numel()).to(gradient.dtype).view(-1, *gradient.shape)
        # a row on its own goes the ordinary way: the batched one costs a fifth more
        batched = len(block) > 1
        (found,) = torch.autograd.grad(
            [gradient],
            [coord],
            [unit if batched else unit[0]],
            retain_graph=True,
            is_grads_batched=batched,
            allow_unused=True,
        )
        if found is not None:
            rows[start : start + len(block)] = found.detach().reshape(len(block), -1)
    return rows


def _check_rows(rows: Tensor, places: Tensor) -> None:
    """Refuse what a twice differentiable energy that does not change under translation cannot have."""
    if not bool(rows.isfinite().all()):
        raise CalculationFailed(
            "the second derivatives of this potential are not finite for this structure: it is too large for "
            "second derivatives of long-range dispersion or Coulomb, or its geometry is singular; use finite "
            "differences of the forces instead (ase.vibrations.Vibrations)"
        )
    square = rows.flatten(1)[:, places]
    allowed = max(NEGLIGIBLE, ROUNDING * float(rows.abs().max()))
    for what, deviation in (("not symmetric", square - square.T), ("not translation invariant", rows.sum(1))):
        worst = float(deviation.abs().max())
        if worst > allowed:
            raise CalculationFailed(
                f"the Hessian is {what} (by {worst:.1e} eV/Å^2): this potential cannot be differentiated twice here; "
                "use finite differences of the forces instead (ase.vibrations.Vibrations)"
            )
