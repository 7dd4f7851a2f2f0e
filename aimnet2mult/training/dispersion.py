"""From the dispersion that a user asks for to the energy term of a compiled potential and its record."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from aimnet2mult.configs.dispersion import DispersionSettings
from aimnet2mult.configs.metadata import CutoffInfo, DispersionInfo, FidelityInfo
from aimnet2mult.errors import ConfigError
from aimnet2mult.models.dispersion import D3BJ
from aimnet2mult.models.dispersion import DEFAULT_CUTOFFS as D3_CUTOFFS
from aimnet2mult.models.dispersion_cutoffs import package_cutoffs
from aimnet2mult.models.dispersion_d4 import D4
from aimnet2mult.models.dispersion_d4 import DEFAULT_CUTOFFS as D4_CUTOFFS
from aimnet2mult.physics.d3 import D3Cutoffs
from aimnet2mult.physics.d4 import D4Cutoffs
from aimnet2mult.physics.damping import Resolved
from aimnet2mult.physics.functionals import resolve_d3
from aimnet2mult.physics.functionals_d4 import resolve_d4
from aimnet2mult.units import BOHR_PER_ANGSTROM, EV_PER_HARTREE

SWITCH = 0.1  # part of a chosen cutoff over which it is switched off smoothly


class DispersionTerm(NamedTuple):
    """An energy term and everything that is recorded about it."""

    term: nn.Module
    info: DispersionInfo


def damping_of(settings: DispersionSettings, *, includes_dispersion: bool, whose: str) -> Resolved | None:
    """The damping parameters of a correction, None where none is asked for.

    Parameters
    ----------
    settings
        What the user asks for.
    includes_dispersion
        Whether the labels hold dispersion already.
    whose
        The fidelity, for messages.

    Raises
    ------
    ConfigError
        Dispersion would be counted twice, or the functional or a parameter cannot be used.
    """
    if settings.method == "none":
        return None
    if includes_dispersion:
        raise ConfigError(
            f"the labels of {whose} hold dispersion already (labels_include_dispersion: true); adding it again would "
            "count it twice, so compile this fidelity without dispersion (method none)"
        )
    find = resolve_d3 if settings.method == "d3bj" else resolve_d4
    return find(settings.functional, **settings.damping)


def dispersion_term(settings: DispersionSettings, fidelity: FidelityInfo) -> DispersionTerm | None:
    """The energy term that a fidelity is compiled with, None where none is asked for; warnings go to standard error.

    Raises
    ------
    ConfigError
        As for `damping_of`; or an element of the fidelity has no data.
    """
    whose = f"fidelity {fidelity.index} '{fidelity.name}'"
    resolved = damping_of(settings, includes_dispersion=fidelity.labels_include_dispersion, whose=whose)
    if resolved is None or settings.method == "none":
        return None
    for warning in resolved.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    cutoffs = D3_CUTOFFS if settings.method == "d3bj" else _d4_cutoffs(settings.triple_cutoff)
    info = DispersionInfo(
        method=settings.method,
        functional=resolved.functional,
        charges=settings.charges if settings.method == "d4" else None,
        triple_cutoff=settings.triple_cutoff,
        cutoffs=CutoffInfo(**cutoffs._asdict()),
        reference=resolved.reference,
        **resolved.parameters._asdict(),
    )
    if isinstance(cutoffs, D3Cutoffs):
        return DispersionTerm(D3BJ(fidelity.elements, resolved.parameters, cutoffs), info)
    return DispersionTerm(D4(fidelity.elements, resolved.parameters, settings.charges, cutoffs), info)


def _d4_cutoffs(triple_cutoff: float | None) -> D4Cutoffs:
    """Cutoffs with the reach (Å) of the three-body term that was asked for."""
    if triple_cutoff is None:
        return D4_CUTOFFS
    reach = triple_cutoff * BOHR_PER_ANGSTROM
    return D4_CUTOFFS._replace(disp3=reach, width3=SWITCH * reach)


def library_energy(info: DispersionInfo, numbers: NDArray[np.int64], coord: NDArray[np.float64]) -> float:
    """Energy (eV) of a neutral molecule from the dftd3 or dftd4 package, with the recorded parameters and cutoffs."""
    damping = {"s6": info.s6, "s8": info.s8, "s9": info.s9, "a1": info.a1, "a2": info.a2}
    recorded = {} if info.cutoffs is None else info.cutoffs.model_dump(exclude_none=True)
    model: Any
    parameters: Any
    if info.method == "d3bj":
        from dftd3 import interface as d3

        model = d3.DispersionModel(numbers, coord * BOHR_PER_ANGSTROM)
        parameters = d3.RationalDampingParam(**damping, alp=14.0)
        cutoffs = package_cutoffs(D3_CUTOFFS._replace(**recorded))
    else:
        from dftd4 import interface as d4

        model = d4.DispersionModel(numbers, coord * BOHR_PER_ANGSTROM, charge=0.0)
        parameters = d4.DampingParam(**damping, alp=16.0)
        cutoffs = package_cutoffs(D4_CUTOFFS._replace(**recorded))
    if recorded:  # else an older file, which ends sharply as the packages do
        model.set_realspace_cutoff(**cutoffs)
    return float(model.get_dispersion(parameters, grad=False)["energy"]) * EV_PER_HARTREE
