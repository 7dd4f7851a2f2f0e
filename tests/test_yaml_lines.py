"""Errors name the line of the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from aimnet2mult.configs.yaml_io import apply_overrides, read_yaml, validated
from aimnet2mult.configs.yaml_lines import KeyLines, located
from aimnet2mult.errors import ConfigError, DataError

TEXT = """\
# a head
one:
  two: {three: 1,
    four: 2}
list:
  - 1
  - five: 6
base: &base {seven: 7}
other:
  <<: *base
  eight: 8
"""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Inner(Strict):
    three: int
    four: int
    needed: int


class One(Strict):
    two: Inner


class Outer(Strict):
    one: One


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "f.yaml"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("one", 2),
        ("one.two", 3),
        ("one.two.three", 3),
        ("one.two.four", 4),
        ("one.two.none", 3),
        ("list.0", 6),
        ("list.1.five", 7),
        ("other.seven", 8),
        ("other.eight", 11),
        ("nine", None),
        ("nine.two", None),
    ],
)
def test_lines_of_keys(path: Path, keys: str, line: int | None) -> None:
    assert KeyLines(path).line(keys.split(".")) == line


def test_what_an_override_sets_has_no_line(path: Path) -> None:
    lines = KeyLines(path, ["one.two.four=5"])
    assert lines.line(["one", "two", "four"]) is None
    assert lines.line(["one", "two"]) == 3


def test_files_that_cannot_be_read_have_no_lines(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "empty.yaml").touch()
    for name in ("none.yaml", "bad.yaml", "empty.yaml"):
        assert KeyLines(tmp_path / name).line(["a"]) is None


def test_problems_of_a_schema_come_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("one:\n  two:\n    three: x\n    fuor: 2\n")
    with pytest.raises(ConfigError) as caught:
        validated(Outer, read_yaml(path), str(path), lines=KeyLines(path))
    assert sorted(str(caught.value).splitlines()) == [
        f"{path}: line 2: one.two.four: this option is required",
        f"{path}: line 2: one.two.needed: this option is required",
        f"{path}: line 3: one.two.three: must be a valid integer, not 'x'",
        f"{path}: line 4: one.two.fuor: unknown option; did you mean 'four'?",
    ]
    override = ["one.two.three=y"]
    with pytest.raises(ConfigError) as caught:
        validated(Outer, apply_overrides(read_yaml(path), override), str(path), lines=KeyLines(path, override))
    assert f"{path}: one.two.three: must be a valid integer, not 'y'" in str(caught.value)


def test_later_errors_get_file_and_line(path: Path) -> None:
    for kind in (ConfigError, DataError):
        with pytest.raises(kind) as caught, located(path):
            raise kind("one.two.four: is wrong")
        assert str(caught.value) == f"{path}: line 4: one.two.four: is wrong"
    for message in ("nothing of that file", "self-made: no key", "nine.two: not in the file"):
        with pytest.raises(ConfigError) as caught, located(path):
            raise ConfigError(message)
        assert str(caught.value) == message
