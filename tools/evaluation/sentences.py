"""The five sentences that open a report, written from the numbers of the first model by fixed rules.

Each function owns one rule and is pure; thresholds are constants, so that equal numbers always give equal sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CLOSE, FAR = 2.0, 10.0  # KID over that of real held-out tiles
FULL, PARTIAL = 0.8, 0.5  # recall and control score, over those of real held-out tiles
COPY_RATIO, COPY_SHARE = 0.5, 0.05  # privacy: memorization ratio below, share of nearer tiles above
LEAKS = 0.5  # leakage into an attribute, over how far it moves by its own levels
CHANCE = 5  # of few held-out tiles, the nearest decide: up to this number over theirs, the share of nearer tiles can be chance (e^-5)
UNREALISTIC = 0.1  # precision and coverage below which tiles are too unlike real ones for the predictor and for the tests of privacy
FEW_TILES, FEW_SLIDES = 500, 5
MIN_KID = 1e-4  # of real tiles; a smaller or negative one is no unit


def sentences(result: Mapping[str, Any]) -> list[str]:
    """Return five sentences about the first model or tile set: realism, variety, control, privacy, and how far to trust the numbers."""
    ceiling = next(row for row in result["rows"] if row["kind"] == "ceiling")
    row = next(row for row in result["rows"] if row["kind"] == "generator")
    floor: Mapping[str, Any] = next((row for row in result["rows"] if row["kind"] == "floor"), {})
    return [realism(row, ceiling), variety(row, ceiling), control(row, ceiling, floor, result), privacy(row, result), trust(result)]


def realism(row: Mapping[str, Any], ceiling: Mapping[str, Any]) -> str:
    """Compare KID with that of real held-out tiles: interval below, up to `CLOSE` times, up to `FAR` times, above."""
    if not row.get("quality"):
        return "Image quality was not assessed, because there are too few different real tiles."
    kid, low, top = row["quality"]["kid"]
    real, bottom, high = ceiling["quality"]["kid"]
    numbers = f"(KID x 1000: {1000 * kid:.1f}, real held-out tiles {1000 * real:.1f})"
    if None not in (top, bottom) and top < bottom:
        return f"Tiles of {row['name']} are closer to the training tiles than real held-out tiles are {numbers}."
    times = kid / max(real, MIN_KID)
    if times <= CLOSE or (low is not None and high is not None and low <= high):
        return f"Tiles of {row['name']} are about as close to the training tiles as real held-out tiles are {numbers}."
    if times <= FAR:
        return f"Tiles of {row['name']} differ measurably from real ones {numbers}."
    return f"Tiles of {row['name']} are far from real ones {numbers}."


def variety(row: Mapping[str, Any], ceiling: Mapping[str, Any]) -> str:
    """Compare recall with that of real held-out tiles; add how much tiles of one label differ if that is low."""
    found, real = (one.get("quality", {}).get("recall") for one in (row, ceiling))
    if not found or not real or not real[0]:
        return "The variety of the tiles was not assessed."
    share = found[0] / real[0]
    alike = row.get("diversity", 1.0)
    same = f"; tiles of one label differ {alike:.2f} times as much as real ones" if alike < FULL else ""
    numbers = f"(recall {found[0]:.2f}, real held-out tiles {real[0]:.2f}{same})"
    if share >= FULL:
        return f"They cover about as much of the variety of the training tiles as real held-out tiles do {numbers}."
    return f"They cover {'part' if share >= PARTIAL else 'little'} of the variety of the training tiles {numbers}."


def control(row: Mapping[str, Any], ceiling: Mapping[str, Any], floor: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Compare each attribute, and their mean, with real held-out tiles and shuffled labels; name the lowest one and the worst leak."""
    scores, real, shuffled = ({name: of["spearman"] for name, of in one.get("control", {}).items()} for one in (row, ceiling, floor))
    mean, of_real = (sum(of[name][0] for name in scores) / max(1, len(scores)) for of in (scores, real))
    if not scores or not of_real:
        return "Control was not assessed: no attribute has enough tiles of two levels and can be read from real tiles well enough."
    weakest = min(scores, key=lambda name: scores[name][0])
    numbers = (
        f"(control score {mean:.2f}, real held-out tiles {of_real:.2f}; lowest: {weakest} {scores[weakest][0]:.2f}, real "
        f"{real[weakest][0]:.2f})"
    )
    if is_unrealistic(row):
        return f"Control can't be judged, because the tiles are too unlike real ones for the predictor {numbers}."
    lower = [name for name, (value, _, high) in scores.items() if value < FULL * real[name][0] and high < real[name][0]]
    random = [name for name, (_, low, _) in scores.items() if low <= shuffled.get(name, (0.0, 0.0, 0.0))[2]]
    share, count = mean / of_real, len(result["data"]["attributes"])
    how = (
        "hardly follow"
        if share < PARTIAL or len(random) == len(scores)
        else "partly follow"
        if share < FULL or lower or random
        else "follow"
    )
    details = f"; {', '.join(random)} not measurably better than shuffled labels" if random else ""
    details += "" if how == "hardly follow" else _leaks(row)
    return f"They {how} the requested levels of the {len(scores)} of {count} attributes that could be assessed {numbers}{details}."


def is_unrealistic(row: Mapping[str, Any]) -> bool:
    """Whether precision and coverage are both so low that readings of the predictor, which knows real tiles only, mean little."""
    found = [row["quality"][name][0] for name in ("precision", "coverage") if name in row.get("quality", {})]
    return bool(found) and max(found) < UNREALISTIC


def _leaks(row: Mapping[str, Any]) -> str:
    """Name the attribute that another one moves most, relative to how far its own levels move it; "" below `LEAKS`."""
    names, matrix = (row.get("leak", {}).get(key, []) for key in ("attributes", "matrix"))
    pairs = [
        (matrix[a][b], max(matrix[b][b], 1e-6), swept, moved) for a, swept in enumerate(names) for b, moved in enumerate(names) if a != b
    ]
    leak, own, swept, moved = max(pairs, key=lambda pair: pair[0] / pair[1], default=(0.0, 1.0, "", ""))
    if leak < LEAKS * own:
        return ""
    return f"; changing {swept} also changes {moved}, by {leak:.2f} of its scale ({own:.2f} when {moved} itself is changed)"


def privacy(row: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Report copies by the nearest neighbours or the membership test; both tests must be negative for a negative report."""
    if "memory" not in row:
        return "Copies of training tiles were not looked for, because there are too few different held-out tiles."
    memory = row["memory"]
    auc, low, high = memory["membership"]
    near = f"{memory['nearer']:.0%} of tiles are nearer to a training tile than all but 1 % of the held-out tiles"
    numbers = f"({near}; memory ratio {memory['ratio']:.2f}; membership AUC {auc:.2f}, {low:.2f} to {high:.2f})"
    copied = memory["ratio"] < COPY_RATIO or memory["nearer"] > max(COPY_SHARE, CHANCE / result["data"]["held_out_tiles"])
    if copied and low > 0.5:
        return f"Some tiles look like copies of training tiles, and training tiles can be recognized: check before sharing {numbers}."
    if copied:
        return f"Some tiles are unusually near to training tiles: check the nearest neighbours before sharing {numbers}."
    other_slides = result["data"]["groups_apart"] and memory.get("membership_tiles") != "same slides"
    cause = "; slides that differ, for example in stain, can be the cause" if other_slides else ""
    if low > 0.5:
        check = ": check with --same-slides" if other_slides else ""
        found = f"No copies were found, but training tiles are nearer to the generated tiles than held-out tiles are {numbers}"
        return f"{found}{cause}{check}."
    if high < 0.5:
        found = f"No copies were found, but held-out tiles are nearer to the generated tiles than training tiles are {numbers}{cause}"
        return f"{found}: check that the generator was not trained on them."
    if is_unrealistic(row):
        return f"No copies were found, but the tiles are too unlike real ones for the tests to recognize modified copies {numbers}."
    return f"Neither test of privacy found copies of training tiles {numbers}."


def trust(result: Mapping[str, Any]) -> str:
    """Name the limits: features that trained the model, else shared or unknown slides, else few tiles and slides; else the size."""
    data, equal = result["data"], result["settings"]["equal"]
    slides = data["held_out_groups"]
    if names := result.get("trained_on_features"):
        return f"{', '.join(names)} was trained on these features, so its numbers look better than its tiles are: use other --features."
    if data["groups_apart"] is False:
        return "Some slides are in both splits, so real held-out tiles look better than they should: pack again with --group."
    if data["groups_apart"] is None:
        return "The slides of the real tiles are unknown, so the comparison with held-out tiles may be too optimistic."
    few = f"the held-out tiles come from only {slides} slide{'s' * (slides != 1)}, so the numbers may differ on other slides"
    if equal < FEW_TILES:
        tiles = f"FID, recall and similar metrics use only {equal} tiles per side, so small differences mean little"
        return f"{tiles}; {few}." if slides < FEW_SLIDES else f"{tiles}."
    if slides < FEW_SLIDES:
        return f"{few[0].upper()}{few[1:]}."
    return f"The comparison uses {equal} tiles per side and {slides} held-out slides; other training seeds still change the numbers."
