"""The D3(BJ) term inside published AIMNet2 files."""

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from aimnet2mult.errors import ModelFileError
from aimnet2mult.models.dispersion import D3BJ, load_d3_data
from aimnet2mult.models.fixed_point import to_fixed_point
from aimnet2mult.physics.damping import DampingParameters

SLOTS: Final = 5  # reference systems that the published tables provide for each element
EMPTY_CN: Final = -1.0
_SAME: Final = 1e-6  # relative; the published tables are float32


class PublishedD3(D3BJ):
    """Two-body D3(BJ) in which empty reference slots count, as in the published AIMNet2 programs.

    Their table has five slots per element. A slot without a reference system (three of hydrogen's) holds the
    coordination number -1 and a C6 of zero, and takes part in the weighted mean: C6 of an atom without neighbours
    comes out up to 5 % too small, that of an atom with one bond or more by less than 1e-6. The networks were trained
    around this term, so it has to be kept. For the rest it is `aimnet2mult.models.dispersion.D3BJ`, cutoffs included:
    the published programs sum over all pairs of a molecule.

    Parameters
    ----------
    elements, parameters
        As for `D3BJ`; s9 must be 0.
    """

    def __init__(self, elements: Sequence[int], parameters: DampingParameters) -> None:
        super().__init__(elements, parameters)
        counts = torch.bincount(self.reference_species, minlength=len(set(elements)))
        empty = torch.repeat_interleave(torch.arange(counts.shape[0]), SLOTS - counts)
        filled, total = self.reference_species.shape[0], self.reference_species.shape[0] + empty.shape[0]
        c6 = self.reference_c6.new_zeros((total, total))
        c6[:filled, :filled] = self.reference_c6
        cn = to_fixed_point(torch.full((empty.shape[0],), EMPTY_CN, dtype=torch.float64))
        self.register_buffer("reference_species", torch.cat([self.reference_species, empty]))
        self.register_buffer("reference_cn", torch.cat([self.reference_cn, cn]))
        self.register_buffer("reference_c6", c6)


def check_tables(tables: Mapping[str, Tensor], elements: Sequence[int]) -> None:
    """Refuse D3 tables that are not those that `PublishedD3` uses.

    Parameters
    ----------
    tables
        ``c6ab`` (Z, Z, 5, 5, 3): C6 and the two coordination numbers of each pair of reference systems;
        ``r4r2``, ``rcov`` (Z,); atomic units.
    elements
        Atomic numbers that matter.

    Raises
    ------
    ModelFileError
        A value differs; the message names the table.
    """
    data = load_d3_data(elements)
    z = torch.as_tensor(sorted(elements))
    c6ab = tables["c6ab"]
    if c6ab.dim() != 5 or c6ab.shape[0] <= int(z.max()) or c6ab.shape != (c6ab.shape[0],) * 2 + (SLOTS, SLOTS, 3):
        raise ModelFileError(f"its D3 table c6ab has the shape {tuple(c6ab.shape)}, which is not known here")
    expected = {"r4r2": data.r4r2, "rcov": data.covalent_radius}
    expected["c6ab"] = _expanded(data.reference_species, data.reference_cn, data.reference_c6, len(z))
    found = {name: tables[name][z] for name in ("r4r2", "rcov") if tables[name].shape == c6ab.shape[:1]}
    found["c6ab"] = c6ab[z][:, z]
    for name, values in expected.items():
        if name not in found or not torch.allclose(found[name].double(), values, rtol=_SAME, atol=_SAME):
            raise ModelFileError(f"its D3 table {name} holds other values than the D3 method of Grimme and co-workers")


def _expanded(species: Tensor, cn: Tensor, c6: Tensor, n_elements: int) -> Tensor:
    """(S, S, 5, 5, 3) table with empty slots from the packed reference systems."""
    same = species.unsqueeze(0) == species.unsqueeze(1)
    place = species * SLOTS + same.tril(-1).sum(1)  # slot of each reference system
    size = n_elements * SLOTS
    full_c6, full_cn = c6.new_zeros(size, size), torch.full((size,), EMPTY_CN, dtype=cn.dtype)
    full_c6[place.unsqueeze(1), place] = c6
    full_cn[place] = cn
    table = torch.stack([full_c6, full_cn.unsqueeze(1).expand(-1, size), full_cn.expand(size, -1)], dim=-1)
    return table.view(n_elements, SLOTS, n_elements, SLOTS, 3).transpose(1, 2)
