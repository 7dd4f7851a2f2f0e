"""The compiled code on disk: when it counts as complete, who compiles it, and what is said meanwhile."""

from __future__ import annotations

import builtins
import logging
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from structures import water

pytest.importorskip("numba", reason="the engine needs the optional package numba")

from aimnet2mult import AIMNet2MultCalculator
from aimnet2mult.calculators.reference import ReferenceEvaluator
from aimnet2mult.cli.main import main
from aimnet2mult.engine import exercise, jit, warmup


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of that of the compiled code, a step that writes two files, and one of training."""

    def compiles() -> None:
        for name in ("a.nbi", "b.1.nbc"):
            (tmp_path / name).write_text("code")

    monkeypatch.setattr(jit, "cache_directory", lambda: tmp_path)
    steps = [
        exercise.Exercise("everything", compiles),
        exercise.Exercise("training", (tmp_path / "c.nbi").touch, warmup.TRAINING),
    ]
    monkeypatch.setattr(exercise, "exercises", lambda: steps)
    monkeypatch.delenv(warmup.NO_WARMUP, raising=False)
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands of processes that were to be started; none is."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def wait_for(condition: object, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_complete_is_what_is_all_there(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(warmup.NO_WARMUP, "1")
    lines: list[str] = []
    assert warmup.compile_kernels(lines.append) == elsewhere
    assert lines == ["1 of 2: everything", "2 of 2: training"]
    assert warmup.ready()
    assert warmup.compile_kernels(lines.append) == elsewhere
    assert len(lines) == 2, "what is there is not compiled again"
    (elsewhere / "b.1.nbc").unlink()
    assert not warmup.ready()
    warmup.compile_kernels(lines.append)
    assert len(lines) == 4
    assert not list(elsewhere.glob("*.lock"))


def test_training_asks_for_its_own(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(warmup.NO_WARMUP, "1")
    lines: list[str] = []
    warmup.compile_kernels(lines.append, [warmup.TRAINING])
    assert lines == ["1 of 1: training"]
    assert warmup.is_compiled(warmup.TRAINING)
    assert not warmup.ready(), "those of evaluation are still to be compiled"


def test_evaluation_does_not_wait_for_training(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(warmup.NO_WARMUP, "1")
    seen: list[bool] = []
    steps = [*exercise.exercises()[:1], exercise.Exercise("", lambda: seen.append(warmup.ready()), warmup.TRAINING)]
    monkeypatch.setattr(exercise, "exercises", lambda: steps)
    warmup.compile_kernels(lambda line: None)
    assert seen == [True]


def test_another_processor_or_version_needs_its_own(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warmup.compile_kernels(lambda line: None)
    monkeypatch.setenv(warmup.NO_WARMUP, "1")
    assert warmup.ready()
    monkeypatch.setattr("numba.config.CPU_NAME", "another")
    assert not warmup.ready()


def test_another_installation_needs_its_own(
    elsewhere: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numba goes by the path of a source file and by when it was written, whatever stands in it."""
    monkeypatch.setenv(warmup.NO_WARMUP, "1")
    copy = tmp_path_factory.mktemp("engine")
    for path in Path(warmup.__file__).parent.glob("*.py"):
        shutil.copy2(path, copy)
    warmup.compile_kernels(lambda line: None)
    assert warmup.ready()
    with monkeypatch.context() as patch:
        patch.setattr(warmup, "__file__", str(copy / "warmup.py"))
        assert not warmup.ready()
        warmup.compile_kernels(lambda line: None)
        assert warmup.ready()
        os.utime(copy / "simd.py", (0, 0))
        assert not warmup.ready()
    assert warmup.ready()


def test_nobody_waits_and_one_process_compiles(
    elsewhere: Path, started: list[list[str]], caplog: pytest.LogCaptureFixture, potential_file: Path
) -> None:
    calculators = [AIMNet2MultCalculator(potential_file, device="cpu") for _ in range(3)]
    wait_for(lambda: started)
    assert len(started) == 1
    assert started[0][0] == sys.executable
    assert len([record for record in caplog.records if "compiled for this machine" in record.message]) == 1
    for calc in calculators:
        assert isinstance(calc._potentials.committee().evaluator, ReferenceEvaluator)
        calc.get_forces(water())


def test_it_can_be_prevented(
    elsewhere: Path, started: list[list[str]], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(warmup.NO_WARMUP, "1")
    assert not warmup.ready()
    time.sleep(0.05)
    assert started == []
    assert caplog.records == []
    assert list(elsewhere.iterdir()) == []


def test_what_runs_in_the_background(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function that the process calls, here without its low priority."""
    monkeypatch.setattr(os, "nice", lambda increment: increment, raising=False)
    assert warmup._take(warmup._lock())
    warmup.compile_in_background()
    assert warmup.ready()
    assert not warmup._lock().exists()


def test_a_process_that_fails_is_spoken_of(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(warmup, "_PROGRAM", "raise SystemExit('no room on the disk')")
    with caplog.at_level(logging.WARNING, "aimnet2mult"):
        assert not warmup.ready()
        wait_for(lambda: "could not be compiled: no room on the disk" in caplog.text)
    assert not warmup._lock().exists()


def test_the_process_in_the_background_knows_the_package(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any folder, and with files in it that have the names of modules."""
    folder = elsewhere / "somewhere"
    folder.mkdir()
    (folder / "numba.py").write_text("raise SystemExit('the wrong numba')")
    monkeypatch.chdir(folder)
    written = elsewhere / "written"
    monkeypatch.setattr(
        warmup,
        "_PROGRAM",
        f"import numba, aimnet2mult.engine.warmup as w; open({str(written)!r}, 'w').write(w.__file__)",
    )
    assert not warmup.ready()
    wait_for(lambda: written.exists() and written.read_text())
    assert written.read_text() == warmup.__file__


def test_locks(elsewhere: Path) -> None:
    lock = warmup._lock()
    assert warmup._take(lock)
    assert not warmup._take(lock), "held by this process, which is alive"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    lock.write_text(f"{platform.node()} {gone.pid}")
    if sys.platform != "win32":
        assert warmup._take(lock), "left behind by a process that died"
    lock.write_text("another-machine 1")
    assert not warmup._take(lock)
    old = time.time() - 2 * warmup._PATIENCE
    os.utime(lock, (old, old))
    assert warmup._take(lock), "for too long"


def test_waiting_for_another_process(elsewhere: Path) -> None:
    assert warmup._take(warmup._lock())
    lines: list[str] = []
    thread = threading.Thread(target=warmup.compile_kernels, args=(lines.append,))
    thread.start()
    wait_for(lambda: lines)
    assert lines == ["another process is compiling them; waiting for it"]
    warmup._compile(lambda line: None, [warmup.EVALUATION, warmup.TRAINING])
    thread.join(20.0)
    assert not thread.is_alive()
    assert len(lines) == 1


def test_command(elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["kernels"]) == 0
    steps = "1 of 2: everything\n2 of 2: training\n"
    assert capsys.readouterr().out == f"{steps}the fast kernels for this machine are in {elsewhere}\n"
    nowhere = elsewhere / "a.nbi" / "below a file"
    monkeypatch.setattr(jit, "cache_directory", lambda: nowhere)
    assert main(["kernels"]) == 2
    assert "set NUMBA_CACHE_DIR to a folder that can be written" in capsys.readouterr().err
    assert not warmup.ready()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["kernels"]) == 2
    assert 'pip install "aimnet2mult[fast]"' in capsys.readouterr().err


def test_without_numba(potential_file: Path) -> None:
    """Everything works, and nothing of the engine is imported."""
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'numba' else find(name, *rest)\n"
        "from ase.build import molecule; from aimnet2mult import AIMNet2MultCalculator\n"
        f"calc = AIMNet2MultCalculator({str(potential_file)!r}, device='cpu')\n"
        "print(calc.get_potential_energy(molecule('H2O')), type(calc._potentials.committee().evaluator).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    energy, kind = done.stdout.split()
    assert kind == "ReferenceEvaluator"
    here = AIMNet2MultCalculator(potential_file, device="cpu").get_potential_energy(water())
    assert float(energy) == pytest.approx(here, abs=1e-5)


def test_numba_that_does_not_fit(
    elsewhere: Path, potential_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    genuine = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> object:
        if name == "numba":
            raise ImportError("Numba needs NumPy 1.0 or less")
        return genuine(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    calc = AIMNet2MultCalculator(potential_file, device="cpu")
    assert isinstance(calc._potentials.committee().evaluator, ReferenceEvaluator)
    assert "numba cannot be imported (Numba needs NumPy 1.0 or less)" in caplog.text


def test_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(jit, "cache_directory", unknown)
    assert not warmup.ready()


def test_every_kernel_is_compiled_beforehand(potential_file: Path) -> None:
    """With the compiled code on disk, a first energy compiles nothing: numba is told to fail if it must."""
    warmup.compile_kernels(lambda line: None)
    code = (
        "import numba.core.dispatcher as d\n"
        "def fail(self, *args): raise SystemExit(f'{self.py_func.__module__}.{self.py_func.__name__} was compiled')\n"
        "d._FunctionCompiler._compile_cached = fail\n"
        "from ase.build import bulk, molecule; from aimnet2mult import AIMNet2MultCalculator\n"
        f"calc = AIMNet2MultCalculator({str(potential_file)!r}, device='cpu')\n"
        "print(type(calc._potentials.committee().evaluator).__name__)\n"
        "calc.get_forces(molecule('H2O')); calc.evaluate([molecule('CH4'), molecule('O')])\n"
        "calc.get_stress(bulk('C'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "EngineEvaluator"
