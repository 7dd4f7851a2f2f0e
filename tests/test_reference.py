"""The network against a naive second writing of the published formulas.

Anstine, Zubatyuk, Isayev, Chem. Sci. 2025, 16, 10228 (AIMNet2), with two charge channels as in AIMNet2-NSE
(10.1002/anie.202516763). Everything here goes over one molecule, atom by atom and pair by pair, and takes nothing
but numbers out of the network: no function of the package under test, no batch, no padding, no matrix layout.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import suites
import torch
from ase import Atoms
from torch import Tensor

COULOMB = 14.3996454784255  # e^2 / (4 pi eps0) in eV Å, CODATA 2018
MINIMUM_WEIGHT = 1e-6


class Reference:
    """One molecule at one fidelity."""

    def __init__(self, state: dict[str, Tensor], settings: Any, atoms: Atoms, fidelity: int) -> None:
        self.state, self.settings, self.fidelity = state, settings, fidelity
        self.n = len(atoms)
        self.z = [int(number) for number in atoms.numbers]
        self.x = torch.from_numpy(atoms.positions)
        charge, spin = float(atoms.info["charge"]), float(atoms.info["mult"]) - 1.0
        # alpha and beta: their sum is the charge, their difference the number of unpaired electrons
        two = [(charge + spin) / 2.0, (charge - spin) / 2.0]
        self.totals = [charge] if settings.num_charge_channels == 1 else two

    def distance(self, i: int, j: int) -> Tensor:
        return (self.x[i] - self.x[j]).square().sum().sqrt()

    def gaussians(self, i: int, j: int) -> Tensor:
        """exp(-eta (r - r_k)^2) f_c(r) for all k, zero beyond the cutoff."""
        aev = self.settings.aev
        r, spacing = float(self.distance(i, j)), (aev.rc_s - aev.rmin) / aev.nshifts_s
        if r >= aev.rc_s:
            return torch.zeros(aev.nshifts_s, dtype=torch.float64)
        switch = 0.5 * (1.0 + math.cos(math.pi * r / aev.rc_s))
        values = []
        for k in range(aev.nshifts_s):
            # centres are kept in float32 by the network
            centre = float(torch.tensor(aev.rmin + k * spacing, dtype=torch.float64).float())
            values.append(switch * math.exp(-((r - centre) ** 2) / spacing**2))
        return torch.tensor(values, dtype=torch.float64)

    def embedding(self) -> list[Tensor]:
        shared, own = (self.state.get(f"backbone.embedding.{name}") for name in ("weight", "difference_weight"))
        assert shared is not None
        if own is None:
            return [shared[self.fidelity, z] for z in self.z]
        return [shared[0, z] + own[self.fidelity, z] for z in self.z]

    def environment(self, values: list[Tensor], mix: Tensor) -> list[Tensor]:
        """Scalar sums, then squared lengths of mixed vector sums, of the channels `values` (C, G) of each atom."""
        found = []
        for i in range(self.n):
            scalar = torch.zeros_like(values[0])
            vector = torch.zeros((*values[0].shape, 3), dtype=torch.float64)
            for j in range(self.n):
                if j == i:
                    continue
                term = values[j] * self.gaussians(i, j)
                scalar = scalar + term
                vector = vector + term[..., None] * (self.x[j] - self.x[i]) / self.distance(i, j)
            mixed = torch.einsum("cgh,cgd->chd", mix, vector)
            found.append(torch.cat([scalar.flatten(), (mixed**2).sum(-1).flatten()]))
        return found

    def inputs(self, features: list[Tensor], charges: list[Tensor] | None) -> list[Tensor]:
        """What a message pass sees: own features and charges, and the surroundings of both."""
        s = self.settings
        shape = (s.nfeature, s.aev.nshifts_s if s.d2features else 1)
        mix = self.state["backbone.convolution.mix"]
        channels = [f.reshape(shape).expand(s.nfeature, s.aev.nshifts_s) for f in features]
        if charges is None:
            return [
                torch.cat(pair) for pair in zip(features, self.environment(channels, mix[: s.nfeature]), strict=True)
            ]
        channels = [torch.cat([c, q[:, None].expand(-1, c.shape[1])]) for c, q in zip(channels, charges, strict=True)]
        around = self.environment(channels, mix)
        return [torch.cat(parts) for parts in zip(features, charges, around, strict=True)]

    def perceptron(self, name: str, x: Tensor) -> Tensor:
        """Linear layers with GELU between them, stored under even numbers."""
        last = max(int(key.split(".")[-2]) for key in self.state if key.startswith(name + "."))
        for k in range(0, last + 1, 2):
            x = self.state[f"{name}.{k}.weight"] @ x + self.state[f"{name}.{k}.bias"]
            if k < last:
                x = gelu(x)
        return x

    def head(self, name: str, x: Tensor) -> Tensor:
        """A perceptron of this fidelity; its weights are stored input first."""
        last = max(int(key.split(".")[-2]) for key in self.state if key.startswith(name + "."))
        for k in range(last + 1):
            weight, bias = (self.state[f"{name}.{k}.{part}"][self.fidelity] for part in ("weight", "bias"))
            x = x @ weight + bias[0]
            if k < last:
                x = gelu(x)
        return x

    def equilibrated(self, raw: list[Tensor], response: list[Tensor]) -> list[Tensor]:
        """What is missing to the total of each channel, dealt out in proportion to squared weights."""
        charges = [q.clone() for q in raw]
        for c, total in enumerate(self.totals):
            weights = [float(f[c]) ** 2 + MINIMUM_WEIGHT for f in response]
            missing = total - sum(float(q[c]) for q in raw)
            for i in range(self.n):
                charges[i][c] += weights[i] / sum(weights) * missing
        return charges

    def result(self) -> tuple[float, list[float], list[float]]:
        """Energy (eV), charges and spin charges (e)."""
        c = len(self.totals)
        features = self.embedding()
        charges: list[Tensor] | None = None
        for number in range(len(self.settings.hidden) - 1):
            name = "backbone.first" if number == 0 else f"backbone.middle.{number - 1}"
            update = [self.perceptron(name, x) for x in self.inputs(features, charges)]
            before = charges or [torch.zeros(c, dtype=torch.float64)] * self.n
            raw = [q + u[:c] for q, u in zip(before, update, strict=True)]
            charges = self.equilibrated(raw, [u[c : 2 * c] for u in update])
            features = [f + u[2 * c :] for f, u in zip(features, update, strict=True)]
        final = [self.perceptron("backbone.last", x) for x in self.inputs(features, charges)]
        assert charges is not None
        update = [self.head("charges.readouts.0.layers", a) for a in final]
        channels = self.equilibrated([q + u[:c] for q, u in zip(charges, update, strict=True)], [u[c:] for u in update])
        total = [float(q.sum()) for q in channels]
        spin = [float(q[0] - q[1]) if c == 2 else 0.0 for q in channels]
        energy = sum(float(self.head("energy_mlp.mlp.layers", a)) for a in final)
        energy += sum(float(self.state["atomic_shift.0.shift"][self.fidelity, z]) for z in self.z)
        return energy + self.coulomb(total), total, spin

    def coulomb(self, charges: list[float]) -> float:
        energy, cutoff = 0.0, self.settings.outputs.lrcoulomb.kwargs.rc
        for i in range(self.n):
            for j in range(i):
                r = float(self.distance(i, j))
                inside = math.exp(1.0 - 1.0 / (1.0 - (r / cutoff) ** 2)) if r < cutoff else 0.0
                energy += COULOMB * (1.0 - inside) * charges[i] * charges[j] / r
        return energy


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))


def molecules() -> list[Atoms]:
    """An ion, a radical with pairs beyond both cutoffs, a triplet."""
    far = suites.structure("CH3CO", 0, 2, seed=2)
    far.positions[-1] += far.positions[-1] / (far.positions[-1] ** 2).sum() ** 0.5 * 5.0
    return [suites.structure("CH3O", -1, 1, seed=1), far, suites.structure("CH2_s3B1d", 0, 3, seed=3)]


@pytest.mark.parametrize("embedding", ["difference", "separate"])
@pytest.mark.parametrize("per_shift", [True, False])
@pytest.mark.parametrize("channels", [1, 2])
def test_network_is_the_published_one(channels: int, per_shift: bool, embedding: str) -> None:
    network = suites.network(
        num_fidelities=2, num_charge_channels=channels, d2features=per_shift, fidelity_embedding=embedding
    )
    state = {name: value.detach() for name, value in network.state_dict().items()}
    energies = []
    for atoms in molecules():
        for fidelity in range(2):
            with torch.no_grad():
                found = network(suites.collate([atoms], fidelity))
            energy, charges, spin = Reference(state, network.config.kwargs, atoms, fidelity).result()
            # the same float64 numbers in another order; and the Coulomb constant to all digits
            assert abs(float(found.energy) - energy) < 1e-9
            for values, expected in ((found.charges, charges), (found.spin_charges, spin)):
                assert (values[0] - torch.tensor(expected, dtype=torch.float64)).abs().max() < 1e-9
            energies.append(energy)
    # fidelities and molecules differ, or the comparison proves little
    assert min(abs(a - b) for i, a in enumerate(energies) for b in energies[:i]) > 1e-3


def test_molecules_reach_beyond_the_cutoffs() -> None:
    settings = suites.model_config().kwargs
    assert settings.outputs.lrcoulomb is not None
    distances = [float(d) for atoms in molecules() for d in atoms.get_all_distances().flatten() if d > 0]
    assert max(distances) > settings.aev.rc_s > settings.outputs.lrcoulomb.kwargs.rc > min(distances)
    assert any(settings.outputs.lrcoulomb.kwargs.rc < d for d in distances)
