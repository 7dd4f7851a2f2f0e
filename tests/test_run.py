from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from aimnet2mult.configs.train import load_train_config
from aimnet2mult.errors import ConfigError, TrainingError
from aimnet2mult.models.files import load_potential, load_weights
from aimnet2mult.training.cli_args import main
from aimnet2mult.training.engine import Trainer
from aimnet2mult.training.interrupt import StoppedError
from aimnet2mult.training.run import train

ROOT = Path(__file__).resolve().parent.parent
# closed-shell molecules by atomic numbers, so that parity of electrons and multiplicity holds
KINDS = {2: [(1, 1), (1, 9)], 3: [(8, 1, 1)], 4: [(7, 1, 1, 1)]}
SAE = {1: -13.0, 7: -1480.0, 8: -2040.0, 9: -2710.0}
FID0_ONLY = {"forces", "charges", "spin_charges"}


def write_data(path: Path, seed: int, labels: set[str], per_kind: int = 6) -> None:
    """Molecules with pairwise harmonic energies, their exact forces, and charges that sum to zero."""
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        for natoms, kinds in KINDS.items():
            base = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])[:natoms]
            numbers = np.array([kind for kind in kinds for _ in range(per_kind)])
            n = len(numbers)
            coord = base + rng.normal(scale=0.07, size=(n, natoms, 3))
            delta = coord[:, :, None] - coord[:, None]
            distance = np.linalg.norm(delta, axis=-1) + np.eye(natoms)
            stretch = (distance - 1.2) * (1 - np.eye(natoms))
            energy = 0.5 * 3.0 * (stretch**2).sum(axis=(1, 2)) / 2
            group = file.create_group(f"{natoms:03d}")
            group["coord"] = coord.astype(np.float32)
            group["numbers"] = numbers.astype(np.uint8)
            group["charge"] = np.zeros(n, dtype=np.float32)
            group["mult"] = np.ones(n, dtype=np.float32)
            # each geometry is a molecule of its own, so that the split has something to choose from
            group["structure_id"] = (natoms * 1000 + np.arange(n)) * 1000
            group["energy"] = energy + np.vectorize(SAE.get)(numbers).sum(axis=1)
            if "forces" in labels:
                group["forces"] = -3.0 * ((stretch / distance)[..., None] * delta).sum(axis=2).astype(np.float32)
            for key in ("charges", "spin_charges"):
                if key in labels:
                    values = rng.normal(scale=0.05, size=(n, natoms))
                    group[key] = (values - values.mean(axis=1, keepdims=True)).astype(np.float32)


MODEL = {
    "class": "aimnet2mult.models.network.MultiFidelityNetwork",
    "kwargs": {
        "num_fidelities": 2,
        "aev": {"rc_s": 4.0, "rmin": 0.8, "nshifts_s": 4},
        "nfeature": 4,
        "ncomb_v": 2,
        "hidden": [[8], [8]],
        "aim_size": 8,
        "outputs": {
            "energy_mlp": {"class": "aimnet2mult.models.heads.EnergyMLP", "kwargs": {"hidden": [8]}},
            "charges": {"class": "aimnet2mult.models.heads.Charges", "kwargs": {"source": "readout", "hidden": [4]}},
            "spin_charges": {"class": "aimnet2mult.models.heads.SpinCharges"},
            "atomic_shift": {"class": "aimnet2mult.models.heads.AtomicShift"},
            "atomic_sum": {"class": "aimnet2mult.models.heads.AtomicSum"},
            "lrcoulomb": {"class": "aimnet2mult.models.heads.LRCoulomb", "kwargs": {"method": "simple", "rc": 4.0}},
        },
    },
}


def component(key: str, weight: float) -> dict:
    if key == "energy":
        return {"fn": "aimnet2mult.train.loss.energy_loss_fn", "weight": weight}
    kwargs = {"key_true": key, "key_pred": key}
    return {"fn": "aimnet2mult.train.loss.peratom_loss_fn", "weight": weight, "kwargs": kwargs}


TRAIN = {
    "run": {"name": "tiny", "folder": "out", "seed": 7, "device": "cpu"},
    "data": {
        "fidelities": {0: {"name": "full", "files": "fid0.h5"}, 1: {"name": "energies", "files": "fid1.h5"}},
        "fidelity_weights": {0: 3, 1: 1},
        "val_fraction": 0.2,
        "samplers": {"train": {"batch_size": 8, "batches_per_epoch": 4}, "val": {"batch_size": 16}},
    },
    "loss": {
        "class": "aimnet2mult.train.loss.MTLoss",
        "kwargs": {"components": {k: component(k, 1.0) for k in ("energy", "forces", "charges", "spin_charges")}},
    },
    "optimizer": {"class": "torch.optim.AdamW", "kwargs": {"lr": 5.0e-3}},
    "scheduler": {"kind": "cosine", "warmup_steps": 3},
    "trainer": {"epochs": 3, "ema_decay": 0.9},
    "logging": {"tensorboard": False, "plots": False},
    "compile": {"enabled": False},
}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def case(tmp_path):
    """A folder with two data files, model.yaml and train.yaml; returns the path of the latter."""
    write_data(tmp_path / "fid0.h5", 1, FID0_ONLY)
    write_data(tmp_path / "fid1.h5", 2, set())
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(MODEL))
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(TRAIN))
    return tmp_path / "train.yaml"


def state(folder: Path) -> dict:
    return torch.load(folder / "checkpoints/last.pt", weights_only=True)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs/metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


def assert_same(a, b, path=""):
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


def stop_at(monkeypatch, step: int, signum: int = signal.SIGTERM) -> None:
    """Send this process a signal after the step with this number."""
    original = Trainer._after_step

    def after_step(self, engine):
        if self.progress.total_steps == step:
            os.kill(os.getpid(), signum)
        original(self, engine)

    monkeypatch.setattr(Trainer, "_after_step", after_step)


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
    errors = list(csv.DictReader((folder / "errors.csv").open()))
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


def test_settings_of_the_optimiser_may_change(case, capsys):
    train(load_train_config(case, ["trainer.epochs=1"]))
    train(load_train_config(case, ["trainer.epochs=2", "optimizer.kwargs.lr=1e-4"]))
    assert "changed since the checkpoint: optimizer.kwargs.lr: 0.005 -> 0.0001" in capsys.readouterr().out
    assert float(rows(case.parent / "out")[1]["learning_rate"]) <= 1e-4


@pytest.mark.parametrize("clip", ["1.0", "null"])
def test_wild_learning_rate_stops_with_a_good_checkpoint(case, clip):
    overrides = ["optimizer.kwargs.lr=1e3", "scheduler.warmup_steps=0", f"trainer.gradient_clip={clip}"]
    with pytest.raises(TrainingError, match=r"not finite.*lower optimizer.kwargs.lr \(now 1000\)"):
        train(load_train_config(case, [*overrides, "trainer.epochs=30"]))
    for part in ("network", "ema"):
        assert all(torch.isfinite(value).all() for value in state(case.parent / "out")[part].values())
    assert not (case.parent / "out/model.pt").exists()


def test_non_finite_loss_names_the_molecule(case):
    with h5py.File(case.parent / "fid0.h5", "a") as file:
        # finite in the file, its square is not
        file["003/forces"][2] = 1e38
    with pytest.raises(TrainingError, match=r"loss is not finite in epoch 1, step \d+, .*fid0.h5/003/2"):
        train(load_train_config(case, ["data.val_fraction=0"]))
    assert state(case.parent / "out")["progress"]["total_steps"] == 0


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
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    train(load_train_config(case, ["logging.plots=true"]), dry_run=True)
    assert "dry run complete" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert before == after


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
    import aimnet2mult.training.step as step

    original = step.forces_from_energy
    monkeypatch.setattr(
        step, "forces_from_energy", lambda *a, **k: calls.append(k["create_graph"]) or original(*a, **k)
    )
    train(load_train_config(case, ["trainer.epochs=1", "loss.kwargs.components.forces.weight=0"]))
    # forces for validation only, never with the graph that a loss on forces needs
    assert calls
    assert not any(calls)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("loss.class=os.mkdir", "loss.class: class path 'os.mkdir' is not allowed"),
        ("loss.kwargs.components.energy.fn=builtins.eval", "components.energy.fn: class path 'builtins.eval'"),
        ("optimizer.class=os.system", "optimizer.class: class path 'os.system' is not allowed"),
        ("data.y=[energy]", "is not in data.y (energy)"),
        ("data.fidelities={0: {name: full, files: fid0.h5}}", "fidelity_weights"),
        ("loss.kwargs.components.energy.kwargs={key_pred: enrgy}", "not 'enrgy'"),
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


def test_command_line_interrupt(case, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_at(patch, 2, signal.SIGINT)
        assert main([str(case), "--model", str(case.parent / "model.yaml"), "trainer.epochs=1"]) == 130
    assert "run the same command again to go on" in capsys.readouterr().err
    assert state(case.parent / "out")["progress"]["step"] == 2
    assert main(["trainer.epochs=1", str(case)][::-1]) == 0
    assert main([str(case), "nonsense"]) == 2
    assert "neither an option nor an override" in capsys.readouterr().err


def test_folder_that_cannot_be_written(case):
    (case.parent / "out").write_text("a file")
    with pytest.raises(ConfigError, match=r"run.folder: .* cannot be written"):
        train(load_train_config(case))


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
