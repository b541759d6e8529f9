"""``make quickstart``: from nothing to a trained model, its pictures and its report, in minutes on a CPU.

Runs the commands that a user types and prints each. Trains as many images as this machine can in the time for them, within limits.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from attributegan.cli import exit_status, parser
from attributegan.commands import child
from attributegan.run_dir import status

EVALUATION = ["--max-real", "1024", "--count", "512", "--predictor", "cnn", "--predictor-steps", "150"]  # enough for phantoms
IMAGES, MIN_IMAGES = 24_000, 16_000  # with fewer the attributes are not followed well
MEASURED = 960  # images after which the speed of the machine is known
EXAMPLES = "  python -m tools.quickstart --out quickstart"


def main(argv: Sequence[str] | None = None) -> int:
    options = parser("Make phantom tiles, train on them, sample, and evaluate.", EXAMPLES)
    options.add_argument("--out", type=Path, default=Path("quickstart"), metavar="DIR", help="folder for all of it (%(default)s)")
    options.add_argument("--config", default="small", metavar="NAME|FILE", help="of the training (%(default)s)")
    options.add_argument(
        "--minutes", type=float, default=6.0, help=f"for the training, which has {MIN_IMAGES:,} to {IMAGES:,} images (%(default)s)"
    )
    found = options.parse_args(argv)
    return exit_status(lambda: quickstart(found.out, found.config, found.minutes))


def quickstart(out: Path, config: str, minutes: float) -> None:
    """All steps, one after the other; each can be repeated after an interruption.

    Raises:
        ValueError: a step failed; its own message is above.
    """
    shards, run = out / "shards", out / "run"
    train = ["--config", config, f"data.shards={shards}", f"run.dir={run}"]
    _run("attributegan-shard", "phantom", "--count", "4096", "--size", "64", "--out", str(shards))
    before = status.read(run)
    if before is None or before.images < MEASURED:
        _run("attributegan-train", *train, f"train.images={MEASURED}", "run.log_every=320")
    images = _affordable(run, minutes)
    _run("attributegan-train", *train, f"train.images={images}")
    _run("attributegan-sample", str(run), "--out", str(out / "tiles"), "--count", "64", "--sweep", "--overwrite")
    _run("attributegan-evaluate", str(run), "--shards", str(shards), "--out", str(out / "report"), *EVALUATION)
    print(f"""
Done. Look at:
  {out}/tiles/       generated tiles; sweep.png has a row of tiles per attribute, lowest level to highest
  {run}/grids/   the same rows during training
  {out}/report/      how real the tiles are and how well the attributes are followed: report.html; its numbers are above
Next:
  tensorboard --logdir {run}    the curves
  attributegan-sample {run} --out more --count 16 --levels cell_crowding=4,mitosis=frequent
  attributegan-train {" ".join(train)} train.images=100000
                          resumes from where it stopped; README.md describes how to use your own tiles""")


def _affordable(run: Path, minutes: float) -> int:
    """Images of the training at the speed of its first ones, and a line that says how long they take."""
    found = status.read(run)
    if found is None or not found.images_per_second:
        return IMAGES
    speed = found.images_per_second
    images = max(MIN_IMAGES, min(IMAGES, int(speed * minutes * 60) // 1000 * 1000))
    left = max(0, images - found.images) / speed / 60
    print(
        f"\nThis machine trains {speed:.0f} images/s: {images:,} images take about {left:.0f} minutes from now, and the evaluation after "
        f"them some minutes more.",
        flush=True,
    )
    return max(images, found.images)


def _run(command: str, *arguments: str) -> None:
    print(f"\n$ {command} {' '.join(arguments)}", flush=True)
    began = time.monotonic()
    if code := subprocess.run(child(command.removeprefix("attributegan-"), *arguments), check=False).returncode:
        raise ValueError(f"{command} ended with status {code}; its message is above")
    print(f"({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    sys.exit(main())
