"""Compares the ranking of models under several feature networks: a ranking that depends on the network says little about the tiles.

Pure functions of results; thresholds are constants, so that equal numbers always give equal sentences.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attributegan.utils.html_page import Cell, Figure, Section, Table

AGREE = 0.8  # Kendall's tau from which two rankings agree
SCORES = {"KID": ("kid", 1), "control score": ("obeys", -1)}  # field, and 1 if less is better
NONE = "–"


@dataclass(frozen=True)
class Scored:
    """The models that results of one set of real tiles score, and their scores under each feature network.

    Args:
        names: of the models, by their identity.
        scores: name of the score -> feature network -> identity of the model -> value, less is better.
        trained: feature networks whose features trained one of the models; they have no say.
    """

    names: Mapping[str, str]
    scores: Mapping[str, Mapping[str, Mapping[str, float]]]
    trained: frozenset[str]


def sections(members: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Section]:
    """Returns a section for each set of real tiles whose results have at least two feature networks.

    Args:
        members: label and content of each result.
    """
    by_data: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for label, result in members:
        by_data.setdefault(json.dumps(result["data"]["identity"]), []).append((label, result))
    return [_section(of_data) for of_data in by_data.values() if len({_network(result) for _, result in of_data}) > 1]


def _section(members: Sequence[tuple[str, Mapping[str, Any]]]) -> Section:
    scored = collect(members)
    text = " ".join(sentence(name, scored) for name in SCORES)
    found = [table for name in SCORES for table in (_ranks(name, scored), _pairs(name, scored)) if table.rows]
    return Section(f"Ranking under several features: {members[0][1]['data']['shards']}", text, found)


def collect(members: Sequence[tuple[str, Mapping[str, Any]]]) -> Scored:
    """Collects the scores of the generators of results with the same real tiles."""
    names: dict[str, str] = {}
    scores: dict[str, dict[str, dict[str, float]]] = {name: {} for name in SCORES}
    for label, result in members:
        for row in result["rows"]:
            if row["kind"] != "generator":
                continue
            model = _identity(row["name"], result)
            names.setdefault(model, f"{label}: {row['name']}")
            for name, (field, sign) in SCORES.items():
                value = row.get("quality", {}).get("kid", [None])[0] if field == "kid" else row.get(field)
                if value is not None:
                    scores[name].setdefault(_network(result), {}).setdefault(model, sign * value)
    short = {model: name.partition(": ")[2] for model, name in names.items()}
    unique = len(set(short.values())) == len(short)
    return Scored(
        short if unique else names, scores, frozenset(_network(result) for _, result in members if "trained_on_features" in result)
    )


def _network(result: Mapping[str, Any]) -> str:
    features = result["features"]
    return f"{features['name']} at {features['size']} pixels"


def _identity(name: str, result: Mapping[str, Any]) -> str:
    """Returns what identifies a model or tile set across results; results of earlier versions have only names and numbers of images."""
    entry = result.get("models", {}).get(name) or result.get("tile_sets", {}).get(name) or {}
    return str(entry.get("identity") or f"{name} {entry.get('images', entry.get('location', ''))}")


def sentence(score: str, scored: Scored) -> str:
    """Says whether the ranking by a score agrees under at least two networks: Kendall's tau of at least `AGREE`."""
    taus = {
        (a, b): kendall(*values)
        for a, b in itertools.combinations(_networks(score, scored), 2)
        if len((values := _common(score, scored, a, b))[0]) > 1
    }
    if not taus:
        return f"Whether the ranking by {score} depends on the features is not known: no two networks score the same two models or more."
    count = max(len(_common(score, scored, *pair)[0]) for pair in taus)
    best = max(taus, key=taus.__getitem__)
    agreeing = [pair for pair, tau in taus.items() if tau >= AGREE]
    if len(agreeing) == len(taus):
        networks = ", ".join(dict.fromkeys(itertools.chain(*taus)))
        return f"The ranking of {count} models by {score} agrees under all of {networks} (Kendall's tau at least {min(taus.values()):.2f})."
    if agreeing:
        pairs = "; ".join(f"{a} and {b}" for a, b in agreeing)
        return f"The ranking of {count} models by {score} agrees under {pairs} (Kendall's tau at least {AGREE:g}), not under the others."
    return (
        f"The ranking of {count} models by {score} does not agree under any two networks (Kendall's tau at most {taus[best]:.2f}, "
        f"{best[0]} and {best[1]}): which model is better depends on the features."
    )


def _networks(score: str, scored: Scored) -> list[str]:
    return [network for network in scored.scores[score] if network not in scored.trained]


def _common(score: str, scored: Scored, a: str, b: str) -> tuple[list[float], list[float]]:
    """Returns the scores of the models that both networks score."""
    first, second = scored.scores[score][a], scored.scores[score][b]
    models = [model for model in first if model in second]
    return [first[model] for model in models], [second[model] for model in models]


def kendall(x: Sequence[float], y: Sequence[float]) -> float:
    """Returns Kendall's tau: the share of pairs in the same order minus that in the opposite order."""
    pairs = list(itertools.combinations(range(len(x)), 2))
    signs = [(x[i] - x[j]) * (y[i] - y[j]) for i, j in pairs]
    return (sum(sign > 0 for sign in signs) - sum(sign < 0 for sign in signs)) / len(pairs)


def _ranks(score: str, scored: Scored) -> Table:
    """Returns the ranks of the models, 1 for the best, a column per network; the score in small print."""
    table = scored.scores[score]
    sign, scale = SCORES[score][1], 1000 if score == "KID" else 1
    body: list[list[Cell]] = [
        [scored.names[model], *(_rank(model, of_network, sign * scale, f".{1 if score == 'KID' else 2}f") for of_network in table.values())]
        for model in scored.names
    ]
    header = [network + (" (trained a model)" if network in scored.trained else "") for network in table]
    return Table(["", *header], body, title=f"rank by {score}" + (" (x 1000)" if score == "KID" else "")) if table else Table([], [])


def _rank(model: str, scores: Mapping[str, float], scale: float, form: str) -> Figure:
    if model not in scores:
        return Figure(NONE)
    return Figure(str(1 + sum(value < scores[model] for value in scores.values())), format(scale * scores[model], form))


def _pairs(score: str, scored: Scored) -> Table:
    """Returns Spearman's and Kendall's rank correlation of each pair of networks."""
    import numpy as np

    from attributegan.metrics.control import spearman

    body: list[list[Cell]] = []
    for a, b in itertools.combinations(scored.scores[score], 2):
        x, y = _common(score, scored, a, b)
        if len(x) > 1:
            body.append([f"{a}, {b}", len(x), Figure(f"{spearman(np.array(x), np.array(y)):.2f}"), Figure(f"{kendall(x, y):.2f}")])
    return Table(["", "models", "Spearman", "Kendall"], body, title=f"agreement by {score}")
