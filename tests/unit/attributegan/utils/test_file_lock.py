"""The lock between processes: one owner at a time, released when the owner is killed, inherited by its children."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from lock_holder import lock_holder

from attributegan.utils.file_lock import exclusive_lock


def test_only_one_process_holds_the_lock_and_a_killed_one_releases_it(tmp_path: Path) -> None:
    path = tmp_path / "folder.lock"
    with lock_holder(path) as other:
        with pytest.raises(ValueError, match="folder is in use"), exclusive_lock(path, "folder is in use"):
            raise AssertionError("two owners")
        other.kill()
        other.wait()
        with exclusive_lock(path, "folder is in use"):
            pass
    assert not path.exists()


def test_waits_for_the_owner(tmp_path: Path) -> None:
    path = tmp_path / "folder.lock"
    with lock_holder(path) as other:
        assert other.stdin is not None
        other.stdin.close()
        with exclusive_lock(path, "folder is in use", timeout_s=30):
            pass


def test_children_of_a_killed_owner_hold_the_lock_until_they_exit(tmp_path: Path) -> None:
    path = tmp_path / "folder.lock"
    with lock_holder(path, "fork") as other:
        other.kill()
        other.wait()
        with pytest.raises(ValueError, match="folder is in use"), exclusive_lock(path, "folder is in use"):
            raise AssertionError("a worker may still write")
        assert other.stdin is not None
        other.stdin.close()
        with exclusive_lock(path, "folder is in use", timeout_s=30):
            pass


def test_an_owner_that_fails_releases_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "folder.lock"
    with pytest.raises(subprocess.SubprocessError), exclusive_lock(path, "folder is in use"):
        raise subprocess.SubprocessError
    with exclusive_lock(path, "folder is in use"):
        assert path.exists()


def test_a_folder_that_can_not_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/folder.lock: can't be locked"), exclusive_lock(tmp_path / "file" / "folder.lock", ""):
        pass
