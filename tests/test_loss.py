from __future__ import annotations

import pytest
import torch

import aimnet2mult.train.loss as alias
from aimnet2mult.errors import ConfigError, TrainingError
from aimnet2mult.training.loss import MTLoss, energy_loss_fn, peratom_loss_fn

NAN = float("nan")


def make(natoms=(2, 3, 1), pad=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    size, width = len(natoms), max(natoms) + pad
    numbers = torch.zeros(size, width, dtype=torch.int64)
    for i, n in enumerate(natoms):
        numbers[i, :n] = 6
    # the same numbers whatever the padding
    forces = torch.zeros(size, width, 3, dtype=dtype)
    charges = torch.zeros(size, width, dtype=dtype)
    for i, n in enumerate(natoms):
        forces[i, :n] = torch.randn(n, 3, generator=generator, dtype=dtype)
        charges[i, :n] = torch.randn(n, generator=generator, dtype=dtype)
    energy = torch.randn(size, generator=generator, dtype=torch.float64)
    return {"energy": energy, "forces": forces, "charges": charges, "numbers": numbers}


def pair(mask=(True, False, True), pad=0):
    true = make(pad=pad)
    pred = {
        key: (value * 0.5 + 0.1).requires_grad_(True)
        for key, value in make(pad=pad).items()
        if value.is_floating_point()
    }
    for key in ("energy", "forces", "charges"):
        true[f"{key}_mask"] = torch.tensor(mask)
    return pred, true


def single(pred, true, i, key):
    """Loss of molecule i written out, from the formulas of the documentation."""
    n = int((true["numbers"][i] > 0).sum())
    if key == "energy":
        return (pred["energy"][i] - true["energy"][i]) ** 2 / n
    difference = pred[key][i, :n] - true[key][i, :n]
    return difference.square().sum() / difference.numel()


@pytest.mark.parametrize("key", ["energy", "forces", "charges"])
def test_example_of_the_document(key):
    pred, true = pair()
    fn = energy_loss_fn if key == "energy" else peratom_loss_fn
    loss = fn(pred, true, key_pred=key, key_true=key)
    l0, l1, l2 = (single(pred, true, i, key) for i in range(3))
    # float64 throughout; only the order of sums differs
    assert abs(loss.item() - ((l0 * 1 + l1 * 0 + l2 * 1) / 2).item()) < 1e-12
    assert loss.item() > 1e-3


@pytest.mark.parametrize("key", ["energy", "forces", "charges"])
@pytest.mark.parametrize("bad", [NAN, float("inf"), 1e300])
def test_slots_without_label_change_nothing(key, bad):
    pred, true = pair()
    fn = energy_loss_fn if key == "energy" else peratom_loss_fn
    loss = fn(pred, true, key_pred=key, key_true=key)
    (expected,) = torch.autograd.grad(loss, pred[key])
    true[key] = true[key].clone()
    true[key][1] = bad
    again = fn(pred, true, key_pred=key, key_true=key)
    (gradient,) = torch.autograd.grad(again, pred[key])
    assert again.item() == loss.item()
    assert torch.equal(gradient, expected)
    assert (gradient[1] == 0).all()
    assert (gradient[0] != 0).any()


def test_padding_changes_nothing():
    losses = []
    for pad in (0, 4):
        pred, true = pair(pad=pad)
        with torch.no_grad():
            for key in ("forces", "charges"):
                pred[key][true["numbers"] == 0] = 17.0
                true[key][true["numbers"] == 0] = NAN
        losses.append([energy_loss_fn(pred, true), *(peratom_loss_fn(pred, true, k, k) for k in ("forces", "charges"))])
    for a, b in zip(*losses, strict=True):
        # sums over more zeros may be grouped differently
        assert a.item() == pytest.approx(b.item(), rel=1e-14)


@pytest.mark.parametrize("key", ["energy", "forces"])
def test_no_label_gives_exact_zero_with_zero_gradient(key):
    fn = energy_loss_fn if key == "energy" else peratom_loss_fn
    pred, true = pair(mask=(False, False, False))
    true[key] = torch.full_like(true[key], NAN)
    for labels in (true, {"numbers": true["numbers"]}):
        loss = fn(pred, labels, key_pred=key, key_true=key)
        assert loss.item() == 0.0
        (gradient,) = torch.autograd.grad(loss, pred[key])
        assert (gradient == 0).all()


def test_missing_prediction():
    pred, true = pair()
    del pred["forces"]
    with pytest.raises(TrainingError, match="'forces'"):
        peratom_loss_fn(pred, true)
    true["forces_mask"][:] = False
    assert peratom_loss_fn(pred, true).item() == 0.0


def test_without_masks_and_numbers_everything_counts():
    pred, true = pair()
    energy = energy_loss_fn({"energy": pred["energy"]}, {"energy": true["energy"]})
    assert energy.item() == pytest.approx((pred["energy"] - true["energy"]).square().mean().item(), rel=1e-14)
    forces = peratom_loss_fn({"forces": pred["forces"]}, {"forces": true["forces"]})
    assert forces.item() == pytest.approx((pred["forces"] - true["forces"]).square().mean().item(), rel=1e-14)


def test_energies_are_compared_in_float64():
    # a float32 difference at -1e6 eV has a grid of 0.06 eV
    numbers = torch.tensor([[6]])
    loss = energy_loss_fn(
        {"energy": torch.tensor([-1e6 + 1e-3], dtype=torch.float64)},
        {"energy": torch.tensor([-1e6], dtype=torch.float64), "numbers": numbers},
    )
    assert loss.item() == pytest.approx(1e-6, rel=1e-6)


@pytest.mark.parametrize(("kind", "expected"), [("mse", (0.01, 4.0)), ("mae", (0.1, 2.0)), ("huber", (0.01, 1.75))])
def test_kinds(kind, expected):
    for difference, value in zip((0.1, 2.0), expected, strict=True):
        zero, d = torch.zeros(1, dtype=torch.float64), torch.tensor([difference], dtype=torch.float64)
        assert energy_loss_fn({"energy": d}, {"energy": zero}, kind=kind, delta=0.5).item() == pytest.approx(value)
        charges = peratom_loss_fn({"q": d[None]}, {"q": zero[None]}, "q", "q", kind=kind, delta=0.5)
        assert charges.item() == pytest.approx(value)


COMPONENTS = {
    "energy": {"fn": "aimnet2mult.train.loss.energy_loss_fn", "weight": 2.0},
    "forces": {
        "fn": "aimnet2mult.training.loss.peratom_loss_fn",
        "weight": 0.2,
        "kwargs": {"key_true": "forces", "key_pred": "forces"},
    },
    "charges": {"fn": peratom_loss_fn, "weight": 0.0, "kwargs": {"key_true": "charges", "key_pred": "charges"}},
}


def test_total_is_the_weighted_sum():
    pred, true = pair()
    value = MTLoss(COMPONENTS)(pred, true)
    parts = value.components
    assert value.total.item() == pytest.approx(2 * parts["energy"].item() + 0.2 * parts["forces"].item(), rel=1e-14)
    assert parts["charges"].item() > 0
    assert value.counts.tolist() == [2, 2, 2]
    needs = MTLoss(COMPONENTS).needs
    assert needs.labels == needs.predictions == {"energy", "forces"}


@pytest.mark.parametrize("name", ["energy", "forces", "charges", "spin_charges"])
def test_a_term_named_after_a_label_is_about_that_label(name):
    fn = "energy_loss_fn" if name == "energy" else "peratom_loss_fn"
    loss = MTLoss({name: {"fn": f"aimnet2mult.train.loss.{fn}"}})
    assert loss.needs.labels == loss.needs.predictions == {name}
    pred, true = pair()
    pred["spin_charges"], true["spin_charges"] = 2 * pred["charges"].detach(), true["charges"]
    function = energy_loss_fn if name == "energy" else peratom_loss_fn
    assert loss(pred, true).components[name].item() == function(pred, true, name, name).item()


def test_a_term_named_after_another_label_is_refused():
    fn = "aimnet2mult.train.loss.peratom_loss_fn"
    for kwargs in ({"key_true": "forces", "key_pred": "forces"}, {"key_pred": "charges"}, {"key_true": "charges"}):
        with pytest.raises(ConfigError, match=r"the term is named 'charges' but its key_\w+ is 'forces'"):
            MTLoss({"charges": {"fn": fn, "kwargs": kwargs}})
    assert MTLoss({"my forces": {"fn": fn}}).needs.labels == {"forces"}


def test_halves_of_a_batch_in_two_processes_average_to_the_whole():
    loss = MTLoss(COMPONENTS)
    pred, true = pair(mask=(True, False, True))
    whole = loss(pred, true)
    counts = [loss({k: v[s] for k, v in pred.items()}, {k: v[s] for k, v in true.items()}).counts for s in HALVES]
    totals = []
    for part in HALVES:
        everywhere = torch.cat([sum(counts), torch.tensor([2.0], dtype=torch.float64)])
        value = loss(
            {k: v[part] for k, v in pred.items()}, {k: v[part] for k, v in true.items()}, lambda _, e=everywhere: e
        )
        totals.append(value.total.item())
    assert sum(totals) / 2 == pytest.approx(whole.total.item(), rel=1e-13)


HALVES = (slice(0, 2), slice(2, 3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fn": "os.mkdir"}, "class path 'os.mkdir' is not allowed"),
        ({"fn": "builtins.eval"}, "not allowed"),
        ({"fn": "aimnet2mult.train.loss.energy_loss"}, "did you mean 'aimnet2mult.train.loss.energy_loss_fn'"),
        ({"weight": -1}, "weight: must be 0 or more"),
        ({"kwargs": {"key_tru": "energy"}}, "argument 'key_tru' is not allowed; did you mean 'key_true'"),
        ({"kwargs": {"kind": "l2"}}, "kind: must be mse, mae or huber"),
        ({"kwargs": {"delta": 0}}, "delta: must be a number above 0"),
    ],
)
def test_bad_settings(change, words):
    with pytest.raises(ConfigError, match=words):
        MTLoss({"energy": {**COMPONENTS["energy"], **change}})


def test_aliases():
    assert alias.MTLoss is MTLoss
    assert alias.energy_loss_fn is energy_loss_fn
    assert alias.peratom_loss_fn is peratom_loss_fn
