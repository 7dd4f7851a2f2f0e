"""What the documents promise: snippets run, configurations are valid, names and paths exist, tables are the code's.

``user_document.md`` is a user's own description of the example, kept word for word: whatever becomes of our documents,
the names, snippets and tables of that one hold.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import suites
import torch
import yaml

from aimnet2mult.configs.metadata import FidelityInfo, PotentialMetadata
from aimnet2mult.configs.model import load_model_config
from aimnet2mult.configs.train import load_train_config
from aimnet2mult.models.files import script_potential, write_potential
from aimnet2mult.models.network import MultiFidelityNetwork
from aimnet2mult.models.potential import Potential, SelfAtomicEnergy
from aimnet2mult.physics.functionals import BUILTIN_D3
from aimnet2mult.training.compile import build_parser

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "end_to_end_example"
CONFIG = EXAMPLE / "config" / "train.yaml"
DOCUMENTS = [ROOT / "README.md", EXAMPLE / "README.md"]
TEXT = (EXAMPLE / "README.md").read_text(encoding="utf-8")
USER = ROOT / "tests" / "user_document.md"
EXAMPLES = {"example": TEXT, "user": USER.read_text(encoding="utf-8")}
GENERATED = ("sae_fid*.yaml", "checkpoints/", "compiled/", "plots/")


def blocks(text: str, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [content for name, content in fenced if name == language]


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    """A folder as the example leaves it, with an untrained network of the right kind in model_fid0.jpt."""
    torch.manual_seed(0)
    network = MultiFidelityNetwork(suites.model_config()).at_fidelity(0)
    sae = {1: -13.6, 6: -1030.0, 8: -2040.0}
    info = FidelityInfo(index=0, name="PBE0", elements=sorted(sae), labels=["energy"])
    metadata = PotentialMetadata(
        fidelity=info,
        all_fidelities=[info],
        sae={"H": -13.6, "C": -1030.0, "O": -2040.0},
        dispersion=None,
        cutoff=5.0,
        num_charge_channels=2,
        model=network.config.to_dict(),
        provenance={},
    )
    path = tmp_path / "output" / "compiled" / "model_fid0.jpt"
    path.parent.mkdir(parents=True)
    write_potential(path, script_potential(Potential(network, SelfAtomicEnergy(sae))), metadata)
    return tmp_path


@pytest.mark.parametrize("document", [*DOCUMENTS, USER], ids=["README", "example", "user"])
def test_python_snippets_run(
    document: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(compiled)
    snippets = blocks(document.read_text(encoding="utf-8"), "python")
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, str(document), "exec"), {"__name__": "snippet"})
    assert re.search(r"Energy: -10\d\d\.\d{4} eV", capsys.readouterr().out)


def test_script_runs_the_snippet_of_the_document() -> None:
    script = (EXAMPLE / "run_example.sh").read_text(encoding="utf-8")
    assert blocks(TEXT, "python")[0] in script


@pytest.mark.parametrize("document", EXAMPLES)
def test_yaml_snippets_are_part_of_the_configuration(document: str, tmp_path: Path) -> None:
    """Every key of the snippets stands in config/train.yaml, which is valid; our own show its values too."""
    full = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))

    def assert_within(part: Any, whole: Any, where: str) -> None:
        if isinstance(part, dict):
            for key, value in part.items():
                assert key in whole, f"{where}.{key}"
                assert_within(value, whole[key], f"{where}.{key}")
        elif document == "example":
            assert part == whole, where

    snippets = [yaml.safe_load(block) for block in blocks(EXAMPLES[document], "yaml")]
    assert snippets
    for snippet in snippets:
        assert_within(snippet, full, "train.yaml")
        changed = {**full, **snippet}
        changed["data"] = {**full["data"], **snippet["data"]}
        path = tmp_path / "train.yaml"
        path.write_text(yaml.safe_dump(changed), encoding="utf-8")
        load_train_config(path)


def test_configurations_fit_each_other() -> None:
    config = load_train_config(CONFIG)
    model = load_model_config(config.model)
    assert model.num_fidelities == len(config.data.fidelities)
    for settings in config.data.fidelities.values():
        for path in settings.files:
            assert path.is_file()
    for text in EXAMPLES.values():
        heads = re.findall(r"^- `(\w+)` - ", text.split("### Model Config")[1].split("##")[0], flags=re.MULTILINE)
        assert heads == [name for name in heads if getattr(model.kwargs.outputs, name) is not None]
        assert len(heads) == 5


@pytest.mark.parametrize("path", [*DOCUMENTS, USER, *EXAMPLE.glob("config/*.yaml")], ids=lambda path: path.name)
def test_class_paths_resolve(path: Path) -> None:
    names = set(re.findall(r"\baimnet2mult(?:\.\w+)+", path.read_text(encoding="utf-8")))
    assert names or path == ROOT / "README.md"
    for name in names:
        module, _, attribute = name.rpartition(".")
        try:
            import_module(name)
        except ModuleNotFoundError:
            assert hasattr(import_module(module), attribute), name


@pytest.mark.parametrize("document", EXAMPLES)
def test_files_of_the_tree_exist(document: str) -> None:
    tree = next(block for block in blocks(EXAMPLES[document], "") if block.startswith("end_to_end_example/"))
    folders: list[str] = []
    found = 0
    for line in tree.splitlines()[1:]:
        match = re.match(r"^([│ ]*)[├└]── (\S+)", line)
        assert match, line
        depth, name = len(match.group(1)) // 4, match.group(2)
        folders = [*folders[:depth], name] if name.endswith("/") else folders[:depth]
        path = EXAMPLE.joinpath(*folders[: depth + 1] if name.endswith("/") else [*folders, name])
        if document == "example":
            assert ("(generated)" in line) == (name in GENERATED), line
        if name not in GENERATED:
            assert path.exists(), path
            found += 1
    assert found >= 10


def test_only_the_data_of_the_output_folder_are_tracked() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")

    def ignored(path: str) -> bool:
        return subprocess.run(["git", "check-ignore", "-q", "--no-index", path], cwd=EXAMPLE).returncode == 0

    assert not any(ignored(f"output/subsets/fid{i}_subset.h5") for i in range(3))
    for path in ("checkpoints/last.pt", "compiled/model_fid0.jpt", "subsets/sae_fid0.yaml", "model.pt", "plots/a.png"):
        assert ignored(f"output/{path}"), path


@pytest.mark.parametrize("document", DOCUMENTS, ids=["README", "example"])
def test_compile_commands_parse(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    known = set(build_parser()._option_string_actions)
    flags = set(re.findall(r"--(?:weights|model|output|fidelity|sae|dispersion)[\w-]*", text))
    assert flags
    assert flags <= known
    joined = text.replace("\\\n", " ")
    commands = re.findall(r"^python -m aimnet2mult\.training\.compile (.*)$", joined, flags=re.MULTILINE)
    assert commands
    for command in commands:
        build_parser().parse_args(command.split())


def rows(text: str, after: str) -> list[list[str]]:
    section = re.split(r"^#+ ", text.split(after)[1], flags=re.MULTILINE)[0]
    cells = [line.strip("| \n").split("|") for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip().strip("`") for cell in line] for line in cells]


@pytest.mark.parametrize("text", EXAMPLES.values(), ids=EXAMPLES)
def test_dispersion_tables_are_the_code(text: str) -> None:
    table = {name: tuple(float(v) for v in values) for name, *values in rows(text, "### Built-in Functionals")}
    assert table == {name: (row.s6, row.s8, row.a1, row.a2) for name, row in BUILTIN_D3.items()}
    kinds = [name for name, _ in rows(text, "### Dispersion Types")]
    assert kinds == list(build_parser()._option_string_actions["--dispersion"].choices or ())


@pytest.mark.parametrize("script", sorted(EXAMPLE.glob("*.py")), ids=lambda path: path.name)
def test_scripts_are_short_python(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    ast.parse(text)
    assert len(text.splitlines()) <= 40


def test_shell_scripts_parse() -> None:
    for path in (
        EXAMPLE / "run_example.sh",
        ROOT / "scripts" / "check",
        ROOT / "scripts" / "test",
        ROOT / ".ci" / "run",
    ):
        assert path.stat().st_mode & 0o111, f"{path} is not executable"
        assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


def test_readme_is_short_and_sets_up_as_continuous_integration_does() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) < 200
    commands = [block.strip() for block in blocks(readme, "bash") if "python3.11 -m venv" in block]
    assert len(commands) == 2
    assert all("\n" not in command for command in commands)  # one line each, to be pasted
    assert commands[0].endswith("examples/end_to_end_example/run_example.sh")
    assert commands[1].endswith("scripts/test")
    install = re.search(r"pip (install .*?) &&", commands[1])
    assert install is not None
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace("--quiet ", "")
    assert f"pip {install.group(1)}" in run
