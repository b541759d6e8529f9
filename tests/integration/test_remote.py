"""Remote shard sets, read through a bounded cache from real servers on loopback, with injected faults."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from runs import TINY, differing, train, write_config
from shards import make_set
from stores import Web, wait_until, web
from time_limits import seconds

from attributegan.config import from_dict
from data_shards.format import checksums, index
from data_shards.loader.loader import batches
from data_shards.loader.shard_set import ShardSet
from data_shards.sampler.windowed_order import WindowedShuffle
from data_shards.storage import cache as cache_module
from data_shards.storage import stores
from data_shards.storage.cache import Cache, StoreError, Unreachable
from data_shards.verify import verify
from launch import evaluator
from tools.evaluation import history
from tools.shard import main

ROOT = Path(__file__).parents[2]
TILES, SHARDS = 72, 9

LONG_S = seconds(60)  # for commands that hang


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("remote"), TILES, shard_count=TILES // SHARDS)


@pytest.fixture
def site(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(cache_module, "BACKOFF_S", 0.01)
    monkeypatch.setattr(stores, "STALL_S", seconds(10))
    with web(folder) as site:
        yield site


def files_of(cache: Cache) -> dict[str, int]:
    """Returns names and sizes; a file may be renamed at the end of its download."""
    sizes = {}
    for path in (cache.folder / "shards").iterdir():
        with contextlib.suppress(FileNotFoundError):
            sizes[path.name] = path.stat().st_size
    return sizes


def steps(location: str | Path, cache: Cache, world: int = 1, workers: int = 0, start: int = 0, window: int = 2) -> torch.Tensor:
    """Returns the images of three global batches of 24, concatenated over ranks."""
    shards = ShardSet.open(location, cache=cache)
    order = WindowedShuffle(shards.levels_NA, shards.rows.shard_N, 0, 0.0, window)
    options = {"start": start, "batch": 24, "micro_batches": 1, "world": world, "workers": workers, "flips": True, "image_size": 16}
    ranks = [list(islice(batches(shards, order, rank=rank, **options), 3)) for rank in range(world)]  # type: ignore[arg-type]
    return torch.cat([ranks[rank][number].images_BCHW for number in range(3) for rank in range(world)])


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 2)])
def test_a_remote_set_gives_the_same_batches_and_every_shard_comes_once(
    folder: Path, site: Web, tmp_path: Path, world: int, workers: int
) -> None:
    cache = Cache(tmp_path / "cache", 10**9)
    assert torch.equal(steps(site.url, cache, world, workers), steps(folder, cache))
    assert all(site.asked[shard.name] == 1 for shard in index.read_header(folder / index.FILE).shards)
    assert torch.equal(steps(site.url, cache, start=48), steps(folder, cache, start=48))
    assert site.asked[index.FILE] == 1 and sum(site.asked.values()) == SHARDS + 1 + site.asked[checksums.FILE]


@pytest.mark.parametrize("fault", ["500", "429", "cut", "stall", "wrong"])
@pytest.mark.parametrize("name", [checksums.FILE, index.FILE, "train-000003.tar"])
def test_what_a_store_does_wrong_is_tried_again(
    folder: Path, site: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, name: str
) -> None:
    if fault == "stall":
        monkeypatch.setattr(stores, "STALL_S", 0.5)
    site.faults[name] = [fault] * (cache_module.TRIES - 1)
    assert list(verify(site.url, cache=Cache(tmp_path, 10**9))) == []
    assert site.asked[name] >= cache_module.TRIES


@pytest.mark.parametrize(
    ("fault", "said"), [("500", "HTTP Error 500"), ("cut", "truncated"), ("stall", "timed out"), ("wrong", r"wrong checksum")]
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_store_that_goes_on_failing_stops_reading_and_is_named(
    site: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, said: str, workers: int
) -> None:
    if fault == "stall":
        monkeypatch.setattr(stores, "STALL_S", 0.5)
    site.faults["train-000003.tar"] = [fault] * 100
    cache = Cache(tmp_path, 10**9)
    with pytest.raises(Unreachable, match=rf"{site.url}: train-000003.tar: download failed 5 times, last error: .*{said}") as caught:
        steps(site.url, cache, workers=workers)
    assert "Run the same command again to resume" in str(caught.value) and "Traceback" not in str(caught.value)
    assert set(files_of(cache)) <= {f"{shard.sha256}.tar" for shard in index.read_header(site.folder / index.FILE).shards}
    [problem] = verify(site.url, cache=cache)
    assert "train-000003.tar: download failed" in problem


TRAIN = """
import sys
from data_shards.storage import cache
from launch.train import main
cache.BACKOFF_S = 0.01
sys.exit(main())
"""


@pytest.mark.parametrize("file", [index.FILE, "train-000000.tar"])
@pytest.mark.parametrize(("fault", "status"), [("503", 1), ("403", 2)])
def test_only_a_store_that_may_answer_another_time_makes_a_job_start_again(
    shards: Path, tmp_path: Path, file: str, fault: str, status: int
) -> None:
    """Checks the exit status for errors at the start and during training."""
    with web(shards) as site:
        site.faults[file] = [fault] * 100
        options = [f"data.shards={site.url}", f"data.cache={tmp_path / 'cache'}", f"run.dir={tmp_path / 'run'}"]
        command = [sys.executable, "-c", TRAIN, "--config", str(write_config(tmp_path / "run")), *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds(120))
    assert done.returncode == status and f"error: {site.url}: {file}: " in done.stderr, done.stderr


def test_a_file_that_is_not_there_is_told_at_once(site: Web, tmp_path: Path) -> None:
    site.faults["train-000003.tar"] = ["404"]
    [problem] = verify(site.url, cache=Cache(tmp_path, 10**9))
    assert re.search(r"train-000003.tar: request rejected: HTTP 404 Not Found. Check data.shards", problem)
    assert site.asked["train-000003.tar"] == 1


def test_the_cache_keeps_its_bound_and_what_was_used_last(folder: Path, site: Web, tmp_path: Path) -> None:
    shards = index.read_header(folder / index.FILE).shards
    largest = max(shard.size for shard in shards)
    cache = Cache(tmp_path, 3 * largest)
    for shard in (*shards[:3], shards[0], shards[3]):
        cache.open(site.url, shard).close()
        assert sum(files_of(cache).values()) <= cache.limit
        time.sleep(0.01)
    assert set(files_of(cache)) == {f"{shards[number].sha256}.tar" for number in (0, 2, 3)}
    assert torch.equal(steps(site.url, cache), steps(folder, cache))
    assert sum(files_of(cache).values()) <= cache.limit
    with pytest.raises(ValueError, match=r"data.cache_gb: .* is smaller than the 4 shards .* reduce data.shuffle_window"):
        steps(site.url, cache, window=4)
    with pytest.raises(StoreError, match=r"data.cache_gb: .* is smaller than train-000000.tar"):
        Cache(tmp_path, largest // 2).open(site.url, shards[0])


def test_a_file_in_use_can_go_and_one_of_another_size_is_fetched_again(folder: Path, site: Web, tmp_path: Path) -> None:
    shard = index.read_header(folder / index.FILE).shards[0]
    cache = Cache(tmp_path, shard.size)
    with cache.open(site.url, shard) as stream:
        cache.path(shard).unlink()
        assert stream.read() == (folder / shard.name).read_bytes()
    cache.open(site.url, shard).close()
    cache.path(shard).write_bytes(b"half")
    with cache.open(site.url, shard) as stream:
        assert stream.read() == (folder / shard.name).read_bytes()
    assert site.asked[shard.name] == 3


def test_shards_are_fetched_before_they_are_read_as_many_as_fit(folder: Path, site: Web, tmp_path: Path) -> None:
    shards = ShardSet.open(site.url, cache=Cache(tmp_path, 5 * max(shard.size for shard in index.read_header(folder / index.FILE).shards)))
    order = WindowedShuffle(shards.levels_NA, shards.rows.shard_N, 0, 0.0, window=2)
    cache = shards.tars.cache  # type: ignore[attr-defined]
    options = {"micro_batches": 1, "rank": 0, "world": 1, "workers": 0, "flips": False, "image_size": 16}
    data = batches(shards, order, start=0, batch=8, **options)  # type: ignore[arg-type]
    for step in range(6):  # after that come shards of the next pass
        next(data)
        expected = {shards.header.shards[number].sha256 + ".tar" for number in list(dict.fromkeys(order.shards_from(8 * step)))[:5]}
        wait_until(lambda expected=expected: expected <= set(files_of(cache)))
        assert not [name for name in files_of(cache) if name.endswith(".part")] or sum(files_of(cache).values()) <= cache.limit
    data.close()
    assert max(site.asked[shard.name] for shard in shards.header.shards) == 1  # no shard was evicted before its use


def test_windows_tell_their_shards(folder: Path) -> None:
    shards = ShardSet.open(folder)
    for balance in (0.0, 1.0):
        order = WindowedShuffle(shards.levels_NA, shards.rows.shard_N, 3, balance, window=2)
        for position in range(0, 2 * TILES, 7):
            coming = list(order.shards_from(position))
            for ahead in range(TILES):
                assert int(shards.rows.shard_N[order[range(position + ahead, position + ahead + 1)][0]]) in coming
            assert int(shards.rows.shard_N[order[range(position, position + 1)][0]]) in coming[:2]


FETCH = """
import sys
from pathlib import Path
from data_shards.format import index
from data_shards.storage.cache import Cache
cache = Cache(Path(sys.argv[2]), 10**9)
header = index.read_header(cache.index_of(sys.argv[1]) / index.FILE)
with cache.open(sys.argv[1], header.shards[0]) as stream:
    print(len(stream.read()))
"""


def test_a_killed_fetch_leaves_nothing_that_is_taken_for_whole_and_holds_nobody(folder: Path, site: Web, tmp_path: Path) -> None:
    shard = index.read_header(folder / index.FILE).shards[0]
    site.faults[shard.name] = ["stall"]
    arguments = [sys.executable, "-c", FETCH, site.url, str(tmp_path)]
    first = subprocess.Popen(arguments, cwd=ROOT)
    wait_until(lambda: site.asked[shard.name] == 1)
    second = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    time.sleep(0.3)
    assert second.poll() is None and site.asked[shard.name] == 1  # it waits for the first download
    first.kill()
    first.wait()
    assert int(second.communicate(timeout=seconds(30))[0]) == shard.size and second.returncode == 0
    assert files_of(Cache(tmp_path, 0)) == {f"{shard.sha256}.tar": shard.size}


def test_a_cache_that_can_not_be_written_is_no_fault_of_the_store(site: Web, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"data.cache: .*file.*: can't be written"):
        Cache(tmp_path / "file", 10**9).index_of(site.url)
    assert not site.asked


def test_names_of_shards_lead_nowhere_else(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "set")
    header, table = index.read_header(folder / index.FILE), index.read_table(folder / index.FILE)
    for name in ("../train-000000.tar", "/etc/passwd", "..", "", "a;touch x.tar", "$(touch x).tar", "a b.tar", "-r.tar", "a\n", "ä.tar"):
        shards = (header.shards[0], replace(header.shards[1], name=name), *header.shards[2:])
        index.write(tmp_path / "set" / index.FILE, replace(header, shards=shards), [table])
        with pytest.raises(ValueError, match=rf"index.parquet: shard 2 in the metadata: {re.escape(repr(name))} is not a valid shard name"):
            index.read_header(tmp_path / "set" / index.FILE)
    assert asdict(header.shards[0])["name"] == "train-000000.tar"


def test_secrets_of_an_address_are_used_and_not_told(site: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site.faults["train-000001.tar"] = ["404"]
    location = site.url + "/a%20b/set?sig=secret"
    assert main(["verify", location, "--cache", str(tmp_path), "--workers", "1"]) == 1
    printed = capsys.readouterr().out
    assert "train-000001.tar: request rejected" in printed and "secret" not in printed
    assert all(request["path"].startswith("/a%20b/set/") and request["path"].endswith("?sig=secret") for request in site.headers)
    assert main(["verify", site.url + "/a b/set?sig=secret", "--cache", str(tmp_path), "--workers", "1"]) == 1
    printed = capsys.readouterr().out
    assert "request rejected: URL can't contain control characters" in printed and "secret" not in printed
    assert stores.redact("https://me:secret@host/x") == "https://host/x"


# Other stores


def test_s3(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(cache_module, "BACKOFF_S", 0.01)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        client = boto3.client("s3")
        client.create_bucket(Bucket="tissue")
        for path in folder.iterdir():
            client.upload_file(str(path), "tissue", f"sets/a b/{path.name}")
        options = ["--cache", str(tmp_path / "cache"), "--workers", "2"]
        assert main(["verify", "s3://tissue/sets/a b", *options]) == 0
        assert main(["card", "s3://tissue/sets/a b", "--out", str(tmp_path / "card.md"), "--cache", str(tmp_path / "cache")]) == 0
        assert f"| train | {TILES} | {SHARDS} |" in (tmp_path / "card.md").read_text()
        cache = Cache(tmp_path / "second", 10**9)
        assert torch.equal(steps("s3://tissue/sets/a b", cache, workers=2), steps(folder, cache))
        client.delete_object(Bucket="tissue", Key="sets/a b/train-000002.tar")
        capsys.readouterr()
        assert main(["verify", "s3://tissue/sets/a b", "--cache", str(tmp_path / "third"), "--workers", "1"]) == 1
        assert "s3://tissue/sets/a b: train-000002.tar: request rejected: An error occurred (NoSuchKey)" in capsys.readouterr().out
        assert main(["verify", "s3://other/sets", *options]) == 1
        assert "NoSuchBucket" in capsys.readouterr().out
    finally:
        server.stop()
    assert main(["verify", "s3://tissue/sets/a b", *options]) == 1
    assert "s3://tissue/sets/a b: index.parquet: download failed 5 times" in capsys.readouterr().out


def test_commands(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cache_module, "BACKOFF_S", 0.01)
    monkeypatch.setattr(stores, "STALL_S", 0.5)
    renamed = tmp_path / "it's $(touch x); a set"
    shutil.copytree(folder, renamed)
    options = ["--cache", str(tmp_path / "cache"), "--workers", "1"]
    monkeypatch.setenv("SET", str(renamed))
    assert main(["verify", 'pipe:cat "$SET"/{}', *options]) == 0
    fresh = ["--cache", str(tmp_path / "fresh"), "--workers", "1"]
    for command, said in (
        ("pipe:head -c 100 '/nowhere'/{}", "failed with exit status 1"),
        ("pipe:no-such-program {}", "no such program"),
        (f"pipe:sleep {LONG_S:.0f}; echo {{}}", "no data for 0.5 s"),
        (f'pipe:cat "$SET"/{{}}; sleep {LONG_S:.0f}', "no data for 0.5 s"),
        ('pipe:head -c 10 "$SET"/{}', "has no line for index.parquet"),
        ("pipe:cat set", "no {}"),
    ):
        started = time.monotonic()
        assert main(["verify", command, *fresh]) == 1
        assert said in capsys.readouterr().out and time.monotonic() - started < seconds(20)
    assert not (ROOT / "x").exists()


def test_gs_goes_through_gsutil(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Uses a fake gsutil with the same command line; the real one would contact Google."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "gsutil").write_text(f'#!/bin/sh\n[ "$1" = cat ] && exec cat "{folder}/${{2#gs://bucket/set/}}"\n')
    (programs / "gsutil").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    assert main(["verify", "gs://bucket/set", "--cache", str(tmp_path / "cache"), "--workers", "1"]) == 0
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["verify", "gs://bucket/set", "--cache", str(tmp_path / "other"), "--workers", "1"]) == 1
    assert "the program gsutil is not installed" in capsys.readouterr().out


def test_hf_sends_its_token_to_the_hub_alone(folder: Path, tmp_path: Path) -> None:
    with web(folder) as hub, web(folder) as store:
        hub.faults["train-000001.tar"] = [f"{store.url.replace('127.0.0.1', 'localhost')}/blob"]
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"}
        arguments = ["hf://datasets/owner/tiles@v1/sets/a", "--cache", str(tmp_path), "--workers", "1"]
        subprocess.run([sys.executable, "-m", "tools.shard", "verify", *arguments], cwd=ROOT, env=environment, check=True)
        assert {request["path"].rsplit("/", 1)[0] for request in hub.headers} == {"/datasets/owner/tiles/resolve/v1/sets/a"}
        assert all(request["authorization"] == "Bearer hf_secret" for request in hub.headers)
        assert store.asked == {"train-000001.tar": 1} and "authorization" not in store.headers[0]


def test_training_on_a_remote_set_is_training_on_the_same_set_here(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Includes background evaluation and resuming; the secret in the URL is used but not written to the run folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "known"))
    run = tmp_path / "remote"
    evaluation = ["evaluate.every=16", "evaluate.count=16", "evaluate.sweeps=2", "evaluate.features=tests.helpers.fake_features:pooled"]
    with web(shards) as site:
        options = ["run.save_every=16", "model.image_size=32"]
        here = train(shards, tmp_path / "here", "data.shuffle_window=8", "train.images=32", *options)
        elsewhere = [f"data.shards={site.url}/set?sig=secret", f"data.cache={tmp_path / 'cache'}", *options]
        train(Path("unused"), run, "train.images=16", *elsewhere, *evaluation)
        remote = train(Path("unused"), run, "train.images=32", *elsewhere)
        assert all(request["path"].endswith("?sig=secret") for request in site.headers)
    assert differing(here, remote) == [] and TINY["train"]["batch"] == 8
    assert [line["images"] for line in history.lines(run)] == [16], (run / "evaluation.log").read_text()
    assert not (tmp_path / "known" / "attributegan" / "shards").exists()  # the evaluation uses the cache of the training
    leaks = [path for path in run.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]
    assert leaks == [] and f"{site.url}/set\n" in (run / "config.yaml").read_text()


def test_the_command_line_of_an_evaluation_beside_training_has_no_address() -> None:
    assert not any("secret" in word for word in evaluator.command(from_dict({"data": {"shards": "https://host/set?sig=secret"}})))
