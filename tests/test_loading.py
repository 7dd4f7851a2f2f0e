"""Files that would run code while they are loaded are refused before they can."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aimnet2mult import AIMNet2MultCalculator
from aimnet2mult.errors import ModelFileError
from aimnet2mult.models.files import load_potential
from aimnet2mult.models.foreign import load_aimnet2_weights

REFUSED = "holds code that would run while it is loaded"


class Writer(torch.nn.Module):
    """Writes a file when it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return (self.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.training = state[1]
        torch.save(torch.ones(3), "written_at_loading")
        self.weight = state[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Something."""
        return x + self.weight


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.jit.save(torch.jit.script(Writer()), tmp_path / "trap.jpt")
    return tmp_path / "trap.jpt"


def test_the_trap_works(trap: Path) -> None:
    torch.jit.load(trap)
    assert Path("written_at_loading").exists()


@pytest.mark.parametrize("load", [load_aimnet2_weights, lambda path: AIMNet2MultCalculator(path, device="cpu")])
def test_a_strange_file_runs_nothing(trap: Path, load: Callable[[Path], object]) -> None:
    with pytest.raises(ModelFileError, match=REFUSED):
        load(trap)
    assert not Path("written_at_loading").exists()


def test_a_file_with_our_metadata_runs_nothing(trap: Path, potential_file: Path, tmp_path: Path) -> None:
    """The metadata of a true potential, put into the archive of the trap."""
    mixed = tmp_path / "mixed.jpt"
    shutil.copy(trap, mixed)
    with zipfile.ZipFile(potential_file) as true, zipfile.ZipFile(mixed, "a") as archive:
        (name,) = [n for n in true.namelist() if n.endswith("/extra/metadata.json")]
        folder = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{folder}/extra/metadata.json", true.read(name))
    with pytest.raises(ModelFileError, match=REFUSED):
        load_potential(mixed)
    assert not Path("written_at_loading").exists()
