"""Networks as a training step uses them: predictions for a batch, forces of the molecules that have labels included."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from aimnet2mult.models.derivatives import forces_from_energy
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.torch_threads import one_thread
from aimnet2mult.types import Molecules, Prediction

Predictions = dict[str, Tensor]


def step_model(network: nn.Module) -> nn.Module:
    """The quickest model for a network where it stands, of the same parameters and, to rounding, the same numbers.

    Its ``forward(molecules, wanted, create_graph)`` returns ``energy`` (B,) float64 eV without self-atomic energies,
    ``charges`` and ``spin_charges`` (B, N) e and, if `wanted` (B,) bool names any molecule, ``forces`` (B, N, 3) eV/Å,
    zero for the others. With `create_graph` all of it can be differentiated by the weights.
    """
    if isinstance(network, MultiFidelityNetwork) and _kernels_fit(next(network.parameters())):
        from aimnet2mult.training.fast_network import FastNetwork

        return FastModel(FastNetwork(network))
    return PlainModel(network)


def threads_for(model: nn.Module) -> AbstractContextManager[None]:
    """What to run a model of `step_model` in, so that its kernels have the threads that PyTorch had when it was made.

    After every operation that PyTorch shares among threads, those of OpenMP spin for a while, waiting for the next one,
    on the cores that the kernels want: steps on two threads took as long as on one.
    """
    return one_thread() if any(isinstance(part, FastModel) for part in model.modules()) else nullcontext()


def _kernels_fit(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and find_spec("numba") is not None


def prepare_kernels(network: nn.Module, say: Callable[[str], None]) -> None:
    """Compile what the first step would otherwise compile, where that is still to be done, and say so.

    Parameters
    ----------
    network
        The network that is going to be trained.
    say
        Is told what takes time, or what would save it, a line at a time.
    """
    weight = next(network.parameters())
    if weight.device.type == "cpu" and find_spec("numba") is None:
        say("note: with the optional package numba, training on the CPU takes about half the time")
    if not isinstance(network, MultiFidelityNetwork) or not _kernels_fit(weight):
        return
    from aimnet2mult.engine.warmup import TRAINING, compile_kernels, is_compiled

    if is_compiled(TRAINING):
        return
    say("compiling the kernels of training for this machine, once, in about half a minute")
    started = time.monotonic()
    # without a folder to keep them in, they are compiled by the first step, for this run only
    with suppress(OSError):
        compile_kernels(lambda line: None, [TRAINING])
        say(f"the kernels are compiled: {time.monotonic() - started:.0f} s")


class PlainModel(nn.Module):
    """Any network that takes `Molecules` and gives a `Prediction`, by torch's own derivatives.

    On the CPU, where the work counts and not the number of calls, molecules without forces are evaluated apart: the
    second derivatives that forces cost are not worked out for them.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, molecules: Molecules, wanted: Tensor, create_graph: bool) -> Predictions:
        """See `step_model`."""
        groups = [wanted, ~wanted] if molecules.coord.device.type == "cpu" and create_graph else []
        if not all(bool(group.any()) for group in groups):
            groups = []
        if not groups:
            return _evaluate(self.network, molecules, wanted, create_graph)
        rows = [group.nonzero().squeeze(-1) for group in groups]
        parts = [Molecules(*(part.index_select(0, chosen) for part in molecules)) for chosen in rows]
        with_forces, without = (
            _evaluate(self.network, part, wanted.index_select(0, chosen), create_graph)
            for part, chosen in zip(parts, rows, strict=True)
        )
        without["forces"] = torch.zeros_like(parts[1].coord)
        back = torch.cat(rows).argsort()
        return {key: torch.cat([with_forces[key], without[key]]).index_select(0, back) for key in with_forces}


class FastModel(nn.Module):
    """A `FastNetwork`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, molecules: Molecules, wanted: Tensor, create_graph: bool) -> Predictions:
        """See `step_model`."""
        announced = wanted if create_graph else torch.zeros_like(wanted)
        return _evaluate(lambda moved: self.network(moved, announced), molecules, wanted, create_graph)


def _evaluate(
    network: Callable[[Molecules], Prediction], molecules: Molecules, wanted: Tensor, create_graph: bool
) -> Predictions:
    need_forces = bool(wanted.any())
    if need_forces:
        molecules = molecules._replace(coord=molecules.coord.detach().requires_grad_(True))
    with torch.set_grad_enabled(need_forces or create_graph):
        output = network(molecules)
        result = {"energy": output.energy, "charges": output.charges, "spin_charges": output.spin_charges}
        if need_forces:
            result["forces"] = forces_from_energy(output.energy[wanted], molecules.coord, create_graph=create_graph)
    return result if create_graph else {key: value.detach() for key, value in result.items()}
