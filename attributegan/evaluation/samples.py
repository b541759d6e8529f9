"""What a generator makes for an evaluation: tiles like the real ones, sweeps of every attribute, paths between levels.

Tile k depends on the seed and k alone, and all processes share the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from attributegan.attributes import UNKNOWN, AttributeSchema
from attributegan.distributed.process_group import Processes
from attributegan.evaluation.reference import CHUNK, Progress, ReferenceSet, thumbs
from attributegan.metrics.features import Features
from attributegan.sampling import generate, latents

POINTS = 9  # of a path from the lowest to the highest level
PATHS = 16  # latents of each


@dataclass(frozen=True)
class SamplingPlan:
    """What is made; the same on every process, and for every generator that is compared."""

    schema: AttributeSchema
    levels_NA: np.ndarray  # of the tiles like the real ones: their joint distribution
    starts_SA: np.ndarray  # what a sweep keeps of the attributes that it does not move
    sweep_levels: dict[int, tuple[int, ...]]  # levels that each judged attribute is moved through
    seed: int
    needs_features: bool  # of the sweeps too

    def sweep_rows(self) -> np.ndarray:
        """Levels of all sweep tiles: attribute by attribute, latent by latent, level by level; a last column with the latent."""
        rows = []
        for a, levels in self.sweep_levels.items():
            for latent, start_A in enumerate(self.starts_SA):
                rows += [(*start_A[:a], level, *start_A[a + 1 :], latent) for level in levels]
        return np.array(rows, np.int64).reshape(len(rows), len(self.schema.names) + 1)

    def path_rows(self) -> np.ndarray:
        """Levels of all path points, in the same order; every attribute from its lowest to its highest assessable level."""
        rows = []
        for a, attribute in enumerate(self.schema.attributes):
            for latent, start_A in enumerate(self.starts_SA[:PATHS]):
                for level in np.linspace(attribute.assessable[0], attribute.assessable[-1], POINTS):
                    rows.append((*start_A[:a], level, *start_A[a + 1 :], latent))
        return np.array(rows, np.float64)


def make_plan(real: ReferenceSet | None, schema: AttributeSchema, processes: Processes, count: int, sweeps: int, seed: int) -> SamplingPlan:
    """Decided by the main process, which knows the real tiles."""
    plan = None
    if real is not None:
        levels_NA = latents.levels_like(real.train.levels_NA, seed, range(count)).numpy()
        middle_A = np.array(latents.middle_levels(schema))
        unclear_A = np.array([-1 if attribute.not_assessable is None else attribute.not_assessable for attribute in schema.attributes])
        starts_SA = latents.levels_like(real.train.levels_NA, seed, range(sweeps)).numpy()
        starts_SA = np.where(
            (starts_SA == unclear_A) | (starts_SA == UNKNOWN), middle_A, starts_SA
        )  # a sweep needs a point of the scale to start from
        sweep_levels = {a: real.assessments[a].levels for a in real.assessed_columns}
        plan = SamplingPlan(schema, levels_NA, starts_SA, sweep_levels, seed, needs_features=real.predictor_needs_features)
    found = processes.broadcast_object(plan)
    assert found is not None
    return found


@dataclass(frozen=True)
class GeneratedSet:
    """Tiles of one generator, on the main process."""

    tiles: np.ndarray  # like the real ones, in the size that the judge sees
    features_ND: np.ndarray
    sweep_tiles: np.ndarray
    sweep_features: np.ndarray | None
    path_tiles: np.ndarray  # attributes x latents x points
    path_features: np.ndarray  # (attributes, latents, points, D)
    measured_NA: np.ndarray | None = None  # of the tiles like the real ones, in full size; without a measure, None


def make(
    generator: nn.Module,
    latent_dim: int,
    plan: SamplingPlan,
    features: Features,
    processes: Processes,
    batch: int,
    progress: Progress = lambda what, done, total: None,
    precision: str = "fp32",
    measure: Callable[[np.ndarray], np.ndarray] | None = None,
) -> GeneratedSet | None:
    """Generate everything; None on all processes but the main one. Every process must call.

    Args:
        measure: tiles (N, H, W, 3) uint8 in full size -> a number for each attribute, (N, A).
    """
    work = _Work(generator, latent_dim, plan, features, processes, batch, progress, precision)
    rows = np.concatenate([plan.levels_NA, np.arange(len(plan.levels_NA))[:, None]], axis=1)
    tiles = work.run("tiles", rows, with_features=True, measure=measure)
    swept = work.run("sweeps", plan.sweep_rows(), with_features=plan.needs_features)
    paths = work.run("paths", plan.path_rows(), with_features=True)
    if not processes.is_main:
        return None
    points = paths[1].reshape(len(plan.schema.names), min(PATHS, len(plan.starts_SA)), POINTS, -1)
    measured_NA = tiles[2] if measure else None
    return GeneratedSet(tiles[0], tiles[1], swept[0], swept[1] if plan.needs_features else None, paths[0], points, measured_NA)


@dataclass(frozen=True)
class _Work:
    generator: nn.Module
    latent_dim: int
    plan: SamplingPlan
    features: Features
    processes: Processes
    batch: int
    progress: Progress
    precision: str

    def run(
        self, what: str, rows: np.ndarray, with_features: bool, measure: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> Sequence[np.ndarray]:
        """Tiles of levels and latents; with features, also those; with a measure, what it measures."""
        if not len(rows):
            size = 1  # nothing is judged, so nothing is made
            return [np.zeros((0, size, size, 3), np.uint8), np.zeros((0, 1), np.float32)]
        exact = np.array_equal(rows, rows.astype(np.int64))

        def chunk(chunk: range) -> list[np.ndarray]:
            part = rows[chunk.start : chunk.stop]
            levels_BA = torch.from_numpy(part[:, :-1].astype(np.int64 if exact else np.float32))
            latents_BL = latents.latents_for(self.plan.seed, part[:, -1].astype(int).tolist(), self.latent_dim)
            tiles = generate.generate(self.generator, latents_BL, levels_BA, self.batch, self.precision)
            seen = [thumbs(tiles)] + ([self.features(tiles, self.processes.device)] if with_features else [])
            return seen + ([measure(tiles)] if measure else [])

        return self.processes.map(len(rows), CHUNK, chunk, lambda done: self.progress(what, done, len(rows)))
