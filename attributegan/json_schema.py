"""JSON Schema of the dataclasses of options, with which editors complete and check YAML files.

Owns the translation of types and ranges. Which schemas exist, and where, is decided by docs/reference.py.
"""

from __future__ import annotations

import typing
from dataclasses import is_dataclass
from typing import Any, Literal

from attributegan.options import Spec, list_options, section_doc

DRAFT = "http://json-schema.org/draft-07/schema#"  # the newest draft that YAML editors support in full

# YAML 1.2, which editors read, has text where Python's YAML 1.1 has numbers (1_000), and the reverse (2e-4).
INTEGER_TEXT = r"^[+-]?[0-9][0-9_]*(\.0*)?([eE]\+?[0-9]+)?$"
NUMBER_TEXT = r"^[+-]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"


def object_schema(cls: type) -> dict[str, Any]:
    """Returns the JSON Schema of a mapping that fills the dataclass ``cls``; other keys are errors."""
    hints = typing.get_type_hints(cls)
    own = {option.name: option for option in list_options(cls)}
    properties = {
        name: _section_schema(hint) if is_dataclass(hint) else option_schema(own[name].hint, own[name].spec, own[name].default)
        for name, hint in hints.items()
    }
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _section_schema(cls: Any) -> dict[str, Any]:
    return object_schema(cls) | {"type": ["object", "null"], "description": section_doc(cls)}


def option_schema(hint: Any, spec: Spec, default: Any) -> dict[str, Any]:
    """Returns the JSON Schema of one option with its description and default."""
    source = f" Source: {spec.source}." if spec.source else ""
    plain = list(default) if isinstance(default, tuple) else default
    return value_schema(hint, spec) | {"description": f"{spec.help}{source}", "default": plain}


def value_schema(hint: Any, spec: Spec) -> dict[str, Any]:
    """Returns the JSON Schema of the values of one option."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if spec.choices:
        return {"enum": list(spec.choices)}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": value_schema(arguments[0], spec)}
    if origin is dict:
        return {"type": "object", "additionalProperties": {"type": ["string", "number"]}}
    if hint is bool:
        return {"type": "boolean"}
    if hint is str:
        return {"type": ["string", "number", "null"]}
    limits = {
        "minimum": spec.minimum,
        "exclusiveMinimum": spec.above,
        "maximum": spec.maximum,
        "exclusiveMaximum": spec.below,
        "multipleOf": spec.multiple_of,
    }
    kind, text = ("integer", INTEGER_TEXT) if hint is int else ("number", NUMBER_TEXT)
    return {"type": [kind, "string"], "pattern": text} | {key: value for key, value in limits.items() if value is not None}


def document(tree: dict[str, Any], title: str) -> dict[str, Any]:
    """Returns a complete schema file with the rules in ``tree``."""
    return {"$schema": DRAFT, "title": title, "$comment": "written by python docs/reference.py"} | tree
