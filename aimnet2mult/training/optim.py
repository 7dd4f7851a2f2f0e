"""Optimiser and learning rate, from the settings."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from aimnet2mult.configs.classpaths import resolve
from aimnet2mult.configs.train import CosineSchedule, OptimizerSettings, PlateauSchedule, Schedule
from aimnet2mult.errors import ConfigError

OPTIMIZERS: Mapping[str, type[torch.optim.Optimizer]] = {
    f"torch.optim.{kind.__name__}": kind
    for kind in (
        torch.optim.AdamW,
        torch.optim.RAdam,
        torch.optim.Adam,
        torch.optim.NAdam,
        torch.optim.Adamax,
        torch.optim.SGD,
    )
}


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay may act on a parameter: not on biases, embeddings and atomic shifts.

    Decay pulls towards zero, which for an element's features or energy means forgetting rare elements.
    """
    parts = name.split(".")
    special = parts[-1].endswith("bias") or any("embedding" in part or "shift" in part for part in parts)
    return parameter.dim() > 1 and not special


def is_difference(name: str) -> bool:
    """Whether a parameter is the difference of a fidelity from what all fidelities share."""
    return name.split(".")[-1].startswith("difference_")


def build_optimizer(
    network: nn.Module, settings: OptimizerSettings, own: Mapping[str, Any] = MappingProxyType({})
) -> torch.optim.Optimizer:
    """Make the optimiser of the settings for all parameters of `network`.

    `own` are class paths that may be named besides those of torch.

    Raises
    ------
    ConfigError
        The class path is not allowed, or an argument is unknown or out of range.
    """
    where = "optimizer.kwargs"
    kind = resolve(settings.class_, {**OPTIMIZERS, **own}, "optimizer.class")
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise ConfigError(f"optimizer.class: {settings.class_} is not derived from torch.optim.Optimizer; make it so")
    options = [key for key in inspect.signature(kind).parameters if key != "params"]
    kwargs: dict[str, Any] = {}
    for key, value in settings.kwargs.items():
        resolve(key, dict.fromkeys(options), f"{where}.{key}", "argument")
        kwargs[key] = tuple(value) if isinstance(value, list) else value
    if "fused" in options and not {"fused", "foreach", "differentiable"} & set(kwargs):
        # one pass over each tensor instead of a dozen small operations
        kwargs["fused"] = True
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        difference, decayed = is_difference(name), is_decayed(name, parameter)
        group = groups.setdefault((difference, decayed), {"params": []})
        group["params"].append(parameter)
        if difference:
            group["lr"] = kwargs["lr"] * settings.difference_lr_factor
        if not decayed:
            group["weight_decay"] = 0.0
    try:
        return kind(list(groups.values()), **kwargs)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{where}: {settings.class_} refuses these values: {error}") from None


def with_settings_of(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """State of a checkpoint with the hyper-parameters that `optimizer` has now, so that changed settings take effect.

    ``lr`` stays as it is in `state`: `LearningRate` sets it before every step.
    """
    groups = [
        {**old, **{key: value for key, value in new.items() if key not in ("params", "lr")}}
        for old, new in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    return {**state, "param_groups": groups}


class LearningRate:
    """Learning rate per optimiser step: linear warm-up, then cosine, plateau or constant.

    With w warm-up steps and s counted from 0 the factor on each group's ``lr`` is

        warm-up:   min(1, (s + 1) / w)
        cosine:    f + (1 - f) (1 + cos(pi p)) / 2 with p = (s - w) / (total - w) from 0 to 1, f = final_factor
        plateau:   a factor that `after_epoch` lowers
        constant:  1

    (cosine: Loshchilov, Hutter, ICLR 2017, arXiv:1608.03983, Eq. 5, without restarts).

    Parameters
    ----------
    optimizer
        Its groups' ``lr`` are set.
    settings
        Kind and constants.
    total_steps
        Steps of the whole run.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, settings: Schedule, total_steps: int) -> None:
        self.optimizer = optimizer
        self.settings = settings
        self.total_steps = total_steps
        self.base = [float(group["lr"]) for group in optimizer.param_groups]
        self.lowered = 1.0
        self.best = math.inf
        self.waited = 0

    def factor(self, step: int) -> float:
        """Factor on the learning rate of the step with number `step`, counted from 0."""
        settings = self.settings
        warm = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
        if isinstance(settings, CosineSchedule):
            span = max(1, self.total_steps - settings.warmup_steps)
            progress = min(1.0, max(0.0, (step - settings.warmup_steps) / span))
            low = settings.final_factor
            return warm * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))
        return warm * self.lowered

    def before_step(self, step: int) -> float:
        """Set the learning rate for step number `step`; returns that of the first group."""
        factor = self.factor(step)
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base * factor
        return self.base[0] * factor

    def after_epoch(self, metric: float) -> None:
        """Plateau: lower the rate after `patience` epochs without a better `metric` (lower is better)."""
        settings = self.settings
        if not isinstance(settings, PlateauSchedule):
            return
        if metric < self.best:
            self.best, self.waited = metric, 0
            return
        self.waited += 1
        if self.waited > settings.patience:
            self.lowered = max(settings.min_factor, self.lowered * settings.factor)
            self.waited = 0

    def forget_best(self) -> None:
        """Plateau: compare with no earlier epoch, since the metric is another one; the rate stays as low as it is."""
        self.best, self.waited = math.inf, 0

    def state_dict(self) -> dict[str, float]:
        """What exact continuation needs besides the step number."""
        return {"lowered": self.lowered, "best": self.best, "waited": float(self.waited)}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Take over what `state_dict` gave."""
        self.lowered, self.best, self.waited = float(state["lowered"]), float(state["best"]), int(state["waited"])
