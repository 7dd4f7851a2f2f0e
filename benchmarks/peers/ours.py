"""This package, through its public names."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ase import Atoms

from peers.base import Evaluate, Evaluated, Program, Settings, TrainingTask

# prefixes of the compiled files
WITHOUT_D3 = "without_d3"
WITH_D3 = "with_d3"


class Adapter(Program):
    """`AIMNet2MultCalculator` of the published file; without D3, of the same weights imported and compiled again."""

    title = "aimnet2mult"
    imports = "from aimnet2mult import AIMNet2MultCalculator"
    chunks = (1_000_000,)  # it makes its own batches

    def model_file(self, published: Path, folder: Path) -> Path:
        from aimnet2mult import compile_potential
        from aimnet2mult.configs.dispersion import DispersionSettings

        if find_spec("numba") is not None:
            _verb("kernels")  # compiled once per machine; until they are, the calculator takes its slower way
        imported = folder / "imported"
        _verb("import", str(published), str(imported))
        d3 = DispersionSettings(method="d3bj", functional="wb97m")
        for prefix, dispersion in ((WITHOUT_D3, None), (WITH_D3, d3)):
            weights, sae = imported / "model.pt", imported / "sae_fid0.yaml"
            compile_potential(weights, folder / prefix, 0, sae, dispersion=dispersion)
        return Path(shutil.copy(published, folder / "published.jpt"))

    def first_files(self, model: Path) -> dict[str, Path]:
        return {"": _compiled(model, WITH_D3), "the published file": model}

    def calculator(self, model: Path, settings: Settings) -> Any:
        from aimnet2mult import AIMNet2MultCalculator

        file = model if settings.dispersion else _compiled(model, WITHOUT_D3)
        return AIMNet2MultCalculator(file, device="cpu", coulomb=settings.coulomb)

    def evaluate(self, model: Path, settings: Settings) -> Evaluate:
        calculator = self.calculator(model, settings)

        def evaluate(structures: Sequence[Atoms]) -> list[Evaluated]:
            return [Evaluated(found.energy, found.forces) for found in calculator.evaluate(structures)]

        return evaluate

    def train(self, task: TrainingTask, steps: int) -> None:
        from aimnet2mult.configs.train import load_train_config
        from aimnet2mult.training.run import train

        train(load_train_config(_settings_file(task, steps)), fresh=True)


def _compiled(model: Path, prefix: str) -> Path:
    return model.with_name(f"{prefix}_fid0.jpt")


def _verb(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "aimnet2mult.cli.main", *arguments], check=True, stdout=sys.stderr)


def _settings_file(task: TrainingTask, steps: int) -> Path:
    """`train.yaml` and `model.yaml` of the package with these data, the same for each fidelity."""
    from importlib.resources import files

    import yaml

    defaults = files("aimnet2mult.configs")
    model = yaml.safe_load((defaults / "model.yaml").read_text(encoding="utf-8"))
    model["kwargs"]["num_fidelities"] = task.fidelities
    (task.folder / "model.yaml").write_text(yaml.safe_dump(model), encoding="utf-8")
    config = yaml.safe_load((defaults / "train.yaml").read_text(encoding="utf-8"))
    data = config["data"]
    data["fidelities"] = {i: {"name": f"level {i}", "files": _copies(task, i)} for i in range(task.fidelities)}
    data["fidelity_weights"] = None
    data["val_fraction"] = 0.0
    data["samplers"]["train"] |= {"batch_size": task.batch, "batches_per_epoch": steps}
    config |= {"model": "model.yaml", "compile": {"enabled": False}}
    config["run"] |= {"folder": str(task.folder.resolve()), "device": "cpu"}
    config["trainer"]["epochs"] = 1
    config["logging"] = {"tensorboard": False, "plots": False}
    path = task.folder / "train.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def _copies(task: TrainingTask, fidelity: int) -> list[str]:
    """The data files once more, since a file belongs to one fidelity only."""
    sources = [path for path in (task.labelled, task.energy_only) if path is not None]
    return [str(shutil.copy(path, task.folder.resolve() / f"{path.stem}_{fidelity}.h5")) for path in sources]
