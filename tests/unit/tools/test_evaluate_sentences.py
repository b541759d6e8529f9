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
    assert "closer to the training tiles than real held-out tiles" in sentences.realism(row(kid=0.0007), CEILING)
    assert "differ" in sentences.realism(row(kid=0.0009), row("ceiling", kid=-0.0002))  # a negative KID is no unit
    assert "not assessed" in sentences.realism(row(quality={}), CEILING)


@pytest.mark.parametrize(
    ("recall", "text"), [(0.65, "as much of the variety of the training tiles as"), (0.41, "cover part"), (0.39, "cover little")]
)
def test_variety(recall: float, text: str) -> None:
    assert text in sentences.variety(row(quality={"recall": [recall, 0, 1]}), CEILING)
    assert "not assessed" in sentences.variety(row(quality={}), CEILING)
    assert "differ 0.47 times as much" in sentences.variety(row(diversity=0.47), CEILING)
    assert "times as much" not in sentences.variety(row(diversity=0.9), CEILING)


FLOOR: dict[str, Any] = {}
RESULT = {"data": {"attributes": dict.fromkeys("abc"), "groups_apart": True, "held_out_tiles": 754}}


def control_of(**values: float) -> dict[str, Any]:
    return {name: {"spearman": [value, value - 0.1, value + 0.1]} for name, value in values.items()}


@pytest.mark.parametrize(("value", "text"), [(0.65, "They follow"), (0.41, "They partly follow"), (0.39, "They hardly follow")])
def test_control(value: float, text: str) -> None:
    ceiling = row("ceiling", control=control_of(grade=0.9, necrosis=0.7, mitosis=0.1))  # mean of the first two: 0.8
    found = sentences.control(row(control=control_of(grade=value + 0.08, necrosis=value - 0.08)), ceiling, FLOOR, RESULT)
    assert (
        text in found and "the 2 of 3 attributes" in found and f"control score {value:.2f}, real held-out tiles 0.80; lowest: nec" in found
    )
    assert "Control was not assessed" in sentences.control(row(control={}), CEILING, FLOOR, RESULT)


def test_one_attribute_that_does_not_follow_is_not_hidden_by_the_mean() -> None:
    ceiling = row("ceiling", control=control_of(crowding=0.71, grade=0.77))
    assert "They partly follow" in sentences.control(row(control=control_of(crowding=0.75, grade=0.45)), ceiling, FLOOR, RESULT)
    assert "They follow" in sentences.control(row(control=control_of(crowding=0.75, grade=0.65)), ceiling, FLOOR, RESULT)
    lower = row("ceiling", control=control_of(crowding=0.71, grade=0.60))  # within the interval, 0.37 to 0.57 is not
    assert "They follow" in sentences.control(row(control=control_of(crowding=0.75, grade=0.52)), lower, FLOOR, RESULT)
    assert "They partly follow" in sentences.control(row(control=control_of(crowding=0.75, grade=0.47)), lower, FLOOR, RESULT)


def test_scores_of_shuffled_labels_are_no_control() -> None:
    ceiling, few = row("ceiling", control=control_of(crowding=0.71, grade=0.77)), row(control=control_of(crowding=1, grade=0.75))
    found = sentences.control(few, ceiling, {"control": control_of(crowding=0.6, grade=0.7)}, RESULT)
    assert "They partly follow" in found and "; grade not measurably better than shuffled labels" in found
    assert "They hardly follow" in sentences.control(few, ceiling, {"control": control_of(crowding=0.9, grade=0.7)}, RESULT)


def test_control_reports_the_worst_leak() -> None:
    leak = {"attributes": ["atypia", "phase"], "matrix": [[0.35, 0.12], [0.37, 0.85]]}
    found = sentences.control(row(leak=leak), CEILING, FLOOR, RESULT)
    assert "They follow" in found
    assert "changing phase also changes atypia, by 0.37 of its scale (0.35 when atypia itself is changed)" in found
    assert "also changes" not in sentences.control(row(leak=leak | {"matrix": [[0.9, 0.3], [0.4, 0.9]]}), CEILING, FLOOR, RESULT)
    assert "also changes" not in sentences.control(
        row(leak=leak, control=control_of(grade=0.1)), CEILING, FLOOR, RESULT
    )  # noise of the predictor
    assert "also changes" not in sentences.control(row(leak={"attributes": ["phase"], "matrix": [[0.9]]}), CEILING, FLOOR, RESULT)


def test_control_of_tiles_that_the_predictor_cannot_read() -> None:
    low = row(quality={"kid": [0.4, 0.3, 0.5], "recall": [0, 0, 0], "precision": [0.05, 0, 0.1], "coverage": [0.02, 0, 0.1]})
    assert "Control can't be judged" in sentences.control(low, CEILING, FLOOR, RESULT)
    low["quality"]["coverage"] = [0.1, 0, 0.2]
    assert "They follow" in sentences.control(low, CEILING, FLOOR, RESULT)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        (memory(), "Neither test of privacy"),
        (memory(ratio=0.4), "unusually near"),
        (memory(nearer=0.06), "unusually near"),
        (memory(low=0.51), "No copies were found, but training tiles are nearer"),
        (memory(low=0.3), "No copies were found, but held-out tiles are nearer"),
        (memory(ratio=0.4, low=0.51), "look like copies"),
        ({}, "not looked for"),
    ],
)
def test_privacy(numbers: dict[str, Any], text: str) -> None:
    assert text in sentences.privacy(row(**numbers), RESULT)


def test_modified_copies_are_not_excluded_if_tiles_are_unlike_real_ones() -> None:
    unlike = {"quality": {"kid": [0.2, 0.1, 0.3], "precision": [0.04, 0, 0.1], "coverage": [0.03, 0, 0.1]}}
    assert "too unlike real ones for the tests to recognize modified copies" in sentences.privacy(row(**unlike, **memory()), RESULT)
    assert "unusually near" in sentences.privacy(row(**unlike, **memory(ratio=0.4)), RESULT)  # copies that are found are reported


def test_of_few_held_out_tiles_some_nearer_tiles_are_chance() -> None:
    few = {"data": RESULT["data"] | {"held_out_tiles": 52}}
    assert "Neither test of privacy" in sentences.privacy(row(**memory(nearer=0.09)), few)
    assert "unusually near" in sentences.privacy(row(**memory(nearer=0.1)), few)


def test_membership_on_other_slides_names_their_look_as_a_cause() -> None:
    numbers = memory(low=0.51)
    assert "can be the cause: check with --same-slides" in sentences.privacy(row(**numbers), RESULT)
    assert "--same-slides" not in sentences.privacy(row(**numbers), {"data": RESULT["data"] | {"groups_apart": False}})
    assert "can be the cause: check that the generator was not trained on them" in sentences.privacy(row(**memory(low=0.3)), RESULT)
    numbers["memory"]["membership_tiles"] = "same slides"
    assert "--same-slides" not in sentences.privacy(row(**numbers), RESULT)
    numbers = memory(low=0.3)
    numbers["memory"]["membership_tiles"] = "same slides"
    assert "cause" not in sentences.privacy(row(**numbers), RESULT)


@pytest.mark.parametrize(
    ("apart", "equal", "slides", "text"),
    [
        (False, 1000, 9, "in both splits"),
        (None, 1000, 9, "slides of the real tiles are unknown"),
        (True, 499, 9, "only 499 tiles"),
        (True, 500, 4, "only 4 slides"),
        (True, 52, 1, "only 52 tiles per side, so small differences mean little; the held-out tiles come from only 1 slide,"),
        (True, 500, 5, "500 tiles per side and 5 held-out slides"),
    ],
)
def test_trust(apart: bool | None, equal: int, slides: int, text: str) -> None:
    assert text in sentences.trust({"data": {"groups_apart": apart, "held_out_groups": slides}, "settings": {"equal": equal}})


def test_trust_warns_of_features_that_trained_the_model() -> None:
    data = {"groups_apart": True, "held_out_groups": 9}
    found = sentences.trust({"data": data, "settings": {"equal": 900}, "trained_on_features": ["first"]})
    assert found.startswith("first was trained on these features")


def test_five_sentences_of_the_first_model() -> None:
    data = {"attributes": {"grade": None}, "groups_apart": True, "held_out_groups": 9, "held_out_tiles": 800}
    rows = [CEILING, row(name="first", **memory()), row("floor"), row(name="second")]
    found = sentences.sentences({"rows": rows, "data": data, "settings": {"equal": 800}})
    assert len(found) == 5 and all(text.endswith(".") for text in found)
    assert "first" in found[0] and "second" not in "".join(found)
