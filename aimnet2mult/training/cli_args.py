"""Command line of ``python -m aimnet2mult.training``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from aimnet2mult.configs.train import load_train_config
from aimnet2mult.errors import AIMNet2MultError, ConfigError
from aimnet2mult.training.interrupt import StoppedError
from aimnet2mult.training.run import train


def build_parser(prog: str = "python -m aimnet2mult.training") -> argparse.ArgumentParser:
    """Arguments of the training command."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Train a multi-fidelity AIMNet2 potential from a YAML file and compile every fidelity. "
        "A run that was cut off goes on where it stopped.",
        epilog="Overrides change single settings: trainer.epochs=5 data.y='[energy, forces]'",
    )
    parser.add_argument("config", type=Path, help="train.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings to change")
    parser.add_argument("--model", type=Path, help="model.yaml, instead of the one that train.yaml names")
    parser.add_argument("--load", type=Path, help="weights (.pt) to start from")
    parser.add_argument("--save", type=Path, help="another place for a copy of the trained weights (.pt)")
    parser.add_argument("--dry-run", action="store_true", help="go through all stages with two batches, leave nothing")
    parser.add_argument("--fresh", action="store_true", help="start anew, even when the run folder holds a checkpoint")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "python -m aimnet2mult.training") -> int:
    """Run the command; returns the exit code."""
    # intermixed: overrides may stand before and after options
    args = build_parser(prog).parse_intermixed_args(argv)
    try:
        if wrong := [text for text in args.overrides if "=" not in text]:
            raise ConfigError(f"'{wrong[0]}' is neither an option nor an override of the form key.sub=value")
        overrides = list(args.overrides)
        if args.model is not None:
            overrides.append(f"model={str(args.model.resolve())!r}")
        config = load_train_config(args.config, overrides)
        train(config, args.load, args.save, args.dry_run, args.fresh)
    except AIMNet2MultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StoppedError as stopped:
        print(f"{stopped}; run the same command again to go on", file=sys.stderr)
        return 128 + stopped.signum
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on from the last checkpoint", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0
