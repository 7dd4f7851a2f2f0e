"""The loss of mixed batches: each term is a mean over the molecules that have its label.

With m_i = 1 where molecule i has the label and 0 elsewhere, and l_i the loss of molecule i, a term is

    L = sum_i m_i l_i / sum_i m_i,      and exactly 0 when no molecule of the batch has the label.

For three molecules of which the middle one has no label: L = (l_0 * 1 + l_1 * 0 + l_2 * 1) / 2.

l_i itself is a mean of rho(d) of the differences d = predicted - labelled, with

    mse:    rho(d) = d^2
    mae:    rho(d) = |d|
    huber:  rho(d) = d^2 for |d| <= delta, else delta (2 |d| - delta); equals mse for small errors.

Values in slots without a label, NaN included, and padding atoms change neither the loss nor its gradient.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from aimnet2mult.configs.classpaths import resolve
from aimnet2mult.datasets.format import LABELS
from aimnet2mult.errors import ConfigError, TrainingError

Kind = Literal["mse", "mae", "huber"]
LossFunction = Callable[..., Tensor]


def energy_loss_fn(
    y_pred: Mapping[str, Tensor],
    y_true: Mapping[str, Tensor],
    key_pred: str = "energy",
    key_true: str = "energy",
    kind: Kind = "mse",
    delta: float = 1.0,
) -> Tensor:
    """Loss of a quantity per molecule, divided by the number of atoms of the molecule.

    l_i = rho(E_i^pred - E_i^true) / N_i with N_i the number of real atoms; the term is the mean of l_i over the
    molecules that have the label (see the head of this module).

    Parameters
    ----------
    y_pred
        Predictions; ``y_pred[key_pred]`` has shape (B,), eV. May hold ``numbers`` (B, N).
    y_true
        Labels ``y_true[key_true]`` (B,), eV; masks ``y_true[key_true + "_mask"]`` (B,), all molecules when
        missing; ``numbers`` (B, N) with 0 for padding, from which N_i is counted. Without ``numbers`` in
        either mapping N_i is 1.
    kind
        ``mse``, ``mae`` or ``huber``.
    delta
        Where ``huber`` goes from quadratic to linear, eV.

    Returns
    -------
    Tensor
        Scalar, eV^2 per atom (eV per atom for ``mae``).
    """
    pair = _pair(y_pred, y_true, key_pred, key_true)
    if pair is None:
        return _zero(y_pred, key_pred)
    predicted, labelled, mask = pair
    per_molecule = _rho(torch.where(mask, predicted, 0) - torch.where(mask, labelled, 0), kind, delta)
    numbers = y_true.get("numbers", y_pred.get("numbers"))
    if numbers is not None:
        per_molecule = per_molecule / (numbers > 0).sum(dim=1).clamp(min=1)
    return _mean(per_molecule, mask)


def peratom_loss_fn(
    y_pred: Mapping[str, Tensor],
    y_true: Mapping[str, Tensor],
    key_pred: str = "forces",
    key_true: str = "forces",
    kind: Kind = "mse",
    delta: float = 1.0,
) -> Tensor:
    """Loss of a quantity per atom: forces, charges, spin charges.

    l_i = 1 / (N_i c) sum_a sum_k rho(x_iak^pred - x_iak^true) over the N_i real atoms a and the c components k
    (3 for forces, 1 for charges); the term is the mean of l_i over the molecules that have the label (see the
    head of this module).

    Parameters
    ----------
    y_pred
        Predictions; ``y_pred[key_pred]`` has shape (B, N) or (B, N, c). May hold ``numbers`` (B, N).
    y_true
        Labels ``y_true[key_true]`` of the same shape; masks ``y_true[key_true + "_mask"]`` (B,), all molecules
        when missing; ``numbers`` (B, N) with 0 for padding. Without ``numbers`` in either mapping every row is
        an atom. When ``key_true`` itself is missing the term is exactly 0.
    kind
        ``mse``, ``mae`` or ``huber``.
    delta
        Where ``huber`` goes from quadratic to linear, in the unit of the label.

    Returns
    -------
    Tensor
        Scalar, in the square of the label's unit (in its unit for ``mae``).
    """
    pair = _pair(y_pred, y_true, key_pred, key_true)
    if pair is None:
        return _zero(y_pred, key_pred)
    predicted, labelled, mask = pair
    numbers = y_true.get("numbers", y_pred.get("numbers"))
    real = torch.ones(predicted.shape[:2], dtype=torch.bool, device=mask.device) if numbers is None else numbers > 0
    valid = (real & mask.unsqueeze(1)).view(real.shape + (1,) * (predicted.dim() - 2))
    values = _rho(torch.where(valid, predicted, 0) - torch.where(valid, labelled, 0), kind, delta)
    components = predicted[0, 0].numel() if predicted.numel() else 1
    per_molecule = values.flatten(1).sum(dim=1) / (real.sum(dim=1).clamp(min=1) * components)
    return _mean(per_molecule, mask)


def _pair(
    y_pred: Mapping[str, Tensor], y_true: Mapping[str, Tensor], key_pred: str, key_true: str
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Prediction, label and boolean mask; None when there is no label, or no prediction and no molecule needs it."""
    labelled = y_true.get(key_true)
    if labelled is None:
        return None
    mask = y_true.get(f"{key_true}_mask")
    mask = torch.ones(labelled.shape[0], dtype=torch.bool, device=labelled.device) if mask is None else mask.bool()
    predicted = y_pred.get(key_pred)
    if predicted is None:
        if bool(mask.any()):
            raise TrainingError(
                f"the loss needs the prediction '{key_pred}', but there are {', '.join(sorted(y_pred))}"
            )
        return None
    return predicted, labelled, mask


def _zero(y_pred: Mapping[str, Tensor], key_pred: str) -> Tensor:
    """Exactly zero, with zero gradient where there is a prediction."""
    predicted = y_pred.get(key_pred)
    if predicted is None:
        return next(iter(y_pred.values())).new_zeros((), dtype=torch.get_default_dtype())
    return torch.where(torch.zeros_like(predicted, dtype=torch.bool), predicted, 0).sum()


def _rho(difference: Tensor, kind: str, delta: float) -> Tensor:
    if kind == "mse":
        return difference.square()
    if kind == "mae":
        return difference.abs()
    if kind == "huber":
        return 2 * torch.nn.functional.huber_loss(difference, torch.zeros_like(difference), "none", delta)
    raise ConfigError(f"loss: kind must be mse, mae or huber, not {kind!r}")


def _mean(per_molecule: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, per_molecule, 0).sum() / mask.sum().clamp(min=1)


class LossValue(NamedTuple):
    """What `MTLoss` returns."""

    total: Tensor  # scalar, weighted sum of the terms
    components: dict[str, Tensor]  # scalar per term, not weighted
    counts: Tensor  # (number of terms,) molecules that have the label


class LossNeeds(NamedTuple):
    """What a loss must be given."""

    labels: frozenset[str]
    predictions: frozenset[str]


class _Term(NamedTuple):
    fn: LossFunction
    weight: float
    kwargs: dict[str, Any]
    key_pred: str
    key_true: str


class MTLoss(nn.Module):
    """Weighted sum of loss terms: total = sum_k w_k L_k.

    Parameters
    ----------
    components
        Per term a mapping with ``fn`` (class path from `LOSS_FUNCTIONS`, or a callable of ``(y_pred, y_true,
        **kwargs)``), ``weight`` (>= 0, default 1) and ``kwargs``. A term named after a label is about that
        label: ``key_true`` and ``key_pred`` may then be left out.

    Raises
    ------
    ConfigError
        A class path is not allowed, an argument is unknown, a weight is negative, or a term named after one label
        uses another.
    """

    def __init__(self, components: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__()
        if not components:
            raise ConfigError("loss.kwargs.components: give at least one term")
        self.terms = {name: _term(name, settings) for name, settings in components.items()}

    @property
    def names(self) -> list[str]:
        """Names of the terms, in the order of `LossValue.counts`."""
        return list(self.terms)

    @property
    def needs(self) -> LossNeeds:
        """Labels and predictions that terms with a weight above zero use."""
        active = [term for term in self.terms.values() if term.weight > 0]
        return LossNeeds(frozenset(t.key_true for t in active), frozenset(t.key_pred for t in active))

    def forward(
        self,
        y_pred: Mapping[str, Tensor],
        y_true: Mapping[str, Tensor],
        sum_over_processes: Callable[[Tensor], Tensor] | None = None,
    ) -> LossValue:
        """Evaluate every term.

        Parameters
        ----------
        y_pred, y_true
            Predictions; labels with masks and ``numbers``. See the functions of the terms.
        sum_over_processes
            All-reduce (sum) of the ``counts`` when a batch is spread over several processes. Each term is then
            scaled so that the mean over processes, which is what averaged gradients follow, is the mean
            over the molecules of the whole batch.
        """
        # a term without weight is only watched: it asks for no prediction that nobody made
        labels = {n: y_true if t.weight > 0 or t.key_pred in y_pred else _NO_LABELS for n, t in self.terms.items()}
        values = {name: term.fn(y_pred, labels[name], **term.kwargs) for name, term in self.terms.items()}
        counts = torch.stack([_count(y_pred, labels[name], term.key_true) for name, term in self.terms.items()])
        scales = None
        if sum_over_processes is not None:
            everywhere = sum_over_processes(torch.cat([counts, torch.ones_like(counts[:1])]))
            scales = counts * everywhere[-1] / everywhere[:-1].clamp(min=1)
        total = torch.stack(
            [
                term.weight * (values[name] if scales is None else values[name] * scales[i])
                for i, (name, term) in enumerate(self.terms.items())
                if term.weight > 0
            ]
        ).sum()
        return LossValue(total, values, counts)


def _count(y_pred: Mapping[str, Tensor], y_true: Mapping[str, Tensor], key: str) -> Tensor:
    mask, label = y_true.get(f"{key}_mask"), y_true.get(key)
    if label is None:
        return next(iter(y_pred.values())).new_zeros((), dtype=torch.float64)
    return label.new_tensor(label.shape[0], dtype=torch.float64) if mask is None else mask.sum(dtype=torch.float64)


def _term(name: str, settings: Mapping[str, Any]) -> _Term:
    where = f"loss.kwargs.components.{name}"
    fn, weight, kwargs = settings["fn"], float(settings.get("weight", 1.0)), dict(settings.get("kwargs") or {})
    if isinstance(fn, str):
        fn = resolve(fn, LOSS_FUNCTIONS, f"{where}.fn")
    if not weight >= 0:
        raise ConfigError(f"{where}.weight: must be 0 or more, not {weight}")
    parameters = inspect.signature(fn).parameters
    options = [key for key in parameters if key not in ("y_pred", "y_true")]
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        for key in kwargs:
            resolve(key, dict.fromkeys(options), f"{where}.kwargs.{key}", "argument")
    if kwargs.get("kind", "mse") not in ("mse", "mae", "huber") and "kind" in options:
        raise ConfigError(f"{where}.kwargs.kind: must be mse, mae or huber, not {kwargs['kind']!r}")
    delta = kwargs.get("delta", 1.0)
    if "delta" in options and (isinstance(delta, bool) or not isinstance(delta, int | float) or not delta > 0):
        raise ConfigError(f"{where}.kwargs.delta: must be a number above 0, not {delta!r}")
    keys = _keys(name, kwargs, parameters, where)
    return _Term(fn, weight, kwargs, keys[0], keys[1])


def _keys(
    name: str, kwargs: dict[str, Any], parameters: Mapping[str, inspect.Parameter], where: str
) -> tuple[str, str]:
    """Keys of prediction and label; a term named after a label is about that label, which goes into `kwargs`."""
    both = ("key_pred", "key_true")
    if name in LABELS and not any(key in kwargs for key in both):
        kwargs.update({key: name for key in both if key in parameters})
    pred, true = (kwargs.get(key, parameters[key].default if key in parameters else name) for key in both)
    for key, used in (("key_true", true), ("key_pred", pred)):
        if name in LABELS and used in LABELS and used != name:
            raise ConfigError(
                f"{where}: the term is named '{name}' but its {key} is '{used}'; "
                f"set key_true and key_pred to {name}, or give the term another name"
            )
    return pred, true


_NO_LABELS: Mapping[str, Tensor] = {}
_HOMES = ("aimnet2mult.train.loss", "aimnet2mult.training.loss")
LOSS_FUNCTIONS: Mapping[str, LossFunction] = {
    f"{home}.{fn.__name__}": fn for home in _HOMES for fn in (energy_loss_fn, peratom_loss_fn)
}
LOSSES: Mapping[str, type[MTLoss]] = {f"{home}.MTLoss": MTLoss for home in _HOMES}
