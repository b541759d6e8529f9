"""The measurements of ``attributegan-bench gpu``: rates, memory and waits; meaningless with tiny sizes."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from attributegan.attributes import PUBLISHED
from attributegan.models import Generator
from attributegan.training import trainer as trainer_module
from attributegan.training.phases import discriminator_phase, generator_phase
from attributegan.training.trainer import Trainer
from attributegan.utils.precision import AUTOCAST
from tools.benchmarks.gpu_parts import Context, Outcome
from tools.benchmarks.gpu_training import PLAIN, TINY, Tiles, Tree, release, settings_of, take, tiles, trainer_of

LEAST_S = 1.0  # of a measurement
KERNELS = 15  # of the profile that are listed
TOO_LARGE = {  # in error messages of torch, cuDNN and cuBLAS: what it means
    "out of memory": "out of memory",
    "ALLOC_FAILED": "out of memory",
    "unable to find an engine": "out of memory",  # of cuDNN, whose kernels need workspace
    "allocate memory": "out of memory",  # of CPUs
    "32-bit": "too large for 32-bit indices",
    "32BitIndex": "too large for 32-bit indices",
}
MODES: dict[str, Tree] = {
    "bf16": {"train": {"precision": "bf16"}},
    "tf32": {"train": {"precision": "fp32", "tf32": True}},
    "fp32": {"train": {"precision": "fp32", "tf32": False}},
    "fp16": {"train": {"precision": "fp16"}},
}


def speed_256(context: Context) -> Outcome:
    return _speed(context, 256)


def speed_512(context: Context) -> Outcome:
    return _speed(context, 512)


def speed_1024(context: Context) -> Outcome:
    return _speed(context, 1024)


def _speed(context: Context, size: int) -> Outcome:
    """Images/s of steps of the published recipe: precisions at the smallest batch, then batches to as many as fit in the fastest."""
    modes = ["fp32", "bf16"] if context.tiny else list(MODES)
    first, until = (2 if context.tiny else 8), time.monotonic() + (5 if context.tiny else 60)
    operations = _operations(context, size)
    rates = {name: convolution_rate(context, name) for name in modes}
    rows: list[dict[str, Any]] = []
    best, problem = "bf16", ""
    plan = [(name, first) for name in modes]
    while plan and time.monotonic() < until:
        name, batch = plan.pop(0)
        began = time.monotonic()
        try:
            row = step_rate(context, size, batch, name)
        except RuntimeError as error:  # keep the other rows
            problem = f"{name}, batch {batch}: {(str(error).splitlines() or [type(error).__name__])[0]}"
            break
        rate = row["images/s"]
        row["share of convolution rate"] = round(rate * operations / rates[name], 3) if rate else ""
        rows.append(row)
        if len(rows) == len(modes):
            fastest = [each for each in rows if each.get("images/s")]
            best = max(fastest, key=lambda each: each["images/s"])["precision"] if fastest else best
        if not plan and rate and not context.tiny and time.monotonic() + 2 * (time.monotonic() - began) < until:
            plan = [(best, 2 * batch)]
    top = max((row for row in rows if row.get("images/s")), key=lambda row: row["images/s"], default={})
    details = {
        "GFLOP an image": round(operations / 1e9, 1),
        "convolution rate, TFLOP/s": [{name: round(rate / 1e12, 3) for name, rate in rates.items()}],
        "larger batches": problem or ("not tried, for lack of time" if rows and rows[-1]["images/s"] else "don't fit"),
        "steps": rows,
    }
    if not top:
        return Outcome("failed", problem or f"no batch fits: {rows}", details)
    summary = f"{top['images/s']:,.1f} images/s in {top['precision']} with batch {top['batch']}, peak {top['peak GiB']} GiB"
    summary = f"{summary}, {top['share of convolution rate']:.0%} of the convolution rate"
    return Outcome("failed", f"{problem}; before it {summary}", details) if problem else Outcome("measured", summary, details)


def profile(context: Context) -> Outcome:
    """Seconds to the first step, of each phase and of the slowest kernels."""
    began = time.perf_counter()
    size, batch = (32, 2) if context.tiny else (256, 16)
    trainer = trainer_of(settings_of(context, *network_of(context, size), PLAIN, MODES["bf16"], {"train": {"batch": batch}}))
    take(trainer, 1)
    wait(context)
    first = time.perf_counter() - began
    take(trainer, 0 if context.tiny else 5)
    phases = _phase_seconds(context, trainer)
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    on_gpu = context.device == "cuda"
    with profiler(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as found:
        take(trainer, 1 if context.tiny else 3)
        wait(context)

    def seconds(event: Any) -> float:
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6

    events = sorted(kernels(found.key_averages(), on_gpu), key=seconds, reverse=True)
    total = sum(map(seconds, events))
    rows = [
        {"kernel": event.key[:100], "share": f"{seconds(event) / total:.1%}", "ms": round(1e3 * seconds(event), 2), "calls": event.count}
        for event in events[:KERNELS]
    ]
    top = f"{rows[0]['kernel']} {rows[0]['share']}" if rows else "not known: the profiler recorded no kernels (CUPTI may lack permission)"
    spent = {name: round(1e3 * value, 2) for name, value in phases.items()}
    parts = ", ".join(f"{name} {value:.0f} ms" for name, value in spent.items())
    details = {"seconds to the first step": round(first, 2), "phases, ms": [spent], "kernels": rows}
    return Outcome("measured", f"first step after {first:.1f} s; phases: {parts}; most: {top}", details)


def kernels(events: Iterable[Any], on_gpu: bool) -> list[Any]:
    """Returns the events of kernels alone: not the calls around them, nor named ranges such as "Optimizer.step", which contain kernels."""
    kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    return [event for event in events if event.device_type == kind and not getattr(event, "is_user_annotation", False)]


def loader(context: Context) -> Outcome:
    """Steps on tiles from JPEG shards, read and decoded in the background, and the time spent waiting for them."""
    from data_shards.loader.loader import batches
    from data_shards.loader.shard_set import ShardSet
    from data_shards.sampler.global_order import GlobalShuffle
    from data_shards.worker_pool import available

    size, batch, count = (32, 2, 16) if context.tiny else (256, 16, 512)
    workers = 1 if context.tiny else max(1, min(8, available() - 1))
    shards = ShardSet.open(str(_jpeg_shards(context, size, count)), "train")
    trainer = trainer_of(settings_of(context, *network_of(context, size), PLAIN, MODES["bf16"], {"train": {"batch": batch}}))
    take(trainer, 1)
    start = trainer.images
    reader = batches(
        shards,
        GlobalShuffle(shards.levels_NA, 0, 1.0),
        start=start,
        batch=batch,
        micro_batches=1,
        rank=0,
        world=1,
        workers=workers,
        flips=True,
        image_size=size,
        pin_memory=context.device == "cuda",
    )
    waited, total, ahead = 0.0, 0.0, 2  # the first ones start the workers
    try:
        for number in range(ahead + (2 if context.tiny else 20)):
            wait(context)
            began = time.perf_counter()
            found = next(reader)
            read = time.perf_counter()
            trainer.step([found])
            wait(context)
            if number >= ahead:
                waited, total = waited + read - began, total + time.perf_counter() - began
    finally:
        reader.close()
    summary = f"{waited / total:.1%} of a step at {size} px, batch {batch}, {workers} workers"
    return Outcome("measured", f"waits {summary}", {"wait share": round(waited / total, 4), "workers": workers, "batch": batch})


def sampling(context: Context) -> Outcome:
    """Tiles/s of `attributegan-sample`'s generation."""
    from attributegan.sampling.generate import generate, prepare_for_inference

    size, batch = (32, 4) if context.tiny else (512, 32)
    settings = settings_of(context, *network_of(context, size))
    generator = prepare_for_inference(Generator(settings.model, PUBLISHED), context.device)
    latents, levels = torch.randn(batch, settings.model.latent_dim), torch.ones(batch, 5, dtype=torch.int64)
    rows = []
    for name in ("fp32", "bf16"):
        seconds = seconds_of(context, lambda name=name: generate(generator, latents, levels, batch, name))  # type: ignore[misc]
        rows.append({"precision": name, "tiles/s": round(batch / seconds, 1)})
    return Outcome(
        "measured", f"{size} px: " + ", ".join(f"{row['tiles/s']} tiles/s in {row['precision']}" for row in rows), {"rates": rows}
    )


def evaluation(context: Context) -> Outcome:
    """The costliest parts of an evaluation: features of tiles on the device, and distances between them."""
    import numpy as np

    from attributegan.metrics import features

    count, batch = (8, 4) if context.tiny else (1024, 64)
    network = features.load(features.DEFAULT)
    device = torch.device(context.device)
    network = network.to(device)
    tiles_NHWC = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    network(tiles_NHWC[:batch], device)
    began = time.perf_counter()
    found = np.concatenate([network(tiles_NHWC[first : first + batch], device) for first in range(0, count, batch)])
    seconds = time.perf_counter() - began
    return Outcome("measured", f"{count / seconds:,.0f} tiles/s of {features.DEFAULT}", {"tiles": count, "width": found.shape[1]})


def explorer(context: Context) -> Outcome:
    """Milliseconds from a request to the whole PNG, through the server."""
    from tools.benchmarks import explore

    settings = settings_of(context, *network_of(context, 32 if context.tiny else 512))
    from attributegan.checkpoint import writer

    run = Path(settings.run.dir)
    state = {"config": settings.to_dict(), "schema": PUBLISHED.to_dict()}
    writer.save(run / "checkpoints", 0, state=state, generator_ema=Generator(settings.model, PUBLISHED).state_dict())
    with explore._served(run) as location:
        visitor = explore._Visitor(location, 3 if context.tiny else 20)
        visitor.moves()
        values = [visitor.moves() for _ in range(1 if context.tiny else 3)]
    return Outcome("measured", f"{settings.model.image_size} px: {statistics.median(values):.1f} ms a tile", {"ms": values})


def convolution_rate(context: Context, mode: str) -> float:
    """Floating-point operations a second of 3 x 3 convolutions, forward with both gradients, in a precision: the best of three shapes.

    Maps and weights have the dtype of the precision, so that no time goes into casts.
    """
    precision, tf32 = MODES[mode]["train"]["precision"], bool(MODES[mode]["train"].get("tf32"))
    dtype = AUTOCAST.get(precision, torch.float32)
    torch.backends.cudnn.allow_tf32 = tf32
    rates = []
    for channels, size in ((8, 16),) if context.tiny else ((128, 64), (256, 64), (512, 32)):
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        conv = conv.to(context.device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = torch.randn(2 if context.tiny else 32, channels, size, size, device=context.device, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        along = torch.ones_like(x)

        def work(conv: nn.Conv2d = conv, x: torch.Tensor = x, along: torch.Tensor = along) -> None:
            x.grad = conv.weight.grad = None
            conv(x).backward(along)

        with FlopCounterMode(display=False) as counter:
            work()
        rates.append(counter.get_total_flops() / seconds_of(context, work, least_s=0.02 if context.tiny else 0.3))
    return max(rates)


def network_of(context: Context, size: int) -> tuple[Tree, ...]:
    """The published network at a size; with tiny sizes a narrow one of at most 256 px."""
    if not context.tiny:
        return ({"model": {"image_size": size}},)
    return ({"model": {"image_size": 256, "latent_dim": 16, "fmap_max": 16}},) if size == 256 else (TINY,)


def _trainer(context: Context, size: int, batch: int, mode: str, more: Tree | None = None) -> Trainer:
    # In tests the plain form alone needs 256 px.
    network = network_of(context, size if more or not context.tiny else 32)
    return trainer_of(settings_of(context, *network, PLAIN, MODES[mode], {"train": {"batch": batch}}, more or {}))


def _operations(context: Context, size: int) -> float:
    """Floating-point operations of a step for each image."""
    trainer = _trainer(context, size, 2, "fp32")
    take(trainer, 1)
    with FlopCounterMode(display=False) as counter:
        take(trainer, 1)
    return counter.get_total_flops() / 2


def step_rate(context: Context, size: int, batch: int, mode: str, more: Tree | None = None) -> dict[str, Any]:
    """Images/s and peak memory of steps; a row without a rate when they don't fit."""
    row: dict[str, Any] = {"precision": mode, "batch": batch}
    release(context)
    try:
        trainer = _trainer(context, size, batch, mode, more)
        found = tiles(trainer)
        images = found.images_BCHW.pin_memory() if context.device == "cuda" else found.images_BCHW  # as from the loader

        def step() -> None:
            trainer.step([Tiles(images, found.levels_BA, trainer.images)])

        for _ in range(0 if context.tiny else 4):
            step()
        if context.device == "cuda":
            torch.cuda.reset_peak_memory_stats()  # cuDNN's autotuner, in the first steps, tries large workspaces
        seconds = seconds_of(context, step, warm_up=0)
    except RuntimeError as error:
        if not (reason := too_large(error)):
            raise
        return row | {"images/s": "", "peak GiB": reason}
    peak = round(torch.cuda.max_memory_allocated() / 2**30, 2) if context.device == "cuda" else "?"
    return row | {"images/s": round(batch / seconds, 2), "peak GiB": peak}


def too_large(error: RuntimeError) -> str:
    """Returns why a batch does not fit the device; "" for other errors."""
    message = str(error)
    return next((reason for part, reason in TOO_LARGE.items() if part in message), "")


def _phase_seconds(context: Context, trainer: Trainer) -> dict[str, float]:
    """Median seconds of the two phases and of the rest of a step, each waited for."""
    spent: dict[str, list[float]] = {"discriminator": [], "generator": [], "rest": []}

    def timed(name: str, phase: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **options: Any) -> Any:
            wait(context)
            began = time.perf_counter()
            answer = phase(*words, **options)
            wait(context)
            spent[name].append(time.perf_counter() - began)
            return answer

        return call

    with (
        mock.patch.object(trainer_module, "discriminator_phase", timed("discriminator", discriminator_phase)),
        mock.patch.object(trainer_module, "generator_phase", timed("generator", generator_phase)),
    ):
        for _ in range(1 if context.tiny else 5):
            began = time.perf_counter()
            take(trainer, 1)
            wait(context)
            spent["rest"].append(time.perf_counter() - began - spent["discriminator"][-1] - spent["generator"][-1])
    return {name: statistics.median(values) for name, values in spent.items()}


def _jpeg_shards(context: Context, size: int, count: int) -> Path:
    """Shards of drawn tiles as JPEGs of quality 90; a few different ones, each under many names."""
    from PIL import Image

    from data_shards.phantoms import render
    from tools.shard import main

    pictures, lines = context.folder / "jpegs", ["file,slide,cell_crowding,cell_polarity,mitosis,nucleoli,pleomorphism"]
    pictures.mkdir()
    encoded = []
    for number, levels_A in enumerate(islice(render.draw_levels(32, 0), min(count, 32))):
        buffer = io.BytesIO()
        Image.fromarray(render.render(levels_A.tolist(), size, 0, number)).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    for number in range(count):
        data = encoded[number % len(encoded)]
        (pictures / f"t{number:05d}.jpg").write_bytes(data[:2] + b"\xff\xfe\x00\x06" + number.to_bytes(4, "big") + data[2:])
        lines.append(f"t{number:05d}.jpg,s{number % 20},{number % 5},{number % 4},{number % 4},{number % 3},{number % 5}")
    table, shards = context.folder / "jpegs.csv", context.folder / "shards"
    table.write_text("\n".join(lines) + "\n")
    words = [
        "pack",
        "--quick",
        "--images",
        str(pictures),
        "--labels",
        str(table),
        "--group",
        "slide",
        "--out",
        str(shards),
        "--workers",
        "1",
    ]
    if main(words):
        raise RuntimeError(f"attributegan-shard {' '.join(words)} ended with an error")
    return shards


def seconds_of(context: Context, work: Callable[[], Any], warm_up: int = 1, least_s: float | None = None) -> float:
    """Mean seconds of ``work``, over at least two calls and ``least_s`` seconds.

    Waits for the device only when the number of calls has doubled, so that calls are queued as in training.
    """
    least_s = (0.0 if context.tiny else LEAST_S) if least_s is None else least_s
    for _ in range(warm_up):
        work()
    wait(context)
    began, calls, more = time.perf_counter(), 0, 1 if context.tiny else 2
    while True:
        for _ in range(more):
            work()
        wait(context)
        calls += more
        seconds = time.perf_counter() - began
        if seconds >= least_s:
            return seconds / calls
        more = calls


def wait(context: Context) -> None:
    """Wait until the device has finished its queued work."""
    if context.device == "cuda":
        torch.cuda.synchronize()
