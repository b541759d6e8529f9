"""Parts of checkpoints: order of fsyncs, messages for each kind of corruption, short writes, waiting for other processes."""

from __future__ import annotations

import json
import os
import struct
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from time_limits import seconds
from untrained_run import untrained_run

from attributegan.attributes import PUBLISHED
from attributegan.checkpoint import loading, store
from attributegan.checkpoint import writer as writer_module
from attributegan.checkpoint.store import CheckpointCorrupted
from attributegan.checkpoint.writer import Layout, Writer
from attributegan.distributed.sharding import EvenShard, ShardedStateDict

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3, dtype=torch.int64), "c": torch.tensor([True, False])}


def write(folder: Path, images: int, keep: int = 0) -> Path:
    return writer_module.save(folder, images, keep=keep, state={"note": "x"}, generator=TENSORS)


def test_everything_is_on_the_disk_before_the_name_and_the_name_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writing = tmp_path / ".writing"
    writing.mkdir()
    (writing / "x.safetensors").write_text("x")
    events: list[str] = []
    fsync, rename = store.fsync_path, os.rename
    monkeypatch.setattr(store, "fsync_path", lambda path: (events.append(path.name), fsync(path)))
    monkeypatch.setattr(store.os, "rename", lambda a, b: (events.append("rename"), rename(a, b)))
    target = store.commit(writing, tmp_path, 8, {"k": 1}, keep=0)
    assert set(events[:3]) == {"x.safetensors", "state.json", "manifest.json"}
    assert events[3:] == [".writing", "rename", tmp_path.name]
    assert target == tmp_path / "images-000000000008" and store.load_state(target) == {"format": 1, "images": 8, "k": 1}
    assert set(json.loads((target / "manifest.json").read_text())) == {"x.safetensors", "state.json"}
    forced: list[int] = []
    monkeypatch.setattr(store.os, "fsync", forced.append)
    fsync(target)
    assert len(forced) == 1 and not os.path.exists(f"/proc/self/fd/{forced[0]}"), "the folder is closed"


def test_checkpoint_of_the_same_images_is_replaced(tmp_path: Path) -> None:
    old = write(tmp_path, 8)
    (old / "old").write_text("")
    (tmp_path / ".deleting-images-000000000008" / "part").mkdir(parents=True)  # left by a start that was killed here
    assert write(tmp_path, 8) == old and not (old / "old").exists() and os.listdir(tmp_path) == [old.name]


@pytest.mark.parametrize(("keep", "left"), [(0, [1, 2, 3]), (1, [3]), (2, [2, 3]), (5, [1, 2, 3])])
def test_newest_stay(tmp_path: Path, keep: int, left: list[int]) -> None:
    for images in (1, 2, 3):
        path = write(tmp_path, images, keep)
    assert sorted(os.listdir(tmp_path)) == [store.name_of(images) for images in left] and store.latest(tmp_path) == path


def test_saved_checkpoints_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        path = write(tmp_path, 7)
    assert f"saved {path}" in caplog.text


def test_invalid_names_are_ignored(tmp_path: Path) -> None:
    path = write(tmp_path, 7)
    for name in ("images-8", "images-0000000000009", "images-00000000000x", "images-000000000009.bak"):
        (tmp_path / name).mkdir()
    assert store.latest(tmp_path) == path and store.latest(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("generator.safetensors", None, "generator.safetensors: is missing"),
        ("generator.safetensors", b"short", "generator.safetensors: has 5 bytes, expected"),
        ("manifest.json", b"{", "incomplete checkpoint: manifest.json can't be read"),
        ("manifest.json", b"[]", "incomplete checkpoint"),
        ("manifest.json", b'{"state.json": {"bytes": "x", "sha256": ""}}', "incomplete checkpoint"),
        ("manifest.json", b"{}", "does not list state.json"),
    ],
)
def test_messages_for_corruption(tmp_path: Path, file: str, content: bytes | None, named: str) -> None:
    path = write(tmp_path, 7)
    (path / file).unlink() if content is None else (path / file).write_bytes(content)
    with pytest.raises(CheckpointCorrupted, match=named):
        store.verify(path)


def test_other_bytes_of_the_same_length_and_files_that_can_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, 7)
    data = (path / "state.json").read_bytes()
    (path / "state.json").write_bytes(data[:-1] + b" ")
    with pytest.raises(CheckpointCorrupted, match=r"state.json: checksum mismatch"):
        store.verify(path)

    def broken(_: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(store, "_sha256", broken)
    with pytest.raises(CheckpointCorrupted, match=r"can't be read: .*Input/output error"):
        store.verify(path)


@pytest.mark.parametrize(
    ("state", "named"),
    [
        (b"{", "can't be read"),
        (b"[1]", "is not a JSON object"),
        (b'{"format": 2}', "format 2 is not supported; this version reads format 1"),
    ],
)
def test_states_that_can_not_be_used(tmp_path: Path, state: bytes, named: str) -> None:
    path = write(tmp_path, 7)
    (path / "state.json").write_bytes(state)
    with pytest.raises(CheckpointCorrupted, match=named):
        store.load_state(path)


def test_tensors_are_read_one_by_one(tmp_path: Path) -> None:
    path = write(tmp_path, 7)
    with store.open_tensors(path, "generator") as (names, read):
        assert names == frozenset("abc") and torch.equal(read("a"), TENSORS["a"]) and read("b").dtype == torch.int64
    state, tables = store.load(path)
    assert tables == {} and state["images"] == 7
    (path / "generator.safetensors").write_bytes(b"no")
    for name in ("generator", "absent"):
        with pytest.raises(CheckpointCorrupted, match=f"{name}.safetensors: can't be read"), store.open_tensors(path, name):
            pass


def test_generators_to_sample_from(tmp_path: Path) -> None:
    path = untrained_run(tmp_path, 64)
    average, plain = loading.load_for_sampling(tmp_path), loading.load_for_sampling(path, ema=False)
    assert average.images == plain.images == 64 and average.schema == PUBLISHED and average.config.model.image_size == 32
    for loaded, name in ((average, "generator_ema"), (plain, "generator")):
        assert not loaded.generator.training
        expected = load_file(path / f"{name}.safetensors")
        assert all(torch.equal(tensor, expected[key]) for key, tensor in loaded.generator.state_dict().items())
    assert any(not torch.equal(a, b) for a, b in zip(average.generator.parameters(), plain.generator.parameters(), strict=True))
    other = untrained_run(tmp_path / "other", 64, change=lambda weights: {name: tensor[..., None] for name, tensor in weights.items()})
    with pytest.raises(CheckpointCorrupted, match=r"generator_ema.safetensors: does not match the configuration"):
        loading.load_for_sampling(other)


def test_layout_is_that_of_safetensors() -> None:
    table = ShardedStateDict.replicated(
        {"bb": torch.zeros(3, 2), "a": torch.zeros(5, dtype=torch.uint8), "e": torch.zeros(0)}, EvenShard(0, 1)
    )
    layout = Layout(table)
    (length,) = struct.unpack("<Q", layout.head[:8])
    assert length == len(layout.head) - 8 and length % 8 == 0 and layout.size == len(layout.head) + 5 + 24
    header: dict[str, Any] = json.loads(layout.head[8:])
    assert list(header) == ["a", "bb", "e"] and header["bb"] == {"dtype": "F32", "shape": [3, 2], "data_offsets": [5, 29]}
    assert header["e"]["data_offsets"] == [29, 29]
    (part,) = (part for part in ShardedStateDict.replicated({"bb": torch.zeros(3, 2)}, EvenShard(1, 2)).slices)
    assert layout.offset(part) == len(layout.head) + 5 + 3 * 4


def test_disks_that_take_a_few_bytes_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(writer_module.os, "pwrite", lambda descriptor, data, offset: pwrite(descriptor, bytes(data[:3]), offset))
    path = write(tmp_path, 7)
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in load_file(path / "generator.safetensors").items())


def test_large_slices_through_a_local_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))  # the default folder of temporary files is not used
    tensors = {"last": torch.ones(5), "large": torch.arange((1 << 24) + 11).to(torch.uint8), "small": torch.ones(3)}
    writer = Writer(tmp_path / "run", rank=0, world=1, launch_id="t", scratch=str(tmp_path / "a" / "b"))
    writer.save(7, {}, generator=ShardedStateDict.replicated(tensors, EvenShard(0, 1)))
    writer.wait()
    found = load_file(tmp_path / "run" / store.name_of(7) / "generator.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items()) and os.listdir(tmp_path / "a" / "b") == []


def test_missing_rank_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert writer_module.WAIT_S == 1800
    monkeypatch.setattr(writer_module, "WAIT_S", 0.05)
    writer = Writer(tmp_path, rank=0, world=3, launch_id="t")
    (tmp_path / ".writing-images-000000000007-t").mkdir()
    (tmp_path / ".writing-images-000000000007-t" / ".done-1").touch()
    writer.save(7, {})
    with pytest.raises(OSError, match="timed out after 0 s waiting for rank 2"):
        writer.wait()
    assert os.listdir(tmp_path) == []
    writer.wait()  # an error is raised once


def test_main_process_waits_for_the_others(tmp_path: Path) -> None:
    writers = [Writer(tmp_path, rank=rank, world=2, launch_id="t") for rank in range(2)]
    tables = [ShardedStateDict.replicated(TENSORS, EvenShard(rank, 2)) for rank in range(2)]
    writers[0].save(7, {}, generator=tables[0])
    writers[0].finish(0.2)
    assert writers[0].busy and store.latest(tmp_path) is None
    writers[1].save(7, {}, generator=tables[1])
    writers[1].finish(30)
    writers[0].finish(30)
    assert not writers[0].busy and not writers[1].busy and store.latest(tmp_path) is not None
    assert all(not name.startswith(".") for name in os.listdir(tmp_path / store.name_of(7)))


def test_next_checkpoint_waits_for_the_one_before_and_raises_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer(tmp_path, rank=0, world=1, launch_id="t")
    assert not writer.busy
    writer.finish(1)
    go_on, complete = threading.Event(), store.commit

    def slow(*arguments: Any) -> Path:
        assert go_on.wait(seconds(30))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer_module.store, "commit", slow)
    writer.save(7, {})
    assert writer.busy
    go_on.set()
    with pytest.raises(OSError, match="No space"):
        writer.save(8, {})
    monkeypatch.setattr(writer_module.store, "commit", complete)
    writer.save(8, {})
    writer.wait()
    assert os.listdir(tmp_path) == ["images-000000000008"]


def test_leftovers_of_earlier_starts_are_removed(tmp_path: Path) -> None:
    path = write(tmp_path, 7)
    for name in (".writing-images-000000000008-t", ".deleting-images-000000000006"):
        (tmp_path / name / "deep").mkdir(parents=True)
    writer_module.remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == [path.name]


def test_files_are_on_the_disk_before_they_count_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync
    monkeypatch.setattr(writer_module.os, "fsync", lambda file: (synced.append(Path(f"/proc/self/fd/{file}").readlink().name), fsync(file)))
    write(tmp_path, 8)
    assert synced[:2] == ["generator.safetensors", ".done-0"]


def test_replaced_and_old_checkpoints_leave_nothing_behind(tmp_path: Path) -> None:
    for images in (8, 8, 16, 24):
        write(tmp_path, images, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images-000000000016", "images-000000000024"]


def test_corrupted_checkpoints_are_skipped_with_a_warning_and_refused_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = write(tmp_path / "checkpoints", 8), write(tmp_path / "checkpoints", 16)
    (bad / "generator.safetensors").write_bytes(b"")
    assert store.latest(tmp_path / "checkpoints") == good == store.resolve(tmp_path)
    assert "skipping corrupted checkpoint" in caplog.text and f"{bad / 'generator.safetensors'}" in caplog.text
    assert store.resolve(good) == good
    with pytest.raises(CheckpointCorrupted, match="has 0 bytes"):
        store.resolve(bad)
