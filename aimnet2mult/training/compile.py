"""``python -m aimnet2mult.training.compile``: weights -> one TorchScript file per fidelity."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from ase.data import chemical_symbols

from aimnet2mult.configs.dispersion import DispersionSettings
from aimnet2mult.configs.metadata import FidelityInfo, PotentialMetadata
from aimnet2mult.configs.model import load_model_config
from aimnet2mult.configs.yaml_io import validated
from aimnet2mult.datasets.sae import check_sae_covers
from aimnet2mult.datasets.sae_file import read_sae
from aimnet2mult.errors import ConfigError, DataError, ModelFileError
from aimnet2mult.files import atomic_path
from aimnet2mult.models.files import (
    Weights,
    fill_network,
    load_potential,
    load_weights,
    script_potential,
    write_potential,
)
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.models.novelty import Novelty
from aimnet2mult.models.potential import Potential, SelfAtomicEnergy
from aimnet2mult.training.dispersion import DispersionTerm, dispersion_term
from aimnet2mult.training.interrupt import REPEAT, exit_code
from aimnet2mult.training.provenance import provenance
from aimnet2mult.training.selftest import SelfTestReport, run_selftest

_SAME_SAE = 1e-6  # eV; files may round


def compile_potential(
    weights: str | Path,
    output: str | Path,
    fidelity: int,
    sae: str | Path,
    *,
    model: str | Path | None = None,
    dispersion: DispersionSettings | None = None,
) -> Path:
    """Compile one fidelity of a trained network into ``<output>_fid<fidelity>.jpt``.

    Parameters
    ----------
    weights
        ``model.pt`` of a training run.
    output
        Prefix of the file to write; an existing file is replaced whole or not at all.
    fidelity
        Which fidelity to compile.
    sae
        YAML of the self-atomic energies (eV) that were removed from this fidelity's labels in training.
    model
        ``model.yaml`` that the weights must fit; by default the configuration inside the weights file.
    dispersion
        The correction to build in, for example ``DispersionSettings(method="d4", functional="pbe0")``.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ConfigError
        `output` is no prefix, the fidelity does not exist, the functional is not known, or dispersion would be
        counted twice.
    ModelFileError
        The weights cannot be used, or the self-test fails; nothing is written.
    DataError
        The self-atomic energies cannot be read, miss an element, or are not those of training.
    """
    if not Path(output).name or str(output).endswith(("/", ".jpt")):
        raise ConfigError(
            f"--output is the start of the file name, such as compiled/model for compiled/model_fid{fidelity}.jpt, "
            f"not '{output}'"
        )
    trained = load_weights(weights)
    network = _network(trained, model).at_fidelity(fidelity).eval()
    info = _fidelity_info(trained, fidelity, weights)
    values = read_sae(sae)
    check_sae_covers(values, info.elements, f"{fidelity} '{info.name}'", str(sae))
    correction = dispersion_term(dispersion or DispersionSettings(), info)

    _check_sae(trained, info, values, sae)
    known = {z: values[z] for z in info.elements}
    terms = [] if correction is None else [correction.term]
    seen = trained.novelty.get(fidelity)
    novelty = None if seen is None else Novelty(seen)
    potential = Potential(network, SelfAtomicEnergy(known), terms, novelty).eval()
    metadata = PotentialMetadata(
        fidelity=info,
        all_fidelities=trained.fidelities,
        sae={chemical_symbols[z]: energy for z, energy in known.items()},
        dispersion=None if correction is None else correction.info,
        cutoff=network.config.kwargs.aev.rc_s,
        num_charge_channels=network.config.kwargs.num_charge_channels,
        model=network.config.to_dict(),
        provenance={**{f"training_{k}": v for k, v in trained.provenance.items()}, **provenance()},
    )
    path = Path(f"{output}_fid{fidelity}.jpt")
    try:
        with atomic_path(path) as temporary:
            write_potential(temporary, script_potential(potential), metadata)
            report = _test_file(temporary, potential, correction, metadata)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be written ({error.strerror}); choose another --output") from None
    print(f"{path}: {_summary(metadata)}; self-test: {report.format()}")
    return path


def _network(trained: Weights, model: str | Path | None) -> MultiFidelityNetwork:
    if model is None:
        return trained.build()
    config = load_model_config(model)
    if config != trained.config:
        network = fill_network(MultiFidelityNetwork(config), trained.state)  # names the shapes that differ
        raise ModelFileError(
            f"{model} is not the configuration of these weights, though all {len(network.state_dict())} shapes fit; "
            "give the model.yaml of the training run, or leave --model out"
        )
    return trained.build()


def _fidelity_info(trained: Weights, fidelity: int, weights: str | Path) -> FidelityInfo:
    for info in trained.fidelities:
        if info.index == fidelity:
            return info
    raise ModelFileError(f"{weights} holds no description of fidelity {fidelity}; train again with this version")


def _check_sae(trained: Weights, info: FidelityInfo, values: Mapping[int, float], source: str | Path) -> None:
    """Refuse self-atomic energies that are not those of training: every energy would be off by the difference."""
    known = trained.sae.get(info.index, {})
    for z in info.elements:
        if z in known and abs(values[z] - known[z]) > _SAME_SAE:
            raise DataError(
                f"{source}: {chemical_symbols[z]} is {values[z]:.6f} eV, but fidelity {info.index} '{info.name}' was "
                f"trained with {known[z]:.6f} eV; give the sae_fid{info.index}.yaml of the training run"
            )


def _test_file(
    path: Path, potential: Potential, correction: DispersionTerm | None, metadata: PotentialMetadata
) -> SelfTestReport:
    scripted = load_potential(path).module.to(torch.float64)
    # the optimising executor compiles anew for each new shape: seconds each for a handful of evaluations
    with torch.jit.optimized_execution(False):
        return run_selftest(scripted, potential.to(torch.float64), correction, metadata.fidelity.elements)


def _summary(metadata: PotentialMetadata) -> str:
    info = metadata.dispersion
    if info is None:
        added = "no dispersion added"
    else:
        values = ", ".join(f"{name} {getattr(info, name)}" for name in ("s6", "s8", "s9", "a1", "a2"))
        added = f"{info.label} {info.functional} ({values})"
    return f"fidelity {metadata.fidelity.index} '{metadata.fidelity.name}', elements {' '.join(metadata.sae)}, {added}"


def build_parser() -> argparse.ArgumentParser:
    """Command-line arguments of ``python -m aimnet2mult.training.compile``."""
    parser = argparse.ArgumentParser(prog="python -m aimnet2mult.training.compile", description=__doc__)
    parser.add_argument("--weights", required=True, help="model.pt of a training run")
    parser.add_argument("--model", help="model.yaml that the weights must fit (default: the one inside the weights)")
    parser.add_argument("--output", required=True, help="prefix: writes <output>_fid<N>.jpt")
    parser.add_argument("--fidelity", required=True, type=int, help="which fidelity to compile")
    parser.add_argument("--sae", required=True, help="YAML with the self-atomic energies of this fidelity (eV)")
    parser.add_argument(
        "--dispersion", dest="method", choices=("none", "d3bj", "d4"), default="none", help="correction to build in"
    )
    for name, field in DispersionSettings.model_fields.items():
        if name != "method":
            kind = str if name in ("functional", "charges") else float
            flag = f"--dispersion-{name.replace('_', '-')}"
            choices = ("eeq", "network") if name == "charges" else None
            parser.add_argument(flag, dest=name, type=kind, choices=choices, help=field.description)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse_args(argv)
    return exit_code(lambda: _compile(args), REPEAT)


def _compile(args: argparse.Namespace) -> None:
    asked = {name: getattr(args, name) for name in DispersionSettings.model_fields}
    chosen = {name: value for name, value in asked.items() if value is not None}
    dispersion = validated(DispersionSettings, chosen, "--dispersion")
    compile_potential(args.weights, args.output, args.fidelity, args.sae, model=args.model, dispersion=dispersion)


if __name__ == "__main__":
    sys.exit(main())
