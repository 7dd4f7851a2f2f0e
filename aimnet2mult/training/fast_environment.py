"""Environments of atoms whose derivatives are written by hand up to the second: for forces in a loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from aimnet2mult.engine.basis import EDGE_SIZE
from aimnet2mult.engine.matrix import padded
from aimnet2mult.engine.training_environment import (
    BatchEdges,
    Shape,
    collect_values,
    describe_atoms,
    describe_basis,
    differentiate_atoms,
    displace_atoms,
    fill_values,
    find_batch_edges,
    gradient_of_coord,
    reverse_atoms,
)
from aimnet2mult.training.reverse_mode import numbers, requested, unknown
from aimnet2mult.training.threads import Span, Threads


def batch_edges(
    coord: Tensor, offsets: NDArray[np.int64], cutoff: float, centres: Tensor, exponent: float
) -> BatchEdges:
    """Edges of a batch and their radial functions.

    Parameters
    ----------
    coord
        (n, 3) Å.
    offsets
        (B + 1,) where each molecule begins, and the end.
    cutoff, centres, exponent
        Å, (G,) Å and 1/Å^2.
    """
    width = padded(len(centres))
    # no atom is ever close to the added Gaussians
    all_centres = np.full(width, 1e4, dtype=np.float32)
    all_centres[: len(centres)] = centres.numpy()
    exponents = np.array([exponent], dtype=np.float32)
    start, neighbor, vector = find_batch_edges(coord.detach().numpy(), offsets, cutoff)
    edge = np.empty(len(neighbor) * EDGE_SIZE, dtype=np.float32)
    gaussians = np.empty(len(neighbor) * width, dtype=np.float32)
    describe_basis(vector, cutoff, all_centres, exponents, width // 16, edge, gaussians)
    return BatchEdges(start, neighbor, edge, gaussians, all_centres, exponents)


@dataclass(frozen=True)
class Surroundings:
    """What all environments of one evaluation of a batch share."""

    edges: BatchEdges
    spans: list[Span]  # atoms of whole molecules, for each thread
    force_spans: list[Span]  # of the molecules whose forces are wanted, which come first
    threads: Threads

    @property
    def n_forces(self) -> int:
        """Atoms that take part in forces."""
        return self.force_spans[-1][1] if self.force_spans else 0


def describe_environments(
    shape: Shape, around: Surroundings, coord: Tensor, features: Tensor, charges: Tensor, mix: Tensor
) -> Tensor:
    """Rows (n, row) of own features and charges, scalars and lengths, differentiable twice.

    Parameters
    ----------
    shape
        Sizes.
    around
        Edges at the positions `coord`.
    coord
        (n, 3) Å; by it derivatives are taken, but not the derivatives of derivatives.
    features, charges
        (n, n_features * each) and (n, n_charges), float32.
    mix
        (channels, n_shifts, n_combinations), of which the first n_features + n_charges channels are used.
    """
    rows: Tensor = _Describe.apply((shape, around), coord, features, charges, mix)[0]
    return rows


class _Tape:
    """What the passes of one evaluation share."""

    def __init__(self, shape: Shape, around: Surroundings, features: Tensor, charges: Tensor, mix: Tensor) -> None:
        self.shape, self.around, self.n = shape, around, features.shape[0]
        self.channels = shape.n_features + shape.n_charges
        used = mix.detach()[: self.channels]
        self.mix = numbers(F.pad(used, (0, shape.length_width - shape.n_combinations)))
        self.mix_back = numbers(F.pad(used.transpose(1, 2), (0, shape.width - shape.n_shifts)))
        # the second half is for the displacements of the values
        self.values = np.empty(2 * self.n * self.channels * shape.width, dtype=np.float32)
        fill_values(self.n, shape, numbers(features), numbers(charges), self.values, 0)
        self.combinations = torch.empty(self.n, self.channels * 3 * shape.length_width)
        self.differentiated = False

    def no_values(self) -> NDArray[np.float32]:
        return np.zeros(self.n * self.channels * self.shape.width, dtype=np.float32)

    def mix_gradient(self, parts: list[NDArray[np.float32]], mix: Tensor) -> Tensor:
        """What the spans of atoms give, in the shape of `mix`."""
        gradient = torch.zeros_like(mix)
        for part in parts:
            padded_part = torch.from_numpy(part).view(self.channels, self.shape.n_shifts, self.shape.length_width)
            gradient[: self.channels] += padded_part[:, :, : self.shape.n_combinations]
        return gradient


class _Describe(Function):
    """The rows; second, a handle by which gradients by the combinations come back."""

    @staticmethod
    def forward(
        ctx: Any, plan: tuple[Shape, Surroundings], coord: Tensor, features: Tensor, charges: Tensor, mix: Tensor
    ) -> tuple[Tensor, ...]:
        shape, around = plan
        tape = _Tape(shape, around, features, charges, mix)
        rows = torch.empty(tape.n, shape.row)
        inputs = shape, around.edges, tape.values, numbers(features), numbers(charges), tape.mix
        around.threads.run(around.spans, describe_atoms, *inputs, numbers(tape.combinations), numbers(rows))
        ctx.tape = tape
        ctx.set_materialize_grads(False)
        handle = tape.combinations.detach()
        ctx.save_for_backward(coord, features, charges, mix, handle)
        return rows, handle

    @staticmethod
    def backward(ctx: Any, d_rows: Tensor | None, extra: Tensor | None) -> tuple[Tensor | None, ...]:
        tape: _Tape = ctx.tape
        coord, features, charges, mix, _ = ctx.saved_tensors
        by_coord, with_values = requested(ctx, 1), requested(ctx, 2) or requested(ctx, 3)
        if torch.is_grad_enabled():
            if extra is not None or requested(ctx, 4):
                raise RuntimeError("only forces can be differentiated again here, not gradients of weights")
            if d_rows is None:
                return None, None, None, None, None
            tape.differentiated = True
            d_coord, d_features, d_charges = _Differentiate.apply((tape, with_values), d_rows, *ctx.saved_tensors)
            return None, d_coord, *((d_features, d_charges) if with_values else (None, None)), None
        if d_rows is None:
            d_rows = torch.zeros(tape.n, tape.shape.row)
        d_coord = None
        # with forces in the loss `_Differentiate` speaks for the positions
        if by_coord and not tape.differentiated:
            d_coord, *_ = _differentiate(tape, d_rows, tape.around.spans, coord, features, charges, False)
        d_features, d_charges, d_mix = _reverse(tape, d_rows, extra, features, charges)
        return None, d_coord, d_features, d_charges, tape.mix_gradient(d_mix, mix) if requested(ctx, 4) else None


def _reverse(
    tape: _Tape, d_rows: Tensor, extra: Tensor | None, features: Tensor, charges: Tensor
) -> tuple[Tensor, Tensor, list[NDArray[np.float32]]]:
    """Gradients by features and charges, and by mix, one part for each span."""
    around, combinations, d_values = tape.around, numbers(tape.combinations), tape.no_values()
    d_features, d_charges = torch.zeros_like(features), torch.zeros_like(charges)
    own, more = (numbers(d_features), numbers(d_charges)), (combinations, 0) if extra is None else (numbers(extra), 1)
    inputs = tape.shape, around.edges, tape.values, numbers(d_rows), combinations
    d_mix = around.threads.run(around.spans, reverse_atoms, *inputs, *more, tape.mix_back, d_values, *own)
    collect_values(tape.n, tape.shape, d_values, *own)
    return d_features, d_charges, d_mix


def _differentiate(
    tape: _Tape, d_rows: Tensor, spans: list[Span], coord: Tensor, features: Tensor, charges: Tensor, with_values: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives by positions, features and charges; the latter two are zero unless with_values."""
    around, shape = tape.around, tape.shape
    d_values = tape.no_values() if with_values else np.zeros(1, dtype=np.float32)
    d_features, d_charges = torch.zeros_like(features), torch.zeros_like(charges)
    own = numbers(d_features), numbers(d_charges)
    by_vector, by_coord = np.zeros(len(around.edges.neighbor) * 3), np.zeros(tape.n * 3)
    inputs = shape, around.edges, tape.values, numbers(d_rows), numbers(tape.combinations), tape.mix_back
    around.threads.run(spans, differentiate_atoms, *inputs, with_values, d_values, *own, by_vector)
    around.threads.run(spans, gradient_of_coord, around.edges, by_vector, by_coord)
    if with_values:
        collect_values(tape.n, shape, d_values, *own)
    return torch.from_numpy(by_coord).view(tape.n, 3).to(coord.dtype), d_features, d_charges


class _Differentiate(Function):
    """Derivatives by positions, features and charges, which can be differentiated again but for the positions."""

    @staticmethod
    def forward(
        ctx: Any,
        shared: tuple[_Tape, bool],
        d_rows: Tensor,
        coord: Tensor,
        features: Tensor,
        charges: Tensor,
        mix: Tensor,
        handle: Tensor,
    ) -> tuple[Tensor, ...]:
        tape, with_values = shared
        d_rows = d_rows.detach().contiguous()
        if bool((d_rows[tape.around.n_forces :].abs() > 0).any()):
            raise RuntimeError("forces are wanted of molecules that were not announced")
        ctx.tape, ctx.d_rows = tape, d_rows
        ctx.save_for_backward(features, charges, mix)
        return _differentiate(tape, d_rows, tape.around.force_spans, coord, features, charges, with_values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, moved: Tensor, moved_features: Tensor, moved_charges: Tensor) -> tuple[Tensor | None, ...]:
        tape: _Tape = ctx.tape
        features, charges, mix = ctx.saved_tensors
        around, shape, n = tape.around, tape.shape, tape.n
        own = numbers(moved_features), numbers(moved_charges)
        fill_values(n, shape, *own, tape.values, n * tape.channels * shape.width)
        rows, extra, d_values = torch.zeros(n, shape.row), torch.zeros_like(tape.combinations), tape.no_values()
        inputs = n, shape, around.edges, numbers(moved.float()), tape.values, *own, numbers(ctx.d_rows)
        mixes, results = (tape.mix, tape.mix_back), (numbers(rows), numbers(extra), d_values)
        spans, combinations = around.force_spans, numbers(tape.combinations)
        d_mix = around.threads.run(spans, displace_atoms, *inputs, combinations, *mixes, *results)
        d_features, d_charges = torch.zeros_like(features), torch.zeros_like(charges)
        collect_values(n, shape, d_values, numbers(d_features), numbers(d_charges))
        by_coord = unknown(moved.shape, moved) if requested(ctx, 2) else None
        return None, rows, by_coord, d_features, d_charges, tape.mix_gradient(d_mix, mix), extra
