"""Weights files (.pt) and compiled potentials (.jpt); with `program`, the one module that says torch.jit.

Nothing in a file is executed while it is loaded: weights load with ``weights_only=True``; the metadata of a compiled
potential is read from its archive and checked before the program is; see `program` for what programs may hold.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import FiniteFloat, TypeAdapter, ValidationError
from torch import Tensor

from aimnet2mult.configs.metadata import FORMAT_VERSION, FidelityInfo, PotentialMetadata
from aimnet2mult.configs.model import ModelConfig
from aimnet2mult.configs.yaml_io import validated
from aimnet2mult.errors import ConfigError, ModelFileError
from aimnet2mult.files import atomic_path
from aimnet2mult.models.archive import ARCHIVE_ERRORS, check_archive, first_line, seal, write_sealed
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.models.novelty import NoveltyStatistics, read_statistics
from aimnet2mult.models.potential import Potential
from aimnet2mult.models.program import load_program

METADATA_NAME = "metadata.json"
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
    novelty: dict[int, NoveltyStatistics]  # by fidelity; {}: not known
    path: Path

    def build(self) -> MultiFidelityNetwork:
        """The network with these weights.

        Raises
        ------
        ModelFileError
            The weights do not fit the configuration.
        """
        # first without memory for the values: the configuration of a strange file may ask for any amount
        with torch.device("meta"):
            expected = MultiFidelityNetwork(self.config).state_dict()
        wanted, found = _kinds(expected), _kinds(self.state)
        wrong = [name for name in sorted({*wanted, *found}) if wanted.get(name) != found.get(name)]
        if wrong:
            raise ModelFileError(
                f"{self.path}: the weights do not fit the model configuration: {', '.join(wrong[:3])} missing, "
                "left over, or of another shape"
            )
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
    novelty: Mapping[int, NoveltyStatistics] | None = None,
) -> None:
    """Write the weights of a multi-fidelity network with all that is needed to rebuild it, atomically.

    `sae` are the self-atomic energies (eV) by fidelity and atomic number that training removed from the labels;
    `novelty` tells by fidelity where the features of the training atoms lie.

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
        "novelty": {fidelity: dict(known._asdict()) for fidelity, known in (novelty or {}).items()},
        "weights": {name: value.detach().cpu().clone() for name, value in network.state_dict().items()},
    }
    try:
        with atomic_path(path) as temporary:
            write_sealed(temporary, content)
    except OSError as error:
        reason = error.strerror or error
        raise ModelFileError(f"{path} cannot be written ({reason}); make room or mend the folder") from None


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
        config = validated(ModelConfig, json.loads(content["model"]), str(path))
        return Weights(
            config=config,
            state=_checked_state(path, content["weights"]),
            fidelities=TypeAdapter(list[FidelityInfo]).validate_json(content["fidelities"]),
            provenance=TypeAdapter(dict[str, str]).validate_python(content["provenance"]),
            sae=TypeAdapter(dict[int, dict[int, FiniteFloat]]).validate_python(content.get("sae", {})),
            novelty={
                fidelity: read_statistics(_checked_state(path, state), config.kwargs.aim_size)
                for fidelity, state in _by_fidelity(content.get("novelty", {}))
            },
            path=path,
        )
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise ModelFileError(f"{path}: the description inside is malformed ({first_line(error)})") from None


def _checked_state(path: Path, state: Any) -> dict[str, Tensor]:
    """The weights of a file that may come from anybody: real numbers by name, not more than the file has room for."""
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) and isinstance(k, str) for k, v in state.items()):
        raise ValueError("the weights are not tensors by name")
    if sum(value.numel() * value.element_size() for value in state.values()) > path.stat().st_size:
        raise ValueError("the weights claim more numbers than the file holds")
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise ValueError("some weights are not finite")
    return state


def _by_fidelity(values: Any) -> list[tuple[int, Any]]:
    if not isinstance(values, dict) or not all(type(fidelity) is int for fidelity in values):
        raise ValueError("the novelty statistics are not in order of fidelities")
    return list(values.items())


def _kinds(state: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Shape of each tensor, and whether it holds floating-point numbers."""
    return {name: (tuple(value.shape), value.is_floating_point()) for name, value in state.items()}


def read_archive(path: Path, remedy: str) -> Any:
    """What `torch.save` wrote to `path`, after the checks of `check_archive`, which `torch.load` itself leaves out.

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
    if any("/code/" in name for name in check_archive(path, remedy)):
        raise ModelFileError(f"{path}: this is a compiled potential; {remedy}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # with advice that is wrong for strange files
        raise ModelFileError(f"{path}: holds other things than tensors and plain data; {remedy}") from None
    except Exception as error:  # torch raises many kinds for what is damaged
        raise ModelFileError(f"{path}: damaged ({first_line(error)[:80]}); {remedy}") from None


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
    seal(stream)
    path.write_bytes(stream.getbuffer())


def read_metadata(path: str | Path) -> PotentialMetadata:
    """Read the metadata of a compiled potential without loading its program.

    Raises
    ------
    ModelFileError
        The file is missing, damaged, or not a potential compiled by this package.
    """
    path = _existing(path)
    check_archive(path, "compile or copy it again")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.endswith(f"/extra/{METADATA_NAME}")]
            if len(names) != 1:
                raise ModelFileError(f"{path}: not a potential compiled by aimnet2mult (no metadata inside)")
            values: dict[str, Any] = json.loads(archive.read(names[0]))
    except ARCHIVE_ERRORS as error:
        raise ModelFileError(f"{path}: cannot be read as a compiled potential ({first_line(error)})") from None
    _check_version(path, values.get("format_version") if isinstance(values, dict) else None)
    try:
        return PotentialMetadata.model_validate(values)
    except ValidationError as error:
        raise ModelFileError(f"{path}: the metadata inside is malformed ({error.error_count()} errors)") from None


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
