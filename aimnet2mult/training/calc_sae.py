"""Fit self-atomic energies: ``python -m aimnet2mult.training.calc_sae data.h5 [more.h5 ...] sae.yaml``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from aimnet2mult.datasets.reader import FidelitySource, MultiFidelityDataset
from aimnet2mult.datasets.sae import SAEFit, fit_sae, write_sae
from aimnet2mult.errors import ConfigError
from aimnet2mult.training.interrupt import REPEAT, exit_code

_HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf", ".he5")


def calc_sae(files: Sequence[Path], output: Path, on_bad_rows: str = "error") -> SAEFit:
    """Fit self-atomic energies to the energies in `files`, print the statistics, and write `output`.

    Raises
    ------
    ConfigError
        The output looks like a data file, or cannot be written.
    DataError
        A data file cannot be used.
    """
    if output.suffix.lower() in _HDF5_SUFFIXES:
        raise ConfigError(f"{output} looks like a data file; the last argument is the YAML file to write")
    source = FidelitySource(0, "data", tuple(files))
    dataset = MultiFidelityDataset({0: source}, ("energy",), on_bad_rows, cache_mb=0)
    fit = fit_sae(dataset.compositions(0))
    for reason, count in dataset.counts[0].bad.items():
        print(f"left out, {reason}: {count:,}")
    print(fit.format({index: dataset.name_of(index) for index, _ in fit.outliers}))
    for warning in (*dataset.notes, *fit.warnings):
        print(f"warning: {warning}", file=sys.stderr)
    try:
        write_sae(output, fit.values, f"fitted to {', '.join(path.name for path in files)}: {fit.samples} samples")
    except OSError as error:
        raise ConfigError(f"{output} cannot be written ({error.strerror or error}); choose another place") from None
    print(f"wrote {output}")
    return fit


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m aimnet2mult.training.calc_sae", description="Fit self-atomic energies (eV) to HDF5 data."
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="data.h5", help="data files of one fidelity")
    parser.add_argument("output", type=Path, metavar="sae.yaml", help="YAML file to write")
    parser.add_argument(
        "--on-bad-rows",
        choices=("error", "skip"),
        default="error",
        help="molecules with unusable values: stop or leave out",
    )
    arguments = parser.parse_args(argv)

    def work() -> None:
        calc_sae(arguments.files, arguments.output, arguments.on_bad_rows)

    return exit_code(work, REPEAT)


if __name__ == "__main__":
    sys.exit(main())
