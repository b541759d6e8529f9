"""Tars of other tools: each kind is read correctly, or rejected with the fix; index rejects whatever verify would report."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shards import pixels_of, rows_of

from data_shards.format import index
from data_shards.loader.shard_set import ShardSet
from tools.shard import main

ROOT = Path(__file__).parents[4]
GRADE = "grade: [low, mid, high]\n"


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_of(number, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def sample(number: int, level: object = 1, key: str | None = None, **more: object) -> list[tuple[str, bytes]]:
    name = key or f"s{number}"
    return [(f"{name}.png", png(number)), (f"{name}.json", json.dumps({"grade": level, **more}).encode())]


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def index_of(folder: Path, *more: str, schema: str = GRADE) -> int:
    (folder.parent / "grade.yaml").write_text(schema)
    return main(["index", str(folder), "--attributes", str(folder.parent / "grade.yaml"), "--workers", "1", *more])


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert index_of(folder, *more) == 2
    assert not (folder / index.FILE).exists()
    return capsys.readouterr().err


def clean(folder: Path) -> dict[str, int]:
    """Verify the set and return its levels."""
    assert main(["verify", str(folder), "--workers", "1"]) == 0
    return {row["key"]: row["grade"] for row in rows_of(folder)}


@pytest.mark.parametrize(
    ("level", "wanted"), [(1, 1), (2.0, 2), ("2", 2), ("2.0", 2), ("mid", 1), (None, -1), (-1, -1), ("-1", -1), (" high ", 2)]
)
def test_json_and_cls_are_parsed_like_tables(tmp_path: Path, level: object, wanted: int) -> None:
    folder = tmp_path / "tars"
    members = sample(0, level) + sample(1, 0)
    if level is not None:
        members += [("s2.png", png(2)), ("s2.cls", str(level).encode())]
    write_tar(folder / "a.tar", members)
    assert index_of(folder) == 0
    found = clean(folder)
    assert found["s0"] == wanted and found.get("s2", wanted) == wanted


@pytest.mark.parametrize("level", [3, "3", 1.5, True, "", "much", [1], {"a": 1}, 1e300, "nan"])
def test_invalid_levels(tmp_path: Path, capsys: pytest.CaptureFixture[str], level: object) -> None:
    write_tar(tmp_path / "tars" / "a.tar", sample(0, level))
    assert "a.tar: s0: grade is " in refused(tmp_path / "tars", capsys)


def test_numeric_level_names(tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    write_tar(folder / "a.tar", sample(0, 1) + sample(1, "2.0") + sample(2, 3.0) + [("s3.png", png(3)), ("s3.cls", b"3\n")])
    assert index_of(folder, schema="grade: [1, 2, 3]\n") == 0
    assert clean(folder) == {"s0": 0, "s1": 1, "s2": 2, "s3": 2}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("s0.png", png(0)), ("s0.json", b'{"grade": 0, "grade": 2}')], "'grade' is given more than once"),
        ([("s0.png", png(0)), ("s0.json", b'{"grade": 0, "Grade": 2}')], "has 'grade' and 'Grade'"),
        ([("s0.png", png(0)), ("s0.json", b'{"levels": {"grade": 0}, "grade": 2}')], "grade is 0 under levels but 2 at the top level"),
        ([("s0.png", png(0)), ("s0.json", b'{"grade": 0}'), ("s0.cls", b"1")], "grade is 0 in .json but 1 in .cls"),
        ([("s0.png", png(0)), ("s0.jpg", png(1)), ("s0.json", b'{"grade": 0}')], "has 2 images (jpg, png)"),
        ([("s0.png", png(0)), ("s0.png", png(1)), ("s0.json", b'{"grade": 0}')], "has png more than once"),
        ([("s0.png", png(0)[:-30]), ("s0.json", b'{"grade": 0}')], "the PNG is truncated or damaged"),
        ([("s0.png", png(0)), ("s0.json", b'{"grade": 0, "group": true}')], "group: 'True' is not a group name"),
        ([("s0.png", png(0)), ("s0.json", b'{"Grade": 0}')], "no level of grade; found Grade"),
        ([("s0.tif", png(0)), ("s0.json", b'{"grade": 0}')], "no image (jpg, jpeg, png, webp); found tif, json"),
        ([("a.b.png", png(0)), ("a.b.json", b'{"grade": 0}')], "use names with a single dot"),
    ],
)
def test_contradictory_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str], members: list, message: str) -> None:
    write_tar(tmp_path / "tars" / "a.tar", [*members, *sample(9)])
    assert message in refused(tmp_path / "tars", capsys)


def test_members_that_are_not_consecutive_or_in_two_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_kind = sorted(sample(0) + sample(1), key=lambda member: member[0].rpartition(".")[2])
    write_tar(tmp_path / "apart" / "a.tar", by_kind)
    for more in ((), ("--skip-bad",)):
        assert "tar --sort=name" in refused(tmp_path / "apart", capsys, *more)
    two = [(f"{'images' if name.endswith('png') else 'labels'}/{name}", data) for name, data in by_kind[::-1]]
    write_tar(tmp_path / "two" / "a.tar", two)
    assert "put images and levels in the same folder" in refused(tmp_path / "two", capsys, "--skip-bad")
    write_tar(tmp_path / "twice" / "a.tar", sample(0) + sample(1) + sample(0))
    assert "is in the tar twice" in refused(tmp_path / "twice", capsys)


def test_system_files_are_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    litter = [
        ("._s0.png", b"Mac OS X"),
        (".DS_Store", b"\0\0"),
        ("__MACOSX/._s0.json", b"Mac"),
        ("Thumbs.db", b""),
        ("README.md", b"# tiles"),
    ]
    members = [(f"./{name}", data) for name, data in [*litter[:1], *sample(0), *litter[1:], *sample(1)]]
    folder = tmp_path / "tars"
    write_tar(folder / "a.tar", members)
    write_tar(folder / "._a.tar", [])
    for name in (".DS_Store", "README", "LICENSE.txt", "Thumbs.db"):
        (folder / name).write_text("")
    assert index_of(folder) == 0
    assert "skipped 10 files that are not data" in caplog.text
    assert set(clean(folder)) == {"./s0", "./s1"}


@pytest.mark.parametrize("name", ["b.tar.gz", "b.tgz", "b.tar.zst", "b.TAR", "b.tar.part", "b.zip", "more/b.tar", "more/deep/b.tar.bz2"])
def test_no_tar_is_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    folder = tmp_path / "tars"
    write_tar(folder / "a.tar", sample(0))
    write_tar(folder / "b", sample(1))
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(gzip.compress((folder / "b").read_bytes()) if "z" in name else (folder / "b").read_bytes())
    (folder / "b").unlink()
    for more in ((), ("--skip-bad",)):
        assert f"1 tars would be ignored; put all tars of the set into one folder, uncompressed and named *.tar:\n  {name}: " in refused(
            folder, capsys, *more
        )


def test_other_files_are_listed_and_the_set_is_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tars"
    write_tar(folder / "a.tar", sample(0))
    (folder / "a_stats.json").write_text("{}")
    (folder / "empty").mkdir()
    assert index_of(folder) == 0
    printed = capsys.readouterr()
    assert "a_stats.json: skipped: not a tar" in printed.err and "empty/: skipped" in printed.err and "2 files skipped" in printed.out
    clean(folder)
    (folder / "new.txt").write_text("")
    assert main(["verify", str(folder), "--workers", "1"]) == 1


def test_truncated_concatenated_and_empty_tars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = write_tar(tmp_path / "whole.tar", [*sample(0), *sample(1), *sample(2)]).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        second = tar.getmembers()[2].offset
    cases = {
        "between two samples": (whole[:second], "truncated after"),
        "in a header": (whole[: second + 100], "truncated after"),
        "a damaged header": (whole[:second] + b"\xff" * 512 + whole[second + 512 :], "damaged header"),
        "in data": (whole[: second + 700], "not a readable tar"),
        "joined": (whole + write_tar(tmp_path / "other.tar", sample(3)).read_bytes(), "several tars were concatenated"),
        "no samples": (bytes(10240), "no samples"),
        "no bytes": (b"", "not a readable tar"),
    }
    for name, (data, message) in cases.items():
        folder = tmp_path / name
        write_tar(folder / "a.tar", sample(9))
        (folder / "b.tar").write_bytes(data)
        for more in ((), ("--skip-bad",)):
            printed = refused(folder, capsys, *more)
            assert message in printed and "b.tar" in printed, name


def test_verify_finds_data_after_the_end_of_a_tar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tars"
    tar = write_tar(folder / "a.tar", sample(0))
    assert index_of(folder) == 0
    tar.write_bytes(tar.read_bytes() + tar.read_bytes())
    assert main(["verify", str(folder), "--workers", "1"]) == 1
    assert "several tars were concatenated" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_links_are_rejected_with_the_fix(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    files = tmp_path / "files"
    files.mkdir()
    for name, data in sample(0):
        (files / name).write_bytes(data)
    os.symlink("s0.png", files / "s1.png") if kind == "symbolic" else os.link(files / "s0.png", files / "s1.png")
    (files / "s1.json").write_text('{"grade": 0}')
    (tmp_path / "tars").mkdir()
    command = ["tar", "--sort=name", "-C", str(files), "-cf", str(tmp_path / "tars" / "a.tar"), "."]
    subprocess.run(command, check=True)
    assert "--dereference --hard-dereference" in refused(tmp_path / "tars", capsys)
    subprocess.run([*command[:1], "--dereference", "--hard-dereference", *command[1:]], check=True)
    assert index_of(tmp_path / "tars") == 0
    assert len(clean(tmp_path / "tars")) == 2


def test_index_rejects_what_verify_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "keys"
    write_tar(folder / "a.tar", sample(0))
    write_tar(folder / "b.tar", sample(1, key="s0"))
    assert "key s0 is in a.tar and b.tar" in refused(folder, capsys)
    folder = tmp_path / "groups"
    write_tar(folder / "train.tar", sample(0, group=7) + sample(1, group="8"))
    write_tar(folder / "val.tar", sample(2, group="7.0"))
    assert "group 7 is in 2 splits" in refused(folder, capsys)
    assert index_of(folder, "--val", "") == 0
    assert len(clean(folder)) == 3
    folder = tmp_path / "images"
    write_tar(folder / "train.tar", sample(0))
    write_tar(folder / "val.tar", sample(0, key="other"))
    assert "the same image is in several splits: val other, train s0" in refused(folder, capsys)


def test_a_group_that_no_sample_has(tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "tars"
    write_tar(folder / "a.tar", sample(0, slide="S1") + sample(1, slide="s1") + sample(2))
    assert "--group: no sample has the key 'patient'" in refused(folder, capsys, "--group", "patient")
    assert index_of(folder, "--group", "slide") == 0
    assert "1 of 3 tiles have no group" in caplog.text and "S1, s1" in caplog.text


def test_index_in_another_folder_leaves_the_tars_unchanged(tmp_path: Path) -> None:
    folder, out = tmp_path / "tars", tmp_path / "index"
    write_tar(folder / "a.tar", sample(0) + sample(1, 2))
    before = sorted(folder.iterdir())
    assert index_of(folder, "--out", str(out)) == 0
    assert sorted(folder.iterdir()) == before and (out / "a.tar").is_symlink()
    assert clean(out) == {"s0": 1, "s1": 2}
    shards = ShardSet.open(out)
    assert shards.tars.read(0, int(shards.rows.length_N[0]), int(shards.rows.offset_N[0])) == png(0)
    assert index_of(folder, "--out", str(out), "--overwrite") == 0


AS_SOMEBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="needs root, which gives its rights away")
def test_a_folder_that_is_not_writable(tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    write_tar(folder / "a.tar", sample(0))
    (tmp_path / "grade.yaml").write_text(GRADE)
    for path in (tmp_path, *tmp_path.parents):
        if path.owner() == "root" and path.is_relative_to("/tmp/pytest-of-root"):  # where pytest creates its folders
            path.chmod(0o755)
    command = [
        *AS_SOMEBODY,
        shutil.which("python3") or "python3",
        "-c",
        "import sys; from pathlib import Path\nfrom data_shards.packing.index_tars import _writable\n"
        "try:\n  with _writable(Path(sys.argv[1])): pass\nexcept ValueError as error: print(error); sys.exit(2)",
        str(folder),
    ]
    if subprocess.run([*AS_SOMEBODY, "test", "-r", str(folder / "a.tar")], check=False).returncode:
        pytest.skip("the folder of tests can't be seen by others")
    import sys

    command[4] = sys.executable
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "No module" in done.stderr or "Permission denied" in done.stderr:
        pytest.skip("this Python can't be run by others")
    assert done.returncode == 2 and "not writable (Permission denied); use --out to write the index to another folder" in done.stdout, done


def test_invalid_folders_for_the_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "tars" / "a.tar", sample(0))
    (tmp_path / "file").write_text("")
    assert "not writable" in refused(tmp_path / "tars", capsys, "--out", str(tmp_path / "file" / "index"))
    assert "can't be read" in refused(tmp_path / "nowhere", capsys)


def test_pixels_of_an_indexed_set_equal_those_of_a_packed_one(tmp_path: Path) -> None:
    """A transparent PNG in an existing tar is composited on white, like a packed one."""
    from data_shards.loader.tile_reader import TileReader, TileRequest

    buffer = io.BytesIO()
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(buffer, "PNG")
    write_tar(tmp_path / "tars" / "a.tar", [("s0.png", buffer.getvalue()), ("s0.json", b'{"grade": 0}')])
    assert index_of(tmp_path / "tars") == 0
    clean(tmp_path / "tars")
    shards = ShardSet.open(tmp_path / "tars")
    [row] = rows_of(tmp_path / "tars")
    pixels_HWC = TileReader(shards.tars, 8).read(TileRequest(0, row["offset"], row["length"], row["checksum"], 0))
    assert np.array_equal(pixels_HWC, np.full((8, 8, 3), 255))
