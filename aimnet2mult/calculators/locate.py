"""Which compiled potentials does the user mean: a file, one of several fidelities, or an ensemble."""

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
from aimnet2mult.models.foreign_file import is_foreign

_NUMBERED = re.compile(r"(?P<stem>.+)_fid\d+\.jpt", re.DOTALL)


class Candidate(NamedTuple):
    """A compiled potential that is there, and which fidelity it says it is."""

    path: Path
    fidelity: FidelityInfo


def locate(model: object, fidelity: int | str | None) -> list[Path]:
    """Find the compiled potentials of a fidelity: one, or the members of an ensemble.

    Parameters
    ----------
    model
        A ``.jpt`` file; a folder that holds ``*_fid{N}.jpt``; what stands before ``_fid{N}.jpt``; a pattern with
        ``*``, ``?`` or ``[`` in it; or a list of files. Files of one fidelity in a folder, or that fit a pattern, are
        the members of an ensemble where what stands before ``_fid{N}.jpt`` differs.
    fidelity
        Number or name (upper and lower case are the same), None for the only one there is. What counts is the
        metadata inside a file, not its name.

    Returns
    -------
    list of Path
        Absolute, so that they keep their meaning when the working directory changes.

    Raises
    ------
    InputError
        None of the files fits, or it is not clear which ones are meant; the message lists what is there.
    ModelFileError
        There is no such file, or it cannot be read.
    """
    if isinstance(model, list | tuple) and model:
        return [path for entry in model for path in _locate_one(entry, fidelity)]
    return _locate_one(model, fidelity)


def locate_siblings(paths: Sequence[Path], fidelity: int | str) -> list[Path]:
    """Find the potentials of another fidelity that were compiled beside `paths` under the same prefixes.

    Raises
    ------
    InputError
        There is none; the message lists what is there.
    ModelFileError
        One of the files cannot be read.
    """
    return [_choose(_same_prefix(path), fidelity, path)[0] for path in paths]


def siblings(path: Path) -> list[FidelityInfo]:
    """Fidelities that were compiled beside `path` under the same prefix, itself included.

    Raises
    ------
    ModelFileError
        One of the files cannot be read.
    """
    files = _same_prefix(path)
    return [read_metadata(file).fidelity for file in files] if len(files) > 1 else []


def describe(info: FidelityInfo) -> str:
    """Number and name of a fidelity, as messages show them: ``1 'CCSD(T)'``."""
    return f"{info.index} {info.name!r}"


def _locate_one(model: object, fidelity: int | str | None) -> list[Path]:
    if not isinstance(model, str | os.PathLike) or not os.fspath(model):
        raise InputError(f"model must be the path of a .jpt file, a folder, a prefix or a list of files, not {model!r}")
    path = Path(os.path.abspath(Path(os.fsdecode(model)).expanduser()))
    if path.is_file():
        return _choose([path], fidelity, path)
    if path.is_dir():
        files = _numbered_files(path, "*")
        if not files:
            raise ModelFileError(f"{path} holds no *_fid{{N}}.jpt; give a folder of compiled potentials or one file")
        return _choose(files, fidelity, path)
    files = _numbered_files(path.parent, glob.escape(path.name))
    if not files and glob.has_magic(str(path)):
        files = sorted(Path(file) for file in glob.glob(str(path)) if Path(file).is_file())
        if not files:
            raise ModelFileError(f"no file fits the pattern {path}; a pattern must fit the whole names of files")
    if not files:
        raise ModelFileError(f"{path} does not exist, nor does {path.name}_fid{{N}}.jpt beside it")
    return _choose(files, fidelity, path)


def _same_prefix(path: Path) -> list[Path]:
    match = _NUMBERED.fullmatch(path.name)
    return (_numbered_files(path.parent, glob.escape(match["stem"])) if match else []) or [path]


def _numbered_files(folder: Path, stem: str) -> list[Path]:
    return sorted(p for p in folder.glob(f"{stem}_fid*.jpt") if p.is_file() and _NUMBERED.fullmatch(p.name))


def _choose(files: Sequence[Path], fidelity: int | str | None, asked: Path) -> list[Path]:
    """The file of a fidelity, or several with different prefixes."""
    if fidelity is not None and (isinstance(fidelity, bool) or not isinstance(fidelity, int | str)):
        raise InputError(f"fidelity must be a number or a name, not {fidelity!r}")
    if len(files) == 1 and (fidelity is None or is_foreign(files[0])):
        return list(files)
    candidates, broken = [], []
    for path in files:
        try:
            candidates.append(Candidate(path, read_metadata(path).fidelity))
        except ModelFileError as error:
            broken.append(error)
    fitting = [c for c in candidates if fidelity is None or _is_called(c.fidelity, fidelity)]
    one_fidelity = len({c.fidelity.index for c in fitting}) == 1
    distinct = len({_stem(c.path) for c in fitting}) == len(fitting)
    if one_fidelity and distinct and ((len(fitting) == 1 and fidelity is not None) or not broken):
        return [c.path for c in fitting]
    if broken:
        raise broken[0]
    there = ", ".join(f"{describe(c.fidelity)} ({c.path.name})" for c in candidates)
    if fidelity is None:
        raise InputError(f"{asked} has several fidelities: {there}; choose one with fidelity=")
    if fitting:
        raise InputError(f"{asked}: several files are fidelity {fidelity!r}, give one of them as model: {there}")
    more = ""
    if len(candidates) == 1:
        others = [describe(info) for info in siblings(candidates[0].path) if _is_called(info, fidelity)]
        more = f"; {others[0]} is a file beside it: give the folder instead" if others else ""
    raise InputError(f"{asked} has no fidelity {fidelity!r}; there is {there}{more}")


def _stem(path: Path) -> str:
    match = _NUMBERED.fullmatch(path.name)
    return match["stem"] if match else path.name


def _is_called(info: FidelityInfo, fidelity: int | str) -> bool:
    if isinstance(fidelity, str):
        return info.name.casefold() == fidelity.casefold()
    return info.index == fidelity
