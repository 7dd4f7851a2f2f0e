"""Class paths and argument names in settings: looked up in a list of what is allowed, never imported by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any, TypeVar

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
    # long paths have much in common by nature, arguments do not
    cutoff = 0.8 if "." in path else 0.6
    close = [name for name in allowed if name.lower() == path.lower()] or get_close_matches(path, allowed, 1, cutoff)
    hint = f"did you mean '{close[0]}'? " if close else ""
    own = "" if close or "." not in path else "; code of your own needs --allow-import MODULE on the command line"
    raise ConfigError(f"{where}: {what} '{path}' is not allowed; {hint}allowed are {', '.join(sorted(allowed))}{own}")


def imported(modules: Sequence[str]) -> dict[str, Any]:
    """Import modules of the user, and list the public classes and functions that they define, by class path.

    The names come from the command line or from a Python caller, never from a file: settings can name what is
    listed here, and nothing else.

    Parameters
    ----------
    modules
        Dotted names, such as ``mypackage.losses``.

    Raises
    ------
    ConfigError
        A module cannot be imported, or defines nothing.
    """
    found: dict[str, Any] = {}
    for name in modules:
        try:
            module = import_module(name)
        except Exception as error:  # whatever the module raises while it is imported
            raise ConfigError(
                f"--allow-import: {name} cannot be imported ({type(error).__name__}: {error}); give the dotted name of "
                "a module that Python finds, such as mypackage.losses"
            ) from error
        own = {
            f"{name}.{key}": value
            for key, value in vars(module).items()
            # not what the module itself imported from elsewhere
            if not key.startswith("_")
            and (inspect.isclass(value) or inspect.isfunction(value))
            and value.__module__ == module.__name__
        }
        if not own:
            raise ConfigError(f"--allow-import: {name} defines no class and no function; give the module that does")
        found |= own
    return found
