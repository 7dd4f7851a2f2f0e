"""Runs that must stop: in one sentence, and with nothing lost."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from run_case import (
    FID0_ONLY,
    MODEL,
    state,
    write_data,
)

from aimnet2mult.configs.train import load_train_config
from aimnet2mult.datasets.checks import LIMITS
from aimnet2mult.errors import ConfigError, DataError, ModelFileError, TrainingError
from aimnet2mult.models.files import load_weights
from aimnet2mult.training.calc_sae import main as calc_sae
from aimnet2mult.training.cli_args import main
from aimnet2mult.training.compile import compile_potential
from aimnet2mult.training.run import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("loss.kwargs.components.forces.weight=0.5", "loss.kwargs.components.forces.weight is 0.5"),
        ("data.fidelity_weights.0=2", "data.fidelity_weights.0 is 2.0"),
        ("data.samplers.train.batch_size=9", "data.samplers.train.batch_size is 9"),
        ("run.seed=9", "run.seed is 9"),
        ("model", "model: kwargs.embedding_norm is 0.5"),
        ("data", "other data"),
        ("sae", "self-atomic energies: 0.1 is"),
    ],
)
def test_resume_with_other_settings_is_refused(case, change, words):
    train(load_train_config(case, ["trainer.epochs=1"]))
    before = (case.parent / "out/checkpoints/last.pt").read_bytes()
    overrides = [change] if "=" in change else []
    if change == "model":
        changed = {**MODEL, "kwargs": {**MODEL["kwargs"], "embedding_norm": 0.5}}
        (case.parent / "model.yaml").write_text(yaml.safe_dump(changed))
    if change == "data":
        (case.parent / "fid1.h5").unlink()
        write_data(case.parent / "fid1.h5", 3, set())
    if change == "sae":
        path = case.parent / "out/sae_fid0.yaml"
        values = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump({**values, "H": values["H"] + 0.1}))
    with pytest.raises(Exception, match=words) as caught:
        train(load_train_config(case, overrides))
    assert type(caught.value).__module__ == "aimnet2mult.errors"
    assert (case.parent / "out/checkpoints/last.pt").read_bytes() == before
    if change == "run.seed=9":
        train(load_train_config(case, ["run.seed=9", "trainer.epochs=1"]), fresh=True)
        assert state(case.parent / "out")["progress"]["epoch"] == 1


@pytest.mark.parametrize("clip", ["1.0", "null"])
def test_wild_learning_rate_stops_with_a_good_checkpoint(case, clip):
    overrides = ["optimizer.kwargs.lr=1e3", "scheduler.warmup_steps=0", f"trainer.gradient_clip={clip}"]
    with pytest.raises(TrainingError, match=r"not finite.*lower optimizer.kwargs.lr \(now 1000\)"):
        train(load_train_config(case, [*overrides, "trainer.epochs=30"]))
    for part in ("network", "ema"):
        assert all(torch.isfinite(value).all() for value in state(case.parent / "out")[part].values())
    assert not (case.parent / "out/model.pt").exists()


def test_non_finite_loss_names_the_molecule(case, monkeypatch):
    # such a value is refused when data are opened; here it stands for any that slips through
    monkeypatch.setitem(LIMITS, "forces", (1e39, LIMITS["forces"][1]))
    with h5py.File(case.parent / "fid0.h5", "a") as file:
        # finite in the file, its square is not
        file["003/forces"][2] = 1e38
    with pytest.raises(TrainingError, match=r"loss is not finite in epoch 1, step \d+, .*fid0.h5/003/2"):
        train(load_train_config(case, ["data.val_fraction=0"]))
    assert state(case.parent / "out")["progress"]["total_steps"] == 0


def test_files_of_the_user_in_the_run_folder_stay(case):
    """Self-atomic energies that the settings name are never cleared, wherever they are."""
    path = case.parent / "out/sae_fid0.yaml"
    assert calc_sae([str(case.parent / "fid0.h5"), str(path)]) == 0
    before = path.read_bytes()
    train(load_train_config(case, ["data.fidelities.0.sae=out/sae_fid0.yaml", "trainer.epochs=1"]), fresh=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("overrides", "load", "error"),
    [
        (["data.fidelities.0.files=fid2.h5"], None, DataError),
        ([], "none.pt", ModelFileError),
        (["optimizer.kwargs={lr: 1e-3, betas: [2.0, 0.9]}"], None, ConfigError),
        (["optimizer.kwargs={lr: 1e-3, momentun: 0.9}", "data.val_fraction=0.4", "run.seed=3"], None, ConfigError),
        (["logging.tensorboard=true"], None, ConfigError),
        (["logging.wandb={project: mine}"], None, ConfigError),
    ],
)
def test_a_fresh_start_that_fails_early_loses_nothing(case, monkeypatch, overrides, load, error):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "aimnet2mult.training.logs.importlib.util.find_spec",
        lambda name, *rest: None if name in ("tensorboard", "wandb") else find_spec(name, *rest),
    )
    write_data(case.parent / "fid2.h5", 4, FID0_ONLY)
    with h5py.File(case.parent / "fid2.h5", "a") as file:
        file["003/energy"][0] = np.nan
    train(load_train_config(case, ["trainer.epochs=1"]))
    names = ["checkpoints/last.pt", "checkpoints/best.pt", "logs/metrics.csv", "model.pt"]
    names += ["split.yaml", "sae_fid0.yaml", "sae_fid1.yaml"]
    before = [(case.parent / "out" / name).read_bytes() for name in names]
    with pytest.raises(error):
        train(load_train_config(case, overrides), load=None if load is None else case.parent / load, fresh=True)
    assert [(case.parent / "out" / name).read_bytes() for name in names] == before


def test_a_place_to_save_that_cannot_be_written_is_refused_first(case):
    (case.parent / "file").touch()
    for place, words in [(case.parent, "is a folder"), (case.parent / "file/model.pt", "cannot be written")]:
        with pytest.raises(ConfigError, match=f"--save: .*{words}"):
            train(load_train_config(case), save=place)
    assert not (case.parent / "out").exists()


def spoil(path: Path, values: torch.Tensor) -> None:
    """Overwrite the first 64 bytes of a stored tensor."""
    whole = path.read_bytes()
    start = whole.index(values.numpy().tobytes())
    path.write_bytes(whole[:start] + bytes(64) + whole[start + 64 :])


def test_damaged_weights_and_checkpoints_are_refused(case):
    """torch.load leaves checksums out: overwritten weights would be used without a word."""
    train(load_train_config(case, ["trainer.epochs=1"]))
    folder = case.parent / "out"
    weight = load_weights(folder / "model.pt").state["energy_mlp.mlp.layers.0.weight"]
    spoil(folder / "model.pt", weight)
    with pytest.raises(ModelFileError, match="fails its checksum"):
        compile_potential(folder / "model.pt", folder / "x", 0, folder / "sae_fid0.yaml")
    spoil(folder / "checkpoints/last.pt", state(folder)["network"]["energy_mlp.mlp.layers.0.weight"])
    with pytest.raises(TrainingError, match="fails its checksum"):
        train(load_train_config(case))
    for name, words in [("text.pt", "another kind of file"), ("other.pt", "not a weights file")]:
        torch.save({"a": 1}, folder / name)
        if name == "text.pt":
            (folder / name).write_text("hello")
        with pytest.raises(ModelFileError, match=words) as caught:
            load_weights(folder / name)
        assert "weights_only" not in str(caught.value)
    torch.save({"kind": "aimnet2mult weights", "format_version": 1}, folder / "bare.pt")
    with pytest.raises(ModelFileError, match="malformed"):
        load_weights(folder / "bare.pt")


def test_compile_refuses_what_would_go_wrong_in_silence(case, tmp_path):
    train(load_train_config(case, ["trainer.epochs=1"]))
    folder = case.parent / "out"
    weights, sae = folder / "model.pt", folder / "sae_fid0.yaml"
    with pytest.raises(DataError, match=r"fid1.yaml: H is .* but fidelity 0 'full' was trained with .*sae_fid0.yaml"):
        compile_potential(weights, tmp_path / "x/model", 0, folder / "sae_fid1.yaml")
    for output in ("", f"{tmp_path}/x/", tmp_path / "x/model_fid0.jpt"):
        with pytest.raises(ConfigError, match="--output is the start of the file name"):
            compile_potential(weights, output, 0, sae)
    assert not (tmp_path / "x").exists()


def test_a_fidelity_that_is_never_drawn_is_called_out(case, capsys):
    train(load_train_config(case, ["data.fidelity_weights={0: 1, 1: 0}", "trainer.epochs=1"]))
    assert "warning: fidelity 1 (energies) is never drawn: it learns nothing" in capsys.readouterr().out


def test_a_fidelity_that_is_never_drawn_is_not_compiled(case, capsys):
    change = ["data.fidelity_weights={0: 1, 1: 0}", "trainer.epochs=1", "compile.enabled=true"]
    result = train(load_train_config(case, change))
    assert list(result.compiled) == [0]
    assert not (case.parent / "out/compiled/model_fid1.jpt").exists()
    assert "fidelity 1 (energies) was never drawn: it is not compiled" in capsys.readouterr().out
    assert "Fidelity 1 (energies) was never drawn" in (case.parent / "out/model_card.md").read_text()


def changed_model(case: Path, **kwargs: object) -> None:
    (case.parent / "model.yaml").write_text(yaml.safe_dump({**MODEL, "kwargs": {**MODEL["kwargs"], **kwargs}}))


def test_weights_of_another_architecture_are_refused_though_shapes_agree(case, capsys):
    train(load_train_config(case, ["trainer.epochs=1"]))
    weights = case.parent / "out/model.pt"
    other = ["run.folder=b", "trainer.epochs=1"]
    changed_model(case, aev={"rc_s": 5.0, "rmin": 0.8, "nshifts_s": 4})
    with pytest.raises(ConfigError, match=r"--load: .*model.pt was trained with kwargs.aev.rc_s 4.0, but .* has 5.0"):
        train(load_train_config(case, other), load=weights)
    changed_model(case, embedding_norm=0.5, fidelity_offset=200)
    swapped = ["data.fidelities.0.name=energies", "data.fidelities.1.name=full"]
    with pytest.raises(ConfigError, match=r"--load: 'full' is fidelity 0 in .*, but fidelity 1 in data.fidelities"):
        train(load_train_config(case, [*other, *swapped]), load=weights)
    assert not (case.parent / "b").exists()
    capsys.readouterr()
    train(load_train_config(case, [*other, "data.fidelities.1.name=new"]), load=weights)
    assert "warning: fidelity 1 (new) starts from the weights of 'energies'" in capsys.readouterr().out


def test_spin_charges_need_their_head(case):
    outputs = {key: value for key, value in MODEL["kwargs"]["outputs"].items() if key != "spin_charges"}
    changed_model(case, outputs=outputs)
    with pytest.raises(ConfigError, match=r"outputs.spin_charges is missing, so spin charges are zero"):
        train(load_train_config(case))
    train(load_train_config(case, ["loss.kwargs.components.spin_charges.weight=0", "trainer.epochs=1"]))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("loss.class=os.mkdir", "loss.class: class path 'os.mkdir' is not allowed"),
        ("loss.kwargs.components.energy.fn=builtins.eval", "components.energy.fn: class path 'builtins.eval'"),
        ("optimizer.class=os.system", "optimizer.class: class path 'os.system' is not allowed"),
        ("data.y=[energy]", "is not in data.y (energy)"),
        ("data.fidelities={0: {name: full, files: fid0.h5}}", "fidelity_weights"),
        ("loss.kwargs.components.energy.kwargs={key_pred: enrgy}", "not 'enrgy'"),
        (
            "loss.kwargs.components.forces.kwargs={key_pred: charges}",
            "the term is named 'forces' but its key_pred is 'charges'",
        ),
        ("loss.kwargs.components.forces.fn=aimnet2mult.train.loss.energy_loss_fn", "needs aimnet2mult.train.loss.pera"),
        ("compile={dispersion: {0: {method: d3bj, functional: pbe00}}}", "close names: pbe0"),
        ("run.device=cuda:77", "run.device"),
        ("data.fidelities.0.sae=none.yaml", "none.yaml does not exist"),
        ("model=none.yaml", "none.yaml: no such file"),
        ("data.fidelities.0.files=none.h5", "none.h5"),
    ],
)
def test_command_line_errors_are_one_sentence(case, capsys, override, words):
    assert main([str(case), override]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert words in captured.err
    assert "Traceback" not in captured.err


def test_folder_that_cannot_be_written(case):
    (case.parent / "out").write_text("a file")
    with pytest.raises(ConfigError, match=r"run.folder: .* cannot be written"):
        train(load_train_config(case))


def test_two_charge_channels_need_mult(case):
    with pytest.raises(ConfigError, match=r"data\.x lacks mult, but .* needs it"):
        train(load_train_config(case, ["data.x=[coord, numbers, charge]"]))
