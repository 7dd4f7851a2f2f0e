"""Kernels of training steps against numpy and torch in float64.

float32 rounds to 6e-8 of a number; `ROUNDING` leaves room for the roundings of sums of some hundred products.
"""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimnet2mult.models.perceptron import perceptron

pytest.importorskip("numba", reason="the kernels need the optional package numba")

from aimnet2mult.engine.jit import F32, compiled
from aimnet2mult.engine.matrix import pack, padded
from aimnet2mult.engine.training_perceptron import layers_of
from aimnet2mult.engine.training_products import (
    BLOCK,
    PART,
    multiply_rows,
    pack_columns,
    pack_rows,
    sum_outer_products,
)
from aimnet2mult.training.fast_perceptron import Rows, Segment, run_perceptron
from aimnet2mult.training.threads import Threads

ROUNDING = 5e-6
NO_KINDS = np.zeros(0, dtype=np.int64)


def numbers(*shape: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_close(found: np.ndarray | Tensor, expected: np.ndarray | Tensor, tolerance: float = ROUNDING) -> None:
    found, expected = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=tolerance * np.abs(expected).max(initial=1.0))


@compiled
def multiply(n: int, depth: int, columns: int, a: F32, row: int, b: F32, bias: F32, c: F32, c_row: int) -> None:
    multiply_rows(n, depth, columns, a, 2, row, b, 0, bias, 0, c, 1, c_row)


@pytest.mark.parametrize(("n", "depth", "columns"), [(1, 1, 1), (7, 300, 70), (13, 33, 128), (25, 17, 200)])
def test_product_of_rows_that_lie_apart(n: int, depth: int, columns: int) -> None:
    a, b, bias = numbers(n, depth + 5), numbers(depth, columns, seed=1), numbers(padded(columns), seed=2)
    c = np.full((n, padded(columns) + 3), 7.0, dtype=np.float32)
    multiply(n, depth, padded(columns), a.ravel(), depth + 5, pack(b), bias, c.ravel(), c.shape[1])
    flat = c.ravel()[1:]
    found = np.stack([flat[i * c.shape[1] : i * c.shape[1] + columns] for i in range(n)])
    left = a.astype(np.float64).ravel()
    rows = np.stack([left[2 + i * (depth + 5) :][:depth] for i in range(n)])
    assert_close(found, rows @ b + bias[:columns])


@pytest.mark.parametrize(("depth", "columns"), [(1, 1), (5, 33), (16, 16), (40, 64), (70, 130), (35, 80)])
def test_packing_of_matrices_and_of_their_transposes(depth: int, columns: int) -> None:
    wide = numbers(depth, columns + 4)
    expected = pack(wide[:, :columns])
    found = np.full_like(expected, np.nan)
    pack_rows(depth, columns, wide.ravel(), columns + 4, found)
    np.testing.assert_array_equal(found, expected)
    tall = numbers(columns, depth + 3)
    expected, found = pack(tall[:, :depth].T), np.full_like(expected, np.nan)
    pack_columns(depth, columns, tall.ravel(), depth + 3, found)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("adding", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (5, 17, 33), (BLOCK + 7, 70, 64), (20, PART + 9, 90)])
def test_sum_of_outer_products(sizes: tuple[int, int, int], adding: bool) -> None:
    n, m, k = sizes
    a, b = numbers(n, m + 3), numbers(n, k + 1, seed=1)
    c = numbers(m, k, seed=2)
    expected = a[:, 1 : m + 1].astype(np.float64).T @ b[:, :k] + (c if adding else 0.0)
    for first, last in ((0, m // 2), (m // 2, m)):
        sum_outer_products(first, last, n, k, a.ravel(), 1, m + 3, b.ravel(), 0, k + 1, c.ravel(), adding)
    assert_close(c, expected, 2e-5)


def _reference(
    nets: list[nn.Sequential], segments: list[Segment], x: Tensor, table: Tensor | None, kinds: Tensor
) -> Tensor:
    """Outputs by torch, in float64; the table is added behind the first linear layer."""
    outputs = []
    for first, last, which in segments:
        h = x[first:last]
        for number, layer in enumerate(nets[which]):
            h = layer(h)
            if number == 0 and table is not None:
                h = h + table[kinds[first:last]][:, : h.shape[1]]
        outputs.append(h)
    return torch.cat(outputs)


@pytest.mark.parametrize(("sizes", "activate", "with_table"), [
    ((9, 20, 17, 5), False, True), ((33, 40, 16), True, False), ((6, 3), False, True), ((6, 3), True, False),
    ((1, 1, 1), False, False),
])  # fmt: skip
@pytest.mark.parametrize("n_threads", [1, 3])
def test_perceptron_and_its_derivatives(
    sizes: tuple[int, ...], activate: bool, with_table: bool, n_threads: int
) -> None:
    """A loss on outputs and on derivatives by the inputs; two sets of weights, the third has no rows."""
    torch.manual_seed(0)
    nets = [perceptron(sizes[0], sizes[1:-1], sizes[-1], activate) for _ in range(3)]
    segments, n, n_forces = [Segment(0, 150, 1), Segment(150, 170, 0), Segment(170, 200, 1)], 200, 170
    wide = padded(sizes[1])
    x, table, kinds = torch.randn(n, sizes[0]), torch.randn(4, wide) if with_table else None, torch.arange(n) % 4
    weights_of_outputs, weights_of_slopes = torch.randn(n, sizes[-1]), torch.randn(n_forces, sizes[0])

    def loss(output: Tensor, leaf: Tensor) -> Tensor:
        wanted = (output[:n_forces].square() * weights_of_outputs[:n_forces]).sum()
        (slope,) = torch.autograd.grad(wanted, leaf, create_graph=True)
        return (slope[:n_forces].square() * weights_of_slopes).sum() + (output.square() * weights_of_outputs).sum()

    linears = [[layer for layer in net if isinstance(layer, nn.Linear)] for net in nets]
    leaves = [torch.stack([net[k].weight.detach() for net in linears]).requires_grad_() for k in range(len(sizes) - 1)]
    biases = [torch.stack([net[k].bias.detach() for net in linears]).requires_grad_() for k in range(len(sizes) - 1)]
    extra = [] if table is None else [table.requires_grad_()]
    threads = Threads()
    threads.count = n_threads
    rows = Rows(segments, n_forces, kinds.numpy() if with_table else NO_KINDS, threads)
    layers = layers_of(list(pairwise(sizes)), activate)
    parameters = [p for pair in zip([w.transpose(1, 2) for w in leaves], biases, strict=True) for p in pair]
    leaf = x.clone().requires_grad_()
    # the kernels give no gradient by leaves twice differentiated, so x passes through a function of torch
    output = run_perceptron(layers, rows, leaf * 1.0, parameters, table)
    found = torch.autograd.grad(loss(output, leaf), [*leaves, *biases, *extra, leaf])

    nets = [net.double() for net in nets]
    leaf = x.double().requires_grad_()
    exact_table = None if table is None else table.detach().double().requires_grad_()
    exact = _reference(nets, segments, leaf, exact_table, kinds)
    doubles = [[layer for layer in net if isinstance(layer, nn.Linear)] for net in nets]
    by = [[layer.weight for layer in net] + [layer.bias for layer in net] for net in doubles]
    unused = [torch.zeros_like(p) for p in by[2]]
    ends = [leaf] if exact_table is None else [exact_table, leaf]
    flat = torch.autograd.grad(loss(exact, leaf), [*by[0], *by[1], *ends])
    count = len(by[0])
    expected = [torch.stack(one) for one in zip(flat[:count], flat[count : 2 * count], unused, strict=True)]
    assert_close(output.detach(), exact.detach())
    for ours, theirs in zip(found, [*expected, *flat[2 * count :]], strict=True):
        # products of three derivatives: more roundings
        assert_close(ours, theirs, 3e-5)
    assert all(not gradient[2].any() for gradient in found[: 2 * len(leaves)])


def test_gelu_derivatives_by_finite_range() -> None:
    """Value, slope and curvature as the perceptron uses them, from -12 to 12: through a single neuron."""
    x = torch.linspace(-12.0, 12.0, 4001).unsqueeze(1)
    one = [torch.ones(1, 1, 1), torch.zeros(1, 1)]
    rows = Rows([Segment(0, len(x), 0)], len(x), NO_KINDS, Threads())
    leaf = x.clone().requires_grad_()
    value = run_perceptron(layers_of([(1, 1)], True), rows, leaf * 1.0, one, None)
    (slope,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), leaf)
    exact = x.double().requires_grad_()
    expected = F.gelu(exact)
    (first,) = torch.autograd.grad(expected.sum(), exact, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), exact)
    # one rounding of numbers up to 12, of numbers of about 1, and of (2 - x^2) phi(x)
    assert float((value.detach() - expected.detach()).abs().max()) < 2e-6
    assert float((slope.detach() - first.detach()).abs().max()) < 5e-7
    assert float((curvature - second).abs().max()) < 1e-6


def test_rows_are_divided_without_gap_or_overlap() -> None:
    threads = Threads()
    for count, (first, last), step in product((1, 2, 5), ((0, 0), (3, 4), (0, 97), (10, 1000)), (1, 16, 96)):
        threads.count = count
        spans = threads.rows(first, last, step)
        assert [i for a, b in spans for i in range(a, b)] == list(range(first, last))
        assert len(spans) <= count
    offsets = np.array([0, 3, 4, 30, 31, 40])
    for count, n in product((1, 2, 4, 9), (0, 4, 30, 40)):
        threads.count = count
        spans = threads.molecules(offsets, n)
        assert [i for a, b in spans for i in range(a, b)] == list(range(n))
        assert {a for a, _ in spans} <= set(offsets.tolist())
