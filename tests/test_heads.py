"""What is shared between fidelities and what is not."""

from __future__ import annotations

import pytest
import suites
import torch
from torch import Tensor, nn

from aimnet2mult.models.network import MultiFidelityNetwork

STACKED = ("energy_mlp.", "charges.", "atomic_shift.", "backbone.embedding.")


def fresh(**changes: object) -> MultiFidelityNetwork:
    """A network as it is before training."""
    torch.manual_seed(3)
    return MultiFidelityNetwork(suites.model_config(**changes)).double()


def loss(network: nn.Module, fidelities: list[int]) -> Tensor:
    """Errors of energies and charges against labels that differ between the fidelities."""
    batch = suites.collate(suites.structures()[: len(fidelities)], fidelities)
    found = network(batch)
    target = batch.fidelity.to(torch.float64) - 1.5
    errors = (found.energy - target).square().sum() + (found.charges - 0.3 * target.unsqueeze(1)).square().sum()
    return errors + (found.spin_charges - 0.1 * target.unsqueeze(1)).square().sum()


def step(network: nn.Module, fidelities: list[int]) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    loss(network, fidelities).backward()
    optimizer.step()


def stacked(network: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with the fidelity as first axis."""
    parameters = {n: p for n, p in network.named_parameters() if n.startswith(STACKED)}
    # where there is a difference per fidelity, the parameter that it is added to is shared
    shared = {n.replace("difference_", "") for n in parameters if "difference_" in n}
    return {n: p for n, p in parameters.items() if n not in shared}


@pytest.mark.parametrize("readouts", ["separate", "difference"])
def test_fidelities_start_equal_and_differ_after_one_step(readouts: str) -> None:
    network = fresh(fidelity_readouts=readouts)
    names = stacked(network)
    assert len(names) == 10  # two layers of weight and bias in each of the two heads, the shift, the embedding
    for name, value in names.items():
        assert torch.equal(value[0], value[1]), name
        assert torch.equal(value[1], value[2]), name
    step(network, [0, 1, 2])
    for name, value in stacked(network).items():
        for a, b in ((0, 1), (1, 2), (0, 2)):
            assert not torch.equal(value[a], value[b]), f"{name} is the same for fidelities {a} and {b} after a step"
    one, two = (network(suites.collate(suites.structures()[:3], i)).energy for i in (0, 1))
    assert (one - two).abs().min() > 1e-6


@pytest.mark.parametrize("kind", ["difference", "separate"])
def test_absent_fidelity_gets_exactly_zero_gradient(kind: str) -> None:
    network = fresh(fidelity_embedding=kind, fidelity_readouts=kind)
    suites.perturbed(network)
    loss(network, [0, 2, 2, 0]).backward()
    for name, value in network.named_parameters():
        # every parameter is in the graph of every batch: distributed training waits for each of them
        assert value.grad is not None, f"{name} takes no part"
    for name, value in stacked(network).items():
        assert value.grad is not None
        assert (value.grad[1] == 0.0).all(), f"{name}: fidelity 1 is absent"
        assert value.grad[0].abs().max() > 0.0, f"{name}: fidelity 0 is present"
        assert value.grad[2].abs().max() > 0.0, f"{name}: fidelity 2 is present"


def test_absent_fidelity_keeps_its_weights() -> None:
    network = fresh()
    before = {name: value[1].detach().clone() for name, value in stacked(network).items()}
    step(network, [0, 2])
    for name, value in stacked(network).items():
        assert torch.equal(value[1], before[name]), name


def test_absent_elements_keep_their_rows() -> None:
    network = fresh()
    loss(network, [0, 1, 2]).backward()  # water, ammonia, methane
    for name in ("backbone.embedding.difference_weight", "atomic_shift.0.shift"):
        gradient = dict(network.named_parameters())[name].grad
        assert gradient is not None
        touched = {tuple(row) for row in gradient.reshape(3, 119, -1).abs().amax(-1).nonzero().tolist()}
        assert touched == {(0, 1), (0, 8), (1, 1), (1, 7), (2, 1), (2, 6)}, name


def test_shared_readouts() -> None:
    network = fresh(use_fidelity_readouts=False)
    for name, value in stacked(network).items():
        assert value.shape[0] == (3 if "embedding" in name else 1), name
    batch = suites.structures()[:4]
    energies = [network(suites.collate(batch, i)).energy for i in range(3)]
    assert torch.equal(energies[0], energies[1])  # the embeddings start equal and all else is shared
    step(network, [0, 1, 2])
    energies = [network(suites.collate(batch, i)).energy for i in range(3)]
    assert (energies[0] - energies[1]).abs().max() > 0.0  # only the embedding tells them apart now


def test_embedding_difference_starts_at_zero() -> None:
    embedding = fresh(fidelity_embedding="difference").backbone.embedding
    assert (embedding.difference_weight == 0.0).all()
    separate = fresh(fidelity_embedding="separate").backbone.embedding
    assert separate.difference_weight is None
    for i in range(3):
        assert torch.equal(embedding.at_fidelity(i)["weight"], embedding.weight)
        assert torch.equal(separate.at_fidelity(i)["weight"], separate.weight[:1])
    for rows in (embedding.weight[0], separate.weight[0]):
        norms = rows.norm(dim=-1)
        # made in float32, whose relative step is 1e-7
        torch.testing.assert_close(norms, torch.full_like(norms, 0.3), rtol=1e-6, atol=0.0)
        assert (rows[6] != rows[7]).any()


def test_differences_of_the_heads_start_at_zero() -> None:
    separate, difference = fresh(), fresh(fidelity_readouts="difference")
    for name, value in stacked(difference).items():
        assert (value == 0.0).all(), name
    # the same seed gives the same start either way
    batch = suites.collate(suites.structures()[:3], [0, 1, 2])
    suites.assert_close(difference(batch).energy, separate(batch).energy)


def test_embedding_looks_up_fidelity_and_element() -> None:
    for kind in ("difference", "separate"):
        embedding = suites.network(fidelity_embedding=kind).backbone.embedding
        numbers, fidelity = torch.tensor([1, 6, 118, 6]), torch.tensor([0, 1, 2, 2])
        tables = [embedding.at_fidelity(i)["weight"][0] for i in range(3)]
        expected = torch.stack([tables[f][z] for f, z in zip(fidelity.tolist(), numbers.tolist(), strict=True)])
        assert torch.equal(embedding(numbers, fidelity), expected)


def test_atomic_shift_adds_one_number_per_atom() -> None:
    network = suites.network()
    batch = suites.collate([suites.structure("HCOOH")] * 3, [0, 1, 2])
    before = network(batch).energy
    with torch.no_grad():
        stacked(network)["atomic_shift.0.shift"][1, 8] += 0.25
    # HCOOH has two oxygen atoms; only fidelity 1 was shifted
    suites.assert_close(network(batch).energy - before, torch.tensor([0.0, 0.5, 0.0], dtype=torch.float64))


def test_charges_of_the_backbone_are_one_set_for_all_fidelities() -> None:
    source = {"charges": {"class": "aimnet2mult.models.heads.Charges", "kwargs": {"source": "backbone"}}}
    network = fresh(outputs=source)
    assert not [name for name in stacked(network) if name.startswith("charges.")]
    with torch.no_grad():
        stacked(network)["energy_mlp.mlp.layers.1.weight"][1] += 1.0
    found = network(suites.collate([suites.structure("H2O")] * 2, [0, 1]))
    suites.assert_close(found.charges[0], found.charges[1])
    assert (found.energy[0] - found.energy[1]).abs() > 1e-3


def test_spin_charges_left_out_are_zero() -> None:
    full, without = suites.network(), suites.network(outputs={"spin_charges": None})
    assert without.config.kwargs.num_charge_channels == 2
    batch = suites.collate(suites.structures(), 1)
    expected, found = full(batch), without(batch)
    assert expected.spin_charges.abs().max() > 1e-2
    assert (found.spin_charges == 0.0).all()
    assert torch.equal(found.energy, expected.energy)
    assert torch.equal(found.charges, expected.charges)
    scripted = torch.jit.script(without.at_fidelity(1))
    alone = scripted(suites.collate(suites.structures()))
    assert (alone.spin_charges == 0.0).all()
    assert alone.spin_charges.shape == batch.numbers.shape
    suites.assert_close(alone.charges, expected.charges)
