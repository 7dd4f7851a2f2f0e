"""Disks that are full, folders that cannot be written or vanish, two runs in one folder, changed files and settings."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import torch

from aimnet2mult.datasets.split import read_split
from aimnet2mult.errors import AIMNet2MultError
from aimnet2mult.files import machine_tag
from aimnet2mult.models.files import load_potential, load_weights, state_digest
from aimnet2mult.training.checkpoints import read_state
from fault_cases.material import ENVIRONMENT, Ended, columns, command, finish, make_case, run, start, write_h5
from fault_cases.table import Outcome

PART = "the machine and the folder"


def _hashes(folder: Path) -> dict[str, bytes]:
    """Content of the files that a failed run must leave as they were."""
    names = ("checkpoints/last.pt", "checkpoints/best.pt", "model.pt", "compiled/model_fid0.jpt", "split.yaml")
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


def file_limit(n_bytes: int) -> Callable[[], None]:
    """No file may grow beyond this: what a quota or a full disk does, without the rights to mount one."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))

    return limit


def _verdict(case: str, done: str, ended: Ended, *words: str, kept: bool = True) -> Outcome:
    result = f"exit code {ended.code}: {ended.sentence}" + ("" if kept else "; older files were damaged")
    return Outcome(PART, case, done, result, ended.refused(*words) and kept)


def _usable(folder: Path) -> bool:
    """Whether every file that is there can be read."""
    readers: dict[str, Callable[[Path], object]] = {
        "checkpoints/last.pt": read_state,
        "checkpoints/best.pt": read_state,
        "model.pt": load_weights,
        "compiled/model_fid0.jpt": load_potential,
        "split.yaml": read_split,
    }
    try:
        for name, reader in readers.items():
            if (folder / name).exists():
                reader(folder / name)
    except AIMNet2MultError:
        return False
    return True


def full_disk(folder: Path) -> Iterator[Outcome]:
    """Writes that fail in every stage; the same command goes on when there is room again."""
    for name, n_bytes, more in (
        ("split and energies", 100, []),
        ("the first checkpoint", 40_000, []),
        ("a later checkpoint", 80_000, ["trainer.epochs=3"]),
        ("the weights file", 20_000, []),
        ("the compiled file", 60_000, ["compile.enabled=true"]),
    ):
        yaml = make_case(folder / name.replace(" ", "_"))
        out = yaml.parent / "out"
        if name != "split and energies":
            run(yaml, "trainer.epochs=1" if "checkpoint" in name else "trainer.epochs=2")
        if name == "the first checkpoint":
            shutil.rmtree(out / "checkpoints")
        ended = run(yaml, *more, preexec_fn=file_limit(n_bytes))
        done = f"files end at {n_bytes:,} bytes"
        yield _verdict(f"no room for {name}", done, ended, "cannot be written", "File too large", kept=_usable(out))
        again = run(yaml, *more)
        left = [path.name for path in out.rglob(".*")]
        good = again.code == 0 and not left
        yield Outcome(PART, f"no room for {name}, went on", "the same command", f"exit code {again.code}", good)


def mounted(script: str) -> Ended | None:
    """Run a shell script in a mount table of its own; None where this process may not have one."""
    try:
        subprocess.run(["unshare", "-m", "true"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def mounted_disks(folder: Path) -> Iterator[Outcome]:
    """A run folder of 400 kB, one that can only be read, and no shared memory; where this process may mount them."""
    yaml = make_case(folder / "tmpfs")
    out = yaml.parent / "out"
    out.mkdir()
    ended = mounted(f"mount -t tmpfs -o size=400k tmpfs {out} && exec {shlex.join(command(yaml))}")
    if ended is None:
        yield Outcome(PART, "disks of other kinds", "not tried: no right to mount", "-", True)
        return
    yield _verdict("a disk of 400 kB", "tmpfs as run folder", ended, "cannot be written (No space left on device)")
    run(yaml)
    before = _hashes(out)
    mount = f"mount --bind {out} {out} && mount -o remount,ro,bind {out}"
    ended = mounted(f"{mount} && exec {shlex.join(command(yaml, 'trainer.epochs=3'))}")
    assert ended is not None
    yield _verdict(
        "a disk for reading only", "mount -o ro", ended, "Read-only file system", kept=_hashes(out) == before
    )
    for size in ("8k", "64k"):
        script = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && exec {shlex.join(command(yaml))}"
        ended = mounted(f"{script} data.num_workers=2 trainer.epochs=3 run.folder=shm{size}")
        assert ended is not None
        good = ended.code == 0 or ended.refused("data.num_workers")
        result = f"exit code {ended.code} {ended.sentence if ended.code else ''}"
        yield Outcome(PART, f"shared memory of {size}B for two workers", "tmpfs at /dev/shm", result, good)


def closed_folder(folder: Path) -> Iterator[Outcome]:
    """A run folder without write permission (which root does not need), and one that is a file."""
    yaml = make_case(folder / "readonly")
    run(yaml)
    out = yaml.parent / "out"
    before = _hashes(out)
    out.chmod(0o555)
    if os.geteuid() != 0:
        ended = run(yaml, "trainer.epochs=3")
        yield _verdict(
            "folder may not be written", "chmod 555", ended, "cannot be written", kept=_hashes(out) == before
        )
    out.chmod(0o755)
    taken = make_case(folder / "afile")
    (taken.parent / "out").write_text("not a folder", encoding="utf-8")
    yield _verdict("folder is a file", "run.folder names a file", run(taken), "run.folder", "cannot be written")


def vanished_folder(folder: Path) -> Iterator[Outcome]:
    """The run folder is deleted while the run goes."""
    yaml = make_case(folder / "vanished", trainer__epochs=500)
    out = yaml.parent / "out"
    process = start(yaml)
    while process.poll() is None and not (out / "checkpoints/best.pt").exists():
        time.sleep(0.01)
    while out.exists():
        shutil.rmtree(out, ignore_errors=True)
    yield _verdict("folder deleted meanwhile", "rm -r of the run folder", finish(process), "was deleted or replaced")


def locks(folder: Path) -> Iterator[Outcome]:
    """Two runs in one folder, and locks of dead runs."""
    yaml = make_case(folder / "lock", trainer__epochs=500)
    out = yaml.parent / "out"
    process = start(yaml)
    while process.poll() is None and not (out / "checkpoints/last.pt").exists():
        time.sleep(0.01)
    second = run(yaml)
    yield _verdict("two runs in one folder", "the same command twice", second, "is in use by", f"process {process.pid}")
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)
    left = json.loads((out / "run.lock").read_text(encoding="utf-8"))
    done = run(yaml, "trainer.epochs=1")
    good = done.code == 0 and "is taken over" in done.output and not (out / "run.lock").exists()
    yield Outcome(
        PART, "lock of a killed run", "kill -9, same command", f"exit code {done.code}, lock taken over", good
    )
    (out / "run.lock").write_text(json.dumps(left | {"host": "node7", "machine": "0" * 12}), encoding="utf-8")
    done = run(yaml, "trainer.epochs=1")
    good = done.code == 0 and "watching it" in done.output and "node7" in done.output
    yield Outcome(
        PART,
        "lock of a dead run on another machine",
        "its lock file",
        f"exit code {done.code}, watched, taken over",
        good,
    )
    (out / "run.lock").write_text(json.dumps(left | {"host": "node7", "machine": "0" * 12}), encoding="utf-8")
    process = start(yaml, "trainer.epochs=1")
    while process.poll() is None:
        os.utime(out / "run.lock")  # the other machine is alive
        time.sleep(0.5)
    yield _verdict("lock of a live run on another machine", "a lock file that is touched", finish(process), "node7")
    (out / "run.lock").write_bytes(b"\x00garbage")
    done = run(yaml, "trainer.epochs=1")
    yield Outcome(PART, "damaged lock file", "garbage in run.lock", f"exit code {done.code}", done.code == 0)


def leftovers(folder: Path) -> Iterator[Outcome]:
    """Temporary files of killed runs are removed; those of others stay."""
    yaml = make_case(folder / "leftovers")
    out = yaml.parent / "out"
    (out / "checkpoints").mkdir(parents=True)
    dead = subprocess.Popen(["true"])
    dead.wait()
    mine = out / f"checkpoints/.last.part-{machine_tag()}-{dead.pid}-00000000.pt"
    other = out / f"checkpoints/.last.part-000000000000-{dead.pid}-00000000.pt"
    note = out / ".mine.txt"
    for path in (mine, other, note):
        path.write_text("x", encoding="utf-8")
    ended = run(yaml)
    good = ended.code == 0 and not mine.exists() and other.exists() and note.exists()
    yield Outcome(
        PART, "left-over temporary files", "of a dead process, of another machine, of the user",
        f"removed: {not mine.exists()}; kept: {other.exists()}, {note.exists()}", good,
    )  # fmt: skip


def changes(folder: Path) -> Iterator[Outcome]:
    """What may change before a run goes on, and what may not."""
    base = make_case(folder / "changes", trainer__epochs=1)
    run(base)
    number = 0

    def changed(words: tuple[str, ...], *options: str, edit: Callable[[Path], object] | None = None) -> Outcome:
        nonlocal number
        number += 1
        yaml = folder / f"change{number}" / "train.yaml"
        shutil.copytree(base.parent, yaml.parent)
        if edit is not None:
            edit(yaml.parent)
        before = _hashes(yaml.parent / "out")
        ended = run(yaml, *options)
        kept = _hashes(yaml.parent / "out") == before
        what = " ".join(options) or str(getattr(edit, "__name__", edit))
        return _verdict(f"resume: {words[0]}", what, ended, *words, kept=kept)

    def other_data(place: Path) -> None:
        write_h5(place / "fid1.h5", {"003": {k: v for k, v in columns(3, 9).items() if k not in ("forces", "charges")}})

    def one_bit(place: Path) -> None:
        with h5py.File(place / "fid0.h5", "a") as file:
            file["003/forces"][0, 0, 0] += 1e-6

    def other_split(place: Path) -> None:
        path = place / "out/split.yaml"
        lines = path.read_text(encoding="utf-8").splitlines()
        train, val = (
            next(i for i, line in enumerate(lines) if line.startswith(f"{side}: [")) for side in ("train", "val")
        )
        lines[train], lines[val] = lines[train].replace("train", "val"), lines[val].replace("val", "train")
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    yield changed(("other data",), edit=other_data)
    yield changed(("other data",), edit=one_bit)
    yield changed(("another split",), edit=other_split)
    yield changed(("run.seed",), "run.seed=8")
    yield changed(("batch_size",), "data.samplers.train.batch_size=9")
    yield changed(("data.fidelity_weights.0",), "data.fidelity_weights.0=2")
    yield changed(("optimizer.kwargs.lr", "--accept-changes"), "optimizer.kwargs.lr=1e-4")
    yield changed(("scheduler.warmup_steps", "--accept-changes"), "scheduler.warmup_steps=4")
    yield changed(("trainer.ema_decay", "--accept-changes"), "trainer.ema_decay=0.5")
    yield changed(("loss.kwargs.components.energy.weight",), "loss.kwargs.components.energy.weight=2")
    for option, words in (
        ("trainer.epochs=2", "trainer.epochs: 1 -> 2"),
        ("trainer.checkpoint_minutes=1", "trainer.checkpoint_minutes: 10.0 -> 1.0"),
        ("logging.plots=true", "logging.plots: False -> True"),
        ("run.name=other", "run.name: faults -> other"),
        ("data.num_workers=1", "data.num_workers: 0 -> 1"),
        ("compile.enabled=true", "compile.enabled: False -> True"),
    ):
        ended = run(base, option)
        good = ended.code == 0 and f"changed since the checkpoint: {words}" in ended.output
        yield Outcome(PART, f"resume: {option}", "taken, and said", f"exit code {ended.code}: {words}", good)
    ended = run(base, "optimizer.kwargs.lr=1e-4", "trainer.epochs=3", "--accept-changes")
    good = ended.code == 0 and "optimizer.kwargs.lr: 0.005 -> 0.0001" in ended.output
    yield Outcome(PART, "resume: --accept-changes", "another learning rate", f"exit code {ended.code}, said", good)


def lost_terminal(folder: Path) -> Iterator[Outcome]:
    """The reader of stdout and stderr goes away; a run is not lost for that."""
    yaml = make_case(folder / "pipe", trainer__epochs=30)
    process = subprocess.Popen(
        command(yaml), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    process.stderr.close()
    code = process.wait()
    state = read_state(yaml.parent / "out/checkpoints/last.pt")["progress"]
    good = code == 0 and state["epoch"] == 30 and (yaml.parent / "out/model.pt").exists()
    yield Outcome(PART, "the terminal is gone", "both pipes closed", f"exit code {code}, epoch {state['epoch']}", good)


def numbers(folder: Path) -> Iterator[Outcome]:
    """The same seed twice, another one; a learning rate of 1e3: a sentence and a good checkpoint."""
    found = []
    for number, seed in enumerate((7, 7, 8)):
        yaml = make_case(folder / f"seed{number}")
        run(yaml, f"run.seed={seed}")
        found.append(state_digest(load_weights(yaml.parent / "out/model.pt").state))
    good = found[0] == found[1] != found[2]
    same = f"the same weights: {found[0] == found[1]}; with another seed: {found[0] == found[2]}"
    yield Outcome(PART, "the same seed twice, another one", "three trainings", same, good)
    yaml = make_case(
        folder / "wild", optimizer={"class": "torch.optim.AdamW", "kwargs": {"lr": 1e3}}, trainer__epochs=30
    )
    ended = run(yaml, "scheduler.warmup_steps=0")
    state = read_state(yaml.parent / "out/checkpoints/last.pt")
    finite = all(bool(torch.isfinite(value).all()) for part in ("network", "ema") for value in state[part].values())
    yield _verdict("learning rate 1e3", "training", ended, "not finite", "lower optimizer.kwargs.lr", kept=finite)
