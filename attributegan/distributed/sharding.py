"""Which part of a tensor a process holds or writes: the even share, and pieces of any place and length.

Pure arithmetic but for `EvenShard.all_gather`, which is a collective. What the tensors mean is elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class EvenShard:
    """An even share: of n elements in row-major order, process r of W has [r c, (r + 1) c) with c = ceil(n / W); ZeRO-3's partition."""

    rank: int
    world: int

    def size(self, numel: int) -> int:
        """c, the length of every share but the last ones."""
        return -(-numel // self.world)

    def bounds(self, numel: int) -> tuple[int, int]:
        """First element of the share and the one after its last; equal for an empty share."""
        size = self.size(numel)
        return min(self.rank * size, numel), min((self.rank + 1) * size, numel)

    def local(self, tensor: Tensor) -> Tensor:
        """The share of a tensor, 1-D; a view of a contiguous one."""
        first, end = self.bounds(tensor.numel())
        return tensor.reshape(-1)[first:end]

    def all_gather(self, part_N: Tensor, numel: int) -> Tensor:
        """The ``numel`` elements whose shares the processes hold; every process calls and gets them all."""
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
    """Named tensors: types and shapes of all, and this process's pieces; the processes together have each element once."""

    shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = field(default_factory=dict)
    slices: list[TensorSlice] = field(default_factory=list)

    @classmethod
    def replicated(cls, tensors: Mapping[str, Tensor], share: EvenShard) -> ShardedStateDict:
        """Of tensors that every process has whole: each contributes its even share."""
        table = cls()
        for name, tensor in tensors.items():
            table.add(name, tensor.dtype, tensor.shape, [TensorSlice(name, share.bounds(tensor.numel())[0], share.local(tensor.detach()))])
        return table

    def add(self, name: str, dtype: torch.dtype, shape: Iterable[int], slices: Iterable[TensorSlice]) -> None:
        self.shapes[name] = (dtype, tuple(shape))
        self.slices += [part for part in slices if len(part.values_N)]
