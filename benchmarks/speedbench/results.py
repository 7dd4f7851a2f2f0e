"""What was measured, as it is written to JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from speedbench.clock import Sample


@dataclass
class Measured:
    """One program in one line of the table."""

    cpu: float | None = None  # s for one unit of work, median; None: not measured
    wall: float | None = None  # s, likewise
    samples: int = 0
    remark: str = ""  # why there is nothing

    @classmethod
    def of(cls, samples: list[Sample], remark: str) -> Measured:
        """Medians of samples; none where there are no samples."""
        if not samples:
            return cls(remark=remark)
        cpu, wall = zip(*samples, strict=True)
        return cls(median(cpu), median(wall), len(samples), remark)


@dataclass
class Line:
    """One line of the table."""

    section: str
    label: str
    threads: int
    atoms: int
    molecules: int | None
    size: int | None
    flop: float  # of the matrix products in one unit of work
    rate: float | None  # FLOP/s of these products, with one thread, in the same minutes; None: not measured
    programs: dict[str, Measured] = field(default_factory=dict)

    @property
    def floor(self) -> float | None:
        """What the matrix products alone take, in seconds of one thread."""
        return None if self.rate is None else self.flop / self.rate


@dataclass
class Results:
    """Everything of one run."""

    machine: dict[str, Any]
    titles: dict[str, str]  # of the programs, by name; ours first
    lines: list[Line] = field(default_factory=list)
    agreement: list[dict[str, Any]] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)
    startup: list[dict[str, Any]] = field(default_factory=list)
    profiles: list[dict[str, Any]] = field(default_factory=list)  # of ours, without D3

    def save(self, path: Path) -> None:
        """Write all to a JSON file."""
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
