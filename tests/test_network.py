"""The eager network in all its forms against the physics suite."""

from __future__ import annotations

from typing import Any

import pytest
import suites
import torch

from aimnet2mult.errors import ConfigError
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.types import Molecules, Prediction

FORMS: dict[str, dict[str, Any]] = {
    "two channels": {},
    "one channel": {"num_charge_channels": 1},
    "shared features": {"d2features": False},
    "one channel, shared features, separate embedding": {
        "num_charge_channels": 1,
        "d2features": False,
        "fidelity_embedding": "separate",
    },
    "heads with differences": {"fidelity_readouts": "difference"},
    "charge and spin": {"equilibration": "charge_spin"},
    "no Coulomb, charges of the backbone": {
        "outputs": {
            "lrcoulomb": None,
            "charges": {"class": "aimnet2mult.models.heads.Charges", "kwargs": {"source": "backbone"}},
        }
    },
    "four passes, shared heads, no shift": {
        "hidden": [[10], [10], [10], [10]],
        "use_fidelity_readouts": False,
        "outputs": {"atomic_shift": None},
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_physics(form: str) -> None:
    changes = FORMS[form]
    suites.check_everything(suites.network(**changes), spin=changes.get("num_charge_channels") != 1)


def test_singlets_have_no_spin_on_any_atom_where_charge_and_spin_are_equilibrated() -> None:
    molecules = suites.structures()
    batch = suites.collate(molecules)
    found = suites.network(equilibration="charge_spin")(batch).spin_charges.detach()
    singlets = batch.mult == 1
    assert singlets.any()
    assert (found[singlets] == 0.0).all()
    several = torch.tensor([len(atoms) > 1 for atoms in molecules])
    assert (found[~singlets & several].abs().amax(1) > 0.1).all()
    published = suites.network()(batch).spin_charges.detach()
    assert (published[singlets] != 0.0).any(), "both forms are the same"


def test_suite_notices_faults() -> None:
    """Each check fails for a network with the fault that it is there for."""
    network = suites.network()
    molecules = suites.structures()[:4]

    def jumping(batch: Molecules) -> Prediction:
        good = network(batch)
        far = (batch.coord[:, 1] - batch.coord[:, 0]).norm(dim=-1) > 5.0
        return good._replace(energy=good.energy + 1e-4 * far)

    def oriented(batch: Molecules) -> Prediction:
        good = network(batch)
        return good._replace(energy=good.energy + 1e-6 * (batch.coord[..., 0] ** 2 * (batch.numbers > 0)).sum(1))

    def padded(batch: Molecules) -> Prediction:
        good = network(batch)
        return good._replace(energy=good.energy + 1e-6 * batch.numbers.shape[1])

    def deaf(batch: Molecules) -> Prediction:
        good = network(batch)
        return good._replace(energy=good.energy + 1e-3 * batch.coord.detach().square().sum((1, 2)))

    def mixing(batch: Molecules) -> Prediction:
        good = network(batch)
        return good._replace(energy=good.energy + 1e-9 * good.energy.mean())

    for check in (
        lambda: suites.check_smoothness(jumping),
        lambda: suites.check_rotation_and_translation(oriented, molecules),
        lambda: suites.check_padding_and_batch_order(padded, molecules),
        lambda: suites.check_forces_against_differences(deaf, molecules),
        lambda: suites.check_molecules_do_not_interact(mixing, molecules),
    ):
        with pytest.raises(AssertionError):
            check()


@pytest.mark.parametrize("form", FORMS)
def test_at_fidelity_is_the_network_at_that_fidelity(form: str) -> None:
    network = suites.network(**FORMS[form])
    molecules = suites.structures()[::3]
    energies = []
    for fidelity in range(3):
        expected = suites.results(network, suites.collate(molecules, fidelity))
        single = network.at_fidelity(fidelity)
        assert single.config.num_fidelities == 1
        found = suites.results(single, suites.collate(molecules))
        for key in suites.Results._fields:
            suites.assert_close(getattr(found, key), getattr(expected, key))
        energies.append(found.energy)
    # the embeddings differ, so the fidelities must; else the comparison above proves nothing
    assert (energies[0] - energies[1]).abs().min() > 1e-3
    assert (energies[1] - energies[2]).abs().min() > 1e-3


def test_at_fidelity_is_a_copy() -> None:
    network = suites.network()
    batch = suites.collate(suites.structures()[:2])
    single = network.at_fidelity(0)
    before = single(batch).energy.detach()
    suites.perturbed(network, seed=9)
    assert torch.equal(single(batch).energy, before)
    assert torch.equal(single.at_fidelity(0)(batch).energy, before)


@pytest.mark.parametrize("fidelity", [-1, 3])
def test_at_fidelity_refuses_what_is_not_there(fidelity: int) -> None:
    with pytest.raises(ConfigError, match=rf"fidelity {fidelity} does not exist: this network has 3 \(0 to 2\)"):
        suites.network().at_fidelity(fidelity)


def test_mixed_batch_equals_separate_batches() -> None:
    network = suites.network()
    molecules = suites.structures()[:6]
    mixed = suites.results(network, suites.collate(molecules, [0, 1, 2, 0, 1, 2]))
    for fidelity in range(3):
        rows = [fidelity, fidelity + 3]
        alone = suites.results(network, suites.collate(molecules, fidelity))
        for key in suites.Results._fields:
            suites.assert_close(getattr(mixed, key)[rows], getattr(alone, key)[rows])


def test_the_multiplicity_matters_only_with_two_channels() -> None:
    batch = suites.collate([suites.structure("CH2_s3B1d"), suites.structure("CH3CO")])
    singlets = batch._replace(mult=torch.ones_like(batch.mult))
    two, one = suites.network(), suites.network(num_charge_channels=1)
    assert (two(batch).energy - two(singlets).energy).abs().min() > 1e-4
    assert torch.equal(one(batch).energy, one(singlets).energy)


def test_same_seed_same_network() -> None:
    batch = suites.collate(suites.structures()[:2])

    def energy(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        network = MultiFidelityNetwork(suites.model_config()).double()
        return network(batch).energy

    assert torch.equal(energy(1), energy(1))
    assert not torch.equal(energy(1), energy(2))


def test_float32_network_on_float64_coordinates() -> None:
    """Displacements are formed in float64: a molecule 1000 Å away keeps its forces to 1e-5 eV/Å."""
    network = suites.network().float()
    near = suites.collate(suites.structures())
    far = near._replace(coord=near.coord + torch.tensor([1000.0, -1000.0, 1000.0], dtype=torch.float64))
    found, expected = suites.results(network, far), suites.results(network, near)
    assert found.energy.dtype == torch.float64
    assert found.forces.dtype == torch.float64
    # float32 arithmetic amplifies displacements that differ in the 13th digit only where a value rounds the other way
    assert (found.forces - expected.forces).abs().max() < 1e-5
    # equilibration is float64 even where the network is not
    suites.check_charge_sums(network, suites.structures(), tolerance=1e-10)


def test_weights_hold_nothing_that_follows_from_the_settings() -> None:
    """Else weights could move the Gaussians away from the settings that the exponent follows."""
    network = suites.network()
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}
    assert network.backbone.basis.centres.dtype == torch.float64
    assert network.backbone.basis.centres.tolist() == pytest.approx([0.8 + 0.7 * k for k in range(6)], abs=1e-6)
