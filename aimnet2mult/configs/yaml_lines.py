"""Where a key stands in a YAML file: for errors that name the line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import yaml

from aimnet2mult.errors import ConfigError, DataError

Keys = tuple[str, ...]
_MAX_DEPTH = 50  # below that lines are not wanted; aliases may point round in circles


class KeyLines:
    """Lines of the keys of a YAML file; it is read when the first line is asked for.

    Parameters
    ----------
    path
        The file.
    overrides
        Overrides such as ``trainer.epochs=5``: what these set is not in the file.
    """

    def __init__(self, path: str | Path, overrides: Iterable[str] = ()) -> None:
        self.path = Path(path)
        self.overridden = [tuple(text.partition("=")[0].strip().split(".")) for text in overrides]

    def line(self, keys: Sequence[str]) -> int | None:
        """Line (from 1) of the key at this way through the file, or of the last known key on the way.

        None where an override set it, or where the file does not have the first key.
        """
        way = tuple(keys)
        if any(way[: len(other)] == other for other in self.overridden):
            return None
        known = (self._lines.get(way[:end]) for end in range(len(way), 0, -1))
        return next((line for line in known if line is not None), None)

    def at(self, keys: Sequence[str]) -> str:
        """The line as a part of a message: ``"line 12: "``, or nothing."""
        line = self.line(keys)
        return "" if line is None else f"line {line}: "

    @cached_property
    def _lines(self) -> dict[Keys, int]:
        try:
            node = yaml.compose(self.path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            return {}  # the message goes without a line
        return {} if node is None else dict(_walk(node, ()))


def _walk(node: yaml.Node, way: Keys) -> Iterator[tuple[Keys, int]]:
    if len(way) > _MAX_DEPTH:
        return
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = way if key.value == "<<" else (*way, str(key.value))
            if here != way:
                yield here, key.start_mark.line + 1
            yield from _walk(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            here = (*way, str(position))
            yield here, value.start_mark.line + 1
            yield from _walk(value, here)


@contextmanager
def located(path: str | Path, overrides: Iterable[str] = ()) -> Iterator[None]:
    """Put file and line before errors of the block that begin with the dotted name of a setting of the file."""
    try:
        yield
    except (ConfigError, DataError) as error:
        name = re.match(r"[A-Za-z_]\w*(\.\w+)*(?=[: ])", str(error))
        at = KeyLines(path, overrides).at(name[0].split(".")) if name else ""
        if not at:
            raise
        raise type(error)(f"{path}: {at}{error}") from None
