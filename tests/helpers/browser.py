"""Debian's chromium, driven by Playwright, and a running server."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright
from runs import ROOT
from time_limits import seconds


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Yields a headless browser; skips without chromium, except in CI."""
    program = shutil.which("chromium")
    if program is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no chromium: apt-get install -y --no-install-recommends chromium")
    limit_ms = seconds(60) * 1000  # machines may be busy
    expect.set_options(timeout=limit_ms)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"], timeout=limit_ms)  # tests may run as root
        browser.on("context", lambda context: context.set_default_timeout(limit_ms))
        yield browser
        browser.close()


@dataclass(frozen=True)
class Served:
    """A running ``attributegan-explore`` or ``attributegan-label``."""

    address: str  # without a path
    token: str  # "" for none
    process: subprocess.Popen[str]


@contextlib.contextmanager
def served(model: Path, *options: str, module: str = "tools.explore") -> Iterator[Served]:
    """Start the command of a module, as users do, on a free port."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    precision = ["--precision", "fp32"] if module == "tools.explore" else []
    command = [sys.executable, "-m", module, str(model), "--port", "0", *precision, *options]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"(http://\S+:\d+)/(?:\?token=(\S+))?", line)
            assert found, f"no address in {line!r}; status {process.wait(seconds(60))}"
            address = found[1]
            if "0.0.0.0" in options:  # the printed host is the name of this machine, which may not resolve in a sandbox
                assert f"//{socket.gethostname()}:" in address
                address = f"http://127.0.0.1:{address.rpartition(':')[2]}"
            yield Served(address, found[2] or "", process)
        finally:
            process.terminate()
