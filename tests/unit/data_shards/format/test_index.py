"""The index of a shard set: round trips, row groups, and rejection of every contradiction."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shards import TWO

from attributegan.attributes import Attribute, AttributeSchema
from data_shards.format import index
from data_shards.format.index import Header, Shard

SHARDS = (Shard("a.tar", "train", 1000, 3, "0" * 64), Shard("b.tar", "val", 0, 0, "1" * 64), Shard("c.tar", "train", 500, 2, "a" * 64))
HEADER = Header(TWO, SHARDS, 16, "print", ("x.png: bad",))


def table_of(shards: list[str], header: Header = HEADER, **columns: list[Any]) -> pa.Table:
    """Rows of 100 bytes each at 10, 20, ...; the number determines the levels."""
    count, split = len(shards), {shard.name: shard.split for shard in header.shards}
    values = {
        "shard": shards,
        "split": [split.get(name, "train") for name in shards],
        "offset": [10 * k for k in range(count)],
        "length": [100] * count,
        "key": [f"k{k}" for k in range(count)],
        "group": [""] * count,
        "grade": [k % 3 for k in range(count)],
        "size": [k % 2 for k in range(count)],
        "checksum": [2**32 - 1 - k for k in range(count)],
    } | columns
    return pa.table(values, index.arrow_schema(header.schema))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    index.write(tmp_path / index.FILE, HEADER, [table_of(["a.tar", "c.tar", "a.tar"]), table_of(["c.tar", "a.tar"])])
    return tmp_path / index.FILE


def test_round_trip(path: Path) -> None:
    header = index.read_header(path)
    assert header == HEADER and header.splits == ("train", "val")
    rows = index.read_rows(path, header, "train")
    assert (
        rows.shard_N.tolist() == [0, 2, 0, 2, 0] and rows.offset_N.tolist() == [0, 10, 20, 0, 10] and set(rows.length_N.tolist()) == {100}
    )
    assert rows.checksum_N[:2].tolist() == [2**32 - 1, 2**32 - 2] and rows.levels_NA.tolist() == [[0, 0], [1, 1], [2, 0], [0, 0], [1, 1]]
    assert [array.dtype.name for array in vars(rows).values()] == ["int32", "int64", "int32", "uint32", "int8"]
    assert len(index.read_rows(path, header, "val").shard_N) == 0
    picked = rows.where(np.array([False, True, False, False, True]))
    assert picked.offset_N.tolist() == [10, 10] and picked.levels_NA.tolist() == [[1, 1], [1, 1]]
    assert index.read_table(path, ["key"]).column_names == ["key"] and len(index.read_table(path)) == 5
    assert sorted(path.parent.iterdir()) == [path]


def test_rows_of_one_split(tmp_path: Path) -> None:
    header = dataclasses.replace(HEADER, shards=(SHARDS[0], dataclasses.replace(SHARDS[2], split="val")))
    index.write(tmp_path / "i", header, [table_of(["a.tar", "c.tar", "a.tar"], header)])
    assert index.read_rows(tmp_path / "i", header, "val").offset_N.tolist() == [10]
    assert index.read_rows(tmp_path / "i", header, "train").offset_N.tolist() == [0, 20]


def test_row_groups_are_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "ROW_GROUP", 4)
    tables = [table_of(["a.tar"] * 2), table_of(["a.tar"] * 2), table_of(["a.tar"] * 6), table_of(["c.tar"] * 3), table_of([])]
    index.write(tmp_path / "i", HEADER, tables)
    file = pq.ParquetFile(tmp_path / "i")
    assert [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)] == [4, 6, 3]
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert index.read_rows(tmp_path / "i", HEADER, "train").shard_N.tolist() == [0] * 10 + [2] * 3
    assert len(index.read_shard(tmp_path / "i", "c.tar")) == 3 and len(index.read_shard(tmp_path / "i", "a.tar")) == 10
    assert len(index.read_shard(tmp_path / "i", "b.tar")) == len(index.read_shard(tmp_path / "i", "d.tar")) == 0


def test_rows_of_a_shard_are_read_without_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "ROW_GROUP", 2)
    index.write(tmp_path / "i", HEADER, [table_of(["a.tar", "b.tar"]), table_of(["b.tar", "c.tar"]), table_of(["c.tar", "c.tar"])])
    read: list[int] = []
    whole = pq.ParquetFile.read_row_groups
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_groups", lambda self, groups, **more: (read.extend(groups), whole(self, groups, **more))[1]
    )
    assert index.read_shard(tmp_path / "i", "b.tar")["key"].to_pylist() == ["k1", "k0"] and read == [0, 1]
    assert len(index.read_shard(tmp_path / "i", "c.tar")) == 3 and read == [0, 1, 1, 2]


def test_merge(tmp_path: Path) -> None:
    parts = []
    for shard, tiles, size in ((SHARDS[0], 3, 16), (SHARDS[1], 0, None), (SHARDS[2], 2, 16)):
        parts.append(tmp_path / shard.name)
        index.write(parts[-1], Header(TWO, (shard,), size, "part"), [table_of([shard.name] * tiles)])
    header = index.merge(tmp_path / "i", parts, "whole", ["y.png: bad"])
    assert header == Header(TWO, (SHARDS[0], SHARDS[2]), 16, "whole", ("y.png: bad",)) == index.read_header(tmp_path / "i")
    assert index.read_table(tmp_path / "i")["shard"].to_pylist() == ["a.tar"] * 3 + ["c.tar"] * 2
    index.write(parts[2], Header(TWO, (SHARDS[2],), 8, "part"), [table_of(["c.tar"] * 2)])
    assert index.merge(tmp_path / "i", parts, "whole", []).image_size is None
    assert index.merge(tmp_path / "i", parts[:1], "whole", []).shards == SHARDS[:1]
    with pytest.raises(ValueError, match="no usable tiles\n  y.png: bad"):
        index.merge(tmp_path / "j", parts[1:2], "whole", ["y.png: bad"])
    assert not (tmp_path / "j").exists()


@pytest.mark.parametrize("name", ["a.tar", "A_b-0+=,@.tar", "_", "9"])
def test_names_of_shards(name: str) -> None:
    assert index.invalid_name(name) == ""


@pytest.mark.parametrize("name", ["", "a/b.tar", "-a", ".a", "a b", "a;b", "é", "a\n"])
def test_invalid_names_of_shards(name: str) -> None:
    assert index.invalid_name(name).startswith(f"{name!r} is not a valid shard name")


@pytest.mark.parametrize("name", index.RESERVED)
def test_attributes_named_like_a_column_are_rejected(name: str) -> None:
    with pytest.raises(ValueError, match=f"attributes: {name}: reserved for columns"):
        index.arrow_schema(AttributeSchema((Attribute(name, ("a", "b")),)))


def rewritten(path: Path, **tree: Any) -> Path:
    """Rewrite the index with other metadata."""
    table = pq.read_table(path)
    old = json.loads(table.schema.metadata[index.METADATA])
    pq.write_table(table.replace_schema_metadata({index.METADATA: json.dumps(old | tree)}), path)
    return path


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ({"version": 2}, "an incompatible version"),
        ({"schema": {"grade": ["a", "b"]}}, "do not match"),
        ({"image_size": 16.0}, "do not match"),
        ({"image_size": "16"}, "do not match"),
        ({"shards": [{**vars(SHARDS[0]), "size": -1}]}, "do not match"),
        ({"shards": [{**vars(SHARDS[0]), "size": "9"}]}, "do not match"),
        ({"shards": [{**vars(SHARDS[0]), "split": 3}]}, "do not match"),
        ({"shards": [{**vars(SHARDS[0]), "more": 3}]}, "damaged"),
        ({"shards": [vars(SHARDS[0]), {**vars(SHARDS[0]), "name": "../a"}]}, "shard 2 in the metadata: '../a' is not a valid"),
        ({"shards": [vars(SHARDS[0]), {**vars(SHARDS[0]), "sha256": "0" * 63}]}, "shard 2 in the metadata: '0+' is not a SHA-256"),
        ({"shards": [{**vars(SHARDS[0]), "sha256": "G" * 64}]}, "is not a SHA-256"),
        ({"left_out": 3}, "damaged"),
        ({"shards": None}, "damaged"),
    ],
)
def test_metadata_that_contradict_the_file_or_themselves(path: Path, tree: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        index.read_header(rewritten(path, **tree))


def test_missing_size_and_empty_shard_are_valid(path: Path) -> None:
    header = index.read_header(rewritten(path, image_size=None, shards=[{**vars(SHARDS[0]), "size": 0}]))
    assert header.image_size is None and header.shards[0].size == 0


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"offset": [0, -1]}, "outside their shard"),
        ({"length": [100, -1]}, "outside their shard"),
        ({"offset": [900, 901]}, "outside their shard"),
        ({"grade": [0, 3]}, "levels of grade range from 0 to 3, but its schema has 0 to 2"),
        ({"grade": [-2, 0]}, "levels of grade range from -2 to 0"),
        ({"size": [0, 2]}, "levels of size range"),
        ({"offset": [0, None]}, "missing values"),
        ({"size": [None, 0]}, "missing values"),
        ({"shard": ["a.tar", "x.tar"]}, "rows refer to shards missing from the metadata: x.tar"),
    ],
)
def test_rows_that_contradict_the_metadata(tmp_path: Path, columns: dict[str, list[Any]], named: str) -> None:
    index.write(tmp_path / "i", HEADER, [table_of(["a.tar", "a.tar"], **columns)])
    with pytest.raises(ValueError, match=named):
        index.read_rows(tmp_path / "i", HEADER, "train")


def test_rows_at_the_edge(tmp_path: Path) -> None:
    index.write(tmp_path / "i", HEADER, [table_of(["a.tar", "a.tar"], offset=[900, 0], length=[100, 0], grade=[-1, 2], size=[-1, 1])])
    assert index.read_rows(tmp_path / "i", HEADER, "train").levels_NA.tolist() == [[-1, -1], [2, 1]]
    index.write(tmp_path / "i", HEADER, [])
    with pytest.raises(ValueError, match="has no rows"):
        index.read_rows(tmp_path / "i", HEADER, "train")


def test_files_that_are_not_an_index_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not found; .* is not a shard set"):
        index.read_header(tmp_path / "i")
    (tmp_path / "i").write_bytes(b"PAR1 no")
    for read in (
        index.read_header,
        index.read_table,
        lambda path: index.read_rows(path, HEADER, "train"),
        lambda path: index.read_shard(path, "a"),
    ):
        with pytest.raises(ValueError, match="not a readable index"):
            read(tmp_path / "i")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "i")
    with pytest.raises(ValueError, match="a Parquet file, but not the index"):
        index.read_header(tmp_path / "i")


def test_an_index_that_can_not_be_written_leaves_the_old_one(path: Path) -> None:
    def broken() -> Any:
        yield table_of(["a.tar"] * 2)
        raise RuntimeError("no more")

    before = path.read_bytes()
    with pytest.raises(RuntimeError):
        index.write(path, HEADER, broken())
    assert path.read_bytes() == before and sorted(path.parent.iterdir()) == [path]
