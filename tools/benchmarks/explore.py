"""``attributegan-bench explore``: measures the latency of a tile in the explorer after a slider has moved."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from attributegan.commands import child
from tools.options import add_command, require_at_least, with_settings

if TYPE_CHECKING:
    from tools.benchmarks.harness import Result

NETWORKS = ("small", "paper")


@dataclass(frozen=True)
class ExploreSettings:
    """Options of ``explore``.

    Args:
        config: training configs of the networks; by default `NETWORKS`.
        count: slider moves per turn, at least 1.
    """

    repeats: int
    config: tuple[str, ...] | None = None
    count: int = 10

    def __post_init__(self) -> None:
        require_at_least(self, count=1)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    """Add the benchmark to those of ``attributegan-bench``."""
    explore = add_command(
        commands,
        "explore",
        "measure the latency of a tile in the explorer after a slider has moved, in ms",
        ["attributegan-bench explore", "attributegan-bench explore --config small --count 30"],
        parents=[common],
    )
    explore.add_argument(
        "--config", action="append", metavar="NAME|FILE", help=f"training config of a network; repeatable (default: {', '.join(NETWORKS)})"
    )
    explore.add_argument(
        "--count", type=int, default=10, metavar="N", help="slider moves per turn, of which the median is reported (default: %(default)s)"
    )
    explore.set_defaults(measure=with_settings(_explore, ExploreSettings))


def _explore(settings: ExploreSettings) -> Result:
    """Measure milliseconds per tile."""
    from tools.benchmarks.harness import Result, interleaved

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        contenders = {}
        for number, config in enumerate(settings.config or NETWORKS):
            size = _untrained(config, folder / str(number))
            visitor = _Visitor(stack.enter_context(_served(folder / str(number))), settings.count)
            contenders[f"{size} px ({Path(config).stem})"] = visitor.moves
        return Result("explore", "ms", interleaved(contenders, settings.repeats))


def _untrained(config: str, run: Path) -> int:
    """Write a run folder with a checkpoint of the untrained network; returns its image size."""
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
    """Run the explorer in its own process; yields its "host:port"."""
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
    """A client that requests one tile after the other."""

    def __init__(self, location: str, count: int) -> None:
        self.connection, self.count, self.seed = http.client.HTTPConnection(location), count, 0

    def moves(self) -> float:
        """Return the median milliseconds from a request to the complete PNG; each tile is new to the server's cache."""
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
