"""``attributegan-export``: generators for other programs and for the Hugging Face hub, and the published checkpoint as a run.

Owns the command line; what is written is `attributegan.export`'s.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from attributegan.cli import exit_status, parser

if TYPE_CHECKING:
    from attributegan.export.model_card import CardFacts

EXAMPLES = """\
  attributegan-export import-published pretrained_model.pt --out runs/published
      attributegan-sample runs/published --out tiles --count 16                      tiles of the published model
      attributegan-train --config runs/published/config.yaml data.shards=shards      train it on
  attributegan-export generator runs/first --out first-generator --licence cc-by-4.0
      hf upload NAME/first-generator first-generator                                 share it, once its README.md is complete
  attributegan-export onnx runs/first --out first.onnx
  attributegan-export program runs/first/checkpoints/images-000000020000 --out first.pt2 --no-ema"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse ``argv`` (the process's arguments by default), export, and return the exit status."""
    options = _parser().parse_args(argv)
    return exit_status(lambda: options.work(options))


def _parser() -> argparse.ArgumentParser:
    result = parser("Take a trained generator elsewhere, or bring the published AttributeGAN in.", EXAMPLES)
    commands = result.add_subparsers(metavar="COMMAND", required=True)
    _add_import(commands.add_parser("import-published", allow_abbrev=False, help="a published checkpoint -> a run of ours"))
    _add_generator(commands.add_parser("generator", allow_abbrev=False, help="a folder for the Hugging Face hub and from_pretrained"))
    for name, suffix, what in (("onnx", ".onnx", "an ONNX file"), ("program", ".pt2", "a torch.export program")):
        _add_graph(commands.add_parser(name, allow_abbrev=False, help=f"{what}, checked against the network"), name, suffix, what)
    return result


def _add_import(command: argparse.ArgumentParser) -> None:
    command.description = "Turn a checkpoint of the published code, of any size and width, into a run to sample from and to train on."
    command.add_argument("file", metavar="FILE", type=Path, help="such as pretrained_model.pt; code in it is not run")
    command.add_argument("--out", metavar="DIR", required=True, type=Path, help="the run's folder; new, or empty")
    command.add_argument(
        "--generator",
        choices=("raw", "ema"),
        default="ema",
        help="which one is sampled from, unless --no-ema is given: "
        "the published average (default), or the raw generator, as the published sampler does",
    )
    command.set_defaults(work=_import_published)


def _add_generator(command: argparse.ArgumentParser) -> None:
    command.description = "Write the generator alone: model.safetensors, config.json and a model card (README.md)."
    _add_model(command, "DIR", "folder for the three files; new, or empty")
    command.add_argument("--licence", metavar="ID", default="", help="for the model card, such as cc-by-4.0; yours to choose")
    command.add_argument(
        "--data", metavar="TEXT", default="", help="for the model card, what it was trained on (default: the shard set's name)"
    )
    command.add_argument("--metrics", metavar="FILE.json", type=Path, help='for the model card, what was measured: {"name": value, ...}')
    command.set_defaults(work=_export_generator)


def _add_graph(command: argparse.ArgumentParser, name: str, suffix: str, what: str) -> None:
    command.description = (
        f"Write the generator as {what}: latents (batch, L) and levels (batch, attributes) give images (batch, 3, size, size) in about "
        "[-1, 1], for any batch."
    )
    _add_model(command, f"FILE{suffix}", "file to write; replaced if it is there")
    command.add_argument("--fractional", action="store_true", help="levels are float32, so that 2.5 can be asked for, instead of int64")
    command.set_defaults(work=_export_graph, command=name)


def _add_model(command: argparse.ArgumentParser, out: str, help: str) -> None:
    command.add_argument("model", metavar="RUN|CHECKPOINT", help="a run's folder (its newest checkpoint) or one checkpoint")
    command.add_argument("--out", metavar=out, required=True, type=Path, help=help)
    command.add_argument("--no-ema", action="store_true", help="the weights as trained, instead of their average (EMA)")


def _import_published(options: argparse.Namespace) -> None:
    from attributegan.export import import_published

    config = import_published(options.file, options.out, options.generator)
    print(
        f"{options.out}: the published AttributeGAN, {config.model.image_size} px\n"
        f"sample:    attributegan-sample {quote(str(options.out))} --out tiles --count 16\n"
        f"train on:  attributegan-train --config {quote(str(options.out / 'config.yaml'))} data.shards=SHARDS"
    )


def _export_generator(options: argparse.Namespace) -> None:
    from attributegan.export import export_generator
    from attributegan.export.model_card import CardFacts

    facts = CardFacts(options.data, _metrics(options.metrics) if options.metrics else {}, options.licence)
    export_generator(options.model, options.out, facts, raw=options.no_ema)
    print(f"{options.out}: load it with AttributeGenerator.from_pretrained({str(options.out)!r}){_to_complete(facts)}")


def _to_complete(facts: CardFacts) -> str:
    """What the model card still lacks, for the one who will share it."""
    lacking = [
        option for option, value in (("--licence", facts.licence), ("--data", facts.data), ("--metrics", facts.metrics)) if not value
    ]
    return f"\nits README.md has no {', '.join(lacking)} of yours: complete it before sharing" if lacking else ""


def _metrics(path: Path) -> dict[str, float | str]:
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--metrics {path}: not a readable JSON file: {error}") from error
    if not isinstance(metrics, dict) or not all(isinstance(value, int | float | str) for value in metrics.values()):
        raise ValueError(f'--metrics {path}: expected {{"name": number or text, ...}}')
    return metrics


def _export_graph(options: argparse.Namespace) -> None:
    from attributegan.export import export_onnx, export_program

    export = export_onnx if options.command == "onnx" else export_program
    export(options.model, options.out, raw=options.no_ema, fractional=options.fractional)
    print(f"{options.out}: written, read back, and gives the network's images")


if __name__ == "__main__":
    sys.exit(main())
