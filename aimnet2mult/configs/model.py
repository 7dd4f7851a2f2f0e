"""The architecture of a multi-fidelity AIMNet2 network, as written in ``model.yaml``.

The ``class:``/``kwargs:`` form is kept from the AIMNet2 family of configurations. The class paths name
what to build; they are compared with fixed strings and never imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from aimnet2mult.configs.settings import Settings
from aimnet2mult.configs.yaml_io import read_yaml, validated
from aimnet2mult.configs.yaml_lines import KeyLines

Width = Annotated[int, Field(ge=1, le=16384)]


def _tuple(value: Any) -> Any:
    """YAML has lists only."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be a list of widths, not {value!r}")
    return tuple(value)


def _integer(value: Any) -> Any:
    """True and 2.0 equal members of a ``Literal`` of integers, and would pass as such."""
    if type(value) is not int:
        raise ValueError(f"must be an integer, not {value!r}")
    return value


Widths = Annotated[tuple[Width, ...], Field(max_length=16), BeforeValidator(_tuple)]
Passes = Annotated[tuple[Widths, ...], Field(max_length=16), BeforeValidator(_tuple)]


class RadialBasis(Settings):
    """Radial basis of the atomic environment (``aev``)."""

    rc_s: float = Field(5.0, gt=0.5, le=20.0, description="cutoff in Å")
    rmin: float = Field(0.8, ge=0.0, description="centre of the first Gaussian in Å")
    nshifts_s: int = Field(16, ge=1, le=256, description="number of Gaussians")

    @model_validator(mode="after")
    def _consistent(self) -> RadialBasis:
        if self.rmin >= self.rc_s:
            raise ValueError(f"rmin: must be less than the cutoff rc_s ({self.rc_s}), not {self.rmin}")
        return self


class EnergyMLPSettings(Settings):
    """Per-atom energies from the atomic features."""

    hidden: Widths = Field((128, 128), description="hidden widths of the perceptron")


class ChargesSettings(Settings):
    """Partial charges, equilibrated so that they sum to the molecular charge."""

    source: Literal["readout", "backbone"] = Field(
        "readout",
        description="backbone: the charges of the last message pass; readout: a correction per fidelity on top",
    )
    hidden: Widths = Field((64,), description="hidden widths of the readout")


class CoulombSettings(Settings):
    """Long-range Coulomb energy of the predicted charges."""

    method: Literal["simple", "dsf", "ewald"] = Field(
        "simple",
        description="simple: every pair, in a periodic cell its limit, the Ewald sum; ewald: the same; "
        "dsf: damped shifted force within a cutoff, the one method for partly periodic systems",
    )
    rc: float = Field(
        4.6, gt=0.0, le=20.0, description="below this distance (Å) the interaction is switched off smoothly"
    )
    dsf_alpha: float = Field(0.2, ge=0.0, le=2.0, description="damping (1/Å) of the method dsf; 0: none")
    dsf_cutoff: float = Field(15.0, gt=0.0, le=100.0, description="cutoff (Å) of the method dsf")


class NoSettings(Settings):
    """A head without settings."""


class EnergyMLPHead(Settings):
    class_: Literal["aimnet2mult.models.heads.EnergyMLP"] = Field(alias="class")
    kwargs: EnergyMLPSettings = EnergyMLPSettings()


class ChargesHead(Settings):
    class_: Literal["aimnet2mult.models.heads.Charges"] = Field(alias="class")
    kwargs: ChargesSettings = ChargesSettings()


class SpinChargesHead(Settings):
    class_: Literal["aimnet2mult.models.heads.SpinCharges"] = Field(alias="class")
    kwargs: NoSettings = NoSettings()


class AtomicShiftHead(Settings):
    class_: Literal["aimnet2mult.models.heads.AtomicShift"] = Field(alias="class")
    kwargs: NoSettings = NoSettings()


class AtomicSumHead(Settings):
    class_: Literal["aimnet2mult.models.heads.AtomicSum"] = Field(alias="class")
    kwargs: NoSettings = NoSettings()


class CoulombHead(Settings):
    class_: Literal["aimnet2mult.models.heads.LRCoulomb"] = Field(alias="class")
    kwargs: CoulombSettings = CoulombSettings()


class Outputs(Settings):
    """Output heads. ``energy_mlp`` and ``atomic_sum`` are what makes an energy and cannot be left out."""

    energy_mlp: EnergyMLPHead
    charges: ChargesHead
    spin_charges: SpinChargesHead | None = None
    atomic_shift: AtomicShiftHead | None = None
    atomic_sum: AtomicSumHead
    lrcoulomb: CoulombHead | None = None


class NetworkSettings(Settings):
    """Hyper-parameters of the network; names as in the AIMNet2 configurations."""

    num_fidelities: Annotated[int, Field(ge=1, le=64)]
    num_charge_channels: Annotated[Literal[1, 2], BeforeValidator(_integer)] = Field(
        2, description="1: closed shell; 2: alpha and beta (AIMNet2-NSE)"
    )
    fidelity_embedding: Literal["difference", "separate"] = Field(
        "difference",
        description="difference: one shared row per element plus a difference per fidelity that starts at zero; "
        "separate: an own row per element and fidelity",
    )
    use_fidelity_readouts: bool = Field(default=True, description="own heads and shifts per fidelity, or shared ones")
    fidelity_readouts: Literal["separate", "difference"] = Field(
        "separate",
        description="separate: own weights in the heads of each fidelity; difference: shared weights plus a learned "
        "difference per fidelity that starts at zero, for fidelities with few labels",
    )
    fidelity_offset: int | None = Field(
        None,
        description="accepted from older configurations; fidelities have a tensor of their own, so it changes nothing",
    )
    embedding_norm: float = Field(
        0.3, gt=0.0, le=100.0, description="norm of each element's feature vector at the start"
    )
    aev: RadialBasis = RadialBasis()
    nfeature: int = Field(16, ge=1, le=1024, description="feature channels per atom")
    d2features: bool = Field(True, description="one feature vector per radial shift instead of one for all")
    ncomb_v: int = Field(12, ge=1, le=256, description="learned combinations of the vector features")
    hidden: Passes = ((512, 380), (512, 380), (512, 380, 380))
    aim_size: Width = Field(256, description="length of the final atomic feature vector")
    activate_passes: bool = Field(
        False, description="GELU on the outputs of every message pass but the first, as in the published AIMNet2 models"
    )
    exact_charges: bool = Field(
        True,
        description="true: charges sum to the molecular charge exactly; false: to about 1e-6 e, by the formula of the "
        "published AIMNet2 models",
    )
    equilibration: Literal["alpha_beta", "charge_spin"] = Field(
        "alpha_beta",
        description="alpha_beta: each channel has weights of its own, as in AIMNet2-NSE; charge_spin: charge and spin "
        "have, and molecules of multiplicity 1 have no spin on any atom",
    )
    outputs: Outputs

    @model_validator(mode="after")
    def _consistent(self) -> NetworkSettings:
        if len(self.hidden) < 2:
            raise ValueError("hidden: at least two message passes are needed, give two or more lists of widths")
        if self.num_charge_channels == 1 and self.outputs.spin_charges is not None:
            raise ValueError("outputs.spin_charges needs num_charge_channels: 2")
        return self


class ModelConfig(Settings):
    """A whole ``model.yaml``."""

    class_: Literal["aimnet2mult.models.network.MultiFidelityNetwork"] = Field(alias="class")
    kwargs: NetworkSettings

    @property
    def num_fidelities(self) -> int:
        """Number of fidelities of the network."""
        return self.kwargs.num_fidelities

    def to_dict(self) -> dict[str, object]:
        """Plain dictionary in the form of ``model.yaml``, from which the same configuration can be validated."""
        return self.model_dump(mode="json", by_alias=True)


def load_model_config(path: str | Path) -> ModelConfig:
    """Read and check a ``model.yaml``.

    Raises
    ------
    ConfigError
        The file is missing or not YAML, or a key or value is wrong; the message names it.
    """
    return validated(ModelConfig, read_yaml(path), str(path), lines=KeyLines(path))
