"""Do the forces belong to the energies? A check of sign and unit on pairs of geometries."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from aimnet2mult.datasets.reader import MultiFidelityDataset, Sample

_PAIRS = 400
_MIN_PAIRS = 10
_NEAR = 0.5  # Å root mean square displacement, up to which the trapezoidal rule gives the trend
_MIN_CORRELATION = 0.5
_FACTOR = 3.0  # other units differ by far more (kcal/mol: 23, Hartree/Bohr: 51), the trapezoidal rule by far less


class ForceCheck(NamedTuple):
    """How energy differences follow from forces, in one fidelity."""

    pairs: int
    slope: float  # energy difference over work of the forces; 1 where they belong together
    correlation: float
    warning: str | None


def check_forces(dataset: MultiFidelityDataset, fidelity: int, seed: int = 0) -> ForceCheck:
    """Compare energy differences between geometries of one molecule with the work of its forces.

    For two near geometries a and b, after superposition (Kabsch, Acta Cryst. A 1976, 32, 922),
    E_b - E_a = -(F_a + F_b) . (x_b - x_a) / 2 up to third order in the displacement.

    Parameters
    ----------
    dataset
        Data opened with forces among the labels.
    fidelity
        Which one to look at.
    seed
        Of the choice of pairs.

    Returns
    -------
    ForceCheck
        With a warning where the sign or the unit of the forces is wrong; none where too few pairs can tell.
    """
    usable = np.nonzero((dataset.fidelity_of == fidelity) & dataset.has_label("forces"))[0]
    keys = dataset.molecule_key_of[usable]
    order = np.lexsort((usable, dataset.natoms_of[usable], keys))
    first, second = usable[order[:-1]], usable[order[1:]]
    same = (keys[order[:-1]] == keys[order[1:]]) & (dataset.natoms_of[first] == dataset.natoms_of[second])
    places = np.nonzero(same)[0]
    chosen = np.random.default_rng(seed).permutation(places)[:_PAIRS]
    terms = [_pair(a, b) for a, b in zip(dataset.read(first[chosen]), dataset.read(second[chosen]), strict=True)]
    near = np.array([term for term in terms if term is not None]).reshape(-1, 2)
    if len(near) < _MIN_PAIRS or not near.any(axis=0).all():
        return ForceCheck(len(near), float("nan"), float("nan"), None)
    work, change = near.T
    slope = float(work @ change / (work @ work))
    correlation = float(work @ change / np.sqrt((work @ work) * (change @ change)))
    return ForceCheck(len(near), slope, correlation, _warning(fidelity, slope, correlation))


def _warning(fidelity: int, slope: float, correlation: float) -> str | None:
    if correlation < -_MIN_CORRELATION:
        return (
            f"the forces of fidelity {fidelity} have the wrong sign: energies rise along them; forces are the negative"
            " gradient, multiply them by -1"
        )
    if correlation > _MIN_CORRELATION and not 1 / _FACTOR < slope < _FACTOR:
        return (
            f"the forces of fidelity {fidelity} are not in eV/Å, or its energies not in eV: energy differences are"
            f" {slope:.3g} times what the forces say; convert them (1 Hartree = 27.21 eV, 1 Hartree/Bohr = 51.42 eV/Å)"
        )
    return None


def _pair(a: Sample, b: Sample) -> tuple[float, float] | None:
    """Work of the mean force from a to b, and the energy difference, in eV; None when they are not near."""
    if len(a.numbers) < 2 or not np.array_equal(a.numbers, b.numbers) or (a.charge, a.mult) != (b.charge, b.mult):
        return None
    start, end = (s.coord.astype(np.float64) - s.coord.mean(axis=0, dtype=np.float64) for s in (a, b))
    left, _, right = np.linalg.svd(end.T @ start)
    # the smallest axis is flipped where the best fit would be a mirror image
    turn = left @ np.diag([1.0, 1.0, np.sign(np.linalg.det(left @ right))]) @ right
    step = end @ turn - start
    if np.sqrt((step**2).sum(axis=1).mean()) > _NEAR:
        return None
    force = 0.5 * (a.labels["forces"] + b.labels["forces"] @ turn)
    return -float((force * step).sum()), b.energy - a.energy
