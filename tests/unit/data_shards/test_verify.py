"""Verify finds all damage and nothing else; indexing of existing tars."""

from __future__ import annotations

import io
import json
import pickle
import random
import re
import shutil
import tarfile
from itertools import islice
from pathlib import Path

import pytest
import webdataset
from shards import TWO, TWO_YAML, levels_of, make_set, number_of, pixels_of, rows_of, write_tiles

from data_shards.format import checksums, index, tile
from data_shards.loader.loader import batches
from data_shards.loader.shard_set import ShardSet
from data_shards.packing.labels import read_labels
from data_shards.packing.packer import pack
from data_shards.packing.plan import Options
from data_shards.packing.sources import Folder
from data_shards.sampler.global_order import GlobalShuffle
from data_shards.storage.shard_files import LocalShardFiles
from data_shards.verify import verify
from tools.shard import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_set(tmp_path, 40, val_fraction=0.2)


def test_a_packed_set_is_valid(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder)]) == 0
    assert "clean, 40 tiles" in capsys.readouterr().out


def test_a_pickled_copy_does_not_close_the_files_of_its_original(folder: Path) -> None:
    """Two shards: `verify` reads images with equal checksums before it pickles the set to its workers."""
    files = LocalShardFiles(folder, index.read_header(folder / index.FILE).shards)
    first = files.read(0, 512, 0)
    copy = pickle.loads(pickle.dumps(files))
    assert copy.read(0, 512, 0) == first
    del copy
    assert files.read(0, 512, 0) == first


def test_a_set_with_left_out_tiles_is_valid(tmp_path: Path) -> None:
    write_tiles(tmp_path, range(8))
    (tmp_path / "images" / "t0003.png").write_bytes(b"no image")
    labels = read_labels([tmp_path / "labels.csv"], TWO)
    pack(labels, Folder(str(tmp_path / "images")), tmp_path / "set", Options(0), skip_bad=True)
    assert list(verify(tmp_path / "set")) == []


def flip(path: Path, location: int, bit: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[location] ^= bit
    path.write_bytes(data)


def test_a_damaged_image_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = rows_of(folder)[17]
    flip(folder / row["shard"], row["offset"] + row["length"] // 2)
    assert main(["verify", str(folder), "--workers", "1"]) == 1
    report = capsys.readouterr().out
    assert f"{row['shard']}: {row['key']}: the image is damaged (wrong checksum)" in report
    assert f"{row['shard']}: wrong checksum" in report
    assert "not clean" in report


def rewrite(path: Path, change) -> None:  # type: ignore[no-untyped-def]
    """Rewrite a tar with ``change(list of (name, data))``, which returns the new list."""
    with tarfile.open(path) as tar:
        members = [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w") as tar:
        for name, data in change(members):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def bless(folder: Path) -> None:
    """Update sizes and SHA-256 of a modified set, so that only its contents reveal the change."""
    header = index.read_header(folder / index.FILE)
    shards = tuple(
        index.Shard(shard.name, shard.split, (folder / shard.name).stat().st_size, shard.tiles, checksums.sha256_of(folder / shard.name))
        for shard in header.shards
    )
    table = index.read_table(folder / index.FILE)
    index.write(folder / index.FILE, index.Header(header.schema, shards, header.image_size, header.source), [table])
    checksums.write(folder, header := index.read_header(folder / index.FILE))
    assert header.shards == shards


def swap_levels(members: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    tree = json.loads(members[1][1])
    tree["levels"]["size"] ^= 1
    return [members[0], (members[1][0], json.dumps(tree, sort_keys=True).encode()), *members[2:]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_levels, "size is . in the tar but . in the index"),
        (lambda members: [(members[2][0], members[0][1]), members[1], (members[0][0], members[2][1]), *members[3:]], "the index has key t"),
        (lambda members: members[2:] + members[:2], "t....: the index has key t"),
        (lambda members: members[2:], "not found in the tar"),
        (lambda members: [*members, ("new.png", members[0][1])], "new: not in the index"),
        (lambda members: [members[0], (members[1][0], b"{}"), *members[2:]], "no level of grade, size"),
        (lambda members: [members[0], (members[1][0], b"{"), *members[2:]], ".json: "),
    ],
)
def test_tars_that_contradict_the_index_are_found_by_contents(folder: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    rewrite(folder / "train-000000.tar", change)
    bless(folder)
    problems = "\n".join(verify(folder))
    assert "SHA-256" not in problems
    assert re.search(message, problems)


def test_a_group_or_an_image_in_two_splits_is_found(tmp_path: Path) -> None:
    write_tiles(tmp_path, range(12), group=1)
    shutil.copy(tmp_path / "images" / "t0000.png", tmp_path / "images" / "t0001.png")
    labels = read_labels([tmp_path / "labels.csv"], TWO, group="slide")
    source = Folder(str(tmp_path / "images"))
    for options in (Options(0.5, seed, 1 << 30, 4) for seed in range(20)):
        pack(labels, source, tmp_path / "set", options, overwrite=True)
        if len({row["split"] for row in rows_of(tmp_path / "set") if row["key"] in ("t0000", "t0001")}) == 2:
            break
    [problem] = verify(tmp_path / "set")
    assert "the same image is in several splits" in problem and "train t000" in problem and "val t000" in problem

    folder = make_set(tmp_path / "groups", 20, val_fraction=0.5)
    header, table = index.read_header(folder / index.FILE), index.read_table(folder / index.FILE)
    groups = table.set_column(table.column_names.index("group"), "group", [["s0"] * len(table)])
    index.write(folder / index.FILE, header, [groups])
    bless(folder)
    assert any("group s0 is in 2 splits" in problem for problem in verify(folder))


def test_files_that_do_not_belong_and_missing_ones_are_found(folder: Path) -> None:
    (folder / "notes.txt").write_text("x")
    (folder / "val-000000.tar").unlink()
    problems = list(verify(folder))
    assert len(problems) == 2
    assert "notes.txt: does not belong to the set" in problems[0] and "val-000000.tar: can't be read" in problems[1]


def test_a_missing_set_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path)]) == 1
    assert "is not a complete shard set" in capsys.readouterr().out


# Random damage


def random_damage(folder: Path, rng: random.Random) -> None:
    """Apply a random damage of a kind caused by disks, copies and people."""
    path = rng.choice(sorted(folder.iterdir()))
    data = bytearray(path.read_bytes())
    location = rng.randrange(len(data))
    kind = rng.choice(["flip", "flip", "flip", "truncate", "zeros", "append", "swap", "delete", "levels", "repeat"])
    if kind == "flip":
        data[location] ^= 1 << rng.randrange(8)
    elif kind == "truncate":
        del data[location:]
    elif kind == "zeros":
        nonzero = [number for number, byte in enumerate(data) if byte]
        location = rng.choice(nonzero)
        data[location : location + 512] = bytes(len(data[location : location + 512]))
    elif kind == "append":
        data += rng.randbytes(rng.randrange(1, 600))
    elif kind == "repeat":
        data[location:location] = data[location : location + 512]
    path.write_bytes(data)
    tar = rng.choice(sorted(folder.glob("*.tar")))
    if kind == "delete":
        path.unlink()
    elif kind == "swap":  # swap the images of two tiles and recompute all checksums of the set
        rewrite(tar, lambda members: [(members[0][0], members[2][1]), members[1], (members[2][0], members[0][1]), *members[3:]])
        bless(folder)
    elif kind == "levels":
        rewrite(tar, swap_levels)
        bless(folder)


@pytest.mark.slow
def test_random_damage_is_found_and_never_crashes_the_loader(tmp_path: Path) -> None:
    original = make_set(tmp_path, 20, shard_count=6, val_fraction=0.2, size=8)
    files = {path.name: path.read_bytes() for path in original.iterdir()}
    folder, rng = tmp_path / "damaged", random.Random(0)
    refused = 0
    opened = ShardSet.open(original)
    shutil.copytree(original, folder)
    for _ in range(1000):
        for name, data in files.items():
            if not (folder / name).exists() or (folder / name).read_bytes() != data:
                (folder / name).write_bytes(data)
        random_damage(folder, rng)
        assert list(verify(folder)), "not found"
        for shards in (
            lambda: ShardSet.open(folder),
            lambda: ShardSet(str(folder), folder, opened.header, opened.rows, LocalShardFiles(folder, opened.header.shards)),
        ):
            try:
                read_a_pass(shards())
            except ValueError:
                refused += 1
    assert 200 < refused < 1000  # damage inside a tar is handled by replacing tiles, other damage by rejecting the set


def read_a_pass(shards: ShardSet) -> None:
    order = GlobalShuffle(shards.levels_NA, 0, 0.0)
    options = {"micro_batches": 1, "rank": 0, "world": 1, "workers": 0, "flips": False, "image_size": 8}
    for batch in islice(batches(shards, order, start=0, batch=8, **options), 2):  # type: ignore[arg-type]
        assert batch.images_BCHW.shape == (8, 3, 8, 8)


# Existing tars


def foreign(path: Path, numbers: range, levels) -> Path:  # type: ignore[no-untyped-def]
    """Write a tar with plain webdataset; ``levels(number)`` returns the members besides the image."""
    path.parent.mkdir(exist_ok=True)
    with webdataset.TarWriter(str(path)) as tar:
        for number in numbers:
            tar.write({"__key__": f"x/t{number:04d}", "png": tile.encode_png(pixels_of(number)), **levels(number)})
    return path


def in_json(number: int) -> dict[str, object]:
    return {"json": dict(zip(("grade", "size"), levels_of(number), strict=True)) | {"slide": f"s{number // 10}"}, "txt": "something else"}


def test_existing_tars_are_indexed(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(TWO_YAML)
    foreign(tmp_path / "tars" / "a-0.tar", range(10), in_json)
    foreign(tmp_path / "tars" / "a-1.tar", range(10, 20), in_json)
    foreign(tmp_path / "tars" / "val-0.tar", range(20, 30), in_json)
    arguments = ["index", str(tmp_path / "tars"), "--attributes", str(tmp_path / "two.yaml"), "--group", "slide"]
    assert main(arguments) == 0
    assert list(verify(tmp_path / "tars")) == []
    shards = ShardSet.open(tmp_path / "tars")
    assert shards.schema == TWO and len(shards) == 20 and shards.image_size == 16
    assert {row["group"] for row in rows_of(tmp_path / "tars")} == {"s0", "s1", "s2"}
    options = {"start": 0, "batch": 20, "micro_batches": 1, "rank": 0, "world": 1, "workers": 0, "flips": False, "image_size": 16}
    batch = next(batches(shards, GlobalShuffle(shards.levels_NA, 0, 0.0), **options))  # type: ignore[arg-type]
    numbers = (batch.images_BCHW[:, 0, 0, 0]).tolist()
    assert sorted(numbers) == list(range(20))
    assert [tuple(levels_A) for levels_A in batch.levels_BA.tolist()] == [levels_of(number) for number in numbers]
    assert main(arguments) == 2 and main([*arguments, "--overwrite"]) == 0


def test_cls_is_the_level_of_a_single_attribute(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("grade: [low, high]\n")
    foreign(tmp_path / "tars" / "a.tar", range(6), lambda number: {"cls": number % 2})
    assert main(["index", str(tmp_path / "tars"), "--attributes", str(tmp_path / "one.yaml")]) == 0
    assert {number_of(row["key"]): row["grade"] for row in rows_of(tmp_path / "tars")} == {number: number % 2 for number in range(6)}


def test_all_invalid_samples_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "two.yaml").write_text(TWO_YAML)
    wrong: list[dict[str, object]] = [
        {},
        {"json": {"grade": 1}},
        {"json": {"grade": 7, "size": 0}},
        {"json": {"grade": "much", "size": 0}},
        {"json": b"{"},
        {"json": [1]},
        {"png": b"no image", **in_json(6)},
    ]
    foreign(tmp_path / "tars" / "a.tar", range(9), lambda number: wrong[number] if number < len(wrong) else in_json(number))
    arguments = ["index", str(tmp_path / "tars"), "--attributes", str(tmp_path / "two.yaml")]
    assert main(arguments) == 2
    report = capsys.readouterr().err
    for line in (
        "7 invalid samples",
        "x/t0000: no .json with levels",
        "x/t0001: no level of size",
        "x/t0002: grade is 7, levels are 0 to 2",
        "x/t0003: grade is 'much', neither a number nor one of none, low, high",
        "x/t0004: .json: ",
        "x/t0005: .json: not a JSON object",
        "x/t0006: not a readable image",
    ):
        assert line in report
    assert [path.name for path in (tmp_path / "tars").iterdir()] == ["a.tar"]
    assert main([*arguments, "--skip-bad"]) == 0
    assert len(rows_of(tmp_path / "tars")) == 2 and list(verify(tmp_path / "tars")) == []


def test_tar_names_with_shell_characters_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a b.tar").touch()
    assert main(["index", str(tmp_path), "--workers", "1"]) == 2
    printed = capsys.readouterr().err
    assert f"{tmp_path}: 'a b.tar' is not a valid shard name" in printed and "Rename the tar" in printed


def test_folders_without_tars_and_files_that_are_not_tars_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(tmp_path)]) == 2
    assert "no .tar files" in capsys.readouterr().err
    (tmp_path / "a.tar").write_bytes(b"x" * 2000)
    assert main(["index", str(tmp_path)]) == 2
    assert "a.tar: not a readable tar" in capsys.readouterr().err
