"""Gradients of transposed convolutions in either layout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from attributegan.models import conv_transpose


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 4, dtype=dtype, generator=generator).contiguous(memory_format=torch.channels_last)
    return x.requires_grad_(), torch.randn(3, 2, 4, 4, dtype=dtype, generator=generator).requires_grad_()


def test_the_layout_of_gradients_is_chosen_by_instruction_set() -> None:
    assert (torch.backends.cpu.get_cpu_capability() == "AVX2") == conv_transpose.ROW_MAJOR


@pytest.mark.parametrize("row_major", [True, False])
def test_gradients_in_either_layout(row_major: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_transpose, "ROW_MAJOR", row_major)
    x, weight = inputs(torch.float32)
    output = conv_transpose.conv_transpose2d(x, weight, stride=2, padding=1)
    expected = F.conv_transpose2d(x, weight, stride=2, padding=1)
    assert ("RowMajor" in type(output.grad_fn).__name__) == row_major and torch.equal(output, expected)
    along = torch.linspace(-1, 1, output.numel()).reshape(output.shape).contiguous(memory_format=torch.channels_last)
    grads = torch.autograd.grad(output, (x, weight), along)
    for grad, other in zip(grads, torch.autograd.grad(expected, (x, weight), along), strict=True):
        torch.testing.assert_close(grad, other, rtol=1e-5, atol=1e-5)
    assert grads[0].is_contiguous(memory_format=torch.channels_last)


def test_other_precisions_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_transpose, "ROW_MAJOR", True)
    x, weight = inputs(torch.float64)
    assert "RowMajor" not in type(conv_transpose.conv_transpose2d(x, weight, stride=2, padding=1).grad_fn).__name__
    with torch.autocast("cpu", torch.bfloat16):
        output = conv_transpose.conv_transpose2d(x.float(), weight.float(), stride=2, padding=1)
    assert output.dtype == torch.bfloat16


def test_row_major_gradients_can_be_differentiated_and_left_out() -> None:
    x, weight = inputs(torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: conv_transpose._RowMajorGradients.apply(a, b, 2, 1), (x, weight))
    assert torch.autograd.gradgradcheck(lambda a, b: conv_transpose._RowMajorGradients.apply(a, b, 2, 1), (x, weight))
    output = conv_transpose._RowMajorGradients.apply(x.detach(), weight, 2, 2)
    (grad,) = torch.autograd.grad(output.sum(), weight)
    (expected,) = torch.autograd.grad(F.conv_transpose2d(x, weight, stride=2, padding=2).sum(), weight)
    torch.testing.assert_close(grad, expected)
