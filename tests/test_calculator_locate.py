"""Which file the calculator takes."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from structures import water

from aimnet2mult import AIMNet2MultCalculator
from aimnet2mult.errors import InputError, ModelFileError


@pytest.mark.parametrize("fidelity", [1, "CCSD(T)", "ccsd(t)"])
def test_fidelity_picks_a_file(potential_file: Path, fidelity: int | str) -> None:
    for model in (potential_file.parent, str(potential_file.parent), potential_file.with_name("model")):
        calc = AIMNet2MultCalculator(model, fidelity=fidelity, device="cpu")
        assert calc.fidelity == 1
        assert calc.metadata.fidelity.name == "CCSD(T)"
    assert AIMNet2MultCalculator(potential_file, fidelity="PBE0", device="cpu").fidelity == 0


def test_fidelity_that_is_not_there(potential_file: Path, tmp_path: Path) -> None:
    folder, there = potential_file.parent, "0 'PBE0' (model_fid0.jpt), 1 'CCSD(T)' (model_fid1.jpt)"
    beside = "1 'CCSD(T)' is a file beside it: give the folder instead"
    for model, fidelity, sentence in [
        (folder, None, f"{folder} has several fidelities: {there}; choose one with fidelity="),
        (folder, 2, f"{folder} has no fidelity 2; there is {there}"),
        (folder / "model", "PBE", f"{folder / 'model'} has no fidelity 'PBE'; there is {there}"),
        (potential_file, 1, f"{potential_file} has no fidelity 1; there is 0 'PBE0' (model_fid0.jpt); {beside}"),
    ]:
        with pytest.raises(InputError) as caught:
            AIMNet2MultCalculator(model, fidelity=fidelity, device="cpu")
        assert str(caught.value) == sentence
    lonely = shutil.copy(potential_file, tmp_path / "lonely.jpt")
    calc = AIMNet2MultCalculator(lonely, device="cpu")
    with pytest.raises(InputError, match=r"lonely.jpt has no fidelity 1; there is 0 'PBE0' \(lonely.jpt\)"):
        calc.fidelity = 1
    calc.fidelity = "PBE0"


def test_one_file_needs_no_fidelity_and_two_equal_ones_are_refused(potential_file: Path, tmp_path: Path) -> None:
    shutil.copy(potential_file, tmp_path / "a_fid0.jpt")
    assert AIMNet2MultCalculator(tmp_path, device="cpu").fidelity == 0
    shutil.copy(potential_file, tmp_path / "a_fid1.jpt")
    with pytest.raises(InputError, match="several files are fidelity 0, give one of them as model"):
        AIMNet2MultCalculator(tmp_path, fidelity=0, device="cpu")
    (tmp_path / "a_fid1.jpt").rename(tmp_path / "b_fid0.jpt")
    with pytest.raises(InputError) as caught:
        AIMNet2MultCalculator(tmp_path, fidelity=0, device="cpu")
    assert str(caught.value) == (
        f"{tmp_path / 'b_fid0.jpt'} and {tmp_path / 'a_fid0.jpt'} are the same potential; "
        "give each member of an ensemble once"
    )


def test_files_that_are_none(tmp_path: Path, potential_file: Path) -> None:
    (tmp_path / "text.jpt").write_text("no model")
    (tmp_path / "short.jpt").write_bytes(potential_file.read_bytes()[:1000])
    for model, error, match in [
        (tmp_path, ModelFileError, "holds no"),
        (tmp_path / "missing.jpt", ModelFileError, "does not exist"),
        (tmp_path / "text.jpt", ModelFileError, "damaged, or another kind of file"),
        (tmp_path / "short.jpt", ModelFileError, "damaged, or another kind of file"),
        ("", InputError, "model must be the path of a .jpt file"),
        (None, InputError, "model must be the path of a .jpt file"),
    ]:
        with pytest.raises(error, match=match):
            AIMNet2MultCalculator(model, device="cpu")


def test_64_overwritten_bytes_are_noticed(tmp_path: Path, potential_file: Path) -> None:
    """Wherever they are, compressed program text included; padding between entries is the only harmless place."""
    whole = potential_file.read_bytes()
    expected = AIMNet2MultCalculator(potential_file, device="cpu").get_potential_energy(water())
    rng = np.random.default_rng(0)
    refused = 0
    for start in rng.integers(0, len(whole) - 64, 60):
        spoilt = bytearray(whole)
        spoilt[start : start + 64] = rng.bytes(64)
        (tmp_path / "spoilt.jpt").write_bytes(spoilt)
        try:
            calc = AIMNet2MultCalculator(tmp_path / "spoilt.jpt", device="cpu")
        except ModelFileError:
            refused += 1
        else:
            assert calc.get_potential_energy(water()) == expected
    assert refused > 50


def test_relative_path_survives_a_change_of_folder(potential_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(potential_file.parent)
    calc = AIMNet2MultCalculator("model", fidelity=0, device="cpu")
    monkeypatch.chdir("/")
    calc.fidelity = 1
    assert pickle.loads(pickle.dumps(calc)).get_potential_energy(water()) == calc.get_potential_energy(water())
