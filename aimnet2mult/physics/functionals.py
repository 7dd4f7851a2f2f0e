"""Damping parameters of D3(BJ): built-in functionals, the dftd3 package's data base, values given by hand."""

from difflib import get_close_matches
from importlib.metadata import version
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from aimnet2mult.errors import ConfigError
from aimnet2mult.physics.damping import Resolved, given_by_hand, merged, normalised, with_changes

DATA_BASE_PREFIX: Final = "dftd3:"


class BuiltinRow(NamedTuple):
    """One built-in functional (two-body) with its source."""

    s6: float
    s8: float
    a1: float
    a2: float
    reference: str


_GRIMME_2011 = "Grimme, Ehrlich, Goerigk, J. Comput. Chem. 32, 1456 (2011), doi:10.1002/jcc.21759"

BUILTIN_D3: Final = MappingProxyType(
    {
        "wb97m": BuiltinRow(
            1.0,
            0.3908,
            0.566,
            3.128,
            "Najibi, Goerigk, J. Chem. Theory Comput. 14, 5725 (2018), doi:10.1021/acs.jctc.8b00842",
        ),
        "wb97x": BuiltinRow(1.0, 0.0, 0.464, 1.0, "this package's own table; no publication is known for this row"),
        "b3lyp": BuiltinRow(1.0, 1.9889, 0.3981, 4.4211, _GRIMME_2011),
        "pbe": BuiltinRow(1.0, 0.7875, 0.4289, 4.4407, _GRIMME_2011),
        "pbe0": BuiltinRow(1.0, 1.2177, 0.4145, 4.8593, _GRIMME_2011),
    }
)

_WB97X_WARNING: Final = (
    "functional 'wb97x' means the built-in row s6 1.0, s8 0.0, a1 0.464, a2 1.0, which differs from the dftd3 "
    "package's own data base (s8 0.2641, a1 0.0, a2 5.4959) and overbinds strongly: benzene gets a D3 energy of "
    "-0.176 Hartree, ten times the usual; use 'dftd3:wb97x' for the row of the dftd3 package"
)


def resolve_d3(
    name: str | None,
    *,
    s6: float | None = None,
    s8: float | None = None,
    a1: float | None = None,
    a2: float | None = None,
    s9: float | None = None,
) -> Resolved:
    """Find the D3(BJ) parameters of a functional, or take them as given.

    Names match exactly once case, '-' and '_' are dropped: 'PBE-0' is 'pbe0', but 'rpbe' is never 'pbe'. A plain
    name is looked up among the built-in rows (`BUILTIN_D3`), then in the data base of the dftd3 package;
    'dftd3:NAME' goes to the data base straight away. The three-body scale s9 is 0 unless given: the default 1 of
    the data base is deliberately not taken over, so that every name means the two-body correction.

    Parameters
    ----------
    name
        Functional, or None for a set of values given by hand.
    s6, s8, a1, a2, s9
        Values that replace those of the row, each by itself. With no name, s6, s8, a1 and a2 are all required.

    Returns
    -------
    Resolved
        Parameters, canonical name, source, and warnings for the user.

    Raises
    ------
    ConfigError
        The name is not known (the message lists close ones), has no Becke-Johnson row, or needs the dftd3 package
        where that is not installed; a value is missing, not finite, or makes no sense.
    """
    given = given_by_hand("D3", {"s6": s6, "s8": s8, "a1": a1, "a2": a2, "s9": s9})
    if name is None:
        missing = [key for key in ("s6", "s8", "a1", "a2") if key not in given]
        if missing:
            raise ConfigError(
                f"D3 needs a functional, or all of s6, s8, a1 and a2: {', '.join(missing)} not given; "
                f"built-in functionals: {', '.join(BUILTIN_D3)}"
            )
        return Resolved(merged("D3", {"s9": 0.0}, given, "custom"), "custom", "values given by hand", ())
    functional, row, reference = _find_row(name)
    parameters = merged("D3", {"s9": 0.0, **row}, given, functional)
    unusual = functional == "wb97x" and not {"s8", "a1", "a2"} <= given.keys()
    warnings = (_WB97X_WARNING,) if unusual else ()
    return Resolved(parameters, functional, with_changes(reference, given), warnings)


def _find_row(name: str) -> tuple[str, dict[str, float], str]:
    """Canonical name, values and source of a functional."""
    prefixed = name.strip().lower().startswith(DATA_BASE_PREFIX)
    key = normalised(name.strip()[len(DATA_BASE_PREFIX) :] if prefixed else name)
    if key in BUILTIN_D3 and not prefixed:
        row = BUILTIN_D3[key]
        return key, {"s6": row.s6, "s8": row.s8, "a1": row.a1, "a2": row.a2}, row.reference
    if not key or ":" in key:
        raise ConfigError(f"{name!r} is not the name of a D3 functional; give NAME or {DATA_BASE_PREFIX}NAME")
    return _find_data_base_row(name, key)


def _find_data_base_row(name: str, key: str) -> tuple[str, dict[str, float], str]:
    """Look a normalised name up in the data base of the dftd3 package."""
    try:
        from dftd3.parameters import get_all_damping_params
    except ImportError as error:
        raise ConfigError(
            f"functional {name!r} is not built in ({', '.join(BUILTIN_D3)}) and the dftd3 package's data base cannot "
            f"be read ({error}); install it with: pip install dftd3 tomli"
        ) from error
    # asked for 'bj' by name: without it the package hands out zero-damping rows where no other exists
    rows: dict[str, dict[str, Any]] = get_all_damping_params(defaults=["bj"], keep_meta=True)
    names = {normalised(entry): entry for entry in rows}
    if key not in names:
        if key in {normalised(entry) for entry in get_all_damping_params(defaults=["zero"])}:
            raise ConfigError(
                f"functional {name!r} has no Becke-Johnson row in the dftd3 package, only zero damping; "
                "give s6, s8, a1 and a2 by hand"
            )
        close = get_close_matches(key, [*BUILTIN_D3, *names], n=5)
        hint = f"close names: {', '.join(dict.fromkeys(close))}" if close else f"built in: {', '.join(BUILTIN_D3)}"
        raise ConfigError(f"functional {name!r} is neither built in nor in the dftd3 package's data base; {hint}")
    entry = names[key]
    row = {value: float(rows[entry][value]) for value in ("s6", "s8", "a1", "a2")}
    source = f"doi:{rows[entry]['doi']}" if "doi" in rows[entry] else "which names no publication for it"
    return f"{DATA_BASE_PREFIX}{entry}", row, f"data base of dftd3 {version('dftd3')}, {source}"
