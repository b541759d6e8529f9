"""How levels are read and written: names, numbers, places, and the values that are refused."""

from __future__ import annotations

from decimal import Decimal

import pytest

from attributegan.attributes import UNKNOWN, Attribute, AttributeSchema, number_in

GRADE = Attribute("grade", ("1", "2", "3"))  # numbers are names
TONE = Attribute("tone", ("low", "mid", "high"))  # numbers are places
SCORE = Attribute("score", ("none", "3", "5"), not_assessable=0)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2", 2),
        ("2.0", 2),
        ("+2", 2),
        ("2e0", 2),
        (".5", Decimal("0.5")),
        ("-1", -1),
        ("2" * 40, int("2" * 40)),
        ("2" * 41, None),
        ("two", None),
        ("2 ", None),
        ("", None),
        ("1e1000", None),
        ("\uff12", None),  # a full-width 2
    ],
)
def test_texts_that_are_numbers(text: str, number: Decimal | int | None) -> None:
    assert number_in(text) == number


@pytest.mark.parametrize(
    ("attribute", "value", "level"),
    [
        (TONE, None, UNKNOWN),
        (TONE, -1, UNKNOWN),
        (TONE, "-1.0", UNKNOWN),
        (TONE, "mid", 1),
        (TONE, " high ", 2),
        (TONE, 0, 0),
        (TONE, 2.0, 2),
        (TONE, "1.0", 1),
        (TONE, "#0", 0),
        (GRADE, 1, 0),
        (GRADE, 3.0, 2),
        (GRADE, "2.0", 1),
        (GRADE, "#1", 1),
        (GRADE, "#2.0", 2),
        (GRADE, -1, UNKNOWN),
        (SCORE, "none", 0),
        (SCORE, 3, 1),
        (SCORE, "#1", 1),
        (Attribute("seen", ("false", "true")), True, 1),
        (Attribute("seen", ("false", "true")), False, 0),
    ],
)
def test_values_that_are_read(attribute: Attribute, value: object, level: int) -> None:
    assert attribute.read(value) == level


@pytest.mark.parametrize(
    ("attribute", "value", "named"),
    [
        (TONE, 3, "3"),
        (TONE, 7_000_000, "7000000"),
        (TONE, 0.5, "0.5"),
        (TONE, True, "true"),
        (TONE, "dark", "dark"),
        (TONE, "x" * 41, "x" * 40 + "…"),
        (TONE, "y" * 40, "y" * 40 + "', neither"),
        (TONE, float("nan"), "nan"),
        (TONE, ["mid"], "mid"),
        (TONE, "#3", "#3"),
        (TONE, "#-1", "#-1"),
        (GRADE, 0, "0"),
        (GRADE, "#3", "#3"),
        (SCORE, 2, "2"),
    ],
)
def test_values_that_are_refused(attribute: Attribute, value: object, named: str) -> None:
    with pytest.raises(ValueError) as refused:
        attribute.read(value)
    assert attribute.name in str(refused.value) and named in str(refused.value) and "x" * 41 not in str(refused.value)


@pytest.mark.parametrize(
    ("attribute", "text", "level"),
    [
        (GRADE, "2.5", 1.5),
        (GRADE, "1.25", 0.25),
        (GRADE, "#0.5", 0.5),
        (SCORE, "4", 1.5),
        (SCORE, "none", 0),
        (TONE, "0.5", 0.5),
        (Attribute("falling", ("9", "5", "1")), "7", 0.5),
    ],
)
def test_levels_between_two_others(attribute: Attribute, text: str, level: float) -> None:
    assert attribute.parse(text) == level


@pytest.mark.parametrize(
    ("attribute", "text"), [(GRADE, "0.5"), (GRADE, "3.5"), (SCORE, "1"), (SCORE, "#0.5"), (TONE, "2.5"), (TONE, "-1")]
)
def test_levels_beyond_the_others(attribute: Attribute, text: str) -> None:
    with pytest.raises(ValueError, match=attribute.name):
        attribute.parse(text)


@pytest.mark.parametrize(
    ("levels", "value", "level"),
    [
        (["none", "low", "high"], "none", 0),
        (["none", "low", "high"], 0, 0),
        (["none", "low", "high"], "#2", 2),
        (["none", "low", "high"], None, None),
        (["none", "low", "high"], "null", None),
        (["0", "1", "2"], 0, 0),  # the name and the place are the same level
        (["7", "8", "9"], 7, 0),  # no level has this place
        (["1", "2", "3"], "#0", 0),
        (["1", "2", "3"], "#2", 2),
    ],
)
def test_not_assessable_by_name_and_place(levels: list[str], value: object, level: int | None) -> None:
    schema = AttributeSchema.from_dict({"a": {"levels": levels, "not_assessable": value}})
    assert schema.attributes[0].not_assessable == level
    assert AttributeSchema.from_dict(schema.to_dict()) == schema


@pytest.mark.parametrize("value", [2, "2"])
def test_not_assessable_that_could_be_two_levels(value: object) -> None:
    with pytest.raises(ValueError, match=r"a: .*'#1'.*'#2'"):
        AttributeSchema.from_dict({"a": {"levels": ["1", "2", "3"], "not_assessable": value}})


@pytest.mark.parametrize(("not_assessable", "written"), [(0, "#0"), (2, "#2"), (None, None)])
def test_not_assessable_is_written_by_place_where_it_could_be_a_name(not_assessable: int | None, written: object) -> None:
    schema = AttributeSchema((Attribute("a", ("2", "1", "0"), not_assessable),))
    assert schema.to_dict()["a"]["not_assessable"] == written and AttributeSchema.from_dict(schema.to_dict()) == schema


@pytest.mark.parametrize(("not_assessable", "written"), [(0, 0), (1, 1)])
def test_not_assessable_is_written_as_a_number_where_names_say_the_same(not_assessable: int, written: int) -> None:
    schema = AttributeSchema((Attribute("a", ("0", "1"), not_assessable),))
    assert schema.to_dict()["a"]["not_assessable"] == written


@pytest.mark.parametrize("level", [True, None, ["low"], {"low": 1}])
def test_level_names_must_be_texts_or_numbers(level: object) -> None:
    with pytest.raises(ValueError, match="a: the level name"):
        AttributeSchema.from_dict({"a": {"levels": ["x", level]}})


@pytest.mark.parametrize("attribute", [GRADE, TONE, SCORE])
def test_written_levels_are_read_as_the_same(attribute: Attribute) -> None:
    for level in (UNKNOWN, *range(len(attribute.levels))):
        assert attribute.read(attribute.written(level)) == level
    for low in attribute.assessable[:-1]:
        assert attribute.parse(str(attribute.written(low + 0.25))) == low + 0.25
