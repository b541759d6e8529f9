"""The EMA of the generator: its rate in images, its ramp-up, its shards."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from attributegan.distributed.sharding import EvenShard, ShardedStateDict
from attributegan.training.ema import Ema


def network(value: float) -> nn.Module:
    """A network with five weights, and a batch norm of two channels with its buffers."""
    module = nn.Sequential(nn.Linear(5, 1, bias=False), nn.BatchNorm1d(2))
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.copy_(torch.full_like(tensor, value).flatten().cumsum(0).view(tensor.shape))
    return module


class Joined(EvenShard):
    """A shard of two whose `all_gather` reads the average of the other process directly."""

    averages: list[Ema] = []

    def all_gather(self, part_N: Tensor, numel: int) -> Tensor:
        (name,) = (name for name, average in self.averages[self.rank].average.items() if average is part_N)
        return torch.cat([ema.average[name] for ema in self.averages])


def engine_of(module: nn.Module, share: EvenShard | None = None) -> SimpleNamespace:
    share = share or EvenShard(0, 1)
    sharded = share.world > 1
    parameters = dict(module.named_parameters())

    def parts() -> dict[str, Tensor]:
        return {name: share.local(tensor) if sharded and name in parameters else tensor for name, tensor in module.state_dict().items()}

    return SimpleNamespace(local_state=parts, share=share, sharded=sharded, module=module)


def test_average_starts_as_the_network_and_moves_by_images() -> None:
    module = network(1)
    ema = Ema(network(1), engine_of(module), half_life=100, rampup=0)
    with torch.no_grad():
        module[0].weight += 8
    module[1].num_batches_tracked += 6
    ema.update(batch=100, images=100)  # a half-life
    with ema.whole() as average:
        assert torch.equal(average[0].weight, network(1)[0].weight + 4)
        assert average[1].num_batches_tracked == 7 and torch.equal(average[1].running_mean, module[1].running_mean)
        assert not average.training and not any(p.requires_grad for p in average.parameters())
    ema.update(batch=50, images=150)
    expected = network(1)[0].weight + 8 - 4 * 0.5**0.5
    torch.testing.assert_close(ema.average["0.weight"], expected.detach())


@pytest.mark.parametrize(("images", "weight"), [(40, 1 - 0.5**2), (1000, 1 - 0.5**0.2), (400, 1 - 0.5**0.2)])
def test_half_life_is_at_most_a_share_of_the_images_seen(images: int, weight: float) -> None:
    """With a ramp-up of a quarter and a batch of 20."""
    module = network(1)
    ema = Ema(network(0), engine_of(module), half_life=100, rampup=0.25)
    ema.update(batch=20, images=images)
    torch.testing.assert_close(ema.average["0.weight"], weight * module[0].weight.detach())


def test_average_of_a_copy_is_no_view_of_the_network() -> None:
    module = network(1)
    ema = Ema(copy.deepcopy(module), engine_of(module), 100, 0)
    with torch.no_grad():
        module[0].weight.zero_()
    assert torch.equal(ema.average["0.weight"], network(1)[0].weight)


@pytest.fixture
def shares() -> tuple[nn.Module, list[Ema]]:
    """The averages of two processes with one shard of the network each."""
    module = network(1)
    averages: list[Ema] = []
    for rank in range(2):
        share = Joined(rank, 2)
        object.__setattr__(share, "averages", averages)
        averages.append(Ema(network(1), engine_of(module, share), 100, 0))
    return module, averages


def test_shares_are_averaged_like_the_whole(shares: tuple[nn.Module, list[Ema]]) -> None:
    module, averages = shares
    single = Ema(network(1), engine_of(module), 100, 0)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor += 3
    for ema in (single, *averages):
        ema.update(30, 30)
    assert [ema.average["0.weight"].numel() for ema in averages] == [3, 2]
    assert [p.numel() for p in averages[0]._module.parameters()] == [0, 0, 0]
    for ema in averages:
        with ema.whole() as average:
            for name, tensor in single.average.items():
                assert torch.equal(average.state_dict()[name], tensor), name
        assert [p.numel() for p in ema._module.parameters()] == [0, 0, 0]  # nothing whole is kept
        with pytest.raises(KeyError), ema.whole():
            raise KeyError
        assert [p.numel() for p in ema._module.parameters()] == [0, 0, 0]


def joined(tables: list[ShardedStateDict]) -> dict[str, Tensor]:
    found = {name: torch.full(shape, float("nan")).flatten() for name, (_, shape) in tables[0].shapes.items()}
    for part in (part for table in tables for part in table.slices):
        assert found[part.name][part.start : part.start + len(part.values_N)].isnan().all(), "every element once"
        found[part.name][part.start : part.start + len(part.values_N)] = part.values_N
    return {name: tensor.view(tables[0].shapes[name][1]) for name, tensor in found.items()}


def test_state_of_shares_is_the_whole_and_is_read_back(shares: tuple[nn.Module, list[Ema]]) -> None:
    _, averages = shares
    found, expected = joined([ema.model_state() for ema in averages]), network(1).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert averages[0].model_state().shapes["1.num_batches_tracked"] == (torch.int64, ())
    other = network(2).state_dict()
    for ema in averages:
        ema.load_model_state(other.__getitem__)
    found = joined([ema.model_state() for ema in averages])
    assert all(torch.equal(found[name], tensor) for name, tensor in other.items())
