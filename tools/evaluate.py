"""``attributegan-evaluate``: reports image quality and attribute control of a model, next to real data and a shuffled-label baseline.

Owns the command line. Scores are computed in `attributegan.evaluation`; the work is in `tools.evaluation`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from attributegan import cli
from tools.evaluation import compare, usefulness, watch
from tools.evaluation.options import EvaluationSettings, add_common
from tools.options import settings_of, with_settings

EXAMPLES = """\
  attributegan-evaluate runs/first --shards shards --out report
  attributegan-evaluate runs/first --shards shards --out report --baseline runs/second --baseline runs/third
  attributegan-evaluate runs/first --shards shards --out report --features inception.pt --feature-size 299
  attributegan-evaluate stylegan-tiles --shards shards --out report --baseline runs/first      tiles of any model, with a CSV of levels
  accelerate launch --config_file "$(attributegan-presets --path accelerate/cpu)" --num_processes 2 \\
      -m attributegan evaluate runs/first --shards shards --out report
  attributegan-evaluate compare report-a report-b --out comparison.html
  attributegan-evaluate usefulness runs/first --shards shards --out report     do generated tiles help to train a predictor?
  attributegan-evaluate watch runs/first --shards shards          evaluates new checkpoints during training, keeps the best"""

COMMANDS = ("report", "compare", "watch", "usefulness")


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate with ``argv`` (default: ``sys.argv``) and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] not in (*COMMANDS, "-h", "--help"):
        arguments.insert(0, "report")  # the default command
    options = _parser().parse_args(arguments)
    return cli.exit_status(lambda: options.work(options))


def settings(argv: Sequence[str]) -> EvaluationSettings:
    """Return the settings of a command line of ``report``; ValueError or SystemExit if it is invalid."""
    return settings_of(EvaluationSettings, _parser().parse_args(["report", *argv]))


def _parser() -> argparse.ArgumentParser:
    result = cli.parser(
        "Evaluate image quality and attribute control of trained models against real tiles.\n"
        "`report` is the default command and can be omitted, unless the model's folder has the name of a command.",
        EXAMPLES,
    )
    commands = result.add_subparsers(metavar="COMMAND", required=True)
    report = cli.command(
        commands,
        "report",
        "evaluate one or more models (default command)",
        "Evaluate one or more models. Writes report.html (a self-contained page), result.json and tensorboard/ to DIR.",
        EXAMPLES,
    )
    report.add_argument(
        "model",
        metavar="RUN|CHECKPOINT|TILES",
        help="run folder (uses its latest checkpoint), checkpoint, or generated tiles: a folder of images with one CSV of levels, or a "
        "shard set",
    )
    report.add_argument("--out", metavar="DIR", required=True, type=Path, help="output folder of the report; created if it does not exist")
    report.add_argument(
        "--baseline",
        metavar="RUN|TILES",
        action="append",
        default=[],
        help="run folder, checkpoint or tiles of a further model to evaluate; repeatable",
    )
    report.add_argument(
        "--reader-study", metavar="DIR", type=Path, help="include the result of a reader study, the --out of `attributegan-label 2afc`"
    )
    add_common(report)
    report.set_defaults(work=with_settings(_report, EvaluationSettings))
    compare.add(commands)
    watch.add(commands)
    usefulness.add(commands)
    return result


def _report(settings: EvaluationSettings) -> None:
    from tools.evaluation.run import evaluate

    evaluate(settings)


if __name__ == "__main__":
    sys.exit(main())
