"""Checkpoints: complete or absent."""

import os
import threading
from pathlib import Path

import pytest
import torch
from time_limits import seconds

from attributegan.checkpoint import store
from attributegan.checkpoint import writer as writer_module
from attributegan.distributed.sharding import EvenShard, ShardedStateDict, TensorSlice

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3, dtype=torch.int64)}


def write(folder: Path, images: int, keep: int = 0) -> Path:
    return writer_module.save(folder, images, keep=keep, state={"note": "x"}, generator=TENSORS)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    path = write(tmp_path, 640)
    store.verify(path)
    state, tensors = store.load(path, "generator")
    assert state["images"] == 640 and state["note"] == "x"
    assert torch.equal(tensors["generator"]["a"], TENSORS["a"]) and tensors["generator"]["b"].item() == 3


def test_files_follow_the_umask(tmp_path: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in write(tmp_path, 1).iterdir()}
    assert set(modes.values()) == {(tmp_path / "images-000000000001").stat().st_mode & 0o666}


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    for images in (100, 200, 300):
        write(tmp_path, images, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["images-000000000200", "images-000000000300"]
    assert store.latest(tmp_path) == tmp_path / "images-000000000300"


def damage_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", ["generator.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", [damage_flip, damage_truncate, os.unlink])
def test_corrupted_checkpoint_is_skipped(tmp_path: Path, name: str, damage) -> None:
    older, newer = write(tmp_path, 100), write(tmp_path, 200)
    damage(newer / name)
    with pytest.raises(store.CheckpointCorrupted, match="images-000000000200"):
        store.verify(newer)
    assert store.latest(tmp_path) == older


@pytest.mark.parametrize("call", ["writer.os.pwrite", "writer.os.fsync", "store.fsync_path", "store.os.rename"])
def test_failed_write_leaves_earlier_checkpoints_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """The disk is full at each kind of operation."""
    older = write(tmp_path, 100)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"attributegan.checkpoint.{call}", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, 200)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == [older.name]
    store.verify(older)


def test_half_written_folder_of_a_killed_run_is_no_checkpoint(tmp_path: Path) -> None:
    older = write(tmp_path, 100)
    os.rename(write(tmp_path, 200), tmp_path / ".writing-images-000000000200")
    assert store.latest(tmp_path) == older


def test_find_takes_run_or_checkpoint_and_names_what_is_neither(tmp_path: Path) -> None:
    path = write(tmp_path / "checkpoints", 100)
    assert store.resolve(tmp_path) == path == store.resolve(path)
    with pytest.raises(ValueError, match="neither a checkpoint nor a run folder"):
        store.resolve(tmp_path / "checkpoints" / "nothing")


def test_manifest_with_a_path_outside_reads_nothing_there(tmp_path: Path) -> None:
    path = write(tmp_path, 100)
    (path / "manifest.json").write_text('{"../../etc/passwd": {"bytes": 1, "sha256": "0"}, "state.json": {"bytes": 1, "sha256": "0"}}')
    with pytest.raises(store.CheckpointCorrupted, match="images-000000000100/passwd: is missing"):
        store.verify(path)


@pytest.mark.parametrize("scratch", [False, True])
def test_processes_write_their_slices_into_one_file(tmp_path: Path, scratch: bool) -> None:
    """Three processes with even shards and arbitrary slices write one valid safetensors file."""
    folder = tmp_path / "checkpoints"
    writers = [
        writer_module.Writer(folder, rank=rank, world=3, launch_id="t", scratch=str(tmp_path / "local") if scratch else "")
        for rank in range(3)
    ]
    whole = {"a": torch.arange(35.0).reshape(5, 7), "b": torch.tensor(3), "c": torch.randn(2, 3).bfloat16()}
    for rank in (2, 1, 0):
        table = ShardedStateDict.replicated(whole, EvenShard(rank, 3))
        table.add("d", torch.float64, (4,), [TensorSlice("d", 1, torch.tensor([1.0, 2.0, 3.0]).double())] if rank == 1 else [])
        table.add("d", torch.float64, (4,), [TensorSlice("d", 0, torch.tensor([0.0]).double())] if rank == 2 else [])
        writers[rank].save(5, {"note": rank}, generator=table)
        whole["a"] += 0  # `save` has taken a copy
    for writer in writers:
        writer.wait()
    store.verify(folder / "images-000000000005")
    state, tensors = store.load(folder / "images-000000000005", "generator")
    assert state["note"] == 0
    assert all(torch.equal(tensors["generator"][name], tensor) for name, tensor in whole.items())
    assert tensors["generator"]["d"].tolist() == [0, 1, 2, 3]
    assert os.listdir(folder) == ["images-000000000005"]


def test_rank_that_can_not_write_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = write(tmp_path, 100)
    writers = [writer_module.Writer(tmp_path, rank=rank, world=2, launch_id="t") for rank in range(2)]
    monkeypatch.setattr(writers[1], "_write_slices", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    for writer in writers:
        writer.save(200, {}, generator=ShardedStateDict.replicated(TENSORS, EvenShard(writer.rank, 2)))
    with pytest.raises(OSError, match="rank 1 failed to write its slices: OSError.*No space"):
        writers[0].wait()
    with pytest.raises(OSError, match="No space"):
        writers[1].wait()
    assert store.latest(tmp_path) == older


def test_checkpoints_are_written_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`save` returns before the bytes are written, and saves the values at the time of the call."""
    go_on = threading.Event()
    slices = writer_module.Writer._write_slices
    monkeypatch.setattr(writer_module.Writer, "_write_slices", lambda *arguments: (go_on.wait(seconds(30)), slices(*arguments)))
    writer = writer_module.Writer(tmp_path, rank=0, world=1, launch_id="t")
    weights = torch.zeros(4)
    writer.save(1, {}, generator=ShardedStateDict.replicated({"w": weights}, EvenShard(0, 1)))
    weights += 1
    assert store.latest(tmp_path) is None
    go_on.set()
    writer.wait()
    assert store.load(tmp_path / store.name_of(1), "generator")[1]["generator"]["w"].tolist() == [0, 0, 0, 0]


def test_missing_run_folder_is_not_recreated(tmp_path: Path) -> None:
    """If a disk was unmounted, a checkpoint written below its mount point would be hidden after remounting."""
    run = tmp_path / "run"
    writer = writer_module.Writer(run / "checkpoints", rank=0, world=1, launch_id="t")
    run.rename(tmp_path / "away")
    writer.save(8, {})
    with pytest.raises(FileNotFoundError):
        writer.wait()
    assert not run.exists() and not list((tmp_path / "away" / "checkpoints").iterdir())


def test_rotation_never_deletes_a_valid_checkpoint_for_a_later_corrupted_one(tmp_path: Path) -> None:
    """After resuming before a corrupted checkpoint, new ones have smaller numbers for a while."""
    write(tmp_path, 1000)
    damage_flip(write(tmp_path, 2000) / "generator.safetensors")
    write(tmp_path, 1500, keep=1)
    assert store.latest(tmp_path) == tmp_path / "images-000000001500"
    write(tmp_path, 2000, keep=1)
    assert os.listdir(tmp_path) == ["images-000000002000"] and store.latest(tmp_path) == tmp_path / "images-000000002000"
