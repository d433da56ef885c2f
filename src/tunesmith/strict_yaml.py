"""YAML in which a key may stand once: the plain loader takes the last one, and what stood before it is lost."""

from __future__ import annotations

from typing import Any

import yaml


def load(text: str) -> Any:
    """The values of a document, without objects of Python.

    Raises:
        yaml.YAMLError: It is malformed, or a mapping has a key twice; ``problem_mark`` is the place.
    """
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, yaml.Mark] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                problem = f"`{key.value}` stands here and in line {seen[key.value].line + 1}"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen[key.value] = key.start_mark
        return super().construct_mapping(node, deep)
