"""The table of D3 functionals and how names and values are resolved."""

from __future__ import annotations

import builtins
import math

import pytest
from ase.build import molecule
from d3_cases import evaluate, padded
from dftd3.parameters import get_all_damping_params, get_damping_param

from aimnet2mult.errors import ConfigError
from aimnet2mult.models.dispersion import D3BJ, load_d3_data
from aimnet2mult.physics import damping, functionals
from aimnet2mult.physics.damping import DampingParameters
from aimnet2mult.physics.functionals import resolve_d3
from aimnet2mult.units import EV_PER_HARTREE

TABLE = {
    "wb97m": (1.0, 0.3908, 0.566, 3.128),
    "wb97x": (1.0, 0.0, 0.464, 1.0),
    "b3lyp": (1.0, 1.9889, 0.3981, 4.4211),
    "pbe": (1.0, 0.7875, 0.4289, 4.4407),
    "pbe0": (1.0, 1.2177, 0.4145, 4.8593),
}


@pytest.mark.parametrize("name", TABLE)
def test_built_in_rows_are_those_of_the_documentation(name: str) -> None:
    resolved = resolve_d3(name)
    assert resolved.parameters == DampingParameters(*TABLE[name], s9=0.0)
    assert resolved.functional == name
    assert resolved.reference
    assert bool(resolved.warnings) == (name == "wb97x")


def test_the_table_holds_nothing_else() -> None:
    assert set(functionals.BUILTIN_D3) == set(TABLE)


@pytest.mark.parametrize("name", sorted(set(TABLE) - {"wb97x"}))
def test_built_in_rows_equal_the_published_ones(name: str) -> None:
    published = get_damping_param(name, defaults=["bj"])
    assert resolve_d3(name).parameters == DampingParameters(
        *(published[key] for key in ("s6", "s8", "a1", "a2")), s9=0.0
    )


@pytest.mark.parametrize("name", ["PBE0", "pbe-0", "PBE_0", " pbe0 "])
def test_case_and_dashes_do_not_matter(name: str) -> None:
    assert resolve_d3(name).functional == "pbe0"


def test_wb97x_warns_and_the_warning_is_true() -> None:
    (warning,) = resolve_d3("wB97X").warnings
    for part in ("0.464", "s8 0.2641", "a1 0.0", "a2 5.4959", "-0.176", "dftd3:wb97x", "ten times"):
        assert part in warning
    published = get_damping_param("wb97x", defaults=["bj"])
    assert (published["s8"], published["a1"], published["a2"]) == (0.2641, 0.0, 5.4959)
    benzene = molecule("C6H6")
    energy = {
        name: evaluate(D3BJ([1, 6], resolve_d3(name).parameters), *padded([benzene])).item() / EV_PER_HARTREE
        for name in ("wb97x", "pbe0", "wb97m", "b3lyp", "dftd3:wb97x")
    }
    assert energy["wb97x"] == pytest.approx(-0.176, abs=5e-4)  # three digits are claimed
    usual = (energy["wb97m"] + energy["b3lyp"] + energy["pbe0"]) / 3
    assert 5.0 < energy["wb97x"] / usual < 20.0  # "ten times" is an order of magnitude


def test_the_data_base_of_the_dftd3_package_is_reached() -> None:
    resolved = resolve_d3("dftd3:wb97x")
    assert resolved.parameters == DampingParameters(s6=1.0, s8=0.2641, a1=0.0, a2=5.4959, s9=0.0)
    assert resolved.functional == "dftd3:wb97x"
    assert not resolved.warnings
    plain, prefixed = resolve_d3("B2PLYP"), resolve_d3("DFTD3:B2-PLYP")
    assert plain == prefixed
    assert plain.functional == "dftd3:b2plyp"
    assert plain.parameters.s6 == 0.64
    assert "10.1039/c0cp02984j" in plain.reference
    assert resolve_d3("cam-b3lyp").parameters != resolve_d3("b3lyp").parameters
    assert resolve_d3("rpbe").functional == "dftd3:rpbe"  # the package has its own row, which is not that of PBE
    assert resolve_d3("rpbe").parameters != resolve_d3("pbe").parameters


def test_every_row_of_the_data_base_can_be_named() -> None:
    rows = get_all_damping_params(defaults=["bj"])
    assert len(rows) > 100
    for name, row in rows.items():
        parameters = resolve_d3(f"dftd3:{name}").parameters
        assert parameters == DampingParameters(row["s6"], row["s8"], row["a1"], row["a2"], 0.0), name


@pytest.mark.parametrize(
    ("name", "hint"),
    [("wb97x-d", "wb97x"), ("pbe00", "pbe0"), ("b3lyb", "b3lyp"), ("dftd3:pbbe", "pbe"), ("zzzz", "built in: wb97m")],
)
def test_unknown_names_are_refused_with_close_ones(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="neither built in nor") as caught:
        resolve_d3(name)
    assert hint in str(caught.value)


@pytest.mark.parametrize("name", ["", "  ", "dftd3:", "dftd4:pbe", "d3:pbe"])
def test_names_of_another_form_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="not the name of a D3 functional"):
        resolve_d3(name)


def test_a_row_for_zero_damping_is_not_taken_for_a_becke_johnson_row() -> None:
    assert "rs6" in get_damping_param("m06l")  # what the package hands out when no damping is named
    with pytest.raises(ConfigError, match="only zero damping"):
        resolve_d3("m06-l")


def test_values_by_hand_replace_those_of_the_row_one_by_one() -> None:
    resolved = resolve_d3("pbe0", s9=1.0, a2=5)
    assert resolved.parameters == resolve_d3("pbe0").parameters._replace(s9=1.0, a2=5.0)
    assert isinstance(resolved.parameters.a2, float)
    assert resolved.functional == "pbe0"
    assert "s9=1" in resolved.reference
    assert "a2=5" in resolved.reference


def test_the_warning_ends_where_nothing_of_the_row_is_left() -> None:
    assert resolve_d3("wb97x", a2=5.0).warnings
    assert not resolve_d3("wb97x", s8=0.2641, a1=0.0, a2=5.4959).warnings


def test_values_alone_make_a_custom_correction() -> None:
    resolved = resolve_d3(None, s6=1.0, s8=0.5, a1=0.4, a2=5.0)
    assert resolved.parameters == DampingParameters(1.0, 0.5, 0.4, 5.0, 0.0)
    assert resolved.functional == "custom"
    with pytest.raises(ConfigError, match="s8, a2 not given"):
        resolve_d3(None, s6=1.0, a1=0.4)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"s6": -1.0}, "s6 must not be negative"),
        ({"s8": -0.1}, "s8 must not be negative"),
        ({"s9": -1.0}, "s9 must not be negative"),
        ({"a2": -4.0}, "a2 must not be negative"),
        ({"a1": math.nan}, "a1 must be finite"),
        ({"a2": math.inf}, "a2 must be finite"),
        ({"s8": "much"}, "s8 must be a number"),
        ({"a1": -0.4}, "not positive"),
        ({"a1": 0.0, "a2": 0.0}, "not positive"),
    ],
)
def test_values_without_sense_are_refused(value: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_d3("pbe", **value)


def test_the_damping_radius_is_checked_over_all_elements() -> None:
    roots = math.sqrt(3.0) * load_d3_data(range(1, 104)).r4r2
    low, high = damping._C8_C6_ROOT_RANGE
    assert low == pytest.approx(roots.min().item(), abs=0.1)
    assert low < roots.min()
    assert high == pytest.approx(roots.max().item(), abs=0.1)
    assert high > roots.max()


def test_without_the_dftd3_package_built_in_names_work_and_others_say_what_to_install(monkeypatch) -> None:
    real_import = builtins.__import__

    def without_dftd3(name: str, *args, **kwargs):
        if name.startswith("dftd3"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_dftd3)
    assert resolve_d3("pbe").parameters.s8 == 0.7875
    with pytest.raises(ConfigError, match="pip install dftd3 tomli"):
        resolve_d3("blyp")
