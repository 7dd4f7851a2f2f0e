"""What a weights file and a compiled potential say about themselves."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FORMAT_VERSION = 1


class Record(BaseModel):
    """Base of the records: immutable, unknown keys forbidden."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FidelityInfo(Record):
    """One level of theory that a network was trained on."""

    index: int
    name: str
    level_of_theory: str | None = None
    elements: list[int]  # atomic numbers seen in training
    labels: list[str]
    labels_include_dispersion: bool = False


class CutoffInfo(Record):
    """Real-space cutoffs of a dispersion correction, Bohr as in the packages of the methods."""

    disp2: float  # of the two-body term
    disp3: float  # of each side of a triangle
    width2: float  # range before the cutoff over which the term is switched off smoothly; 0: a sharp cutoff
    width3: float
    cn: float | None = None  # of the coordination numbers; those of D4 need none
    width_cn: float | None = None


class DispersionInfo(Record):
    """Every parameter of the dispersion correction inside a compiled potential."""

    method: Literal["d3bj", "d4"]
    functional: str
    charges: Literal["eeq", "network"] | None = None  # what scales the polarisabilities of D4
    triple_cutoff: float | None = None  # Å, reach of the three-body term that was asked for; None: the default
    cutoffs: CutoffInfo | None = None  # None, in older files: sharp ones, as the packages have by default
    s6: float
    s8: float
    s9: float
    a1: float
    a2: float  # Bohr, as tabulated
    reference: str

    @property
    def label(self) -> str:
        """The method as chemists write it."""
        return "D3(BJ)" if self.method == "d3bj" else "D4"


class PotentialMetadata(Record):
    """Everything that a compiled potential knows of itself."""

    format_version: int = FORMAT_VERSION
    fidelity: FidelityInfo
    all_fidelities: list[FidelityInfo]
    sae: dict[str, float]  # eV per element symbol
    dispersion: DispersionInfo | None
    cutoff: float  # Å, of the network
    num_charge_channels: int
    model: dict[str, Any]  # the network's configuration, enough to rebuild it
    provenance: dict[str, str]
    weights_sha256: str = ""  # of all tensors of the program; set when the file is written
