"""The model card: what a run made, from what, and how good it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from ase.data import chemical_symbols

from aimnet2mult.configs.metadata import FidelityInfo
from aimnet2mult.configs.train import TrainConfig
from aimnet2mult.training.checkpoints import Progress
from aimnet2mult.training.data import TrainingData
from aimnet2mult.training.metrics import ErrorRow, significant


def model_card(
    config: TrainConfig,
    model: Mapping[str, Any],
    data: TrainingData,
    infos: Sequence[FidelityInfo],
    progress: Progress,
    errors: Mapping[str, Sequence[ErrorRow]],
    compiled: Mapping[int, Path],
    provenance: Mapping[str, str],
    folder: Path,
) -> str:
    """Text of ``model_card.md``.

    Parameters
    ----------
    config, model
        Settings of training and network.
    data
        What was trained on.
    infos
        What the network knows of each fidelity.
    progress
        Where training ended.
    errors
        Errors by name of the set (validation, test).
    compiled
        Model files by fidelity.
    provenance
        Versions and times.
    folder
        Run folder; files are listed relative to it.
    """
    sections = [
        f"# {config.run.name}",
        "Multi-fidelity AIMNet2 potential, one network for the levels of theory below. Units: eV, Å, e.",
        _facts(progress, provenance),
        "## Levels of theory\n\n" + _fidelities(config, data, infos),
        "## Data\n\n```\n" + data.ledger.format() + "\n```",
        "## Split\n\n" + _split(data),
        "## Self-atomic energies (eV)\n\n" + _self_energies(data),
        "## Errors\n\n" + _errors(errors, infos),
        "## Files\n\n" + _files(compiled, folder),
        "## Use\n\n" + _use(compiled, folder),
        "## Limits\n\nTrust the potential for the elements, charges and kinds of molecules listed above, "
        "and test it on your own before relying on it; energies of different levels of theory are not comparable.",
        "## Settings\n\n```yaml\n" + _yaml(config.model_dump(mode="json", by_alias=True)) + "```",
        "## Architecture\n\n```yaml\n" + _yaml(dict(model)) + "```",
    ]
    return "\n\n".join(sections) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _facts(progress: Progress, provenance: Mapping[str, str]) -> str:
    rows: list[tuple[str, object]] = [
        ("epochs", progress.epoch),
        ("training time", f"{progress.seconds / 60:.1f} min"),
        *((key.replace("_", " "), value) for key, value in provenance.items()),
    ]
    return table(("", ""), rows)


def _fidelities(config: TrainConfig, data: TrainingData, infos: Sequence[FidelityInfo]) -> str:
    shares = data.sampler.requested_shares
    rows = [
        (
            info.index,
            info.name,
            info.level_of_theory or "",
            " ".join(chemical_symbols[z] for z in info.elements),
            ", ".join(info.labels),
            "in the labels" if info.labels_include_dispersion else "not in the labels",
            f"{100 * shares[info.index]:.1f} %",
            ", ".join(path.name for path in config.data.fidelities[info.index].files),
        )
        for info in infos
    ]
    text = table(("", "name", "level", "elements", "labels", "dispersion", "share of draws", "files"), rows)
    for info in infos:
        if shares[info.index] == 0:
            text += f"\n\nFidelity {info.index} ({info.name}) was never drawn: it learnt nothing and has no model file."
    return text


def _split(data: TrainingData) -> str:
    fidelity, keys = data.dataset.fidelity_of, data.dataset.molecule_key_of
    rows = []
    for side, indices in data.split._asdict().items():
        counts = [int((fidelity[indices] == index).sum()) for index in sorted(data.sae)]
        rows.append((side, *counts, len(set(keys[indices].tolist()))))
    head = ("set", *(f"samples of fidelity {index}" for index in sorted(data.sae)), "molecules")
    return "All geometries of a molecule are in one set.\n\n" + table(head, rows)


def _self_energies(data: TrainingData) -> str:
    elements = sorted({z for values in data.sae.values() for z in values})
    rows = [
        (chemical_symbols[z], *(f"{values[z]:.6f}" if z in values else "" for values in data.sae.values()))
        for z in elements
    ]
    return table(("", *(f"fidelity {index}" for index in data.sae)), rows)


def _errors(errors: Mapping[str, Sequence[ErrorRow]], infos: Sequence[FidelityInfo]) -> str:
    names = {info.index: info.name for info in infos}
    rows = [
        (
            subset,
            names[r.fidelity],
            r.quantity.label,
            significant(r.mae),
            significant(r.rmse),
            r.quantity.unit,
            r.values,
        )
        for subset, found in errors.items()
        for r in found
    ]
    if not rows:
        return "No molecules were held back."
    return table(("set", "fidelity", "label", "MAE", "RMSE", "unit", "values"), rows)


def _files(compiled: Mapping[int, Path], folder: Path) -> str:
    rows = [
        ("model.pt", "weights of all fidelities (running mean)"),
        *((path.relative_to(folder), f"model file of fidelity {index}") for index, path in compiled.items()),
        ("sae_fid*.yaml", "self-atomic energies"),
        ("split.yaml", "which molecules were held back"),
        ("errors.csv", "the table of errors"),
        ("logs/metrics.csv", "all numbers per epoch"),
        ("plots/", "parity plots and learning curves"),
    ]
    return table(("file", "content"), rows)


def _use(compiled: Mapping[int, Path], folder: Path) -> str:
    if not compiled:
        return "Compile a fidelity with `python -m aimnet2mult.training.compile`, then use the model file in ASE."
    path = next(iter(compiled.values())).relative_to(folder)
    return (
        "```python\nfrom aimnet2mult import AIMNet2MultCalculator\n\n"
        f'atoms.calc = AIMNet2MultCalculator("{path}")\nenergy = atoms.get_potential_energy()  # eV\n```'
    )


def _yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=120)
