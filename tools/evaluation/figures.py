"""Draws the pictures of a report: tiles, sweeps, generated tiles with their nearest training tiles, curves over training."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from attributegan.checkpoint.loading import Loaded
from attributegan.evaluation.reference import ReferenceSet, thumbs
from attributegan.evaluation.scores import Row
from attributegan.metrics.quality import nearest
from attributegan.sampling import grids, latents
from attributegan.utils.html_page import Picture

PAIRS = 8  # generated tiles shown beside their nearest training tile: the nearest ones
TILES = 32  # tiles in a contact sheet
MAX_SIZE = 64  # maximum size of a tile in a strip, pixels
PAIR_SIZE = 128  # likewise of a tile in a pair
CURVES = (
    "real_score",
    "fake_score",
    "discriminator/contrastive",
    "generator/contrastive",
    "discriminator/gradient_norm",
    "generator/gradient_norm",
    "evaluation/kid",
    "evaluation/obeys",
)
TITLES = {"evaluation/obeys": "evaluation/control_score"}  # where they differ from the key in the file


@dataclass(frozen=True)
class Pair:
    """A tile beside its nearest training tile."""

    picture: Picture
    distance: float  # over that of `quality.copy_threshold`: below 1, all but 1 % of the held-out tiles are farther


@dataclass(frozen=True)
class Pictures:
    """Pictures of a report by the name of the model, and the curves of all models."""

    sheets: dict[str, Picture]
    sweeps: dict[str, Picture]
    pairs: dict[str, list[tuple[Pair, Pair]]]  # of a generated and of a held-out tile, nearest first
    curves: list[Picture]


def draw(
    models: Mapping[str, Loaded],
    reference_set: ReferenceSet,
    rows: Sequence[Row],
    generated: Mapping[str, np.ndarray],
    paths: Sequence[str | Path],
) -> Pictures:
    """Draw all pictures.

    Args:
        generated: generated tiles, resized for the predictor, by the name of the model or tile set.
        paths: run folders or checkpoints of the models, for curves over training.
    """
    sheets = {
        "real training tiles": png(
            sheet(thumbs(reference_set.train.read(np.arange(min(TILES, len(reference_set.train)))))), "real training tiles"
        )
    }
    sweeps, pairs = {}, {}
    memories = {row.numbers["name"]: row.memory for row in rows if row.memory}
    for name, tiles_NHWC in generated.items():
        sheets[name] = png(sheet(tiles_NHWC[:TILES]), f"tiles of {name}")
        if loaded := models.get(name):
            latents_BL = latents.latents_for(0, range(2), loaded.config.model.latent_dim)
            sweeps[name] = png(grids.sweep_grid(loaded.generator, reference_set.schema, latents_BL), f"sweeps of {name}")
        if memory := memories.get(name):  # None: too few real tiles to detect memorization
            held_out = nearest(reference_set.held_out_ND, reference_set.train_ND)
            pairs[name] = list(
                zip(
                    nearest_pairs(tiles_NHWC, memory.nearest_N, memory.distance_N, reference_set, memory.threshold, "generated"),
                    nearest_pairs(reference_set.thumbs, *held_out, reference_set, memory.threshold, "real held-out"),
                    strict=False,
                )
            )
    return Pictures(sheets, sweeps, pairs, curves(paths))


def nearest_pairs(
    tiles_NHWC: np.ndarray, nearest_N: np.ndarray, distance_N: np.ndarray, reference_set: ReferenceSet, threshold: float, kind: str
) -> list[Pair]:
    """Draw the `PAIRS` tiles that are nearest to a training tile, each beside it."""
    closest = np.argsort(distance_N, kind="stable")[:PAIRS]
    training_NHWC = thumbs(reference_set.train.read(nearest_N[closest]))
    return [
        Pair(
            png(strip([np.stack(pair)], PAIR_SIZE), f"{kind} tile {number} and its nearest training tile"),
            float(distance_N[number] / max(threshold, 1e-12)),
        )
        for number, *pair in zip(closest.tolist(), tiles_NHWC[closest], training_NHWC, strict=True)
    ]


def png(image_HWC: np.ndarray, alt: str) -> Picture:
    """Encode an image (H, W, 3) uint8 as a picture of the report."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, format="PNG", optimize=True)
    return Picture(buffer.getvalue(), alt, "png")


def sheet(tiles_NHWC: np.ndarray, columns: int = 16) -> np.ndarray:
    """Arrange tiles (N, H, W, 3) in rows."""
    rows = [tiles_NHWC[first : first + columns] for first in range(0, len(tiles_NHWC), columns)]
    return strip([np.concatenate([row, np.full_like(row[:1].repeat(columns - len(row), axis=0), 255)]) for row in rows])


def strip(rows: Sequence[np.ndarray], max_size: int = MAX_SIZE) -> np.ndarray:
    """Draw rows of tiles on white, each scaled down to at most ``max_size`` pixels."""
    size = min(max_size, rows[0].shape[1])
    pitch = size + 2
    page = Image.new("RGB", (max(map(len, rows)) * pitch, len(rows) * pitch), "white")
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            page.paste(Image.fromarray(tile).resize((size, size), Image.Resampling.LANCZOS), (column * pitch, row * pitch))
    return np.asarray(page)


def curves(paths: Sequence[str | Path]) -> list[Picture]:
    """Draw a chart for each of `CURVES` that the runs have in metrics.jsonl or evaluation.jsonl."""
    runs = {Path(path).resolve().name: series_of(Path(path)) for path in paths if Path(path).is_dir()}
    found = []
    for key in CURVES:
        series = {run: of_run[key] for run, of_run in runs.items() if len(of_run.get(key, [])) > 1}
        title = TITLES.get(key, key)
        if series:
            found.append(Picture(chart(title, series), f"{title} over images", "svg+xml"))
    return found


def series_of(run: Path) -> dict[str, list[tuple[float, float]]]:
    """Return the finite metrics of a run as (images, value) pairs; {} if the folder is not a run."""
    from tools.evaluation import history

    found: dict[str, list[tuple[float, float]]] = {}
    sources = {"": history.lines(run, "metrics.jsonl"), "evaluation/": history.comparable(history.lines(run))}
    for prefix, entries in sources.items():
        for entry in entries:
            for key, value in entry.items():
                if isinstance(value, int | float) and math.isfinite(value) and key != "images":
                    found.setdefault(prefix + key, []).append((float(entry["images"]), float(value)))
    return found


COLOURS = ("#5b2a6e", "#c2571a", "#1a7f6b", "#9a1750")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 300, 170, 46, 22, 34


def chart(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    unit: str = "images",
    bars: Mapping[str, Sequence[tuple[float, float, float]]] | None = None,
) -> bytes:
    """Draw a line chart as SVG.

    Args:
        series: (images, value) pairs by the name of the line.
        unit: of the horizontal axis.
        bars: intervals, as (images, low, high), by the name of the line.
    """
    points = [point for line in series.values() for point in line]
    points += [(x, y) for of_line in (bars or {}).values() for x, *ends in of_line for y in ends]
    xs, ys = zip(*points, strict=True)
    low, high, last = min(ys), max(ys), max(xs)
    span = (high - low) or 1.0

    def point(x: float, y: float) -> str:
        return f"{LEFT + x / last * (WIDTH - LEFT - 10):.1f},{TOP + (1 - (y - low) / span) * (HEIGHT - TOP - BOTTOM):.1f}"

    lines, names = [], []
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        lines.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.4" points="{" ".join(point(x, y) for x, y in line)}"/>')
        for x, *ends in (bars or {}).get(name, []):
            (first_x, first_y), (_, last_y) = (point(x, y).split(",") for y in ends)
            lines.append(f'<path d="M{float(first_x) + 2 * number:.1f} {first_y}V{last_y}" stroke="{colour}" stroke-width="0.8"/>')
        names.append(f'<tspan fill="{colour}">{html.escape(name)} </tspan>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="system-ui, sans-serif" font-size="10">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
        f'<text x="6" y="14" font-size="11" font-weight="600">{html.escape(title)}</text>'
        f'<text x="6" y="27">{"".join(names)}</text>'
        f'<text x="{LEFT - 4}" y="{TOP + 8}" text-anchor="end">{high:.3g}</text>'
        f'<text x="{LEFT - 4}" y="{HEIGHT - BOTTOM}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{WIDTH - 10}" y="{HEIGHT - 6}" text-anchor="end">{last:,.0f} {html.escape(unit)}</text>'
        f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - 10}" fill="none" stroke="#999"/>{"".join(lines)}</svg>'
    ).encode()
