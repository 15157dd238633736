"""YAML (and so JSON) as plain data that remembers where each thing was written.

Enter: bytes. Leave: mappings, lists and scalars, and the line of everything by its path. Keys are
text, as written (YAML reads `on` as true). Aliases are refused, since few bytes of them can stand
for any amount of data; so is a key that is there twice.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import yaml

from whitebox.errors import InvalidPipeline


def load_yaml(data: bytes, source: str, lines: MutableMapping[tuple[str | int, ...], int]) -> Any:
    """The data of a YAML document; fills `lines`. Raises InvalidPipeline."""
    try:
        root = yaml.compose(data, yaml.SafeLoader)
        return None if root is None else _plain(root, (), lines, set())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f", line {mark.line + 1}"
        raise InvalidPipeline(f"{source}{line}: {error.problem}; correct the YAML") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        what = " ".join(str(error).split())
        raise InvalidPipeline(f"{source}: is no YAML: {what}") from error
    except RecursionError:
        raise InvalidPipeline(f"{source}: is nested too deeply for a pipeline") from None


def _plain(
    node: yaml.Node,
    path: tuple[str | int, ...],
    lines: MutableMapping[tuple[str | int, ...], int],
    seen: set[int],
) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if id(node) in seen:
        raise yaml.MarkedYAMLError(
            problem="an alias is met; write it out", problem_mark=node.start_mark
        )
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*path, index), lines, seen) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return yaml.constructor.SafeConstructor().construct_object(node)
    found: dict[str, Any] = {}
    for key, value in node.value:
        mark = key.start_mark
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key is no text", problem_mark=mark)
        if key.value in found:
            raise yaml.MarkedYAMLError(
                problem=f"the key {key.value!r} is there twice", problem_mark=mark
            )
        lines[(*path, key.value)] = mark.line + 1
        found[key.value] = _plain(value, (*path, key.value), lines, seen)
    return found
