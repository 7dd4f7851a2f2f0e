"""Which energy terms of a loaded potential can be evaluated in compiled code, and in what form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from aimnet2mult.engine.coulomb import Coulomb
from aimnet2mult.engine.dispersion import Dispersion, ElementTables
from aimnet2mult.engine.dispersion_sums import Range
from aimnet2mult.models.fixed_point import from_fixed_point
from aimnet2mult.physics.d3 import D3Cutoffs
from aimnet2mult.physics.damping import DampingParameters


class SplitTerms(NamedTuple):
    """The energy terms beside the network."""

    coulomb: list[Coulomb]
    dispersion: list[Dispersion]
    other_heads: list[Any]  # Coulomb heads for which there is no compiled code
    other_terms: list[Any]


def split_terms(module: Any) -> SplitTerms:
    """The terms of a loaded potential that are switched on."""
    # a scripted list that is empty cannot be iterated over
    heads = list(module.network.lrcoulomb.children())
    terms = [term for term in module.terms.children() if getattr(term, "active", True)]
    coulomb = [_coulomb(head) for head in heads]
    dispersion = [_dispersion(term) for term in terms]
    return SplitTerms(
        [found for found in coulomb if found is not None],
        [found for found in dispersion if found is not None],
        [head for head, found in zip(heads, coulomb, strict=True) if found is None],
        [term for term, found in zip(terms, dispersion, strict=True) if found is None],
    )


def _coulomb(head: Any) -> Coulomb | None:
    if head.original_name != "LRCoulomb" or not _has(head, ("method", "rc", "dsf_alpha", "dsf_cutoff")):
        return None
    return Coulomb(head.method, head.rc, head.dsf_alpha, head.dsf_cutoff)


def _dispersion(term: Any) -> Dispersion | None:
    if term.original_name not in ("D3BJ", "PublishedD3") or not _has(term, ("damping", "cutoffs")):
        return None
    # a loaded program has plain tuples; others than ours are from a time when there were other cutoffs
    if len(term.damping) != len(DampingParameters._fields) or len(term.cutoffs) != len(D3Cutoffs._fields):
        return None
    cutoffs = D3Cutoffs(*term.cutoffs)
    tables = ElementTables(
        species=term.species.numpy(),
        covalent_radius=from_fixed_point(term.covalent_radius).numpy(),
        r4r2=from_fixed_point(term.r4r2).numpy(),
        reference_species=term.reference_species.numpy(),
        reference_cn=from_fixed_point(term.reference_cn).numpy(),
        reference_c6=from_fixed_point(term.reference_c6).numpy(),
    )
    try:
        return Dispersion(
            tables,
            DampingParameters(*term.damping),
            Range(cutoffs.disp2, cutoffs.width2),
            Range(cutoffs.cn, cutoffs.width_cn),
        )
    except ValueError:  # with a three-body term, say
        return None


def _has(thing: Any, names: Sequence[str]) -> bool:
    return all(hasattr(thing, name) for name in names)
