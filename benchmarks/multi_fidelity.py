"""Does multi-fidelity training pay? All fidelities together against one fidelity alone, at equal CPU time.

    python benchmarks/multi_fidelity.py --budget 600 --seeds 1 2 3

Each seed holds back a fifth of the molecules of the judged fidelity and a fifth of the others, in every
fidelity. Two networks of the same architecture and recipe (those of the example) are then trained from the
command line with one thread each: one on all fidelities, one on the judged fidelity alone. The cost of a step
is measured for all of them before any training starts, so that all get the same CPU time, whatever else the
machine does later. The schedule ends with the budget in both.

Both ends of each training are judged: the weights of its best validation epoch and those of its last. What is
trained alone overfits, so it is given the better of the two, chosen by its errors on the judged molecules; what is
trained together gets those of the last epoch, as in the recipe.

Errors on the molecules never seen, per fidelity:
  MAE      mean of |dE| per atom over all samples, meV/atom (a few ions and radicals dominate it)
  median   over molecules, of their mean |dE| per atom, meV/atom
  relative mean of |dE - mean of dE over the samples of the molecule|, kcal/mol
Prints a table and writes one JSON line per network to <work>/results.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml

from aimnet2mult.datasets.reader import FidelitySource, MultiFidelityDataset
from aimnet2mult.datasets.sae_file import read_sae, sae_array
from aimnet2mult.models.files import fill_network, load_weights
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.training.checkpoints import read_state
from aimnet2mult.training.collate import Collate, make_loader
from aimnet2mult.training.sampler import evaluation_batches
from aimnet2mult.training.step import has_forces, predict
from aimnet2mult.training.step_model import step_model
from aimnet2mult.units import EV_PER_KCAL_MOL, MILLI

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "end_to_end_example"
CALIBRATION = (40, 160)  # steps of the two short runs that measure the cost of a step


@dataclass(frozen=True)
class Job:
    """One training: its data are written, its configuration is a file."""

    seed: int
    run: str  # all or alone
    folder: Path
    settings: Path
    tests: dict[int, Path]  # by fidelity of this training
    names: dict[int, str]


@dataclass(frozen=True)
class Result:
    """Errors of one network at one fidelity on molecules never seen."""

    seed: int
    run: str
    weights: str  # best or last
    fidelity: str
    samples: int
    molecules: int
    mae: float  # meV/atom
    median: float  # meV/atom
    relative: float  # kcal/mol
    forces: float | None  # meV/Å
    steps: int
    cpu_seconds: float


def main() -> None:
    """Run the benchmark."""
    args = _arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    jobs = [_prepare(args, seed, run) for seed in args.seeds for run in ("all", "alone")]
    with ThreadPoolExecutor(args.jobs) as pool:
        steps = list(pool.map(lambda job: _affordable_steps(job, args), jobs))
        print("all costs measured, now training", flush=True)
        results = [row for rows in pool.map(lambda job, n: _one(job, n, args), jobs, steps) for row in rows]
    with (args.work / "results.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(asdict(row)) + "\n" for row in results)
    _report(results, args)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=EXAMPLE / "config" / "train.yaml", help="recipe and data")
    parser.add_argument("--judge", type=int, default=1, help="fidelity that is also trained alone")
    parser.add_argument("--budget", type=float, default=600.0, help="CPU seconds of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side, one thread each")
    parser.add_argument("--limit", type=int, nargs="*", default=[], help="at most so many samples per fidelity")
    parser.add_argument("--work", type=Path, default=Path("runs/multi_fidelity"))
    parser.add_argument("overrides", nargs="*", help="key.sub=value for both trainings")
    return parser.parse_args()


def _prepare(args: argparse.Namespace, seed: int, run: str) -> Job:
    """Write the data and the configuration of one training."""
    config = yaml.safe_load(args.config.read_text(encoding="utf-8"))
    fidelities = config["data"]["fidelities"]
    sources = {i: (args.config.parent / f["files"]).resolve() for i, f in fidelities.items()}
    folder = args.work.resolve() / f"seed{seed}"
    held = _held_back(sources, args.judge, seed)
    kept = {0: args.judge} if run == "alone" else {i: i for i in fidelities}
    for i, source in sources.items():
        limit = args.limit[i] if args.limit else None
        _write_part(source, folder / f"train{i}_{run}.h5", lambda m: ~np.isin(m, held), limit, seed)
        _write_part(source, folder / f"test{i}_{run}.h5", lambda m: np.isin(m, held), None, seed)
    names = {new: fidelities[old]["name"] for new, old in kept.items()}
    tests = {new: folder / f"test{old}_{run}.h5" for new, old in kept.items()}
    return Job(seed, run, folder, _settings(config, args, folder, run, seed, kept), tests, names)


def _affordable_steps(job: Job, args: argparse.Namespace) -> int:
    """How many training steps the budget pays for, from two short runs."""
    first, second = (
        _train(job.settings, job.folder / f"{job.run}_cost{steps}", steps, args.overrides) for steps in CALIBRATION
    )
    per_step = (second - first) / (CALIBRATION[1] - CALIBRATION[0])
    steps = max(CALIBRATION[1], int((args.budget - first) / per_step))
    print(f"seed {job.seed}, {job.run}: {MILLI * per_step:.1f} ms per step, {steps} steps", flush=True)
    return steps


def _one(job: Job, steps: int, args: argparse.Namespace) -> list[Result]:
    """Train and judge one network."""
    cpu = _train(job.settings, job.folder / job.run, steps, args.overrides)
    return [
        Result(
            seed=job.seed,
            run=job.run,
            weights=which,
            fidelity=job.names[i],
            steps=steps,
            cpu_seconds=round(cpu, 1),
            **row,
        )
        for which in ("best", "last")
        for i, row in _errors(job.folder / job.run, which, job.tests, job.names).items()
    ]


def _held_back(sources: dict[int, Path], judge: int, seed: int) -> np.ndarray:
    """A fifth of the judged fidelity's molecules and a fifth of all others."""
    molecules = {i: np.unique(np.concatenate(_molecules(path))) for i, path in sources.items()}
    random = np.random.default_rng(seed)
    judged = molecules[judge]
    others = np.setdiff1d(np.unique(np.concatenate(list(molecules.values()))), judged)
    return np.concatenate([random.choice(part, len(part) // 5, replace=False) for part in (judged, others)])


def _molecules(path: Path) -> list[np.ndarray]:
    with h5py.File(path) as file:
        return [group["structure_id"][:] // 1000 for group in file.values()]


def _write_part(source: Path, target: Path, choose: Any, limit: int | None, seed: int) -> None:
    """Copy the samples of the chosen molecules; with `limit`, of as many of these molecules as give so many."""
    allowed = np.unique(np.concatenate(_molecules(source)))
    allowed = allowed[choose(allowed)]
    if limit is not None:
        ids, counts = np.unique(np.concatenate(_molecules(source)), return_counts=True)
        order = np.random.default_rng(seed).permutation(np.isin(ids, allowed).nonzero()[0])
        allowed = ids[order][np.cumsum(counts[order]) <= limit]
    target.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(source) as old, h5py.File(target, "w") as new:
        for name, group in old.items():
            rows = np.isin(group["structure_id"][:] // 1000, allowed)
            if rows.any():
                part = new.create_group(name)
                for key, column in group.items():
                    part[key] = column[:][rows]


def _settings(
    config: dict[str, Any], args: argparse.Namespace, folder: Path, run: str, seed: int, kept: dict[int, int]
) -> Path:
    """Training and model configuration of one run, from those of the recipe."""
    data, loss = config["data"], config["loss"]["kwargs"]["components"]
    model = yaml.safe_load((args.config.parent / config["model"]).read_text(encoding="utf-8"))
    model["kwargs"]["num_fidelities"] = len(kept)
    data["fidelities"] = {
        new: {"name": data["fidelities"][old]["name"], "files": str(folder / f"train{old}_{run}.h5")}
        for new, old in kept.items()
    }
    if len(kept) == 1:
        data.pop("fidelity_weights", None)
        with h5py.File(folder / f"train{args.judge}_{run}.h5") as file:
            there = {key for group in file.values() for key in group}
        data["y"] = [label for label in data["y"] if label in there]
        config["loss"]["kwargs"]["components"] = {k: v for k, v in loss.items() if k in there}
    data["test_fraction"] = 0.0
    config["run"] = {"name": run, "folder": run, "seed": seed, "threads": 1}
    config["model"] = f"model_{run}.yaml"
    config["logging"] = {"plots": False, "tensorboard": False}
    config["compile"] = {"enabled": False}
    config["trainer"]["early_stopping"] = None
    (folder / f"model_{run}.yaml").write_text(yaml.safe_dump(model), encoding="utf-8")
    path = folder / f"train_{run}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def _train(settings: Path, folder: Path, steps: int, overrides: Sequence[str]) -> float:
    """Train for `steps` in at most 20 epochs; CPU seconds of the whole command."""
    epochs = min(20, max(1, steps // CALIBRATION[0] // 2))
    command = [sys.executable, "-m", "aimnet2mult.training", str(settings), "--fresh", f"run.folder={folder}"]
    command += [f"trainer.epochs={epochs}", f"data.samplers.train.batches_per_epoch={steps // epochs}", *overrides]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        usage = _wait(process)
    if process.returncode != 0:
        raise SystemExit(f"training failed, see {log.name}")
    return usage


def _wait(process: subprocess.Popen[bytes]) -> float:
    """CPU seconds of one child; `wait4` tells them apart when several run side by side."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime


def _errors(folder: Path, which: str, tests: dict[int, Path], names: dict[int, str]) -> dict[int, dict[str, Any]]:
    weights = load_weights(folder / "model.pt")
    state = read_state(folder / "checkpoints" / f"{which}.pt")["ema"]
    model = step_model(fill_network(MultiFidelityNetwork(weights.config), state).eval())
    labels = weights.fidelities[0].labels if len(tests) == 1 else ["energy", "forces"]
    dataset = MultiFidelityDataset(
        {i: FidelitySource(i, names[i], (p,)) for i, p in tests.items()}, labels, "error", 512
    )
    sae = {i: sae_array(read_sae(folder / f"sae_fid{i}.yaml")) for i in tests}
    order = evaluation_batches(dataset.natoms_of, np.arange(len(dataset)), 128)
    energy, forces = np.zeros(len(dataset)), {i: [] for i in tests}
    for rows, batch in zip(order, make_loader(dataset, order, Collate(sae, labels), 0), strict=True):
        found = predict(model, batch, has_forces(batch), create_graph=False)
        energy[rows] = (found["energy"] - batch.labels["energy"]).numpy()
        if "forces" in found:
            difference = (found["forces"] - batch.labels["forces"]).abs().mean(-1)
            for i in tests:
                mine = (batch.molecules.numbers > 0) & (batch.masks["forces"] & (batch.molecules.fidelity == i))[
                    :, None
                ]
                forces[i].append(difference[mine].numpy())
    return {i: _measures(dataset, i, energy, forces[i]) for i in tests}


def _measures(dataset: MultiFidelityDataset, i: int, energy: np.ndarray, forces: list[np.ndarray]) -> dict[str, Any]:
    mine = dataset.fidelity_of == i
    error, molecule = energy[mine], dataset.molecule_key_of[mine]
    per_atom = MILLI * np.abs(error) / dataset.natoms_of[mine]
    keys = [molecule == key for key in np.unique(molecule)]
    relative = np.concatenate([error[k] - error[k].mean() for k in keys if k.sum() > 1])
    force = np.concatenate(forces) if forces else np.zeros(0)
    return {
        "samples": int(mine.sum()),
        "molecules": len(keys),
        "mae": float(per_atom.mean()),
        "median": float(np.median([per_atom[k].mean() for k in keys])),
        "relative": float(np.abs(relative).mean() / EV_PER_KCAL_MOL),
        "forces": float(MILLI * force.mean()) if force.size else None,
    }


def _report(results: list[Result], args: argparse.Namespace) -> None:
    print(f"\nbudget {args.budget:g} CPU seconds, one thread; {time.strftime('%Y-%m-%d')}")
    columns = ("MAE", "median", "relative", "forces", "steps", "CPU s")
    print(f"{'seed':>4} {'run':6}{'weights':8} {'fidelity':10}" + "".join(f"{name:>10}" for name in columns))
    for r in results:
        force = "-" if r.forces is None else f"{r.forces:.0f}"
        print(
            f"{r.seed:>4} {r.run:6}{r.weights:8} {r.fidelity:10}"
            f"{r.mae:10.1f}{r.median:10.1f}{r.relative:10.2f}{force:>10}{r.steps:>10}{r.cpu_seconds:10.0f}"
        )
    alone = [r for r in results if r.run == "alone"]
    together = {
        r.seed: r for r in results if r.run == "all" and r.weights == "last" and r.fidelity == alone[0].fidelity
    }
    for measure in ("mae", "median", "relative"):
        rivals = {seed: min(getattr(r, measure) for r in alone if r.seed == seed) for seed in together}
        ratios = [getattr(r, measure) / rivals[seed] for seed, r in together.items()]
        mean = np.exp(np.mean(np.log(ratios)))
        print(f"{measure:9} all / alone: {', '.join(f'{x:.2f}' for x in ratios)}; geometric mean {mean:.2f}")


if __name__ == "__main__":
    main()
