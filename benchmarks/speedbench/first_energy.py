"""Start-up of one program, inside its environment: when its import and when its first energy and forces were there.

    python -m speedbench.first_energy IMPORTS PROGRAM MODEL STRUCTURE

Prints these two times since the epoch (without a program, the first only); the caller knows when the process started.
"""

from __future__ import annotations

import os
import sys
import time


def main() -> None:
    """Import, compute, print."""
    imports, name, model, structure = sys.argv[1:]
    out = os.dup(1)
    os.dup2(2, 1)  # whatever the program prints goes to standard error
    exec(imports, {})
    moments = [time.time()]
    if name:
        _first_forces(name, model, structure)
        moments.append(time.time())
    os.write(out, f"{' '.join(map(str, moments))}\n".encode())


def _first_forces(name: str, model: str, structure: str) -> None:
    import importlib
    from pathlib import Path

    from ase import Atoms
    from peers.base import Settings

    # without ASE's readers, whose import takes as long as all that is to be timed
    rows = [line.split() for line in Path(structure).read_text(encoding="utf-8").splitlines()[2:]]
    atoms = Atoms([row[0] for row in rows], [list(map(float, row[1:4])) for row in rows])
    atoms.calc = importlib.import_module(f"peers.{name}").Adapter().calculator(Path(model), Settings())
    atoms.get_potential_energy()
    atoms.get_forces()


if __name__ == "__main__":
    main()
