"""Background evaluation of checkpoints: a subprocess of the main process, started and stopped with the training run.

It joins no collective, so no rank waits for it during training; only the main process does, after the other ranks have exited.
"""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path

from attributegan import commands
from attributegan.config import Config, EvaluateConfig

log = logging.getLogger("attributegan")

LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "ACCELERATE_")
TERMINATE_S = 30.0  # from SIGTERM to SIGKILL
SHARDS = "ATTRIBUTEGAN_SHARDS"  # passes the URL of the shards: it may contain a secret, and command lines are visible to all users


class BackgroundEvaluator:
    """Runs ``attributegan-evaluate watch`` as a child of the main process, if ``evaluate.every`` is set."""

    def __init__(self, settings: Config) -> None:
        self.settings, self.run = settings, Path(settings.run.dir)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the evaluation; call on the main process only."""
        if not self.settings.evaluate.every:
            return
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHER_VARIABLES)}
        environment = inherited | {SHARDS: self.settings.data.shards}
        with (self.run / "evaluation.log").open("ab") as output:
            self.process = subprocess.Popen(command(self.settings), env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL)

    def end(self, wait: bool) -> None:
        """Stop the evaluation; call after the last collective.

        Args:
            wait: finish evaluating the last checkpoint first.
        """
        if self.process is None:
            return
        if wait:
            log.info("waiting for the evaluation of the last checkpoint; progress is in %s", self.run / "evaluation.log")
            status = self.process.wait()
            if status:
                log.warning("evaluation exited with status %s; see %s", status, self.run / "evaluation.log")
            return
        self.process.terminate()
        try:
            self.process.wait(TERMINATE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def command(settings: Config) -> list[str]:
    """Returns the command line of the evaluation; the URL of the shards is passed in its environment instead (`SHARDS`)."""
    evaluate = settings.evaluate
    options = {
        "every": evaluate.every,
        "best": evaluate.best,
        "count": evaluate.count,
        "sweeps": evaluate.sweeps,
        "features": "auto" if evaluate.features == EvaluateConfig.features else evaluate.features,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    return commands.child("evaluate", "watch", settings.run.dir, "--attached", *words, *data_options(settings))


def data_options(settings: Config) -> list[str]:
    """Returns the options of an evaluation that say which real tiles it uses: those that the run was configured with."""
    options = {
        "train": settings.data.split,
        "held-out": settings.evaluate.split,
        "shards-cache": settings.data.cache,
        "shards-cache-gb": settings.data.cache_gb,
    }
    return [f"--{name}={value}" for name, value in options.items()] + ["--assessable-only"] * settings.data.assessable_only
