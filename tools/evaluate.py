"""``attributegan-evaluate``: a report on a trained model, with what real tiles score and what chance scores beside it.

Owns the command line and the order of the work. Numbers are `attributegan.evaluation`'s, the page is `tools.evaluate_page`'s.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attributegan.cli import exit_status, parser
from launch.watcher import SHARDS
from tools import shard_remote

if TYPE_CHECKING:  # these import slowly, and help texts should not
    from attributegan.checkpoint import Loaded
    from attributegan.evaluation.real import Real
    from attributegan.evaluation.result import Row
    from attributegan.processes import Processes

EXAMPLES = """\
  attributegan-evaluate runs/first --shards shards --out report
  attributegan-evaluate runs/first --shards shards --out report --baseline runs/second --baseline runs/third
  attributegan-evaluate runs/first --shards shards --out report --features inception.pt --feature-size 299
  accelerate launch --config_file configs/accelerate/cpu.yaml --num_processes 2 tools/evaluate.py runs/first --shards shards --out report
  attributegan-evaluate compare report-a report-b --out comparison.html
  attributegan-evaluate watch runs/first --shards shards          evaluates every checkpoint as it appears, keeps the best"""

RESULT, PAGE = "result.json", "report.html"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse ``argv`` (the process's arguments by default), evaluate, and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["compare"]:
        from tools import evaluate_compare

        return evaluate_compare.main(arguments[1:])
    if arguments[:1] == ["watch"]:
        from tools import evaluate_watch

        return evaluate_watch.main(arguments[1:])
    options = _parser().parse_args(arguments)
    return exit_status(lambda: evaluate(options))


def _parser() -> argparse.ArgumentParser:
    result = parser(
        "Measure how real a model's tiles look and whether they have the levels asked for. DIR gets report.html (one file, no other "
        "needed), result.json and tensorboard/. Two more commands: `compare` sets results side by side, `watch` follows a training run.",
        EXAMPLES,
    )
    result.add_argument("model", metavar="RUN|CHECKPOINT", help="a run's folder (its newest checkpoint) or one checkpoint")
    result.add_argument("--out", metavar="DIR", required=True, type=Path, help="folder of the report; made if it is not there")
    result.add_argument("--baseline", metavar="RUN", action="append", default=[], help="another model for the same tables; may be repeated")
    common_options(result)
    return result


def common_options(result: argparse.ArgumentParser) -> None:
    """The options of one evaluation and of many in a row."""
    result.add_argument("--shards", metavar="DIR", required=SHARDS not in os.environ, default=os.environ.get(SHARDS),
                        help="shard set with the real tiles, of two splits: a folder or a URL. One with a secret, which others could see "
                        f"in a command line, may stand in the variable {SHARDS}")  # fmt: skip
    shard_remote.add(result, "shards-cache")
    result.add_argument("--assessable-only", action="store_true", help='leave out tiles with an attribute that is "not assessable"')
    result.add_argument("--train", metavar="SPLIT", default="train", help="split that the model was trained on (%(default)s)")
    result.add_argument("--held-out", metavar="SPLIT", default="val", help="split that it has not seen (%(default)s)")
    result.add_argument("--count", metavar="N", type=int, default=1024, help="tiles to generate for image quality (%(default)s)")
    result.add_argument("--sweeps", metavar="N", type=int, default=64, help="latents to move every attribute of (%(default)s)")
    result.add_argument("--most", metavar="N", type=int, default=5000, help="real tiles of a split to use, at most (%(default)s)")
    result.add_argument("--features", metavar="NETWORK", default="efficientnet-lite0",
                        help="what sees the tiles: efficientnet-lite0 (default), timm:NAME, hub:OWNER/REPO:ENTRY, a TorchScript or .pt2 "
                        "file, or MODULE:FUNCTION")  # fmt: skip
    result.add_argument("--feature-size", metavar="PIXELS", type=int, help="resize tiles to this for NETWORK, instead of its own size")
    result.add_argument("--judge", choices=("auto", "cnn", "features"), default="auto",
                        help="what reads levels off tiles: a CNN, a head on the features, or the better one (%(default)s)")  # fmt: skip
    result.add_argument("--measure", metavar="ATTRIBUTE=MEASUREMENT,…|FILE",
                        help="report control by image arithmetic too, without a judge: cell_crowding=nuclei_count,…, or the attributes "
                        "file that `attributegan-shard measure` wrote; see docs/measure.md")  # fmt: skip
    result.add_argument("--seed", metavar="S", type=int, default=0, help="of the tiles and of the judge (%(default)s)")
    result.add_argument("--batch", metavar="B", type=int, default=16, help="tiles generated at a time (%(default)s)")
    result.add_argument("--raw", action="store_true", help="the weights as trained, instead of their average (EMA)")
    result.add_argument("--cache", metavar="DIR", type=Path, help="what is known of real tiles (~/.cache/attributegan/evaluation)")


def evaluate(options: argparse.Namespace) -> dict[str, Any] | None:
    """Do it all; the result, on the main process. Every process of a launch calls.

    Raises:
        ValueError: a model, data or feature network that can't be used, or can't be used together.
    """
    check(options)
    from attributegan.checkpoint import load_for_sampling
    from attributegan.processes import Processes

    paths = [options.model, *options.baseline]
    models = {name: load_for_sampling(path, ema=not options.raw) for name, path in zip(names_of(paths), paths, strict=True)}
    processes = Processes()
    try:
        return Evaluation(options, models, processes).run()
    finally:
        processes.end()


def check(options: argparse.Namespace) -> None:
    """Refuse numbers that can't be, before anything is loaded."""
    for name, least in (("count", 16), ("sweeps", 2), ("most", 32), ("batch", 1)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name}: {getattr(options, name)} must be at least {least}")


def names_of(paths: Sequence[str | Path]) -> list[str]:
    """How models are called in a report: a run by its folder, a checkpoint by its images too, like-named ones by their whole path.

    Raises:
        ValueError: one of them twice.
    """
    whole = [Path(path).resolve() for path in paths]
    if len(set(whole)) < len(whole):
        raise ValueError("--baseline: the same model twice")
    short = [_name(path) for path in whole]
    return [name if short.count(name) == 1 else str(path) for name, path in zip(short, whole, strict=True)]


def _name(path: Path) -> str:
    if not path.name.startswith("images-"):
        return path.name
    run = next(part for part in reversed(path.parent.parts) if part not in ("checkpoints", "evaluation", ".held"))
    return f"{run} at {int(path.name.removeprefix('images-')):,}"


class Evaluation:
    """One evaluation of one or several models on one set of real tiles."""

    def __init__(self, options: argparse.Namespace, models: dict[str, Loaded], processes: Processes) -> None:
        from attributegan.metrics import features
        from tools import evaluate_data

        self.options, self.models, self.processes = options, models, processes
        first = next(iter(models.values()))
        self.data = evaluate_data.open_data(options, first)
        for name, loaded in models.items():
            evaluate_data.check_model(name, loaded, first, self.data)
        self.features = features.load(options.features, options.feature_size).to(processes.device)
        self.progress = _Progress(processes.is_main)

    def run(self) -> dict[str, Any] | None:
        from attributegan.evaluation import generated, real, result

        options, processes = self.options, self.processes
        cache = real.Cache.at(options.cache)
        known = real.study(
            self.data.schema, self.data.train, self.data.held_out, self.features, processes, cache,
            kind=options.judge, seed=options.seed, progress=self.progress,
        )  # fmt: skip
        plan = generated.make_plan(known, self.data.schema, processes, options.count, options.sweeps, options.seed)
        equal = min(len(self.data.train), len(self.data.held_out), options.count)
        rows = [result.ceiling(known, equal, self.data.measure_held_out)] if known else []
        made = {}
        for name, loaded in self.models.items():
            loaded.generator.to(processes.device)
            tiles = generated.make(
                loaded.generator, loaded.config.model.latent_dim, plan, self.features, processes, options.batch,
                partial(self._tell, name), self.data.measure if self.data.measured_by else None,
            )  # fmt: skip
            if known and tiles:
                made[name] = tiles
                rows += result.generator(known, plan, tiles, name, equal, self.data.measure)
        self.progress.close()
        if known is None:
            return None
        summary = self._summary(known, rows, equal)
        self._write(known, rows, made, summary)
        return summary

    def _tell(self, name: str, what: str, done: int, total: int) -> None:
        self.progress(f"{name}: {what}", done, total)

    def _summary(self, known: Real, rows: Sequence[Row], equal: int) -> dict[str, Any]:
        from attributegan.evaluation import result

        options = self.options
        return {
            "format": result.FORMAT,
            "features": self.features.identity,
            "data": {"shards": self.data.place, "identity": [known.train.identity, known.held_out.identity],
                     "splits": [options.train, options.held_out], "groups_apart": self.data.groups_apart, **result.data_notes(known)},
            "settings": {name: getattr(options, name) for name in ("count", "sweeps", "most", "seed", "raw", "assessable_only")}
                        | {"equal": equal},
            **({"measured_by": self.data.measured_by} if self.data.measured_by else {}),
            "models": {name: {"images": loaded.images, "image_size": loaded.config.model.image_size}
                       for name, loaded in self.models.items()},
            "rows": [row.numbers for row in rows],
        }  # fmt: skip

    def _write(self, known: Real, rows: Sequence[Row], made: dict[str, Any], summary: dict[str, Any]) -> None:
        """The JSON last: its presence says that the report is whole."""
        from data_shards.files import whole_file
        from tools import evaluate_page, evaluate_pictures

        out = self.options.out
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"--out {out}: can't be made: {error}") from error
        pictures = evaluate_pictures.take(self.models, known, rows, made, [self.options.model, *self.options.baseline])
        with whole_file(out / PAGE) as stream:
            stream.write(evaluate_page.page(summary, pictures).encode())
        main_images = next(iter(self.models.values())).images
        evaluate_page.write_board(out / "tensorboard", main_images, summary)
        with whole_file(out / RESULT) as stream:
            stream.write(json.dumps(summary, indent=1, allow_nan=False).encode())
        print(evaluate_page.as_text(summary))
        print(f"\n{out / PAGE}")


class _Progress:
    """A bar for each thing that is done, on the main process."""

    def __init__(self, is_main: bool) -> None:
        self.is_main, self.what = is_main, ""
        self.bar: Any = None

    def __call__(self, what: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if not self.is_main:
            return
        if what != self.what:
            self.close()
            self.what, self.bar = what, tqdm(total=total, desc=what, file=sys.stderr, dynamic_ncols=True, mininterval=1)
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.what, self.bar = "", None


if __name__ == "__main__":
    sys.exit(main())
