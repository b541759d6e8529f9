"""The exponential moving average of the generator, counted in images; in shards where the generator is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from attributegan.distributed.engine import Engine, Read
from attributegan.distributed.sharding import ShardedStateDict, TensorSlice


class Ema:
    """An averaged copy of an engine's network, in eval mode.

    The half-life is in images and ramps up with the images seen, so that batch size changes nothing and short runs do
    not average over their first steps (Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion
    Models", CVPR 2024, and StyleGAN2's ramp-up).

    Args:
        copy: a copy of the network, made before the engine took it.
        engine: whose network is followed.
        half_life: images after which an old weight counts half.
        rampup: the half-life is at most this share of the images seen; 0 for no such limit.
    """

    def __init__(self, copy: nn.Module, engine: Engine, half_life: float, rampup: float) -> None:
        self._module = copy.eval().requires_grad_(False)
        self.engine, self.half_life, self.rampup = engine, half_life, rampup
        whole, parts = self._module.state_dict(), engine.local_state()
        self.shapes = {name: tensor.shape for name, tensor in whole.items()}
        self._sharded = [name for name, _ in self._module.named_parameters()] if engine.sharded else []
        self.average = {name: parts[name].detach().clone() if name in self._sharded else whole[name] for name in whole}
        self._release()

    @torch.no_grad()
    def update(self, batch: int, images: int) -> None:
        """Move towards the network, which has now seen ``images`` images, ``batch`` of them since the last update."""
        half_life = min(self.half_life, self.rampup * images) if self.rampup else self.half_life
        weight = 1 - 0.5 ** (batch / half_life)
        current = self.engine.local_state()
        names = [name for name, tensor in self.average.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.average[name] for name in names], [current[name] for name in names], weight)
        if counters := list(self.average.keys() - set(names)):
            torch._foreach_copy_([self.average[name] for name in counters], [current[name] for name in counters])

    @contextlib.contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """The averaged network to sample from, while inside; every process enters."""
        share, parameters = self.engine.share, dict(self._module.named_parameters())
        for name in self._sharded:
            parameters[name].data = share.all_gather(self.average[name], self.shapes[name].numel()).view(self.shapes[name])
        try:
            yield self._module
        finally:
            self._release()

    def model_state(self) -> ShardedStateDict:
        share = self.engine.share
        table = ShardedStateDict.replicated({name: self.average[name] for name in self.average if name not in self._sharded}, share)
        for name in self._sharded:
            first = share.bounds(self.shapes[name].numel())[0]
            table.add(name, self.average[name].dtype, self.shapes[name], [TensorSlice(name, first, self.average[name])])
        return table

    def load_model_state(self, read: Read) -> None:
        for name, average in self.average.items():
            average.copy_(self.engine.share.local(read(name)) if name in self._sharded else read(name))

    def _release(self) -> None:
        """Keep no whole weights where a share is enough."""
        parameters = dict(self._module.named_parameters())
        for name in self._sharded:
            parameters[name].data = parameters[name].data.new_empty(0)
