"""What a run writes while it goes."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from aimnet2mult.configs.train import LoggingSettings, load_train_config
from aimnet2mult.errors import TrainingError
from aimnet2mult.training.logs import RunLog, Trackers


def test_lines_after_a_checkpoint_are_forgotten_once(tmp_path: Path) -> None:
    path = tmp_path / "logs/run.log"
    first = RunLog(path)
    assert first.length() is None
    first.line("start")
    kept = first.length()
    first.line("lost epoch")
    second = RunLog(path)
    second.line("start again")
    second.forget(kept)
    second.line("goes on")
    second.forget(kept)
    assert path.read_text() == "start\nstart again\ngoes on\n"
    RunLog(path).forget(10**6)
    RunLog(path).forget(None)
    assert path.read_text() == "start\nstart again\ngoes on\n"


def test_a_closed_terminal_does_not_stop_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    log = RunLog(tmp_path / "run.log")
    log.line("one")
    log.line("two")
    assert (tmp_path / "run.log").read_text() == "one\ntwo\n"


def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run.log")
    (tmp_path / "run.log").mkdir()
    with pytest.raises(TrainingError, match=r"run.log: cannot be written \(Is a directory\)"):
        log.line("one")
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="cannot be written"):
        RunLog(tmp_path / "file/logs/run.log")


def test_tensorboard_shows_each_epoch_once(case: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = load_train_config(case)
    settings = LoggingSettings(tensorboard=True)
    for done, values in [(0, [1.0, 2.0, 3.0]), (2, [4.0, 5.0])]:
        trackers = Trackers(settings, config, tmp_path, done, RunLog(None))
        for step, value in enumerate(values, start=done + 1):
            trackers.add(step, {"loss": value})
        trackers.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0)]


def test_wandb_goes_on_under_the_same_name(case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    def init(**arguments: object) -> SimpleNamespace:
        names.append(str(arguments["id"]))
        return SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, __spec__=SimpleNamespace()))
    config = load_train_config(case)
    settings = LoggingSettings.model_validate({"tensorboard": False, "wandb": {"project": "mine"}})
    for done in (0, 3, 0):
        Trackers(settings, config, tmp_path, done, RunLog(None)).close()
    assert names[0] == names[1] != names[2]
