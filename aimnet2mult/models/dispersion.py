"""The D3(BJ) dispersion correction as a module that goes into a compiled potential."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from aimnet2mult.errors import ConfigError
from aimnet2mult.physics import functionals
from aimnet2mult.physics.d3 import D3Data, d3_energy
from aimnet2mult.physics.functionals import D3Parameters

_TABLES: Final = Path(functionals.__file__).parent / "data" / "d3.npz"
_MAX_NUMBER: Final = len(chemical_symbols) - 1
# Places after the binary point of the stored data. All values lie below 2^14, so they fit 63 bits, and the rounding
# of 2^-49 is below the precision of a float64 for values above 16 and below 3e-15 relative for the rest.
_FRACTION_BITS: Final = 48


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
    chosen = np.unique(np.asarray(elements, dtype=np.int64))
    with np.load(_TABLES, allow_pickle=False) as tables:
        known = len(tables["r4r2"])
        beyond = chosen[(chosen < 1) | (chosen > known)]
        if len(chosen) == 0 or len(beyond) > 0:
            names = [chemical_symbols[z] if 0 < z <= _MAX_NUMBER else f"Z={z}" for z in beyond]
            raise ConfigError(
                f"D3 dispersion has no data for {', '.join(names) or 'a model without elements'}, only for H to "
                f"{chemical_symbols[known]}; use no dispersion for this model"
            )
        place = np.full(_MAX_NUMBER + 1, -1, dtype=np.int64)
        place[chosen] = np.arange(len(chosen))
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

    Energies agree with the dftd3 package; formulas and sources stand in `aimnet2mult.physics.d3`. The element data
    are kept as 64-bit fixed-point integers: ``.half()``, ``.float()`` or ``.to(dtype)`` on the module or on a
    compiled potential around it leaves integers alone, so the correction is float64 whatever users cast.

    Parameters
    ----------
    elements
        Atomic numbers that the correction has to know.
    parameters
        Damping parameters, for example from `aimnet2mult.physics.functionals.resolve_d3`.

    Raises
    ------
    ConfigError
        An element has no D3 data.
    """

    species: Tensor
    covalent_radius: Tensor
    r4r2: Tensor
    vdw_radius: Tensor
    reference_species: Tensor
    reference_cn: Tensor
    reference_c6: Tensor
    damping: D3Parameters
    resolution: float

    def __init__(self, elements: Sequence[int], parameters: D3Parameters) -> None:
        super().__init__()
        self.damping = parameters
        self.resolution = 2.0**-_FRACTION_BITS
        for name, values in load_d3_data(elements)._asdict().items():
            exact = values if values.dtype == torch.int64 else (values / self.resolution).round().to(torch.int64)
            self.register_buffer(name, exact)

    def forward(self, coord: Tensor, numbers: Tensor) -> Tensor:
        """Dispersion energy of each molecule.

        Parameters
        ----------
        coord
            (B, N, 3) Å, any float dtype; the arithmetic is float64.
        numbers
            (B, N) integer atomic numbers, 0 = padding.

        Returns
        -------
        Tensor
            (B,) float64 eV.

        Raises
        ------
        ValueError
            An atom is of an element that the module was not made for.
        """
        atoms = numbers.to(torch.int64)
        in_table = atoms.clamp(0, self.species.shape[0] - 1)
        unknown = (atoms != in_table) | ((self.species[in_table] < 0) & (atoms != 0))
        if bool(unknown.any()):
            raise ValueError(
                "dispersion: element with Z = " + str(int(atoms[unknown][0])) + " is not among those of this potential"
            )
        data = D3Data(
            self.species,
            self._floats(self.covalent_radius),
            self._floats(self.r4r2),
            self._floats(self.vdw_radius),
            self.reference_species,
            self._floats(self.reference_cn),
            self._floats(self.reference_c6),
        )
        return d3_energy(coord.to(torch.float64), atoms, data, self.damping)

    def _floats(self, fixed_point: Tensor) -> Tensor:
        return fixed_point.to(torch.float64) * self.resolution
