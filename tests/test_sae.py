"""Self-atomic energies: the fit, its warnings, its file, and the command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from data_files import methane, two_fidelities, water, write

from aimnet2mult.datasets.reader import CompositionTable, MultiFidelityDataset
from aimnet2mult.datasets.sae import (
    check_sae_covers,
    fit_sae,
    read_sae,
    sae_array,
    sae_residuals,
    unit_warning,
    write_sae,
)
from aimnet2mult.errors import DataError
from aimnet2mult.training.calc_sae import main

TRUE = {1: -16.4, 6: -1035.1, 7: -1486.9, 8: -2043.3}
ELEMENTS = sorted(TRUE)


def table(
    counts: Sequence[Sequence[int]] | np.ndarray, energies: np.ndarray, elements: Sequence[int]
) -> CompositionTable:
    counts = np.asarray(counts, dtype=np.uint16)
    return CompositionTable(np.arange(len(counts)), list(elements), counts, energies, np.zeros(len(counts)))


def random_table(n: int = 400, noise: float = 0.0, scale: float = 1.0) -> CompositionTable:
    rng = np.random.default_rng(0)
    counts = np.unique(rng.integers(0, 9, (4 * n, 4)) + 1, axis=0)
    counts = rng.permutation(counts)[:n]
    energies = counts @ np.array([TRUE[z] for z in ELEMENTS]) + noise * rng.standard_normal(n)
    return table(counts, scale * energies, ELEMENTS)


def test_exact_sums_are_found_exactly() -> None:
    fit = fit_sae(random_table())
    # energies reach 4e4 eV, where float64 resolves 7e-12 eV
    assert fit.values == pytest.approx(TRUE, abs=1e-9)
    assert fit.warnings == ()
    assert fit.outliers == ()
    assert fit.rmse < 1e-9


def test_wrong_rows_do_not_matter() -> None:
    data = random_table(noise=0.1)
    clean = fit_sae(data).values
    spoilt = data.energies.copy()
    spoilt[::10] += np.linspace(1e3, 1e6, 40)
    fit = fit_sae(data._replace(energies=spoilt))
    assert fit.values == pytest.approx(clean, abs=0.05)
    assert fit.outliers[0][0] in range(0, 400, 10)
    assert len(fit.outliers) == 5
    least_squares = np.linalg.lstsq(data.counts.astype(float), spoilt, rcond=None)[0]
    assert np.abs(least_squares - list(TRUE.values())).max() > 100  # what robustness spares us


def test_many_geometries_of_one_molecule_do_not_rule() -> None:
    data = random_table(noise=0.3)
    many = np.concatenate([np.arange(400), np.zeros(100_000, dtype=int)])
    repeated = CompositionTable(
        np.arange(len(many)), ELEMENTS, data.counts[many], data.energies[many], data.charges[many]
    )
    assert fit_sae(repeated).values == pytest.approx(fit_sae(data).values, abs=1e-9)
    assert fit_sae(repeated).compositions == fit_sae(data).compositions


def test_one_composition_cannot_separate() -> None:
    fit = fit_sae(table([[4, 1]] * 3, np.array([-1100.0, -1100.1, -1099.9]), [1, 6]))
    assert fit.undetermined == (1, 6)
    assert "cannot separate H and C (changing H +1 eV, C -4 eV at once changes no energy)" in fit.warnings[0].replace(
        "H -1 eV, C +4 eV", "H +1 eV, C -4 eV"
    )
    assert 4 * fit.values[1] + fit.values[6] == pytest.approx(-1100.0)
    # the solution of least norm is parallel to the composition
    assert fit.values[1] == pytest.approx(4 * fit.values[6])


def test_only_what_hangs_together_is_named() -> None:
    """N and O always come as NO2; C and H are free."""
    counts = [[4, 1, 0, 0], [6, 2, 0, 0], [3, 1, 1, 2], [2, 1, 2, 4]]
    fit = fit_sae(table(counts, np.array(counts) @ list(TRUE.values()), ELEMENTS))
    assert fit.undetermined == (7, 8)
    assert len(fit.warnings) == 1
    assert "cannot separate N and O" in fit.warnings[0]
    assert fit.values[1] == pytest.approx(TRUE[1], abs=1e-8)
    assert fit.values[7] + 2 * fit.values[8] == pytest.approx(TRUE[7] + 2 * TRUE[8], abs=1e-8)


def test_two_directions_are_open() -> None:
    fit = fit_sae(table([[1, 2, 3]], np.array([-100.0]), [1, 6, 8]))
    assert "cannot separate H and C and O;" in fit.warnings[0]


def test_alkanes_alone_are_enough() -> None:
    counts = [[2 * n + 2, n] for n in range(1, 9)]
    fit = fit_sae(table(counts, np.array(counts) @ [TRUE[1], TRUE[6]], [1, 6]))
    assert fit.warnings == ()
    assert fit.values == pytest.approx({z: TRUE[z] for z in (1, 6)}, abs=1e-8)


@pytest.mark.parametrize(
    ("unit", "size"), [("Hartree", 27.211386245988), ("kcal/mol", 0.0433641153), ("kJ/mol", 0.01036426966)]
)
def test_other_units_are_called_out(unit: str, size: float) -> None:
    fit = fit_sae(random_table(noise=0.1, scale=1 / size))
    assert f"look like {unit}" in fit.warnings[0]
    assert str(size)[:7] in fit.warnings[0]


def test_hartree_without_hydrogen() -> None:
    """All-electron values of free atoms in Hartree (C, N, O), and the same in eV."""
    atoms = np.array([-37.84, -54.58, -75.06])
    counts = np.random.default_rng(0).integers(1, 6, (30, 3))
    assert "look like Hartree" in fit_sae(table(counts, counts @ atoms, [6, 7, 8])).warnings[0]
    assert fit_sae(table(counts, counts @ atoms * 27.211386, [6, 7, 8])).warnings == ()


@pytest.mark.parametrize(
    "values", [{1: -10.7, 6: -49.0, 8: -102.0}, {1: -2.3, 6: -7.0, 8: -3.0}, {6: -49.0, 8: -102.0}]
)
def test_valence_and_atomisation_energies_pass(values: dict[int, float]) -> None:
    """Semi-empirical totals count valence electrons only; atomisation energies are small: both can be eV."""
    counts = np.random.default_rng(0).integers(1, 6, (30, len(values)))
    assert fit_sae(table(counts, counts @ list(values.values()), list(values))).warnings == ()


def test_elements_that_do_not_occur_get_no_value() -> None:
    fit = fit_sae(table([[4, 1, 0], [6, 2, 0]], np.array([-1100.7, -2168.6]), [1, 6, 8]))
    assert sorted(fit.values) == [1, 6]
    with pytest.raises(DataError, match="the SAE has no value for O, which the data of fidelity PBE0 hold"):
        check_sae_covers(fit.values, [8, 1, 6], "PBE0")
    check_sae_covers(fit.values, [1], "PBE0")
    with pytest.raises(DataError, match="no sample"):
        fit_sae(table(np.zeros((0, 1)), np.zeros(0), [1]))


def test_file_keeps_every_digit(tmp_path: Path) -> None:
    values = {1: -16.123456789012345, 6: 1e-5 / 3, 7: -1e16, 102: -3.0}
    write_sae(tmp_path / "sae.yaml", values, "two\nlines")
    assert read_sae(tmp_path / "sae.yaml") == values
    array = sae_array(values)
    assert array.shape == (119,)
    assert array[0] == 0.0
    assert np.isnan(array[8])
    assert array[1] == values[1]


def test_file_takes_symbols_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "sae.yaml"
    path.write_text("6: -1035\nH: -1.64e1\n'8': -2e3\nCl: '-12520.5'\nN: -1e3\nNo: -9e5\n")
    assert read_sae(path) == {1: -16.4, 6: -1035.0, 7: -1000.0, 8: -2000.0, 17: -12520.5, 102: -9e5}


@pytest.mark.parametrize(("shift", "scale", "far"), [(0.0, 1.0, False), (-5.0, 1.0, False), (0.0, 1 / 27.2, True)])
def test_given_values_of_another_unit_are_called_out(shift: float, scale: float, far: bool) -> None:
    """Binding energies of some eV per atom pass, energies in Hartree beside values in eV do not."""
    data = random_table(noise=0.1)
    data = data._replace(energies=scale * data.energies + shift * data.counts.sum(axis=1))
    line, warning = sae_residuals(data, TRUE, "s.yaml")
    assert "residuals per atom: median" in line
    assert (warning is not None and "s.yaml: these belong to another level of theory" in warning) == far


def test_given_values_in_another_unit_are_called_out_beside_energies_in_it() -> None:
    hartree = {z: energy / 27.211386 for z, energy in TRUE.items()}
    warning = unit_warning(hartree, "s.yaml")
    assert warning is not None
    assert "the self-atomic energies in s.yaml look like Hartree" in warning
    assert "multiply them by 27.2113862" in warning
    assert unit_warning(TRUE, "s.yaml") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("H: -1\nXx: -2\n", "'Xx' is neither"),
        ("0: 1.0\n", "'0' is neither"),
        ("119: 1.0\n", "'119' is neither"),
        ("H: -1\n1: -2\n", "gives H twice"),
        ("H: -1\nH: -2\n", "line 2: the key 'H' is there twice"),
        ("H: [1]\n", "value of H"),
        ("H: .nan\n", "value of H"),
        ("H: yes\n", "value of H"),
        ("H: much\n", "value of H"),
        ("", "holds no self-atomic"),
        ("- 1\n", "holds no self-atomic"),
        ("H: [\n", "sae.yaml: line 2: .*fit it again"),
        ("H: !!python/object/apply:os.getcwd []\n", "the tag .* is not allowed"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "sae.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        read_sae(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="does not exist"):
        read_sae(tmp_path / "absent.yaml")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    specs = two_fidelities(tmp_path)
    files = [str(path) for spec in specs.values() for path in spec.files]
    output = tmp_path / "out" / "sae.yaml"
    assert main([*files, str(output)]) == 0
    text = capsys.readouterr()
    assert "residuals: RMSE" in text.out
    assert "24 samples of 2 compositions" in text.out
    assert "cannot separate" in text.err
    values = read_sae(output)
    data = MultiFidelityDataset(specs)
    assert values == fit_sae(data.compositions(0)).values | values
    assert 2 * values[1] + values[8] == pytest.approx(np.median(water(10)["energy"]))
    assert 4 * values[1] + values[6] == pytest.approx(np.median([*methane(6)["energy"], *methane(8)["energy"]]))


def test_command_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = str(write(tmp_path / "a.h5", {"3": water()}))
    bad_energy = water()
    bad_energy["energy"][0] = np.nan
    bad = str(write(tmp_path / "bad.h5", {"3": bad_energy}))
    output = str(tmp_path / "sae.yaml")
    for arguments, words in [
        ([str(tmp_path / "none.h5"), output], "does not exist"),
        ([good, good, output], "listed twice"),
        ([good, good], "looks like a data file"),
        ([bad, output], "group 3, row 0"),
    ]:
        assert main(arguments) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert words in message
    assert not Path(output).exists()
    assert main([bad, output, "--on-bad-rows", "skip"]) == 0
    assert "energy not finite: 1" in capsys.readouterr().out
