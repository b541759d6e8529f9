"""Benchmark of the explorer: how long a browser waits for the tile of a slider that has moved."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from attributegan.commands import child

if TYPE_CHECKING:
    from tools.benchmarks.harness import Result

NETWORKS = ("small", "paper")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    """Add the benchmark to those of ``attributegan-bench``."""
    explore = commands.add_parser("explore", parents=[common], help="the tile of a slider that has moved, through the explorer's server")
    explore.add_argument("--config", action="append", metavar="FILE", help=f"of a network; may be repeated ({', '.join(NETWORKS)})")
    explore.add_argument("--count", type=int, default=10, metavar="N", help="moves of a turn, whose median counts (%(default)s)")
    explore.set_defaults(measure=_explore)


def _explore(arguments: argparse.Namespace) -> Result:
    from tools.benchmarks.harness import Result, interleaved

    if arguments.count < 1:
        raise ValueError(f"--count: {arguments.count} must be above 0")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        contenders = {}
        for number, config in enumerate(arguments.config or NETWORKS):
            size = _untrained(config, folder / str(number))
            visitor = _Visitor(stack.enter_context(_served(folder / str(number))), arguments.count)
            contenders[f"{size} px ({Path(config).stem})"] = visitor.moves
        return Result("explore", "ms", interleaved(contenders, arguments.repeats))


def _untrained(config: str, run: Path) -> int:
    """A run folder with a checkpoint of the network as it begins; its pixels."""
    from attributegan import config as config_module
    from attributegan.attributes import PUBLISHED
    from attributegan.checkpoint import writer
    from attributegan.models import Generator
    from attributegan.run_dir.checkpoint_dirs import checkpoints_dir

    settings = config_module.load(config)
    weights = Generator(settings.model, PUBLISHED).state_dict()
    state = {"config": settings.to_dict(), "schema": PUBLISHED.to_dict()}
    writer.save(checkpoints_dir(run), 0, state=state, generator_ema=weights)
    return settings.model.image_size


@contextlib.contextmanager
def _served(run: Path) -> Iterator[str]:
    """The explorer in a process of its own; its host and port."""
    command = child("explore", str(run), "--port", "0")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            found = re.search(r"http://\S+", process.stdout.readline())
            if found is None:
                raise ValueError("attributegan-explore did not start; pip install 'attributegan[explore]'")
            yield urlsplit(found[0]).netloc
        finally:
            process.terminate()


class _Visitor:
    """Moves a slider and waits for each tile."""

    def __init__(self, location: str, count: int) -> None:
        self.connection, self.count, self.seed = http.client.HTTPConnection(location), count, 0

    def moves(self) -> float:
        """Median milliseconds from a request to the whole PNG; no tile comes twice."""
        seconds = []
        for _ in range(self.count):
            self.seed += 1
            begun = time.perf_counter()
            self.connection.request("GET", f"/tile.png?a.pleomorphism=2.5&seed={self.seed}")
            answer = self.connection.getresponse()
            data = answer.read()
            seconds.append(time.perf_counter() - begun)
            assert answer.status == 200 and data.startswith(b"\x89PNG")
        return 1000 * median(seconds)
