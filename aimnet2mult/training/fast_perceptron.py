"""Perceptrons whose derivatives are written by hand up to the second: for forces in a loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from aimnet2mult.engine.training_perceptron import (
    BACK,
    BIAS,
    COLUMNS,
    PLACE,
    ROWS,
    WEIGHT,
    Layers,
    differentiate_layers,
    displace_layers,
    reverse_layers,
    run_layers,
    sum_by_kind,
)
from aimnet2mult.engine.training_products import pack_columns, pack_rows, sum_outer_products
from aimnet2mult.training.reverse_mode import numbers, requested
from aimnet2mult.training.threads import Span, Threads

_NONE = np.zeros(1, dtype=np.float32)


class Segment(NamedTuple):
    """Rows that use the same weights."""

    first: int
    last: int  # one past
    which: int  # of the stacked weights


@dataclass(frozen=True)
class Rows:
    """The rows of a batch."""

    segments: Sequence[Segment]
    n_forces: int  # so many rows at the beginning take part in forces; derivatives by the outputs of others are zero
    kinds: NDArray[np.int64]  # (n,) row of the table that is added to each row's first layer; none without a table
    threads: Threads

    def parts(self, n: int) -> Iterator[tuple[int, list[Span]]]:
        """Which weights, and the spans of rows before `n` that use them, for every segment."""
        for first, last, which in self.segments:
            if first < n:
                yield which, self.threads.rows(first, min(last, n), ROWS)


def run_perceptron(layers: Layers, rows: Rows, x: Tensor, parameters: Sequence[Tensor], table: Tensor | None) -> Tensor:
    """Outputs (n, outputs) of a perceptron, differentiable twice.

    Parameters
    ----------
    layers
        Sizes.
    rows
        Which weights each row uses.
    x
        (n, inputs) float32.
    parameters
        Weights (S, inputs, outputs) and biases (S, outputs) of each layer in turn, for S perceptrons.
    table
        (kinds, outputs of the first layer, padded to a multiple of 16), added to the first layer; or None.
    """
    output: Tensor = _Run.apply((layers, rows), x, x.new_zeros(0) if table is None else table, *parameters)[0]
    return output


class _Columns(NamedTuple):
    """Some columns of a matrix in memory."""

    memory: NDArray[np.float32]
    start: int
    row: int  # distance of rows
    width: int


class _Tape:
    """What the passes of one evaluation share."""

    def __init__(self, layers: Layers, rows: Rows, x: Tensor, weights: Sequence[Tensor]) -> None:
        self.layers, self.rows, self.x = layers, rows, x.detach().contiguous()
        self.weights = [weight.detach() for weight in weights]
        self.packed = self._pack(WEIGHT, layers.n_weights, transposed=False)
        self.value, self.slope, self.curvature = (self.new() for _ in range(3))
        self._back: NDArray[np.float32] | None = None
        # displacements of the inputs with the changes of activations, derivatives by pre-activations and outputs: what
        # the gradient of the weights gets from forces
        self.second: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def new(self) -> Tensor:
        return torch.empty(self.x.shape[0], self.layers.size)

    @property
    def back(self) -> NDArray[np.float32]:
        """Packed transposed weights, made when they are first asked for."""
        if self._back is None:
            self._back = self._pack(BACK, self.layers.n_back, transposed=True)
        return self._back

    def _pack(self, column: int, size: int, transposed: bool) -> NDArray[np.float32]:
        packed = np.empty((self.weights[0].shape[0], size), dtype=np.float32)
        for which, target in enumerate(packed):
            for row, weight in zip(self.layers.table, self.weights, strict=True):
                matrix = weight[which].t() if transposed else weight[which]
                if matrix.stride(1) == 1:
                    pack_rows(*matrix.shape, _memory(matrix), matrix.stride(0), target[row[column] :])
                else:
                    pack_columns(*matrix.shape, _memory(matrix.t()), matrix.stride(1), target[row[column] :])
        return packed

    def after(self, buffer: Tensor, last: Tensor, number: int) -> _Columns:
        """What belongs to the pre-activations of a layer in (n, size); `last` where the last one has no activation."""
        row = self.layers.table[number]
        if row[PLACE] < 0:
            return _Columns(numbers(last), 0, last.shape[1], last.shape[1])
        return _Columns(numbers(buffer), int(row[PLACE]), self.layers.size, int(row[COLUMNS]))

    def before(self, x: Tensor, buffer: Tensor, number: int) -> _Columns:
        """What belongs to the inputs of a layer."""
        if number == 0:
            return _Columns(numbers(x), 0, x.shape[1], x.shape[1])
        return self.after(buffer, x, number - 1)


def _memory(matrix: Tensor) -> NDArray[np.float32]:
    """The memory of a matrix whose rows are contiguous but may lie apart."""
    size = (matrix.shape[0] - 1) * matrix.stride(0) + matrix.shape[1]
    return matrix.as_strided((size,), (1,)).numpy()


class _Run(Function):
    """The outputs; second, a handle by which gradients by the pre-activations come back."""

    @staticmethod
    def forward(
        ctx: Any, plan: tuple[Layers, Rows], x: Tensor, table: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        layers, rows = plan
        tape = _Tape(layers, rows, x, parameters[::2])
        bias = np.zeros((len(tape.packed), layers.n_biases), dtype=np.float32)
        for row, values in zip(layers.table, parameters[1::2], strict=True):
            bias[:, row[BIAS] : row[BIAS] + row[COLUMNS]] = values.detach().numpy()
        y = torch.empty(x.shape[0], int(layers.table[-1, COLUMNS]))
        more = (rows.kinds, numbers(table), True) if len(table) else (rows.kinds, _NONE, False)
        results = [numbers(buffer) for buffer in (tape.value, tape.slope, tape.curvature)]
        for which, spans in rows.parts(x.shape[0]):
            inputs = layers.table, numbers(tape.x), x.shape[1], tape.packed[which], bias[which]
            rows.threads.run(spans, run_layers, *inputs, *more, *results, layers.size, numbers(y))
        ctx.tape, ctx.table_shape = tape, table.shape
        ctx.set_materialize_grads(False)
        # any numbers will do for the handle, if only they have the right shape
        handle = tape.value.detach()
        ctx.save_for_backward(handle)
        return y, handle

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, extra: Tensor | None) -> tuple[Tensor | None, ...]:
        tape: _Tape = ctx.tape
        n_parameters = 2 * len(tape.weights)
        if torch.is_grad_enabled():
            if extra is not None or any(requested(ctx, k) for k in range(2, 3 + n_parameters)):
                raise RuntimeError("only forces can be differentiated again here, not the gradient of weights")
            dx = None if g is None else _Differentiate.apply(tape, g, *ctx.saved_tensors)
            return None, dx, *[None] * (1 + n_parameters)
        g = tape.x.new_zeros(len(tape.x), int(tape.layers.table[-1, COLUMNS])) if g is None else g.contiguous()
        t, dx = _reverse(tape, g, extra, requested(ctx, 1))
        d_table = None
        if ctx.table_shape.numel() and requested(ctx, 2):
            d_table, first = torch.zeros(ctx.table_shape), tape.after(t, g, 0)
            sum_by_kind(len(t), tape.rows.kinds, *first, numbers(d_table), ctx.table_shape[1])
        gradients: list[Tensor | None] = [None] * n_parameters
        if any(requested(ctx, 3 + k) for k in range(n_parameters)):
            gradients = _parameter_gradients(tape, t, g)
        tape.second.clear()
        return None, dx, d_table, *gradients


def _reverse(tape: _Tape, g: Tensor, extra: Tensor | None, with_inputs: bool) -> tuple[Tensor, Tensor | None]:
    """Gradient by the pre-activations (n, size), and by the inputs."""
    layers, rows, n = tape.layers, tape.rows, tape.x.shape[0]
    t, dx = tape.new(), torch.empty_like(tape.x) if with_inputs else None
    more = (_NONE, 0) if extra is None else (numbers(extra), 1)
    results = numbers(t), with_inputs, _NONE if dx is None else numbers(dx), tape.x.shape[1]
    for which, spans in rows.parts(n):
        inputs = layers.table, numbers(g), tape.back[which], numbers(tape.slope)
        rows.threads.run(spans, reverse_layers, *inputs, *more, layers.size, *results)
    return t, dx


def _parameter_gradients(tape: _Tape, t: Tensor, g: Tensor) -> list[Tensor | None]:
    """Gradients by weights and biases, what forces add to them included."""
    gradients: list[Tensor | None] = []
    for number, weight in enumerate(tape.weights):
        right = tape.after(t, g, number)
        pairs = [(tape.before(tape.x, tape.value, number), right, len(t))]
        for u, r, by_activations, by_outputs in tape.second:
            after = tape.after(by_activations, by_outputs, number)
            pairs.append((tape.before(u, r, number), after, tape.rows.n_forces))
        by_bias = torch.zeros(weight.shape[0], weight.shape[2])
        active = tape.layers.table[number, PLACE] >= 0
        columns = t[:, right.start : right.start + right.width] if active else g
        for first, last, which in tape.rows.segments:
            by_bias[which] += columns[first:last].sum(0)
        gradients += [_weight_gradient(tape.rows, weight, pairs), by_bias]
    return gradients


def _weight_gradient(rows: Rows, weight: Tensor, pairs: Sequence[tuple[_Columns, _Columns, int]]) -> Tensor:
    """Sum of left^T right over the first rows of each pair, in the order of memory of `weight` (S, inputs, outputs)."""
    if weight.stride(2) != 1:
        swapped = [(right, left, n) for left, right, n in pairs]
        return _weight_gradient(rows, weight.transpose(1, 2), swapped).transpose(1, 2)
    gradient = torch.empty(weight.shape)
    targets, started = gradient.view(len(gradient), -1).numpy(), set()
    for left, right, n in pairs:
        spans = rows.threads.rows(0, left.width, 16)
        for first, last, which in rows.segments:
            if first >= n:
                continue
            a = left.memory, left.start + first * left.row, left.row
            b = right.memory, right.start + first * right.row, right.row
            sizes, adding = (min(last, n) - first, right.width), which in started
            rows.threads.run(spans, sum_outer_products, *sizes, *a, *b, targets[which], adding)
            started.add(which)
    for which in set(range(len(gradient))) - started:
        gradient[which] = 0.0
    return gradient


class _Differentiate(Function):
    """Derivatives by the inputs; its own gradient goes to derivatives by the outputs, pre-activations and weights.

    What the weights get stays on the tape until the gradient by the pre-activations has come to `_Run`, which is always
    later.
    """

    @staticmethod
    def forward(ctx: Any, tape: _Tape, g: Tensor, handle: Tensor) -> Tensor:
        layers, rows = tape.layers, tape.rows
        g = g.detach().contiguous()
        # NaN is no sign of a wrong request: it stands for a molecule whose energy is not finite
        if bool((g[rows.n_forces :].abs() > 0).any()):
            raise RuntimeError("forces are wanted of molecules that were not announced")
        t, w, dx = tape.new(), tape.new(), torch.empty_like(tape.x)
        dx[rows.n_forces :] = 0.0
        slopes, results = (numbers(tape.slope), numbers(tape.curvature)), [numbers(one) for one in (t, w, dx)]
        for which, spans in rows.parts(rows.n_forces):
            inputs = layers.table, numbers(g), tape.back[which]
            rows.threads.run(spans, differentiate_layers, *inputs, *slopes, layers.size, *results, dx.shape[1])
        ctx.tape, ctx.kept = tape, (t, w, g)
        return dx

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        tape: _Tape = ctx.tape
        t, w, g = ctx.kept
        layers, rows, u = tape.layers, tape.rows, u.contiguous()
        r, p, dg = tape.new(), tape.new(), torch.empty_like(g)
        for one in (p, dg):
            one[rows.n_forces :] = 0.0
        slopes, results = (numbers(tape.slope), numbers(w)), [numbers(one) for one in (r, p, dg)]
        for which, spans in rows.parts(rows.n_forces):
            inputs = layers.table, numbers(u), u.shape[1], tape.packed[which]
            rows.threads.run(spans, displace_layers, *inputs, *slopes, layers.size, *results)
        tape.second.append((u, r, t, g))
        return None, dg, p
