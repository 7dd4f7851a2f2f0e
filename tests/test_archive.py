"""Archives of torch: sealed when written, checked before use."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aimnet2mult.errors import ModelFileError
from aimnet2mult.models.archive import SEAL, check_archive, write_sealed
from aimnet2mult.models.files import load_potential, load_weights, read_archive

Entries = list[tuple[str, bytes]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_sealed(tmp_path / "a.pt", {"x": torch.arange(1000.0), "y": [1, "two"]})
    return tmp_path / "a.pt"


def rewritten(path: Path, edit: Callable[[Entries], Entries], compression: int = zipfile.ZIP_STORED) -> None:
    """Write the archive anew, with checksums that fit."""
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in edit(entries):
            archive.writestr(name, content)


def refused(path: Path, words: str) -> None:
    with pytest.raises(ModelFileError, match=words) as caught:
        check_archive(path, "take another")
    assert str(caught.value).startswith(f"{path}: ")
    assert "take another" in str(caught.value)


def test_a_sealed_file_is_read_by_torch_and_is_the_same_every_time(path: Path, tmp_path: Path) -> None:
    assert any(name.endswith(SEAL) for name in check_archive(path, ""))
    content = torch.load(path, weights_only=True)
    assert torch.equal(content["x"], torch.arange(1000.0))
    write_sealed(tmp_path / "a2.pt", content)
    assert path.read_bytes() == (tmp_path / "a2.pt").read_bytes()


def spoilt(entries: Entries) -> Entries:
    return [(n, c[:100] + b"\x01" + c[101:] if n.endswith("data/0") else c) for n, c in entries]


def swapped(entries: Entries) -> Entries:
    names = [name for name, _ in entries]
    names[0], names[1] = names[1], names[0]
    return [(name, content) for name, (_, content) in zip(names, entries, strict=True)]


@pytest.mark.parametrize(
    "edit",
    [spoilt, swapped, lambda entries: entries[1:], lambda entries: [*entries, ("archive/more", b"x")]],
    ids=["content", "names", "one dropped", "one more"],
)
def test_edits_with_good_checksums_are_found(path: Path, edit: Callable[[Entries], Entries]) -> None:
    rewritten(path, lambda entries: entries)
    check_archive(path, "")
    rewritten(path, edit)
    refused(path, "damaged, or changed after it was written")


def test_damage_is_found(path: Path) -> None:
    whole = path.read_bytes()
    place = whole.index(torch.arange(1000.0).numpy().tobytes()) + 400
    path.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
    refused(path, "data/0 fails its checksum")
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "damaged, or another kind of file")


def test_files_of_older_versions_have_no_seal(path: Path) -> None:
    rewritten(path, lambda entries: [(n, c) for n, c in entries if not n.endswith(SEAL)])
    assert torch.equal(read_archive(path, "")["x"], torch.arange(1000.0))


def test_claims_beyond_the_file_are_refused(path: Path) -> None:
    bomb = 200 << 20  # unpacked from some 200 kB
    rewritten(path, lambda entries: [*entries, ("archive/zeros", bytes(bomb))], zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    refused(path, "claim far more bytes than the file holds")


def test_names_that_come_twice_are_refused(path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        rewritten(path, lambda entries: [*entries, entries[0]])
    refused(path, "not an archive as torch writes them")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "executed"),)

    write_sealed(tmp_path / "evil.pt", {"x": Evil()})
    with pytest.raises(ModelFileError, match="holds other things than tensors and plain data"):
        read_archive(tmp_path / "evil.pt", "")
    assert not (tmp_path / "executed").exists()


def weights_with(source: Path, target: Path, **changes: object) -> Path:
    content = torch.load(source, weights_only=True)
    write_sealed(target, content | changes)
    return target


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import suites
    from conftest import FIDELITIES

    from aimnet2mult.models.files import save_weights

    path = tmp_path_factory.mktemp("weights") / "model.pt"
    save_weights(path, suites.network(num_fidelities=1).float(), FIDELITIES[:1], {"who": "me"}, {0: {1: -13.6}})
    return path


def test_sizes_are_checked_before_memory_is_taken(weights: Path, tmp_path: Path) -> None:
    good = load_weights(weights)
    assert good.build().state_dict().keys() == good.state.keys()
    text = good.config.model_copy(update={"kwargs": good.config.kwargs.model_copy(update={"aim_size": 16384})})
    giant = load_weights(weights_with(weights, tmp_path / "a.pt", model=text.model_dump_json(by_alias=True)))
    with pytest.raises(ModelFileError, match=r"the weights do not fit the model configuration: .* of another shape"):
        giant.build()
    name = next(iter(good.state))
    claims = {**good.state, name: torch.zeros(1).expand(10**6, 10**5)}
    with pytest.raises(ModelFileError, match="the weights claim more numbers than the file holds"):
        load_weights(weights_with(weights, tmp_path / "b.pt", weights=claims))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": {"a": 1}}, "not tensors by name"),
        ({"weights": {"a": torch.full((2,), torch.nan)}}, "not finite"),
        ({"provenance": [1]}, "malformed"),
        ({"fidelities": "[{}]"}, "malformed"),
        ({"model": "{}"}, "malformed"),
        ({"sae": {0: {1: float("inf")}}}, "malformed"),
        ({"kind": "x"}, "not a weights file"),
        ({"format_version": 99}, "newer"),
    ],
)
def test_malformed_descriptions(weights: Path, tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(ModelFileError, match=words):
        load_weights(weights_with(weights, tmp_path / "a.pt", **changes))


class Saves(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, "executed")
        return x


class Reads(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_file("/etc/passwd", False, 8, dtype=torch.uint8)


class Plain(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.neg(x)


def disguised(words: str) -> bytes:
    """A program that reaches `torch.save` by another way than by its plain name."""
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(Plain()), stream)
    with zipfile.ZipFile(stream) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in entries:
            archive.writestr(name, content.replace(b"torch.neg(x)", words.encode()))
    return target.getvalue()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (Saves, "save"),
        (Reads, "from_file"),
        (r'getattr(torch, "\163ave")(x, "executed")', "operations by strange names"),
        ('getattr(torch, "sa" "ve")(x, "executed")', "operations by strange names"),
        ("ops.image.read_file(x)", "operations by strange names"),
        ("ops . aten . neg(x)", "operations by strange names"),
        ("(" * 5000 + "x" + ")" * 5000, "too convoluted"),
        ("-" * 5000 + "x", "too convoluted"),
        ("(x +\n" * 5000 + "x" + ")" * 5000, "too convoluted"),
    ],
)
def test_programs_that_reach_beyond_tensors(
    potential_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: object, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(potential_file) as archive:
        metadata = next(archive.read(name) for name in archive.namelist() if name.endswith("/metadata.json"))
    path = tmp_path / "strange.jpt"  # some of these would crash the reader of torch
    if isinstance(program, str):
        path.write_bytes(disguised(program))
    else:
        torch.jit.save(torch.jit.script(program()), str(path))
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/extra/metadata.json", metadata)
    with pytest.raises(ModelFileError, match=words):
        load_potential(path)
    assert not (tmp_path / "executed").exists()
