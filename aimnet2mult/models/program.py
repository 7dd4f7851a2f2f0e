"""Loading TorchScript programs: none that runs code at loading, none that could reach beyond tensors when it runs.

A program that is evaluated computes what it likes with tensors. Beyond tensors TorchScript offers it operations on
files, remote calls, and whatever libraries register under names of their own (``ops.NAME``): such programs are refused
by their source, before they are loaded.
"""

from __future__ import annotations

import re
import warnings
import zipfile
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


def load_program(path: Path, device: str | torch.device) -> torch.jit.ScriptModule:
    """Load the program of a TorchScript archive.

    Raises
    ------
    ModelFileError
        The program is damaged, has code that TorchScript runs at loading, or uses more than operations on tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            source = b"\n".join(
                archive.read(name)
                for name in names
                if name.partition("/")[2].startswith("code/") and name.endswith(".py")
            )
            pickles = b"".join(archive.read(name) for name in names if name.endswith(".pkl"))
    except ARCHIVE_ERRORS as error:
        raise ModelFileError(f"{path}: cannot be read as a compiled potential ({first_line(error)})") from None
    if _AT_LOADING.search(source + pickles):
        raise ModelFileError(f"{path}: holds code that would run while it is loaded; do not use this file")
    reaching = _REACHING.search(source)
    if reaching is not None or any(len(word.findall(source)) > len(known.findall(source)) for word, known in _BY_NAME):
        what = "operations by strange names" if reaching is None else reaching[0].decode()
        raise ModelFileError(f"{path}: the program inside uses more than tensors ({what}); do not use this file")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.*", category=Warning)
            return torch.jit.load(str(path), map_location=device)
    except Exception as error:  # the TorchScript reader raises many kinds for a damaged program
        raise ModelFileError(f"{path}: the program inside cannot be loaded ({first_line(error)})") from None
