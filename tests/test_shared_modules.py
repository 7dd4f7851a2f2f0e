"""Copies and threads share loaded potentials, whose settings a Hessian changes for a while."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import suites
from ase import Atoms
from ase.build import molecule
from ase.neighborlist import neighbor_list
from conftest import FIDELITIES, SAE

from aimnet2mult import AIMNet2MultCalculator
from aimnet2mult.configs.dispersion import DispersionSettings
from aimnet2mult.datasets.sae_file import write_sae
from aimnet2mult.errors import InputError
from aimnet2mult.models.files import save_weights
from aimnet2mult.training.compile import compile_potential
from aimnet2mult.units import ANGSTROM_PER_BOHR

REACH = 60.0 * ANGSTROM_PER_BOHR  # Å, of D3 pairs by default


def compiled(folder: Path, dispersion: DispersionSettings, coulomb: bool = False) -> Path:
    changes = {} if coulomb else {"outputs": {"lrcoulomb": None}}
    network = suites.network(num_fidelities=1, **changes).float()
    save_weights(folder / "model.pt", network, FIDELITIES[:1], {}, {0: SAE})
    write_sae(folder / "sae.yaml", SAE)
    return compile_potential(folder / "model.pt", folder / "model", 0, folder / "sae.yaml", dispersion=dispersion)


def test_hessians_of_several_threads_leave_the_settings(tmp_path: Path) -> None:
    calc = AIMNet2MultCalculator(
        compiled(tmp_path, DispersionSettings(method="d3bj", functional="pbe0")), device="cpu", dtype="float64"
    )
    (term,) = calc._prepared(molecule("H2O")).modules[0].terms.children()
    before = int(term.max_plain)
    names = ["CH4", "C2H6", "H2O"] * 3
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda name: copy.copy(calc).get_hessian(molecule(name)), names))
    assert int(term.max_plain) == before
    for name, one in zip(names, found, strict=True):
        np.testing.assert_allclose(one, calc.get_hessian(molecule(name)), atol=1e-9)


def test_dispersion_that_is_replaced_needs_no_pairs(tmp_path: Path) -> None:
    path = compiled(tmp_path, DispersionSettings(method="d3bj", functional="pbe0"))
    crystal = Atoms("OHH", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], cell=[4.0, 4.0, 4.0], pbc=True)
    with_it = AIMNet2MultCalculator(path, device="cpu")
    replaced = AIMNet2MultCalculator(path, device="cpu", dispersion="d3bj", functional="pbe0", replace_dispersion=True)
    n_directed = len(neighbor_list("i", crystal, REACH))  # ASE counts both directions
    assert with_it._prepared(crystal).data["pair_index"].shape[0] == n_directed // 2
    assert replaced._prepared(crystal).data["pair_index"].shape[0] == 0
    # float32 networks agree with themselves; both corrections are those of the dftd3 package
    assert replaced.get_potential_energy(crystal) == pytest.approx(with_it.get_potential_energy(crystal), abs=1e-9)


def test_what_lattice_sums_cannot_do_is_said_at_the_door(tmp_path: Path) -> None:
    calc = AIMNet2MultCalculator(compiled(tmp_path, DispersionSettings(method="d4", functional="pbe0")), device="cpu")
    slab = Atoms("CO", [[0, 0, 0], [0, 0, 1.2]], cell=[3, 3, 0], pbc=[True, True, False])
    with pytest.raises(InputError, match=r"^the D4 charges of a system that is periodic in 2 of 3 directions"):
        calc.get_potential_energy(slab)
    with pytest.raises(InputError, match=r"^structure 1: the D4 charges"):
        calc.evaluate([molecule("H2O"), slab])
    empty = Atoms("CO", [[0, 0, 0], [0, 0, 1.2]], cell=[500, 500, 500], pbc=True)
    with pytest.raises(
        InputError, match=r"a cell of 1\.3e\+08 Å\^3 is too large for its lattice sums; set pbc to False"
    ):
        calc.get_potential_energy(empty)
