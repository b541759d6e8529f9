"""Packing in parts: the merged set has the bytes of an undivided pack, and no incomplete or foreign part is merged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lock_holder import lock_holder
from shards import TWO_YAML, number_of, rows_of, write_tiles

from data_shards.format import checksums, index
from data_shards.packing import parts
from data_shards.packing.parts import Part
from tools.shard import main

ROOT = Path(__file__).parents[4]


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    write_tiles(tmp_path, range(40))
    (tmp_path / "two.yaml").write_text(TWO_YAML)
    return tmp_path


def pack(folder: Path, out: str, *more: str) -> int:
    paths = ["--images", str(folder / "images"), "--labels", str(folder / "labels.csv"), "--out", str(folder / out)]
    fixed = ["--attributes", str(folder / "two.yaml"), "--workers", "1", "--group", "slide", "--shard-count", "7"]
    return main(["pack", *paths, *fixed, *more])


def merge(folder: Path, *more: str) -> int:
    return main(["merge", str(folder / "set"), *more])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def left_behind(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"images", "labels.csv", "two.yaml", "whole", "set"}


@pytest.mark.parametrize("count", [1, 2, 3, 11])
def test_merged_parts_have_the_bytes_of_an_undivided_pack(tiles: Path, capsys: pytest.CaptureFixture[str], count: int) -> None:
    assert pack(tiles, "whole") == 0
    capsys.readouterr()
    for number in reversed(range(1, count + 1)):
        assert pack(tiles, "set", "--part", f"{number}/{count}") == 0
        out = capsys.readouterr().out
        assert (f"part {number}/{count} is complete; when all parts are: attributegan-shard merge" in out) == (count > 1)
        assert (tiles / "set").exists() == (count == 1)
    assert merge(tiles) == 0
    assert "train: 30 tiles in 5 shards" in capsys.readouterr().out
    whole = contents(tiles / "whole")
    assert len(whole) == 7 + 2 and contents(tiles / "set") == whole
    assert main(["verify", str(tiles / "set")]) == 0
    assert merge(tiles) == 0 and pack(tiles, "set", "--part", f"1/{count}") == 0  # nothing left to do
    assert contents(tiles / "set") == whole and not left_behind(tiles)


def test_every_shard_is_in_one_part() -> None:
    for count in (1, 2, 3, 7, 20):
        taken = [shard for number in range(1, count + 1) for shard in Part(number, count).of(range(7))]
        assert sorted(taken) == list(range(7))
        sizes = [len(Part(number, count).of(range(7))) for number in range(1, count + 1)]
        assert max(sizes) - min(sizes) <= 1


def test_a_part_is_packed_once(tiles: Path) -> None:
    assert pack(tiles, "set", "--part", "1/2") == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tiles / "set.parts").iterdir()}
    assert pack(tiles, "set", "--part", "1/2") == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tiles / "set.parts").iterdir()} == before


def test_missing_and_incomplete_parts_are_named(tiles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert merge(tiles) == 2
    assert "set.parts: not found; pack all parts first" in capsys.readouterr().err
    assert pack(tiles, "set", "--part", "2/3") == 0
    assert merge(tiles) == 2
    report = capsys.readouterr().err
    assert "2 of 3 parts are not complete" in report and "part 1/3: 3 of 3 shards are missing, such as train-000000.tar" in report
    assert "part 2/3" not in report and "part 3/3: 2 of 2 shards are missing" in report
    assert pack(tiles, "set", "--part", "1/3") == 0 and pack(tiles, "set", "--part", "3/3") == 0
    parts.index_of(tiles / "set.parts", "train-000003.tar").unlink()
    assert merge(tiles) == 2
    assert "part 1/3: 1 of 3 shards are missing, such as train-000003.tar" in capsys.readouterr().err
    assert pack(tiles, "set", "--part", "1/3") == 0
    os.truncate(tiles / "set.parts" / "train-000001.tar", 512)  # an incomplete copy
    assert merge(tiles) == 2
    assert "train-000001.tar: missing or truncated" in capsys.readouterr().err
    assert not (tiles / "set").exists()
    parts.index_of(tiles / "set.parts", "train-000001.tar").unlink()
    assert pack(tiles, "set", "--part", "2/3") == 0 and merge(tiles) == 0
    assert pack(tiles, "whole") == 0 and contents(tiles / "set") == contents(tiles / "whole")


@pytest.mark.parametrize(
    "more", [["--seed", "1"], ["--val-fraction", "0.5"], ["--size", "8"], ["--labels", "more.csv"], ["--shard-size", "9"]]
)
def test_a_part_of_another_pack_is_refused(
    tiles: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    monkeypatch.chdir(tiles)
    (tiles / "images" / "extra.png").write_bytes((tiles / "images" / "t0001.png").read_bytes())
    (tiles / "more.csv").write_text("file,slide,grade,size\nextra.png,s1,1,1\n")
    assert pack(tiles, "set", "--part", "1/2") == 0
    before = contents(tiles / "set.parts")
    assert pack(tiles, "set", "--part", "2/2", *more) == 2
    assert "set.parts has parts of other tiles, labels or options" in capsys.readouterr().err
    assert pack(tiles, "set", "--part", "2/3") == 2
    assert "set.parts has parts of a pack in 2 parts; use the same number" in capsys.readouterr().err
    assert contents(tiles / "set.parts") == before
    # Nor is it merged if it was copied into the folder.
    assert pack(tiles, "other", "--part", "2/2", *more) == 0
    for name, data in contents(tiles / "other.parts").items():
        if name != parts.PLAN and name not in before:
            (tiles / "set.parts" / name).write_bytes(data)
    assert merge(tiles) == 2
    assert "is of other tiles, labels or options; delete it and run part 2/2 again" in capsys.readouterr().err
    assert not (tiles / "set").exists()


def test_parts_of_machines_without_a_common_disk_are_copied_together(tiles: Path) -> None:
    assert pack(tiles, "whole") == 0
    for number in (1, 2):
        assert pack(tiles, f"machine{number}", "--part", f"{number}/2") == 0
    (tiles / "set.parts").mkdir()
    for number in (1, 2):
        for name, data in contents(tiles / f"machine{number}.parts").items():
            (tiles / "set.parts" / name).write_bytes(data)
    assert merge(tiles) == 0
    assert contents(tiles / "set") == contents(tiles / "whole")


def test_invalid_tiles_are_reported_by_their_part_and_left_out_as_usual(tiles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = [tiles / "images" / f"t{number:04d}.png" for number in (2, 11, 30)]
    for path in bad[:2]:
        path.write_bytes(b"no image")
    bad[2].unlink()
    assert pack(tiles, "whole", "--skip-bad") == 0
    assert [pack(tiles, "set", "--part", f"{number}/3", "--skip-bad") for number in (1, 2, 3)] == [0, 0, 0]
    capsys.readouterr()
    assert merge(tiles) == 0
    assert capsys.readouterr().err.count("left out: ") == 3
    assert contents(tiles / "set") == contents(tiles / "whole")
    bad[2].write_bytes(bad[0].read_bytes())
    statuses = [pack(tiles, "strict", "--part", f"{number}/7") for number in range(1, 8)]
    assert set(statuses) == {0, 2} and statuses.count(2) <= 3
    named = capsys.readouterr().err
    assert all(f"{path.name}: not a readable image" in named for path in bad)
    assert main(["merge", str(tiles / "strict")]) == 2
    assert f"{statuses.count(2)} of 7 parts are not complete" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [("0/3", "no part 0/3"), ("4/3", "no part 4/3"), ("1/0", "no part 1/0"), ("2", "'2' is not a part"), ("-1/2", "'-1/2' is not a part")],
)
def test_invalid_parts_are_named(tiles: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    assert pack(tiles, "set", f"--part={text}") == 2
    assert f"--part: {'there is ' if 'no part' in message else ''}{message}" in capsys.readouterr().err
    assert not left_behind(tiles)


def test_parts_run_at_the_same_time_but_each_only_once(
    tiles: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_shards.packing.parts.LOCK_WAIT_S", 0.0)
    assert pack(tiles, "set", "--part", "1/2") == 0
    with lock_holder(tiles / ".set.parts-1-of-2.lock"):
        assert pack(tiles, "set", "--part", "1/2") == 2
        assert "set.parts: another process is packing part 1/2" in capsys.readouterr().err
        assert pack(tiles, "set", "--part", "2/2") == 0
        assert merge(tiles) == 2
        assert "another process is packing part 1/2" in capsys.readouterr().err
    with lock_holder(tiles / ".set.packing.lock"):
        assert pack(tiles, "set", "--part", "2/2") == 2 and merge(tiles) == 2
        assert capsys.readouterr().err.count("another process is packing this set") == 2
    assert merge(tiles) == 0 and not left_behind(tiles)


def test_another_set_is_replaced_only_with_overwrite(tiles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack(tiles, "set", "--seed", "1") == 0 and pack(tiles, "whole") == 0
    before = contents(tiles / "set")
    assert pack(tiles, "set", "--part", "1/2") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert [pack(tiles, "set", "--part", f"{number}/2", "--overwrite") for number in (1, 2)] == [0, 0]
    assert merge(tiles) == 2
    assert "--overwrite" in capsys.readouterr().err and contents(tiles / "set") == before
    assert merge(tiles, "--overwrite") == 0
    assert contents(tiles / "set") == contents(tiles / "whole") and not left_behind(tiles)


@pytest.mark.parametrize("step", ["finish", "remove_files", "replace_folder"])
def test_an_interrupted_merge_can_be_repeated(tiles: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    assert pack(tiles, "whole") == 0 and [pack(tiles, "set", "--part", f"{number}/2") for number in (1, 2)] == [0, 0]

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        if step == "replace_folder":
            patched.setattr("attributegan.utils.files.replace_folder", die)
        elif step == "finish":
            patched.setattr(checksums, "write", die)
        else:
            patched.setattr(parts, step, die)
        with pytest.raises(Killed):
            parts.merge(tiles / "set")
    assert not (tiles / "set").exists()
    assert pack(tiles, "set", "--part", "2/2") == 0  # a requeued part
    if step == "replace_folder":
        assert pack(tiles, "set", "--part", "2/2", "--seed", "1") == 2
    assert merge(tiles) == 0
    assert contents(tiles / "set") == contents(tiles / "whole") and not left_behind(tiles)


@pytest.mark.slow
def test_a_killed_part_resumes_while_another_runs(tmp_path: Path) -> None:
    """SIGKILL of one part while another part packs into the same folder; the restarted part keeps its complete shards."""
    arguments = ["phantom", "--count", "120", "--size", "64", "--shard-count", "10", "--workers", "1"]
    command = [sys.executable, "-m", "tools.shard", *arguments, "--out", str(tmp_path / "set"), "--part"]
    first, second = (subprocess.Popen([*command, part], cwd=ROOT) for part in ("1/2", "2/2"))
    folder, own = tmp_path / "set.parts", [f"train-{number:06d}.tar" for number in range(0, 11, 2)]

    def complete() -> list[str]:
        return [name for name in own if parts.index_of(folder, name).exists()]

    while len(complete()) < 2:
        assert first.poll() is None
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.wait()
    times = {name: os.stat(folder / name).st_mtime_ns for name in complete()}
    assert second.wait() == 0
    assert main(["merge", str(tmp_path / "set")]) == 2 or len(times) == len(own)
    assert main([*arguments, "--out", str(tmp_path / "set"), "--part", "1/2"]) == 0
    assert {name: os.stat(folder / name).st_mtime_ns for name in times} == times
    assert main(["merge", str(tmp_path / "set")]) == 0
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")
    assert sorted(number_of(row["key"]) for row in rows_of(tmp_path / "set")) == list(range(120))
    assert index.read_header(tmp_path / "set" / index.FILE).splits == ("train", "val")
