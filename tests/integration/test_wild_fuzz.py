"""Random tables and images of all Pillow modes: training reads the same as a simple reference reader, or refuses the input."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_fuzz import EXAMPLES

from attributegan.attributes import Attribute, AttributeSchema
from data_shards.format import tile as tile_format
from data_shards.loader.shard_set import ShardSet
from data_shards.loader.tile_reader import TileReader, TileRequest
from data_shards.packing.labels import read_labels
from data_shards.packing.packer import pack
from data_shards.packing.plan import Options
from data_shards.packing.sources import Folder

fuzzed = settings(
    max_examples=EXAMPLES or 60, derandomize=not EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
pytestmark = pytest.mark.timeout(1800 if EXAMPLES else 120)

MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "I;16B", "F")
FORMATS = {
    "PNG": "png",
    "TIFF": "tif",
    "JPEG": "jpg",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "JPEG2000": "jp2",
    "TGA": "tga",
    "PPM": "ppm",
}
EXACT = {"WEBP": {"lossless": True, "exact": True}, "JPEG2000": {"irreversible": False}}


def image_of(mode: str, seed: int, size: int) -> Image.Image:
    """Returns random pixels in a mode."""
    rng = np.random.default_rng(seed)
    if mode in ("I;16", "I;16B"):
        return Image.fromarray(rng.integers(0, 65536, (size, size)).astype("<u2" if mode == "I;16" else ">u2"))
    if mode in ("I", "F"):
        return Image.fromarray(rng.integers(0, 70_000, (size, size)).astype(np.int32 if mode == "I" else np.float32))
    if mode in ("P", "PA"):
        palette = Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).quantize(16)
        if mode == "P":
            return palette
        both = palette.convert("PA")
        both.putalpha(Image.fromarray(rng.integers(0, 256, (size, size), np.uint8)))
        return both
    bands = len(Image.new(mode, (1, 1)).getbands())
    return (
        Image.merge(mode, [Image.fromarray(rng.integers(0, 256, (size, size), np.uint8)) for _ in range(bands)])
        if bands > 1
        else (Image.fromarray(rng.integers(0, 256, (size, size), np.uint8)).convert(mode))
    )


def plainly_read(data: bytes) -> np.ndarray | None:
    """Returns the pixels from Pillow, composited on white; None if their range is undefined."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
            values_HW = np.asarray(image).astype(float)
            grey_HW = values_HW / 257
            if "transparency" in image.info:
                grey_HW[values_HW == image.info["transparency"]] = 255
            return np.repeat(grey_HW[..., None], 3, axis=2)
        if image.mode in ("I", "F"):
            return None
        if image.mode == "LAB":
            values = np.asarray(image).astype(float)
            return lab_to_srgb(values)
        pixels = np.asarray(image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")).astype(float)
        share = pixels[..., 3:] / 255
        return pixels[..., :3] * share + 255 * (1 - share)


def lab_to_srgb(values_HWC: np.ndarray) -> np.ndarray | None:
    """Convert approximately, only for colours within sRGB, by CIE 15 and IEC 61966-2-1 with white D50."""
    lightness, a, b = values_HWC[..., 0] / 2.55, values_HWC[..., 1] - 128, values_HWC[..., 2] - 128
    fy = (lightness + 16) / 116
    f = np.stack([fy + a / 500, fy, fy - b / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.9642, 1, 0.8249)
    linear = xyz @ np.array([[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]]).T
    inside = ((linear > 0.01) & (linear < 1)).all(axis=-1, keepdims=True)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055) * 255
    return np.where(inside, srgb, np.nan)


@fuzzed
@given(
    mode=st.sampled_from(MODES),
    kind=st.sampled_from(list(FORMATS)),
    seed=st.integers(0, 2**20),
    size=st.integers(3, 20),
    transparency=st.one_of(st.none(), st.integers(0, 15), st.binary(min_size=1, max_size=16)),
)
def test_images(mode: str, kind: str, seed: int, size: int, transparency: int | bytes | None) -> None:
    image, buffer = image_of(mode, seed, size), io.BytesIO()
    more: dict[str, Any] = dict(EXACT.get(kind, {}))
    has_a_place = (mode == "P" and kind in ("PNG", "GIF")) or (mode in ("1", "L", "I;16") and kind == "PNG")
    if has_a_place and (isinstance(transparency, int) or (transparency and mode == "P" and kind == "PNG")):
        more["transparency"] = transparency
    try:
        image.save(buffer, kind, **more)
        wanted_HWC = plainly_read(buffer.getvalue())
    except (OSError, KeyError, ValueError):
        return  # unsupported by the format, or Pillow can't read its own file
    with tempfile.TemporaryDirectory() as name:
        file = Path(name, f"t.{FORMATS[kind]}")
        file.write_bytes(buffer.getvalue())
        try:
            member = Folder(name).read({"file": file.name})
        except ValueError as error:
            assert wanted_HWC is None and "convert it to 8-bit RGB first" in str(error) and file.name in str(error)
            return
    assert wanted_HWC is not None
    read_HWC = tile_format.decode(member.data, size)
    apart = np.abs(read_HWC - wanted_HWC)
    assert np.nanmax(apart, initial=0) <= (12 if mode == "LAB" else 1.01), (mode, kind)
    assert (member.width, member.height) == (size, size)


SCHEMAS = [
    ("low", "mid", "high"),
    ("1", "2", "3"),
    ("0", "1", "2"),
    ("benign", "3", "4"),
    ("no", "yes"),
    ("3", "2", "1"),
    ("0", "1+", "2+"),
]


@st.composite
def spelled(draw: st.DrawFn) -> tuple[Attribute, list[tuple[int, str]]]:
    """An attribute, and spellings of its levels."""
    attribute = Attribute("grade", draw(st.sampled_from(SCHEMAS)))
    rows = []
    for level in draw(st.lists(st.integers(-1, len(attribute.levels) - 1), min_size=2, max_size=12)):
        number = str(attribute.written(level)) if level >= 0 else "-1"
        forms = [number, f" {number} ", *([f"{number}.0", f"{number}.00"] if number.removeprefix("-").isdecimal() else [])]
        rows.append((level, draw(st.sampled_from([*forms, *([attribute.levels[level]] if level >= 0 else [])]))))
    return attribute, rows


@fuzzed
@given(
    about=spelled(),
    separator=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    says=st.booleans(),
    blanks=st.lists(st.integers(0, 12), max_size=3),
    end=st.sampled_from(["\n", "\r\n"]),
    quotes=st.booleans(),
    names=st.permutations(["file", "grade", "slide", "note"]),
    group=st.lists(st.sampled_from(["7", "7.0", " 7", "8", "8.", "x y", "x  y"]), min_size=12, max_size=12),
)
def test_tables(
    about: tuple[Attribute, list[tuple[int, str]]],
    separator: str,
    encoding: str,
    says: bool,
    blanks: list[int],
    end: str,
    quotes: bool,
    names: list[str],
    group: list[str],
) -> None:
    attribute, levels = about
    lines = [separator.join(names)]
    for number, ((_, text), slide) in enumerate(zip(levels, group, strict=False)):
        entry = {"file": f"t{number}.png", "grade": text, "slide": slide, "note": f"a{separator}b{number}"}
        entry["note"] = f'"{entry["note"]}"'
        if quotes:
            entry |= {name: f'"{entry[name]}"' for name in ("file", "grade", "slide")}
        lines.append(separator.join(entry[name] for name in names))
    for place in blanks:
        lines.insert(1 + place % len(lines), separator * 3)
    text = (f"sep={separator}{end}" if says else "") + end.join(lines) + end
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "levels.csv")
        path.write_bytes(text.encode(encoding))
        read = read_labels([path], AttributeSchema((attribute,)), group="slide")
    assert read.bad == []
    assert read.table["grade"].to_pylist() == [level for level, _ in levels]
    plain = {"7": "7", "7.0": "7", " 7": "7", "8": "8", "8.": "8", "x y": "x y", "x  y": "x y"}
    assert read.table["group"].to_pylist() == [plain[slide] for slide in group[: len(levels)]]
    assert read.table["file"].to_pylist() == [f"t{number}.png" for number in range(len(levels))]


def test_a_whole_set_of_all_kinds(tmp_path: Path) -> None:
    """Packs images of all modes in one set; the tiles that training reads equal the files, in any order."""
    (tmp_path / "images").mkdir()
    wanted: list[np.ndarray] = []
    lines = ["file,grade"]
    for mode in MODES:
        for kind, suffix in FORMATS.items():
            file = tmp_path / "images" / f"t{len(wanted):03d}.{suffix}"
            try:
                image_of(mode, len(wanted), 8).save(file, kind, **EXACT.get(kind, {}))
                plain_HWC = plainly_read(file.read_bytes())
            except (OSError, KeyError, ValueError):
                plain_HWC = None
            if plain_HWC is None or mode == "LAB":
                file.unlink(missing_ok=True)
                continue
            lines.append(f"{file.name},{len(wanted) % 3}")
            wanted.append(plain_HWC)
    (tmp_path / "levels.csv").write_text("\n".join(lines))
    labels = read_labels([tmp_path / "levels.csv"], AttributeSchema((Attribute("grade", ("1", "2", "4")),)))
    assert len(labels.bad) == len([line for line in lines[1:] if line.endswith(",0")])  # 0 is not a level name
    labels = read_labels([tmp_path / "levels.csv"], AttributeSchema((Attribute("grade", ("a", "b", "c")),)))
    pack(labels, Folder(str(tmp_path / "images")), tmp_path / "set", Options(0))
    shards = ShardSet.open(tmp_path / "set")
    files, rows = TileReader(shards.tars, 8), shards.rows
    assert len(shards) == len(wanted) > 40
    for tile in range(len(shards)):
        number = int(shards.name(tile)[-3:])
        place = (rows.shard_N[tile], rows.offset_N[tile], rows.length_N[tile], rows.checksum_N[tile])
        shard, offset, length, checksum = map(int, place)
        assert np.abs(files.read(TileRequest(shard, offset, length, checksum, 0)) - wanted[number]).max() <= 1.01
        assert shards.levels_NA[tile, 0] == number % 3
