"""``attributegan-evaluate watch``: evaluates the checkpoints of a run as they appear, and keeps the best one.

Runs in its own process next to the training: it reads committed checkpoints and joins no collective, so no training rank waits for it.
Writes evaluation/ (a report per checkpoint), evaluation.jsonl (a line per checkpoint) and best/, a run folder with the best checkpoint.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attributegan import cli
from attributegan.run_dir.checkpoint_dirs import checkpoints_dir, images_of, list_checkpoints
from tools.evaluation.history import LINES, comparable, lines
from tools.evaluation.options import EvaluationSettings, add_common
from tools.options import require_at_least, settings_of

EXAMPLES = """\
  attributegan-evaluate watch runs/first --shards shards --every 20000
  attributegan-evaluate watch runs/first --shards shards --once                 evaluates existing checkpoints, then exits
  attributegan-sample runs/first/best --out tiles"""

BEST = {"kid": min, "control_score": max}
FIELDS = {"control_score": "obeys"}  # names in evaluation.jsonl, where they differ

log = logging.getLogger("attributegan")


@dataclass(frozen=True)
class WatchSettings:
    """Which run to watch, and which checkpoint to keep. Fields are the options of the command.

    Raises:
        ValueError: names the option that is too small.
    """

    run: Path
    every: int = 1  # images
    best: str = "kid"
    poll: float = 10  # seconds
    once: bool = False
    attached: bool = False  # exit when the parent process exits

    def __post_init__(self) -> None:
        require_at_least(self, every=1, poll=0.1)


def add(commands: Any) -> None:
    """Add the command to those of ``attributegan-evaluate``."""
    parser = cli.command(
        commands,
        "watch",
        "evaluate checkpoints of a run during training",
        "Evaluate the checkpoints of a run as they appear, until its last one, and keep the best in RUN/best.",
        EXAMPLES,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder; may still be empty")
    add_common(parser)
    parser.add_argument(
        "--every", metavar="N", type=int, default=WatchSettings.every, help="minimum images between evaluations (default: every checkpoint)"
    )
    parser.add_argument(
        "--best",
        choices=tuple(BEST),
        type=lambda text: "control_score" if text == "obeys" else text,
        default=WatchSettings.best,
        help="keep the checkpoint with the lowest KID, or with the highest control score (default: %(default)s)",
    )
    parser.add_argument(
        "--poll",
        metavar="S",
        type=float,
        default=WatchSettings.poll,
        help="seconds between checks for new checkpoints (default: %(default)s)",
    )
    parser.add_argument("--once", action="store_true", help="evaluate existing checkpoints, then exit")
    parser.add_argument("--attached", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(work=_main)


def _main(options: argparse.Namespace) -> None:
    settings = settings_of(WatchSettings, options)
    watch(settings, settings_of(EvaluationSettings, options, model=settings.run, out=settings.run / "evaluation"))


def watch(settings: WatchSettings, evaluation: EvaluationSettings) -> None:
    """Evaluate checkpoints until the last one of the run.

    Args:
        evaluation: settings of each evaluation; ``model`` and ``out`` are replaced.

    Raises:
        ValueError: a run, shard set or feature network that can't be used.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    parent = os.getppid()
    while not (settings.attached and os.getppid() != parent):
        last = max((line["images"] for line in lines(settings.run)), default=0)
        pending = _pending(settings.run, last, settings.every, end := _end(settings.run))
        if pending:
            _evaluate(pending[0], settings.run, settings.best, evaluation)
        elif settings.once or (end and last >= end):
            return
        else:
            time.sleep(settings.poll)


def _pending(run: Path, last: int, every: int, end: int) -> list[Path]:
    """Return the checkpoints to evaluate, oldest first: those past the next multiple of ``every`` images, and the last of the run."""
    found = []
    for path in list_checkpoints(run):
        images = images_of(path)
        if images > last and (images // every > last // every or images == end):
            found.append(path)
    return found


def _end(run: Path) -> int:
    """Return the total images of the run, rounded up to its last step; 0 while the run has no config.yaml."""
    from attributegan import config

    if not (run / "config.yaml").is_file():
        return 0
    train = config.load(run / "config.yaml").train
    return -(-train.images // train.batch) * train.batch


def _evaluate(checkpoint: Path, run: Path, best: str, settings: EvaluationSettings) -> None:
    """Evaluate a checkpoint, append a line to evaluation.jsonl and update best/.

    Works on hard links to the checkpoint's files, since the training deletes old checkpoints.
    """
    from attributegan.checkpoint import store as checkpoints
    from tools.evaluation import report
    from tools.evaluation.run import evaluate

    images = images_of(checkpoint)
    held = run / "evaluation" / ".held" / checkpoint.name
    try:
        _link(checkpoint, held)
        checkpoints.verify(held)
    except (OSError, checkpoints.CheckpointCorrupted) as error:
        log.warning("skipping corrupted checkpoint %s: %s", checkpoint, error)
        _append(run, {"images": images, "error": str(error)})
        shutil.rmtree(held, ignore_errors=True)
        return
    out = run / "evaluation" / checkpoint.name
    result = evaluate(dataclasses.replace(settings, model=held, out=out))
    assert result is not None
    row = next(row for row in result["rows"] if row["kind"] == "generator")
    numbers = report.scalars(row)
    report.write_tensorboard(run / "evaluation" / "tensorboard", images, result)
    shutil.rmtree(out / "tensorboard")
    _append(run, {"images": images, "of": _conditions(result), **numbers})
    _keep_best(held, run, best)
    shutil.rmtree(held)


def _append(run: Path, line: dict[str, Any]) -> None:
    """Append a line to evaluation.jsonl; a truncated last line, left by a killed process, is terminated first."""
    path = run / LINES
    truncated = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")
    with path.open("a") as stream:
        stream.write("\n" * truncated + json.dumps(line) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _conditions(result: dict[str, Any]) -> str:
    """Return a hash of the features, data and settings, which must be equal for results to be comparable."""
    parts = [result["features"], result["data"]["identity"], result["settings"]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _keep_best(held: Path, run: Path, by: str) -> None:
    """Link ``held`` into best/ if no comparable checkpoint is better, then delete the previous best."""
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
    log.info("new best checkpoint by %s: %s images, %.4g", by, f"{images:,}", scores[images])


def _link(source: Path, target: Path) -> None:
    """Hard-link every file of a checkpoint, or copy it if the file system has no hard links; replaces ``target`` atomically."""
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
