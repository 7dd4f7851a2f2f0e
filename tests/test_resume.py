"""Runs that were cut off at an awkward moment go on as if nothing had happened; what changed is said or refused."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
import torch
import yaml
from run_case import assert_same, rows, state, stop_at

from aimnet2mult.configs.train import load_train_config
from aimnet2mult.errors import ConfigError, TrainingError
from aimnet2mult.models.archive import write_sealed
from aimnet2mult.models.files import load_weights
from aimnet2mult.training import engine
from aimnet2mult.training.engine import Trainer
from aimnet2mult.training.interrupt import StoppedError
from aimnet2mult.training.lock import folder_lock
from aimnet2mult.training.run import train

pytestmark = pytest.mark.usefixtures("one_thread")

OFTEN = "trainer.checkpoint_minutes=1e-9"  # after every step


class Killed(BaseException):
    """Stands for a process that ends without another word."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int, name: str = "_after_step") -> None:
    """End the run when `name` is called after so many steps; nothing more is saved."""
    original = getattr(Trainer, name)

    def called(self: Trainer, *arguments: object) -> object:
        if self.progress.total_steps == step:
            raise Killed
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, name, called)


def lines_of(folder: Path) -> list[str]:
    """Lines of epochs in run.log, without the time."""
    log = (folder / "logs/run.log").read_text()
    return [line.rsplit("|", 1)[0] for line in log.splitlines() if re.match(r" +\d+ +\d", line)]


def assert_equal_runs(a: Path, b: Path) -> None:
    one, other = state(a), state(b)
    for part in ("network", "ema", "optimizer", "schedule", "rng"):
        assert_same(one[part], other[part], part)
    for key in ("epoch", "step", "total_steps", "best", "best_epoch", "waited", "sums"):
        assert one["progress"][key] == other["progress"][key]
    for x, y in zip(rows(a), rows(b), strict=True):
        assert {**x, "seconds": ""} == {**y, "seconds": ""}
    assert lines_of(a) == lines_of(b)
    assert len(lines_of(a)) == len(rows(a))
    assert_same(load_weights(a / "model.pt").state, load_weights(b / "model.pt").state)


@pytest.mark.parametrize(
    ("step", "method", "found"),
    [
        (1, "_after_step", 0),  # before the first checkpoint inside an epoch
        (3, "_after_step", 2),
        (6, "_after_step", 5),
        (6, "_save_midway", 5),
        (8, "_validate", 8),
        (8, "_close_epoch", 8),
        (12, "_close_epoch", 12),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(
    case: Path, monkeypatch: pytest.MonkeyPatch, step: int, method: str, found: int
) -> None:
    train(load_train_config(case, ["run.folder=whole"]))
    with monkeypatch.context() as patch:
        kill_at(patch, step, method)
        with pytest.raises(Killed):
            train(load_train_config(case, [OFTEN]))
    assert state(case.parent / "out")["progress"]["total_steps"] == found
    train(load_train_config(case, [OFTEN]))
    assert_equal_runs(case.parent / "whole", case.parent / "out")


@pytest.mark.parametrize("which", ["best.pt", "last.pt"])
def test_a_kill_between_the_two_checkpoints(case: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """The row is written, then the best checkpoint, then the last: each may be the last thing that happens."""
    train(load_train_config(case, ["run.folder=whole"]))
    original = engine.save_state

    def save_state(path: Path, identity: object, progress: engine.Progress, parts: object) -> None:
        if progress.epoch == 2 and path.name == which:
            raise Killed
        original(path, identity, progress, parts)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "save_state", save_state)
        with pytest.raises(Killed):
            train(load_train_config(case))
    assert [row["epoch"] for row in rows(case.parent / "out")] == ["1", "2"]
    train(load_train_config(case))
    assert_equal_runs(case.parent / "whole", case.parent / "out")


def test_checkpoints_inside_an_epoch_are_rare_unless_asked_for(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(Trainer, "_save_midway", lambda self: saved.append(self.progress.total_steps))
    train(load_train_config(case, ["trainer.epochs=1"]))
    train(load_train_config(case, ["trainer.epochs=1", "trainer.checkpoint_minutes=null", "run.folder=b"]))
    assert saved == []
    train(load_train_config(case, ["trainer.epochs=1", OFTEN, "run.folder=c"]))
    assert saved == [1, 2, 3, 4]


def test_a_signal_while_the_last_epoch_is_saved_is_not_lost(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer._close_epoch

    def close(self: Trainer, *arguments: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_close_epoch", close)
        with pytest.raises(StoppedError, match="SIGTERM"):
            train(load_train_config(case, ["trainer.epochs=1"]))
    assert state(case.parent / "out")["progress"]["epoch"] == 1
    assert not (case.parent / "out/model.pt").exists()


def test_harmless_changes_are_taken_and_said(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(load_train_config(case, ["trainer.epochs=1"]))
    changes = ["trainer.epochs=2", "trainer.checkpoint_minutes=5", "run.name=other", "logging.plots=true"]
    train(load_train_config(case, [*changes, "data.cache_mb=1", "trainer.final_weights=last"]))
    output = capsys.readouterr().out
    for change in (
        "trainer.epochs: 1 -> 2",
        "trainer.checkpoint_minutes: 10.0 -> 5.0",
        "run.name: tiny -> other",
        "logging.plots: False -> True",
        "data.cache_mb: 1024 -> 1",
        "trainer.final_weights: best -> last",
    ):
        assert f"changed since the checkpoint: {change}\n" in output


@pytest.mark.parametrize(
    "change",
    [
        "optimizer.kwargs.lr=1e-4",
        "optimizer.kwargs={lr: 5e-3, weight_decay: 0.1}",
        "optimizer.difference_lr_factor=0.5",
        "scheduler.warmup_steps=4",
        "scheduler={kind: constant}",
        "trainer.gradient_clip=2",
        "trainer.ema_decay=0.5",
        "trainer.early_stopping={fidelity: 0}",
    ],
)
def test_changes_of_the_course_need_consent(case: Path, change: str) -> None:
    train(load_train_config(case, ["trainer.epochs=1"]))
    before = (case.parent / "out/checkpoints/last.pt").read_bytes()
    key = change.partition("=")[0]
    with pytest.raises(
        ConfigError, match=rf"^{re.escape(key)}.* was trained with .*; set it back, add --accept-changes"
    ):
        train(load_train_config(case, [change, "trainer.epochs=2"]))
    assert (case.parent / "out/checkpoints/last.pt").read_bytes() == before
    train(load_train_config(case, [change, "trainer.epochs=2"]), accept_changes=True)


def test_another_split_is_refused(case: Path) -> None:
    train(load_train_config(case, ["trainer.epochs=1"]))
    path = case.parent / "out/split.yaml"
    content = yaml.safe_load(path.read_text())
    content["train"], content["val"] = content["val"], content["train"]
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"^split.yaml: another split than .* put the old one back"):
        train(load_train_config(case, ["trainer.epochs=2"]))
    path.unlink()  # made again from the same seed
    train(load_train_config(case, ["trainer.epochs=2"]))


def test_checkpoints_of_older_versions_go_on(case: Path) -> None:
    train(load_train_config(case, ["trainer.epochs=1"]))
    for name in ("last", "best"):
        path = case.parent / f"out/checkpoints/{name}.pt"
        content = torch.load(path, weights_only=True)
        identity = json.loads(content["identity"])
        del identity["split"], content["progress"]["log_bytes"]
        torch.save({**content, "identity": json.dumps(identity)}, path)
    train(load_train_config(case, ["trainer.epochs=2"]))
    assert state(case.parent / "out")["progress"]["epoch"] == 2


def test_a_lost_best_checkpoint_is_told_before_the_run_goes_on(case: Path) -> None:
    train(load_train_config(case, ["trainer.epochs=1"]))
    (case.parent / "out/checkpoints/best.pt").unlink()
    with pytest.raises(TrainingError, match=r"best.pt: this checkpoint is missing; start anew"):
        train(load_train_config(case, ["trainer.epochs=2"]))
    train(load_train_config(case, ["trainer.epochs=2", "trainer.final_weights=last"]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"progress": {"epoch": "x"}}, "malformed"),
        ({"progress": {"unknown": 1}}, "malformed"),
        ({"progress": {}}, "does not fit this run"),
        ({"identity": "[]"}, "malformed"),
        ({"network": {}}, "does not fit this run"),
        ({"ema": {"a": 1}}, "does not fit this run"),
        ({"optimizer": {"param_groups": []}}, "does not fit this run"),
        ({"schedule": {}}, "does not fit this run"),
        ({"rng": {"cpu": torch.zeros(3)}}, "does not fit this run"),
        ({"kind": "x"}, "not a checkpoint"),
        ({"version": 99}, "not known here"),
    ],
)
def test_checkpoints_with_strange_content_are_a_sentence(case: Path, changes: dict[str, object], words: str) -> None:
    train(load_train_config(case, ["trainer.epochs=1"]))
    path = case.parent / "out/checkpoints/last.pt"
    write_sealed(path, torch.load(path, weights_only=True) | changes)
    with pytest.raises(TrainingError, match=rf"last.pt: .*{words}.*--fresh"):
        train(load_train_config(case, ["trainer.epochs=2", "trainer.final_weights=last"]))


def test_a_folder_in_use_is_refused_and_a_free_one_left_clean(case: Path) -> None:
    folder = case.parent / "out"
    folder.mkdir()
    with folder_lock(folder, print):
        for again in (False, True):
            with pytest.raises(ConfigError, match=r"run.folder: .*out is in use by another run"):
                train(load_train_config(case), fresh=again)
    train(load_train_config(case, ["trainer.epochs=1"]))
    assert not list(folder.rglob(".*"))
    assert not (folder / "run.lock").exists()


def test_a_folder_that_vanishes_is_a_sentence(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer._close_epoch

    def close(self: Trainer, *arguments: object) -> None:
        (case.parent / "out").rename(case.parent / "moved")
        original(self, *arguments)

    monkeypatch.setattr(Trainer, "_close_epoch", close)
    with pytest.raises(TrainingError, match=r"out: the folder \(or run.lock in it\) was deleted or replaced"):
        train(load_train_config(case))
    assert not (case.parent / "out").exists()
    assert state(case.parent / "moved")["progress"]["total_steps"] == 0


@pytest.mark.parametrize("name", ["checkpoints/last.pt", "split.yaml", "model.pt", "logs/metrics.csv", "model_card.md"])
def test_a_full_disk_is_a_sentence_and_the_run_goes_on_later(
    case: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    train(load_train_config(case, ["run.folder=whole"]))
    replace = Path.replace
    folder = case.parent / "out"
    full = True

    def fails(self: Path, target: Path) -> Path:
        if full and Path(target) == folder / name:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(Exception, match=r"cannot be written \(No space left on device\)") as caught:
        train(load_train_config(case))
    assert type(caught.value).__module__ == "aimnet2mult.errors"
    assert not list(folder.rglob(".*"))
    full = False
    train(load_train_config(case))
    assert_equal_runs(case.parent / "whole", folder)


def test_stopping_inside_an_epoch_keeps_the_log_whole(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(load_train_config(case, ["run.folder=whole"]))
    for step in (2, 6, 11):
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(StoppedError):
                train(load_train_config(case))
    train(load_train_config(case))
    assert_equal_runs(case.parent / "whole", case.parent / "out")
