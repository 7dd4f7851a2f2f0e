"""``model.yaml``: what is accepted, what is refused and how, and the size of the network that it gives."""

from __future__ import annotations

import copy
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import suites
import yaml

from aimnet2mult.configs.model import ModelConfig, load_model_config
from aimnet2mult.configs.yaml_io import validated
from aimnet2mult.errors import ConfigError
from aimnet2mult.models.network import MultiFidelityNetwork

PUBLISHED = Path(str(files("aimnet2mult.configs"))) / "model.yaml"


def values() -> dict[str, Any]:
    content = suites.model_config().to_dict()
    assert isinstance(content, dict)
    return copy.deepcopy(content)


def count(network: MultiFidelityNetwork, part: str = "") -> int:
    return sum(p.numel() for name, p in network.named_parameters() if name.startswith(part))


def layers(*widths: int) -> int:
    """Weights and biases of a perceptron."""
    return sum((a + 1) * b for a, b in pairwise(widths))


def test_published_size() -> None:
    """Widths by hand: 16 channels x 16 Gaussians = 256 features, 12 vector combinations, 2 charge channels."""
    config = load_model_config(PUBLISHED)
    network = MultiFidelityNetwork(config)
    environment = 16 * (16 + 12)  # 448
    charge_environment = 2 * (16 + 12)  # 56
    update = 256 + 2 * 2
    assert count(network, "backbone.embedding") == (1 + 3) * 119 * 256
    assert count(network, "backbone.conv") == 16 * 16 * 12 + 2 * 16 * 12
    assert count(network, "backbone.first") == layers(256 + environment, 512, 380, update)
    later = 256 + environment + 2 + charge_environment
    assert later == 762
    assert count(network, "backbone.middle") == layers(later, 512, 380, update)
    assert count(network, "backbone.last") == layers(later, 512, 380, 380, 256)
    assert count(network, "energy_mlp") == 3 * layers(256, 128, 128, 1)
    assert count(network, "charges") == 3 * layers(256, 64, 4)
    assert count(network, "atomic_shift") == 3 * 119
    parts = ("backbone.", "energy_mlp.", "charges.", "atomic_shift.")
    assert count(network) == sum(count(network, part) for part in parts)
    assert count(network.at_fidelity(0)) == pytest.approx(2.2e6, rel=0.05)  # as its first line says


def test_sizes_of_other_forms() -> None:
    small = suites.network(num_charge_channels=1, d2features=False, fidelity_embedding="separate")
    # 4 features, 6 Gaussians, 3 combinations, 1 charge channel
    environment, charge_environment, update = 4 * (6 + 3), 6 + 3, 4 + 2
    assert count(small, "backbone.embedding") == 3 * 119 * 4
    assert count(small, "backbone.conv") == 4 * 6 * 3 + 6 * 3
    assert count(small, "backbone.first") == layers(4 + environment, 12, 10, update)
    later = 4 + environment + 1 + charge_environment
    assert count(small, "backbone.middle") == layers(later, 12, 10, update)
    assert count(small, "backbone.last") == layers(later, 12, 10, 10, 8)
    assert count(small, "charges") == 3 * layers(8, 6, 2)
    assert len(suites.network(hidden=[[5], [5]]).backbone.middle) == 0
    assert len(suites.network(hidden=[[5], [5], [5], [5]]).backbone.middle) == 2


def test_published_file_says_what_the_defaults_are() -> None:
    content = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    required = {"class": content["class"], "kwargs": {"num_fidelities": 3, "outputs": content["kwargs"]["outputs"]}}
    assert validated(ModelConfig, required, "test") == load_model_config(PUBLISHED)


def test_dictionary_round_trip() -> None:
    config = load_model_config(PUBLISHED)
    assert validated(ModelConfig, config.to_dict(), "again") == config


@pytest.mark.parametrize(
    ("path", "wrong", "right"),
    [
        ("", "kwarg", "kwargs"),
        ("kwargs", "nfeatures", "nfeature"),
        ("kwargs", "num_fidelity", "num_fidelities"),
        ("kwargs.aev", "rc", "rc_s"),
        ("kwargs.outputs", "energy_mpl", "energy_mlp"),
        ("kwargs.outputs", "lrcoulom", "lrcoulomb"),
        ("kwargs.outputs.energy_mlp", "kwags", "kwargs"),
        ("kwargs.outputs.energy_mlp.kwargs", "hiden", "hidden"),
        ("kwargs.outputs.lrcoulomb.kwargs", "metod", "method"),
    ],
)
def test_misspelt_keys_are_refused_with_a_suggestion(path: str, wrong: str, right: str) -> None:
    content = values()
    here = content
    for step in path.split(".") if path else []:
        here = here[step]
    here[wrong] = here.get(right, 1)
    where = f"{path}.{wrong}" if path else wrong
    with pytest.raises(ConfigError) as caught:
        validated(ModelConfig, content, "model.yaml")
    assert f"model.yaml: {where}: unknown option; did you mean '{right}'?" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("class", "os.system", "class: must be 'aimnet2mult.models.network.MultiFidelityNetwork'"),
        ("kwargs.outputs.charges.class", "builtins.eval", "outputs.charges.class: must be"),
        ("kwargs.num_fidelities", 0, "kwargs.num_fidelities: must be greater than or equal to 1"),
        ("kwargs.num_charge_channels", 3, "kwargs.num_charge_channels: must be 1 or 2"),
        ("kwargs.num_charge_channels", 1, "outputs.spin_charges needs num_charge_channels: 2"),
        ("kwargs.hidden", [[8, 8]], "at least two message passes"),
        ("kwargs.hidden", [[8], [-1]], "kwargs.hidden.1.0: must be greater than or equal to 1"),
        ("kwargs.aev.rc_s", -5.0, "kwargs.aev.rc_s: must be greater than 0.5"),
        ("kwargs.fidelity_embedding", "shared", "kwargs.fidelity_embedding: must be 'difference' or 'separate'"),
        ("kwargs.aev.rmin", 5.0, "kwargs.aev.rmin: must be less than the cutoff rc_s (5.0), not 5.0"),
        ("kwargs.aev.nshifts_s", 10**6, "kwargs.aev.nshifts_s: must be less than or equal to 256"),
        ("kwargs.nfeature", 10**9, "kwargs.nfeature: must be less than or equal to 1024"),
        ("kwargs.nfeature", True, "kwargs.nfeature: must be a valid integer, not True"),
        ("kwargs.nfeature", "16", "kwargs.nfeature: must be a valid integer, not '16'"),
        ("kwargs.nfeature", 16.0, "kwargs.nfeature: must be a valid integer, not 16.0"),
        ("kwargs.num_charge_channels", True, "kwargs.num_charge_channels: must be an integer, not True"),
        ("kwargs.num_charge_channels", 2.0, "kwargs.num_charge_channels: must be an integer, not 2.0"),
        ("kwargs.d2features", 1, "kwargs.d2features: must be a valid boolean, not 1"),
        ("kwargs.embedding_norm", float("inf"), "kwargs.embedding_norm: must be a finite number, not inf"),
        ("kwargs.embedding_norm", float("nan"), "kwargs.embedding_norm: must be a finite number, not nan"),
        ("kwargs.outputs.lrcoulomb.kwargs.rc", float("inf"), "kwargs.rc: must be a finite number, not inf"),
        ("kwargs.hidden", [[8]] * 99, "kwargs.hidden: must have at most 16 items"),
        ("kwargs.hidden", [[8], 8], "kwargs.hidden.1: must be a list of widths, not 8"),
        ("kwargs.hidden", [[True], [8]], "kwargs.hidden.0.0: must be a valid integer, not True"),
        ("kwargs.outputs.lrcoulomb.kwargs.method", "none", "lrcoulomb.kwargs.method: must be 'simple'"),
    ],
)
def test_wrong_values_are_refused(path: str, value: object, sentence: str) -> None:
    content = values()
    *steps, last = path.split(".")
    here = content
    for step in steps:
        here = here[step]
    here[last] = value
    with pytest.raises(ConfigError) as caught:
        validated(ModelConfig, content, "model.yaml")
    assert sentence in str(caught.value)


@pytest.mark.parametrize("head", ["energy_mlp", "atomic_sum", "charges"])
def test_required_heads(head: str) -> None:
    content = values()
    del content["kwargs"]["outputs"][head]
    with pytest.raises(ConfigError, match=f"kwargs.outputs.{head}: this option is required"):
        validated(ModelConfig, content, "model.yaml")


def test_fidelity_offset_is_accepted_and_changes_nothing() -> None:
    batch = suites.collate(suites.structures()[:3], [0, 1, 2])
    plain, offset = suites.network()(batch), suites.network(fidelity_offset=200)(batch)
    assert (plain.energy == offset.energy).all()


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.yaml: no such file"):
        load_model_config(tmp_path / "model.yaml")
