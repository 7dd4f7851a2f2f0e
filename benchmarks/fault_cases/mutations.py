"""Thousands of damaged and edited files: each is refused in a sentence, or gives exactly what the good file gives."""

from __future__ import annotations

import io
import os
import random
import select
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from aimnet2mult.models.archive import SEAL
from aimnet2mult.training.cli_args import main
from fault_cases.inputs import in_process
from fault_cases.material import ENVIRONMENT, make_case
from fault_cases.table import Outcome

PART = "mutated files"
ODD = ("'", '"', "{", "}", "[", "]", ":", "- ", "&a ", "*a", "!!python/name:os.system", "#", "|", "\t", ", ", "9" * 400)
ODD += ("1e999", ".nan", "-", "\x00", "\u2028", "<<: ", "? ", "%YAML 9\n", "---\n", "0x", "\ud7ff")
PATIENCE = 60.0  # seconds after which a file counts as a hang
# kind, place in the run folder, share of the mutations
KINDS = (
    ("compiled potential (.jpt)", "out/compiled/model_fid0.jpt", 0.1),
    ("compiled potential (.jpt), no seal", "out/compiled/model_fid0.jpt", 0.1),
    ("weights (.pt)", "out/model.pt", 0.1),
    ("weights (.pt), no seal", "out/model.pt", 0.1),
    ("checkpoint (.pt)", "out/checkpoints/last.pt", 0.1),
    ("checkpoint (.pt), no seal", "out/checkpoints/last.pt", 0.1),
    ("data (HDF5)", "fid0.h5", 0.2),
    ("train.yaml", "train.yaml", 0.06),
    ("model.yaml", "model.yaml", 0.06),
    ("self-atomic energies (YAML)", "out/sae_fid0.yaml", 0.04),
    ("split (YAML)", "out/split.yaml", 0.04),
)


def mutated(content: bytes, generator: random.Random) -> tuple[bytes, str]:
    """One mutation of a file, and its name."""
    archive = content[:2] == b"PK"
    text = not archive and content[:4] != b"\x89HDF"
    if archive and generator.random() < 0.5:
        return _archive_edit(content, generator)
    if text and generator.random() < 0.6:
        return _text_edit(content, generator), "text edits"
    return _byte_edit(content, generator)


def _byte_edit(content: bytes, generator: random.Random) -> tuple[bytes, str]:
    data = bytearray(content)
    place, size = generator.randrange(len(data)), generator.randrange(1, 200)
    kind = generator.choice(["bit flips", "truncation", "splices", "zeros", "insertions", "numbers"])
    if kind == "bit flips":
        for _ in range(generator.choice([1, 1, 2, 8, 64])):
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    elif kind == "truncation":
        del data[place:]
    elif kind == "splices":
        other = generator.randrange(len(data))
        data[place : place + size] = data[other : other + size]
    elif kind == "zeros":
        data[place : place + size] = bytes(len(data[place : place + size]))
    elif kind == "insertions":
        data[place:place] = generator.randbytes(generator.randrange(1, 20))
    else:
        width = generator.choice([1, 2, 4, 8])
        patterns = [b"\xff" * width, b"\xff" * (width - 1) + b"\x7f", bytes(width), generator.randbytes(width)]
        data[place : place + width] = generator.choice(patterns)
    return bytes(data), kind


def _text_edit(content: bytes, generator: random.Random) -> bytes:
    """Lines dropped, doubled and swapped; characters that mean something to YAML."""
    lines = content.decode(errors="replace").splitlines(keepends=True)
    for _ in range(generator.choice([1, 1, 2, 4])):
        place = generator.randrange(len(lines)) if lines else 0
        kind = generator.randrange(4)
        if kind == 0 and lines:
            del lines[place]
        elif kind == 1 and lines:
            lines.insert(place, lines[generator.randrange(len(lines))])
        elif kind == 2 and lines:
            other = generator.randrange(len(lines))
            lines[place], lines[other] = lines[other], lines[place]
        elif lines:
            line = lines[place]
            at = generator.randrange(len(line) + 1)
            lines[place] = line[:at] + generator.choice(ODD) + line[at + generator.randrange(2) :]
    return "".join(lines).encode(errors="surrogatepass")


def _archive_edit(content: bytes, generator: random.Random) -> tuple[bytes, str]:
    """Edits of the entries of a zip archive, with checksums that fit again."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    place, other = generator.randrange(len(entries)), generator.randrange(len(entries))
    name, data = entries[place]
    kind = generator.choice(["entry edited", "description edited", "entry dropped", "entries swapped", "entry renamed"])
    if kind == "description edited":
        tensors = ("/data/", "/constants/")
        place = generator.choice([i for i, (n, d) in enumerate(entries) if d and not any(t in n for t in tensors)])
        name, data = entries[place]
    if kind in ("entry edited", "description edited"):
        entries[place] = (name, _byte_edit(data or b"x", generator)[0])
    elif kind == "entry dropped":
        del entries[place]
    elif kind == "entries swapped":
        entries[place], entries[other] = (name, entries[other][1]), (entries[other][0], data)
    else:
        entries[place] = (generator.choice([f"{name}x", entries[other][0], "../../evil", "/etc/evil", ""]), data)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", generator.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for entry, data in entries:
            archive.writestr(zipfile.ZipInfo(entry or "x"), data)
    return target.getvalue(), f"zip: {kind}"


def _unsealed(content: bytes) -> bytes:
    """An archive without its seal, as older versions wrote them: what is edited is then met by the later checks."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            if not entry.filename.endswith(SEAL):
                new.writestr(zipfile.ZipInfo(entry.filename), old.read(entry))
    return target.getvalue()


class Worker:
    """A process that tries files, so that one that crashes takes nothing else along."""

    def __init__(self, case: Path) -> None:
        self._case = case
        self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        script = Path(__file__).with_name("mutation_worker.py")
        return subprocess.Popen(
            [sys.executable, str(script), str(self._case)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=ENVIRONMENT,
        )  # fmt: skip

    def verdict(self, kind: str, path: Path) -> str:
        """``refused``, ``same``, or what went wrong."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{kind}\t{path}\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
        answer = process.stdout.readline().strip() if ready else ""
        if answer:
            return answer
        process.kill()
        code = process.wait()
        self._process = self._start()
        return "crash: " + (f"ended by signal {-code}" if ready else f"no answer after {PATIENCE:.0f} s")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def mutations(folder: Path, count: int, seed: int) -> Iterator[Outcome]:
    """Mutate each kind of file and try it."""
    case = make_case(folder / "good", trainer__epochs=1)
    ended = in_process(main, case, "compile.enabled=true")
    assert ended.code == 0, ended.error
    scratch = Path(tempfile.mkdtemp(prefix="mutations-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    worker = Worker(case.parent)
    try:
        for kind, place, share in KINDS:
            yield _tried(worker, kind, case.parent / place, scratch, round(share * count), seed, folder / "failed")
    finally:
        worker.close()
        for path in scratch.iterdir():
            path.unlink()
        scratch.rmdir()


def _tried(worker: Worker, kind: str, good: Path, scratch: Path, count: int, seed: int, failed: Path) -> Outcome:
    generator = random.Random(f"{seed} {kind}")
    content = good.read_bytes()
    if kind.endswith("no seal"):
        content = _unsealed(content)
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    ways: Counter[str] = Counter()
    path = scratch / good.name
    for number in range(count):
        data, way = mutated(content, generator)
        path.write_bytes(data)
        answer = worker.verdict(kind, path)
        ways[way] += 1
        counts[answer.partition(":")[0]] += 1
        if answer not in ("refused", "same", "valid"):
            failed.mkdir(exist_ok=True)
            (failed / f"{number}_{good.name}").write_bytes(data)
            wrong.append(f"{number} ({way}): {answer}")
    done = f"{count:,} mutations: {', '.join(ways)}"
    result = ", ".join(f"{n:,} {words}" for words, n in counts.most_common())
    return Outcome(PART, kind, done, result + (f"; first: {wrong[0]}" if wrong else ""), not wrong)
