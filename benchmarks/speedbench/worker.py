"""Measures one program, inside its environment: a JSON object per line in, one per line out.

    python -m speedbench.worker PROGRAM MODEL_FILE MEMORY_BYTES

An answer holds ``samples`` (CPU and wall seconds of single units of work) or what else was asked for; ``not_offered``
or ``failed`` with a reason where there is nothing to measure.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet
from peers.base import Evaluate, NotOfferedError, Program, Settings, TrainingTask

from speedbench.clock import Clock, Sample, repeat, warm_up
from speedbench.floor import product_rates
from speedbench.hotspots import hotspots
from speedbench.systems import structures

WALK = 0.01  # Å: how far each coordinate goes between two calls, as in molecular dynamics
MD_CHUNK = 5  # steps per sample
MD_STEP = 0.5  # fs
WARM_TRAINING_STEPS = 2


class Worker:
    """The work that can be asked for, one method each."""

    def __init__(self, program: Program, model: Path) -> None:
        self._program, self._model = program, model
        self._calculators: dict[Settings, Any] = {}
        self._evaluators: dict[Settings, tuple[Evaluate, int]] = {}
        self._warm: set[tuple[str, Settings]] = set()

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do what is asked."""
        work: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            "forces": self.forces,
            "dynamics": self.dynamics,
            "batch": self.batch,
            "training": self.training,
            "floor": self.floor,
            "results": self.results,
            "profile": self.profile,
            "memory": self.memory,
        }
        try:
            return work[request["do"]](request)
        except NotOfferedError as reason:
            return {"not_offered": str(reason)}
        except MemoryError:
            return {"failed": "out of memory"}
        except Exception as error:
            traceback.print_exc()
            out_of_memory = isinstance(error, RuntimeError) and "allocate memory" in str(error)
            return {"failed": "out of memory" if out_of_memory else f"{type(error).__name__}: {error}"[:500]}

    def forces(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Energy and forces through the ASE calculator, of a structure that moves a little every time."""
        compute, move = self._moving(request)
        return {"samples": repeat(compute, request["seconds"], move)}

    def profile(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The functions in which energy and forces spend their time."""
        compute, move = self._moving(request)
        return {"hotspots": hotspots(compute, move, request["calls"])}

    def dynamics(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Steps of velocity Verlet in ASE at 300 K."""
        atoms, settings = _structure(request), _settings(request)
        atoms.calc = self._calculator(settings)
        # written out, because the function of ASE has not the same name in all its versions
        width = np.sqrt(300 * units.kB * atoms.get_masses())[:, None]
        atoms.set_momenta(width * np.random.default_rng(3).normal(size=(len(atoms), 3)))
        steps = VelocityVerlet(atoms, MD_STEP * units.fs)
        steps.run(1)
        if (request["file"], settings) not in self._warm:
            warm_up(lambda: steps.run(1))
            self._warm.add((request["file"], settings))
        samples = repeat(lambda: steps.run(MD_CHUNK), request["seconds"])
        return {"samples": [(cpu / MD_CHUNK, wall / MD_CHUNK) for cpu, wall in samples]}

    def batch(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Energies and forces of many structures, in pieces of the size that this program likes best."""
        settings, molecules = _settings(request), sorted(structures(request["file"]), key=len)
        random = np.random.default_rng(4)
        if settings not in self._evaluators:
            evaluate = self._program.evaluate(self._model, settings)
            self._evaluators[settings] = evaluate, _best_chunk(evaluate, molecules, self._program.chunks)
        evaluate, chunk = self._evaluators[settings]

        def move() -> None:
            for atoms in molecules:
                atoms.positions += random.normal(scale=WALK, size=atoms.positions.shape)

        samples = repeat(lambda: _in_pieces(evaluate, molecules, chunk), request["seconds"], move)
        return {"samples": samples, "chunk": chunk}

    def training(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Training steps, from one call of the optimizer to the next; the first ones do not count."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        given = request["task"]
        folder = Path(given["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        energy_only = given["energy_only"] and Path(given["energy_only"])
        task = TrainingTask(Path(given["labelled"]), energy_only, given["batch"], given["fidelities"], folder)
        clock, samples = Clock(), list[Sample]()
        hook = register_optimizer_step_post_hook(lambda *_: samples.append(clock.lap()))
        try:
            self._program.train(task, request["steps"] + WARM_TRAINING_STEPS)
        finally:
            hook.remove()
        return {"samples": samples[WARM_TRAINING_STEPS:]}

    def floor(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """FLOP per second of the network's matrix products, by number of rows."""
        return {"rates": product_rates(request["rows"], request["seconds"])}

    def results(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Energy and forces, written to a file."""
        atoms = _structure(request)
        atoms.calc = self._calculator(_settings(request))
        forces = atoms.get_forces()
        np.savez(request["output"], energy=atoms.get_potential_energy(), forces=forces)
        return {}

    def memory(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Largest resident memory of this process so far, in bytes."""
        status = Path("/proc/self/status")
        if not status.exists():
            raise NotOfferedError("peak memory is read from /proc, which only Linux has")
        # the maximum that getrusage gives includes that of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return {"bytes": 1024 * int(line.split()[1])}

    def _moving(self, request: Mapping[str, Any]) -> tuple[Callable[[], None], Callable[[], None]]:
        """A function that computes energy and forces, warmed up, and one that moves the structure before it."""
        atoms, settings = _structure(request), _settings(request)
        atoms.calc = self._calculator(settings)
        random = np.random.default_rng(2)

        def move() -> None:
            atoms.positions += random.normal(scale=WALK, size=atoms.positions.shape)

        def compute() -> None:
            atoms.get_forces()
            atoms.get_potential_energy()

        if (request["file"], settings) not in self._warm:
            start = atoms.positions.copy()
            warm_up(compute, move)
            self._warm.add((request["file"], settings))
            atoms.positions = start
        return compute, move

    def _calculator(self, settings: Settings) -> Any:
        if settings not in self._calculators:
            self._calculators[settings] = self._program.calculator(self._model, settings)
        return self._calculators[settings]


def _structure(request: Mapping[str, Any]) -> Atoms:
    (atoms,) = structures(request["file"])
    return atoms


def _settings(request: Mapping[str, Any]) -> Settings:
    return Settings(**request.get("settings", {}))


def _in_pieces(evaluate: Evaluate, molecules: list[Atoms], chunk: int) -> None:
    for start in range(0, len(molecules), chunk):
        evaluate(molecules[start : start + chunk])


def _best_chunk(evaluate: Evaluate, molecules: list[Atoms], chunks: tuple[int, ...]) -> int:
    """Which chunk is quickest; each is tried after a warm-up of its own."""
    times: dict[int, float] = {}
    for chunk in chunks:

        def call(chunk: int = chunk) -> None:
            _in_pieces(evaluate, molecules, chunk)

        warm_up(call)
        times[chunk] = min(cpu for cpu, _ in repeat(call, 0.0))
    return min(times, key=times.__getitem__)


def main() -> None:
    """Answer requests until the input ends."""
    name, model, memory = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory), int(memory)))
    with _answers() as out:
        worker = Worker(importlib.import_module(f"peers.{name}").Adapter(), Path(model))
        for line in sys.stdin:
            print(json.dumps(worker.answer(json.loads(line))), file=out, flush=True)


@contextlib.contextmanager
def _answers() -> Any:
    """Standard output for answers alone: whatever else the program prints goes to standard error."""
    out: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with out:
        yield out


if __name__ == "__main__":
    main()
