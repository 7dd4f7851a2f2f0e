"""Molecules per second of a training step, and where its time goes.

    python benchmarks/training_speed.py

CPU time of one thread: whole steps (forward, forces, loss, gradients, clipping, AdamW, running mean of the weights) on
molecules of 12 atoms with random labels, for the network of the published size and for the small one of the example,
by the compiled kernels and by torch alone. Nothing but this package is measured; `speed.py` compares with others.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.build import molecule
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from aimnet2mult.configs.model import load_model_config
from aimnet2mult.configs.train import OptimizerSettings
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.training import threads
from aimnet2mult.training.loss import MTLoss
from aimnet2mult.training.memory import keep_freed_memory
from aimnet2mult.training.optim import build_optimizer
from aimnet2mult.training.step import has_forces, predict, targets
from aimnet2mult.training.step_model import PlainModel, step_model
from aimnet2mult.types import Batch, Molecules

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = {
    "published size, 3 fidelities": (ROOT / "aimnet2mult/configs/model.yaml", 3),
    "published size, 1 fidelity": (ROOT / "aimnet2mult/configs/model.yaml", 1),
    "small (example), 3 fidelities": (ROOT / "examples/end_to_end_example/config/model.yaml", 3),
}
LABELS = ("all four labels", "a third with energies only", "energies only")
NAMES = ("C6H6", "CH3CH2OCH3")  # of 12 atoms each
FUNCTIONS = "aimnet2mult.train.loss"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=9, help="steps of which the median is taken")
    parser.add_argument("--batch", type=int, nargs="+", default=(64, 256), help="molecules per batch")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    print(f"{'network':30} {'batch':>5}  {'labels':27} {'kernels':>8} {'torch':>8}   molecules/s")
    for name, (path, n_fidelities) in NETWORKS.items():
        network = make_network(path, n_fidelities)
        steps = [make_step(network, model) for model in (step_model(network), PlainModel(network))]
        for size in args.batch:
            for labels in LABELS:
                batch = make_batch(size, n_fidelities, labels)
                rates = [size / seconds_per_step(step, batch, args.steps) for step in steps]
                print(f"{name:30} {size:5}  {labels:27} {rates[0]:8.0f} {rates[1]:8.0f}", flush=True)
    for name, (path, n_fidelities) in list(NETWORKS.items())[::2]:
        network = make_network(path, n_fidelities)
        step = make_step(network, step_model(network))
        print(f"\nwhere the time goes: {name}, batch of {args.batch[0]}, all four labels")
        profile(step, make_batch(args.batch[0], n_fidelities, LABELS[0]), args.steps)


def make_network(path: Path, n_fidelities: int) -> MultiFidelityNetwork:
    """A network with its first weights."""
    config = load_model_config(path)
    kwargs = config.kwargs.model_copy(update={"num_fidelities": n_fidelities})
    torch.manual_seed(0)
    return MultiFidelityNetwork(config.model_copy(update={"kwargs": kwargs}))


def make_batch(size: int, n_fidelities: int, labels: str) -> Batch:
    """Molecules with random displacements and random labels."""
    generator = np.random.default_rng(0)
    atoms = [molecule(NAMES[i % len(NAMES)]) for i in range(size)]
    n = len(atoms[0])
    coord = np.stack([one.positions for one in atoms]) + generator.normal(scale=0.05, size=(size, n, 3))
    shapes = {"energy": (size,), "forces": (size, n, 3), "charges": (size, n), "spin_charges": (size, n)}
    values = {key: generator.normal(scale=0.1, size=shape) for key, shape in shapes.items()}
    other = torch.full((size,), labels != LABELS[2])
    if labels == LABELS[1]:
        other[::3] = False
    molecules = Molecules(
        coord=torch.from_numpy(coord).float(),
        numbers=torch.from_numpy(np.stack([one.numbers for one in atoms])),
        charge=torch.zeros(size),
        mult=torch.ones(size),
        fidelity=torch.arange(size) % n_fidelities,
    )
    given = {key: torch.from_numpy(value).to(torch.float64 if key == "energy" else torch.float32) for key, value in
             values.items()}  # fmt: skip
    masks = {key: torch.ones_like(other) if key == "energy" else other for key in shapes}
    return Batch(molecules, given, masks, [str(i) for i in range(size)])


def make_step(network: MultiFidelityNetwork, model: nn.Module) -> Callable[[Batch], None]:
    """What a trainer does with a batch."""
    components: dict[str, dict[str, Any]] = {"energy": {"fn": f"{FUNCTIONS}.energy_loss_fn"}}
    components |= {
        key: {"fn": f"{FUNCTIONS}.peratom_loss_fn", "kwargs": {"key_true": key, "key_pred": key}}
        for key in ("forces", "charges", "spin_charges")
    }
    loss, optimizer = MTLoss(components), build_optimizer(network, OptimizerSettings.model_validate({}))
    parameters, update_mean = list(network.parameters()), get_ema_multi_avg_fn(0.999)
    mean = [parameter.detach().clone() for parameter in parameters]

    def step(batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        value = loss(predict(model, batch, has_forces(batch), create_graph=True), targets(batch))
        value.total.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
        torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, norm, foreach=True)
        optimizer.step()
        update_mean(mean, parameters, None)

    return step


def seconds_per_step(step: Callable[[Batch], None], batch: Batch, n_steps: int) -> float:
    """Median of the CPU time."""
    for _ in range(2):
        step(batch)
    times = []
    for _ in range(n_steps):
        start = time.process_time()
        step(batch)
        times.append(time.process_time() - start)
    return statistics.median(times)


def profile(step: Callable[[Batch], None], batch: Batch, n_steps: int) -> None:
    """Print the time of each kernel, and what is left for everything else."""
    spent: dict[str, float] = defaultdict(float)
    original = threads.Threads.run

    def timed(self: threads.Threads, spans: Any, kernel: Callable[..., Any], *arguments: object) -> list[Any]:
        start = time.process_time()
        results = original(self, spans, kernel, *arguments)
        spent[kernel.__name__] += time.process_time() - start
        return results

    seconds_per_step(step, batch, 1)
    threads.Threads.run = timed  # type: ignore[method-assign]
    start = time.process_time()
    for _ in range(n_steps):
        step(batch)
    total = time.process_time() - start
    threads.Threads.run = original  # type: ignore[method-assign]
    spent["all else"] = total - sum(spent.values())
    for name, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"  {name:22} {1e3 * seconds / n_steps:7.1f} ms {seconds / total:5.0%}")


if __name__ == "__main__":
    main()
