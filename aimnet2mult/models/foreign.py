"""Published AIMNet2 networks (Anstine, Zubatyuk, Isayev, Chem. Sci. 2025, 16, 10228) as networks of this package.

The weights of a published TorchScript file are put into `MultiFidelityNetwork` with one fidelity: charges, forces
and energies are those of the published program, the energies without its rounding of atomic energies to float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from ase.data import chemical_symbols
from torch import Tensor

from aimnet2mult.configs.metadata import CutoffInfo, DispersionInfo, FidelityInfo, PotentialMetadata
from aimnet2mult.configs.model import ModelConfig
from aimnet2mult.configs.yaml_io import validated
from aimnet2mult.errors import ConfigError, ModelFileError
from aimnet2mult.models.dispersion import DEFAULT_CUTOFFS
from aimnet2mult.models.embedding import MAX_ATOMIC_NUMBER
from aimnet2mult.models.files import LoadedPotential, fill_network, save_weights, script_potential, state_digest
from aimnet2mult.models.foreign_dispersion import PublishedD3, check_tables
from aimnet2mult.models.foreign_file import PublishedMember, read_members
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.models.potential import Potential, SelfAtomicEnergy
from aimnet2mult.physics.damping import DampingParameters
from aimnet2mult.physics.radial import gaussian_centres, gaussian_exponent

_HEADS: Final = "aimnet2mult.models.heads"
_SAME: Final = 1e-6  # relative and absolute: float32 rounding of stored constants
# the published families, told apart by the damping parameters of the D3(BJ) term inside
_LEVELS: Final = {
    (1.0, 0.3908, 0.566, 3.128): ("wB97M-D3(BJ)", "wb97m"),
    (1.0, 1.5, 0.37, 4.1): ("B97-3c", "dftd3:b973c"),
}


@dataclass(frozen=True)
class ImportedModel:
    """A published network in the form of this package."""

    network: MultiFidelityNetwork  # one fidelity, float32
    sae: dict[int, float]  # eV by atomic number: the published atomic shifts of the elements it was trained on
    damping: DampingParameters
    fidelity: FidelityInfo
    provenance: dict[str, str]

    def potential(self) -> Potential:
        """Network, self-atomic energies and dispersion together."""
        terms = [PublishedD3(self.fidelity.elements, self.damping)]
        return Potential(self.network, SelfAtomicEnergy(self.sae), terms).eval()

    def metadata(self) -> PotentialMetadata:
        """What a compiled potential of it says of itself."""
        damping = self.damping
        functional = _LEVELS.get(_key(damping), (None, "custom"))[1]
        settings = self.network.config.kwargs
        return PotentialMetadata(
            fidelity=self.fidelity,
            all_fidelities=[self.fidelity],
            sae={chemical_symbols[z]: energy for z, energy in self.sae.items()},
            dispersion=DispersionInfo(
                method="d3bj",
                functional=functional,
                s6=damping.s6,
                s8=damping.s8,
                s9=damping.s9,
                a1=damping.a1,
                a2=damping.a2,
                cutoffs=CutoffInfo(**DEFAULT_CUTOFFS._asdict()),
                reference="as in the published AIMNet2 program: two-body, empty reference slots counted",
            ),
            cutoff=settings.aev.rc_s,
            num_charge_channels=settings.num_charge_channels,
            model=self.network.config.to_dict(),
            provenance=self.provenance,
        )


def load_aimnet2_weights(path: str | Path, member: int = 0) -> ImportedModel:
    """Read one network of a published AIMNet2 TorchScript file.

    Parameters
    ----------
    path
        TorchScript file of one network or of an ensemble.
    member
        Which network of the ensemble, from 0.

    Returns
    -------
    ImportedModel
        Network, self-atomic energies and dispersion parameters.

    Raises
    ------
    ModelFileError
        The file cannot be used (see `aimnet2mult.models.foreign_file.read_members`), or has no such member.
    """
    members = read_members(path)
    if not 0 <= member < len(members):
        raise ModelFileError(f"{path} has {len(members)} networks (0 to {len(members) - 1}), and none is {member}")
    return _imported(Path(path), members, member, _digest(path))


def foreign_potentials(path: str | Path) -> list[tuple[Potential, PotentialMetadata]]:
    """All networks of a published AIMNet2 TorchScript file as potentials, in the order of the file.

    Raises
    ------
    ModelFileError
        As for `load_aimnet2_weights`.
    """
    members, digest = read_members(path), _digest(path)
    imported = [_imported(Path(path), members, i, digest) for i in range(len(members))]
    return [(model.potential(), model.metadata()) for model in imported]


def load_foreign(path: str | Path, device: str | torch.device = "cpu") -> list[LoadedPotential]:
    """All networks of a published AIMNet2 TorchScript file as `load_potential` would give them.

    Parameters
    ----------
    path
        TorchScript file of one network or of an ensemble.
    device
        Where the tensors go.

    Raises
    ------
    ModelFileError
        As for `load_aimnet2_weights`.
    """
    loaded = []
    for potential, metadata in foreign_potentials(path):
        module = script_potential(potential).to(device)
        complete = metadata.model_copy(update={"weights_sha256": state_digest(module.state_dict())})
        loaded.append(LoadedPotential(module.eval(), complete, Path(path)))
    return loaded


def import_weights(path: str | Path, output: str | Path, member: int = 0) -> ImportedModel:
    """Write one network of a published file as a weights file (``.pt``) from which training can start.

    The network gives the energy without self-atomic energies (they go into the file too) and without dispersion, so
    the labels to go on with must not contain D3(BJ) either. The centres of the radial Gaussians, which published
    files hold rounded to float32, become the exact ones: 1e-6 eV per atom and 1e-4 eV/Å at most.

    Raises
    ------
    ModelFileError
        As for `load_aimnet2_weights`, or `output` cannot be written.
    """
    model = load_aimnet2_weights(path, member)
    save_weights(output, model.network, [model.fidelity], model.provenance, {0: model.sae})
    return model


def _digest(path: str | Path) -> str:
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _imported(path: Path, members: Sequence[PublishedMember], number: int, digest: str) -> ImportedModel:
    member = members[number]
    try:
        config = _config(member)
        shift = member.state["outputs.atomic_shift.shifts.weight"].flatten()
        _require(shift.numel() <= MAX_ATOMIC_NUMBER + 1, f"atomic shifts of {shift.numel()} elements")
        sae = {z: float(shift[z]) for z in range(1, len(shift)) if shift[z] != 0.0}
        _require(len(sae) > 0, "no element with an atomic shift")
        _require(max(sae) < len(member.state["afv.weight"]), "elements with an atomic shift but no embedding")
        tables = {name: member.state[f"outputs.d3bj.{name}"] for name in ("c6ab", "r4r2", "rcov")}
        check_tables(tables, list(sae))
        with torch.random.fork_rng(devices=[]):  # the random start is overwritten; the generator stays as it is
            network = MultiFidelityNetwork(config)
        fill_network(network, _weights(member.state, config, network.state_dict()))
    except (ConfigError, ModelFileError) as error:
        raise ModelFileError(f"{path}: cannot be used as an AIMNet2 network: {error}") from None
    basis = network.backbone.basis
    basis.centres.copy_(member.state["aev.shifts_s"])
    basis.exponent = float(member.state["aev.eta_s"])
    level = _LEVELS.get(_key(member.damping), (None, ""))[0]
    labels = ["energy", "forces", "charges"]
    return ImportedModel(
        network=network.eval(),
        sae=sae,
        damping=member.damping,
        fidelity=FidelityInfo(index=0, name=path.stem, level_of_theory=level, elements=list(sae), labels=labels),
        provenance={
            "imported_from": path.name,
            "imported_sha256": digest,
            "imported_member": f"{number} of {len(members)}",
        },
    )


def _key(damping: DampingParameters) -> tuple[float, float, float, float]:
    return (damping.s6, damping.s8, damping.a1, damping.a2)


def _require(condition: bool, finding: str) -> None:
    if not condition:
        raise ModelFileError(f"it has {finding}")


def _config(member: PublishedMember) -> ModelConfig:
    """Settings of the network, from its tensors; every shape is checked before anything is built."""
    state = member.state
    mix, charge_mix, embedding = state["conv_a.agh"], state["conv_q.agh"], state["afv.weight"]
    _require(mix.dim() == 3 and mix.numel() > 0, f"conv_a.agh of the shape {tuple(mix.shape)}")
    n, g, h = mix.shape
    n_charges = charge_mix.shape[0] if charge_mix.dim() == 3 else 0
    _require(n_charges <= 1, f"{n_charges} charge channels; only closed-shell networks with one can be imported")
    _require(charge_mix.shape == (1, g, h), f"conv_q.agh of the shape {tuple(charge_mix.shape)}")
    fits = embedding.dim() == 2 and embedding.shape[0] <= MAX_ATOMIC_NUMBER + 1 and embedding.shape[1] == n * g
    _require(fits, f"an embedding of the shape {tuple(embedding.shape)}")
    n_passes = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("mlps."))
    first, later, update = n * (2 * g + h), n * (2 * g + h) + 1 + g + h, n * g + 2
    hidden = [_hidden(state, "mlps.0", first, update)]
    hidden += [_hidden(state, f"mlps.{i}", later, update) for i in range(1, n_passes - 1)]
    readout = _hidden(state, "outputs.energy_mlp.mlp", None, 1)
    aim_size = state["outputs.energy_mlp.mlp.0.weight"].shape[1]
    hidden.append(_hidden(state, f"mlps.{n_passes - 1}", later, aim_size))
    settings: dict[str, Any] = {
        "num_fidelities": 1,
        "num_charge_channels": 1,
        "fidelity_embedding": "separate",
        "activate_passes": member.activate_passes,
        "exact_charges": False,
        "aev": _radial_basis(state, g),
        "nfeature": n,
        "d2features": True,
        "ncomb_v": h,
        "hidden": hidden,
        "aim_size": aim_size,
        "outputs": {
            "energy_mlp": {"class": f"{_HEADS}.EnergyMLP", "kwargs": {"hidden": readout}},
            "charges": {"class": f"{_HEADS}.Charges", "kwargs": {"source": "backbone"}},
            "atomic_shift": {"class": f"{_HEADS}.AtomicShift"},
            "atomic_sum": {"class": f"{_HEADS}.AtomicSum"},
            "lrcoulomb": {
                "class": f"{_HEADS}.LRCoulomb",
                "kwargs": {"method": "simple", "rc": _number(state, "outputs.lrcoulomb.rc")},
            },
        },
    }
    description = {"class": "aimnet2mult.models.network.MultiFidelityNetwork", "kwargs": settings}
    return validated(ModelConfig, description, "the architecture of its tensors")


def _hidden(state: Mapping[str, Tensor], prefix: str, n_in: int | None, n_out: int) -> list[int]:
    """Hidden widths of a perceptron from `n_in` (None: any) to `n_out`; the activations have the odd numbers."""
    n_layers = sum(name.startswith(f"{prefix}.") for name in state) // 2
    widths = []
    for i in range(0, 2 * n_layers, 2):
        weight, bias = state.get(f"{prefix}.{i}.weight"), state.get(f"{prefix}.{i}.bias")
        if weight is None or bias is None or weight.dim() != 2 or bias.shape != weight.shape[:1]:
            raise ModelFileError(f"it has no layer {prefix}.{i} with a weight and a bias that fit")
        _require(n_in is None or weight.shape[1] == n_in, f"{weight.shape[1]} inputs of {prefix}.{i}, not {n_in}")
        n_in = weight.shape[0]
        widths.append(n_in)
    _require(widths[-1:] == [n_out], f"{widths[-1:]} outputs of {prefix}, not {n_out}")
    return widths[:-1]


def _radial_basis(state: Mapping[str, Tensor], n_shifts: int) -> dict[str, Any]:
    centres = state["aev.shifts_s"]
    _require(centres.shape == (n_shifts,), f"{centres.numel()} Gaussians but convolutions for {n_shifts}")
    cutoff, rmin = _number(state, "aev.rc_s"), _number({"aev.shifts_s": centres[:1]}, "aev.shifts_s")
    _require(0.0 <= rmin < cutoff, f"Gaussians from {rmin} Å at a cutoff of {cutoff} Å")
    close = torch.allclose(centres.double(), gaussian_centres(rmin, cutoff, n_shifts), rtol=_SAME, atol=_SAME)
    ratio = _number(state, "aev.eta_s") / gaussian_exponent(rmin, cutoff, n_shifts)
    _require(close and abs(ratio - 1.0) < _SAME, "a radial basis that is not evenly spaced")
    return {"rc_s": cutoff, "rmin": rmin, "nshifts_s": n_shifts}


def _number(state: Mapping[str, Tensor], name: str) -> float:
    """A stored number as the shortest decimal that rounds to it: 4.6 instead of 4.599999904632568."""
    _require(state[name].numel() == 1, f"{state[name].numel()} values of {name}")
    return float(str(state[name].flatten()[0].numpy()))


def _weights(state: Mapping[str, Tensor], config: ModelConfig, template: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of the network from the published tensors."""
    embedding = state["afv.weight"]
    table = torch.zeros_like(template["backbone.embedding.weight"])  # zeros: elements beyond the published table
    table[0, : embedding.shape[0]] = embedding
    weights = {
        "backbone.embedding.weight": table,
        "backbone.convolution.mix": torch.cat([state["conv_a.agh"], state["conv_q.agh"]]),
        "atomic_shift.0.shift": torch.zeros_like(template["atomic_shift.0.shift"]),
    }
    last = len(config.kwargs.hidden) - 1
    names = ["first", *(f"middle.{i}" for i in range(last - 1)), "last"]
    order = _input_order(config)
    for number, name in enumerate(names):
        for key in [key for key in state if key.startswith(f"mlps.{number}.")]:
            _, _, layer, kind = key.split(".")
            value = state[key]
            if number > 0 and layer == "0" and kind == "weight":
                value = value[:, order]
            weights[f"backbone.{name}.{layer}.{kind}"] = value
    for key in [key for key in state if key.startswith("outputs.energy_mlp.")]:
        layer, kind = key.split(".")[-2:]
        value = state[key].T if kind == "weight" else state[key].unsqueeze(0)
        weights[f"energy_mlp.mlp.layers.{int(layer) // 2}.{kind}"] = value.unsqueeze(0)
    return weights


def _input_order(config: ModelConfig) -> Tensor:
    """Where the published programs keep each input of the passes after the first.

    They line up own features, scalars and vector lengths of the features, then the same of the charge; here own
    features and charge come first, then the scalars of both, then the lengths of both.
    """
    settings = config.kwargs
    n, g, h = settings.nfeature, settings.aev.nshifts_s, settings.ncomb_v
    sizes = [n * g, n * g, n * h, 1, g, h]
    blocks = torch.arange(sum(sizes)).split(sizes)
    return torch.cat([blocks[i] for i in (0, 3, 1, 4, 2, 5)])
