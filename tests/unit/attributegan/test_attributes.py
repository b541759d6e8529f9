"""The attribute schema: the preset, its YAML form, and what it refuses."""

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
        ("a: [\n", "not a readable YAML file"),
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
        with pytest.raises(ValueError, match="and others between those from 1 to 3"):
            PUBLISHED.parse(bad)


def test_difference_names_every_attribute_that_differs() -> None:
    tree = PUBLISHED.to_dict()
    tree["mitosis"]["levels"].append("very frequent")
    tree["nucleoli"]["not_assessable"] = None
    lines = PUBLISHED.difference(AttributeSchema.from_dict(tree))
    assert len(lines) == 2 and lines[0].startswith("mitosis:") and lines[1].startswith("nucleoli:")
    assert PUBLISHED.difference(PUBLISHED) == []


def test_check_tells_what_is_wrong() -> None:
    assert PUBLISHED.check([4, 3, 3, 2, 4]) is None
    assert PUBLISHED.check([4, UNKNOWN, 3, 2, UNKNOWN]) is None
    assert "-1 for not known" in str(PUBLISHED.check([-2, 3, 3, 2, 4]))
    assert "nucleoli is 3" in str(PUBLISHED.check([4, 3, 3, 3, 4]))
    assert "4 levels for 5" in str(PUBLISHED.check([1, 1, 1, 1]))
