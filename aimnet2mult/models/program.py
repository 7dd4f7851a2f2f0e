"""Loading TorchScript programs: none that runs code at loading, none that could reach beyond tensors when it runs.

A program that is evaluated computes what it likes with tensors. Beyond tensors TorchScript offers it operations on
files, remote calls, and whatever libraries register under names of their own (``ops.NAME``): such programs are refused
by their source, before they are loaded. So are those that are nested so deeply that torch's own readers, which follow
the nesting by recursion, would crash.
"""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from itertools import islice
from pathlib import Path
from typing import Final

import torch

from aimnet2mult.errors import ModelFileError
from aimnet2mult.models.archive import ARCHIVE_ERRORS, first_line

# an exported __setstate__ runs while the program is loaded, and so does the one of a custom C++ class
_AT_LOADING: Final = re.compile(rb"__setstate__|__torch__\.torch\.classes")
_REACHING: Final = re.compile(rb"\b(save|from_file|manual_seed|rpc_async|rpc_sync|rpc_remote)\b")
# words that lead to operations by name, and the ways in which torch itself writes them (or modules of these names)
_BY_NAME: Final = (
    (re.compile(rb"\bops\b"), re.compile(rb"\bops\.prim\.\w+\(|\b__torch__(?:\.\w+)*\.ops\b")),
    (re.compile(rb"\bgetattr\b"), re.compile(rb'\bgetattr\([\w.]+, "[\w.]*"\)')),
)
_STRUCTURE: Final = re.compile(
    rb'"(?:[^"\\\n]|\\.)*"|[(\[{]|[)\]}]|\n *|[-+*/%@.<>=!~&|^]|\b(?:not|and|or|if|else|in|is)\b'
)
# torch writes statements of some 40 signs, 12 columns of indentation and, for four networks, pickles of 7,000 steps;
# its readers crash at 5,000 brackets or signs in a statement and at 200,000 steps
_MAX_SIGNS: Final = 1000
_MAX_INDENTATION: Final = 400
_MAX_STEPS: Final = 20_000


def load_program(path: Path, device: str | torch.device) -> torch.jit.ScriptModule:
    """Load the program of a TorchScript archive.

    Raises
    ------
    ModelFileError
        The program is damaged, has code that TorchScript runs at loading, or uses more than operations on tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith((".py", ".pkl"))]
            content = {name: archive.read(name) for name in names}
    except ARCHIVE_ERRORS as error:
        raise ModelFileError(f"{path}: cannot be read as a compiled potential ({first_line(error)})") from None
    pickles = [data for name, data in content.items() if name.endswith(".pkl")]
    source = b"\n".join(data for name, data in content.items() if name.endswith(".py"))
    fault = _fault(source, pickles)
    if fault is not None:
        raise ModelFileError(f"{path}: {fault}; do not use this file")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.*", category=Warning)
            return torch.jit.load(str(path), map_location=device)
    except Exception as error:  # the TorchScript reader raises many kinds for a damaged program
        raise ModelFileError(f"{path}: the program inside cannot be loaded ({first_line(error)})") from None


def _fault(source: bytes, pickles: list[bytes]) -> str | None:
    """What speaks against loading a program; None where nothing does."""
    if _AT_LOADING.search(source) or any(_AT_LOADING.search(data) for data in pickles):
        return "holds code that would run while it is loaded"
    reaching = _REACHING.search(source)
    if reaching is not None:
        return f"the program inside uses more than tensors ({reaching[0].decode()})"
    if any(len(word.findall(source)) > len(known.findall(source)) for word, known in _BY_NAME):
        return "the program inside uses more than tensors (operations by strange names)"
    if _is_convoluted(source) or any(map(_is_long, pickles)):
        return "the program inside is too convoluted"
    return None


def _is_convoluted(source: bytes) -> bool:
    """Whether a statement has more brackets and operators, or a line more indentation, than torch ever writes."""
    depth = signs = 0
    for match in _STRUCTURE.finditer(source):
        sign = match[0]
        if sign[:1] == b"\n":
            if len(sign) > _MAX_INDENTATION:
                return True
            signs = signs if depth > 0 else 0
        elif sign[:1] != b'"':
            signs += 1
            depth += (sign in b"([{") - (sign in b")]}")
            if signs > _MAX_SIGNS:
                return True
    return False


def _is_long(data: bytes) -> bool:
    """Whether a pickle has more steps than any that torch writes for a network, or none that can be followed."""
    try:
        steps = sum(1 for _ in islice(pickletools.genops(data), _MAX_STEPS + 1))
    except (ValueError, IndexError, KeyError, TypeError, EOFError):
        return True
    return steps > _MAX_STEPS
