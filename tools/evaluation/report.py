"""The look of an evaluation: one HTML page, a few lines of text, TensorBoard scalars.

Every number comes from the result (plain JSON), pictures beside it. Escaping is `attributegan.utils.html_page`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attributegan.utils.html_page import Cell, Figure, Section, Table, Tinted, to_html

if TYPE_CHECKING:
    from tools.evaluation.figures import Pictures

NONE = "–"
LOW_CONTROL_SCORE = 0.2  # mean Spearman below which a small leak says nothing
UNREAL = 0.1  # precision and coverage below which the judge sees what it never learnt from
QUALITY = ("kid", "fid", "precision", "recall", "density", "coverage")
SCORES = ("accuracy", "mae", "kappa", "spearman")


def page(result: Mapping[str, Any], pictures: Pictures) -> str:
    """The report as HTML."""
    rows = result["rows"]
    sections = [
        Section("At a glance", glance_text(result), [glance(rows)]),
        judged(result),
        Section("Control", CONTROL_TEXT, [*control(rows), *confusions(rows)]),
        Section("Leaks", LEAK_TEXT, [*leaks(rows), *sweep_levels(rows)]),
        Section(
            "Sweeps",
            "Each attribute from its lowest level to its highest; all else, the latent included, is kept.",
            [Table([name], [[picture]]) for name, picture in pictures.sweeps.items()],
        ),
        Section("Tiles", "As they come, not chosen.", [Table([name], [[picture]]) for name, picture in pictures.sheets.items()]),
        Section("Levels one by one", LEVEL_TEXT, list(level_kid(rows))),
        Section("Remembered?", MEMORY_TEXT, [memory(rows), *(Table([name], [[picture]]) for name, picture in pictures.neighbours.items())]),
    ]
    if any("measured" in row for row in rows):
        sections.append(Section("Measured on the pixels", measured_text(result), [measured(rows)]))
    if pictures.curves:
        sections.append(
            Section(
                "Over training",
                "From metrics.jsonl, and evaluation.jsonl where a run was watched.",
                [Table([""], [[picture]]) for picture in pictures.curves],
            )
        )
    sections.append(how(result))
    names = ", ".join(result["models"])
    return to_html(f"Evaluation: {names}", "Tiles made by a model, measured against real ones. Not for diagnosis.", sections)


CONTROL_TEXT = (
    "Each judged attribute is moved through its levels with everything else kept, and the judge reads the level off the tile. All levels "
    "count alike. Accuracy: share read as asked for; mae: mean absolute error in levels; kappa: quadratic; spearman: rank correlation over "
    "the most that a continuous number can have with so many levels. Below it the 95 % interval, latents resampled. No score of "
    "generated tiles means more than the judge's own in its exam, which is the first row. "
    "The judge knows real tiles alone: where precision and coverage are below 0.1, what it says of generated ones is a guess."
)
LEAK_TEXT = (
    "Row moved from its lowest to its highest level: how far the judge sees the column's attribute move, in shares of its scale. The "
    "diagonal should be near 1, all else near 0. A generator that ignores its labels has 0 everywhere, so read the leak with the control."
)
LEVEL_TEXT = (
    "KID x 1000 between generated and real training tiles of one level, and for the same tiles with shuffled labels. Where tiles "
    "look real, a level that is shown lies nearer with its own label than with shuffled ones. Levels with fewer than 10 tiles on a "
    "side are left out."
)
MEMORY_TEXT = (
    "Distance of each generated tile to its nearest training tile, beside that of real held-out tiles. ratio: of the medians, far below 1 "
    "when tiles were copied. nearer: share of generated tiles nearer than all but 1 % of the held-out ones; new tiles have 1 %. "
    "Pictures: the generated tiles nearest to training tiles, the training tiles; then the same for held-out tiles."
)
MEASURED_TEXT = (
    "These are phantoms, so each attribute can be measured by image arithmetic, without a trained judge: nuclear area, alignment of edges, "
    "area of figures, dark spots, spread of blob areas. Spearman over its ceiling with the level asked for, on the tiles like real ones."
)

APART = {
    True: "No slide is in both splits.",
    False: "Some slides are in both splits, so held-out tiles are not independent: the first row flatters.",
    None: "Tiles have no groups, so the splits may share slides.",
}


def glance_text(result: Mapping[str, Any]) -> str:
    attributes = result["data"]["attributes"]
    yes = [name for name, entry in attributes.items() if entry["judged"]]
    no = [name for name, entry in attributes.items() if not entry["judged"]]
    equal = result["settings"]["equal"]
    small = " That is few: FID is mostly bias at such counts, and the four after it are coarse." if equal < 500 else ""
    return (
        f"KID (x 1000; unbiased, the headline) uses all tiles; FID, precision, recall, density and coverage use {equal} tiles on both "
        f"sides, since they depend on the count.{small} All against the training tiles; the first row is what real tiles that the model "
        f"never saw score, {result['data']['held_out_tiles']} of them. {APART[result['data']['groups_apart']]} "
        f"{_quality_text(result)}Control judged: {', '.join(yes) or 'nothing'}."
        + (f" Not judged: {', '.join(no)}; reasons below." if no else "")
    )


def _quality_text(result: Mapping[str, Any]) -> str:
    why = result["data"].get("quality", "")
    return f"Image quality is not judged: {why}. " if why else ""


def glance(rows: Sequence[Mapping[str, Any]]) -> Table:
    header = ["", "tiles", "KID x 1000", "FID", *QUALITY[2:], "obeys", "leak", "diversity", "memory ratio"]
    return Table(
        header,
        [[row["name"], row["tiles"], *_quality(row), _obeys(row), _leak(row), _diversity(row), _memory(row, "ratio")] for row in rows],
    )


def _quality(row: Mapping[str, Any]) -> list[Figure]:
    found = row.get("quality")
    if found == {}:
        return [Figure("not judged"), *(Figure(NONE) for _ in QUALITY[1:])]
    return [estimate((found or {}).get(name), 1000 if name == "kid" else 1) for name in QUALITY]


def _obeys(row: Mapping[str, Any]) -> Cell:
    if "obeys" not in row:
        return "not judged"
    found = [row["quality"][name][0] for name in ("precision", "coverage") if name in row.get("quality", {})]
    return Figure(f"{row['obeys']:.2f}", "a guess: unreal" if found and max(found) < UNREAL else "")


def _leak(row: Mapping[str, Any]) -> Cell:
    if "leak" not in row:
        return Figure(NONE)
    return Figure(f"{row['leak']['mean']:.2f}") if row["obeys"] >= LOW_CONTROL_SCORE else Figure("not judged", "obeys too little")


def _diversity(row: Mapping[str, Any]) -> Figure:
    return Figure(f"{row['diversity']:.2f}" if "diversity" in row else NONE)


def _memory(row: Mapping[str, Any], name: str) -> Figure:
    return Figure(f"{row['memory'][name]:.2f}" if "memory" in row else NONE)


def estimate(triple: Sequence[float | None] | None, scale: float = 1) -> Figure:
    """The value, and its interval under it."""
    if not triple or triple[0] is None:
        return Figure(NONE)
    value, low, high = (None if number is None else number * scale for number in triple)
    digits = 1 if scale > 1 or abs(value or 0) >= 10 else 2
    return Figure(f"{value:.{digits}f}", f"{low:.{digits}f} to {high:.{digits}f}" if low is not None else "")


def judged(result: Mapping[str, Any]) -> Section:
    data, rows = result["data"], []
    for name, entry in data["attributes"].items():
        levels = ", ".join(
            f"{level['level']}: {level['train']}/{level['exam']}" + ("" if level["judged"] else " (too few)") for level in entry["levels"]
        )
        scores = [estimate(entry["judge"].get(score)) for score in SCORES]
        rows.append([name, *scores, "judged" if entry["judged"] else f"not judged: {entry['why']}", levels])
    judge = data["judge"]
    tried = ", ".join(f"{kind} {value:.2f}" for kind, value in judge.get("choice", {}).items())
    choice = f" It was chosen by mean Spearman on left-out training groups: {tried}." if tried else ""
    checked = data["exam"]
    crossed = (
        ": held-out tiles, and, since the set is small, training tiles read by judges that were trained without their group"
        if checked["crossed"]
        else ", held out"
    )
    text = (
        f"The judge ({judge['kind']}) learnt from {judge['training_tiles']} real training tiles of {data['train_groups']} groups (slides), "
        f"and from nothing that trains a generator.{choice} First its own exam, on {checked['tiles']} real tiles of "
        f"{checked['groups']} groups that it has not seen{crossed}. An attribute is judged when two of its levels have "
        "enough tiles and the interval of Spearman is above 0."
    )
    return Section("What can be judged", text, [Table(["attribute", *SCORES, "verdict", "tiles of each level, training/exam"], rows)])


def control(rows: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """A table for each attribute."""
    for name in dict.fromkeys(name for row in rows for name in row["control"]):
        body = [[row["name"], *(estimate(row["control"].get(name, {}).get(score)) for score in SCORES)] for row in rows]
        yield Table(["", *SCORES], body, title=name)


def confusions(rows: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    for row in rows:
        for name, entry in row.get("confusion", {}).items():
            body: list[Sequence[Cell]] = []
            for level, counts in zip(entry["levels"], entry["counts"], strict=True):
                body.append([f"asked for {level}", *(Tinted(count, count / max(1, sum(counts))) for count in counts)])
            yield Table(["", *(f"read as {level}" for level in entry["levels"])], body, title=f"{name}: {row['name']}")


def leaks(rows: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    for row in rows:
        if "leak" in row:
            names = row["leak"]["attributes"]
            body = [
                [name, *(Tinted(value, min(1.0, value)) for value in line)] for name, line in zip(names, row["leak"]["matrix"], strict=True)
            ]
            yield Table(["moved", *names], body, title=row["name"])


def sweep_levels(rows: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """Monotonicity and smoothness."""
    header = [
        "attribute",
        "steps that rise (0.5: none)",
        "order of levels in between (1: rises all the way)",
        "path length (in squared distances of real tiles)",
        "longest step (0.13 even, 1 a jump)",
        "pixel change from end to end (1: as between two real tiles)",
    ]
    for row in rows:
        if "paths" in row:
            body: list[Sequence[Cell]] = []
            for name, path in row["paths"].items():
                rises = f"{row['monotone'][name]:.2f}" if name in row.get("monotone", {}) else "not judged"
                between = f"{path['order']:.2f}" if "order" in path else "not judged"
                numbers = (Figure(f"{path[key]:.2f}" if key in path else NONE) for key in ("length", "largest", "changed"))
                body.append([name, Figure(rises), Figure(between), *numbers])
            yield Table(header, body, title=row["name"])


def level_kid(rows: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    for name in dict.fromkeys(name for row in rows for name in row.get("level_kid", {})):
        levels = sorted({level for row in rows for level in row.get("level_kid", {}).get(name, {})}, key=int)
        body = [[row["name"], *(estimate(row["level_kid"].get(name, {}).get(level), 1000) for level in levels)] for row in rows]
        yield Table(["", *(f"level {level}" for level in levels)], body, title=name)


def memory(rows: Sequence[Mapping[str, Any]]) -> Table:
    return Table(["", "ratio", "nearer"], [[row["name"], _memory(row, "ratio"), _memory(row, "nearer")] for row in rows if "memory" in row])


def measured_text(result: Mapping[str, Any]) -> str:
    if not (measured_by := result.get("measured_by")):
        return MEASURED_TEXT
    listed = ", ".join(f"{attribute} by {by}" for attribute, by in measured_by.items())
    return (
        f"Measured by image arithmetic, without a trained judge: {listed}. Spearman over its ceiling with the level asked for, on the "
        "tiles like real ones; the real tiles' row, with the level that they were given, is what can be reached."
    )


def measured(rows: Sequence[Mapping[str, Any]]) -> Table:
    names = list(dict.fromkeys(name for row in rows for name in row.get("measured", {})))
    found = [row for row in rows if "measured" in row]
    body = [
        [row["name"], *(Figure(f"{row['measured'][name]:.2f}" if name in row["measured"] else NONE) for name in names)] for row in found
    ]
    return Table(["", *names], body)


def how(result: Mapping[str, Any]) -> Section:
    features, data, settings = result["features"], result["data"], result["settings"]
    body = [
        ["features", f"{features['name']} ({features['version']}), tiles resized to {features['size']} pixels, bicubic, antialiased"],
        ["real tiles", f"{data['shards']}, splits {' and '.join(data['splits'])}; {' '.join(part[:16] for part in data['identity'])}"],
        ["settings", ", ".join(f"{name} {value}" for name, value in settings.items())],
        *([f"model {name}", f"after {model['images']:,} images, {model['image_size']} pixels"] for name, model in result["models"].items()),
    ]
    text = (
        "Numbers of other features, another size of theirs, or other real tiles can't be compared with these. Intervals are over the tiles "
        "at hand (those of the exam over slides, from five slides on), not over training runs: runs of other seeds differ by more."
    )
    return Section("How", text, [Table(["", ""], body)])


def as_text(result: Mapping[str, Any]) -> str:
    """The first table, for a terminal, and how each attribute is obeyed."""
    table = glance(result["rows"])
    lines = [
        list(map(str, table.header)),
        *(
            [f"{cell.text} ({cell.small})".removesuffix(" ()") if isinstance(cell, Figure) else str(cell) for cell in row]
            for row in table.rows
        ),
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.header))]
    told = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    if why := _quality_text(result):
        told.append(f"\n{why.strip()}")
    for row in result["rows"]:
        if row["kind"] == "generator" and row["control"]:
            orders = ", ".join(f"{name} {scores['spearman'][0]:.2f}" for name, scores in row["control"].items())
            told.append(f"\n{row['name']} obeys (Spearman over its ceiling; 1 fully, 0 not at all): {orders}")
    return "\n".join(told)


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a generator's row that are worth a curve."""
    found = {name: row["quality"][name][0] for name in row["quality"]}
    found |= {"memory_ratio": row["memory"]["ratio"]} if "memory" in row else {}
    found |= {f"spearman/{name}": scores["spearman"][0] for name, scores in row["control"].items()}
    if "obeys" in row:
        found |= {"obeys": row["obeys"], "leak": row["leak"]["mean"]}
    return found


def write_board(folder: Path, images: int, result: Mapping[str, Any]) -> None:
    """TensorBoard scalars of the first model, at the images that it has seen."""
    from torch.utils.tensorboard import SummaryWriter

    row = next(row for row in result["rows"] if row["kind"] == "generator")
    with SummaryWriter(str(folder)) as board:
        for name, value in scalars(row).items():
            board.add_scalar(f"evaluation/{name}", value, images)
