"""Class paths of the user's own code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from run_case import rows

from aimnet2mult.configs.classpaths import imported, resolve
from aimnet2mult.configs.train import load_train_config
from aimnet2mult.errors import ConfigError
from aimnet2mult.training.cli_args import main
from aimnet2mult.training.run import train

SOURCE = """
import os
import torch
from torch import nn
from aimnet2mult.train.loss import MTLoss, energy_loss_fn

def tenfold(y_pred, y_true, key_pred="energy", key_true="energy"):
    return 10 * energy_loss_fn(y_pred, y_true, key_pred, key_true)

class OwnLoss(MTLoss):
    pass

class Slow(torch.optim.SGD):
    pass

class NotALoss:
    pass

def _hidden():
    pass

constant = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = "own_code_of_a_user"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def test_only_what_the_module_defines_may_be_named(module: str) -> None:
    found = imported([module])
    assert sorted(found) == [f"{module}.{name}" for name in ("NotALoss", "OwnLoss", "Slow", "tenfold")]
    assert issubclass(found[f"{module}.Slow"], torch.optim.SGD)
    for path in (f"{module}.os.mkdir", f"{module}.energy_loss_fn", f"{module}._hidden", "os.mkdir"):
        with pytest.raises(ConfigError, match="is not allowed"):
            resolve(path, found, "loss.class")


def test_modules_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_code_of_a_user.py").write_text("1 / 0")
    (tmp_path / "empty_code_of_a_user.py").write_text("import os")
    for name, words in [
        ("no_such_module", "cannot be imported"),
        ("broken_code_of_a_user", "ZeroDivisionError"),
        ("empty_code_of_a_user", "defines no class and no function"),
    ]:
        with pytest.raises(ConfigError, match=f"--allow-import: {name} .*{words}"):
            imported([name])


def settings(module: str) -> list[str]:
    return [
        f"loss.kwargs.components.energy.fn={module}.tenfold",
        f"loss.class={module}.OwnLoss",
        f"optimizer={{class: {module}.Slow, kwargs: {{lr: 1e-4}}}}",
        "trainer.epochs=1",
    ]


@pytest.mark.usefixtures("one_thread")
def test_own_losses_and_optimisers_are_used(case: Path, module: str) -> None:
    config = load_train_config(case, settings(module))
    train(config, allow_import=[module])
    mine = float(rows(case.parent / "out")[0]["val_energy"])
    plain = ["optimizer={class: torch.optim.SGD, kwargs: {lr: 1e-4}}", "trainer.epochs=1", "run.folder=plain"]
    train(load_train_config(case, plain))
    # the weights differ by the weight of the term, after four small steps
    assert mine == pytest.approx(10 * float(rows(case.parent / "plain")[0]["val_energy"]), rel=0.1)


def test_files_alone_import_nothing(case: Path, module: str, capsys: pytest.CaptureFixture[str]) -> None:
    for setting in settings(module)[:3]:
        assert main([str(case), setting]) == 2
        error = capsys.readouterr().err
        assert "is not allowed" in error
        assert "needs --allow-import MODULE on the command line" in error
    assert module not in sys.modules


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("loss.class={}.NotALoss", "not derived from aimnet2mult.train.loss.MTLoss"),
        ("optimizer.class={}.NotALoss", "not derived from torch.optim.Optimizer"),
    ],
)
def test_classes_of_another_kind(
    case: Path, module: str, capsys: pytest.CaptureFixture[str], setting: str, words: str
) -> None:
    assert main([str(case), setting.format(module), "--allow-import", module]) == 2
    assert words in capsys.readouterr().err
