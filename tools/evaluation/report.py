"""Presents the result of an evaluation: an HTML page, text for the terminal, TensorBoard scalars.

All numbers come from the result (plain JSON). HTML is escaped in `attributegan.utils.html_page`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attributegan.evaluation.reference import MIN_HELD_OUT
from attributegan.utils.html_page import Cell, Figure, Section, Table, Tinted, to_html
from tools.evaluation.sentences import is_unrealistic, sentences

if TYPE_CHECKING:
    from tools.evaluation.figures import Pair, Pictures

NONE = "–"
LOW_CONTROL_SCORE = 0.2  # control score below which leakage is not reported: a model that ignores labels trivially has none
QUALITY = ("kid", "fid", "precision", "recall", "density", "coverage")
SCORES = ("accuracy", "mae", "kappa", "spearman")


def page(result: Mapping[str, Any], pictures: Pictures) -> str:
    """Render the report as HTML."""
    rows = result["rows"]
    sections = [
        Section("In short", " ".join(sentences(result))),
        Section("Summary", summary_text(result), [summary(rows)]),
        assessment(result),
        Section("Control", CONTROL_TEXT + left_out(rows), [*control(rows), *confusions(rows)]),
        Section("Leakage", LEAK_TEXT, [*leaks(rows), *sweep_levels(rows)]),
        Section(
            "Sweeps",
            "Each attribute from its lowest level to its highest, with the latent and all other attributes fixed.",
            [Table([name], [[picture]]) for name, picture in pictures.sweeps.items()],
        ),
        Section("Tiles", "Random tiles, not selected.", [Table([name], [[picture]]) for name, picture in pictures.sheets.items()]),
        Section("Image quality by level", LEVEL_TEXT, list(level_kid(rows))),
        Section(
            "Memorization", MEMORY_TEXT + membership_text(result), [memory(rows), *(pairs(name, of) for name, of in pictures.pairs.items())]
        ),
    ]
    if any("measured" in row for row in rows):
        sections.append(Section("Image measurements", measured_text(result), [measured(rows)]))
    if "reader_study" in result:
        sections.append(reader_study(result["reader_study"]))
    if pictures.curves:
        sections.append(
            Section(
                "Over training",
                "From metrics.jsonl and, if checkpoints were evaluated during training, evaluation.jsonl.",
                [Table([""], [[picture]]) for picture in pictures.curves],
            )
        )
    sections.append(method(result))
    names = ", ".join(row["name"] for row in rows if row["kind"] == "generator")
    return to_html(f"Evaluation: {names}", "Generated tiles compared with real tiles. Not for diagnosis.", sections)


CONTROL_TEXT = (
    "Each assessed attribute is swept through its levels with everything else fixed, and the predictor predicts the level of the tile. All "
    "levels have equal weight. accuracy: fraction predicted as requested; mae: mean absolute error in levels; kappa: quadratic weights; "
    "spearman: rank correlation, relative to its maximum for this number of levels. In small print: 95 % intervals, latents resampled. "
    "Scores of generated tiles are limited by the predictor's own scores on held-out real tiles, the first row. The predictor was trained "
    "on real tiles only: if precision and coverage are below 0.1, its predictions on generated tiles are unreliable."
)
LEAK_TEXT = (
    "The attribute of the row is swept from its lowest to its highest level; the column shows how far the prediction of each attribute "
    "moves, as a fraction of its scale. The diagonal should be near 1, all else near 0. A generator that ignores its labels has 0 "
    "everywhere, so read leakage together with control."
)
LEVEL_TEXT = (
    "KID x 1000 between generated and real training tiles of the same level, and for the same tiles with shuffled labels. If the tiles "
    "look real and show their level, the KID is lower than with shuffled labels. Levels with fewer than 10 real or generated tiles are "
    "omitted."
)
MEMORY_TEXT = (
    "Distance of each generated tile to its nearest training tile, compared with that of real held-out tiles. ratio: ratio of the medians, "
    "far below 1 if training tiles are copied. nearer: fraction of generated tiles that are nearer than all but 1 % of the held-out ones; "
    "expected 1 %. membership: share of pairs of a training and a held-out tile in which the training tile has the nearer generated tile "
    "(AUC; slides are resampled if there are five or more): 0.5 without memorization, an interval above 0.5 if training tiles can be "
    "recognized. Pictures: the 8 generated tiles nearest to a training tile, each beside that tile, and the same for held-out tiles; "
    "the distance is 1 where only 1 % of the held-out tiles are nearer. "
)
MEASURED_TEXT = (
    "The tiles are phantoms, so each attribute can be measured by image analysis, without a trained predictor: nuclear area, alignment of "
    "edges, area of figures, dark spots, spread of blob areas. Spearman correlation with the requested level, relative to its maximum, on "
    "the tiles with real level combinations."
)

APART = {
    True: "No slide is in both splits.",
    False: "Some slides are in both splits, so held-out tiles are not independent and the first row is too optimistic.",
    None: "The tiles have no groups, so the splits may share slides.",
}


def summary_text(result: Mapping[str, Any]) -> str:
    """Return the explanation of the summary table."""
    attributes = result["data"]["attributes"]
    assessed = [name for name, entry in attributes.items() if entry["judged"]]
    others = [name for name, entry in attributes.items() if not entry["judged"]]
    equal = result["settings"]["equal"]
    small = " This is few: FID is then mostly bias, and the four metrics after it are coarse." if equal < 500 else ""
    return (
        f"KID (x 1000; unbiased, the main metric) uses all tiles. FID, precision, recall, density and coverage depend on the number of "
        f"tiles and use {equal} real and {equal} generated ones.{small} All are computed against the training tiles. The first row has the "
        f"scores of {result['data']['held_out_tiles']} real tiles that the model was not trained on. "
        f"{APART[result['data']['groups_apart']]} {trained_text(result)}{_quality_text(result)}"
        f"Attributes assessed: {', '.join(assessed) or 'none'}."
        + (f" Not assessed: {', '.join(others)}; see the reasons below." if others else "")
    )


def trained_text(result: Mapping[str, Any]) -> str:
    """Return the warning that models are scored with the features that they were trained on; "" if they are not."""
    if not (names := result.get("trained_on_features")):
        return ""
    return f"Trained on these features: {', '.join(names)}; KID, FID and the other scores of features are better than the tiles. "


def _quality_text(result: Mapping[str, Any]) -> str:
    why = result["data"].get("quality", "")
    return f"Image quality is not assessed: {why}. " if why else ""


def summary(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the summary table: a row per result row."""
    header = ["", "tiles", "KID x 1000", "FID", *QUALITY[2:], "control score", "leakage", "diversity", "memorization ratio"]
    return Table(
        header,
        [
            [row["name"], row["tiles"], *_quality(row), _control_score(row), _leak(row), _diversity(row), _memory(row, "ratio")]
            for row in rows
        ],
    )


def _quality(row: Mapping[str, Any]) -> list[Figure]:
    found = row.get("quality")
    if found == {}:
        return [Figure("not assessed"), *(Figure(NONE) for _ in QUALITY[1:])]
    return [estimate((found or {}).get(name), 1000 if name == "kid" else 1) for name in QUALITY]


def _control_score(row: Mapping[str, Any]) -> Cell:
    if "obeys" not in row:
        return "not assessed"
    return Figure(f"{row['obeys']:.2f}", "unreliable: unrealistic tiles" if is_unrealistic(row) else "")


def _leak(row: Mapping[str, Any]) -> Cell:
    if "leak" not in row:
        return Figure(NONE)
    return Figure(f"{row['leak']['mean']:.2f}") if row["obeys"] >= LOW_CONTROL_SCORE else Figure("not reported", "control score too low")


def _diversity(row: Mapping[str, Any]) -> Figure:
    return Figure(f"{row['diversity']:.2f}" if "diversity" in row else NONE)


def _memory(row: Mapping[str, Any], name: str) -> Figure:
    return Figure(f"{row['memory'][name]:.2f}" if "memory" in row else NONE)


def estimate(triple: Sequence[float | None] | None, scale: float = 1) -> Figure:
    """Format a value with its interval in small print.

    Args:
        triple: value, lower and upper bound; None where not available.
    """
    if not triple or triple[0] is None:
        return Figure(NONE)
    value, low, high = (None if number is None else number * scale for number in triple)
    digits = 1 if scale > 1 or abs(value or 0) >= 10 else 2
    return Figure(f"{value:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}" if low is not None else "")


def assessment(result: Mapping[str, Any]) -> Section:
    """Return the section about the predictor and which attributes it can assess."""
    data, rows = result["data"], []
    for name, entry in data["attributes"].items():
        levels = ", ".join(
            f"{level['level']}: {level['train']}/{level['exam']}" + ("" if level["judged"] else " (too few)") for level in entry["levels"]
        )
        scores = [estimate(entry["judge"].get(score)) for score in SCORES]
        rows.append([name, *scores, "assessed" if entry["judged"] else f"not assessed: {entry['why']}", levels])
    predictor, validation = data["judge"], data["exam"]
    scores_by_kind = ", ".join(f"{kind} {value:.2f}" for kind, value in predictor.get("choice", {}).items())
    choice = f" It was selected by mean Spearman on held-out training groups: {scores_by_kind}." if scores_by_kind else ""
    crossed = (
        ": held-out tiles and, since the set is small, training tiles by cross-validation over groups" if validation["crossed"] else ""
    )
    text = (
        f"The predictor ({predictor['kind']}) was trained on {predictor['training_tiles']} real training tiles of {data['train_groups']} "
        f"groups (slides), independently of any generator.{choice} The table has its scores on {validation['tiles']} real tiles of "
        f"{validation['groups']} groups that it was not trained on{crossed}. An attribute is assessed if at least two of its levels have "
        "enough tiles and the interval of Spearman is above 0."
    )
    return Section("Predictor", text, [Table(["attribute", *SCORES, "assessed", "tiles per level, training/validation"], rows)])


def control(rows: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """Yield a table of control scores per attribute."""
    for name in dict.fromkeys(name for row in rows for name in row["control"]):
        body = [[row["name"], *(estimate(row["control"].get(name, {}).get(score)) for score in SCORES)] for row in rows]
        yield Table(["", *SCORES], body, title=name)


def left_out(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence about tile sets, whose generator can't be sampled; "" without them."""
    names = [row["name"] for row in rows if "left_out" in row]
    if not names:
        return ""
    missing = next(", ".join(row["left_out"]) for row in rows if "left_out" in row)
    return (
        f" {', '.join(names)}: tiles without their generator, scored on the levels in their table like real held-out tiles, on "
        f"levels with at least {MIN_HELD_OUT} tiles. Not computed, since it needs the generator: {missing}."
    )


def reader_study(found: Mapping[str, Any]) -> Section:
    """Return the section about a reader study, the result of `attributegan-label 2afc`."""
    source, rates = found["study"], dict(found["readers"])
    if len(rates) > 1:
        rates["all readers"] = found["all"]
    rates |= {f"{name}: {level}": of_level for name, levels in found["levels"].items() for level, of_level in levels.items()}
    body = [[name, estimate([one["correct"], one["low"], one["high"]]), one["choices"], one["pairs"]] for name, one in rates.items()]
    text = (
        f"Two-alternative forced choice: which of two tiles with the same levels is real, one of split {source['split']} of "
        f"{source['shards']} or one of {source['generated']}? {found['sentence']} Guessing gives 0.50. In small print: 95 % intervals "
        "(Wilson), for other pairs but the same readers; not corrected for the number of levels."
    )
    return Section("Reader study", text, [Table(["", "real tile chosen", "choices", "pairs"], body)] if body else [])


def confusions(rows: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """Yield a confusion matrix per model and attribute, requested by predicted level."""
    for row in rows:
        for name, entry in row.get("confusion", {}).items():
            body: list[Sequence[Cell]] = []
            for level, counts in zip(entry["levels"], entry["counts"], strict=True):
                body.append([f"requested {level}", *(Tinted(count, count / max(1, sum(counts))) for count in counts)])
            yield Table(["", *(f"predicted {level}" for level in entry["levels"])], body, title=f"{name}: {row['name']}")


def leaks(rows: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """Yield the leakage matrix of each model."""
    for row in rows:
        if "leak" in row:
            names = row["leak"]["attributes"]
            body = [
                [name, *(Tinted(value, min(1.0, value)) for value in line)] for name, line in zip(names, row["leak"]["matrix"], strict=True)
            ]
            yield Table(["swept", *names], body, title=row["name"])


def sweep_levels(rows: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """Yield a table of monotonicity and smoothness per model."""
    header = [
        "attribute",
        "steps that increase (0.5: no effect)",
        "order of intermediate levels (1: monotone)",
        "path length (in squared distances of real tiles)",
        "longest step (0.13: uniform, 1: a single jump)",
        "pixel change, lowest to highest level (1: as between two real tiles)",
    ]
    for row in rows:
        if "paths" in row:
            body: list[Sequence[Cell]] = []
            for name, path in row["paths"].items():
                rises = f"{row['monotone'][name]:.2f}" if name in row.get("monotone", {}) else "not assessed"
                between = f"{path['order']:.2f}" if "order" in path else "not assessed"
                numbers = (Figure(f"{path[key]:.2f}" if key in path else NONE) for key in ("length", "largest", "changed"))
                body.append([name, Figure(rises), Figure(between), *numbers])
            yield Table(header, body, title=row["name"])


def level_kid(rows: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """Yield a table of KID by level per attribute."""
    for name in dict.fromkeys(name for row in rows for name in row.get("level_kid", {})):
        levels = sorted({level for row in rows for level in row.get("level_kid", {}).get(name, {})}, key=int)
        body = [[row["name"], *(estimate(row["level_kid"].get(name, {}).get(level), 1000) for level in levels)] for row in rows]
        yield Table(["", *(f"level {level}" for level in levels)], body, title=name)


def memory(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of memorization metrics."""
    found = [row for row in rows if "memory" in row]
    body = [[row["name"], _memory(row, "ratio"), _memory(row, "nearer"), estimate(row["memory"].get("membership"))] for row in found]
    return Table(["", "ratio", "nearer", "membership"], body)


def membership_text(result: Mapping[str, Any]) -> str:
    """Return where the held-out tiles of the membership test come from."""
    used = {row["memory"].get("membership_tiles") for row in result["rows"] if "memory" in row}
    if "same slides" in used:
        return (
            "The membership test used tiles of the training slides (--same-slides) and compared only tiles of the same slide, so the stain "
            "of a slide can't raise the AUC."
        )
    if result["data"]["groups_apart"]:
        return (
            "The membership test used tiles of held-out slides, because no tiles of the training slides were given (--same-slides). Slides "
            "that differ in stain can raise the AUC too."
        )
    return "The membership test used the held-out split, whose tiles may be of the training slides."


def pairs(name: str, found: Sequence[tuple[Pair, Pair]]) -> Table:
    """Return the table of tiles beside their nearest training tiles."""
    header = ["generated | nearest training tile", "distance", "held-out | nearest training tile", "distance"]
    body: list[Sequence[Cell]] = [
        [made.picture, Figure(f"{made.distance:.2f}"), held.picture, Figure(f"{held.distance:.2f}")] for made, held in found
    ]
    return Table(header, body, title=name)


def measured_text(result: Mapping[str, Any]) -> str:
    """Return the explanation of the image measurements."""
    if not (measured_by := result.get("measured_by")):
        return MEASURED_TEXT
    listed = ", ".join(f"{attribute} by {by}" for attribute, by in measured_by.items())
    return (
        f"Measured by image analysis, without a trained predictor: {listed}. Spearman correlation with the requested level, relative to "
        "its maximum, on the tiles with real level combinations. The row of real tiles, with their labels, is the upper bound."
    )


def measured(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of image measurements."""
    names = list(dict.fromkeys(name for row in rows for name in row.get("measured", {})))
    found = [row for row in rows if "measured" in row]
    body = [
        [row["name"], *(Figure(f"{row['measured'][name]:.2f}" if name in row["measured"] else NONE) for name in names)] for row in found
    ]
    return Table(["", *names], body)


def method(result: Mapping[str, Any]) -> Section:
    """Return the section about data, features and settings."""
    features, data, settings = result["features"], result["data"], result["settings"]
    body = [
        [
            "features",
            f"{features['name']} ({features['version']}), tiles resized to {features['size']} pixels, bicubic, antialiased"
            + ("; standardised by the training tiles" if "standardised_by" in features else "")
            + ("; " + trained_text(result).strip() if result.get("trained_on_features") else ""),
        ],
        ["real tiles", f"{data['shards']}, splits {' and '.join(data['splits'])}; {' '.join(part[:16] for part in data['identity'])}"],
        ["settings", ", ".join(f"{name} {value}" for name, value in settings.items())],
        *([f"tiles {name}", f"{found['tiles']:,} tiles of {found['location']}"] for name, found in result.get("tile_sets", {}).items()),
        *([f"model {name}", f"after {model['images']:,} images, {model['image_size']} pixels"] for name, model in result["models"].items()),
    ]
    text = (
        "Results with other features, another feature size or other real tiles are not comparable with these. Intervals are over tiles "
        "(for the predictor's scores over slides, if there are at least five), not over training runs: runs with other seeds differ more."
    )
    return Section("Method", text, [Table(["", ""], body)])


def as_text(result: Mapping[str, Any]) -> str:
    """Return the summary table and the control of each attribute as text for the terminal."""
    table = summary(result["rows"])
    lines = [
        list(map(str, table.header)),
        *(
            [f"{cell.text} ({cell.small})".removesuffix(" ()") if isinstance(cell, Figure) else str(cell) for cell in row]
            for row in table.rows
        ),
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.header))]
    output = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    if warning := trained_text(result):
        output.append(f"\n{warning.strip()}")
    if why := _quality_text(result):
        output.append(f"\n{why.strip()}")
    for row in result["rows"]:
        if row["kind"] == "generator" and row["control"]:
            orders = ", ".join(f"{name} {scores['spearman'][0]:.2f}" for name, scores in row["control"].items())
            output.append(f"\n{row['name']}: control (Spearman relative to its maximum; 1: perfect, 0: none): {orders}")
    return "\n".join(output)


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a generator's row that are plotted over training."""
    found = {name: row["quality"][name][0] for name in row["quality"]}
    found |= {"memory_ratio": row["memory"]["ratio"]} if "memory" in row else {}
    found |= {f"spearman/{name}": scores["spearman"][0] for name, scores in row["control"].items()}
    found |= {"obeys": row["obeys"]} if "obeys" in row else {}
    found |= {"leak": row["leak"]["mean"]} if "obeys" in row and "leak" in row else {}
    return found


def write_tensorboard(folder: Path, images: int, result: Mapping[str, Any]) -> None:
    """Write TensorBoard scalars of the first model, at its number of training images."""
    from torch.utils.tensorboard import SummaryWriter

    row = next(row for row in result["rows"] if row["kind"] == "generator")
    with SummaryWriter(str(folder)) as board:
        for name, value in scalars(row).items():
            board.add_scalar(f"evaluation/{name}", value, images)
