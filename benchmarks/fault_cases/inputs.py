"""Bad data files: each must give the sentence that names the file, the group, the dataset and the row."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from aimnet2mult.datasets.sae_file import read_sae
from aimnet2mult.training.cli_args import main
from fault_cases.material import Ended, groups, make_case, write_h5
from fault_cases.table import Outcome

PART = "data files"
Groups = dict[str, dict[str, np.ndarray]]


def in_process(work: Callable[[Sequence[str]], int], *arguments: str | Path) -> Ended:
    """Run a command line in this process, which has torch loaded already; an exception becomes its traceback."""
    output, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        try:
            code = work([str(argument) for argument in arguments])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        except Exception as fault:
            code = -1
            error.write(f"Traceback: {type(fault).__name__}: {fault}")
    return Ended(code, output.getvalue(), error.getvalue())


def _spoilt(key: str, value: Any, *at: int, group: str = "003") -> Callable[[Groups], None]:
    def spoil(content: Groups) -> None:
        content[group][key] = content[group][key].copy()
        content[group][key][at if at else slice(None)] = value

    return spoil


def _without(key: str, only: str | None = None) -> Callable[[Groups], None]:
    def take_out(content: Groups) -> None:
        for name, values in content.items():
            if only in (None, name):
                values.pop(key, None)

    return take_out


def _reshaped(key: str) -> Callable[[Groups], None]:
    def reshape(content: Groups) -> None:
        content["003"][key] = content["003"][key].reshape(1, -1)

    return reshape


def _as(key: str, dtype: Any) -> Callable[[Groups], None]:
    def convert(content: Groups) -> None:
        content["003"][key] = content["003"][key].astype(dtype)

    return convert


def _renamed(old: str, new: str) -> Callable[[Groups], None]:
    def rename(content: Groups) -> None:
        content[new] = content.pop(old)

    return rename


def _misspelt(content: Groups) -> None:
    for values in content.values():
        values["forcess"] = values.pop("forces")


def _near(content: Groups) -> None:
    content["003"]["coord"] = content["003"]["coord"].copy()
    content["003"]["coord"][2, 1] = content["003"]["coord"][2, 0] + 0.05


# name, what is done to the groups of fid0.h5, words of the sentence
STRUCTURE: tuple[tuple[str, Callable[[Groups], None], tuple[str, ...]], ...] = (
    ("group name not a number", _renamed("003", "H2O"), ("fid0.h5", "'H2O'", "atom count")),
    ("group name disagrees with arrays", _renamed("003", "007"), ("fid0.h5", "007", "3 atoms", "rename")),
    *(
        (f"wrong shape of {key}", _reshaped(key), ("fid0.h5", f"003/{key} has shape", "expected"))
        for key in ("coord", "numbers", "charge", "mult", "energy", "forces", "charges")
    ),
    ("numbers as float64", _as("numbers", np.float64), ("fid0.h5", "003/numbers is stored as float64")),
    ("energy as text", _as("energy", "S8"), ("fid0.h5", "003/energy is stored as")),
    *(
        (f"{key} missing", _without(key), ("fid0.h5", f"lacks '{key}'"))
        for key in ("coord", "numbers", "charge", "energy")
    ),
    ("label misspelt in the file", _misspelt, ("forces", "forcess")),
    ("a label nowhere present", _without("charges"), ("no file holds the label 'charges'",)),
)
ROWS: tuple[tuple[str, Callable[[Groups], None], str, tuple[str, ...]], ...] = (
    ("NaN coordinate", _spoilt("coord", np.nan, 2, 1, 0), "coord", ("not finite",)),
    ("infinite coordinate", _spoilt("coord", np.inf, 2, 1, 0), "coord", ("not finite",)),
    ("Z = 0", _spoilt("numbers", 0, 2, 1), "numbers", ("1 to 118",)),
    ("Z = 200", _spoilt("numbers", 200, 2, 1), "numbers", ("200", "1 to 118")),
    ("NaN charge", _spoilt("charge", np.nan, 2), "charge", ("not finite",)),
    ("charge 0.5", _spoilt("charge", 0.5, 2), "charge", ("whole numbers",)),
    ("charge +50", _spoilt("charge", 50, 2), "mult", ("electrons",)),
    ("mult 0", _spoilt("mult", 0, 2), "mult", ("1, 2, 3",)),
    ("mult against parity", _spoilt("mult", 2, 2), "mult", ("does not fit 10 electrons",)),
    ("NaN energy", _spoilt("energy", np.nan, 2), "energy", ("not finite",)),
    ("energy of 1e30", _spoilt("energy", 1e30, 2), "energy", ("1e+30",)),
    ("infinite energy", _spoilt("energy", -np.inf, 2), "energy", ("not finite",)),
    ("partly NaN forces", _spoilt("forces", np.nan, 2, 0, 1), "forces", ("not finite",)),
    ("infinite forces", _spoilt("forces", np.inf, 2), "forces", ("not finite",)),
    ("forces of 1e30", _spoilt("forces", 1e30, 2, 0, 0), "forces", ("1e+30",)),
    ("infinite charges", _spoilt("charges", np.inf, 2), "charges", ("not finite",)),
    ("NaN charges in part", _spoilt("charges", np.nan, 2, 0), "charges", ("not finite",)),
    ("coincident atoms", _near, "coord", ("atoms 0 (O) and 1 (H)",)),
)


def _changed(folder: Path, edit: Callable[[Groups], None]) -> Path:
    yaml = make_case(folder, trainer__epochs=1)
    content = copy.deepcopy(groups(1))
    edit(content)
    write_h5(folder / "fid0.h5", content)
    return yaml


def data_cases(folder: Path) -> Iterator[Outcome]:
    """Structure and values of HDF5 files."""
    for number, (name, edit, words) in enumerate(STRUCTURE):
        ended = in_process(main, _changed(folder / f"structure{number}", edit))
        yield Outcome(PART, name, "one file of two changed", _short(ended), ended.refused(*words))
    for number, (name, edit, column, words) in enumerate(ROWS):
        yaml = _changed(folder / f"row{number}", edit)
        ended = in_process(main, yaml)
        where = f"group 003, row 2: {column}: "
        yield Outcome(PART, name, "one value changed", _short(ended), ended.refused("fid0.h5", where, *words))
        ended = in_process(main, yaml, "data.on_bad_rows=skip")
        good = ended.code == 0 and "left out, " in ended.output
        yield Outcome(PART, f"{name}, skipped", "on_bad_rows: skip", f"exit code {ended.code}, counted", good)
    yield from _files(folder)
    yield from _hostile(folder)
    yield from _allowed(folder)


def _short(ended: Ended) -> str:
    return f"exit code {ended.code}: {ended.error.strip()[:400]}"


def _heavy(folder: Path, dtype: type) -> Outcome:
    """Molecules whose atomic numbers add up to more than their type of integer holds: 212 and 371."""
    yaml = make_case(folder, trainer__epochs=1)
    content = groups(1)
    for natoms in (4, 7):
        rows = range(8)
        coord = np.stack([np.arange(natoms) * 2.7, np.zeros(natoms), np.zeros(natoms)], axis=-1)
        noise = np.random.default_rng(natoms).normal(scale=0.05, size=(len(rows), natoms, 3))
        charge = np.full(len(rows), natoms % 2)  # an even number of electrons
        content[f"{natoms:03d}"] = {
            "coord": (coord + noise).astype(np.float32),
            "numbers": np.full((len(rows), natoms), 53, dtype=dtype),
            "charge": charge.astype(np.float32),
            "mult": np.ones(len(rows), dtype=np.float32),
            "structure_id": (9000 + np.arange(len(rows))) * 1000,
            "energy": np.full(len(rows), natoms * -8100.0),
            "forces": np.zeros((len(rows), natoms, 3), dtype=np.float32),
            "charges": np.repeat(charge[:, None] / natoms, natoms, axis=1).astype(np.float32),
        }
    write_h5(folder / "fid0.h5", content)
    ended = in_process(main, yaml)
    found = ended.code == 0 and abs(read_sae(folder / "out/sae_fid0.yaml")[53] + 8100.0) < 0.5
    result = f"exit code {ended.code}; energy of I right: {found} {ended.error.strip()[:200] if ended.code else ''}"
    return Outcome(PART, f"numbers as {np.dtype(dtype)}, sums of Z beyond it", "I4, I7+", result, found)


def _files(folder: Path) -> Iterator[Outcome]:
    """Files that are none of ours."""

    def foreign(path: Path) -> None:
        path.unlink()
        with h5py.File(path, "w") as file:
            file["positions"] = np.zeros((3, 3))

    whole = write_h5_bytes(folder)
    for name, change, words in (
        ("missing file", Path.unlink, ("does not exist",)),
        ("empty file", lambda path: path.write_bytes(b""), ("is empty",)),
        ("text file", lambda path: path.write_text("coord 1 2 3"), ("is not an HDF5 file",)),
        ("foreign HDF5", foreign, ("'positions' stands at the top level",)),
        ("truncated HDF5", lambda path: path.write_bytes(whole[: len(whole) // 2]), ("truncated",)),
        ("a folder", lambda path: (path.unlink(), path.mkdir()), ("is a folder",)),
    ):
        yaml = make_case(folder / name.replace(" ", "_"))
        change(yaml.parent / "fid0.h5")
        ended = in_process(main, yaml)
        yield Outcome(PART, name, "as fid0.h5", _short(ended), ended.refused("fid0.h5", *words))


def write_h5_bytes(folder: Path) -> bytes:
    """Bytes of a good data file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = write_h5(folder / "whole.h5", groups(1))
    content = path.read_bytes()
    path.unlink()
    return content


def _hostile(folder: Path) -> Iterator[Outcome]:
    """Files that claim more than they hold, or that point elsewhere."""

    def sparse(file: h5py.File, group: h5py.Group) -> None:
        del group["coord"]
        group.create_dataset("coord", (10**9, 3, 3), "f4", chunks=(1000, 3, 3))

    def unwritten(file: h5py.File, group: h5py.Group) -> None:
        del group["energy"]
        group.create_dataset("energy", (8,), "f8")

    def partly(file: h5py.File, group: h5py.Group) -> None:
        del group["energy"]
        group.create_dataset("energy", (8,), "f8", chunks=(2,))
        group["energy"][:4] = -1.0

    def broken_chunk(file: h5py.File, group: h5py.Group) -> None:
        values = group["forces"][:]
        del group["forces"]
        group.create_dataset("forces", data=values, chunks=(4, 3, 3), fletcher32=True)
        place = group["forces"].id.get_chunk_info(1).byte_offset
        name = Path(file.filename)
        file.close()
        content = bytearray(name.read_bytes())
        content[place] ^= 1
        name.write_bytes(content)

    def giant_chunk(file: h5py.File, group: h5py.Group) -> None:
        del group["forces"]
        values = group.create_dataset(
            "forces", (8, 3, 3), "f4", chunks=(10**7, 3, 3), maxshape=(None, 3, 3), compression="gzip"
        )
        values[:1] = 0.0

    def giant_molecule(file: h5py.File, group: h5py.Group) -> None:
        other = file.create_group("5000000")
        for key in ("charge", "energy"):
            other[key] = np.zeros(1)
        other.create_dataset("numbers", (1, 5_000_000), "i1", chunks=True)
        other.create_dataset("coord", (1, 5_000_000, 3), "f4", chunks=True)

    def link(file: h5py.File, group: h5py.Group) -> None:
        del group["energy"]
        group["energy"] = h5py.ExternalLink("fid1.h5", "/003/energy")

    def virtual(file: h5py.File, group: h5py.Group) -> None:
        del group["energy"]
        layout = h5py.VirtualLayout((8,), "f8")
        layout[:] = h5py.VirtualSource("fid1.h5", "003/energy", (8,))
        group.create_virtual_dataset("energy", layout)

    def external(file: h5py.File, group: h5py.Group) -> None:
        del group["energy"]
        group.create_dataset("energy", (8,), "f8", external=[("/etc/passwd", 0, 64)])

    for name, change, words in (
        ("a billion rows that are not there", sparse, ("003/charge has shape", "expected")),
        ("dataset never written", unwritten, ("003/energy was never filled",)),
        ("dataset written in part", partly, ("003/energy was never filled beyond 2 of 4 chunks",)),
        ("a chunk that fails its checksum", broken_chunk, ("group 003, rows 0 to 7: forces: cannot be read",)),
        ("a chunk of 360 MB", giant_chunk, ("003/forces is stored in chunks above 256 MiB",)),
        ("molecules of 5 million atoms", giant_molecule, ("5,000,000 atoms",)),
        ("link to another file", link, ("003/energy is a link to another file",)),
        ("virtual dataset", virtual, ("003/energy keeps its values in other files",)),
        ("values of /etc/passwd", external, ("003/energy keeps its values in other files",)),
    ):
        yaml = make_case(folder / name.replace(" ", "_").replace("/", "_"))
        with h5py.File(yaml.parent / "fid0.h5", "a") as file:
            change(file, file["003"])
        ended = in_process(main, yaml)
        yield Outcome(PART, name, "as fid0.h5", _short(ended), ended.refused("fid0.h5", *words))


def _only(rows: Mapping[str, slice]) -> Callable[[Groups], None]:
    def cut(content: Groups) -> None:
        for name in list(content):
            if name not in rows:
                del content[name]
            else:
                content[name] = {key: values[rows[name]] for key, values in content[name].items()}

    return cut


def _scaled(**factors: float) -> Callable[[Groups], None]:
    def scale(content: Groups) -> None:
        for values in content.values():
            for key, factor in factors.items():
                values[key] = values[key] * factor

    return scale


def _one_molecule_each(edit: Callable[[Groups], None]) -> Callable[[Groups], None]:
    """Also make the geometries of one composition one molecule, so that energies and forces can be compared."""

    def join(content: Groups) -> None:
        edit(content)
        for values in content.values():
            values["structure_id"] = values["numbers"].astype(np.int64).sum(axis=1) * 1000

    return join


def _empty_group(content: Groups) -> None:
    content["005"] = {key: values[:0] for key, values in content["003"].items()}


def _allowed(folder: Path) -> Iterator[Outcome]:
    """Data that are used: with the right numbers, and a word where one is due."""
    for number, (name, edit, words) in enumerate(
        (
            ("mult missing", _without("mult"), ("mult           0        0           0         32",)),
            ("zero-size group", _empty_group, ("empty groups: 1",)),
            ("label missing in one group", _without("charges", "002"), ("charges       16       16",)),
            ("numbers as uint8", _as("numbers", np.uint8), ()),
            ("charge as int8", _as("charge", np.int8), ()),
            ("one molecule's forces all NaN", _spoilt("forces", np.nan, 2), ("forces        31        1",)),
            ("energies as float32", _as("energy", np.float32), ("stored as float32",)),
            ("energies and forces in Hartree", _scaled(energy=1 / 27.2, forces=1 / 27.2), ("look like Hartree",)),
            ("forces of the wrong sign", _one_molecule_each(_scaled(forces=-1.0)), ("wrong sign",)),
            ("forces in other units", _one_molecule_each(_scaled(forces=1 / 51.4)), ("not in eV/Å",)),
            ("one fidelity with one molecule", _only({"003": slice(1)}), ("too few molecules",)),
        )
    ):
        yaml = _changed(folder / f"allowed{number}", edit)
        ended = in_process(main, yaml)
        good = ended.code == 0 and all(word in ended.output for word in words)
        yield Outcome(PART, name, "one file of two changed", f"exit code {ended.code}; said: {', '.join(words)}", good)
    for dtype in (np.uint8, np.int8):
        yield _heavy(folder / f"heavy_{np.dtype(dtype)}", dtype)
    one = _changed(folder / "one", _only({"003": slice(1)}))
    alone = "data.fidelities={0: {name: full, files: fid0.h5}}"
    model = (one.parent / "model.yaml").read_text(encoding="utf-8").replace("num_fidelities: 2", "num_fidelities: 1")
    (one.parent / "model.yaml").write_text(model, encoding="utf-8")
    ended = in_process(main, one, alone, "data.fidelity_weights=null")
    yield Outcome(
        PART, "one molecule in all", "one row", _short(ended), ended.refused("one molecule", "val_fraction: 0")
    )
    ended = in_process(main, one, alone, "data.fidelity_weights=null", "data.val_fraction=0")
    yield Outcome(PART, "one molecule in all, no validation", "one row", _short(ended), ended.code == 0)
