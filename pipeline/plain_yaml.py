"""YAML that says one thing: a key once in a mapping, 010 is ten, and no value that JSON does not hold."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from exact_ntk.errors import ConfigError

TAG = "tag:yaml.org,2002:"
MERGE, INT = f"{TAG}merge", f"{TAG}int"
# Dates by day and binary data are YAML's own; a config has no use for them.
FOREIGN = {f"{TAG}timestamp": "a date", f"{TAG}binary": "binary data", f"{TAG}set": "a set"}


@dataclass(frozen=True, eq=False)
class _Foreign:
    kind: str
    text: str


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping as it stands in the text, before merge keys (<<) bring in what it may override."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ConfigError(f"{key.value} is there twice, at lines {lines[key.value]} and {line}: keep one")
            lines[key.value] = line
        return node


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = node.value.replace("_", "")
    return int(text, 0 if re.match(r"[-+]?0[box]", text) else 10)


def _foreign(loader: yaml.SafeLoader, node: yaml.Node) -> _Foreign:
    return _Foreign(FOREIGN[node.tag], node.value if isinstance(node.value, str) else "this")


# YAML 1.1 reads 010 as eight and 1:30 as ninety.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != INT]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_DECIMAL = re.compile(r"[-+]?(?:[0-9][0-9_]*|0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+)$")
_Loader.add_implicit_resolver(INT, _DECIMAL, list("-+0123456789"))
_Loader.add_constructor(INT, _integer)
for _tag in FOREIGN:
    _Loader.add_constructor(_tag, _foreign)


def read_yaml(text: str) -> Any:
    """The value of one document. Raises ConfigError, naming the line, or a key that is there twice with both lines."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        why = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(f"is not YAML{where}: {why}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"is not YAML: {error}") from error


def as_json(tree: Any) -> Any:
    """The tree as JSON holds it, with nothing shared between its branches, as aliases are.

    Raises ConfigError, naming its key, for a value that JSON does not hold.
    """
    for key, found in _foreign_values(tree, (), ()):
        if isinstance(found, _Foreign):
            what = f"{found.text} is {found.kind} in YAML, which a config does not hold: put it in quotes"
        else:
            what = "holds itself"
        raise ConfigError(": ".join(filter(None, [".".join(key), what])))
    return json.loads(json.dumps(tree))


def _foreign_values(node: Any, key: tuple[str, ...], above: tuple[int, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every (key, value) that JSON does not hold; above: the branches that lead here."""
    if isinstance(node, _Foreign) or id(node) in above:
        yield key, node
        return
    items: list[tuple[Any, Any]] = []
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list | tuple):
        items = list(enumerate(node))
    for name, child in items:
        if isinstance(name, _Foreign):
            yield key, name
        else:
            yield from _foreign_values(child, (*key, str(name)), (*above, id(node)))
