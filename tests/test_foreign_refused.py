"""Files that are no published AIMNet2 networks are refused."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from foreign_cases import TINY, bare, network, ours, rewritten, set_attribute, set_values, write
from published_program import AIMNet2
from torch import Tensor, nn

from aimnet2mult.errors import ModelFileError
from aimnet2mult.models.foreign import load_aimnet2_weights
from aimnet2mult.models.foreign_file import is_foreign, read_members


def test_elements_without_training_are_refused(tmp_path: Path) -> None:
    potential = load_aimnet2_weights(write(tmp_path / "one.jpt", network())).potential()
    with pytest.raises(RuntimeError, match="not trained on the element with atomic number 3"):
        ours(potential, bare("LiH", [[0, 0, 0], [0, 0, 1.6]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_attribute("aev._dual_basis", True), "aev._dual_basis = True instead of False"),
        (set_attribute("outputs.energy_mlp.apply_fn", "pow2"), "apply_fn = 'pow2'"),
        (set_attribute("outputs.d3bj.k3", -3.0), "outputs.d3bj.k3 = -3.0"),
        (set_attribute("outputs.d3bj.s8", float("inf")), "D3 parameters"),
        (set_values("afv.weight", lambda x: x.half()), "afv.weight that is not of finite"),
        (set_values("afv.weight", lambda x: x / 0.0), "afv.weight that is not of finite"),
        (set_values("afv.weight", lambda x: x[:, 1:].contiguous()), "an embedding of the shape"),
        (set_values("afv.weight", lambda x: x[0, 0].expand(10**6, 10**4)), "claim more numbers than the file holds"),
        (set_values("aev.shifts_s", lambda x: x**1.1), "not evenly spaced"),
        (set_values("aev.eta_s", lambda x: 2.0 * x), "not evenly spaced"),
        (set_values("outputs.lrcoulomb.rc", lambda x: -x), "rc"),
        (set_values("outputs.atomic_shift.shifts.weight", torch.zeros_like), "no element"),
        (set_values("outputs.d3bj.c6ab", lambda x: 1.01 * x), "table c6ab holds other values"),
        (set_values("outputs.d3bj.rcov", lambda x: x + 0.01), "table rcov holds other values"),
        (set_values("outputs.d3bj.c6ab", lambda x: x[:20, :20].contiguous()), "D3 table"),
        (set_values("conv_a.agh", lambda x: x[0].contiguous()), "conv_a.agh of the shape"),
        (lambda p: setattr(p.mlps[0], "5", nn.GELU()), "GELU at the ends"),
        (lambda p: setattr(p.mlps[1], "1", nn.SiLU()), "a perceptron of Linear, SiLU"),
        (lambda p: setattr(p.mlps[1], "1", nn.GELU(approximate="tanh")), "a perceptron of"),
        (set_values("mlps.0.4.weight", lambda x: x[:-1].contiguous()), "no layer mlps.0.4 with a weight and a bias"),
        (set_values("mlps.1.0.weight", lambda x: x[:, 1:].contiguous()), "inputs of mlps.1.0, not 52"),
        (lambda p: setattr(p.mlps[1], "2", nn.Linear(7, 16)), "outputs of mlps.1, not 17"),
        (lambda p: setattr(p.mlps[2], "4", nn.Linear(5, 8)), "outputs of mlps.2, not 9"),
        (lambda p: setattr(p.mlps[2], "2", nn.Linear(6, 5, bias=False)), "no layer mlps.2.2|outputs of mlps.2"),
        (set_values("conv_q.agh", lambda x: x[:, 1:].contiguous()), "conv_q.agh of the shape"),
        (set_values("aev.rc_s", lambda x: -x), "at a cutoff of -5.0"),
        (set_values("outputs.atomic_shift.shifts.weight", lambda x: torch.ones(130, 1)), "shifts of 130 elements"),
        (set_values("afv.weight", lambda x: x[:10].contiguous()), "shift but no embedding"),
        (lambda p: setattr(p, "spin", nn.Parameter(torch.zeros(2))), "a tensor spin of unknown meaning"),
    ],
)
def test_other_architectures_are_refused(tmp_path: Path, change: Callable[[AIMNet2], None], message: str) -> None:
    path = rewritten(tmp_path / "strange.jpt", change)
    with pytest.raises(ModelFileError, match=message) as caught:
        load_aimnet2_weights(path)
    assert str(caught.value).startswith(str(path))


def test_two_charge_channels_are_refused(tmp_path: Path) -> None:
    class TwoChannels(AIMNet2):
        def forward(self, coord: Tensor, numbers: Tensor, charge: Tensor) -> tuple[Tensor, Tensor]:
            return charge, coord

    path = write(tmp_path / "nse.jpt", TwoChannels(**TINY, n_charges=2))
    with pytest.raises(ModelFileError, match="2 charge channels; only closed-shell"):
        load_aimnet2_weights(path)


def test_other_files_are_refused(tmp_path: Path, potential_file: Path) -> None:
    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.slope(x)

    other = write(tmp_path / "line.jpt", Line())
    assert is_foreign(other)
    with pytest.raises(ModelFileError, match=r"no tensor afv\.weight, but slope\.bias, slope\.weight"):
        read_members(other)
    assert not is_foreign(potential_file)
    with pytest.raises(ModelFileError, match="not a TorchScript file of another package"):
        read_members(potential_file)
    torch.save({"a": torch.ones(2)}, tmp_path / "state.pt")
    (tmp_path / "text.jpt").write_text("no zip")
    for name in ("state.pt", "text.jpt"):
        assert not is_foreign(tmp_path / name)
        with pytest.raises(ModelFileError, match="not a TorchScript file of another package"):
            read_members(tmp_path / name)
    for missing in (tmp_path / "nothing.jpt", tmp_path):
        assert not is_foreign(missing)
        with pytest.raises(ModelFileError, match="does not exist or is no file"):
            read_members(missing)


def test_damage_and_wrong_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "one.jpt", network())
    for member in (-1, 1):
        with pytest.raises(ModelFileError, match=rf"has 1 networks \(0 to 0\), and none is {member}"):
            load_aimnet2_weights(path, member)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        place = max(archive.infolist(), key=lambda entry: entry.file_size).header_offset + 5000
    content[place] ^= 0xFF
    (tmp_path / "damaged.jpt").write_bytes(content)
    with pytest.raises(ModelFileError, match="fails its checksum"):
        read_members(tmp_path / "damaged.jpt")
    monkeypatch.setattr("aimnet2mult.models.foreign_file._MAX_BYTES", 1000)
    with pytest.raises(ModelFileError, match="too much for an AIMNet2 file"):
        read_members(path)
