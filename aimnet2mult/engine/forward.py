"""The network from edges to energies and charges, in one compiled function."""

from __future__ import annotations

from typing import Final

from aimnet2mult.engine.basis import describe_edges, expand_basis, fill_gaussians
from aimnet2mult.engine.convolution import sum_neighbors
from aimnet2mult.engine.equilibration import equilibrate
from aimnet2mult.engine.jit import F64, I64, compiled, part
from aimnet2mult.engine.layers import run_perceptron
from aimnet2mult.engine.lengths import combine
from aimnet2mult.engine.records import Edges, FlatSystems
from aimnet2mult.engine.rows import add_channels, copy, pack_channels
from aimnet2mult.engine.simd import LANES
from aimnet2mult.engine.team import meet, take, team_size
from aimnet2mult.engine.weights import Network
from aimnet2mult.engine.workspace import MAX_ROWS, Arrays, Scratch

# where the outputs of the charge head stand in a row, after the energy
CHARGE_HEAD: Final = LANES


@compiled
def compute_energies(
    net: Network, systems: FlatSystems, edges: Edges, work: Arrays, scratch: Scratch, team: I64, rank: int, energy: F64
) -> None:
    """Fill `energy` (B,) eV and ``work.charges`` (n, C) e, and keep what the derivatives need in `work`.

    All threads of a team call this, each with a scratch and a rank of its own.
    """
    phase = _prepare(net, systems, edges, work, team, 0)
    for number in range(net.n_passes):
        phase = _run_pass(net, number, systems, edges, work, scratch, team, phase)
        if number < net.n_passes - 1:
            if rank == 0:
                move_charges(net, number, systems, work)
            phase = meet(team, phase)
            phase = _advance(net, number, systems, work, team, phase)
    if rank == 0:
        _finish(net, systems, work, energy)


@part
def count_blocks(n_atoms: int, n_threads: int) -> int:
    """Blocks of at most `MAX_ROWS` atoms, as many for each thread; none if the work was given up."""
    if n_threads < 0:
        return 0
    return n_threads * ((n_atoms + n_threads * MAX_ROWS - 1) // (n_threads * MAX_ROWS))


@part
def _prepare(net: Network, systems: FlatSystems, edges: Edges, work: Arrays, team: I64, phase: int) -> int:
    """Basis of the edges, and the features and charges with which the first pass begins."""
    n_atoms = systems.numbers.shape[0]
    n_blocks = count_blocks(n_atoms, team_size(team))
    block = take(team, phase)
    while block < n_blocks:
        first, last = n_atoms * block // n_blocks, n_atoms * (block + 1) // n_blocks
        _prepare_block(net, systems, edges, first, last, work)
        block = take(team, phase)
    return meet(team, phase)


@part
def _prepare_block(net: Network, systems: FlatSystems, edges: Edges, first: int, last: int, work: Arrays) -> None:
    begin, end = edges.start[first], edges.start[last]
    describe_edges(edges.vector, begin, end, net.cutoff, work.edge)
    fill_gaussians(work.edge, begin, end - begin, net.centres, net.exponent, net.width // LANES, work.gaussians)
    size = net.n_features * net.width
    padded = size + net.n_charges * net.width
    for i in range(first, last):
        copy(size // LANES, net.embedding, systems.numbers[i] * size, work.values, i * padded)
        for c in range(net.n_charges):
            work.charges[i, c] = 0.0


@part
def _run_pass(
    net: Network, number: int, systems: FlatSystems, edges: Edges, work: Arrays, scratch: Scratch, team: I64, phase: int
) -> int:
    """A message pass; the last one includes the heads."""
    n_atoms = systems.numbers.shape[0]
    n_blocks = count_blocks(n_atoms, team_size(team))
    block = take(team, phase)
    while block < n_blocks:
        first, last = n_atoms * block // n_blocks, n_atoms * (block + 1) // n_blocks
        for i in range(first, last):
            _describe_atom(net, number, n_atoms, i, edges, work, scratch, (i - first) * net.row_size)
        _run_block(net, number, n_atoms, first, last - first, work, scratch)
        block = take(team, phase)
    return meet(team, phase)


@part
def _describe_atom(
    net: Network, number: int, n_atoms: int, i: int, edges: Edges, work: Arrays, scratch: Scratch, row: int
) -> None:
    """Inputs of a pass for atom i: own features, scalars and lengths of its surroundings, own charges."""
    n_charges = net.n_charges if number > 0 else 0
    n_channels = net.n_features + n_charges
    stride = (net.n_features + net.n_charges) * net.width
    start = number * n_atoms * stride
    begin = edges.start[i]
    n_edges = edges.start[i + 1] - begin
    expand_basis(work.edge, work.gaussians, begin, n_edges, net.width // LANES, scratch.basis)
    sum_neighbors(
        n_channels, net.width, edges.neighbor, begin, n_edges, work.values, start, stride, scratch.basis, scratch.sums
    )
    each = net.n_shifts if net.per_shift else 1
    pack_channels(net.n_features, net.width, each, work.values, start + i * stride, scratch.rows, row)
    scalars = row + net.n_features * each
    lengths = scalars + n_channels * net.n_shifts
    combine(
        n_channels, net.n_shifts, net.width, net.n_combinations, net.length_width // LANES, scratch.sums, net.mix,
        work.combinations, (number * n_atoms + i) * (net.n_features + net.n_charges) * 3 * net.length_width,
        scratch.rows, scalars, lengths,
    )  # fmt: skip
    charges = lengths + n_channels * net.n_combinations
    for c in range(n_charges):
        scratch.rows[charges + c] = work.values[start + i * stride + (net.n_features + c) * net.width]


@part
def _run_block(
    net: Network, number: int, n_atoms: int, first: int, n_rows: int, work: Arrays, scratch: Scratch
) -> None:
    """Outputs of a message pass, or of the heads after the last, into ``work.update``."""
    area = MAX_ROWS * net.row_size
    if number < net.n_passes - 1:
        run_perceptron(
            net.perceptrons, number, n_atoms, first, n_rows, net.row_size, scratch.rows, 0 * area, 1 * area,
            work.update, first * net.row_size, work.slopes,
        )  # fmt: skip
        return
    run_perceptron(
        net.perceptrons, number, n_atoms, first, n_rows, net.row_size, scratch.rows, 0 * area, 1 * area,
        scratch.rows, 2 * area, work.slopes,
    )  # fmt: skip
    for row in range(n_rows):
        source, target = 2 * area + row * net.row_size, (first + row) * net.last_width
        copy(net.last_width // LANES, scratch.rows, source, work.features, target)
    for head in range(2 if net.has_charge_head else 1):
        copy(n_rows * net.row_size // LANES, scratch.rows, 2 * area, scratch.rows, 0)
        run_perceptron(
            net.perceptrons, net.n_passes + head, n_atoms, first, n_rows, net.row_size, scratch.rows, 0 * area,
            1 * area, work.update, first * net.row_size + head * CHARGE_HEAD, work.slopes,
        )  # fmt: skip


@part
def move_charges(net: Network, stage: int, systems: FlatSystems, work: Arrays) -> None:
    """Add the update of a stage to the charges and equilibrate them; the last stage is the charge head."""
    head = stage == net.n_passes - 1
    for i in range(systems.numbers.shape[0]):
        update = i * net.row_size + (CHARGE_HEAD if head else 0)
        for c in range(net.n_charges):
            work.charges[i, c] += work.update[update + c]
            work.response[stage, i, c] = work.update[update + net.n_charges + c]
    exact = net.exact or head
    equilibrate(systems, net.by_spin, exact, stage, work.charges, work.response, work.share, work.weight)


@part
def _advance(net: Network, number: int, systems: FlatSystems, work: Arrays, team: I64, phase: int) -> int:
    """Features and charges with which the next pass begins."""
    n_atoms = systems.numbers.shape[0]
    n_blocks = count_blocks(n_atoms, team_size(team))
    block = take(team, phase)
    while block < n_blocks:
        first, last = n_atoms * block // n_blocks, n_atoms * (block + 1) // n_blocks
        _advance_block(net, number, n_atoms, first, last, work)
        block = take(team, phase)
    return meet(team, phase)


@part
def _advance_block(net: Network, number: int, n_atoms: int, first: int, last: int, work: Arrays) -> None:
    stride = (net.n_features + net.n_charges) * net.width
    for i in range(first, last):
        before, after = (number * n_atoms + i) * stride, ((number + 1) * n_atoms + i) * stride
        copy(net.n_features * net.width // LANES, work.values, before, work.values, after)
        update = i * net.row_size + 2 * net.n_charges
        if net.per_shift:
            add_channels(net.n_features, net.width, net.n_shifts, work.update, update, work.values, after, net.centres)
        else:
            for k in range(net.n_features * net.width):
                work.values[after + k] += work.update[update + k // net.width]
        for c in range(net.n_charges):
            for g in range(net.width):
                work.values[after + (net.n_features + c) * net.width + g] = work.charges[i, c]


@part
def _finish(net: Network, systems: FlatSystems, work: Arrays, energy: F64) -> None:
    """Charges of the output head and sums of atomic energies."""
    if net.has_charge_head:
        move_charges(net, net.n_passes - 1, systems, work)
    for b in range(energy.shape[0]):
        total = 0.0
        for i in range(systems.offsets[b], systems.offsets[b + 1]):
            total += work.update[i * net.row_size] + net.shift[systems.numbers[i]]
        energy[b] = total
