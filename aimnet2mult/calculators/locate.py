"""Which compiled potential does the user mean: a file, or one of several fidelities beside each other."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from aimnet2mult.configs.metadata import FidelityInfo
from aimnet2mult.errors import InputError, ModelFileError
from aimnet2mult.models.files import read_metadata

_NUMBERED = re.compile(r"(?P<stem>.+)_fid\d+\.jpt", re.DOTALL)


class Candidate(NamedTuple):
    """A compiled potential that is there, and which fidelity it says it is."""

    path: Path
    fidelity: FidelityInfo


def locate(model: str | os.PathLike[str], fidelity: int | str | None) -> Path:
    """Find the compiled potential of a fidelity.

    Parameters
    ----------
    model
        A ``.jpt`` file; a folder that holds ``*_fid{N}.jpt``; or what stands before ``_fid{N}.jpt``.
    fidelity
        Number or name (upper and lower case are the same), None for the only one there is. What counts is the
        metadata inside a file, not its name.

    Returns
    -------
    Path
        Absolute, so that it keeps its meaning when the working directory changes.

    Raises
    ------
    InputError
        None or several of the files fit; the message lists what is there.
    ModelFileError
        There is no such file, or it cannot be read.
    """
    if not isinstance(model, str | os.PathLike) or not os.fspath(model):
        raise InputError(f"model must be the path of a .jpt file, a folder or a prefix, not {model!r}")
    path = Path(os.path.abspath(Path(model).expanduser()))
    if path.is_file():
        return _choose([path], fidelity, path)
    files = _numbered_files(path, "*") if path.is_dir() else _numbered_files(path.parent, glob.escape(path.name))
    if not files:
        if path.is_dir():
            raise ModelFileError(f"{path} holds no *_fid{{N}}.jpt; give a folder of compiled potentials or one file")
        raise ModelFileError(f"{path} does not exist, nor does {path.name}_fid{{N}}.jpt beside it")
    return _choose(files, fidelity, path)


def locate_sibling(path: Path, fidelity: int | str) -> Path:
    """Find the potential of another fidelity that was compiled beside `path` under the same prefix.

    Raises
    ------
    InputError
        There is none; the message lists what is there.
    ModelFileError
        One of the files cannot be read.
    """
    match = _NUMBERED.fullmatch(path.name)
    files = _numbered_files(path.parent, glob.escape(match["stem"])) if match else [path]
    return _choose(files or [path], fidelity, path)


def describe(info: FidelityInfo) -> str:
    """Number and name of a fidelity, as messages show them: ``1 'CCSD(T)'``."""
    return f"{info.index} {info.name!r}"


def _numbered_files(folder: Path, stem: str) -> list[Path]:
    return sorted(p for p in folder.glob(f"{stem}_fid*.jpt") if p.is_file() and _NUMBERED.fullmatch(p.name))


def _choose(files: Sequence[Path], fidelity: int | str | None, asked: Path) -> Path:
    if fidelity is not None and (isinstance(fidelity, bool) or not isinstance(fidelity, int | str)):
        raise InputError(f"fidelity must be a number or a name, not {fidelity!r}")
    if fidelity is None and len(files) == 1:
        return files[0]
    candidates, broken = [], []
    for path in files:
        try:
            candidates.append(Candidate(path, read_metadata(path).fidelity))
        except ModelFileError as error:
            broken.append(error)
    fitting = [c for c in candidates if fidelity is None or _is_called(c.fidelity, fidelity)]
    if len(fitting) == 1 and (fidelity is not None or not broken):
        return fitting[0].path
    if broken:
        raise broken[0]
    there = ", ".join(f"{describe(c.fidelity)} ({c.path.name})" for c in candidates)
    if fidelity is None:
        raise InputError(f"{asked} has several fidelities: {there}; choose one with fidelity=")
    if fitting:
        raise InputError(f"{asked}: several files are fidelity {fidelity!r}, give one of them as model: {there}")
    raise InputError(f"{asked} has no fidelity {fidelity!r}; there is {there}")


def _is_called(info: FidelityInfo, fidelity: int | str) -> bool:
    if isinstance(fidelity, str):
        return info.name.casefold() == fidelity.casefold()
    return info.index == fidelity
