"""Comparisons of ``attributegan-bench gpu``: the same step in two forms, such as memory layouts and with torch.compile."""

from __future__ import annotations

import contextlib
import time
from typing import Any
from unittest import mock

import torch
from torch import nn

from attributegan.utils.precision import autocast
from tools.benchmarks.gpu_parts import Context, Outcome
from tools.benchmarks.gpu_speed import MODES, network_of, seconds_of, step_rate, too_large, wait
from tools.benchmarks.gpu_training import PLAIN, Tree, release, require_compiler, settings_of, take, trainer_of

BATCHES = {256: 16, 512: 8, 1024: 4}  # by size in pixels


def variants(context: Context) -> Outcome:
    """The published recipe as it is trained here, and in its plain form."""
    size, batch = (256, 2) if context.tiny else (256, 16)
    rows = []
    modes = ("fp32",) if context.tiny else ("bf16", "tf32")
    for name in modes:
        rows.append(step_rate(context, size, batch, name, {"train": {"channels_last": True}}) | {"form": "ours"})
        rows.append(_plain_rate(context, size, batch, name))
    ours, plain = rows[0].get("images/s", 0), rows[1].get("images/s", 0)
    ratio = f"{ours / plain:.2f} times the plain form" if ours and plain else "no ratio: out of memory"
    return Outcome("measured", f"{modes[0]}, batch {batch}: {ratio}", {"forms": rows})


def layouts(context: Context) -> Outcome:
    """Images/s with channels-last and with row-major maps, by image size."""
    rows, ratios = [], []
    mode = "fp32" if context.tiny else "bf16"
    for size, batch in ({32: 2} if context.tiny else BATCHES).items():
        rates = []
        for channels_last in (True, False):
            row = step_rate(context, size, batch, mode, {"train": {"channels_last": channels_last}})
            rows.append({"size": size, "channels_last": channels_last} | row)
            rates.append(row["images/s"])
        ratios.append(f"{size} px {rates[0] / rates[1]:.2f}" if all(rates) else f"{size} px out of memory")
    return Outcome("measured", f"{mode}, channels_last over row-major: {', '.join(ratios)}", {"layouts": rows})


def compile_speed(context: Context) -> Outcome:
    """Images/s with train.compile on and off, and the seconds of the first step; only traced on CPUs, without generated code."""
    on_cpu = context.device == "cpu"
    require_compiler(context)
    size, batch = (32, 2) if context.tiny else (256, BATCHES[256])
    mode = "fp32" if context.tiny else "bf16"
    rows: list[dict[str, Any]] = []
    plain = nn.Module.compile
    traced = mock.patch.object(nn.Module, "compile", lambda module, options: plain(module, backend="eager"))
    for compiled in (False, True):
        torch._dynamo.reset()
        more: Tree = {"train": {"compile": compiled, "batch": batch}}
        began = time.perf_counter()
        with traced if on_cpu else contextlib.nullcontext():
            trainer = trainer_of(settings_of(context, *network_of(context, size), PLAIN, MODES[mode], more))
            take(trainer, 1)
            wait(context)
            first = time.perf_counter() - began
            seconds = seconds_of(context, lambda trainer=trainer: take(trainer, 1), warm_up=0 if context.tiny else 4)  # type: ignore[misc]
        rows.append(
            {
                "compile": compiled,
                "precision": mode,
                "batch": batch,
                "images/s": round(batch / seconds, 2),
                "first step, s": round(first, 1),
            }
        )
    off, on = rows
    by = "traced (eager)" if on_cpu else "compiled (inductor)"
    summary = f"{size} px, {mode}, batch {batch}: {by} {on['images/s'] / off['images/s']:.2f} times as fast"
    return Outcome("measured", f"{summary}, first step {on['first step, s']} s instead of {off['first step, s']} s", {"compile": rows})


def _plain_rate(context: Context, size: int, batch: int, mode: str) -> dict[str, Any]:
    """The same of `tools.benchmarks.reference_model`, by the same autocast."""
    from tools.benchmarks.reference_model import PlainTraining

    row: dict[str, Any] = {"precision": mode, "batch": batch, "form": "plain"}
    model = settings_of(context, *network_of(context, size)).model
    precision, tf32 = MODES[mode]["train"]["precision"], bool(MODES[mode]["train"].get("tf32"))
    release(context)
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        with torch.device(context.device):
            plain = PlainTraining(model.image_size, model.latent_dim)
            images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
            levels, latents = torch.ones(batch, 5, dtype=torch.int64), torch.randn(2, batch, model.latent_dim)

            def step() -> None:
                with autocast(precision, context.device):
                    plain.step(images, levels, (latents[0], latents[1]), quadrant=0)

            seconds = seconds_of(context, step, warm_up=0 if context.tiny else 3)
    except RuntimeError as error:
        if not (reason := too_large(error)):
            raise
        return row | {"images/s": "", "peak GiB": reason}
    return row | {"images/s": round(batch / seconds, 2)}
