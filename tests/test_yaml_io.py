from __future__ import annotations

import math
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from aimnet2mult.configs.classpaths import resolve
from aimnet2mult.configs.yaml_io import apply_overrides, parse_yaml, read_yaml, validated
from aimnet2mult.errors import ConfigError


class Base(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Fast(Base):
    kind: Literal["fast"]
    speed: int = Field(1, ge=0)


class Slow(Base):
    kind: Literal["slow"]
    patience: int = 1


class Inner(Base):
    batch_size: int = Field(4, ge=1)


class Outer(Base):
    inner: Inner = Inner()
    table: dict[int, Inner] = Field(default_factory=dict)
    mode: Fast | Slow = Field(Fast(kind="fast"), discriminator="kind")


def test_scalars_follow_yaml_1_2():
    text = "{a: 1e-4, b: -2.5E+3, c: .5, d: 12, e: 0x10, f: no, g: ~, h: true, i: 2026-01-01, j: 1:30, k: '7', l: .inf}"
    values = parse_yaml(text, "x")
    assert values == {
        "a": 1e-4,
        "b": -2500.0,
        "c": 0.5,
        "d": 12,
        "e": 16,
        "f": "no",
        "g": None,
        "h": True,
        "i": "2026-01-01",
        "j": "1:30",
        "k": "7",
        "l": math.inf,
    }
    assert isinstance(values["a"], float)
    assert isinstance(values["d"], int)


def test_merge_keys_and_aliases_work():
    assert parse_yaml("x: &a {p: 1}\ny: {<<: *a, q: 2}\nz: *a", "x")["y"] == {"p": 1, "q": 2}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: !!python/object:os.mkdir 1", "!!python/object:os.mkdir is not allowed"),
        ("a: !!python/object/apply:os.system ['true']", "is not allowed"),
        ("a: !!set {b}", "!!set is not allowed"),
        ("a: !own 1", "!own is not allowed"),
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' is there twice"),
        ("a: [1", "line 1"),
        ("? [1]\n: 2", "a key must be text or a number"),
        ("a: &x [*x]", "an alias points to what it stands in"),
        ("[" * 5000, "nested too deeply"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: \x00", "not readable as YAML"),
    ],
)
def test_bad_yaml_is_one_sentence(text, words):
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "f.yaml")
    assert words in str(caught.value)
    assert str(caught.value).startswith("f.yaml:")
    assert "\n" not in str(caught.value)


def test_alias_bomb_is_refused():
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for older, newer in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{newer}: &{newer} [{', '.join([f'*{older}'] * 10)}]")
    with pytest.raises(ConfigError, match="aliases"):
        parse_yaml("\n".join(lines), "bomb.yaml")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b"- 1\n", "a list"), (b"\xff\xfe\x00", "UTF-8"), (b"text", "text")],
)
def test_read_yaml_wants_a_mapping(tmp_path, content, words):
    path = tmp_path / "f.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_yaml(path)


def test_read_yaml_missing_and_folder(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)


def test_overrides():
    values = {"a": {"b": 1}, "t": {0: {"x": 1}}, "l": [1, 2]}
    changed = apply_overrides(
        values, ["a.b=1e-3", "a.c={d: [1, x=y]}", "t.0.x=5", "t.1.x=6", "l.1=null", "new.deep=[1, 2]"]
    )
    assert changed == {
        "a": {"b": 1e-3, "c": {"d": [1, "x=y"]}},
        "t": {0: {"x": 5}, 1: {"x": 6}},
        "l": [1, None],
        "new": {"deep": [1, 2]},
    }
    assert values == {"a": {"b": 1}, "t": {0: {"x": 1}}, "l": [1, 2]}


@pytest.mark.parametrize("override", ["a", "=1", "a..b=1", "a.b.c=1", "l.7=1", "a.b=[1", "a=!!python/none x"])
def test_bad_overrides(override):
    with pytest.raises(ConfigError, match="override"):
        apply_overrides({"a": {"b": 1}, "l": [1, 2]}, [override])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {"batchsize": 1}}, "inner.batchsize: unknown option; did you mean 'batch_size'?"),
        ({"table": {0: {"batchsize": 1}}}, "table.0.batchsize: unknown option; did you mean 'batch_size'?"),
        ({"iner": {}}, "iner: unknown option; did you mean 'inner'?"),
        ({"zzz": {}}, "zzz: unknown option; known options: inner, mode, table"),
        ({"inner": {"batch_size": "x"}}, "inner.batch_size: must be a valid integer, not 'x'"),
        ({"inner": {"batch_size": -1}}, "inner.batch_size: must be greater than or equal to 1, not -1"),
        ({"inner": 3}, "inner: must be a mapping, not 3"),
        ({"mode": {"kind": "fats"}}, "mode.kind: must be one of 'fast', 'slow'"),
        ({"mode": {}}, "mode.kind: this option is required"),
        (
            {"mode": {"kind": "slow", "speed": 1}},
            "mode.speed: unknown option; it does not go with the other options here",
        ),
        ({"mode": {"kind": "slow", "patienc": 1}}, "mode.patienc: unknown option; did you mean 'patience'?"),
    ],
)
def test_validation_messages(values, message):
    with pytest.raises(ConfigError) as caught:
        validated(Outer, values, "train.yaml")
    assert str(caught.value) == f"train.yaml: {message}"


def test_every_problem_has_a_line():
    with pytest.raises(ConfigError) as caught:
        validated(Outer, {"inner": {"a": 1}, "table": {"x": {}}, "mode": {"kind": "fast", "speed": -1}}, "f")
    assert len(str(caught.value).splitlines()) == 3


def test_a_file_with_overrides(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("mode: {kind: slow}\ninner: {batch_size: 2}\n")
    config = validated(Outer, apply_overrides(read_yaml(path), ["inner.batch_size=9"]), str(path))
    assert config.inner.batch_size == 9
    assert isinstance(config.mode, Slow)


def test_class_paths_come_from_the_list_only():
    allowed = {"torch.optim.Adam": int, "torch.optim.AdamW": float}
    assert resolve("torch.optim.Adam", allowed, "x") is int
    with pytest.raises(ConfigError, match=r"optimizer.class: class path 'torch.optim.Adamw'.*'torch.optim.AdamW'"):
        resolve("torch.optim.Adamw", allowed, "optimizer.class")
    for path in ("os.mkdir", "builtins.eval", "", "torch.optim"):
        with pytest.raises(ConfigError, match=r"allowed are torch.optim.Adam, torch.optim.AdamW"):
            resolve(path, allowed, "x")
