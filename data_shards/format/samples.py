"""Reads one sample of a WebDataset tar: its image, levels and group, for `attributegan-shard index` and ``verify``.

Levels are in ``.json``, by attribute name at the top level or under ``levels``; with a single attribute, they may be in ``.cls``. Values
are parsed as `attributegan-shard pack` parses those of a CSV.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from attributegan.attributes import AttributeSchema
from data_shards.format import groups, intact, rgb, tile
from data_shards.format.tables import is_same
from data_shards.format.tar_members import Member

IMAGES = ("jpg", "jpeg", "png", "webp")


def by_kind(sample: Sequence[Member]) -> dict[str, Member]:
    """Returns the members of a sample by kind.

    Raises:
        ValueError: two members of the same kind.
    """
    found = {member.kind: member for member in sample}
    if len(found) < len(sample):
        kinds = [member.kind for member in sample]
        raise ValueError(f"has {next(kind for kind in kinds if kinds.count(kind) > 1)} more than once; give each sample a unique name")
    return found


def image_of(kinds: Mapping[str, Member]) -> Member:
    """Returns the image of a sample.

    Raises:
        ValueError: no image, or several.
    """
    images = [kind for kind in IMAGES if kind in kinds]
    if len(images) > 1:
        raise ValueError(f"has {len(images)} images ({', '.join(images)}); keep only the image of the tile")
    if images:
        return kinds[images[0]]
    if dotted := [kind for kind in kinds if kind.rpartition(".")[2] in IMAGES and "." in kind]:
        raise ValueError(
            f"no image ({', '.join(IMAGES)}); found {', '.join(list(kinds)[:4])}. WebDataset takes everything after the "
            f"first dot of a name as its extension; use names with a single dot (…_{dotted[0]})"
        )
    raise ValueError(f"no image ({', '.join(IMAGES)}); found {', '.join(kinds)}")


def check_image(data: bytes) -> tuple[int, int]:
    """Check that an image is complete and usable for training; returns its width and height.

    Raises:
        ValueError: not an image, or truncated or damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warnings don't name the file
            intact.check(data)
        with rgb.opened(data, tuple(tile.EXTENSIONS)) as image:
            rgb.check_one_picture(image)
            if image.mode not in ("RGB", "L"):
                rgb.to_rgb(image)
            return image.size
    except tile.DECODING_ERRORS as error:
        raise ValueError(f"not a readable image: {error}") from error


def read_levels(kinds: Mapping[str, Member], schema: AttributeSchema, group: str) -> tuple[list[int], str]:
    """Returns the levels and the group ("" for none) in a sample's ``.json`` or ``.cls``.

    Args:
        group: key of the group's name in ``.json``.

    Raises:
        ValueError: missing or invalid levels.
    """
    entry = _json(kinds)
    tree = _levels(entry, schema)
    single = schema.names[0] if len(schema.names) == 1 else None
    if single and "cls" in kinds:
        value = kinds["cls"].data.decode("utf-8", "replace").strip()
        if single in tree and schema.attributes[0].read(tree[single]) != schema.attributes[0].read(value):
            raise ValueError(f"{single} is {tree[single]} in .json but {value} in .cls")
        tree = {single: value}
    if not tree and "json" not in kinds:
        raise ValueError("no .json with levels" + (" and no .cls with a number" if single else ""))
    if missing := [name for name in schema.names if name not in tree]:
        raise ValueError(f"no level of {', '.join(missing)}; found {', '.join(map(str, tree)) or 'no entries'}")
    levels = [attribute.read(tree[attribute.name]) for attribute in schema.attributes]
    try:
        return levels, groups.name_of(entry.get(group))
    except ValueError as error:
        raise ValueError(f"{group}: {error}") from error


def _json(kinds: Mapping[str, Member]) -> dict[str, Any]:
    if "json" not in kinds:
        return {}
    try:
        entry = json.loads(kinds["json"].data, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f".json: {error}") from error
    if not isinstance(entry, dict):
        raise ValueError(".json: not a JSON object")
    return entry


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is given more than once")
    return found


def _levels(entry: dict[str, Any], schema: AttributeSchema) -> dict[str, Any]:
    """Returns the entries that hold the levels; ValueError if an attribute has two."""
    tree = entry.get("levels", entry)
    if not isinstance(tree, dict):
        raise ValueError(f"no level of {', '.join(schema.names)}")
    for attribute in schema.attributes:
        same = [name for name in tree if is_same(attribute.name, name)]
        if len(same) > 1:
            raise ValueError(f".json: has {' and '.join(map(repr, same))}; keep only {attribute.name}")
        if tree is not entry and attribute.name in tree and attribute.name in entry:
            of_both = [attribute.read(found[attribute.name]) for found in (tree, entry)]
            if of_both[0] != of_both[1]:
                raise ValueError(
                    f".json: {attribute.name} is {tree[attribute.name]} under levels but {entry[attribute.name]} at the top level"
                )
    return tree
