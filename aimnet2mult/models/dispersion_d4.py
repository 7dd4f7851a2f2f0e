"""The D4 dispersion correction as a module that goes into a compiled potential."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from aimnet2mult.errors import ConfigError
from aimnet2mult.models.dispersion_cutoffs import check_d4_cutoffs
from aimnet2mult.models.elements import check_elements_known, choose_elements
from aimnet2mult.models.fixed_point import from_fixed_point, to_fixed_point
from aimnet2mult.physics import functionals_d4
from aimnet2mult.physics.d4 import D4Cutoffs, D4Data, largest_contact
from aimnet2mult.physics.d4_energy import D4Settings, d4_energy
from aimnet2mult.physics.damping import DampingParameters
from aimnet2mult.physics.eeq import EEQData, smallest_real_cutoff
from aimnet2mult.types import Molecules, NeighborLists
from aimnet2mult.units import ANGSTROM_PER_BOHR

CHARGE_SOURCES: Final = ("eeq", "network")
# Those of the dftd4 package but for the smooth ends, so that energies in crystals have the derivatives that forces and
# stress say
DEFAULT_CUTOFFS: Final = D4Cutoffs(disp2=60.0, disp3=40.0, width2=3.0, width3=2.0)
MAX_PLAIN: Final = 50_000
MAX_MATRIX: Final = 4_000_000

_TABLES: Final = Path(functionals_d4.__file__).parent / "data" / "d4.npz"


def load_d4_data(elements: Sequence[int]) -> tuple[D4Data, EEQData]:
    """Read the D4 element data of some elements and work out the C6 coefficients of their reference systems.

    Parameters
    ----------
    elements
        Atomic numbers, in any order.

    Returns
    -------
    D4Data, EEQData
        Data of the elements in rising order, atomic units, float64 on the CPU.

    Raises
    ------
    ConfigError
        There is no element, or one has no D4 data.
    """
    with np.load(_TABLES, allow_pickle=False) as tables:
        known = len(tables["r4r2"])
        chosen, place = choose_elements(elements, known, "D4")
        of_element = {name: torch.from_numpy(tables[name][chosen - 1]) for name in tables if len(tables[name]) == known}
        kept = np.flatnonzero(np.isin(tables["reference_element"], chosen))
        # Casimir-Polder integral of every pair of reference systems ([1] of `aimnet2mult.physics.d4`, eq. 5)
        alpha = tables["reference_alpha"][kept]
        c6 = 3.0 / math.pi * (alpha * tables["frequency_weight"]) @ alpha.T
        counts = tables["reference_gaussians"][kept]
        owner = np.repeat(np.arange(len(kept)), counts)
        data = D4Data(
            species=torch.from_numpy(place),
            covalent_radius=of_element["covalent_radius"],
            electronegativity=of_element["electronegativity"],
            r4r2=of_element["r4r2"],
            hardness=of_element["hardness"],
            effective_charge=of_element["effective_charge"],
            reference_species=torch.from_numpy(place[tables["reference_element"][kept]]),
            reference_charge=torch.from_numpy(tables["reference_charge"][kept]),
            reference_c6=torch.from_numpy(0.5 * (c6 + c6.T)),
            gaussian_reference=torch.from_numpy(owner),
            gaussian_cn=torch.from_numpy(tables["reference_cn"][kept][owner]),
            gaussian_factor=torch.from_numpy(np.concatenate([np.arange(1.0, count + 1.0) for count in counts])),
        )
        eeq = EEQData(*(of_element[f"eeq_{name}"] for name in EEQData._fields))
    return data, eeq


class D4(nn.Module):
    """D4 dispersion energy for a fixed set of elements.

    Energies agree with the dftd4 package at the same cutoffs (`aimnet2mult.models.dispersion_cutoffs.package_cutoffs`);
    formulas and sources stand in `aimnet2mult.physics.d4`. The element data are kept as fixed-point integers
    (`aimnet2mult.models.fixed_point`), so the correction is float64 whatever users cast.

    Parameters
    ----------
    elements
        Atomic numbers that the correction has to know.
    parameters
        Damping parameters, for example from `aimnet2mult.physics.functionals_d4.resolve_d4`.
    charges
        'eeq': polarisabilities are scaled by charges from electronegativity equilibration, as in the dftd4 package;
        'network': by the charges that the network predicts, with gradients through them.
    cutoffs
        Real-space cutoffs, Bohr; by default those of the dftd4 package with smooth ends.

    Attributes
    ----------
    pair_cutoff
        Å, up to where a pair list has to reach.
    active
        False: contributes zeros.
    max_plain
        Pairs or triangles of a batch that are left to plain automatic differentiation. Beyond, first derivatives are
        quicker and take less memory, and second derivatives are inf or NaN: raise it for the Hessian of a large
        molecule.
    max_matrix
        The same for elements of the matrices over all pairs of slots, which are the cheaper part.

    Raises
    ------
    ConfigError
        An element has no D4 data, or a setting makes no sense.
    """

    species: Tensor
    covalent_radius: Tensor
    electronegativity: Tensor
    r4r2: Tensor
    hardness: Tensor
    effective_charge: Tensor
    reference_species: Tensor
    reference_charge: Tensor
    reference_c6: Tensor
    gaussian_reference: Tensor
    gaussian_cn: Tensor
    gaussian_factor: Tensor
    eeq_chi: Tensor
    eeq_eta: Tensor
    eeq_kcn: Tensor
    eeq_radius: Tensor
    damping: DampingParameters
    cutoffs: D4Cutoffs
    equilibrate: bool
    pair_cutoff: float
    active: bool
    max_plain: int
    max_matrix: int

    def __init__(
        self,
        elements: Sequence[int],
        parameters: DampingParameters,
        charges: str = "eeq",
        cutoffs: D4Cutoffs = DEFAULT_CUTOFFS,
    ) -> None:
        super().__init__()
        if charges not in CHARGE_SOURCES:
            raise ConfigError(f"D4 charges must be one of {', '.join(CHARGE_SOURCES)}, not {charges!r}")
        check_d4_cutoffs(cutoffs)
        data, eeq = load_d4_data(elements)
        for name, values in data._asdict().items():
            self.register_buffer(name, to_fixed_point(values))
        for name, values in eeq._asdict().items():
            self.register_buffer(f"eeq_{name}", to_fixed_point(values))
        self.damping = parameters
        self.cutoffs = cutoffs
        self.equilibrate = charges == "eeq"
        reach = max(cutoffs.disp2, cutoffs.disp3, largest_contact(data), smallest_real_cutoff(eeq.radius))
        self.pair_cutoff = reach * ANGSTROM_PER_BOHR
        self.active = True
        self.max_plain = MAX_PLAIN
        self.max_matrix = MAX_MATRIX

    def forward(self, molecules: Molecules, lists: NeighborLists | None, charges: Tensor) -> Tensor:
        """Dispersion energy of each system.

        Parameters
        ----------
        molecules
            Batch with coordinates of any float dtype; the arithmetic is float64.
        lists
            Cells and pairs up to `pair_cutoff` or more; None: molecules.
        charges
            (B, N) e, predicted by the network.

        Returns
        -------
        Tensor
            (B,) float64 eV.

        Raises
        ------
        ValueError
            An atom is of an element that the module was not made for; a cell is periodic in one or two directions
            only and charges are to be equilibrated.
        """
        numbers = molecules.numbers.to(torch.int64)
        if not self.active:
            return torch.zeros(numbers.shape[0], dtype=torch.float64, device=numbers.device)
        check_elements_known(numbers, self.species)
        coord = molecules.coord.to(torch.float64)
        batch = Molecules(coord, numbers, molecules.charge, molecules.mult, molecules.fidelity)
        max_matrix = max(self.max_matrix, self.max_plain)
        settings = D4Settings(self.damping, self.cutoffs, self.equilibrate, self.max_plain, max_matrix)
        data, eeq = self._data()
        return d4_energy(batch, lists, charges.to(torch.float64), data, eeq, settings, self.pair_cutoff)

    def _data(self) -> tuple[D4Data, EEQData]:
        data = D4Data(
            self.species,
            from_fixed_point(self.covalent_radius),
            from_fixed_point(self.electronegativity),
            from_fixed_point(self.r4r2),
            from_fixed_point(self.hardness),
            from_fixed_point(self.effective_charge),
            self.reference_species,
            from_fixed_point(self.reference_charge),
            from_fixed_point(self.reference_c6),
            self.gaussian_reference,
            from_fixed_point(self.gaussian_cn),
            from_fixed_point(self.gaussian_factor),
        )
        eeq = EEQData(
            from_fixed_point(self.eeq_chi),
            from_fixed_point(self.eeq_eta),
            from_fixed_point(self.eeq_kcn),
            from_fixed_point(self.eeq_radius),
        )
        return data, eeq
