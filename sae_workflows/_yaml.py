"""YAML with positions: where in the file a key stands, and no key twice."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sae_lib.errors import BadInput


class _Loader(yaml.SafeLoader):
    """Safe loading that refuses a mapping in which a key stands twice."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands twice", key_node.start_mark
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: Path) -> tuple[dict[str, Any], yaml.Node]:
    """Content of the file and its node tree; raises `BadInput` with the line that is wrong."""
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput("this is not a text file in UTF-8.", file=path) from error
    try:
        # a SafeLoader that refuses a key given twice: it makes plain values, never objects
        content = yaml.load(text, _Loader)
        node = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise BadInput(f"this is not valid YAML: {problem}.", file=line) from error
    if not isinstance(content, dict) or node is None:
        raise BadInput(
            "an experiment is a mapping with the keys name, model, corpus, sites and saes; "
            f"this file holds {'nothing' if content is None else type(content).__name__}.",
            file=path,
        )
    return content, node


def line_of(node: yaml.Node, path: Sequence[str | int]) -> int:
    """Line (from 1) of the deepest part of ``path`` that the file has."""
    line = node.start_mark.line + 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            if part >= len(node.value):
                break
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def dotted(path: Sequence[str | int]) -> str:
    """``("saes", 1, "k")`` as ``saes[1].k``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
