"""Batch normalisation over processes gives the results of one process with the whole batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from attributegan.attributes import PUBLISHED
from attributegan.config import ModelConfig
from attributegan.models import Generator
from attributegan.models.batchnorm import BatchNorm2d

TINY = ModelConfig(image_size=32, latent_dim=16, fmap_max=16, fmap_inverse_coef=6, generator_attention=(16,))
SHARES = [slice(0, 3), slice(3, 8)]  # images of each process, of different counts


def pair(channels: int = 4, dtype: torch.dtype = torch.float32) -> tuple[nn.BatchNorm2d, BatchNorm2d]:
    """torch's batch norm and ours with the same weights, statistics and settings, none of them a default."""
    torch.manual_seed(1)
    theirs, ours = (kind(channels, eps=0.01, momentum=0.2, dtype=dtype) for kind in (nn.BatchNorm2d, BatchNorm2d))
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def results(norm: nn.BatchNorm2d, x: torch.Tensor, grad: torch.Tensor, steps: int = 1) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    for _ in range(steps):
        y = norm(x)
    y.backward(grad.to(y.dtype))
    return {"y": y, "x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad, **dict(norm.named_buffers())}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_on_one_process_it_is_torchs_to_the_bit(dtype: torch.dtype, layout: torch.memory_format) -> None:
    theirs, ours = pair(dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    x = torch.randn(5, 4, 6, 6).to(dtype).contiguous(memory_format=layout)
    expected, found = (results(norm, x, torch.ones_like(x).cumsum(0), steps=2) for norm in (theirs, ours))
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert torch.equal(theirs.eval()(x), ours.eval()(x))


def _process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    torch.save({"norm": norm_on_shares(rank), "generator": generator_on_shares(rank)}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The results of two gloo processes."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_process, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def example() -> tuple[torch.Tensor, torch.Tensor]:
    """Maps and a gradient for 8 images, with a large mean that differs between processes, so that shortcuts are detected."""
    generator = torch.Generator().manual_seed(2)
    x, grad = (torch.randn(8, 4, 6, 6, generator=generator, dtype=torch.double) for _ in range(2))
    return 3 * x + 100 + torch.arange(8)[:, None, None, None], grad


def norm_on_shares(rank: int) -> dict:
    x, grad = (tensor[SHARES[rank]] for tensor in example())
    found = {"double": results(pair(dtype=torch.double)[1], x, grad, steps=2)}
    found["single"] = results(pair()[1], x.float(), grad.float(), steps=2)
    found["channels_last"] = results(pair()[1], x.float().contiguous(memory_format=torch.channels_last), grad.float(), steps=2)
    found["half"] = results(pair()[1], (x - 100).bfloat16(), grad.float(), steps=2)
    return {kind: {name: tensor.detach() for name, tensor in table.items()} for kind, table in found.items()}


def test_two_processes_have_the_numbers_of_one(ranks: list[dict]) -> None:
    x, grad = example()
    expected = results(pair(dtype=torch.double)[0], x, grad, steps=2)
    expected_half = results(pair(dtype=torch.double)[0], (x - 100).bfloat16().double(), grad, steps=2)
    for kind, reference, tolerance in (
        ("double", expected, 1e-10),
        ("single", expected, 1e-4),
        ("channels_last", expected, 1e-4),
        ("half", expected_half, 0.05),
    ):
        first, second = (rank["norm"][kind] for rank in ranks)
        whole = {name: torch.cat([first[name], second[name]]) for name in ("y", "x")}  # images are divided
        whole |= {name: first[name] + second[name] for name in ("weight", "bias")}  # gradients add up
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(first[name], second[name]), name
            whole[name] = first[name]
        for name, tensor in reference.items():
            torch.testing.assert_close(
                whole[name].to(tensor.dtype), tensor, atol=tolerance, rtol=tolerance / 10, msg=lambda text, name=name: f"{name}: {text}"
            )
    assert ranks[0]["norm"]["channels_last"]["y"].is_contiguous(memory_format=torch.channels_last)
    assert ranks[0]["norm"]["half"]["y"].dtype == torch.bfloat16 and ranks[0]["norm"]["half"]["running_var"].dtype == torch.float32


def generator_step(share: slice, recompute: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    generator = Generator(TINY, PUBLISHED).double()
    generator.activation_checkpointing = recompute
    latents, grad = torch.randn(8, 16, dtype=torch.double), torch.randn(8, 3, 32, 32, dtype=torch.double)
    levels = torch.randint(3, (8, 5))
    images = generator(latents[share], levels[share])
    images.backward(grad[share])
    gradients = {f"{name}.grad": parameter.grad for name, parameter in generator.named_parameters()}
    return {"images": images.detach(), **gradients, **dict(generator.named_buffers())}


def generator_on_shares(rank: int) -> dict:
    return {kind: generator_step(SHARES[rank], recompute=kind == "recomputed") for kind in ("kept", "recomputed")}


def test_recomputation_updates_no_statistics() -> None:
    kept, recomputed = (generator_step(slice(0, 8), recompute) for recompute in (False, True))
    assert kept["stages.0.norm.num_batches_tracked"] == 1
    assert [name for name in kept if not torch.equal(kept[name], recomputed[name])] == []


def test_generator_on_two_processes_with_and_without_recomputation(ranks: list[dict]) -> None:
    expected = generator_step(slice(0, 8), recompute=False)
    first, second = (rank["generator"] for rank in ranks)
    for kind in ("kept", "recomputed"):
        for name, tensor in expected.items():
            a, b = first[kind][name], second[kind][name]
            whole = torch.cat([a, b]) if name == "images" else a + b if name.endswith(".grad") else a
            torch.testing.assert_close(whole, tensor, atol=1e-10, rtol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_statistics_are_updated_again_after_a_recomputation() -> None:
    torch.manual_seed(0)
    generator = Generator(TINY, PUBLISHED)
    generator.activation_checkpointing = True
    latents, levels = torch.randn(4, 16), torch.zeros(4, 5, dtype=torch.long)
    for _ in range(3):
        generator(latents, levels).sum().backward()
    assert {int(buffer) for name, buffer in generator.named_buffers() if name.endswith("num_batches_tracked")} == {3}
