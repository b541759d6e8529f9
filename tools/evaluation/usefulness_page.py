"""Presents the result of ``attributegan-evaluate usefulness``: sentences by rule, tables and charts. All numbers come from the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attributegan.utils.html_page import Cell, Figure, Picture, Section, Table, to_html
from tools.evaluation import figures

MEAN = "mean"
NONE = "–"
WEAK = 0.3  # mean score of all real tiles below which the predictor can't judge tiles
APART = {
    True: "No slide is in both splits.",
    False: "Some slides are in both splits, so all scores are too high.",
    None: "The slides of the tiles are unknown, so the splits may share slides.",
}


def page(result: Mapping[str, Any]) -> str:
    """Render the result as HTML."""
    names = [MEAN, *result["attributes"]]
    charts = [[Picture(chart(name, result["rows"]), f"{name} over real tiles", "svg+xml")] for name in names]
    sections = [
        Section("In short", " ".join(sentences(result))),
        Section("Gain", GAIN_TEXT, [gains(result["rows"], names)]),
        Section("Scores", SCORE_TEXT, [scores(result["rows"], names)]),
        Section("Charts", CHART_TEXT, [Table([""], [cell]) for cell in charts]),
        Section("Method", method_text(result), [method(result)]),
    ]
    return to_html(
        f"Usefulness: {result['model']['name']}",
        "Predictors trained with and without generated tiles, tested on real held-out tiles. Not for diagnosis.",
        sections,
    )


GAIN_TEXT = (
    "How much generated tiles change the score of a predictor: the difference to the same real tiles alone; for generated tiles alone, "
    "to all real tiles. They help if the interval is above 0. Last column: the difference to the row with as many generated as real "
    "tiles (or all, if fewer exist), whose levels are as frequent as in the real tiles."
)
SCORE_TEXT = (
    "Spearman's rank correlation of the predicted with the labelled level on the held-out tiles, relative to its maximum; all levels have "
    "equal weight. In small print: 95 % intervals, seeds and held-out slides resampled (tiles if there are fewer than five slides)."
)
CHART_TEXT = "The score over the number of real tiles, by what is added to them; bars are the intervals."


def sentences(result: Mapping[str, Any]) -> list[str]:
    """Return the answer: whether adding generated tiles helps, where, how many, what they are worth alone, and whether balancing helps."""
    rows = result["rows"]
    shares = sorted({row["share"] for row in rows if row["share"] and row["real"]}, reverse=True)
    found = [added(rows, share) for share in shares]
    found += [where(rows, share) for share in (shares[0], shares[-1])] if len(shares) > 1 else [where(rows, shares[0])]
    return [*weak(result), *found, how_many(rows), alone(rows), balancing(rows), limits(result)]


def weak(result: Mapping[str, Any]) -> list[str]:
    """Warn of a predictor that reads held-out tiles poorly with all real tiles: differences between poor predictors say little."""
    score = _real(result["rows"], 100)["scores"][MEAN][0]
    if score >= WEAK:
        return []
    other = "other --features or --predictor cnn" if result["settings"]["predictor"] == "features" else "more --predictor-steps"
    return [f"The predictor is poor even with all real tiles (mean score {score:.2f}), so gains mean little: try {other}."]


def verdict(estimate: Sequence[float]) -> str:
    """Return "helps" or "hurts" if the interval of a gain is above or below 0, else "makes no measurable difference"."""
    _, low, high = estimate
    return "helps" if low > 0 else "hurts" if high < 0 else "makes no measurable difference"


def best(rows: Sequence[Mapping[str, Any]], share: int) -> Mapping[str, Any]:
    """Return the row of a share with the largest gain, balanced rows excluded; they have their own sentence."""
    return max((row for row in _added(rows, share) if not row["balanced"]), key=lambda row: row["gain"][MEAN][0])


def _added(rows: Sequence[Mapping[str, Any]], share: int) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["share"] == share and row["real"] and row["generated"]]


def _real(rows: Sequence[Mapping[str, Any]], share: int) -> Mapping[str, Any]:
    return next(row for row in rows if row["share"] == share and row["real"] and not row["generated"])


def _of(row: Mapping[str, Any]) -> str:
    return f"all {row['real']:,} real tiles" if row["share"] == 100 else f"{row['share']} % of the real tiles ({row['real']:,})"


def _gain(estimate: Sequence[float]) -> str:
    return f"{estimate[0]:+.2f}, {estimate[1]:+.2f} to {estimate[2]:+.2f}"


def added(rows: Sequence[Mapping[str, Any]], share: int) -> str:
    """Report the largest gain of a share."""
    row, real = best(rows, share), _real(rows, share)
    gain = row["gain"][MEAN]
    return (
        f"Adding {row['generated']:,} generated tiles to {_of(row)} {verdict(gain)}: mean score {real['scores'][MEAN][0]:.2f} without, "
        f"{row['scores'][MEAN][0]:.2f} with them ({_gain(gain)})."
    )


def where(rows: Sequence[Mapping[str, Any]], share: int) -> str:
    """Name the attributes that generated tiles help and hurt, at the amount of `added`."""
    row = best(rows, share)
    by: dict[str, list[str]] = {"helps": [], "hurts": []}  # in this order
    for name, estimate in row["gain"].items():
        if name != MEAN:
            by.setdefault(verdict(estimate), []).append(f"{name} ({estimate[0]:+.2f})")
    return f"By attribute, for {_of(row)}: " + "; ".join(f"it {key} for {', '.join(names)}" for key, names in by.items() if names) + "."


def how_many(rows: Sequence[Mapping[str, Any]]) -> str:
    """Compare all generated tiles with as many as there are real ones, where both are known."""
    more = [row for row in rows if row["real"] and not row["balanced"] and "over_drawn" in row]
    if not more:
        return "More generated than real tiles were not tried, because no more exist."
    better = [row for row in more if row["over_drawn"][MEAN][1] > 0]
    worse = [row for row in more if row["over_drawn"][MEAN][2] < 0]
    parts = [
        f"{text} for {', '.join(_of(row) for row in found)}"
        for text, found in (("more generated than real tiles are better", better), ("more generated than real tiles are worse", worse))
        if found
    ]
    text = "; ".join(parts) or "more generated than real tiles are not measurably better than as many"
    return f"{text[0].upper()}{text[1:]}."


def alone(rows: Sequence[Mapping[str, Any]]) -> str:
    """Compare generated tiles alone with all real tiles."""
    row = max((row for row in rows if not row["real"] and not row["balanced"]), key=lambda row: row["scores"][MEAN][0])
    real = max((row for row in rows if not row["generated"]), key=lambda row: row["real"])
    return (
        f"{row['generated']:,} generated tiles alone reach {row['scores'][MEAN][0]:.2f}, {real['real']:,} real ones "
        f"{real['scores'][MEAN][0]:.2f} ({_gain(row['gain'][MEAN])})."
    )


def balancing(rows: Sequence[Mapping[str, Any]]) -> str:
    """Report for which real tiles balanced levels are better or worse than levels as frequent as in the real tiles."""
    balanced = [row for row in rows if row["balanced"] and row["real"]]
    parts = []
    for word in ("helps", "hurts"):
        found = [f"{_of(row)} ({_gain(row['over_drawn'][MEAN])})" for row in balanced if verdict(row["over_drawn"][MEAN]) == word]
        if found:
            parts.append(f"{word} for {', '.join(found)}")
    return f"Generating all levels equally often {'; '.join(parts) or 'makes no measurable difference'}."


def limits(result: Mapping[str, Any]) -> str:
    """Return what the result does not show."""
    text = (
        "The generator has seen all real training tiles and their levels"
        if result["model"]["is_model"]
        else ("A generator of these tiles that was trained on all real training tiles has seen their levels")
    )
    return f"{text}: rows with fewer real tiles show what generated tiles replace, not what they add where only few tiles are labelled."


def gains(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Table:
    """Return the table of gains."""
    body: list[Sequence[Cell]] = []
    for row in rows:
        if "gain" in row:
            over = _estimate(row["over_drawn"][MEAN]) if "over_drawn" in row else Figure(NONE)
            body.append([row["name"], verdict(row["gain"][MEAN]), *(_estimate(row["gain"][name]) for name in names), over])
    return Table(["trained on", "", *names, "mean, over 1:1"], body)


def scores(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Table:
    """Return the table of scores."""
    body = [[row["name"], *(_estimate(row["scores"][name], sign="") for name in names)] for row in rows]
    return Table(["trained on", *names], body)


def _estimate(triple: Sequence[float], sign: str = "+") -> Figure:
    value, low, high = (f"{number:{sign}.2f}" for number in triple)
    return Figure(value, f"{low} to {high}")


def chart(name: str, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw the score of an attribute over the number of real tiles: alone, with as many generated tiles, with all, with balanced ones."""
    series: dict[str, list[tuple[float, float]]] = {}
    bars: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        if not row["real"]:
            continue
        kind = (
            "real only" if not row["generated"] else "+ balanced" if row["balanced"] else "+ all" if "over_drawn" in row else "+ up to 1:1"
        )
        value, low, high = row["scores"][name]
        series.setdefault(kind, []).append((row["real"], value))
        bars.setdefault(kind, []).append((row["real"], low, high))
    return figures.chart(name, series, unit="real tiles", bars=bars)


def method_text(result: Mapping[str, Any]) -> str:
    """Return how the predictors were trained and tested."""
    data, settings = result["data"], result["settings"]
    predictor = (
        "an ordinal head on the features; its weight decay is selected by cross-validation on real tiles with the first seed"
        if settings["predictor"] == "features"
        else f"a CNN trained from scratch for {settings['predictor_steps']} steps"
    )
    shares = {row["share"] for row in result["rows"]}
    few = ", ".join(f"{share} %" for share in settings["shares"] if share not in shares)
    few = f" Left out, for lack of real tiles: {few}." if few else ""
    left_out = f" Not scored, for lack of tiles: {', '.join(data['left_out'])}." if data["left_out"] else ""
    return (
        f"Each predictor ({predictor}) is trained {settings['seeds']} times, with real and generated tiles drawn by the seed; for a seed, "
        f"all rows of a share have the same real tiles. It is tested on {data['held_out_tiles']:,} real tiles of {data['held_out_groups']} "
        f"held-out slides. {APART[data['groups_apart']]}{left_out}{few} Many rows are tested, so an interval just above 0 is weak evidence."
    )


def method(result: Mapping[str, Any]) -> Table:
    """Return the table of data and features."""
    features, data, model = result["features"], result["data"], result["model"]
    return Table(
        ["", ""],
        [
            ["generated tiles", f"{model['generated']:,} of {model['name']}"],
            ["real tiles", f"{data['train_tiles']:,} of {data['shards']}, splits {' and '.join(data['splits'])}"],
            ["features", f"{features['name']} ({features['version']}), tiles resized to {features['size']} pixels"],
            ["levels scored", "; ".join(f"{name}: {', '.join(map(str, levels))}" for name, levels in result["attributes"].items())],
        ],
    )
