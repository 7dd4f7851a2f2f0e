"""Command line of ``python -m aimnet2mult.training``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from aimnet2mult.errors import ConfigError
from aimnet2mult.training.interrupt import AGAIN, exit_code


def build_parser(prog: str = "python -m aimnet2mult.training") -> argparse.ArgumentParser:
    """Arguments of the training command."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Train a multi-fidelity AIMNet2 potential from a YAML file and compile every fidelity. "
        "A run that was cut off goes on where it stopped.",
        epilog="Overrides change single settings: trainer.epochs=5 data.y='[energy, forces]'. "
        "Exit codes: 0 done, 2 an error, 130 and 143 stopped by Ctrl-C and SIGTERM.",
    )
    parser.add_argument("config", type=Path, help="train.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings to change")
    parser.add_argument("--model", type=Path, help="model.yaml, instead of the one that train.yaml names")
    parser.add_argument("--load", type=Path, help="weights (.pt) to start from")
    parser.add_argument("--save", type=Path, help="another place for a copy of the trained weights (.pt)")
    parser.add_argument("--dry-run", action="store_true", help="go through all stages with two batches, leave nothing")
    parser.add_argument("--fresh", action="store_true", help="start anew, even when the run folder holds a checkpoint")
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on from a checkpoint with another learning rate or other settings of how the weights move",
    )
    parser.add_argument(
        "--allow-import",
        action="append",
        default=[],
        metavar="MODULE",
        help="import this module of yours, so that class paths in train.yaml may name its losses and optimisers; "
        "may be given more than once",
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "python -m aimnet2mult.training") -> int:
    """Run the command; returns the exit code."""
    # intermixed: overrides may stand before and after options
    args = build_parser(prog).parse_intermixed_args(argv)
    again = AGAIN.replace("command", "command without --fresh") if args.fresh else AGAIN
    return exit_code(lambda: _train(args), again)


def _train(args: argparse.Namespace) -> None:
    # here, so that Ctrl-C while torch is being imported ends in a sentence too
    from aimnet2mult.configs.train import load_train_config
    from aimnet2mult.configs.yaml_lines import located
    from aimnet2mult.training.run import train

    if wrong := [text for text in args.overrides if "=" not in text]:
        raise ConfigError(f"'{wrong[0]}' is neither an option nor an override of the form key.sub=value")
    overrides = list(args.overrides)
    if args.model is not None:
        overrides.append(f"model={str(args.model.resolve())!r}")
    config = load_train_config(args.config, overrides)
    with located(args.config, overrides):
        train(config, args.load, args.save, args.dry_run, args.fresh, args.accept_changes, args.allow_import)
