"""The ``aimnet2mult`` command: thin verbs over the rooms of the package."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from aimnet2mult import __version__
from aimnet2mult.training.interrupt import REPEAT, exit_code

Verb = Callable[[Sequence[str]], int]


def _train(argv: Sequence[str]) -> int:
    from aimnet2mult.training.cli_args import main

    return main(argv, prog="aimnet2mult train")


def _sae(argv: Sequence[str]) -> int:
    from aimnet2mult.training.calc_sae import main

    return main(argv)


def _compile(argv: Sequence[str]) -> int:
    from aimnet2mult.training.compile import main

    return main(argv)


def _check(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="aimnet2mult check", description="Check the data of a train.yaml.")
    parser.add_argument("config", type=Path, help="train.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings to change")
    args = parser.parse_args(argv)
    from aimnet2mult.configs.train import load_train_config
    from aimnet2mult.training.data import check_data
    from aimnet2mult.training.logs import RunLog

    check_data(load_train_config(args.config, args.overrides).data, RunLog(None))
    return 0


def _info(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="aimnet2mult info", description="Say what a model file holds.")
    parser.add_argument("file", type=Path, help="compiled potential (.jpt) or weights (.pt)")
    args = parser.parse_args(argv)
    import yaml

    from aimnet2mult.models.files import load_weights, read_metadata
    from aimnet2mult.models.foreign_file import is_foreign

    if is_foreign(args.file):
        from aimnet2mult.models.foreign import load_aimnet2_weights

        content = load_aimnet2_weights(args.file).metadata().model_dump(mode="json")
    elif args.file.suffix == ".pt":
        weights = load_weights(args.file)
        content = {
            "fidelities": [info.model_dump() for info in weights.fidelities],
            "parameters": sum(value.numel() for value in weights.state.values()),
            "provenance": weights.provenance,
            "model": weights.config.to_dict(),
        }
    else:
        content = read_metadata(args.file).model_dump(mode="json")
    print(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120), end="")
    return 0


def _import(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="aimnet2mult import",
        description="Turn a published AIMNet2 file into weights to go on training from.",
    )
    parser.add_argument("file", type=Path, help="published AIMNet2 model (.jpt)")
    parser.add_argument("folder", type=Path, help="where the three files go")
    parser.add_argument("--member", type=int, default=0, help="which network of an ensemble (default 0)")
    args = parser.parse_args(argv)
    import yaml

    from aimnet2mult.datasets.sae_file import write_sae
    from aimnet2mult.files import atomic_write_text
    from aimnet2mult.models.foreign import import_weights

    model = import_weights(args.file, args.folder / "model.pt", args.member)
    text = yaml.safe_dump(model.network.config.to_dict(), sort_keys=False, default_flow_style=None, width=120)
    atomic_write_text(args.folder / "model.yaml", text)
    write_sae(args.folder / "sae_fid0.yaml", model.sae, f"atomic shifts of {args.file.name}, network {args.member}")
    level = model.fidelity.level_of_theory or "of a level that the file does not name"
    print(f"{args.folder}/: model.pt, model.yaml, sae_fid0.yaml; labels to train on: {level}, without dispersion")
    return 0


def _kernels(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="aimnet2mult kernels",
        description="Compile the fast kernels for this machine now, which otherwise happens in the background.",
    )
    parser.parse_args(argv)
    from importlib.util import find_spec

    from aimnet2mult.errors import InputError

    if find_spec("numba") is None:
        raise InputError('the fast kernels need the package numba; install it with: pip install "aimnet2mult[fast]"')
    from aimnet2mult.engine.warmup import compile_kernels

    try:
        folder = compile_kernels(lambda line: print(line, flush=True))
    except OSError as error:
        raise InputError(f"{error}; set NUMBA_CACHE_DIR to a folder that can be written") from None
    print(f"the fast kernels for this machine are in {folder}")
    return 0


VERBS: dict[str, tuple[Verb, str]] = {
    "train": (_train, "train from a train.yaml and compile every fidelity"),
    "sae": (_sae, "fit self-atomic energies to HDF5 data"),
    "check": (_check, "check the data of a train.yaml and print the ledger of labels"),
    "compile": (_compile, "compile one fidelity of trained weights"),
    "import": (_import, "turn a published AIMNet2 file into weights to go on training from"),
    "kernels": (_kernels, "compile the fast kernels for this machine now"),
    "info": (_info, "print what a model file (.jpt or .pt) holds"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``aimnet2mult VERB ...``; returns the exit code."""
    verbs = "\n".join(f"  {name:<9}{text}" for name, (_, text) in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="aimnet2mult",
        description=f"Multi-fidelity AIMNet2 potentials.\n\nverbs:\n{verbs}",
        epilog="aimnet2mult VERB --help says more",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"aimnet2mult {__version__}")
    parser.add_argument("verb", choices=list(VERBS), metavar="VERB", help="what to do")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="arguments of the verb")
    args = parser.parse_args(argv)
    return exit_code(lambda: VERBS[args.verb][0](args.rest), REPEAT)


if __name__ == "__main__":
    sys.exit(main())
