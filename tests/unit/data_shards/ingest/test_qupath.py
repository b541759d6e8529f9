"""QuPath's exports as written by 0.2 to 0.6: objects, locations, rules, levels, and the command.

The files are created from the documented format: GeoJSON features with objectType, classification and measurements (docs "Exporting
annotations"), and tables of measurements (docs "Exporting measurements").
"""

from __future__ import annotations

import csv
import gzip
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from attributegan.attributes import Attribute, AttributeSchema
from data_shards.ingest import qupath, qupath_levels, qupath_locations, qupath_rules
from data_shards.ingest.qupath import ANNOTATION, DETECTION, POINT, UNKNOWN_KIND, read_export
from tools import shard

pytest.importorskip("shapely", reason="needs the extra `qupath`")

SCHEMA = AttributeSchema(
    (
        Attribute("crowding", ("not assessable", "mild", "severe"), 0),
        Attribute("mitosis", ("rare", "some", "frequent")),
        Attribute("tumour", ("absent", "present")),
        Attribute("polarity", ("mild", "severe")),
    )
)
UUID = "3f1d6f0c-6a2e-4c4e-9d0e-1c7b8a6f5e21"


def square(left: float, top: float, side: float) -> dict[str, Any]:
    right, bottom = left + side, top + side
    return {"type": "Polygon", "coordinates": [[[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]]}


def feature(geometry: Any, kind: str = "annotation", classification: Any = None, measurements: Any = None, **more: Any) -> dict[str, Any]:
    """A feature as written by 0.4 to 0.6."""
    properties: dict[str, Any] = {"objectType": kind}
    if classification is not None:
        properties["classification"] = classification
    if measurements is not None:
        properties["measurements"] = measurements
    return {"type": "Feature", "id": UUID, "geometry": geometry, "properties": properties | more}


def named(*names: str) -> dict[str, Any]:
    """A classification as written by 0.4 and later."""
    return ({"name": names[0]} if len(names) == 1 else {"names": list(names)}) | {"color": [200, 0, 0]}


def write(path: Path, features: Sequence[Any]) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}), encoding="utf-8")
    return path


def write_table(
    path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]], separator: str = "\t", encoding: str = "utf-8"
) -> Path:
    with path.open("w", newline="", encoding=encoding) as stream:
        csv.writer(stream, delimiter=separator, lineterminator="\n").writerows([columns, *rows])
    return path


def read(path: Path, *wanted: str, comma: bool = False) -> qupath.Exported:
    return read_export(path, frozenset(wanted), comma)


def tree_of(tmp_path: Path, tree: Mapping[str, Any]) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(dict(tree)), encoding="utf-8")
    return path


# GeoJSON


@pytest.mark.parametrize(
    ("classification", "names"),
    [
        (None, ()),
        ({}, ()),
        ("Tumor", ("Tumor",)),
        ("Tumor: Positive", ("Tumor", "Positive")),
        (named("Tumor"), ("Tumor",)),
        (named("CD3", "CD8"), ("CD3", "CD8")),
        ({"name": "Tumor: Positive", "colorRGB": -3670016}, ("Tumor", "Positive")),  # up to 0.3
        ({"name": "Positive", "colorRGB": -1, "parentClass": {"name": "Tumor", "colorRGB": -1}}, ("Tumor", "Positive")),
    ],
)
def test_classes_of_every_version(classification: Any, names: tuple[str, ...]) -> None:
    assert qupath.classes_of(classification) == names


def test_measurements_of_both_forms(tmp_path: Path) -> None:
    new = feature(square(0, 0, 4), "cell", named("Tumor"), {"Nucleus: Area µm^2": 30.5, "other": 1, "none": None})
    old = feature(square(0, 0, 4), "cell", None, [{"name": "Nucleus: Area µm^2", "value": 31.5}, {"name": "other", "value": 1}])
    not_a_number = feature(square(0, 0, 4), "cell", None, {"Nucleus: Area µm^2": float("nan")})  # Gson writes a bare NaN
    found = read(write(tmp_path / "H7.geojson", [new, old, not_a_number]), "Nucleus: Area µm^2", "none")
    assert [one.values for one in found.objects["H7"]] == [{"Nucleus: Area µm^2": 30.5}, {"Nucleus: Area µm^2": 31.5}, {}] and not found.bad


def test_kinds_of_every_version(tmp_path: Path) -> None:
    kinds = ["annotation", "detection", "cell", "tile", "tmaCore", "root"]
    new = [feature(square(0, 0, 4), kind) for kind in kinds]
    snake = {"type": "Feature", "geometry": square(0, 0, 4), "properties": {"object_type": "detection"}}
    old = [
        {"type": "Feature", "id": name, "geometry": square(0, 0, 4), "properties": {}}
        for name in ("PathCellObject", "PathAnnotationObject")
    ]
    points = feature({"type": "MultiPoint", "coordinates": [[1, 2], [3, 4]]}, "annotation", named("Mitosis"))
    found = read(write(tmp_path / "H7.geojson", [*new, snake, *old, points])).objects["H7"]
    assert [one.kind for one in found] == [ANNOTATION, *[DETECTION] * 5, ANNOTATION, POINT, POINT]
    assert [(one.x, one.y) for one in found[-2:]] == [(1, 2), (3, 4)] and found[0].x == 2


def test_files_with_lists_single_features_compression_and_children(tmp_path: Path) -> None:
    child = feature(square(1, 1, 1), "detection")
    parent = feature(square(0, 0, 4), childObjects=[child])
    (tmp_path / "H7.json").write_text(json.dumps([parent]))  # as written by scripts
    (tmp_path / "H8.geojson").write_text(json.dumps(child))
    text = write(tmp_path / "H9.geojson", [parent]).read_bytes()
    with zipfile.ZipFile(tmp_path / "H9.geojson.zip", "w") as archive:
        archive.writestr("H9.geojson", text)
    (tmp_path / "H9.geojson.gz").write_bytes(gzip.compress(text))
    counts = {
        name: {image: len(found) for image, found in read(tmp_path / name).objects.items()}
        for name in ("H7.json", "H8.geojson", "H9.geojson.zip", "H9.geojson.gz")
    }
    assert counts == {"H7.json": {"H7": 2}, "H8.geojson": {"H8": 1}, "H9.geojson.zip": {"H9": 2}, "H9.geojson.gz": {"H9": 2}}


def test_holes_ellipses_and_crossed_outlines(tmp_path: Path) -> None:
    hole = square(0, 0, 10) | {"coordinates": square(0, 0, 10)["coordinates"] + square(2, 2, 5)["coordinates"]}
    crossed = {"type": "Polygon", "coordinates": [[[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]]}
    found = read(write(tmp_path / "a.geojson", [feature(hole), feature(crossed), feature(square(0, 0, 4) | {"isEllipse": True})])).objects[
        "a"
    ]
    assert [round(one.shape.area) for one in found] == [75, 50, 16]


def test_invalid_objects_are_listed_and_the_rest_is_read(tmp_path: Path) -> None:
    bad = [
        3, {"type": "Feature", "properties": {"objectType": "annotation"}}, feature(None), feature({"type": "Polygon", "coordinates": []}),
        feature({"type": "Polygon", "coordinates": [[[0, 0], [1]]]}), feature(square(0, 0, 1), classification=7),
        feature(square(0, 0, 1), measurements=[{"value": 3}]), feature(square(0, 0, 1), measurements={"m": "x"}),
        feature({"type": "Blob", "coordinates": []}), feature(square(float("nan"), 0, 4), "cell"), feature(square(float("inf"), 0, 4)),
    ]  # fmt: skip
    found = read(write(tmp_path / "a.geojson", [*bad, feature(square(0, 0, 1))]), "m")
    assert len(found.bad) == len(bad) and len(found.objects["a"]) == 1 and all("a.geojson: object " in line for line in found.bad)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"type": "FeatureCollection"}', "3", '"x"'])
def test_files_that_are_not_geojson(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(ValueError, match=r"a\.geojson: (not a readable GeoJSON file|no features)"):
        read(tmp_path / "a.geojson")
    for name in ("a.geojson.gz", "a.geojson.zip"):
        (tmp_path / name).write_text("x")
        with pytest.raises(ValueError, match="not a readable GeoJSON file"):
            read(tmp_path / name)


# Tables


NEW = [
    "Image",
    "Object ID",
    "Object type",
    "Name",
    "Classification",
    "Parent",
    "ROI",
    "Centroid X µm",
    "Centroid Y µm",
    "Nucleus: Area µm^2",
]
OLD = ["Image", "Name", "Class", "Parent", "ROI", "Centroid X px", "Centroid Y px", "Nucleus: Area"]


def test_tables_of_both_forms(tmp_path: Path) -> None:
    new = write_table(
        tmp_path / "new.tsv",
        NEW,
        [
            ["H7.svs", UUID, "Cell", "", "Tumor: Positive", "Root object (Image)", "Polygon", "10.5", "20", "30"],
            ["H7.svs", UUID, "Annotation", "", "", "Root object (Image)", "Rectangle", "1", "2", ""],
            ["H8.svs", UUID, "Root object (Image)", "", "", "", "", "", "", ""],
        ],
    )
    found = read(new, "Nucleus: Area µm^2").objects
    assert [(one.kind, one.classes, one.x, one.y, one.in_um, dict(one.values)) for one in found["H7.svs"]] == [
        (DETECTION, ("Tumor", "Positive"), 10.5, 20, True, {"Nucleus: Area µm^2": 30}),
        (ANNOTATION, (), 1, 2, True, {}),
    ]
    assert found["H8.svs"] == []
    rows = [["H7.svs", "Tumor", "Tumor", "Image", "Polygon", 10, 20, 3], ["H7.svs", "PathRootObject", "", "", "", "", "", ""]]
    old = read(write_table(tmp_path / "old.txt", OLD, rows), "Nucleus: Area").objects["H7.svs"]
    assert [(one.kind, one.classes, one.in_um, dict(one.values)) for one in old] == [
        (UNKNOWN_KIND, ("Tumor",), False, {"Nucleus: Area": 3})
    ]


@pytest.mark.parametrize(("separator", "encoding"), [("\t", "utf-8"), (",", "utf-8-sig"), (";", "cp1252"), ("\t", "cp1252")])
def test_separators_and_encodings(tmp_path: Path, separator: str, encoding: str) -> None:
    row = ["Zürich.svs", "", "Cell", "", "Tumor", "", "", "1.5", "2", "3"]
    found = read(write_table(tmp_path / "a.txt", NEW, [row], separator, encoding), "Nucleus: Area µm^2")
    assert [(one.x, one.in_um, dict(one.values)) for one in found.objects["Zürich.svs"]] == [(1.5, True, {"Nucleus: Area µm^2": 3})]


def test_greek_mu_and_the_micro_sign_are_equal(tmp_path: Path) -> None:
    columns = [name.replace("µ", "μ") for name in NEW]
    found = read(
        write_table(tmp_path / "a.tsv", columns, [["a", "", "Cell", "", "", "", "", 1, 2, 3]]), "Nucleus: Area μm^2", "Nucleus: Area µm^2"
    )
    assert found.objects["a"][0].values == {"Nucleus: Area μm^2": 3, "Nucleus: Area µm^2": 3} and found.objects["a"][0].in_um


def test_decimal_commas_require_the_option(tmp_path: Path) -> None:
    path = write_table(
        tmp_path / "a.tsv", NEW, [["a", "", "Cell", "", "", "", "", "1,5", "2", "1.234,5"], ["a", "", "Cell", "", "", "", "", 1, 2, "3"]]
    )
    found = read(path)
    assert "Centroid X µm is '1,5', not a number; use --decimal-comma" in found.bad[0] and len(found.objects["a"]) == 1
    assert read(path, comma=True).objects["a"][0].x == 1.5
    assert "not a number" in read(path, "Nucleus: Area µm^2", comma=True).bad[0]  # 1.234,5 is not guessed


def test_files_that_are_not_tables(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a measurement table of QuPath"):
        read(write_table(tmp_path / "a.tsv", ["file", "x"], [["a", 1]]))
    with pytest.raises(ValueError, match="not a readable table"):
        read(tmp_path / "none.tsv")
    assert read(write_table(tmp_path / "b.tsv", NEW, []), "Nucleus: Perimeter").bad == ["b.tsv: no column Nucleus: Perimeter"]


# Tiles of slides


def cut_tiles(tmp_path: Path, mpp: tuple[float, float] = (0.25, 0.25), origin: tuple[int, int] = (0, 0), slide: str = "H7") -> Path:
    """A 3 x 2 grid of tiles of 100 px at 0.5 um, as written by `attributegan-shard tile`; each covers 200 px of the slide."""
    folder = tmp_path / "tiles"
    (folder / slide).mkdir(parents=True)
    rows = []
    for y in (0, 1):
        for x in (0, 1, 2):
            left, top = origin[0] + round(x * 50 / mpp[0]), origin[1] + round(y * 50 / mpp[1])
            rows.append([f"{slide}/{left}_{top}.png", slide, left, top, 0.5, 100, "0.9", "100"])
    (folder / slide / "slide.json").write_text(json.dumps({"file": f"{slide}.svs", "mpp": mpp, "origin": origin}))
    return write_table(folder / "tiles.csv", ["file", "slide", "x", "y", "mpp", "size", "tissue", "sharpness"], rows, ",")


def levels(
    tmp_path: Path,
    exports: Sequence[Path],
    places: qupath_locations.TileLocations,
    rules: Mapping[str, Any] | None = None,
    comma: bool = False,
) -> tuple[dict[str, tuple[int, ...]], list[str], list[str]]:  # fmt: skip
    known = qupath_rules.read_rules(tree_of(tmp_path, rules), SCHEMA) if rules else qupath_rules.by_name(SCHEMA)
    wanted = qupath_rules.measurements_of(known)
    table, notes = qupath_levels.levels_from([read_export(path, wanted, comma) for path in exports], places, SCHEMA, known)
    return {str(row["file"]): tuple(int(row[name]) for name in SCHEMA.names) for row in table.rows}, table.bad, notes


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (named("crowding", "mild"), (1, -1, -1, -1)),  # attribute: level
        (named("Crowding Severe"), (2, -1, -1, -1)),
        (named("crowding=severe"), (2, -1, -1, -1)),
        (named("frequent"), (-1, 2, -1, -1)),
        (named("Crowding", "severe", "polarity", "mild", "frequent"), (2, 2, -1, 0)),  # several classes of one object
        (named("crowding", "not_assessable"), (0, -1, -1, -1)),
        (named("mild"), None),
        (named("Stroma"), None),
    ],
)
def test_classes_by_name(tmp_path: Path, classes: Any, expected: tuple[int, ...] | None) -> None:
    places = qupath_locations.tiles_of_slides(cut_tiles(tmp_path), None)
    found, bad, notes = levels(tmp_path, [write(tmp_path / "H7.geojson", [feature(square(0, 0, 200), classification=classes)])], places)
    assert found == ({"H7/0_0.png": expected} if expected else {}) and not bad
    assert (expected is None) == any("not mapped to a level of any attribute" in note for note in notes)


def test_the_class_with_the_largest_share_of_a_tile(tmp_path: Path) -> None:
    places = qupath_locations.tiles_of_slides(cut_tiles(tmp_path), None)
    features = [
        feature(square(0, 0, 150), classification=named("rare")),  # 0.56 of the first tile
        feature(square(0, 0, 90), classification=named("some")),
        feature(square(10, 0, 90), classification=named("some")),  # overlapping: 0.225 in total
        feature(square(200, 0, 139), classification=named("frequent")),  # 0.48: too little
        feature(square(400, 0, 200), classification=named("rare")),
        feature(square(400, 0, 200), classification=named("frequent")),
        feature(
            {
                "type": "MultiPolygon",
                "coordinates": [
                    square(0, 200, 100)["coordinates"],
                    square(100, 200, 100)["coordinates"],
                    square(0, 300, 10)["coordinates"],
                ],
            },
            classification=named("some"),
        ),
    ]
    found, bad, _ = levels(tmp_path, [write(tmp_path / "H7.svs.geojson", features)], places)
    assert found == {"H7/0_0.png": (-1, 0, -1, -1), "H7/0_200.png": (-1, 1, -1, -1)}
    assert bad == ["H7/400_0.png: annotations cover equal shares for mitosis rare and frequent; set to unknown"]


def cells(places: Sequence[tuple[float, float]], classes: Any = None, **values: float) -> list[dict[str, Any]]:
    return [
        feature(square(x - 2, y - 2, 4), "cell", classes, {name.replace("_", " "): value for name, value in values.items()})
        for x, y in places
    ]


def test_counts_shares_and_measurements_of_objects_in_a_tile(tmp_path: Path) -> None:
    places = qupath_locations.tiles_of_slides(cut_tiles(tmp_path), None)
    features = [
        *cells([(50, 50), (199.9, 199.9)], named("Tumor", "Positive"), Area=10),
        *cells([(60, 60)], named("Tumor", "Negative"), Area=40),
        *cells([(200, 50)], named("Tumor", "Positive"), Area=99),  # at the edge
        *cells([(900, 900)], named("Tumor", "Positive"), Area=1),  # outside
        feature({"type": "MultiPoint", "coordinates": [[450, 50], [460, 60]]}, "annotation", named("Mitosis")),
    ]
    rules = {
        "mitosis": {"count": "Mitosis", "edges": [1, 2], "min_objects": 0},
        "tumour": {"share": "Positive", "edges": [0.7]},
        "crowding": {"measurement": "Area", "statistic": "max", "class": "Tumor: Positive", "edges": [50]},
        "polarity": {"measurement": "Area", "statistic": "mean", "edges": [20], "min_objects": 2},
    }
    found, bad, _ = levels(tmp_path, [write(tmp_path / "H7.geojson", features)], places, rules)
    assert not bad and found == {
        "H7/0_0.png": (1, 0, 0, 1),
        "H7/200_0.png": (2, 0, 1, -1),
        "H7/400_0.png": (-1, 2, 0, -1),
        "H7/0_200.png": (-1, 0, -1, -1),
        "H7/200_200.png": (-1, 0, -1, -1),
        "H7/400_200.png": (-1, 0, -1, -1),
    }


@pytest.mark.parametrize("unit", ["µm", "px"])
def test_tables_locate_objects_in_micrometres_or_pixels(tmp_path: Path, unit: str) -> None:
    places = qupath_locations.tiles_of_slides(cut_tiles(tmp_path, mpp=(0.25, 0.5), origin=(1000, 3000)), None)  # like a slide with bounds
    columns = [name.replace("X µm", f"X {unit}").replace("Y µm", f"Y {unit}") for name in NEW]
    x, y = (55, 49) if unit == "µm" else (220, 98)  # 220 x 98 px from the corner of the scanned area: the second tile of the first row
    rows = [["H7.svs", UUID, "Cell", "", "Tumor", "", "", x, y, 30]] * 3
    found, bad, _ = levels(
        tmp_path, [write_table(tmp_path / "cells.tsv", columns, rows)], places, {"mitosis": {"count": "*", "edges": [1, 3]}}
    )
    assert found == {"H7/1200_3000.png": (-1, 2, -1, -1)} and not bad


def test_outlines_are_relative_to_the_scanned_area(tmp_path: Path) -> None:
    places = qupath_locations.tiles_of_slides(cut_tiles(tmp_path, origin=(1000, 3000)), None)
    found, _, _ = levels(tmp_path, [write(tmp_path / "H7.geojson", [feature(square(200, 0, 200), classification=named("some"))])], places)
    assert list(found) == ["H7/1200_3000.png"]


def test_unknown_resolution_requires_the_option(tmp_path: Path) -> None:
    table = cut_tiles(tmp_path)
    (table.parent / "H7" / "slide.json").write_text('{"file": "H7.svs"}')  # written by an earlier version
    with pytest.raises(ValueError, match=r"slide\.json: does not contain the slide's resolution"):
        qupath_locations.tiles_of_slides(table, None)
    assert (
        qupath_locations.tiles_of_slides(table, 0.25).boxes["H7"][1].left
        == 200
        == qupath_locations.tiles_of_slides(table, 0.25).boxes["H7"][0].width
    )
    table.write_text("file,slide\n")
    with pytest.raises(ValueError, match="no column x, y, mpp, size"):
        qupath_locations.tiles_of_slides(table, 0.25)


def test_missing_information_in_tables_is_listed(tmp_path: Path) -> None:
    places = qupath_locations.tiles_of_slides(cut_tiles(tmp_path), None)
    rows = [
        ["H7.svs", UUID, "Annotation", "", "frequent", "", "", 1, 2, ""],
        ["H9.svs", UUID, "Annotation", "", "frequent", "", "", 1, 2, ""],
    ]
    found, bad, _ = levels(tmp_path, [write_table(tmp_path / "a.tsv", NEW, rows)], places)
    assert not found and bad == [
        "H9.svs: no slide or tile with this name; name the export after its image, such as H7.geojson",
        "H7: 1 annotations of a table have no outline and can't cover tiles; export them as GeoJSON too",
    ]


# Images that are tiles


def images(tmp_path: Path, names: Sequence[str]) -> qupath_locations.TileLocations:
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 100)).save(tmp_path / "images" / name)
    return qupath_locations.images_as_tiles(tmp_path / "images")


def test_images_are_found_by_any_of_their_names(tmp_path: Path) -> None:
    places = images(tmp_path, ["a.png", "H7/0_0.png", "H8/0_0.png", "ü.b.png"])
    whole = [feature(square(0, 0, 100), classification=named("some"))]
    exports = [write(tmp_path / f"{name}.geojson", whole) for name in ("a.png", "ü.b", "0_0")]
    rows = [
        ["a.png", UUID, "Annotation", "", "crowding: severe", "", "", 50, 50, ""],
        ["zz.png", UUID, "Annotation", "", "some", "", "", 1, 1, ""],
    ]
    found, bad, _ = levels(tmp_path, [*exports, write_table(tmp_path / "b.tsv", NEW, rows)], places)
    assert found == {"a.png": (2, 1, -1, -1), "ü.b.png": (-1, 1, -1, -1)}
    assert bad == ["0_0: 2 tiles have this name (H7/0_0.png, H8/0_0.png); rename them", bad[1]] and bad[1].startswith(
        "zz.png: no slide or tile"
    )


def test_a_table_without_pixel_size_or_centroids(tmp_path: Path) -> None:
    places = images(tmp_path, ["a.png", "b.png"])
    columns = ["Image", "Class", "Num Detections"]
    rows = [["a.png", "frequent", 3], ["b.png", "rare", 40], ["b.png", "frequent", 40]]
    rules = {
        "mitosis": {"classes": {"rare": "rare", "frequent": 2}},
        "tumour": {"measurement": "Num Detections", "objects": "annotations", "edges": [10]},
    }
    found, bad, _ = levels(tmp_path, [write_table(tmp_path / "a.tsv", columns, rows)], places, rules)
    assert found == {"a.png": (-1, 2, 0, -1), "b.png": (-1, -1, 1, -1)}
    assert bad == ["b.png: annotations cover equal shares for mitosis rare and frequent; set to unknown"]


def test_objects_are_not_counted_twice(tmp_path: Path) -> None:
    places = images(tmp_path, ["a.png"])
    table = write_table(tmp_path / "cells.tsv", NEW, [["a.png", UUID, "Cell", "", "", "", "", 1, 1, ""]])
    rules = {"mitosis": {"count": "*", "edges": [1, 2]}}
    with pytest.raises(ValueError, match=r"a\.png: a\.geojson and cells\.tsv both have its objects, which would be counted twice"):
        levels(tmp_path, [write(tmp_path / "a.geojson", cells([(50, 50)])), table], places, rules)
    outlines = write(tmp_path / "a.geojson", [feature(square(0, 0, 100), classification=named("Fold"))])
    assert levels(tmp_path, [outlines, table], places, rules)[0] == {"a.png": (-1, 1, -1, -1)}


def test_a_name_at_the_top_differs_from_one_in_a_folder(tmp_path: Path) -> None:
    places = images(tmp_path, ["a.png", "x/a.png"])
    found, bad, _ = levels(
        tmp_path, [write(tmp_path / "a.png.geojson", [feature(square(0, 0, 100), classification=named("some"))])], places
    )
    assert not found and "a.png: 2 tiles have this name" in bad[0]


# Rules


def test_the_rule_with_most_names_wins(tmp_path: Path) -> None:
    places = images(tmp_path, ["a.png", "b.png"])
    rules = {"tumour": {"classes": {"Tumor": "absent", "Tumor: Positive": "present"}}}
    exports = [
        write(tmp_path / "a.geojson", [feature(square(0, 0, 100), classification=named("Tumor", "Positive"))]),
        write(tmp_path / "b.geojson", [feature(square(0, 0, 100), classification=named("Tumor", "Negative"))]),
    ]
    found, bad, _ = levels(tmp_path, exports, places, rules)
    assert {file: level[2] for file, level in found.items()} == {"a.png": 1, "b.png": 0} and not bad


def test_quantiles_are_computed_and_reported(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(9)]
    places = images(tmp_path, names)
    exports = [write(tmp_path / f"{number}.geojson", cells([(50, 50)] * (number + 1))) for number in range(9)]
    found, _, notes = levels(tmp_path, exports, places, {"mitosis": {"count": "*", "edges": "quantiles"}})
    assert [found[name][1] for name in names] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert notes == ["mitosis: edges [3.66667, 6.33333]; add them to the rules to reuse them for other slides"]
    with pytest.raises(ValueError, match="mitosis: too few distinct values in 3 tiles for 3 quantiles"):
        levels(
            tmp_path,
            [exports[0]] + [write(tmp_path / f"{n}.geojson", cells([(50, 50)])) for n in (1, 2)],
            places,
            {"mitosis": {"count": "*", "edges": "quantiles"}},
        )


@pytest.mark.parametrize(
    ("rules", "what"),
    [
        ({}, "no rules"),
        ({"grade": {"count": "*"}}, "grade: unknown attribute"),
        ({"mitosis": {}}, "set exactly one of"),
        ({"mitosis": {"count": "a", "share": "b", "edges": [1, 2]}}, "set exactly one of"),
        ({"mitosis": {"count": "a"}}, "edges: set 2"),
        ({"mitosis": {"count": "a", "edges": [2, 1]}}, "edges: set 2 ascending"),
        ({"crowding": {"count": "a", "edges": [1, 2]}}, "edges: set 1"),
        ({"mitosis": {"count": "a", "edges": [True, 2]}}, "edges"),
        ({"mitosis": {"count": "a", "edges": [1, 2], "when": 3}}, "unknown keys when"),
        ({"mitosis": {"measurement": "a", "edges": [1, 2], "statistic": "mode"}}, "statistic: 'mode'"),
        ({"mitosis": {"count": "a", "edges": [1, 2], "objects": "cells"}}, "objects: 'cells'"),
        ({"mitosis": {"share": "a", "edges": [1, 2], "min_objects": 0}}, "min_objects: 0"),
        ({"mitosis": {"classes": {"a": "much"}}}, "'much' is not a level"),
        ({"mitosis": {"classes": {"a": 3}}}, "3 is not a level"),
        ({"mitosis": {"classes": {"a": 0}, "edges": [1, 2]}}, "without other keys"),
        ({"mitosis": {"classes": ["a"]}}, "classes: write"),
    ],
)
def test_invalid_rules(tmp_path: Path, rules: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=r"rules\.yaml: ") as error:
        qupath_rules.read_rules(tree_of(tmp_path, rules), SCHEMA)
    assert what in str(error.value)


def test_the_rules_of_the_documentation() -> None:
    text = (Path(__file__).parents[4] / "docs" / "labels.md").read_text(encoding="utf-8")
    tree = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    levels = {"tumour": ("absent", "present"), "pleomorphism": ("normal", "mild", "moderate", "severe")}
    schema = AttributeSchema(tuple(Attribute(name, levels.get(name, ("low", "middle", "high"))) for name in tree))
    for attribute in schema.attributes:
        qupath_rules._rule(attribute, tree[attribute.name])
    assert len(tree) == 4


# The command


def run(*words: object) -> int:
    return shard.main([str(word) for word in words])


def test_the_command_and_then_pack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = cut_tiles(tmp_path)
    for row in csv.DictReader(table.open(encoding="utf-8")):
        Image.new("RGB", (100, 100), (200, 120, 170)).save(table.parent / row["file"])
    attributes = tmp_path / "my.yaml"
    attributes.write_text(yaml.safe_dump(SCHEMA.to_dict(), sort_keys=False))
    export = write(
        tmp_path / "H7.geojson",
        [feature(square(0, 0, 400), classification=named("some")), feature(square(0, 0, 9), classification=named("Fold"))],
    )
    out = tmp_path / "levels.csv"
    command = ["import-qupath", export, "--tiles", table, "--attributes", attributes, "--out", out]
    assert run(*command) == 0
    said = capsys.readouterr()
    assert "levels.csv: 4 tiles; 2 without a level" in said.out and "class Fold: 1 annotations" in said.err
    with out.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0] == {
        "file": "H7/0_0.png",
        "slide": "H7",
        "x": "0",
        "y": "0",
        "mpp": "0.5",
        "size": "100",
        "tissue": "0.9",
        "sharpness": "100",
        "crowding": "-1",
        "mitosis": "1",
        "tumour": "-1",
        "polarity": "-1",
    }
    pack = ["pack", "--images", table.parent, "--labels", out, "--attributes", attributes, "--group", "slide", "--out", tmp_path / "set"]
    assert run(*pack, "--val-fraction", "0", "--workers", "1") == 0
    assert run(*command[:1], export, write(tmp_path / "H9.geojson", []), *command[2:]) == 2
    assert run("import-qupath", export, "--tiles", table, "--cover", "0", "--out", out) == 2
    assert "--cover: 0.0 must be above 0" in capsys.readouterr().err


def test_cut_slides_can_be_imported(tmp_path: Path) -> None:
    pytest.importorskip("openslide", reason="needs the extra `slides`")
    from test_tiling import pyramid, scene, write_slide

    slide = write_slide(tmp_path / "scan.tif", pyramid(scene()), 0.25)
    assert run("tile", slide, "--out", tmp_path / "tiles", "--mpp", "0.5", "--size", "128", "--workers", "1") == 0
    record = json.loads((tmp_path / "tiles" / "scan" / "slide.json").read_text())
    assert record["mpp"] == pytest.approx([0.25, 0.25], rel=1e-3) and record["origin"] == [0, 0]
    places = qupath_locations.tiles_of_slides(tmp_path / "tiles" / "tiles.csv", None)
    assert places.boxes["scan"][0].width == pytest.approx(256, rel=1e-3)
