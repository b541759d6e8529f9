"""Evaluation beside a training run: one process of its own that looks at checkpoints, started and ended with the run.

It is in no collective, so that no rank ever waits for it; only the main process does, after the others have left.
"""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path

from attributegan import commands
from attributegan.config import Config

log = logging.getLogger("attributegan")

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "ACCELERATE_")
PATIENCE_S = 30.0  # from the wish to end to the kill
SHARDS = "ATTRIBUTEGAN_SHARDS"  # variable with the address of the shards: it may have a secret, and every user sees command lines


class BackgroundEvaluator:
    """``attributegan-evaluate watch`` as a child of the main process, when ``evaluate.every`` asks for it."""

    def __init__(self, settings: Config) -> None:
        self.settings, self.run = settings, Path(settings.run.dir)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """For the main process."""
        if not self.settings.evaluate.every:
            return
        alone = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHER)}
        environment = alone | {SHARDS: self.settings.data.shards}
        with (self.run / "evaluation.log").open("ab") as output:
            self.process = subprocess.Popen(command(self.settings), env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL)

    def end(self, wait: bool) -> None:
        """After the last collective. ``wait``: until the last checkpoint is evaluated; else at once."""
        if self.process is None:
            return
        if wait:
            log.info("waiting for the evaluation of the last checkpoint; progress is in %s", self.run / "evaluation.log")
            status = self.process.wait()
            if status:
                log.warning("the evaluation ended with status %s; see %s", status, self.run / "evaluation.log")
            return
        self.process.terminate()
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def command(settings: Config) -> list[str]:
    """The evaluation's command line; where the shards are is in its environment."""
    evaluate = settings.evaluate
    options = {
        "every": evaluate.every,
        "best": evaluate.best,
        "count": evaluate.count,
        "sweeps": evaluate.sweeps,
        "features": evaluate.features,
        "train": settings.data.split,
        "held-out": evaluate.split,
        "shards-cache": settings.data.cache,
        "shards-cache-gb": settings.data.cache_gb,
    }
    words = [f"--{name}={value}" for name, value in options.items()] + ["--assessable-only"] * settings.data.assessable_only
    return commands.child("evaluate", "watch", settings.run.dir, "--attached", *words)
