"""Sharding of tensors over processes: even shards, and state dicts of arbitrary slices.

Pure arithmetic except for `EvenShard.all_gather`, which is a collective.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class EvenShard:
    """The even partition of ZeRO-3: of n elements in row-major order, process r of W has [r c, (r + 1) c) with c = ceil(n / W)."""

    rank: int
    world: int

    def size(self, numel: int) -> int:
        """Returns c, the length of every shard except the last ones."""
        return -(-numel // self.world)

    def bounds(self, numel: int) -> tuple[int, int]:
        """Returns the first element of the shard and the one after its last; equal for an empty shard."""
        size = self.size(numel)
        return min(self.rank * size, numel), min((self.rank + 1) * size, numel)

    def local(self, tensor: Tensor) -> Tensor:
        """Returns this process's shard of a whole tensor, 1-D; a view if the tensor is contiguous."""
        first, end = self.bounds(tensor.numel())
        return tensor.reshape(-1)[first:end]

    def all_gather(self, part_N: Tensor, numel: int) -> Tensor:
        """Gathers the shards of all processes into ``numel`` elements, 1-D; every process must call it."""
        if self.world == 1:
            return part_N
        padded = part_N.new_zeros(self.size(numel))
        padded[: len(part_N)] = part_N
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded)
        return torch.cat(parts)[:numel]


@dataclass(frozen=True)
class TensorSlice:
    """Elements ``start`` to ``start + N`` of the flattened tensor ``name``."""

    name: str
    start: int
    values_N: Tensor


@dataclass
class ShardedStateDict:
    """A state dict of which this process holds some slices; all processes together hold every element exactly once.

    Attributes:
        shapes: dtype and shape of every whole tensor.
        slices: those of this process.
    """

    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = field(default_factory=dict)
    slices: list[TensorSlice] = field(default_factory=list)

    @classmethod
    def replicated(cls, tensors: Mapping[str, Tensor], share: EvenShard) -> ShardedStateDict:
        """Builds the state dict of replicated tensors: each process contributes its even shard."""
        state_dict = cls()
        for name, tensor in tensors.items():
            local = TensorSlice(name, share.bounds(tensor.numel())[0], share.local(tensor.detach()))
            state_dict.add(name, tensor.dtype, tensor.shape, [local])
        return state_dict

    def add(self, name: str, dtype: torch.dtype, shape: Iterable[int], slices: Iterable[TensorSlice]) -> None:
        """Adds a tensor with this process's slices, which may be empty."""
        self.shapes[name] = (dtype, tuple(shape))
        self.slices += [part for part in slices if len(part.values_N)]
