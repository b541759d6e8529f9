"""Loading: the same batches for any number of processes and workers, damaged tiles, signals."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shards import TWO, levels_of, make_set, pixels_of, rows_of
from time_limits import seconds

from data_shards.format import checksums, index
from data_shards.loader import loader as reading
from data_shards.loader.loader import Batch, batches
from data_shards.loader.shard_set import ShardSet
from data_shards.sampler.global_order import GlobalShuffle
from data_shards.sampler.windowed_order import WindowedShuffle

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("read"), 72)


def read(folder: Path, *, start: int = 0, batch: int = 24, balance: float = 0.0, window: int = 0, **more: object) -> Iterator[Batch]:
    shards = ShardSet.open(folder)
    order = (
        WindowedShuffle(shards.levels_NA, shards.rows.shard_N, 0, balance, window)
        if window
        else GlobalShuffle(shards.levels_NA, 0, balance)
    )
    defaults = {"micro_batches": 1, "rank": 0, "world": 1, "workers": 0, "flips": False, "image_size": 16}
    return batches(shards, order, start=start, batch=batch, **(defaults | more))  # type: ignore[arg-type]


def steps(folder: Path, count: int, world: int, micro_batches: int = 1, **more: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and levels of ``count`` global batches, concatenated from all ranks."""
    ranks = [
        list(islice(read(folder, world=world, rank=r, micro_batches=micro_batches, **more), count * micro_batches)) for r in range(world)
    ]
    in_order = [ranks[rank][number] for number in range(count * micro_batches) for rank in range(world)]
    return torch.cat([batch.images_BCHW for batch in in_order]), torch.cat([batch.levels_BA for batch in in_order])


def numbers(images_BCHW: torch.Tensor) -> list[int]:
    """Returns the indices of the tiles."""
    return (images_BCHW[:, 0, 0, 0].long() + 256 * images_BCHW[:, 1, 0, 0].long()).tolist()


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("workers", [0, 1, 2, 3, 4])
def test_a_pass_is_complete_and_disjoint(folder: Path, world: int, workers: int) -> None:
    images_NCHW, levels_NA = steps(folder, 3, world, workers=workers)
    assert sorted(numbers(images_NCHW)) == list(range(72))
    for number, image_CHW, levels_A in zip(numbers(images_NCHW), images_NCHW, levels_NA, strict=True):
        assert np.array_equal(image_CHW.permute(1, 2, 0).numpy(), pixels_of(number))
        assert tuple(levels_A.tolist()) == levels_of(number)


@pytest.mark.parametrize(("world", "micro_batches", "workers"), [(2, 1, 0), (2, 3, 2), (3, 2, 1), (8, 3, 0)])
def test_global_batches_depend_only_on_the_position(folder: Path, world: int, micro_batches: int, workers: int) -> None:
    options = {"flips": True, "balance": 1.0}
    expected = steps(folder, 8, 1, **options)
    one = steps(folder, 2, 1, **options)
    rest = steps(folder, 6, world, micro_batches, start=48, workers=workers, **options)  # another world size, in the middle of a pass
    assert all(torch.equal(a, torch.cat([b, c])) for a, b, c in zip(expected, one, rest, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 3), (3, 8), (8, 1)])
@pytest.mark.parametrize("window", [0, 2])
def test_changing_the_world_size_in_the_middle_of_a_pass_loses_and_repeats_nothing(
    folder: Path, before: int, after: int, window: int
) -> None:
    first, _ = steps(folder, 1, before, workers=1, window=window)
    rest, _ = steps(folder, 2, after, start=24, window=window)
    assert sorted(numbers(first) + numbers(rest)) == list(range(72))


@pytest.mark.slow
def test_cursors_are_global_positions(folder: Path) -> None:
    cursors = [batch.cursor for batch in islice(read(folder, start=48, micro_batches=2, world=3, rank=2, workers=1), 4)]
    assert cursors == [48, 60, 72, 84]


@pytest.mark.slow
def test_form_of_a_batch(folder: Path) -> None:
    batch = next(read(folder, workers=1))
    assert batch.images_BCHW.shape == (24, 3, 16, 16) and batch.images_BCHW.dtype == torch.uint8
    assert batch.images_BCHW.is_contiguous(memory_format=torch.channels_last)
    assert batch.levels_BA.shape == (24, 2) and batch.levels_BA.dtype == torch.int64


def test_symmetries_are_drawn_for_every_position(folder: Path) -> None:
    images_NCHW, _ = steps(folder, 30, 1, flips=True)
    plain_NCHW, _ = steps(folder, 30, 1)
    turns = []
    for image_CHW, plain_CHW in zip(images_NCHW, plain_NCHW, strict=True):
        symmetries = [torch.rot90(p, k, (1, 2)) for p in (plain_CHW, plain_CHW.flip(2)) for k in range(4)]
        [turn] = [number for number, symmetry in enumerate(symmetries) if torch.equal(symmetry, image_CHW)]
        turns.append(turn)
    assert np.bincount(turns, minlength=8).min() > 60  # of 720: 90 expected


@pytest.mark.parametrize(("world", "micro_batches", "workers"), [(1, 1, 0), (2, 3, 2), (8, 1, 1)])
def test_crops_are_windows_drawn_for_every_position(folder: Path, world: int, micro_batches: int, workers: int) -> None:
    options = {"crop": 0.75, "image_size": 12}
    images_NCHW, _ = steps(folder, 6, world, micro_batches, workers=workers, **options)
    later_NCHW, _ = steps(folder, 3, 1, start=72, **options)
    assert torch.equal(images_NCHW[72:], later_NCHW)
    tiles_N = GlobalShuffle(ShardSet.open(folder).levels_NA, 0, 0.0)[np.arange(144)]
    places = []
    for number, image_CHW in zip(numbers(steps(folder, 6, 1)[0]), images_NCHW, strict=True):
        window_HWC, tile_HWC = image_CHW.permute(1, 2, 0).numpy(), pixels_of(number)
        [location] = [(y, x) for y in range(5) for x in range(5) if np.array_equal(tile_HWC[y : y + 12, x : x + 12], window_HWC)]
        places.append(location)
    assert len(tiles_N) == len(places) and {y for y, _ in places} == {x for _, x in places} == set(range(5))


def test_other_sizes_are_resized(folder: Path) -> None:
    small = next(read(folder, image_size=8)).images_BCHW
    full = next(read(folder)).images_BCHW
    assert small.shape == (24, 3, 8, 8)
    assert (small.float().mean((2, 3)) - full.float().mean((2, 3))).abs().max() < 3


def test_not_assessable_tiles_can_be_left_out(folder: Path, tmp_path: Path) -> None:
    shards = ShardSet.open(folder, assessable_only=True)
    assert len(shards) == sum(levels_of(number)[0] != 0 for number in range(72))
    assert set(shards.levels_NA[:, 0]) == {1, 2} and set(shards.levels_NA[:, 1]) == {0, 1}
    only = make_set(tmp_path, 1)
    header, table = index.read_header(only / index.FILE), index.read_table(only / index.FILE)
    index.write(only / index.FILE, header, [table.set_column(table.column_names.index("grade"), "grade", [[0]])])
    checksums.write(only, header)
    with pytest.raises(ValueError, match="data.assessable_only: no tile"):
        ShardSet.open(only, assessable_only=True)


@pytest.mark.slow
def test_loading_does_not_affect_global_random_states(folder: Path) -> None:
    state = torch.get_rng_state()
    next(read(folder, workers=1))
    assert torch.equal(state, torch.get_rng_state())


# Invalid sets


def damage(folder: Path, numbers: list[int]) -> None:
    """Flip a byte in the middle of each tile's image."""
    for row in rows_of(folder):
        if int(row["key"][1:]) in numbers:
            with (folder / row["shard"]).open("r+b") as stream:
                stream.seek(row["offset"] + row["length"] // 2)
                [byte] = stream.read(1)
                stream.seek(-1, os.SEEK_CUR)
                stream.write(bytes([byte ^ 4]))


@pytest.mark.slow
def test_a_damaged_tile_is_replaced_by_the_next_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_set(tmp_path, 72)
    order, (healthy_NCHW, _) = numbers(steps(folder, 6, 1)[0]), steps(folder, 6, 1)
    bad = [order[10], order[40], order[41]]
    damage(folder, bad)
    with caplog.at_level(logging.WARNING, "attributegan.data"):
        images_NCHW, levels_NA = steps(folder, 6, 1, workers=2)
    expected = list(order)
    expected[10], expected[40], expected[41] = order[11], order[42], order[42]
    assert numbers(images_NCHW)[:72] == expected[:72] and not set(bad) & set(numbers(images_NCHW))
    assert [tuple(levels_A.tolist()) for levels_A in levels_NA] == [levels_of(number) for number in numbers(images_NCHW)]
    for number in bad:
        assert sum(f"t{number:04d}: damaged" in message for message in caplog.messages) == 1
    assert torch.equal(steps(folder, 6, 3, 2)[0], images_NCHW)
    assert not torch.equal(healthy_NCHW, images_NCHW)


def test_too_many_damaged_tiles_stop_the_run_and_name_a_shard(tmp_path: Path) -> None:
    folder = make_set(tmp_path, 72)
    damage(folder, list(range(30)))
    with pytest.raises(ValueError, match=r"train-00000\d\.tar: too many damaged tiles \(11 in .* `attributegan-shard verify"):
        steps(folder, 3, 1)


def test_a_completely_damaged_set_stops_the_run(tmp_path: Path) -> None:
    folder = make_set(tmp_path, 8)
    damage(folder, list(range(8)))
    with pytest.raises(ValueError, match=r"too many damaged tiles \(8 in"):
        steps(folder, 1, 1, batch=4)


def test_unreadable_sets_are_rejected(tmp_path: Path) -> None:
    folder = make_set(tmp_path, 40, val_fraction=0.2)
    with pytest.raises(ValueError, match="data.shards: empty"):
        ShardSet.open("")
    with pytest.raises(ValueError, match="is not a complete shard set"):
        ShardSet.open(tmp_path / "images")
    with pytest.raises(ValueError, match="data.split: .* found train, val"):
        ShardSet.open(folder, split="test")
    size = (folder / "train-000001.tar").stat().st_size
    os.truncate(folder / "train-000001.tar", size - 512)
    with pytest.raises(ValueError, match=f"train-000001.tar: has .* expected {size:,}"):
        ShardSet.open(folder)
    assert len(ShardSet.open(folder, split="val")) == 10
    (folder / "train-000001.tar").unlink()
    with pytest.raises(ValueError, match="train-000001.tar: can't be read"):
        ShardSet.open(folder)


def test_files_that_are_not_an_index_are_rejected(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = make_set(tmp_path, 4)
    header = index.read_header(folder / index.FILE)
    (folder / index.FILE).write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="does not match its checksum in SHA256SUMS"):
        ShardSet.open(folder)
    checksums.write(folder, header)
    with pytest.raises(ValueError, match="not a readable index"):
        ShardSet.open(folder)
    pq.write_table(pa.table({"a": [1]}), folder / index.FILE)
    checksums.write(folder, header)
    with pytest.raises(ValueError, match="not the index of a shard set"):
        ShardSet.open(folder)


def test_an_index_that_contradicts_its_schema_is_rejected(tmp_path: Path) -> None:
    import pyarrow as pa

    folder = make_set(tmp_path, 4)
    header, table = index.read_header(folder / index.FILE), index.read_table(folder / index.FILE)
    for column, value, message in (("grade", 7, "levels of grade range from"), ("offset", 10**9, "outside their shard")):
        broken = table.set_column(table.column_names.index(column), column, pa.array([value] * 4, table[column].type))
        index.write(folder / index.FILE, header, [broken])
        checksums.write(folder, header)
        with pytest.raises(ValueError, match=message):
            ShardSet.open(folder)
    assert header.schema == TWO


# Signals that a terminal and a launcher send to a training process and its workers

SCRIPT = """
import os, signal, sys, time
from itertools import islice
from data_shards.sampler.global_order import GlobalShuffle
from data_shards.loader.loader import ShardSet, batches
seen = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: seen.append(number))
shards = ShardSet.open(sys.argv[1])
options = dict(start=0, batch=8, micro_batches=1, rank=0, world=1, workers=2, flips=True, image_size=16)
data = batches(shards, GlobalShuffle(shards.levels_NA, 0, 0.0), **options)
next(data)
children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
print(*children, flush=True)
if sys.argv[2] == "wait":
    time.sleep(60)
os.killpg(0, signal.SIGINT)
os.killpg(0, signal.SIGTERM)
time.sleep(0.3)
assert len(list(islice(data, 20))) == 20
assert seen == [signal.SIGINT, signal.SIGTERM], seen
data.close()
"""


def start(folder: Path, then: str) -> tuple[subprocess.Popen[str], list[int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), then], cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout
    return process, [int(child) for child in process.stdout.readline().split()]


def is_running(pid: int) -> bool:
    """Returns whether a process exists and is not a zombie waiting for the container's init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids: list[int]) -> None:
    until = time.monotonic() + seconds(20)
    while any(map(is_running, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [pid for pid in pids if is_running(pid)]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_signals_to_the_process_group_affect_only_the_training_process(folder: Path) -> None:
    process, children = start(folder, "signals")
    assert process.wait(timeout=seconds(60)) == 0
    assert len(children) >= 2
    wait_until_gone(children)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_workers_exit_when_their_parent_is_killed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And remove their temporary folders."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process, children = start(folder, "wait")
    assert len(children) >= 2 and all(map(is_running, children))
    assert list(tmp_path.glob("pymp-*"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until_gone(children)
    assert not list(tmp_path.iterdir())


def test_attributes_can_be_set_to_unknown(folder: Path) -> None:
    shards, plain = ShardSet.open(folder, attributes=("size",)), ShardSet.open(folder)
    assert set(shards.levels_NA[:, 0]) == {-1} and (shards.levels_NA[:, 1] == plain.levels_NA[:, 1]).all()
    with pytest.raises(ValueError, match="data.attributes: colour: not in the shards, which have grade, size"):
        ShardSet.open(folder, attributes=("colour", "size"))


@pytest.mark.slow
def test_missing_shared_memory_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data_shards.loader.loader.DataLoader", full)
    with pytest.raises(ValueError, match="no space left in /dev/shm .* data.workers=0"):
        next(read(folder, workers=1))


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError("reset by peer"), FileNotFoundError("listener-a2")])
def test_a_worker_killed_while_sending_a_batch_is_reported(error: Exception) -> None:
    def answers() -> Iterator[Any]:
        yield "a batch"
        raise error

    with pytest.raises(RuntimeError, match="DataLoader worker died while sending"):
        list(reading._checked(answers()))


def test_errors_inside_a_worker_are_not_changed() -> None:
    def answers() -> Iterator[Any]:
        yield "a batch"
        raise FileNotFoundError("Caught FileNotFoundError in DataLoader worker process 0.")

    with pytest.raises(FileNotFoundError, match="Caught"):
        list(reading._checked(answers()))


def test_errors_without_workers_do_not_mention_workers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise FileNotFoundError("train-000000.tar")

    monkeypatch.setattr("data_shards.loader.tile_reader.TileReader.read", gone)
    with pytest.raises(FileNotFoundError, match="train-000000"):
        next(read(folder, workers=0))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /dev/shm")
def test_shared_memory_of_dead_workers_is_removed(folder: Path) -> None:
    data: Any = read(folder, workers=1)  # a generator
    next(data)
    [worker] = data.gi_frame.f_locals["results"]._workers
    of_it, of_another = (Path(f"/dev/shm/torch_{pid}_1_0") for pid in (worker.pid, 10**9))
    for path in (of_it, of_another):
        path.touch()
    data.close()
    assert not of_it.exists() and of_another.exists()
    of_another.unlink()


@pytest.mark.slow
def test_a_worker_out_of_memory_exits_and_is_detected(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def none_left(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("data_shards.loader.tile_reader.TileReader.read", none_left)
    with pytest.raises(RuntimeError, match="DataLoader worker .* exited unexpectedly"):
        next(read(folder, workers=1))
    assert "a data loading worker ran out of memory" in capfd.readouterr().err
