"""Whether the ranking of models agrees under several feature networks."""

from __future__ import annotations

from typing import Any

import pytest
from scipy.stats import kendalltau

from tools.evaluation import ranking

GOOD, BAD, LAST = "good", "bad", "last"


def result(network: str, kid: dict[str, float], obeys: dict[str, float] | None = None, **more: Any) -> dict[str, Any]:
    """A result with one row for each model, as far as the ranking reads it."""
    rows: list[dict[str, Any]] = [{"name": "real", "kind": "ceiling", "quality": {"kid": [0.0, 0, 0]}}]
    for name, value in kid.items():
        row = {"name": name, "kind": "generator", "quality": {"kid": [value, value, value]}}
        rows.append(row | ({"obeys": obeys[name]} if obeys else {}))
    models = {name: {"images": 10, "identity": f"weights of {name}"} for name in kid}
    data = {"identity": ["train", "val"], "shards": "tissue"}
    return {"features": {"name": network, "size": 64}, "data": data, "models": models, "rows": rows, **more}


FIRST = result("lite1", {GOOD: 0.1, BAD: 0.2, LAST: 0.3}, {GOOD: 0.9, BAD: 0.2, LAST: 0.1})


def text(*results: dict[str, Any]) -> str:
    (section,) = ranking.sections([(f"report-{number}", one) for number, one in enumerate(results)])
    return section.text


def test_the_same_order_agrees_whatever_the_scale() -> None:
    found = text(FIRST, result("random", {GOOD: 10, BAD: 30, LAST: 700}, {GOOD: 0.3, BAD: 0.2, LAST: 0.1}))
    assert "The ranking of 3 models by KID agrees under all of lite1 at 64 pixels, random at 64 pixels (" in found
    assert "(Kendall's tau at least 1.00)" in found
    assert "by control score agrees under all" in found


def test_another_order_does_not_agree() -> None:
    found = text(FIRST, result("random", {GOOD: 3, BAD: 2, LAST: 1}))
    assert "3 models by KID does not agree under any two networks (Kendall's tau at most -1.00" in found
    assert "by control score depends on the features is not known" in found


def test_two_of_three_networks_that_agree_are_named() -> None:
    found = text(FIRST, result("random", {GOOD: 3, BAD: 2, LAST: 1}), result("handcrafted", {GOOD: 1, BAD: 2, LAST: 3}))
    assert "by KID agrees under lite1 at 64 pixels and handcrafted at 64 pixels (Kendall's tau at least 0.8), not under the others" in found


def test_features_that_trained_a_model_have_no_say() -> None:
    trained = result("lite0", {GOOD: 1, BAD: 2, LAST: 3}, trained_on_features=[GOOD])
    assert "is not known" in text(FIRST, trained)
    (section,) = ranking.sections([("a", FIRST), ("b", trained)])
    assert section.tables[0].header[2] == "lite0 at 64 pixels (trained a model)"


def test_models_are_matched_by_their_weights_not_by_the_name_of_their_folder() -> None:
    """Studies call every run folder ``run``."""
    reports = [("study-a", result("lite1", {"run": 0.1})), ("study-b", result("lite1", {"run": 0.4}))]
    reports += [("study-a-random", result("random", {"run": 3})), ("study-b-random", result("random", {"run": 5}))]
    for label, one in reports:
        one["models"]["run"]["identity"] = label[:7]
    (section,) = ranking.sections(reports)
    assert "The ranking of 2 models by KID agrees" in section.text
    assert [row[0] for row in section.tables[0].rows] == ["study-a: run", "study-b: run"]


def test_one_network_alone_and_other_real_tiles_have_no_ranking() -> None:
    other = result("random", {GOOD: 1, BAD: 2})
    other["data"] = {"identity": ["x", "y"], "shards": "others"}
    assert ranking.sections([("a", FIRST)]) == [] and ranking.sections([("a", FIRST), ("b", other)]) == []


@pytest.mark.parametrize("y", [[1, 2, 3, 4], [4, 3, 2, 1], [2, 1, 4, 3], [1, 3, 4, 2]])
def test_kendall_is_that_of_scipy(y: list[float]) -> None:
    assert ranking.kendall([1, 2, 3, 4], y) == pytest.approx(kendalltau([1, 2, 3, 4], y).statistic)
