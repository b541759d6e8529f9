"""Generates the tiles of an evaluation: tiles with the levels of real ones, sweeps of every attribute, paths between levels.

Tile k depends on the seed and k only; the work is distributed over all processes.
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

POINTS = 9  # on a path from the lowest to the highest level
PATHS = 16  # latents per attribute


@dataclass(frozen=True)
class SamplingPlan:
    """The tiles to generate; identical on every process and for every generator under comparison."""

    schema: AttributeSchema
    levels_NA: np.ndarray  # drawn from the joint distribution of the real tiles
    starts_SA: np.ndarray  # the fixed levels of each sweep
    sweep_levels: dict[int, tuple[int, ...]]  # the levels that each assessed attribute steps through
    seed: int
    needs_features: bool  # whether sweep tiles need features as well

    def sweep_rows(self) -> np.ndarray:
        """Returns the levels of all sweep tiles, by attribute, latent and level; the last column is the latent's index."""
        rows = []
        for a, levels in self.sweep_levels.items():
            for latent, start_A in enumerate(self.starts_SA):
                rows += [(*start_A[:a], level, *start_A[a + 1 :], latent) for level in levels]
        return np.array(rows, np.int64).reshape(len(rows), len(self.schema.names) + 1)

    def path_rows(self) -> np.ndarray:
        """Returns the levels of all path points in the same order; each attribute goes from its lowest to its highest assessable level."""
        rows = []
        for a, attribute in enumerate(self.schema.attributes):
            for latent, start_A in enumerate(self.starts_SA[:PATHS]):
                for level in np.linspace(attribute.assessable[0], attribute.assessable[-1], POINTS):
                    rows.append((*start_A[:a], level, *start_A[a + 1 :], latent))
        return np.array(rows, np.float64)


def make_plan(
    reference: ReferenceSet | None, schema: AttributeSchema, processes: Processes, count: int, sweeps: int, seed: int
) -> SamplingPlan:
    """Makes the plan on rank 0, which has the reference set, and broadcasts it.

    Args:
        reference: the reference set on rank 0; None on other ranks.
        schema: the attributes.
        processes: of this launch.
        count: tiles with levels drawn from the real ones.
        sweeps: latents of each sweep.
        seed: of latents and levels.
    """
    plan = None
    if reference is not None:
        levels_NA = latents.levels_like(reference.train.levels_NA, seed, range(count)).numpy()
        middle_A = np.array(latents.middle_levels(schema))
        unclear_A = np.array([-1 if attribute.not_assessable is None else attribute.not_assessable for attribute in schema.attributes])
        starts_SA = latents.levels_like(reference.train.levels_NA, seed, range(sweeps)).numpy()
        # The fixed levels of a sweep must be on the scale.
        starts_SA = np.where((starts_SA == unclear_A) | (starts_SA == UNKNOWN), middle_A, starts_SA)
        sweep_levels = {a: reference.assessments[a].levels for a in reference.assessed_columns}
        plan = SamplingPlan(schema, levels_NA, starts_SA, sweep_levels, seed, needs_features=reference.predictor_needs_features)
    shared = processes.broadcast_object(plan)
    assert shared is not None
    return shared


@dataclass(frozen=True)
class GeneratedSet:
    """Tiles of one generator, resized for the predictor; exists on rank 0 only."""

    tiles: np.ndarray  # with levels drawn from the real ones
    features_ND: np.ndarray
    sweep_tiles: np.ndarray
    sweep_features: np.ndarray | None
    path_tiles: np.ndarray  # (attributes x latents x points, H, W, 3)
    path_features: np.ndarray  # (attributes, latents, points, D)
    measured_NA: np.ndarray | None = None  # measurements of ``tiles`` at full size; None without a measure


def make(
    generator: nn.Module,
    latent_dim: int,
    plan: SamplingPlan,
    features: Features,
    processes: Processes,
    batch: int,
    progress: Progress = lambda description, done, total: None,
    precision: str = "fp32",
    measure: Callable[[np.ndarray], np.ndarray] | None = None,
) -> GeneratedSet | None:
    """Generates all tiles of a plan. Every process must call it.

    Args:
        generator: in eval mode.
        latent_dim: of the generator.
        plan: the tiles to generate.
        features: the feature extractor.
        processes: of this launch.
        batch: tiles generated at a time.
        progress: called with a description, tiles done and the total.
        precision: "fp32", "bf16" or "fp16".
        measure: maps uint8 tiles (N, H, W, 3) at full size to a number for each attribute, (N, A).

    Returns:
        the tiles on rank 0; None on other ranks.
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
        self, description: str, rows: np.ndarray, with_features: bool, measure: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> Sequence[np.ndarray]:
        """Returns the tiles of rows of levels and latent index, then their features and measurements if requested."""
        if not len(rows):
            size = 1  # no attribute is assessed: nothing to generate
            return [np.zeros((0, size, size, 3), np.uint8), np.zeros((0, 1), np.float32)]
        exact = np.array_equal(rows, rows.astype(np.int64))

        def chunk(chunk: range) -> list[np.ndarray]:
            part = rows[chunk.start : chunk.stop]
            levels_BA = torch.from_numpy(part[:, :-1].astype(np.int64 if exact else np.float32))
            latents_BL = latents.latents_for(self.plan.seed, part[:, -1].astype(int).tolist(), self.latent_dim)
            tiles = generate.generate(self.generator, latents_BL, levels_BA, self.batch, self.precision)
            arrays = [thumbs(tiles)] + ([self.features(tiles, self.processes.device)] if with_features else [])
            return arrays + ([measure(tiles)] if measure else [])

        return self.processes.map(len(rows), CHUNK, chunk, lambda done: self.progress(description, done, len(rows)))
