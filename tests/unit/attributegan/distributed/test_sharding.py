"""Even shards of tensors, and gathering them."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from time_limits import seconds

from attributegan.distributed.sharding import EvenShard, ShardedStateDict, TensorSlice


@pytest.mark.parametrize(
    ("numel", "world", "bounds"),
    [
        (7, 3, [(0, 3), (3, 6), (6, 7)]),
        (6, 3, [(0, 2), (2, 4), (4, 6)]),
        (4, 3, [(0, 2), (2, 4), (4, 4)]),
        (1, 3, [(0, 1), (1, 1), (1, 1)]),
        (0, 2, [(0, 0), (0, 0)]),
        (5, 1, [(0, 5)]),
    ],
)
def test_bounds_by_hand(numel: int, world: int, bounds: list[tuple[int, int]]) -> None:
    assert [EvenShard(rank, world).bounds(numel) for rank in range(world)] == bounds
    values = torch.arange(float(numel))
    assert [EvenShard(rank, world).local(values).tolist() for rank in range(world)] == [values[a:b].tolist() for a, b in bounds]


def test_shard_is_in_row_major_order_and_a_view() -> None:
    whole = torch.arange(6.0).view(2, 3)
    EvenShard(1, 2).local(whole).add_(10)
    assert whole.tolist() == [[0, 1, 2], [13, 14, 15]]
    assert EvenShard(0, 2).local(torch.arange(6.0).view(3, 2).T).tolist() == [0, 2, 4]


def test_state_dict_has_no_empty_slices_and_all_shapes() -> None:
    tensors = {"a": torch.ones(2, 2, requires_grad=True), "b": torch.tensor(3)}
    first, last = (ShardedStateDict.replicated(tensors, EvenShard(rank, 3)) for rank in (0, 2))
    assert first.shapes == last.shapes == {"a": (torch.float32, (2, 2)), "b": (torch.int64, ())}
    assert [(part.name, part.start, part.values_N.tolist()) for part in first.slices] == [("a", 0, [1, 1]), ("b", 0, [3])]
    assert last.slices == [] and not first.slices[0].values_N.requires_grad
    last.add("c", torch.float64, torch.Size([5]), [TensorSlice("c", 3, torch.ones(2)), TensorSlice("c", 0, torch.ones(0))])
    assert last.shapes["c"] == (torch.float64, (5,)) and [part.start for part in last.slices] == [3]


def _join(rank: int, folder: Path, answers: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=3)
    share = EvenShard(rank, 3)
    answers.put([share.all_gather(share.local(torch.arange(1.0, numel + 1)), numel).tolist() for numel in (1, 4, 6, 7)])
    dist.destroy_process_group()


def test_every_process_gets_the_whole(tmp_path: Path) -> None:
    here = torch.arange(4.0)
    assert EvenShard(0, 1).all_gather(here, 4) is here
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    processes = [context.Process(target=_join, args=(rank, tmp_path, answers), daemon=True) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds(60))
    assert [process.exitcode for process in processes] == [0, 0, 0]
    expected = [list(map(float, range(1, numel + 1))) for numel in (1, 4, 6, 7)]
    assert [answers.get() for _ in range(3)] == [expected] * 3
