"""The D3(BJ) dispersion correction as a module that goes into a compiled potential."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from aimnet2mult.models.dispersion_cutoffs import check_d3_cutoffs
from aimnet2mult.models.elements import check_elements_known, choose_elements
from aimnet2mult.models.fixed_point import from_fixed_point, to_fixed_point
from aimnet2mult.physics import functionals
from aimnet2mult.physics.d3 import D3Cutoffs, D3Data
from aimnet2mult.physics.d3_energy import D3Settings, d3_energy, longest_cutoff
from aimnet2mult.physics.damping import DampingParameters
from aimnet2mult.types import Molecules, NeighborLists
from aimnet2mult.units import ANGSTROM_PER_BOHR

_TABLES: Final = Path(functionals.__file__).parent / "data" / "d3.npz"
# Smooth ends, so that energies in crystals have the derivatives that forces and stress say. Two- and three-body terms
# end where they do in the dftd3 package, coordination numbers over the range around its sharp 40 Bohr.
DEFAULT_CUTOFFS: Final = D3Cutoffs(disp2=60.0, disp3=40.0, width2=3.0, width3=2.0, cn=41.0, width_cn=2.0)
MAX_PLAIN: Final = 64 * 63 // 2
BLOCK: Final = 32_768


def load_d3_data(elements: Sequence[int]) -> D3Data:
    """Read the D3 element data of some elements.

    Parameters
    ----------
    elements
        Atomic numbers, in any order.

    Returns
    -------
    D3Data
        Data of the elements in rising order, atomic units, float64 on the CPU.

    Raises
    ------
    ConfigError
        There is no element, or one has no D3 data.
    """
    with np.load(_TABLES, allow_pickle=False) as tables:
        known = len(tables["r4r2"])
        chosen, place = choose_elements(elements, known, "D3")
        reference_element = tables["reference_element"]
        kept = np.flatnonzero(np.isin(reference_element, chosen))
        vdw = _square(tables["vdw_radius"], known)
        c6 = _square(tables["reference_c6"], len(reference_element))
        return D3Data(
            species=torch.from_numpy(place),
            covalent_radius=torch.from_numpy(tables["covalent_radius"][chosen - 1]),
            r4r2=torch.from_numpy(tables["r4r2"][chosen - 1]),
            vdw_radius=torch.from_numpy(vdw[np.ix_(chosen - 1, chosen - 1)]),
            reference_species=torch.from_numpy(place[reference_element[kept]]),
            reference_cn=torch.from_numpy(tables["reference_cn"][kept]),
            reference_c6=torch.from_numpy(c6[np.ix_(kept, kept)]),
        )


def _square(packed: np.ndarray, size: int) -> np.ndarray:
    """Unpack the lower triangle of a symmetric matrix."""
    matrix = np.zeros((size, size))
    matrix[np.tril_indices(size)] = packed
    return np.maximum(matrix, matrix.T)  # all entries are positive


class D3BJ(nn.Module):
    """D3 dispersion energy with rational damping for a fixed set of elements.

    Energies agree with the dftd3 package at the same cutoffs (`aimnet2mult.models.dispersion_cutoffs.package_cutoffs`);
    formulas and sources stand in `aimnet2mult.physics.d3`. The element data are kept as fixed-point integers
    (`aimnet2mult.models.fixed_point`), so the correction is float64 whatever users cast.

    Parameters
    ----------
    elements
        Atomic numbers that the correction has to know.
    parameters
        Damping parameters, for example from `aimnet2mult.physics.functionals.resolve_d3`.
    cutoffs
        Real-space cutoffs, Bohr; by default those of the dftd3 package with smooth ends.

    Attributes
    ----------
    pair_cutoff
        Å, up to where a pair list has to reach.
    active
        False: contributes zeros.
    max_plain
        Pairs of one molecule, or of a pair list, that are left to plain automatic differentiation. Beyond, first
        derivatives are quicker and take less memory, and second derivatives are inf or NaN: raise it for the
        Hessian of a large molecule.
    block
        Pairs that are worked out at a time beyond `max_plain`.

    Raises
    ------
    ConfigError
        An element has no D3 data, or a cutoff or width makes no sense.
    """

    species: Tensor
    covalent_radius: Tensor
    r4r2: Tensor
    vdw_radius: Tensor
    reference_species: Tensor
    reference_cn: Tensor
    reference_c6: Tensor
    damping: DampingParameters
    cutoffs: D3Cutoffs
    pair_cutoff: float
    active: bool
    max_plain: int
    block: int

    def __init__(
        self, elements: Sequence[int], parameters: DampingParameters, cutoffs: D3Cutoffs = DEFAULT_CUTOFFS
    ) -> None:
        super().__init__()
        check_d3_cutoffs(cutoffs)
        self.damping = parameters
        self.cutoffs = cutoffs
        self.pair_cutoff = longest_cutoff(parameters, cutoffs) * ANGSTROM_PER_BOHR
        self.active = True
        self.max_plain = MAX_PLAIN
        self.block = BLOCK
        for name, values in load_d3_data(elements)._asdict().items():
            self.register_buffer(name, to_fixed_point(values))

    def forward(self, molecules: Molecules, lists: NeighborLists | None, charges: Tensor) -> Tensor:
        """Dispersion energy of each molecule or cell.

        Parameters
        ----------
        molecules
            Batch with coordinates of any float dtype; the arithmetic is float64.
        lists
            Cells and pairs up to `pair_cutoff` or more; None: molecules, all pairs.
        charges
            Not used: D3 knows elements and positions only.

        Returns
        -------
        Tensor
            (B,) float64 eV.

        Raises
        ------
        ValueError
            An atom is of an element that the module was not made for.
        """
        numbers = molecules.numbers.to(torch.int64)
        if not self.active:
            return torch.zeros(numbers.shape[0], dtype=torch.float64, device=numbers.device)
        check_elements_known(numbers, self.species)
        data = D3Data(
            self.species,
            from_fixed_point(self.covalent_radius),
            from_fixed_point(self.r4r2),
            from_fixed_point(self.vdw_radius),
            self.reference_species,
            from_fixed_point(self.reference_cn),
            from_fixed_point(self.reference_c6),
        )
        settings = D3Settings(self.damping, self.cutoffs, self.max_plain, self.block)
        return d3_energy(molecules.coord.to(torch.float64), numbers, lists, data, settings)
