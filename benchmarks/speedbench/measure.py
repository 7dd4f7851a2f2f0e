"""The measurements: all programs in turn, round by round, so that whatever else the machine does hits them alike."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from speedbench.clock import Sample
from speedbench.environments import adapter
from speedbench.plan import PUBLISHED, WITHOUT_D3, Item, Plan
from speedbench.results import Line, Measured
from speedbench.session import Place, Session, environment

STARTS = 3
FLOOR_SECONDS = 0.2
MEMORY_SIZES = (3, 999, 3000, 9999)
COMPARED_UP_TO = 999  # atoms
PROFILED = {20: 50, 999: 5}  # calls by number of atoms


@dataclass(frozen=True)
class Effort:
    """How long is measured."""

    rounds: int
    seconds: float  # of calls per program and round
    patience: float  # s after which a program is not asked for more rounds of an item
    limit: float  # s that one answer may take
    training_steps: int  # per round


def measure(item: Item, sessions: Sequence[Session], threads: int, effort: Effort) -> Line:
    """One line of the table."""
    samples: dict[str, list[Sample]] = {s.place.name: [] for s in sessions}
    spent, remarks, rates = dict.fromkeys(samples, 0.0), dict.fromkeys(samples, ""), []
    for turn in range(effort.rounds):
        if threads == 1:
            rates.append(_rate(sessions[0], item.rows, effort))
        # another one begins every time
        for session in [*sessions[turn % len(sessions) :], *sessions[: turn % len(sessions)]]:
            name = session.place.name
            if remarks[name] or spent[name] > effort.patience:
                continue
            started = time.monotonic()
            answer = session.ask(_request(item, session, effort), effort.limit)
            spent[name] += time.monotonic() - started
            samples[name] += answer.get("samples", [])
            remarks[name] = answer.get("not_offered") or answer.get("failed") or ""
    rate = median(rates) if rates else None
    found = {name: Measured.of(samples[name], remarks[name]) for name in samples}
    return Line(item.section, item.label, threads, item.atoms, item.molecules, item.size, item.flop, rate, found)


def agreement(plan: Plan, sizes: Sequence[int], sessions: Sequence[Session], limit: float) -> list[dict[str, Any]]:
    """Energies and forces of the programs against those of the first, which is ours."""
    rows = []
    for settings in (PUBLISHED, WITHOUT_D3):
        for size in (n for n in sizes if n <= COMPARED_UP_TO):
            found = {}
            for session in sessions:
                output = session.place.folder.resolve() / "results.npz"
                request = {"file": str(plan.system_file(size)), "settings": settings._asdict(), "output": str(output)}
                if not session.ask({"do": "results", **request}, limit):
                    with np.load(output) as content:
                        found[session.place.name] = float(content["energy"]), content["forces"]
            ours = found.pop(sessions[0].place.name, None)
            if ours is not None:
                rows += [_difference(name, size, settings.dispersion, theirs, ours) for name, theirs in found.items()]
    return rows


def peak_memory(plan: Plan, places: Sequence[Place], sizes: Sequence[int], limit: float) -> list[dict[str, Any]]:
    """Largest resident memory of fresh processes that compute energy and forces once."""
    rows = []
    for size in (n for n in MEMORY_SIZES if n in sizes):
        for place in places:
            session = Session(place, 1)
            output = str(place.folder.resolve() / "results.npz")
            answer = session.ask({"do": "results", "file": str(plan.system_file(size)), "output": output}, limit)
            memory = answer or session.ask({"do": "memory"}, limit)
            session.close()
            remark = memory.get("failed") or memory.get("not_offered") or ""
            rows.append({"program": place.name, "atoms": size, "bytes": memory.get("bytes"), "remark": remark})
    return rows


def profiles(plan: Plan, session: Session, sizes: Sequence[int], limit: float) -> list[dict[str, Any]]:
    """Where the time of one program goes, for a small and a large system."""
    rows = []
    for size, calls in PROFILED.items():
        if size in sizes:
            request = {"do": "profile", "file": str(plan.system_file(size)), "settings": WITHOUT_D3._asdict()}
            answer = session.ask({**request, "calls": calls}, limit)
            rows.append({"atoms": size, "hotspots": answer.get("hotspots", [])})
    return rows


def startup(plan: Plan, sessions: Sequence[Session]) -> list[dict[str, Any]]:
    """Wall seconds from the start of a process to its import and to its first energy and forces, medians."""
    water = str(plan.system_file(3))
    cases: list[tuple[str, Place, str, str, str]] = [("torch alone", sessions[0].place, "import torch", "", "")]
    for session in sessions:
        place, program = session.place, adapter(session.place.name)
        for what, file in program.first_files(place.model).items():
            label = ", ".join(filter(None, (program.title, what)))
            cases.append((label, place, program.imports, place.name, str(file)))
    times: dict[str, list[tuple[float, ...]]] = {case[0]: [] for case in cases}
    for _ in range(STARTS):
        for label, place, *arguments in cases:
            times[label].append(_one_start(place, [*arguments, water]))
    return [{"program": label, **_medians(rows)} for label, rows in times.items()]


def _one_start(place: Place, arguments: Sequence[str]) -> tuple[float, ...]:
    """Seconds until the import was done and, where it was asked for, until the first numbers; none if it failed."""
    command = [str(place.python), "-m", "speedbench.first_energy", *arguments]
    with (place.folder / "worker.log").open("ab") as log:
        started = time.time()
        output = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, env=environment(1)).stdout
    return tuple(float(moment) - started for moment in output.split())


def _medians(rows: Sequence[tuple[float, ...]]) -> dict[str, float | None]:
    columns = [median(column) for column in zip(*rows, strict=True)] if all(rows) else []  # nothing if a start failed
    return {"import": columns[0] if columns else None, "first": columns[1] if len(columns) > 1 else None}


def _request(item: Item, session: Session, effort: Effort) -> dict[str, Any]:
    request = {**item.request, "seconds": effort.seconds, "steps": effort.training_steps}
    if "task" in request:
        folder = str(session.place.folder.resolve() / "training")
        request["task"] = {**request["task"], "folder": folder}
    return request


def _rate(session: Session, rows: int, effort: Effort) -> float:
    answer = session.ask({"do": "floor", "rows": [rows], "seconds": FLOOR_SECONDS}, effort.limit)
    if "rates" not in answer:
        raise SystemExit(f"the matrix products cannot be timed: {answer}")
    return float(answer["rates"][str(rows)])


def _difference(name: str, size: int, dispersion: bool, theirs: Any, ours: Any) -> dict[str, Any]:
    return {
        "program": name,
        "atoms": size,
        "dispersion": dispersion,
        "energy": theirs[0] - ours[0],
        "forces": float(np.abs(theirs[1] - ours[1]).max()),
    }
