"""Exports the generator as a graph that runs without this package: ONNX, or a ``torch.export`` program.

Inputs are ``latents`` (batch, latent_dim) float32 and ``levels`` (batch, attributes); the output is ``images`` (batch, 3, size, size),
about [-1, 1], not clamped. The batch size is dynamic. The attributes are stored as JSON under the name ``attributes``. A file is read
back and compared with the network before it is renamed to its final name. Graphs do not validate levels.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from attributegan.checkpoint.loading import Loaded, load_for_sampling
from attributegan.sampling.latents import latents_for, levels_for
from attributegan.utils.files import atomic_path, check_file

TOLERANCE = 1e-4  # largest difference from the network's images, relative to their largest value if that exceeds 1

Call = Callable[[Tensor, Tensor], Tensor]


def export_onnx(run: str | Path, out: str | Path, raw: bool = False, fractional: bool = False) -> None:
    """Writes the generator of a run or checkpoint as the ONNX file ``out``, including weights.

    Args:
        run: run folder (its latest checkpoint) or checkpoint.
        out: file name that ends in .onnx; an existing file is replaced.
        raw: the weights as trained, instead of their average.
        fractional: ``levels`` is float32 and allows fractional levels, instead of int64.

    Raises:
        ValueError: no complete checkpoint, a path that is not writable, or a missing package.
    """
    out = Path(out)
    check_file(out, ".onnx")
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise ValueError(f"ONNX needs {', '.join(missing)}: pip install 'attributegan[export]'")
    loaded = _load(run, raw)
    with atomic_path(out) as path, _quiet():
        model = torch.onnx.export(
            _trace(loaded, fractional),
            dynamo=True,
            input_names=["latents", "levels"],
            output_names=["images"],
            dynamic_shapes=({0: "batch"}, {0: "batch"}),  # names of the dimension
            verbose=False,
        )
        assert model is not None  # guaranteed with dynamo=True
        model.model.metadata_props["attributes"] = json.dumps(loaded.schema.to_dict())
        model.save(path, external_data=False)
        _check(loaded, fractional, _onnx_call(path), path.name)


def export_program(run: str | Path, out: str | Path, raw: bool = False, fractional: bool = False) -> None:
    """Writes the generator of a run or checkpoint as ``out``, for ``torch.export.load(out).module()``.

    Args: as `export_onnx`; ``out`` ends in .pt2.

    Raises: as `export_onnx`.
    """
    out = Path(out)
    check_file(out, ".pt2")
    loaded = _load(run, raw)
    with atomic_path(out) as path, _quiet():
        torch.export.save(_trace(loaded, fractional), path, extra_files={"attributes": json.dumps(loaded.schema.to_dict())})
        _check(loaded, fractional, torch.export.load(path).module(), path.name)


def _load(run: str | Path, raw: bool) -> Loaded:
    loaded = load_for_sampling(run, ema=not raw)
    loaded.generator.requires_grad_(False)
    if not loaded.generator(*_inputs(loaded, 1, False)).isfinite().all():
        raise ValueError(f"{run}: the generator produces non-finite images; choose an earlier checkpoint")
    return loaded


def _trace(loaded: Loaded, fractional: bool) -> ExportedProgram:
    batch = Dim("batch")
    return torch.export.export(loaded.generator, _inputs(loaded, 2, fractional), dynamic_shapes=({0: batch}, {0: batch}), strict=False)


def _inputs(loaded: Loaded, batch: int, fractional: bool) -> tuple[Tensor, Tensor]:
    """Returns example latents_BL and levels_BA; fractional levels interpolate between two drawn ones."""
    latents_BL = latents_for(0, range(batch), loaded.config.model.latent_dim)
    levels_BA = levels_for(loaded.schema, 0, range(batch))
    return latents_BL, torch.lerp(levels_BA.float(), levels_for(loaded.schema, 1, range(batch)).float(), 0.3) if fractional else levels_BA


def _check(loaded: Loaded, fractional: bool, call: Call, name: str) -> None:
    """Compares with the network at the traced batch size and at others."""
    for batch in (1, 2, 3):
        inputs = _inputs(loaded, batch, fractional)
        expected = loaded.generator(*inputs)
        difference = (call(*inputs) - expected).abs().max().item() / max(1.0, expected.abs().max().item())
        if not difference <= TOLERANCE:
            raise RuntimeError(f"{name}: images differ from the network's by {difference:.1e}, more than {TOLERANCE}; nothing was written")


def _onnx_call(path: Path) -> Call:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def call(latents_BL: Tensor, levels_BA: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"latents": latents_BL.numpy(), "levels": levels_BA.numpy()})[0])

    return call


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences exporter warnings on unused packages and on torch's own code."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)
