"""What a run writes while it goes: terminal, run.log, metrics.csv, TensorBoard, Weights & Biases."""

from __future__ import annotations

import csv
import importlib.util
import io
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from aimnet2mult.configs.train import LoggingSettings, TrainConfig
from aimnet2mult.errors import ConfigError, TrainingError
from aimnet2mult.files import atomic_write_bytes, atomic_write_text
from aimnet2mult.training.checkpoints import Progress
from aimnet2mult.training.evaluate import Evaluation
from aimnet2mult.training.metrics import QUANTITIES, significant


class RunLog:
    """Lines for the terminal and for ``run.log``.

    Parameters
    ----------
    path
        File that lines are added to; None: terminal only.
    quiet
        Write nothing at all (processes other than the first).
    """

    def __init__(self, path: Path | None, quiet: bool = False) -> None:
        self.quiet = quiet
        self.path = None if quiet else path
        self.terminal = True
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise unwritable(self.path, error) from None
        self._opened = self.length() or 0

    def line(self, text: str = "") -> None:
        """Write one line, or several, above the progress bar.

        Raises
        ------
        TrainingError
            The file cannot be written.
        """
        if self.quiet:
            return
        if self.terminal:
            try:
                tqdm.write(text, file=sys.stdout)
                sys.stdout.flush()
            except OSError:  # a closed terminal or pipe is no reason to lose a run
                self.terminal = False
        if self.path is not None:
            try:
                with self.path.open("a", encoding="utf-8") as stream:
                    stream.write(text + "\n")
            except OSError as error:
                raise unwritable(self.path, error) from None

    def length(self) -> int | None:
        """Bytes in the file; None without one."""
        return self.path.stat().st_size if self.path is not None and self.path.is_file() else None

    def forget(self, kept: int | None) -> None:
        """Take out what a killed run wrote after its last checkpoint: those steps are done, and told, again.

        Parameters
        ----------
        kept
            Length of the file when the checkpoint was written. What this run wrote so far stays.
        """
        if self.path is None or kept is None or kept >= self._opened:
            return
        content = self.path.read_bytes()
        atomic_write_bytes(self.path, content[:kept] + content[self._opened :])
        self._opened = kept


def unwritable(path: Path, error: OSError) -> TrainingError:
    """The error of a run whose files cannot be written."""
    return TrainingError(f"{path}: cannot be written ({error.strerror or error}); mend it and run again")


class MetricsCSV:
    """``metrics.csv``: one row per epoch, the same columns throughout.

    Parameters
    ----------
    path
        The file.
    columns
        Names of the columns; the first is the epoch.
    done
        Rows of later epochs are dropped: they were written by a run that was cut off before its checkpoint.
    """

    def __init__(self, path: Path, columns: Sequence[str], done: int) -> None:
        self.path, self.columns = path, list(columns)
        rows = [row for row in read_metrics(path) if int(row["epoch"]) <= done] if done and path.is_file() else []
        stream = io.StringIO()
        writer = csv.DictWriter(stream, self.columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic_write_text(path, stream.getvalue())

    def add(self, row: Mapping[str, Any]) -> None:
        """Add the row of one epoch."""
        stream = io.StringIO()
        values = {key: f"{value:.8g}" if isinstance(value, float) else value for key, value in row.items()}
        csv.DictWriter(stream, self.columns, restval="", lineterminator="\n").writerow(values)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(stream.getvalue())
        except OSError as error:
            raise unwritable(self.path, error) from None


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Rows of ``metrics.csv``, without a last line that was cut off."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [row for row in rows if row.get("epoch", "").isdigit() and None not in row.values()]


class Trackers:
    """TensorBoard and Weights & Biases, where they are asked for.

    Parameters
    ----------
    settings, config
        What is asked for, and all settings, for the record.
    folder
        Where both keep their files.
    done
        Epochs that are complete: points of later ones, sent by a run that was cut off before its checkpoint, are
        dropped.
    log
        For the lines in the terminal.

    Raises
    ------
    ConfigError
        A package that the settings ask for is not installed.
    """

    def __init__(self, settings: LoggingSettings, config: TrainConfig, folder: Path, done: int, log: RunLog) -> None:
        self._tensorboard: Any = None
        self._wandb: Any = None
        installed = importlib.util.find_spec("tensorboard") is not None
        if settings.tensorboard is True and not installed:
            raise ConfigError("logging.tensorboard: the tensorboard package is not installed; install it or set false")
        if settings.wandb is not None and importlib.util.find_spec("wandb") is None:
            raise ConfigError("logging.wandb: the wandb package is not installed; install it or set null")
        if settings.tensorboard and installed:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)
        if settings.wandb is not None:
            import wandb

            run_id = _wandb_id(folder / "wandb_id", anew=not done)
            self._wandb = wandb.init(
                id=run_id,
                project=settings.wandb.project,
                entity=settings.wandb.entity,
                name=config.run.name,
                dir=str(folder),
                config=config.model_dump(mode="json", by_alias=True),
                resume="allow",
            )
            log.line(f"Weights & Biases: project {settings.wandb.project}")

    def add(self, step: int, row: Mapping[str, Any]) -> None:
        """Send the numbers of one epoch."""
        numbers = {key: float(value) for key, value in row.items() if isinstance(value, int | float)}
        if self._tensorboard is not None:
            for key, value in numbers.items():
                self._tensorboard.add_scalar(key, value, step)
            self._tensorboard.flush()
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def close(self) -> None:
        """Finish writing."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def _wandb_id(path: Path, anew: bool) -> str:
    """Name of the run on Weights & Biases, kept so that a run that goes on adds to the same curves."""
    if anew or not path.is_file():
        atomic_write_text(path, uuid.uuid4().hex[:12])
    return path.read_text(encoding="utf-8").strip()


class EpochLog:
    """What is written at the end of each epoch.

    Parameters
    ----------
    folder
        ``logs`` folder of the run; None: nothing is written (processes other than the first).
    config
        Settings.
    terms
        Names of the loss terms.
    shares
        Requested share of the draws per fidelity.
    log
        For the lines in the terminal.

    Notes
    -----
    `open_trackers` and `open_csv` come before the first `epoch`; the first can fail without harm to older files.
    """

    def __init__(
        self,
        folder: Path | None,
        config: TrainConfig,
        terms: Sequence[str],
        shares: Mapping[int, float],
        log: RunLog,
    ) -> None:
        self.folder, self.config = folder, config
        self.names = {index: fidelity.name for index, fidelity in sorted(config.data.fidelities.items())}
        self.terms, self.shares, self.log = list(terms), dict(shares), log
        self.quantities = [quantity for quantity in QUANTITIES if quantity.label in config.data.y]
        self.lines = 0
        self.csv: MetricsCSV | None = None
        self.trackers: Trackers | None = None

    def length(self) -> int | None:
        """Bytes in ``run.log``; None without one."""
        return self.log.length()

    def open_trackers(self, done: int) -> None:
        """Start TensorBoard and Weights & Biases after `done` epochs; see `Trackers` for the errors."""
        if self.folder is not None:
            self.trackers = Trackers(self.config.logging, self.config, self.folder, done, self.log)

    def open_csv(self, done: int) -> None:
        """Open ``metrics.csv`` with the rows of the `done` epochs that are complete."""
        if self.folder is not None:
            self.csv = MetricsCSV(self.folder / "metrics.csv", self._columns(), done)

    def _columns(self) -> list[str]:
        columns = ["epoch", "steps", "seconds", "learning_rate", "gradient_norm", "train_loss", "val_loss"]
        columns += [f"{side}_{term}" for term in self.terms for side in ("train", "val")]
        for i in self.names:
            columns += [f"share_requested_fid{i}", f"share_realised_fid{i}"]
            columns += [f"val_{q.key}_{metric}_fid{i}" for q in self.quantities for metric in ("mae", "rmse")]
        return columns

    def epoch(
        self,
        progress: Progress,
        sums: Mapping[str, float],
        validation: Evaluation | None,
        rate: float,
        seconds: float,
        better: bool,
    ) -> None:
        """Write the numbers of one epoch everywhere."""
        if self.csv is None:
            return
        row: dict[str, Any] = {
            "epoch": progress.epoch,
            "steps": progress.total_steps,
            "seconds": progress.seconds,
            "learning_rate": rate,
            "gradient_norm": sums["grad_norm"] / sums["steps"],
            "train_loss": sums["loss"] / sums["steps"],
        }
        row |= {f"train_{t}": sums[f"term_{t}"] / sums[f"count_{t}"] for t in self.terms if sums[f"count_{t}"]}
        drawn = sum(sums[f"drawn_{i}"] for i in self.names)
        for i in self.names:
            row[f"share_requested_fid{i}"] = self.shares[i]
            row[f"share_realised_fid{i}"] = sums[f"drawn_{i}"] / drawn
        if validation is not None:
            row["val_loss"] = validation.loss
            row |= {f"val_{term}": value for term, value in validation.components.items()}
            for error in validation.rows:
                row[f"val_{error.quantity.key}_mae_fid{error.fidelity}"] = error.mae
                row[f"val_{error.quantity.key}_rmse_fid{error.fidelity}"] = error.rmse
        self.csv.add(row)
        if self.trackers is not None:
            self.trackers.add(progress.epoch, row)
        self._print(row, seconds, better)

    def _print(self, row: Mapping[str, Any], seconds: float, better: bool) -> None:
        """One line for the terminal, under a head that comes back now and then."""
        shown = [q for q in self.quantities if q.key != "energy_total"]
        symbols = {"energy": "E", "forces": "F", "charges": "q", "spin_charges": "s"}
        blocks: list[tuple[str, list[str], list[str]]] = []
        for i, name in self.names.items():
            present = [q for q in shown if f"val_{q.key}_mae_fid{i}" in row]
            heads = [symbols[q.key] for q in present]
            cells = [significant(float(row[f"val_{q.key}_mae_fid{i}"])) for q in present]
            heads.append("drawn")
            cells.append(f"{100 * float(row[f'share_realised_fid{i}']):.1f}%")
            blocks.append((name, heads, cells))
        if self.lines % 25 == 0:
            units = ", ".join(f"{symbols[q.key]} {q.unit}" for q in shown)
            requested = ", ".join(f"{name} {100 * self.shares[i]:.1f}%" for i, name in self.names.items())
            self.log.line(f"validation MAE: {units}; requested draws: {requested}")
            titles = " | ".join(f"{name[: 8 * len(h)]:^{8 * len(h)}}" for name, h, _ in blocks)
            heads_line = " | ".join("".join(f"{h:>8}" for h in hs) for _, hs, _ in blocks)
            self.log.line(f"{'':>6}{'':>11}{'':>11} | {titles} |")
            self.log.line(f"{'epoch':>6}{'train loss':>11}{'val loss':>11} | {heads_line} | {'rate':>8}{'time':>8}")
        self.lines += 1
        body = " | ".join("".join(f"{c:>8}" for c in cells) for _, _, cells in blocks)
        val = f"{row['val_loss']:.4g}" if "val_loss" in row else "-"
        self.log.line(
            f"{row['epoch']:>6}{row['train_loss']:>11.4g}{val:>11} | {body} | "
            f"{row['learning_rate']:>8.1e}{seconds:>7.1f}s{' *' if better else ''}"
        )

    def close(self) -> None:
        """Finish writing."""
        if self.trackers is not None:
            self.trackers.close()
