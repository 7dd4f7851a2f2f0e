"""The plan of the house: who may import whom, how long a module may be, what is public."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import aimnet2mult

ROOT = Path(aimnet2mult.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
# a room may import from its own and from rooms of a lower rank; rooms of the same rank do not know each other
RANK = dict.fromkeys(("errors", "units", "types", "files", "collection", "torch_threads"), 0)
RANK |= {"configs": 1, "physics": 2, "models": 3}
RANK |= {"engine": 4, "datasets": 5, "calculators": 5, "training": 6, "train": 7, "cli": 7}


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "aimnet2mult"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if room == "__init__":
        return  # the front door names what is behind it, lazily
    assert room in RANK, f"{room} is a new room: give it a rank here and a line in CONTRIBUTING.md"
    for name in imported(ast.parse(path.read_text(encoding="utf-8"))):
        target = name.partition(".")[2].partition(".")[0]
        if target in ("", "__version__"):
            continue
        allowed = RANK[target] < RANK[room] or target == room
        assert allowed, f"{path.name} of {room} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_is_short_and_has_a_docstring(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") < 400
    assert not text or ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_all_lists_what_the_module_defines(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    listed = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    if not listed or path == ROOT / "__init__.py":
        return
    own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    bound = own | {name.rsplit(".", 1)[1] for name in imported(tree)}
    assert len(set(listed[0])) == len(listed[0])
    assert {name for name in own if not name.startswith("_")} <= set(listed[0]) <= bound


def test_public_names() -> None:
    assert dir(aimnet2mult) == sorted(aimnet2mult.__all__)
    assert set(aimnet2mult._HOMES) | {"__version__"} == set(aimnet2mult.__all__)
    for name in aimnet2mult.__all__:
        assert getattr(aimnet2mult, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'AIMNet3'"):
        aimnet2mult.AIMNet3  # noqa: B018


def test_importing_the_package_is_light() -> None:
    code = "import sys, aimnet2mult; print(sorted({'torch', 'ase', 'numpy', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.strip() == "[]"


def test_nothing_is_hidden_in_the_code() -> None:
    """Habits that hide errors: no bare except, no unsafe loading, no numbers in place of NaN."""
    forbidden = ("nan_to_num", "weights_only=False", "strict=False", "yaml.load(", "NotImplementedError(")
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        for word in forbidden:
            assert word not in text, f"{path.name} says {word}"
        handlers = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ExceptHandler)]
        assert all(handler.type is not None for handler in handlers), f"{path.name} has a bare except"
