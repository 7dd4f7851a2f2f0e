"""Small calculations that between them call every compiled function of the engine, with the types of real use.

Those of training stand in `exercise_training`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from aimnet2mult.configs.model import ModelConfig
from aimnet2mult.engine.coulomb import Coulomb
from aimnet2mult.engine.dispersion import Dispersion, ElementTables
from aimnet2mult.engine.dispersion_sums import Range
from aimnet2mult.engine.distances import make_whitening, squared_distances
from aimnet2mult.engine.edges import derivatives, find_edges
from aimnet2mult.engine.engine import NetworkEngine
from aimnet2mult.engine.exercise_training import environments, perceptrons, products
from aimnet2mult.engine.reciprocal import reciprocal_sum
from aimnet2mult.engine.records import FlatSystems
from aimnet2mult.engine.warmup import EVALUATION, TRAINING
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.physics.damping import DampingParameters


class Exercise(NamedTuple):
    """One of the calculations."""

    name: str
    run: Callable[[], None]
    purpose: str = EVALUATION  # or TRAINING


def exercises() -> list[Exercise]:
    """All of them, those of one purpose together."""
    return [
        Exercise("neighbours", _neighbours),
        Exercise("dispersion", _dispersion),
        Exercise("Coulomb energies", _coulomb),
        Exercise("energies of the network", lambda: _network(False)),
        Exercise("derivatives of the network", lambda: _network(True)),
        Exercise("training: environments", environments, TRAINING),
        Exercise("training: perceptrons", perceptrons, TRAINING),
        Exercise("training: gradients of weights", products, TRAINING),
    ]


def _neighbours() -> None:
    coord = np.random.default_rng(0).uniform(0.0, 5.0, (6, 3))
    for cell in (np.zeros((3, 3)), 5.0 * np.eye(3)):
        edges, _ = find_edges(coord, cell, 4.0)
        derivatives(edges, np.zeros_like(edges.vector), np.array([0, len(coord)]))


def _dispersion() -> None:
    tables = ElementTables(
        np.array([-1, 0]), np.ones(1), np.ones(1), np.zeros(1, np.int64), np.zeros(1), np.ones((1, 1))
    )
    reach = Range(9.0, 1.0)
    term = Dispersion(tables, DampingParameters(1.0, 1.0, 0.4, 4.0, 0.0), reach, reach)
    term(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), np.array([1, 1]), np.zeros((3, 3)), True)


def _coulomb() -> None:
    coord = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    for method in ("simple", "dsf"):
        Coulomb(method, 4.0, 0.2, 8.0)(coord, np.ones(2), np.zeros((3, 3)))
    reciprocal_sum(coord, np.ones(2), 5.0 * np.eye(3), 0.5, 3.0)


def _network(gradient: bool) -> None:
    config = _config()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        network = MultiFidelityNetwork(config).float()
    basis = network.backbone.basis
    engine = NetworkEngine(config.kwargs, network.state_dict(), basis.centres, basis.exponent)
    systems = FlatSystems(np.array([8, 1, 1]), np.array([0, 3]), np.zeros(1), np.ones(1))
    edges, _ = find_edges(np.array([[0.0, 0.0, 0.1], [0.0, 0.8, 0.7], [0.0, -0.8, 0.7]]), np.zeros((3, 3)), 5.0)
    forward = engine.forward(systems, edges)
    whitening = make_whitening(np.zeros((1, 8), np.float32), np.eye(8, dtype=np.float32)[None])
    squared_distances(forward.features, np.zeros(3, np.int64), whitening)
    if gradient:
        engine.backward(forward, np.zeros_like(forward.charges))


def _config() -> ModelConfig:
    """A small network; the compiled functions are the same for all sizes and kinds."""
    heads = "aimnet2mult.models.heads"
    outputs: dict[str, Any] = {
        "energy_mlp": {"class": f"{heads}.EnergyMLP", "kwargs": {"hidden": [8]}},
        "charges": {"class": f"{heads}.Charges", "kwargs": {"hidden": [8]}},
        "atomic_sum": {"class": f"{heads}.AtomicSum"},
    }
    sizes = {"nfeature": 2, "ncomb_v": 2, "aim_size": 8, "hidden": [[8], [8], [8]], "aev": {"nshifts_s": 4}}
    kwargs = {"num_fidelities": 1, "fidelity_embedding": "separate", "outputs": outputs} | sizes
    return ModelConfig.model_validate({"class": "aimnet2mult.models.network.MultiFidelityNetwork", "kwargs": kwargs})
