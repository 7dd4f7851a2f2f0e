"""The code blocks of the user guide run as they stand, one after the other."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import suites
import torch
from conftest import FIDELITIES, write_fidelity

import aimnet2mult

GUIDE = Path(aimnet2mult.__file__).parent.parent / "docs" / "user_guide.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.filterwarnings(
    "ignore:.*forces of .* are not small", "ignore:.*modes? is imaginary", "ignore:.*modes are imaginary"
)
@pytest.mark.filterwarnings("ignore:Use thermalize_momenta")  # which older versions of ASE do not have
def test_the_guide_runs(potential_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "compiled").mkdir()
    for file in potential_file.parent.glob("model_fid?.jpt"):
        shutil.copy(file, tmp_path / "compiled")
    (tmp_path / "committee").mkdir()
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        network = suites.perturbed(suites.network(num_fidelities=2), seed, 0.01)
        write_fidelity(network, FIDELITIES[0], tmp_path / "committee" / f"model_{name}")
    monkeypatch.chdir(tmp_path)
    assert len(BLOCKS) == GUIDE.read_text(encoding="utf-8").count("```python")
    scope: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, str(GUIDE), "exec"), scope)
