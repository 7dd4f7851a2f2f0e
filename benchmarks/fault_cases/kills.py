"""Runs that are killed, stopped and started again: every one must end with the same weights."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from aimnet2mult.models.files import load_potential, load_weights, state_digest
from aimnet2mult.training.checkpoints import read_state
from fault_cases.material import Ended, finish, make_case, run, start
from fault_cases.table import Outcome

PART = "killed and stopped runs"
# every step may be followed by a checkpoint; two stages of compiling at the end
SETTINGS = {
    "trainer__checkpoint_minutes": 1e-3,
    "trainer__early_stopping": {"fidelity": 0, "label": "energy", "metric": "rmse", "patience": 1000},
    "data__samplers__train__batches_per_epoch": 25,
    "compile__enabled": True,
}
STAGES = ("checkpoints/last.pt", "logs/metrics.csv", "model.pt", "compiled/model_fid0.jpt", "compiled/model_fid1.jpt")


def fingerprint(folder: Path) -> dict[str, object]:
    """Everything of a finished run that must not depend on how often it was stopped."""
    state = read_state(folder / "checkpoints/last.pt")
    rows = list(csv.DictReader((folder / "logs/metrics.csv").open(encoding="utf-8")))
    log = (folder / "logs/run.log").read_text(encoding="utf-8")
    progress = {key: value for key, value in state["progress"].items() if key not in ("seconds", "log_bytes")}
    return {
        "weights": state_digest(load_weights(folder / "model.pt").state),
        "compiled": [state_digest(load_potential(folder / name).module.state_dict()) for name in STAGES[-2:]],
        "network": state_digest(state["network"]),
        "ema": state_digest(state["ema"]),
        "optimizer": _digest(state["optimizer"]["state"]),
        "random": _digest(state["rng"]["cpu"].tolist()),
        "progress": progress,
        "rows": [{key: value for key, value in row.items() if key != "seconds"} for row in rows],
        # the last column is a time
        "lines": [line.rsplit("|", 1)[0] for line in log.splitlines() if re.match(r" +\d+ +\d", line)],
        "split": (folder / "split.yaml").read_text(encoding="utf-8"),
        "energies": [(folder / f"sae_fid{i}.yaml").read_text(encoding="utf-8") for i in (0, 1)],
    }


def _digest(value: object) -> str:
    return hashlib.sha256(repr(_plain(value)).encode()).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


def differing(folder: Path, expected: dict[str, object]) -> list[str]:
    """What of `fingerprint` differs, and temporary files and locks that were left."""
    found = fingerprint(folder)
    strange = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.startswith(".")]
    strange += ["run.lock"] if (folder / "run.lock").exists() else []
    return [key for key, value in expected.items() if found[key] != value] + strange


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a run and all its children with SIGKILL."""
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)


class Reference:
    """A run that nobody stops, and how long it takes."""

    def __init__(self, folder: Path, epochs: int) -> None:
        self.case = make_case(folder / "reference", trainer__epochs=epochs, **SETTINGS)
        began = time.monotonic()
        ended = run(self.case)
        if ended.code != 0:
            raise RuntimeError(f"the reference run failed: {ended.error}")
        self.seconds = time.monotonic() - began
        self.expected = fingerprint(self.case.parent / "out")

    def copy(self, folder: Path) -> Path:
        """The same case in another folder, where nothing has run yet."""
        shutil.copytree(self.case.parent, folder, ignore=shutil.ignore_patterns("out"))
        return folder / "train.yaml"

    def judge(self, case: str, done: str, yaml: Path, ended: Ended, *, good: bool = True) -> Outcome:
        """Compare a run that was stopped and went on with the reference."""
        if ended.code != 0:
            return Outcome(PART, case, done, f"exit code {ended.code}: {ended.sentence}", False)
        wrong = differing(yaml.parent / "out", self.expected)
        digest = str(self.expected["weights"])[:12]
        text = (
            f"SHA-256 of weights {digest}..., state, rows, files equal" if not wrong else f"differ: {', '.join(wrong)}"
        )
        return Outcome(PART, case, done, text, good and not wrong)


def random_kills(folder: Path, reference: Reference, count: int, seed: int) -> Iterator[Outcome]:
    """SIGKILL at a random moment, then the same command again."""
    generator = random.Random(seed)
    for number in range(count):
        yaml = reference.copy(folder / f"kill{number}")
        # stratified, so that few kills too are spread over the whole run
        moment = reference.seconds * (number + generator.random()) / count
        process = start(yaml)
        time.sleep(moment)
        alive = process.poll() is None
        kill(process) if alive else finish(process)
        where = _where(yaml.parent / "out")
        outcome = reference.judge(f"kill -9 number {number + 1}", f"at {moment:.1f} s: {where}", yaml, run(yaml))
        yield outcome
        _tidy(outcome, yaml.parent)


def many_kills(folder: Path, reference: Reference, count: int, seed: int) -> Iterator[Outcome]:
    """One run that is killed again and again."""
    generator = random.Random(seed)
    yaml = reference.copy(folder / "many")
    for _ in range(count):
        process = start(yaml)
        time.sleep(reference.seconds * generator.uniform(0.3, 0.8))
        kill(process) if process.poll() is None else finish(process)
    yield reference.judge("one run killed again and again", f"{count} times kill -9", yaml, run(yaml))


def stage_kills(folder: Path, reference: Reference) -> Iterator[Outcome]:
    """SIGKILL while files are being written, and between the stages of the end."""
    moments: list[tuple[str, Callable[[Path], bool]]] = [
        ("a checkpoint is being written", lambda out: any((out / "checkpoints").glob(".last.part-*"))),
        *((f"{name} has just appeared", lambda out, name=name: (out / name).exists()) for name in STAGES),
        ("compiled/model_fid1.jpt is being written", lambda out: any((out / "compiled").glob(".model_fid1.part-*"))),
    ]
    for number, (words, reached) in enumerate(moments):
        yaml = reference.copy(folder / f"stage{number}")
        process = start(yaml)
        while process.poll() is None and not reached(yaml.parent / "out"):
            time.sleep(0.0005)
        alive = process.poll() is None
        kill(process) if alive else finish(process)
        left = len(list((yaml.parent / "out").rglob(".*")))
        done = f"kill -9; {left} temporary files left" if alive else "the moment was missed"
        outcome = reference.judge(f"killed when {words}", done, yaml, run(yaml), good=alive)
        yield outcome
        _tidy(outcome, yaml.parent)


def signals(folder: Path, reference: Reference) -> Iterator[Outcome]:
    """SIGTERM and Ctrl-C: the state is saved, the exit code is distinct, a sentence says how to go on."""
    for name, numbers, code, words, options in (
        ("SIGTERM", [signal.SIGTERM], 143, "stopped by SIGTERM; the state is in", []),
        ("Ctrl-C", [signal.SIGINT], 130, "stopped by SIGINT; the state is in", []),
        ("Ctrl-C twice", [signal.SIGINT] * 2, 130, "run the same command again to go on", []),
        ("SIGTERM to the run and its workers", [signal.SIGTERM], 143, "stopped by SIGTERM", ["data.num_workers=2"]),
        ("Ctrl-C to the run and its workers", [signal.SIGINT], 130, "stopped by SIGINT", ["data.num_workers=2"]),
    ):
        yaml = reference.copy(folder / name.replace(" ", "_"))
        process = start(yaml, *options)
        _wait_for(process, lambda out=yaml.parent / "out": _step(out) > 5)
        for number in numbers:
            # as a terminal or a queue does it: to every process of the group
            os.killpg(process.pid, number)
        ended = finish(process)
        good = ended.code == code and words in ended.error and "Traceback" not in ended.error
        yield Outcome(PART, name, "in the middle of training", f"exit code {ended.code}: {ended.sentence}", good)
        outcome = reference.judge(f"{name}, went on", "the same command", yaml, run(yaml))
        yield outcome
        _tidy(outcome, yaml.parent)


def early_signals(folder: Path, reference: Reference) -> Iterator[Outcome]:
    """Signals before and after the steps of training."""
    for name, reached, number in (
        ("while data are read", lambda out: (out / "logs/run.log").exists(), signal.SIGTERM),
        ("while the first fidelity is compiled", lambda out: (out / "model.pt").exists(), signal.SIGTERM),
        ("while the second fidelity is compiled", lambda out: (out / STAGES[3]).exists(), signal.SIGINT),
    ):
        yaml = reference.copy(folder / name.replace(" ", "_"))
        process = start(yaml)
        _wait_for(process, lambda reached=reached, out=yaml.parent / "out": reached(out))
        os.killpg(process.pid, number)
        ended = finish(process)
        left = [path.name for path in (yaml.parent / "out").rglob(".*")]
        good = ended.code == 128 + number and "Traceback" not in ended.error and not left
        what = f"exit code {ended.code}: {ended.sentence}" + (f"; left: {left}" if left else "")
        yield Outcome(PART, f"{number.name} {name}", number.name, what, good)
        yield reference.judge(f"{number.name} {name}, went on", "the same command", yaml, run(yaml))


def worker_kills(folder: Path, reference: Reference) -> Iterator[Outcome]:
    """A worker process that is killed."""
    yaml = reference.copy(folder / "worker")
    process = start(yaml, "data.num_workers=1")
    _wait_for(process, lambda out=yaml.parent / "out": _step(out) > 5)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        for child in _children(process.pid):
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    ended = finish(process)
    good = ended.refused("a process that reads data died", "num_workers")
    yield Outcome(
        PART, "a worker is killed", "kill -9 of the worker", f"exit code {ended.code}: {ended.sentence}", good
    )
    yield reference.judge("a worker is killed, went on", "the same command", yaml, run(yaml))


def _wait_for(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    while process.poll() is None and not reached():
        time.sleep(0.005)


def _step(out: Path) -> int:
    """Steps in the last checkpoint; 0 without one."""
    try:
        return int(read_state(out / "checkpoints/last.pt")["progress"]["total_steps"])
    except Exception:  # not there yet
        return 0


def _children(pid: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()))
    except OSError:
        return []


def _where(out: Path) -> str:
    if (out / "model.pt").exists():
        return "after training"
    steps = _step(out)
    return f"after step {steps}" if steps else "before the first step"


def _tidy(outcome: Outcome, folder: Path) -> None:
    """Keep what failed."""
    if outcome.good:
        shutil.rmtree(folder)


def report(reference: Reference) -> str:
    """What the reference run was."""
    progress = reference.expected["progress"]
    return f"reference run: {reference.seconds:.1f} s, {json.dumps(progress)[:100]}"
