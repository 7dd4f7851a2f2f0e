"""The names and values of D4 functionals."""

from __future__ import annotations

import builtins
import math

import pytest
from dftd4.parameters import get_all_damping_params, get_damping_param

from aimnet2mult.errors import ConfigError
from aimnet2mult.physics.damping import DampingParameters
from aimnet2mult.physics.functionals_d4 import resolve_d4

KEYS = ("s6", "s8", "a1", "a2", "s9")


def test_every_row_of_the_data_base_is_found_by_its_name() -> None:
    rows = get_all_damping_params(defaults=["bj-eeq-atm"])
    assert len(rows) > 50
    for name, row in rows.items():
        resolved = resolve_d4(name)
        assert resolved.parameters == DampingParameters(*(row[key] for key in KEYS))
        assert resolved.functional == f"dftd4:{name}"
        assert resolved.reference.startswith("data base of dftd4 4.")
        assert resolved.warnings == ()


@pytest.mark.parametrize("name", ["PBE0", "pbe-0", "PBE_0", " pbe0 ", "dftd4:pbe0", "DFTD4: PBE0"])
def test_case_dashes_and_prefix_do_not_matter(name: str) -> None:
    assert resolve_d4(name) == resolve_d4("pbe0")
    assert resolve_d4(name).parameters == DampingParameters(*(get_damping_param("pbe0")[key] for key in KEYS))
    assert "doi:10.1063/1.5090222" in resolve_d4(name).reference


def test_double_hybrids_keep_their_s6() -> None:
    assert resolve_d4("b2plyp").parameters.s6 == 0.64


def test_values_by_hand_replace_those_of_the_row_each_by_itself() -> None:
    plain, changed = resolve_d4("b3lyp"), resolve_d4("b3lyp", s9=0.0, a2=5)
    assert changed.parameters == plain.parameters._replace(s9=0.0, a2=5.0)
    assert changed.reference == plain.reference + "; set by hand: a2=5, s9=0"
    assert changed.functional == "dftd4:b3lyp"


def test_values_by_hand_alone() -> None:
    resolved = resolve_d4(None, s8=0.5, a1=0.4, a2=5.0)
    assert resolved.parameters == DampingParameters(1.0, 0.5, 0.4, 5.0, 1.0)
    assert (resolved.functional, resolved.reference) == ("custom", "values given by hand")
    with pytest.raises(ConfigError, match=r"D4 needs a functional, or all of s8, a1 and a2: a1, a2 not given"):
        resolve_d4(None, s8=1.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pbee", r"'pbee' is not in the dftd4 package's data base; close names: .*pbe"),
        ("zzzzzz", r"'zzzzzz' is not in the dftd4 package's data base; give s8, a1 and a2 by hand"),
        ("", "is not the name of a D4 functional; give NAME or dftd4:NAME"),
        ("dftd3:pbe", "is not the name of a D4 functional"),
    ],
)
def test_unknown_names_are_refused_with_close_ones(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_d4(name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"s8": math.nan}, "D4 parameter s8 must be finite"),
        ({"s6": -1.0}, "D4 parameter s6 must not be negative"),
        ({"a2": "x"}, "D4 parameter a2 must be a number"),
        ({"a1": -1.0, "a2": 1.0}, "damping radius .* not positive"),
    ],
)
def test_values_without_sense_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_d4("pbe", **values)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *rest: object) -> object:
        if name.startswith("dftd4"):
            raise ImportError("No module named 'dftd4'")
        return original(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match="pip install dftd4 tomli"):
        resolve_d4("pbe")
    assert resolve_d4(None, s8=1.0, a1=0.4, a2=5.0).parameters.s9 == 1.0
