"""Published AIMNet2 TorchScript files: recognising and reading them.

Such a file holds one network or an ensemble (members ``models.0.module`` and so on) whose parameters are named
``afv.weight``, ``conv_a.agh``, ``mlps.0.0.weight`` ... The program inside is loaded by TorchScript, for its tensors
and settings, but never run; nothing is unpickled by Python.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from aimnet2mult.errors import ModelFileError
from aimnet2mult.models.files import load_program
from aimnet2mult.physics.damping import DampingParameters

_ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError)
_MAX_BYTES: Final = 2 << 30
_MAX_ENTRIES: Final = 50_000
_MAX_MEMBERS: Final = 64
# settings of the program that are not tensors; with another value it computes something else
_SETTINGS: Final[Mapping[str, object]] = {
    "aev._dual_basis": False,
    "conv_a.d2features": True,
    "conv_a.do_vector": True,
    "conv_q.d2features": False,
    "conv_q.do_vector": True,
    "outputs.energy_mlp.key_in": "aim",
    "outputs.energy_mlp.apply_fn": "none",
    "outputs.lrcoulomb.key_in": "charges",
    "outputs.d3bj.k1": -16.0,
    "outputs.d3bj.k3": -4.0,
}
_OUTPUTS: Final = ["energy_mlp", "atomic_shift", "atomic_sum", "lrcoulomb", "d3bj"]
_TENSORS: Final = frozenset(
    [f"aev.{name}_{kind}" for name in ("rc", "eta", "shifts") for kind in "sv"]
    + ["afv.weight", "conv_a.agh", "conv_q.agh", "outputs.atomic_shift.shifts.weight", "outputs.lrcoulomb.rc"]
    + ["mlps.0.0.weight", "mlps.1.0.weight", "outputs.energy_mlp.mlp.0.weight"]
    + [f"outputs.d3bj.{name}" for name in ("c6ab", "r4r2", "rcov", "cnmax")]
)
_LAYERS: Final = re.compile(r"(mlps\.(0|[1-9]\d{0,3})|outputs\.energy_mlp\.mlp)\.(0|[1-9]\d{0,3})\.(weight|bias)")


class PublishedMember(NamedTuple):
    """One network of a published file."""

    state: dict[str, Tensor]  # by the published names, without the prefix of the member
    activate_passes: bool  # GELU after the last layer of every pass but the first
    damping: DampingParameters  # of the D3(BJ) term inside; s9 is 0


def is_foreign(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive that this package did not write; only its table of contents is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except _ARCHIVE_ERRORS:
        return False
    compiled = {"data.pkl", "constants.pkl"} <= names and any(name.startswith("code/") for name in names)
    return compiled and "extra/metadata.json" not in names


def read_members(path: str | Path) -> list[PublishedMember]:
    """Read every network of a published AIMNet2 file.

    Parameters
    ----------
    path
        TorchScript file, of one network or of an ensemble.

    Returns
    -------
    list of PublishedMember
        In the order of the file; tensors on the CPU.

    Raises
    ------
    ModelFileError
        The file is missing, damaged, too large, or no published AIMNet2 network with one charge channel and D3(BJ).
    """
    path = Path(path)
    n_bytes = _check_archive(path)
    module = load_program(path, "cpu")
    state = {name: value.detach() for name, value in module.state_dict().items()}
    prefixes = [name.removesuffix("afv.weight") for name in state if re.fullmatch(r"(.+\.)?afv\.weight", name)]
    if not prefixes:
        raise _strange(path, f"no tensor afv.weight, but {', '.join(sorted(state)[:3]) or 'none at all'}")
    if len(prefixes) > _MAX_MEMBERS:
        raise _strange(path, f"{len(prefixes)} networks, more than {_MAX_MEMBERS}")
    members = []
    for prefix in prefixes:
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        _check_tensors(path, prefix, own, n_bytes)
        members.append(_member(path, _submodule(module, prefix), own))
    left_over = [name for name in state if not name.startswith(tuple(prefixes))]
    if left_over:
        raise _strange(path, f"tensors outside its networks: {', '.join(left_over[:3])}")
    return members


def _check_archive(path: Path) -> int:
    """Bytes of the unpacked content, after a look at sizes and checksums."""
    if not path.is_file():
        raise ModelFileError(f"{path} does not exist or is no file")
    if not is_foreign(path):
        raise ModelFileError(f"{path}: not a TorchScript file of another package; give a published AIMNet2 .jpt file")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            n_bytes = sum(entry.file_size for entry in entries)
            if len(entries) > _MAX_ENTRIES or n_bytes > _MAX_BYTES:
                raise ModelFileError(
                    f"{path}: {len(entries)} entries of {n_bytes >> 20} MiB together are too much for an AIMNet2 file"
                )
            damaged = archive.testzip()
    except _ARCHIVE_ERRORS as error:
        raise ModelFileError(f"{path}: damaged ({error}); download it again") from None
    if damaged is not None:
        raise ModelFileError(f"{path}: damaged ({damaged} fails its checksum); download it again")
    return n_bytes


def _strange(path: Path, finding: str) -> ModelFileError:
    return ModelFileError(
        f"{path}: not a published AIMNet2 network of the known kind (one charge channel, Coulomb and D3(BJ) inside): "
        f"it has {finding}"
    )


def _check_tensors(path: Path, prefix: str, state: Mapping[str, Tensor], n_bytes: int) -> None:
    """Every tensor is expected, finite, and not larger than the file that it comes from."""
    unknown = [name for name in state if name not in _TENSORS and not _LAYERS.fullmatch(name)]
    missing = sorted(_TENSORS - set(state))
    if missing:
        raise _strange(path, f"no tensor {prefix}{missing[0]}")
    if unknown:
        raise _strange(path, f"a tensor {prefix}{unknown[0]} of unknown meaning")
    if sum(value.nbytes for value in state.values()) > n_bytes:
        raise _strange(path, "tensors that claim more numbers than the file holds")
    for name, value in state.items():
        if value.dtype not in (torch.float32, torch.float64) or not bool(value.isfinite().all()):
            raise _strange(path, f"a tensor {prefix}{name} that is not of finite floating-point numbers")


def _submodule(module: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        module = getattr(module, name) if name else module
    return module


def _member(path: Path, program: Any, state: dict[str, Tensor]) -> PublishedMember:
    """Settings that are no tensors, from the attributes of the loaded program."""
    for name, expected in _SETTINGS.items():
        owner, _, attribute = name.rpartition(".")
        found = getattr(_submodule(program, owner), attribute, None)
        if found != expected:
            raise _strange(path, f"{name} = {found!r} instead of {expected!r}")
    outputs = [name for name, _ in program.outputs.named_children()]
    if outputs != _OUTPUTS:
        raise _strange(path, f"the outputs {', '.join(outputs)} instead of {', '.join(_OUTPUTS)}")
    first, *later = [_ends_with_gelu(path, layers) for layers in program.mlps.children()]
    if first or not later or len(set(later)) > 1 or _ends_with_gelu(path, program.outputs.energy_mlp.mlp):
        raise _strange(path, "GELU at the ends of other perceptrons than the passes after the first")
    d3 = program.outputs.d3bj
    values = {name: getattr(d3, name, None) for name in ("s6", "s8", "a1", "a2")}
    damping = {name: value for name, value in values.items() if isinstance(value, float) and abs(value) < 100.0}
    if len(damping) < len(values):
        raise _strange(path, f"D3 parameters {values}")
    return PublishedMember(state, later[0], DampingParameters(**damping, s9=0.0))


def _ends_with_gelu(path: Path, layers: Any) -> bool:
    kinds = [layer.original_name for layer in layers.children()]
    gelus = [layer for layer in layers.children() if layer.original_name == "GELU"]
    expected = ["Linear", "GELU"] * (len(kinds) // 2 + 1)
    if kinds != expected[: len(kinds)] or any(getattr(layer, "approximate", "none") != "none" for layer in gelus):
        raise _strange(path, f"a perceptron of {', '.join(kinds)}")
    return kinds[-1] == "GELU"
