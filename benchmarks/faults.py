"""Whatever happens: kills, full disks, bad data, strange files. Runs the whole matrix and prints one table.

    python benchmarks/faults.py                  # everything; about an hour on two cores
    python benchmarks/faults.py --quick          # three minutes: what CI runs
    python benchmarks/faults.py --only kills --kills 30

Each case says what was done, what came out, and whether that is what must come out: the same weights to the bit, or one
sentence. The exit code is 1 when a case failed; what failed stays in the folder of --work.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fault_cases import (
    around_calls,
    calls,
    compiling,
    inputs,
    kills,
    life,
    machine,
    mutations,
    potentials,
    settings,
    structures,
)
from fault_cases.table import Outcome, render

from aimnet2mult.engine.warmup import compile_kernels


def kill_cases(args: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """Kills and signals."""
    reference = kills.Reference(folder, epochs=3 if args.quick else 12)
    yield from kills.random_kills(folder, reference, args.kills, args.seed)
    if not args.quick:
        yield from kills.signals(folder, reference)
        yield from kills.many_kills(folder, reference, 6, args.seed)
        yield from kills.stage_kills(folder, reference)
        yield from kills.early_signals(folder, reference)
        yield from kills.worker_kills(folder, reference)


def machine_cases(args: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """The machine and the folder."""
    yield from machine.leftovers(folder)
    if not args.quick:
        yield from machine.mounted_disks(folder)
        yield from machine.vanished_folder(folder)
        yield from machine.full_disk(folder)
        yield from machine.closed_folder(folder)
        yield from machine.locks(folder)
        yield from machine.changes(folder)
        yield from machine.lost_terminal(folder)
        yield from machine.numbers(folder)


def data_cases(_: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """Data files."""
    return inputs.data_cases(folder)


def settings_cases(_: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """Settings, self-atomic energies, own code."""
    yield from settings.typos()
    yield from settings.values(folder)
    yield from settings.energies(folder)
    yield from settings.imports(folder)


def compiling_cases(_: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """Compiling, and programs that would do more than compute."""
    yield from compiling.compiling(folder)
    yield from compiling.programs(folder)


def call_cases(args: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """Calls of the calculator."""
    make, d4 = (potentials.Calculators(potentials.write_potentials(folder, n, d)) for n, d in potentials.KINDS)
    yield from calls.call_cases(make, folder)
    yield from structures.structure_cases(make, d4)
    yield from around_calls.around_cases(folder, 20 if args.quick else 300, args.seed)


def life_cases(args: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """A long life."""
    return life.life_cases(folder, args.quick, 3_000 if args.quick else 100_000)


def mutation_cases(args: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """Mutated files."""
    return mutations.mutations(folder, args.mutations, args.seed)


Cases = Callable[[argparse.Namespace, Path], Iterator[Outcome]]
PARTS: dict[str, Cases] = {
    "data": data_cases,
    "settings": settings_cases,
    "compiling": compiling_cases,
    "calls": call_cases,
    "life": life_cases,
    "mutations": mutation_cases,
    "machine": machine_cases,
    "kills": kill_cases,
}


def main() -> int:
    """Run the matrix; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a subset of about three minutes")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts of the matrix")
    parser.add_argument("--kills", type=int, help="kills at random moments (default 30, quick 2)")
    parser.add_argument("--mutations", type=int, help="mutated files (default 20000, quick 600)")
    parser.add_argument("--seed", type=int, default=1, help="of kills and mutations")
    parser.add_argument("--work", type=Path, help="folder to work in; kept (default: a temporary one)")
    args = parser.parse_args()
    args.kills = args.kills if args.kills is not None else (2 if args.quick else 30)
    args.mutations = args.mutations if args.mutations is not None else (600 if args.quick else 20_000)
    folder = args.work or Path(tempfile.mkdtemp(prefix="faults-"))
    outcomes: list[Outcome] = []
    # shells start what runs in the background with Ctrl-C ignored, and processes hand this down
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # calculators that are made before and after the kernels are there differ in their last digits
    if find_spec("numba") is not None:
        compile_kernels(lambda line: print(f"compiling kernels, {line}", flush=True))
    for part in args.only:
        began = time.monotonic()
        for outcome in PARTS[part](args, folder / part):
            outcomes.append(outcome)
            print("." if outcome.good else f"\nFAILED {outcome.case}: {outcome.result}\n", end="", flush=True)
        print(f" {part}: {time.monotonic() - began:.0f} s", flush=True)
    print(render(outcomes))
    failed = not all(outcome.good for outcome in outcomes)
    if args.work is None and not failed:
        shutil.rmtree(folder)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
