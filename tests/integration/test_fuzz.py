"""Damaged and generated inputs: each reader returns a result or raises an error that names the file; no other exception, hang or crash.

``make fuzz`` tries some ten thousand inputs at random; here a few that are the same each time. What was found is kept as cases below.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from runs import TINY
from shards import TWO, make_set, write_csv
from time_limits import seconds

from attributegan import config
from attributegan.attributes import PUBLISHED, AttributeSchema
from attributegan.checkpoint import store, writer
from data_shards.format import checksums, index
from data_shards.ingest import importers
from data_shards.ingest.captions import read_tile
from data_shards.loader.shard_set import ShardSet
from data_shards.loader.tile_reader import TileCorrupted, TileReader, TileRequest
from data_shards.packing.index_tars import index_tars
from data_shards.packing.labels import read_labels
from data_shards.verify import verify
from slurm import cluster_config, sweep

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
fuzzed = settings(
    max_examples=EXAMPLES or 25,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
pytestmark = pytest.mark.timeout(seconds(1800 if EXAMPLES else 120))

# Damage: operations on the bytes, with positions as fractions of their length.
CUTS = st.tuples(st.just("cut"), st.floats(0, 1), st.just(b""))
FLIPS = st.tuples(st.just("flip"), st.floats(0, 1), st.binary(min_size=1, max_size=4))
BLOCKS = st.tuples(st.just("put"), st.floats(0, 1), st.binary(max_size=64))
COPIES = st.tuples(st.just("copy"), st.floats(0, 1), st.binary(min_size=1, max_size=1))
DAMAGE = st.lists(st.one_of(CUTS, FLIPS, BLOCKS, COPIES), min_size=1, max_size=4)


def damaged(data: bytes, damage: list[tuple[str, float, bytes]]) -> bytes:
    for how, share, content in damage:
        location = int(share * len(data))
        if how == "cut":
            data = data[:location]
        elif how == "flip":
            data = data[:location] + content + data[location + len(content) :]
        elif how == "put":
            data = data[:location] + content + data[location:]
        else:  # duplicate a block of the tar elsewhere
            first = 512 * (location // 512)
            data = data[:first] + data[512 * (content[0] % (1 + len(data) // 512)) :][:512] + data[first:]
    return data


def result_or_named_error(read: Callable[[], Any], *names: object) -> Any:
    """Returns the result of ``read``, or None after a ValueError that contains one of ``names``."""
    try:
        return read()
    except ValueError as error:
        assert any(str(name) in str(error) for name in names), f"names none of {names}: {type(error).__name__}: {error}"
        return None


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("fuzz"), 4, val_fraction=0.0, size=8)


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Iterator[Path]:
    yield Path(shutil.copytree(original, tmp_path / "set"))


# Tars


@fuzzed
@given(damage=DAMAGE)
@example(damage=[("copy", 0.0, b"\x10")])  # an empty block first: no tile
def test_tars_by_index(copy: Path, original: Path, damage: list) -> None:
    (copy / index.FILE).unlink(missing_ok=True)
    tar = copy / "train-000000.tar"
    tar.write_bytes(damaged((original / tar.name).read_bytes(), damage))
    header = result_or_named_error(lambda: index_tars(copy, TWO, val="", overwrite=True), tar.name, copy)
    if header is not None:
        rows = ShardSet.open(copy).rows
        assert 0 < len(rows.levels_NA) == header.shards[0].tiles
    assert {path.name for path in copy.iterdir()} <= {tar.name, index.FILE, checksums.FILE}


@fuzzed
@given(damage=DAMAGE)
def test_tars_by_verify(copy: Path, original: Path, damage: list) -> None:
    tar = copy / "train-000000.tar"
    before = (original / tar.name).read_bytes()
    after = damaged(before, damage)
    tar.write_bytes(after)
    problems = list(verify(copy))
    assert bool(problems) == (after != before)
    assert all(str(copy) in problem for problem in problems)


@fuzzed
@given(damage=DAMAGE, shift=st.integers(-3, 3), size=st.sampled_from([4, 8, 11]))
def test_tiles_by_the_reader(copy: Path, original: Path, damage: list, shift: int, size: int) -> None:
    """A tile is read unchanged or reported as damaged; with a forged checksum the decoder must report it."""
    from data_shards.format import tile

    tar = copy / "train-000000.tar"
    before, after = (original / tar.name).read_bytes(), damaged((original / tar.name).read_bytes(), damage)
    tar.write_bytes(after)
    header, rows = index.read_header(original / index.FILE), index.read_table(original / index.FILE).to_pylist()
    from data_shards.storage.shard_files import LocalShardFiles

    files = TileReader(LocalShardFiles(copy, header.shards), size)
    for row in rows:
        location = max(0, row["offset"] + shift)
        for checksum in (row["checksum"], tile.checksum(after[location : location + row["length"]])):
            try:
                pixels_HWC = files.read(TileRequest(0, location, row["length"], checksum, 0))
            except TileCorrupted:
                continue
            assert pixels_HWC.shape == (size, size, 3)
            if checksum == row["checksum"]:
                assert after[location : location + row["length"]] == before[row["offset"] : row["offset"] + row["length"]]


# Indexes

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def read_index(path: Path) -> None:
    header = index.read_header(path)
    for split in header.splits:
        index.read_rows(path, header, split)
    for shard in header.shards:
        index.read_shard(path, shard.name)


@fuzzed
@given(damage=DAMAGE)
@example(damage=[("flip", 0.271484375, b"\x80")])  # a column name that is not UTF-8
@example(damage=[("flip", 0.271484375, b"\x00")])  # a different name
def test_index_whose_bytes_are_damaged(copy: Path, original: Path, damage: list) -> None:
    path = copy / index.FILE
    path.write_bytes(damaged((original / index.FILE).read_bytes(), damage))
    result_or_named_error(lambda: read_index(path), path)
    same = path.read_bytes() == (original / index.FILE).read_bytes()
    assert (result_or_named_error(lambda: ShardSet.open(copy), path, copy) is not None) == same, "nothing of it is believed"


@fuzzed
@given(where=st.lists(st.integers(0, 6), min_size=1, max_size=4), value=JSON)
def test_index_whose_metadata_are_made_up(copy: Path, original: Path, where: list[int], value: Any) -> None:
    import pyarrow.parquet as pq

    table = index.read_table(original / index.FILE)
    tree = json.loads(table.schema.metadata[index.METADATA])
    _replace(tree, where, value)
    path = copy / index.FILE
    pq.write_table(table.replace_schema_metadata({index.METADATA: json.dumps(tree).encode()}), path)
    result_or_named_error(lambda: read_index(path), path)


def _replace(tree: Any, where: list[int], value: Any) -> None:
    """Replace a branch of ``tree`` by ``value``."""
    branch = tree
    for depth, number in enumerate(where):
        keys = list(branch) if isinstance(branch, dict) else list(range(len(branch)))
        if not keys:
            return
        key = keys[number % len(keys)]
        if depth == len(where) - 1 or not isinstance(branch[key], dict | list):
            branch[key] = value
            return
        branch = branch[key]


# Configurations

KEYS = ("train.images", "run.dir", "model.attributes", "data.attributes", "optim.generator_lr", "")
YAML_TEXT = yaml.safe_dump(TINY)


@fuzzed
@given(damage=DAMAGE)
def test_configuration_whose_text_is_damaged(tmp_path: Path, damage: list) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(damaged(YAML_TEXT.encode(), damage))
    for read in (config.load, cluster_config.load, sweep.read, AttributeSchema.from_yaml):
        result_or_named_error(lambda read=read: read(path), path, "attribute")


@fuzzed
@given(where=st.lists(st.integers(0, 12), min_size=1, max_size=3), value=JSON)
def test_configuration_with_made_up_values(tmp_path: Path, where: list[int], value: Any) -> None:
    tree = config.Config().to_dict()
    _replace(tree, where, value)
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(tree))  # JSON is YAML
    found = result_or_named_error(lambda: config.load(path), path)
    if found is not None:
        assert config.from_dict(yaml.safe_load(config.dump(found))) == found


@fuzzed
@given(text=st.text(max_size=30), key=st.sampled_from(KEYS))
def test_overrides(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(YAML_TEXT)
    result_or_named_error(lambda: config.load(path, [f"{key}={text}" if key else text]), path, repr(f"{key}={text}" if key else text))


@pytest.mark.parametrize(
    "value", ["!!bool maybe", "!!timestamp soon", "!!int ''", "2020-13-45", "1" + 400 * "0", 3000 * "[", "!!float x", "{[]: 1}"]
)
def test_values_that_yaml_itself_can_not_read(tmp_path: Path, value: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"optim: {{generator_lr: {value}}}")
    with pytest.raises(ValueError, match=str(path)):
        config.load(path)
    path.write_text("")
    with pytest.raises(ValueError, match="optim.generator_lr"):
        config.load(path, [f"optim.generator_lr={value}"])


@pytest.mark.parametrize(("column", "value"), [("offset", 2**63 - 1), ("offset", None), ("length", None), ("grade", None), ("shard", None)])
def test_index_whose_rows_lack_something_or_lead_past_all_numbers(copy: Path, column: str, value: int | None) -> None:
    header, table = index.read_header(copy / index.FILE), index.read_table(copy / index.FILE)
    location, field = table.column_names.index(column), table.schema.field(column)
    values = pa.array([value, *table[column].to_pylist()[1:]], field.type)
    index.write(copy / index.FILE, header, [table.set_column(location, field, values)])
    with pytest.raises(ValueError, match=str(copy / index.FILE)):
        index.read_rows(copy / index.FILE, header, "train")


# Captions and tables

WORDS = st.sampled_from(
    """no not mild moderate severe nuclear pleomorphism is present crowding polarity lost completely partially mitosis rare frequent
    nucleoli prominent insufficient information high grade low normal nuclei . , ; the and of almost diagnosis""".split()  # noqa: SIM905
)


@fuzzed
@given(captions=st.lists(st.lists(WORDS, max_size=25).map(" ".join) | st.text(max_size=60), max_size=3))
def test_captions(captions: list[str]) -> None:
    levels, problems = read_tile("tile", captions)
    assert problems or levels
    for name, level in levels.items():
        if name in PUBLISHED.names:
            assert 0 <= level < len(PUBLISHED.attributes[PUBLISHED.names.index(name)].levels)
    assert all("tile" in str(problem) for problem in problems)


@fuzzed
@given(tree=JSON, damage=DAMAGE)
def test_file_of_captions(tmp_path: Path, tree: Any, damage: list) -> None:
    path = tmp_path / "captions.json"
    whole = {"a_1": {"caption": ["Mild pleomorphism is present."]}, "b": tree}
    for data in (json.dumps(whole).encode(), damaged(json.dumps(whole).encode(), damage)):
        path.write_bytes(data)
        read = result_or_named_error(lambda: importers.read_captions(path), path)
        assert read is None or all(path.name in line for line in read.bad)


@fuzzed
@given(damage=DAMAGE, level=st.text(max_size=6), name=st.text(max_size=12))
def test_tables(tmp_path: Path, damage: list, level: str, name: str) -> None:
    path = tmp_path / "labels.csv"
    write_csv(path, ["file", "slide", "grade", "size"], [["a.png", "s", level, 1], [name, "s", 1, 0], ["b.png", "", "low", "large"]])
    for data in (path.read_bytes(), damaged(path.read_bytes(), damage)):
        path.write_bytes(data)
        labels = result_or_named_error(lambda: read_labels([path], TWO, group="slide"), path)
        if labels is not None:
            assert all(path.name in line for line in labels.bad)
            assert all(
                TWO.check([row["grade"], row["size"]]) is None and ".." not in row["file"].split("/") for row in labels.table.to_pylist()
            )
        result_or_named_error(lambda: importers.read_published(path), path)


# Checkpoints


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1)}
    return writer.save(tmp_path_factory.mktemp("checkpoint"), 8, state={"skipped": {}}, generator=weights)


@fuzzed
@given(file=st.sampled_from(["generator.safetensors", "state.json", "manifest.json"]), damage=DAMAGE, fits=st.booleans())
def test_checkpoints(written: Path, tmp_path: Path, file: str, damage: list, fits: bool) -> None:
    """Damages a checkpoint; with ``fits``, the checksums in the manifest are updated to match."""
    folder = tmp_path / written.name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(written, folder)
    before, after = (folder / file).read_bytes(), damaged((folder / file).read_bytes(), damage)
    (folder / file).write_bytes(after)
    if fits and file != store.MANIFEST:
        manifest = json.loads((folder / store.MANIFEST).read_text())
        manifest[file] = {"bytes": len(after), "sha256": store._sha256(folder / file)}
        (folder / store.MANIFEST).write_text(json.dumps(manifest))

    def read() -> Any:
        store.verify(folder)
        return store.load(folder, "generator")

    found = result_or_named_error(read, folder)
    if found is not None and not fits and file != store.MANIFEST:
        assert after == before and found[1]["generator"]["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
