"""Help texts: every example parses, every subcommand has a description and examples, and settings have the defaults of the options."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from tools import bench, evaluate, explore, export, label, runs, sample, shard, study
from tools.evaluation.options import EvaluationSettings
from tools.evaluation.usefulness import UsefulnessSettings
from tools.options import settings_of
from tools.sampling.options import SamplingSettings
from tools.two_afc import options as two_afc

PARSERS = {
    "attributegan-bench": bench._parser,
    "attributegan-evaluate": evaluate._parser,
    "attributegan-explore": explore._parser,
    "attributegan-export": export._parser,
    "attributegan-label": label._parser,
    "attributegan-label 2afc": two_afc.parser_2afc,
    "attributegan-runs": runs._parser,
    "attributegan-sample": sample._parser,
    "attributegan-shard": shard._parser,
    "attributegan-study": study._parser,
}


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return next((action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)), {})


def examples(parser: argparse.ArgumentParser) -> list[str]:
    """The command lines in a help text and in those of its subcommands, without the remarks after them."""
    texts = [parser.epilog or "", *(command.epilog or "" for command in subcommands(parser).values())]
    lines = [line.strip() for text in texts for line in text.splitlines() if re.match(r" +attributegan-", line)]
    return [re.split(r" {3,}", line)[0] for line in lines if "COMMAND" not in line]


@pytest.mark.parametrize("name", PARSERS)
def test_every_example_parses(name: str) -> None:
    found = examples(PARSERS[name]())
    assert len(found) > 1
    for line in found:
        command, *arguments = shlex.split(line)
        if arguments[:1] == ["2afc"]:
            command = f"{command} {arguments.pop(0)}"
        if command in PARSERS:
            if command == "attributegan-evaluate" and arguments[0] not in evaluate.COMMANDS:
                arguments.insert(0, "report")
            PARSERS[command]().parse_args(arguments)


@pytest.mark.parametrize("name", PARSERS)
def test_every_command_has_a_description_and_examples(name: str) -> None:
    parser = PARSERS[name]()
    for command in (parser, *subcommands(parser).values()):
        assert command.description and "examples:\n" in (command.epilog or ""), command.prog
        for action in command._actions:
            assert action.help or isinstance(action, argparse._SubParsersAction), f"{command.prog}: {action.dest}"


@pytest.mark.parametrize(
    ("parser", "arguments", "settings"),
    [
        (sample._parser, ["run", "--out", "out"], SamplingSettings(model="run", out=Path("out"))),
        (explore._parser, ["run"], explore.ExploreSettings(model=Path("run"))),
        (label._parser, ["tiles", "--out", "levels.csv"], label.LabelSettings(tiles=Path("tiles"), out=Path("levels.csv"))),
        (two_afc.parser_2afc, ["--out", "study"], two_afc.StudySettings(out=Path("study"))),
        (study._parser, ["suite.yaml", "--out", "out"], study.StudySettings(suite=Path("suite.yaml"), out=Path("out"))),
        (
            evaluate._parser,
            ["report", "run", "--shards", "s", "--out", "out"],
            EvaluationSettings(model="run", out=Path("out"), shards="s"),
        ),
        (
            evaluate._parser,
            ["usefulness", "run", "--shards", "s", "--out", "out"],
            UsefulnessSettings(model="run", out=Path("out"), shards="s"),
        ),
    ],
)
def test_options_have_the_defaults_of_the_settings(parser, arguments, settings) -> None:  # type: ignore[no-untyped-def]
    options = parser().parse_args(arguments)
    assert settings_of(type(settings), options) == settings
    assert {field.name for field in dataclasses.fields(settings)} <= set(vars(options))
