"""Makes the model file of one program, inside its environment, before anything is measured.

    python -m speedbench.convert PROGRAM PUBLISHED_FILE FOLDER

Prints the path of the file.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path


def main() -> None:
    """Convert and print."""
    name, published, folder = sys.argv[1:]
    out = os.dup(1)
    os.dup2(2, 1)  # whatever the program prints goes to standard error
    model = importlib.import_module(f"peers.{name}").Adapter().model_file(Path(published), Path(folder))
    os.write(out, str(model).encode())


if __name__ == "__main__":
    main()
