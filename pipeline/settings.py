"""Loading a config: bundled or a file, overrides, and errors that name the key as it stands in the YAML."""

import difflib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from exact_ntk.config import (
    Cifar10,
    CnnColumn,
    Config,
    Digits,
    EarlyStopping,
    Gram,
    KernelColumn,
    Keys,
    Npz,
    Order,
    RidgeChoice,
    Test,
    Train,
    Zca,
    method_spelled_out,
    selection_spelled_out,
    spelled_out,
)
from exact_ntk.errors import ConfigError
from exact_ntk.files import expanded
from exact_ntk.plain_yaml import as_json, read_yaml

# Keys beside name, data and columns that a file may use to hold anchors.
ASIDE = ("_", "x-")


def bundled() -> dict[str, Path]:
    """The configs that come with the package, by name."""
    folder = Path(__file__).parent / "configs"
    return {stem: folder / f"{stem}.yaml" for stem in sorted(path.stem for path in folder.glob("*.yaml"))}


def _read(config: str) -> tuple[Any, Path]:
    """The tree of a config, without what it keeps aside, and its path."""
    path = bundled().get(config, expanded(Path(config)))
    try:
        tree = read_yaml(path.read_text(encoding="utf-8"))
        if isinstance(tree, dict):
            tree = {key: value for key, value in tree.items() if not (isinstance(key, str) and key.startswith(ASIDE))}
        return as_json(tree), path
    except FileNotFoundError:
        close = _likely(path)
        hint = f"did you mean {close}? " if close else ""
        raise ConfigError(f"no config {config}: {hint}bundled are {', '.join(bundled())}, or give a path") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read config {path}: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _likely(path: Path) -> str | None:
    """The config that was meant by a path that is none: the same with its suffix, or a name nearly the same."""
    there = [str(p) for suffix in (".yaml", ".yml") for p in sorted(path.parent.glob(f"*{suffix}"))]
    whole = next((name for name in there if Path(name).stem == path.name), None)
    close = difflib.get_close_matches(str(path), [*bundled(), *there], n=1)
    return whole or next(iter(close), None)


def _override(tree: Any, assignment: str) -> None:
    """Apply one a.b=c in place; list items go by number, * is all of them."""
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {assignment}: should be KEY=VALUE, for instance --set columns.0.ridge=0.001")
    try:
        value = as_json(read_yaml(text))
    except ConfigError as error:
        raise ConfigError(f"--set {assignment}: {error}") from error
    *parents, last = key.split(".")
    nodes = [tree]
    for part in parents:
        nodes = [child for node in nodes for child in _children(node, part, assignment)]
    for node in nodes:
        if isinstance(node, list):
            for index in range(len(node)) if last == "*" else [_index(node, last, assignment)]:
                node[index] = value
        elif isinstance(node, dict):
            node[last] = value
        else:
            raise ConfigError(f"--set {assignment}: {'.'.join(parents)} has no keys")


# Keys whose mapping may be written as one word.
IN_SHORT = {"test": spelled_out, "preprocess": method_spelled_out, "ridge": selection_spelled_out}


def _children(node: Any, part: str, assignment: str) -> list[Any]:
    if isinstance(node, list):
        return list(node) if part == "*" else [node[_index(node, part, assignment)]]
    if not isinstance(node, dict):
        raise ConfigError(f"--set {assignment}: {part} is not a key of a list or a mapping")
    if isinstance(node.get(part), str) and part in IN_SHORT:
        node[part] = IN_SHORT[part](node[part])
    return [node.setdefault(part, {})]


def _index(node: list, part: str, assignment: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise ConfigError(f"--set {assignment}: {part} is not one of the items 0 to {len(node) - 1}")
    return int(part)


MODELS: tuple[type[BaseModel], ...] = (
    *(Config, Digits, Cifar10, Npz, Keys, Order, Gram, Train, Test),
    *(Zca, RidgeChoice, EarlyStopping, KernelColumn, CnnColumn),
)
TAGS = ("cntk", "nngp", "cnn", "digits", "cifar10", "npz", "number", "choice", "plain", "whitened")


def _each_width(column: Any) -> list[Any]:
    """The columns that one entry of the YAML stands for: one for each of its widths."""
    widths = column.get("width") if isinstance(column, dict) else None
    return [{**column, "width": width} for width in widths] if isinstance(widths, list) and widths else [column]


def _key(location: tuple[int | str, ...], entries: list[int]) -> str:
    """A problem's key in the YAML; entries: each column's number there."""
    parts = list(location)
    if parts[:1] == ["columns"] and len(parts) > 1:
        parts[1] = entries[int(parts[1])]
    # pydantic puts the tag of a discriminated union into the path; it is no key of the YAML.
    return ".".join(str(part) for k, part in enumerate(parts) if not (k > 0 and part in TAGS)) or "config"


def _explain(error: ValidationError, entries: list[int]) -> str:
    """The first problem on one line, named by its full key; a misspelt key before the one it leaves missing."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    key = _key(first["loc"], entries)
    distinct = {_key(p["loc"], entries) for p in problems if p["type"] != "too_short" or p["input"] == []}
    message = (
        first["msg"].removeprefix("Value error, ").replace("a valid array", "a list").replace("an object", "a mapping")
    )
    message = message.replace(
        "Tuple should have at least 1 item after validation, not 0", "should hold at least 1 item"
    )
    if first["type"] == "extra_forbidden":
        unknown = str(first["loc"][-1])
        known = {f.alias or name for model in MODELS for name, f in model.model_fields.items()} - {unknown}
        close = difflib.get_close_matches(unknown, known, n=1)
        message = "unknown key" + (f"; did you mean {close[0]}?" if close else "")
    elif first["type"] == "string_pattern_mismatch":
        allowed = "letters (a to z, A to Z), digits, '.', '_' and '-', a letter or digit first"
        message = f"should consist of {allowed}, not {first['input']!r}"
    elif first["type"] != "missing" and not isinstance(first["input"], dict | list):
        message += f", not {first['input']!r}" + (": put it in quotes" if first["type"] == "string_type" else "")
    more = f" (and {len(distinct) - 1} more)" if len(distinct) > 1 else ""
    return f"{key}: {message}{more}"


def load_config(config: str, overrides: list[str] | None = None) -> Config:
    """Read a bundled config by name, or a YAML file by path, apply a.b=c overrides and check everything.

    Raises ConfigError, naming the file and the key.
    """
    tree, path = _read(config)
    if tree is None:
        raise ConfigError(f"{path} is empty: it needs at least name, data and columns (see configs/digits.yaml)")
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} should be a mapping with name, data and columns, not a {type(tree).__name__}")
    for assignment in overrides or []:
        _override(tree, assignment)
    entries: list[int] = []
    if isinstance(tree.get("columns"), list):
        each = [_each_width(column) for column in tree["columns"]]
        entries = [k for k, columns in enumerate(each) for _ in columns]
        tree["columns"] = [column for columns in each for column in columns]
    try:
        return Config.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explain(error, entries)}") from error
