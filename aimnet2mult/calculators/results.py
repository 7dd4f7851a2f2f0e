"""Results under the names that ASE has for them."""

from __future__ import annotations

from typing import Any

from ase.data import atomic_masses

from aimnet2mult.calculators.evaluation import Evaluation
from aimnet2mult.calculators.inputs import System
from aimnet2mult.physics.lattice import mapped


def ase_results(found: Evaluation, system: System) -> dict[str, Any]:
    """Results under ASE's names.

    The dipole (e Å) is taken about the centre of mass, with the standard masses, because ASE does not tell a
    calculator when a structure's own masses change. A periodic system has none: it would depend on the choice of cell.
    """
    results: dict[str, Any] = {
        "energy": found.energy,
        "free_energy": found.energy,
        "charges": found.charges,
        "magmoms": found.spin_charges,
        "magmom": float(found.spin_charges.sum()),
    }
    if system.n_periodic == 0:
        masses = atomic_masses[system.numbers]
        centre = mapped(system.coord.T, masses) / masses.sum()
        results["dipole"] = mapped((system.coord - centre).T, found.charges)
    optional = ("forces", "stress", "energy_std", "forces_std", "novelty")
    return results | {name: getattr(found, name) for name in optional if getattr(found, name) is not None}
