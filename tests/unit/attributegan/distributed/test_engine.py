"""One network in training on one process: loss scaling, clipping, skipped steps, and saving and loading of its state."""

import contextlib
import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from attributegan.config import Config, OptimConfig
from attributegan.distributed.adam import Adam
from attributegan.distributed.engine import DataParallel, optimizer
from attributegan.distributed.engine import LossScale as Scale
from attributegan.distributed.sharding import ShardedStateDict

START = torch.tensor([[3.0, -4.0]])


def engine_of(world: int = 1, precision: str = "fp32", rate: float = 0.1, **optim: Any) -> DataParallel:
    """An engine of one linear layer with weights 3 and -4; `loss` has the gradient (6, 8), of norm 10."""
    config = dataclasses.replace(
        Config(), train=dataclasses.replace(Config().train, precision=precision), optim=dataclasses.replace(OptimConfig(), **optim)
    )
    runtime = SimpleNamespace(
        rank=0, world=world, config=config, device=torch.device("cpu"), autocast=lambda: torch.autocast("cpu", torch.bfloat16)
    )
    module = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(START)
    return DataParallel(runtime, module, rate, compile=False)


def loss(engine: DataParallel) -> Tensor:
    return (engine.module.weight * torch.tensor([[6.0, 8.0]])).sum()


def test_loss_scale_is_halved_by_a_bad_step_and_doubled_after_enough_good_ones() -> None:
    scale = Scale(enabled=True)
    assert (scale.value, scale.good_steps, Scale.GROWTH_INTERVAL) == (65536.0, 0, 2000)
    for _ in range(Scale.GROWTH_INTERVAL - 1):
        scale.update(taken=True)
    scale.update(taken=False)
    assert (scale.value, scale.good_steps) == (32768.0, 0)
    for _ in range(Scale.GROWTH_INTERVAL - 1):
        scale.update(taken=True)
    assert (scale.value, scale.good_steps) == (32768.0, Scale.GROWTH_INTERVAL - 1)
    scale.update(taken=True)
    assert (scale.value, scale.good_steps) == (65536.0, 0)
    scale.update(taken=True)
    assert scale.state() == {"enabled": True, "value": 65536.0, "good_steps": 1}


def test_loss_scale_follows_the_rule_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scale, "GROWTH_INTERVAL", 20)
    ours, theirs = Scale(enabled=True), torch.amp.GradScaler("cpu", init_scale=Scale.INITIAL, growth_interval=Scale.GROWTH_INTERVAL)
    parameter = nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([parameter], lr=0.0)
    for step in range(4 * Scale.GROWTH_INTERVAL):
        good = step not in (5, 27, 28)
        parameter.grad = theirs.scale(torch.tensor([1.0 if good else float("inf")]))
        theirs.step(sgd)
        theirs.update()
        ours.update(good)
        assert ours.value == theirs.get_scale(), step


def test_loss_scale_that_is_off_stays_one() -> None:
    scale = Scale(enabled=False)
    for taken in (True, False, True):
        scale.update(taken)
    assert scale.state() == {"enabled": False, "value": 1.0, "good_steps": 0}
    scale.load({"enabled": True, "value": 8.0, "good_steps": 5})
    assert scale.value == 1.0 and scale.good_steps == 0


def test_loss_scale_resumes_from_one_that_was_on() -> None:
    scale = Scale(enabled=True)
    scale.load({"enabled": True, "value": 8.0, "good_steps": 5})
    assert (scale.value, scale.good_steps) == (8.0, 5)
    for state in ({"enabled": False, "value": 1.0, "good_steps": 7}, {"value": 1.0, "good_steps": 7}):
        scale.load(state)
        assert (scale.value, scale.good_steps) == (8.0, 5)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("clip", "moved"), [(0.0, 1.0), (5.0, 0.5), (20.0, 1.0)])
def test_step_goes_down_the_clipped_gradient_and_gives_its_norm_before(precision: str, clip: float, moved: float) -> None:
    engine = engine_of(precision=precision, name="sgd", grad_clip=clip)
    engine.backward(loss(engine) / 2)
    engine.backward(loss(engine) / 2)  # of two micro-batches
    assert engine.module.weight.grad[0, 0] == 6 * (2**16 if precision == "fp16" else 1)
    norm, taken = engine.step()
    assert taken and float(norm) == pytest.approx(10)
    torch.testing.assert_close(engine.module.weight.detach(), START - 0.1 * moved * torch.tensor([[6.0, 8.0]]), rtol=1e-5, atol=1e-5)
    assert engine.module.weight.grad is None
    assert engine.loss_scale.good_steps == (precision == "fp16")


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), -float("inf"), 0.0])
def test_step_that_is_not_finite_is_not_taken(factor: float) -> None:
    engine = engine_of(precision="fp16", name="sgd")
    engine.backward(loss(engine))
    if factor:
        engine.backward(torch.zeros((), requires_grad=True) + factor + 0 * loss(engine))  # its gradient is 0 everywhere
    norm, taken = engine.step()
    assert taken == torch.isfinite(norm).item() == (factor == 0)
    assert torch.equal(engine.module.weight.detach(), START) == (factor != 0)
    assert engine.module.weight.grad is None and engine.loss_scale.value == (2.0**16 if taken else 2.0**15)


def test_weights_without_a_gradient_do_not_hinder_a_step() -> None:
    engine = engine_of(name="sgd")
    norm, taken = engine.step()
    assert taken and float(norm) == 0 and torch.equal(engine.module.weight.detach(), START)


def test_network_runs_in_the_precision_of_the_run_and_frozen_keeps_no_gradients() -> None:
    engine = engine_of()
    x = torch.ones(1, 2, requires_grad=True)
    assert engine(x).dtype == engine.unwrapped(x).dtype == torch.bfloat16
    with engine.frozen():
        assert not engine.module.weight.requires_grad
        engine(x).sum().backward()
    assert engine.module.weight.grad is None and engine.module.weight.requires_grad and x.grad.tolist() == START.tolist()


@pytest.mark.parametrize("compile", [False, True])
def test_network_is_replicated_and_compiled_on_request(compile: bool) -> None:
    runtime, module = engine_of().runtime, nn.Linear(2, 1)
    engine = DataParallel(runtime, module, 0.1, compile)
    assert engine.wrapped is module and (module._compiled_call_impl is not None) == compile
    assert not engine.sharded and {name: tensor.shape for name, tensor in engine.local_state().items()} == engine.shapes


def test_optimizers() -> None:
    parameters = [nn.Parameter(torch.ones(2))]
    (sgd,), (adam,) = (optimizer(OptimConfig(name=name, betas=(0.1, 0.2)), parameters, 0.25).param_groups for name in ("sgd", "adam"))
    assert sgd["lr"] == adam["lr"] == 0.25 and adam["betas"] == (0.1, 0.2) and sgd["momentum"] == 0
    assert type(optimizer(OptimConfig(), parameters, 0.25)) is Adam


def whole(table: ShardedStateDict) -> dict[str, Tensor]:
    """The tensors of a state dict from a single process."""
    assert {part.start for part in table.slices} <= {0}
    return {part.name: part.values_N.clone().view(table.shapes[part.name][1]) for part in table.slices}


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_state_round_trip(name: str) -> None:
    def convolution(seed: int) -> DataParallel:
        torch.manual_seed(seed)
        engine = engine_of(name=name)
        module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1))
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        module[2].weight.requires_grad_(False)
        return DataParallel(engine.runtime, module, 0.1, compile=False)

    def train(engine: DataParallel, steps: int) -> None:
        for k in range(steps):
            engine.backward(engine.module(torch.ones(2, 3, 4, 4).cumsum(3) * (k + 1)).square().mean())
            assert engine.step()[1]

    first, second = convolution(0), convolution(1)
    train(first, 3)
    weights, moments = whole(first.model_state()), whole(first.optimizer_state())
    assert weights.keys() == first.module.state_dict().keys() == first.local_state().keys()
    trained = [n for n, p in first.module.named_parameters() if p.requires_grad]
    kinds = ("step", "exp_avg", "exp_avg_sq") if name == "adam" else ()
    assert moments.keys() == {f"{n}.{kind}" for n in trained for kind in kinds}
    second.load_model_state(weights.__getitem__)
    second.load_optimizer_state(frozenset(moments), moments.__getitem__)
    for engine in (first, second):
        train(engine, 2)
    for n, tensor in first.module.state_dict().items():
        assert torch.equal(second.module.state_dict()[n], tensor), n
    assert all(torch.equal(tensor, whole(second.optimizer_state())[n]) for n, tensor in whole(first.optimizer_state()).items())


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_only_the_last_micro_batch_synchronises_gradients() -> None:
    with process_group():
        engine = engine_of(world=2, name="sgd")
        assert isinstance(engine.wrapped, nn.parallel.DistributedDataParallel) and engine.wrapped.module is engine.module
        assert not engine.wrapped.broadcast_buffers and engine.wrapped.gradient_as_bucket_view
        synchronised = []
        for last in (False, True):
            with engine.micro_batch(last):
                synchronised.append(engine.wrapped.require_backward_grad_sync)
                engine.backward(engine(torch.ones(1, 2)).float().sum())
        assert synchronised == [False, True] and engine.module.weight.grad.tolist() == [[2.0, 2.0]]
        del engine.wrapped
    with engine_of().micro_batch(last=False) as nothing:
        assert nothing is None
