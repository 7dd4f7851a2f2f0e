"""Training by compiled kernels against the reference network: predictions, forces, gradients of losses on forces.

The kernels compute in float32. What they give is compared with the reference network in float64, and has to be no
further from it than the reference network in float32 is, within a factor for luck.
"""

from __future__ import annotations

import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import suites
import torch
from torch import Tensor, nn

from aimnet2mult.configs.train import load_train_config
from aimnet2mult.engine import warmup
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.training import step_model as step_models
from aimnet2mult.training.run import train
from aimnet2mult.training.step_model import PlainModel, prepare_kernels, step_model, threads_for
from aimnet2mult.types import Molecules, Prediction

pytest.importorskip("numba", reason="the kernels need the optional package numba")

from aimnet2mult.training.fast_network import FastNetwork
from aimnet2mult.training.step_model import FastModel

FORMS: dict[str, dict[str, Any]] = {
    "two channels": {},
    "one channel": {"num_charge_channels": 1},
    "shared features": {"d2features": False},
    "charge and spin, heads with differences": {"equilibration": "charge_spin", "fidelity_readouts": "difference"},
    "as published": {"num_charge_channels": 1, "activate_passes": True, "exact_charges": False, "nfeature": 7},
    "separate embedding, charges of the backbone, no Coulomb": {
        "fidelity_embedding": "separate",
        "outputs": {
            "lrcoulomb": None,
            "charges": {"class": "aimnet2mult.models.heads.Charges", "kwargs": {"source": "backbone"}},
        },
    },
    "many passes, shared heads, no shift": {
        "hidden": [[10], [10], [], [10, 9]],
        "use_fidelity_readouts": False,
        "outputs": {"atomic_shift": None},
    },
    "wide": {"aev": {"rc_s": 4.5, "nshifts_s": 20}, "ncomb_v": 18, "hidden": [[70, 40], [130]], "aim_size": 33},
    "narrow": {"aev": {"rc_s": 5.0, "nshifts_s": 1}, "ncomb_v": 1, "nfeature": 1, "hidden": [[], []], "aim_size": 1},
    "one fidelity": {"num_fidelities": 1},
}


class Found(NamedTuple):
    predictions: dict[str, Tensor]
    gradients: dict[str, Tensor]


def networks(**changes: Any) -> tuple[MultiFidelityNetwork, MultiFidelityNetwork]:
    """The same network in float32 and, with the very same weights, in float64."""
    single = suites.network(**changes).float()
    return single, deepcopy(single).double()


def batch(n_fidelities: int = 3, extra: int = 1) -> Molecules:
    """Molecules, ions and radicals in float32, with padding and a lone atom; neighbours have different fidelities."""
    structures = suites.structures()
    structures[3] = structures[3][:1]
    molecules = suites.collate(structures, [i % n_fidelities for i in range(len(structures))], extra)
    floats = {name: getattr(molecules, name).float() for name in ("coord", "charge", "mult")}
    return molecules._replace(**floats)


def evaluate(model: nn.Module, molecules: Molecules, wanted: Tensor) -> Found:
    """Predictions, and the gradients of a loss on all of them, each prediction with a weight of its own."""
    dtype = next(model.parameters()).dtype
    floats = {name: getattr(molecules, name).to(dtype) for name in ("coord", "charge", "mult")}
    predictions = model(molecules._replace(**floats), wanted, True)
    generator = torch.Generator().manual_seed(1)
    loss = torch.zeros((), dtype=torch.float64)
    for key in sorted(predictions):
        value = predictions[key].to(torch.float64)
        weights = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        loss = loss + (weights * (value + value.square())).sum()
    model.zero_grad()
    loss.backward()
    gradients = {name.replace("network.", ""): p.grad.clone() for name, p in model.named_parameters()}
    return Found({key: value.detach() for key, value in predictions.items()}, gradients)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.to(torch.float64) - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def assert_as_good(fast: Found, single: Found, double: Found) -> None:
    """`fast` is as near to float64 as float32 of the reference.

    Networks pass float32's roundings of 6e-8 on hundredfold, by luck to one number more than to another: so each has to
    be right to 3e-4 of the largest of its kind, and the typical distance is compared. A wrong term is off by 1e-2.
    """
    for ours, theirs, exact in zip(fast, single, double, strict=True):
        assert ours.keys() == exact.keys()
        distances = {key: distance(ours[key], exact[key]) for key in exact if exact[key].any()}
        assert max(distances.values()) < 3e-4, distances
        typical = torch.tensor(list(distances.values())).log().mean().exp()
        usual = torch.tensor([distance(theirs[key], exact[key]) for key in distances]).log().mean().exp()
        assert typical < 5 * usual
        for key in exact.keys() - distances.keys():
            assert not ours[key].any(), key


@pytest.mark.parametrize("form", FORMS)
def test_predictions_and_gradients_of_the_reference(form: str) -> None:
    single, double = networks(**FORMS[form])
    molecules = batch(single.config.num_fidelities)
    wanted = torch.arange(len(molecules.charge)) % 3 != 1
    models = FastModel(FastNetwork(single)), PlainModel(single), PlainModel(double)
    fast, plain, exact = (evaluate(model, molecules, wanted) for model in models)
    assert_as_good(fast, plain, exact)
    assert fast.predictions["forces"][wanted].any()
    assert not fast.predictions["forces"][~wanted].any()


@pytest.mark.parametrize("share", ["none", "all"])
def test_with_forces_of_no_molecule_and_of_all(share: str) -> None:
    single, double = networks()
    molecules = batch()
    wanted = torch.full_like(molecules.fidelity, share == "all", dtype=torch.bool)
    models = FastModel(FastNetwork(single)), PlainModel(single), PlainModel(double)
    fast, plain, exact = (evaluate(model, molecules, wanted) for model in models)
    assert ("forces" in fast.predictions) == (share == "all")
    assert_as_good(fast, plain, exact)


def test_absent_fidelity_gets_a_gradient_of_exactly_zero() -> None:
    single, _ = networks()
    molecules = batch()._replace(fidelity=torch.arange(26) % 2 * 2)
    model = FastModel(FastNetwork(single))
    evaluate(model, molecules, torch.arange(26) % 4 < 2)
    for name, parameter in single.named_parameters():
        assert parameter.grad is not None, name
        if name.startswith(("energy_mlp", "charges", "atomic_shift", "backbone.embedding.difference")):
            assert parameter.grad[0].any(), name
            assert not parameter.grad[1].any(), name


def test_plain_derivatives_without_a_graph() -> None:
    """What validation asks for: forces of all molecules, of which none was announced."""
    single, double = networks()
    molecules = batch()
    wanted = torch.ones(len(molecules.charge), dtype=torch.bool)
    doubled = molecules._replace(**{name: getattr(molecules, name).double() for name in ("coord", "charge", "mult")})
    expected = PlainModel(double)(doubled, wanted, False)
    found = FastModel(FastNetwork(single))(molecules, wanted, False)
    for key in expected:
        assert not found[key].requires_grad
        # a few hundred float32 roundings, each of 6e-8
        assert distance(found[key], expected[key]) < 2e-5, key


def test_no_force_is_worked_out_that_has_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of the second derivatives see only rows of molecules with forces."""
    import aimnet2mult.training.fast_perceptron as module

    seen = []
    original = module.displace_layers
    monkeypatch.setattr(module, "displace_layers", lambda a, b, *rest: seen.append((a, b)) or original(a, b, *rest))
    single, _ = networks()
    molecules = batch()
    wanted = torch.arange(len(molecules.charge)) < 5
    evaluate(FastModel(FastNetwork(single)), molecules, wanted)
    assert max(last for _, last in seen) == int((molecules.numbers[wanted] > 0).sum())


def test_forces_that_were_not_announced_are_refused() -> None:
    single, _ = networks()
    molecules = batch()
    molecules = molecules._replace(coord=molecules.coord.requires_grad_())
    prediction = FastNetwork(single)(molecules, torch.arange(26) < 5)
    with pytest.raises(RuntimeError, match="forces are wanted of molecules that were not announced"):
        torch.autograd.grad(prediction.energy.sum(), molecules.coord, create_graph=True)


def test_what_is_not_worked_out_is_nan_or_refused() -> None:
    """Second derivatives by positions, and gradients of gradients of weights."""
    single, _ = networks()
    molecules = batch()
    molecules = molecules._replace(coord=molecules.coord.requires_grad_())
    prediction = FastNetwork(single)(molecules, torch.ones(26, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(prediction.energy.sum(), molecules.coord, create_graph=True, retain_graph=True)
    (hessian,) = torch.autograd.grad(gradient.square().sum(), molecules.coord, retain_graph=True)
    assert hessian[molecules.numbers > 0].isnan().all()
    with pytest.raises(RuntimeError, match="only forces can be differentiated again"):
        torch.autograd.grad(prediction.energy.sum(), single.backbone.first[0].weight, create_graph=True)


def test_graph_can_be_used_twice() -> None:
    single, _ = networks()
    molecules = batch()
    parameters = list(single.parameters())
    predictions = FastModel(FastNetwork(single))(molecules, torch.arange(26) % 2 == 0, True)
    loss = predictions["forces"].square().sum() + predictions["energy"].square().sum()
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    second = torch.autograd.grad(loss, parameters)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_position_that_is_not_a_number_shows() -> None:
    single, _ = networks()
    molecules = batch()
    molecules.coord[2, 0, 0] = torch.nan
    model = FastModel(FastNetwork(single))
    for wanted in (torch.zeros(26, dtype=torch.bool), torch.arange(26) > 5, torch.arange(26) < 5):
        predictions = model(molecules, wanted, True)
        assert predictions["energy"].isnan().tolist() == [row == 2 for row in range(26)]
        forces = predictions.get("forces", torch.zeros_like(molecules.coord))
        assert not forces[torch.arange(26) != 2].isnan().any()
        assert not wanted[2] or forces[2].isnan().any()


def test_several_threads_give_the_same_to_rounding_and_always_the_same() -> None:
    single, _ = networks()
    molecules, wanted = batch(), torch.arange(26) % 3 != 1
    models = [FastModel(FastNetwork(single)) for _ in range(3)]
    for model in models[1:]:
        model.network.threads.count = 3
    one, *several = (evaluate(model, molecules, wanted) for model in models)
    for expected, first, second in zip(one, *several, strict=True):
        for key in expected:
            assert torch.equal(first[key], second[key]), key
            # sums in another order: a few float32 roundings
            torch.testing.assert_close(
                first[key], expected[key], rtol=1e-4, atol=1e-5 * float(expected[key].abs().max())
            )


def test_molecules_without_forces_are_evaluated_apart_with_the_same_result() -> None:
    """The plain model, in float64: the same numbers in another order."""
    _, double = networks()
    molecules = batch()
    molecules = molecules._replace(**{name: getattr(molecules, name).double() for name in ("coord", "charge", "mult")})
    wanted = torch.arange(26) % 3 != 1
    apart = evaluate(PlainModel(double), molecules, wanted)
    coord = molecules.coord.clone().requires_grad_()
    together = double(molecules._replace(coord=coord))
    forces = step_models.forces_from_energy(together.energy, coord)
    suites.assert_close(apart.predictions["energy"], together.energy.detach())
    suites.assert_close(apart.predictions["forces"][wanted], forces[wanted])
    suites.assert_close(apart.predictions["charges"], together.charges.detach())


def test_choice_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    single, double = networks()
    assert isinstance(step_model(single), FastModel)
    assert isinstance(step_model(double), PlainModel), "the kernels know float32 only"
    assert isinstance(step_model(nn.Linear(1, 1)), PlainModel)
    monkeypatch.setattr(step_models, "find_spec", lambda name: None)
    assert isinstance(step_model(single), PlainModel), "numba is optional"


@pytest.mark.usefixtures("two_threads")
def test_torch_leaves_the_threads_to_the_kernels() -> None:
    fast, plain = (step_model(network) for network in networks())
    for model, wanted in ((fast, 1), (plain, 2)):
        with threads_for(model):
            assert torch.get_num_threads() == wanted
        assert torch.get_num_threads() == 2
    assert isinstance(fast, FastModel)
    assert fast.network.threads.count == 2


@pytest.mark.usefixtures("two_threads")
def test_a_run_leaves_the_threads_to_the_kernels(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training and in validation."""
    genuine, seen = FastNetwork.forward, []

    def counted(self: FastNetwork, molecules: Molecules, wanted: Tensor) -> Prediction:
        seen.append((self.threads.count, torch.get_num_threads(), bool(wanted.any())))
        return genuine(self, molecules, wanted)

    monkeypatch.setattr(FastNetwork, "forward", counted)
    train(load_train_config(case, ["trainer.epochs=1", "compile.enabled=false"]))
    assert set(seen) == {(2, 1, True), (2, 1, False)}
    assert torch.get_num_threads() == 2


def test_what_is_said_of_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    single, double = networks()
    lines: list[str] = []
    compiled: list[list[str]] = []
    monkeypatch.setattr(warmup, "compile_kernels", lambda report, purposes: compiled.append(purposes))
    monkeypatch.setattr(warmup, "is_compiled", lambda purpose: True)
    prepare_kernels(single, lines.append)
    assert lines == []
    monkeypatch.setattr(warmup, "is_compiled", lambda purpose: False)
    prepare_kernels(double, lines.append)
    assert (lines, compiled) == ([], []), "float64 is trained by torch alone"
    prepare_kernels(single, lines.append)
    assert compiled == [[warmup.TRAINING]]
    assert [line.partition(" ")[0] for line in lines] == ["compiling", "the"]
    assert lines[1].endswith(": 0 s")

    def fails(report: object, purposes: object) -> None:
        raise OSError

    monkeypatch.setattr(warmup, "compile_kernels", fails)
    prepare_kernels(single, lines.append)
    assert len(lines) == 3, "there is no folder for them: the first step compiles"
    monkeypatch.setattr(step_models, "find_spec", lambda name: None)
    prepare_kernels(single, lines.append)
    assert "numba" in lines[3]


def test_every_kernel_is_compiled_beforehand() -> None:
    """With the compiled code on disk, training compiles nothing: numba is told to fail if it must."""
    warmup.compile_kernels(lambda line: None, [warmup.TRAINING])
    code = (
        "import numba.core.dispatcher as d\n"
        "def fail(self, *args): raise SystemExit(f'{self.py_func.__module__}.{self.py_func.__name__} was compiled')\n"
        "d._FunctionCompiler._compile_cached = fail\n"
        "import torch, test_fast_training as t\n"
        "for form in t.FORMS.values():\n"
        "    model = t.step_model(t.networks(**form)[0])\n"
        "    t.evaluate(model, t.batch(form.get('num_fidelities', 3)), torch.arange(26) % 3 != 1)\n"
        "print(type(model).__name__)\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "FastModel"
