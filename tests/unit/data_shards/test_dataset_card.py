"""The dataset card: its numbers match the set, and file names are escaped."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from shards import TWO, levels_of, make_set, rows_of, write_csv

from attributegan import cli
from attributegan.utils.html_page import Cell, Code, Picture, Section, Table, Tinted, to_html, to_markdown
from data_shards import dataset_card
from data_shards.packing.labels import read_labels
from data_shards.packing.packer import pack
from data_shards.packing.plan import Options
from data_shards.packing.sources import Folder
from data_shards.verify import verify
from tools.shards import card as shard_card

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Parser of tables by section, as lists of rows of texts; requires correctly nested tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: dict[str, list[list[list[str]]]] = {}
        self.tags: Counter[str] = Counter()
        self.heading = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in VOID:
            self.open.append(tag)
        if tag == "h2":
            self.heading = ""
        elif tag == "table":
            self.tables.setdefault(self.heading, []).append([])
        elif tag == "tr":
            self.tables[self.heading][-1].append([])
        elif tag in ("td", "th"):
            self.tables[self.heading][-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "h2" in self.open:
            self.heading += data
        elif {"td", "th"} & set(self.open):
            self.tables[self.heading][-1][-1][-1] += data


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    shard_card.add(parser.add_subparsers(required=True))
    arguments = parser.parse_args([str(word) for word in words])
    status = []
    return cli.exit_status(lambda: status.append(arguments.run(arguments))) or status[0]


def html_of(folder: Path, **options: int) -> str:
    out = folder.parent / "card.html"
    dataset_card.write(folder, out, **options)
    return out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 tiles in 8 slides, 2 of which are held out."""
    return make_set(tmp_path_factory.mktemp("card"), 40, val_fraction=0.25)


def test_levels_are_counted_for_each_split(folder: Path) -> None:
    rows = rows_of(folder)
    page = Page(html_of(folder))
    for table, attribute in zip(page.tables["Attributes and levels"], TWO.attributes, strict=True):
        assert table[0] == ["level", "name", "train", "share", "val", "share"]
        for level, line in enumerate(table[1:]):
            counts = [sum(row[attribute.name] == level and row["split"] == split for row in rows) for split in ("train", "val")]
            assert [line[2], line[4]] == [str(count) for count in counts]


def test_combinations_and_co_occurrence_match_the_tiles(folder: Path) -> None:
    page = Page(html_of(folder))
    wanted = Counter(levels_of(number) for number in range(40))
    printed = {(line[0], line[1]): int(line[2]) + int(line[3]) for table in page.tables["Combinations"] for line in table[1:]}
    assert printed == {(TWO.attributes[0].levels[a], TWO.attributes[1].levels[b]): count for (a, b), count in wanted.items()}
    lines = page.tables["Co-occurrence"][0][2:]
    assert len(lines) == 5
    for a in range(3):
        assert [int(text) for text in lines[a][5:]] == [wanted[a, 0], wanted[a, 1]]
    assert [int(lines[3 + b][2 + a]) for b in range(2) for a in range(3)] == [wanted[a, b] for b in range(2) for a in range(3)]


def test_groups_and_files_are_listed_with_checksums(folder: Path) -> None:
    page = Page(html_of(folder))
    groups = page.tables["Groups"][0][1:]
    assert {line[0] for line in groups} == {f"s{k}" for k in range(8)}
    assert all(sorted([int(line[1]), int(line[2])]) == [0, 5] for line in groups)
    listed = {line[4]: line[0] for line in page.tables["Files"][0][1:]}
    assert listed == dict(line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines())


def test_the_page_is_self_contained_with_one_tile_per_level(folder: Path) -> None:
    text = html_of(folder)
    assert Page(text).tags["img"] == 5
    assert re.findall(r'(?:src|href)="(?!data:image/jpeg;base64,|#)', text) == [] and "<script" not in text
    assert html_of(folder) == text


def colours(folder: Path, colours: list[tuple[int, int, int]], group: str = "s") -> Path:
    """A set of tiles of uniform colours."""
    images = folder / "images"
    images.mkdir()
    for number, colour in enumerate(colours):
        Image.new("RGB", (8, 8), colour).save(images / f"{number}.png")
    table = write_csv(
        folder / "l.csv", ["file", "slide", "grade", "size"], [[f"{n}.png", f"{group}{n}", 1, 0] for n in range(len(colours))]
    )
    pack(read_labels([table], TWO, group="slide"), Folder(str(images)), folder / "set", Options(0, 0, 1 << 30, 16), processes=1)
    return folder / "set"


def test_stain_of_known_colours(tmp_path: Path) -> None:
    page = Page(html_of(colours(tmp_path, [(255, 0, 100), (155, 0, 200)])))
    lines = {line[0]: [float(text) for text in line[1:]] for line in page.tables["Stain"][0][1:]}
    assert lines["intensity, red"] == [205, 50, 50] and lines["intensity, blue"] == [150, 50, 50]
    dark, red = math.log10(255), math.log10(255 / 155)
    assert lines["optical density, green"] == pytest.approx([dark, 0, 0], abs=6e-4)
    assert lines["optical density, red"] == pytest.approx([red / 2] * 3, abs=6e-4)


def test_a_damaged_tile_is_counted_and_not_shown(tmp_path: Path) -> None:
    folder = colours(tmp_path, [(255, 255, 255), (0, 0, 0)])
    row = rows_of(folder)[0]
    with (folder / row["shard"]).open("r+b") as stream:
        stream.seek(row["offset"] + row["length"] // 2)
        byte = stream.read(1)
        stream.seek(-1, 1)
        stream.write(bytes([byte[0] ^ 255]))
    text = html_of(folder)
    assert "1 of them are damaged" in text and "train, 1 tiles" in text
    assert Page(text).tags["img"] == 2


def test_names_of_groups_are_escaped(tmp_path: Path) -> None:
    folder = colours(tmp_path, [(9, 9, 9)], group='<script>alert("x")</script>&|')
    page = Page(html_of(folder))
    assert page.tags["script"] == 0
    assert page.tables["Groups"][0][1][0] == '<script>alert("x")</script>&|0'
    assert run("card", folder, "--out", tmp_path / "card.md") == 0
    assert '&lt;script&gt;alert("x")&lt;/script&gt;&amp;\\|0' in (tmp_path / "card.md").read_text()


def test_html_and_markdown_have_the_same_content() -> None:
    rows: list[list[Cell]] = [
        ["a|b", 1, 1.5, Tinted(2000, 0.5), Code("ff"), Picture(b"jpeg", "<p>")],
        ["c", 2, 2.0, Tinted(0, 0), Code("_"), "none"],
    ]
    table = Table(["name", "n", "x", "t", "sum", "tile"], rows, [("", 2), ("both", 4)], title="A & B")
    sections = [Section("One", "text", [table])]
    page = Page(to_html("T", "lead", sections))
    assert page.tables["One"][0][2:] == [["a|b", "1", "1.500", "2,000", "ff", ""], ["c", "2", "2.000", "0", "_", "none"]]
    lines = to_markdown("T", "lead", sections).splitlines()
    assert "| name | n | both x | both t | both sum | both tile |" in lines
    assert "| a\\|b | 1 | 1.500 | 2,000 | ff | ![&lt;p&gt;](data:image/jpeg;base64,anBlZw==) |" in lines


def test_without_jinja2_the_extra_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert run("card", folder, "--out", tmp_path / "card.html") == 2
    assert "HTML pages require jinja2: pip install 'attributegan[explore]'" in capsys.readouterr().err
    assert not (tmp_path / "card.html").exists()
    assert run("card", folder, "--out", tmp_path / "card.md", "--sample", 3) == 0


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("card", folder, "--sample", 3) == 0
    assert "train, 3 tiles" in (folder / "card.html").read_text() and str(folder / "card.html") in capsys.readouterr().out
    assert list(verify(folder)) == []  # the card is an expected file of the set
    assert run("card", folder, "--out", tmp_path / "card.pdf") == 2 and "--out" in capsys.readouterr().err
    assert run("card", tmp_path, "--out", tmp_path / "card.md") == 2 and "shard set" in capsys.readouterr().err
    assert run("card", folder, "--out", tmp_path / "no" / "card.md") == 2 and "--out" in capsys.readouterr().err
    assert run("card", folder, "--sample", 0) == 2 and "--sample" in capsys.readouterr().err
