"""Strict YAML: rejects duplicate keys and can keep every scalar as text. Reads every YAML file that users write."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

# Raised by PyYAML for invalid YAML and for tags that don't fit their values (`!!bool maybe`).
YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)


def _mapping(loader: yaml.SafeLoader | yaml.BaseLoader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    """Builds a mapping and rejects duplicate keys, of which PyYAML would silently keep the last."""
    lines: dict[Hashable, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue  # explicit keys override merged ones
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if key in lines:
            where = f"lines {lines[key]} and {line}" if lines[key] != line else f"line {line}, twice"
            raise ValueError(f"duplicate key {key_node.value!r} ({where}); write it once")
        lines[key] = line
    if isinstance(loader, yaml.SafeLoader):
        loader.flatten_mapping(node)
    return yaml.constructor.BaseConstructor.construct_mapping(loader, node, deep=True)


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` that rejects duplicate keys."""


class _TextLoader(yaml.BaseLoader):
    """Like `_Loader`, but keeps every scalar as text: ``no`` is "no" and ``1.0`` is "1.0"."""


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_TextLoader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse(text: str, *, as_text: bool = False) -> Any:
    """Parses YAML into plain Python values.

    Raises:
        One of `YAML_ERRORS`: invalid YAML or a duplicate key.
    """
    loader = (_TextLoader if as_text else _Loader)(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read(path: str | Path, *, as_text: bool = False) -> Any:
    """Reads a YAML file into plain Python values.

    Args:
        path: the file.
        as_text: keep every scalar as text.

    Raises:
        ValueError: unreadable file, invalid YAML or a duplicate key; names the file.
    """
    try:
        return parse(Path(path).read_text(encoding="utf-8-sig"), as_text=as_text)
    except (OSError, *YAML_ERRORS) as error:
        raise ValueError(f"{path}: not a readable YAML file: {error}") from error
