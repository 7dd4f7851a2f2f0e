"""Does the novelty score find structures that a potential does not know?

    python benchmarks/multi_fidelity.py --budget 600 --seeds 1 2 3    # trains, and holds molecules back
    python benchmarks/novelty.py --seeds 1 2 3

For one fidelity of the networks that `multi_fidelity.py` left (weights of the last epoch), the statistics are fitted to
its training structures as a training run does it. Judged are molecules never seen, with their errors, and foreign
structures: the molecules of the G2 set of ASE with the elements of the fidelity, whose atoms are shaken.

Printed per seed: the share of structures with a novelty above 1 among those of training, never seen, and foreign; the
rank correlation of novelty and error per atom on molecules never seen; and areas under the ROC curve (0.5: chance,
1: perfect) of the novelty as a sign of an error above --error, and as a sign of a foreign structure among molecules
never seen.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.collections import g2
from scipy.stats import mannwhitneyu, spearmanr

from aimnet2mult.datasets.reader import FidelitySource, MultiFidelityDataset
from aimnet2mult.datasets.sae_file import read_sae, sae_array
from aimnet2mult.models.files import fill_network, load_weights
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.models.novelty import Novelty
from aimnet2mult.training.checkpoints import read_state
from aimnet2mult.training.collate import Collate, make_loader
from aimnet2mult.training.novelty import STRUCTURES, Features, features_of, statistics_of
from aimnet2mult.training.sampler import evaluation_batches
from aimnet2mult.training.step import predict
from aimnet2mult.training.step_model import step_model
from aimnet2mult.types import Molecules
from aimnet2mult.units import MILLI

SHAKES = (0.1, 0.2, 0.3)  # Å


class Judged(NamedTuple):
    """Structures of a file."""

    features: list[Features]
    error: np.ndarray  # meV/atom


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/multi_fidelity"), help="folder of multi_fidelity.py")
    parser.add_argument("--fidelity", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--error", type=float, default=50.0, help="meV/atom: what counts as wrong")
    args = parser.parse_args()
    for seed in args.seeds:
        _one(args, args.work / f"seed{seed}", seed)


def _one(args: argparse.Namespace, folder: Path, seed: int) -> None:
    run, fidelity = folder / "all", args.fidelity
    weights = load_weights(run / "model.pt")
    network = fill_network(MultiFidelityNetwork(weights.config), read_state(run / "checkpoints" / "last.pt")["ema"])
    sae = sae_array(read_sae(run / f"sae_fid{fidelity}.yaml"))
    seen, unseen = (_judge(network, folder / f"{part}{fidelity}_all.h5", fidelity, sae) for part in ("train", "test"))
    novelty = Novelty(statistics_of(seen.features))
    inside, held = _scores(novelty, seen.features), _scores(novelty, unseen.features)
    known = set(weights.fidelities[fidelity].elements)
    wrong = unseen.error > args.error
    print(
        f"seed {seed}: above 1 in training {_percent(inside)}, never seen {_percent(held)}; "
        f"rank correlation with the error {spearmanr(held, unseen.error)[0]:.2f}; "
        f"area for errors above {args.error:g} meV/atom {_area(held[~wrong], held[wrong]):.2f}"
    )
    for width in SHAKES:
        foreign = _scores(novelty, [_features(network, _shaken(known, width), fidelity)])
        print(f"  G2 molecules shaken by {width} Å: above 1 {_percent(foreign)}, area {_area(held, foreign):.2f}")


def _judge(network: MultiFidelityNetwork, path: Path, fidelity: int, sae: np.ndarray) -> Judged:
    """Features and errors of at most as many structures as statistics are fitted to."""
    dataset = MultiFidelityDataset({fidelity: FidelitySource(fidelity, "judged", (path,))}, ["energy"], "error", 512)
    rows = np.sort(np.random.default_rng(0).permutation(len(dataset))[:STRUCTURES])
    order = evaluation_batches(dataset.natoms_of, rows, 128)
    features, errors = [], []
    for batch in make_loader(dataset, order, Collate({fidelity: sae}, ["energy"]), 0):
        features.append(features_of(network, batch.molecules))
        energy = predict(step_model(network), batch, False, create_graph=False)["energy"].detach()
        natoms = (batch.molecules.numbers > 0).sum(1)
        errors.append(MILLI * (energy - batch.labels["energy"]).abs() / natoms)
    return Judged(features, torch.cat(errors).numpy())


def _shaken(known: set[int], width: float) -> list[Atoms]:
    random = np.random.default_rng(0)
    structures = [molecule(name) for name in g2.names]
    structures = [atoms for atoms in structures if set(atoms.numbers) <= known and len(atoms) > 2]
    for atoms in structures:
        atoms.positions += random.normal(scale=width, size=atoms.positions.shape)
    return structures


def _features(network: MultiFidelityNetwork, structures: list[Atoms], fidelity: int) -> Features:
    n_slots = max(len(atoms) for atoms in structures)
    coord, numbers = np.zeros((len(structures), n_slots, 3)), np.zeros((len(structures), n_slots), dtype=np.int64)
    for row, atoms in enumerate(structures):
        coord[row, : len(atoms)], numbers[row, : len(atoms)] = atoms.positions, atoms.numbers
    odd = torch.from_numpy(numbers.sum(1) % 2)
    batch = Molecules(
        torch.from_numpy(coord),
        torch.from_numpy(numbers),
        torch.zeros(len(structures)),
        1.0 + odd,
        torch.full((len(structures),), fidelity),
    )
    return features_of(network, batch)


def _scores(novelty: Novelty, features: list[Features]) -> np.ndarray:
    return torch.cat([novelty(*part) for part in features]).numpy()


def _area(usual: np.ndarray, strange: np.ndarray) -> float:
    """Probability that a strange structure has the higher score: the area under the ROC curve."""
    return float(mannwhitneyu(strange, usual).statistic) / len(usual) / len(strange)


def _percent(scores: np.ndarray) -> str:
    return f"{100 * (scores > 1.0).mean():.0f} %"


if __name__ == "__main__":
    main()
