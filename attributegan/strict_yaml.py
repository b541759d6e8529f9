"""YAML as it is written: keys that come twice are refused, and texts stay texts where names are read.

Every YAML file that people write goes through here.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

# What PyYAML raises on text that is no YAML, or has tags and values that don't fit together (`!!bool maybe`).
YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)


def _mapping(loader: yaml.SafeLoader | yaml.BaseLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    """A mapping whose keys are all different; PyYAML would keep the last of equal ones and lose the others."""
    lines: dict[Hashable, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue  # what is written beside a `<<` replaces what it brings
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if key in lines:
            where = f"lines {lines[key]} and {line}" if lines[key] != line else f"line {line}, twice"
            raise ValueError(f"{key_node.value!r} stands there more than once ({where}); write it once")
        lines[key] = line
    if isinstance(loader, yaml.SafeLoader):
        loader.flatten_mapping(node)
    return yaml.constructor.BaseConstructor.construct_mapping(loader, node, deep=True)


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` that refuses equal keys."""


class _TextLoader(yaml.BaseLoader):
    """The same, with every scalar as the text that stands there: ``no`` is "no", and ``1.0`` is "1.0"."""


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_TextLoader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse(text: str, *, as_text: bool = False) -> Any:
    """What ``text`` says; one of `YAML_ERRORS` when it is not YAML, or has a key twice. Builds plain values alone."""
    loader = (_TextLoader if as_text else _Loader)(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read(path: str | Path, *, as_text: bool = False) -> Any:
    """What a YAML file says.

    Args:
        as_text: leave every scalar as the text that stands there.

    Raises:
        ValueError: not readable, not YAML, or a key twice; names the file.
    """
    try:
        return parse(Path(path).read_text(encoding="utf-8-sig"), as_text=as_text)
    except (OSError, *YAML_ERRORS) as error:
        raise ValueError(f"{path}: not a readable YAML file: {error}") from error
