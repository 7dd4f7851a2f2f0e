"""Settings: every misspelt key at every depth, wrong values, class paths, YAML that would do more than hold data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

import aimnet2mult.configs.train as schema
from aimnet2mult.configs.model import load_model_config
from aimnet2mult.configs.train import load_train_config
from aimnet2mult.errors import ConfigError
from aimnet2mult.training.calc_sae import main as calc_sae
from aimnet2mult.training.cli_args import main
from fault_cases.inputs import in_process
from fault_cases.material import Ended, columns, make_case, write_h5
from fault_cases.table import Outcome

PART = "settings"
DEFAULTS = Path(schema.__file__).parent
# names that the user chooses, and dictionaries that are handed on
FREE = ("data.fidelities", "loss.kwargs.components", "data.fidelity_weights", "compile.dispersion")


def _typos(name: str) -> list[str]:
    """A letter left out, doubled, swapped with its neighbour, replaced, and a capital."""
    middle = len(name) // 2
    swapped = name[: middle - 1] + name[middle] + name[middle - 1] + name[middle + 1 :]
    changed = [name[:middle] + name[middle + 1 :], name[:middle] + name[middle] + name[middle:], swapped]
    changed += [name[:middle] + "x" + name[middle + 1 :], name.capitalize()]
    return [text for text in dict.fromkeys(changed) if text not in ("", name)]


def _keys(node: yaml.Node, way: str = "") -> Iterator[tuple[str, yaml.ScalarNode]]:
    """Every key of a YAML file, with the dotted way to it."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = f"{way}.{key.value}" if way else str(key.value)
            yield here, key
            yield from _keys(value, here)


def typos() -> Iterator[Outcome]:
    """Each key of the documented defaults misspelt in several ways: nearest valid key and line must be named."""
    for name, reader in (("train.yaml", load_train_config), ("model.yaml", load_model_config)):
        text = (DEFAULTS / name).read_text(encoding="utf-8")
        found, missed = 0, []
        for way, key in _keys(yaml.compose(text, Loader=yaml.SafeLoader)):
            parent, _, own = way.rpartition(".")
            if parent in FREE or re.search(r"kwargs\.components\..*\.kwargs\.", way):
                continue
            for typo in _typos(own):
                if len(own) < 3 or re.fullmatch(r"s\d|a\d|rc", own) or way.startswith("optimizer.kwargs."):
                    continue  # two letters have no nearest neighbour; arguments of an optimiser are checked below
                start, end = key.start_mark.index, key.end_mark.index
                message = _message(reader, DEFAULTS / name, text[:start] + typo + text[end:])
                line = key.start_mark.line + 1
                expected = (
                    rf"line {line}: {re.escape(parent + '.' if parent else '')}{typo}: unknown option; did you mean"
                )
                if re.search(rf"{expected} '{own}'\?", message):
                    found += 1
                else:
                    missed.append(f"{parent}.{typo} ({message.splitlines()[0] if message else 'taken'})")
        result = f"{found} of {found + len(missed)}: line and nearest key{'; not: ' + missed[0] if missed else ''}"
        yield Outcome(PART, f"misspelt keys of {name}", "five typos of every key", result, not missed)


def _message(reader: object, near: Path, text: str) -> str:
    path = near.with_name(f".typo_{near.name}")
    path.write_text(text, encoding="utf-8")
    try:
        reader(path)  # type: ignore[operator]
    except ConfigError as error:
        return str(error)
    finally:
        path.unlink()
    return ""


# override, words of the sentence
VALUES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("trainer.epochs=-3", ("trainer.epochs: must be greater than or equal to 1",)),
    ("trainer.epochs=many", ("trainer.epochs: must be a valid integer, not 'many'",)),
    ("trainer.checkpoint_minutes=0", ("trainer.checkpoint_minutes: must be greater than 0",)),
    ("data.samplers.train.batch_size=-1", ("batch_size: must be greater",)),
    ("loss.kwargs.components.energy.weight=-1", ("weight: must be greater",)),
    ("loss.kwargs.components.energy.fn=aimnet2mult.train.loss.energy_los_fn", ("did you mean", "energy_loss_fn")),
    ("loss.kwargs.components.energy.kwargs={knd: mae}", ("'knd' is not allowed", "did you mean 'kind'")),
    ("loss.kwargs.components={energy: {fn: aimnet2mult.train.loss.energy_loss_fn, weight: 0}}", ("above zero",)),
    ("data.fidelity_weights={0: 0, 1: 0}", ("at least one weight must be above zero",)),
    ("data.fidelities={0: {name: A, files: fid0.h5}, 2: {name: B, files: fid1.h5}}", ("without a gap",)),
    ("data.fidelities.1.name=full", ("the name 'full' is used twice",)),
    ("data.fidelities.1.files=fid0.h5", ("is listed twice",)),
    ("data.y=[energy, forcess]", ("not 'forcess'",)),
    ("data.y=[energy, forces, charges, spin_charges]", ("no file holds the label 'spin_charges'",)),
    ("optimizer.class=torch.optim.AdmW", ("did you mean 'torch.optim.AdamW'",)),
    ("optimizer.kwargs={lr: 1e-3, weight_decy: 0.1}", ("'weight_decy' is not allowed", "did you mean 'weight_decay'")),
    ("optimizer.kwargs={lrr: 1e-3}", ("optimizer.kwargs.lr",)),
    ("optimizer.class=os.mkdir", ("'os.mkdir' is not allowed",)),
    ("optimizer.class=builtins.eval", ("'builtins.eval' is not allowed",)),
    ("loss.class=os.system", ("'os.system' is not allowed",)),
    ("loss.kwargs.components.energy.fn=builtins.exec", ("'builtins.exec' is not allowed",)),
    ("loss.class=mine.losses.Loss", ("'mine.losses.Loss' is not allowed", "--allow-import")),
    ("scheduler.kind=cosin", ("scheduler.kind: must be one of 'cosine', 'plateau', 'constant'",)),
    ("run.device=cuda:77", ("run.device",)),
    ("compile={dispersion: {0: {method: d3bj, functional: rpbe0}}}", ("rpbe0",)),
    ("compile={dispersion: {0: {method: d4, functional: pbe00}}}", ("pbe00", "pbe0")),
    ("data.fidelities.0.sae=none.yaml", ("none.yaml does not exist",)),
    ("model=none.yaml", ("none.yaml: no such file",)),
)
# what is put at the head of train.yaml, words of the sentence
YAML: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("tag that makes objects", "evil: !!python/object/apply:os.system ['touch executed']\n", ("line 1", "not allowed")),
    ("tag of its own", "run: !mine {name: x}\n", ("line 1", "!mine is not allowed")),
    ("key given twice", "logging: {plots: false}\n", ("the key 'logging' is there twice",)),
    ("alias bomb", "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ), ("aliases",)),
    ("alias that points to itself", "a: &a [*a]\n", ("line 1", "alias")),
    ("nested too deeply", "a: " + "[" * 3000 + "]" * 3000 + "\n", ("nested too deeply",)),
    ("not closed", "a: [1, 2\n", ("line",)),
    ("a tab", "a:\n\tb: 1\n", ("line 2",)),
)  # fmt: skip


def values(folder: Path) -> Iterator[Outcome]:
    """Wrong values, each refused with the option's name; and good ones in unusual clothes."""
    case = make_case(folder / "values", trainer__epochs=1)
    for override, words in VALUES:
        ended = in_process(main, case, override)
        yield Outcome(PART, override, "override", _short(ended), ended.refused(*words))
    text = case.read_text(encoding="utf-8")
    path = case.with_name("strange.yaml")
    path.write_text(re.sub(r"^( +)1:$", r"\g<1>0:", text, count=1, flags=re.MULTILINE), encoding="utf-8")
    ended = in_process(main, path)
    good = ended.refused("strange.yaml", "line", "is there twice")
    yield Outcome(PART, "two fidelities of one number", "0 and 0", _short(ended), good)
    for name, head, words in YAML:
        path = case.with_name("strange.yaml")
        path.write_text(head + case.read_text(encoding="utf-8"), encoding="utf-8")
        ended = in_process(main, path)
        good = ended.refused("strange.yaml", *words) and not Path("executed").exists()
        yield Outcome(PART, name, "in train.yaml", _short(ended), good)
    shuffled = yaml.safe_load(case.read_text(encoding="utf-8"))
    text = yaml.safe_dump(dict(reversed(shuffled.items())), sort_keys=False).replace("lr: 0.005", "lr: 5e-3")
    other = case.with_name("shuffled.yaml")
    other.write_text(text, encoding="utf-8")
    same = load_train_config(other) == load_train_config(case)
    yield Outcome(PART, "keys in another order, 5e-3", "train.yaml", f"equal settings: {same}", same)


# content of the file, words of the sentence
SAE: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("an element without a value", "H: -13.6\nO: -2042.0\nF: -2713.0\n", ("no value for N",)),
    ("not YAML", "H: [1\n", ("line",)),
    ("binary", "\x00\x01", ("sae.yaml",)),
    ("a value that is text", "H: x\nN: 1\nO: 1\nF: 1\n", ("value of H",)),
    ("not an element", "Hx: 1\n", ("'Hx'",)),
    ("NaN", "H: .nan\nN: 1\nO: 1\nF: 1\n", ("value of H",)),
    ("empty", "", ("holds no self-atomic energies",)),
    ("a tag", "H: !!python/object/apply:os.getcwd []\n", ("not allowed",)),
)


def energies(folder: Path) -> Iterator[Outcome]:
    """Files of self-atomic energies, and their fit."""
    case = make_case(folder / "sae", trainer__epochs=1)
    path = case.parent / "sae.yaml"
    for name, text, words in SAE:
        path.write_text(text, encoding="utf-8")
        ended = in_process(main, case, "data.fidelities.0.sae=sae.yaml")
        yield Outcome(PART, f"SAE: {name}", "sae.yaml", _short(ended), ended.refused("sae.yaml", *words))
    path.write_text("H: -13.6\nN: -1485\nO: -2042\nF: -2713\nSi: -7876\n", encoding="utf-8")
    ended = in_process(main, case, "data.fidelities.0.sae=sae.yaml")
    yield Outcome(PART, "SAE: an element too many", "sae.yaml", f"exit code {ended.code}", ended.code == 0)
    numbers = [[6] * n + [1] * (2 * n + 2) for n in (1, 2, 3)]
    content = {}
    for row in numbers:
        size = len(row)
        places = 1.1 * columns(2, 1)["coord"][0, 0] + 1.5 * _grid(size)
        energy = -1030.0 * row.count(6) - 13.6 * row.count(1)
        content[str(size)] = {"coord": places[None], "numbers": [row], "charge": [0], "energy": [energy]}
    data = write_h5(case.parent / "alkanes.h5", content)
    ended = in_process(calc_sae, data, case.parent / "alkanes.yaml")
    good = ended.code == 0 and "composition alone cannot separate" not in ended.error
    # CnH2n+2 with several n determines both elements; of one composition it cannot
    yield Outcome(PART, "SAE: alkanes of three sizes", "CnH2n+2", f"exit code {ended.code}, determined", good)
    write_h5(data, {"5": content["5"]})
    ended = in_process(calc_sae, data, case.parent / "alkanes.yaml")
    good = ended.code == 0 and "composition alone cannot separate H and C" in ended.error
    yield Outcome(PART, "SAE: rank-deficient composition", "CH4 only", ended.error.strip()[:160], good)


def _grid(size: int):  # type: ignore[no-untyped-def]
    import numpy as np

    return np.stack(np.meshgrid(*[np.arange(3.0)] * 3), axis=-1).reshape(-1, 3)[:size]


def imports(folder: Path) -> Iterator[Outcome]:
    """Own code is used when the command line allows its module, never because a file names it."""
    case = make_case(folder / "imports", trainer__epochs=1)
    source = (
        "from pathlib import Path\n"
        "Path(__file__).with_name('imported').touch()\n"
        "import torch\n"
        "from aimnet2mult.train.loss import energy_loss_fn\n"
        "def doubled(y_pred, y_true, key_pred='energy', key_true='energy'):\n"
        "    return 2 * energy_loss_fn(y_pred, y_true, key_pred, key_true)\n"
        "class Slow(torch.optim.SGD):\n"
        "    pass\n"
    )
    (folder / "my_losses_of_faults.py").write_text(source, encoding="utf-8")
    import sys

    sys.path.insert(0, str(folder))
    mine = ["loss.kwargs.components.energy.fn=my_losses_of_faults.doubled"]
    mine += ["optimizer={class: my_losses_of_faults.Slow, kwargs: {lr: 1e-3}}"]
    ended = in_process(main, case, *mine)
    good = ended.refused("my_losses_of_faults.doubled", "--allow-import") and not (folder / "imported").exists()
    yield Outcome(PART, "own loss named in a file only", "no --allow-import", _short(ended), good)
    ended = in_process(main, case, *mine, "--allow-import", "my_losses_of_faults")
    yield Outcome(PART, "own loss and optimiser", "--allow-import", f"exit code {ended.code}", ended.code == 0)
    ended = in_process(
        main, case, "loss.class=my_losses_of_faults.torch.nn.Linear", "--allow-import", "my_losses_of_faults"
    )
    yield Outcome(
        PART, "what an allowed module imports", "module.torch.nn.Linear", _short(ended), ended.refused("not allowed")
    )
    ended = in_process(main, case, "--allow-import", "no_such_module")
    yield Outcome(
        PART, "a module that is not there", "--allow-import", _short(ended), ended.refused("cannot be imported")
    )
    sys.path.remove(str(folder))


def _short(ended: Ended) -> str:
    return f"exit code {ended.code}: {ended.error.strip()[:300]}"
