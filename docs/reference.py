"""``python docs/reference.py``: writes the reference page of all options and the JSON Schemas of the configuration files.

Everything comes from the fields of the configuration dataclasses; tests check that the committed files are current.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from attributegan.config import Config
from attributegan.json_schema import document, object_schema, value_schema
from attributegan.old_names import RENAMED_OPTIONS
from attributegan.options import Option, list_options, section_doc, sections
from slurm.cluster_config import ClusterConfig

ROOT = Path(__file__).parent.parent
PAGE = "docs/reference/configuration.md"
INTRODUCTION = """\
# Configuration

<!-- Written by `python docs/reference.py`; edit the help texts in attributegan/config.py and slurm/cluster_config.py instead. -->

A training run is configured by a YAML file with the sections below, such as
[configs/train/small.yaml](../../configs/train/small.yaml). Options that are not given keep their defaults. On the command line,
`section.key=value` overrides the file:

```sh
attributegan-train --config configs/train/small.yaml data.shards=shards run.dir=runs/first train.batch=16
attributegan-train --help data.shards     # one option in full; --help data: a section; --help: all options
```

Unknown options and values of the wrong type or out of range are rejected before training starts. The resolved configuration is
written to `config.yaml` in the run folder. Editors with a YAML language server offer completion and checks
in files whose first line is `# yaml-language-server: $schema=schema.json`. The path is relative to the file; the schemas are in
`configs/train`, `configs/slurm`, `configs/attributes`, `configs/studies` and `configs/sweep`.
"""


def main() -> int:
    for name, text in files().items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
    return 0


def files() -> dict[str, str]:
    """Returns the text of each file by its path in the repository."""
    train = document(object_schema(Config), "Training configuration of AttributeGAN")
    schemas = {
        "train": train,
        "slurm": document(object_schema(ClusterConfig), "Slurm cluster of attributegan-submit"),
        "attributes": attributes_schema(),
        "studies": studies_schema(train),
        "sweep": sweep_schema(),
    }
    return {PAGE: page()} | {f"configs/{name}/schema.json": json.dumps(tree, indent=1) + "\n" for name, tree in schemas.items()}


def page() -> str:
    """Returns the reference page in Markdown."""
    lines = [INTRODUCTION]
    for name, cls in sections(Config):
        lines += [f"## {name}", "", section_doc(cls), "", *_table(list_options(cls, f"{name}."), 'id="{}"'), ""]
    lines += ["## Slurm clusters", "", "Options of the file given as `attributegan-submit --cluster`, such as"]
    lines += ["[configs/slurm/gpu.yaml](../../configs/slurm/gpu.yaml).", "", *_table(list_options(ClusterConfig), 'id="slurm.{}"'), ""]
    lines += ["## Old names", "", "Still accepted in this version:", ""]
    lines += [f"- `{old}` is now `{new}`" for old, new in RENAMED_OPTIONS.items()]
    return "\n".join(lines) + "\n"


def _table(options: Iterable[Option], anchor: str) -> Iterator[str]:
    yield "| Option | Values | Default | Description |"
    yield "|---|---|---|---|"
    for option in options:
        source = f" Source: {option.spec.source}." if option.spec.source else ""
        cells = (
            f"<a {anchor.format(option.name)}></a>`{option.name}`",
            option.values,
            f"`{option.shown_default}`",
            f"{option.spec.help}{source}",
        )
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def attributes_schema() -> dict[str, Any]:
    """Returns the JSON Schema of attribute files (`attributegan.attributes`)."""
    name = {"type": ["string", "number"]}
    levels = {"type": "array", "items": name, "minItems": 2, "uniqueItems": True, "description": "Names of the levels, lowest first."}
    full = {
        "type": "object",
        "required": ["levels"],
        "additionalProperties": False,
        "properties": {
            "levels": levels,
            "not_assessable": {
                "type": ["string", "integer", "null"],
                "description": 'The level, first or last, that means "can\'t be judged": its number, counted from 0, or its name.',
            },
            "measured": {"type": "object", "description": "How levels were made from measurements; written by attributegan-shard measure."},
        },
    }
    tree = {"type": "object", "minProperties": 1, "additionalProperties": False}
    attribute = {"if": {"type": "array"}, "then": levels, "else": full}
    return document(tree | {"patternProperties": {"^[^\\W\\d]\\w*$": attribute}}, "Attributes of a shard set and their ordinal levels")


def studies_schema(configuration: dict[str, Any]) -> dict[str, Any]:
    """Returns the JSON Schema of the suites of attributegan-study."""
    options = {"$ref": "#/definitions/options"}
    bases = sorted(file.stem for file in (ROOT / "configs" / "train").glob("*.yaml"))
    study = {
        "type": "object",
        "required": ["base"],
        "additionalProperties": False,
        "properties": {
            "base": {"enum": bases, "description": "The file of configs/train to start from."},
            "change": options | {"description": "Options that differ from the base."},
        },
    }
    tree = {
        "type": "object",
        "required": ["common", "studies"],
        "additionalProperties": False,
        "properties": {
            "common": options | {"description": "Options of all studies."},
            "studies": {"type": "object", "additionalProperties": False, "patternProperties": {r"^[A-Za-z0-9][\w.-]*$": study}},
        },
        "definitions": {"options": {key: configuration[key] for key in ("type", "additionalProperties", "properties")}},
    }
    return document(tree, "Suite of attributegan-study")


def sweep_schema() -> dict[str, Any]:
    """Returns the JSON Schema of the sweeps of attributegan-submit --array."""
    properties = {
        option.name: {
            "type": "array",
            "minItems": 1,
            "description": option.spec.help,
            "items": value_schema(option.hint, option.spec),
        }
        for option in list_options(Config)
        if option.name != "run.dir"
    }
    return document({"type": "object", "minProperties": 1, "additionalProperties": False, "properties": properties}, "Sweep of options")


if __name__ == "__main__":
    sys.exit(main())
