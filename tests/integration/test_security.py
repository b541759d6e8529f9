"""Untrusted files can't run code, write outside their folder, or exhaust memory; our files are never writable for everyone."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import re
import stat
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from runs import ROOT, TINY, write_config
from shards import TWO, make_set, pixels_of
from time_limits import seconds

from attributegan import config
from attributegan.attributes import AttributeSchema
from attributegan.checkpoint import store, writer
from attributegan.models import published
from data_shards.format import checksums, index, tile
from data_shards.ingest.importers import read_captions
from data_shards.loader.shard_set import ShardSet
from data_shards.loader.tile_reader import TileCorrupted, TileReader, TileRequest
from data_shards.packing.index_tars import index_tars
from data_shards.storage.shard_files import LocalShardFiles
from data_shards.verify import verify
from slurm import cluster_config, sweep


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def trap(tmp_path: Path):
    """Yields bytes that create ``sprung`` when unpickled, and checks that it was not created."""
    sprung = tmp_path / "sprung"
    yield pickle.dumps(Trap(sprung))
    assert not sprung.exists()


def test_the_trap_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()


# Code in files


@pytest.mark.parametrize("name", ["generator.safetensors", "state.json", "manifest.json"])
def test_code_in_a_checkpoint_does_not_run(trap: bytes, tmp_path: Path, name: str) -> None:
    folder = writer.save(tmp_path, 8, state={}, generator={})
    (folder / name).write_bytes(trap)
    (folder / "optimizer.pt").write_bytes(trap)
    if name != store.MANIFEST:  # with a matching checksum
        manifest = json.loads((folder / store.MANIFEST).read_text())
        manifest[name] = {"bytes": len(trap), "sha256": store._sha256(folder / name)}
        (folder / store.MANIFEST).write_text(json.dumps(manifest))

    def load() -> None:
        store.verify(folder)
        store.load(folder, "generator")

    with pytest.raises(store.CheckpointCorrupted, match=str(folder)):
        load()


def test_code_in_a_published_checkpoint_does_not_run(trap: bytes, tmp_path: Path) -> None:
    import torch

    torch.save({"generator": Trap(tmp_path / "sprung")}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(trap)
    for path in (tmp_path / "a.pt", tmp_path / "b.pt"):
        with pytest.raises(ValueError, match=str(path)):
            published.load(path)


@pytest.mark.parametrize("kind", ["pyd", "pickle", "pth", "npy", "cbor", "json", "png"])
def test_code_in_a_shard_does_not_run(trap: bytes, tmp_path: Path, kind: str) -> None:
    """Covers the member names that WebDataset unpickles."""
    tar_with(tmp_path / "a.tar", file(f"t0.{kind}", trap), file("t1.png", png(1)), file("t1.json", LEVELS), file(f"t1.b.{kind}", trap))
    try:
        index_tars(tmp_path, TWO, val="", skip_bad=True)
    except ValueError as error:
        assert "a.tar" in str(error)
        return
    list(verify(tmp_path))
    shards = ShardSet.open(tmp_path)
    row = shards.rows
    TileReader(shards.tars, 16).read(TileRequest(0, int(row.offset_N[0]), int(row.length_N[0]), int(row.checksum_N[0]), 0))


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir", "!!python/name:os.mkdir"])
def test_code_in_a_configuration_does_not_run(tmp_path: Path, tag: str) -> None:
    value = f"{tag} [{tmp_path / 'sprung'}]" if "name" not in tag else f"{tag} ''"
    path = tmp_path / "config.yaml"
    path.write_text(f"train: {value}\n")
    for read in (config.load, cluster_config.load, sweep.read, AttributeSchema.from_yaml):
        with pytest.raises(ValueError, match=str(path)):
            read(path)
    path.write_text(yaml.safe_dump(TINY))
    with pytest.raises(ValueError, match="train.images"):
        config.load(path, [f"train.images={value}"])
    assert not (tmp_path / "sprung").exists()


def test_no_file_of_ours_unpickles() -> None:
    """Checks that the source uses `torch.load` with weights_only, arrays without pickles, and safe YAML; submitit's pickle is not data."""
    calls = {"pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "eval", "exec", "os.system", "os.popen", "marshal.loads"}
    for package in ("attributegan", "data_shards", "launch", "slurm", "tools"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    name, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
                    assert name not in calls, f"{path}:{node.lineno}"
                    assert name != "torch.load" or options.get("weights_only") == "True", f"{path}:{node.lineno}"
                    assert name != "np.load" or options.get("allow_pickle") != "True", f"{path}:{node.lineno}"


# Malicious tars

LEVELS = json.dumps({"levels": {"grade": 1, "size": 0}}).encode()


def png(number: int) -> bytes:
    return tile.encode_png(pixels_of(number))


def file(name: str, data: bytes, **others: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in others.items():
        setattr(info, key, value)
    return info, data


def tar_with(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path


def sparse_header(size: int) -> bytes:
    """Returns a GNU sparse member that takes no space and claims ``size`` bytes."""
    block = bytearray(tarfile.TarInfo("t9.png").tobuf(tarfile.GNU_FORMAT))
    block[156:157] = b"S"
    block[483:495] = struct.pack(">BxxxQ", 0x80, size)
    return summed(block)


def negative_header() -> bytes:
    block = bytearray(tarfile.TarInfo("t9.png").tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 10 + b"\xfc\x00"
    return summed(block)


def giant_header(kind: bytes) -> bytes:
    """Returns a member that claims 8 GiB."""
    block = bytearray(tarfile.TarInfo("t9.png").tobuf(tarfile.GNU_FORMAT))
    block[124:136], block[156:157] = b"77777777777\0", kind
    return summed(block)


def summed(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


EVIL = {
    "absolute": file("/etc/t9.png", b""),
    "upwards": file("../../t9.png", b""),
    "upwards within": file("a/../../t9.json", b""),
    "symbolic link": file("t9.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hard link": file("t9.png", b"", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "device": file("t9.png", b"", type=tarfile.BLKTYPE),
    "pipe": file("t9.png", b"", type=tarfile.FIFOTYPE),
    "long name": file("a/" * 4000 + "t9.png", b""),
    "sparse": sparse_header(1 << 45),
    "negative": negative_header(),
    "larger than the tar": giant_header(b"0"),
    "giant pax header": giant_header(b"x"),
}


@pytest.mark.parametrize("name", EVIL)
def test_members_that_no_shard_has_are_refused(tmp_path: Path, name: str) -> None:
    good, evil = [file("t0.png", png(0)), file("t0.json", LEVELS)], EVIL[name]
    path = tar_with(tmp_path / "a.tar", *good)
    index_tars(tmp_path, TWO, val="")
    assert list(verify(tmp_path)) == []
    if isinstance(evil, bytes):
        path.write_bytes(path.read_bytes()[:2048] + evil + bytes(1024))
    else:
        tar_with(path, *good, evil)
    with pytest.raises(ValueError, match=r"a\.tar: not a readable tar"):
        index_tars(tmp_path, TWO, val="", overwrite=True, skip_bad=True)
    assert any("a.tar: not a readable tar" in line for line in verify(tmp_path))


def bomb(width: int, height: int) -> bytes:
    """Returns a PNG of some kilobytes that claims so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("data", [bomb(60_000, 60_000), b"[" * 100_000, b'{"levels": ' * 50_000], ids=["pixels", "lists", "mappings"])
def test_decompression_bombs_are_refused(tmp_path: Path, data: bytes) -> None:
    is_image = data.startswith(b"\x89PNG")
    tar_with(tmp_path / "a.tar", file("t0.png", data if is_image else png(0)), file("t0.json", LEVELS if is_image else data))
    with pytest.raises(ValueError, match=r"a\.tar: t0: (not a readable image|\.json)"):
        index_tars(tmp_path, TWO, val="")
    folder = make_set(tmp_path / "good", 1)
    header = index.read_header(folder / index.FILE)
    (folder / "train-000000.tar").write_bytes((tmp_path / "a.tar").read_bytes())
    assert any("train-000000.tar" in line for line in verify(folder))
    if is_image:
        files = TileReader(LocalShardFiles(folder, header.shards), 16)
        with pytest.raises(TileCorrupted, match="not an image"):
            files.read(TileRequest(0, 512, len(data), tile.checksum(data), 0))


def test_names_of_shards_lead_nowhere_else(tmp_path: Path) -> None:
    folder = make_set(tmp_path, 2)
    header, table = index.read_header(folder / index.FILE), index.read_table(folder / index.FILE)
    for name in ("../a.tar", "/etc/passwd", "..", "a\0b"):
        evil = [index.Shard(name, *list(vars(shard).values())[1:]) for shard in header.shards]
        index.write(folder / index.FILE, index.Header(header.schema, tuple(evil), 16, ""), [table])
        checksums.write(folder, index.Header(header.schema, tuple(evil), 16, ""))
        with pytest.raises(ValueError, match=re.escape(str(folder))):
            ShardSet.open(folder)


def test_captions_that_are_nested_without_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text('{"a": ' * 100_000)
    with pytest.raises(ValueError, match="captions.json"):
        read_captions(path)


# Permissions of our files


def test_nothing_of_a_run_can_be_written_by_everyone(shards: Path, tmp_path: Path) -> None:
    """Runs with umask 0."""
    run = tmp_path / "run"
    options = ["--config", str(write_config(run)), f"data.shards={shards}", f"run.dir={run}", "train.images=8", "run.grid_every=8"]
    done = subprocess.run(
        [sys.executable, "launch/train.py", *options], cwd=ROOT, umask=0, timeout=seconds(120), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    made = [run, *run.rglob("*")]
    assert len(made) > 10 and not [path for path in made if path.stat().st_mode & stat.S_IWOTH]


def test_names_that_users_give_are_no_commands(shards: Path, tmp_path: Path) -> None:
    """Runs the batch script of a run whose folder name contains a shell command; the command must not run."""
    evil = tmp_path / "$(touch pwned)`touch pwned`;touch pwned;'\"x"
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump({"environment": {"A": "$(touch pwned)"}}))
    arguments = ["--config", str(write_config(tmp_path / "run")), "--cluster", str(tmp_path / "cluster.yaml"), "--dry-run"]
    command = [sys.executable, "-m", "slurm.submit", *arguments, f"data.shards={shards}", f"run.dir={evil}"]
    script = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds(60), check=False)
    assert script.returncode == 0 and "touch pwned" in script.stdout, script.stderr
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "bin" / "srun").chmod(0o755)
    lines = [line for line in script.stdout.splitlines() if "slurm.requeue" not in line]
    where = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    subprocess.run(
        ["bash"], input="\n".join(lines), cwd=tmp_path, env=where, text=True, timeout=seconds(60), capture_output=True, check=False
    )
    assert not (tmp_path / "pwned").exists()


def test_every_dependency_is_listed_with_its_licence() -> None:
    import configparser

    options = configparser.ConfigParser()
    options.read(ROOT / "setup.cfg")
    wanted = [options["options"]["install_requires"], *options["options.extras_require"].values()]
    names = {re.split(r"[<>=\[ ]", line)[0].lower().replace("_", "-") for text in wanted for line in text.split("\n") if line.strip()}
    rows = [line.split("|") for line in (ROOT / "docs" / "licences.md").read_text().splitlines() if line.startswith("| ")]
    listed = {row[1].strip().lower().replace("_", "-"): row[3].strip() for row in rows}
    assert names - listed.keys() == set()
    assert [name for name in names if not listed[name]] == []
