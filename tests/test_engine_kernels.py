"""The compiled kernels of the engine against float64 arithmetic of numpy, scipy and PyTorch.

float32 rounds to 6e-8 of a number; `ROUNDING` leaves room for the few hundred roundings of the longest sums here, and
none for a wrong or missing term.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from aimnet2mult.physics.equilibration import equilibrate as reference_equilibrate
from aimnet2mult.physics.equilibration import equilibrate_spin
from aimnet2mult.physics.radial import radial_features
from aimnet2mult.types import AtomIndex

pytest.importorskip("numba", reason="the engine needs the optional package numba")

from aimnet2mult.engine import basis, convolution, equilibration, functions, lengths, matrix
from aimnet2mult.engine.jit import F32, F64, I32, compiled
from aimnet2mult.engine.records import FlatSystems
from aimnet2mult.engine.rows import BEYOND

ROUNDING = 2e-6


def numbers(*shape: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_close(found: np.ndarray | Tensor, expected: np.ndarray | Tensor, tolerance: float = ROUNDING) -> None:
    found, expected = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=tolerance * max(1.0, np.abs(expected).max(initial=0.0)))


@compiled
def run_gelu(values: F32, derivatives: F32) -> None:
    functions.gelu_in_place(values, 0, derivatives, 0, len(values) // 16)


def test_gelu_and_its_derivative() -> None:
    x = np.concatenate([np.linspace(-14.0, 14.0, 4096), np.logspace(-30, 30, 1024), -np.logspace(-30, 30, 1024)])
    values, derivatives = x.astype(np.float32), np.empty(len(x), dtype=np.float32)
    exact = torch.from_numpy(values.astype(np.float64)).requires_grad_()
    expected = torch.nn.functional.gelu(exact)
    (slope,) = torch.autograd.grad(expected.sum(), exact)
    run_gelu(values, derivatives)
    # one rounding of the result and one of 1 - erfc / 2
    assert (
        np.abs(values - expected.detach().numpy()) <= 2e-7 * np.maximum(np.abs(exact.detach().numpy()), 1e-30)
    ).all()
    assert np.abs(derivatives - slope.numpy()).max() < 4e-7


def test_gelu_of_nan_is_nan_in_its_lane_alone() -> None:
    values, derivatives = np.ones(16, dtype=np.float32), np.empty(16, dtype=np.float32)
    values[5] = np.nan
    run_gelu(values, derivatives)
    assert np.flatnonzero(np.isnan(values)).tolist() == [5]
    assert np.flatnonzero(np.isnan(derivatives)).tolist() == [5]


@compiled
def run_multiply(n_rows: int, depth: int, columns: int, a: F32, b: F32, bias: F32, c: F32, stride: int) -> None:
    matrix.multiply(n_rows, depth, columns, a, 0, b, 0, bias, 0, c, 0, stride)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 7, 12, 13])
@pytest.mark.parametrize(("depth", "columns"), [(1, 1), (5, 16), (128, 17), (129, 64), (300, 100), (733, 130)])
def test_product_with_a_packed_matrix(rows: int, depth: int, columns: int) -> None:
    stride = matrix.padded(max(depth, columns))
    a, b = numbers(rows, stride, seed=1), numbers(depth, columns, seed=2)
    bias = np.zeros(stride, dtype=np.float32)
    bias[:columns] = numbers(columns, seed=3)
    c = np.full((rows + 1, stride), 7.0, dtype=np.float32)
    run_multiply(rows, depth, matrix.padded(columns), a.reshape(-1), matrix.pack(b), bias, c.reshape(-1), stride)
    # partial sums grow with the square root of the depth and so do the numbers of their roundings of 6e-8: a random
    # walk of 6e-8 * depth; a missing product is of size one
    expected = bias[:columns] + a[:, :depth].astype(np.float64) @ b
    assert np.abs(c[:rows, :columns] - expected).max() < 3e-7 * (depth + 1)
    assert (c[:rows, columns : matrix.padded(columns)] == 0.0).all()
    assert (c[rows:] == 7.0).all(), "written beyond the last row"


@compiled
def run_sum(n_channels: int, width: int, neighbor: I32, first: int, n: int, x: F32, basis_: F32, sums: F32) -> None:
    convolution.sum_neighbors(n_channels, width, neighbor, first, n, x, 0, n_channels * width, basis_, sums)


@compiled
def run_spread(n_channels: int, width: int, neighbor: I32, first: int, n: int, d: F32, basis_: F32, d_x: F32) -> None:
    convolution.spread_to_neighbors(n_channels, width, neighbor, first, n, d, basis_, d_x, n_channels * width)


@compiled
def run_basis(n_channels: int, width: int, neighbor: I32, first: int, n: int, x: F32, d: F32, d_basis: F32) -> None:
    convolution.differentiate_basis(n_channels, width, neighbor, first, n, x, 0, n_channels * width, d, d_basis)


@pytest.mark.parametrize("n_channels", [1, 2, 5, 6, 7, 17])
@pytest.mark.parametrize(("n_edges", "width"), [(0, 16), (1, 16), (5, 32), (13, 16)])
def test_neighbour_sum_its_transpose_and_its_derivative(n_channels: int, n_edges: int, width: int) -> None:
    n_atoms, first = 4, 2
    neighbor = np.random.default_rng(4).integers(0, n_atoms, n_edges + first).astype(np.int32)
    x, w = numbers(n_atoms, n_channels, width, seed=5), numbers(n_edges, 4, width, seed=6)
    d, before = numbers(n_channels, 4, width, seed=7), numbers(n_atoms, n_channels, width, seed=8)
    x_, w_ = (torch.from_numpy(array).double().requires_grad_() for array in (x, w))
    here = torch.from_numpy(neighbor[first:]).long()
    expected = torch.einsum("ecg,ekg->ckg", x_[here], w_)
    d_x, d_w = torch.autograd.grad(expected, (x_, w_), torch.from_numpy(d).double())

    sums, spread, d_basis = np.empty_like(d), before.copy(), np.empty_like(w)
    shape = (n_channels, width, neighbor, first, n_edges)
    run_sum(*shape, x.reshape(-1), w.reshape(-1), sums.reshape(-1))
    run_spread(*shape, d.reshape(-1), w.reshape(-1), spread.reshape(-1))
    run_basis(*shape, x.reshape(-1), d.reshape(-1), d_basis.reshape(-1))
    assert_close(sums, expected.detach())
    assert_close(spread, before + d_x.numpy())
    assert_close(d_basis, d_w)


@compiled
def run_combine(sizes: tuple[int, ...], sums: F32, mix: F32, combinations: F32, row: F32) -> None:
    channels, shifts, width, count, blocks = sizes
    lengths.combine(channels, shifts, width, count, blocks, sums, mix, combinations, 0, row, 0, channels * shifts)


@compiled
def run_uncombine(sizes: tuple[int, ...], d_row: F32, combinations: F32, mix: F32, factors: F32, d_sums: F32) -> None:
    channels, shifts, width, count, blocks = sizes
    lengths.uncombine(
        channels, shifts, width, count, blocks, d_row, 0, channels * shifts, combinations, 0, mix, factors, d_sums
    )


@pytest.mark.parametrize(("n_channels", "n_shifts", "count"), [(1, 1, 1), (3, 6, 5), (17, 16, 12), (2, 20, 17)])
def test_lengths_and_their_derivative(n_channels: int, n_shifts: int, count: int) -> None:
    width, long = matrix.padded(n_shifts), matrix.padded(count)
    sums, mix = np.zeros((n_channels, 4, width), np.float32), np.zeros((n_channels, n_shifts, long), np.float32)
    turned = np.zeros((n_channels, count, width), np.float32)
    sums[:, :, :n_shifts] = numbers(n_channels, 4, n_shifts, seed=9)
    mix[:, :, :count] = numbers(n_channels, n_shifts, count, seed=10)
    turned[:, :, :n_shifts] = mix[:, :, :count].transpose(0, 2, 1)
    n_inputs = n_channels * (n_shifts + count)
    d_row = numbers(n_inputs + 32, seed=11)

    exact = torch.from_numpy(sums).double().requires_grad_()
    combined = torch.einsum("ckg,cgh->ckh", exact[:, 1:, :n_shifts], torch.from_numpy(mix[:, :, :count]).double())
    row_expected = torch.cat([exact[:, 0, :n_shifts].flatten(), combined.square().sum(1).flatten()])
    (d_sums_expected,) = torch.autograd.grad(row_expected, exact, torch.from_numpy(d_row[:n_inputs]).double())

    sizes = (n_channels, n_shifts, width, count, long // 16)
    combinations, row = np.empty(n_channels * 3 * long, np.float32), np.empty(n_inputs + 32, np.float32)
    d_sums, factors = np.empty_like(sums), np.empty(3 * long, np.float32)
    run_combine(sizes, sums.reshape(-1), mix.reshape(-1), combinations, row)
    run_uncombine(sizes, d_row, combinations, turned.reshape(-1), factors, d_sums.reshape(-1))
    assert_close(row[:n_inputs], row_expected.detach())
    assert_close(d_sums[:, :, :n_shifts], d_sums_expected[:, :, :n_shifts])


@compiled
def run_basis_of_edges(
    vector: F64, cutoff: float, centres: F32, exponent: F32, edge: F32, gaussians: F32, basis_: F32
) -> None:
    n_blocks = len(centres) // 16
    basis.describe_edges(vector, 0, len(vector), cutoff, edge)
    basis.fill_gaussians(edge, 0, len(vector), centres, exponent, n_blocks, gaussians)
    basis.expand_basis(edge, gaussians, 0, len(vector), n_blocks, basis_)


@compiled
def run_edge_gradient(
    n_edges: int, edge: F32, gaussians: F32, centres: F32, exponent: F32, d_basis: F32, gradient: F64
) -> None:
    basis.add_edge_gradient(edge, gaussians, 0, n_edges, centres, exponent, len(centres) // 16, d_basis, gradient)


def basis_of(vector: F64, centres: F32, exponent: float, cutoff: float) -> tuple[F32, F32, F32]:
    edge, gaussians = (
        np.empty(len(vector) * basis.EDGE_SIZE, np.float32),
        np.empty(len(vector) * len(centres), np.float32),
    )
    result = np.empty((len(vector), 4, len(centres)), np.float32)
    run_basis_of_edges(vector, cutoff, centres, np.array([exponent], np.float32), edge, gaussians, result.reshape(-1))
    return edge, gaussians, result


@pytest.mark.parametrize("n_shifts", [1, 6, 16, 20])
def test_basis_of_edges_and_its_derivative(n_shifts: int) -> None:
    cutoff, exponent = 5.0, 9.0
    rng = np.random.default_rng(12)
    direction = rng.normal(size=(40, 3))
    vector = direction / np.linalg.norm(direction, axis=1)[:, None] * np.linspace(0.3, 5.3, 40)[:, None]
    centres = np.full(matrix.padded(n_shifts), BEYOND, np.float32)
    centres[:n_shifts] = np.linspace(0.8, 4.7, n_shifts)
    d_basis = rng.normal(size=(40, 4, len(centres))).astype(np.float32)

    exact = torch.from_numpy(vector).requires_grad_()
    r = exact.norm(dim=1)
    inside = torch.ones_like(r, dtype=torch.bool).unsqueeze(0)
    radial = radial_features(r.unsqueeze(0), inside, torch.from_numpy(centres[:n_shifts]).double(), exponent, cutoff)
    expected = radial[0].T.unsqueeze(1) * torch.cat([torch.ones(40, 1), exact / r.unsqueeze(1)], dim=1).unsqueeze(2)
    (d_vector,) = torch.autograd.grad(expected, exact, torch.from_numpy(d_basis[:, :, :n_shifts]).double())

    edge, gaussians, found = basis_of(vector, centres, exponent, cutoff)
    gradient = np.ones((40, 3))
    run_edge_gradient(
        40, edge, gaussians, centres, np.array([exponent], np.float32), d_basis.reshape(-1), gradient.reshape(-1)
    )
    assert_close(found[:, :, :n_shifts], expected.detach())
    assert (found[:, :, n_shifts:] == 0.0).all()
    assert (found[np.linspace(0.3, 5.3, 40) > cutoff] == 0.0).all()
    assert_close(gradient - 1.0, d_vector, 4 * ROUNDING)


def test_basis_of_an_edge_of_nan_is_nan() -> None:
    vector = np.array([[1.0, 0.5, 0.2], [np.nan, 0.5, 0.2]])
    _, _, found = basis_of(vector, np.linspace(0.8, 4.7, 16, dtype=np.float32), 9.0, 5.0)
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()


@compiled
def run_equilibration(
    systems: FlatSystems, by_spin: bool, exact: bool, charges: F64, kept: tuple[F64, F64, F64], d: F64, d_response: F64
) -> None:
    response, share, weight = kept
    stage = len(response) - 1
    equilibration.equilibrate(systems, by_spin, exact, stage, charges, response, share, weight)
    equilibration.differentiate_equilibration(systems, by_spin, exact, stage, response, share, weight, d, d_response)


FORMS: list[tuple[int, bool, Callable[..., Tensor]]] = [
    (1, False, reference_equilibrate),
    (2, False, reference_equilibrate),
    (2, True, equilibrate_spin),
]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("n_channels", "by_spin", "reference"), FORMS)
def test_equilibration_and_its_derivative(
    n_channels: int, by_spin: bool, reference: Callable[..., Tensor], exact: bool
) -> None:
    rng = np.random.default_rng(13)
    offsets = np.array([0, 3, 4, 9])
    systems = FlatSystems(np.ones(9, np.int64), offsets, np.array([1.0, 0.0, -1.0]), np.array([1.0, 2.0, 3.0]))
    raw, response, d = rng.normal(size=(3, 9, n_channels))
    molecule = torch.from_numpy(np.repeat(np.arange(3), np.diff(offsets)))
    spin = systems.mult - 1.0
    totals = (
        np.stack([systems.charge + spin, systems.charge - spin], 1) / 2 if n_channels == 2 else systems.charge[:, None]
    )
    raw_, response_ = (torch.from_numpy(array).requires_grad_() for array in (raw, response))
    index = AtomIndex(torch.arange(9), molecule, (3, 9))
    expected = reference(raw_, response_, torch.from_numpy(totals), index, exact)
    d_raw, d_weight = torch.autograd.grad(expected, (raw_, response_), torch.from_numpy(d))

    charges, d_charges, d_response = raw.copy(), d.copy(), np.empty_like(d)
    kept = (np.stack([np.zeros_like(response), response]), np.empty((2, 3, n_channels)), np.empty((2, 3, n_channels)))
    run_equilibration(systems, by_spin, exact, charges, kept, d_charges, d_response)
    for found, wanted in ((charges, expected.detach()), (d_charges, d_raw), (d_response, d_weight)):
        # both in float64
        assert_close(found, wanted, 1e-12)
