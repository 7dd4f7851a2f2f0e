"""The official AIMNet2 package.

Settings that its documentation recommends for speed: the current model format (.pt), parameters without gradients (its
default), several molecules in one call in the flat format. The threshold of its all-pairs mode plays no part on a CPU,
where it always makes neighbour lists. ``torch.compile`` is a program of its own here, `aimnet_compiled`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from peers.base import Evaluate, Evaluated, NotOfferedError, Program, Settings, TrainingTask

ELEMENTS = (1, 5, 6, 7, 8, 9, 14, 15, 16, 17, 33, 34, 35, 53)  # that the published networks were trained on


class Adapter(Program):
    """`AIMNet2ASE` and `AIMNet2Calculator` of the published weights, exported with the package's own command."""

    title = "aimnet 0.2.5"
    requirements = (("torch==2.13.0",), ("aimnet[ase,train]==0.2.5",))
    imports = "from aimnet.calculators import AIMNet2ASE, AIMNet2Calculator"
    options: dict[str, Any] = {}  # noqa: RUF012 - further ones of AIMNet2Calculator

    def model_file(self, published: Path, folder: Path) -> Path:
        import torch

        weights, energies, model = folder / "weights.pt", folder / "sae.yaml", folder / "model.pt"
        state = torch.jit.load(str(published)).state_dict()
        own = {name.removeprefix("module."): value for name, value in state.items()}
        # Coulomb and D3 terms are added by its calculator
        torch.save({k: v for k, v in own.items() if not k.startswith(("outputs.lrcoulomb", "outputs.d3bj"))}, weights)
        # self-atomic energies are among the weights already
        energies.write_text("".join(f"{z}: 0.0\n" for z in ELEMENTS), encoding="utf-8")
        definition = _inside("models", "aimnet2_dftd3_wb97m.yaml")
        command = [str(Path(sys.executable).with_name("aimnet")), "export", str(weights), str(model)]
        subprocess.run([*command, "--model", definition, "--sae", str(energies)], check=True, stdout=sys.stderr)
        return model

    def calculator(self, model: Path, settings: Settings) -> Any:
        from aimnet.calculators import AIMNet2ASE

        return AIMNet2ASE(self._base(model, settings))

    def evaluate(self, model: Path, settings: Settings) -> Evaluate:
        base = self._base(model, settings)
        return lambda structures: _evaluate(base, structures)

    def train(self, task: TrainingTask, steps: int) -> None:
        _train(task, steps)

    def _base(self, model: Path, settings: Settings) -> Any:
        from aimnet.calculators import AIMNet2Calculator

        without = {} if settings.dispersion else {"needs_dispersion": False}
        base = AIMNet2Calculator(str(model), device="cpu", **without, **self.options)
        if settings.coulomb == "dsf":
            base.set_lrcoulomb_method("dsf", cutoff=15.0, dsf_alpha=0.2)
        else:
            base.set_lrcoulomb_method(settings.coulomb)
        return base


def _evaluate(base: Any, structures: Sequence[Atoms]) -> list[Evaluated]:
    import torch

    sizes = torch.tensor([len(atoms) for atoms in structures])
    found = base(
        {
            "coord": torch.tensor(np.concatenate([atoms.positions for atoms in structures]), dtype=torch.float32),
            "numbers": torch.tensor(np.concatenate([atoms.numbers for atoms in structures])),
            "charge": torch.zeros(len(structures)),
            "mol_idx": torch.repeat_interleave(torch.arange(len(structures)), sizes),
        },
        forces=True,
    )
    energies = found["energy"].detach().tolist()
    forces = np.split(found["forces"].detach().double().numpy(), sizes.cumsum(0)[:-1].tolist())
    return [Evaluated(energy, part) for energy, part in zip(energies, forces, strict=True)]


def _train(task: TrainingTask, steps: int) -> None:
    """Steps of the trainer behind ``aimnet train``, with its default settings but for data and labels."""
    import aimnet.train.utils as parts
    from omegaconf import OmegaConf

    if task.fidelities != 1:
        raise NotOfferedError("it knows one fidelity")
    config = OmegaConf.merge(OmegaConf.load(_inside("train", "default_train.yaml")), _training_settings(task, steps))
    definition = OmegaConf.load(_inside("models", "aimnet2.yaml"))
    definition.kwargs.num_charge_channels = 2
    model = parts.build_model(definition, forces=True)
    optimizer, loss = parts.get_optimizer(model, config.optimizer), parts.get_loss(config.loss)
    loader, _ = parts.get_loaders(config.data)
    trainer = parts.default_trainer(model, optimizer, loss, device="cpu")
    trainer.run(loader, max_epochs=1, epoch_length=steps)


def _training_settings(task: TrainingTask, steps: int) -> dict[str, Any]:
    energies = task.folder / "sae.yaml"
    energies.write_text("1: -16.0\n6: -1035.0\n7: -1489.0\n8: -2045.0\n", encoding="utf-8")
    spin = {
        "fn": "aimnet.train.loss.peratom_loss_fn",
        "weight": 0.05,
        "kwargs": {"key_true": "spin_charges", "key_pred": "spin_charges"},
    }
    # it has no masks for labels: molecules with energies only cost as much as those with all labels, so all have them
    return {
        "run_name": "speed",
        "data": {
            "train": str(task.labelled),
            "sae": {"energy": {"file": str(energies)}},
            "x": ["coord", "numbers", "charge", "mult"],
            "y": ["energy", "forces", "charges", "spin_charges"],
            "samplers": {"train": {"kwargs": {"batch_size": task.batch, "batches_per_epoch": steps}}},
        },
        "loss": {"kwargs": {"components": {"spin_charges": spin}}},
    }


def _inside(*names: str) -> str:
    from importlib.resources import files

    return str(files("aimnet").joinpath(*names))
