"""The zip archives in which torch keeps weights, checkpoints and programs: sealed when written, checked before use.

A seal is a SHA-256 over the names and contents of all entries, kept as one more entry. It finds damage and edits of
every kind, also where somebody mended the checksums of the zip format; it does not tell who wrote a file.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

import torch

from aimnet2mult.errors import ModelFileError

SEAL: Final = "aimnet2mult.sha256"
MAX_ENTRIES: Final = 100_000
MAX_UNPACKED: Final = 64 << 20  # bytes beyond the size of the file: torch compresses the text of programs only
# what zipfile and json raise for damaged archives; RuntimeError: an entry that claims to be encrypted
ARCHIVE_ERRORS: Final = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError)
_BLOCK: Final = 1 << 20


def seal(target: Path | IO[bytes]) -> None:
    """Add the seal to a complete archive that torch wrote.

    Parameters
    ----------
    target
        File, or a stream that can be read and written.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    with zipfile.ZipFile(target, "a") as archive:
        entries = archive.infolist()
        root = entries[0].filename.partition("/")[0]
        # without a time of its own, so that the same content gives the same bytes
        archive.writestr(zipfile.ZipInfo(f"{root}/{SEAL}"), _digest(archive, entries))


def write_sealed(path: Path, content: object) -> None:
    """Write tensors and plain data as `torch.save` does, with a seal, straight to `path`.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    stream = io.BytesIO()
    # to memory: torch's own writer reports a full disk in words that nobody understands
    torch.save(content, stream)
    seal(stream)
    path.write_bytes(stream.getbuffer())


def check_archive(path: Path, remedy: str) -> list[str]:
    """Check sizes, checksums and the seal of an archive without using anything in it.

    Parameters
    ----------
    path
        The file.
    remedy
        What to do about a file that cannot be used, for the message.

    Returns
    -------
    list of str
        Names of the entries.

    Raises
    ------
    ModelFileError
        The file is no archive, is damaged, or was changed after it was written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_sizes(path, entries, remedy)
            seals = [entry for entry in entries if entry.filename.endswith(f"/{SEAL}")]
            found = _digest(archive, [entry for entry in entries if entry not in seals])
            if seals and archive.read(seals[0]) != found:
                raise ModelFileError(f"{path}: damaged, or changed after it was written; {remedy}")
            return [entry.filename for entry in entries]
    except ARCHIVE_ERRORS as error:
        raise ModelFileError(f"{path}: damaged, or another kind of file ({first_line(error)}); {remedy}") from None


def _check_sizes(path: Path, entries: Sequence[zipfile.ZipInfo], remedy: str) -> None:
    """Refuse what would unpack to more than the file itself holds, and entries that readers could mix up."""
    names = [entry.filename for entry in entries]
    if not entries or len(entries) > MAX_ENTRIES or len(set(names)) < len(names):
        raise ModelFileError(f"{path}: not an archive as torch writes them; {remedy}")
    if sum(entry.file_size for entry in entries) > path.stat().st_size + MAX_UNPACKED:
        raise ModelFileError(f"{path}: its entries claim far more bytes than the file holds; {remedy}")


def _digest(archive: zipfile.ZipFile, entries: Sequence[zipfile.ZipInfo]) -> bytes:
    """Hex SHA-256 over names, sizes and contents; reading an entry to its end tests its checksum too."""
    digest = hashlib.sha256()
    for entry in sorted(entries, key=lambda entry: entry.filename):
        digest.update(f"{entry.filename}\n{entry.file_size}\n".encode())
        try:
            with archive.open(entry) as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
        except zipfile.BadZipFile:
            raise zipfile.BadZipFile(f"{entry.filename} fails its checksum") from None
    return digest.hexdigest().encode()


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind where it says nothing."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
