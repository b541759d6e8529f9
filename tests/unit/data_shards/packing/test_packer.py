"""Packing: contents of tars and index, invalid rows, splits, restarts."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from lock_holder import lock_holder
from PIL import Image
from shards import TWO, TWO_YAML, levels_of, make_set, number_of, pixels_of, rows_of, write_csv, write_tiles

from attributegan.attributes import PUBLISHED, AttributeSchema
from data_shards.format import index, tile
from data_shards.packing.labels import read_labels
from data_shards.packing.packer import pack
from data_shards.packing.plan import Options
from data_shards.packing.sources import Folder
from data_shards.packing.splits import hold_out
from data_shards.packing.tar_writer import header
from tools.shard import main

ROOT = Path(__file__).parents[4]


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    write_tiles(tmp_path, range(40))
    (tmp_path / "two.yaml").write_text(TWO_YAML)
    return tmp_path


def command(folder: Path, *more: str) -> list[str]:
    paths = ["--images", str(folder / "images"), "--labels", str(folder / "labels.csv"), "--out", str(folder / "set")]
    return ["pack", *paths, "--attributes", str(folder / "two.yaml"), "--workers", "1", *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_are_stored_byte_for_byte_and_indexed(tiles: Path) -> None:
    assert main(command(tiles, "--shard-count", "16", "--val-fraction", "0")) == 0
    rows = rows_of(tiles / "set")
    assert sorted(number_of(row["key"]) for row in rows) == list(range(40))
    for row in rows:
        data = (tiles / "set" / row["shard"]).read_bytes()[row["offset"] :][: row["length"]]
        assert data == (tiles / "images" / f"{row['key']}.png").read_bytes()
        assert (row["grade"], row["size"]) == levels_of(number_of(row["key"]))
    header = index.read_header(tiles / "set" / index.FILE)
    assert [shard.tiles for shard in header.shards] == [16, 16, 8]
    assert header.schema == TWO and header.image_size == 16


def test_progress_and_summary_are_printed(tiles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tiles, "--val-fraction", "0.25")) == 0
    printed = capsys.readouterr()
    assert "40 tiles, " in printed.err and "tiles/s" in printed.err
    assert "train: 30 tiles in 1 shards" in printed.out and "val: 10 tiles in 1 shards" in printed.out


def test_plain_webdataset_reads_what_is_written(tiles: Path) -> None:
    assert main(command(tiles, "--val-fraction", "0", "--shard-count", "16", "--group", "slide")) == 0
    urls = [str(path) for path in sorted((tiles / "set").glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert len(samples) == 40
    for sample in samples:
        number = number_of(sample["__key__"])
        assert np.array_equal(sample["png"], pixels_of(number))
        grade, size = levels_of(number)
        assert sample["json"] == {"levels": {"grade": grade, "size": size}, "group": f"s{number // 5}", "file": f"t{number:04d}.png"}


def test_members_have_no_time_and_no_owner(tmp_path: Path) -> None:
    with tarfile.open(make_set(tmp_path, 3) / "train-000000.tar") as tar:
        assert {(member.mtime, member.uid, member.uname, member.mode) for member in tar} == {(0, 0, "", 0o644)}


@pytest.mark.parametrize("processes", [1, 3])
def test_the_same_tiles_give_the_same_bytes(tmp_path: Path, processes: int) -> None:
    first = make_set(tmp_path / "a", 40, val_fraction=0.2, shard_count=7)
    second = make_set(tmp_path / "b", 40, val_fraction=0.2, shard_count=7, processes=processes)
    assert len(contents(first)) > 5 and contents(first) == contents(second)


def test_size_crops_the_centre_and_resizes_without_aliasing(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    wide_HWC = np.zeros((64, 128, 3), np.uint8)
    wide_HWC[:, 32:96] = np.indices((64, 64)).sum(axis=0)[..., None] % 2 * 200  # a checkerboard of mean 100 between black bars
    Image.fromarray(wide_HWC).save(tmp_path / "images" / "wide.png")
    write_csv(tmp_path / "labels.csv", ["file", "grade", "size"], [["wide.png", 0, 0]])
    (tmp_path / "two.yaml").write_text(TWO_YAML)
    assert main(command(tmp_path, "--size", "16", "--val-fraction", "0")) == 0
    [sample] = webdataset.WebDataset([str(tmp_path / "set" / "train-000000.tar")], shardshuffle=False).decode("rgb8")
    assert sample["png"].shape == (16, 16, 3)
    assert abs(sample["png"].astype(float) - 100).max() < 8


def test_other_formats_become_png_and_extensions_match_the_content(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels_of(1)).save(tmp_path / "images" / "one.tiff")
    Image.fromarray(pixels_of(2)).save(tmp_path / "images" / "two.x.jpg", format="PNG")
    Image.fromarray(pixels_of(3)).save(tmp_path / "images" / "three.webp")
    write_csv(tmp_path / "labels.csv", ["file", "grade", "size"], [[name, 0, 0] for name in ("one.tiff", "two.x.jpg", "three.webp")])
    (tmp_path / "two.yaml").write_text(TWO_YAML)
    assert main(command(tmp_path, "--val-fraction", "0")) == 0
    with tarfile.open(tmp_path / "set" / "train-000000.tar") as tar:
        assert {name for name in tar.getnames() if not name.endswith("json")} == {"one.png", "two_x.png", "three.webp"}


def test_all_invalid_rows_are_reported_and_nothing_is_written(tiles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiles / "images" / "t0001.png").unlink()
    (tiles / "images" / "t0002.png").write_bytes(b"no image")
    cut = (tiles / "images" / "t0003.png").read_bytes()
    (tiles / "images" / "t0003.png").write_bytes(cut[: len(cut) // 2])
    with (tiles / "labels.csv").open("a") as stream:
        stream.write("t0004.png,s0,1,1\nt0005.jpg,s0,9,1\nt0006.jpg,s0,much,1\n../t0007.png,s0,1,1\nt0008.tif,s0\n")
    before = sorted(tiles.iterdir())
    assert main(command(tiles)) == 2
    report = capsys.readouterr().err
    assert "8 invalid tiles" in report
    for line in (
        "labels.csv:3: t0001.png: no such image",
        "labels.csv:4: t0002.png: not a readable image",
        "labels.csv:5: t0003.png: not a readable image",
        "labels.csv:42: t0004.png: its key t0004 is taken by labels.csv:6",
        "labels.csv:43: grade is 9, levels are 0 to 2",
        "labels.csv:44: grade is 'much', neither a number nor one of none, low, high",
        "labels.csv:45: file '../t0007.png'",
        "labels.csv:46: grade is empty; write -1 for unknown",
    ):
        assert line in report
    assert sorted(tiles.iterdir()) == before

    assert main(command(tiles, "--skip-bad", "--val-fraction", "0")) == 0
    assert "8 tiles left out" in capsys.readouterr().out
    assert sorted(number_of(row["key"]) for row in rows_of(tiles / "set")) == [0, *range(4, 40)]


def test_an_invalid_image_found_while_writing_leaves_nothing_behind(tiles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiles / "images" / "t0002.png").write_bytes(b"no image")
    before = sorted(tiles.iterdir())
    assert main(command(tiles)) == 2
    assert "1 invalid tiles" in capsys.readouterr().err
    assert sorted(tiles.iterdir()) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--column", "grade=stage"], "no column stage; found file, slide, grade, size"),
        (["--column", "weight=size"], "neither `file` nor an attribute; attributes are grade, size"),
        (["--column", "grade"], "write NAME=COLUMN"),
        (["--group", "patient"], "no column patient"),
        (["--val-fraction", "1"], "--val-fraction"),
        (["--shard-count", "0"], "--shard-count"),
        (["--size", "0"], "--size"),
        (["--labels", "missing.csv"], "missing.csv"),
        (["--attributes", "missing.yaml"], "missing.yaml"),
        (["--images", "missing"], "missing is not a folder"),
        (["--workers", "0"], "--workers"),
    ],
)
def test_invalid_options_are_named(tiles: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    assert main(command(tiles, *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tiles / "set").exists()


def test_columns_can_have_other_names_and_levels_can_be_names(tmp_path: Path) -> None:
    write_tiles(tmp_path, range(2))
    write_csv(tmp_path / "labels.csv", ["name", "g", "size"], [["t0000.png", "high", "large"], ["t0001.png", "1.0", "0"]])
    (tmp_path / "two.yaml").write_text(TWO_YAML)
    assert main(command(tmp_path, "--column", "file=name", "--column", "grade=g", "--val-fraction", "0")) == 0
    assert {row["key"]: (row["grade"], row["size"]) for row in rows_of(tmp_path / "set")} == {"t0000": (2, 1), "t0001": (1, 0)}


def test_attributes_can_not_be_named_like_index_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiles(tmp_path, range(2))
    (tmp_path / "two.yaml").write_text("length:\n  levels: [short, long]\n")
    assert main(command(tmp_path, "--column", "length=size")) == 2
    assert "length: reserved for columns" in capsys.readouterr().err


def test_a_set_is_replaced_only_with_overwrite(tiles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(tiles)) == 0
    before = contents(tiles / "set")
    assert main(command(tiles)) == 0  # the same set exists
    assert main(command(tiles, "--seed", "1")) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert contents(tiles / "set") == before
    assert main(command(tiles, "--seed", "1", "--overwrite")) == 0
    assert contents(tiles / "set") != before
    assert not [path for path in tiles.iterdir() if path.name.startswith(".set")]


def test_other_folders_are_never_replaced(tiles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiles / "set").mkdir()
    (tiles / "set" / "thesis.txt").write_text("years of work")
    assert main(command(tiles, "--overwrite")) == 2
    assert "is not a shard set" in capsys.readouterr().err
    assert (tiles / "set" / "thesis.txt").read_text() == "years of work"


def test_shards_respect_the_size_limit(tmp_path: Path) -> None:
    write_tiles(tmp_path, range(40), size=64)  # about 8 KB each
    labels = read_labels([tmp_path / "labels.csv"], TWO)
    header = pack(labels, Folder(str(tmp_path / "images")), tmp_path / "set", Options(0, 0, 100_000, 1000))
    assert len(header.shards) > 3
    assert all(shard.size <= 110_000 for shard in header.shards)


def test_groups_stay_together_and_levels_are_spread() -> None:
    rng = np.random.default_rng(0)
    group_N = np.sort(rng.integers(0, 60, 3000))
    levels_NA = np.stack([(group_N % 3 + rng.integers(0, 2, 3000)) % 4, rng.integers(0, 2, 3000)], axis=1).astype(np.int8)
    held_out_N = hold_out(levels_NA, group_N, 0.2, seed=0)
    assert not set(group_N[held_out_N]) & set(group_N[~held_out_N])
    for levels_N in levels_NA.T:
        for level in range(levels_N.max() + 1):
            assert abs(held_out_N[levels_N == level].mean() - 0.2) < 0.03


def test_tiles_without_groups_are_held_out_by_combination() -> None:
    levels_NA = np.array([[0, 0]] * 50 + [[1, 0]] * 100 + [[2, 1]] * 10, np.int8)
    held_out_N = hold_out(levels_NA, None, 0.2, seed=0)
    assert [held_out_N[:50].sum(), held_out_N[50:150].sum(), held_out_N[150:].sum()] == [10, 20, 2]
    assert (hold_out(levels_NA, None, 0.2, seed=1) != held_out_N).any()


def test_one_group_can_not_be_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiles(tmp_path, range(4))
    (tmp_path / "two.yaml").write_text(TWO_YAML)
    assert main(command(tmp_path, "--group", "slide")) == 2
    assert "only one group" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_pack_resumes_after_its_complete_shards(tmp_path: Path) -> None:
    """SIGKILL while shards are written; the second run keeps complete shards and writes the same bytes as an uninterrupted pack."""
    arguments = ["phantom", "--count", "120", "--size", "64", "--shard-count", "10", "--workers", "2"]
    process = subprocess.Popen([sys.executable, "-m", "tools.shard", *arguments, "--out", str(tmp_path / "killed")], cwd=ROOT)
    tmp_folder = tmp_path / ".killed.packing"
    while len(list(tmp_folder.glob("[!.]*.parquet"))) < 2:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    whole = {path.name.removesuffix(f".{index.FILE}") for path in tmp_folder.glob("[!.]*.parquet")}
    assert not (tmp_path / "killed").exists() and 2 <= len(whole) < 12
    times = {name: os.stat(tmp_folder / name).st_mtime_ns for name in whole}
    assert main([*arguments, "--out", str(tmp_path / "killed")]) == 0
    assert main([*arguments, "--out", str(tmp_path / "undisturbed")]) == 0
    assert {name: os.stat(tmp_path / "killed" / name).st_mtime_ns for name in whole} == times
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")


def test_only_one_process_packs_a_set_at_a_time(tiles: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_shards.packing.parts.LOCK_WAIT_S", 0.0)
    with lock_holder(tiles / ".set.packing.lock") as other:
        assert main(command(tiles)) == 2
        assert f"{tiles / '.set.packing'}: another process is packing this set" in capsys.readouterr().err
        other.kill()
        other.wait()
        assert main(command(tiles)) == 0
    assert not list(tiles.glob(".set*"))


def test_example_schemas_are_read() -> None:
    folder = ROOT / "configs" / "attributes"
    assert AttributeSchema.from_yaml(folder / "bladder.yaml") == PUBLISHED
    assert AttributeSchema.from_yaml(folder / "two.yaml").num_levels == (3, 3)


def test_real_tiles(tmp_path: Path) -> None:
    real = ROOT.parent / "shared" / "tiles"
    if not (real / "levels.csv").exists():
        pytest.skip("../shared/tiles is not here")
    arguments = ["--images", str(real / "images"), "--labels", str(real / "levels.csv"), "--group", "slide", "--out", str(tmp_path / "set")]
    assert main(["pack", *arguments]) == 0
    rows = rows_of(tmp_path / "set")
    assert len(rows) == 239
    slides = {split: {row["group"] for row in rows if row["split"] == split} for split in ("train", "val")}
    assert slides["train"] and slides["val"] and not slides["train"] & slides["val"]
    assert json.loads(json.dumps(index.read_header(tmp_path / "set" / index.FILE).schema.to_dict())) == PUBLISHED.to_dict()


@pytest.mark.parametrize("name", ["a.jpg", "slide 1/t_0.png", "x" * 100, "x" * 101, "f" * 90 + "/" + "g" * 90, "grün/zelle.jpg", "é" * 60])
def test_headers_equal_those_of_tarfile(name: str) -> None:
    for size in (0, 1, 511, 130_000, 2**31 - 1):
        info = tarfile.TarInfo(name)
        info.size = size
        assert header(name, size) == info.tobuf(tarfile.PAX_FORMAT)


@pytest.mark.slow
def test_tars_are_readable_by_other_tools(tmp_path: Path) -> None:
    """GNU tar, Python's tarfile and webdataset read the same members, including long and non-ASCII names."""
    names = ["plain.png", "deep/" * 30 + "tile.png", "Zürich/Gewebe ß.png"]
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_of(1)).save(tmp_path / "images" / name)
    write_csv(tmp_path / "labels.csv", ["file", "grade", "size"], [[name, 1, 0] for name in names])
    pack(read_labels([tmp_path / "labels.csv"], TWO), Folder(str(tmp_path / "images")), tmp_path / "set", Options(0))
    path = tmp_path / "set" / "train-000000.tar"
    subprocess.run(["tar", "xf", path, "-C", tmp_path / "set"], check=True)
    assert all((tmp_path / "set" / name).read_bytes() == (tmp_path / "images" / name).read_bytes() for name in names)
    samples = {sample["__key__"]: sample for sample in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)}
    assert set(samples) == {name.removesuffix(".png") for name in names}
    assert path.stat().st_size % tarfile.RECORDSIZE == 0


@pytest.mark.parametrize(
    "more", [{}, {"progressive": True}, {"comment": b"x" * 40_000}, {"subsampling": 0}, {"exif": b"Exif\0\0" + bytes(99)}]
)
def test_jpeg_size_equals_that_of_pillow(more: dict) -> None:
    for mode, size in (("RGB", (37, 20)), ("L", (512, 512)), ("CMYK", (9, 9))):
        buffer = io.BytesIO()
        Image.new(mode, size).save(buffer, "JPEG", **more)
        assert tile.jpeg_size(buffer.getvalue()) == (None if mode == "CMYK" else size)
        assert all(tile.jpeg_size(buffer.getvalue()[:end]) in (None, size) for end in range(700))
    assert tile.jpeg_size(b"\xff\xd8\xff\xc0") is None and tile.jpeg_size(b"\x89PNG") is None


def test_other_columns_are_stored_with_the_tile(tiles: Path) -> None:
    write_csv(
        tiles / "labels.csv",
        ["file", "grade", "size", "slide", "x", "mpp", "stain", "batch", ""],
        [["t0000.png", 1, 0, "s1", 1024, 0.5, "H&E, grün", "007", "?"], ["t0001.png", 1, 0, "s2"]],
    )
    assert main(command(tiles, "--group", "slide", "--val-fraction", "0")) == 0
    with tarfile.open(tiles / "set" / "train-000000.tar") as tar:
        of = {name: json.loads(tar.extractfile(name).read()) for name in ("t0000.json", "t0001.json")}  # type: ignore[union-attr]
    assert of["t0000.json"] == {
        "file": "t0000.png",
        "group": "s1",
        "levels": {"grade": 1, "size": 0},
        "more": {"x": 1024, "mpp": 0.5, "stain": "H&E, grün", "batch": "007"},
    }
    assert "more" not in of["t0001.json"]
    assert main(["verify", str(tiles / "set")]) == 0


def test_simplejpeg_decodes_the_same_pixels_as_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pixels are equal, and damaged data are an error of both."""
    smooth = Image.fromarray(pixels_of(0, 24)).resize((97, 64))
    saved = []
    for mode, options in itertools.product(("RGB", "L", "CMYK"), ({}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True})):
        buffer = io.BytesIO()
        smooth.convert(mode).save(buffer, "JPEG", quality=85, **options)
        saved.append(buffer.getvalue())
    cases = [
        (data, size, crop) for data in saved for size, crop in ((None, None), (64, None), (32, None), (40, tile.Crop(0.625, 0.3, 0.9)))
    ]
    fast = [tile.decode(*case) for case in cases]
    with pytest.raises(tile.DECODING_ERRORS):
        tile.decode(saved[0][:-100])
    monkeypatch.setattr(tile, "_fast_jpeg", lambda data: None)
    assert all(np.array_equal(pixels_HWC, tile.decode(*case)) for pixels_HWC, case in zip(fast, cases, strict=True))
    with pytest.raises(tile.DECODING_ERRORS):
        tile.decode(saved[0][:-100])


PEAK = """
import sys
from pathlib import Path
from tools.shard import main
assert main(sys.argv[1:]) == 0
print(int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) // 1024)  # ru_maxrss includes that of the parent
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_tiles(tmp_path: Path) -> None:
    """One shard of 20 MB and one of 250 MB: buffering the images of the second would be visible."""
    (tmp_path / "two.yaml").write_text(TWO_YAML)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels_of(0, 600)).save(tmp_path / "images" / "t.png", compress_level=0)
    peaks = []
    for count in (20, 230):
        for number in range(count):
            (tmp_path / "images" / f"{number}.png").unlink(missing_ok=True)
            os.link(tmp_path / "images" / "t.png", tmp_path / "images" / f"{number}.png")
        write_csv(tmp_path / "labels.csv", ["file", "grade", "size"], [[f"{number}.png", 1, 0] for number in range(count)])
        words = command(tmp_path, "--val-fraction", "0", "--overwrite", "--shard-size", "4096")
        answer = subprocess.run([sys.executable, "-c", PEAK, *words], cwd=ROOT, check=True, capture_output=True, text=True)
        peaks.append(int(answer.stdout.split()[-1]))
    assert (tmp_path / "set" / "train-000000.tar").stat().st_size > 230 * 2**20
    assert peaks[1] - peaks[0] < 30


def test_unknown_levels_are_preserved(tiles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [[f"t{number:04d}.png", -1 if number % 2 else 1, levels_of(number)[1] if number % 3 else -1] for number in range(40)]
    write_csv(tiles / "labels.csv", ["file", "grade", "size"], rows)
    assert main(command(tiles, "--val-fraction", "0.2")) == 0
    found = {number_of(row["key"]): [row["grade"], row["size"]] for row in rows_of(tiles / "set")}
    assert found == {number: row[1:] for number, row in enumerate(rows)}
    for again in (["verify"], ["card"]):
        assert main([*again, str(tiles / "set")]) == 0, capsys.readouterr().err
    (tiles / "set" / index.FILE).unlink()
    assert main(["index", str(tiles / "set"), "--attributes", str(tiles / "two.yaml"), "--workers", "1"]) == 0
    assert {number_of(row["key"]): [row["grade"], row["size"]] for row in rows_of(tiles / "set")} == found
