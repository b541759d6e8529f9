"""Runs the command of ``run.notify`` when a run starts, finishes, stops or fails."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from launch.evaluator import LAUNCHER_VARIABLES

Event = Literal["start", "finished", "stopped", "failed"]

TIMEOUT_S = 30.0  # of one command
SENT = "ATTRIBUTEGAN_NOTIFIED"  # variable with the path of a file to create after the event of the end was sent; see slurm.missed_events
log = logging.getLogger("attributegan")


class Notifier:
    """Runs a shell command for each event, one at a time and in the background; a failure is logged and has no other effect.

    The command gets the event in its environment: ``ATTRIBUTEGAN_EVENT``, ``ATTRIBUTEGAN_RUN`` (absolute path of the run folder),
    ``ATTRIBUTEGAN_IMAGES`` (images seen) and ``ATTRIBUTEGAN_MESSAGE`` (one line).

    Args:
        command: the shell command; "" disables notifications.
        folder: the run folder.
    """

    def __init__(self, command: str, folder: Path, timeout_s: float = TIMEOUT_S) -> None:
        self.command, self.folder, self.timeout_s = command, folder, timeout_s
        self._pool = ThreadPoolExecutor(1, "notify")

    def send(self, event: Event, images: int, message: str) -> None:
        """Start the command for ``event`` and return at once."""
        if not self.command:
            return
        inherited = {key: value for key, value in os.environ.items() if not key.startswith((*LAUNCHER_VARIABLES, SENT))}
        described = {"EVENT": event, "RUN": str(self.folder.absolute()), "IMAGES": str(images), "MESSAGE": " ".join(message.split())}
        self._pool.submit(self._run, event, inherited | {f"ATTRIBUTEGAN_{name}": value for name, value in described.items()})

    def close(self) -> None:
        """Wait for the commands that are still running, at most ``timeout_s`` for each."""
        self._pool.shutdown()

    def _run(self, event: Event, environment: dict[str, str]) -> None:
        try:
            problem = _problem(self.command, environment, self.timeout_s)
        except (OSError, ValueError) as error:  # ValueError: null character in the message
            problem = f"can't be run ({error})"
        if event != "start" and (path := os.environ.get(SENT)):
            Path(path).touch()
        if problem:
            log.warning("run.notify: the command for event %s %s; the run is not affected", event, problem)


def _problem(command: str, environment: dict[str, str], timeout_s: float) -> str:
    """Run a shell command; returns why it failed, or ""."""
    with tempfile.TemporaryFile() as output:  # a pipe would stay open as long as any background process of the command
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C in the terminal of the training does not stop it
        )
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"was killed after {timeout_s:g} s"
        if not status:
            return ""
        output.seek(0)
        lines = output.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"failed with status {status}" + (f": {last}" if last else "")
