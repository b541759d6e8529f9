"""A process that runs parts of ``attributegan-bench gpu``, so that a crash, a hang or a broken CUDA context affects one part only.

Protocol: the name of a part on stdin, a line of JSON on stdout. `Worker` is the parent's side.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path

from attributegan.commands import module_process
from tools.benchmarks.gpu_parts import BY_NAME, Context, Outcome, Part, Skip, without_launcher

FOLDER = "bench-gpu-"  # beginning of the names of temporary folders, before the process
LOG_LINES = 15  # of a dead process's output that are kept


class Worker:
    """Runs parts in a child process, and replaces it after a failure.

    Args:
        log: file for the output of the child.
    """

    def __init__(self, device: str, tiny: bool, log: Path) -> None:
        self.words, self.log = [device, str(int(tiny))], log
        self.child: subprocess.Popen[bytes] | None = None

    def run(self, part: Part, limit_s: float) -> Outcome:
        """The outcome of a part; "failed" where the child ends early or takes longer than ``limit_s`` seconds."""
        began = time.monotonic()
        if self.child is None:
            with self.log.open("ab") as log:
                command, environ = module_process("tools.benchmarks.gpu_worker", *self.words)
                environ = without_launcher(environ)
                self.child = subprocess.Popen(
                    command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
                )
        assert self.child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.child.stdin.write(f"{part.name}\n".encode())
            self.child.stdin.flush()
        line = self._line(limit_s)
        seconds = time.monotonic() - began
        if not line.endswith(b"\n"):
            timed_out = self.child.poll() is None and seconds >= limit_s
            self.close()
            why = f"stopped after {limit_s:.0f} s" if timed_out else "its process ended early"
            tail = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            return Outcome("failed", f"{why}; see {self.log.name}", {"output": tail}, seconds)
        outcome = Outcome(**json.loads(line))
        if outcome.status == "failed" or part.alone:  # its CUDA context may be unusable
            self.close()
        return replace(outcome, seconds=seconds)

    def close(self) -> None:
        """End the child and the processes that it started."""
        if self.child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()
        for left in Path(tempfile.gettempdir()).glob(f"{FOLDER}{self.child.pid}-*"):  # of the part that was stopped
            shutil.rmtree(left, ignore_errors=True)
        for pipe in (self.child.stdin, self.child.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self.child = None

    def _line(self, limit_s: float) -> bytes:
        """The answer; cut off where the child ends or the time is up."""
        assert self.child is not None and self.child.stdout is not None
        until, found = time.monotonic() + limit_s, b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.child.stdout, selectors.EVENT_READ)
            while not found.endswith(b"\n") and selector.select(max(0.0, until - time.monotonic())):
                block = os.read(self.child.stdout.fileno(), 1 << 16)
                if not block:
                    break
                found += block
        return found


def run_part(part: Part, context: Context) -> Outcome:
    """Run a part here; exceptions become outcomes."""
    try:
        return part.run(context)
    except Skip as reason:
        return Outcome("skipped", str(reason))
    except Exception as error:
        traceback.print_exc()
        first = (str(error).splitlines() or [""])[0]
        return Outcome("failed", f"{type(error).__name__}: {first}"[:300], {"traceback": traceback.format_exc().splitlines()})


def main() -> int:
    device, tiny = sys.argv[1], sys.argv[2] == "1"
    answers = os.fdopen(os.dup(1), "w")  # libraries print to standard output, from C as well
    os.dup2(2, 1)
    for line in sys.stdin:
        folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-"))
        try:
            outcome = run_part(BY_NAME[line.strip()], Context(device, tiny, folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        answers.write(json.dumps(outcome.to_dict(), default=str) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
