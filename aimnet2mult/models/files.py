"""Weights files (.pt) and compiled potentials (.jpt); the one module that says torch.jit.

Nothing in a file is executed while it is loaded: weights load with ``weights_only=True``; the metadata of a compiled
potential is read from its archive and checked before the program is; and programs that would run code of their own at
loading are refused. A potential that is then evaluated does run, with what TorchScript offers to it.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from aimnet2mult.configs.metadata import FORMAT_VERSION, FidelityInfo, PotentialMetadata
from aimnet2mult.configs.model import ModelConfig
from aimnet2mult.configs.yaml_io import validated
from aimnet2mult.errors import ModelFileError
from aimnet2mult.files import atomic_path
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.models.potential import Potential

METADATA_NAME = "metadata.json"
# what zipfile and json raise for damaged archives; RuntimeError: an entry that claims to be encrypted
_ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError)
_OURS = "give the model.pt of a training run"
WEIGHTS_KIND = "aimnet2mult weights"


@dataclass(frozen=True)
class Weights:
    """Content of a weights file: everything that is needed to rebuild the multi-fidelity network."""

    config: ModelConfig
    state: dict[str, Tensor]
    fidelities: list[FidelityInfo]
    provenance: dict[str, str]
    sae: dict[int, dict[int, float]]  # eV by fidelity and atomic number, as removed from the labels; {}: not known
    path: Path

    def build(self) -> MultiFidelityNetwork:
        """The network with these weights.

        Raises
        ------
        ModelFileError
            The weights do not fit the configuration.
        """
        return fill_network(MultiFidelityNetwork(self.config), self.state)


@dataclass(frozen=True)
class LoadedPotential:
    """A compiled potential and what it says of itself."""

    module: torch.jit.ScriptModule
    metadata: PotentialMetadata
    path: Path


def fill_network(network: MultiFidelityNetwork, state: Mapping[str, Tensor]) -> MultiFidelityNetwork:
    """Load `state` into `network`, strictly.

    Raises
    ------
    ModelFileError
        A weight is missing, left over or has another shape; the message names the first ones.
    """
    try:
        network.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        detail = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise ModelFileError(f"the weights do not fit the model configuration: {detail}") from None
    return network


def save_weights(
    path: str | Path,
    network: MultiFidelityNetwork,
    fidelities: Sequence[FidelityInfo],
    provenance: Mapping[str, str],
    sae: Mapping[int, Mapping[int, float]] | None = None,
) -> None:
    """Write the weights of a multi-fidelity network with all that is needed to rebuild it, atomically.

    `sae` are the self-atomic energies (eV) by fidelity and atomic number that training removed from the labels.

    Raises
    ------
    ModelFileError
        The file cannot be written; an older one is kept.
    """
    content = {
        "kind": WEIGHTS_KIND,
        "format_version": FORMAT_VERSION,
        "model": json.dumps(network.config.to_dict()),
        "fidelities": json.dumps([info.model_dump() for info in fidelities]),
        "provenance": dict(provenance),
        "sae": {fidelity: dict(values) for fidelity, values in (sae or {}).items()},
        "weights": {name: value.detach().cpu().clone() for name, value in network.state_dict().items()},
    }
    try:
        with atomic_path(path) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise ModelFileError(f"{path} cannot be written ({_first_line(error)}); make room or mend the folder") from None


def load_weights(path: str | Path) -> Weights:
    """Read a weights file.

    Raises
    ------
    ModelFileError
        The file is missing, damaged, or not a weights file of this package.
    """
    path = _existing(path)
    content = read_archive(path, _OURS)
    if not isinstance(content, dict) or content.get("kind") != WEIGHTS_KIND:
        raise ModelFileError(f"{path}: not a weights file written by aimnet2mult; {_OURS}")
    _check_version(path, content.get("format_version"))
    try:
        return Weights(
            config=validated(ModelConfig, json.loads(content["model"]), str(path)),
            state=content["weights"],
            fidelities=[FidelityInfo.model_validate(entry) for entry in json.loads(content["fidelities"])],
            provenance=content["provenance"],
            sae=content.get("sae", {}),
            path=path,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path}: the description inside is malformed ({_first_line(error)})") from None


def read_archive(path: Path, remedy: str) -> Any:
    """What `torch.save` wrote to `path`, after a test of every checksum, which `torch.load` itself leaves out.

    Parameters
    ----------
    path
        The file.
    remedy
        What to do about a file that cannot be read, for the message.

    Raises
    ------
    ModelFileError
        The file is damaged or none that `torch.save` wrote from plain data and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sums(path, archive, remedy)
            compiled = any("/code/" in name for name in archive.namelist())
    except _ARCHIVE_ERRORS as error:
        reason = _first_line(error)
        raise ModelFileError(f"{path}: damaged, or another kind of file ({reason}); {remedy}") from None
    if compiled:
        raise ModelFileError(f"{path}: this is a compiled potential; {remedy}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises many kinds for foreign content, with advice that is wrong for strange files
        raise ModelFileError(f"{path}: holds other things than tensors and plain data; {remedy}") from None


def _check_sums(path: Path, archive: zipfile.ZipFile, remedy: str) -> None:
    damaged = archive.testzip()
    if damaged is not None:
        raise ModelFileError(f"{path}: damaged ({damaged} fails its checksum); {remedy}")


def script_potential(potential: Potential) -> torch.jit.ScriptModule:
    """Compile a potential to TorchScript."""
    with warnings.catch_warnings():
        # torch.jit is deprecated but is the file format that users ask for
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=Warning)
        return torch.jit.script(potential.eval())


def write_potential(path: Path, module: torch.jit.ScriptModule, metadata: PotentialMetadata) -> None:
    """Write a compiled potential straight to `path` (for callers that rename it themselves).

    Raises
    ------
    OSError
        The file cannot be written.
    """
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=Warning)
        complete = metadata.model_copy(update={"weights_sha256": state_digest(module.state_dict())})
        # to memory: when the writer of TorchScript itself meets a full disk, it aborts the interpreter
        torch.jit.save(module, stream, _extra_files={METADATA_NAME: complete.model_dump_json()})
    path.write_bytes(stream.getbuffer())


def read_metadata(path: str | Path) -> PotentialMetadata:
    """Read the metadata of a compiled potential without loading its program.

    Raises
    ------
    ModelFileError
        The file is missing, damaged, or not a potential compiled by this package.
    """
    path = _existing(path)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sums(path, archive, "compile or copy it again")
            names = [n for n in archive.namelist() if n.endswith(f"/extra/{METADATA_NAME}")]
            if len(names) != 1:
                raise ModelFileError(f"{path}: not a potential compiled by aimnet2mult (no metadata inside)")
            values: dict[str, Any] = json.loads(archive.read(names[0]))
    except _ARCHIVE_ERRORS as error:
        raise ModelFileError(f"{path}: cannot be read as a compiled potential ({_first_line(error)})") from None
    _check_version(path, values.get("format_version") if isinstance(values, dict) else None)
    try:
        return PotentialMetadata.model_validate(values)
    except ValidationError as error:
        raise ModelFileError(f"{path}: the metadata inside is malformed ({error.error_count()} errors)") from None


def load_program(path: Path, device: str | torch.device) -> torch.jit.ScriptModule:
    """Load the program of a TorchScript archive that runs nothing at loading.

    Raises
    ------
    ModelFileError
        The program is damaged, or has code that TorchScript runs at loading.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sources = [name for name in archive.namelist() if name.partition("/")[2].startswith("code/")]
            text = b"".join(archive.read(name) for name in sources if name.endswith(".py"))
            text += b"".join(archive.read(name) for name in archive.namelist() if name.endswith(".pkl"))
    except _ARCHIVE_ERRORS as error:
        raise ModelFileError(f"{path}: cannot be read as a compiled potential ({_first_line(error)})") from None
    # an exported __setstate__ runs while the program is loaded, and so does the one of a custom C++ class
    if b"__setstate__" in text or b"__torch__.torch.classes" in text:
        raise ModelFileError(f"{path}: holds code that would run while it is loaded; do not use this file")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.*", category=Warning)
            return torch.jit.load(str(path), map_location=device)
    except Exception as error:  # the TorchScript reader raises many kinds for a damaged program
        raise ModelFileError(f"{path}: the program inside cannot be loaded ({_first_line(error)})") from None


def load_potential(path: str | Path, device: str | torch.device = "cpu") -> LoadedPotential:
    """Load a compiled potential.

    Parameters
    ----------
    path
        A ``.jpt`` file written by ``aimnet2mult.training.compile``.
    device
        Where its tensors go.

    Raises
    ------
    ModelFileError
        The file is missing, damaged, not ours, or its program disagrees with its metadata.
    """
    metadata = read_metadata(path)
    module = load_program(Path(path), device)
    if state_digest(module.state_dict()) != metadata.weights_sha256:
        raise ModelFileError(f"{path}: the program disagrees with its metadata; compile it again")
    return LoadedPotential(module.eval(), metadata, Path(path))


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values of all tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        values = value.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if path.is_dir():
        raise ModelFileError(f"{path} is a folder; give a file in it")
    if not path.is_file():
        raise ModelFileError(f"{path} does not exist")
    return path


def _check_version(path: Path, version: object) -> None:
    if not isinstance(version, int) or version < 1:
        raise ModelFileError(f"{path}: no format version inside; it was not written by aimnet2mult")
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: format version {version} is newer than this package knows ({FORMAT_VERSION}); update aimnet2mult"
        )


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
