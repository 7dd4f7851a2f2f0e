"""Physics that every potential must obey, as checks of a callable; and small inputs to run them on.

An `Evaluate` maps a padded batch to a `Prediction` whose energy is differentiable in the coordinates. It is given
fidelities 0 to 2 (and may ignore them). All checks run in float64. `ROUNDING` is their tolerance for "the same
number computed in another order": energies and forces here are of size 0.01 to 100 and pass through a few
thousand float64 operations (relative error 1e-16 each), which leaves 1e-11; a wrong term is many orders larger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule as g2_molecule
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from aimnet2mult.configs.model import ModelConfig
from aimnet2mult.configs.yaml_io import validated
from aimnet2mult.models.derivatives import forces_from_energy
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.types import Molecules, Prediction

Evaluate = Callable[[Molecules], Prediction]

ROUNDING = 1e-10
CHARGE_TOLERANCE = 1e-6  # e, the promise of the documentation

# name in ase's g2 collection, charge; the multiplicity follows from g2's magnetic moments, or is given
CASES: tuple[tuple[str, int, int | None], ...] = (
    ("H2O", 0, None), ("NH3", 0, None), ("CH4", 0, None), ("CO2", 0, None), ("HCN", 0, None),
    ("C2H4", 0, None), ("CH3OH", 0, None), ("HCOOH", 0, None), ("SO2", 0, None), ("CH3SH", 0, None),
    ("ClNO", 0, None), ("PH3", 0, None), ("SiH4", 0, None), ("CH3CONH2", 0, None), ("C4H4NH", 0, None),
    ("OH", -1, 1), ("CN", -1, 1), ("CH3", 1, 1), ("CH3O", -1, 1), ("H2O", 1, 2), ("NO", 1, 1),
    ("NH2", 0, None), ("CH3CO", 0, None), ("NO2", 0, None), ("O2", 0, None), ("CH2_s3B1d", 0, None),
)  # fmt: skip


class Results(NamedTuple):
    energy: Tensor  # (B,) eV
    forces: Tensor  # (B, N, 3) eV/Å
    charges: Tensor  # (B, N) e
    spin_charges: Tensor  # (B, N) e


def structure(name: str, charge: int = 0, mult: int | None = None, seed: int = 0) -> Atoms:
    """A g2 molecule with all symmetry broken by random displacements of 0.05 Å."""
    atoms = g2_molecule(name)
    unpaired = round(float(atoms.get_initial_magnetic_moments().sum()))
    atoms.positions += np.random.default_rng(seed).normal(scale=0.05, size=atoms.positions.shape)
    atoms.info = {"charge": charge, "mult": unpaired + 1 if mult is None else mult}
    return atoms


def structures() -> list[Atoms]:
    """26 neutral molecules, ions, radicals and triplets."""
    return [structure(name, charge, mult, seed) for seed, (name, charge, mult) in enumerate(CASES)]


def collate(
    structures: Sequence[Atoms], fidelity: int | Sequence[int] = 0, extra: int = 0, junk: float = 0.0
) -> Molecules:
    """Pad structures to one batch in float64, with `extra` more slots; padding coordinates are `junk`."""
    n_slots = max(len(atoms) for atoms in structures) + extra
    coord = torch.full((len(structures), n_slots, 3), junk, dtype=torch.float64)
    numbers = torch.zeros((len(structures), n_slots), dtype=torch.int64)
    for row, atoms in enumerate(structures):
        coord[row, : len(atoms)] = torch.from_numpy(atoms.positions)
        numbers[row, : len(atoms)] = torch.from_numpy(atoms.numbers)
    charge = torch.tensor([atoms.info["charge"] for atoms in structures], dtype=torch.float64)
    mult = torch.tensor([atoms.info["mult"] for atoms in structures], dtype=torch.float64)
    ids = [fidelity] * len(structures) if isinstance(fidelity, int) else list(fidelity)
    return Molecules(coord, numbers, charge, mult, torch.tensor(ids))


def results(evaluate: Evaluate, molecules: Molecules) -> Results:
    """Energy, forces and charges of a batch."""
    coord = molecules.coord.clone().requires_grad_()
    prediction = evaluate(molecules._replace(coord=coord))
    forces = forces_from_energy(prediction.energy, coord)
    return Results(prediction.energy.detach(), forces, prediction.charges.detach(), prediction.spin_charges.detach())


def assert_close(found: Tensor, expected: Tensor, tolerance: float = ROUNDING) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def model_config(**changes: Any) -> ModelConfig:
    """A tiny network with all heads for three fidelities; `changes` go into ``kwargs``, a head of None is left out."""
    heads = "aimnet2mult.models.heads."
    outputs: dict[str, Any] = {
        "energy_mlp": {"class": heads + "EnergyMLP", "kwargs": {"hidden": [8]}},
        "charges": {"class": heads + "Charges", "kwargs": {"source": "readout", "hidden": [6]}},
        "spin_charges": {"class": heads + "SpinCharges"},
        "atomic_shift": {"class": heads + "AtomicShift"},
        "atomic_sum": {"class": heads + "AtomicSum"},
        "lrcoulomb": {"class": heads + "LRCoulomb", "kwargs": {"method": "simple", "rc": 4.6}},
    }
    kwargs: dict[str, Any] = {
        "num_fidelities": 3, "nfeature": 4, "ncomb_v": 3, "aim_size": 8,
        "aev": {"rc_s": 5.0, "rmin": 0.8, "nshifts_s": 6}, "hidden": [[12, 10], [12, 10], [12, 10, 10]],
    }  # fmt: skip
    outputs |= changes.pop("outputs", {})
    kwargs |= changes
    if kwargs.get("num_charge_channels") == 1:
        outputs["spin_charges"] = None
    kwargs["outputs"] = {name: head for name, head in outputs.items() if head is not None}
    return validated(
        ModelConfig, {"class": "aimnet2mult.models.network.MultiFidelityNetwork", "kwargs": kwargs}, "test"
    )


def perturbed(module: nn.Module, seed: int = 0, scale: float = 0.2) -> nn.Module:
    """Add noise to every parameter, in place, so that no shifts, differences or heads are equal by construction."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return module


def network(seed: int = 0, **changes: Any) -> MultiFidelityNetwork:
    """A tiny float64 network whose parameters all differ from their starting values."""
    torch.manual_seed(seed)
    model = MultiFidelityNetwork(model_config(**changes)).double()
    perturbed(model, seed)
    return model


def check_forces_against_differences(evaluate: Evaluate, structures: Sequence[Atoms], step: float = 1e-4) -> None:
    """Forces equal the five-point difference of the energy to 1e-6 of the molecule's largest force.

    With steps of 1e-4 Å the truncation error is step^4 E'''''/30, below 1e-12 eV/Å, and the rounding error
    1e-15 eV / 1e-4 Å, so that 1e-6 leaves room for neither a wrong nor a missing term.
    """
    for fidelity, atoms in enumerate(structures):
        single = collate([atoms], fidelity % 3)
        forces = results(evaluate, single).forces[0]
        n = len(atoms)
        unit = torch.eye(3 * n, dtype=torch.float64).view(3 * n, n, 3)
        moved = torch.cat([single.coord + factor * step * unit for factor in (-2, -1, 1, 2)])
        energy = evaluate(Molecules(moved, *(field.expand(12 * n, *field.shape[1:]) for field in single[1:]))).energy
        e = energy.detach().view(4, n, 3)
        expected = -(e[0] - 8 * e[1] + 8 * e[2] - e[3]) / (12 * step)
        largest = forces.abs().max()
        assert largest > 1e-3, f"{atoms.symbols}: forces this small test nothing"
        assert (forces - expected).abs().max() < 1e-6 * largest, str(atoms.symbols)


def check_rotation_and_translation(evaluate: Evaluate, structures: Sequence[Atoms]) -> None:
    """Energy and charges do not change when the molecule moves or turns (or is mirrored); forces turn with it."""
    before = collate(structures)
    expected = results(evaluate, before)
    turn = torch.from_numpy(Rotation.from_euler("xyz", [0.4, -1.1, 2.3]).as_matrix())
    for matrix in (turn, -turn):
        shift = torch.tensor([3.0, -2.0, 5.0], dtype=torch.float64)
        found = results(evaluate, before._replace(coord=before.coord @ matrix.T + shift))
        assert_close(found.forces, expected.forces @ matrix.T)
        for key in ("energy", "charges", "spin_charges"):
            assert_close(getattr(found, key), getattr(expected, key))


def check_permutation(evaluate: Evaluate, structures: Sequence[Atoms]) -> None:
    """The order of the atoms, padding slots among them, means nothing."""
    batch = collate(structures, extra=1)
    order = torch.from_numpy(np.random.default_rng(5).permutation(batch.numbers.shape[1]))
    expected, found = (
        results(evaluate, batch),
        results(evaluate, batch._replace(coord=batch.coord[:, order], numbers=batch.numbers[:, order])),
    )
    assert_close(found.energy, expected.energy)
    for key in ("forces", "charges", "spin_charges"):
        assert_close(getattr(found, key), getattr(expected, key)[:, order])


def check_padding_and_batch_order(evaluate: Evaluate, structures: Sequence[Atoms]) -> None:
    """A molecule alone, in a batch, in another order, among padding slots at any place: the same numbers."""
    ids = [i % 3 for i in range(len(structures))]
    batch = results(evaluate, collate(structures, ids))
    for row, atoms in enumerate(structures):
        alone = results(evaluate, collate([atoms], ids[row]))
        n = len(atoms)
        assert_close(batch.energy[row], alone.energy[0])
        for key in ("forces", "charges", "spin_charges"):
            assert_close(getattr(batch, key)[row, :n], getattr(alone, key)[0])
            assert (getattr(batch, key)[row, n:] == 0.0).all(), f"{key} on padding must be exactly zero"
    backwards = results(evaluate, collate(structures[::-1], ids[::-1], extra=3, junk=1.7))
    n_slots = batch.charges.shape[1]
    assert_close(backwards.energy.flip(0), batch.energy)
    for key in ("forces", "charges", "spin_charges"):
        assert_close(getattr(backwards, key).flip(0)[:, :n_slots], getattr(batch, key))
        assert (getattr(backwards, key)[:, n_slots:] == 0.0).all()


def check_charge_sums(
    evaluate: Evaluate, structures: Sequence[Atoms], spin: bool = True, tolerance: float = CHARGE_TOLERANCE
) -> None:
    """Charges sum to the charge; spin charges to mult - 1, or are all zero for a closed-shell network."""
    batch = collate(structures)
    found = evaluate(batch)
    assert found.charges.detach().abs().mean() > 1e-2, "charges this small test nothing"
    assert (found.charges.detach().sum(1) - batch.charge).abs().max() < tolerance
    expected = batch.mult - 1.0 if spin else torch.zeros_like(batch.mult)
    assert (found.spin_charges.detach().sum(1) - expected).abs().max() < tolerance
    if not spin:
        assert (found.spin_charges == 0.0).all()


def check_additivity(evaluate: Evaluate) -> None:
    """Two copies of a neutral molecule 100,000 Å apart: twice the energy, the same forces and charges.

    Their dipoles still interact, by 1e-13 eV at that distance.
    """
    for name in ("H2O", "CH3", "HCOOH"):
        one = structure(name)
        far = one.copy()
        far.positions += [1e5, 0.0, 0.0]
        pair = one + far
        pair.info = {"charge": 0, "mult": 2 * one.info["mult"] - 1}
        alone, both = results(evaluate, collate([one])), results(evaluate, collate([pair]))
        assert_close(both.energy, 2.0 * alone.energy)
        for key in ("forces", "charges", "spin_charges"):
            value = getattr(alone, key)
            # coordinates of 1e5 Å hold distances to 1e-11 Å, so forces to 1e-9
            assert_close(getattr(both, key), torch.cat([value, value], dim=1), 1e-8)


def check_smoothness(evaluate: Evaluate, cutoff: float = 5.0) -> None:
    """Energy and forces of a dimer pulled through the cutoff in steps of 0.01 Å do not jump.

    A jump J of the energy or the force shows as J in a step or as J/h^2 in the second difference of the energy;
    near the cutoff these must stay as small as they are anywhere in the 2 Å before it.
    """
    step = 0.01
    distances = np.arange(cutoff - 2.0, cutoff + 0.5, step)
    atoms = structure("CO")
    scan = []
    for distance in distances:
        dimer = atoms.copy()
        dimer.positions = [[0.0, 0.0, 0.0], [0.3 * distance, 0.4 * distance, np.sqrt(0.75) * distance]]
        dimer.info = atoms.info
        scan.append(dimer)
    found = results(evaluate, collate(scan))
    along = torch.from_numpy(scan[0].positions[1] / distances[0])
    curvature = found.energy.diff(n=2).abs() / step**2
    force_step = (found.forces[:, 1] @ along).diff().abs() / step
    for name, size, r in (("energy", curvature, distances[1:-1]), ("force", force_step, distances[1:])):
        near = torch.from_numpy(r > cutoff - 0.1)
        assert size[~near].max() > 1e-3, f"the {name} hardly changes: the scan tests nothing"
        assert size[near].max() < size[~near].max(), f"{name} is not smooth at the cutoff"


def check_single_atoms(evaluate: Evaluate) -> None:
    """An atom feels no force and carries the whole charge and spin, alone and beside molecules."""
    for symbol, charge, mult in (("H", 0, 2), ("Cl", -1, 1), ("O", 0, 3), ("F", 0, 2)):
        atoms = Atoms(symbol, positions=[[0.3, -0.2, 0.9]], info={"charge": charge, "mult": mult})
        alone = results(evaluate, collate([atoms]))
        beside = results(evaluate, collate([structure("H2O"), atoms]))
        assert alone.energy.isfinite().all()
        assert (alone.forces == 0.0).all()
        assert abs(alone.charges.item() - charge) < CHARGE_TOLERANCE
        assert_close(beside.energy[1], alone.energy[0])
        assert_close(beside.charges[1, 0], alone.charges[0, 0])


def check_molecules_do_not_interact(evaluate: Evaluate, structures: Sequence[Atoms]) -> None:
    """The gradient of one molecule's energy in the coordinates of every other is exactly zero."""
    batch = collate(structures)
    coord = batch.coord.clone().requires_grad_()
    energy = evaluate(batch._replace(coord=coord)).energy
    for row in range(len(structures)):
        (gradient,) = torch.autograd.grad(energy[row], coord, retain_graph=True)
        own = torch.arange(len(structures)) == row
        assert gradient[own].abs().max() > 0.0
        assert (gradient[~own] == 0.0).all()


def check_everything(evaluate: Evaluate, spin: bool = True) -> None:
    """All of the above."""
    molecules = structures()
    check_forces_against_differences(evaluate, molecules)
    check_rotation_and_translation(evaluate, molecules)
    check_permutation(evaluate, molecules)
    check_padding_and_batch_order(evaluate, molecules)
    check_charge_sums(evaluate, molecules, spin)
    check_additivity(evaluate)
    check_smoothness(evaluate)
    check_single_atoms(evaluate)
    check_molecules_do_not_interact(evaluate, molecules[::4])
