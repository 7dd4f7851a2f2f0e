"""What must hold for any data and any settings: files, batches, masks, YAML."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import aimnet2mult.configs.train as train_settings
from aimnet2mult.configs.model import ModelConfig, load_model_config
from aimnet2mult.configs.train import TrainConfig, load_train_config
from aimnet2mult.configs.yaml_io import apply_overrides, parse_yaml
from aimnet2mult.datasets.reader import FidelitySource, MultiFidelityDataset, Sample, data_fingerprint
from aimnet2mult.datasets.sae import sae_array
from aimnet2mult.datasets.sae_file import read_sae, write_sae
from aimnet2mult.datasets.split import Split, read_split, write_split
from aimnet2mult.errors import AIMNet2MultError, ModelFileError
from aimnet2mult.models.archive import write_sealed
from aimnet2mult.models.files import read_archive
from aimnet2mult.training.collate import Collate
from aimnet2mult.training.loss import energy_loss_fn, peratom_loss_fn

OPTIONAL = ("forces", "charges", "spin_charges")
LABELS = ("energy", *OPTIONAL)
SAE = {
    0: sae_array({z: -13.6 * z**2.3 for z in range(1, 119)}),
    1: sae_array({z: -13.5 * z**2.3 for z in range(1, 119)}),
}
DEFAULTS = Path(train_settings.__file__).parent
slow = settings(deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def molecules(draw: st.DrawFn, natoms: int) -> dict[str, np.ndarray]:
    """Columns of a group: molecules that pass every check, with some labels, stored in any of the allowed types."""
    n = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    places = np.stack(np.meshgrid(*[np.arange(2.0)] * 3), axis=-1).reshape(-1, 3)[:natoms]
    numbers = rng.integers(1, draw(st.sampled_from([10, 119])), (n, natoms))
    charge = rng.integers(-1, 1, n)
    mult = 1 + (numbers.sum(axis=1) - charge) % 2
    columns = {
        "coord": (places * 1.5 + rng.uniform(-0.3, 0.3, (n, natoms, 3))).astype(draw(st.sampled_from(["f4", "f8"]))),
        "numbers": numbers.astype(draw(st.sampled_from(["u1", "i2", "i4", "u8"]))),
        "charge": charge.astype(draw(st.sampled_from(["f4", "f8", "i1"]))),
        "mult": mult.astype(draw(st.sampled_from(["f4", "u1", "i8"]))),
        "energy": rng.normal(-1e4, 1e3, n),
    }
    for label in draw(st.sets(st.sampled_from(OPTIONAL))):
        shape = (n, natoms, 3) if label == "forces" else (n, natoms)
        columns[label] = rng.normal(size=shape).astype(draw(st.sampled_from(["f4", "f8"])))
        columns[label][rng.random(n) < 0.3] = np.nan  # a label that is NaN throughout is missing
    return columns


@st.composite
def files(draw: st.DrawFn) -> dict[str, dict[str, np.ndarray]]:
    """Groups of a data file, under any integer name."""
    sizes = draw(st.sets(st.integers(1, 8), min_size=1, max_size=3))
    return {f"{natoms:0{draw(st.integers(1, 4))}d}": draw(molecules(natoms)) for natoms in sizes}


def write(path: Path, groups: dict[str, dict[str, np.ndarray]], **options: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, columns in groups.items():
            for key, values in columns.items():
                file.create_dataset(f"{name}/{key}", data=values, **options)
    return path


@slow
@given(files(), st.sampled_from([0, 0.001, 16]))
def test_what_is_read_is_what_was_written(groups: dict[str, dict[str, np.ndarray]], cache_mb: float) -> None:
    labels = [label for label in LABELS if any(label in columns for columns in groups.values())]
    with tempfile.TemporaryDirectory() as folder:
        plain = write(Path(folder) / "a.h5", groups)
        packed = write(Path(folder) / "b.h5", groups, chunks=True, compression="gzip", shuffle=True)
        data, same = (
            MultiFidelityDataset({0: FidelitySource(0, "x", (path,))}, labels, cache_mb=cache_mb)
            for path in (plain, packed)
        )
        assert data_fingerprint(data) == data_fingerprint(same)
        samples = data.read(range(len(data)))
        assert len(samples) == sum(len(columns["energy"]) for columns in groups.values())
        for index, sample in enumerate(samples):
            _, group, row = sample.name.split("/")
            stored = {key: values[int(row)] for key, values in groups[group].items()}
            assert sample.energy == stored["energy"]  # float64 all the way
            assert (sample.charge, sample.mult) == (stored["charge"], stored["mult"])
            np.testing.assert_array_equal(sample.numbers, stored["numbers"])
            np.testing.assert_array_equal(sample.coord, stored["coord"].astype(np.float32))
            there = {key for key in OPTIONAL if key in stored and np.isfinite(stored[key]).all()}
            assert set(sample.labels) == there
            assert all(data.has_label(key)[index] == (key in there) for key in labels if key != "energy")
            for key in there:
                np.testing.assert_array_equal(sample.labels[key], stored[key].astype(np.float32))
        data.close()
        same.close()


@st.composite
def samples(draw: st.DrawFn) -> list[Sample]:
    """Molecules of both fidelities and any size, each with some of the labels."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    found = []
    for number in range(draw(st.integers(1, 6))):
        natoms = draw(st.integers(1, 9))
        shapes = {"forces": (natoms, 3), "charges": (natoms,), "spin_charges": (natoms,)}
        labels = draw(st.sets(st.sampled_from(OPTIONAL)))
        found.append(
            Sample(
                coord=rng.normal(size=(natoms, 3)).astype(np.float32),
                numbers=rng.integers(1, 119, natoms),
                charge=float(rng.integers(-2, 3)),
                mult=float(rng.integers(1, 4)),
                energy=float(rng.normal(-1e5, 1e4)),
                labels={label: rng.normal(size=shapes[label]).astype(np.float32) for label in labels},
                fidelity=draw(st.integers(0, 1)),
                name=str(number),
            )
        )
    return found


@slow
@given(samples(), st.sets(st.sampled_from(OPTIONAL)))
def test_a_batch_holds_its_samples_and_nothing_else(given_samples: list[Sample], asked: set[str]) -> None:
    labels = ("energy", *(label for label in OPTIONAL if label in asked))
    batch = Collate(SAE, labels)(given_samples)
    assert tuple(batch.labels) == tuple(batch.masks) == labels
    assert batch.molecules.coord.shape[1] == max(len(sample.numbers) for sample in given_samples)
    for row, sample in enumerate(given_samples):
        n = len(sample.numbers)
        molecule = [tensor[row] for tensor in batch.molecules]
        np.testing.assert_array_equal(molecule[0][:n], sample.coord)
        np.testing.assert_array_equal(molecule[1][:n], sample.numbers)
        assert not molecule[0][n:].any()
        assert not molecule[1][n:].any()
        assert [float(value) for value in molecule[2:]] == [sample.charge, sample.mult, sample.fidelity]
        atoms = math.fsum(SAE[sample.fidelity][z] for z in sample.numbers)
        # one rounding of float64 per atom, at up to 1e6 eV
        assert float(batch.labels["energy"][row]) == pytest.approx(sample.energy - atoms, abs=1e-8)
        for label in labels[1:]:
            values = batch.labels[label][row]
            assert bool(batch.masks[label][row]) == (label in sample.labels)
            np.testing.assert_array_equal(values[:n], sample.labels.get(label, np.zeros_like(values[:n])))
            assert not values[n:].any()


def padded(values: torch.Tensor, atoms: int, molecules: int, filling: float) -> torch.Tensor:
    """More atoms and more molecules, filled with anything."""
    shape = (values.shape[0] + molecules, *((values.shape[1] + atoms,) if values.dim() > 1 else ()), *values.shape[2:])
    result = torch.full(shape, filling, dtype=values.dtype)
    result[tuple(slice(size) for size in values.shape)] = values
    return result


@slow
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from([math.nan, math.inf, 1e30]),
    st.sampled_from(["mse", "mae", "huber"]),
    st.sampled_from(LABELS),
)
def test_losses_see_real_atoms_and_real_labels_only(
    seed: int, atoms: int, more: int, filling: float, kind: str, key: str
) -> None:
    """Against a loop over molecules; padding, molecules without the label and NaN in their slots change nothing."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, 4)
    numbers = torch.tensor([[1] * n + [0] * (5 - n) for n in sizes])
    shape = {"energy": (4,), "forces": (4, 5, 3)}.get(key, (4, 5))
    predicted, labelled = (torch.tensor(rng.normal(size=shape)) for _ in range(2))
    mask = torch.tensor(rng.random(4) < 0.6)
    fn = energy_loss_fn if key == "energy" else peratom_loss_fn
    loops = []
    for row in np.nonzero(mask.numpy())[0]:
        n = sizes[row]
        d = (
            (predicted[row] - labelled[row]).numpy()
            if key == "energy"
            else (predicted[row] - labelled[row])[:n].numpy()
        )
        a = np.abs(d)
        rho = {"mse": d**2, "mae": a, "huber": np.where(a <= 1, d**2, 2 * a - 1)}[kind]
        loops.append(rho / n if key == "energy" else rho.mean())
    expected = float(np.mean(loops)) if loops else 0.0

    predicted = padded(predicted, atoms, more, 0.0).requires_grad_()
    labels = {
        key: torch.where(
            _spread(padded(mask, 0, more, 0), labelled.dim()), padded(labelled, atoms, more, 0.0), filling
        ),
        f"{key}_mask": padded(mask, 0, more, 0),
        "numbers": padded(numbers, atoms, more, 0),
    }
    loss = fn({key: predicted}, labels, key_pred=key, key_true=key, kind=kind)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-12, abs=1e-14)
    loss.backward()
    assert predicted.grad is not None
    assert bool(torch.isfinite(predicted.grad).all())
    assert not predicted.grad[~labels[f"{key}_mask"].bool()].any()
    if key != "energy":
        assert not predicted.grad[labels["numbers"] == 0].any()


def _spread(mask: torch.Tensor, dimensions: int) -> torch.Tensor:
    return mask.bool().view(-1, *[1] * (dimensions - 1))


WEIGHTS = {0: 0.25, 1: 3.0, 2: 1e-6}
POSITIVE = st.floats(1e-6, 1e3)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# names such as 1e5 need quotes: PyYAML writes them without, being text in YAML 1.1, where settings read a number
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12).filter(
    lambda name: not _is_number(name)
)
CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "run.name": NAMES,
    "run.seed": st.integers(0, 2**63),
    "run.threads": st.none() | st.integers(1, 64),
    "data.val_fraction": st.floats(0, 0.4),
    "data.test_fraction": st.floats(0, 0.4),
    "data.fidelity_weights": st.sampled_from([None, WEIGHTS]),
    "data.samplers.train.batch_size": st.integers(1, 10**6),
    "data.samplers.train.batch_unit": st.sampled_from(["molecules", "atoms"]),
    "loss.kwargs.components.forces.weight": st.floats(0, 1e6),
    "optimizer.kwargs.lr": POSITIVE,
    "scheduler": st.sampled_from([{"kind": "plateau", "factor": 0.3}, {"kind": "constant", "warmup_steps": 3}]),
    "trainer.epochs": st.integers(1, 10**9),
    "trainer.gradient_clip": st.none() | POSITIVE,
    "trainer.checkpoint_minutes": st.none() | POSITIVE,
    "trainer.early_stopping": st.none() | st.integers(1, 99).map(lambda n: {"fidelity": 1, "patience": n}),
    "logging.tensorboard": st.sampled_from([True, False, "auto"]),
    "data.fidelities.1.name": NAMES,
}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value


@slow
@given(st.fixed_dictionaries({}, optional=CHANGES))
def test_settings_survive_the_way_to_yaml_and_back(changes: dict[str, Any]) -> None:
    # JSON has no integer keys
    overrides = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in changes.items() if value != WEIGHTS]
    overrides += [f"data.fidelity_weights={value}" for value in changes.values() if value == WEIGHTS]
    assume(changes.get("data.fidelities.1.name") not in ("PBE0", "GFN2-xTB"))
    # early stopping without validation molecules is refused
    assume(changes.get("trainer.early_stopping") is None or changes.get("data.val_fraction") != 0)
    config = load_train_config(DEFAULTS / "train.yaml", overrides)
    for key, value in changes.items():
        found: Any = config.model_dump(by_alias=True)
        for step in key.split("."):
            found = found[int(step)] if step.isdigit() else found[step]
        wanted = {**found, **value} if isinstance(value, dict) and "fidelity_weights" not in key else value
        assert found == wanted
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.yaml"
        path.write_text(yaml.safe_dump(_plain(config.model_dump(by_alias=True)), allow_unicode=True))
        assert load_train_config(path) == config
    assert TrainConfig.model_validate(config.model_dump(by_alias=True)) == config


@slow
@given(st.integers(1, 64), st.floats(1.0, 20.0), st.integers(1, 256), st.booleans())
def test_architectures_survive_too(fidelities: int, cutoff: float, shifts: int, readouts: bool) -> None:
    content = yaml.safe_load((DEFAULTS / "model.yaml").read_text())
    aev = {"rc_s": cutoff, "rmin": 0.5, "nshifts_s": shifts}
    content["kwargs"] |= {"num_fidelities": fidelities, "aev": aev, "use_fidelity_readouts": readouts}
    config = ModelConfig.model_validate(content)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.yaml"
        path.write_text(yaml.safe_dump(config.to_dict()))
        assert load_model_config(path) == config


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@slow
@given(PLAIN)
def test_json_is_yaml(value: Any) -> None:
    assume("<<" not in json.dumps(value))
    assert parse_yaml(json.dumps(value, ensure_ascii=False), "x") == value
    assert apply_overrides({"a": {"b": 1}}, [f"a.b={json.dumps(value, ensure_ascii=False)}"]) == {"a": {"b": value}}


@slow
@given(st.text())
def test_any_text_is_yaml_or_one_sentence(text: str) -> None:
    try:
        parse_yaml(text, "f.yaml")
    except AIMNet2MultError as error:
        event = str(error)
        if not event.startswith("f.yaml:") or "\n" in event:
            pytest.fail(f"not one sentence: {event!r}")


@slow
@given(st.dictionaries(st.integers(1, 118), st.floats(-1e6, 1e6), min_size=1))
def test_self_atomic_energies_survive_to_the_last_digit(values: dict[int, float]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_sae(Path(folder) / "sae.yaml", values, "a\nb")
        assert read_sae(Path(folder) / "sae.yaml") == values


@slow
@given(st.sets(st.integers(-(2**63), 2**63 - 1)), st.integers(1, 3), st.integers(0, 2**31))
def test_splits_survive(keys: set[int], step: int, seed: int) -> None:
    parts = [np.array(sorted(keys)[start::3][::step], dtype=np.int64) for start in range(3)]
    split = Split(*parts, seed, "connectivity", "f" * 64)
    with tempfile.TemporaryDirectory() as folder:
        write_split(split, Path(folder) / "split.yaml")
        back = read_split(Path(folder) / "split.yaml", "f" * 64)
    for side, part in zip((back.train, back.val, back.test), parts, strict=True):
        np.testing.assert_array_equal(side, part)
    assert (back.seed, back.identity, back.fingerprint) == (seed, "connectivity", "f" * 64)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_changed_byte_is_found_or_changes_nothing(data: st.DataObject) -> None:
    content = {"x": torch.arange(40.0), "y": {"z": [1, 2.5, "three"]}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.pt"
        write_sealed(path, content)
        whole = bytearray(path.read_bytes())
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(whole)
        try:
            back = read_archive(path, "")
        except ModelFileError:
            return
        assert torch.equal(back["x"], content["x"])
        assert back["y"] == content["y"]
