"""The attribute schema: the preset, the YAML form, and rejected input."""

from pathlib import Path

import pytest

from attributegan.attributes import PUBLISHED, UNKNOWN, Attribute, AttributeSchema


def test_preset_is_the_published_five() -> None:
    assert PUBLISHED.names == ("cell_crowding", "cell_polarity", "mitosis", "nucleoli", "pleomorphism")
    assert PUBLISHED.num_levels == (5, 4, 4, 3, 5)
    assert all(attribute.not_assessable == 0 for attribute in PUBLISHED.attributes)
    assert PUBLISHED.attributes[0].assessable == (1, 2, 3, 4)


def test_dictionary_form_reads_back() -> None:
    assert AttributeSchema.from_dict(PUBLISHED.to_dict()) == PUBLISHED


def test_yaml_with_other_attributes(tmp_path: Path) -> None:
    path = tmp_path / "schema.yaml"
    path.write_text("grade: [low, high]\nnecrosis:\n  levels: [absent, focal, wide, unclear]\n  not_assessable: 3\n")
    schema = AttributeSchema.from_yaml(path)
    assert schema.names == ("grade", "necrosis")
    assert schema.attributes[1] == Attribute("necrosis", ("absent", "focal", "wide", "unclear"), 3)
    assert schema.attributes[1].assessable == (0, 1, 2)


def test_level_names_of_yaml_are_the_text_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "schema.yaml"
    path.write_text("x: {levels: [1.50, 007, no], not_assessable: no}\n")
    assert AttributeSchema.from_yaml(path).attributes == (Attribute("x", ("1.50", "007", "no"), 2),)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("- a\n- b\n", "schema.yaml"),
        ("grade: {levels: [low]}\n", "at least 2 levels"),
        ("grade: {levels: [low, low]}\n", "not all different"),
        ("grade: {levels: [low, high], not_assessable: 2}\n", "levels are 0 to 1"),
        ("grade: {levels: [low, middle, high], not_assessable: 1}\n", "between two others"),
        ("grade: {levels: [low, high], unknown: 1}\n", "unknown keys"),
        ("gr ade: [low, high]\n", "gr ade"),
        ("{}\n", "empty"),
        ("a: [\n", "not valid YAML"),
    ],
)
def test_bad_schema_is_named(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "schema.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=named):
        AttributeSchema.from_yaml(path)


def test_parse_takes_numbers_and_names() -> None:
    assert PUBLISHED.parse("cell_crowding=3, mitosis=rare") == {"cell_crowding": 3, "mitosis": 1}
    for bad in ("crowding=1", "mitosis", "mitosis=7", "mitosis=-1", "mitosis=often"):
        with pytest.raises(ValueError, match="mitosis|attributes"):
            PUBLISHED.parse(bad)


def test_parse_takes_levels_between_assessable_ones() -> None:
    assert PUBLISHED.parse("cell_crowding=2.5,nucleoli=1.25,mitosis=3.0") == {"cell_crowding": 2.5, "nucleoli": 1.25, "mitosis": 3}
    assert type(PUBLISHED.parse("mitosis=3.0")["mitosis"]) is int
    for bad in ("mitosis=0.5", "mitosis=3.5", "mitosis=nan", "mitosis=1e0", "mitosis=.5"):  # 0 is "not assessable"
        with pytest.raises(ValueError, match="fractional levels range from 1 to 3"):
            PUBLISHED.parse(bad)


def test_difference_names_every_attribute_that_differs() -> None:
    tree = PUBLISHED.to_dict()
    tree["mitosis"]["levels"].append("very frequent")
    tree["nucleoli"]["not_assessable"] = None
    lines = PUBLISHED.difference(AttributeSchema.from_dict(tree))
    assert len(lines) == 2 and lines[0].startswith("mitosis:") and lines[1].startswith("nucleoli:")
    assert PUBLISHED.difference(PUBLISHED) == []


def test_check_reports_the_problem() -> None:
    assert PUBLISHED.check([4, 3, 3, 2, 4]) is None
    assert PUBLISHED.check([4, UNKNOWN, 3, 2, UNKNOWN]) is None
    assert "-1 for unknown" in str(PUBLISHED.check([-2, 3, 3, 2, 4]))
    assert "nucleoli is 3" in str(PUBLISHED.check([4, 3, 3, 3, 4]))
    assert "4 levels for 5" in str(PUBLISHED.check([1, 1, 1, 1]))


def test_attributes_that_are_refused() -> None:
    for levels, not_assessable in ((("a", "b", "c"), 1), (("a", "b"), -1), (("a", "b"), 2), (("a", "a"), None), (("a",), None)):
        with pytest.raises(ValueError, match="attribute x: "):
            Attribute("x", levels, not_assessable)
    for levels, not_assessable in ((("a", "b", "c"), 2), (("a", "b"), 1), (("a", "b"), 0), (("a", "b"), None)):
        assert len(Attribute("x", levels, not_assessable).assessable) == len(levels) - (not_assessable is not None)
    with pytest.raises(ValueError, match=r"attributes: names \['x', 'x'\] are not all different"):
        AttributeSchema((Attribute("x", ("a", "b")), Attribute("x", ("c", "d"))))


@pytest.mark.parametrize(
    ("not_assessable", "good", "bad"),
    [
        (0, (-1, 0, 1, 1.5, 3, 3.0), (-0.5, 0.5, 3.1, 4, -2)),
        (3, (-1, 0, 0.5, 2, 3), (2.5, 3.5, 4, -0.1)),
        (None, (-1, 0, 0.5, 2.9, 3), (3.1, -0.1, 4)),
    ],
)
def test_levels_that_can_be_requested(not_assessable: int | None, good: tuple[float, ...], bad: tuple[float, ...]) -> None:
    attribute = Attribute("x", ("a", "b", "c", "d"), not_assessable)
    assert [level for level in good if attribute.check_requested(level) is not None] == []
    assert [level for level in bad if attribute.check_requested(level) is None] == []
    what = {0: "1 to 3, or exactly 0 (a)", 3: "0 to 2, or exactly 3 (d)", None: "0 to 3"}[not_assessable]
    assert attribute.check_requested(7.5) == f"x is 7.5; use a level from {what}"


def test_a_number_that_is_a_name_means_the_name() -> None:
    attribute = Attribute("x", ("1", "0", "much"))
    assert [attribute.parse(text) for text in ("1", "0", "much", "#2", "0.5")] == [0, 1, 2, 2, 0.5]
    for text in ("2", "3", "-1", "", "2.5", "x", "#3"):
        with pytest.raises(ValueError, match="x has the levels 1, 0, much; numbers are level names here"):
            attribute.parse(text)


def test_a_number_is_an_index_if_names_are_words() -> None:
    attribute = Attribute("x", ("none", "few", "many"))
    assert [attribute.parse(text) for text in ("few", "2", "0.5", "#1")] == [1, 2, 0.5, 1]
    for text in ("3", "-1", "", "2.5", "x"):
        with pytest.raises(ValueError, match=r"x has the levels 0 \(none\), 1 \(few\), 2 \(many\); fractional levels range from 0 to 2"):
            attribute.parse(text)


def test_check_of_each_level() -> None:
    schema = AttributeSchema((Attribute("x", ("a", "b")), Attribute("y", ("a", "b", "c"))))
    assert [schema.check(levels) for levels in ([0, 0], [1, 2], [-1, -1])] == [None] * 3
    assert schema.check([2, 0]) == "x is 2, levels are 0 to 1, or -1 for unknown"
    assert schema.check([0, 3]) == "y is 3, levels are 0 to 2, or -1 for unknown"
    assert schema.check([0]) == "1 levels for 2 attributes"


def test_difference_of_names_levels_and_what_can_not_be_assessed() -> None:
    x, y = Attribute("x", ("a", "b")), Attribute("y", ("a", "b", "c"))
    assert AttributeSchema((x, y)).difference(AttributeSchema((y, x))) == ["the model has the attributes x, y; the data has y, x"]
    other = AttributeSchema((Attribute("x", ("a", "c"), 1), y))
    assert AttributeSchema((x, y)).difference(other) == [
        "x: the model has the levels ['a', 'b']; the data has ['a', 'c']",
        "x: not_assessable is None in the model, 1 in the data",
    ]


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ([], "here: expected a mapping of attribute names, got list"),
        ({"x": 3}, "here: x: write `levels"),
        ({3: ["a", "b"]}, "here: 3: write `levels"),
        ({"x": {"levels": "ab"}}, "here: x: write `levels"),
        ({"x": {"levels": ["a", "b"], "not_assessable": True}}, "here: x: not_assessable is True"),
        ({"x": {"levels": ["a", "b"], "not_assessable": "z"}}, "here: x: not_assessable is 'z'"),
        ({"x": {"levels": ["a", "b"], "more": 1, 2: 3}}, r"here: x: unknown keys \['2', 'more'\]"),
    ],
)
def test_bad_trees_are_named(tree: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AttributeSchema.from_dict(tree, "here")  # type: ignore[arg-type]


def test_names_of_the_preset() -> None:
    assert PUBLISHED.attributes[4].levels == ("insufficient information", "normal", "mild", "moderate", "severe")
    assert PUBLISHED.to_dict()["nucleoli"] == {"levels": ["insufficient information", "inconspicuous", "prominent"], "not_assessable": 0}
    assert UNKNOWN == -1
