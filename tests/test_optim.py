from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from aimnet2mult.configs.train import ConstantSchedule, CosineSchedule, OptimizerSettings, PlateauSchedule
from aimnet2mult.errors import ConfigError
from aimnet2mult.training.optim import LearningRate, build_optimizer, with_settings_of


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)
        self.embedding = nn.Embedding(4, 3)
        self.atomic_shift = nn.ParameterDict({"shift": nn.Parameter(torch.ones(2, 4))})
        self.stacked = nn.Module()
        self.stacked.bias = nn.Parameter(torch.ones(2, 1, 3))


def settings(path="torch.optim.AdamW", **kwargs):
    return OptimizerSettings.model_validate({"class": path, "kwargs": {"lr": 0.1, **kwargs}})


def test_decay_spares_biases_embeddings_and_shifts():
    net = Net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = build_optimizer(net, settings(weight_decay=0.5))
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"layer.weight"}


@pytest.mark.parametrize("name", ["AdamW", "Adam", "RAdam", "NAdam", "Adamax", "SGD"])
def test_every_optimizer_moves_all_weights(name):
    net = Net()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = build_optimizer(net, settings(f"torch.optim.{name}"))
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    for _ in range(6):  # RAdam warms up for five steps
        optimizer.step()
    assert all((a != b).all() for a, b in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (settings("torch.optim.LBFGS"), "optimizer.class: class path 'torch.optim.LBFGS' is not allowed"),
        (settings("os.mkdir"), "not allowed"),
        (settings("torch.optim.adamw"), "did you mean 'torch.optim.AdamW'"),
        (settings(weight_decy=1), "argument 'weight_decy' is not allowed; did you mean 'weight_decay'"),
        (settings(betas=[2.0, 0.9]), "optimizer.kwargs"),
        (settings(weight_decay="x"), "optimizer.kwargs"),
    ],
)
def test_bad_settings(given, words):
    with pytest.raises(ConfigError, match=words):
        build_optimizer(Net(), given)


def test_changed_settings_outlive_a_checkpoint():
    old, new = Net(), Net()
    optimizer = build_optimizer(old, settings(weight_decay=0.5, betas=[0.9, 0.99]))
    for p in old.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    state = optimizer.state_dict()
    changed = build_optimizer(new, settings(weight_decay=0.25, betas=[0.8, 0.9], eps=1e-3))
    changed.load_state_dict(with_settings_of(changed, state))
    assert {group["weight_decay"] for group in changed.param_groups} == {0.25, 0.0}
    assert all(group["betas"] == (0.8, 0.9) and group["eps"] == 1e-3 for group in changed.param_groups)
    for key, moments in changed.state_dict()["state"].items():
        assert all(torch.equal(value, state["state"][key][name]) for name, value in moments.items())


def rates(schedule, steps):
    return [schedule.before_step(i) for i in range(steps)]


def test_cosine():
    optimizer = build_optimizer(Net(), settings())
    schedule = LearningRate(optimizer, CosineSchedule(kind="cosine", warmup_steps=10, final_factor=0.1), 110)
    got = rates(schedule, 111)
    assert got[:10] == pytest.approx([0.01 * (i + 1) for i in range(10)])
    assert got[10] == pytest.approx(0.1)
    assert got[60] == pytest.approx(0.1 * (0.1 + 0.9 / 2))
    assert got[35] == pytest.approx(0.1 * (0.1 + 0.45 * (1 + math.cos(math.pi / 4))))
    assert got[110] == pytest.approx(0.01)
    assert all(group["lr"] == got[110] for group in optimizer.param_groups)
    assert schedule.before_step(10_000) == pytest.approx(0.01)


def test_constant():
    schedule = LearningRate(build_optimizer(Net(), settings()), ConstantSchedule(kind="constant", warmup_steps=0), 5)
    assert rates(schedule, 5) == pytest.approx([0.1] * 5)


def test_plateau_lowers_and_resumes():
    plateau = PlateauSchedule(kind="plateau", warmup_steps=0, factor=0.5, patience=1, min_factor=0.3)
    schedule = LearningRate(build_optimizer(Net(), settings()), plateau, 100)
    seen = []
    for metric in (3.0, 2.0, 2.0, 2.0, 1.0, 1.5, 1.5, 1.5, 1.5):
        schedule.after_epoch(metric)
        seen.append(schedule.factor(50))
    assert seen == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5, 0.3, 0.3, 0.3])
    other = LearningRate(build_optimizer(Net(), settings()), plateau, 100)
    other.load_state_dict(schedule.state_dict())
    assert other.factor(50) == schedule.factor(50)
    assert other.state_dict() == schedule.state_dict()
