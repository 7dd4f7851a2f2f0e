"""Weights of a network in the order in which the compiled functions read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from aimnet2mult.configs.model import NetworkSettings
from aimnet2mult.engine.matrix import pack, padded
from aimnet2mult.engine.rows import BEYOND
from aimnet2mult.engine.simd import LANES

# what is known of each linear layer: columns of `Network.layers`
DEPTH: Final = 0  # inputs
COLUMNS: Final = 1  # outputs, padded
WEIGHT: Final = 2  # where its packed matrix and its bias begin
BIAS: Final = 3
BACK_DEPTH: Final = 4  # outputs without padding
BACK_COLUMNS: Final = 5  # inputs that derivatives are wanted of, padded
BACK_WEIGHT: Final = 6  # where the packed transposed matrix begins
SLOPES: Final = 7  # derivatives of activations of all layers before, per atom; -1 without activation
LAYER_SIZE: Final = 8


class Perceptrons(NamedTuple):
    """Linear layers of the passes, the energy head and the charge head."""

    weight: NDArray[np.float32]  # packed matrices
    back_weight: NDArray[np.float32]  # packed transposed matrices
    bias: NDArray[np.float32]
    no_bias: int  # where zeros as many as a row is long begin in `bias`
    layers: NDArray[np.int64]  # (layers, LAYER_SIZE)
    starts: NDArray[np.int64]  # (T + 3,) first layer of each perceptron, and the end


class Network(NamedTuple):
    """A network for the compiled functions. F features, C charges, G Gaussians, H combinations, T passes."""

    n_passes: int

    n_features: int
    n_charges: int
    n_shifts: int
    width: int  # G padded
    n_combinations: int
    length_width: int  # H padded
    per_shift: bool  # features (F, G), else (F,)
    by_spin: bool
    exact: bool
    cutoff: float  # Å
    centres: NDArray[np.float32]  # (width,) Å
    exponent: NDArray[np.float32]  # (1,) 1/Å^2
    embedding: NDArray[np.float32]  # (119, F, width), flat
    shift: NDArray[np.float64]  # (119,) eV
    mix: NDArray[np.float32]  # (F + C, G, length_width), flat
    mix_transposed: NDArray[np.float32]  # (F + C, H, width), flat
    perceptrons: Perceptrons
    has_charge_head: bool
    last_width: int  # features that the heads read, padded
    slopes: int  # derivatives of activations kept per atom
    row_size: int  # numbers of the widest row of activations, with room for overlapping vectors


class _Layers:
    """Collects linear layers."""

    def __init__(self) -> None:
        self.forward: list[NDArray[np.float32]] = []
        self.back: list[NDArray[np.float32]] = []
        self.bias: list[NDArray[np.float32]] = []
        self.table: list[list[int]] = []
        self.starts: list[int] = []
        self.slopes = 0

    def add(self, matrices: Sequence[tuple[Tensor, Tensor]], activate: bool, skip: int) -> None:
        """Add a perceptron of (inputs, outputs) matrices and biases; no derivatives of its first `skip` inputs."""
        self.starts.append(len(self.table))
        for number, (weight, bias) in enumerate(matrices):
            matrix = weight.detach().cpu().float().numpy()
            wanted = matrix[skip:] if number == 0 else matrix
            depth, columns = matrix.shape
            active = activate or number < len(matrices) - 1
            row = [depth, padded(columns), _size(self.forward), _size(self.bias)]
            row += [columns, padded(len(wanted)), _size(self.back), self.slopes if active else -1]
            self.table.append(row)
            self.slopes += padded(columns) if active else 0
            self.forward.append(pack(matrix))
            self.back.append(pack(np.ascontiguousarray(wanted.T)))
            self.bias.append(_padded_last(bias.detach().cpu().float().numpy().reshape(-1), padded(columns)))


def _size(arrays: Sequence[NDArray[np.float32]]) -> int:
    return sum(array.size for array in arrays)


def _padded_last(array: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    result = np.zeros((*array.shape[:-1], size), dtype=np.float32)
    result[..., : array.shape[-1]] = array
    return result


def aligned(size: int) -> NDArray[np.float32]:
    """Uninitialised float32 array that begins at a multiple of 64 bytes, as vectors of lanes do best."""
    memory = np.empty(size * 4 + 64, dtype=np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size * 4].view(np.float32)


def _joined(arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    # a vector of lanes may begin at the last number
    result = aligned(_size(arrays) + LANES)
    result[-LANES:] = 0.0
    np.concatenate(arrays, out=result[:-LANES])
    return result


def _own(state: Mapping[str, Tensor], name: str) -> Tensor:
    """A parameter of the one fidelity: stacked over fidelities, with a difference or without."""
    folder, _, kind = name.rpartition(".")
    value = state[name]
    difference = state.get(f"{folder}.difference_{kind}")
    return (value if difference is None else value + difference).squeeze(0)


def _pass(state: Mapping[str, Tensor], prefix: str, order: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Matrices of a message pass whose inputs are put in our `order`."""
    numbers = sorted(int(name.split(".")[-2]) for name in state if name.startswith(f"{prefix}.") and "weight" in name)
    layers = [(state[f"{prefix}.{i}.weight"].T, state[f"{prefix}.{i}.bias"]) for i in numbers]
    return [(layers[0][0][list(order)], layers[0][1]), *layers[1:]]


def _head(state: Mapping[str, Tensor], prefix: str) -> list[tuple[Tensor, Tensor]]:
    n_layers = len({name.split(".")[-2] for name in state if name.startswith(f"{prefix}.")})
    names = [f"{prefix}.{i}" for i in range(n_layers)]
    return [(_own(state, f"{name}.weight"), _own(state, f"{name}.bias").reshape(-1)) for name in names]


def _collect(settings: NetworkSettings, state: Mapping[str, Tensor]) -> _Layers:
    width = settings.nfeature * (settings.aev.nshifts_s if settings.d2features else 1)
    charges = settings.num_charge_channels
    layers = _Layers()
    names = ["first", *(f"middle.{i}" for i in range(len(settings.hidden) - 2)), "last"]
    for number, name in enumerate(names):
        n_inputs = state[f"backbone.{name}.0.weight"].shape[1]
        # here charges come last, so that what overlaps the end of the lengths is overwritten
        n_own = width if number == 0 else width + charges
        order = [*range(width), *range(n_own, n_inputs), *range(width, n_own)]
        activate = settings.activate_passes and number > 0
        # the features of the first pass are constants
        layers.add(_pass(state, f"backbone.{name}", order), activate, skip=width if number == 0 else 0)
    layers.add(_head(state, "energy_mlp.mlp.layers"), activate=False, skip=0)
    layers.add(_head(state, "charges.readouts.0.layers"), activate=False, skip=0)
    layers.starts.append(len(layers.table))
    return layers


def network_weights(
    settings: NetworkSettings, state: Mapping[str, Tensor], centres: Tensor, exponent: float
) -> Network:
    """Bring the state of a network with one fidelity into the form of the compiled functions."""
    n_shifts, n_features = settings.aev.nshifts_s, settings.nfeature
    width, length_width = padded(n_shifts), padded(settings.ncomb_v)
    layers = _collect(settings, state)
    table = np.array(layers.table, dtype=np.int64).reshape(-1, LAYER_SIZE)
    padded_centres = np.full(width, BEYOND, dtype=np.float32)
    padded_centres[:n_shifts] = centres.detach().cpu().float().numpy()
    embedding = _own(state, "backbone.embedding.weight").detach().cpu().float().numpy()
    if settings.d2features:
        embedding = _padded_last(embedding.reshape(-1, n_features, n_shifts), width)
    else:
        embedding = np.repeat(embedding[:, :, None], width, axis=2)
    mix = state["backbone.convolution.mix"].detach().cpu().float().numpy()
    n_elements = embedding.shape[0]
    shift = state["atomic_shift.0.shift"][0] if "atomic_shift.0.shift" in state else np.zeros(n_elements)
    widest = int(max(table[:, DEPTH].max(), table[:, COLUMNS].max()))
    row_size = padded(widest) + max(LANES, width, length_width)
    perceptrons = Perceptrons(
        weight=_joined(layers.forward),
        back_weight=_joined(layers.back),
        bias=_joined([*layers.bias, np.zeros(row_size, dtype=np.float32)]),
        no_bias=_size(layers.bias),
        layers=table,
        starts=np.array(layers.starts, dtype=np.int64),
    )
    return Network(
        n_passes=len(settings.hidden),
        n_features=n_features,
        n_charges=settings.num_charge_channels,
        n_shifts=n_shifts,
        width=width,
        n_combinations=settings.ncomb_v,
        length_width=length_width,
        per_shift=settings.d2features,
        by_spin=settings.num_charge_channels == 2 and settings.equilibration == "charge_spin",
        exact=settings.exact_charges,
        cutoff=settings.aev.rc_s,
        centres=padded_centres,
        exponent=np.array([exponent], dtype=np.float32),
        embedding=_joined([embedding.reshape(-1)]),
        shift=np.asarray(shift, dtype=np.float64),
        mix=_joined([_padded_last(mix, length_width).reshape(-1)]),
        mix_transposed=_joined([_padded_last(mix.transpose(0, 2, 1), width).reshape(-1)]),
        perceptrons=perceptrons,
        has_charge_head=settings.outputs.charges.kwargs.source == "readout",
        last_width=padded(settings.aim_size),
        slopes=layers.slopes,
        row_size=row_size,
    )
