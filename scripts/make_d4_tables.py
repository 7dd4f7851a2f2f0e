#!/usr/bin/env python
"""Make ``aimnet2mult/physics/data/d4.npz``, the element data of the D4 dispersion correction and of its EEQ charges.

Source: the pip packages tad-dftd4 0.8.0 (reference systems: coordination numbers, EEQ charges, dynamic
polarisabilities; <r4>/<r2> expectation values), tad-multicharge 0.7.0 (EEQ parameters) and tad-mctc 0.11.3 (covalent
radii, electronegativities, hardnesses, effective charges), all Copyright (C) 2024 Grimme Group, licence Apache-2.0.
The numbers are those of Caldeweyher et al., J. Chem. Phys. 150, 154122 (2019) with the packages' later additions for
heavy elements. The data are read out of the wheels; the packages are neither imported nor installed.

The polarisability of a reference system still holds that of its partner atoms. What is stored has it taken off:
alpha = max(0, scale * (alpha_system - count * scale_partner * alpha_partner * zeta(q_partner))), with the charge
scaling zeta of the paper and its constants 3 and 2.

How to run::

    pip download --no-deps --dest wheels tad-dftd4==0.8.0 tad-multicharge==0.7.0 tad-mctc==0.11.3
    python scripts/make_d4_tables.py wheels aimnet2mult/physics/data/d4.npz

Arrays of the file (float64 unless said otherwise; n = 103 elements, R reference systems)
-----------------------------------------------------------------------------------------
covalent_radius      (n,) Bohr, scaled by 4/3 as the counting function wants it
electronegativity    (n,) Pauling
r4r2                 (n,) sqrt(0.5 sqrt(Z) <r4>/<r2>), atomic units
hardness             (n,) Hartree, of the charge scaling
effective_charge     (n,) e, nuclear charge without the electrons of the core potential
eeq_chi, eeq_eta, eeq_kcn, eeq_radius   (n,) EEQ electronegativity, hardness, CN dependence, charge width; atomic units
reference_element    (R,) int64 atomic number of each reference system, in rising order
reference_cn         (R,) D4 coordination number
reference_charge     (R,) e, EEQ
reference_gaussians  (R,) int64 number of Gaussians in its weight
reference_alpha      (R, 23) polarisability at imaginary frequencies, atomic units
frequency_weight     (23,) of the Casimir-Polder integral by the trapezoidal rule
source               strings: packages, licence
"""

from __future__ import annotations

import argparse
import ast
import sys
import zipfile
from pathlib import Path

import numpy as np

from aimnet2mult.errors import AIMNet2MultError, DataError
from aimnet2mult.files import atomic_path

WHEELS = {
    "tad-dftd4": "tad_dftd4-0.8.0-py3-none-any.whl",
    "tad-multicharge": "tad_multicharge-0.7.0-py3-none-any.whl",
    "tad-mctc": "tad_mctc-0.11.3-py3-none-any.whl",
}
LICENCE = "Apache-2.0"
NUM_ELEMENTS = 103
# tad_mctc.units.length.AA2AU 0.11.3
BOHR_PER_ANGSTROM = 1.8897261246204407
COVALENT_SCALE = 4.0 / 3.0
ZETA_HEIGHT, ZETA_STEEPNESS = 3.0, 2.0
FREQUENCIES = np.array(
    [
        1e-6,
        0.05,
        0.1,
        0.2,
        0.3,
        0.4,
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
        1.0,
        1.2,
        1.4,
        1.6,
        1.8,
        2.0,
        2.5,
        3.0,
        4.0,
        5.0,
        7.5,
        10.0,
    ]
)


class Source:
    """Numeric literals of one Python file inside a wheel."""

    def __init__(self, folder: Path, package: str, path: str) -> None:
        with zipfile.ZipFile(folder / WHEELS[package]) as wheel:
            self._tree = ast.parse(wheel.read(path).decode())
        self._path = path

    def function(self, name: str) -> np.ndarray:
        """The outermost list literal inside a function."""
        for node in ast.walk(self._tree):
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return self._numbers(node, name)
        raise self._missing(name)

    def variable(self, name: str) -> np.ndarray:
        """The outermost list literal assigned to a variable of the module."""
        for node in self._tree.body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
                return self._numbers(node.value, name)
        raise self._missing(name)

    def _numbers(self, parent: ast.AST, name: str) -> np.ndarray:
        lists = [child for child in ast.walk(parent) if isinstance(child, ast.List)]
        if not lists:
            raise self._missing(name)
        rows = [ast.literal_eval(item.value if isinstance(item, ast.Starred) else item) for item in lists[0].elts]
        starred = any(isinstance(item, ast.Starred) for item in lists[0].elts)
        return np.array([value for row in rows for value in row] if starred else rows, dtype=np.float64)

    def _missing(self, name: str) -> DataError:
        return DataError(f"{self._path} has no list {name}; use exactly the versions {list(WHEELS.values())}")


def zeta(hardness: np.ndarray, charge_reference: np.ndarray, charge: np.ndarray) -> np.ndarray:
    """Charge scaling of the polarisability, eq. 2 of the paper; charges without those of the core electrons."""
    exponent = np.exp(ZETA_STEEPNESS * hardness * (1.0 - charge_reference / charge))
    return np.exp(ZETA_HEIGHT * (1.0 - exponent))


def reference_alpha(params: Source, charges: Source, hardness: np.ndarray, effective: np.ndarray) -> np.ndarray:
    """Polarisabilities (elements, slots, frequencies) of the atoms in the reference systems."""
    partner = params.variable("refsys").astype(np.int64)
    partner_alpha = (params.variable("secscale") * params.variable("secalpha"))[partner]
    z_partner = effective[partner]
    with np.errstate(divide="ignore", invalid="ignore"):  # no partner: index 0, without a nucleus
        scaling = zeta(hardness[partner], z_partner, charges.variable("clsh") + z_partner)
    scaling = np.where(partner > 0, scaling, 0.0)
    rest = params.variable("refalpha") - (params.variable("refscount") * scaling)[..., None] * partner_alpha
    return np.maximum(params.variable("refascale")[..., None] * rest, 0.0)


def make_tables(folder: Path) -> dict[str, np.ndarray]:
    """Read the wheels in `folder` and return the arrays that the module docstring lists."""
    params = Source(folder, "tad-dftd4", "tad_dftd4/reference/d4/params.py")
    charges = Source(folder, "tad-dftd4", "tad_dftd4/reference/d4/charge_eeq.py")
    eeq = Source(folder, "tad-multicharge", "tad_multicharge/param/eeq2019.py")
    hardness = Source(folder, "tad-mctc", "tad_mctc/data/hardness.py").function("GAM")
    effective = Source(folder, "tad-mctc", "tad_mctc/data/zeff.py").function("ZEFF")
    r4_over_r2 = Source(folder, "tad-dftd4", "tad_dftd4/data/r4r2.py").function("R4R2")
    radius = Source(folder, "tad-mctc", "tad_mctc/data/radii.py").function("COV_D3")
    gaussians = params.variable("refc").astype(np.int64)
    element, slot = np.nonzero(gaussians > 0)  # 0 marks an empty slot; index 0 is a dummy element without any
    z = np.arange(1, NUM_ELEMENTS + 1)
    steps = np.diff(FREQUENCIES)
    return {
        "covalent_radius": COVALENT_SCALE * BOHR_PER_ANGSTROM * radius[z],
        "electronegativity": Source(folder, "tad-mctc", "tad_mctc/data/en.py").function("PAULING")[z],
        "r4r2": np.sqrt(0.5 * np.sqrt(z) * r4_over_r2[z]),
        "hardness": hardness[z],
        "effective_charge": effective[z],
        "eeq_chi": eeq.variable("chi")[z],
        "eeq_eta": eeq.variable("eta")[z],
        "eeq_kcn": eeq.variable("kcn")[z],
        "eeq_radius": eeq.variable("rad")[z],
        "reference_element": element.astype(np.int64),
        "reference_cn": params.variable("refcovcn")[element, slot],
        "reference_charge": charges.variable("clsq")[element, slot],
        "reference_gaussians": gaussians[element, slot],
        "reference_alpha": reference_alpha(params, charges, hardness, effective)[element, slot],
        "frequency_weight": 0.5 * (np.append(steps, 0.0) + np.append(0.0, steps)),
        "source": np.array([*WHEELS.values(), f"licence {LICENCE}"]),
    }


def main(argv: list[str] | None = None) -> int:
    """Command line: folder with the wheels, target file."""
    parser = argparse.ArgumentParser(
        description="Make the D4 element data file from the tad-dftd4, tad-multicharge and tad-mctc wheels."
    )
    parser.add_argument("wheels", type=Path, help=f"folder that holds {', '.join(WHEELS.values())}")
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
