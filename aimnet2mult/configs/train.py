"""The settings of a training run, as written in ``train.yaml``: type, default and one line of help per option.

Relative paths start from the folder of the YAML file, also when they come from an override; ``~`` is the home folder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from aimnet2mult.configs.dispersion import DispersionSettings
from aimnet2mult.configs.settings import Settings
from aimnet2mult.configs.yaml_io import apply_overrides, read_yaml, validated
from aimnet2mult.configs.yaml_lines import KeyLines
from aimnet2mult.errors import ConfigError

Input = Literal["coord", "numbers", "charge", "mult"]
Label = Literal["energy", "forces", "charges", "spin_charges"]
Metric = Literal["mae", "rmse"]
REQUIRED_INPUTS = ("coord", "numbers", "charge")


def _anchored(value: Any, info: ValidationInfo) -> Any:
    """Make a path absolute, starting from the folder given in the validation context."""
    if not isinstance(value, str | Path) or not str(value).strip():
        raise ValueError(f"must be a path, not {value!r}")
    base = info.context.get("base") if info.context else None
    path = Path(value).expanduser()
    return path if base is None else (Path(base) / path).resolve()


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise ValueError(f"must be auto, cpu, cuda, cuda:N or mps, not {value!r}")
    return value


def _once(values: list[Any]) -> list[Any]:
    if twice := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"{twice[0]!r} is listed twice; list it once")
    return values


def _inside(value: str) -> str:
    """A start of file names below a folder."""
    path = Path(value)
    if path.is_absolute() or ".." in path.parts or value.endswith(("/", "\\", ".jpt")) or not path.name:
        raise ValueError(f"must be the start of file names in the run folder, such as compiled/model, not {value!r}")
    return value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | Path) else value


FilePath = Annotated[Path, BeforeValidator(_anchored)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]


class RunSettings(Settings):
    """Where and how a run goes."""

    name: str = Field("aimnet2mult", min_length=1, description="name of the run, for logs and the model card")
    folder: FilePath = Field(Path("output"), description="run folder; made when it does not exist")
    seed: CountOrZero = Field(
        1, description="seed of split, first weights and batches; the same seed gives the same bits on CPU"
    )
    device: Annotated[str, AfterValidator(_device)] = Field(
        "auto", description="auto (GPU if there is one), cpu, cuda, cuda:N or mps"
    )
    threads: Count | None = Field(None, description="CPU threads of torch; null: leave torch's own choice")


class FidelitySettings(Settings):
    """One level of theory and its data."""

    name: str = Field(min_length=1, description="short name, such as PBE0; used in tables and by the calculator")
    files: Annotated[list[FilePath], Field(min_length=1), BeforeValidator(_as_list)] = Field(
        description="HDF5 file, or a list of files"
    )
    sae: FilePath | None = Field(
        None, description="YAML of self-atomic energies (eV); null: fitted and written to the run folder"
    )
    level_of_theory: str | None = Field(None, description="in full, such as PBE0/def2-SVP; kept in the model files")
    labels_include_dispersion: bool = Field(
        False, description="true: the labels hold dispersion, so none may be added later"
    )


class TrainSampler(Settings):
    """How training batches are made."""

    batch_size: Count = Field(32, description="molecules or atoms per batch of each process; see batch_unit")
    batch_unit: Literal["molecules", "atoms"] = Field("molecules", description="what batch_size counts")
    batches_per_epoch: Count | None = Field(
        None,
        description="batches of all processes together, raised to a multiple of their number; null: as many as show "
        "each training molecule once on average",
    )
    size_window: Count = Field(
        8,
        description="how many batches are sorted by size together to save padding; 1: every batch holds all sizes",
    )


class ValSampler(Settings):
    """How validation and test batches are made."""

    batch_size: Count = Field(256, description="molecules per batch")


class Samplers(Settings):
    train: TrainSampler = TrainSampler()
    val: ValSampler = ValSampler()


class DataSettings(Settings):
    """What is read, and how it is divided and drawn."""

    x: Annotated[list[Input], AfterValidator(_once)] = Field(
        ["coord", "numbers", "charge", "mult"], description="inputs; mult may be missing in the files (then 1)"
    )
    y: Annotated[list[Label], AfterValidator(_once)] = Field(
        ["energy", "forces", "charges", "spin_charges"], description="labels; all but energy may be missing"
    )
    fidelities: dict[CountOrZero, FidelitySettings] = Field(
        min_length=1, description="one entry per fidelity, numbered from 0"
    )
    fidelity_weights: dict[CountOrZero, NotNegative] | None = Field(
        None, description="share of the draws per fidelity (normalised); null: proportional to the number of samples"
    )
    fidelity_offset: int | None = Field(None, description="accepted from older configurations; has no effect")
    val_fraction: float = Field(0.1, ge=0, lt=1, description="share of the molecules held back for validation")
    test_fraction: float = Field(
        0.0, ge=0, lt=1, description="share of the molecules held back for the table of errors at the end"
    )
    on_bad_rows: Literal["error", "skip"] = Field(
        "error", description="rows with bad values: stop, or leave out and count"
    )
    samplers: Samplers = Samplers()
    num_workers: CountOrZero = Field(0, description="processes that read batches ahead; 0: read in the main process")
    cache_mb: CountOrZero = Field(1024, description="memory for data kept after the first read, in MB per process")

    @model_validator(mode="after")
    def _consistent(self) -> DataSettings:
        ids = sorted(self.fidelities)
        if ids != list(range(len(ids))):
            raise ValueError(f"fidelities: number them 0, 1, 2, ... without a gap; found {', '.join(map(str, ids))}")
        names = [self.fidelities[i].name for i in ids]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"fidelities: the name '{twice[0]}' is used twice; give each fidelity its own name")
        files = [path for i in ids for path in self.fidelities[i].files]
        if repeated := sorted({str(path) for path in files if files.count(path) > 1}):
            raise ValueError(f"fidelities: the file {repeated[0]} is listed twice; list each file once")
        weights = self.fidelity_weights
        if weights is not None:
            if sorted(weights) != ids:
                raise ValueError(
                    f"fidelity_weights: give one weight for each of the fidelities {', '.join(map(str, ids))}"
                )
            if not any(weights.values()):
                raise ValueError("fidelity_weights: at least one weight must be above zero")
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(
                "val_fraction: together with test_fraction it must stay below 1; nothing is left to train on"
            )
        if missing := [key for key in REQUIRED_INPUTS if key not in self.x]:
            raise ValueError(f"x: '{missing[0]}' must be in the list")
        if "energy" not in self.y:
            raise ValueError("y: 'energy' must be in the list")
        return self


class LossComponent(Settings):
    """One term of the loss."""

    fn: str = Field(description="class path of the term's function")
    weight: NotNegative = Field(1.0, description="factor of this term in the total")
    kwargs: dict[str, Any] = Field({}, description="further arguments of the function")


class LossArguments(Settings):
    components: dict[str, LossComponent] = Field(min_length=1, description="the terms by name")


class LossSettings(Settings):
    """What is minimised."""

    class_: str = Field("aimnet2mult.train.loss.MTLoss", alias="class", description="class path of the loss")
    kwargs: LossArguments

    @model_validator(mode="after")
    def _some_weight(self) -> LossSettings:
        if not any(component.weight for component in self.kwargs.components.values()):
            raise ValueError("kwargs.components: at least one weight must be above zero")
        return self


class OptimizerSettings(Settings):
    """How weights move."""

    class_: str = Field("torch.optim.AdamW", alias="class", description="class path of the optimiser")
    kwargs: dict[str, Any] = Field({"lr": 1.0e-3, "weight_decay": 1.0e-6}, description="its arguments; lr is required")
    difference_lr_factor: float = Field(
        1.0,
        gt=0,
        le=1,
        description="factor on lr for the differences between fidelities; a small one ties a fidelity with few labels "
        "to the others",
    )

    @model_validator(mode="after")
    def _learning_rate(self) -> OptimizerSettings:
        rate = self.kwargs.get("lr")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < float("inf"):
            raise ValueError(f"kwargs.lr: must be a number above 0, not {rate!r}")
        return self


class CosineSchedule(Settings):
    """Linear warm-up, then half a cosine down to a fraction of the learning rate, per step."""

    kind: Literal["cosine"]
    warmup_steps: CountOrZero = Field(100, description="steps of linear warm-up")
    final_factor: float = Field(0.01, ge=0, le=1, description="learning rate at the end, as a fraction of lr")


class PlateauSchedule(Settings):
    """Linear warm-up, then lower the learning rate when the selection metric stops falling."""

    kind: Literal["plateau"]
    warmup_steps: CountOrZero = Field(100, description="steps of linear warm-up")
    factor: float = Field(0.5, gt=0, lt=1, description="factor of each lowering")
    patience: CountOrZero = Field(10, description="epochs without a better metric before a lowering")
    min_factor: float = Field(0.001, ge=0, le=1, description="lowest learning rate, as a fraction of lr")


class ConstantSchedule(Settings):
    """Linear warm-up, then constant."""

    kind: Literal["constant"]
    warmup_steps: CountOrZero = Field(100, description="steps of linear warm-up")


Schedule = CosineSchedule | PlateauSchedule | ConstantSchedule


class EarlyStopping(Settings):
    """Which validation error chooses the best weights, and when to stop."""

    fidelity: CountOrZero = Field(0, description="number of the fidelity")
    label: Label = Field("energy", description="which label; energies count per atom")
    metric: Metric = Field("mae", description="mae or rmse")
    patience: Count = Field(20, description="epochs without a better value before training stops")


class TrainerSettings(Settings):
    """How long, and with which safety devices."""

    epochs: Count = Field(100, description="number of epochs")
    checkpoint_minutes: Positive | None = Field(
        10.0, description="minutes between checkpoints inside an epoch; null: at the end of each epoch only"
    )
    gradient_clip: Positive | None = Field(1.0, description="largest norm of the gradient; null: no limit")
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="decay of the running mean of weights that is validated and saved"
    )
    early_stopping: EarlyStopping | None = Field(
        None, description="null: all epochs are run and the validation loss chooses the best weights"
    )
    final_weights: Literal["best", "last"] = Field(
        "best",
        description="what the run ends with: the running mean of the best epoch, or of the last one, which a few "
        "odd validation molecules cannot spoil",
    )


class WandbSettings(Settings):
    project: str = Field(min_length=1, description="project on Weights & Biases")
    entity: str | None = Field(None, description="team or user; null: your default")


class LoggingSettings(Settings):
    """What is written besides logs/metrics.csv and logs/run.log."""

    tensorboard: Literal["auto"] | bool = Field("auto", description="auto: when the tensorboard package is installed")
    wandb: WandbSettings | None = Field(None, description="null: off; {project: NAME}: on")
    plots: bool = Field(True, description="parity plots and learning curves as PNG at the end")


class CompileSettings(Settings):
    """The model files made at the end."""

    enabled: bool = Field(True, description="compile every fidelity after training")
    prefix: Annotated[str, AfterValidator(_inside)] = Field(
        "compiled/model", description="start of the file names, relative to the run folder"
    )
    dispersion: dict[CountOrZero, DispersionSettings] = Field({}, description="per fidelity; none where not given")


class TrainConfig(Settings):
    """A whole ``train.yaml``."""

    run: RunSettings = RunSettings()
    model: FilePath = Field(Path("model.yaml"), description="architecture of the network")
    data: DataSettings
    loss: LossSettings
    optimizer: OptimizerSettings = OptimizerSettings.model_validate({})
    scheduler: Schedule = Field(CosineSchedule(kind="cosine"), discriminator="kind")
    trainer: TrainerSettings = TrainerSettings()
    logging: LoggingSettings = LoggingSettings()
    compile: CompileSettings = CompileSettings()

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        stopping = self.trainer.early_stopping
        if stopping is not None:
            if stopping.fidelity not in self.data.fidelities:
                raise ValueError(
                    f"trainer.early_stopping.fidelity: there is no fidelity {stopping.fidelity} in data.fidelities"
                )
            if stopping.label not in self.data.y:
                raise ValueError(f"trainer.early_stopping.label: '{stopping.label}' is not in data.y")
            if not self.data.val_fraction:
                raise ValueError("trainer.early_stopping: needs validation molecules; set data.val_fraction above 0")
        for index in self.compile.dispersion:
            if index not in self.data.fidelities:
                raise ValueError(f"compile.dispersion: there is no fidelity {index} in data.fidelities")
        return self


def load_train_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read and check a ``train.yaml``.

    Parameters
    ----------
    path
        The file; relative paths in it start from its folder.
    overrides
        Changes such as ``trainer.epochs=5``.

    Raises
    ------
    ConfigError
        The file is missing or not YAML, or a key or value is wrong; each line names one problem.
    """
    path = Path(path)
    values = apply_overrides(read_yaml(path), overrides)
    data = values.get("data", {} if set(values) <= set(TrainConfig.model_fields) else None)
    # a misspelt section is better told by the schema, which finds the right name
    if isinstance(data, dict) and not data.get("fidelities") and set(data) <= set(DataSettings.model_fields):
        raise ConfigError(f"{path}: data.fidelities: this option is required; list your data files there")
    context = {"base": path.resolve().parent}
    return validated(TrainConfig, values, str(path), context, KeyLines(path, overrides))
