"""`attributegan.distributed.adam`: torch's Adam with bitwise equal results for any partition of the weights."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from attributegan.distributed.adam import Adam

NUMEL = 1003
LEARNING_RATE, BETAS = 1e-3, (0.5, 0.9)


def trained(kind: type[torch.optim.Optimizer], cuts: list[int], dtype: torch.dtype = torch.float32, **options: object) -> dict[str, Tensor]:
    """Weights and moments after five steps, with the weights split at ``cuts``."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(NUMEL, generator=generator).to(dtype)
    slices = [nn.Parameter(part.clone()) for part in weights.tensor_split(cuts)]
    optimizer = kind(slices, lr=LEARNING_RATE, betas=BETAS, **options)  # type: ignore[call-arg]
    for step in range(5):
        gradient = (torch.randn(NUMEL, generator=generator) * 10.0 ** (step - 2)).to(dtype)
        for parameter, part in zip(slices, gradient.tensor_split(cuts), strict=True):
            parameter.grad = part.clone()
        optimizer.step()
    found = {key: torch.cat([optimizer.state[part][key] for part in slices]) for key in ("exp_avg", "exp_avg_sq")}
    return found | {"weights": torch.cat([part.detach() for part in slices])}


@pytest.mark.parametrize("cuts", [[7], [16, 500], [3, 5, 499, 1000]])
def test_results_do_not_depend_on_the_partition(cuts: list[int]) -> None:
    whole, cut = trained(Adam, []), trained(Adam, cuts)
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_it_is_adam(dtype: torch.dtype, tolerance: float) -> None:
    found, expected = trained(Adam, [7, 500], dtype), trained(torch.optim.Adam, [7, 500], dtype)
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], atol=tolerance, rtol=tolerance)


def test_weights_and_gradients_may_differ_in_memory_format() -> None:
    generator = torch.Generator().manual_seed(2)
    start, gradient = (torch.randn(5, 3, 3, 3, generator=generator) for _ in range(2))
    results = []
    for weights_format in (torch.contiguous_format, torch.channels_last):
        for gradient_format in (torch.contiguous_format, torch.channels_last):
            weights = nn.Parameter(start.clone(memory_format=weights_format))
            weights.grad = gradient.clone(memory_format=gradient_format)
            Adam([weights], LEARNING_RATE, BETAS).step()
            results.append(weights.detach().contiguous())
    assert all(torch.equal(result, results[0]) for result in results) and not torch.equal(results[0], start)


def test_other_devices_get_one_call_in_the_layout_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel of CUDA requires, which refuses lists of tensors with different strides."""
    weights = nn.Parameter(torch.empty(5, 3, 3, 3, device="meta").to(memory_format=torch.channels_last))
    weights.grad = torch.empty(5, 3, 3, 3, device="meta")
    calls: list[list[list[Tensor]]] = []
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda parameter: None)
    monkeypatch.setattr("attributegan.distributed.adam._fused", lambda group, tensors, steps: calls.append(tensors))
    Adam([weights], LEARNING_RATE, BETAS).step()
    (tensors,) = calls
    assert {tensor.stride() for of_all in tensors for tensor in of_all} == {weights.stride()} != {torch.empty(5, 3, 3, 3).stride()}


def test_weights_without_a_gradient_stay() -> None:
    with_one, without = nn.Parameter(torch.ones(20)), nn.Parameter(torch.ones(20))
    with_one.grad = torch.ones(20)
    optimizer = Adam([with_one, without], LEARNING_RATE, BETAS)
    optimizer.step()
    assert torch.equal(without, torch.ones(20)) and without not in optimizer.state
    assert int(optimizer.state[with_one]["step"]) == 1


def test_it_is_a_fused_optimizer_to_torch() -> None:
    """On CUDA, torch then loads the step counts to the device of the weights, as the kernel requires."""
    (group,) = Adam([nn.Parameter(torch.ones(2))], LEARNING_RATE, BETAS).param_groups
    assert group["fused"] is True and group["betas"] == BETAS and group["lr"] == LEARNING_RATE


def test_learning_rate_is_used_and_groups_without_gradients_are_skipped() -> None:
    first, second = (nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = Adam([{"params": [first]}, {"params": [second]}], lr=0.25, betas=(0.0, 0.9))
    second.grad = torch.full((3,), 2.0)
    optimizer.step()
    assert first.tolist() == [1, 1, 1] and second.tolist() == pytest.approx([0.75] * 3, abs=1e-6)  # the first step of Adam is the rate
