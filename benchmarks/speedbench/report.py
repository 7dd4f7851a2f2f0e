"""Tables in Markdown and a figure, from the results of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from speedbench.results import Line, Measured, Results

FIRST = 0  # place of our program among the titles


def tables(results: Results) -> str:
    """All tables of a run."""
    machine = results.machine
    parts = [", ".join(f"{key} {value}" for key, value in machine.items())]
    parts += [_speed(results, threads) for threads in sorted({line.threads for line in results.lines})]
    parts += [_agreement(results), _memory(results), _startup(results), *map(_profile, results.profiles)]
    return "\n\n".join(part for part in parts if part) + "\n"


def progress(line: Line) -> str:
    """One line for the terminal while the measurements go on."""
    cells = ", ".join(f"{name} {_cell(measured, line)}" for name, measured in line.programs.items())
    return f"{line.threads} thread{'s' * (line.threads > 1)}, {line.label}: {cells}"


def seconds_of(measured: Measured, threads: int) -> float | None:
    """The time that is compared: CPU time of one thread, wall time of several."""
    return measured.cpu if threads == 1 else measured.wall


def best_peer(line: Line, ours: str) -> float | None:
    """Shortest time of the others."""
    times = [seconds_of(m, line.threads) for name, m in line.programs.items() if name != ours]
    return min((t for t in times if t is not None), default=None)


def speedup(line: Line, ours: str) -> float | None:
    """How many times faster ours is than the best of the others; None where one of them has no time."""
    own, peer = seconds_of(line.programs[ours], line.threads), best_peer(line, ours)
    return None if own is None or peer is None else peer / own


def _speed(results: Results, threads: int) -> str:
    names = list(results.titles)
    lines = [line for line in results.lines if line.threads == threads]
    one = threads == 1
    title = (
        f"{threads} thread{'' if one else 's'}: {'CPU' if one else 'wall'} time ({'wall' if one else 'CPU'} time in "
        "brackets), ms per call or step; molecules/s where that is said"
    )
    columns = ["work", *(results.titles[n] for n in names), "faster than the best of them"]
    rows = []
    for line in lines:
        gain = speedup(line, names[FIRST])
        label = f"{line.label}, molecules/s" if line.molecules else line.label
        rows.append([label, *(_cell(line.programs[n], line) for n in names), "-" if gain is None else f"{gain:.2f}x"])
        if one:
            rows[-1] += _floor(line, names[FIRST])
    columns += ["floor", "floor reached", "GFLOP/s"] if one else []
    return "\n\n".join([_titled(title, columns, rows), *_remarks(results, lines)])


def _floor(line: Line, ours: str) -> list[str]:
    own = line.programs[ours].cpu
    if line.floor is None or line.rate is None:
        return ["-", "-", "-"]
    return [_amount(line.floor, line), "-" if own is None else f"{line.floor / own:.0%}", f"{line.rate / 1e9:.0f}"]


def _remarks(results: Results, lines: Sequence[Line]) -> Iterator[str]:
    """Why there is no number, program by program."""
    for name, title in results.titles.items():
        found = dict.fromkeys(line.programs[name].remark for line in lines)
        reasons = [reason for reason in found if reason]
        if reasons:
            yield f"{title}: {'; '.join(reasons)}."


def _cell(measured: Measured, line: Line) -> str:
    if measured.cpu is None or measured.wall is None:
        return "-"
    first, second = (measured.cpu, measured.wall) if line.threads == 1 else (measured.wall, measured.cpu)
    return f"{_amount(first, line)} ({_amount(second, line)})"


def _amount(seconds: float, line: Line) -> str:
    """Milliseconds, or molecules per second where a line counts these."""
    value = 1e3 * seconds if line.molecules is None else line.molecules / seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _agreement(results: Results) -> str:
    columns = ["atoms", "D3", "program", "energy, meV/atom", "largest difference of a force component, eV/Å"]
    rows = [
        [
            str(r["atoms"]),
            "yes" if r["dispersion"] else "no",
            results.titles[r["program"]],
            f"{1e3 * r['energy'] / r['atoms']:.2g}",
            f"{r['forces']:.1g}",
        ]
        for r in results.agreement
    ]
    return _titled("The same weights: differences from ours", columns, rows)


def _memory(results: Results) -> str:
    names = list(results.titles)
    sizes = sorted({r["atoms"] for r in results.memory})
    found = {(r["program"], r["atoms"]): r for r in results.memory}
    rows = [[f"{n:,}", *(_mebibytes(found[name, n]) for name in names)] for n in sizes]
    columns = ["atoms", *(results.titles[n] for n in names)]
    return _titled("Peak memory of a process that computes energy and forces, MiB", columns, rows)


def _mebibytes(row: dict[str, object]) -> str:
    bytes_ = row["bytes"]
    return f"{bytes_ / 2**20:,.0f}" if isinstance(bytes_, int) else f"- ({row['remark']})"


def _startup(results: Results) -> str:
    columns = ["program", "import", "first energy and forces of water"]
    rows = [
        [
            r["program"],
            *("-" if r[key] is None else f"{r[key]:.2f}" for key in ("import", "first")),
        ]
        for r in results.startup
    ]
    return _titled("Start-up: wall seconds from the start of the process", columns, rows)


def _profile(profile: dict[str, Any]) -> str:
    rows = [[f"`{name}`", f"{share:.1%}"] for name, share in profile["hotspots"]]
    title = (
        f"Where our time goes: energy and forces of {profile['atoms']} atoms without D3, time in the function itself"
    )
    return _titled(title, ["function", "share"], rows)


def _titled(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"{title}\n\n{_markdown(columns, rows)}" if rows else ""


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(results: Results, path: Path) -> None:
    """Time against size, and how many times faster than the best of the others, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [line for line in results.lines if line.size is not None and line.threads == 1]
    names = list(results.titles)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 6), layout="constrained")
    whole = [line for line in lines if line.label.endswith("atoms")]
    for name in names:
        times = [line.programs[name].cpu for line in whole]
        left.plot([line.size for line in whole], [t and 1e3 * t for t in times], "o-", label=results.titles[name])
    floors = [line.floor and 1e3 * line.floor for line in whole]
    left.plot([line.size for line in whole], floors, "k--", label="matrix products alone")
    left.set(xscale="log", yscale="log", xlabel="atoms", ylabel="energy and forces, ms of CPU time", title="One thread")
    left.legend()
    ratios = {
        line.label: ratio for line in results.lines if line.threads == 1 and (ratio := speedup(line, names[FIRST]))
    }
    right.barh(list(ratios), list(ratios.values()))
    right.set_xlim(left=0)
    right.axvline(1.0, color="k", linewidth=1)
    right.invert_yaxis()
    right.tick_params(axis="y", labelsize=6)
    right.set(xlabel="times faster than the best of the others", title="One thread")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
