"""``attributegan-evaluate``: a report on a trained model, with what real tiles score and what chance scores beside it.

Owns the command line and the order of the work. Numbers are `attributegan.evaluation`'s, the page is `tools.evaluation.report`'s.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from attributegan import cli
from tools.evaluation import compare, watch
from tools.evaluation.options import EvaluationSettings, common_options

EXAMPLES = """\
  attributegan-evaluate runs/first --shards shards --out report
  attributegan-evaluate runs/first --shards shards --out report --baseline runs/second --baseline runs/third
  attributegan-evaluate runs/first --shards shards --out report --features inception.pt --feature-size 299
  accelerate launch --config_file configs/accelerate/cpu.yaml --num_processes 2 tools/evaluate.py runs/first --shards shards --out report
  attributegan-evaluate compare report-a report-b --out comparison.html
  attributegan-evaluate watch runs/first --shards shards          evaluates every checkpoint as it appears, keeps the best"""

COMMANDS = ("report", "compare", "watch")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse ``argv`` (the process's arguments by default), evaluate, and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] not in (*COMMANDS, "-h", "--help"):
        arguments.insert(0, "report")  # the command that may be left out
    options = _parser().parse_args(arguments)
    return cli.exit_status(lambda: options.work(options))


def _parser() -> argparse.ArgumentParser:
    result = cli.parser(
        "Measure how real a model's tiles look and whether they have the levels asked for. The command `report` may be left out, unless "
        "the model's folder is called as a command is.",
        EXAMPLES,
    )
    commands = result.add_subparsers(metavar="COMMAND", required=True)
    report = cli.command(
        commands,
        "report",
        "evaluate one model, or several side by side",
        "Evaluate a model. DIR gets report.html (one file, no other needed), result.json and tensorboard/.",
        EXAMPLES,
    )
    report.add_argument("model", metavar="RUN|CHECKPOINT", help="a run's folder (its newest checkpoint) or one checkpoint")
    report.add_argument("--out", metavar="DIR", required=True, type=Path, help="folder of the report; made if it is not there")
    report.add_argument("--baseline", metavar="RUN", action="append", default=[], help="another model for the same tables; may be repeated")
    common_options(report)
    report.set_defaults(work=_report)
    compare.add(commands)
    watch.add(commands)
    return result


def _report(options: argparse.Namespace) -> None:
    from tools.evaluation.run import evaluate

    evaluate(EvaluationSettings.of(options))


if __name__ == "__main__":
    sys.exit(main())
