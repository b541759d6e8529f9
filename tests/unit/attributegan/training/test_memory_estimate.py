"""The memory report, and the partition of tensors into even shards."""

import pytest
import torch
from torch import nn

from attributegan.distributed.sharding import EvenShard, ShardedStateDict
from attributegan.training import memory_estimate


def test_estimate_is_the_size_of_the_tensors() -> None:
    """Weights, gradients, both moments and an average, of a network after one step."""
    network = nn.Linear(30, 20)
    adam = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 30)).sum().backward()
    adam.step()
    tensors = [*network.parameters(), *(p.grad for p in network.parameters())]
    tensors += [value for state in adam.state.values() for value in state.values() if value.numel() > 1]
    average = [p.clone() for p in network.parameters()]
    need = memory_estimate.estimate(620, stage=0, world=4, moments=2, averaged=True)
    assert need.total == sum(tensor.numel() * tensor.element_size() for tensor in [*tensors, *average])


def test_higher_stages_shard_more() -> None:
    needs = [memory_estimate.estimate(1000, stage, world=4, moments=2, averaged=True) for stage in range(4)]
    assert [need.model_state for need in needs] == [4000, 4000, 4000, 1000]
    assert [need.gradients for need in needs] == [4000, 4000, 1000, 1000]
    assert [need.optimizer for need in needs] == [8000, 3000, 3000, 3000]
    assert [need.average for need in needs] == [4000, 1000, 1000, 1000]


def test_report_names_each_network_its_stage_and_the_others() -> None:
    generator, discriminator = memory_estimate.lines(
        {"generator": 2**20, "discriminator": 2**20}, {"generator": 3, "discriminator": 0}, 2, 2
    )
    assert "memory of the generator" in generator and "ZeRO stage 3" in generator and "stage 0 20.0 MiB" in generator
    assert "ZeRO stage 0" in discriminator and "EMA 0.0 MiB" in discriminator and "stage 2 12.0 MiB" in discriminator
    assert "stage 1" not in memory_estimate.lines({"generator": 10}, {"generator": 0}, 1, 2)[0]  # no sharding with one process


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (4, 6), (3, 3, 2, 2)])
def test_shares_are_disjoint_and_complete(world: int, shape: tuple[int, ...]) -> None:
    whole = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    if whole.ndim == 4:
        whole = whole.contiguous(memory_format=torch.channels_last)  # shards are in row-major order nevertheless
    tables = [ShardedStateDict.replicated({"w": whole}, EvenShard(rank, world)) for rank in range(world)]
    joined = torch.full((whole.numel(),), float("nan"))
    for part in (part for table in tables for part in table.slices):
        target = joined[part.start : part.start + len(part.values_N)]
        assert target.isnan().all()
        target.copy_(part.values_N)
    assert torch.equal(joined.view(shape), whole)
