#!/usr/bin/env python
"""Make ``aimnet2mult/physics/data/d3.npz``, the element data of the D3 dispersion correction.

Source: the pip packages tad-dftd3 0.7.0 (reference C6 coefficients and coordination numbers, <r4>/<r2>
expectation values) and tad-mctc 0.11.3 (covalent radii, pairwise van der Waals radii), both
Copyright (C) 2024 Grimme Group, licence Apache-2.0. The numbers are those of Grimme, Antony, Ehrlich, Krieg,
J. Chem. Phys. 132, 154104 (2010) with the packages' later additions for heavy elements. The data are read out
of the wheels; the packages are neither imported nor installed (their newest versions do not fit each other).

How to run::

    pip download --no-deps --dest wheels tad-dftd3==0.7.0 tad-mctc==0.11.3
    python scripts/make_d3_tables.py wheels aimnet2mult/physics/data/d3.npz

Arrays of the file (float64 unless said otherwise; n = 103 elements, R = 338 reference systems)
-----------------------------------------------------------------------------------------------
covalent_radius      (n,) Bohr, scaled by 4/3 as the D3 counting function wants it
r4r2                 (n,) sqrt(0.5 sqrt(Z) <r4>/<r2>), atomic units
vdw_radius           (n(n+1)/2,) Bohr, lower triangle of the pairwise radii, row by row
reference_element    (R,) int64 atomic number of each reference system, in rising order
reference_cn         (R,) coordination number of each reference system
reference_c6         (R(R+1)/2,) atomic units, lower triangle of the C6 matrix, row by row
source               strings: packages, versions, licence
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch

from aimnet2mult.errors import AIMNet2MultError, DataError
from aimnet2mult.files import atomic_path

WHEELS = {"tad-dftd3": "tad_dftd3-0.7.0-py3-none-any.whl", "tad-mctc": "tad_mctc-0.11.3-py3-none-any.whl"}
LICENCE = "Apache-2.0"
NUM_ELEMENTS = 103
# tad_mctc.units.length.AA2AU 0.11.3: the value behind the pairwise radii, used for the covalent radii too
BOHR_PER_ANGSTROM = 1.8897261246204407
COVALENT_SCALE = 4.0 / 3.0


def literal_list(source: str, function: str) -> np.ndarray:
    """Read the outermost list literal inside a function of a Python source text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            lists = [child for child in ast.walk(node) if isinstance(child, ast.List)]
            return np.array(ast.literal_eval(lists[0]), dtype=np.float64)
    raise DataError(
        f"function {function} is not in the package source; use exactly the versions {list(WHEELS.values())}"
    )


def lower_triangle(matrix: np.ndarray) -> np.ndarray:
    """Pack a symmetric matrix; refuse one that is not symmetric."""
    if not np.array_equal(matrix, matrix.T):
        raise DataError("a pair table is not symmetric; use exactly the versions named in this script")
    return matrix[np.tril_indices(len(matrix))]


def make_tables(folder: Path) -> dict[str, np.ndarray]:
    """Read both wheels in `folder` and return the arrays that the module docstring lists."""
    with zipfile.ZipFile(folder / WHEELS["tad-dftd3"]) as wheel:
        all_cn = literal_list(wheel.read("tad_dftd3/reference.py").decode(), "_load_cn")
        r4_over_r2 = literal_list(wheel.read("tad_dftd3/data/r4r2.py").decode(), "R4R2")
        all_c6 = torch.load(io.BytesIO(wheel.read("tad_dftd3/reference-c6.pt")), weights_only=True).numpy()
    with zipfile.ZipFile(folder / WHEELS["tad-mctc"]) as wheel:
        covalent = literal_list(wheel.read("tad_mctc/data/radii.py").decode(), "COV_D3")
        vdw = torch.load(io.BytesIO(wheel.read("tad_mctc/data/vdw-pairwise.pt")), weights_only=True).numpy()
    element, slot = np.nonzero(all_cn >= 0)  # -1 marks an empty slot; index 0 is a dummy element without any
    z = np.arange(1, NUM_ELEMENTS + 1)
    return {
        "covalent_radius": COVALENT_SCALE * BOHR_PER_ANGSTROM * covalent[z],
        "r4r2": np.sqrt(0.5 * np.sqrt(z) * r4_over_r2[z]),
        "vdw_radius": lower_triangle(vdw[1:, 1:]),
        "reference_element": element.astype(np.int64),
        "reference_cn": all_cn[element, slot],
        "reference_c6": lower_triangle(all_c6[element[:, None], element[None, :], slot[:, None], slot[None, :]]),
        "source": np.array([*(Path(name).name for name in WHEELS.values()), f"licence {LICENCE}"]),
    }


def main(argv: list[str] | None = None) -> int:
    """Command line: folder with the wheels, target file."""
    parser = argparse.ArgumentParser(
        description="Make the D3 element data file from the tad-dftd3 and tad-mctc wheels."
    )
    parser.add_argument("wheels", type=Path, help=f"folder that holds {' and '.join(WHEELS.values())}")
    parser.add_argument("target", type=Path, help="file to write (.npz)")
    arguments = parser.parse_args(argv)
    try:
        missing = [name for name in WHEELS.values() if not (arguments.wheels / name).is_file()]
        if missing:
            raise DataError(
                f"{arguments.wheels} lacks {', '.join(missing)}; fetch them with the pip command in this script"
            )
        tables = make_tables(arguments.wheels)
        with atomic_path(arguments.target) as temporary:
            np.savez_compressed(temporary, allow_pickle=False, **tables)
    except AIMNet2MultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
