"""Compiling: what would go wrong in silence is refused; an existing file is replaced whole or not at all."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import yaml

from aimnet2mult.models.files import load_potential, read_metadata
from aimnet2mult.training.cli_args import main
from aimnet2mult.training.compile import main as compile_main
from fault_cases.inputs import in_process
from fault_cases.machine import file_limit, mounted
from fault_cases.material import ENVIRONMENT, Ended, command, make_case, run
from fault_cases.table import Outcome

PART = "compiling"


def _arguments(case: Path, *more: str, **changed: str) -> list[str]:
    """Command line of a good compilation, with changes."""
    out = case.parent / "out"
    values = {
        "weights": str(out / "model.pt"),
        "output": str(case.parent / "compiled/model"),
        "fidelity": "0",
        "sae": str(out / "sae_fid0.yaml"),
    }
    return [text for key, value in (values | changed).items() for text in (f"--{key}", value)] + list(more)


def compiling(folder: Path) -> Iterator[Outcome]:
    """The faults of compiling."""
    case = make_case(folder / "case", trainer__epochs=1)
    dispersed = "data.fidelities.1.labels_include_dispersion=true"
    assert in_process(main, case, dispersed).code == 0
    d3 = ("--dispersion", "d3bj", "--dispersion-functional")
    d4 = ("--dispersion", "d4", "--dispersion-functional")
    other = case.with_name("other.yaml")
    settings = yaml.safe_load((case.parent / "model.yaml").read_text(encoding="utf-8"))
    settings["kwargs"]["aim_size"] = 16
    other.write_text(yaml.safe_dump(settings), encoding="utf-8")
    one = {"fidelity": "1", "sae": str(case.parent / "out/sae_fid1.yaml")}
    for name, arguments, words in (
        ("a fidelity that does not exist", _arguments(case, fidelity="7"), ("fidelity 7",)),
        ("a fidelity below zero", _arguments(case, fidelity="-1"), ("fidelity -1",)),
        ("weights that do not fit", _arguments(case, model=str(other)), ("do not fit",)),
        ("the functional rpbe with D3", _arguments(case, *d3, "rpbe0"), ("rpbe0", "close names")),
        ("the functional cam-b3lypp with D3", _arguments(case, *d3, "cam-b3lypp"), ("cam-b3lypp", "close names")),
        ("the functional wb97m-d with D4", _arguments(case, *d4, "wb97m-d"), ("wb97m-d", "close names")),
        ("D3 without a functional", _arguments(case, "--dispersion", "d3bj"), ("functional",)),
        ("dispersion twice", _arguments(case, *d3, "pbe0", **one), ("hold dispersion already",)),
        ("SAE of another fidelity", _arguments(case, sae=one["sae"]), ("sae_fid1.yaml", "was trained with")),
        ("SAE missing", _arguments(case, sae="none.yaml"), ("none.yaml does not exist",)),
        ("weights missing", _arguments(case, weights="none.pt"), ("none.pt does not exist",)),
        ("weights that are text", _arguments(case, weights=str(case)), ("damaged, or another kind of file",)),
        ("output that is a folder", _arguments(case, output=f"{folder}/"), ("--output is the start of the file name",)),
        ("output below a file", _arguments(case, output=f"{case}/model"), ("cannot be written",)),
    ):
        ended = in_process(compile_main, *arguments)
        yield Outcome(PART, name, " ".join(arguments[8:]) or arguments[-1], _short(ended), ended.refused(*words))
    for name, other_name in (("rpbe", "pbe"), ("cam-b3lyp", "b3lyp")):
        found = []
        for functional in (name, other_name):
            assert in_process(compile_main, *_arguments(case, *d3, functional)).code == 0
            inside = read_metadata(case.parent / "compiled/model_fid0.jpt").dispersion
            found.append((inside.s8, inside.a1, inside.a2))
        result = f"own parameters, s8 {found[0][0]}; those of {other_name}: {found[1][0]}"
        yield Outcome(PART, f"the functional {name} is not {other_name}", "D3", result, found[0] != found[1])
    yield from _data_of_d4(case, _arguments(case, *d4, "pbe0"))
    yield from _replacing(case)


def _data_of_d4(case: Path, arguments: list[str]) -> Iterator[Outcome]:
    """D4 when the tables that come with the package are not there."""
    code = (
        "import sys, pathlib, aimnet2mult.physics as p\n"
        "from aimnet2mult.training.compile import main\n"
        "import numpy as np\n"
        "load = np.load\n"
        "def gone(path, *a, **k):\n"
        "    if str(path).endswith('d4.npz'): raise FileNotFoundError(2, 'No such file or directory', str(path))\n"
        "    return load(path, *a, **k)\n"
        "np.load = gone\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    script = case.with_name("without.py")
    script.write_text(code, encoding="utf-8")
    process = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, env=ENVIRONMENT)
    ended = Ended(process.returncode, process.stdout, process.stderr)
    yield Outcome(PART, "D4 without its tables", "d4.npz taken away", _short(ended), ended.refused("d4.npz"))


def _replacing(case: Path) -> Iterator[Outcome]:
    """An existing file under every way in which writing fails."""
    target = case.parent / "compiled/model_fid0.jpt"
    assert in_process(compile_main, *_arguments(case)).code == 0
    before = target.read_bytes()

    def kept(ended: Ended | None, *words: str) -> bool:
        left = list(target.parent.glob(".*"))
        return ended is not None and ended.refused(*words) and target.read_bytes() == before and not left

    module = "aimnet2mult.training.compile"
    ended = run(*_arguments(case), module=module, preexec_fn=file_limit(50_000))
    yield Outcome(PART, "no room for the file", "files end at 50 kB", _short(ended), kept(ended, "File too large"))
    mount = f"mount --bind {target.parent} {target.parent} && mount -o remount,ro,bind {target.parent}"
    shown = mounted(f"{mount} && exec {' '.join(command(*_arguments(case), module=module))}")
    if shown is not None:
        good = kept(shown, "Read-only file system")
        yield Outcome(PART, "output folder for reading only", "mount -o ro", _short(shown), good)
    ended = in_process(compile_main, *_arguments(case))
    load_potential(target)
    yield Outcome(PART, "output exists", "compiled again", f"exit code {ended.code}, loads", ended.code == 0)
    shutil.rmtree(target.parent)


def programs(folder: Path) -> Iterator[Outcome]:
    """TorchScript programs that would do more than compute."""
    case = make_case(folder / "programs", trainer__epochs=1)
    assert in_process(main, case, "compile.enabled=true").code == 0
    good = case.parent / "out/compiled/model_fid0.jpt"

    class Writes(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.save(x, "executed")
            return x

    class Reads(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.from_file("/etc/passwd", False, 8, dtype=torch.uint8)

    class Runs(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

        @torch.jit.export
        def __getstate__(self) -> tuple[bool]:
            return (self.training,)

        @torch.jit.export
        def __setstate__(self, state: tuple[bool]) -> None:
            self.training = state[0]

    metadata = _metadata(good)
    makers: tuple[tuple[str, Callable[[], torch.nn.Module], str], ...] = (
        ("a program that writes a file", Writes, "save"),
        ("a program that reads any file", Reads, "from_file"),
        ("a program that runs while it is loaded", Runs, "run while it is loaded"),
    )
    for name, kind, word in makers:
        path = case.with_name("strange.jpt")
        torch.jit.save(torch.jit.script(kind()), str(path), _extra_files={"metadata.json": metadata})
        try:
            load_potential(path)
            result = "loaded"
        except Exception as error:
            result = str(error)
        safe = word in result and "do not use this file" in result and not Path("executed").exists()
        yield Outcome(PART, name, "with good metadata", result, safe)


def _metadata(path: Path) -> str:
    files = {"metadata.json": ""}
    torch.jit.load(str(path), _extra_files=files)
    content = files["metadata.json"]
    return content.decode() if isinstance(content, bytes) else content


def _short(ended: Ended) -> str:
    return f"exit code {ended.code}: {ended.error.strip()[:300]}"
