"""The rules of the five sentences that open a report."""

from __future__ import annotations

from typing import Any

import pytest

from tools.evaluation import sentences


def row(kind: str = "generator", kid: float = 0.001, **more: Any) -> dict[str, Any]:
    quality = {"kid": [kid, kid - 0.0001, kid + 0.0001], "recall": [0.8, 0.7, 0.9]}
    return {"name": "model", "kind": kind, "quality": quality, "obeys": 0.8, "control": {"grade": {"spearman": [0.8, 0.7, 0.9]}}} | more


CEILING = row("ceiling")


def memory(ratio: float = 1.0, nearer: float = 0.01, low: float = 0.45) -> dict[str, Any]:
    return {"memory": {"ratio": ratio, "nearer": nearer, "membership": [low + 0.05, low, low + 0.1]}}


@pytest.mark.parametrize(("kid", "text"), [(0.0019, "about as close"), (0.005, "differ measurably"), (0.0101, "are far from real ones")])
def test_realism(kid: float, text: str) -> None:
    found = sentences.realism(row(kid=kid), CEILING)
    assert text in found and f"KID x 1000: {1000 * kid:.1f}, real held-out tiles 1.0" in found


def test_realism_of_overlapping_intervals_and_of_few_tiles() -> None:
    wide = row(kid=0.009)
    wide["quality"]["kid"][1] = 0.001
    assert "about as close" in sentences.realism(wide, CEILING)
    assert "differ" in sentences.realism(row(kid=0.0009), row("ceiling", kid=-0.0002))  # a negative KID is no unit
    assert "not assessed" in sentences.realism(row(quality={}), CEILING)


@pytest.mark.parametrize(("recall", "text"), [(0.65, "cover the variety"), (0.41, "cover part"), (0.39, "cover little")])
def test_variety(recall: float, text: str) -> None:
    assert text in sentences.variety(row(quality={"recall": [recall, 0, 1]}), CEILING)
    assert "not assessed" in sentences.variety(row(quality={}), CEILING)


@pytest.mark.parametrize(("score", "text"), [(0.65, "They follow"), (0.41, "They partly follow"), (0.39, "They hardly follow")])
def test_control(score: float, text: str) -> None:
    result = {"data": {"attributes": dict.fromkeys("abc")}}
    both = {"grade": {"spearman": [0.9, 0, 1]}, "necrosis": {"spearman": [0.3, 0, 1]}}
    found = sentences.control(row(obeys=score, control=both), CEILING, result)
    assert text in found and "the 2 of 3 attributes" in found and "necrosis the least (0.30)" in found
    unassessed = row(control={})
    del unassessed["obeys"]
    assert "Control was not assessed" in sentences.control(unassessed, CEILING, result)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        (memory(), "Neither test of privacy"),
        (memory(ratio=0.4), "unusually near"),
        (memory(nearer=0.06), "unusually near"),
        (memory(low=0.51), "No copies were found, but"),
        (memory(ratio=0.4, low=0.51), "look like copies"),
        ({}, "not looked for"),
    ],
)
def test_privacy(numbers: dict[str, Any], text: str) -> None:
    assert text in sentences.privacy(row(**numbers))


@pytest.mark.parametrize(
    ("apart", "equal", "slides", "text"),
    [
        (False, 1000, 9, "in both splits"),
        (None, 1000, 9, "slides of the real tiles are unknown"),
        (True, 499, 9, "only 499 tiles"),
        (True, 500, 4, "only 4 slides"),
        (True, 500, 5, "500 tiles per side and 5 held-out slides"),
    ],
)
def test_trust(apart: bool | None, equal: int, slides: int, text: str) -> None:
    assert text in sentences.trust({"data": {"groups_apart": apart, "held_out_groups": slides}, "settings": {"equal": equal}})


def test_five_sentences_of_the_first_model() -> None:
    data = {"attributes": {"grade": None}, "groups_apart": True, "held_out_groups": 9}
    rows = [CEILING, row(name="first", **memory()), row("floor"), row(name="second")]
    found = sentences.sentences({"rows": rows, "data": data, "settings": {"equal": 800}})
    assert len(found) == 5 and all(text.endswith(".") for text in found)
    assert "first" in found[0] and "second" not in "".join(found)
