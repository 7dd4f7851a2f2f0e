"""Results of fault cases, and the table of them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple

_WIDTHS = (44, 40, 90)


class Outcome(NamedTuple):
    """What came of one case."""

    part: str  # which part of the matrix
    case: str
    done: str  # what was done
    result: str  # what came out
    good: bool


def render(outcomes: Sequence[Outcome]) -> str:
    """The table: case, what was done, what came out, verdict."""
    lines: list[str] = []
    for part in dict.fromkeys(outcome.part for outcome in outcomes):
        lines += [f"\n{part}", "-" * (sum(_WIDTHS) + 12)]
        for outcome in outcomes:
            if outcome.part == part:
                lines += _row(outcome)
    bad = sum(not outcome.good for outcome in outcomes)
    lines.append(f"\n{len(outcomes)} cases, {bad} failures")
    return "\n".join(lines)


def _row(outcome: Outcome) -> Iterable[str]:
    texts = (outcome.case, outcome.done, outcome.result)
    cells = [textwrap.wrap(text, width) or [""] for text, width in zip(texts, _WIDTHS, strict=True)]
    for number in range(max(map(len, cells))):
        parts = [cell[number] if number < len(cell) else "" for cell in cells]
        verdict = ("ok" if outcome.good else "FAILED") if number == 0 else ""
        padded = [part.ljust(width) for part, width in zip(parts, _WIDTHS, strict=True)]
        yield f"{'  '.join(padded)}  {verdict}".rstrip()
