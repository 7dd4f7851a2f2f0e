"""Damping parameters of D4: the dftd4 package's data base, values given by hand."""

from difflib import get_close_matches
from importlib.metadata import version
from typing import Any, Final

from aimnet2mult.errors import ConfigError
from aimnet2mult.physics.damping import DampingParameters, Resolved, given_by_hand, merged, normalised, with_changes

DATA_BASE_PREFIX: Final = "dftd4:"


def resolve_d4(
    name: str | None,
    *,
    s6: float | None = None,
    s8: float | None = None,
    a1: float | None = None,
    a2: float | None = None,
    s9: float | None = None,
) -> Resolved:
    """Find the D4 parameters of a functional in the dftd4 package's data base, or take them as given.

    Names match exactly once case, '-' and '_' are dropped: 'PBE-0' is 'pbe0', but 'rpbe' is never 'pbe'. 'NAME' and
    'dftd4:NAME' mean the same row, the one with EEQ charges and three-body term (``bj-eeq-atm``). The three-body
    scale s9 is that of the row (1) unless given.

    Parameters
    ----------
    name
        Functional, or None for a set of values given by hand.
    s6, s8, a1, a2, s9
        Values that replace those of the row, each by itself. With no name, s8, a1 and a2 are required; s6 and s9
        are 1 then, as in the package.

    Returns
    -------
    Resolved
        Parameters, canonical name and source.

    Raises
    ------
    ConfigError
        The name is not known (the message lists close ones), or the dftd4 package is not installed; a value is
        missing, not finite, or makes no sense.
    """
    given = given_by_hand("D4", {"s6": s6, "s8": s8, "a1": a1, "a2": a2, "s9": s9})
    if name is None:
        missing = [key for key in ("s8", "a1", "a2") if key not in given]
        if missing:
            raise ConfigError(f"D4 needs a functional, or all of s8, a1 and a2: {', '.join(missing)} not given")
        parameters = merged("D4", {"s6": 1.0, "s9": 1.0}, given, "custom")
        return Resolved(parameters, "custom", "values given by hand", ())
    functional, row, reference = _find_row(name)
    return Resolved(merged("D4", row, given, functional), functional, with_changes(reference, given), ())


def _find_row(name: str) -> tuple[str, dict[str, float], str]:
    """Canonical name, values and source of a functional."""
    prefixed = name.strip().lower().startswith(DATA_BASE_PREFIX)
    key = normalised(name.strip()[len(DATA_BASE_PREFIX) :] if prefixed else name)
    if not key or ":" in key:
        raise ConfigError(f"{name!r} is not the name of a D4 functional; give NAME or {DATA_BASE_PREFIX}NAME")
    try:
        from dftd4.parameters import get_all_damping_params
    except ImportError as error:
        raise ConfigError(
            f"functional {name!r} cannot be looked up, because the dftd4 package's data base cannot be read ({error}); "
            "install it with: pip install dftd4 tomli; or give s8, a1 and a2 by hand"
        ) from error
    rows: dict[str, dict[str, Any]] = get_all_damping_params(defaults=["bj-eeq-atm"], keep_meta=True)
    names = {normalised(entry): entry for entry in rows}
    if key not in names:
        close = get_close_matches(key, list(names), n=5)
        hint = f"close names: {', '.join(close)}" if close else "give s8, a1 and a2 by hand"
        raise ConfigError(f"functional {name!r} is not in the dftd4 package's data base; {hint}")
    entry = names[key]
    row = {value: float(rows[entry][value]) for value in DampingParameters._fields}
    source = f"doi:{rows[entry]['doi']}" if "doi" in rows[entry] else "which names no publication for it"
    return f"{DATA_BASE_PREFIX}{entry}", row, f"data base of dftd4 {version('dftd4')}, {source}"
