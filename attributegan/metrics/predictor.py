"""Attribute predictors: networks that predict the levels of a tile, trained on real tiles only, to measure control.

They share neither weights nor architecture with the networks in training: a generator can fool a predictor that it was trained against,
and in part one of the same architecture (observed: pleomorphism 0.84 by such a one, 0.67 by this one). Two kinds: a small CNN, for large
sets whose levels can be learnt from pixels, and an ordinal head on the features of `features`, for small sets.
Both predict every attribute as a real number on the scale of its assessable levels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from attributegan.attributes import UNKNOWN, AttributeSchema
from attributegan.metrics import control
from attributegan.utils.files import atomic_write
from attributegan.utils.rng import Purpose, rng_for

CNN_STEPS, CNN_BATCH, CNN_WIDTHS = 600, 32, (12, 24, 48, 96)
CNN_RATE, CNN_DECAY = 2e-3, 1e-2
CNN_SIZE = 128  # pixels; larger tiles are resized
DECAYS = (1e-3, 1e-2, 1e-1, 1.0)  # candidates for the weight decay of the ordinal head
FOLDS = 4
MAX_WEIGHT = 10.0  # of the tiles of a rare level
PREDICT_BATCH = 64


class AttributePredictor(nn.Module):
    """Base class; ``forward`` returns the logits of "above level k" for each attribute and each assessable level but the highest."""

    def __init__(self, schema: AttributeSchema) -> None:
        super().__init__()
        self.schema = schema

    @property
    def outputs(self) -> int:
        """The number of logits K over all attributes."""
        return sum(len(attribute.assessable) - 1 for attribute in self.schema.attributes)

    @torch.inference_mode()
    def predict(self, tiles_NHWC: np.ndarray, features_ND: np.ndarray | None = None) -> np.ndarray:
        """Predicts levels.

        The lowest level plus the sum of the probabilities of being above each level (ordinal regression with binary outputs; Niu et
        al., CVPR 2016).

        Args:
            tiles_NHWC: uint8.
            features_ND: features of the tiles; required by `Head`, ignored by `Cnn`.

        Returns:
            (N, A) predicted levels.
        """
        device = next(self.parameters()).device
        parts = []
        for first in range(0, len(tiles_NHWC), PREDICT_BATCH):
            rows = slice(first, first + PREDICT_BATCH)
            logits_BK = self.eval()(*self.inputs(tiles_NHWC[rows], None if features_ND is None else features_ND[rows], device))
            parts.append(self._expected(logits_BK.double()).cpu().numpy())
        return np.concatenate(parts)

    def inputs(self, tiles_NHWC: np.ndarray, features_ND: np.ndarray | None, device: torch.device) -> tuple[Tensor, ...]:
        """Returns the arguments of ``forward`` for a batch."""
        raise NotImplementedError

    def _expected(self, logits_BK: Tensor) -> Tensor:
        """Returns expected levels (B, A)."""
        columns, first = [], 0
        for attribute in self.schema.attributes:
            steps = torch.tensor(np.diff(attribute.assessable), device=logits_BK.device)
            above_BL = logits_BK[:, first : first + len(steps)].sigmoid()
            columns.append(attribute.assessable[0] + (above_BL * steps).sum(dim=1))
            first += len(steps)
        return torch.stack(columns, dim=1)


class Cnn(AttributePredictor):
    """Residual blocks with max pooling, then a linear head on the mean and maximum over the map and on `coherence`."""

    kind = "cnn"

    def __init__(self, schema: AttributeSchema) -> None:
        super().__init__(schema)
        first, *others = CNN_WIDTHS
        self.stem = nn.Conv2d(3, first, 5, padding=2)
        self.blocks = nn.ModuleList(_Block(a, b) for a, b in zip(CNN_WIDTHS, others, strict=False))
        self.scale = nn.BatchNorm1d(2 * others[-1] + COHERENCES)
        self.head = nn.Linear(2 * others[-1] + COHERENCES, self.outputs)

    def inputs(self, tiles_NHWC: np.ndarray, features_ND: np.ndarray | None, device: torch.device) -> tuple[Tensor, ...]:
        return (_images(tiles_NHWC, device),)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        map_BCHW = self.stem(images_BCHW * 2 - 1)
        for k, block in enumerate(self.blocks):
            map_BCHW = block(map_BCHW if k == 0 else F.max_pool2d(map_BCHW, 2))
        map_BCHW = F.gelu(map_BCHW)
        return self.head(self.scale(torch.cat([map_BCHW.mean(dim=(2, 3)), map_BCHW.amax(dim=(2, 3)), coherence(images_BCHW)], dim=1)))


class _Block(nn.Module):
    """Pre-activation residual block (He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.skip = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.residual = nn.Sequential(
            nn.BatchNorm2d(channels_in),
            nn.GELU(),
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.GELU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.skip(x_BCHW) + self.residual(x_BCHW)


class Head(AttributePredictor):
    """Proportional odds model on standardised features (McCullagh 1980): one direction per attribute, one threshold per level."""

    kind = "features"
    mean_D: Tensor
    scale_D: Tensor
    decay: Tensor  # weight decay used for the fit

    def __init__(self, schema: AttributeSchema, width: int) -> None:
        super().__init__(schema)
        self.register_buffer("mean_D", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("scale_D", torch.ones(width, dtype=torch.float64))
        self.register_buffer("decay", torch.zeros((), dtype=torch.float64))
        self.weight_AD = nn.Parameter(torch.zeros(len(schema.attributes), width, dtype=torch.float64))
        self.threshold_K = nn.Parameter(torch.zeros(self.outputs, dtype=torch.float64))

    def inputs(self, tiles_NHWC: np.ndarray, features_ND: np.ndarray | None, device: torch.device) -> tuple[Tensor, ...]:
        assert features_ND is not None
        return (head_inputs(tiles_NHWC, features_ND, device),)

    def forward(self, inputs_BD: Tensor) -> Tensor:
        score_BA = ((inputs_BD - self.mean_D) / self.scale_D) @ self.weight_AD.T
        repeats = torch.tensor([len(attribute.assessable) - 1 for attribute in self.schema.attributes], device=score_BA.device)
        return score_BA.repeat_interleave(repeats, dim=1) - self.threshold_K

    @torch.inference_mode()
    def predict_inputs(self, inputs_ND: Tensor) -> np.ndarray:
        """Predicts levels (N, A) as `predict` does, from `head_inputs`."""
        return np.asarray(self._expected(self(inputs_ND)).cpu().numpy())


COHERENCES = 4
NUCLEAR = (0.3, 0.6)  # absorbance to which images are clipped


# Deliberately not shared with `attributegan.models.heads.coherence`: the predictor has no code in common with the networks in training.
def coherence(images_BCHW: Tensor) -> Tensor:
    """Measures how parallel edges are, 0 to 1, at two scales, weighted by squared and by plain gradient magnitude: (B, 4).

    The length of the mean doubled-angle gradient over the mean magnitude (structure tensor; Bigun and Granlund 1987). Convolutions
    with pooling hardly learn this, because the direction itself is arbitrary.
    """
    # Red light is absorbed almost only by hematoxylin. Clipped absorbance gives the edges of all nuclei one height, whatever the stain.
    dark_B1HW = images_BCHW[:, :1].clamp(min=1 / 255).log().neg().clamp(*NUCLEAR)
    columns = []
    for pool in (1, 2):
        dark = F.avg_pool2d(dark_B1HW, pool)[:, 0]
        down, right = (dark[:, 2:, 1:-1] - dark[:, :-2, 1:-1]), (dark[:, 1:-1, 2:] - dark[:, 1:-1, :-2])
        strength = right**2 + down**2
        for weight in (torch.ones_like(strength), strength.clamp(min=1e-12).rsqrt()):
            along, across = ((right**2 - down**2) * weight).mean(dim=(1, 2)), (2 * right * down * weight).mean(dim=(1, 2))
            columns.append(torch.hypot(along, across) / (strength * weight).mean(dim=(1, 2)).clamp(min=1e-12))
    return torch.stack(columns, dim=1)


def _images(tiles_NHWC: np.ndarray, device: torch.device) -> Tensor:
    """Converts uint8 tiles to [0, 1], resized to at most `CNN_SIZE`."""
    from attributegan.metrics.features import resize

    return resize(tiles_NHWC, min(tiles_NHWC.shape[1], CNN_SIZE), device) / 255


def head_inputs(tiles_NHWC: np.ndarray, features_ND: np.ndarray, device: torch.device) -> Tensor:
    """Returns the inputs of `Head` for uint8 tiles and their features, float64: features, then `coherence`."""
    extra_BE = coherence(_images(tiles_NHWC, device))
    return torch.cat([torch.from_numpy(features_ND).to(device), extra_BE], dim=1).double()


def fit_cnn(
    tiles_NHWC: np.ndarray,
    levels_NA: np.ndarray,
    schema: AttributeSchema,
    seed: int = 0,
    steps: int = CNN_STEPS,
    device: torch.device | None = None,
    progress: Any = None,
) -> Cnn:
    """Trains the CNN on corrupted tiles, so that it relies on shapes and not on the noise of a camera or a generator.

    On a CPU the same tiles and seed give the same weights.

    Args:
        tiles_NHWC: uint8 real tiles.
        levels_NA: their levels.
        schema: the attributes.
        seed: of weights and batches.
        steps: of the optimizer.
        device: where to train.
        progress: called with the number of finished steps.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng_for(seed, Purpose.PREDICTOR_WEIGHTS).initial_seed())
        network = Cnn(schema).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=CNN_RATE, weight_decay=CNN_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, CNN_RATE, total_steps=steps)
    targets_NK, weights_NK = (torch.from_numpy(array).float() for array in _targets(levels_NA, schema))
    network.train()
    for step in range(steps):
        rng = rng_for(seed, Purpose.PREDICTOR_TILES, step)
        row_B = torch.randint(len(tiles_NHWC), (min(CNN_BATCH, len(tiles_NHWC)),), generator=rng)
        images_BCHW = _images(tiles_NHWC[row_B.numpy()], network.head.weight.device)
        quarter_turns, mirror = (int(torch.randint(n, (), generator=rng)) for n in (4, 2))
        images_BCHW = _corrupted(torch.rot90(images_BCHW.flip(3) if mirror else images_BCHW, quarter_turns, (2, 3)), rng)
        loss = F.binary_cross_entropy_with_logits(
            network(images_BCHW), targets_NK[row_B].to(images_BCHW.device), weights_NK[row_B].to(images_BCHW.device)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress:
            progress(step + 1)
    return network.eval()


def _corrupted(images_BCHW: Tensor, rng: torch.Generator) -> Tensor:
    """Augments images: blur of half of them by up to 70 %, contrast +-15 % and brightness +-0.075 per channel, noise up to 0.08."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(len(images_BCHW), *shape, generator=rng).to(images_BCHW.device)

    blurred = F.avg_pool2d(F.pad(images_BCHW, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = images_BCHW.lerp(blurred, 0.7 * uniform(1, 1, 1) * (uniform(1, 1, 1) < 0.5))
    images = (images - 0.5) * (0.85 + 0.3 * uniform(3, 1, 1)) + 0.5 + 0.15 * (uniform(3, 1, 1) - 0.5)
    noise = torch.randn(images.shape, generator=rng).to(images.device)
    return (images + 0.08 * uniform(1, 1, 1) * noise).clamp(0, 1).contiguous(memory_format=torch.channels_last)


def fit_head(
    tiles_NHWC: np.ndarray,
    features_ND: np.ndarray,
    levels_NA: np.ndarray,
    group_N: np.ndarray,
    schema: AttributeSchema,
    device: torch.device | None = None,
    decay: float | None = None,
) -> Head:
    """Fits the ordinal head.

    Args:
        tiles_NHWC: uint8 real tiles.
        features_ND: their features.
        levels_NA: their levels.
        group_N: their groups (slides), for cross-validation.
        schema: the attributes.
        device: where to fit.
        decay: weight decay; by default the one of `DECAYS` with the best cross-validated rank correlation.
    """
    place = torch.device(device or "cpu")
    parts = [head_inputs(tiles_NHWC[rows], features_ND[rows], place) for rows in _slices(len(tiles_NHWC))]
    return fit_head_on(torch.cat(parts), levels_NA, folds(group_N), schema, decay)


def fit_head_on(inputs_ND: Tensor, levels_NA: np.ndarray, fold_N: np.ndarray, schema: AttributeSchema, decay: float | None = None) -> Head:
    """Fits the ordinal head on prepared inputs.

    Args:
        inputs_ND: of `head_inputs`.
        levels_NA: levels of the tiles.
        fold_N: folds of the cross-validation; -1 for tiles that train in every fold and are not scored.
        schema: the attributes.
        decay: weight decay; by default the one of `DECAYS` with the best cross-validated rank correlation.
    """
    head = Head(schema, inputs_ND.shape[1]).to(inputs_ND.device)
    head.mean_D, head.scale_D = inputs_ND.mean(dim=0), inputs_ND.std(dim=0, correction=int(len(inputs_ND) > 1)).clamp(min=1e-6)
    if decay is None:
        decay = _best_decay(head, inputs_ND, levels_NA, fold_N)
    head.decay.fill_(decay)
    _minimise(head, inputs_ND, levels_NA, decay)
    return head


def _best_decay(head: Head, inputs_ND: Tensor, levels_NA: np.ndarray, fold_N: np.ndarray) -> float:
    """Returns the weight decay with the best mean rank correlation in cross-validation; the smallest with a single fold."""
    scored_N = fold_N >= 0
    if len(np.unique(fold_N[scored_N])) < 2:
        return DECAYS[0]
    correlations = []
    for decay in DECAYS:
        predicted_NA = np.zeros(levels_NA.shape)
        for fold in np.unique(fold_N[scored_N]):
            _minimise(head, inputs_ND[torch.from_numpy(fold_N != fold)], levels_NA[fold_N != fold], decay)
            with torch.inference_mode():
                predicted_NA[fold_N == fold] = head._expected(head(inputs_ND[torch.from_numpy(fold_N == fold)])).cpu().numpy()
        correlations.append(mean_spearman(head.schema, levels_NA[scored_N], predicted_NA[scored_N]))
    return DECAYS[int(np.argmax(correlations))]


def _minimise(head: Head, inputs_ND: Tensor, levels_NA: np.ndarray, decay: float) -> None:
    targets_NK, weights_NK = (torch.from_numpy(array).to(inputs_ND.device) for array in _targets(levels_NA, head.schema))
    for parameter in head.parameters():
        parameter.data.zero_()
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(head(inputs_ND), targets_NK, weights_NK) + decay * head.weight_AD.square().sum()
        value.backward()
        return value

    optimizer.step(loss)


def _slices(count: int) -> list[slice]:
    return [slice(first, first + PREDICT_BATCH) for first in range(0, count, PREDICT_BATCH)]


def folds(group_N: np.ndarray, max_folds: int = FOLDS) -> np.ndarray:
    """Assigns every tile to one of at most ``max_folds`` folds of about equal size, without splitting groups."""
    groups, index_N, counts_G = np.unique(group_N, return_inverse=True, return_counts=True)
    size_F, fold_G = np.zeros(min(max_folds, len(groups))), np.zeros(len(groups), int)
    for group in np.argsort(-counts_G, kind="stable"):
        fold_G[group] = size_F.argmin()
        size_F[fold_G[group]] += counts_G[group]
    return fold_G[index_N]


def _targets(levels_NA: np.ndarray, schema: AttributeSchema) -> tuple[np.ndarray, np.ndarray]:
    """Returns binary targets "level above k" and their weights, (N, K) each.

    Weights balance the levels of an attribute (at most `MAX_WEIGHT`); "not assessable" and unknown levels have weight 0.
    """
    targets, weights = [], []
    for attribute, level_N in zip(schema.attributes, levels_NA.T, strict=True):
        counts_L = np.bincount(level_N[level_N != UNKNOWN], minlength=len(attribute.levels)).astype(float)
        if attribute.not_assessable is not None:
            counts_L[attribute.not_assessable] = 0
        mean_count = counts_L.sum() / max(1, (counts_L > 0).sum())
        weight_L = np.where(counts_L > 0, np.minimum(MAX_WEIGHT, mean_count / np.maximum(counts_L, 1)), 0)
        for level in attribute.assessable[:-1]:
            targets.append(level_N > level)
            weights.append(np.where(level_N == UNKNOWN, 0, weight_L[level_N]))
    return np.stack(targets, axis=1).astype(float), np.stack(weights, axis=1)


def mean_spearman(schema: AttributeSchema, levels_NA: np.ndarray, predicted_NA: np.ndarray) -> float:
    """Returns the mean `control.scores` Spearman correlation over the attributes that vary, on their assessable tiles; 0 if none does."""
    correlations = []
    for column, attribute in enumerate(schema.attributes):
        level_N = levels_NA[:, column]
        if len(np.unique(level_N[np.isin(level_N, attribute.assessable)])) > 1:
            correlations.append(control.scores(level_N, predicted_NA[:, column], attribute.assessable).spearman)
    return float(np.mean(correlations)) if correlations else 0.0


@dataclass(frozen=True)
class PredictorCache:
    """A predictor saved in a folder of the cache."""

    folder: Path

    def save(self, attribute_predictor: AttributePredictor, note: dict[str, Any]) -> None:
        """Saves a predictor and a JSON-like note on its training."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {key: tensor.contiguous().cpu() for key, tensor in attribute_predictor.state_dict().items()}, self.folder / "judge.safetensors"
        )
        width = len(attribute_predictor.mean_D) if isinstance(attribute_predictor, Head) else 0
        kind = attribute_predictor.kind if isinstance(attribute_predictor, Head | Cnn) else ""
        header = {"kind": kind, "width": width, "attributes": attribute_predictor.schema.to_dict()}
        with atomic_write(self.folder / "judge.json") as stream:  # last, because it marks the entry as complete
            stream.write(json.dumps(header | note, indent=1).encode())

    def load(self, schema: AttributeSchema) -> tuple[AttributePredictor, dict[str, Any]] | None:
        """Loads the predictor and its note; returns None if there is no valid one for these attributes."""
        try:
            note = json.loads((self.folder / "judge.json").read_text())
            if "attributes" in note and AttributeSchema.from_dict(note.pop("attributes")) != schema:
                return None
            attribute_predictor: AttributePredictor = Cnn(schema) if note["kind"] == "cnn" else Head(schema, note["width"])
            attribute_predictor.load_state_dict(load_file(self.folder / "judge.safetensors"))
        except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError, SafetensorError):
            return None
        return attribute_predictor.eval(), note
