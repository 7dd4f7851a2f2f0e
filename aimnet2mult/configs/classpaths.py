"""Class paths and argument names in settings: looked up in a list of what is allowed, never imported by name."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

from aimnet2mult.errors import ConfigError

T = TypeVar("T")


def resolve(path: str, allowed: Mapping[str, T], where: str, what: str = "class path") -> T:
    """Return what a dotted class path stands for.

    Parameters
    ----------
    path
        Class path as written in the settings, such as ``torch.optim.AdamW``.
    allowed
        Every class path that may be named, with what it stands for.
    where
        Name of the option, for the message.
    what
        What `path` is, for the message.

    Raises
    ------
    ConfigError
        The path is not in the list; the message holds the whole list.
    """
    if path in allowed:
        return allowed[path]
    close = [name for name in allowed if name.lower() == path.lower()] or get_close_matches(path, allowed, 1, 0.8)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise ConfigError(f"{where}: {what} '{path}' is not allowed; {hint}allowed are {', '.join(sorted(allowed))}")
