"""Small data files that the tests of the data room share."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from aimnet2mult.datasets.reader import FidelitySource

WATER = np.array([[0.0, 0.0, 0.12], [0.0, 0.76, -0.47], [0.0, -0.76, -0.47]])


def water(n: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "coord": (WATER + 0.02 * rng.standard_normal((n, 3, 3))).astype(np.float32),
        "numbers": np.tile(np.array([8, 1, 1], dtype=np.int32), (n, 1)),
        "charge": np.zeros(n, dtype=np.float32),
        "mult": np.ones(n, dtype=np.float32),
        "energy": -2079.0 + rng.standard_normal(n),
        "forces": rng.standard_normal((n, 3, 3)).astype(np.float32),
        "charges": rng.standard_normal((n, 3)).astype(np.float32),
        "spin_charges": np.zeros((n, 3), dtype=np.float32),
    }


def write(path: Path, groups: dict[str, dict[str, np.ndarray]]) -> Path:
    with h5py.File(path, "w") as handle:
        for name, columns in groups.items():
            group = handle.create_group(name)
            for key, values in columns.items():
                group[key] = values
    return path


def methane(n: int = 3) -> dict[str, np.ndarray]:
    corners = 0.63 * np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    noise = 0.02 * np.random.default_rng(1).standard_normal((n, 5, 3))
    return {
        "coord": corners + noise,
        "numbers": np.tile(np.array([6, 1, 1, 1, 1], dtype=np.int16), (n, 1)),
        "charge": np.zeros(n, dtype=np.int8),
        "energy": -1100.123456789012 + np.arange(n),
    }


def two_fidelities(folder: Path) -> dict[int, FidelitySource]:
    """Fidelity 0: water and methane with all labels of water; fidelity 1: methane, energies only. 24 samples."""
    low = write(
        folder / "low.h5", {"003": water(10) | {"molecule_id": np.arange(10) // 2 + 100}, "5": methane(6) | ids(6)}
    )
    high = write(folder / "high.h5", {"005": methane(8) | ids(8)})
    return {0: FidelitySource(0, "low", (low,)), 1: FidelitySource(1, "high", (high,))}


def ids(n: int) -> dict[str, np.ndarray]:
    """Every two geometries are one molecule."""
    return {"molecule_id": np.arange(n) // 2}
