"""A state into its tile, and the tile into a PNG that says what it is."""

from __future__ import annotations

import functools
import io
import json
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from attributegan.sampling import generate, latents
from tools.explorer.model import Model
from tools.explorer.state import State, query_of

NOTICE = "Synthetic tissue, made by a model. It shows no patient and is not for diagnosis."
KEPT = 64  # tiles that stay in memory: what a visitor compares with is drawn once


class Painter:
    """Draws the tiles of one model, for one thread."""

    def __init__(self, model: Model, precision: str = "fp32") -> None:
        self.model, self.precision = model, precision
        self.generator = generate.prepare_for_inference(model.generator, "cuda" if torch.cuda.is_available() else "cpu")
        self._kept = functools.lru_cache(KEPT)(self._draw)

    def tile(self, state: State) -> np.ndarray:
        """(H, W, 3) uint8, in the size that the model makes."""
        return self._kept(replace(state, size=0))

    def png(self, state: State, told: bool = True) -> bytes:
        """The tile in the state's size, as a PNG; ``told``: with what it was made from as text."""
        return png(self.tile(state), state.size, self._texts(state) if told else {})

    def _draw(self, state: State) -> np.ndarray:
        start_BL, end_BL = (latents.latents_for(seed, [0], self.generator.latent_dim) for seed in (state.seed, state.mix_seed))
        latents_BL = latents.slerp(start_BL, end_BL, state.mix) if state.mix else start_BL
        if state.truncation is not None:
            latents_BL = latents.truncate_latents(latents_BL, state.truncation)
        whole = all(level == int(level) for level in state.levels)
        levels_BA = torch.tensor([state.levels], dtype=torch.int64 if whole else torch.float32)
        return generate.generate(self.generator, latents_BL, levels_BA, precision=self.precision)[0]

    def _texts(self, state: State) -> dict[str, str]:
        schema, model = self.generator.schema, self.model
        latent = {"seed": state.seed, "mix_seed": state.mix_seed, "mix": state.mix, "truncation": state.truncation}
        return {
            "attributegan:levels": json.dumps(schema.written(state.levels)),
            "attributegan:seed": str(state.seed),
            "attributegan:latent": json.dumps(latent),
            "attributegan:model": json.dumps({"name": model.name, "checkpoint": model.identity, "images": model.images}),
            "attributegan:link": "?" + query_of(schema, state, model.identity),
        }


def png(tile_HWC: np.ndarray, size: int, texts: dict[str, str]) -> bytes:
    """A tile enlarged to ``size`` pixels, with ``texts`` and a notice in the file; 0 for the tile's own size."""
    picture = Image.fromarray(tile_HWC)
    if size not in (0, picture.width):
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    info = PngInfo()
    for key, text in ({"Software": "attributegan", "Disclaimer": NOTICE} | texts).items():
        info.add_text(key, text)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", pnginfo=info, compress_level=1)
    return buffer.getvalue()
