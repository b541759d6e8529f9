"""YAML reader for files written by people: rejects duplicate keys and, on request, keeps scalars as text.

All YAML files of users are read here.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

# Raised by PyYAML on invalid YAML, and on tags that do not fit their values (`!!bool maybe`).
YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)


def _mapping(loader: yaml.SafeLoader | yaml.BaseLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    """Returns a mapping; rejects duplicate keys, of which PyYAML would silently keep the last."""
    lines: dict[Hashable, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue  # keys next to a `<<` override the merged ones
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if key in lines:
            where = f"lines {lines[key]} and {line}" if lines[key] != line else f"line {line}"
            raise ValueError(f"duplicate key {key_node.value!r} ({where}); delete one")
        lines[key] = line
    if isinstance(loader, yaml.SafeLoader):
        loader.flatten_mapping(node)
    return yaml.constructor.BaseConstructor.construct_mapping(loader, node, deep=True)


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` that rejects duplicate keys."""


class _TextLoader(yaml.BaseLoader):
    """Loader that rejects duplicate keys and keeps scalars as text: ``no`` is "no", and ``1.0`` is "1.0"."""


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_TextLoader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse(text: str, *, as_text: bool = False, name: str = "the value") -> Any:
    """Returns the value of a YAML text, of plain Python types only.

    Args:
        text: The YAML.
        as_text: Keep scalars as text.
        name: Where the text is from, for error messages.

    Raises:
        YAML_ERRORS: The text is not valid YAML, or has a duplicate key.
    """
    loader = (_TextLoader if as_text else _Loader)(text)
    loader.name = name
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read(path: str | Path, *, as_text: bool = False) -> Any:
    """Returns the value of a YAML file.

    Args:
        path: The file, in UTF-8.
        as_text: Keep scalars as text.

    Raises:
        ValueError: The file can't be read, is not valid YAML, or has a duplicate key; names the file.
    """
    try:
        return parse(Path(path).read_text(encoding="utf-8-sig"), as_text=as_text, name=str(path))
    except OSError as error:
        raise ValueError(f"{path}: can't be read: {error.strerror or error}") from error
    except YAML_ERRORS as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
