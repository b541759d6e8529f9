"""Checkpoints: whole or not there."""

import os
from pathlib import Path

import pytest
import torch

from attributegan import checkpoint

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3, dtype=torch.int64)}


def write(folder: Path, images: int, keep: int = 0) -> Path:
    return checkpoint.save(folder, images, keep=keep, state={"note": "x"}, generator=TENSORS)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    path = write(tmp_path, 640)
    checkpoint.verify(path)
    state, tensors = checkpoint.load(path, "generator")
    assert state["images"] == 640 and state["note"] == "x"
    assert torch.equal(tensors["generator"]["a"], TENSORS["a"]) and tensors["generator"]["b"].item() == 3


def test_files_are_for_whom_the_umask_says(tmp_path: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in write(tmp_path, 1).iterdir()}
    assert set(modes.values()) == {(tmp_path / "images-000000000001").stat().st_mode & 0o666}


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    for images in (100, 200, 300):
        write(tmp_path, images, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["images-000000000200", "images-000000000300"]
    assert checkpoint.newest(tmp_path) == tmp_path / "images-000000000300"


def damage_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", ["generator.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", [damage_flip, damage_truncate, os.unlink])
def test_damaged_checkpoint_is_passed_over(tmp_path: Path, name: str, damage) -> None:
    older, newer = write(tmp_path, 100), write(tmp_path, 200)
    damage(newer / name)
    with pytest.raises(checkpoint.Damaged, match="images-000000000200"):
        checkpoint.verify(newer)
    assert checkpoint.newest(tmp_path) == older


@pytest.mark.parametrize("call", ["save_file", "_fsync", "os.rename"])
def test_write_that_fails_leaves_what_stood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Disk full in the middle of each kind of operation."""
    older = write(tmp_path, 100)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"attributegan.checkpoint.{call}", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, 200)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == [older.name]
    checkpoint.verify(older)


def test_half_written_folder_of_a_killed_run_is_no_checkpoint(tmp_path: Path) -> None:
    older = write(tmp_path, 100)
    os.rename(write(tmp_path, 200), tmp_path / ".writing-images-000000000200")
    assert checkpoint.newest(tmp_path) == older


def test_find_takes_run_or_checkpoint_and_names_what_is_neither(tmp_path: Path) -> None:
    path = write(tmp_path / "checkpoints", 100)
    assert checkpoint.find(tmp_path) == path == checkpoint.find(path)
    with pytest.raises(ValueError, match="neither a checkpoint nor a run folder"):
        checkpoint.find(tmp_path / "checkpoints" / "nothing")


def test_manifest_with_a_path_outside_reads_nothing_there(tmp_path: Path) -> None:
    path = write(tmp_path, 100)
    (path / "manifest.json").write_text('{"../../etc/passwd": {"bytes": 1, "sha256": "0"}, "state.json": {"bytes": 1, "sha256": "0"}}')
    with pytest.raises(checkpoint.Damaged, match="images-000000000100/passwd: is missing"):
        checkpoint.verify(path)
