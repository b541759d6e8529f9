"""The five sentences that open a report, written from the numbers of the first model by fixed rules.

Each function owns one rule and is pure; thresholds are constants, so that equal numbers always give equal sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CLOSE, FAR = 2.0, 10.0  # KID over that of real held-out tiles
FULL, PARTIAL = 0.8, 0.5  # recall and control score, over those of real held-out tiles
COPY_RATIO, COPY_SHARE = 0.5, 0.05  # privacy: memorization ratio below, share of nearer tiles above
FEW_TILES, FEW_SLIDES = 500, 5
MIN_KID = 1e-4  # of real tiles; a smaller or negative one is no unit


def sentences(result: Mapping[str, Any]) -> list[str]:
    """Return five sentences about the first model or tile set: realism, variety, control, privacy, and how far to trust the numbers."""
    ceiling = next(row for row in result["rows"] if row["kind"] == "ceiling")
    row = next(row for row in result["rows"] if row["kind"] == "generator")
    return [realism(row, ceiling), variety(row, ceiling), control(row, ceiling, result), privacy(row), trust(result)]


def realism(row: Mapping[str, Any], ceiling: Mapping[str, Any]) -> str:
    """Compare KID with that of real held-out tiles: up to `CLOSE` times, up to `FAR` times, above."""
    if not row.get("quality"):
        return "Image quality was not assessed, because there are too few different real tiles."
    kid, low, _ = row["quality"]["kid"]
    real, _, high = ceiling["quality"]["kid"]
    numbers = f"(KID x 1000: {1000 * kid:.1f}, real held-out tiles {1000 * real:.1f})"
    times = kid / max(real, MIN_KID)
    if times <= CLOSE or (low is not None and high is not None and low <= high):
        return f"Tiles of {row['name']} are about as close to the training tiles as real held-out tiles are {numbers}."
    if times <= FAR:
        return f"Tiles of {row['name']} differ measurably from real ones {numbers}."
    return f"Tiles of {row['name']} are far from real ones {numbers}."


def variety(row: Mapping[str, Any], ceiling: Mapping[str, Any]) -> str:
    """Compare recall with that of real held-out tiles."""
    found, real = (one.get("quality", {}).get("recall") for one in (row, ceiling))
    if not found or not real or not real[0]:
        return "The variety of the tiles was not assessed."
    share = found[0] / real[0]
    numbers = f"(recall {found[0]:.2f}, real held-out tiles {real[0]:.2f})"
    if share >= FULL:
        return f"They cover the variety of the real tiles {numbers}."
    return f"They cover {'part' if share >= PARTIAL else 'little'} of the variety of the real tiles {numbers}."


def control(row: Mapping[str, Any], ceiling: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Compare the control score with that of real held-out tiles and name the attribute with the lowest score."""
    if "obeys" not in row or not ceiling.get("obeys"):
        return "Control was not assessed, because no attribute could be read from real tiles well enough."
    share, count = row["obeys"] / ceiling["obeys"], len(result["data"]["attributes"])
    weakest = min(row["control"], key=lambda name: row["control"][name]["spearman"][0])
    lowest = row["control"][weakest]["spearman"][0]
    how = "follow" if share >= FULL else "partly follow" if share >= PARTIAL else "hardly follow"
    return (
        f"They {how} the requested levels of the {len(row['control'])} of {count} attributes that could be assessed (control score "
        f"{row['obeys']:.2f}, real held-out tiles {ceiling['obeys']:.2f}), {weakest} the least ({lowest:.2f})."
    )


def privacy(row: Mapping[str, Any]) -> str:
    """Report copies by the nearest neighbours or the membership test; both tests must be negative for a negative report."""
    if "memory" not in row:
        return "Copies of training tiles were not looked for, because there are too few different held-out tiles."
    memory = row["memory"]
    auc, low, high = memory["membership"]
    numbers = f"(distance ratio {memory['ratio']:.2f}, membership AUC {auc:.2f}, {low:.2f} to {high:.2f})"
    copied = memory["ratio"] < COPY_RATIO or memory["nearer"] > COPY_SHARE
    if copied and low > 0.5:
        return f"Some tiles look like copies of training tiles, and training tiles can be recognized: check before sharing {numbers}."
    if copied:
        return f"Some tiles are unusually near to training tiles: check the nearest neighbours before sharing {numbers}."
    if low > 0.5:
        return f"No copies were found, but training tiles are nearer to the generated tiles than held-out tiles are {numbers}."
    return f"Neither test of privacy found copies of training tiles {numbers}."


def trust(result: Mapping[str, Any]) -> str:
    """Name the first limit that applies: shared slides, unknown slides, few tiles, few held-out slides; else report the size."""
    data, equal = result["data"], result["settings"]["equal"]
    slides = data["held_out_groups"]
    if data["groups_apart"] is False:
        return "Some slides are in both splits, so real held-out tiles look better than they should: pack again with --group."
    if data["groups_apart"] is None:
        return "The slides of the real tiles are unknown, so the comparison with held-out tiles may be too optimistic."
    if equal < FEW_TILES:
        return f"FID, recall and similar metrics use only {equal} tiles per side, so small differences mean little."
    if slides < FEW_SLIDES:
        return f"The held-out tiles come from only {slides} slides, so the numbers may differ on other slides."
    return f"The comparison uses {equal} tiles per side and {slides} held-out slides; other training seeds still change the numbers."
