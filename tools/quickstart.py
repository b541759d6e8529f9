"""``make quickstart``: make phantom tiles, train on them, sample and evaluate, in minutes on a CPU.

Prints and runs the commands that a user would type. The number of training images is chosen from the measured speed of the machine.
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

EVALUATION = ["--max-real", "1024", "--count", "512", "--predictor", "cnn", "--predictor-steps", "150"]  # sufficient for phantoms
IMAGES, MIN_IMAGES = 24_000, 16_000  # with fewer images the generator does not follow the attributes well
MEASURED = 960  # images trained to measure the speed
EXAMPLES = "  python -m tools.quickstart --out quickstart"


def main(argv: Sequence[str] | None = None) -> int:
    options = parser("Make phantom tiles, train on them, sample and evaluate. Rerun the command to resume after an interruption.", EXAMPLES)
    options.add_argument("--out", type=Path, default=Path("quickstart"), metavar="DIR", help="output folder (default: %(default)s)")
    options.add_argument("--config", default="small", metavar="NAME|FILE", help="training config (default: %(default)s)")
    options.add_argument(
        "--minutes",
        type=float,
        default=6.0,
        help=f"training time in minutes, within {MIN_IMAGES:,} to {IMAGES:,} images (default: %(default)s)",
    )
    found = options.parse_args(argv)
    return exit_status(lambda: quickstart(found.out, found.config, found.minutes))


def quickstart(out: Path, config: str, minutes: float) -> None:
    """Run all steps in order; completed work is not repeated.

    Raises:
        ValueError: a step failed; its own message was printed.
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
  {out}/tiles/       generated tiles; each row of sweep.png moves one attribute from its lowest level to its highest
  {run}/grids/   the same sweeps during training
  {out}/report/      report.html: image quality and attribute control; its main numbers are printed above
Next:
  tensorboard --logdir {run}    the curves
  attributegan-sample {run} --out more --count 16 --levels cell_crowding=4,mitosis=frequent
  attributegan-train {" ".join(train)} train.images=100000
                          resumes the training; README.md describes how to use your own tiles""")


def _affordable(run: Path, minutes: float) -> int:
    """Return the number of training images that fit into ``minutes`` at the measured speed; prints the estimated time."""
    found = status.read(run)
    if found is None or not found.images_per_second:
        return IMAGES
    speed = found.images_per_second
    images = max(MIN_IMAGES, min(IMAGES, int(speed * minutes * 60) // 1000 * 1000))
    left = max(0, images - found.images) / speed / 60
    print(
        f"\nThis machine trains {speed:.0f} images/s: {images:,} images take about {left:.0f} more minutes, and the evaluation "
        f"a few minutes after that.",
        flush=True,
    )
    return max(images, found.images)


def _run(command: str, *arguments: str) -> None:
    print(f"\n$ {command} {' '.join(arguments)}", flush=True)
    began = time.monotonic()
    if code := subprocess.run(child(command.removeprefix("attributegan-"), *arguments), check=False).returncode:
        raise ValueError(f"{command} failed with exit status {code}; see its message above")
    print(f"({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    sys.exit(main())
