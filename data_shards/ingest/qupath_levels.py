"""Computes levels of tiles from QuPath objects: by class name, or by a count, share or measurement and its edges.

Rules are in qupath_rules.py, the locations of tiles in qupath_locations.py.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from attributegan.attributes import UNKNOWN, Attribute, AttributeSchema
from data_shards.ingest.importers import Imported
from data_shards.ingest.qupath import ANNOTATION, DETECTION, POINT, UNKNOWN_KIND, Exported, QuPathObject
from data_shards.ingest.qupath_locations import Box, TileLocations
from data_shards.ingest.qupath_rules import ALL, STATISTICS, Rule, Rules, class_key, levels_of, names_of

TIE = 1e-9  # shares that differ by less are equal


def levels_from(
    exports: Iterable[Exported], tiles: TileLocations, schema: AttributeSchema, rules: Rules, cover: float = 0.5
) -> tuple[Imported, list[str]]:
    """Compute the levels of all tiles of the exported images.

    Args:
        cover: minimum share of a tile that annotations of a class must cover.

    Returns:
        The table of tiles with at least one level, and notes: computed edges and classes without a rule.

    Raises:
        ValueError: too few values for quantiles, or detections of one image in two exports.
    """
    bad: list[str] = []
    objects: dict[str, list[QuPathObject]] = defaultdict(list)
    counted: dict[str, str] = {}
    for export in exports:
        bad += export.bad
        for name, found in export.objects.items():
            image = tiles.image(name)
            if image is None:
                bad.append(_no_image(name, tiles))
                continue
            objects[image] += found
            if any(one.kind in (DETECTION, UNKNOWN_KIND) for one in found) and counted.setdefault(image, export.name) != export.name:
                raise ValueError(
                    f"{image}: {counted[image]} and {export.name} both have its objects, which would be counted twice; pass only one"
                )
    boxes = [box for image in sorted(objects) for box in tiles.boxes[image]]
    inside = _ObjectsByTile(objects, tiles, any(rule.classes is not None for rule in rules.values()), bad)
    levels: dict[str, dict[str, int]] = {box.file: {} for box in boxes}
    notes = []
    for attribute in schema.attributes:
        rule = rules.get(attribute.name)
        if rule is None:
            continue
        if rule.classes is not None:
            found_levels = _by_class(rule, attribute, boxes, inside, cover, bad)
        else:
            found_levels, note = _by_value(rule, attribute, boxes, inside)
            notes += note
        for file, level in found_levels.items():
            levels[file][attribute.name] = level
    rows = [
        {name: entry for name, entry in tiles.rows[file].items() if name not in schema.names}
        | schema.written([found.get(name, UNKNOWN) for name in schema.names])
        for file, found in levels.items()
        if any(level != UNKNOWN for level in found.values())
    ]
    columns = (*(name for name in tiles.columns if name not in schema.names), *schema.names)
    return Imported(columns, rows, bad, len(levels) - len(rows)), notes + _unused(rules, objects)


def _no_image(name: str, tiles: TileLocations) -> str:
    several = tiles.names.get(name) or tiles.names.get(os.path.splitext(name)[0]) or []
    if len(several) > 1:
        return f"{name}: {len(several)} tiles have this name ({', '.join(sorted(several)[:3])}); rename them"
    return f"{name}: no slide or tile with this name; name the export after its image, such as {sorted(tiles.boxes)[0]}.geojson"


class _ObjectsByTile:
    """Assigns objects to tiles: by centroid, and annotations with an outline by intersection."""

    def __init__(self, objects: Mapping[str, list[QuPathObject]], locations: TileLocations, by_class: bool, bad: list[str]) -> None:
        from shapely import STRtree, box

        self.centred: dict[str, list[QuPathObject]] = defaultdict(list)
        self.touching: dict[str, list[tuple[QuPathObject, Any]]] = defaultdict(
            list
        )  # with the covered part of the tile; None for the whole tile
        for image, found in objects.items():
            tiles = locations.boxes[image]
            shapes = [box(tile.left, tile.top, tile.left + tile.width, tile.top + tile.height) for tile in tiles]
            tree, unlocated, without_outline = STRtree(shapes), 0, 0
            whole_image = len(tiles) == 1 and tiles[0].file == image
            for one in found:
                if whole_image and one.shape is None:
                    self.centred[image].append(one)
                    self.touching[image].append((one, None))
                elif one.x is None or one.y is None or (one.in_um and tiles[0].um_XY is None):
                    unlocated += 1
                else:
                    self._assign(one, tiles, shapes, tree)
                    without_outline += one.shape is None and one.kind == ANNOTATION
            if without_outline and by_class:
                bad.append(
                    f"{image}: {without_outline:,} annotations of a table have no outline and can't cover tiles; export them as GeoJSON too"
                )
            if unlocated:
                bad.append(f"{image}: {unlocated:,} objects have no centroid and can't be assigned to tiles")

    def _assign(self, one: QuPathObject, tiles: Sequence[Box], shapes: Sequence[Any], tree: Any) -> None:
        from shapely import Point

        assert one.x is not None and one.y is not None
        um_XY = tiles[0].um_XY if one.in_um else None
        x, y = (one.x / um_XY[0], one.y / um_XY[1]) if um_XY else (one.x, one.y)
        for index in tree.query(Point(x, y)):
            tile = tiles[index]
            if tile.left <= x < tile.left + tile.width and tile.top <= y < tile.top + tile.height:
                self.centred[tile.file].append(one)
        if one.shape is not None and one.kind == ANNOTATION:
            for index in tree.query(one.shape):
                part = one.shape.intersection(shapes[index])
                if part.area > 0:
                    self.touching[tiles[index].file].append((one, part))


def _by_class(
    rule: Rule, attribute: Attribute, boxes: Sequence[Box], inside: _ObjectsByTile, cover: float, bad: list[str]
) -> dict[str, int]:
    """Returns the level whose annotations cover the largest share of each tile, at least ``cover``, else unknown."""
    levels = {}
    for box in boxes:
        parts_of: dict[int, list[Any]] = defaultdict(list)
        for one, part in inside.touching.get(box.file, ()):
            if one.kind in (ANNOTATION, UNKNOWN_KIND):
                for level in levels_of(rule, one.classes):
                    parts_of[level].append(part)
        share_of = {level: _covered_share(parts, box) for level, parts in parts_of.items()}
        best = max(share_of.values(), default=0.0)
        best_levels = [level for level, share in share_of.items() if share >= best - TIE]
        if best >= cover - TIE and len(best_levels) > 1:
            names = " and ".join(attribute.levels[level] for level in sorted(best_levels))
            bad.append(f"{box.file}: annotations cover equal shares for {attribute.name} {names}; set to unknown")
        levels[box.file] = best_levels[0] if best >= cover - TIE and len(best_levels) == 1 else UNKNOWN
    return levels


def _covered_share(parts: Sequence[Any], box: Box) -> float:
    """Returns the share of a tile covered by the union of ``parts``."""
    from shapely import union_all

    return 1.0 if None in parts else union_all(parts).area / (box.width * box.height)


def _by_value(rule: Rule, attribute: Attribute, boxes: Sequence[Box], inside: _ObjectsByTile) -> tuple[dict[str, int], list[str]]:
    values = {box.file: value for box in boxes if (value := _value(rule, inside.centred.get(box.file, ()))) is not None}
    edges, notes = rule.edges, []
    if edges is None:
        edges = _quantiles(attribute, list(values.values()))
        notes.append(
            f"{attribute.name}: edges [{', '.join(f'{edge:.6g}' for edge in edges)}]; add them to the rules to reuse them for other slides"
        )
    level_of = attribute.assessable
    found = {file: level_of[int(np.searchsorted(edges, value, side="right"))] for file, value in values.items()}
    return {box.file: found.get(box.file, UNKNOWN) for box in boxes}, notes


def _value(rule: Rule, objects: Sequence[QuPathObject]) -> float | None:
    """Returns the value of a tile; None if it has too few objects."""
    kinds = (ANNOTATION, UNKNOWN_KIND) if rule.annotations else (DETECTION, POINT, UNKNOWN_KIND)
    counted = [one for one in objects if one.kind in kinds and _has(one, rule.only)]
    if rule.value == "measurement":
        values = [one.values[rule.of] for one in counted if rule.of in one.values]
        return float(STATISTICS[rule.statistic](values)) if len(values) >= rule.min_objects else None
    if len(counted) < rule.min_objects:
        return None
    matching = sum(_has(one, rule.of) for one in counted)
    return float(matching) if rule.value == "count" else matching / len(counted)


def _has(one: QuPathObject, class_name: str) -> bool:
    return class_name == ALL or names_of(class_name) <= {class_key(name) for name in one.classes}


def _quantiles(attribute: Attribute, values: Sequence[float]) -> tuple[float, ...]:
    """Returns edges that divide the tiles into levels of equal size."""
    count = len(attribute.assessable)
    edges = np.quantile(values, np.arange(1, count) / count).tolist() if values else []
    if len(set(edges)) < count - 1 or edges[0] <= min(values):
        raise ValueError(
            f"{attribute.name}: too few distinct values in {len(values):,} tiles for {count} quantiles; set edges in the rules"
        )
    return tuple(edges)


def _unused(rules: Rules, objects: Mapping[str, list[QuPathObject]]) -> list[str]:
    """Returns the annotation classes without a rule, one line each."""
    if not any(rule.classes is not None for rule in rules.values()):
        return []
    counts = Counter(
        ": ".join(one.classes) or "(no class)"
        for found in objects.values()
        for one in found
        if one.kind == ANNOTATION and not any(rule.classes is not None and levels_of(rule, one.classes) for rule in rules.values())
    )
    return [f"class {name}: {count:,} annotations, not mapped to a level of any attribute" for name, count in sorted(counts.items())]
