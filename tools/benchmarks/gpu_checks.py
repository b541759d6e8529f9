"""The checks of ``attributegan-bench gpu``: each compares two computations that must agree, and fails if they differ.

On a CPU, where there is no second device, it compares with the row-major memory layout, which uses other kernels and rounding.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules._functions import SyncBatchNorm

from attributegan import config
from attributegan.attributes import PUBLISHED
from attributegan.commands import child
from attributegan.config import Config
from attributegan.distributed.engine import _data_parallel
from attributegan.models import Discriminator, Generator, batchnorm
from attributegan.run_dir.checkpoint_dirs import name_of
from attributegan.training import losses
from attributegan.training.trainer import Trainer
from attributegan.utils import devices
from attributegan.utils.devices import BACKENDS
from tools.benchmarks import host_syncs
from tools.benchmarks.gpu_parts import Context, Outcome, Skip, without_launcher
from tools.benchmarks.gpu_training import (
    CONTROLLED,
    FP32,
    PLAIN,
    SGD,
    Tree,
    batch_of,
    difference,
    differing,
    require_compiler,
    settings_of,
    small,
    state_of,
    take,
    tiles,
    trainer_of,
)

STEPS, TINY_STEPS = 10, 2
TOLERANCE = 1e-4  # of weights, relative
UPDATE_TOLERANCE = 1e-2  # of the way that the weights went, which rounding changes more; a wrong gradient changes it wholly
STAGES: dict[str, tuple[int, tuple[str, ...]]] = {  # of ZeRO, and what is offloaded
    "1": (1, ()),
    "2": (2, ()),
    "3": (3, ()),
    "2 offload": (2, ("optimizer",)),
    "3 offload": (3, ("optimizer", "param")),
}
RECIPES = {"published": PLAIN, "controlled": CONTROLLED}


def steps(context: Context) -> Outcome:
    """Ten steps in fp32 without TF32, by gradient descent, whose steps are proportional to the gradients."""
    other: Tree = {"train": {"device": "cpu"} if context.device != "cpu" else {"channels_last": False}}
    rows: list[dict[str, Any]] = []
    count = TINY_STEPS if context.tiny else STEPS
    for name, recipe in RECIPES.items():
        expected, start = _trained(settings_of(context, small(context), recipe, FP32, SGD, other), count)
        found, _ = _trained(settings_of(context, small(context), recipe, FP32, SGD), count)
        rows.append({"recipe": name, "weights": difference(found, expected), "updates": difference(found, expected, start)})
    against = "the CPU" if context.device != "cpu" else "row-major maps (there is no GPU)"
    good = all(row["weights"] <= TOLERANCE and row["updates"] <= UPDATE_TOLERANCE for row in rows)
    worst = max(rows, key=lambda row: row["updates"])
    summary = f"relative difference from {against}: weights {worst['weights']:.1e}, updates {worst['updates']:.1e} ({worst['recipe']})"
    return _judged(good, summary, {"recipes": rows, "tolerance": TOLERANCE, "tolerance of updates": UPDATE_TOLERANCE})


def precisions(context: Context) -> Outcome:
    """Adam steps under autocast: finite losses and weights, and no more skipped steps than the loss scale needs."""
    rows: list[dict[str, Any]] = []
    for precision in ("bf16", "fp16"):
        trainer = trainer_of(settings_of(context, small(context), CONTROLLED, {"train": {"precision": precision}}))
        terms = take(trainer, TINY_STEPS if context.tiny else STEPS)
        finite = all(bool(value.isfinite().all()) for value in state_of(trainer).values())
        scales = {name: getattr(trainer, name).loss_scale.value for name in ("generator", "discriminator")}
        last = all(bool(value.isfinite()) for value in terms.values())
        rows.append(
            {"precision": precision, "finite": finite, "last terms finite": last, "skipped": sum(trainer.skipped.values())} | scales
        )
    good = all(row["finite"] and (row["last terms finite"] or row["precision"] == "fp16") for row in rows)
    good = good and rows[0]["skipped"] == 0 and rows[1]["skipped"] <= (2 * TINY_STEPS if context.tiny else STEPS)  # of both networks
    summary = "; ".join(f"{row['precision']}: {row['skipped']} skipped, loss scale {row['generator']:g}" for row in rows)
    return _judged(good, summary, {"precisions": rows})


def syncs(context: Context) -> Outcome:
    """Host-device synchronizations of a step after the first one, by code location."""
    rows: list[dict[str, Any]] = []
    bad: dict[str, int] = {}
    for name, recipe in RECIPES.items():
        trainer = trainer_of(settings_of(context, small(context), recipe, FP32))
        take(trainer, 1)
        batch = tiles(trainer)
        with host_syncs.HostSyncs(context.device) as counted:
            trainer.step([batch])
        bad |= host_syncs.unexpected(counted.found, context.device)
        rows += [{"recipe": name, "by": "operations", "place": place, "times": n} for place, n in sorted(counted.found.items())]
        if context.device == "cuda":
            batch = tiles(trainer)
            reported = host_syncs.reported_by_cuda(lambda trainer=trainer, batch=batch: trainer.step([batch]))  # type: ignore[misc]
            bad |= host_syncs.unexpected(reported, context.device)
            rows += [{"recipe": name, "by": "CUDA's debug mode", "place": place, "times": n} for place, n in sorted(reported.items())]
    allowed = ", ".join(f"{n} in {place}" for place, n in host_syncs.ALLOWED.items())
    return _judged(not bad, f"beyond the allowed ones ({allowed}): {bad or 'none'}", {"syncs of a step": rows})


def repeat(context: Context) -> Outcome:
    """Two identical runs; if they differ, lists the operations that torch calls nondeterministic and repeats both without these."""

    def twice() -> list[str]:
        settings = [settings_of(context, small(context), CONTROLLED, FP32) for _ in range(2)]
        return differing(*(_trained(each, TINY_STEPS if context.tiny else STEPS)[0] for each in settings))

    different = twice()
    if not different:
        return Outcome("passed", "bit-identical")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            still = twice()
    finally:
        torch.use_deterministic_algorithms(False)
    kernels = sorted({str(warning.message).split(" does not have")[0] for warning in caught if "deterministic" in str(warning.message)})
    summary = f"{len(different)} tensors differ, {len(still)} with deterministic algorithms; without one: {', '.join(kernels) or 'none'}"
    details = {"nondeterministic operations": kernels, "tensors that differ": different[:20], "with deterministic algorithms": still[:20]}
    return _judged(not still or bool(kernels), summary, details)


def checkpoint(context: Context) -> Outcome:
    """Trained and saved on the CPU, read and saved on the device, read on the CPU: every tensor to the bit, optimizers included."""
    found = []
    run = {"run": {"dir": str(context.folder / "moved"), "keep_last": 0}}
    for number, device in enumerate(("cpu", context.device, "cpu")):
        trainer = trainer_of(settings_of(context, small(context), CONTROLLED, FP32, {"train": {"device": device}}, run))
        if number == 0:
            take(trainer, 2)
        elif not trainer.resume():
            return Outcome("failed", f"no checkpoint was found on {device}")
        trainer.save()
        trainer.wait_for_checkpoint()
        last = max((context.folder / "moved" / "checkpoints").glob("images-*"))
        found.append(_tensors(last))
        last.rename(context.folder / f"saved-{number}")
        if number < 2:
            shutil.copytree(context.folder / f"saved-{number}", last)
    different = sorted({name for other in found[1:] for name in differing(found[0], other)})
    return _judged(not different, f"{len(found[0])} tensors, {len(different)} differ", {"tensors that differ": different[:20]})


def resume(context: Context) -> Outcome:
    """`attributegan-train` from shards, killed after its first checkpoint and resumed, against an uninterrupted run."""
    from tools.shard import main as shard

    shards = context.folder / "shards"
    size = small(context)["model"]["image_size"]
    if shard(["phantom", "--count", "32", "--size", str(size), "--out", str(shards), "--workers", "1"]):
        return Outcome("failed", "attributegan-shard phantom ended with an error")
    batch, ends = batch_of(context), {}
    images = (6 if context.tiny else 12) * batch  # GPUs are fast: leaves time to kill it

    def start(name: str) -> subprocess.Popen[bytes]:
        tree: Tree = {
            "data": {"shards": str(shards), "workers": 1},
            "train": {"images": images},
            "run": {"dir": str(context.folder / name), "save_every": 2 * batch, "keep_last": 0, "trackers": []},
        }
        settings = settings_of(context, small(context), PLAIN, FP32, SGD, tree)
        written = context.folder / f"{name}.yaml"
        written.write_text(config.dump(settings))
        return subprocess.Popen(child("train", "--config", str(written)), env=without_launcher(os.environ))

    for name in ("whole", "killed"):
        process = start(name)
        if name == "killed":
            _wait_for_a_checkpoint(context.folder / name, process)
            process.send_signal(signal.SIGKILL)
            process.wait()
            saved = sorted(path.name for path in (context.folder / name / "checkpoints").glob("images-*"))
            if not saved or saved[-1] == name_of(images):
                return Outcome("failed", f"attributegan-train was not killed between its first and last checkpoint, but with {saved}")
            process = start(name)
        if process.wait():
            return Outcome("failed", f"attributegan-train ended with status {process.returncode}")
        last = max((context.folder / name / "checkpoints").glob("images-*"))
        ends[name] = _tensors(last)
    different = differing(ends["killed"], ends["whole"])
    off = difference(ends["killed"], ends["whole"]) if different else 0.0
    good = off <= TOLERANCE and (not different or context.device != "cpu")
    how = "bit-identical" if not different else f"{len(different)} tensors differ, weights by {off:.1e} relative"
    return _judged(good, f"resumed against uninterrupted: {how}", {"tensors that differ": different[:20]})


def collectives(context: Context) -> Outcome:
    """Every collective that training uses, in a group of one, and gradients through DistributedDataParallel."""
    device, backend = torch.device(context.device, 0) if context.device != "cpu" else torch.device("cpu"), BACKENDS[context.device]
    torch.manual_seed(0)
    devices.prepare(context.device, tf32=False)
    with _group(backend):
        numbers = torch.arange(1000.0, device=device)
        total, parts, box = numbers.clone(), [torch.empty_like(numbers)], ["word"]
        dist.all_reduce(total)
        dist.all_gather(parts, numbers)
        dist.broadcast(numbers, src=0)
        dist.broadcast_object_list(box, src=0)
        dist.barrier()
        same = torch.equal(total, numbers) and torch.equal(parts[0], numbers) and box == ["word"]
        model = settings_of(context, small(context)).model
        network = Generator(model, PUBLISHED).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = torch.randn(4, model.latent_dim, device=device), torch.ones(4, 5, dtype=torch.int64, device=device)
        gradients = []
        for wrapped in (network, _data_parallel(network, device)):
            network.zero_grad()
            wrapped(*inputs).square().mean().backward()
            gradients.append(
                {f"generator/{name}": p.grad.detach().cpu().clone() for name, p in network.named_parameters() if p.grad is not None}
            )
    off = difference(*gradients)
    return _judged(same and off <= TOLERANCE, f"{backend}: collectives {'agree' if same else 'differ'}, gradients by {off:.1e} relative")


def sync_batchnorm(context: Context) -> Outcome:
    """The synchronised kernels, torch's SyncBatchNorm on CUDA and ours on CPUs, in a group of one, against `nn.BatchNorm2d`."""
    device = torch.device(context.device)
    rows: list[dict[str, Any]] = []
    with _group(BACKENDS[context.device]):
        for layout in (torch.contiguous_format, torch.channels_last):
            generator = torch.Generator().manual_seed(0)
            x, along = (torch.randn(8, 16, 12, 12, generator=generator).to(device).contiguous(memory_format=layout) for _ in range(2))
            found = []
            for synchronised in (True, False):
                norm, leaf = nn.BatchNorm2d(16).to(device), x.clone().requires_grad_()
                answer = _synchronised(norm, leaf) if synchronised else norm(leaf)
                answer.backward(along)
                found.append([answer, leaf.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var])
            offs = [float((a - b).detach().norm() / b.detach().norm().clamp(min=1e-12)) for a, b in zip(*found, strict=True)]
            rows.append({"layout": str(layout).removeprefix("torch."), "difference": max(offs)})
    worst = max(float(row["difference"]) for row in rows)
    return _judged(worst <= 1e-5, f"outputs, gradients and statistics within {worst:.1e} relative", {"layouts": rows})


def _synchronised(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """What `attributegan.models.batchnorm` calls with several processes."""
    running = norm.running_mean, norm.running_var
    if x.is_cuda:
        return SyncBatchNorm.apply(x, norm.weight, norm.bias, *running, norm.eps, norm.momentum, dist.group.WORLD, 1)
    return batchnorm._synchronised(x, norm.weight, norm.bias, *running, norm.momentum, norm.eps)


def zero(context: Context) -> Outcome:
    """Gradient descent under each stage and with offloading, against one unsharded process."""
    steps_taken = 2 if context.tiny else 5
    base = (small(context), PLAIN, FP32, SGD)
    expected, start = _trained(settings_of(context, *base), steps_taken)
    rows: list[dict[str, Any]] = []
    for name in ("1", "3 offload") if context.tiny else STAGES:
        stage, offload = STAGES[name]
        zero_tree = {"stage": stage} | {f"offload_{part}": {"device": "cpu"} for part in offload}
        path = context.folder / f"zero-{name.replace(' ', '-')}.json"
        path.write_text(json.dumps({"zero_optimization": zero_tree}))
        tree: Tree = {"deepspeed": {"generator": str(path), "discriminator": str(path)}}
        try:
            found, _ = _trained(settings_of(context, *base, tree), steps_taken, networks=("average",))
        except Exception as error:  # continue with the other stages
            rows.append({"ZeRO": name, "updates": "", "error": f"{type(error).__name__}: {error}"[:200]})
            continue
        average = {key: value.view_as(expected[key]) for key, value in found.items()}  # shards are flat
        updates = difference(average, {key: expected[key] for key in average}, start)
        rows.append({"ZeRO": name, "updates": updates, "error": ""})
    if dist.is_initialized():
        dist.destroy_process_group()
    good = all(not row["error"] and row["updates"] <= UPDATE_TOLERANCE for row in rows)
    summary = "; ".join(f"{row['ZeRO']}: {row['error'] or format(row['updates'], '.1e')}" for row in rows)
    return _judged(good, f"relative difference of the generator's updates: {summary}", {"stages": rows})


def graphs(context: Context) -> Outcome:
    """Both networks and the losses as one graph each: `fullgraph` raises at a break. Traced, not compiled to machine code."""
    return graphs_of({name: settings_of(context, small(context), recipe, FP32) for name, recipe in RECIPES.items()}, context.device)


def graphs_of(settings: dict[str, Config], device: str) -> Outcome:
    """`graphs` of these configurations."""
    rows: list[dict[str, Any]] = []
    for name, each in settings.items():
        for what, call in _graphs(each, torch.device(device)).items():
            torch._dynamo.reset()
            try:
                call(lambda function: torch.compile(function, backend="eager", fullgraph=True))
                problem = ""
            except Exception as error:
                problem = (str(error).splitlines() or [type(error).__name__])[0]
            rows.append({"recipe": name, "graph": what, "break": problem})
    breaks = [row for row in rows if row["break"]]
    summary = f"{len(rows) - len(breaks)} of {len(rows)} graphs have no break" + (
        f"; {breaks[0]['graph']}: {breaks[0]['break']}" if breaks else ""
    )
    return _judged(not breaks, summary, {"graphs": rows})


def _graphs(settings: Config, device: torch.device) -> dict[str, Callable[[Callable[[Any], Any]], Any]]:
    """What is compiled, by name; each gets `torch.compile` with its options."""
    model, loss = settings.model, settings.loss
    generator, discriminator = Generator(model, PUBLISHED).to(device), Discriminator(model, PUBLISHED).to(device)
    latents, levels = torch.randn(4, model.latent_dim, device=device), torch.ones(4, 5, dtype=torch.int64, device=device)
    images = torch.randn(4, 3, model.image_size, model.image_size, device=device)
    options = {"embed": loss.contrastive > 0, "reconstruct": loss.reconstruction > 0, "train_levels": loss.auxiliary > 0, "first": 2}
    embedding, proxy = torch.randn(2, 4, 20, device=device)
    found: dict[str, Callable[[Callable[[Any], Any]], Any]] = {
        "generator": lambda compiled: compiled(generator)(latents, levels).mean().backward(),
        "generator, no gradients": lambda compiled: _without_gradients(compiled(generator), latents, levels),
        "discriminator": lambda compiled: compiled(discriminator)(images, levels, **options).logits.mean().backward(),
        "hinge loss": lambda compiled: compiled(losses.hinge_discriminator)(images, images),
        "relativistic loss": lambda compiled: compiled(losses.relativistic)(images, images),
        "2C loss": lambda compiled: compiled(losses.contrastive_2c)(embedding, proxy, levels, 1.0),
        "diversity": lambda compiled: compiled(losses.diversity)(images, images.abs().mean()),
    }
    if model.auxiliary_heads:
        logits = [torch.randn(4, 2 * count, device=device) for count in PUBLISHED.num_levels]
        found["auxiliary loss"] = lambda compiled: compiled(losses.auxiliary_generator)(logits, levels)
    return found


@torch.no_grad()
def _without_gradients(network: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """As the discriminator's phase calls the generator."""
    return network(*inputs)


def compiled(context: Context) -> Outcome:
    """Steps with train.compile=true against steps without; by torch's default compiler on GPUs, only traced on CPUs."""
    require_compiler(context)
    base = (small(context), PLAIN, FP32, SGD)
    count = 2 if context.tiny else 5
    expected, start = _trained(settings_of(context, *base), count)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    plain = nn.Module.compile
    began = time.perf_counter()
    on_cpu = mock.patch.object(nn.Module, "compile", lambda module, options: plain(module, backend="eager"))
    with on_cpu if context.device == "cpu" else contextlib.nullcontext():
        found, _ = _trained(settings_of(context, *base, {"train": {"compile": True}}), count)
    off, off_update = difference(found, expected), difference(found, expected, start)
    good = off <= TOLERANCE and off_update <= UPDATE_TOLERANCE
    by = "traced (eager)" if context.device == "cpu" else "compiled (inductor)"
    summary = f"{by}: weights {off:.1e}, updates {off_update:.1e} relative, {time.perf_counter() - began:.0f} s with compiling"
    breaks = sorted({reason.splitlines()[0] for reason in counters["graph_break"]})
    summary += f", {counters['stats']['unique_graphs']} graphs, {len(breaks) or 'no'} breaks"
    return _judged(good and not breaks, summary, {"graph breaks": breaks})


def onnx(context: Context) -> Outcome:
    """The graph that `attributegan-export` writes, run by onnxruntime on this device, against the network."""
    import onnxruntime

    from attributegan.checkpoint import writer
    from attributegan.checkpoint.loading import load_for_sampling
    from attributegan.export.graphs import TOLERANCE as ONNX_TOLERANCE
    from attributegan.export.graphs import _inputs, export_onnx

    settings = settings_of(context, small(context), FP32)
    provider = "CUDAExecutionProvider" if context.device == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise Skip(f"onnxruntime has no {provider} (install onnxruntime-gpu)")
    state = {"config": settings.to_dict(), "schema": PUBLISHED.to_dict()}
    run = Path(settings.run.dir)
    writer.save(run / "checkpoints", 0, state=state, generator_ema=Generator(settings.model, PUBLISHED).state_dict())
    export_onnx(run, context.folder / "generator.onnx")
    session = onnxruntime.InferenceSession(context.folder / "generator.onnx", providers=[provider])
    if session.get_providers()[0] != provider:
        raise Skip(f"onnxruntime could not start {provider}")
    loaded = load_for_sampling(run)
    latents, levels = _inputs(loaded, 4, False)
    with torch.no_grad():
        expected = loaded.generator(latents, levels)
    found = torch.from_numpy(session.run(None, {"latents": latents.numpy(), "levels": levels.numpy()})[0])
    off = float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
    return _judged(off <= (ONNX_TOLERANCE if context.device == "cpu" else 1e-2), f"{provider}: largest difference {off:.1e} of the range")


def _trained(
    settings: Config, count: int = STEPS, networks: tuple[str, ...] = ("generator", "discriminator", "average")
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """States after ``count`` steps and before."""

    def state(trainer: Trainer) -> dict[str, Tensor]:
        return {name: value for name, value in state_of(trainer).items() if name.split("/")[0] in networks}

    trainer = trainer_of(settings)
    start = state(trainer)
    take(trainer, count)
    return state(trainer), start


def _tensors(checkpoint: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, as ``file/name``."""
    from safetensors.torch import load_file

    return {f"{path.stem}/{name}": value for path in sorted(checkpoint.glob("*.safetensors")) for name, value in load_file(path).items()}


def _judged(good: bool, summary: str, details: dict[str, Any] | None = None) -> Outcome:
    return Outcome("passed" if good else "failed", summary, details or {})


@contextlib.contextmanager
def _group(backend: str) -> Iterator[None]:
    """Context with a process group of one."""
    if dist.is_initialized():
        dist.destroy_process_group()
    if backend == "nccl":
        torch.cuda.set_device(0)
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _wait_for_a_checkpoint(run: Path, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 600  # the time limit of the part ends it sooner on GPUs
    while not list((run / "checkpoints").glob("images-*")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
