"""The whole run: what it makes, how it goes on, and that it repeats itself to the bit."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from run_case import (
    ROOT,
    assert_same,
    rows,
    state,
    stop_at,
)

from aimnet2mult.configs.train import load_train_config
from aimnet2mult.errors import ConfigError
from aimnet2mult.models.files import load_potential, load_weights
from aimnet2mult.training.cli_args import main
from aimnet2mult.training.engine import Trainer
from aimnet2mult.training.interrupt import StoppedError
from aimnet2mult.training.processes import Processes
from aimnet2mult.training.run import train

pytestmark = pytest.mark.usefixtures("one_thread")


def test_one_go_makes_everything(case, capsys):
    config = load_train_config(
        case,
        [
            "compile={dispersion: {0: {method: d3bj, functional: pbe0}}}",
            "logging={tensorboard: true}",
            "data.test_fraction=0.1",
        ],
    )
    result = train(config, save=case.parent / "copy.pt")
    folder = case.parent / "out"
    names = ["checkpoints/last.pt", "checkpoints/best.pt", "model.pt", "split.yaml", "sae_fid0.yaml", "sae_fid1.yaml"]
    names += ["logs/metrics.csv", "logs/run.log", "model_card.md", "errors.csv", "plots/learning_curves.png"]
    names += [f"plots/parity_{key}.png" for key in ("energy", "forces", "charges", "spin_charges")]
    names += ["compiled/model_fid0.jpt", "compiled/model_fid1.jpt"]
    assert [name for name in names if not (folder / name).is_file()] == []
    assert list((folder / "logs/tensorboard").iterdir())
    assert not list(folder.rglob(".*"))

    weights = load_weights(folder / "model.pt")
    assert [info.elements for info in weights.fidelities] == [[1, 7, 8, 9]] * 2
    assert weights.fidelities[0].labels == ["energy", "forces", "charges", "spin_charges"]
    assert weights.fidelities[1].labels == ["energy"]
    assert_same(weights.state, load_weights(case.parent / "copy.pt").state)
    best = torch.load(folder / "checkpoints/best.pt", weights_only=True)
    assert_same(weights.state, best["ema"])

    metrics = rows(folder)
    assert [row["epoch"] for row in metrics] == ["1", "2", "3"]
    assert float(metrics[-1]["val_loss"]) < float(metrics[0]["val_loss"])
    for row in metrics:
        # 32 draws of weights 3:1, dealt out exactly
        assert float(row["share_requested_fid0"]) == float(row["share_realised_fid0"]) == 0.75
        assert float(row["val_forces_mae_fid0"]) > 0
        assert row["val_forces_mae_fid1"] == ""
    errors = list(csv.DictReader((folder / "errors.csv").read_text().splitlines()))
    assert {row["set"] for row in errors} == {"validation", "test"}
    assert {(row["name"], row["label"]) for row in errors} >= {("full", "forces"), ("energies", "energy")}

    # SAE + network + D3 in the file: the energy of the raw file is near the label
    loaded = load_potential(result.compiled[1])
    with h5py.File(case.parent / "fid1.h5") as file:
        group = file["003"]
        data = {
            "coord": torch.tensor(group["coord"][:]),
            "numbers": torch.tensor(group["numbers"][:].astype(np.int64)),
            "charge": torch.tensor(group["charge"][:]),
        }
        assert loaded.module(data)["energy"].detach().numpy() == pytest.approx(group["energy"][:], abs=2.0)
    card = (folder / "model_card.md").read_text()
    assert all(word in card for word in ("full", "energies", "compiled/model_fid0.jpt", "fidelity_weights", "meV/atom"))
    output = capsys.readouterr().out
    assert "spin_charges" in output
    assert "requested draws: full 75.0%, energies 25.0%" in output

    # a finished run says so and goes on to the later stages
    (folder / "model.pt").unlink()
    before = state(folder)
    train(load_train_config(case, ["data.test_fraction=0.1"]))
    assert "training is finished" in capsys.readouterr().out
    assert_same(before, state(folder))
    assert (folder / "model.pt").is_file()


@pytest.mark.parametrize("step", [4, 6], ids=["end of an epoch", "inside an epoch"])
def test_resume_gives_the_same_bits(case, monkeypatch, step):
    whole = case.parent / "whole"
    train(load_train_config(case, ["run.folder=whole"]))
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(StoppedError, match="SIGTERM"):
            train(load_train_config(case))
    stopped = state(case.parent / "out")
    assert stopped["progress"]["total_steps"] == step
    assert stopped["progress"]["epoch"] * 4 + stopped["progress"]["step"] == step
    train(load_train_config(case))
    a, b = state(whole), state(case.parent / "out")
    for part in ("network", "ema", "optimizer", "schedule", "rng"):
        assert_same(a[part], b[part], part)
    assert a["progress"]["best"] == b["progress"]["best"]
    for x, y in zip(rows(whole), rows(case.parent / "out"), strict=True):
        assert {k: v for k, v in x.items() if k != "seconds"} == {k: v for k, v in y.items() if k != "seconds"}


def test_worker_processes_change_nothing(case):
    train(load_train_config(case, ["trainer.epochs=1"]))
    train(load_train_config(case, ["trainer.epochs=1", "run.folder=b", "data.num_workers=2"]))
    assert_same(state(case.parent / "out")["network"], state(case.parent / "b")["network"])


def test_another_seed_gives_other_bits(case):
    train(load_train_config(case, ["trainer.epochs=1"]))
    train(load_train_config(case, ["trainer.epochs=1", "run.folder=b", "run.seed=8"]))
    a, b = state(case.parent / "out")["network"], state(case.parent / "b")["network"]
    assert not torch.equal(a["energy_mlp.mlp.layers.0.weight"], b["energy_mlp.mlp.layers.0.weight"])


def test_a_cut_off_metrics_file_is_mended(case):
    train(load_train_config(case, ["trainer.epochs=1"]))
    path = case.parent / "out/logs/metrics.csv"
    first = path.read_text()
    path.write_text(first + first.splitlines()[1].replace("1,", "2,", 1) + "\n3,17")
    train(load_train_config(case, ["trainer.epochs=2"]))
    assert [row["epoch"] for row in rows(case.parent / "out")] == ["1", "2"]


def test_settings_of_the_optimiser_may_change(case, capsys):
    train(load_train_config(case, ["trainer.epochs=1"]))
    changed = load_train_config(case, ["trainer.epochs=2", "optimizer.kwargs.lr=1e-4"])
    with pytest.raises(ConfigError, match=r"optimizer.kwargs.lr is 0.0001 but .* with 0.005; .*add --accept-changes"):
        train(changed)
    train(changed, accept_changes=True)
    assert "changed since the checkpoint: optimizer.kwargs.lr: 0.005 -> 0.0001" in capsys.readouterr().out
    assert float(rows(case.parent / "out")[1]["learning_rate"]) <= 1e-4


def test_changed_hyper_parameters_take_effect(case):
    change = "optimizer.kwargs={lr: 5e-3, weight_decay: 0.5, betas: [0.8, 0.9], eps: 1e-6}"
    train(load_train_config(case, ["trainer.epochs=1"]))
    train(load_train_config(case, ["trainer.epochs=2", change]), accept_changes=True)
    groups = state(case.parent / "out")["optimizer"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.5, 0.0}
    assert all(tuple(group["betas"]) == (0.8, 0.9) and group["eps"] == 1e-6 for group in groups)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_changed_selection_forgets_the_best(case, capsys, monkeypatch, epochs):
    """Values of different quantities are never compared: the old best, far below, must not win."""
    plateau = "scheduler={kind: plateau, warmup_steps: 0}"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_selection", lambda *_: 1e-9)
        train(load_train_config(case, ["trainer.epochs=1", plateau]))
    stopping = "trainer.early_stopping={fidelity: 1, label: energy, metric: rmse, patience: 1}"
    train(load_train_config(case, [f"trainer.epochs={epochs}", stopping, plateau]), accept_changes=True)
    progress, schedule = (state(case.parent / "out")[key] for key in ("progress", "schedule"))
    said = "now chosen by the rmse of energy of fidelity 1, not the loss" in capsys.readouterr().out
    assert said == (epochs == 2)
    if epochs == 1:  # nothing was left to choose from
        assert (progress["selection"], progress["best"]) == ("loss", 1e-9)
        return
    value = pytest.approx(float(rows(case.parent / "out")[1]["val_energy_rmse_fid1"]), rel=1e-6)
    assert (progress["best"], progress["best_epoch"], progress["waited"]) == (value, 2, 0)
    assert (schedule["best"], schedule["waited"]) == (value, 0)
    train(load_train_config(case, ["trainer.epochs=3", stopping.replace("patience: 1", "patience: 9"), plateau]))
    assert "now chosen by" not in capsys.readouterr().out


@pytest.mark.parametrize("step", [2, 4], ids=["inside an epoch", "end of an epoch"])
@pytest.mark.parametrize("val", [0, 0.2])
def test_a_signal_to_another_process_stops_this_one_too(case, monkeypatch, val, step):
    trainers = []
    original = Trainer._after_step

    def after_step(self, engine):
        trainers.append(self)
        original(self, engine)

    def any_of_all(self, flag):
        return flag or bool(trainers and trainers[-1].progress.total_steps >= step)

    monkeypatch.setattr(Trainer, "_after_step", after_step)
    monkeypatch.setattr(Processes, "any", any_of_all)
    with pytest.raises(StoppedError):
        train(load_train_config(case, [f"data.val_fraction={val}"]))
    progress = state(case.parent / "out")["progress"]
    assert (progress["epoch"], progress["step"], progress["total_steps"]) == (0, step, step)


def test_early_stopping_and_selection(case):
    stopping = "trainer.early_stopping={fidelity: 1, label: energy, metric: rmse, patience: 2}"
    # a learning rate of next to nothing: EMA and weights stand still, nothing gets better
    train(load_train_config(case, [stopping, "trainer.epochs=20", "optimizer.kwargs={lr: 1e-30, weight_decay: 0}"]))
    metrics = rows(case.parent / "out")
    assert len(metrics) == 3
    progress = state(case.parent / "out")["progress"]
    assert progress["best_epoch"] == 1
    assert progress["best"] == pytest.approx(float(metrics[0]["val_energy_rmse_fid1"]), rel=1e-6)


def test_dry_run_leaves_nothing_and_touches_nothing(case, capsys):
    train(load_train_config(case, ["trainer.epochs=1"]))
    folder = case.parent / "out"
    (folder / "dry_run").mkdir()
    (folder / "dry_run/mine.txt").write_text("notes")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    train(load_train_config(case, ["logging.plots=true"]), dry_run=True)
    assert "dry run complete" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert before == after
    train(load_train_config(case, ["run.folder=new"]), dry_run=True)
    assert not (case.parent / "new").exists()
    assert not list(case.parent.glob(".*"))


def test_load_starts_from_weights(case, capsys):
    train(load_train_config(case, ["trainer.epochs=1"]))
    weights = case.parent / "out/model.pt"
    train(load_train_config(case, ["run.folder=b", "optimizer.kwargs.lr=1e-30", "trainer.epochs=1"]), load=weights)
    a, b = load_weights(weights).state, load_weights(case.parent / "b/model.pt").state
    for key, value in a.items():
        # the running mean of equal weights rounds
        assert torch.allclose(value, b[key], rtol=1e-5, atol=1e-7), key
    train(load_train_config(case), load=weights)
    assert "is not used" in capsys.readouterr().out


def test_no_force_labels_no_forces_term(case, monkeypatch):
    calls = []
    import aimnet2mult.training.step_model as step

    original = step.forces_from_energy
    monkeypatch.setattr(
        step, "forces_from_energy", lambda *a, **k: calls.append(k["create_graph"]) or original(*a, **k)
    )
    train(load_train_config(case, ["trainer.epochs=1", "loss.kwargs.components.forces.weight=0"]))
    # forces for validation only, never with the graph that a loss on forces needs
    assert calls
    assert not any(calls)


def test_command_line_interrupt(case, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_at(patch, 2, signal.SIGINT)
        assert main([str(case), "--model", str(case.parent / "model.yaml"), "trainer.epochs=1"]) == 130
    assert "run the same command again to go on" in capsys.readouterr().err
    assert state(case.parent / "out")["progress"]["step"] == 2
    assert main(["trainer.epochs=1", str(case)][::-1]) == 0
    assert main([str(case), "nonsense"]) == 2
    assert "neither an option nor an override" in capsys.readouterr().err


def test_two_processes_equal_one(case):
    """Two processes with one molecule each, so that one fidelity is always absent, follow one process with two."""
    common = ["optimizer={class: torch.optim.SGD, kwargs: {lr: 1e-3}}", "trainer.epochs=2"]
    single = [*common, "run.folder=one", "data.samplers.train={batch_size: 2, batches_per_epoch: 4, size_window: 1}"]
    train(load_train_config(case, single))
    double = [*common, "run.folder=two", "data.samplers.train={batch_size: 1, batches_per_epoch: 8, size_window: 1}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, "-m", "aimnet2mult.training", str(case), *double],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("requested draws") == 1
    a, b = state(case.parent / "one"), state(case.parent / "two")
    for key, value in a["network"].items():
        # float32 sums in another order
        assert torch.allclose(value, b["network"][key], rtol=1e-4, atol=1e-6), key
    for x, y in zip(rows(case.parent / "one"), rows(case.parent / "two"), strict=True):
        assert float(x["val_loss"]) == pytest.approx(float(y["val_loss"]), rel=1e-4)
        assert float(x["train_energy"]) == pytest.approx(float(y["train_energy"]), rel=1e-4)
        assert x["share_realised_fid0"] == y["share_realised_fid0"]


@pytest.mark.parametrize("which", ["best", "last"])
def test_final_weights_are_those_asked_for(case, monkeypatch, which):
    # a selection that likes the first epoch best
    monkeypatch.setattr(Trainer, "_selection", lambda self, sums, validation: float(self.progress.epoch))
    train(load_train_config(case, [f"trainer.final_weights={which}"]))
    folder = case.parent / "out"
    found = load_weights(folder / "model.pt")
    ema = {name: torch.load(folder / f"checkpoints/{name}.pt", weights_only=True)["ema"] for name in ("best", "last")}
    assert any(not torch.equal(ema["best"][key], ema["last"][key]) for key in found.state)
    assert_same(dict(found.state), dict(ema[which]))
    assert found.provenance["epoch"] == {"best": "1", "last": "3"}[which]
