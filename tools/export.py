"""``attributegan-export``: exports generators (safetensors for the Hugging Face Hub, ONNX, torch.export), imports published checkpoints.

Owns the command line; the files are written by `attributegan.export`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Literal

from attributegan.cli import exit_status, parser
from tools.options import add_no_ema, with_settings

if TYPE_CHECKING:
    from attributegan.export.model_card import CardFacts

EXAMPLES = """\
  attributegan-export import-published pretrained_model.pt --out runs/published
      attributegan-sample runs/published --out tiles --count 16                      sample from the published model
      attributegan-train --config runs/published/config.yaml data.shards=shards      continue its training
  attributegan-export generator runs/first --out first-generator --licence cc-by-4.0
      hf upload NAME/first-generator first-generator                                 share it; complete its README.md first
  attributegan-export onnx runs/first --out first.onnx
  attributegan-export program runs/first/checkpoints/images-000000020000 --out first.pt2 --no-ema"""


@dataclass(frozen=True)
class ImportSettings:
    """Options of ``import-published``."""

    file: Path
    out: Path
    generator: Literal["raw", "ema"]


@dataclass(frozen=True)
class GeneratorSettings:
    """Options of ``generator``; ``licence``, ``data`` and ``metrics`` are for the model card."""

    model: str
    out: Path
    no_ema: bool
    licence: str
    data: str
    metrics: Path | None


@dataclass(frozen=True)
class GraphSettings:
    """Options of ``onnx`` and ``program``."""

    model: str
    out: Path
    no_ema: bool
    fractional: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand with ``argv`` (default: ``sys.argv``) and return the exit status."""
    options = _parser().parse_args(argv)
    return exit_status(lambda: options.work(options))


def _parser() -> argparse.ArgumentParser:
    result = parser("Export a trained generator, or import a checkpoint of the published AttributeGAN.", EXAMPLES)
    commands = result.add_subparsers(metavar="COMMAND", required=True)
    _add_import(commands.add_parser("import-published", allow_abbrev=False, help="convert a published checkpoint to a run folder"))
    _add_generator(commands.add_parser("generator", allow_abbrev=False, help="export for the Hugging Face Hub and from_pretrained"))
    for name, suffix, kind, work in (
        ("onnx", ".onnx", "an ONNX model", _export_onnx),
        ("program", ".pt2", "a torch.export program", _export_program),
    ):
        _add_graph(commands.add_parser(name, allow_abbrev=False, help=f"export {kind}, verified against the network"), suffix, kind, work)
    return result


def _add_import(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Convert a checkpoint of the published code, of any image size and width, to a run folder for sampling and training."
    )
    command.add_argument(
        "file", metavar="FILE", type=Path, help="published checkpoint, such as pretrained_model.pt; loaded without executing code"
    )
    command.add_argument("--out", metavar="DIR", required=True, type=Path, help="new or empty run folder")
    command.add_argument(
        "--generator",
        choices=("raw", "ema"),
        default="ema",
        help="weights to use as the EMA for sampling: the published moving average, or the raw generator, which the published sampler "
        "uses (default: %(default)s)",
    )
    _add_examples(command, "import-published pretrained_model.pt --out runs/published")
    command.set_defaults(work=with_settings(_import_published, ImportSettings))


def _add_generator(command: argparse.ArgumentParser) -> None:
    command.description = "Write the generator to DIR: model.safetensors, config.json and a model card (README.md)."
    _add_model(command, "DIR", "new or empty folder")
    command.add_argument("--licence", metavar="ID", default="", help="licence of the model for the model card, such as cc-by-4.0")
    command.add_argument(
        "--data", metavar="TEXT", default="", help="description of the training data for the model card (default: name of the shard set)"
    )
    command.add_argument("--metrics", metavar="FILE.json", type=Path, help='metrics for the model card: {"name": value, ...}')
    _add_examples(
        command,
        "generator runs/first --out first-generator",
        "generator runs/first --out first-generator --licence cc-by-4.0 --data 'TCGA-BLCA, 0.5 um per pixel' --metrics metrics.json",
    )
    command.set_defaults(work=with_settings(_export_generator, GeneratorSettings))


def _add_graph(command: argparse.ArgumentParser, suffix: str, kind: str, work: Callable[[GraphSettings], None]) -> None:
    command.description = (
        f"Write the generator as {kind} with inputs latents (batch, L) and levels (batch, attributes),\n"
        "and output images (batch, 3, size, size) in about [-1, 1], for any batch size."
    )
    _add_model(command, f"FILE{suffix}", "file to write; an existing file is replaced")
    command.add_argument("--fractional", action="store_true", help="accept fractional levels, such as 2.5: float32 input (default: int64)")
    name = command.prog.split()[-1]
    _add_examples(command, f"{name} runs/first --out first{suffix}", f"{name} runs/first --out first{suffix} --fractional")
    command.set_defaults(work=with_settings(work, GraphSettings))


def _add_examples(command: argparse.ArgumentParser, *examples: str) -> None:
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.epilog = "examples:\n" + "\n".join(f"  attributegan-export {example}" for example in examples)


def _add_model(command: argparse.ArgumentParser, out: str, help: str) -> None:
    command.add_argument("model", metavar="RUN|CHECKPOINT", help="run folder (uses its latest checkpoint) or a checkpoint")
    command.add_argument("--out", metavar=out, required=True, type=Path, help=help)
    add_no_ema(command)


def _import_published(settings: ImportSettings) -> None:
    from attributegan.export import import_published

    config = import_published(settings.file, settings.out, settings.generator)
    print(
        f"{settings.out}: imported the published AttributeGAN, {config.model.image_size} px\n"
        f"sample:  attributegan-sample {quote(str(settings.out))} --out tiles --count 16\n"
        f"train:   attributegan-train --config {quote(str(settings.out / 'config.yaml'))} data.shards=SHARDS"
    )


def _export_generator(settings: GeneratorSettings) -> None:
    from attributegan.export import export_generator
    from attributegan.export.model_card import CardFacts

    facts = CardFacts(settings.data, _metrics(settings.metrics) if settings.metrics else {}, settings.licence)
    export_generator(settings.model, settings.out, facts, raw=settings.no_ema)
    print(f"{settings.out}: load it with AttributeGenerator.from_pretrained({str(settings.out)!r}){_missing_facts(facts)}")


def _missing_facts(facts: CardFacts) -> str:
    """Return a message with the options that the model card still needs; "" if none."""
    missing = [
        option for option, value in (("--licence", facts.licence), ("--data", facts.data), ("--metrics", facts.metrics)) if not value
    ]
    return f"\nits README.md lacks {', '.join(missing)}: complete it before sharing" if missing else ""


def _metrics(path: Path) -> dict[str, float | str]:
    """Read the metrics for the model card.

    Raises:
        ValueError: not a JSON file, or not {"name": number or text, ...}.
    """
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--metrics {path}: not a readable JSON file: {error}") from error
    if not isinstance(metrics, dict) or not all(isinstance(value, int | float | str) for value in metrics.values()):
        raise ValueError(f'--metrics {path}: expected {{"name": number or text, ...}}')
    return metrics


def _export_onnx(settings: GraphSettings) -> None:
    from attributegan.export import export_onnx

    export_onnx(settings.model, settings.out, raw=settings.no_ema, fractional=settings.fractional)
    _print_verified(settings.out)


def _export_program(settings: GraphSettings) -> None:
    from attributegan.export import export_program

    export_program(settings.model, settings.out, raw=settings.no_ema, fractional=settings.fractional)
    _print_verified(settings.out)


def _print_verified(out: Path) -> None:
    print(f"{out}: written and verified: its images match the network's")


if __name__ == "__main__":
    sys.exit(main())
