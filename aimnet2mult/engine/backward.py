"""Derivatives of the network's energy by the vectors of the edges, in one compiled function."""

from __future__ import annotations

from aimnet2mult.engine.basis import add_edge_gradient, expand_basis
from aimnet2mult.engine.convolution import differentiate_basis, spread_to_neighbors
from aimnet2mult.engine.equilibration import differentiate_equilibration
from aimnet2mult.engine.forward import CHARGE_HEAD, count_blocks
from aimnet2mult.engine.jit import F32, F64, I64, compiled, part
from aimnet2mult.engine.layers import differentiate_perceptron
from aimnet2mult.engine.lengths import uncombine
from aimnet2mult.engine.records import Edges, FlatSystems
from aimnet2mult.engine.rows import add, add_channels, clear, copy, pack_channels
from aimnet2mult.engine.simd import LANES
from aimnet2mult.engine.team import meet, take, team_size
from aimnet2mult.engine.weights import Network
from aimnet2mult.engine.workspace import MAX_ROWS, Arrays, Scratch


@compiled
def compute_gradient(
    net: Network, systems: FlatSystems, edges: Edges, work: Arrays, scratch: Scratch, team: I64, rank: int,
    d_charges: F64, gradient: F64,
) -> None:  # fmt: skip
    """Fill `gradient` (E * 3,) with dE/d(vector), eV/Å.

    `work` is that of `compute_energies`. `d_charges` (n, C) holds the derivatives of further energy terms by the
    charges of the output head, or has no rows. All threads of a team call this, each with a scratch and a rank of its
    own.
    """
    with_head = d_charges.shape[0] > 0 and net.has_charge_head
    if rank == 0:
        _start(net, systems, work, d_charges, gradient)
    phase = meet(team, 0)
    for number in range(net.n_passes - 1, -1, -1):
        phase = _run_pass_back(net, number, systems, edges, work, scratch, with_head, gradient, team, phase)
        if number > 0:
            if rank == 0 and team_size(team) > 1:
                _spread_kept(net, systems, edges, work, scratch)
            phase = meet(team, phase)
            phase = _collect(net, systems, work, team, phase)
            if rank == 0:
                _differentiate_charges(net, number - 1, systems, work)
            phase = meet(team, phase)


@part
def _start(net: Network, systems: FlatSystems, work: Arrays, d_charges: F64, gradient: F64) -> None:
    """Derivatives by the charges of the last pass; all others are zero."""
    n_atoms = systems.numbers.shape[0]
    for k in range(gradient.shape[0]):
        gradient[k] = 0.0
    clear(n_atoms * (net.n_features + net.n_charges) * net.width // LANES, work.d_values, 0)
    for i in range(n_atoms):
        for c in range(net.n_charges):
            work.d_charges[i, c] = d_charges[i, c] if d_charges.shape[0] > 0 else 0.0
    if d_charges.shape[0] > 0 and net.has_charge_head:
        _differentiate_charges(net, net.n_passes - 1, systems, work)


@part
def _run_pass_back(
    net: Network, number: int, systems: FlatSystems, edges: Edges, work: Arrays, scratch: Scratch, with_head: bool,
    gradient: F64, team: I64, phase: int,
) -> int:  # fmt: skip
    """Derivatives by the edges, and those that `_spread_atom` and `_collect` go on with."""
    n_atoms = systems.numbers.shape[0]
    n_threads = team_size(team)
    n_blocks = count_blocks(n_atoms, n_threads)
    n_sums = (net.n_features + net.n_charges) * 4 * net.width
    block = take(team, phase)
    while block < n_blocks:
        first, last = n_atoms * block // n_blocks, n_atoms * (block + 1) // n_blocks
        _start_block(net, number, n_atoms, first, last - first, work, scratch, with_head)
        _differentiate_rows(net, number, n_atoms, first, last - first, work, scratch)
        for i in range(first, last):
            _differentiate_atom(net, number, n_atoms, i, (i - first) * net.row_size, edges, work, scratch, gradient)
            if number > 0 and n_threads == 1:
                _spread_atom(net, i, edges, work, scratch)
            elif number > 0:
                copy(n_sums // LANES, scratch.sums, 0, work.d_sums, i * n_sums)
        block = take(team, phase)
    return meet(team, phase)


@part
def _start_block(
    net: Network, number: int, n_atoms: int, first: int, n_rows: int, work: Arrays, scratch: Scratch, with_head: bool
) -> None:
    """Derivatives by the outputs of a pass, into the third area of ``scratch.rows``."""
    stride = net.row_size
    area = MAX_ROWS * stride
    if number < net.n_passes - 1:
        copy(n_rows * stride // LANES, work.update, first * stride, scratch.rows, 2 * area)
        return
    for row in range(n_rows):
        for k in range(LANES):
            scratch.rows[row * stride + k] = 1.0 if k == 0 else 0.0
    differentiate_perceptron(
        net.perceptrons, net.n_passes, n_atoms, first, n_rows, stride, scratch.rows, 0 * area, 1 * area,
        scratch.rows, 2 * area, work.slopes,
    )  # fmt: skip
    if not with_head:
        return
    for row in range(n_rows):
        for k in range(2 * net.n_charges):
            scratch.rows[row * stride + k] = work.update[(first + row) * stride + CHARGE_HEAD + k]
    differentiate_perceptron(
        net.perceptrons, net.n_passes + 1, n_atoms, first, n_rows, stride, scratch.rows, 0 * area, 1 * area,
        scratch.rows, 3 * area, work.slopes,
    )  # fmt: skip
    add(n_rows * stride // LANES, scratch.rows, 3 * area, scratch.rows, 2 * area)


@part
def _differentiate_rows(
    net: Network, number: int, n_atoms: int, first: int, n_rows: int, work: Arrays, scratch: Scratch
) -> None:
    """Derivatives by the inputs of a pass, and the own features and charges among them."""
    stride = net.row_size
    area = MAX_ROWS * stride
    n_own = net.n_features * (net.n_shifts if net.per_shift else 1)
    n_charges = net.n_charges if number > 0 else 0
    n_inputs = n_own + (net.n_features + n_charges) * (net.n_shifts + net.n_combinations) + n_charges
    differentiate_perceptron(
        net.perceptrons, number, n_atoms, first, n_rows, stride, scratch.rows, 2 * area, area,
        scratch.rows, n_own if number == 0 else 0, work.slopes,
    )  # fmt: skip
    for row in range(n_rows):
        # what is read past the end counts for nothing, but must not be NaN
        for k in range(n_inputs, stride):
            scratch.rows[row * stride + k] = 0.0
        if number > 0:
            update = (first + row) * stride + 2 * net.n_charges
            for k in range(n_own):
                work.update[update + k] = scratch.rows[row * stride + k]
            for c in range(n_charges):
                work.d_charges[first + row, c] += scratch.rows[row * stride + n_inputs - n_charges + c]


@part
def _differentiate_atom(
    net: Network, number: int, n_atoms: int, i: int, row: int, edges: Edges, work: Arrays, scratch: Scratch,
    gradient: F64,
) -> None:  # fmt: skip
    """From derivatives by scalars and lengths of an atom to those by its edges and, in the scratch, by its sums."""
    width, size = net.width, net.length_width
    n_channels = net.n_features + (net.n_charges if number > 0 else 0)
    all_channels = net.n_features + net.n_charges
    scalars = row + net.n_features * (net.n_shifts if net.per_shift else 1)
    begin = edges.start[i]
    n_edges = edges.start[i + 1] - begin
    uncombine(
        n_channels, net.n_shifts, width, net.n_combinations, size // LANES, scratch.rows, scalars,
        scalars + n_channels * net.n_shifts, work.combinations, (number * n_atoms + i) * all_channels * 3 * size,
        net.mix_transposed, scratch.factors, scratch.sums,
    )  # fmt: skip
    differentiate_basis(
        n_channels, width, edges.neighbor, begin, n_edges, work.values, number * n_atoms * all_channels * width,
        all_channels * width, scratch.sums, scratch.d_basis,
    )  # fmt: skip
    add_edge_gradient(
        work.edge, work.gaussians, begin, n_edges, net.centres, net.exponent, width // LANES, scratch.d_basis, gradient
    )


@part
def _spread_kept(net: Network, systems: FlatSystems, edges: Edges, work: Arrays, scratch: Scratch) -> None:
    """`_spread_atom` of all atoms, after several threads have kept the derivatives by their sums."""
    n_sums = (net.n_features + net.n_charges) * 4 * net.width
    for i in range(systems.numbers.shape[0]):
        copy(n_sums // LANES, work.d_sums, i * n_sums, scratch.sums, 0)
        _spread_atom(net, i, edges, work, scratch)


@part
def _spread_atom(net: Network, i: int, edges: Edges, work: Arrays, scratch: Scratch) -> None:
    """Derivatives by the values of an atom's neighbours; always in the order of the atoms, so never in two threads."""
    n_channels = net.n_features + net.n_charges
    begin = edges.start[i]
    n_edges = edges.start[i + 1] - begin
    expand_basis(work.edge, work.gaussians, begin, n_edges, net.width // LANES, scratch.basis)
    spread_to_neighbors(
        n_channels, net.width, edges.neighbor, begin, n_edges, scratch.sums, scratch.basis, work.d_values,
        n_channels * net.width,
    )  # fmt: skip


@part
def _collect(net: Network, systems: FlatSystems, work: Arrays, team: I64, phase: int) -> int:
    """Derivatives by features and charges that a pass began with, into ``work.update`` and ``work.d_charges``."""
    n_atoms = systems.numbers.shape[0]
    n_blocks = count_blocks(n_atoms, team_size(team))
    block = take(team, phase)
    while block < n_blocks:
        for i in range(n_atoms * block // n_blocks, n_atoms * (block + 1) // n_blocks):
            _collect_atom(net, i, work)
        block = take(team, phase)
    return meet(team, phase)


@part
def _collect_atom(net: Network, i: int, work: Arrays) -> None:
    width = net.width
    start = i * (net.n_features + net.n_charges) * width
    update = i * net.row_size + 2 * net.n_charges
    if net.per_shift:
        add_channels(net.n_features, width, net.n_shifts, work.update, update, work.d_values, start, net.centres)
        pack_channels(net.n_features, width, net.n_shifts, work.d_values, start, work.update, update)
    else:
        for c in range(net.n_features):
            work.d_values[start + c * width] += work.update[update + c]
            work.update[update + c] = _sum(work.d_values, start + c * width, width)
    for c in range(net.n_charges):
        channel = start + (net.n_features + c) * width
        work.d_charges[i, c] += _sum(work.d_values, channel, width)
        for g in range(width):
            work.d_values[channel + g] = 0.0


@part
def _sum(values: F32, start: int, n: int) -> float:
    total = 0.0
    for k in range(n):
        total += values[start + k]
    return total


@part
def _differentiate_charges(net: Network, stage: int, systems: FlatSystems, work: Arrays) -> None:
    """Derivatives by the update of the charges at a stage, into ``work.update``; the last stage is the charge head."""
    head = stage == net.n_passes - 1
    exact = net.exact or head
    differentiate_equilibration(
        systems, net.by_spin, exact, stage, work.response, work.share, work.weight, work.d_charges, work.d_response
    )
    for i in range(systems.numbers.shape[0]):
        update = i * net.row_size + (CHARGE_HEAD if head else 0)
        for c in range(net.n_charges):
            work.update[update + c] = work.d_charges[i, c]
            work.update[update + net.n_charges + c] = work.d_response[i, c]
