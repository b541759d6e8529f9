"""Whether generated tiles help to train a predictor: trained on real tiles, generated ones or both, tested on real held-out tiles.

Owns the training sets, the fits and the numbers; plain JSON. The page is in `tools.evaluation.usefulness_page`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from attributegan.attributes import AttributeSchema
from attributegan.distributed.process_group import Processes
from attributegan.evaluation.reference import CHUNK, MIN_CLUSTERS, MIN_HELD_OUT, MIN_TRAIN, FeatureCache, Progress, Split, thumbs
from attributegan.metrics import control, predictor
from attributegan.metrics.features import Features
from attributegan.metrics.quality import REPLICATES, bounds

FORMAT = 1
SEEDS = 5
SHARES = (10, 25, 50, 100)  # of the real training tiles, percent
BALANCING_STEPS, MAX_BALANCE = 50, 10.0  # of `balanced_weights`
REAL, DRAWN, BALANCED = "real", "generated", "balanced generated"
MEAN = "mean"  # key of the mean over attributes


@dataclass(frozen=True)
class TrainingSet:
    """The tiles that a predictor is trained on; a row of the result.

    Args:
        share: percentage of the real training tiles; 0 for generated tiles only.
        real: number of real tiles.
        generated: number of generated tiles.
        balanced: whether levels of the generated tiles are equally frequent, instead of as frequent as in the real tiles.
    """

    share: int
    real: int
    generated: int = 0
    balanced: bool = False

    @property
    def name(self) -> str:
        """The name of the row."""
        made = f"{self.generated:,} {BALANCED if self.balanced else DRAWN}"
        if not self.real:
            return made
        return f"{self.real:,} real ({self.share} %)" + (f" + {made}" if self.generated else "")


def training_sets(real: int, generated: int, shares: Sequence[int] = SHARES) -> list[TrainingSet]:
    """Returns the rows: each share of the real tiles alone, with as many generated tiles, with all, with balanced ones; generated only.

    Args:
        real: number of real training tiles.
        generated: number of generated tiles that exist.
        shares: percentages of the real tiles; a share below `MIN_TRAIN` tiles is left out.
    """
    rows = []
    for share in shares:
        count = round(real * share / 100)
        if count < MIN_TRAIN:
            continue
        equal = min(count, generated)
        rows += [TrainingSet(share, count), TrainingSet(share, count, equal)]
        rows += [TrainingSet(share, count, generated)] if generated > equal else []
        rows.append(TrainingSet(share, count, equal, balanced=True))
    alone = min(real, generated)
    rows += [TrainingSet(0, 0, count) for count in sorted({alone, generated})]
    return [*rows, TrainingSet(0, 0, alone, balanced=True)]


@dataclass(frozen=True)
class Pool:
    """Tiles to train on or to test with."""

    split: Split
    inputs_ND: torch.Tensor  # of `predictor.head_inputs`

    @property
    def levels_NA(self) -> np.ndarray:
        return self.split.levels_NA

    def __len__(self) -> int:
        return len(self.split)


def pool_of(split: Split, name: str, features: Features, processes: Processes, cache: FeatureCache, progress: Progress) -> Pool | None:
    """Computes the predictor's inputs of all tiles, cached, on rank 0; None on other ranks. Every process must call it."""
    path, features_path = (cache.path(kind, split.identity, features.identity) for kind in ("inputs", "features"))
    inputs_ND, features_ND = (cache.load(at) if processes.is_main else None for at in (path, features_path))
    has_inputs, has_features = (processes.broadcast_object(array is not None) for array in (inputs_ND, features_ND))
    if not has_inputs:

        def inputs(chunk: range) -> list[np.ndarray]:
            tiles_NHWC = split.read(np.arange(chunk.start, chunk.stop))
            none_N0 = np.zeros((len(tiles_NHWC), 0), np.float32)
            made_ND = none_N0 if has_features else features(tiles_NHWC, processes.device)
            return [made_ND, predictor.head_inputs(thumbs(tiles_NHWC), none_N0, processes.device).cpu().numpy()]

        def done(count: int) -> None:
            progress(f"features of {name}", count, len(split))

        parts = processes.map(len(split), CHUNK, inputs, done)
        if processes.is_main:
            if features_ND is None:
                features_ND = parts[0]
                cache.save(features_path, features_ND)
            inputs_ND = np.concatenate([features_ND, parts[1]], axis=1, dtype=np.float64)
            cache.save(path, inputs_ND)
    return None if inputs_ND is None else Pool(split, torch.from_numpy(inputs_ND).to(processes.device))


@dataclass(frozen=True)
class Study:
    """Everything that the fits depend on; on rank 0 only.

    Args:
        schema: the attributes.
        real: real training tiles.
        held_out: real tiles to test with.
        generated: generated tiles, with levels as frequent as in the real tiles.
        balanced: generated tiles with equally frequent levels; None to draw from ``generated`` by `balanced_weights`.
        identity: JSON-like, of the features.
        cache: of the predictions of every fit, so that an interrupted command resumes.
        kind: of the predictor, "features" or "cnn".
        steps: of the training of a CNN.
        device: of the predictors.
    """

    schema: AttributeSchema
    real: Pool
    held_out: Pool
    generated: Pool
    balanced: Pool | None
    identity: Any
    cache: FeatureCache
    kind: str = "features"
    steps: int = predictor.CNN_STEPS
    device: torch.device | None = None

    def draw(self, row: TrainingSet, seed: int) -> tuple[np.ndarray, Pool, np.ndarray]:
        """Returns the real tiles of a row, the pool of its generated tiles, and which of these.

        For one seed, larger shares contain the smaller ones, and rows with the same share have the same real tiles.
        """
        real_N = np.random.default_rng([seed, 0]).permutation(len(self.real))[: row.real]
        rng = np.random.default_rng([seed, 1])
        if row.balanced and self.balanced is None:
            weight_M = balanced_weights(self.schema, self.generated.levels_NA)
            return np.sort(real_N), self.generated, np.sort(rng.choice(len(weight_M), row.generated, p=weight_M))
        pool = self.balanced if row.balanced and self.balanced is not None else self.generated
        return np.sort(real_N), pool, np.sort(rng.permutation(len(pool))[: row.generated])

    def predict(self, row: TrainingSet, seed: int) -> np.ndarray:
        """Trains on a row and predicts the levels of the held-out tiles (M, A); cached.

        The weight decay of the head is selected with the first seed, by cross-validation over slides on the real tiles, or on the generated
        ones where there are no real tiles.
        """
        pools = [pool.split.identity for pool in (self.real, self.held_out, self.generated, self.balanced) if pool]
        content = [pools, self.identity, self.schema.to_dict(), self.kind, self.steps, vars(row)]
        path = self.cache.path("usefulness", FORMAT, *content, seed)
        cached = self.cache.load(path)
        if cached is not None:
            return cached
        real_N, pool, made_N = self.draw(row, seed)
        levels_NA = np.concatenate([self.real.levels_NA[real_N], pool.levels_NA[made_N]])
        if self.kind == "cnn":
            tiles_NHWC = np.concatenate([_read(self.real.split, real_N), _read(pool.split, made_N)])
            cnn = predictor.fit_cnn(tiles_NHWC, levels_NA, self.schema, seed, self.steps, self.device)
            predicted_NA = cnn.predict(_read(self.held_out.split, np.arange(len(self.held_out))))
        else:
            real_fold_N = predictor.folds(self.real.split.group_N[real_N]) if row.real else np.zeros(0, int)
            made_fold_N = np.full(len(made_N), -1) if row.real else predictor.folds(made_N)
            decay_path = self.cache.path("usefulness-decay", FORMAT, *content)
            decay = self.cache.load(decay_path)
            head = predictor.fit_head_on(
                torch.cat([self.real.inputs_ND[real_N], pool.inputs_ND[made_N]]),
                levels_NA,
                np.concatenate([real_fold_N, made_fold_N]),
                self.schema,
                None if decay is None else float(decay[0]),
            )
            if decay is None:
                self.cache.save(decay_path, np.array([float(head.decay)]))
            predicted_NA = head.predict_inputs(self.held_out.inputs_ND)
        self.cache.save(path, predicted_NA)
        return predicted_NA


def _read(split: Split, rows_N: np.ndarray) -> np.ndarray:
    """Reads tiles, resized for the predictor; (0, 1, 1, 3) would not concatenate, so an empty selection has the size of the tiles."""
    if not len(rows_N):
        return thumbs(split.read(np.zeros(1, int)))[:0]
    return np.concatenate([thumbs(split.read(rows_N[first : first + CHUNK])) for first in range(0, len(rows_N), CHUNK)])


def balanced_weights(schema: AttributeSchema, levels_NA: np.ndarray) -> np.ndarray:
    """Returns the probability of each tile, so that all assessable levels of every attribute become about equally frequent.

    Iterative proportional fitting (Deming and Stephan 1940); no tile weighs more than `MAX_BALANCE` times the mean.
    """
    weight_N = np.ones(len(levels_NA))
    for _ in range(BALANCING_STEPS):
        for attribute, level_N in zip(schema.attributes, levels_NA.T, strict=True):
            totals = {level: weight_N[level_N == level].sum() for level in attribute.assessable if (level_N == level).any()}
            for level, total in totals.items():
                weight_N[level_N == level] *= sum(totals.values()) / len(totals) / total
        weight_N = np.minimum(weight_N, MAX_BALANCE * weight_N.mean())
    result: np.ndarray = weight_N / weight_N.sum()
    return result


def scored_levels(schema: AttributeSchema, train_NA: np.ndarray, held_out_NA: np.ndarray) -> dict[int, tuple[int, ...]]:
    """Returns the levels to score by column: those with `MIN_TRAIN` training and `MIN_HELD_OUT` held-out tiles, if two have.

    Raises:
        ValueError: no attribute has two such levels.
    """
    found = {}
    for a, attribute in enumerate(schema.attributes):
        counts = {level: ((train_NA[:, a] == level).sum(), (held_out_NA[:, a] == level).sum()) for level in attribute.assessable}
        levels = tuple(level for level, (train, held_out) in counts.items() if train >= MIN_TRAIN and held_out >= MIN_HELD_OUT)
        if len(levels) > 1:
            found[a] = levels
    if not found:
        raise ValueError(
            f"--shards: no attribute has two levels with at least {MIN_TRAIN} training and {MIN_HELD_OUT} held-out tiles; label more tiles"
        )
    return found


def run(
    study: Study,
    rows: Sequence[TrainingSet],
    seeds: int = SEEDS,
    replicates: int = REPLICATES,
    progress: Progress = lambda description, done, total: None,
) -> dict[str, Any]:
    """Trains a predictor for each row and seed, and scores all.

    Returns:
        plain JSON: ``attributes`` (the scored levels by name), ``rows``. A row has ``scores`` and, where there is a row to compare with,
        ``gain`` (over the same real tiles without generated ones, for generated tiles alone over all real tiles) and ``over_drawn`` (over
        the row with as many generated as real tiles). All are by attribute and `MEAN`: Spearman as in `control.scores`, [value, low,
        high], with 95 % bootstrap intervals over seeds and held-out slides (tiles, if there are fewer than five slides).
    """
    levels = scored_levels(study.schema, study.real.levels_NA, study.held_out.levels_NA)
    predicted: dict[TrainingSet, list[np.ndarray]] = {row: [] for row in rows}
    for seed in range(seeds):
        for number, row in enumerate(rows):
            predicted[row].append(study.predict(row, seed))
            progress("predictors", seed * len(rows) + number + 1, seeds * len(rows))
    weight_RM, seed_RS = _resampled(study.held_out.split.group_N, seeds, replicates)
    names = [study.schema.names[a] for a in levels]
    values_SR = {
        row: np.stack(
            [
                [_spearman(study.held_out.levels_NA[:, a], predicted_NA[:, a], levels[a], weight_RM) for a in levels]
                for predicted_NA in predicted[row]
            ]
        )
        for row in rows
    }  # (seeds, attributes, 1 + replicates)
    estimates = {row: np.einsum("sar,rs->ar", values, seed_RS) for row, values in values_SR.items()}
    entries = []
    for row in rows:
        entry: dict[str, Any] = {
            "name": row.name,
            **vars(row),
            "scores": _intervals(names, estimates[row]),
            "by_seed": dict(zip(names, values_SR[row][:, :, 0].T.tolist(), strict=True)),
            "accuracy": {
                study.schema.names[a]: float(
                    np.mean([control.scores(study.held_out.levels_NA[:, a], p_NA[:, a], levels[a]).accuracy for p_NA in predicted[row]])
                )
                for a in levels
            },
        }
        for key, other in (("gain", without_generated(row, rows)), ("over_drawn", with_equal(row, rows))):
            if other is not None:
                entry[key] = _intervals(names, estimates[row] - estimates[other])
        entries.append(entry)
    attributes = {study.schema.names[a]: list(scored) for a, scored in levels.items()}
    return {"attributes": attributes, "rows": entries}


def without_generated(row: TrainingSet, rows: Sequence[TrainingSet]) -> TrainingSet | None:
    """Returns the row with the same real tiles and no generated ones; for generated tiles alone, the one with most real tiles."""
    if not row.generated:
        return None
    alone = [other for other in rows if not other.generated]
    if not row.real:
        return max(alone, key=lambda other: other.real, default=None)
    return next((other for other in alone if other.real == row.real), None)


def with_equal(row: TrainingSet, rows: Sequence[TrainingSet]) -> TrainingSet | None:
    """Returns the row that adds as many generated as real tiles, not balanced, to the same real tiles; None for that row itself."""
    drawn = [other for other in rows if other.real == row.real and other.generated and not other.balanced]
    equal = min(drawn, key=lambda other: other.generated, default=None)
    return equal if row.generated and equal != row else None


def _resampled(group_M: np.ndarray, seeds: int, replicates: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns weights of the held-out tiles (1 + R, M) and of the seeds (1 + R, S); the first row is the estimate itself."""
    groups, index_M = np.unique(group_M, return_inverse=True)
    if len(groups) < MIN_CLUSTERS:
        groups, index_M = np.arange(len(group_M)), np.arange(len(group_M))
    rng = np.random.default_rng(0)
    counts_RG, counts_RS = (rng.multinomial(count, np.full(count, 1 / count), replicates).astype(float) for count in (len(groups), seeds))
    weight_RM = np.concatenate([np.ones((1, len(group_M))), counts_RG[:, index_M]])
    return weight_RM, np.concatenate([np.ones((1, seeds)), counts_RS]) / seeds


def _spearman(level_M: np.ndarray, predicted_M: np.ndarray, levels: Sequence[int], weight_RM: np.ndarray) -> np.ndarray:
    """Returns the Spearman score of `control.scores` for each row of tile weights; NaN where fewer than two levels have any weight."""
    counted_M = np.isin(level_M, levels)
    level_M, predicted_M, weight_RM = level_M[counted_M], predicted_M[counted_M], weight_RM[:, counted_M]
    total_RL = np.stack([weight_RM[:, level_M == level].sum(axis=1) for level in levels], axis=1)
    present_R = (total_RL > 0).sum(axis=1)
    weight_RM = weight_RM / np.maximum(total_RL, 1e-12)[:, np.searchsorted(levels, level_M)] / np.maximum(present_R, 1)[:, None]
    centred = []
    for values_M in (level_M, predicted_M):
        order_M = np.argsort(values_M, kind="stable")
        sorted_M = values_M[order_M]
        below_RM = np.concatenate([np.zeros((len(weight_RM), 1)), np.cumsum(weight_RM[:, order_M], axis=1)], axis=1)
        first_M, last_M = (np.searchsorted(sorted_M, values_M, side) for side in ("left", "right"))
        rank_RM = (below_RM[:, first_M] + below_RM[:, last_M]) / 2  # mean ranks for ties
        centred.append(rank_RM - 0.5)  # the weights add up to 1, so the mean rank is 1/2
    products = [(weight_RM * first * second).sum(axis=1) for first, second in ((*centred,), (centred[0],) * 2, (centred[1],) * 2)]
    scale_R = np.sqrt(products[1] * products[2])
    correlation_R = np.divide(products[0], scale_R, out=np.zeros_like(scale_R), where=scale_R > 1e-12)
    ceiling_R = np.array([control.spearman_ceiling(count) for count in present_R])
    return np.where(present_R > 1, np.clip(correlation_R / ceiling_R, -1, 1), np.nan)


def _intervals(names: Sequence[str], values_AR: np.ndarray) -> dict[str, list[float]]:
    """Returns [value, low, high] by attribute and for the mean; the first column has the values."""
    rows = {MEAN: values_AR.mean(axis=0), **dict(zip(names, values_AR, strict=True))}
    found = {}
    for name, value_R in rows.items():
        valid_R = value_R[1:][np.isfinite(value_R[1:])]
        found[name] = [float(value_R[0]), *(bounds(valid_R) if len(valid_R) else (float(value_R[0]),) * 2)]
    return found
