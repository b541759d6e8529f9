"""``attributegan-evaluate watch``: evaluates the checkpoints of a run as they appear, and keeps the best one.

A process beside the training: it reads whole checkpoints and takes part in no collective, so no rank of the training ever waits for it.
RUN gets evaluation/ (a report for each), evaluation.jsonl (a line for each) and best/, which can be sampled from like a run.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

from attributegan import cli
from attributegan.run_dir.checkpoint_dirs import checkpoints_dir, images_of, list_checkpoints
from tools.evaluation.history import LINES, comparable, lines
from tools.evaluation.options import EvaluationSettings, common_options

EXAMPLES = """\
  attributegan-evaluate watch runs/first --shards shards --every 20000
  attributegan-evaluate watch runs/first --shards shards --once                 the checkpoints that are there, then the end
  attributegan-sample runs/first/best --out tiles"""

BEST = {"kid": min, "control_score": max}
FIELDS = {"control_score": "obeys"}  # in lines of evaluations, where it is called otherwise

log = logging.getLogger("attributegan")


def add(commands: Any) -> None:
    """Add the command ``watch``."""
    parser = cli.command(
        commands,
        "watch",
        "evaluate the checkpoints of a training run as they appear",
        "Evaluate the checkpoints of a run as they appear, until its last, and keep the best.",
        EXAMPLES,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run; it may still be empty")
    common_options(parser)
    parser.add_argument("--every", metavar="N", type=int, default=1, help="images between evaluations, at least (every checkpoint)")
    parser.add_argument(
        "--best",
        choices=tuple(BEST),
        type=lambda text: "control_score" if text == "obeys" else text,
        default="kid",
        help="keep the checkpoint of the smallest KID, or that obeys best",
    )
    parser.add_argument("--poll", metavar="S", type=float, default=10, help="seconds between looks (%(default)s)")
    parser.add_argument("--once", action="store_true", help="don't wait for checkpoints to come")
    parser.add_argument("--attached", action="store_true", help=argparse.SUPPRESS)  # end with the process that started this one
    parser.set_defaults(work=watch)


def watch(options: argparse.Namespace) -> None:
    """Until the run's last checkpoint is evaluated.

    Raises:
        ValueError: options or data that can't be.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    settings = EvaluationSettings.of(options, model=options.run, out=options.run / "evaluation")
    for name, least in (("every", 1), ("poll", 0.1)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name}: {getattr(options, name)} must be at least {least}")
    parent = os.getppid()
    while not (options.attached and os.getppid() != parent):
        last = max((line["images"] for line in lines(options.run)), default=0)
        waiting = _waiting(options.run, last, options.every, end := _end(options.run))
        if waiting:
            _evaluate(waiting[0], options.run, options.best, settings)
        elif options.once or (end and last >= end):
            return
        else:
            time.sleep(options.poll)


def _waiting(run: Path, last: int, every: int, end: int) -> list[Path]:
    """Checkpoints to evaluate, oldest first: those past the next multiple of ``every``, and the last of the run."""
    found = []
    for path in list_checkpoints(run):
        images = images_of(path)
        if images > last and (images // every > last // every or images == end):
            found.append(path)
    return found


def _end(run: Path) -> int:
    """Images of the whole run, rounded up to its last step; 0 while that is not known."""
    from attributegan import config

    if not (run / "config.yaml").is_file():
        return 0
    train = config.load(run / "config.yaml").train
    return -(-train.images // train.batch) * train.batch


def _evaluate(checkpoint: Path, run: Path, best: str, settings: EvaluationSettings) -> None:
    """One report, one line, and the best kept. The checkpoint is held while that lasts: training removes old ones."""
    from attributegan.checkpoint import store as checkpoints
    from tools.evaluation import report
    from tools.evaluation.run import evaluate

    images = images_of(checkpoint)
    held = run / "evaluation" / ".held" / checkpoint.name
    try:
        _link(checkpoint, held)
        checkpoints.verify(held)
    except (OSError, checkpoints.CheckpointCorrupted) as error:
        log.warning("%s can't be evaluated, passed over: %s", checkpoint, error)
        _note(run, {"images": images, "error": str(error)})
        shutil.rmtree(held, ignore_errors=True)
        return
    out = run / "evaluation" / checkpoint.name
    result = evaluate(dataclasses.replace(settings, model=held, out=out))
    assert result is not None
    row = next(row for row in result["rows"] if row["kind"] == "generator")
    numbers = report.scalars(row)
    report.write_board(run / "evaluation" / "tensorboard", images, result)
    shutil.rmtree(out / "tensorboard")
    _note(run, {"images": images, "of": _conditions(result), **numbers})
    _keep_best(held, run, best)
    shutil.rmtree(held)


def _note(run: Path, line: dict[str, Any]) -> None:
    path = run / LINES
    cut_short = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")  # by a kill
    with path.open("a") as stream:
        stream.write("\n" * cut_short + json.dumps(line) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _conditions(result: dict[str, Any]) -> str:
    """What must be equal for two evaluations to compare."""
    parts = [result["features"], result["data"]["identity"], result["settings"]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _keep_best(held: Path, run: Path, by: str) -> None:
    """Make ``held`` the best one when no evaluated checkpoint is better; the one before goes once this one stands."""
    field = FIELDS.get(by, by)
    scores = {line["images"]: line[field] for line in comparable(lines(run)) if field in line}
    images = images_of(held)
    if images not in scores or scores[images] != BEST[by](scores.values()):
        return
    folder = checkpoints_dir(run / "best")
    _link(held, folder / held.name)
    for other in folder.glob("images-*"):
        if other.name != held.name:
            shutil.rmtree(other)
    log.info("best so far by %s: %s images, %.4g", by, f"{images:,}", scores[images])


def _link(source: Path, target: Path) -> None:
    """A second name for every file of a checkpoint, which takes no space; a copy where the file system has none."""
    tmp_path = target.with_name(f".linking-{target.name}")
    for folder in (tmp_path, target):
        shutil.rmtree(folder, ignore_errors=True)
    tmp_path.mkdir(parents=True)
    for path in source.iterdir():
        try:
            os.link(path, tmp_path / path.name)
        except OSError:
            shutil.copy2(path, tmp_path / path.name)
    os.replace(tmp_path, target)
