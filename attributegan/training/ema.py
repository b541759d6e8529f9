"""Exponential moving average of the generator's weights, counted in images; sharded if the generator is sharded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from attributegan.distributed.engine import Engine, Read
from attributegan.distributed.sharding import ShardedStateDict, TensorSlice


class Ema:
    """The exponential moving average (EMA) of an engine's network, in eval mode.

    The half-life is in images, so that it does not depend on the batch size, and ramps up with the images seen, so that short
    runs don't average over their first steps (Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion
    Models", CVPR 2024, and StyleGAN2's ramp-up).

    Args:
        copy: a copy of the network, made before the engine wrapped it.
        engine: its network is averaged.
        half_life: in images.
        rampup: limits the half-life to this fraction of the images seen; 0 for no limit.
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
        """Updates the average after ``images`` images, ``batch`` of them since the last update."""
        half_life = min(self.half_life, self.rampup * images) if self.rampup else self.half_life
        weight = 1 - 0.5 ** (batch / half_life)
        current = self.engine.local_state()
        names = [name for name, tensor in self.average.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.average[name] for name in names], [current[name] for name in names], weight)
        if counters := list(self.average.keys() - set(names)):
            torch._foreach_copy_([self.average[name] for name in counters], [current[name] for name in counters])

    @contextlib.contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """Gathers the averaged network for sampling inside the context; every process must enter it.

        Yields:
            the network in eval mode.
        """
        share, parameters = self.engine.share, dict(self._module.named_parameters())
        for name in self._sharded:
            parameters[name].data = share.all_gather(self.average[name], self.shapes[name].numel()).view(self.shapes[name])
        try:
            yield self._module
        finally:
            self._release()

    def model_state(self) -> ShardedStateDict:
        """Returns averaged parameters and buffers."""
        share = self.engine.share
        whole = {name: self.average[name] for name in self.average if name not in self._sharded}
        state_dict = ShardedStateDict.replicated(whole, share)
        for name in self._sharded:
            first = share.bounds(self.shapes[name].numel())[0]
            state_dict.add(name, self.average[name].dtype, self.shapes[name], [TensorSlice(name, first, self.average[name])])
        return state_dict

    def load_model_state(self, read: Read) -> None:
        """Loads what `model_state` returned; ``read`` returns a whole tensor by name."""
        for name, average in self.average.items():
            average.copy_(self.engine.share.local(read(name)) if name in self._sharded else read(name))

    def _release(self) -> None:
        """Frees the whole weights of sharded parameters."""
        parameters = dict(self._module.named_parameters())
        for name in self._sharded:
            parameters[name].data = parameters[name].data.new_empty(0)
