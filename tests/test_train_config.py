from __future__ import annotations

from pathlib import Path

import pytest

import aimnet2mult.configs.train as train_module
from aimnet2mult.configs.train import CosineSchedule, load_train_config
from aimnet2mult.configs.yaml_io import read_yaml
from aimnet2mult.errors import ConfigError

DEFAULT = Path(train_module.__file__).parent / "train.yaml"


@pytest.fixture
def minimal(tmp_path):
    path = tmp_path / "config" / "train.yaml"
    path.parent.mkdir()
    path.write_text(
        "data: {fidelities: {0: {name: A, files: a.h5}, 1: {name: B, files: [sub/b.h5, ../c.h5]}}}\n"
        "loss: {kwargs: {components: {energy: {fn: aimnet2mult.train.loss.energy_loss_fn}}}}\n"
        "run: {folder: ../out}\n"
    )
    return path


def test_documented_default_is_valid():
    config = load_train_config(DEFAULT)
    assert sorted(config.data.fidelities) == [0, 1, 2]
    assert config.optimizer.kwargs["lr"] == 1e-3


def test_help_says_what_counts_per_process():
    fields = train_module.TrainSampler.model_fields
    assert "of each process" in fields["batch_size"].description
    assert "of all processes together" in fields["batches_per_epoch"].description
    lines = DEFAULT.read_text().splitlines()
    assert any("batch_size: 32" in line and "of each process" in line for line in lines)
    assert any("batches_per_epoch:" in line and "of all processes together" in line for line in lines)


def test_documented_default_names_every_option():
    text = DEFAULT.read_text()
    names = {
        name
        for kind in vars(train_module).values()
        if isinstance(kind, type) and issubclass(kind, train_module.Settings)
        for name in (field.alias or name for name, field in kind.model_fields.items())
    }
    assert len(names) > 40
    assert {name for name in names if name not in text} == set()


def test_options_have_a_line_of_help():
    for kind in vars(train_module).values():
        if isinstance(kind, type) and issubclass(kind, train_module.Settings):
            for name, field in kind.model_fields.items():
                section = isinstance(field.annotation, type) and issubclass(field.annotation, train_module.Settings)
                bare = name in ("kind", "kwargs", "scheduler") or section
                assert bare or field.description, f"{kind.__name__}.{name}"


def test_defaults_and_relative_paths(minimal, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    config = load_train_config(minimal)
    assert config.run.folder == tmp_path / "out"
    assert config.model == tmp_path / "config/model.yaml"
    assert config.data.fidelities[0].files == [tmp_path / "config/a.h5"]
    assert config.data.fidelities[1].files == [tmp_path / "config/sub/b.h5", tmp_path / "c.h5"]
    assert isinstance(config.scheduler, CosineSchedule)
    assert load_train_config(minimal, ["run.folder=/abs"]).run.folder == Path("/abs")
    assert load_train_config(minimal, ["run.folder=~/x"]).run.folder == Path.home() / "x"


def test_overrides_reach_all_depths(minimal):
    config = load_train_config(
        minimal,
        [
            "optimizer.kwargs.lr=1e-4",
            "data.fidelity_weights={0: 1, 1: 3}",
            "data.samplers.train.batch_unit=atoms",
            "scheduler={kind: plateau, patience: 3}",
            "trainer.early_stopping={fidelity: 1, label: energy, metric: rmse, patience: 2}",
            "data.fidelities.1.sae=s.yaml",
            "data.fidelity_offset=200",
        ],
    )
    assert config.optimizer.kwargs["lr"] == pytest.approx(1e-4)
    assert config.data.fidelity_weights == {0: 1.0, 1: 3.0}
    assert config.trainer.early_stopping.patience == 2
    assert config.data.fidelities[1].sae == minimal.parent / "s.yaml"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.epoch=3", "trainer.epoch: unknown option; did you mean 'epochs'?"),
        ("optimzer={}", "optimzer: unknown option; did you mean 'optimizer'?"),
        ("data.val_fracton=0.1", "data.val_fracton: unknown option; did you mean 'val_fraction'?"),
        (
            "data.samplers.train.batchsize=3",
            "data.samplers.train.batchsize: unknown option; did you mean 'batch_size'?",
        ),
        (
            "data.samplers.train.batch_size=0",
            "data.samplers.train.batch_size: must be greater than or equal to 1, not 0",
        ),
        (
            "loss.kwargs.components.energy.wieght=1",
            "loss.kwargs.components.energy.wieght: unknown option; did you mean 'weight'?",
        ),
        ("loss.kwargs.components.energy.weight=-1", "loss.kwargs.components.energy.weight: must be greater"),
        ("loss.kwargs.components.energy.weight=0", "loss.kwargs.components: at least one weight must be above zero"),
        (
            "data.y=[energy, forcess]",
            "data.y.1: must be 'energy', 'forces', 'charges' or 'spin_charges', not 'forcess'",
        ),
        ("data.y=[forces]", "data.y: 'energy' must be in the list"),
        ("trainer.epochs=-3", "trainer.epochs: must be greater than or equal to 1, not -3"),
        ("trainer.epochs=true", "trainer.epochs: must be a valid integer, not True"),
        ("trainer.epochs=many", "trainer.epochs: must be a valid integer, not 'many'"),
        ("trainer.gradient_clip=.nan", "trainer.gradient_clip: must be"),
        ("optimizer.kwargs.lr=fast", "optimizer.kwargs.lr: must be a number above 0, not 'fast'"),
        ("optimizer.kwargs={}", "optimizer.kwargs.lr: must be a number above 0, not None"),
        ("data.fidelity_weights={0: 0, 1: 0}", "data.fidelity_weights: at least one weight must be above zero"),
        ("data.fidelity_weights={0: 1}", "data.fidelity_weights: give one weight for each of the fidelities 0, 1"),
        ("data.fidelities={0: {name: A, files: a}, 2: {name: B, files: b}}", "data.fidelities: number them 0, 1, 2"),
        ("data.fidelities.1.name=A", "data.fidelities: the name 'A' is used twice"),
        ("data.fidelities.1.files=a.h5", "is listed twice"),
        ("data.fidelities={}", "data.fidelities: this option is required"),
        ("data=7", "data: must be a mapping, not 7"),
        ("data.val_fraction=0.6", None),
        ("data.test_fraction=0.95", "data.val_fraction: together with test_fraction"),
        ("compile.dispersion={5: {method: d3bj}}", "compile.dispersion: there is no fidelity 5"),
        ("compile.dispersion={0: {functional: pbe0}}", "compile.dispersion.0.method: is none although functional"),
        ("compile.prefix=/tmp/model", "compile.prefix: must be the start of file names in the run folder"),
        ("compile.prefix=../model", "compile.prefix: must be the start of file names in the run folder"),
        ("compile.prefix=compiled/", "compile.prefix: must be the start of file names in the run folder"),
        ("data.y=[energy, energy]", "data.y: 'energy' is listed twice"),
        ("compile.dispersion={0: {method: d3}}", "dispersion.0.method: must be 'none', 'd3bj' or 'd4', not 'd3'"),
        ("trainer.early_stopping={fidelity: 4}", "trainer.early_stopping.fidelity: there is no fidelity 4"),
        ("run.device=gpu", "run.device: must be auto, cpu, cuda, cuda:N or mps, not 'gpu'"),
        ("run.folder=3", "run.folder: must be a path, not 3"),
        ("scheduler.kind=plateau", None),
        ("scheduler.kind=steps", "scheduler.kind: must be one of 'cosine', 'plateau', 'constant'"),
    ],
)
def test_messages(minimal, override, words):
    if words is None:
        load_train_config(minimal, [override])
        return
    with pytest.raises(ConfigError) as caught:
        load_train_config(minimal, [override])
    message = str(caught.value)
    assert message.startswith(f"{minimal}: ")
    assert words in message.removeprefix(f"{minimal}: ")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(("right", "wrong"), [("fidelities", "fidelitys"), ("data", "dta")])
def test_misspelt_way_to_the_data(minimal, right, wrong):
    minimal.write_text(minimal.read_text().replace(right, wrong, 1))
    with pytest.raises(ConfigError, match=f"{wrong}: unknown option; did you mean '{right}'"):
        load_train_config(minimal)


def test_keys_in_any_order(minimal):
    values = read_yaml(minimal)
    lines = minimal.read_text().splitlines()
    before = load_train_config(minimal)
    minimal.write_text("\n".join(reversed(lines)))
    assert read_yaml(minimal) == values
    assert load_train_config(minimal) == before
