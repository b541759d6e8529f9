"""Options: help, ranges, error messages and ``--help``, all from the fields of the dataclasses."""

from dataclasses import dataclass, fields, is_dataclass

import pytest

from attributegan.config import Config, from_dict
from attributegan.old_names import RENAMED_OPTIONS
from attributegan.option_help import explain, list_all
from attributegan.options import Spec, check_limits, fill, list_options, option, sections
from launch import train
from slurm import submit
from slurm.cluster_config import ClusterConfig

OPTIONS = [*list_options(Config), *list_options(ClusterConfig)]


@pytest.mark.parametrize("each", OPTIONS, ids=lambda each: each.name)
def test_every_option_is_explained(each) -> None:
    assert each.spec.help.endswith(".") and each.spec.help[0].isupper()
    assert each.short_help.count("(") == each.short_help.count(")") and len(each.short_help) <= 130
    numbers = each.default if isinstance(each.default, tuple) else (each.default,)
    assert all(each.spec.allows(value) for value in numbers if isinstance(value, int | float) and not isinstance(value, bool))


def test_every_section_is_explained() -> None:
    assert [name for name, _ in sections(Config)] == [each.name for each in fields(Config)]
    assert all(is_dataclass(cls) and cls.__doc__ and cls.__doc__.endswith(".") for _, cls in sections(Config))


@dataclass(frozen=True)
class Numbers:
    both: float = option(0.5, "A share.", minimum=0, maximum=1)
    open: float = option(1.0, "A rate.", above=0, below=10)
    even: int = option(2, "A pair.", minimum=2, multiple_of=2)
    side: int = option(4, "A side.", choices=(4, 8))
    many: tuple[int, ...] = option((1,), "Counts.", minimum=1)
    names: dict[str, str] = option({"a": "b"}, "Names.")

    def __post_init__(self) -> None:
        check_limits(self, "numbers")


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"both": 1.01}, "numbers.both: 1.01 must be from 0 to 1\n  numbers.both (number, from 0 to 1; default: 0.5): A share."),
        ({"both": -0.01}, "numbers.both: -0.01 must be from 0 to 1\n"),
        ({"open": 0}, "numbers.open: 0.0 must be above 0 and below 10\n"),
        ({"open": 10}, "numbers.open: 10.0 must be above 0 and below 10\n"),
        ({"even": 3}, "numbers.even: 3 must be at least 2, a multiple of 2\n"),
        ({"even": 0}, "numbers.even: 0 must be at least 2, a multiple of 2\n"),
        ({"side": 5}, "numbers.side: 5 is not one of 4, 8\n  numbers.side (one of 4, 8; default: 4): A side."),
        ({"many": [3, 0]}, "numbers.many: 0 must be at least 1\n  numbers.many (list of whole numbers, at least 1; default: [1]): Counts."),
        (
            {"evem": 4},
            "numbers.evem: unknown option; did you mean numbers.even? Options of numbers: both, open, even, side, ",
        ),
        ({"x": 4}, "numbers.x: unknown option. Options of numbers: both, open, even, side, many, names"),
    ],
)
def test_errors_name_the_option_the_value_the_range_and_the_help(tree: dict, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        fill(Numbers, tree, "run.yaml", "numbers")
    assert str(caught.value).startswith(f"run.yaml: {said}")
    assert str(caught.value).count("\n") == ("numbers.x" not in said)


def test_values_at_the_ends_of_a_range_are_accepted() -> None:
    found = fill(Numbers, {"both": 0, "open": 9.99, "even": 4, "side": 8, "many": []}, "run.yaml")
    assert (found.both, found.open, found.even, found.side, found.many) == (0.0, 9.99, 4, 8, ())
    assert fill(Numbers, {"both": 1}, "run.yaml").both == 1.0


def test_instances_do_not_share_a_mapping() -> None:
    Numbers().names["a"] = "c"
    assert Numbers().names == {"a": "b"}


def test_nan_is_outside_of_any_range() -> None:
    assert not Spec("", minimum=0).allows(float("nan")) and not Spec("", below=0).allows(float("nan"))


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ({"modle": {}}, "modle: unknown option; did you mean model?"),
        ({"data": {"batch": 3}}, "data.batch: unknown option; did you mean train.batch?"),
        ({"train": {"bacth": 3}}, "train.bacth: unknown option; did you mean train.batch?"),
        ({"run": {"name": "x"}}, "run.name: unknown option; did you mean optim.name?"),
        ({"train": {"split": "x"}}, "train.split: unknown option. Options of train: images,"),  # two sections have it
    ],
)
def test_unknown_options_come_with_the_most_similar_one(tree: dict, named: str) -> None:
    with pytest.raises(ValueError) as caught:
        from_dict(tree, "run.yaml")
    assert str(caught.value).startswith(f"run.yaml: {named}")


def test_help_lists_every_option_with_its_type_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    for main in (train.main, submit.main):
        with pytest.raises(SystemExit) as ended:
            main(["--help"])
        assert not ended.value.code
        shown = capsys.readouterr().out
        assert "--config NAME|FILE" in shown and list_all() in shown
    listed = " ".join(list_all().split())
    for each in list_options(Config):
        assert f" {each.name}=" in listed and f"(default: {each.shown_default})" in listed
    assert "train.batch=INT Global batch size" in listed and "loss.adversarial=hinge|relativistic" in listed


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("data.balance", ["data.balance\n", "oversampled", "values: number, from 0 to 1", "default: 1.0", "source: Deming"]),
        ("data.balance=0.5", ["values: number, from 0 to 1"]),
        ("data.window", ["data.shuffle_window\n", "old name: data.window"]),
        ("shuffle_window", ["data.shuffle_window\n"]),
        ("data", ["data: Training tiles", "data.shards\n", "data.workers\n"]),
        ("model.image_size", ["values: one of 32, 64, 128, 256, 512, 1024"]),
    ],
)
def test_help_explains_one_option_or_section(name: str, parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        train.main(["--help", name])
    assert not ended.value.code
    shown = "\n".join(" ".join(line.split()) for line in capsys.readouterr().out.splitlines()) + "\n"
    assert all(part in shown for part in parts)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("data.shard", "did you mean data.shards?"),
        ("dat", "did you mean data?"),
        ("train.workers", "did you mean data.workers?"),
        ("nonsense", "sections: model, loss, augment"),
        ("data.nonsense", "options of data: shards, cache,"),
    ],
)
def test_help_of_an_unknown_option_is_an_error(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        train.main(["--help", name])
    assert ended.value.code == 2
    assert f"--help {name}: unknown option; {said}" in capsys.readouterr().err


def test_old_names_lead_to_existing_options() -> None:
    known = {each.name for each in list_options(Config)}
    assert set(RENAMED_OPTIONS.values()) <= known and not set(RENAMED_OPTIONS) & known
    assert all(explain(old) == explain(new) for old, new in RENAMED_OPTIONS.items())
