"""Settings from YAML: safe reading, dotted overrides, and errors that say what to change.

Only plain data comes out of a file: mappings, lists, text, numbers, true/false and null. Scalars follow
YAML 1.2, so that ``1e-4`` is a number and ``no`` or ``2026-01-01`` stay text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from aimnet2mult.configs.yaml_lines import KeyLines
from aimnet2mult.errors import ConfigError

M = TypeVar("M", bound=BaseModel)

MAX_BYTES = 16 * 1024 * 1024
MAX_VALUES = 1_000_000  # after aliases are written out; far above any settings file, far below an alias bomb


def _refusal(problem: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2 and without repeated keys."""

    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}  # type: ignore[misc]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refusal("a key must be text or a number", key)
            if (key.tag, key.value) in seen:
                raise _refusal(f"the key '{key.value}' is there twice", key)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)


_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("merge", r"<<", ["<"]),
)
for _name, _pattern, _first in _SCALARS:
    _PlainLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)


_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "map", "seq", "null", "bool", "int", "float", "merge")}


def _written_out(node: yaml.Node, sizes: dict[int, int], open_nodes: set[int]) -> int:
    """Count the values below `node` as if every alias were written out; refuse tags and circular aliases."""
    key = id(node)
    if node.tag not in _TAGS:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise _refusal(f"the tag {tag} is not allowed; write plain text, numbers, lists and mappings only", node)
    if key in open_nodes:
        raise _refusal("an alias points to what it stands in", node)
    if key not in sizes:
        open_nodes.add(key)
        total = 1
        if isinstance(node, yaml.MappingNode):
            total += sum(_written_out(part, sizes, open_nodes) for pair in node.value for part in pair)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(_written_out(part, sizes, open_nodes) for part in node.value)
        open_nodes.discard(key)
        sizes[key] = total
    return sizes[key]


def parse_yaml(text: str, where: str) -> Any:
    """Turn YAML text into plain data.

    Parameters
    ----------
    text
        The YAML document.
    where
        Name of the file or option, for messages.

    Raises
    ------
    ConfigError
        The text is not YAML, holds a tag such as ``!!python/object``, repeats a key, or grows
        beyond `MAX_VALUES` values through aliases.
    """
    loader = None
    try:
        loader = _PlainLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _written_out(node, {}, set()) > MAX_VALUES:
            raise ConfigError(f"{where}: aliases (*name) expand to more than {MAX_VALUES} values; write them out")
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}:" if mark is not None else ""
        raise ConfigError(f"{where}:{line} {error.problem or error.context or 'cannot be read'}") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ConfigError(f"{where}: not readable as YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{where}: lists or mappings are nested too deeply; flatten them") from None
    finally:
        if loader is not None:
            loader.dispose()


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises
    ------
    ConfigError
        The file is missing, unreadable, not YAML, or no mapping; see `parse_yaml`.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: {path.stat().st_size} bytes is too large for a settings file")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8; a YAML file is expected") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    values = parse_yaml(text, str(path))
    if values is None:
        raise ConfigError(f"{path}: the file is empty; a YAML mapping is expected")
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a YAML mapping (key: value) is expected, found {_kind(values)}")
    return values


def apply_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return `values` with overrides such as ``trainer.epochs=5`` put in.

    The value is read as YAML (``data.y=[energy, forces]``, ``trainer.early_stopping=null``); a digit in
    the dotted key is a list position or an integer key. Later overrides win. `values` is not changed.

    Raises
    ------
    ConfigError
        An override has no ``=``, an empty key, a value that is not YAML, or goes through a plain value.
    """
    result = _copied(values)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        steps = dotted.strip().split(".")
        if not equals or not all(steps):
            raise ConfigError(f"override '{override}': write it as key.sub=value")
        value = parse_yaml(text, f"override '{override}'")
        here: Any = result
        for position, step in enumerate(steps[:-1]):
            key = _key_in(here, step, override)
            known = here[key] if isinstance(here, list) else here.get(key)
            if known is None:
                known = {}
                here[key] = known
            if not isinstance(known, dict | list):
                path = ".".join(steps[: position + 1])
                raise ConfigError(f"override '{override}': '{path}' is a plain value and has no options below it")
            here = known
        here[_key_in(here, steps[-1], override)] = value
    return result


def validated(
    schema: type[M],
    values: Mapping[str, Any],
    where: str,
    context: Mapping[str, Any] | None = None,
    lines: KeyLines | None = None,
) -> M:
    """Check `values` against a pydantic model.

    Parameters
    ----------
    schema
        The model; unknown keys are an error when it forbids extra keys.
    values
        Plain data, for example from `read_yaml`.
    where
        Name of the file, put before each message.
    context
        Handed to the schema's own validators, for example the folder that relative paths start from.
    lines
        Lines of the file that the values come from.

    Raises
    ------
    ConfigError
        One line per problem, such as
        ``train.yaml: line 31: data.samplers.train.batchsize: unknown option; did you mean 'batch_size'?``
    """
    try:
        return schema.model_validate(values, context=context)
    except ValidationError as error:
        problems: list[str] = []
        for found in error.errors(include_url=False):
            problem = _misspelt_tag(found)
            way = list(_visible(values, problem["loc"], keep_last=True))
            line = f"{where}: {'' if lines is None else lines.at(way)}{_sentence(schema, values, problem)}"
            if line not in problems:
                problems.append(line)
        raise ConfigError("\n".join(problems)) from None


def _misspelt_tag(problem: Mapping[str, Any]) -> Mapping[str, Any]:
    """A missing key that tells kinds of settings apart, as the misspelt key that is there instead."""
    if problem["type"] != "union_tag_not_found" or not isinstance(problem["input"], Mapping):
        return problem
    tag = str(problem["ctx"]["discriminator"]).strip("'")
    close = get_close_matches(tag, map(str, problem["input"]), n=1)
    return {**problem, "type": "extra_forbidden", "loc": (*problem["loc"], close[0])} if close else problem


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(part) for key, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list) else value


def _key_in(here: dict[Any, Any] | list[Any], step: str, override: str) -> Any:
    if isinstance(here, list):
        if not step.isdigit() or int(step) >= len(here):
            raise ConfigError(f"override '{override}': '{step}' must be a position from 0 to {len(here) - 1}")
        return int(step)
    return int(step) if step.isdigit() and step not in here else step


def _kind(value: Any) -> str:
    kinds = {dict: "a mapping", list: "a list", str: "text", bool: "true/false", type(None): "nothing"}
    return kinds.get(type(value), f"the number {value}" if isinstance(value, int | float) else type(value).__name__)


def _sentence(schema: type[BaseModel], values: Any, problem: Mapping[str, Any]) -> str:
    kind, location = problem["type"], problem["loc"]
    path = ".".join(_visible(values, location, keep_last=kind == "missing"))
    prefix = f"{path}: " if path else ""
    if kind == "extra_forbidden":
        known = sorted(_known_keys(schema, location[:-1]))
        close = get_close_matches(str(location[-1]), known, n=1, cutoff=0.6)
        hint = f"did you mean '{close[0]}'?" if close else f"known options: {', '.join(known)}"
        if str(location[-1]) in known:
            hint = "it does not go with the other options here"
        return f"{prefix}unknown option; {hint}"
    if kind == "missing":
        return f"{prefix}this option is required"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        context = problem["ctx"]
        tag = f"{prefix.removesuffix(': ')}.{context['discriminator']}".replace("'", "")
        missing = kind == "union_tag_not_found"
        return f"{tag}: " + ("this option is required" if missing else f"must be one of {context['expected_tags']}")
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind == "value_error":
        # validators of a whole section name the option that is wrong themselves: "option: what is wrong"
        return f"{path}.{message}" if path and re.match(r"[a-z_.]+: ", message) else prefix + message
    message = re.sub(r"^\w+ should ", "must ", message.split(", unable to")[0].replace(" after validation", ""))
    if message.startswith("must be "):
        given = problem.get("input")
        shown = repr(given) if isinstance(given, str | int | float) else _kind(given)
        message = f"{'must be a mapping' if kind in ('dict_type', 'model_type') else message}, not {shown}"
    return f"{prefix}{message}"


def _visible(values: Any, location: Sequence[int | str], keep_last: bool) -> Iterator[str]:
    """Parts of a pydantic location that the user wrote; names of union members and validators are left out."""
    here = values
    for position, part in enumerate(location):
        if isinstance(here, Mapping) and (part in here or str(part) in map(str, here)):
            here = here[part] if part in here else next(v for k, v in here.items() if str(k) == str(part))
        elif isinstance(here, list | tuple) and isinstance(part, int) and part < len(here):
            here = here[part]
        elif not (keep_last and position == len(location) - 1):
            continue
        yield str(part)


def _known_keys(schema: Any, location: Sequence[int | str]) -> set[str]:
    """Option names of the model (or of every member of a union) at a pydantic location."""
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        fields = {field.alias or name: field.annotation for name, field in schema.model_fields.items()}
        if not location:
            return set(fields)
        # a location that is no field is the tag of a union whose member is this model
        part = str(location[0])
        return _known_keys(fields[part], location[1:]) if part in fields else _known_keys(schema, location[1:])
    origin, arguments = get_origin(schema), get_args(schema)
    if origin is Annotated:
        return _known_keys(arguments[0], location)
    if isinstance(origin, type) and issubclass(origin, Mapping | list | tuple) and arguments:
        return _known_keys(arguments[-1 if issubclass(origin, Mapping) else 0], location[1:])
    return set().union(*(_known_keys(member, location) for member in arguments)) if arguments else set()
